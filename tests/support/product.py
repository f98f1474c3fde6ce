"""Processes of each kind, and the grids that some of them refuse."""

from __future__ import annotations

from timonel.core.process import EDM, VP, Flow

PLACES = {
    "sd": VP.from_schedule(),
    "zero-snr": VP.from_schedule(rescale_zero_snr=True),
    "edm": EDM(0.002, 80.0),
    "svd": EDM(0.002, 700.0),
    "flow": Flow(3.0),
}
#: grids that some processes refuse, with the reason: a finite sigma_max, published levels outside,
#: sigma_max < 1
REFUSES = {
    "zero-snr": {"karras", "exponential", "polyexponential", "laplace", "cosine", "beta_sigma",
    "linear_quadratic",
                 "bong_tangent", "lam", "vp"},
    "flow": {"ays", "ays_sd15", "ays_sdxl", "ays_svd", "lam", "vp"},
    "sd": {"ays_svd"},
    "edm": {"ays", "ays_svd"},
    "svd": set(),
}  # fmt: skip
FLOW_ONLY = {"oss_flux", "oss_wan"}
