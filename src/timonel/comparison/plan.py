"""A plan: which recipes to run, and where each stands on the axes that are compared.

    plan = Plan.of("red apple", sampler=["euler", "dpmpp_2m/karras"], steps=[6, 10], seeds=4)

Every field of a recipe may be an axis. The plan is the product of the axes, in the order in which
they are listed here. A sampler that was fitted to a model, a .json file, has one number of steps:
it runs at that one only, whichever `steps` are given; where none are, the others run at those of
the files, so that all are compared at the same steps.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import picture_files, reading, zoo
from ..core import grids, names
from ..core.data import GuidanceData
from ..core.guidance import parsed
from ..core.sampler import DEFAULT, STEPS, Sampler, is_file
from ..errors import ArgumentError, UnknownName, plain, whole
from ..make.recipe import Recipe

if TYPE_CHECKING:
    from ..pipelines.helm import Helm
    from .loaded import Loaded

AXES = (
    "model", "prompt", "negative_prompt", "image", "sampler", "grid", "options", "grid_options",
    "noise", "steps", "guidance", "guidance_until", "rescale", "width", "height", "arguments",
    "dtype", "device", "seed",
)  # fmt: skip
# what makes another sample of the same setting
SAMPLE_AXES = ("prompt", "negative_prompt", "image", "seed")
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif")
MANY = 1000  # runs above which `yes` is needed
MOST = 100_000  # runs of one comparison
PLAN = 2**22  # bytes of a plan's file
# in YAML; 1:30:00 is 5400, and is read in the square of its length
NUMBER = re.compile(r"[-+0-9a-fox_:.]+")
DOTTED = re.compile(rf"(?:[\w'\"-]+\s*\.\s*){{{reading.DEPTH + 1}}}")
Value = Any


@dataclass(frozen=True)
class Cell:
    """One run of a plan: its recipe, and its place `at` on the axes."""

    at: Mapping[str, Value]
    recipe: Recipe

    @cached_property
    def id(self) -> str:
        """A name for what is computed: equal recipes have equal names, in every plan."""
        data = self.recipe.model_dump(
            mode="json", exclude={"versions", "stopped_after"}, exclude_none=True
        )
        if self.recipe.image is not None:  # the picture itself, wherever it lies
            picture = reading.content(self.recipe.image, "the picture", picture_files.PICTURE)
            data["image"] = hashlib.sha256(picture).hexdigest()
        return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def setting(self) -> dict[str, Value]:
        """Its place without what makes another sample of the same setting."""
        return {name: value for name, value in self.at.items() if name not in SAMPLE_AXES}


@dataclass(frozen=True)
class Plan:
    """The cells of a comparison.

    Attributes:
        axes: name to values, in the order of the product; those with one value too.
        cells: the runs.
        helms: models that are loaded already, by the name that their recipes have for them.
    """

    axes: Mapping[str, tuple[Value, ...]]
    cells: tuple[Cell, ...]
    helms: Mapping[str, Helm] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def of(
        cls,
        subjects: Sequence[str] | str = (),
        *,
        seeds: int | None = None,
        yes: bool = True,
        **axes: Any,
    ) -> Plan:
        """The product of the axes; the runs are counted before the cells are built.

        Combinations that a model cannot run become failed cells when they are computed.

        Args:
            subjects: prompts, or pictures for models that begin with one.
            seeds: how many, from 0; or give `seed`, a list of them.
            yes: whether more than 1,000 runs are meant; more than 100,000 are refused.
            **axes: a value or a list of values for each axis (`AXES`). A model is a name, a
                pipeline or a `Helm`, and the latter two are used as they are; a sampler is
                "solver", "solver/grid", a bare grid or a sampler file.

        Raises:
            UnknownName: of an axis, a sampler or a grid.
            ArgumentError: a value that cannot be meant.
        """
        for name in axes:
            if name not in AXES:
                raise UnknownName("axis", name, AXES)
        axes = {name: _values(value) for name, value in axes.items()}
        axes["seed"] = _seeds(axes, seeds)
        axes["model"] = _models(axes)
        axes.setdefault("sampler", [DEFAULT])
        _add_subjects(axes, _listed(subjects))
        for name, values in axes.items():
            if not values:
                raise ArgumentError(f"the plan is empty: {name} has no value")
        axes["sampler"] = _samplers(axes["sampler"])
        named_steps = _quick(_steps(axes))
        ordered = _ordered(axes)
        check_count(_count(ordered, named_steps), yes)
        product = itertools.product(*ordered.values())
        places = (dict(zip(ordered, values, strict=True)) for values in product)
        cells = tuple(Cell(_shown(at), recipe(at)) for at in places if _fits(at, named_steps))
        labels = {name: tuple(map(_label, values)) for name, values in ordered.items()}
        helms = {m.name: m.helm for m in axes["model"] if not isinstance(m, str)}
        return cls(labels, cells, helms)

    @classmethod
    def read(cls, path: str | PathLike[str], **more: Any) -> Plan:
        """A plan from a file.

        Args:
            path: a TOML, YAML or JSON file whose keys are the axes, `subjects` and `seeds`.
            **more: axes that replace those of the file.

        Raises:
            ArgumentError: the file cannot be read; and as of `of`.
        """
        data = read_file(Path(path))
        data |= {name: value for name, value in more.items() if value is not None}
        return cls.of(data.pop("subjects", ()), **data)

    @property
    def varying(self) -> list[str]:
        """The axes with more than one value."""
        return [name for name, values in self.axes.items() if len(values) > 1]

    def __len__(self) -> int:
        return len(self.cells)

    def __iter__(self) -> Iterator[Cell]:
        return iter(self.cells)


def read_file(path: Path) -> dict[str, Any]:
    """The axes of a plan's file.

    Raises:
        ArgumentError: it cannot be read, or is no table of axes.
        UnknownName: of an axis.
    """
    parse = _parsers().get(path.suffix.lower())
    if parse is None:
        raise ArgumentError(f"a plan is a .toml, .yaml or .json file, got {str(path)!r}")
    text = reading.text(path, "the plan", PLAN)
    try:
        data = reading.bounded(parse(text))
    except Exception as error:
        raise ArgumentError(f"the plan {str(path)!r} cannot be read: {error}") from error
    if not isinstance(data, dict):
        raise ArgumentError(
            f"the plan {str(path)!r} names no axes; write e.g. sampler = ['euler',"
            " 'dpmpp_2m/karras']"
        )
    known = (*AXES, "subjects", "seeds")
    for name in data:
        if name not in known:
            raise UnknownName("axis", name, known)
    return data


def _parsers() -> dict[str, Callable[[str], Any]]:
    return {".toml": _toml, ".yaml": _yaml, ".yml": _yaml, ".json": reading.parsed}


def _yaml(text: str) -> Any:
    """YAML without anchors, by which a short file can stand for one without end."""
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    depth = 0
    for number, event in enumerate(yaml.parse(text, Loader=loader)):
        depth += isinstance(event, yaml.events.CollectionStartEvent)
        depth -= isinstance(event, yaml.events.CollectionEndEvent)
        if depth > reading.DEPTH or number > 2 * MOST:  # before its reader takes minutes
            raise ValueError(
                f"it is nested deeper than {reading.DEPTH}, or holds more than {2 * MOST:,} values"
            )
        if isinstance(event, yaml.events.AliasEvent):
            raise ValueError("it repeats a part by its name (*name): write it out")
        if getattr(event, "tag", None) is not None:
            raise ValueError(f"it has a tag ({event.tag}): write the value alone")
        scalar = isinstance(event, yaml.events.ScalarEvent)
        if scalar and len(event.value) > 40 and NUMBER.fullmatch(event.value):
            raise ValueError("it has a number that is too long")
    return yaml.load(text, Loader=loader)


def _toml(text: str) -> Any:
    """TOML without names of very many parts, which its reader takes the square of the time for."""
    try:
        import tomllib as toml
    except ImportError:  # Python 3.10
        import tomli as toml  # type: ignore[import-not-found, no-redef, unused-ignore]
    if DOTTED.search(text):
        raise ValueError(f"it has a name of more than {reading.DEPTH} parts")
    return toml.loads(text)


def recipe(at: Mapping[str, Value]) -> Recipe:
    """The recipe at a place on the axes; what is not named there is the model's default."""
    model, sampler = at["model"], at["sampler"]
    card = _card(model)
    usual = {"steps": STEPS, "guidance": None}
    if card is not None:
        usual = {"steps": card.default_steps, "guidance": card.default_guidance}
        if at.get("image") is not None:  # the default size of these pipelines is far larger
            usual |= {"width": card.resolution, "height": card.resolution}
    at = {**usual, **at}
    if not isinstance(model, str):
        at |= {"dtype": model.dtype, "device": model.device}
    values = {name: value for name, value in at.items() if value is not None}
    chosen = Sampler(
        _label(sampler),
        at.get("grid"),
        options=values.get("options", {}),
        grid_options=values.get("grid_options", {}),
        noise=at.get("noise"),
        fitted=sampler.fitted if isinstance(sampler, Sampler) else None,
    )
    guidance = parsed(at["guidance"], at.get("guidance_until"), values.get("rescale", 0.0))
    chosen = chosen.guided_by(guidance)
    plain = ("prompt", "negative_prompt", "image", "width", "height", "dtype", "device")
    return Recipe(
        model=_label(model),
        seed=at["seed"],
        steps=at["steps"],
        arguments=dict(values.get("arguments", {})),
        guidance=None if guidance is None else GuidanceData.of(guidance),
        **Recipe.choice(chosen),
        **{name: values[name] for name in plain if name in values},
    )


def _card(model: str | Loaded) -> Any:
    if isinstance(model, str):
        return zoo.card(model) if model in zoo.MODELS else None
    return model.helm.card


def check_count(runs: int, yes: bool) -> None:
    """Raise `ArgumentError` for more runs than are meant, or than one comparison holds.

    Args:
        runs: of the plan.
        yes: whether more than 1,000 are meant.
    """
    if runs > MOST:
        raise ArgumentError(
            f"the plan has {runs:,} runs and at most {MOST:,} are one comparison: take fewer values"
        )
    if runs > MANY and not yes:
        raise ArgumentError(f"the plan has {runs} runs; pass yes=True (--yes) if that is meant")


def _count(ordered: Mapping[str, Sequence[Value]], named_steps: Collection[Any]) -> int:
    """How many runs the axes make."""
    others: int = math.prod(
        len(values) for name, values in ordered.items() if name not in ("sampler", "steps")
    )
    samplers = ordered["sampler"]
    if "steps" not in ordered:
        return others * len(samplers)
    files = [one for one in samplers if isinstance(one, Sampler)]
    steps = ordered["steps"]
    named = (len(samplers) - len(files)) * sum(n in named_steps for n in steps)
    of_files = len([n for one in files for n in steps if n == one.steps])
    return int(others * (named + of_files))


def _values(value: Any) -> Sequence[Any]:
    if isinstance(value, range):
        if value and max(abs(value[0]), abs(value[-1])) >= 2**62:
            raise ArgumentError(f"a range of values must be below 2^62, got {value!r}")
        return value
    value = plain(value)
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _listed(subjects: Any) -> list[Any]:
    alone = isinstance(subjects, (str, PathLike)) or not isinstance(subjects, Iterable)
    return [subjects] if alone else list(subjects)


def _unique(values: Sequence[Any]) -> Sequence[Any]:
    """The values without repetitions, in order; the few that cannot be in a set, by pairs."""
    if isinstance(values, range):
        return values
    kept, seen, others = list[Any](), set[Any](), list[Any]()
    for value in values:
        try:
            key = value
            if isinstance(value, (dict, list)):
                key = (json.dumps(value, sort_keys=True), "JSON")
            known = key in seen
            seen.add(key)
        except (TypeError, ValueError):
            known = value in others
            others.append(value)
        if not known:
            kept.append(value)
    return tuple(kept)


def is_model(value: Any) -> bool:
    """Whether this is a loaded model, a pipeline or a `Helm`, not the name of one."""
    return (
        not isinstance(value, type)
        and callable(value)
        and (hasattr(value, "scheduler") or hasattr(value, "pipe"))
    )


def _models(axes: Mapping[str, Sequence[Any]]) -> list[str | Loaded]:
    """The axis of models: names, and what is loaded already."""
    models = axes.get("model", ["emoji"])
    models = [os.fspath(m) if isinstance(m, PathLike) else m for m in models]
    objects = [model for model in models if not isinstance(model, str)]
    for model in objects:
        if not is_model(model):
            raise ArgumentError(f"a model is a name, a pipeline or a Helm, got {model!r}")
    if not objects:
        return models
    from .loaded import Loaded

    for name in ("dtype", "device"):
        if any(value is not None for value in axes.get(name, ())):
            raise ArgumentError(
                f"a loaded model is used as it is: leave {name} out, or give the model's name"
            )
    return [model if isinstance(model, str) else Loaded.of(model) for model in models]


def _seeds(axes: Mapping[str, Sequence[Any]], seeds: int | None) -> Sequence[Any]:
    if seeds is None:
        return axes.get("seed", [0])
    if "seed" in axes:
        raise ArgumentError("give seeds= (how many) or seed= (which), not both")
    return range(whole("seeds", seeds, 1, 2**62))


def _add_subjects(axes: dict[str, Sequence[Any]], subjects: list[Any]) -> None:
    """Put prompts and pictures on their axes.

    A picture is a file that is there, or a name that ends like one.
    """
    for subject in subjects:
        if not isinstance(subject, (str, Path)) or not str(subject).strip():
            raise ArgumentError(
                f'a subject is a prompt or a picture, e.g. "red apple", got {subject!r}'
            )
    pictures = _pictures(subjects, axes.get("image", []))
    prompts = [s for s in subjects if s not in pictures]
    if pictures and prompts:
        raise ArgumentError("give prompts or pictures, not both")
    for name, values in (("prompt", prompts), ("image", list(map(str, pictures)))):
        if values and name in axes:
            raise ArgumentError(f"give {name}= once")
        if values:
            axes[name] = values
    if "prompt" not in axes and "image" not in axes:
        raise ArgumentError('the plan is empty: say what to paint, e.g. "red apple"')


def _pictures(subjects: list[Any], more: Sequence[Any]) -> dict[Any, None]:
    """The subjects that are pictures, in order. Raises `ArgumentError` where one is not there."""
    pictures = {
        s: None
        for s in subjects
        if re.fullmatch(r".+\.\w+", str(s)) and Path(s).suffix.lower() in PICTURES
    }
    for picture in (*pictures, *more):
        if picture is not None and not Path(picture).is_file():
            raise ArgumentError(f"there is no picture {str(picture)!r}")
    return pictures


def _ordered(axes: Mapping[str, Sequence[Any]]) -> dict[str, Sequence[Any]]:
    """The axes in their order, without repetitions and without those that hold only None."""
    gridded = [None if g is None else names.grid(g) for g in axes.get("grid", [None])]
    axes = {**axes, "grid": gridded}
    named = [name for name in AXES if name in axes and list(axes[name][:2]) != [None]]
    return {name: _unique(axes[name]) for name in named}


def _samplers(values: Sequence[Any]) -> list[str | Sampler]:
    """Samplers as they are typed, files read; two different ones of one name are refused."""
    samplers = [_sampler(name) for name in values]
    files = {one.name: one for one in samplers if isinstance(one, Sampler)}
    for one in samplers:
        if _label(one) in files and one != files[_label(one)]:
            raise ArgumentError(
                f"two samplers are called {_label(one)!r} here: give one of the files another name"
            )
    return samplers


def _sampler(name: Any) -> str | Sampler:
    """A sampler as it is typed, a fitted one as itself; a bare grid is the usual solver on it."""
    if isinstance(name, Sampler) and name.fitted is not None:
        return name
    if is_file(name):
        return Sampler(name)
    if isinstance(name, str) and "/" not in name and name in grids.GRIDS:
        name = f"{DEFAULT}/{name}"
    names.sampler(name)
    return str(name)


def _label(value: Value) -> Value:
    """A place on an axis as plain data: a fitted sampler and a loaded model by their names."""
    return value.name if isinstance(value, Sampler) or hasattr(value, "helm") else value


def _steps(axes: dict[str, Sequence[Any]]) -> Sequence[Any]:
    """The steps at which named samplers run; those of sampler files join the axis, in order."""
    of_files = [one.steps for one in axes["sampler"] if isinstance(one, Sampler)]
    named_steps = axes.get("steps", of_files)
    if any(steps not in named_steps for steps in of_files):
        axes["steps"] = sorted(
            [*named_steps, *of_files], key=lambda steps: steps if isinstance(steps, int) else 0
        )
    elif of_files:
        axes["steps"] = named_steps
    return named_steps


def _quick(values: Sequence[Any]) -> Collection[Any]:
    """The values, as a set where they can be in one."""
    try:
        return frozenset(values)
    except TypeError:
        return values


def _fits(at: Mapping[str, Value], named_steps: Collection[Any]) -> bool:
    """Whether a sampler runs at these steps: a file at its own, a named one at `named_steps`."""
    if isinstance(at["sampler"], Sampler):
        return bool(at["steps"] == at["sampler"].steps)
    return "steps" not in at or at["steps"] in named_steps


def _shown(at: Mapping[str, Value]) -> dict[str, Value]:
    return {name: _label(value) for name, value in at.items()}
