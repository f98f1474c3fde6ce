"""The guidance methods that people call, beside `cfg`: formula, source and evaluations of each.

c and u are the conditional and unconditional raw outputs, w the scale, D_c and D_u the denoised
predictions that they mean. Every method computes both outputs at a guided row, as `cfg` does: two
network evaluations, one where the row is outside the interval, at scale 1, or forecast.

All take `until`, `between`, `unit`, `forecast` and `order` as `cfg` does, and one scale per step.
`rescale` acts on what the method made, as in diffusers' guiders. Two methods do not compose: no
paper says what that would be.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypedDict, Unpack

from ...errors import ArgumentError, plain
from .guidance import Guidance, forecast_order
from .methods import APG, TCFG, CFGpp, CFGZero, Mambo
from .outputs import Method
from .plan import interval

Scale = float | Sequence[float] | None


class Where(TypedDict, total=False):
    """At which network calls guidance acts; see `cfg`."""

    until: float | None
    between: tuple[float, float] | None
    unit: str
    rescale: float
    forecast: int
    order: int | None


def apg(
    scale: Scale = None,
    *,
    eta: float = 0.0,
    norm_threshold: float | None = None,
    momentum: float = 0.0,
    plain_steps: int = 0,
    formula: str = "paper",
    **where: Unpack[Where],
) -> Guidance:
    """Adaptive projected guidance: high scales without oversaturation.

    With d_k = D_c - D_u + momentum·d_(k-1), cut to the length `norm_threshold`, and split into
    d = d∥ + d⊥ along and across D_c, per sample:

        guided = D_c + (w - 1)·(d⊥ + eta·d∥)

    Evaluations: as `cfg`. The momentum is kept over the guided calls of a run, and travels with its
    rewinds, branches and files.

    >>> apg(10.0, norm_threshold=15).method.name
    'apg'

    Args:
        scale: w; one number, or one per step; None keeps the pipeline's own scale.
        eta: share, 0 to 1, of the part along D_c, which saturates; 1 keeps all.
        norm_threshold: the largest length of d; None for any. It grows with the size of the sample:
            the paper has 15 for SDXL's latents, 7.5 for Stable Diffusion 2.1's.
            With a momentum and few steps it is needed, see docs/which-guidance.md.
        momentum: of d, -1 to 1; the paper takes -0.75 to -0.5 with a threshold, for 25 steps and
            more. 0 is none, which is better in few steps.
        plain_steps: the first steps combine as `cfg` does, while the momentum grows; HunyuanImage
            2.1 has 6 (diffusers' AdaptiveProjectedMixGuidance).
        formula: "paper", on denoised predictions; "diffusers": on the raw outputs, and from u, as
            AdaptiveProjectedGuidance does: u + w·(d⊥ + eta·d∥).
        **where: until, between, unit, rescale, forecast, order; see `cfg`.

    Returns:
        The guidance, as calls take it.

    Raises:
        ArgumentError: a value outside its range.

    Source: Sadat et al. 2024, arXiv 2410.02416, section 5 and algorithm 1.
    """
    return _guidance(APG(eta, norm_threshold, momentum, plain_steps, formula), scale, where)


def cfg_zero(
    scale: Scale = None, *, zero_init: int | None = None, **where: Unpack[Where]
) -> Guidance:
    """CFG-Zero*: the unconditional output scaled to fit the conditional one, and a first step of 0.

        guided = s·u + w·(c - s·u),  s = <c, u> / |u|², per sample

    The paper has it for flows, where outputs are velocities; on other predictions s is that of the
    raw outputs, as in diffusers. Evaluations: as `cfg`, in the steps of velocity 0 too.

    Args:
        scale: w; one number, or one per step; None keeps the pipeline's own scale.
        zero_init: how many first steps have the velocity 0 (the paper: the first 4 %), guided ones;
            None is 1 for a flow and 0 for other predictions, where 0 is no velocity.
        **where: until, between, unit, rescale, forecast, order; see `cfg`.

    Returns:
        The guidance, as calls take it.

    Raises:
        ArgumentError: a value outside its range.

    Source: Fan et al. 2025, arXiv 2503.18886, eq. 8-9 and section 4.2.
    """
    return _guidance(CFGZero(zero_init), scale, where)


def zero_init(scale: Scale = None, *, steps: int = 1, **where: Unpack[Where]) -> Guidance:
    """The zero-init of `cfg_zero` alone: the first steps of a flow have the velocity 0.

    Args:
        scale: w of the other steps, which are guided as by `cfg`.
        steps: how many.
        **where: until, between, unit, rescale, forecast, order; see `cfg`.

    Returns:
        The guidance, as calls take it.

    Raises:
        ArgumentError: a value outside its range.

    Source: Fan et al. 2025, arXiv 2503.18886, section 4.2.
    """
    return _guidance(CFGZero(steps, optimized=False), scale, where)


def tcfg(scale: Scale = None, **where: Unpack[Where]) -> Guidance:
    """Tangential damping: only the part of u that c and u have in common.

        guided = u' + w·(c - u'),  u' = <u, v>·v

    with v the first right singular vector of the matrix of rows c and u, per sample. Evaluations:
    as `cfg`.

    Args:
        scale: w; one number, or one per step; None keeps the pipeline's own scale.
        **where: until, between, unit, rescale, forecast, order; see `cfg`.

    Returns:
        The guidance, as calls take it.

    Raises:
        ArgumentError: a value outside its range.

    Source: Kwon et al. 2025, arXiv 2503.18137, algorithm 1.
    """
    return _guidance(TCFG(), scale, where)


def cfg_pp(scale: Scale = 0.6, **where: Unpack[Where]) -> Guidance:
    """CFG++: the clean part of a step is guided, its noise is the unconditional one.

        x' = alpha'·(D_u + λ·(D_c - D_u)) + sigma'·(x - alpha·D_u)/sigma

    Written for DDIM; a sampler is taken by its twin that reads the unconditional prediction too,
    such as "euler_cfg_pp" for "euler". In such a sampler `cfg(λ)` is the same, and ComfyUI's cfg
    is λ. One step is one of `cfg(w)` with λ = w·(1 - e^-h), h the step in log(alpha/sigma): λ = 0.6
    in a step of h = 0.1 pushes as w = 6.3. More steps push more, at the same λ.
    Evaluations: as `cfg`, at λ = 1 both too.

    Args:
        scale: λ, 0 to 1; one number, or one per step. `cfg` takes more than 1, as ComfyUI does.
        **where: until, between, unit, forecast, order; see `cfg`.

    Returns:
        The guidance, as calls take it.

    Raises:
        ArgumentError: a value outside its range, or a rescale, which nobody defines.

    Source: Chung et al. 2024, arXiv 2406.08070, algorithm 2.
    """
    guidance = _guidance(CFGpp(), scale, where)
    scales = guidance.scale if isinstance(guidance.scale, tuple) else (guidance.scale,)
    for one in scales:
        if one is None or one > 1:
            raise ArgumentError(
                f"the scale of cfg_pp is λ, 0 to 1, got {plain(scale)}: the paper matches 0.6 with"
                " a scale of 7.5 in 50 steps; for more than 1 give cfg(…) with 'euler_cfg_pp'"
            )
    return guidance


def mambo(scale: Scale = None, *, damping: float = 8.0, **where: Unpack[Where]) -> Guidance:
    """MAMBO-G: less guidance where it would be large beside the prediction, as in first steps.

        guided = u + w'·(c - u),  w' = 1 + (w - 1)·e^(-damping·|c - u|/|u|), per sample

    Evaluations: as `cfg`.

    Args:
        scale: w; one number, or one per step; None keeps the pipeline's own scale.
        damping: 0 or more; 0 is `cfg`.
        **where: until, between, unit, rescale, forecast, order; see `cfg`.

    Returns:
        The guidance, as calls take it.

    Raises:
        ArgumentError: a value outside its range.

    Source: arXiv 2508.03442; diffusers, MagnitudeAwareGuidance.
    """
    return _guidance(Mambo(damping), scale, where)


def _guidance(method: Method, scale: Any, where: Where) -> Guidance:
    """The guidance of a method."""
    unit, forecast = where.get("unit", "ratio"), where.get("forecast", 1)
    start, stop = interval(where.get("until"), where.get("between"), unit)
    order = forecast_order(forecast, where.get("order"))
    unknown = sorted(set(where) - Where.__annotations__.keys())
    if unknown:
        raise ArgumentError(
            f"{method.name} takes no {unknown[0]!r}, but {', '.join(Where.__annotations__)}"
        )
    rescale = where.get("rescale", 0.0)
    return Guidance(scale, start, stop, unit, rescale, forecast, order, method)
