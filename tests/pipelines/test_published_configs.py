"""Every scheduler config of a released model is read as diffusers' class reads it, in the three
sockets.
"""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import diffusers
import pytest
import torch

import timonel as tm
from support import tiny
from support.published_schedulers import CONFIGS, LISTED, MU, folders
from timonel import compat
from timonel.core import prediction as predictions
from timonel.core.process import Level, double
from timonel.errors import ArgumentError, SchedulerReplaced
from timonel.pipelines import choice

STEPS = (4, 20, 50)
SOCKETS = ("scheduler", "helm", "compat")
ALL = {
    **CONFIGS,
    **{f"folder {n}": (c.pop("_class_name")[: -len("Scheduler")], c) for n, c in folders().items()},
}
BACKWARDS = [name for name, (_, flags) in ALL.items() if flags.get("invert_sigmas")]
#: by socket ("" is any) and class or model: why the levels are others, all on docs/differences.md
LEARNED = ("learned_range", "fixed_large")
ENDS_AT_TIME_0 = "the last of its calls goes from time 0 to time 0 and moves nothing"
OTHERWISE = {
    ("scheduler", "DPMSolverMultistep"): "its `linspace` and `leading` are the grids of that name",
    ("scheduler", "UniPCMultistep"): "a flow visits u = 1 - i/N",
    ("helm", "UniPCMultistep"): "a flow visits u = 1 - i/N",
    ("", "Cosmos 1"): "the last of its calls goes from sigma_min to sigma_min and moves nothing",
    ("", "Sana"): "a flow visits u = 1 - i/N; the class rounds its times",
    ("", "UnCLIP"): "it rounds the times of linspace",
    ("compat", "AltDiffusion"): ENDS_AT_TIME_0,
    ("compat", "SD x4 upscaler"): ENDS_AT_TIME_0,
    **dict.fromkeys(
        (
            (where, name)
            for name, (_, flags) in ALL.items()
            if flags.get("variance_type") in LEARNED
            for where in ("compat", "helm")
        ),
        "the variance is not that of a table",
    ),
    (
        "helm",
        "LTX-2, ancestral",
    ): "made in code its config has no key that names its process; in a folder its name does",
    ("compat", "PNDM"): "its list names one time twice",
}


class Visited(NamedTuple):
    times: torch.Tensor
    sigmas: torch.Tensor
    calls: int


def made(name: str) -> Any:
    cls, flags = ALL[name]
    with_class = {**flags, "_class_name": f"{cls}Scheduler"}
    return getattr(diffusers, f"{cls}Scheduler").from_config(with_class)


def config(theirs: Any) -> dict[str, Any]:
    return {**theirs.config, "_class_name": type(theirs).__name__}


def asked(name: str, steps: int) -> dict[str, Any]:
    """What a pipeline gives `set_timesteps`."""
    cls, flags = ALL[name]
    mu = {"mu": MU} if flags.get("use_dynamic_shifting") else {}
    if cls == "SCM":
        return {
            "num_inference_steps": steps,
            "max_timesteps": math.pi / 2,
            "intermediate_timesteps": None,
        }
    if cls in LISTED and not flags.get("use_karras_sigmas"):
        return {"sigmas": torch.linspace(1, 1 / steps, steps).tolist(), **mu}
    return {"num_inference_steps": steps, **mu}


def of_diffusers(name: str, steps: int) -> Visited:
    scheduler = made(name)
    scheduler.set_timesteps(**asked(name, steps))
    times = torch.as_tensor(scheduler.timesteps).double()
    times = (
        times[:-1] if float(times[-1]) == 0 and ALL[name][0] in ("DDPMWuerstchen", "SCM") else times
    )
    listed = getattr(scheduler, "sigmas", None)
    if isinstance(listed, torch.Tensor):
        sigmas = listed.double()[: len(times)]
    elif ALL[name][0] == "IPNDM":
        sigmas = torch.tan(torch.where(times == 1, math.nan, times) * (math.pi / 2))
    elif ALL[name][0] == "SCM":
        sigmas = torch.tan(torch.where(times > 1.57, math.nan, times))
    elif ALL[name][0] == "DDPMWuerstchen":
        bar = scheduler._alpha_cumprod(times, "cpu").double()
        sigmas = ((1 - bar) / bar).sqrt()
    else:
        bar = scheduler.alphas_cumprod.double()[times.long()]
        sigmas = ((1 - bar) / bar).sqrt()
    first = [0, *(k for k in range(1, len(times)) if sigmas[k] != sigmas[k - 1])]
    return Visited(times[first], sigmas[first], len(times))


def socket(name: str, where: str, steps: int) -> Any:
    """The scheduler of a socket, with its levels."""
    theirs = made(name)
    if where == "compat":
        ours = getattr(compat, type(theirs).__name__).from_config(config(theirs))
    else:
        # a pipeline whose loop is over shares says so to the helm; Stable Cascade's converts
        # training times
        shares = {"process": "cosine"} if ALL[name][0] == "DDPMWuerstchen" else {}
        written = config(theirs)
        if where == "helm" and not name.startswith(
            "folder"
        ):  # of a scheduler that was made in code
            del written["_class_name"]
        ours = tm.Scheduler.from_config(written, **shares)
    if where == "helm":  # as `Helm` chooses
        model = choice.Model(ours.process, SimpleNamespace(scheduler=theirs))
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", SchedulerReplaced
            )  # by another sampler, on the same levels
            ours.sampler = choice.choose(model, None, steps).sampler
    ours.set_timesteps(**asked(name, steps))
    return ours


def visited(scheduler: Any) -> Visited:
    grid = scheduler.session.listing.grid
    sigmas = grid.sigma if scheduler.process.kind == "flow" else grid.sigma / grid.alpha
    return Visited(grid.time[:-1], sigmas[:-1], scheduler.run.table.nfe)


def otherwise(name: str, where: str) -> bool:
    cls = ALL[name][0]
    return any(pair in OTHERWISE for pair in ((where, name), (where, cls), ("", name), ("", cls)))


CASES = [
    (name, where) for name in ALL for where in SOCKETS
    if (where != "compat" or f"{ALL[name][0]}Scheduler" in compat.__all__)
    and not otherwise(name, where) and name not in BACKWARDS
]  # fmt: skip


@pytest.mark.parametrize(("name", "where"), CASES)
def test_a_released_config_visits_the_levels_of_its_class_at_its_times(
    name: str, where: str
) -> None:
    for steps in STEPS:
        if steps > int(ALL[name][1].get("num_train_timesteps", 1000)) > 1:
            continue
        theirs, ours = of_diffusers(name, steps), visited(socket(name, where, steps))
        assert len(ours.times) == len(theirs.times), steps
        finite = torch.isfinite(theirs.sigmas)
        limit = theirs.sigmas[finite].abs().clamp(min=1e-3)
        apart = (ours.sigmas[finite] - theirs.sigmas[finite]).abs() / limit
        assert float(apart.max()) < 2e-3, (steps, apart)
        assert torch.allclose(
            ours.times, theirs.times, rtol=2e-4, atol=2e-3 * float(theirs.times.abs().max())
        ), steps
        assert ours.calls <= theirs.calls + 1


# -- what the network's output means ---------------------------------------------------------------
def unit(sigma: torch.Tensor, data: float = 1.0) -> torch.Tensor:
    """The factor from x0 + sigma·noise to the coordinates of timonel."""
    return 1 / (sigma**2 + data**2) ** 0.5


STEPPED = (
    "EulerDiscrete",
    "EulerAncestralDiscrete",
    "DDIM",
    "DDPM",
    "CogVideoXDDIM",
)  # whose step gives it


def denoised_of_diffusers(name: str, raw: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """The clean sample that the class makes of a raw output at its second level; `x` in coordinates
    of timonel.
    """
    scheduler = made(name)
    scheduler.set_timesteps(**asked(name, 4))
    cls = ALL[name][0]
    if cls in ("EDMEuler", "EDMDPMSolverMultistep", "CosineDPMSolverMultistep"):
        sigma = scheduler.sigmas[1].double()
        return scheduler.precondition_outputs(
            x / unit(sigma, scheduler.config.sigma_data), raw, sigma
        )
    if cls == "CMStochasticIterative":
        sigma = scheduler.sigmas[1].double()
        skip, out = scheduler.get_scalings(sigma)
        clean = out * raw + skip * x / unit(sigma, scheduler.config.sigma_data)
        return clean.clamp(-1, 1)
    if cls == "IPNDM":
        sigma, alpha = scheduler.betas[1].double(), scheduler.alphas[1].double()
        return (x - sigma * (sigma * x + alpha * raw)) / alpha
    if cls in ("EulerDiscrete", "EulerAncestralDiscrete"):
        x = x / unit(scheduler.sigmas[1].double())
    scheduler.is_scale_input_called = True
    return scheduler.step(raw, scheduler.timesteps[1], x).pred_original_sample


PREDICTS = (
    "EDMEuler",
    "EDMDPMSolverMultistep",
    "CosineDPMSolverMultistep",
    "CMStochasticIterative",
    "IPNDM",
    *STEPPED,
)


@pytest.mark.parametrize(
    ("name", "where"),
    [(name, where) for where in ("scheduler", "helm") for name, (cls, flags) in ALL.items()
     if cls in PREDICTS and not (where == "helm" and flags.get("variance_type") in LEARNED)],
)  # fmt: skip
def test_a_released_config_means_by_its_networks_output_what_its_class_does(
    name: str, where: str
) -> None:
    draw = torch.Generator().manual_seed(0)
    x, raw = (torch.randn(1, 3, 8, 8, generator=draw, dtype=torch.float64) for _ in range(2))
    learned = ALL[name][1].get("variance_type") == "learned_range"
    theirs = denoised_of_diffusers(name, torch.cat([raw, raw], 1) if learned else raw, x)
    ours = socket(name, where, 4)
    level = Level(
        *(
            v[1]
            for v in (
                ours.session.listing.grid.alpha,
                ours.session.listing.grid.sigma,
                ours.session.listing.grid.time,
            )
        )
    )
    clean = predictions.denoised(ours.prediction, raw, x, level)
    clean = clean if ours._shape() is None else ours._shape()(clean)
    assert float((clean - theirs).abs().max()) < 1e-4 * float(theirs.abs().max())


# -- what is not read ------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["ScoreSdeVe", "VQDiffusion", "Amused"])
def test_a_class_of_a_process_that_timonel_has_not_is_refused(name: str) -> None:
    with pytest.raises(ArgumentError, match="names no noise process that timonel has"):
        tm.Scheduler.from_config({"_class_name": f"{name}Scheduler", "num_train_timesteps": 1000})


@pytest.mark.parametrize(
    "name", ["Stable Audio", "consistency training", "Dance Diffusion", "CogVideoX, nothing said"]
)
def test_a_config_that_was_made_in_code_or_saved_is_read_as_its_class(
    name: str, tmp_path: Path
) -> None:
    """No class name in the config; and a scheduler of timonel after it was saved."""
    named = socket(name, "scheduler", 4)
    named.save_pretrained(tmp_path)
    scheduler = named.from_pretrained(tmp_path)
    scheduler.set_timesteps(4)
    assert torch.equal(scheduler.timesteps, named.timesteps)
    if "CogVideoX" in name:
        return  # its keys are all of other classes too, but for the shift
    plain = tm.Scheduler.from_config(
        getattr(diffusers, f"{ALL[name][0]}Scheduler")(**ALL[name][1]).config
    )
    plain.set_timesteps(4)
    assert plain.sampler.name == named.sampler.name
    assert torch.equal(plain.timesteps, named.timesteps)


def test_timesteps_of_a_consistency_model_are_places_in_its_list() -> None:
    """As its pipeline names them: the two steps of the released models."""
    theirs, ours = (
        made("consistency training"),
        tm.Scheduler.from_config(config(made("consistency training"))),
    )
    theirs.set_timesteps(timesteps=[22, 0])
    ours.set_timesteps(timesteps=[22, 0])
    assert ours.sampler.name == "lcm"
    assert torch.allclose(ours.timesteps.double(), theirs.timesteps.double(), rtol=1e-6)
    for wrong in ([0, 22], [40, 0], [1.5, 0]):
        with pytest.raises(
            ArgumentError, match="places in its 40 levels, falling whole numbers from 39 to 0"
        ):
            ours.set_timesteps(timesteps=wrong)


@pytest.mark.parametrize("clock", ["log", "angle", "250 log"])
def test_the_clock_of_an_edm_process_is_its_own_inverse(clock: str) -> None:
    process = tm.EDM(0.01, 300.0, clock=clock)
    sigmas = double([0.01, 0.3, 2.0, 300.0])
    assert torch.allclose(process.at_time(process.at_sigma(sigmas).time).ratio, sigmas, rtol=1e-9)


@pytest.mark.parametrize("train", [40, 201])
def test_a_consistency_model_visits_the_places_of_its_class_for_any_number_of_steps(
    train: int,
) -> None:
    theirs = diffusers.CMStochasticIterativeScheduler(num_train_timesteps=train)
    ours = tm.Scheduler.from_config(theirs.config)
    for steps in (1, 3, 6, 7, 12, 30, 40):
        theirs.set_timesteps(steps)
        ours.set_timesteps(steps)
        assert ours.sampler.name == "lcm"
        assert torch.allclose(ours.timesteps.double(), theirs.timesteps.double(), rtol=1e-6), steps
        assert torch.allclose(ours.sigmas[:-1], theirs.sigmas[:-1], rtol=1e-5), steps


@pytest.mark.filterwarnings("ignore:Should have t:UserWarning")  # of torchsde, about rounding
@pytest.mark.parametrize(
    ("family", "name"), [("audio", "StableAudioPipeline"), ("pixels", "ConsistencyModelPipeline")]
)
def test_the_network_of_a_pipeline_gets_the_times_that_its_own_scheduler_gives(
    family: str, name: str
) -> None:
    """atan(sigma)·2/pi, and 250·log(sigma): never the 0.25·log(sigma) of other classes of EDM."""
    pipe, call = tiny.case(family, name)
    network = pipe.transformer if family == "audio" else pipe.unet
    times, inner = list[float](), network.forward

    def seen(*args: Any, **kwargs: Any) -> Any:
        time = kwargs["timestep"] if "timestep" in kwargs else args[1]
        times.append(float(torch.as_tensor(time).reshape(-1)[0]))
        return inner(*args, **kwargs)

    network.forward = seen
    pipe(**call, num_inference_steps=6)
    theirs = times[:]
    for sampler in (
        None,
        "CMStochasticIterativeScheduler" if family == "pixels" else "dpmpp_2m_sde/exponential",
    ):
        times.clear()
        tm.Helm(pipe)(**call, sampler=sampler, steps=6, seeds=[1])
        assert times == pytest.approx(theirs, rel=1e-5)
    times.clear()
    pipe.scheduler = tm.Scheduler.from_config(pipe.scheduler.config)
    pipe(**call, num_inference_steps=6)
    assert times == pytest.approx(theirs, rel=1e-5)
