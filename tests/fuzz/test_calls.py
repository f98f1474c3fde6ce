"""Law: whatever is asked for, there is a finite result or a timonel error; nothing else, and no
hang.

Samplers with any options and levels, public calls with two odd arguments, configurations of
schedulers, and the files of a model's folder. Cases are numbered, and one is drawn again from its
number.
"""

from __future__ import annotations

import json
import math
import random
import signal
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import timonel as tm
from support import border
from support.published_schedulers import CONFIGS
from timonel import compat
from timonel.core import grids, solvers
from timonel.core.process import EDM, VE, VP, Cosine, Crash, Flow, Trig
from timonel.errors import GuardStop, TimonelError
from timonel.pipelines import trust

LONGEST = 10.0  # seconds of the processor that a case may take
PROCESSES = (
    VP.from_schedule(), VP.from_schedule("linear", 1e-4, 0.02, 37),
    VP.from_schedule(rescale_zero_snr=True),
    VP.from_schedule("squaredcos_cap_v2", steps_offset=1), EDM(0.002, 80.0), VE(0.01, 50.0), Flow(),
    Flow(0.3),
    Cosine(), Crash(), Trig(),
)  # fmt: skip
ODD: tuple[Any, ...] = (
    None, True, 0, 1, -1, 3, 10**9, 10**400, 2**64, 0.5, 1e-9, 1e9, 1e308, math.nan, math.inf,
    -math.inf, "", "x",
    "2/3", "auto", [], [1], [3, 2, 1], (), {}, {"a": 1}, [[0, 0], [1, 0]], b"x", 1j,
)  # fmt: skip
NAMES = (
    *solvers.SOLVERS,
    *solvers.SOLVERS,
    "DPM++ 2M Karras",
    "euler a",
    "Euler",
    "",
    "dpmpp_2m/karras",
    "x/y",
)
OPTIONS = sorted(
    {o for s in solvers.SOLVERS.values() for o in s.options}
    | {"skip", "s_noise", "s_churn", "banana"}
)
GRID_OPTIONS = sorted({o for g in grids.GRIDS.values() for o in g.options} | {"terminal", "banana"})
FLAGS = sorted(
    {flag for _, flags in CONFIGS.values() for flag in flags}
    | {"rho", "timestep_spacing", "solver_order"}
)
SCHEDULERS = sorted(n for n in compat.__all__ if n.endswith("Scheduler"))


class Hang(BaseException):
    """A case that takes too long."""


@contextmanager
def in_time() -> Iterator[None]:
    """Raise `Hang` where a block takes too much of the processor."""

    def late(*_: object) -> None:
        raise Hang

    before = signal.signal(signal.SIGPROF, late)
    signal.setitimer(signal.ITIMER_PROF, LONGEST)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def number(chance: random.Random) -> Any:
    return chance.choice(
        [chance.choice(ODD), chance.random(), chance.uniform(0, 50), chance.randrange(60)]
    )


def some(chance: random.Random, names: Any, least: int = 0) -> dict[str, Any]:
    picked = chance.sample(list(names), min(len(names), chance.choice([least, 1, 1, 2])))
    return {name: number(chance) for name in picked}


def levels(chance: random.Random) -> Any:
    if chance.random() < 0.2:
        return chance.choice(ODD)
    found = [
        chance.choice([chance.random(), chance.uniform(0, 60), chance.uniform(0, 999)])
        for _ in range(5)
    ]
    return sorted(found, reverse=True) if chance.random() < 0.8 else found


def sampler(chance: random.Random) -> Any:
    """A random sampler's table on a random process."""
    name = chance.choice(NAMES)
    own = solvers.SOLVERS[name].options if name in solvers.SOLVERS else ()
    grid = chance.choice([None, None, *grids.GRIDS, "karas"])
    given: dict[str, Any] = {
        "name": name,
        "grid": grid,
        "steps": chance.choice([4, 10, 20, number(chance)]),
    }
    if chance.random() < 0.6:
        given["options"] = some(chance, own if own and chance.random() < 0.8 else OPTIONS)
    if chance.random() < 0.3 and grid in grids.GRIDS:
        known = grids.GRIDS[grid].options
        given["grid_options"] = some(
            chance, known if known and chance.random() < 0.8 else GRID_OPTIONS
        )
    if chance.random() < 0.15:
        given |= {chance.choice(["sigmas", "times"]): levels(chance), "steps": None, "grid": None}
    if chance.random() < 0.2:
        given |= some(chance, ("start", "stop", "strength", "denoising_start", "denoising_end"), 1)
    if chance.random() < 0.1:
        given["noise"] = chance.choice(["brownian", "independent", *ODD])
    return tm.Sampler(**given).compile(chance.choice(PROCESSES))


@cache
def targets() -> list[border.Target]:
    return [*border.native(), *border.schedulers(), *border.classes()]


def call(chance: random.Random) -> Any:
    """A public function with odd values for one, two or three of its arguments."""
    one = chance.choice([target for target in targets() if target.parameters])
    given = {
        key: value() if isinstance(value, border.Fresh) else value
        for key, value in one.good.items()
    }
    for name in chance.sample(
        one.parameters, min(len(one.parameters), chance.choice([1, 1, 2, 3]))
    ):
        given[name] = border.ODD[chance.choice(list(border.ODD))]()
    return one.call(**given)


def config(chance: random.Random) -> Any:
    """A published configuration with entries that are changed, missing or another's, in one of
    three readers.
    """
    kind, flags = chance.choice(list(CONFIGS.values()))
    made = {"_class_name": f"{kind}Scheduler", **flags}
    for name in chance.sample(FLAGS, chance.choice([1, 1, 2, 3])):
        others = [f[name] for _, f in CONFIGS.values() if name in f]
        made[name] = chance.choice(others) if others and chance.random() < 0.5 else number(chance)
    if chance.random() < 0.2:
        made.pop(chance.choice(list(made)))
    reader = chance.choice(
        [tm.Scheduler, *[getattr(compat, n) for n in chance.sample(SCHEDULERS, 2)]]
    )
    if chance.random() < 0.5 and hasattr(compat, f"{kind}Scheduler"):
        reader = getattr(compat, f"{kind}Scheduler")
    scheduler = reader.from_config(made)
    scheduler.set_timesteps(chance.choice([1, 4, 20]))
    x = torch.ones(1, 4, 8, 8)
    return scheduler.step(0.1 * x, scheduler.timesteps[0], x).prev_sample


def indexed(chance: random.Random, folder: Path) -> Callable[[], Any]:
    """A folder of a model with a changed index or configuration, looked at before anything is
    loaded.
    """
    from support.damage import bytes_of, data_of

    index = {
        "_class_name": "StableDiffusionPipeline", "_diffusers_version": "0.36.0",
        "unet": ["diffusers", "UNet2DModel"],
        "text_encoder": ["transformers", "CLIPTextModel"], "safety_checker": [None, None],
        "requires": [1, 2.5, True],
    }  # fmt: skip
    own = {
        "architectures": ["CLIPTextModel"],
        "hidden": 12,
        "auto_map": {},
        "nested": {"a": [1, {"b": "x"}]},
    }
    for name, data in (
        ("model_index.json", index),
        ("text_encoder/config.json", own),
        ("unet/config.json", own),
    ):
        text = json.dumps(data_of(data, chance) if chance.random() < 0.5 else data).encode()
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes_of(text, chance) if chance.random() < 0.4 else text)
    return lambda: trust.folder("model", folder)


def tensors(value: Any) -> Iterator[Tensor]:
    """What a result has of numbers that are to be finite."""
    if isinstance(value, Tensor) and value.is_floating_point():
        yield value
    elif isinstance(value, tm.Table):
        yield from (value.x, value.base, value.alpha, value.sigma, value.time)


def tried(kind: str, draw: Callable[[random.Random], Any], numbers: range) -> dict[str, int]:
    """Every case of these numbers; how each ended."""
    ended: dict[str, int] = {}
    for case in numbers:
        chance = random.Random(f"{kind} {case}")
        try:
            with warnings.catch_warnings(), in_time():
                warnings.simplefilter("ignore")
                made = draw(chance)
            broken = kind != "call" and not all(bool(one.isfinite().all()) for one in tensors(made))
            assert not broken, f"{kind} {case}: a result that is not finite"
            how = "right"
        except GuardStop:
            how = "said"
        except (TimonelError, border.Reached) as error:
            if not str(error) and not isinstance(error, border.Reached):
                pytest.fail(f"{kind} {case}: an error without words")
            how = "refused"
        except AssertionError:
            raise
        except (Exception, Hang) as error:
            raise AssertionError(f"{kind} {case}: {error!r}") from error
        ended[how] = ended.get(how, 0) + 1
    return ended


DRAWS: dict[str, tuple[Callable[[random.Random], Any], int, int]] = {
    "sampler": (sampler, 150, 10_000), "call": (call, 150, 10_000), "config": (config, 100, 5_000),
}  # fmt: skip


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("kind", DRAWS)
def test_what_is_asked_for_is_right_or_refused(kind: str) -> None:
    draw, few, _ = DRAWS[kind]
    ended = tried(kind, draw, range(few))
    assert ended["right"] > few / 20
    assert ended["refused"] > few / 20


@pytest.mark.slow
@pytest.mark.parametrize("kind", DRAWS)
def test_thousands_of_what_is_asked_for_are_right_or_refused(kind: str) -> None:
    draw, few, many = DRAWS[kind]
    tried(kind, draw, range(few, many))


def odd_options(values: Any, process: Any) -> None:
    """Every option of every sampler with an odd value: a finite table, or a refusal."""
    for name, spec in solvers.SOLVERS.items():
        for option in (*spec.options, *solvers.COMMON):
            for label in values:
                chosen = {option: border.ODD[label]()}

                def draw(
                    chance: random.Random, name: str = name, chosen: dict[str, Any] = chosen
                ) -> Any:
                    return tm.Sampler(name, steps=6, options=chosen).compile(process)

                tried(f"{name}({option}={label})", draw, range(1))


def test_an_odd_value_of_an_option_is_refused_or_right() -> None:
    odd_options(("2.5", "nan", "'x'", "[1]"), PROCESSES[0])


@pytest.mark.slow
@pytest.mark.parametrize("process", PROCESSES, ids=lambda process: process.kind)
def test_each_odd_value_of_an_option_is_refused_or_right(process: Any) -> None:
    odd_options(border.ODD, process)


def indexes(folder: Path, numbers: range) -> None:
    def draw(chance: random.Random) -> Any:
        place = folder / str(chance.random())
        place.mkdir()
        return indexed(chance, place)()

    tried("index", draw, numbers)


def test_a_changed_folder_of_a_model_is_read_or_refused(tmp_path: Path) -> None:
    indexes(tmp_path, range(60))


@pytest.mark.slow
def test_a_thousand_changed_folders_of_models_are_read_or_refused(tmp_path: Path) -> None:
    indexes(tmp_path, range(60, 1060))
