"""One harness that runs a diffusers scheduler and a timonel table side by side.

The levels are the scheduler's own, turned into a `Grid`; network, start and noise are the same.
What is compared is every input the network is shown and the result, in units of the larger of one
and the root mean square. With `double` the scheduler's module computes in float64, so that what
remains is a difference of mathematics and not of rounding.
"""

from __future__ import annotations

import contextlib
import functools
import math
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import diffusers
import numpy as np
import torch

from support.models import drive
from timonel.core import solvers
from timonel.core.grids import Grid
from timonel.core.process import EDM, VP, Flow, Level, Process, double
from timonel.core.program import DenoisedFn
from timonel.core.table import Table

SHAPE = (2, 3, 2, 2)
TOLERANCE = {True: 1e-8, False: 1e-5}  # by `double`


@dataclass(frozen=True)
class Case:
    """One configuration of a scheduler and the timonel solver that should do the same."""

    peer: str
    config: dict[str, Any]
    steps: int
    solver: str
    options: dict[str, Any] = field(default_factory=dict)
    kind: str = "epsilon"
    space: str = "sigma"  # where the levels are read, a key of `SPACES`
    double: bool = True
    blind: bool = False  # the network ignores the time: the scheduler rounds inner times
    end: bool = True  # whether the result is compared, besides what the network was shown
    idle: int = 0  # last calls that change nothing: the scheduler repeats its last level
    sign: float = 1.0  # of the network's output as timonel reads it
    call: str = "usual"  # how `step` is called, a key of `CALLS`
    timesteps: dict[str, Any] = field(default_factory=dict)  # further arguments of set_timesteps
    step: dict[str, Any] = field(default_factory=dict)  # further arguments of step
    noise_scale: float = 1.0
    # what is done to the denoised prediction, where the scheduler's configuration does the same
    shape: DenoisedFn | None = None

    def __str__(self) -> str:
        parts = [
            f"{k}={v!r}"
            for k, v in vars(self).items()
            if k not in ("peer", "steps") and v not in ({}, None)
        ]
        return f"{self.peer} steps={self.steps} " + " ".join(parts)


# -- what both sides are given ---------------------------------------------------------------------
@functools.cache
def draw(k: int) -> torch.Tensor:
    """The unit noise of the k-th network call; k = -1 is the start."""
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(900 + k), dtype=torch.float64)


@functools.cache
def _weights() -> list[torch.Tensor]:
    g = torch.Generator().manual_seed(3)
    return [torch.randn(s, generator=g, dtype=torch.float64) for s in ((8, 3), (3, 8), (8,))]


@torch.no_grad()
def net(x: torch.Tensor, time: float) -> torch.Tensor:
    """A small network that is not linear in x and sees the time; outputs of order one."""
    inner, outer, rate = (w.to(x.dtype) for w in _weights())
    hidden = torch.tanh(
        torch.einsum("oc,bchw->bohw", inner, x) * 0.4
        + torch.sin(rate * (time / 300 + 1))[:, None, None]
    )
    return torch.einsum("co,bohw->bchw", outer, hidden) * 0.2 + 0.3 * x


class Path:
    """The noise a scheduler asks for: that of the present call, or of a whole step that two calls
    share.
    """

    def __init__(self) -> None:
        self.call = 0
        self.mix: dict[int, tuple[float, float]] = {}

    def __call__(self) -> torch.Tensor:
        first, second = self.mix.get(self.call, (0.0, 1.0))
        return second * draw(self.call) + (first * draw(self.call - 1) if first else 0.0)


def mixed(table: Table) -> dict[int, tuple[float, float]]:
    """For the second row of every two-row step: the shares of both rows' noises in the noise of the
    step.

    A peer asks a Brownian path for the increment over half a step and then for that over the whole;
    in a table the second row's noise covers the second half only, and the first row's noise comes
    along.
    """
    shares = {}
    for k in range(1, table.nfe):
        if table.step[k] == table.step[k - 1]:
            through = table.x[k, 0] * table.x[k - 1, -1] + table.x[k, 1] * table.base[k - 1, -1]
            both = torch.stack([through, table.x[k, -1]])
            total = float(both.square().sum().sqrt())
            shares[k] = (float(both[0]) / total, float(both[1]) / total) if total else (0.0, 1.0)
    return shares


# -- float64 inside a scheduler's module -----------------------------------------------------------
class _Changed(types.ModuleType):
    """A module with some names changed."""

    def __init__(self, real: types.ModuleType, **names: Any) -> None:
        super().__init__(real.__name__)
        self.__dict__.update(real=real, **names)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)


@contextlib.contextmanager
def inside(
    module: types.ModuleType, wide: bool, noise: Callable[[], torch.Tensor], **names: Any
) -> Iterator[None]:
    """A peer's module with our noise, in float64 where `wide`, and with other `names` for torch's
    own.
    """
    if wide:
        names["float32"] = torch.float64
    swaps: dict[str, Any] = {
        "randn_tensor": lambda shape, dtype=None, **_: noise().to(
            dtype or torch.get_default_dtype()
        ),
        "BrownianTreeNoiseSampler": lambda *_, **__: (
            lambda a, b: noise().to(torch.get_default_dtype())
        ),
        "torch": _Changed(torch, **names),
        "np": _Changed(np, float32=np.float64) if wide else np,
    }
    swaps = {k: v for k, v in swaps.items() if hasattr(module, k)}
    before, dtype = {k: getattr(module, k) for k in swaps}, torch.get_default_dtype()
    vars(module).update(swaps)
    torch.set_default_dtype(torch.float64 if wide else torch.float32)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        vars(module).update(before)
        torch.set_default_dtype(dtype)


# -- the scheduler's side --------------------------------------------------------------------------
def _usual(
    s: Any, raw: torch.Tensor, k: int, x: torch.Tensor, memory: dict[str, Any], more: dict[str, Any]
) -> Any:
    return s.step(raw, s.timesteps[k], x, **more)[0]


def _batched(
    s: Any, raw: torch.Tensor, k: int, x: torch.Tensor, memory: dict[str, Any], more: dict[str, Any]
) -> Any:
    return s.step(raw, s.timesteps[k].expand(len(x)), x, **more)[0]


def _previous(
    s: Any, raw: torch.Tensor, k: int, x: torch.Tensor, memory: dict[str, Any], more: dict[str, Any]
) -> Any:
    """unCLIP's pipelines tell the step where the next one begins."""
    return s.step(
        raw,
        s.timesteps[k],
        x,
        prev_timestep=s.timesteps[k + 1] if k + 1 < len(s.timesteps) else None,
    )[0]


def _cogvideo(
    s: Any, raw: torch.Tensor, k: int, x: torch.Tensor, memory: dict[str, Any], more: dict[str, Any]
) -> Any:
    """CogVideoX's pipeline keeps the last denoised sample and its time."""
    back = s.timesteps[k - 1] if k else None
    x, memory["old"] = s.step(raw, memory.get("old"), s.timesteps[k], back, x)
    return x


CALLS = {"usual": _usual, "batched": _batched, "previous": _previous, "cogvideo": _cogvideo}


def theirs(case: Case) -> tuple[Any, list[torch.Tensor], torch.Tensor]:
    """The scheduler, what the network was shown at every call, and the result."""
    cls, path = getattr(diffusers, case.peer), Path()
    dtype = torch.float64 if case.double else torch.float32
    with inside(sys.modules[cls.__module__], case.double, path):
        scheduler = cls(**case.config)
        count = (
            {}
            if set(case.timesteps) & {"sigmas", "timesteps"}
            else {"num_inference_steps": case.steps}
        )
        scheduler.set_timesteps(**count, **case.timesteps)
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(0)
        if case.double and scheduler.timesteps.dtype == torch.float32:
            scheduler.timesteps = scheduler.timesteps.double()
        path.mix = mixed(compiled(case, scheduler)) if case.solver == "dpmpp_sde" else {}
        x, shown, memory = start(case, scheduler).to(dtype), [], {}
        for k in range(calls(case, scheduler)):
            path.call = k
            t = scheduler.timesteps[k]
            seen = (
                scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
            )
            shown.append(seen)
            raw = net(seen, 0.0 if case.blind else float(t))
            x = CALLS[case.call](scheduler, raw, k, x, memory, case.step)
    return scheduler, shown, x


def calls(case: Case, scheduler: Any) -> int:
    """Network calls of a run; some lists of timesteps hold the final time as well."""
    return len(scheduler.timesteps) - (case.space in ("wuerstchen", "trig", "ltx"))


# -- the levels ------------------------------------------------------------------------------------
def _times(scheduler: Any, alpha: torch.Tensor) -> torch.Tensor:
    """The times of the rows where there is one call per level; else zeros, for a blind network."""
    listed = (
        scheduler._timesteps[::-1].copy()
        if hasattr(scheduler, "_timesteps")
        else scheduler.timesteps
    )
    times, n = double(listed), len(alpha)
    return (
        torch.cat([times, times[:1] * 0])
        if len(times) == n - 1
        else torch.zeros(n, dtype=torch.float64)
    )


def _sigma(s: Any) -> tuple[torch.Tensor, torch.Tensor]:
    ratio = torch.unique_consecutive(double(s.sigmas))
    alpha = 1 / torch.sqrt(1 + ratio**2)
    return alpha, ratio * alpha


def _flow(s: Any) -> tuple[torch.Tensor, torch.Tensor]:
    t = torch.unique_consecutive(double(s.sigmas))
    return 1 - t, t


def _edm(s: Any) -> tuple[torch.Tensor, torch.Tensor]:
    ratio = double(s.sigmas)
    norm = torch.where(
        ratio > 0, torch.sqrt(ratio**2 + s.config.sigma_data**2), 1.0
    )  # the clean sample is x0 itself
    return 1 / norm, ratio / norm


def _cm(s: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Consistency models leave sigma_min of noise to the network's boundary condition."""
    ratio = double(s.sigmas)
    ratio = torch.cat([ratio[:1], torch.sqrt(ratio[1:] ** 2 - double(s.sigmas[-1]) ** 2)])
    alpha = 1 / torch.sqrt(1 + ratio**2)
    return alpha, ratio * alpha


def _pairs(s: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Every second level: a singlestep scheduler lists the inner levels of its steps too."""
    ratio = double(s.sigmas)
    alpha = 1 / torch.sqrt(1 + ratio**2)
    sigma = alpha * ratio
    keep = [*range(0, len(alpha) - 1, s.config.solver_order), len(alpha) - 1]
    if s.config.final_sigmas_type == "sigma_min":
        keep.pop()  # sigma_min a second time
    return alpha[keep], sigma[keep]


def _abar(s: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Levels at the timesteps; the last is where the scheduler's own last step ends."""
    last = getattr(s, "final_alpha_cumprod", getattr(s, "one", torch.tensor(1.0)))
    listed = (
        s._timesteps if hasattr(s, "_timesteps") else s.timesteps
    )  # PNDM also lists its inner calls
    times = sorted({int(t) for t in listed}, reverse=True)
    abar = torch.cat([double(s.alphas_cumprod[times]), double(last).reshape(1)])
    return abar.sqrt(), (1 - abar).sqrt()


def _wuerstchen(s: Any) -> tuple[torch.Tensor, torch.Tensor]:
    abar = double(s._alpha_cumprod(s.timesteps, "cpu"))
    return abar.sqrt(), (1 - abar).sqrt()


def _trig(s: Any) -> tuple[torch.Tensor, torch.Tensor]:
    angle = double(s.timesteps)
    return torch.cos(angle), torch.sin(angle)


def _ipndm(s: Any) -> tuple[torch.Tensor, torch.Tensor]:
    return double(s.alphas), double(s.betas)


def _vp(s: Any) -> Process:
    return VP(double(s.betas))


SPACES: dict[
    str, tuple[Callable[[Any], tuple[torch.Tensor, torch.Tensor]], Callable[[Any], Process], bool]
] = {
    # levels, process, and whether the scheduler's samples are x / alpha
    "sigma": (_sigma, _vp, True),
    "dpm": (_sigma, _vp, False),
    "pairs": (_pairs, _vp, False),
    "abar": (_abar, _vp, False),
    "flow": (_flow, lambda s: Flow(), False),
    "cm": (_cm, lambda s: EDM(1e-5, 1e4), True),
    "ltx": (_flow, lambda s: Flow(), False),
    "edm": (_edm, lambda s: EDM(1e-5, 1e4, sigma_data=s.config.sigma_data), True),
    "wuerstchen": (_wuerstchen, lambda s: VP.from_schedule(), False),
    "trig": (_trig, lambda s: EDM(1e-5, 1e4), False),
    "ipndm": (_ipndm, lambda s: EDM(1e-5, 1e4), False),
}


def grid(case: Case, scheduler: Any) -> Grid:
    """The levels a scheduler visits."""
    levels, process, _ = SPACES[case.space]
    alpha, sigma = levels(scheduler)
    times = double(scheduler.timesteps)
    time = times if len(times) == len(alpha) else _times(scheduler, alpha)
    ends = _rf_ancestral(sigma, scheduler.config.eta) if case.space == "ltx" else None
    return Grid(process(scheduler), alpha, sigma, time, "theirs", ends)


def _rf_ancestral(sigma: torch.Tensor, eta: float) -> Level:
    """Where LTX's ancestral steps end: sigma'·(1 + (sigma'/sigma - 1)·eta)."""
    down = sigma[1:] * (1 + (sigma[1:] / sigma[:-1] - 1) * eta)
    return Level(1 - down, down, 1000 * down)


def start(case: Case, scheduler: Any) -> torch.Tensor:
    """The start in the scheduler's own coordinates."""
    levels, _, scaled = SPACES[case.space]
    return draw(-1) / levels(scheduler)[0][0] if scaled else draw(-1)


# -- timonel's side --------------------------------------------------------------------------------
def compiled(case: Case, scheduler: Any) -> Table:
    return solvers.make(case.solver, grid(case, scheduler), **case.options)


def ours(case: Case, scheduler: Any) -> tuple[list[torch.Tensor], torch.Tensor]:
    """What the network was shown at every row, and the result in the scheduler's coordinates."""
    table, first = compiled(case, scheduler), grid(case, scheduler)[0]
    dtype, shown = torch.float64 if case.double else torch.float32, []
    x, churned = draw(-1), bool(table.alpha[0] != first.alpha)
    if (
        churned
    ):  # the scheduler lifts a sample where a step begins, timonel where the step before ends
        rise = table.alpha[0] / first.alpha
        fresh = torch.sqrt(table.sigma[0] ** 2 - (rise * first.sigma) ** 2)
        x = rise * x + fresh * case.options.get("s_noise", 1.0) * draw(0)

    def noise(row: int, like: torch.Tensor) -> torch.Tensor:
        quiet = (
            case.space == "wuerstchen" and row == table.nfe - 1
        )  # it ends above sigma = 0, without noise
        return draw(row + churned).to(like.dtype) * (0.0 if quiet else case.noise_scale)

    def look(x: torch.Tensor, at: Any) -> torch.Tensor:
        if case.space == "cm":
            return consistency(x / at.alpha, len(shown), scheduler, shown)
        shown.append(x)
        return case.sign * net(x, 0.0 if case.blind else at.time)

    result = drive(
        table, look, x.to(dtype), prediction=case.kind, noise=noise, denoised_fn=case.shape
    )
    return shown, result / float(table.alpha[-1]) if SPACES[case.space][2] else result


def consistency(y: torch.Tensor, k: int, scheduler: Any, shown: list[torch.Tensor]) -> torch.Tensor:
    """A consistency model's denoised sample: the network inside its boundary condition."""
    sigma = scheduler.sigmas[k]
    skip, out = (float(c) for c in scheduler.get_scalings_for_boundary_condition(sigma))
    shown.append(y / float((sigma**2 + scheduler.config.sigma_data**2) ** 0.5))
    return out * net(shown[-1], float(scheduler.timesteps[k])) + skip * y


def apart(a: torch.Tensor, b: torch.Tensor) -> float:
    """The largest difference, in units of the larger of one and the root mean square of `b`."""
    if a.shape != b.shape or not bool(torch.isfinite(a).all() and torch.isfinite(b).all()):
        return math.inf
    return float((a - b).double().abs().max()) / max(1.0, float(b.double().square().mean().sqrt()))


def error(case: Case) -> float:
    """The worst difference between the two sides, over every network input and the result."""
    scheduler, shown, result = theirs(case)
    seen, end = ours(case, scheduler)
    if len(seen) != len(shown) - case.idle:
        return math.inf
    pairs = list(zip(seen, shown, strict=not case.idle)) + ([(end, result)] if case.end else [])
    return max(apart(a, b) for a, b in pairs)
