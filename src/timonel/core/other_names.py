"""Names of SD.Next, A1111, Forge and diffusers that are others for solvers, or that are refused.

`names.py` joins them with its own.
"""

from __future__ import annotations

from typing import Any

#: solver, grid, options and noise by the name as `names.key` writes it
OTHERS: dict[str, tuple[str, str | None, dict[str, Any], str | None]] = {
    **{
        name: (solver, None, {}, None)
        for name, solver in {
            # SD.Next
            "euler edm": "euler", "euler flowmatch": "euler", "dpm++": "euler",
            "dpm++ 1s": "dpmpp_singlestep", "dpm++ 2m edm": "dpmpp_2m", "unipc flowmatch": "unipc",
            "dpm2 flowmatch": "dpm2", "dpm2a flowmatch": "dpm2_ancestral",
            "dpm2++ 2m flowmatch": "dpmpp_2m", "dpm2++ 2s flowmatch": "dpmpp_2s",
            "dpm2++ sde flowmatch": "dpmpp_sde", "dpm2++ 2m sde flowmatch": "dpmpp_2m_sde",
            "dpm2++ 3m sde flowmatch": "dpmpp_3m_sde", "heun flowmatch": "heun",
            "lcm flowmatch": "lcm", "lmsd": "lms", "kdpm2": "dpm2", "kdpm2 a": "dpm2_ancestral",
            "cmsi": "lcm",
            # diffusers
            "minimaxh3scheduler": "euler", "scmscheduler": "lcm", "karrasvescheduler": "edm",
        }.items()
    },
    # A1111's and InvokeAI's, behind "k_"
    "dpm 2 a": ("dpm2_ancestral", None, {}, None),
    "dpmpp 2s a": ("dpmpp_2s_ancestral", None, {}, None),
    "dpm++ cosine": ("dpmpp_2m_sde", None, {}, "brownian"),
    "dpm sde": ("dpmpp_sde", None, {}, "brownian"),
}  # fmt: skip
_TOKENS = "it chooses discrete tokens, not a sample with noise; keep diffusers' own class"
_PYRAMID = (
    "its latents change their size between stages, so that one table is not its run; the helm"
    " drives its pipeline, and a stage alone is 'euler'"
)
_UP = "it goes from a picture to noise; timonel.compat has the class, the way back is"
#: names that are no sampler here: why, and what is nearest
REFUSED: dict[str, str] = {
    **dict.fromkeys(
        ("amusedscheduler", "vqdiffusionscheduler", "blockrefinementscheduler",
         "entropyboundscheduler", "discreteddimscheduler"),
        _TOKENS,
    ),
    **dict.fromkeys(("heliosscheduler", "heliosdmdscheduler"), _PYRAMID),
    "ddiminversescheduler": f"{_UP} 'ddim'",
    "dpmsolvermultistepinversescheduler": f"{_UP} 'dpmpp_2m'",
    "dpm++ inverse": f"{_UP} 'euler'",
    "dpm++ 2m inverse": f"{_UP} 'dpmpp_2m'",
    "dpm++ 3m inverse": f"{_UP} 'dpmpp_3m'",
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
    "dpm ad": "it chooses its levels from the sample, so it is no table; use 'dpm_solver'",
    "euler sgm": "it is Euler on the trailing times, in two words here: 'euler/trailing'",
    "dc solver": (
        "it is UniPC with ratios that are fitted to a model's trajectories; use 'unipc', or a"
        " sampler of timonel.tune"
    ),
    "vdm solver": "it is ancestral sampling in continuous time; the nearest is 'ddpm'",
    "tdd": "it is of models of target-driven distillation; the nearest is 'tcd'",
    "perflow": "it is of piecewise rectified flows, window by window; the nearest is 'euler'",
    "ufogen": "it is of UFOGen's models; the nearest is 'lcm'",
    "bdia ddim": (
        "it steps back and forth through the sample before, which no register holds; the nearest"
        " is 'ddim'"
    ),
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
