"""A recipe: everything needed to make the same picture again, as plain data."""

from __future__ import annotations

import functools
import math
import platform
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError

from . import reading
from .core import guidance as guide
from .core import noise as noises
from .core import process as processes
from .core import solvers
from .core.grids import MOST_STEPS
from .core.guidance import Guidance
from .core.sampler import Sampler
from .errors import ArgumentError, plain, shown
from .files import replacing

if TYPE_CHECKING:
    from PIL import Image

    from .pipelines.helm import Helm

KEY, INFOTEXT = "timonel", "parameters"  # names of the text chunks in a PNG: the recipe, and it in A1111's words
PAIRS = ("crops_coords_top_left", "original_size", "target_size")  # arguments that a pipeline wants as tuples
PACKAGES = ("timonel", "torch", "diffusers", "transformers")


class Data(BaseModel):
    """Plain data whose errors are timonel's."""

    def __init__(self, **given: Any) -> None:
        try:
            super().__init__(**plain(given))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or type(self).__name__
            raise ArgumentError(
                f"{where}={shown(first['input'])} cannot be in a {type(self).__name__}: {first['msg']}"
            ) from error


class GuidanceData(Data):
    """`Guidance` as data; `start` and `stop` are None where the interval is open, `forecast` where there is none."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    scale: float | list[float] | None = None
    start: float | None = None
    stop: float | None = None
    unit: str = "ratio"
    rescale: float = 0.0
    forecast: int | None = None
    order: int | None = None

    @classmethod
    def of(cls, made: Guidance) -> GuidanceData:
        scale = list(made.scale) if isinstance(made.scale, tuple) else made.scale
        ends = {k: v if math.isfinite(v) else None for k, v in (("start", made.start), ("stop", made.stop))}
        forecast, order = (made.forecast, made.order) if made.forecast > 1 else (None, None)
        return cls(scale=scale, unit=made.unit, rescale=made.rescale, forecast=forecast, order=order, **ends)

    def guidance(self) -> Guidance:
        """The guidance, checked by `cfg`."""
        high = self.unit == "sigma"
        start = self.start if self.start is not None else (math.inf if high else 0.0)
        stop = self.stop if self.stop is not None else (0.0 if high else math.inf)
        return guide.cfg(
            self.scale, between=(start, stop), unit=self.unit, rescale=self.rescale,
            forecast=1 if self.forecast is None else self.forecast, order=self.order,
        )  # fmt: skip


class Recipe(Data):
    """One picture as data. Written into the PNG by `save`, read back by `read`, made again by `make`.

    A picture that the helm makes has its recipe in `info`, and its own `save` writes it into a PNG too. `pipeline`: the
    class of a pipeline object that was at the helm; `model` is then only where that says it comes from. `missing`:
    arguments that a file cannot hold, such as a picture. `besides`: what else had a part in it, such as a hook.
    `batch`: how many pictures were made at once. `listed`: the levels are a list that the pipeline is called with.
    `part`: which part of the levels, see `Sampler`.

    A recipe from a picture names a model that whoever wrote the file chose: one that does not ship with timonel is
    loaded only where the caller names it too, see `helm`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str
    prompt: str | None = None
    image: str | None = None
    negative_prompt: str | None = None
    seed: int = Field(ge=0, le=noises.MOST, strict=True)
    sampler: str
    grid: str | None = None
    steps: int = Field(ge=1, le=MOST_STEPS, strict=True)
    options: dict[str, Any] = Field(default_factory=dict)
    grid_options: dict[str, Any] = Field(default_factory=dict)
    table: dict[str, Any] | None = Field(default=None, repr=False)  # of a fitted sampler: what its file holds
    sigmas: list[float] | None = None
    times: list[float] | None = None
    part: dict[str, float] | None = None
    noise: str = noises.DEFAULT
    guidance: GuidanceData | None = None
    width: int | None = Field(default=None, ge=1, strict=True)
    height: int | None = Field(default=None, ge=1, strict=True)
    more_prompts: dict[str, str] | None = None  # prompt_2, …
    arguments: dict[str, Any] = Field(default_factory=dict)
    dtype: str | dict[str, Any] | None = None
    device: str | None = None
    loading: dict[str, str] | None = None
    pipeline: str | None = None
    missing: list[str] | None = None
    besides: list[str] | None = None
    batch: int | None = None
    listed: bool | None = None
    stopped_after: int | None = Field(default=None, ge=0, strict=True)
    versions: dict[str, str] = Field(default_factory=dict)

    _read: tuple[str, str] | None = PrivateAttr(None)  # the picture that it was read from, and the model named there

    def __eq__(self, other: object) -> bool:
        """Whether all fields are the same, wherever the recipes come from."""
        return self.__dict__ == other.__dict__ if isinstance(other, Recipe) else NotImplemented

    __hash__ = None  # type: ignore[assignment]

    @property
    def title(self) -> str:
        """What it is a picture of, in a few words."""
        return self.prompt or (Path(self.image).stem if self.image else self.model)

    @staticmethod
    def choice(sampler: Sampler) -> dict[str, Any]:
        """The fields that say which sampler it is, a fitted one with its table; without its steps."""
        table = None if sampler.fitted is None else sampler.fitted.to_dict()
        return {
            "sampler": sampler.name, "grid": sampler.grid, "options": dict(sampler.options),
            "grid_options": dict(sampler.grid_options), "noise": sampler.source, "table": table,
            **{key: list(map(float, levels)) for key in ("sigmas", "times") if (levels := getattr(sampler, key))},
            **({"part": sampler.cuts} if sampler.cuts else {}),
        }  # fmt: skip

    def chosen(self) -> Sampler:
        """The sampler this recipe names. Raises `ArgumentError` for the table of a fitted one that cannot be read."""
        fitted = None
        if self.table is not None:
            from .core.fitted.fitted import Fitted

            fitted = Fitted.from_dict(self.table, self.sampler)
        listed = self.sigmas is not None or self.times is not None
        own = bool({"sigmas", "timesteps"} & set(self.arguments))  # levels that the pipeline is called with
        part: dict[str, Any] = self.part or {}
        return Sampler(
            self.sampler, None if listed else self.grid, None if own else self.steps, self.options, self.grid_options,
            self.sigmas, self.times, noise=self.noise, fitted=fitted, **part,
        )  # fmt: skip

    def _sampler(self, helm: Helm) -> Sampler:
        """The sampler of a call. A picture from before grids were always written was made on the usual one of then."""
        found = self.chosen()
        if self.listed or found.times is not None:
            return found
        if not self.versions or found.fitted is not None or found.sigmas is not None or found.grid is not None:
            return found
        former = "karras" if processes.from_config(helm.pipe.scheduler.config).kind == "edm" else "trailing"
        return replace(found, grid=solvers.find(found.name).grid or former)

    def inputs(self) -> dict[str, Any]:
        """What the pipeline itself is called with; `image` is a path, read here."""
        from .animate import still

        prompts = {"prompt": self.prompt, "negative_prompt": self.negative_prompt, **(self.more_prompts or {})}
        given: dict[str, Any] = dict(prompts)
        given |= {k: tuple(v) if k.endswith(PAIRS) and isinstance(v, list) else v for k, v in self.arguments.items()}
        size = {"width": self.width, "height": self.height, "image": still(self.image) if self.image else None}
        return {k: v for k, v in {**given, **size}.items() if v is not None}

    def call(self, helm: Helm, *, hooks: Sequence[Any] = (), **more: Any) -> Any:
        """The pipeline's own output under the helm; `more` are arguments of the pipeline that are not the recipe's."""
        from .hooks.control import stop_when

        hooks = list(hooks)
        if self.stopped_after is not None:
            hooks.append(stop_when(lambda run: run.step == self.stopped_after, "the recipe stops here"))
        guidance = None if self.guidance is None else self.guidance.guidance()
        given = {**self.inputs(), **more}
        return helm(sampler=self._sampler(helm), guidance=guidance, seeds=[self.seed], hooks=hooks, **given)

    def check(self, *held: str, helm: bool = False) -> None:
        """Raise `ArgumentError` where a file cannot hold all it takes: a pipeline object, or inputs not in `held`."""
        if self.pipeline is not None and not helm:
            origin = "" if self.model == "unknown" else f", which says it comes from {self.model!r}"
            raise ArgumentError(
                f"it was made with a {self.pipeline} object{origin}: a file cannot hold how that was built. Build it "
                "again and use Recipe.read(path).make(tm.Helm(pipe)), or give tm.Helm the model's name next time"
            )
        lost = [name for name in self.missing or () if name not in held]
        if lost:
            raise ArgumentError(
                f"it was also made of {', '.join(f'{name}=' for name in lost)} which a file cannot hold: "
                f"Recipe.read(path).make({lost[0]}=…) with the same"
            )

    def helm(self, model: str | None = None) -> Helm:
        """The model of this recipe at the helm.

        Args:
            model: the recipe's model again. It is needed where a picture alone names it and it is not a shipped one.

        Raises:
            ArgumentError: it is needed, or another model than the recipe's.
        """
        from . import zoo
        from .pipelines.helm import Helm

        if model is not None and model != self.model:
            raise ArgumentError(f"the recipe's model is {self.model!r}, and not {shown(model)}")
        if model is None and self._read is not None and self._read[1] == self.model and self.model not in zoo.MODELS:
            raise ArgumentError(
                f"{self._read[0]} names the model {self.model!r}, which does not ship with timonel; where you know it, "
                f"name it too: tm.replay(path, model={self.model!r})"
            )
        loading: dict[str, Any] = {"dtype": self.dtype, "device": self.device, **(self.loading or {})}
        return Helm(self.model, **loading)

    def make(self, helm: Helm | None = None, *, hooks: Sequence[Any] = (), **more: Any) -> tuple[Image.Image, Recipe]:
        """The picture, and the recipe of what really ran (versions, and where it was stopped).

        Without `helm` the model is loaded, see `helm()`. `more`: arguments that a file cannot hold. Raises
        `ArgumentError` where one is missing, before any compute.
        """
        self.check(*more, helm=helm is not None)
        helm = helm or self.helm()
        output = self.call(helm, hooks=hooks, **more)
        run = helm.run
        stopped = run.step if run is not None and run.status == "stopped" else None
        now: dict[str, Any] = {"stopped_after": stopped, "versions": versions(), "batch": None}
        if not self.listed and self.sigmas is None and self.times is None and self.table is None:
            now["grid"] = self.grid if helm.choice is None else helm.choice.sampler.grid
        return output.images[0], self.model_copy(update=now)

    def texts(self, size: tuple[int, int]) -> dict[str, str]:
        """The text chunks of a PNG of a picture of `size`: this recipe, and it as A1111, Civitai and others read it."""
        from .infotext import infotext

        return {KEY: self.model_dump_json(exclude_none=True), INFOTEXT: infotext(self, size)}

    def save(self, picture: Image.Image, path: str | PathLike[str]) -> Path:
        """Write the picture as a PNG with this recipe in it, atomically; a file of that name is replaced."""
        from .pictures import chunks

        with replacing(path) as temporary:
            picture.save(temporary, format="PNG", pnginfo=chunks(self.texts(picture.size)))
        return Path(path)

    @classmethod
    def of(cls, picture: Image.Image) -> Recipe:
        """The recipe that a picture of PIL carries. Raises `ArgumentError` where there is none."""
        return cls._parsed(picture.info.get(KEY), "the picture")

    @classmethod
    def read(cls, path: str | PathLike[str]) -> Recipe:
        """The recipe in a PNG. Raises `ArgumentError` where there is none."""
        return cls._parsed(reading.picture(path).info.get(KEY), repr(str(path)))

    @classmethod
    def _parsed(cls, text: Any, where: str) -> Recipe:
        if text is None:
            raise ArgumentError(f"{where} has no timonel recipe in it; only PNGs that timonel wrote can be replayed")
        try:
            made = cls.model_validate(reading.parsed(text))
            made._read = (f"the recipe in {where}", made.model)
            return made
        except ValidationError as error:
            wrong = error.errors()[0]
            at = ".".join(map(str, wrong["loc"]))
            raise ArgumentError(f"the recipe in {where} cannot be read: {at}: {wrong['msg']}") from error
        except ValueError as error:
            raise ArgumentError(f"the recipe in {where} cannot be read: {error}") from error


def replay(path: str | PathLike[str], *, model: str | None = None, hooks: Sequence[Any] = ()) -> Image.Image:
    """Make the picture at `path` again from its recipe; the same bits on the same machine and versions.

    Args:
        path: a PNG with a recipe.
        model: its model, which a file alone does not choose; not needed for the models that ship with timonel.
        hooks: as in a call of the helm.

    Returns:
        The picture.

    Raises:
        ArgumentError: there is no recipe, `model` is needed or another one, or the recipe needs what no file holds.
    """
    recipe = Recipe.read(path)
    recipe.check()
    return recipe.make(recipe.helm(model), hooks=hooks)[0]


@functools.cache
def _versions() -> dict[str, str]:
    """Versions of what takes part in the result."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def versions() -> dict[str, str]:
    """Versions of what takes part in the result."""
    return dict(_versions())
