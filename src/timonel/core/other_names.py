"""Names of SD.Next, InvokeAI, reForge and stable-diffusion.cpp: what each is here, or why not.

SD.Next ends the names of flow models with "FlowMatch", InvokeAI those on Karras' levels with "_k";
here any sampler runs on both, so `names` reads these endings.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

#: normalised names: solver, options, and where its noise comes from
RESOLVED: dict[str, tuple[str, Mapping[str, Any], str | None]] = {
    # SD.Next
    "euler edm": ("euler", {}, None),
    "dpm sde": ("dpmpp_sde", {}, "brownian"),
    "dpm++ 1s": ("dpmpp_singlestep", {"order": 1}, None),
    "dpm++ 2m edm": ("dpmpp_2m", {}, None),
    "dpm++ cosine": ("dpmpp_2m_sde", {}, "brownian"),
    "dpm2a": ("dpm2_ancestral", {}, None),
    "dpm2++ 2m": ("dpmpp_2m", {}, None),
    "dpm2++ sde": ("dpmpp_sde", {}, None),
    "dpm2++ 2m sde": ("dpmpp_2m_sde", {}, None),
    "dpm2++ 3m sde": ("dpmpp_3m_sde", {}, None),
    "kdpm2": ("dpm2", {}, None),
    "kdpm2 a": ("dpm2_ancestral", {}, None),
    "er-sde 1": ("er_sde", {"order": 1}, None),
    "er-sde 2m": ("er_sde", {"order": 2}, None),
    "er-sde 3m": ("er_sde", {}, None),
    "ddim parallel": ("ddim", {}, None),
    "ddpm parallel": ("ddpm", {}, None),
    "cogx ddim": ("ddim", {}, None),
    "lmsd": ("lms", {"euler_at_final": False}, None),
    "cmsi": ("lcm", {}, None),
    # reForge
    "res solver": ("res_2s", {}, None),
    # stable-diffusion.cpp
    "dpm++2m sde": ("dpmpp_2m_sde", {}, None),
    "dpm++2m sde bt": ("dpmpp_2m_sde", {}, "brownian"),
}

_TOLERANCE = (
    "it chooses its steps by a tolerance; use 'dpm_adaptive', or its tableau on fixed levels, {!r}"
)
_INVERSE = "it goes from a picture to noise, and samples nothing; use 'dpmpp_2m' to sample"
_DISTILLED = "it belongs to models distilled for it; use {!r}, or the scheduler of the model"
_PICTURE = "it resizes or repeats the picture inside its steps; use {!r}"

#: normalised names that are refused, and why
REFUSED: dict[str, str] = {
    "cab": (
        "its correction (arXiv 2605.16736) does not exist here yet; use 'lms', whose order=2 and 3"
        " are its predictors"
    ),
    "dc solver": "its correction is searched for a model; use 'unipc', or fit one: timonel tune",
    **dict.fromkeys(("dpm++ inverse", "dpm++ 2m inverse", "dpm++ 3m inverse"), _INVERSE),
    "tdd": _DISTILLED.format("tcd"),
    **dict.fromkeys(("perflow", "flash flowmatch"), _DISTILLED.format("euler")),
    "ufogen": _DISTILLED.format("lcm"),
    "vdm": "its noise schedule is learned with the model; use 'ddpm'",
    "bdia ddim": "it steps through two samples at a time, which no table holds; use 'ddim'",
    **dict.fromkeys(("euler dy", "euler smea dy", "euler negative dy"), _PICTURE.format("euler")),
    "kohaku lonyu yog": _PICTURE.format("euler_ancestral"),
    "euler a2": "it averages two noise paths, which no table holds; use 'euler_ancestral'",
    "euler negative": "it has no published formula; use 'euler'",
    "clyb 4m sde momentumized": "it has no published formula; use 'dpmpp_3m_sde'",
    "dpm++2mv2": "it has no published formula; use 'dpmpp_2m'",
    **dict.fromkeys(("bosh3", "ode bosh3"), _TOLERANCE.format("bogacki-shampine")),
    **dict.fromkeys(("dopri5", "ode dopri5"), _TOLERANCE.format("dormand-prince")),
    **dict.fromkeys(("adaptive heun", "ode adaptive heun"), _TOLERANCE.format("heun")),
    **dict.fromkeys(("fehlberg2", "ode fehlberg2"), _TOLERANCE.format("heun")),
}
