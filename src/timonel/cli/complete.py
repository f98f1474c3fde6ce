"""What the shell offers after Tab.

The names stand here again, so that nothing heavy is imported for a key press; a test holds them
equal to the tables they come from.
"""

from __future__ import annotations

from collections.abc import Iterable

SAMPLERS = (
    "euler", "euler_ancestral", "ddim", "ddpm", "heun", "heunpp2", "edm", "restart", "dpm2",
    "dpm2_ancestral", "rk4", "runge_kutta", "lms", "plms", "pndm", "ipndm", "deis",
    "dpm_multistep", "gradient_estimation", "dpm_solver", "dpm_fast", "dpmpp_2s", "dpmpp_3s",
    "dpm_singlestep", "dpmpp_singlestep", "dpmpp_2s_ancestral", "dpmpp_sde", "res_2s", "res_3s",
    "exponential_rk", "seeds_2", "seeds_3", "dpmpp_2m", "dpmpp_2m_sde", "dpmpp_3m",
    "dpmpp_3m_sde", "res_multistep", "res_multistep_ancestral", "unipc", "sa_solver", "er_sde",
    "lcm", "tcd",
)  # fmt: skip
GRIDS = (
    "leading", "linspace", "trailing", "normal", "simple", "sgm_uniform", "ddim_uniform", "beta",
    "smoothstep", "lcm", "karras", "exponential", "polyexponential", "gaussian", "kl_optimal",
    "laplace", "cosine", "beta_sigma", "linear_quadratic", "bong_tangent", "lam", "vp", "flow",
    "ays", "ays_sd15", "ays_sdxl", "ays_svd", "oss_flux", "oss_wan",
)  # fmt: skip
MODELS = ("emoji", "emoji-flow", "emoji-zsnr", "emoji-lcm", "emoji-video")
DTYPES = ("fp32", "fp16", "bf16")


def samplers(incomplete: str) -> list[str]:
    """Names of samplers, or after "solver/" the same solver with each grid."""
    front, slash, _ = incomplete.partition("/")
    return _starting(incomplete, (f"{front}/{grid}" for grid in GRIDS) if slash else SAMPLERS)


def grids(incomplete: str) -> list[str]:
    """Names of grids."""
    return _starting(incomplete, GRIDS)


def models(incomplete: str) -> list[str]:
    """Names of the shipped models."""
    return _starting(incomplete, MODELS)


def dtypes(incomplete: str) -> list[str]:
    """Names of dtypes."""
    return _starting(incomplete, DTYPES)


def _starting(incomplete: str, names: Iterable[str]) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]
