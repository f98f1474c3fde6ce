"""The table of solvers: everything that lists, checks, documents or tests samplers reads it.

A solver is a function `(grid, **options) -> Table`. To add one: write it in the file of its family
and add one line to `SOLVERS`.

Any solver also takes EDM's churn, `s_churn, s_tmin, s_tmax` (see `grids.churn`), and `s_noise`, a
factor of all the noise it adds. Where it adds none and makes one call a step, it takes `skip` and
`skip_order` too: steps that use a forecast instead of a network call (see `forecast.py`), e.g.
`skip=3` or `skip="4,6"`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from ...errors import ArgumentError, Idle, among, finite, number_of_steps, say_once
from .. import forecast, grids
from ..grids import Grid, churn
from ..process import Process
from ..table import Table
from . import (
    adams,
    cfg_pp,
    consistency,
    dpmpp,
    er_sde,
    exponential,
    first_order,
    runge_kutta,
    sa_solver,
    singlestep,
    unipc,
)
from .partial import first_rows as first_rows
from .partial import part as part

CHURN = ("s_churn", "s_tmin", "s_tmax")
SKIP = ("skip", "skip_order")
COMMON = (*CHURN, "s_noise", *SKIP)
PROBE = 8  # steps in which every option has something to do that ever has


@dataclass(frozen=True)
class SolverSpec:
    """One line of the table of solvers: all that the rest of timonel needs to know of one.

    Args:
        make: the function `(grid, **options) -> Table`.
        order: of convergence with the default options: strong on the ODE, weak for stochastic
            solvers; 0 where it does not converge.
        calls: network calls for N steps that end at the clean level.
        stochastic: whether it adds noise by default.
        reference: paper with equation, or program.
        grid: the grid it needs by default; None: that of the process.
        rest: the steps after the first so many, where those are unlike the others.
        extrapolates: whether it keeps its weights on the step to the clean level; others return
            the denoised sample of the last call.
        reads_uncond: whether it reads the unconditional prediction of guided rows, as CFG++ does.
    """

    make: Callable[..., Table]
    order: int
    calls: str
    stochastic: bool
    reference: str
    grid: str | None = None
    rest: Callable[[Grid, int], Table] | None = None
    extrapolates: bool = False
    reads_uncond: bool = False

    @cached_property
    def options(self) -> tuple[str, ...]:
        """The options of the function, by name."""
        return tuple(inspect.signature(self.make).parameters)[1:]

    @property
    def multistep(self) -> bool:
        """Whether a step makes one network call, so that earlier predictions raise its order."""
        return self.calls.startswith("N")


def _cfg_pp(make: Callable[..., Table], order: int, calls: str, stochastic: bool) -> SolverSpec:
    """A CFG++ twin."""
    return SolverSpec(
        make, order, calls, stochastic, "arXiv 2406.08070; ComfyUI", reads_uncond=True
    )


SOLVERS: dict[str, SolverSpec] = {
    # one slope
    "euler": SolverSpec(first_order.euler, 1, "N", False, "arXiv 2206.00364"),
    "euler_ancestral": SolverSpec(first_order.euler_ancestral, 1, "N", True, "k-diffusion"),
    "ddim": SolverSpec(first_order.ddim, 1, "N", False, "arXiv 2010.02502, eq. 12"),
    "ddpm": SolverSpec(first_order.ddpm, 1, "N", True, "arXiv 2006.11239, eq. 7"),
    # Runge-Kutta
    "heun": SolverSpec(runge_kutta.heun, 2, "2N - 1", False, "arXiv 2206.00364, algorithm 1"),
    "heunpp2": SolverSpec(runge_kutta.heunpp2, 1, "3N - 3", False, "ComfyUI, Forge"),
    "edm": SolverSpec(runge_kutta.edm, 2, "2N - 1", True, "arXiv 2206.00364, algorithm 2"),
    "restart": SolverSpec(runge_kutta.restart, 0, "2N + 17", True, "arXiv 2306.14878"),
    "dpm2": SolverSpec(runge_kutta.dpm2, 2, "2N - 1", False, "k-diffusion"),
    "dpm2_ancestral": SolverSpec(runge_kutta.dpm2_ancestral, 2, "2N - 1", True, "k-diffusion"),
    "rk4": SolverSpec(runge_kutta.rk4, 4, "4N - 3", False, "Kutta 1901"),
    "runge_kutta": SolverSpec(runge_kutta.runge_kutta, 3, "3N - 2", False, "Butcher's tableaus"),
    # Adams on slopes
    "lms": SolverSpec(adams.lms, 4, "N", False, "k-diffusion"),
    "plms": SolverSpec(
        adams.plms, 2, "N + 1", False, "arXiv 2202.09778", rest=adams.plms_rest, extrapolates=True
    ),
    "pndm": SolverSpec(
        adams.pndm, 2, "N + 9", False, "arXiv 2202.09778", rest=adams.pndm_rest, extrapolates=True
    ),
    "ipndm": SolverSpec(adams.ipndm, 2, "N", False, "arXiv 2204.13902"),
    "deis": SolverSpec(adams.deis, 3, "N", False, "arXiv 2204.13902"),
    "dpm_multistep": SolverSpec(adams.dpm_multistep, 2, "N", False, "arXiv 2206.00927"),
    "gradient_estimation": SolverSpec(adams.gradient_estimation, 1, "N", False, "arXiv 2306.04848"),
    # exponential, singlestep
    "dpm_solver": SolverSpec(exponential.dpm_solver, 3, "3N - 2", False, "arXiv 2206.00927"),
    "dpm_fast": SolverSpec(exponential.dpm_fast, 2, "3N - 3", False, "arXiv 2206.00927", "lam"),
    "dpmpp_2s": SolverSpec(
        exponential.dpmpp_2s, 2, "2N - 1", False, "arXiv 2211.01095, algorithm 1"
    ),
    "dpmpp_3s": SolverSpec(exponential.dpmpp_3s, 3, "3N - 2", False, "arXiv 2211.01095"),
    "dpm_singlestep": SolverSpec(
        singlestep.dpm_singlestep, 2, "N", False, "arXiv 2206.00927; diffusers"
    ),
    "dpmpp_singlestep": SolverSpec(
        singlestep.dpmpp_singlestep, 2, "N", False, "arXiv 2211.01095; diffusers"
    ),
    "dpmpp_2s_ancestral": SolverSpec(
        exponential.dpmpp_2s_ancestral, 2, "2N - 1", True, "k-diffusion"
    ),
    "dpmpp_sde": SolverSpec(exponential.dpmpp_sde, 2, "2N - 1", True, "k-diffusion"),
    "res_2s": SolverSpec(exponential.res_2s, 2, "2N - 1", False, "arXiv 2308.02157"),
    "res_3s": SolverSpec(exponential.res_3s, 3, "3N - 2", False, "arXiv 2308.02157"),
    "exponential_rk": SolverSpec(
        exponential.exponential_rk, 4, "4N - 3", False, "Hochbruck & Ostermann 2005"
    ),
    "seeds_2": SolverSpec(exponential.seeds_2, 2, "2N - 1", True, "arXiv 2305.14267"),
    "seeds_3": SolverSpec(exponential.seeds_3, 2, "3N - 2", True, "arXiv 2305.14267"),
    # exponential, multistep
    "dpmpp_2m": SolverSpec(dpmpp.dpmpp_2m, 2, "N", False, "arXiv 2211.01095, algorithm 2"),
    "dpmpp_2m_sde": SolverSpec(dpmpp.dpmpp_2m_sde, 2, "N", True, "arXiv 2211.01095; k-diffusion"),
    "dpmpp_3m": SolverSpec(dpmpp.dpmpp_3m, 3, "N", False, "arXiv 2211.01095"),
    "dpmpp_3m_sde": SolverSpec(dpmpp.dpmpp_3m_sde, 2, "N", True, "k-diffusion"),
    "res_multistep": SolverSpec(dpmpp.res_multistep, 2, "N", False, "arXiv 2308.02157"),
    "res_multistep_ancestral": SolverSpec(dpmpp.res_multistep_ancestral, 1, "N", True, "ComfyUI"),
    "unipc": SolverSpec(unipc.unipc, 3, "N", False, "arXiv 2302.04867"),
    "sa_solver": SolverSpec(sa_solver.sa_solver, 2, "N", True, "arXiv 2309.05019"),
    "er_sde": SolverSpec(er_sde.er_sde, 2, "N", True, "arXiv 2309.06169"),
    # the noise of the unconditional prediction: CFG++
    "euler_cfg_pp": _cfg_pp(cfg_pp.euler_cfg_pp, 1, "N", False),
    "euler_ancestral_cfg_pp": _cfg_pp(cfg_pp.euler_ancestral_cfg_pp, 1, "N", True),
    "dpmpp_2m_cfg_pp": _cfg_pp(cfg_pp.dpmpp_2m_cfg_pp, 2, "N", False),
    "dpmpp_2s_ancestral_cfg_pp": _cfg_pp(cfg_pp.dpmpp_2s_ancestral_cfg_pp, 2, "2N - 1", True),
    "res_multistep_cfg_pp": _cfg_pp(cfg_pp.res_multistep_cfg_pp, 2, "N", False),
    "res_multistep_ancestral_cfg_pp": _cfg_pp(cfg_pp.res_multistep_ancestral_cfg_pp, 1, "N", True),
    "gradient_estimation_cfg_pp": _cfg_pp(cfg_pp.gradient_estimation_cfg_pp, 1, "N", False),
    # distilled models
    "lcm": SolverSpec(consistency.lcm, 0, "N", True, "arXiv 2310.04378, algorithm 3", "lcm"),
    "tcd": SolverSpec(consistency.tcd, 0, "N", True, "arXiv 2402.19159", "lcm"),
}


#: the twin with CFG++ of a solver, and the options that make it so
TWINS: dict[str, tuple[str, dict[str, Any]]] = {
    **{name.removesuffix("_cfg_pp"): (name, {}) for name, spec in SOLVERS.items()
       if spec.reads_uncond},
    "ddim": ("euler_ancestral_cfg_pp", {"eta": 0.0}),
    "ddpm": ("euler_ancestral_cfg_pp", {"eta": 1.0}),
}  # fmt: skip


def twin(name: str) -> tuple[str, dict[str, Any]]:
    """The solver that is `name` with CFG++, and its options beside those of `name`.

    Raises:
        ArgumentError: there is none.
    """
    if find(name).reads_uncond:
        return name, {}
    if name not in TWINS:
        raise ArgumentError(
            f"cfg_pp needs a solver that reads the unconditional prediction, and {name!r} has no"
            f" such twin; these have one: {', '.join(TWINS)}"
        )
    return TWINS[name]


def find(name: str) -> SolverSpec:
    """The line of the table called `name`. Raises `UnknownName` with the nearest names."""
    return SOLVERS[among("sampler", name, SOLVERS)]


def check(name: str, options: Mapping[str, Any]) -> None:
    """Raise `ArgumentError` for options that the solver `name` does not have."""
    spec = find(name)
    known = (*spec.options, *COMMON)
    for key in options:
        if key not in known:
            raise ArgumentError(
                f"sampler {name!r} has no option {key!r}{_sibling(name, key)}; it takes"
                f" {', '.join(known)}"
            )


def _sibling(name: str, option: str) -> str:
    """Which sampler of the same family has the option."""
    family, twin_too = name.split("_")[0], SOLVERS[name].reads_uncond
    have = [
        n for n, spec in SOLVERS.items()
        if option in spec.options and n.startswith(family) and spec.reads_uncond == twin_too
    ]  # fmt: skip
    near = [n for n in have if n.startswith(name)] or have
    return f" ({' and '.join(near[:2])} {'has' if len(near) == 1 else 'have'} it)" if near else ""


def make(name: str, grid: Grid, *, before: int = 0, **options: Any) -> Table:
    """Compile a solver on a grid.

    An option that has nothing to do in so few steps, and would in more, is passed over, which is
    logged once; so a sweep over steps may begin at 1.

    Args:
        name: a key of `SOLVERS`.
        grid: the levels.
        before: how many steps of a longer run come before this grid.
        **options: those of the solver, and `COMMON`.

    Raises:
        UnknownName: for a name that no solver has.
        ArgumentError: for options that it does not have, or that never act.
    """
    check(name, options)
    rest, acts = options, False
    while True:
        try:
            return _compile(name, grid, before, **rest)
        except Idle as idle:
            if grid.steps >= PROBE:
                raise
            if not acts:
                _compile(name, _longer(grid.process), 0, **options)  # raises where one never acts
            acts = True  # all do; without one of them another may have nothing to do
            say_once(str(idle))
            rest = {key: value for key, value in (rest | idle.instead).items() if value is not None}


def draws(name: str, process: Process, options: Mapping[str, Any]) -> bool:
    """Whether the solver adds noise where it has steps enough to."""
    return make(name, _longer(process), **options).stochastic


def _longer(process: Process) -> Grid:
    """Levels enough for every option to act."""
    return grids.make(grids.usual(process), process, PROBE)


def _compile(name: str, grid: Grid, before: int, **options: Any) -> Table:
    """The table of checked options. Raises `Idle` for one that has nothing to do on this grid."""
    spec = SOLVERS[name]
    order = options.get("order")
    if grid.steps == 1 and isinstance(order, int) and order > 1 and spec.multistep:
        raise Idle(
            f"order={order} of {name!r} needs at least 2 steps, for its predictions come from"
            " earlier ones; 1 step has order 1",
            {"order": 1},
        )
    s_noise, skipping = options.pop("s_noise", None), _popped(options, SKIP)
    if "s_churn" not in spec.options:
        grid = _churned(grid, _popped(options, CHURN))
    if before and spec.rest:
        table = spec.rest(grid, before)
    else:
        table = spec.make(grid, **_of_part(options, before, grid.steps))
    table = replace(table, solver=name)
    if grid.ends is not None and spec.multistep:
        # fresh noise between its predictions leaves order 1
        table = replace(table, order=min(table.order, 1))
    if s_noise is not None:
        table = _scaled(table, finite("s_noise", s_noise, 0, 100))
    return _skipped(table, **skipping) if skipping else table


def _popped(options: dict[str, Any], names: Iterable[str]) -> dict[str, Any]:
    return {key: options.pop(key) for key in names if key in options}


def _of_part(options: dict[str, Any], before: int, steps: int) -> dict[str, Any]:
    """Options that list steps of the whole run, for `steps` steps after the first `before`."""
    if before and isinstance(options.get("order"), str):
        options["order"] = options["order"][before : before + steps]
    if before and options.get("uncorrected"):
        options["uncorrected"] = [s - before for s in options["uncorrected"] if s >= before]
    return options


def _churned(grid: Grid, options: dict[str, Any]) -> Grid:
    if options and "s_churn" not in options:
        raise ArgumentError(
            f"{' and '.join(options)} say where churn acts; give s_churn too, e.g. s_churn=20"
        )
    return churn(grid, **options) if options else grid


def _skipped(
    table: Table, skip: int | str | Sequence[int] | None = None, skip_order: int = forecast.ORDER
) -> Table:
    """The table with forecasts in the steps that `skip` names."""
    if skip is None:
        raise ArgumentError("skip_order says how steps are forecast; give skip too, e.g. skip=3")
    return forecast.skip(table, forecast.chosen(skip, table.steps), skip_order)


def _scaled(table: Table, s_noise: float) -> Table:
    """The table with all its noise multiplied."""
    if not table.stochastic:
        raise Idle(
            f"{table.solver!r} adds no noise in {number_of_steps(table.steps)}, so"
            f" s_noise={s_noise:g} has nothing to multiply",
            {"s_noise": None},
        )
    scale = table.x.new_ones(table.x.shape[1])
    scale[-1] = s_noise
    return replace(table, x=table.x * scale, base=table.base * scale)
