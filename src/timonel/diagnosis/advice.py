"""Which samplers and grids suit a model, and why; what no grid can do for it is found by trying."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..core import grids
from ..core import prediction as predictions
from ..core.sampler import Sampler
from ..errors import TimonelError
from ..pipelines.family.facts import Facts
from ..pipelines.family.families import FAMILIES
from ..pipelines.family.presets import PRESETS

STEPS = 10
MANY = "order 2 at one call a step; measured nearest at 5 to 12 calls (docs/which-sampler.md)"
SDE = "adds fresh noise, which forgets earlier errors; takes more steps"
CORRECTS = "corrects every prediction; measured nearest at 20 calls (docs/which-sampler.md)"
#: process -> sampler -> why
SAMPLERS: dict[str, dict[str, str]] = {
    "vp": {"dpmpp_2m": MANY, "unipc": CORRECTS, "dpmpp_2m_sde": SDE},
    "edm": {"euler": "what the model was published with", "dpmpp_2m": MANY, "dpmpp_2m_sde": SDE},
    "flow": {"euler": "what flow models are published with", "dpmpp_2m": MANY,
             "unipc": CORRECTS},
}  # fmt: skip
#: process -> grid -> why
GRIDS: dict[str, dict[str, str]] = {
    "vp": {
        "karras": "steps gather at low noise, where details are made; from 8 steps on",
        "trailing": "begins at the noisiest level, as in training; for few steps",
        "lam": "even in log signal-to-noise, where these solvers are derived",
    },
    "edm": {
        "karras": "its own: 5 decades of sigma, in small steps at the low end",
        "exponential": "even in log sigma, which is the network's time",
    },
    "flow": {
        "trailing": "evenly spaced t under the model's shift",
        "flow": "the same with shift, mu, tokens or terminal as options",
    },
}
ZERO = "begins at pure noise, as this model was trained to (arXiv 2305.08891)"
SEARCHED = "levels searched for this model; 10 steps"
OSS = "levels searched for this model; {} steps"
#: family -> its own searched grid
PUBLISHED = {
    "sd1": ("ays_sd15", SEARCHED), "sdxl": ("ays_sdxl", SEARCHED), "svd": ("ays_svd", SEARCHED),
    "svd_xt": ("ays_svd", SEARCHED), "flux_dev": ("oss_flux", OSS.format(10)),
    "wan21_t2v": ("oss_wan", OSS.format(20)),
}  # fmt: skip
DISTILLED = {
    "lcm": "denoises and adds noise again, as the model was distilled to",
    "tcd": (
        "jumps along the trajectory with a share eta of fresh noise, as the model was distilled to"
    ),
    "euler": "the steps that the model was distilled on",
    "ddim": "the steps that the model was distilled on",
    "euler_ancestral": "the steps that the model was published with",
}
LEVELS = "exactly the levels that the model was distilled at"


@dataclass(frozen=True)
class Advice:
    """A sampler or a grid, and why."""

    name: str
    why: str


def samplers(facts: Facts, family: str | None) -> tuple[Advice, ...]:
    """The samplers that suit, best first."""
    if family is not None and FAMILIES[family].distilled:
        names = dict.fromkeys(Sampler(preset.sampler).name for preset in PRESETS[family])
        return tuple(Advice(name, DISTILLED[name]) for name in names)
    known = SAMPLERS.get(facts.process.kind, SAMPLERS["flow"])
    return tuple(Advice(name, why) for name, why in known.items())


def grids_for(facts: Facts, family: str | None) -> tuple[Advice, ...]:
    """The grids that suit and can be visited, best first."""
    process = facts.process
    if family is not None and FAMILIES[family].distilled:
        grid = "lcm" if family in ("lcm", "lcm_lora", "tcd") else "trailing"
        return (Advice(grid, LEVELS),)
    named = dict(GRIDS.get(process.kind, {"trailing": "evenly spaced over the training times"}))
    if process.kind == "vp" and process.sigma_max == math.inf:
        named = {"trailing": ZERO}
    if family in PUBLISHED:
        name, why = PUBLISHED[family]
        named[name] = why
    return tuple(Advice(name, why) for name, why in named.items() if refusal(facts, name) is None)


def refused(facts: Facts) -> dict[str, str]:
    """Every grid that this model cannot visit, with timonel's reason."""
    tried = {name: refusal(facts, name) for name in grids.GRIDS}
    return {name: why for name, why in tried.items() if why is not None}


def refusal(facts: Facts, grid: str) -> str | None:
    """Why `grid` cannot be visited, or None."""
    try:
        predictions.coefficients(facts.prediction, grids.make(grid, facts.process, STEPS)[0])
    except TimonelError as error:
        return str(error)
    return None
