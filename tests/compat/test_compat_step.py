"""The drop-in's steps as diffusers' scripts take them: coordinates, lists at construction,
arguments, outputs, ends.
"""

from __future__ import annotations

import copy
import inspect
import itertools
import logging
import pickle
import sys
from typing import Any

import diffusers
import pytest
import torch

import timonel as tm
import timonel.compat as compat
from support import tiny
from support.compat_runs import CONFIG, relative, same_noise, start
from timonel.compat.schedulers import CLASSES

SIGMA = (
    "EulerDiscrete", "EulerAncestralDiscrete", "HeunDiscrete", "KDPM2Discrete",
    "KDPM2AncestralDiscrete", "LMSDiscrete",
)  # fmt: skip
COSINE = {"beta_schedule": "squaredcos_cap_v2"}
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.algorithm_types dpmsolver:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Should have ta>=t0:UserWarning"),  # of diffusers' path
]


def pair(name: str, **flags: Any) -> tuple[Any, Any]:
    return tuple(getattr(library, f"{name}Scheduler")(**flags) for library in (diffusers, compat))  # type: ignore[return-value]


def network(seen: torch.Tensor) -> torch.Tensor:
    return torch.tanh(1.3 * seen) + 0.2 * seen


# -- coordinates -----------------------------------------------------------------------------------
@pytest.mark.parametrize("name", SIGMA)
@pytest.mark.parametrize("flags", [CONFIG, COSINE, {**CONFIG, "timestep_spacing": "leading"}])
def test_samples_of_sigma_classes_are_those_of_diffusers_on_the_way_too(
    name: str, flags: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    draws = [torch.randn(1, 4, 8, 8, dtype=torch.float64) for _ in range(30)]
    seen = []
    for scheduler in pair(name, **flags):
        drawn = iter(draws)
        if isinstance(scheduler, compat.schedulers.Compat):
            scheduler.session.noise = lambda row, like, drawn=drawn: next(drawn)
        elif hasattr(sys.modules[type(scheduler).__module__], "randn_tensor"):
            module = sys.modules[type(scheduler).__module__]
            monkeypatch.setattr(module, "randn_tensor", lambda *_, drawn=drawn, **__: next(drawn))
        scheduler.set_timesteps(8)
        x, states = start() * scheduler.init_noise_sigma, []
        for t in scheduler.timesteps:
            x = scheduler.step(network(scheduler.scale_model_input(x, t)), t, x).prev_sample
            states.append(x)
        seen.append(
            (
                states,
                scheduler.init_noise_sigma,
                scheduler.add_noise(start(), start(), scheduler.timesteps[:1]),
            )
        )
    (theirs, theirs_size, theirs_noised), (ours, size, noised) = seen
    whole = range(1, len(theirs), 2) if len(theirs) > 8 else range(len(theirs))
    broken = not theirs[-1].isfinite().all()  # diffusers' KDPM2Ancestral on cosine betas
    assert ours[-1].isfinite().all()
    if name != "LMSDiscrete" and not broken:  # whose coefficients diffusers integrates numerically
        assert max(relative(ours[k], theirs[k]) for k in whole) < 2e-5
    assert isinstance(size, torch.Tensor)
    assert torch.allclose(size, theirs_size, rtol=2e-5)
    assert relative(noised, theirs_noised) < 2e-5


@pytest.mark.parametrize("name", ["EulerDiscrete", "HeunDiscrete", "KDPM2Discrete", "LMSDiscrete"])
@pytest.mark.parametrize("first", [diffusers, compat])
def test_base_and_refiner_meet_whatever_library_made_the_other_half(name: str, first: Any) -> None:
    base = tiny.sdxl()
    kw = tiny.prompt(base)
    refiner = diffusers.StableDiffusionXLImg2ImgPipeline(**base.components, add_watermarker=False)
    image = {key: value for key, value in kw.items() if key not in ("height", "width")}
    config = base.scheduler.config

    def made(library: Any) -> Any:
        return getattr(library, f"{name}Scheduler").from_config(config)

    def seed() -> torch.Generator:
        return torch.Generator().manual_seed(0)

    base.scheduler = made(first)
    whole = base(**kw, num_inference_steps=10, generator=seed()).images
    base.scheduler, refiner.scheduler = made(first), made(compat)
    half = base(**kw, num_inference_steps=10, denoising_end=0.7, generator=seed()).images
    end = refiner(
        **image, num_inference_steps=10, denoising_start=0.7, image=half, generator=seed()
    ).images
    assert (
        relative(end, whole) < 0.02
    )  # what a method of several predictions loses where it begins anew


def test_a_step_without_scaled_input_says_what_diffusers_says(
    caplog: pytest.LogCaptureFixture,
) -> None:
    scheduler = compat.EulerDiscreteScheduler(**CONFIG)
    scheduler.set_timesteps(3)
    x = start() * scheduler.init_noise_sigma
    with caplog.at_level(logging.WARNING, "timonel"):
        scheduler.step(network(x), scheduler.timesteps[0], x)
    assert "scale_model_input" in caplog.text


# -- without set_timesteps -------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("name", "calls"), [("DDPM", 1000), ("EulerDiscrete", 1000), ("HeunDiscrete", 1999)]
)
def test_a_scheduler_is_stepped_over_all_training_levels_without_set_timesteps(
    name: str, calls: int
) -> None:
    theirs, ours = pair(name, **CONFIG, **({"clip_sample": False} if name == "DDPM" else {}))
    assert ours.session.listing is None  # listed where it is first needed
    assert len(ours.timesteps) == len(theirs.timesteps) == calls
    if name == "DDPM":
        ours.session.noise = lambda row, like: torch.zeros_like(like)
    ends = []
    for scheduler in (theirs, ours):
        x = start() * scheduler.init_noise_sigma
        for t in scheduler.timesteps[:6]:  # whole steps
            out = network(scheduler.scale_model_input(x, t))
            x = scheduler.step(
                out, t, x, **({"generator": None} if name == "DDPM" else {})
            ).prev_sample
        ends.append(x)
    if name != "DDPM":
        assert relative(ends[1], ends[0]) < 1e-5
    assert ends[1].isfinite().all()


# -- arguments and outputs -------------------------------------------------------------------------
@pytest.mark.parametrize("name", CLASSES)
def test_steps_take_by_position_what_diffusers_class_takes(name: str) -> None:
    theirs, ours = (
        list(inspect.signature(getattr(lib, name).step).parameters.values())
        for lib in (diffusers, compat)
    )
    placed = [p.name for p in ours if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert placed == [p.name for p in theirs]


def test_a_generator_comes_in_its_place() -> None:
    ends = []
    for way in ((torch.Generator().manual_seed(3),), ()):
        scheduler = compat.LCMScheduler()
        scheduler.set_timesteps(4)
        named = {} if way else {"generator": torch.Generator().manual_seed(3)}
        ends.append(scheduler.step(start(), scheduler.timesteps[0], start(), *way, **named)[0])
    assert torch.equal(*ends)
    with pytest.raises(TypeError, match="twice"):
        scheduler.step(start(), 1, start(), None, generator=None)
    with pytest.raises(TypeError, match="by position"):
        scheduler.step(start(), 1, start(), None, True, 5)


def test_outputs_are_tuples_and_are_read_as_diffusers_are() -> None:
    scheduler = compat.DDIMScheduler()
    scheduler.set_timesteps(4)
    out = scheduler.step(start(), scheduler.timesteps[0], start())
    sample, clean = out
    assert isinstance(out, tuple)
    assert len(out) == 2
    assert sample is out[0] is out.prev_sample is out["prev_sample"]
    assert clean is out[-1] is out.pred_original_sample
    assert out.to_tuple() == out[:2] == tuple(out)
    assert (
        list(out.keys())
        == [key for key, _ in out.items()]
        == ["prev_sample", "pred_original_sample"]
    )
    assert torch.equal(copy.deepcopy(out)[1], clean)
    with pytest.raises(KeyError):
        out["sample"]


# -- clipping --------------------------------------------------------------------------------------
@pytest.mark.parametrize("eta", [0.0, 0.7])
@pytest.mark.parametrize("consistent", [None, False, True])
@pytest.mark.parametrize(
    "flags", [{"clip_sample": True}, {"thresholding": True, "sample_max_value": 1.5}]
)
def test_a_clipped_prediction_moves_the_clean_part_unless_the_noise_is_to_follow(
    eta: float, consistent: bool | None, flags: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    draws = [torch.randn(1, 4, 8, 8, dtype=torch.float64) for _ in range(20)]
    ends = []
    for scheduler in pair("DDIM", **flags):
        drawn = iter(draws)
        if isinstance(scheduler, compat.schedulers.Compat):
            scheduler.session.noise = lambda row, like, drawn=drawn: next(drawn)
        else:
            module = sys.modules[type(scheduler).__module__]
            monkeypatch.setattr(module, "randn_tensor", lambda *_, drawn=drawn, **__: next(drawn))
        scheduler.set_timesteps(6)
        more = {} if consistent is None else {"use_clipped_model_output": consistent}
        x, clean = start(), []
        for t in scheduler.timesteps:
            out = scheduler.step(network(x) + 0.4 * x, t, x, eta=eta, **more)
            x = out.prev_sample
            clean.append(out["pred_original_sample"])
        ends.append((x, torch.stack(clean)))
    assert relative(ends[1][0], ends[0][0]) < 2e-5
    assert relative(ends[1][1], ends[0][1]) < 2e-5  # what previews show is the clipped prediction


def test_the_noise_follows_a_clipped_prediction_in_all_other_classes() -> None:
    ddpm = compat.DDPMScheduler()
    ddpm.set_timesteps(4)
    with pytest.raises(tm_error(), match="DDIMScheduler"):
        ddpm.step(start(), ddpm.timesteps[0], start(), use_clipped_model_output=True)


def tm_error() -> Any:
    from timonel.errors import ArgumentError

    return ArgumentError


# -- ends ------------------------------------------------------------------------------------------
FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}


@pytest.mark.parametrize("name", ["EDMEuler", "EDMDPMSolverMultistep"])
@pytest.mark.parametrize("data", [0.5, 1.0, 1.7])
@pytest.mark.parametrize("flags", [{}, {"prediction_type": "v_prediction"}])
def test_edm_classes_step_as_diffusers_at_any_data_scale(
    name: str, data: float, flags: dict[str, Any]
) -> None:
    """And `timonel.Scheduler` of their config ends where they do."""
    theirs, ours = pair(name, sigma_data=data, **flags)
    again = tm.Scheduler.from_config(ours.config)
    states: list[list[torch.Tensor]] = []
    for scheduler in (theirs, ours, again):
        scheduler.set_timesteps(8)
        unit = scheduler is again
        size = (
            float(scheduler.run.level.alpha) * float(theirs.init_noise_sigma)
            if unit
            else theirs.init_noise_sigma
        )
        x, path = start() * size, []
        for t in scheduler.timesteps:
            x = scheduler.step(network(scheduler.scale_model_input(x, t)), t, x).prev_sample
            path.append(x / float(again.run.level.alpha) if unit else x)
        states.append(path)
    assert max(relative(a, b) for a, b in zip(states[1], states[0], strict=True)) < 2e-5
    assert max(relative(a, b) for a, b in zip(states[2], states[1], strict=True)) < 1e-9


@pytest.mark.parametrize("at", [1, 2, 3])
@pytest.mark.parametrize(("name", "calls"), [
    ("HeunDiscrete", 2), ("KDPM2Discrete", 2), ("KDPM2AncestralDiscrete", 2), ("DPMSolverSDE", 2),
    ("DPMSolverSinglestep", 2), ("FlowMatchHeunDiscrete", 2), ("EulerDiscrete", 1),
    ("DPMSolverMultistep", 1),
    ("DEISMultistep", 1), ("LMSDiscrete", 1), ("PNDM", 1),
])  # fmt: skip
def test_a_sample_that_was_changed_between_two_calls_of_a_step_is_seen_and_no_more_as_in_diffusers(
    name: str, calls: int, at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = {} if name.startswith("Flow") else {**CONFIG, "beta_schedule": "scaled_linear"}
    states = []
    for scheduler in pair(name, **flags):
        module = sys.modules[type(scheduler).__module__]
        if hasattr(module, "randn_tensor"):
            monkeypatch.setattr(module, "randn_tensor", lambda *_, **__: torch.zeros_like(start()))
        if hasattr(module, "BrownianTreeNoiseSampler"):
            silent = lambda *_, **__: lambda *_: torch.zeros_like(start())  # noqa: E731
            monkeypatch.setattr(module, "BrownianTreeNoiseSampler", silent)
        if isinstance(scheduler, compat.schedulers.Compat):
            scheduler.session.noise = lambda row, like: torch.zeros_like(like)
        scheduler.set_timesteps(6)
        x = start() * (getattr(scheduler, "init_noise_sigma", None) or 1.0)
        for k, t in enumerate(scheduler.timesteps):
            x = x + 0.25 if k == at else x
            seen = (
                scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
            )
            x = scheduler.step(network(seen), t, x).prev_sample
            if k == 3:
                states.append(x)
    assert relative(states[1], states[0]) < 2e-5


def test_in_timonels_own_scheduler_such_a_change_is_not_lost() -> None:
    """A network that says 0: the slope alone moves a step by d·(1 - s/s')/2, the base that moves
    too by d more.
    """
    flags = {**CONFIG, "prediction_type": "sample", "timestep_spacing": "trailing"}
    moved = []
    for made in (
        tm.Scheduler(sampler="heun/trailing", **flags),
        compat.HeunDiscreteScheduler(**flags),
        diffusers.HeunDiscreteScheduler(**flags),
    ):
        results = []
        for shift in (0.0, 0.25):
            made.set_timesteps(6)
            x = start() * made.init_noise_sigma
            for k, t in enumerate(made.timesteps[:2]):
                made.scale_model_input(x, t)
                x = made.step(torch.zeros_like(x), t, x + shift * k).prev_sample
            results.append(x)
        moved.append(float((results[1] - results[0]).mean()) / 0.25)
    s, new = (float(v) for v in made.sigmas[:2])
    slope = (1 - s / new) / 2
    assert moved == pytest.approx([1 + slope, slope, slope], rel=1e-4)


@pytest.mark.parametrize("name", ["DPMSolverMultistep", "DPMSolverSinglestep", "UniPCMultistep"])
@pytest.mark.parametrize("steps", [9, 10])
@pytest.mark.parametrize(
    "flags", [FLOW, {**FLOW, "flow_shift": 3.0}, {**FLOW, **CONFIG}, {"use_karras_sigmas": True},
              {"use_exponential_sigmas": True}],
)  # fmt: skip
def test_lists_that_stop_at_sigma_min_end_where_diffusers_end(
    name: str, steps: int, flags: dict[str, Any]
) -> None:
    ends = []
    for scheduler in pair(name, final_sigmas_type="sigma_min", **flags):
        scheduler.set_timesteps(steps)
        x = start()
        for t in scheduler.timesteps:
            x = scheduler.step(network(x), t, x).prev_sample
        ends.append((x, float(scheduler.sigmas[-1])))
    assert ends[1][1] == pytest.approx(ends[0][1], rel=1e-3)
    assert relative(ends[1][0], ends[0][0]) < 2e-5


@pytest.mark.parametrize("name", [
    "EulerDiscrete", "DPMSolverMultistep", "DPMSolverSinglestep", "UniPCMultistep", "DEISMultistep",
    "HeunDiscrete",
    "LMSDiscrete", "KDPM2Discrete", "SASolver", "EulerAncestralDiscrete",
])  # fmt: skip
def test_cosine_betas_begin_where_they_say(name: str) -> None:
    for scheduler, rescaled in zip(pair(name, **COSINE), (False, True), strict=True):
        scheduler.set_timesteps(10)
        assert float(scheduler.sigmas[0]) == pytest.approx(20291.3, rel=1e-4), rescaled


# -- flags that ask for nothing --------------------------------------------------------------------
def test_a_key_that_a_class_lacks_passes_where_it_asks_for_nothing() -> None:
    config = diffusers.DDIMScheduler().config
    nothing = {
        "clip_sample": False,
        "thresholding": False,
        "use_karras_sigmas": False,
        "steps_offset": 0,
    }
    for name in (
        "DPMSolverMultistep",
        "EulerDiscrete",
        "LMSDiscrete",
        "UniPCMultistep",
        "EulerAncestralDiscrete",
    ):
        cls = getattr(compat, f"{name}Scheduler")
        assert isinstance(cls.from_config(config, **nothing), cls)
        assert isinstance(cls(clip_sample=False), cls)
        for key, value in (("clip_sample", True), ("clip_sample", 0), ("skip_prk_steps", False)):
            with pytest.raises(tm_error(), match=key):
                cls.from_config(config, **{key: value})
    made = compat.DPMSolverMultistepScheduler.from_config(config, clip_sample=False)
    assert (
        compat.DDIMScheduler.from_config(made.config).config.clip_sample is False
    )  # the next class is told


@pytest.mark.parametrize("name", ["UniPCMultistep", "SASolver"])
def test_a_change_between_two_steps_is_not_undone_by_a_corrector(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For one clean sample, 0, a change d at sigma becomes d·sigma'/sigma in a step; diffusers'
    corrector drops it.

    Where noise is added, at eta = 1, it shrinks by e^-h more, h the step in log(alpha / sigma).
    """
    kept = []
    for scheduler in pair(name, **CONFIG):
        ends = []
        for change in (0.0, 0.5):
            same_noise(scheduler, monkeypatch)
            scheduler.set_timesteps(8)
            x, sigmas = (
                start(),
                (1 - scheduler.alphas_cumprod[[int(t) for t in scheduler.timesteps]]).sqrt(),
            )
            for t, sigma in zip(scheduler.timesteps[:6], sigmas, strict=False):
                x = x + change if t == scheduler.timesteps[5] else x
                x = scheduler.step(x / float(sigma), t, x).prev_sample
            ends.append(x)
        kept.append(float((ends[1] - ends[0]).mean()) / 0.5 / float(sigmas[6] / sigmas[5]))
    assert abs(kept[0]) < 1e-5
    ratios = sigmas[5:7] / (1 - sigmas[5:7] ** 2).sqrt()
    assert kept[1] == pytest.approx(
        float(ratios[1] / ratios[0]) if name == "SASolver" else 1.0, abs=1e-4
    )


@pytest.mark.parametrize("how", ["slices", "break", "copy", "saved"])
@pytest.mark.parametrize("name", [
    "DPMSolverMultistep", "DPMSolverSinglestep", "DEISMultistep", "UniPCMultistep", "SASolver",
    "LMSDiscrete",
    "HeunDiscrete", "EulerAncestralDiscrete", "DPMSolverSDE", "EDMDPMSolverMultistep", "DDIM",
    "FlowMatchHeunDiscrete",
])  # fmt: skip
def test_a_loop_in_several_parts_makes_what_one_loop_of_diffusers_makes(
    name: str, how: str
) -> None:
    """Prompts that change on the way, and a loop that goes on after a copy: the predictions before
    it count.
    """
    flags = {} if name.startswith(("Flow", "EDM")) else {**CONFIG, "beta_schedule": "scaled_linear"}
    theirs, ours = pair(name, **flags)
    if isinstance(ours, compat.DPMSolverSDEScheduler):
        ours, theirs = (type(one)(**flags, noise_sampler_seed=3) for one in (ours, theirs))
    made = []
    for scheduler in (theirs, ours):
        scheduler.set_timesteps(10)
        x, g = (
            start() * (getattr(scheduler, "init_noise_sigma", None) or 1.0),
            torch.Generator().manual_seed(0),
        )
        times, order = scheduler.timesteps, scheduler.order
        ends = [0, 3 * order, 6 * order, len(times)] if scheduler is ours else [0, len(times)]
        for a, b in itertools.pairwise(ends):
            if how in ("copy", "saved") and a:
                scheduler = (
                    copy.deepcopy(scheduler)
                    if how == "copy"
                    else pickle.loads(pickle.dumps(scheduler))
                )
            for i, t in enumerate(times[a:] if how == "break" else times[a:b]):
                if a + i == b:
                    break
                seen = (
                    scheduler.scale_model_input(x, t)
                    if hasattr(scheduler, "scale_model_input")
                    else x
                )
                drawn = (
                    {"generator": g}
                    if "generator" in inspect.signature(type(theirs).step).parameters
                    else {}
                )
                x = scheduler.step(network(seen), t, x, **drawn).prev_sample
        made.append(x)
    assert relative(made[1], made[0]) < (2e-3 if "SDE" in name else 2e-5)
