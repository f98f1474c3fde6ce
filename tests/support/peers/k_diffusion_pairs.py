"""All of k-diffusion's samplers that are tables, on exact denoisers, at 1 to 100 steps: what
differs and by how much.

`rows()` measures 20 samplers with their options x 3 denoisers x 7 numbers of steps x 3 lists of
sigmas, from the same start and with the same noise, in float64. `docs/make_names.py` may print
them.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from support import parity_k
from support.parity import SHAPE
from timonel.errors import TimonelError

from . import k_diffusion_sampling

STEPS = (1, 2, 3, 5, 10, 37, 100)
LISTS = ("karras", "exponential", "polyexponential")
LOW, HIGH = 0.03, 14.6
SAME = 1e-6
CHURN = {"s_churn": 10.0, "s_noise": 1.003}
QUIETER = {"eta": 0.5, "s_noise": 1.003}


@dataclass(frozen=True)
class Pair:
    """A sampler of k-diffusion with its arguments, and what computes the same here."""

    peer: str
    solver: str
    both: dict[str, Any] = field(default_factory=dict)
    theirs: dict[str, Any] = field(default_factory=dict)
    ours: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        options = {**self.both, **self.theirs}
        return self.peer + (
            f"({', '.join(f'{k}={v}' for k, v in options.items())})" if options else ""
        )


PAIRS = (
    Pair("euler", "euler"), Pair("euler", "euler", CHURN), Pair("heun", "heun"),
    Pair("heun", "heun", CHURN),
    Pair("dpm_2", "dpm2"), Pair("dpm_2", "dpm2", CHURN), Pair("euler_ancestral", "euler_ancestral"),
    Pair("euler_ancestral", "euler_ancestral", QUIETER), Pair("dpm_2_ancestral", "dpm2_ancestral"),
    Pair("dpm_2_ancestral", "dpm2_ancestral", QUIETER),
    Pair("dpmpp_2s_ancestral", "dpmpp_2s_ancestral"),
    Pair("dpmpp_sde", "dpmpp_sde"), Pair("dpmpp_2m", "dpmpp_2m"),
    Pair("dpmpp_2m_sde", "dpmpp_2m_sde", {}, {"solver_type": "midpoint"}, {"variant": "midpoint"}),
    Pair("dpmpp_2m_sde", "dpmpp_2m_sde", {}, {"solver_type": "heun"}, {"variant": "heun"}),
    Pair("dpmpp_2m_sde", "dpmpp_2m_sde", {"eta": 0.0}, {"solver_type": "midpoint"},
    {"variant": "midpoint"}),
    Pair("dpmpp_3m_sde", "dpmpp_3m_sde"), Pair("dpmpp_3m_sde", "dpmpp_3m_sde", {"eta": 0.0}),
    Pair("lms", "lms", {"order": 4}, {}, {"euler_at_final": False}),
    Pair("lms", "lms", {"order": 2}, {}, {"euler_at_final": False}),
)  # fmt: skip


# -- denoisers that are known exactly, at any shape ------------------------------------------------
def gaussian(x: torch.Tensor, at: Any) -> torch.Tensor:
    """Every number is drawn from N(0.4, 0.6²)."""
    mean, variance = 0.4, 0.6**2
    gain = at.alpha * variance / (at.alpha**2 * variance + at.sigma**2)
    return mean + gain * (x - at.alpha * mean)


def mixture(x: torch.Tensor, at: Any) -> torch.Tensor:
    """Every number is drawn from three normal distributions."""
    weights, means, stds = (
        x.new_tensor(v) for v in ((0.3, 0.45, 0.25), (-1.0, 0.1, 0.9), (0.2, 0.3, 0.15))
    )
    variance = at.alpha**2 * stds**2 + at.sigma**2
    far = x[..., None] - at.alpha * means
    share = torch.softmax(
        torch.log(weights) - torch.log(variance) / 2 - far**2 / (2 * variance), -1
    )
    return (share * (means + at.alpha * stds**2 / variance * far)).sum(-1)


@functools.cache
def _pictures() -> torch.Tensor:
    g = torch.Generator().manual_seed(12)
    return torch.rand(12, *SHAPE[1:], generator=g, dtype=torch.float64) * 2 - 1


def pictures(x: torch.Tensor, at: Any) -> torch.Tensor:
    """The data is twelve pictures: their mean, weighted by how near each is."""
    known = _pictures()
    far = (x[:, None] - at.alpha * known).square().flatten(2).sum(-1)
    share = torch.softmax(-far / (2 * at.sigma**2), -1)
    return torch.einsum("bk,kchw->bchw", share, known)


DENOISERS = {"gaussian": gaussian, "mixture": mixture, "pictures": pictures}


# -- measuring -------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Outcome:
    """`apart`: the largest difference of anything the model saw and of the result; None where one
    side refused.
    """

    pair: Pair
    denoiser: str
    steps: int
    sigmas: str
    apart: float | None
    ours: str = ""  # what timonel said instead of a result
    theirs: str = ""  # what k-diffusion raised

    @property
    def same(self) -> bool:
        return self.apart is not None and self.apart <= SAME


def outcome(pair: Pair, denoiser: str, steps: int, sigmas: str) -> Outcome:
    values = getattr(k_diffusion_sampling(), f"get_sigmas_{sigmas}")(steps, LOW, HIGH).double()
    case = parity_k.Case(
        pair.peer, tuple(values.tolist()), pair.solver, {**pair.both, **pair.ours},
        {**pair.both, **pair.theirs},
        "sample", DENOISERS[denoiser],
    )  # fmt: skip
    try:
        parity_k.compiled(case)
    except TimonelError as error:
        return Outcome(pair, denoiser, steps, sigmas, None, ours=str(error))
    try:
        shown, result = parity_k.theirs(case)
    except Exception as error:  # whatever the peer's code raises is what is to be said of it
        return Outcome(
            pair, denoiser, steps, sigmas, None, theirs=f"{type(error).__name__}: {error}"
        )
    seen, end = parity_k.ours(case)
    if len(seen) != len(shown):
        return Outcome(pair, denoiser, steps, sigmas, math.inf)
    pairs = [*zip(seen, shown, strict=True), (end, result)]
    return Outcome(pair, denoiser, steps, sigmas, max(parity_k.apart(a, b) for a, b in pairs))


def outcomes(steps: tuple[int, ...] = STEPS, lists: tuple[str, ...] = LISTS) -> Iterator[Outcome]:
    for pair in PAIRS:
        for denoiser in DENOISERS:
            for n in steps:
                for sigmas in lists:
                    yield outcome(pair, denoiser, n, sigmas)


def rows(found: list[Outcome] | None = None) -> list[tuple[str, str, int, int, float, str]]:
    """(k-diffusion's call, timonel's name, pairs that agree, pairs, largest difference, what else
    happened).
    """
    found = list(outcomes()) if found is None else found
    made = []
    for pair in PAIRS:
        mine = [o for o in found if o.pair is pair]
        worst = max((o.apart for o in mine if o.apart is not None), default=math.nan)
        notes = []
        for side, word in (("theirs", "k-diffusion fails"), ("ours", "timonel refuses")):
            steps = sorted({o.steps for o in mine if getattr(o, side)})
            if steps:
                notes.append(f"{word} at {' and '.join(map(str, steps))} steps")
        least = min((o.steps for o in mine if o.apart is not None and not o.same), default=0)
        if least:
            notes.append(f"differs from {least} steps on")
        name = pair.solver + (f" {pair.ours}" if pair.ours else "")
        made.append(
            (str(pair), name, sum(o.same for o in mine), len(mine), worst, "; ".join(notes))
        )
    return made
