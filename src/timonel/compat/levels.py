"""The levels that diffusers' schedulers visit, family by family, so that a script keeps its
pictures.

Every list of diffusers ends in sigma = 0 or, with `final_sigmas_type="sigma_min"`, at the lowest
training level. Where that repeats the last level of the list, diffusers calls the network once more
and moves nothing; here the call is left out (`Levels.idle`). So is one that rounding to training
times repeats (`Levels.repeated`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..core import grids
from ..core.grids import Grid
from ..core.process import EDM, VE, Crash, Flow, Level, Process, double, from_config
from ..core.process.exploding import FINITE
from ..core.process.level import interpolate, short
from ..errors import ArgumentError, GridError, UnknownName, finite, whole
from .defaults import BETAS

Flags = Mapping[str, Any]
SHAPES = {
    "use_karras_sigmas": "karras",
    "use_exponential_sigmas": "exponential",
    "use_beta_sigmas": "beta_sigma",
    "use_lu_lambdas": "lam",
}
SPACINGS = ("linspace", "leading", "trailing")
SNAP = 1e-6  # the first t of a UniPC flow stays this far below pure noise
ROUNDED = 1e-4  # relative; published sigmas have five digits
NUDGE = 1e-8  # a step in lam that is as good as none
SAME = 1e-5  # relative distance of two levels that diffusers' float32 cannot tell apart


class Asked(NamedTuple):
    """What `set_timesteps` was called with."""

    steps: int | None
    times: Any = None
    sigmas: Any = None
    mu: float | None = None
    original: int | None = None  # steps of the distillation
    strength: float = 1.0  # the share of them that image-to-image visits


class Levels(NamedTuple):
    """A grid, and how many calls of diffusers' list it leaves out because they move nothing.

    `idle`: at the end, `repeated`: before it, where rounding makes two training times one.
    """

    grid: Grid
    idle: int = 0
    repeated: int = 0


def make(family: str, process: Process, flags: Flags, asked: Asked) -> Levels:
    """The levels of a scheduler family ("index", "sigma", "dpm", "distilled", "flow", "edm") on a
    model's process.
    """
    given = [
        name
        for name, value in zip(("timesteps", "sigmas"), asked[1:3], strict=True)
        if value is not None
    ]
    if len(given) == 2:
        _both(process, asked)
    if isinstance(process, VE) and asked.sigmas is not None:
        asked, given = (
            asked._replace(steps=len(asked.sigmas), sigmas=None),
            [],
        )  # whose number alone counts
    if given and asked.steps not in (None, len(asked[1] if asked.times is not None else asked[2])):
        raise ArgumentError(f"num_inference_steps={asked.steps} and {given[0]} disagree; give one")
    if not given and asked.steps is None:
        raise ArgumentError("give num_inference_steps, timesteps or sigmas")
    if given and shape(flags) and (asked.times is not None or not isinstance(process, Flow)):
        raise ArgumentError(
            f"{given[0]} set the levels and so does a sigma flag; switch {_flag(flags)} off"
        )
    if asked.mu is not None and not isinstance(process, Flow):
        raise ArgumentError(f"mu={asked.mu} shifts flow models; this is a {process.kind} process")
    if isinstance(process, Flow):
        return _flow(process, flags, asked, lists="dpm" if family == "dpm" else "flow")
    if isinstance(process, EDM):
        return _edm(process, flags, asked)
    if isinstance(process, Crash):
        return _crash(process, flags, asked)
    if asked.sigmas is not None:
        made = grids.custom_sigmas(process, _given(process, asked.sigmas))
        listed = (made.alpha[:-1], made.sigma[:-1], made.time[:-1])
        return (
            _ended(process, *listed, _corrects(flags, made.steps))
            if _stops(flags)
            else Levels(made)
        )
    return (
        _indexed(family, process, flags, asked)
        if family in ("index", "distilled")
        else _sigmas(family, process, flags, asked)
    )


def _given(process: Process, sigmas: Any) -> Tensor:
    """Sigmas of the user's own; published lists round the largest, which is then that of the
    process.
    """
    given, top = double(sigmas).flatten(), process.sigma_max
    return torch.where((given > top) & (given <= top * (1 + ROUNDED)), top, given)


def shape(flags: Flags) -> str | None:
    """The grid that a sigma flag asks for. Raises `ArgumentError` for two of them."""
    on = [flag for flag in SHAPES if flags.get(flag)]
    if len(on) > 1:
        raise ArgumentError(f"{' and '.join(on)} each set the levels; leave one of them on")
    return SHAPES[on[0]] if on else None


def _flag(flags: Flags) -> str:
    return next(flag for flag in SHAPES if flags.get(flag))


def _stops(flags: Flags) -> bool:
    return flags.get("final_sigmas_type") == "sigma_min"


def _corrects(flags: Flags, count: int) -> bool:
    """Whether a last call that moves nothing corrects the sample, of a class with groups of calls
    by their count.
    """
    rule = flags.get("corrects", False)
    return bool(rule(count) if callable(rule) else rule)


# -- training times --------------------------------------------------------------------------------
def _times(family: str, process: Process, flags: Flags, asked: Asked) -> Tensor:
    """The training times of a list, noisiest first."""
    if asked.times is not None:
        times = grids.custom_times(process, asked.times).time[:-1]
        return times[len(times) - _share(len(times), asked.strength, "timesteps") :]
    n, total = whole("num_inference_steps", asked.steps or 0), process.train_steps
    if n > total and family in ("index", "distilled"):
        raise GridError(
            f"{n} steps are more than the {total} training levels of this model; use at most"
            f" {total}"
        )
    if family == "distilled":
        return _distilled(process, flags, asked, n)
    spacing, offset = (
        flags.get("timestep_spacing") or "linspace",
        int(flags.get("steps_offset") or 0),
    )
    if spacing not in SPACINGS:
        raise UnknownName("timestep_spacing", spacing, SPACINGS)
    last = total - _clipped(process, flags)
    count = torch.arange(n, dtype=torch.float64)
    if spacing == "trailing":
        left = last + count * ((last - total / n) - last)  # the rounding of numpy's arange
        times = left[left > 0].round() - 1  # fewer where the noisiest are clipped
    elif spacing == "leading" and n == 1:
        times = double(
            [last - 1.0]
        )  # at its own place, at the cleanest level, it would give the noise back
    elif spacing == "leading":
        entries = n + (family == "dpm")
        if entries > last:
            raise GridError(
                f"timestep_spacing='leading' lists {entries} levels for {n} steps, and this model"
                f" has {last}, so all would be one; use at most {n - entries + last} steps, or"
                " timestep_spacing='trailing'"
            )
        times = (count.flip(0) + (family == "dpm")) * (last // entries) + offset
    elif family == "dpm":
        times = _even_times(last - 1, n + 1).round().flip(0)[:-1]
    else:
        even = _even_times(last - 1, n).flip(0) if n > 1 else double([last - 1.0])
        times = even.round() if family == "index" else even
    return times.clamp(0, total - 1)


def _even_times(last: int, count: int) -> Tensor:
    """0 … `last` evenly, with the rounding of numpy, so that what lies half way is rounded as in
    diffusers.
    """
    times = torch.arange(count, dtype=torch.float64) * (last / (count - 1))
    times[-1] = last
    return times


def _distilled(process: Process, flags: Flags, asked: Asked, n: int) -> Tensor:
    """`n` of the times of the distillation, or of its last share: arXiv 2310.04378, section 4.3."""
    total = process.train_steps
    steps = asked.original if asked.original is not None else flags["original_inference_steps"]
    original = total if steps is None else whole("original_inference_steps", steps, 1, total)
    anywhere = (
        bool(flags.get("anywhere")) and asked.original is not None
    )  # TCD: then the number is a limit only
    left = _share(total if anywhere else original, asked.strength, "levels")
    if n > min(left, original):
        raise GridError(
            f"{n} steps are more than the {min(left, original)} levels that"
            f" strength={asked.strength:g} leaves of original_inference_steps={original}; use fewer"
            " steps, or raise one of the two"
        )
    origin = (
        torch.arange(left, 0, -1, dtype=torch.float64) * (1 if anywhere else total // original) - 1
    )
    return origin[torch.floor(torch.arange(n, dtype=torch.float64) * (left / n)).long()]


def _share(count: int, strength: float, what: str) -> int:
    """How many of `count` levels image-to-image visits."""
    left = int(count * finite("strength", strength, 0, 1))
    if not left:
        raise GridError(
            f"strength={strength:g} of {count} {what} leaves none; use at least {1 / count:.4g}"
        )
    return left


def _clipped(process: Process, flags: Flags) -> int:
    """How many of the noisiest training levels `lambda_min_clipped` leaves out."""
    low = flags.get("lambda_min_clipped")
    if low is None or low == -math.inf:
        return 0
    lam = process.at_time(torch.arange(process.train_steps, dtype=torch.float64)).lam
    return int((lam < low).sum())


def _indexed(family: str, process: Process, flags: Flags, asked: Asked) -> Levels:
    """Levels at whole training times, and an end at sigma = 0, or at time 0 where the scheduler
    says so.
    """
    levels = process.at_time(_times(family, process, flags, asked))
    if flags.get("set_alpha_to_one", True) and not flags.get("ends_at_time_zero"):
        return Levels(Grid.of(process, levels, "index"))
    return _ended(
        process, *levels, corrects=True
    )  # loops, callbacks and a strength count the call that is idle


# -- sigmas ----------------------------------------------------------------------------------------
def _table(process: Process) -> Tensor:
    """sigma / alpha of every training level; pure noise, of betas rescaled to zero SNR, counts as
    `FINITE`.
    """
    ratio = process.at_time(torch.arange(process.train_steps, dtype=torch.float64)).ratio
    return torch.where(torch.isinf(ratio), FINITE, ratio)


def _sigmas(family: str, process: Process, flags: Flags, asked: Asked) -> Levels:
    """Levels by sigma / alpha: at training times, or a shape between the ends."""
    table, name = _table(process), shape(flags)
    index = torch.arange(len(table), dtype=torch.float64)
    times = _times(family, process, flags, asked)
    ratio = interpolate(times, index, table)
    ends = table if family == "dpm" else ratio.flip(0)
    if flags.get("interpolation_type") == "log_linear":
        if name is None:
            return _even(process, table, times)
        ratio, ends = table[-1:].expand(len(times)), table
    count = len(times)
    if name is None and asked.times is None:
        times, ratio = torch.unique_consecutive(times), torch.unique_consecutive(ratio)
    repeated = count - len(times)
    if name is not None and (
        len(times) > 1 or family == "dpm"
    ):  # of the rest, one level has no shape
        low = flags.get("sigma_min") or float(ends[0])
        high = flags.get("sigma_max") or float(ends[-1])
        made = grids.make(name, process, len(times), sigma_min=low, sigma_max=high)
        ratio = (made.sigma / made.alpha)[:-1]
        times = _times_of(ratio, table)
        times = (
            times.round()
            if family == "dpm" or (name == "karras" and flags.get("rounds"))
            else times
        )
    ratio = _falling(ratio)
    alpha = 1 / torch.sqrt(1 + ratio**2)
    if _stops(flags) or flags.get("ends_at_time_zero"):
        stay = name is not None and bool(flags.get("ends_at_time_zero") or flags.get("snaps"))
        last = Level(alpha[-1:], alpha[-1:] * ratio[-1:], times[-1:]) if stay else None
        ended = _ended(process, alpha, alpha * ratio, times, _corrects(flags, len(times)), last)
        return ended._replace(repeated=repeated)
    return Levels(
        Grid.of(process, Level(alpha, alpha * ratio, times), name or "sigma"), 0, repeated
    )


def _even(process: Process, table: Tensor, times: Tensor) -> Levels:
    """Levels evenly spaced in log(sigma / alpha), each with the listed time in its place; the last
    is the end.
    """
    log = torch.log(table)
    ratio = torch.exp(
        torch.linspace(float(log[-1]), float(log[0]), len(times) + 1, dtype=torch.float64)
    )
    alpha = 1 / torch.sqrt(1 + ratio**2)
    return Levels(
        Grid(process, alpha, alpha * ratio, torch.cat([times, times.new_zeros(1)]), "log_linear")
    )


def _times_of(ratio: Tensor, table: Tensor) -> Tensor:
    """The training times of levels sigma / alpha, fractional, as diffusers finds them.

    Pure noise counts as `FINITE`, which may lie below the level before it: then only those before
    it count.
    """
    rising = table if bool(table[-1] > table[-2]) else table[:-1]
    index = torch.arange(len(rising), dtype=torch.float64)
    return interpolate(torch.log(ratio), torch.log(rising), index).clamp(0, len(rising) - 1)


def _falling(ratio: Tensor) -> Tensor:
    """Levels whose first, pure noise that counts as `FINITE`, is not below the second; then it
    moves nothing.
    """
    if len(ratio) < 2 or bool(ratio[0] > ratio[1]):
        return ratio
    return torch.cat([ratio[1:2] * (1 + SAME), ratio[1:]])


def _ended(
    process: Process,
    alpha: Tensor,
    sigma: Tensor,
    time: Tensor,
    corrects: bool = False,
    end: Level | None = None,
) -> Levels:
    """A grid that ends at the lowest training level, or at `end`.

    A call that would move nothing is left out, unless it `corrects` the sample: then it moves by
    `NUDGE`.
    """
    end = process.at_sigma(double([process.sigma_min])) if end is None else end
    idle = int(bool((sigma[-1] / alpha[-1]) <= end.ratio[0] * (1 + SAME)))
    if idle and corrects:
        end, idle = process.at_lam(Level(alpha[-1:], sigma[-1:], time[-1:]).lam + NUDGE), 0
    if idle and len(alpha) < 2:
        raise GridError(
            "one step cannot begin and end at the same level; use more, or final_sigmas_type='zero'"
        )
    if idle:
        alpha, sigma, time = alpha[:-1], sigma[:-1], time[:-1]
    alpha, sigma, time = (torch.cat([a, b]) for a, b in zip((alpha, sigma, time), end, strict=True))
    return Levels(Grid(process, alpha, sigma, time, "sigma"), idle)


# -- EDM -------------------------------------------------------------------------------------------
def _edm(process: EDM, flags: Flags, asked: Asked) -> Levels:
    """Levels of a model that is told 0.25·log(sigma): Karras unless a flag or a spacing says
    otherwise.
    """
    if asked.times is not None:
        return Levels(grids.custom_times(process, asked.times))
    if asked.sigmas is not None:
        made = grids.custom_sigmas(process, _given(process, asked.sigmas))
    else:
        spacing = flags.get("timestep_spacing") if "use_karras_sigmas" in flags else None
        name = shape(flags) or flags.get("sigma_schedule") or spacing or "karras"
        options = {"rho": flags["rho"]} if name == "karras" and flags.get("rho") else {}
        made = grids.make(name, process, whole("num_inference_steps", asked.steps or 0), **options)
    if not _stops(flags):
        return Levels(made)
    listed = Level(made.alpha[:-1], made.sigma[:-1], made.time[:-1])
    return _ended(process, *listed, _corrects(flags, made.steps), Level(*(v[-1:] for v in listed)))


def _crash(process: Crash, flags: Flags, asked: Asked) -> Levels:
    """Levels of Dance Diffusion: its training levels, evenly thinned, or the config's own sigmas
    and their end.
    """
    if asked.times is not None:
        return Levels(grids.custom_times(process, asked.times))
    if asked.sigmas is not None:
        return Levels(grids.custom_sigmas(process, asked.sigmas))
    if flags.get("trained_betas") is not None:
        sigma = double(flags["trained_betas"]).flatten()
        if len(sigma) < 2 or not bool(((sigma >= 0) & (sigma <= 1)).all()):
            raise ArgumentError(
                f"trained_betas are sigmas from 1 to 0 here, at least 2, got {short(sigma)}"
            )
        return Levels(Grid(process, *process.at_time(torch.asin(sigma) * (2 / math.pi)), "sigma"))
    return Levels(grids.make("trailing", process, whole("num_inference_steps", asked.steps or 0)))


# -- flow ------------------------------------------------------------------------------------------
def _flow(process: Flow, flags: Flags, asked: Asked, lists: str) -> Levels:
    """t of a flow: evenly spaced, or as given, then shifted, stretched to `shift_terminal` and
    shaped.
    """
    truncated = lists == "dpm"
    if asked.times is not None and asked.sigmas is None:
        return _flow_ended(process, *process.at_time(double(asked.times).flatten())[1:], flags)
    if flags.get("use_dynamic_shifting") and asked.mu is None:
        raise ArgumentError(
            "use_dynamic_shifting=True takes the shift from the picture's size: give mu"
        )
    t = _evenly(process, flags, asked, lists)
    t = _shifted(process, flags, asked.mu, t)
    if flags.get("shift_terminal"):
        t = grids.stretched(t, 1.0, float(flags["shift_terminal"]))
    name = shape(flags)
    ranged = (
        bool(flags.get("snaps")) and name == "karras"
    )  # between ends that are not those of the list
    name = name if len(t) > 1 or ranged else None  # one level has no shape
    if name is not None:
        flat = Flow(train_steps=process.train_steps)
        low, high = _unipc_ends(flags) if ranged else (float(t[-1]), float(t[0]))
        made = grids.make(name, flat, len(t), sigma_min=low, sigma_max=high)
        t, truncated = made.sigma[:-1], ranged
    elif flags.get("snaps") and bool((t[0] - 1).abs() < SNAP):
        t = torch.cat([t[:1] - SNAP, t[1:]])
    if asked.times is not None:
        return _flow_ended(process, t, double(asked.times).flatten()[: len(t)], flags)
    time = process.at_sigma(t).time
    return _flow_ended(process, t, time.floor() if truncated else time, flags)


def _both(process: Process, asked: Asked) -> None:
    """Raises `ArgumentError` where a list of times does not go with one of sigmas: levels, and what
    is told of them.
    """
    if not isinstance(process, Flow):
        raise ArgumentError(
            f"give timesteps or sigmas, not both: this is a {process.kind} process, not a flow"
        )
    if len(asked.times) != len(asked.sigmas):
        raise ArgumentError(
            f"{len(asked.times)} timesteps and {len(asked.sigmas)} sigmas: a flow takes both where"
            " each level has its time; give as many, or leave one list out"
        )


def _unipc_ends(flags: Flags) -> tuple[float, float]:
    """sigma / alpha between which UniPC's class spaces Karras' levels of a flow: its own, or those
    of its betas.
    """
    keys = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas")
    betas = from_config({key: flags[key] for key in keys})
    return flags.get("sigma_min") or betas.sigma_min, flags.get("sigma_max") or betas.sigma_max


def _evenly(process: Flow, flags: Flags, asked: Asked, lists: str) -> Tensor:
    """The t before the shift."""
    if asked.sigmas is not None:
        given = double(asked.sigmas).flatten()
        return given[:-1] if len(given) > 1 and bool(given[-1] == 0) else given
    n, total = whole("num_inference_steps", asked.steps or 0), process.train_steps
    if lists == "dpm":
        even = torch.linspace(1, 1 / total, n + 1, dtype=torch.float64)
        return even[:-1] if flags.get("snaps") else (1.0 - even).flip(0)[:-1]
    low, first = double(1 / total), flags.get("first_shift") or process.shift
    low = low if flags.get("use_dynamic_shifting") else first * low / (1 + (first - 1) * low)
    return torch.linspace(1, float(low), n, dtype=torch.float64)


def _shifted(process: Flow, flags: Flags, mu: float | None, t: Tensor) -> Tensor:
    """t = s·u / (1 + (s - 1)·u), with the model's shift s, or exp(mu) or mu where the pipeline
    gives one.
    """
    s = process.shift
    if mu is not None and flags.get("use_dynamic_shifting"):
        s = mu if flags.get("time_shift_type") == "linear" else process.with_mu(mu).shift
    return s * t / (1 + (s - 1) * t)


def _flow_ended(process: Flow, t: Tensor, time: Tensor, flags: Flags) -> Levels:
    levels = Level(1 - t, t, time)
    if not _stops(flags):
        return Levels(Grid.of(process, levels, "flow"))
    if flags.get("snaps"):  # UniPC's list ends where it is
        return _ended(process, *levels, _corrects(flags, len(t)), Level(*(v[-1:] for v in levels)))
    # the other classes end a flow at sigma / alpha of the lowest level of their betas, read as t
    lowest = from_config({key: flags[key] for key in BETAS if flags.get(key) is not None}).sigma_min
    return _ended(process, *levels, _corrects(flags, len(t)), process.at_sigma(double([lowest])))
