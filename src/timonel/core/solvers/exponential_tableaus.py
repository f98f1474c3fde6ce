"""Tableaus of explicit exponential Runge-Kutta methods: nodes, and weights of phi functions.

`exponential` says how they are applied. The weight of the first prediction of a stage is never
written: it makes the sum c·phi_1(c·z), so that a constant denoised sample is met exactly. Lawson's
methods have no such sum, see `docs/differences.md`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..process import double
from .algebra import fit, phi

#: z -> weights of D_2, D_3, …; D_1 has the rest
Stage = Callable[[Tensor], "Sequence[Tensor | float]"]


@dataclass(frozen=True)
class Exponential:
    """An explicit method: nodes c_i and weights a_ij(z), j >= 2, of stages 2, 3, …; weights b."""

    order: int
    nodes: tuple[float, ...]
    stages: tuple[Stage, ...]
    b: Stage


def first(c: float, weights: Sequence[Tensor | float], z: Tensor) -> list[Tensor]:
    """All weights of a stage; that of D_1 makes their sum c·phi_1(c·z)."""
    rest = [double(w) for w in weights]
    return [c * phi(1, c * z) - sum(rest, start=torch.zeros_like(z)), *rest]


def dpmpp_2s_tableau(r: float) -> Exponential:
    """arXiv 2211.01095, algorithm 1."""
    return Exponential(2, (r,), (lambda z: (),), lambda z: (phi(1, z) / (2 * r),))


def res_2s_tableau(c: float = 0.5) -> Exponential:
    """arXiv 2308.02157; Hochbruck & Ostermann 2005, "Explicit exponential Runge-Kutta methods"."""
    return Exponential(2, (c,), (lambda z: (),), lambda z: (phi(2, z) / c,))


def res_3s_tableau(c2: float = 0.5, c3: float = 1.0) -> Exponential:
    """arXiv 2308.02157; Hochbruck & Ostermann 2005, where 2·(g·c2 + c3) = 3·(g·c2² + c3²)."""
    g = (3 * c3**2 - 2 * c3) / (c2 * (2 - 3 * c2))
    return Exponential(
        3, (c2, c3),
        (lambda z: (), lambda z: (g * c2 * phi(2, c2 * z) + c3**2 / c2 * phi(2, c3 * z),)),
        lambda z: (g / (g * c2 + c3) * phi(2, z), phi(2, z) / (g * c2 + c3)),
    )  # fmt: skip


def dpm_3_tableau(c2: float = 1 / 3, c3: float = 2 / 3) -> Exponential:
    """arXiv 2206.00927: DPM-Solver-3."""
    return Exponential(
        3,
        (c2, c3),
        (lambda z: (), lambda z: (c3**2 / c2 * phi(2, c3 * z),)),
        lambda z: (0.0, phi(2, z) / c3),
    )


def _etdrk4() -> Exponential:
    """Cox & Matthews 2002, eq. 26 to 29."""
    return Exponential(
        4, (0.5, 0.5, 1.0),
        (
            lambda z: (),
            lambda z: (phi(1, z / 2) / 2,),
            lambda z: (0.0, phi(1, z / 2)),
        ),
        lambda z: (2 * phi(2, z) - 4 * phi(3, z), 2 * phi(2, z) - 4 * phi(3, z),
        4 * phi(3, z) - phi(2, z)),
    )  # fmt: skip


def _krogstad() -> Exponential:
    """Krogstad 2005: like Cox & Matthews', with smaller error constants."""
    return Exponential(
        4, (0.5, 0.5, 1.0),
        (lambda z: (), lambda z: (phi(2, z / 2),), lambda z: (0.0, 2 * phi(2, z))),
        lambda z: (2 * phi(2, z) - 4 * phi(3, z), 2 * phi(2, z) - 4 * phi(3, z),
        4 * phi(3, z) - phi(2, z)),
    )  # fmt: skip


def _etd3rk() -> Exponential:
    """Cox & Matthews 2002, eq. 23 to 25."""
    return Exponential(
        3, (0.5, 1.0),
        (lambda z: (), lambda z: (2 * phi(1, z),)),
        lambda z: (4 * phi(2, z) - 8 * phi(3, z), 4 * phi(3, z) - phi(2, z)),
    )  # fmt: skip


def _etdrk3() -> Exponential:
    """Hochbruck & Ostermann 2005, as RES4LYF's etdrk3_a_3s: the second stage is the end."""
    return Exponential(
        3, (1.0, 2 / 3),
        (lambda z: (), lambda z: (4 / 9 * phi(2, 2 / 3 * z),)),
        lambda z: (phi(2, z) - phi(1, z) / 2, 3 / 4 * phi(1, z)),
    )  # fmt: skip


def _etd2cf3() -> Exponential:
    """ETD2CF3 of EXPINT (Berland, Skaflestad & Wright 2007)."""
    return Exponential(
        3, (1 / 3, 2 / 3),
        (lambda z: (), lambda z: (4 / 3 * phi(2, 2 / 3 * z),)),
        lambda z: (6 * phi(2, z) - 18 * phi(3, z), 9 * phi(3, z) - 3 / 2 * phi(2, z)),
    )  # fmt: skip


def _strehmel_weiner() -> Exponential:
    """Strehmel & Weiner 1992, as Hochbruck & Ostermann 2005, section 5, print it."""
    return Exponential(
        4, (0.5, 0.5, 1.0),
        (
            lambda z: (),
            lambda z: (phi(2, z / 2) / 2,),
            lambda z: (-2 * phi(2, z), 4 * phi(2, z)),
        ),
        lambda z: (0.0, 4 * phi(2, z) - 8 * phi(3, z), 4 * phi(3, z) - phi(2, z)),
    )  # fmt: skip


def _hochbruck_ostermann() -> Exponential:
    """Hochbruck & Ostermann 2005, eq. 5.19: of order 4 on stiff data too."""

    def fifth(z: Tensor) -> tuple[Tensor, ...]:
        half = phi(2, z / 2) / 2 + phi(2, z) / 4 - phi(3, z) - phi(3, z / 2) / 2
        return half, half, phi(2, z / 2) / 4 - half

    return Exponential(
        4, (0.5, 0.5, 1.0, 0.5),
        (
            lambda z: (), lambda z: (phi(2, z / 2),), lambda z: (phi(2, z), phi(2, z)), fifth,
        ),
        lambda z: (0.0, 0.0, 4 * phi(3, z) - phi(2, z), 4 * phi(2, z) - 8 * phi(3, z)),
    )  # fmt: skip


def _cfree4() -> Exponential:
    """Celledoni, Marthinsen & Owren 2003: Cox & Matthews' stages without their commutators."""
    return Exponential(
        4, (0.5, 0.5, 1.0),
        (lambda z: (), lambda z: (phi(1, z / 2) / 2,), lambda z: (0.0, phi(1, z / 2))),
        lambda z: (phi(1, z) / 3, phi(1, z) / 3, phi(1, z / 2) / 3 - phi(1, z) / 6),
    )  # fmt: skip


def _rkmk4t() -> Exponential:
    """Munthe-Kaas 1999: RK4 in the Lie algebra, with its commutators truncated."""
    return Exponential(
        4, (0.5, 0.5, 1.0),
        (
            lambda z: (), lambda z: (phi(1, z / 2) * (1 - z / 4) / 2,),
            lambda z: (0.0, phi(1, z)),
        ),
        lambda z: (phi(1, z) / 3, phi(1, z) / 3, phi(1, z) * (1 - z / 2) / 6),
    )  # fmt: skip


def _stacked(order: int, *groups: tuple[float, ...]) -> Exponential:
    """Luan 2021: a stage integrates the polynomial through the first and the previous group's D.

    The stages of a group do not read each other.
    """

    def stage(c: float, k: int) -> Stage:
        if k == 0:
            return lambda z: ()
        read, older = groups[k - 1], sum(len(group) for group in groups[: k - 1])

        def weights(z: Tensor) -> list[Tensor | float]:
            moments = [
                math.factorial(p + 1) * c ** (p + 2) * phi(p + 2, c * z) for p in range(len(read))
            ]
            solution = fit([double(node) for node in read], moments)
            return [0.0] * older + [w / node for w, node in zip(solution, read, strict=True)]

        return weights

    placed = [(c, k) for k, group in enumerate(groups) for c in group]
    return Exponential(
        order,
        tuple(c for c, _ in placed),
        tuple(stage(c, k) for c, k in placed),
        stage(1.0, len(groups)),
    )


EXPONENTIALS = {
    "dpmpp_2s": dpmpp_2s_tableau(0.5),
    "res_2s": res_2s_tableau(),
    "heun": res_2s_tableau(1.0),
    "res_3s": res_3s_tableau(),
    "dpm_3": dpm_3_tableau(),
    "etdrk4": _etdrk4(),
    "krogstad": _krogstad(),
    "etd3rk": _etd3rk(),
    "res_3s_down": res_3s_tableau(1.0, 0.5),
    "etdrk3": _etdrk3(),
    "etdrk3_b": dpm_3_tableau(4 / 9, 2 / 3),
    "etd2cf3": _etd2cf3(),
    "strehmel_weiner": _strehmel_weiner(),
    "cfree4": _cfree4(),
    "rkmk4t": _rkmk4t(),
    "res_5s": _hochbruck_ostermann(),
    "res_6s": _stacked(4, (1 / 2,), (1 / 2, 1 / 3), (1 / 3, 5 / 6)),
    "res_10s": _stacked(5, (1 / 2,), (1 / 2, 1 / 3), (1 / 2, 1 / 3, 1 / 4), (3 / 10, 3 / 4, 1.0)),
}
