"""The levels that diffusers' schedulers visit on flows, EDM's process and Dance Diffusion's."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ...core import grids
from ...core.grids import Grid
from ...core.process import EDM, Crash, Flow, Level, Process, Trig, double, from_config
from ...core.process.level import short
from ...errors import ArgumentError, GridError, whole
from .rule import (
    Flags,
    LevelRequest,
    LevelRule,
    Levels,
    before_end,
    ended,
    last,
    listed,
    shape,
    stops,
)

BETAS = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas")
MOST_ALPHA = (1 - 1e-4) ** 0.5  # of the cleanest level of Wuerstchen's class
SNAP = 1e-6  # the first t of a UniPC flow stays this far below pure noise


# -- EDM and Dance Diffusion -----------------------------------------------------------------------
def of_edm(rule: LevelRule, process: EDM, flags: Flags, request: LevelRequest) -> Levels:
    """Levels of an EDM model: Karras unless a flag or a spacing says otherwise."""
    if request.times is not None:
        return Levels(grids.custom_times(process, request.times))
    if request.sigmas is not None:
        grid = grids.custom_sigmas(process, listed(process, request.sigmas))
    else:
        spacing = flags.get("timestep_spacing") if "use_karras_sigmas" in flags else None
        name = shape(flags) or flags.get("sigma_schedule") or spacing or "karras"
        options = {"rho": flags["rho"]} if name == "karras" and flags.get("rho") else {}
        steps = whole("num_inference_steps", request.steps or 0)
        grid = grids.make(name, process, steps, **options)
    if not stops(flags):
        return Levels(grid)
    level = before_end(grid)
    return ended(process, level, rule.corrects(flags, grid.steps), last(level))


def of_angles(process: Crash, flags: Flags, request: LevelRequest) -> Levels:
    """Levels of Dance Diffusion: its training levels, evenly thinned, or the config's sigmas."""
    if request.times is not None:
        return Levels(grids.custom_times(process, request.times))
    if request.sigmas is not None:
        return Levels(grids.custom_sigmas(process, request.sigmas))
    if flags.get("trained_betas") is not None:
        sigma = double(flags["trained_betas"]).flatten()
        if len(sigma) < 2 or not bool(((sigma >= 0) & (sigma <= 1)).all()):
            raise ArgumentError(
                f"trained_betas are sigmas from 1 to 0 here, at least 2, got {short(sigma)}"
            )
        return Levels(Grid(process, *process.at_time(torch.asin(sigma) * (2 / math.pi)), "sigma"))
    steps = whole("num_inference_steps", request.steps or 0)
    return Levels(grids.make("trailing", process, steps))


def of_trig(process: Trig, request: LevelRequest) -> Levels:
    """Levels of a TrigFlow: listed angles with their end, or even ones."""
    if request.sigmas is not None:
        return Levels(grids.custom_sigmas(process, request.sigmas))
    if request.times is None:
        steps = whole("num_inference_steps", request.steps or 0)
        angles = torch.linspace(math.pi / 2, 0, steps + 1, dtype=torch.float64)[:-1]
        return Levels(Grid.of(process, process.at_time(angles), "angles"))
    times = double(request.times).flatten()
    clean = len(times) < 2 or bool(times[-1] == 0)
    level = process.at_time(times[:-1] if clean and len(times) > 1 else times)
    return Levels(Grid.of(process, level, "angles", clean=clean))


def of_places(process: EDM, request: LevelRequest) -> Levels:
    """Levels of a consistency model: places 0 … T - 1 in the list of its T training levels."""
    total = process.train_steps
    if request.sigmas is not None:
        return Levels(grids.custom_sigmas(process, listed(process, request.sigmas)))
    if request.times is not None:
        places = double(request.times).flatten().flip(0)
        if bool(((places < 0) | (places >= total)).any()):
            raise ArgumentError(
                f"timesteps of a consistency model are places in its list of {total} levels, from 0"
                f" to {total - 1}; got {short(places)}"
            )
    else:
        n = whole("num_inference_steps", request.steps or 0)
        if n > total:
            raise GridError(
                f"{n} steps are more than the {total} training levels of this model; use at most"
                f" {total}"
            )
        places = torch.arange(n, dtype=torch.float64) * (total // n)
    return ended(process, process.at_index(total - 1 - places), corrects=True)


def of_cosine(process: Process, request: LevelRequest) -> Levels:
    """Levels of the cosine in continuous time, whose end keeps 1e-4 of noise, as diffusers' does.

    Levels at its noisiest bound are one.
    """
    if request.sigmas is not None:
        return Levels(grids.custom_sigmas(process, request.sigmas))
    if request.times is not None:
        times = double(request.times).flatten()
    else:
        steps = whole("num_inference_steps", request.steps or 0)
        times = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
    level = process.at_time(times)
    alpha = level.alpha.clamp(max=MOST_ALPHA)
    new = torch.ones_like(alpha, dtype=torch.bool)
    new[1:] = alpha[1:] > alpha[:-1]
    kept = Level(alpha[new], torch.sqrt(1 - alpha[new] ** 2), times[new])
    repeated = int((~new).sum())
    return Levels(Grid.of(process, kept, "continuous", clean=False), repeated=repeated)


# -- flow ------------------------------------------------------------------------------------------
def of_flow(rule: LevelRule, process: Flow, flags: Flags, request: LevelRequest) -> Levels:
    """Levels of a flow: even or listed t, then shifted, stretched to `shift_terminal`, shaped."""
    if rule.even == "begins" and request.times is not None:
        request = request._replace(sigmas=double(request.times) / process.time_scale, times=None)
    if rule.even == "ends" and request.sigmas is not None:
        return Levels(grids.custom_sigmas(process, request.sigmas))
    if request.times is not None and request.sigmas is None:
        t, time = process.at_time(double(request.times).flatten())[1:]
        return _with_end(rule, process, Level(1 - t, t, time), flags)
    if flags.get("use_dynamic_shifting") and request.mu is None:
        raise ArgumentError(
            "use_dynamic_shifting=True takes the shift from the picture's size: give mu"
        )
    t = _shifted(process, flags, request.mu, _evenly(rule, process, flags, request))
    if flags.get("shift_terminal"):
        t = grids.stretched(t, 1.0, float(flags["shift_terminal"]))
    t, whole_times = _shaped(rule, process, flags, t)
    if request.times is not None:
        time = double(request.times).flatten()[: len(t)]
    else:
        time = process.at_sigma(t).time
        time = time.floor() if whole_times else time
    return _with_end(rule, process, Level(1 - t, t, time), flags)


def _shaped(rule: LevelRule, process: Flow, flags: Flags, t: Tensor) -> tuple[Tensor, bool]:
    """The levels in the shape of a sigma flag, and whether the network gets whole times."""
    name = shape(flags)
    ranged = rule.snaps and name == "karras"  # between ends that are not those of the list
    if name is not None and (len(t) > 1 or ranged):  # one level has no shape
        flat = Flow(train_steps=process.train_steps)
        low, high = _unipc_ends(flags) if ranged else (float(t[-1]), float(t[0]))
        return grids.make(name, flat, len(t), sigma_min=low, sigma_max=high).sigma[:-1], ranged
    if rule.snaps and bool((t[0] - 1).abs() < SNAP):
        t = torch.cat([t[:1] - SNAP, t[1:]])
    return t, rule.family == "dpm"


def _unipc_ends(flags: Flags) -> tuple[float, float]:
    """The sigma / alpha between which UniPC's class spaces Karras' levels of a flow."""
    betas = from_config({key: flags[key] for key in BETAS})
    return flags.get("sigma_min") or betas.sigma_min, flags.get("sigma_max") or betas.sigma_max


def _evenly(rule: LevelRule, process: Flow, flags: Flags, request: LevelRequest) -> Tensor:
    """The t before the shift."""
    if request.sigmas is not None:
        t = double(request.sigmas).flatten()
        return t[:-1] if len(t) > 1 and bool(t[-1] == 0) else t
    n, total = whole("num_inference_steps", request.steps or 0), process.train_steps
    if rule.family == "dpm":
        even = torch.linspace(1, 1 / total, n + 1, dtype=torch.float64)
        return even[:-1] if rule.snaps else (1.0 - even).flip(0)[:-1]
    if rule.even is not None:
        count = n if rule.even == "begins" else whole("num_inference_steps", n, 2) - 1
        return 1 - torch.arange(count, dtype=torch.float64) / count
    low, first = double(1 / total), request.first_shift or process.shift
    if not flags.get("use_dynamic_shifting"):
        low = first * low / (1 + (first - 1) * low)
    return torch.linspace(1, float(low), n, dtype=torch.float64)


def _shifted(process: Flow, flags: Flags, mu: float | None, t: Tensor) -> Tensor:
    """The t = s·u / (1 + (s - 1)·u), with the model's shift s, or the one that `mu` says."""
    s = process.shift
    if mu is not None and flags.get("use_dynamic_shifting"):
        s = mu if flags.get("time_shift_type") == "linear" else process.with_mu(mu).shift
    return s * t / (1 + (s - 1) * t)


def _with_end(rule: LevelRule, process: Flow, level: Level, flags: Flags) -> Levels:
    """The levels and their end: t = 0, the last of UniPC's list, or a level of the betas.

    The other classes end a flow at sigma / alpha of the lowest level of their betas, read as t.
    """
    if not stops(flags):
        return Levels(Grid.of(process, level, "flow"))
    if rule.snaps:
        end = last(level)
    else:
        betas = {key: flags[key] for key in BETAS if flags.get(key) is not None}
        end = process.at_sigma(double([from_config(betas).sigma_min]))
    return ended(process, level, rule.corrects(flags, len(level.time)), end)
