"""diffusers' scheduler names on timonel: the same latents as diffusers in a real pipeline, flag by
flag.
"""

from __future__ import annotations

import functools
import inspect
import subprocess
import sys
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

import timonel.compat as compat
from support import tiny
from support.compat_runs import CONFIG, INVERSE, loop, relative, run, trained
from timonel.compat import AysSchedules
from timonel.compat.schedulers import CLASSES

V = {
    "prediction_type": "v_prediction",
    "timestep_spacing": "trailing",
    "rescale_betas_zero_snr": True,
}
SHAPES = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")
MIN = {"final_sigmas_type": "sigma_min"}
SPACED = (
    "EulerDiscrete", "EulerAncestralDiscrete", "LMSDiscrete", "HeunDiscrete", "KDPM2Discrete",
    "KDPM2AncestralDiscrete",
    "DPMSolverMultistep", "DEISMultistep", "UniPCMultistep", "SASolver",
)  # fmt: skip
SHAPED = ("EulerDiscrete", "LMSDiscrete", "HeunDiscrete", "KDPM2Discrete", "KDPM2AncestralDiscrete")
DPM, SINGLE, UNIPC, DEIS = (
    "DPMSolverMultistep",
    "DPMSolverSinglestep",
    "UniPCMultistep",
    "DEISMultistep",
)
# the peer's own: numpy 2 against torch, and algorithm types that it will drop
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.algorithm_types dpmsolver:FutureWarning"),
]
Case = tuple[str, int, dict[str, Any], dict[str, Any]]

CASES: list[Case] = [
    *[(name, 7, {"timestep_spacing": s, "steps_offset": int(s == "leading")}, {})
      for name in SPACED for s in ("linspace", "leading", "trailing")],
    *[(name, 7, {flag: True}, {}) for name in SHAPED for flag in SHAPES],
    *[(name, 7, {"use_karras_sigmas": True}, {}) for name in (DPM, DEIS, UNIPC, SINGLE,
    "SASolver")],
    ("DDIM", 8, {"clip_sample": False}, {}),
    ("DDIM", 8, {"clip_sample": False}, {"eta": 0.7}),
    ("DDIM", 7, {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}, {}),
    ("DDIM", 8, {"clip_sample": False, **V}, {}),
    ("DDPM", 7, {"clip_sample": False, "timestep_spacing": "linspace"}, {}),
    ("DDPM", 7, {"clip_sample": True, "variance_type": "fixed_small_log"}, {}),
    ("PNDM", 8, {"skip_prk_steps": True, "steps_offset": 1}, {}),
    ("PNDM", 10, {}, {}),
    (DPM, 7, {"use_lu_lambdas": True}, {}),
    (DPM, 10, {"solver_order": 3}, {}),
    (DPM, 20, {"solver_order": 3}, {}),
    (DPM, 10, {"solver_order": 3, "solver_type": "heun", "lower_order_final": False}, {}),
    (DPM, 10, {"solver_order": 1}, {}),
    (DPM, 10, {"solver_type": "heun"}, {}),
    (DPM, 10, {"algorithm_type": "sde-dpmsolver++"}, {}),
    (DPM, 10, {"algorithm_type": "sde-dpmsolver++", "solver_order": 1}, {}),
    (DPM, 10, {"algorithm_type": "dpmsolver", "solver_order": 1, **MIN}, {}),
    (DPM, 10, MIN, {}),
    (DPM, 20, MIN, {}),
    (DPM, 20, {**MIN, "euler_at_final": True}, {}),
    (DPM, 10, {**MIN, "solver_order": 3}, {}),
    (DPM, 10, {**MIN, "lower_order_final": False}, {}),
    (DPM, 10, {**MIN, "use_karras_sigmas": True}, {}),
    (DPM, 10, V, {}),
    (DPM, 10, {"lambda_min_clipped": -2.0}, {}),
    (DPM, 10, {"thresholding": True, "sample_max_value": 1.5}, {}),
    (UNIPC, 10, {"solver_order": 3}, {}),
    (UNIPC, 10, V, {}),
    (UNIPC, 10, MIN, {}),
    (UNIPC, 10, {**MIN, "use_karras_sigmas": True}, {}),
    (UNIPC, 10, {**MIN, "lower_order_final": False}, {}),
    (DEIS, 10, {"solver_order": 3}, {}),
    (DEIS, 20, {}, {}),
    (DEIS, 10, {"lower_order_final": False}, {}),
    ("SASolver", 8, {"predictor_order": 1, "corrector_order": 2}, {}),
    ("SASolver", 8, {"lower_order_final": False}, {}),
    (SINGLE, 8, {}, {}),
    (SINGLE, 9, {}, {}),
    (SINGLE, 9, {"solver_type": "heun"}, {}),
    (SINGLE, 8, {"solver_order": 1}, {}),
    (SINGLE, 8, MIN, {}),
    (SINGLE, 8, {**MIN, "lower_order_final": True}, {}),
    (SINGLE, 8, {"algorithm_type": "sde-dpmsolver++", "solver_order": 1}, {}),
    ("EulerDiscrete", 8, V, {}),
    ("EulerDiscrete", 8, {**MIN, "timestep_spacing": "trailing"}, {}),
    ("EulerDiscrete", 8, {"use_karras_sigmas": True, "sigma_min": 0.05, "sigma_max": 10.0}, {}),
    ("EulerDiscrete", 8,
    {"prediction_type": "v_prediction", "timestep_type": "continuous", "use_karras_sigmas": True,
                          "sigma_min": 0.002, "sigma_max": 700.0}, {}),
    ("EulerAncestralDiscrete", 8, V, {}),
    ("HeunDiscrete", 8, {"clip_sample": True}, {}),
    ("LCM", 4, {}, {}),
    ("LCM", 4, {"original_inference_steps": 20}, {}),
    ("TCD", 4, {}, {}),
    ("TCD", 4, {}, {"eta": 0.3}),
]  # fmt: skip


@functools.cache
def pipe(kind: str) -> Any:
    # float64: what differs is then not the network's rounding
    return {"sdxl": tiny.sdxl, "sd": tiny.sd}[kind]().to(torch.float64)


def same(name: str) -> tuple[Any, Any]:
    return getattr(diffusers, name), getattr(compat, name)


@pytest.mark.parametrize(
    "case", CASES, ids=lambda c: f"{c[0]}-{c[1]}-{'-'.join(map(str, c[2].values()))}"
)
def test_a_pipeline_gives_the_latents_that_it_gives_with_diffusers_class(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, steps, flags, more = case
    theirs, ours = (cls(**CONFIG, **flags) for cls in same(f"{name}Scheduler"))
    with_theirs, with_ours = (
        run(pipe("sdxl"), s, steps, monkeypatch, **more) for s in (theirs, ours)
    )
    assert (
        relative(with_ours, with_theirs) < 1e-4
    )  # measured: below 3e-5, diffusers' levels and times are float32


@pytest.mark.parametrize(
    "name", ["DDIM", DPM, "EulerAncestralDiscrete", "HeunDiscrete", "LCM", UNIPC, SINGLE]
)
def test_stable_diffusion_15_too_from_the_config_of_its_own_scheduler(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny.sd().scheduler.config
    more = {"clip_sample": False} if name == "DDIM" else {}
    theirs, ours = (cls.from_config(config, **more) for cls in same(f"{name}Scheduler"))
    with_theirs, with_ours = (run(pipe("sd"), s, 8, monkeypatch) for s in (theirs, ours))
    assert relative(with_ours, with_theirs) < 1e-4


FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
MATCH = "FlowMatchEulerDiscrete"
BARE: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    *[(MATCH, {"shift": 3.0, **flags}, {}) for flags in ({}, *({flag: True} for flag in SHAPES))],
    (MATCH, {"shift": 3.0, "shift_terminal": 0.1}, {}),
    (MATCH, {"shift": 3.0, "stochastic_sampling": True}, {}),
    (MATCH, {"use_dynamic_shifting": True}, {"mu": 0.8}),
    (MATCH, {"use_dynamic_shifting": True, "time_shift_type": "linear"}, {"mu": 0.8}),
    (MATCH, {"shift": 3.0}, {"sigmas": [1.0, 0.8, 0.4, 0.2]}),
    (MATCH, {"use_dynamic_shifting": True}, {"sigmas": list(np.linspace(1, 1 / 5, 5)), "mu": 1.1}),
    ("FlowMatchHeunDiscrete", {"shift": 3.0}, {}),
    *[(name, {**FLOW, "flow_shift": s}, {}) for name in (DPM, SINGLE, UNIPC) for s in (1.0, 3.0)],
    *[(name, {**FLOW, "use_dynamic_shifting": True}, {"mu": 0.9}) for name in (DPM, SINGLE, UNIPC)],
    (UNIPC, {**FLOW, "shift_terminal": 0.05}, {}),
    (UNIPC, {**FLOW, **MIN}, {}),
    (UNIPC, {**FLOW, "flow_shift": 3.0}, {"sigmas": np.array([1.0, 0.8, 0.5, 0.2])}),
    ("EDMEuler", {}, {}),
    ("EDMEuler", {"sigma_schedule": "exponential"}, {}),
    ("EDMEuler", MIN, {}),
    (
        "EDMEuler",
        {"rho": 5.0, "sigma_max": 100.0, "sigma_data": 1.0, "prediction_type": "v_prediction"},
        {},
    ),
    ("EDMDPMSolverMultistep", {}, {}),
    ("EDMDPMSolverMultistep", {"algorithm_type": "sde-dpmsolver++"}, {}),
    ("EDMDPMSolverMultistep", MIN, {}),
    ("EDMDPMSolverMultistep", {"solver_order": 3}, {}),
    ("EDMDPMSolverMultistep", {"solver_order": 3, "solver_type": "heun"}, {}),
]


@pytest.mark.parametrize(("name", "flags", "asked"), BARE)
def test_a_loop_written_by_hand_gives_the_same_on_flow_and_edm(
    name: str, flags: dict[str, Any], asked: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs, ours = (cls(**flags) for cls in same(f"{name}Scheduler"))
    counted = asked if "sigmas" in asked else {"num_inference_steps": 7, **asked}
    (theirs_end, theirs_times), (end, times) = (
        loop(s, monkeypatch, **counted) for s in (theirs, ours)
    )
    assert relative(end, theirs_end) < 1e-5  # measured: below 2e-6
    assert times == pytest.approx(theirs_times[: len(times)], abs=2e-4)
    assert len(theirs_times) - len(times) == (
        name.startswith("EDM") and flags == MIN
    )  # the call that moves nothing


@pytest.mark.parametrize("name", [DPM, DEIS, UNIPC, "SASolver", SINGLE])
@pytest.mark.parametrize("flag", ["use_exponential_sigmas", "use_beta_sigmas"])
def test_times_of_exponential_and_beta_sigmas_are_rounded_where_diffusers_rounds_down(
    name: str, flag: str
) -> None:
    theirs, ours = (cls(**CONFIG, **{flag: True}) for cls in same(f"{name}Scheduler"))
    for scheduler in (theirs, ours):
        scheduler.set_timesteps(9)
    n = len(ours.timesteps)
    assert ours.timesteps.dtype == torch.int64
    assert ((ours.timesteps.plain() - theirs.timesteps[:n]).abs() <= 1).all()
    grid = ours._visited.grid
    assert torch.allclose(grid.sigma / grid.alpha, theirs.sigmas.double()[: len(grid)], rtol=1e-4)


@pytest.mark.parametrize(
    "flags", [{}, {"use_karras_sigmas": True}, {"timestep_spacing": "leading"}]
)
def test_dpmsolver_sde_visits_the_levels_and_inner_times_of_diffusers(
    flags: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        sys.modules[diffusers.DPMSolverSDEScheduler.__module__], "BrownianTreeNoiseSampler", object
    )
    theirs = _sde(flags)
    ours = compat.DPMSolverSDEScheduler(**CONFIG, **flags)
    for scheduler in (theirs, ours):
        scheduler.set_timesteps(7)
    assert ours.timesteps.plain().double().tolist() == pytest.approx(
        theirs.timesteps.tolist(), abs=2e-2
    )
    assert ours.run.table.solver == "dpmpp_sde"
    assert ours.run.noise is not None


def _sde(flags: dict[str, Any]) -> Any:
    """diffusers' class, which asks for a package that only its noise needs."""
    cls = diffusers.DPMSolverSDEScheduler
    real = getattr(sys.modules[cls.__module__], "DPMSolverSDEScheduler", cls)
    return real(**CONFIG, **flags)


@pytest.mark.parametrize("name", CLASSES)
def test_constructors_take_the_arguments_of_diffusers_in_its_order_with_its_defaults(
    name: str,
) -> None:
    theirs, ours = same(name)
    listed = [
        [
            (p.name, p.default)
            for p in inspect.signature(c.__init__).parameters.values()
            if p.kind is not p.VAR_KEYWORD
        ]
        for c in (theirs, ours)
    ]
    if listed[0] != listed[1]:  # another version of diffusers knows less: what it knows is the same
        known = dict(listed[1])
        assert {key: known.get(key, "missing") for key, _ in listed[0]} == dict(listed[0])


#: times and sigmas of three steps, by the process or the class
LISTS = {
    "vp": ([999, 600, 250], [14.0, 3.0, 0.5, 0.0]),
    "flow": ([1000, 500, 200], [1.0, 0.5, 0.2]),
    "edm": ([1.0, 0.1, -0.5], [80.0, 3.0, 0.2]),
    "trig": ([1.5, 1.0, 0.4, 0.0], [14.0, 1.0, 0.2]),
    "CosineDPMSolverMultistepScheduler": ([0.99, 0.6, 0.3], [80.0, 3.0, 0.4]),
    "CMStochasticIterativeScheduler": ([30, 12, 3], [80.0, 3.0, 0.2]),
    "FlowMapEulerDiscreteScheduler": ([1000, 500, 200], [1.0, 0.5, 0.2]),
    "MiniMaxH3Scheduler": ([0.0, 0.4, 0.8], [1.0, 0.5, 0.2]),
    "cosine": ([1.0, 0.6, 0.3, 0.0], [50.0, 3.0, 0.2]),
}


@pytest.mark.parametrize("name", [name for name in CLASSES if name not in INVERSE])
def test_every_class_takes_timesteps_and_sigmas_of_the_users_own(name: str) -> None:
    scheduler = trained(name)
    times, sigmas = LISTS[name if name in LISTS else scheduler.process.kind]
    scheduler.set_timesteps(timesteps=times)
    steps = scheduler.run.table
    begins = [float(steps.time[steps.first_row(k)]) for k in range(steps.steps)]
    if name.startswith("CM"):  # places in a list of 40, of which the lowest is the noisiest
        times = scheduler.process.at_index(torch.tensor([36.0, 27.0, 9.0])).time.tolist()
    assert begins == pytest.approx(
        [times[0], *times[1:][-len(begins) + 1 :]] if len(begins) < 3 else times[:3], rel=1e-6
    )
    scheduler.set_timesteps(sigmas=sigmas)
    assert float(scheduler.sigmas[0]) == pytest.approx(sigmas[0], rel=1e-5)
    names = inspect.signature(scheduler.set_timesteps).parameters
    assert {"timesteps", "sigmas", "mu", "device", "num_inference_steps"} <= set(names)
    assert {"eta", "generator", "return_dict"} <= set(inspect.signature(scheduler.step).parameters)


@pytest.mark.parametrize("key", ["StableDiffusionTimesteps", "StableDiffusionXLTimesteps"])
@pytest.mark.parametrize("name", ["PNDM", "EulerAncestralDiscrete", DEIS, DPM])
def test_align_your_steps_run_in_a_pipeline_with_classes_that_diffusers_refuses(
    name: str, key: str
) -> None:
    sdxl = tiny.sdxl()
    sdxl.scheduler = getattr(compat, f"{name}Scheduler").from_config(sdxl.scheduler.config)
    made = sdxl(**tiny.prompt(sdxl), timesteps=AysSchedules[key]).images
    assert made.isfinite().all()
    assert sdxl.scheduler.run.table.steps == 10
    sdxl(**tiny.prompt(sdxl), sigmas=AysSchedules[key.replace("Timesteps", "Sigmas")])
    assert sdxl.scheduler.sigmas[0] == pytest.approx(14.615, rel=1e-3)


def test_align_your_steps_are_the_published_ones() -> None:
    assert AysSchedules is diffusers.schedulers.AysSchedules
    assert AysSchedules["StableDiffusionXLTimesteps"] == [
        999,
        845,
        730,
        587,
        443,
        310,
        193,
        116,
        53,
        13,
    ]


def test_importing_a_scheduler_imports_neither_models_nor_pipelines() -> None:
    code = (
        "import sys; from timonel.compat import DPMSolverMultistepScheduler; "
        "print([m for m in sys.modules if m.startswith(("
        "'transformers.models', 'diffusers.pipelines.', 'matplotlib', "
        "'diffusers.models.', 'timonel.compat.callbacks'))])"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip()
        == "[]"
    )
