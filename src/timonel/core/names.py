"""The names that people type for samplers and grids.

A name is "solver" or "solver/grid"; on top of that the names of ComfyUI ("dpmpp_2m_sde_gpu",
"uni_pc_bh2"), of A1111 and Forge ("DPM++ 2M Karras", "Euler a") and diffusers' class names are
understood.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from typing import Any, NamedTuple

from ..errors import ArgumentError, UnknownName
from . import other_names, res4lyf
from .grids import GRIDS
from .solvers import CONTROLLED, SOLVERS


class Named(NamedTuple):
    """What a name stands for."""

    solver: str
    grid: str | None = None
    options: Mapping[str, Any] = {}
    noise: str | None = None


BROWNIAN = "brownian"
# what k-diffusion, A1111 and ComfyUI draw from a Brownian tree
PATHS = ("dpmpp_sde", "dpmpp_2m_sde", "dpmpp_3m_sde")

#: ComfyUI leaves out the last level but one for UniPC and DPM-2, as A1111 does for DPM2. That is
#: nearer where a grid ends at the model's cleanest level (dpm_fast in 7 calls: .07 off for .38),
#: and for UniPC, which takes the long step before with order 1, as near (normal, 8 steps: .072 for
#: .067); farther elsewhere (simple: .13 for .07)
DISCARDS = {"discard_penultimate": "auto"}

#: other names of solvers, normalised by `key`
ALIASES: dict[str, Named] = {
    # A1111, Forge, SD.Next
    "euler a": Named("euler_ancestral"),
    "dpm2 a": Named("dpm2_ancestral", options=DISCARDS),
    "dpm++ 2m": Named("dpmpp_2m"),
    "dpm++ 3m": Named("dpmpp_3m"),
    "dpm++ sde": Named("dpmpp_sde", noise=BROWNIAN),
    "dpm++ 2m sde": Named("dpmpp_2m_sde", noise=BROWNIAN),
    "dpm++ 2m sde heun": Named("dpmpp_2m_sde", options={"variant": "heun"}, noise=BROWNIAN),
    "dpm++ 3m sde": Named("dpmpp_3m_sde", noise=BROWNIAN),
    "dpm++ 2s": Named("dpmpp_2s"),
    "dpm++ 3s": Named("dpmpp_3s"),
    "dpm++ 2s a": Named("dpmpp_2s_ancestral"),
    "heun++": Named("heunpp2"),
    "er-sde": Named("er_sde"),
    "sa-solver": Named("sa_solver"),
    "ddim cfg pp": Named("euler_ancestral_cfg_pp", options={"eta": 0.0}),
    "euler cfg pp": Named("euler_cfg_pp"),
    "euler a cfg pp": Named("euler_ancestral_cfg_pp"),
    "dpm++ 2m cfg pp": Named("dpmpp_2m_cfg_pp"),
    "dpm++ 2s a cfg pp": Named("dpmpp_2s_ancestral_cfg_pp"),
    # ComfyUI
    "dpm fast": Named("dpm_fast", options=DISCARDS),
    "dpm 2": Named("dpm2", options=DISCARDS),
    "dpm 2 ancestral": Named("dpm2_ancestral", options=DISCARDS),
    "dpmpp 2m sde heun": Named("dpmpp_2m_sde", options={"variant": "heun"}),
    "uni pc": Named("unipc", options={"order": 3, "variant": "bh1", **DISCARDS}),
    "uni pc bh2": Named("unipc", options={"order": 3, "variant": "bh2", **DISCARDS}),
    "exp heun 2 x0": Named("exponential_rk", options={"tableau": "heun"}),
    **{
        typed: Named(solver, options=options)
        for typed, (solver, options) in res4lyf.RESOLVED.items()
    },
    **{
        typed: Named(solver, options=options, noise=noise)
        for typed, (solver, options, noise) in other_names.RESOLVED.items()
    },
    # the words of diffusers' algorithm_type
    "dpmsolver": Named("dpm_multistep"),
    "dpmsolver++": Named("dpmpp_2m"),
    "sde-dpmsolver": Named("dpm_multistep", options={"eta": 1.0}),
    "sde-dpmsolver++": Named("dpmpp_2m_sde"),
    # stable-diffusion.cpp
    "dpm++2m": Named("dpmpp_2m"),
    "dpm++2s a": Named("dpmpp_2s_ancestral"),
    "euler ge": Named("gradient_estimation"),
    # short names of InvokeAI and diffusers
    "kdpm 2": Named("dpm2"),
    "kdpm 2 a": Named("dpm2_ancestral"),
    # diffusers
    "ddimscheduler": Named("ddim"),
    "ddimparallelscheduler": Named("ddim"),
    "cogvideoxddimscheduler": Named("ddim"),
    "ddpmscheduler": Named("ddpm"),
    "ddpmparallelscheduler": Named("ddpm"),
    "ddpmwuerstchenscheduler": Named("ddpm"),
    "pndmscheduler": Named("plms"),
    "lmsdiscretescheduler": Named("lms", options={"euler_at_final": False}),
    "eulerdiscretescheduler": Named("euler"),
    "edmeulerscheduler": Named("euler"),
    "flowmatcheulerdiscretescheduler": Named("euler"),
    "eulerancestraldiscretescheduler": Named("euler_ancestral"),
    "ltxeulerancestralrfscheduler": Named("euler_ancestral"),
    "heundiscretescheduler": Named("heun"),
    "flowmatchheundiscretescheduler": Named("heun"),
    "kdpm2discretescheduler": Named("dpm2"),
    "kdpm2ancestraldiscretescheduler": Named("dpm2_ancestral"),
    "dpmsolvermultistepscheduler": Named("dpmpp_2m"),
    "edmdpmsolvermultistepscheduler": Named("dpmpp_2m"),
    "dpmsolversinglestepscheduler": Named("dpmpp_singlestep"),
    "dpmsolversdescheduler": Named("dpmpp_sde", noise=BROWNIAN),
    "cosinedpmsolvermultistepscheduler": Named("dpmpp_2m_sde", noise=BROWNIAN),
    "flowmapeulerdiscretescheduler": Named("euler"),
    "cogvideoxdpmscheduler": Named("dpmpp_2m_sde"),
    "cmstochasticiterativescheduler": Named("lcm"),
    "unclipscheduler": Named("ddpm"),
    "deismultistepscheduler": Named("deis", options={"order": 2, "variant": "logrho"}),
    "unipcmultistepscheduler": Named("unipc"),
    "sasolverscheduler": Named("sa_solver", options={"variant": "simple"}),
    "ipndmscheduler": Named("ipndm", options={"euler_at_final": False}),
    "lcmscheduler": Named("lcm"),
    "flowmatchlcmscheduler": Named("lcm"),
    "tcdscheduler": Named("tcd"),
}
#: other names of grids, normalised by `key`
GRID_ALIASES = {
    "uniform": "linspace", "discrete": "linspace", "align your steps": "ays",
    "lambdas": "lam", "lu": "lam",
    # diffusers' flags
    "use karras sigmas": "karras", "use exponential sigmas": "exponential",
    "use beta sigmas": "beta_sigma",
    "use lu lambdas": "lam",
    **other_names.GRIDS,
}  # fmt: skip
#: what a name may mean that no table can do, or none can yet, and what to use instead
NOT_TABLES = {
    **other_names.REFUSED,
    **res4lyf.REFUSED,
}


def key(name: str) -> str:
    """A name as names are compared: lower case, words separated by one space."""
    return re.sub(r"[\s_]+", " ", name.strip().lower()).replace("cfg++", "cfg pp")


def _unprefixed(typed: str) -> str:
    """A name without the "k_" of A1111's and InvokeAI's API, whose "_ka" is Karras' grid."""
    if not typed.startswith("k "):
        return typed
    bare = typed.removeprefix("k ")
    return bare.removesuffix(" ka") + " karras" if bare.endswith(" ka") else bare


def grid(name: str) -> str:
    """The grid that a name stands for.

    Args:
        name: of a grid, or another word for one.

    Raises:
        UnknownName: with the nearest names.
    """
    if not isinstance(name, str):
        raise ArgumentError(f"a grid is a name such as 'karras', got {name!r}")
    if name in GRIDS:
        return name
    known = {key(g): g for g in GRIDS} | GRID_ALIASES
    if known.get(key(name)) in GRIDS:
        return known[key(name)]
    if key(name) in other_names.REFUSED_GRIDS:
        raise ArgumentError(f"there is no grid {name!r}: {other_names.REFUSED_GRIDS[key(name)]}")
    raise UnknownName("grid", name, GRIDS, GRID_ALIASES)


def is_solver(name: Any) -> bool:
    """Whether it is the plain name of a solver, without a grid or options."""
    return isinstance(name, str) and name in SOLVERS | CONTROLLED and key(name) not in ALIASES


def sampler(name: str) -> Named:
    """What a name stands for: solver, and where the name says so grid, options and noise.

    Args:
        name: of a solver, with or without "/grid", or another word for it.

    Raises:
        UnknownName: with the nearest names.
        ArgumentError: a sampler that cannot be a table.
    """
    if not isinstance(name, str):
        raise ArgumentError(f"a sampler is a name such as 'dpmpp_2m/karras', got {name!r}")
    front, slash, back = _without_folder(name).partition("/")
    if slash:
        named = sampler(front)
        if named.grid is not None and named.grid != grid(back):
            raise ArgumentError(
                f"sampler {name!r} names the grids {named.grid!r} and {back!r}; give one"
            )
        return named._replace(grid=grid(back))
    typed = _unprefixed(key(front))
    named_solver = _solver(typed)
    if named_solver is not None:
        return named_solver
    if typed in NOT_TABLES:
        raise ArgumentError(f"there is no sampler {name!r}: {NOT_TABLES[typed]}")
    if typed in {key(name) for name in (*GRIDS, *GRID_ALIASES)}:
        raise ArgumentError(f"{name!r} is a grid; name a sampler before it, e.g. 'dpmpp_2m/{name}'")
    words = typed.split(" ")
    for cut in range(len(words) - 1, 0, -1):  # "dpm++ 2m karras": a grid at the end
        begins, tail = _solver(" ".join(words[:cut])), "_".join(words[cut:])
        if begins is not None and (tail in GRIDS or tail.replace("_", " ") in GRID_ALIASES):
            return begins._replace(grid=grid(tail))
    raise UnknownName("sampler", name, SOLVERS | CONTROLLED, ALIASES)


def _without_folder(name: str) -> str:
    """The name without one of RES4LYF's folders before it."""
    front, _, back = name.partition("/")
    return back if key(front) in res4lyf.FOLDERS else name


@cache
def _solvers() -> dict[str, Named]:
    """Every solver and alias by its name as `key` writes it."""
    return {key(s): Named(s) for s in SOLVERS | CONTROLLED} | ALIASES


def _solver(typed: str) -> Named | None:
    """The solver called `typed`; ComfyUI's "_gpu" names say that the noise is a Brownian path."""
    known = _solvers()
    if typed in known:
        return known[typed]
    ode = typed.removesuffix(" ode")  # RES4LYF's, whose plain names add noise
    if ode != typed and (ode in res4lyf.RESOLVED or ode in ("res 2s", "res 3s")):
        return known[ode]
    plain = typed.removesuffix(" flowmatch")  # SD.Next's
    if plain != typed and plain in known:
        return known[plain]
    karras = typed.removesuffix(" k")  # InvokeAI's
    if karras != typed and karras in known:
        return known[karras]._replace(grid="karras")
    base = typed.removesuffix(" gpu")
    if base != typed and base in known and known[base].solver in PATHS:
        return known[base]._replace(noise=BROWNIAN)
    return None
