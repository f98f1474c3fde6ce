"""The tables of diffusers' classes: which order every step of their lists has.

diffusers lowers the order of the last steps, and of runs of few steps, by rules of its own. So the
rows of a table may come from several tables on the same grid.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...core import solvers
from ...core.grids import Grid
from ...core.process import double
from ...core.sampler import Sampler
from ...core.solvers.adams import pndm_rest
from ...core.solvers.consistency import lcm as consistency
from ...core.solvers.unipc import unipc as unipc_table
from ...core.table import Rows, Table
from ...errors import ArgumentError
from .rule import Flags, Levels

Named = tuple[str, dict[str, Any]]
FEW = 15  # diffusers lowers the order of the last steps of shorter runs
#: variances of DDPM's noise: of the posterior, which a table has anyhow, or of the forward step
SMALL, LARGE = ("fixed_small", "fixed_small_log"), ("fixed_large", "fixed_large_log")


class Part(NamedTuple):
    """What a table is made for: a part of a class's list.

    Args:
        flags: of the class.
        whole: the list; `grid` is it or a part of it.
        sampler: solver and options for these flags.
        before: steps of the list before `grid`.
        alone: the levels are not those of the list, so that all orders are their own.
    """

    flags: Flags
    whole: Levels
    sampler: Sampler
    grid: Grid
    before: int = 0
    alone: bool = False


def usual(part: Part) -> Table:
    """The table of the sampler, whose orders are timonel's."""
    options = part.sampler.solver_options
    return solvers.make(part.sampler.name, part.grid, before=part.before, **options)


def falling(order: int, steps: int, idle: int) -> list[int]:
    """The most predictions of every step where the order falls to 1: min(order, N - k)."""
    return [min(order, steps + idle - k) for k in range(steps)]


def lowered(make: Callable[[int], Table], orders: Sequence[int]) -> Table:
    """Row k from `make(orders[k])`. All tables have one row a step, on one grid, in one basis."""
    tables = {order: make(order) for order in sorted(set(orders))}
    top = tables[max(tables)]
    if len(tables) == 1:
        return top
    x, base = (
        [_widened(getattr(tables[o], kind)[k], top.history) for k, o in enumerate(orders)]
        for kind in ("x", "base")
    )
    return replace(top, x=torch.stack(x), base=torch.stack(base))


def _widened(row: Tensor, history: int) -> Tensor:
    """A row's coefficients for a table that remembers `history` predictions."""
    return torch.cat([row[:-1], row.new_zeros(history + 3 - len(row)), row[-1:]])


# -- DPM-Solver's classes --------------------------------------------------------------------------
def adds_noise(flags: Flags) -> bool:
    """Whether an `algorithm_type` draws noise in every step."""
    return str(flags["algorithm_type"]).startswith("sde")


def multistep_solver(flags: Flags) -> Named:
    """`dpmpp_2m` and its kin; `dpm_multistep` for "dpmsolver" and, with noise, "sde-dpmsolver".

    Order 3 has diffusers' second derivative (`curvature` 1/2); "sde-dpmsolver++" has k-diffusion's
    third order, for diffusers' has a wrong sign.
    """
    order = flags["solver_order"]
    if flags["algorithm_type"] == "sde-dpmsolver" and order > 2:
        raise ArgumentError(
            "algorithm_type='sde-dpmsolver' has no formula of order 3, in diffusers neither;"
            " pass solver_order=2, or algorithm_type='sde-dpmsolver++'"
        )
    return _multistep(flags, order)


def _multistep(flags: Flags, order: int) -> Named:
    """The solver of a step of this order."""
    noisy, slopes = adds_noise(flags), flags["algorithm_type"].endswith("dpmsolver")
    options: dict[str, Any] = {"variant": flags["solver_type"]} if order > 1 else {}
    if order == 3:
        options["curvature"] = 0.5
    if slopes and (noisy or flags["solver_order"] > 1):  # else it is Euler's either way
        return "dpm_multistep", {"order": order, **options, **({"eta": 1.0} if noisy else {})}
    if order == 1:
        return "ddpm" if noisy else "euler", options
    if order == 3:
        options["final_order"] = 3  # `multistep` says where it falls
    return f"dpmpp_{order}m{'_sde' if noisy else ''}", options


def multistep(part: Part) -> Table:
    """The table of a multistep DPM-Solver, whose order falls by diffusers' flags."""
    flags, grid = part.flags, part.grid
    order: int = flags["solver_order"]
    few = flags["lower_order_final"] and part.whole.calls < FEW
    final = 1 if few or flags["euler_at_final"] else order
    caps = {1: final, 2: min(order, 2) if few else order}
    after = part.whole.idle
    orders = [caps.get(grid.steps + after - k, order) for k in range(grid.steps)]

    def make(order: int) -> Table:
        name, options = _multistep(flags, order)
        return solvers.make(name, grid, **options)

    return lowered(make, orders if grid.steps > 1 else [1])


def cosine_solver(flags: Flags) -> Named:
    """That of `multistep_solver` with the noise of "sde-dpmsolver++", the only algorithm there."""
    return multistep_solver({**flags, "algorithm_type": "sde-dpmsolver++"})


def cosine(part: Part) -> Table:
    """The table of `multistep` with the same."""
    return multistep(part._replace(flags={**part.flags, "algorithm_type": "sde-dpmsolver++"}))


def singlestep_solver(flags: Flags) -> Named:
    """`dpmpp_singlestep`, `dpm_singlestep` for "dpmsolver"; of order 1 `euler` or `ddpm`."""
    noisy = adds_noise(flags)
    if flags["solver_order"] == 1:
        return ("ddpm" if noisy else "euler"), {}
    options = {"order": flags["solver_order"], "variant": flags["solver_type"]}
    name = "dpm_singlestep" if flags["algorithm_type"] == "dpmsolver" else "dpmpp_singlestep"
    return name, {**options, **({"eta": 1.0} if noisy else {})}


def groups(flags: Flags, calls: int) -> str:
    """The place of every call of the singlestep class in its group: its order, e.g. "1212".

    The last call is one of its own where it goes to the clean level, with `lower_order_final`, and
    for a number of calls that is no multiple of the order.
    """
    order, clean = flags["solver_order"], flags["final_sigmas_type"] == "zero"
    uneven = calls % order > 0
    alone = int(bool(clean or (not uneven and flags["lower_order_final"])))
    paired = calls - alone
    return "".join(str(k % order + 1) for k in range(paired)) + "1" * alone


def ends_group(flags: Flags, calls: int) -> bool:
    """Whether the last of so many calls ends a group, and so corrects the sample."""
    return not groups(flags, calls).endswith("1")


def singlestep(part: Part) -> Table:
    """The table of groups of calls; a part that begins inside one begins with order 1 there."""
    if "order" not in part.sampler.options:
        return usual(part)
    whole = Levels(part.grid) if part.alone else part.whole
    places = groups(part.flags, whole.calls)[: whole.grid.steps]
    options = {**part.sampler.options, "order": places}
    return solvers.make(part.sampler.name, part.grid, before=part.before, **options)


# -- DEIS, UniPC, SA-Solver ------------------------------------------------------------------------
def deis_orders(flags: Flags, whole: Levels, steps: int) -> str:
    """The order of every step of DEIS's class on `steps` levels of a list, or off it."""
    order = flags["solver_order"]
    few = steps == 1 or (flags["lower_order_final"] and whole.calls < FEW)
    orders = falling(order, steps, whole.idle if steps > 1 else 0) if few else [order] * steps
    return "".join(map(str, orders))


def deis(part: Part) -> Table:
    """The table of `deis` with these orders."""
    orders = deis_orders(part.flags, part.whole, part.grid.steps)
    return solvers.make("deis", part.grid, order=orders, variant="logrho")


def _falls(flags: Flags, whole: Levels) -> bool:
    """Whether UniPC's order falls towards the end of the list."""
    return bool(flags["lower_order_final"]) or min(flags["solver_order"], whole.grid.steps) == 1


def unipc_orders(flags: Flags, whole: Levels, steps: int) -> str:
    """The order of every step of UniPC's class on `steps` levels of a list, or off it."""
    order, falls = flags["solver_order"], _falls(flags, whole)
    return "".join(map(str, falling(order, steps, whole.idle) if falls else [order] * steps))


def unipc(part: Part) -> Table:
    """The table of `unipc` with these orders, and steps without a corrector."""
    flags, grid = part.flags, part.grid
    skipped = part.whole.grid.steps - grid.steps  # steps of the list before a part of it
    alone = [step - skipped for step in flags["disable_corrector"] or () if step >= skipped]
    if not _falls(flags, part.whole) and bool(grid.sigma[-1] == 0):
        raise ArgumentError(
            "lower_order_final=False asks for a high order to sigma = 0, where diffusers' result"
            " is not a number; pass lower_order_final=True, or final_sigmas_type='sigma_min'"
        )
    orders = unipc_orders(flags, part.whole, grid.steps)
    return unipc_table(grid, order=orders, variant=flags["solver_type"], uncorrected=alone)


def sa_solver_named(flags: Flags) -> Named:
    """`sa_solver` with the weights of the paper's code."""
    orders = {key: flags[key] for key in ("predictor_order", "corrector_order")}
    return "sa_solver", {**orders, **_noisy_times(flags), "variant": "simple"}


def _noisy_times(flags: Flags) -> dict[str, Any]:
    """Options for noise between the training times 200 and 800, of however many there are."""
    start, stop = (time / flags["num_train_timesteps"] for time in (200, 800))
    return {"start": start, "stop": min(stop, 1.0)} if start <= 1 else {"eta": 0.0}


def sa_solver(part: Part) -> Table:
    """The table of `sa_solver` whose orders fall towards the end."""
    flags, grid = part.flags, part.grid
    ahead, back, noisy = flags["predictor_order"], flags["corrector_order"], _noisy_times(flags)

    def make(left: int) -> Table:
        orders = {"predictor_order": min(ahead, left), "corrector_order": min(back, left + 1)}
        return solvers.make("sa_solver", grid, **orders, **noisy, variant="simple")

    most, steps = max(ahead, back), grid.steps
    falls = flags["lower_order_final"]
    return lowered(make, falling(most, steps, part.whole.idle) if falls else [most] * steps)


# -- the others ------------------------------------------------------------------------------------
def lms(part: Part) -> Table:
    """The table of `lms`; of one step without options, for it has order 1."""
    if part.grid.steps > 1:
        return usual(part)
    return solvers.make("lms", part.grid, before=part.before)


def lcm(part: Part) -> Table:
    """The table of `lcm` with the boundary scaling of the class."""
    return consistency(part.grid, scaling=float(part.flags["timestep_scaling"]))


def ddpm(part: Part) -> Table:
    """The table of `ddpm`; with "fixed_large" the noise has sqrt(beta) for its deviation."""
    table = usual(part)
    if part.flags["variance_type"] not in LARGE:
        return table
    top, low = table.sigma[:-1], table.sigma[1:]
    return _noisy(table, torch.where(low > 0, top / torch.where(low > 0, low, 1.0), 1.0))


def pndm(part: Part) -> Table:
    """The table of PNDM's class: the first steps of the method where the list begins.

    Raises:
        ArgumentError: a part of a list that begins with Runge-Kutta steps.
    """
    grid, name = part.grid, part.sampler.name
    if part.alone or grid.steps == part.whole.grid.steps:
        if name == "plms":
            return solvers.make("plms", grid)
        times = grid.time[:-1]
        counted = bool((times == times.round()).all()) and bool((times.diff() < -1).all())
        return pndm_rest(grid, 0, counted)
    if name == "pndm":
        raise ArgumentError(
            "a part of the list cannot begin with Runge-Kutta steps; pass skip_prk_steps=True"
        )
    return solvers.make("ipndm", grid, euler_at_final=False)  # one call a step, as the rest has


def cogvideox(part: Part) -> Table:
    """The table of CogVideoX's DPM class: of order 1 at the end of its list, and alone."""
    orders = [min(2, part.grid.steps - k) for k in range(part.grid.steps)]
    names = {1: "ddpm", 2: "dpmpp_2m_sde"}
    return lowered(lambda order: solvers.make(names[order], part.grid), orders)


def scm(part: Part) -> Table:
    """The table of `lcm` on angles, with noise of the data's deviation as its samples have it."""
    return _noisy(usual(part), double(float(part.flags["sigma_data"])))


def iterative(part: Part) -> Table:
    """The table of `lcm` for a consistency model, whose noise leaves sigma_min of itself out."""
    table, flags = usual(part), part.flags
    sigma = table.sigma[1:] / table.alpha[1:]
    kept = (sigma**2 - flags["sigma_min"] ** 2).clamp(min=0).sqrt() * flags["s_noise"]
    return _noisy(table, kept / torch.where(sigma > 0, sigma, 1.0))


def _noisy(table: Table, size: Tensor) -> Table:
    """A table whose rows have so many times their noise: one number, or one for each row."""
    return replace(table, x=torch.cat([table.x[:, :-1], table.x[:, -1:] * size.reshape(-1, 1)], 1))


def inverse(part: Part) -> Table:
    """DDIM's inversion: Euler's steps of the predicted noise, up to the end of each step.

    Source: Song et al. 2020, arXiv 2010.02502, section 4.3; Mokady et al. 2022, arXiv 2211.09794.
    """
    grid = part.grid
    rows = Rows("ddim_inverse", grid, order=1, basis="noise")
    for k in range(grid.steps):
        now, new = grid[k], grid.end(k)
        scale = new.alpha / now.alpha
        rows.add(k, now, {"x": scale, "h0": new.sigma - scale * now.sigma})
    return rows.table()


def risen(part: Part) -> Table:
    """The table of `multistep` on the way up, whose list always goes on to the noisiest level."""
    return multistep(part._replace(flags={**part.flags, "final_sigmas_type": "sigma_min"}))


def wuerstchen(part: Part) -> Table:
    """The table of `ddpm` whose last step adds no noise, though it ends above sigma = 0."""
    size = torch.ones(part.grid.steps, dtype=torch.float64)
    size[-1] = float(part.grid.time[-1] > 0)
    return _noisy(usual(part), size)
