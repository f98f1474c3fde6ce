"""Which levels a call of `set_timesteps` means."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import torch

from ...core import grids, solvers
from ...core.grids import Grid
from ...core.grids.cut import none_left
from ...core.process import EDM, VE, Flow, Level, Process, double
from ...core.sampler import Sampler
from ...errors import ArgumentError, GridError
from .. import request
from ..classes.rule import SHAPES as GRID_FLAGS
from .parts import SAME, refused

SPACED = ("vp", "edm")  # processes of counted training levels, which `timestep_spacing` spaces
LISTS = ("timesteps", "sigmas")  # arguments of pipelines that list the levels


class Requested(NamedTuple):
    """What `set_timesteps` was called with: a number of steps, or lists of numbers.

    `angles`: the first angle of a trigonometric flow, and the second where there are two steps.
    """

    steps: int | None = None
    times: tuple[float, ...] | None = None
    sigmas: tuple[float, ...] | None = None
    mu: float | None = None
    original_steps: int | None = None
    angles: tuple[float | None, float | None] = (None, None)
    strength: float | None = None


def named(sampler: Sampler | str | None, options: Mapping[str, Any]) -> bool:
    """Whether the caller's sampler names its levels.

    Args:
        sampler: the caller's; None: the default one.
        options: the pipeline's arguments.

    Raises:
        ArgumentError: the call lists others.
    """
    chosen = Sampler.of(sampler)
    names = chosen.grid is not None or chosen.fitted is not None or _lists(chosen)
    if names and lists(options):
        name = next(name for name in LISTS if options.get(name) is not None)
        raise ArgumentError(
            f"{name}= and the sampler {chosen.label!r} both set the levels; leave one of them out"
        )
    return names


def lists(options: Mapping[str, Any]) -> bool:
    """Whether a pipeline's arguments list the levels."""
    return any(options.get(name) is not None for name in LISTS)


def agree(steps: int | None, options: Mapping[str, Any]) -> None:
    """Raises `ArgumentError` where a number of steps and a list of levels in `options` disagree."""
    for name in LISTS:
        listed = request.numbers(name, options.get(name))
        if listed is not None:
            _counted(steps, name, listed)


def left(steps: int | None, options: Mapping[str, Any], parameters: Mapping[str, Any]) -> None:
    """Raises `GridError` where the strength of a pipeline that rounds down leaves no step."""
    if options.get("denoising_start") is not None:  # which goes before the strength
        return
    default = parameters["strength"].default if "strength" in parameters else None
    strength = options.get("strength", default)
    if isinstance(strength, (int, float)) and steps and int(steps * strength) == 0:
        raise GridError(none_left(steps, strength))


def _counted(steps: int | None, name: str, listed: tuple[float, ...]) -> None:
    """Check that `steps` is the number of a list, whose last entry may be the end at 0.

    Raises `ArgumentError`.
    """
    most = len(listed)
    if steps is not None and steps not in (most, most - (most > 0 and listed[-1] == 0)):
        raise ArgumentError(
            f"steps={steps} and {name} with {most} entries disagree; leave steps out"
        )


def of(
    sampler: Sampler,
    process: Process,
    config: Mapping[str, Any],
    call: Requested,
    named: bool | None,
    listed_by_caller: bool = False,
) -> tuple[Sampler, Grid]:
    """The sampler with its levels settled, and the levels.

    A fitted sampler visits the levels it was fitted on, to its own end, whatever the config says of
    grids.

    Args:
        sampler: with or without a grid.
        process: of the model.
        config: of the scheduler.
        call: what `set_timesteps` was called with.
        named: whether the sampler's own grid goes before a list that the pipeline has made, which
            then only counts its steps. None: nobody says who made a list, so that a grid of the
            sampler beside it is refused, unless the list is the one that flow pipelines make where
            the user passes none.
        listed_by_caller: that one too is the user's own.

    Raises:
        ArgumentError: two of them set the levels, or the sampler cannot visit them.
        GridError: they are no levels of the process.
    """
    process, levels = _as_one_list(_shifted(process, config, call.mu), call)
    listed = levels.times if levels.sigmas is None else levels.sigmas
    if listed is not None:
        _counted(levels.steps, "timesteps" if levels.sigmas is None else "sigmas", listed)
    if sampler.fitted is not None:
        count = None if listed is None else len(listed)
        return _fitted(sampler, process, call, count, bool(named))
    by_caller = listed_by_caller and not isinstance(process, VE)
    lists = None if by_caller else listed  # by the pipeline
    if lists is not None and _only_counts(sampler, process, call, lists, named):
        levels = levels._replace(steps=len(lists), times=None, sigmas=None)
    if listed is None or not by_caller:
        sampler = _gridded(sampler, process, config, call.original_steps)
    sampler = _levelled(sampler, process, config, levels)
    grid = _last_part(sampler, process, call.strength, levels.steps, listed is not None)
    return sampler, _to_sigma_min(grid) if config["final_sigmas_type"] == "sigma_min" else grid


def _as_one_list(process: Process, call: Requested) -> tuple[Process, Requested]:
    """The call with one list at most, and the process that it is of."""
    times, sigmas = call.times, call.sigmas
    if times is not None and isinstance(process, EDM) and process.clock == "250 log":
        return process, call._replace(sigmas=_of_places(process, times), times=None)
    if times is not None and sigmas is not None:
        return _before_the_shift(process, times, sigmas), call._replace(sigmas=None)
    if times is None and sigmas is None and process.kind == "trig" and call.angles[0] is not None:
        return process, call._replace(times=_angles(int(call.steps or 0), *call.angles))
    return process, call


def _levelled(
    sampler: Sampler, process: Process, config: Mapping[str, Any], levels: Requested
) -> Sampler:
    """The sampler with the list, or with the number of steps and the ends of its grid."""
    if levels.sigmas is not None and process.kind == "flow":
        return _before_shift_and_shape(sampler, process, config, levels.sigmas)
    if levels.times is not None or levels.sigmas is not None:
        times, sigmas = levels.times, levels.sigmas
        return replace(sampler, grid=None, grid_options={}, steps=None, times=times, sigmas=sigmas)
    if levels.steps is not None:
        sampler = replace(sampler, steps=int(levels.steps))
    return _ended_as_said(sampler, process, config)


def _last_part(
    sampler: Sampler, process: Process, strength: float | None, steps: int | None, listed: bool
) -> Grid:
    """The levels: the last share of a list, else all `steps` in the last share of more of them."""
    grid = sampler.levels(process)
    if strength is None:
        return grid
    if listed:
        return grids.cut(grid, strength=strength)
    if steps is None or not 0 < strength <= 1:
        raise ArgumentError(f"strength={strength} lies in (0, 1] and takes a number of steps")
    count = round(steps / strength)
    return grids.cut(replace(sampler, steps=count).levels(process), start=count - steps)


def _only_counts(
    sampler: Sampler,
    process: Process,
    call: Requested,
    listed: tuple[float, ...],
    named: bool | None,
) -> bool:
    """Whether of a list only the number of its entries matters.

    Raises `ArgumentError` where two set the levels.
    """
    if named or isinstance(process, VE):  # Cosmos 2 lists numbers that its own scheduler replaces
        return True
    default = process.kind == "flow" and call.times is None and _even(listed)
    by_sampler = named is None and (sampler.grid is not None or _lists(sampler))
    if by_sampler and not default and process.kind != "trig":
        what = "timesteps" if call.sigmas is None else "sigmas"
        raise ArgumentError(
            f"{what} and the sampler {sampler.label!r} both set the levels; take"
            f" sampler={sampler.name!r} for the list, or leave the list out"
        )
    return default and (by_sampler or _usual_grid(sampler, process) is not None)


def _before_shift_and_shape(
    sampler: Sampler, process: Process, config: Mapping[str, Any], sigmas: tuple[float, ...]
) -> Sampler:
    """A list of a flow as diffusers reads it.

    It is shifted and stretched to `shift_terminal`; of a sigma flag only its ends count.
    """
    u = double(sigmas)
    u = u[:-1] if len(u) > 1 and bool(u[-1] == 0) else u
    if not bool(((u > 0) & (u <= 1)).all()):
        raise GridError(f"sigmas of a flow lie in (0, 1], before its shift; got {list(sigmas)}")
    t = process.at_index(u * process.train_steps - 1).sigma
    if config["shift_terminal"]:
        t = grids.stretched(t, 1.0, config["shift_terminal"])
    shape = _flagged(config)
    if (
        shape is None and _even(sigmas) and float(u[0]) > 1 - SAME
    ):  # the levels of a grid that has a name
        end = {"terminal": config["shift_terminal"]} if config["shift_terminal"] else {}
        return replace(
            sampler, grid="trailing", grid_options=end, steps=len(t), sigmas=None, times=None
        )
    if shape is None:
        return replace(
            sampler, grid=None, grid_options={}, steps=None, times=None, sigmas=tuple(t.tolist())
        )
    if shape == "karras" and by_ratio(process, config):
        return _ended_as_said(
            replace(sampler, grid=shape, grid_options={}, steps=len(t)), process, config
        )
    ends = {"sigma_max": float(t[0]), **({"sigma_min": float(t[-1])} if len(t) > 1 else {})}
    return replace(sampler, grid=shape, grid_options=ends, steps=len(t))


def _fitted(
    sampler: Sampler, process: Process, call: Requested, listed: int | None, named: bool
) -> tuple[Sampler, Grid]:
    """A fitted sampler and its levels; of what the pipeline lists only the number counts."""
    listed_numbers = call.times if call.times is not None else call.sigmas
    if (
        listed_numbers is not None
        and not named
        and process.kind in ("vp", "edm")
        and not isinstance(process, VE)
    ):
        raise ArgumentError(
            f"timesteps or sigmas were passed, and the fitted sampler {sampler.name!r} has levels"
            " of its own: leave the list out, or choose another sampler"
        )
    if call.strength not in (None, 1):
        raise ArgumentError(refused(sampler, f"strength={call.strength} asks for a part of it"))
    count = call.steps if listed is None else listed
    counted = sampler if count is None else replace(sampler, steps=int(count))
    return counted, counted.levels(process)


def _shifted(process: Process, config: Mapping[str, Any], mu: float | None) -> Process:
    if mu is None:
        return process
    if not isinstance(process, Flow):
        raise ArgumentError(f"mu={mu} shifts flow models; this is a {process.kind} process")
    if not config["use_dynamic_shifting"]:  # Flux' pipeline gives mu to schnell's scheduler too
        return process
    return process.with_mu(math.log(mu) if config["time_shift_type"] == "linear" else mu)


def _of_places(process: EDM, places: tuple[float, ...]) -> tuple[float, ...]:
    """The sigmas of places in a consistency model's list, of which 0 is the noisiest."""
    last = process.train_steps - 1
    listed = double(places)
    whole = bool((listed == listed.round()).all()) and bool((listed.diff() < 0).all())
    if not len(places) or not whole or not 0 <= places[-1] <= places[0] <= last:
        raise ArgumentError(
            f"timesteps of a consistency model are places in its {process.train_steps} levels,"
            f" falling whole numbers from {last} to 0, e.g. [22, 0]; got {list(places)}"
        )
    sigmas: list[float] = process.at_index(last - listed.flip(0)).ratio.tolist()
    return tuple(sigmas)


def _before_the_shift(
    process: Process, times: tuple[float, ...], sigmas: tuple[float, ...]
) -> Process:
    """A flow whose network gets the time before the shift, as both lists mean (CogView4)."""
    listed = double(sigmas) * (process.time_scale if isinstance(process, Flow) else 1.0)
    if (
        not isinstance(process, Flow)
        or len(listed) != len(times)
        or not torch.allclose(listed, double(times), rtol=SAME)
    ):
        raise ArgumentError(
            "give timesteps or sigmas; both only for a flow, where they are the same levels"
        )
    return process.with_clock("u")


def _angles(steps: int, top: float | None, second: float | None) -> tuple[float, ...]:
    """The angles of a consistency model: two that were tuned, else evenly spaced ones."""
    assert top is not None
    if second is not None and steps == 2:
        return top, second
    return tuple(top * (1 - i / steps) for i in range(steps))


def _even(sigmas: tuple[float, ...]) -> bool:
    """Whether a list is nearly linspace(1, 1/N, N), which flow pipelines pass by default."""
    given = double(sigmas[:-1] if len(sigmas) > 1 and sigmas[-1] == 0 else sigmas)
    if not len(given) or not 0.99 <= float(given[0]) <= 1 + SAME:
        return False
    return torch.allclose(
        given, given[0] * torch.linspace(1, 1 / len(given), len(given), dtype=torch.float64)
    )


def _gridded(
    sampler: Sampler, process: Process, config: Mapping[str, Any], original: int | None
) -> Sampler:
    """The sampler with the grid of its name, its levels, or the config."""
    grid = sampler.grid or _usual_grid(sampler, process)
    if grid == "lcm" and not _lists(sampler):
        options = {"original_steps": original or config["original_inference_steps"]}
        return replace(sampler, grid="lcm", grid_options={**options, **sampler.grid_options})
    if original is not None:
        raise ArgumentError(
            f"original_inference_steps={original} is of the grid 'lcm'; take sampler='lcm/lcm'"
        )
    if grid or _lists(sampler):
        return sampler
    if solvers.find(sampler.name).grid is not None:
        return replace(sampler, grid=_flagged(config) or grids.usual(process))
    spaced = config["timestep_spacing"] if process.kind in SPACED else None
    return replace(sampler, grid=_flagged(config) or spaced)


def _lists(sampler: Sampler) -> bool:
    """Whether the sampler has levels of its own."""
    return sampler.sigmas is not None or sampler.times is not None


def _usual_grid(sampler: Sampler, process: Process) -> str | None:
    """The grid that belongs to a solver.

    Flows of few steps are distilled on the levels that their pipelines list.
    """
    return None if process.kind == "flow" else solvers.find(sampler.name).grid


def _flagged(config: Mapping[str, Any]) -> str | None:
    """The grid of the config's sigma flag. Raises `ArgumentError` for two of them."""
    flags = [flag for flag in GRID_FLAGS if config[flag]]
    if len(flags) > 1:
        raise ArgumentError(
            f"only one of {', '.join(GRID_FLAGS)} can be on, got {' and '.join(flags)}"
        )
    return GRID_FLAGS[flags[0]] if flags else None


def by_ratio(process: Process, config: Mapping[str, Any]) -> bool:
    """Whether the ends that a flow's config names are sigma / alpha, see `grids.sigma.karras`."""
    return process.kind == "flow" and float(config.get("sigma_max") or 0) > 1


def _ended_as_said(sampler: Sampler, process: Process, config: Mapping[str, Any]) -> Sampler:
    """The sampler with the ends of its grid that the config says, whoever named the grid.

    Its own options go first. The range of an EDM process is in the process itself.
    """
    if _lists(sampler):
        return sampler
    grid = str(sampler.on(process).grid)
    takes = () if process.kind == "edm" else grids.GRIDS[grid].options
    said = {key: config[key] for key in grids.ENDS if key in takes and config[key] is not None}
    if by_ratio(process, config) and grid != "karras":
        said = {}  # they are no t
    if (
        process.kind == "flow"
        and config["shift_terminal"]
        and "sigma_min" not in sampler.grid_options
    ):
        said["terminal"] = config["shift_terminal"]
    if grid == "karras" and config["rho"]:
        said["rho"] = config["rho"]
    return replace(sampler, grid=grid, grid_options={**said, **sampler.grid_options})


def _to_sigma_min(grid: Grid) -> Grid:
    """`grid` with its end at the process' lowest level instead of at sigma = 0.

    Where the last step begins there it is left out, for it would move nothing.
    """
    low = grid.process.at_sigma(double([grid.process.sigma_min]))
    last = Level(grid.alpha[-2:-1], grid.sigma[-2:-1], grid.time[-2:-1])
    if bool(last.ratio > low.ratio * (1 + SAME)):
        alpha, sigma, time = _ended(Level(grid.alpha, grid.sigma, grid.time), low)
        return replace(
            grid, alpha=alpha, sigma=sigma, time=time, ends=grid.ends and _ended(grid.ends, low)
        )
    if grid.steps == 1:
        raise GridError(
            "one step cannot begin and end at sigma_min; use more steps, or"
            " final_sigmas_type='zero'"
        )
    return grids.cut(grid, stop=grid.steps - 1)


def _ended(levels: Level, end: Level) -> Level:
    """`levels` with another last one."""
    return Level(*(torch.cat([a[:-1], b]) for a, b in zip(levels, end, strict=True)))
