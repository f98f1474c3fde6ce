"""What a list of levels is made from, and the end that most lists of diffusers share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from ...core.grids import Grid
from ...core.process import Level, Process, double
from ...errors import ArgumentError, GridError

Flags = Mapping[str, Any]
Family = Literal[
    "index", "sigma", "dpm", "distilled", "flow", "edm", "angles", "consistency", "inverse",
    "continuous"
]  # fmt: skip
SHAPES = {
    "use_karras_sigmas": "karras",
    "use_exponential_sigmas": "exponential",
    "use_beta_sigmas": "beta_sigma",
    "use_lu_lambdas": "lam",
}
ROUNDED = 1e-4  # relative; published sigmas have five digits
NUDGE = 1e-8  # a step in lam that is as good as none
SAME = 1e-5  # relative distance of two levels that diffusers' float32 cannot tell apart


def never(flags: Flags, calls: int) -> bool:
    """The classes without a corrector."""
    return False


def always(flags: Flags, calls: int) -> bool:
    """The classes whose every call corrects the step before it."""
    return True


@dataclass(frozen=True)
class LevelRule:
    """Which levels a class visits, beyond what its flags say.

    Args:
        family: whose list it is. "index": whole training times; "sigma": training times and their
            sigma / alpha; "dpm": the same with one time more, the last left out; "distilled": a
            part of the distillation's times; "flow" and "edm": lists of these processes;
            "angles": of TrigFlow; "consistency": places in the list of the training; "continuous":
            of the cosine in continuous time; "inverse": whole training times that rise, each at
            the level a stride below.
        end: "clean" or "lowest" level; None leaves it to the flags.
        corrects: whether a last call that moves nothing corrects the sample, by flags and the
            number of calls.
        rounds: Karras' levels get whole training times.
        snaps: as UniPC, it ends a list of a shape at its last level, begins a flow just below pure
            noise, and spaces Karras' levels of a flow by sigma / alpha.
        anywhere: the number of the distillation's steps that `set_timesteps` gets is a limit only.
        even: N levels of a flow are u = 1 - i/N before the shift ("begins"), or 1 - i/(N - 1)
            without the last, and listed sigmas are shifted already ("ends").
        rises: the list goes from a picture to noise.
        spacing: of the training times, where no flag says it.
    """

    family: Family = "sigma"
    end: Literal["clean", "lowest"] | None = None
    corrects: Callable[[Flags, int], bool] = never
    rounds: bool = False
    snaps: bool = False
    anywhere: bool = False
    rises: bool = False
    even: Literal["begins", "ends"] | None = None
    spacing: str | None = None


class LevelRequest(NamedTuple):
    """What `set_timesteps` was called with.

    `original`: steps of the distillation; `strength`: the share of them that image-to-image visits;
    `first_shift`: of a flow whose shift was changed, the one that still says where its list ends.
    """

    steps: int | None
    times: Any = None
    sigmas: Any = None
    mu: float | None = None
    original: int | None = None
    strength: float = 1.0
    first_shift: float | None = None


class Levels(NamedTuple):
    """A grid, and how many calls of diffusers' list it leaves out because they move nothing.

    `idle`: at the end, `repeated`: before it, where rounding makes two training times one.
    """

    grid: Grid
    idle: int = 0
    repeated: int = 0

    @property
    def calls(self) -> int:
        """The calls of diffusers' list, without those that are repeated."""
        return self.grid.steps + self.idle


def shape(flags: Flags) -> str | None:
    """The grid that a sigma flag asks for. Raises `ArgumentError` for two of them."""
    on = shaping(flags)
    if len(on) > 1:
        raise ArgumentError(f"{' and '.join(on)} each set the levels; leave one of them on")
    return SHAPES[on[0]] if on else None


def shaping(flags: Flags) -> list[str]:
    """The sigma flags that are on."""
    return [flag for flag in SHAPES if flags.get(flag)]


def stops(flags: Flags) -> bool:
    """Whether the flags ask for a list that ends at the lowest training level."""
    return flags.get("final_sigmas_type") == "sigma_min"


def listed(process: Process, sigmas: Any) -> Tensor:
    """The caller's sigmas; published lists round the largest, which is then the process's."""
    sigma, top = double(sigmas).flatten(), process.sigma_max
    return torch.where((sigma > top) & (sigma <= top * (1 + ROUNDED)), top, sigma)


def before_end(grid: Grid) -> Level:
    """The levels where the steps of a grid begin."""
    return Level(grid.alpha[:-1], grid.sigma[:-1], grid.time[:-1])


def last(level: Level) -> Level:
    """The last of several levels."""
    return Level(*(value[-1:] for value in level))


def joined(*levels: Level) -> Level:
    """Several levels one after another."""
    return Level(*(torch.cat(values) for values in zip(*levels, strict=True)))


def ended(process: Process, level: Level, corrects: bool, end: Level | None = None) -> Levels:
    """A list that ends at the lowest training level, or at `end`.

    A call that would move nothing is left out, unless it `corrects` the sample: then it moves by
    `NUDGE`.
    """
    end = process.at_sigma(double([process.sigma_min])) if end is None else end
    idle = bool(level.ratio[-1] <= end.ratio[0] * (1 + SAME))
    if idle and corrects:
        end, idle = process.at_lam(last(level).lam + NUDGE), False
    if idle and len(level.alpha) < 2:
        raise GridError(
            "one step cannot begin and end at the same level; use more, or final_sigmas_type='zero'"
        )
    if idle:
        level = Level(*(value[:-1] for value in level))
    return Levels(Grid(process, *joined(level, end), "sigma"), int(idle))
