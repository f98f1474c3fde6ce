"""What the names of ComfyUI and k-diffusion do here, measured: the rows of docs/names.md.

Everything is measured on an exact mixture of Gaussians in 6 dimensions, with Stable Diffusion's
levels ("vp") and with a flow of shift 3. `peer` below is ComfyUI or k-diffusion.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass

import torch

import timonel as tm
from support import comfyui
from support.comfyui_child import exact_start, noise_of
from support.models import drive
from support.parity import mixed
from support.peers import k_diffusion_sampling
from timonel import exact
from timonel.core import names
from timonel.core.process import Level
from timonel.core.run import Run
from timonel.core.table import Table
from timonel.engine.drive import finish
from timonel.engine.network import Denoisers
from timonel.errors import TimonelError

STEPS = (4, 8, 20)
PLACES = (("vp", "karras"), ("vp", "normal"), ("flow", "simple"))
PROCESSES = {"vp": tm.VP.from_schedule(), "flow": tm.Flow(3.0)}
SAME = 2e-4  # relative: ComfyUI's levels are float32, and it sums its DEIS integrals
DATA = exact.Mixture.random(**comfyui.DATA)
LAMBDA = 0.6  # guidance scale of CFG++, to class 0 of the data
GUIDED = {**comfyui.DATA, "classes": 2}
BOTH = Denoisers(exact.Mixture.random(**GUIDED).conditional(0), DATA)
COUNT, REFERENCE = (
    2000,
    4000,
)  # samples of a stochastic sampler, and of the data that they are held against
#: ComfyUI's samplers, v0.3.64 and what came later
SAMPLERS = (
    "euler", "euler_cfg_pp", "euler_ancestral", "euler_ancestral_cfg_pp", "heun", "heunpp2",
    "exp_heun_2_x0",
    "exp_heun_2_x0_sde", "dpm_2", "dpm_2_ancestral", "lms", "dpm_fast", "dpm_adaptive",
    "dpmpp_2s_ancestral",
    "dpmpp_2s_ancestral_cfg_pp", "dpmpp_sde", "dpmpp_sde_gpu", "dpmpp_2m", "dpmpp_2m_cfg_pp",
    "dpmpp_2m_sde",
    "dpmpp_2m_sde_gpu", "dpmpp_2m_sde_heun", "dpmpp_2m_sde_heun_gpu", "dpmpp_3m_sde",
    "dpmpp_3m_sde_gpu", "ddpm", "lcm",
    "ipndm", "ipndm_v", "deis", "res_multistep", "res_multistep_cfg_pp", "res_multistep_ancestral",
    "res_multistep_ancestral_cfg_pp", "gradient_estimation", "gradient_estimation_cfg_pp", "er_sde",
    "seeds_2",
    "seeds_3", "sa_solver", "sa_solver_pece", "ddim", "uni_pc", "uni_pc_bh2",
)  # fmt: skip
LATER = ("exp_heun_2_x0", "exp_heun_2_x0_sde")  # not in the version that the page was made with
SCHEDULERS = (
    "simple", "sgm_uniform", "karras", "exponential", "ddim_uniform", "beta", "normal",
    "linear_quadratic",
    "kl_optimal",
)  # fmt: skip
K_DIFFUSION = (
    "euler", "euler_ancestral", "heun", "dpm_2", "dpm_2_ancestral", "lms", "dpm_fast",
    "dpm_adaptive",
    "dpmpp_2s_ancestral", "dpmpp_sde", "dpmpp_2m", "dpmpp_2m_sde", "dpmpp_3m_sde",
)  # fmt: skip
DROPS = (
    "leaves out the last level but one where a grid ends at the model's cleanest; ComfyUI does on "
    "every grid, which is farther on simple and sgm_uniform: `discard_penultimate=True`"
)
RF = "another amount of fresh noise on a flow (LTX's), as near to within a tenth or so"
LAM = "on a flow ComfyUI takes lam = -log t for log((1 - t) / t)"
ONCE = "order 1 on a long last step before the end (normal)"
OFFSET = "on a flow ComfyUI begins just below pure noise"
#: why a name differs, or what to know of it
NOTES = {
    "euler_ancestral": RF, "dpm_2_ancestral": f"{DROPS}; {RF}", "dpmpp_2s_ancestral": RF,
    "dpm_2": DROPS,
    "uni_pc": f"{DROPS}; ComfyUI ends at sigma 0.001",
    "uni_pc_bh2": f"{DROPS}; ComfyUI ends at sigma 0.001",
    "ddpm": (
        "ComfyUI takes the formula of image models on a flow too: nearer in few steps, and does "
        "not converge"
    ),
    **dict.fromkeys(
        ("dpmpp_2m_cfg_pp", "res_multistep_cfg_pp", "res_multistep_ancestral_cfg_pp",
         "gradient_estimation_cfg_pp"),
        "on a flow ComfyUI takes sigma for sigma/alpha",
    ),
    "dpmpp_2s_ancestral_cfg_pp": (
        "ComfyUI subtracts the unconditional prediction of the other call: `variant=second`; on a "
        "flow it takes sigma for sigma/alpha too"
    ),
    "dpmpp_2m": LAM, "res_multistep": f"{ONCE}; {LAM}",
    "res_multistep_ancestral": f"{LAM}, with noise that does not fit it",
    "dpmpp_sde": OFFSET, "dpmpp_sde_gpu": OFFSET, "dpmpp_2m_sde": OFFSET,
    "dpmpp_2m_sde_gpu": OFFSET,
    "dpmpp_2m_sde_heun": OFFSET, "dpmpp_2m_sde_heun_gpu": OFFSET, "seeds_2": OFFSET,
    "seeds_3": OFFSET,
    "dpmpp_3m_sde": "see docs/differences.md", "dpmpp_3m_sde_gpu": "see docs/differences.md",
    "lcm": "ComfyUI's network has no boundary scaling here; LCM's own has",
    "ipndm_v": (
        "runs ipndm: ComfyUI's weights of 3 and 4 slopes are for even spacing and do not sum to 1, "
        "so it goes astray where levels crowd (beta); lms has the exact weights"
    ),
    "deis": (
        "on image models a polynomial in log sigma, which is nearer on most levels; ComfyUI's: "
        "`variant=tab`"
    ),
    "er_sde": (
        "order 3 here is the whole quadratic; ComfyUI's lacks the term that the nodes are uneven"
    ),
    "sa_solver": (
        "orders 2 and 2 here, 3 and 4 in ComfyUI; the last step but one falls to order 1 here only "
        "where it is long"
    ),
    "dpm_fast": (
        "N is steps here, of up to 3 calls each, on the grid lam without its cleanest level if "
        "none is named; in ComfyUI N is calls, on levels of its own, to sigma_min. Below, both "
        "make N calls at most, here one of them to the clean level"
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One name: what it is here, its relative difference per place, and both distances per place
    and steps.
    """

    name: str
    here: str
    stochastic: bool
    differs: tuple[float | None, ...] = ()
    peer: tuple[tuple[float, ...], ...] = ()
    ours: tuple[tuple[float, ...], ...] = ()
    refused: str = ""


def refused(name: str) -> str:
    """Why a name is no sampler here; empty where it is one."""
    try:
        tm.Sampler(name)
    except TimonelError as error:
        return str(error).partition(": ")[2] or str(error)
    return ""


def here(name: str) -> str:
    """Solver and options that a name stands for."""
    named = names.sampler(name)
    options = ", ".join(f"{k}={v}" for k, v in named.options.items() if k != "discard_penultimate")
    return named.solver + (f" ({options})" if options else "")


# -- both sides ------------------------------------------------------------------------------------
def compiled(name: str, process: str, scheduler: str, steps: int) -> Table:
    return tm.Sampler(name, grid=scheduler, steps=steps).compile(PROCESSES[process])


def as_typed(name: str, process: str, scheduler: str, steps: int) -> Table:
    """What N steps of ComfyUI are here; its N of dpm_fast is calls, on levels that are even in lam
    or log t.
    """
    if name != "dpm_fast":
        return compiled(name, process, scheduler, steps)
    grid, few = "lam" if process == "vp" else scheduler, {"remainder": steps % 3}
    return tm.Sampler(name, grid=grid, steps=steps // 3 + 1, options=few).compile(
        PROCESSES[process]
    )


def job(name: str, process: str, scheduler: str, steps: int) -> comfyui.Job:
    """The same run in ComfyUI, with our noise."""
    table = compiled(name, process, scheduler, steps)
    mix = mixed(table) if table.solver == "dpmpp_sde" else {}
    if table.reads_uncond:
        return comfyui.Job(name, process, scheduler, steps, data=GUIDED, scale=LAMBDA)
    return comfyui.Job(name, process, scheduler, steps, COUNT if table.stochastic else 64, mix=mix)


def result(table: Table, count: int) -> torch.Tensor:
    """Our result with the peer's noise: a draw a row for stages that have their own, else a draw a
    step.
    """
    source = tm.SeededNoise(tuple(range(count)))
    by_row = table.solver in ("dpmpp_sde", "seeds_2", "seeds_3")

    def noise(row: int, like: torch.Tensor) -> torch.Tensor:
        return source(row if by_row else table.step[row], like)

    draws = noise if table.stochastic else None
    if not table.reads_uncond:
        return drive(table, DATA, exact_start(count, DATA), noise=draws)
    run = Run(table, noise=draws, guidance=tm.cfg(LAMBDA))
    run.start(exact_start(count, DATA))
    return finish(run, BOTH)


def on_levels(name: str, process: str, levels: torch.Tensor) -> Table:
    return tm.Sampler(name, sigmas=levels.tolist()).compile(PROCESSES[process])


def apart(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours - theirs).square().mean().sqrt() / theirs.square().mean().sqrt())


# -- distances -------------------------------------------------------------------------------------
@functools.cache
def truth(process: str) -> torch.Tensor:
    """The exact solution of the probability-flow ODE from the shared start."""
    return exact.solve(DATA, exact_start(64, DATA), PROCESSES[process], tolerance=1e-6)


@functools.cache
def _reference() -> tuple[torch.Tensor, float]:
    data = DATA.draw(REFERENCE, 99)
    return data, float(torch.cdist(data, data).mean())


def energy(samples: torch.Tensor) -> float:
    """The energy distance of samples to the data (Székely & Rizzo 2013); 0 only for the same
    distribution.
    """
    data, within = _reference()
    return (
        float(2 * torch.cdist(samples, data).mean() - torch.cdist(samples, samples).mean()) - within
    )


def floor() -> float:
    """The energy distance of exact samples: what no sampler can be told from."""
    return sum(energy(DATA.draw(COUNT, 1000 + i)) for i in range(8)) / 8


def distance(samples: torch.Tensor, process: str, stochastic: bool) -> float:
    if stochastic:
        return energy(samples)
    return float((samples - truth(process)).square().mean().sqrt())


# -- rows ------------------------------------------------------------------------------------------
def comfy_rows() -> tuple[comfyui.Answer, list[Row], list[Row]]:
    """ComfyUI's answer, and the rows of its samplers and schedulers."""
    known = [name for name in SAMPLERS if not refused(name) and name not in LATER]
    keys = [(name, *place, n) for name in known for place in PLACES for n in STEPS]
    lists = [(name, p, n) for name in SCHEDULERS for p in PROCESSES for n in STEPS]
    levels = [comfyui.Job(None, p, name, n) for name, p, n in lists]
    answer = comfyui.run([*(job(*key) for key in keys), *levels])
    ran = dict(zip([*keys, *lists], answer.ran, strict=True))
    return (
        answer,
        [sampler_row(name, ran) for name in SAMPLERS],
        [grid_row(name, ran) for name in SCHEDULERS],
    )


def sampler_row(name: str, ran: dict[tuple[object, ...], comfyui.Ran]) -> Row:
    why = refused(name)
    if why:
        return Row(name, "-", False, refused=why)
    stochastic = compiled(name, "vp", "karras", 8).stochastic
    if name in LATER:
        return Row(name, here(name), stochastic)
    differs: list[float | None] = []
    peer, ours = [], []
    converges = not compiled(name, "vp", "karras", 8).reads_uncond
    for process, scheduler in PLACES:
        worst, there, mine = 0.0, [], []
        for n in STEPS:
            found = ran[name, process, scheduler, n]
            assert found.result is not None, f"{name}: {found.error}"
            count = len(found.result)
            if name != "dpm_fast":
                same = on_levels(name, process, found.levels)
                worst = max(worst, apart(result(same, count), found.result))
            if not converges:
                continue
            there.append(distance(found.result, process, stochastic))
            mine.append(
                distance(result(as_typed(name, process, scheduler, n), count), process, stochastic)
            )
        differs.append(None if name == "dpm_fast" else worst)
        peer.append(tuple(there))
        ours.append(tuple(mine))
    near = (tuple(peer), tuple(ours)) if converges else ((), ())
    return Row(name, here(name), stochastic, tuple(differs), *near)


def grid_row(name: str, ran: dict[tuple[object, ...], comfyui.Ran]) -> Row:
    """Levels of both, and the distance of DPM++ 2M (VP) and Heun (flow) on them."""
    differs: list[float | None] = []
    peer, ours = [], []
    for process in PROCESSES:
        solver = "dpmpp_2m" if process == "vp" else "heun"
        worst, there, mine = 0.0, [], []
        for n in STEPS:
            theirs = ran[name, process, n].levels
            grid = tm.Sampler("euler", grid=name, steps=n).levels(PROCESSES[process])
            mine_list = grid.sigma / grid.alpha if process == "vp" else grid.sigma
            equal = len(theirs) == len(mine_list)
            worst = (
                max(worst, float((mine_list[:-1] / theirs[:-1] - 1).abs().max()))
                if equal
                else float("inf")
            )
            there.append(distance(result(on_levels(solver, process, theirs), 64), process, False))
            mine.append(distance(result(compiled(solver, process, name, n), 64), process, False))
        differs.append(worst)
        peer.append(tuple(there))
        ours.append(tuple(mine))
    return Row(name, names.grid(name), False, tuple(differs), tuple(peer), tuple(ours))


def k_row(name: str) -> Row:
    """A function of k-diffusion on Karras' levels, beside the same name here."""
    why = refused(name)
    if why:
        return Row(name, "-", False, refused=why)
    if name == "dpm_fast":
        return Row(name, here(name), False)
    worst, there, mine = 0.0, [], []
    stochastic = compiled(name, "vp", "karras", 8).stochastic
    count = COUNT if stochastic else 64
    for n in STEPS:
        grid = tm.Sampler("euler", grid="karras", steps=n).levels(PROCESSES["vp"])
        levels = grid.sigma / grid.alpha
        table = on_levels(name, "vp", levels)
        theirs, ours = k_result(name, levels, count, table), result(table, count)
        worst = max(worst, apart(ours, theirs))
        there.append(distance(theirs, "vp", stochastic))
        mine.append(distance(ours, "vp", stochastic))
    return Row(name, here(name), stochastic, (worst,), (tuple(there),), (tuple(mine),))


def k_result(name: str, levels: torch.Tensor, count: int, table: Table) -> torch.Tensor:
    """k-diffusion's result on the shared start, with our noise."""
    sample: Callable[..., torch.Tensor] = getattr(k_diffusion_sampling(), f"sample_{name}")

    def model(x: torch.Tensor, sigma: torch.Tensor, **_: object) -> torch.Tensor:
        alpha = 1 / torch.sqrt(1 + sigma**2)
        return DATA(x * alpha[:, None], Level(alpha, alpha * sigma, sigma))

    start = exact_start(count, DATA)
    mix = mixed(table) if table.solver == "dpmpp_sde" else {}
    noise = {"noise_sampler": noise_of({"mix": mix}, start)}
    takes = "noise_sampler" in inspect.signature(sample).parameters
    first = start * torch.sqrt(1 + levels[0] ** 2)
    return sample(model, first, levels, disable=True, **(noise if takes else {}))
