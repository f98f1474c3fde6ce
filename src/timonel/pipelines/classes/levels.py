"""The levels that diffusers' schedulers visit, so that a script keeps its pictures.

Every list of diffusers ends in sigma = 0 or, with `final_sigmas_type="sigma_min"`, at the lowest
training level. Where that repeats the last level of the list, diffusers calls the network once more
and moves nothing; here the call is left out (`Levels.idle`). So is one that rounding to training
times repeats (`Levels.repeated`).
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from ...core import grids
from ...core.grids import Grid
from ...core.grids.grid import Rising
from ...core.process import EDM, VE, Crash, Flow, Level, Process, Trig, double
from ...core.process.exploding import FINITE
from ...core.process.level import interpolate
from ...errors import ArgumentError, GridError, UnknownName, finite, whole
from .other_levels import of_angles, of_cosine, of_edm, of_flow, of_places, of_trig
from .rule import (
    NUDGE,
    SAME,
    Flags,
    LevelRequest,
    LevelRule,
    Levels,
    before_end,
    ended,
    joined,
    last,
    listed,
    shape,
    shaping,
    stops,
)

SPACINGS = ("linspace", "leading", "trailing")
CLEAN = 1e-8  # sigma of a picture without noise, where a step of an inversion begins


def make(rule: LevelRule, process: Process, flags: Flags, request: LevelRequest) -> Levels:
    """The levels of a class on a model's process.

    Args:
        rule: that of the class.
        process: the model's.
        flags: of the class, as they are in its config.
        request: what `set_timesteps` was called with.

    Raises:
        ArgumentError: nothing says the levels, or two things do.
        GridError: levels that the process does not have, or more than it has.
    """
    if request.times is not None and request.sigmas is not None:
        _agree_on_both(process, request)
    if isinstance(process, VE) and request.sigmas is not None:
        request = request._replace(steps=len(request.sigmas), sigmas=None)  # only their number
    _agree(process, flags, request)
    if isinstance(process, Flow):
        return of_flow(rule, process, flags, request)
    if rule.rises:
        return rising(rule, process, flags, request)
    if process.kind != "vp":
        return _without_betas(rule, process, flags, request)
    if request.sigmas is not None:
        grid = grids.custom_sigmas(process, listed(process, request.sigmas))
        if not stops(flags):
            return Levels(grid)
        return ended(process, before_end(grid), rule.corrects(flags, grid.steps))
    by_index = rule.family in ("index", "distilled")
    return (_indexed if by_index else _by_sigma)(rule, process, flags, request)


def _without_betas(
    rule: LevelRule, process: Process, flags: Flags, request: LevelRequest
) -> Levels:
    """The levels of a process that is neither of betas nor a flow."""
    if isinstance(process, EDM):
        if rule.family == "consistency":
            return of_places(process, request)
        return of_edm(rule, process, flags, request)
    if isinstance(process, Crash):
        return of_angles(process, flags, request)
    return of_trig(process, request) if isinstance(process, Trig) else of_cosine(process, request)


def _agree(process: Process, flags: Flags, request: LevelRequest) -> None:
    """Raises `ArgumentError` where a number, the lists and the flags do not say one list."""
    lists = {"timesteps": request.times, "sigmas": request.sigmas}
    lists = {name: values for name, values in lists.items() if values is not None}
    flow = isinstance(process, Flow)
    if not lists and request.steps is None:
        raise ArgumentError("give num_inference_steps, timesteps or sigmas")
    for name, values in list(lists.items())[:1]:
        if request.steps not in (None, len(values)):
            raise ArgumentError(
                f"num_inference_steps={request.steps} and {name} disagree; give one"
            )
        if shape(flags) and not (flow and request.times is None):
            raise ArgumentError(
                f"{name} set the levels and so does a sigma flag; switch {shaping(flags)[0]} off"
            )
    if request.mu is not None and not flow:
        raise ArgumentError(f"mu={request.mu} shifts flow models; this is a {process.kind} process")


def _agree_on_both(process: Process, request: LevelRequest) -> None:
    """Raises `ArgumentError` where a list of times does not go with one of sigmas."""
    if not isinstance(process, Flow):
        raise ArgumentError(
            f"give timesteps or sigmas, not both: this is a {process.kind} process, not a flow"
        )
    if len(request.times) != len(request.sigmas):
        raise ArgumentError(
            f"{len(request.times)} timesteps and {len(request.sigmas)} sigmas: a flow takes both"
            " where each level has its time; give as many, or leave one list out"
        )


# -- training times --------------------------------------------------------------------------------
def _times(rule: LevelRule, process: Process, flags: Flags, request: LevelRequest) -> Tensor:
    """The training times of a list, noisiest first."""
    if request.times is not None:
        times = grids.custom_times(process, request.times).time[:-1]
        return times[len(times) - _share(len(times), request.strength, "timesteps") :]
    n, total = whole("num_inference_steps", request.steps or 0), process.train_steps
    if n > total and rule.family in ("index", "distilled"):
        raise GridError(
            f"{n} steps are more than the {total} training levels of this model; use at most"
            f" {total}"
        )
    if rule.family == "distilled":
        return _distilled(rule, process, flags, request, n)
    spacing = rule.spacing or flags.get("timestep_spacing") or "linspace"
    if spacing not in SPACINGS:
        raise UnknownName("timestep_spacing", spacing, SPACINGS)
    highest = total - clipped(process, flags)
    if spacing == "trailing":
        left = highest + torch.arange(n, dtype=torch.float64) * ((highest - total / n) - highest)
        times = left[left > 0].round() - 1  # the rounding of numpy's arange
    elif spacing == "leading":
        times = _leading(rule, flags, n, highest)
    else:
        times = _linspace(rule, n, highest - 1)
    return times.clamp(0, total - 1)


def _leading(rule: LevelRule, flags: Flags, n: int, total: int) -> Tensor:
    """Every so many times of the training from 0 up; of DPM-Solver's classes without the first."""
    if n == 1:  # at its own place, at the cleanest level, it would give the noise back
        return double([total - 1.0])
    more = rule.family == "dpm"
    if n + more > total:
        raise GridError(
            f"timestep_spacing='leading' lists {n + more} levels for {n} steps, and this model"
            f" has {total}, so all would be one; use at most {total - more} steps, or"
            " timestep_spacing='trailing'"
        )
    count = torch.arange(n, dtype=torch.float64).flip(0)
    return (count + more) * (total // (n + more)) + int(flags.get("steps_offset") or 0)


def _linspace(rule: LevelRule, n: int, highest: int) -> Tensor:
    """Evenly spaced times from the highest to 0; of DPM-Solver's classes without the 0."""
    if rule.family == "dpm":
        return _even_times(highest, n + 1).round().flip(0)[:-1]
    times = _even_times(highest, n).flip(0) if n > 1 else double([float(highest)])
    return times.round() if rule.family == "index" else times


def _even_times(last: int, count: int) -> Tensor:
    """0 … `last` evenly, with numpy's rounding, so that halves are rounded as in diffusers."""
    times = torch.arange(count, dtype=torch.float64) * (last / (count - 1))
    times[-1] = last
    return times


def _distilled(
    rule: LevelRule, process: Process, flags: Flags, request: LevelRequest, n: int
) -> Tensor:
    """`n` of the times of the distillation, or of its last share: arXiv 2310.04378, section 4.3."""
    total = process.train_steps
    steps = flags["original_inference_steps"] if request.original is None else request.original
    original = total if steps is None else whole("original_inference_steps", steps, 1, total)
    anywhere = rule.anywhere and request.original is not None
    left = _share(total if anywhere else original, request.strength, "levels")
    if n > min(left, original):
        raise GridError(
            f"{n} steps are more than the {min(left, original)} levels that"
            f" strength={request.strength:g} leaves of original_inference_steps={original}; use"
            " fewer steps, or raise one of the two"
        )
    stride = 1 if anywhere else total // original
    times = torch.arange(left, 0, -1, dtype=torch.float64) * stride - 1
    return times[torch.floor(torch.arange(n, dtype=torch.float64) * (left / n)).long()]


def _share(count: int, strength: float, what: str) -> int:
    """How many of `count` levels image-to-image visits."""
    left = int(count * finite("strength", strength, 0, 1))
    if not left:
        raise GridError(
            f"strength={strength:g} of {count} {what} leaves none; use at least {1 / count:.4g}"
        )
    return left


def clipped(process: Process, flags: Flags) -> int:
    """How many of the noisiest training levels `lambda_min_clipped` leaves out."""
    low = flags.get("lambda_min_clipped")
    if low is None or low == -math.inf:
        return 0
    lam = process.at_time(torch.arange(process.train_steps, dtype=torch.float64)).lam
    return int((lam < low).sum())


def _indexed(rule: LevelRule, process: Process, flags: Flags, request: LevelRequest) -> Levels:
    """Levels at whole training times, and an end at sigma = 0 or at time 0.

    A last call at time 0 moves by nothing and stays: loops, callbacks and a strength count it.
    """
    level = process.at_time(_times(rule, process, flags, request))
    end = rule.end or ("clean" if flags.get("set_alpha_to_one", True) else "lowest")
    if end == "clean":
        return Levels(Grid.of(process, level, "index"))
    return ended(process, level, corrects=True)


# -- sigmas ----------------------------------------------------------------------------------------
def _ratios(process: Process) -> Tensor:
    """The sigma / alpha of every training level; pure noise, of zero-SNR betas, is `FINITE`."""
    ratio = process.at_time(torch.arange(process.train_steps, dtype=torch.float64)).ratio
    return torch.where(torch.isinf(ratio), FINITE, ratio)


def _by_sigma(rule: LevelRule, process: Process, flags: Flags, request: LevelRequest) -> Levels:
    """Levels by sigma / alpha: at training times, or a shape between the ends."""
    ratios, name = _ratios(process), shape(flags)
    times = _times(rule, process, flags, request)
    ratio = interpolate(times, torch.arange(len(ratios), dtype=torch.float64), ratios)
    ends = ratios if rule.family == "dpm" else ratio.flip(0)
    if flags.get("interpolation_type") == "log_linear":
        if name is None:
            return _log_linear(process, ratios, times)
        ratio, ends = ratios[-1:].expand(len(times)), ratios
    count = len(times)
    if name is None and request.times is None:
        times, ratio = torch.unique_consecutive(times), torch.unique_consecutive(ratio)
    elif name is not None and (count > 1 or rule.family == "dpm"):  # else one has no shape
        low = flags.get("sigma_min") or float(ends[0])
        high = flags.get("sigma_max") or float(ends[-1])
        shaped = before_end(grids.make(name, process, count, sigma_min=low, sigma_max=high))
        ratio, times = shaped.ratio, _times_of(rule, name, shaped.ratio, ratios)
    ratio = _falling(ratio)
    alpha = 1 / torch.sqrt(1 + ratio**2)
    level = Level(alpha, alpha * ratio, times)
    return _with_end(rule, process, flags, name, level)._replace(repeated=count - len(times))


def _with_end(
    rule: LevelRule, process: Process, flags: Flags, name: str | None, level: Level
) -> Levels:
    """The levels and their end: sigma = 0, the lowest training level, or the last of a shape."""
    if not stops(flags) and rule.end != "lowest":
        return Levels(Grid.of(process, level, name or "sigma"))
    stays = name is not None and (rule.end == "lowest" or rule.snaps)
    corrects = rule.corrects(flags, len(level.time))
    return ended(process, level, corrects, last(level) if stays else None)


def _log_linear(process: Process, ratios: Tensor, times: Tensor) -> Levels:
    """Levels evenly spaced in log(sigma / alpha), each with the listed time in its place."""
    log = torch.log(ratios)
    even = torch.linspace(float(log[-1]), float(log[0]), len(times) + 1, dtype=torch.float64)
    ratio = torch.exp(even)
    alpha = 1 / torch.sqrt(1 + ratio**2)
    time = torch.cat([times, times.new_zeros(1)])
    return Levels(Grid(process, alpha, alpha * ratio, time, "log_linear"))


def _times_of(rule: LevelRule, name: str, ratio: Tensor, ratios: Tensor) -> Tensor:
    """The training times of the levels of a shape, fractional unless the class rounds them.

    Pure noise counts as `FINITE`, which may lie below the level before it: then only those before
    it count.
    """
    rising = ratios if bool(ratios[-1] > ratios[-2]) else ratios[:-1]
    index = torch.arange(len(rising), dtype=torch.float64)
    times = interpolate(torch.log(ratio), torch.log(rising), index).clamp(0, len(rising) - 1)
    whole_times = rule.family == "dpm" or (rule.rounds and name == "karras")
    return times.round() if whole_times else times


def _falling(ratio: Tensor) -> Tensor:
    """Levels whose first is above the second: pure noise that counts as `FINITE` may not be."""
    if len(ratio) < 2 or bool(ratio[0] > ratio[1]):
        return ratio
    return torch.cat([ratio[1:2] * (1 + SAME), ratio[1:]])


# -- from a picture to noise -----------------------------------------------------------------------
def rising(rule: LevelRule, process: Process, flags: Flags, request: LevelRequest) -> Levels:
    """The levels of an inversion, cleanest first."""
    if request.sigmas is not None:
        raise ArgumentError("an inversion takes timesteps that rise, or a number, not sigmas")
    if request.times is not None:
        times = double(request.times).flatten()
    else:
        plain = rule if rule.family == "dpm" else replace(rule, family="index")
        times = _rising_times(plain, process, flags, request)
    if rule.family == "inverse":
        return inverse_steps(process, flags, times, request.steps or len(times))
    ratios, name = _ratios(process), shape(flags)
    top = process.train_steps - clipped(process, flags) - 1.0
    level = process.at_time(times)
    if name is not None:
        low, high = float(ratios[0]), float(ratios[-1])
        grid = grids.make(name, process, len(times), sigma_min=low, sigma_max=high)
        shaped = before_end(grid).ratio.flip(0)
        alpha = 1 / torch.sqrt(1 + shaped**2)
        level = Level(alpha, alpha * shaped, _times_of(rule, name, shaped, ratios))
    end = last(level) if name is not None else process.at_time(double([top]))
    idle = bool(last(level).ratio >= end.ratio * (1 - SAME))
    if idle:
        end = last(level)
        level = Level(*(value[:-1] for value in level))
    return Levels(Rising(process, *joined(level, end), "inverse"), int(idle))


def _rising_times(rule: LevelRule, process: Process, flags: Flags, request: LevelRequest) -> Tensor:
    """The training times of the list that goes back, and of DPM-Solver's classes their 0 too."""
    n, total = whole("num_inference_steps", request.steps or 0), process.train_steps
    if rule.family != "dpm" or flags.get("timestep_spacing") == "trailing":
        return _times(rule, process, flags, request).flip(0)
    highest = total - clipped(process, flags)
    if flags.get("timestep_spacing") == "leading":
        count = torch.arange(n, dtype=torch.float64)
        return count * (highest // (n + 1)) + int(flags.get("steps_offset") or 0)
    return _even_times(highest - 1, n + 1).round()[:-1]


def inverse_steps(process: Process, flags: Flags, times: Tensor, steps: int) -> Levels:
    """Steps of DDIM's inversion to these training times, each from the level a stride below.

    The network is called with the time that a step goes to. Below time 0 the level is the clean
    one, or without `set_alpha_to_one` that of time 0.
    """
    low = times - process.train_steps // steps
    start = process.at_time(low.clamp(min=0))
    if flags["set_alpha_to_one"]:
        below = low < 0
        alpha = torch.where(below, torch.ones_like(low), start.alpha)
        start = Level(alpha, torch.where(below, CLEAN, start.sigma), times)
    ends = process.at_time(times)
    still = start.ratio >= ends.ratio  # a first step at time 0 moves nothing
    near = process.at_lam(ends.lam + NUDGE)
    start = Level(
        torch.where(still, near.alpha, start.alpha), torch.where(still, near.sigma, start.sigma),
        times,
    )  # fmt: skip
    joint = joined(Level(start.alpha, start.sigma, times), last(ends))
    return Levels(Rising(process, *joint, "inverse", ends))
