"""Names of SD.Next, A1111, Forge, InvokeAI, reForge, stable-diffusion.cpp and diffusers' classes.

What each is here, or why it is none.

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
    "dpm++": ("euler", {}, None),
    # A1111's and InvokeAI's, behind "k_"
    "dpm 2 a": ("dpm2_ancestral", {}, None),
    "dpmpp 2s a": ("dpmpp_2s_ancestral", {}, None),
    "dpm2++ 2s": ("dpmpp_2s", {}, None),
    # diffusers
    "minimaxh3scheduler": ("euler", {}, None),
    "scmscheduler": ("lcm", {}, None),
    "karrasvescheduler": ("edm", {}, None),
}

_TOLERANCE = (
    "it chooses its steps by a tolerance; use 'dpm_adaptive', or its tableau on fixed levels, {!r}"
)
_INVERSE = "it goes from a picture to noise, and samples nothing; use 'dpmpp_2m' to sample"
_DISTILLED = "it belongs to models distilled for it; use {!r}, or the scheduler of the model"
_PICTURE = "it resizes or repeats the picture inside its steps; use {!r}"

_TOKENS = "it chooses discrete tokens, not a sample with noise; keep diffusers' own class"
_PYRAMID = (
    "its latents change their size between stages, so that one table is not its run; the helm"
    " drives its pipeline, and a stage alone is 'euler'"
)
_UP = (
    "it goes from a picture to noise, as timonel.invert does; timonel.compat has the class, the way"
    " back is"
)
#: normalised names that are refused, and why
REFUSED: dict[str, str] = {
    **dict.fromkeys(
        ("amusedscheduler", "vqdiffusionscheduler", "blockrefinementscheduler",
         "entropyboundscheduler", "discreteddimscheduler"),
        _TOKENS,
    ),
    **dict.fromkeys(("heliosscheduler", "heliosdmdscheduler"), _PYRAMID),
    "ddiminversescheduler": f"{_UP} 'ddim'",
    "dpmsolvermultistepinversescheduler": f"{_UP} 'dpmpp_2m'",
    "repaintscheduler": (
        "it mixes the known part of a picture in after every step, which no table does; use an"
        " inpainting pipeline with 'ddim' (eta 0) or 'ddpm' (eta 1), whose steps it makes"
    ),
    "consistencydecoderscheduler": (
        "it is a part of a decoder, two steps from noise to pixels; the nearest is 'lcm'"
    ),
    "scoresdevescheduler": (
        "the length of its Langevin steps depends on the prediction, so it is no table; the nearest"
        " is 'euler_ancestral'"
    ),
    "scoresdevpscheduler": (
        "it is an Euler-Maruyama step in continuous time, deprecated in diffusers; the nearest is"
        " 'ddpm'"
    ),
    "piflowscheduler": (
        "its network names a whole policy, which is integrated without further calls; the nearest"
        " is 'euler'"
    ),
    "rfd4proteinascheduler": "its steps are of proteins' coordinates; the nearest is 'euler'",
    "euler sgm": "it is Euler on the trailing times, in two words here: 'euler/trailing'",
    "vdm solver": "it is ancestral sampling in continuous time; the nearest is 'ddpm'",
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
}  # fmt: skip
#: other words for grids
GRIDS: dict[str, str] = {"ddim": "ddim_uniform", "turbo": "trailing"}
#: grids that are none here: why, and what is nearest
REFUSED_GRIDS: dict[str, str] = {
    "automatic": "the sampler decides its grid where none is named; leave it out",
    "karras exponential": "a blend of two grids by hand, not below sigma_min; use 'karras'",
    "align your steps gits": (
        "a table by cosine similarity for one model; use 'ays', or timonel.tune for a grid of yours"
    ),
}
