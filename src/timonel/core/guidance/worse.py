"""The terms of guidance that people call: a worse network to be pushed away from.

c is the conditional raw output, p that of the worse network at the same sample, condition and
level. Each term is one more evaluation of the network, of the conditional part alone, at every step
of its interval; outside it, and where its scale is 0, there is none. Terms add up with each other
and with one of `cfg`, `apg`, …, on a pipeline of the helm: `cfg(5) + pag(3)`. Alone, as
`guidance=pag(3)`, they leave the pipeline's own scale as it is. A rescale acts on the sum.

Layers are numbers of a transformer's blocks, or names of submodules of any network, such as
"mid_block", "down_blocks.1" and "single_transformer_blocks.7". docs/control.md has the networks
that they work on.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from .guidance import Guidance
from .plan import interval
from .terms import Term

Scale = float | Sequence[float]
Layers = int | str | Sequence[int | str]


def skip_layers(
    layers: Layers,
    scale: Scale = 2.8,
    *,
    until: float | None = None,
    between: tuple[float, float] | None = None,
    unit: str = "ratio",
) -> Guidance:
    """Skip-layer guidance: away from the network without some of its blocks.

        guided = cfg + scale·(c - p),  p with the blocks left out

    Evaluations: one more at every step of the interval.

    >>> skip_layers([7, 8, 9], between=(0.01, 0.2)).terms[0].layers
    (7, 8, 9)

    Args:
        layers: to leave out; Stable Diffusion 3.5 medium has 7, 8 and 9.
        scale: one number, or one per step.
        until: the end of its interval, see `cfg`; Stable Diffusion 3.5 has (0.01, 0.2).
        between: its start and end.
        unit: of these.

    Returns:
        The term, to be added to a guidance.

    Raises:
        ArgumentError: a value outside its range.

    Source: Stability-AI/sd3.5, `sd3_impls.py`, SkipLayerCFGDenoiser; Spatiotemporal Skip Guidance,
    arXiv 2411.18664.
    """
    return _term("skip_layers", scale, layers, until, between, unit)


def pag(
    scale: Scale = 3.0,
    *,
    layers: Layers | None = None,
    until: float | None = None,
    between: tuple[float, float] | None = None,
    unit: str = "ratio",
) -> Guidance:
    """Perturbed-attention guidance: away from self-attention that looks nowhere.

        guided = cfg + scale·(c - p),  p with the identity as map of self-attention

    Evaluations: one more at every step of the interval.

    >>> pag(3.0).terms[0].kind
    'pag'

    Args:
        scale: one number, or one per step.
        layers: whose self-attention; None: the middle of a UNet, as in the paper.
        until: the end of its interval, see `cfg`.
        between: its start and end.
        unit: of these.

    Returns:
        The term, to be added to a guidance.

    Raises:
        ArgumentError: a value outside its range.

    Source: Ahn et al. 2024, arXiv 2403.17377. Where text and picture share an attention, all of its
    tokens keep their values, as in diffusers' PerturbedAttentionGuidance.
    """
    return _term("pag", scale, layers, until, between, unit)


def seg(
    scale: Scale = 3.0,
    *,
    layers: Layers | None = None,
    blur: float = math.inf,
    until: float | None = None,
    between: tuple[float, float] | None = None,
    unit: str = "ratio",
) -> Guidance:
    """Smoothed-energy guidance: away from self-attention with blurred queries.

        guided = cfg + scale·(c - p),  p with a Gaussian over the queries of self-attention

    Evaluations: one more at every step of the interval.

    >>> seg(3.0, blur=10).terms[0].blur
    10.0

    Args:
        scale: one number, or one per step.
        layers: whose self-attention; None: the middle of a UNet, as in the paper.
        blur: standard deviation of the Gaussian in tokens; infinite is the mean of all queries.
        until: the end of its interval, see `cfg`.
        between: its start and end.
        unit: of these.

    Returns:
        The term, to be added to a guidance.

    Raises:
        ArgumentError: a value outside its range.

    Source: Hong 2024, arXiv 2408.00760.
    """
    return _term("seg", scale, layers, until, between, unit, blur)


def autoguidance(
    scale: Scale = 2.0,
    *,
    layers: Layers | None = None,
    until: float | None = None,
    between: tuple[float, float] | None = None,
    unit: str = "ratio",
) -> Guidance:
    """Autoguidance: away from a worse version of the network, with the same condition.

        guided = p + scale·(c - p), and with cfg: cfg + (scale - 1)·(c - p)

    Evaluations: one more at every step of the interval. Without classifier-free guidance, as in the
    paper, give `cfg(1.0) + autoguidance(2.0, …)`.

    >>> autoguidance(2.0, layers=[7]).terms[0].scale
    2.0

    Args:
        scale: w of the paper, 1 is none; one number, or one per step.
        layers: blocks that the worse network lacks; None: it is another network, the `weak` of the
            call, smaller or less trained.
        until: the end of its interval, see `cfg`.
        between: its start and end.
        unit: of these.

    Returns:
        The term, to be added to a guidance.

    Raises:
        ArgumentError: a value outside its range.

    Source: Karras et al. 2024, arXiv 2406.02507, eq. 3; without layers, diffusers' AutoGuidance.
    """
    return _term("autoguidance", scale, layers, until, between, unit)


def _term(
    kind: str,
    scale: Scale,
    layers: Layers | None,
    until: float | None,
    between: tuple[float, float] | None,
    unit: str,
    blur: float = math.inf,
) -> Guidance:
    """A guidance that has nothing but a term."""
    start, stop = interval(until, between, unit)
    named = layers if layers is None or not isinstance(layers, (int, str)) else (layers,)
    term = Term(kind, scale, named, start, stop, unit, blur)  # type: ignore[arg-type]
    return Guidance(terms=(term,))
