"""Each class of timonel.compat is diffusers' class of its name to whoever asks, and runs nothing of
diffusers.
"""

from __future__ import annotations

import copy
import inspect
import pickle
from pathlib import Path
from types import FunctionType
from typing import Any

import diffusers
import pytest
import torch
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import Tensor

from support.compat_runs import ALONE, Stepped, counted, turns
from timonel import compat
from timonel.compat.kin import defined
from timonel.compat.schedulers import CLASSES
from timonel.errors import ArgumentError

MODEL = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def made(name: str) -> Any:
    """A scheduler of the class, of a model that it fits."""
    cls = CLASSES[name]
    if name == "IPNDMScheduler":
        return cls.from_config({"_class_name": "DDIMScheduler", **MODEL})
    plain = name.startswith(("EDM", "FlowMatch")) or name in ALONE
    return cls() if plain else cls(**MODEL)


def walked(scheduler: Any, steps: int = 4) -> Tensor:
    """The end of a loop as pipelines write it."""
    counted(scheduler, steps)
    step = Stepped(scheduler)
    torch.manual_seed(
        0
    )  # DPM-Solver++ SDE draws its path from torch's own generator, as in diffusers
    x = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(0)) * float(
        scheduler.init_noise_sigma
    )
    drawn = torch.Generator().manual_seed(1)
    for t in turns(scheduler):
        x = step(torch.tanh(scheduler.scale_model_input(x, t)), t, x, generator=drawn)
    return x


@pytest.mark.parametrize("name", CLASSES)
def test_a_class_is_diffusers_class_of_its_name_and_no_other(name: str) -> None:
    theirs = getattr(diffusers, name)
    assert isinstance(made(name), theirs)
    line = [
        part
        for part in CLASSES[name].__mro__
        if part.__module__.startswith("diffusers.schedulers.scheduling_")
    ]
    assert line == [theirs, SchedulerMixin]


@pytest.mark.parametrize("name", CLASSES)
def test_no_member_of_diffusers_class_is_reached(name: str) -> None:
    cls, theirs = CLASSES[name], getattr(diffusers, name)
    for word in defined(theirs):
        owner = next(part for part in cls.__mro__ if word in vars(part))
        assert owner is not theirs, word


@pytest.mark.parametrize("name", CLASSES)
def test_a_run_saved_loaded_and_copied_calls_nothing_of_diffusers_class(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    theirs = getattr(diffusers, name)

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError(f"a member of diffusers' {name} was called")

    for word, value in list(vars(theirs).items()):
        if isinstance(value, FunctionType):
            monkeypatch.setattr(theirs, word, refuse)
        elif isinstance(value, property):
            monkeypatch.setattr(theirs, word, property(refuse))
    scheduler = made(name)
    end = walked(scheduler)
    scheduler.save_pretrained(tmp_path)
    loaded = type(scheduler).from_pretrained(tmp_path)
    copies = [
        loaded,
        pickle.loads(pickle.dumps(scheduler)),
        copy.deepcopy(scheduler),
        copy.copy(scheduler),
    ]
    assert type(loaded) is type(scheduler)
    for one in copies:
        assert torch.equal(walked(one), end)
    assert type(scheduler) in scheduler.compatibles


def test_a_private_member_says_that_diffusers_class_is_needed() -> None:
    with pytest.raises(AttributeError, match=r"_init_step_index.*needs diffusers' own class"):
        compat.DPMSolverMultistepScheduler()._init_step_index(0)


# -- what pipelines give to the class of their own scheduler ---------------------------------------
def both(name: str, **config: Any) -> list[Any]:
    """diffusers' scheduler and timonel's of the same configuration."""
    theirs = getattr(diffusers, name)(**config)
    return [theirs, CLASSES[name].from_config(theirs.config)]


class Same:
    """One list of noise for two schedulers, drawn in turn."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, cls: type) -> None:
        self.drawn = torch.Generator()
        monkeypatch.setattr(
            inspect.getmodule(cls), "randn_tensor", lambda shape, **_: self(torch.empty(shape))
        )

    def __call__(self, like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=self.drawn)

    def seeds(self, scheduler: Any) -> None:
        self.drawn.manual_seed(7)
        if hasattr(scheduler, "_seed"):
            scheduler._seed = lambda generator, batch: setattr(
                scheduler.run, "noise", lambda row, like: self(like)
            )


@pytest.mark.parametrize("kind", ["learned", "learned_range"])
def test_learned_variance_is_diffusers(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    same = Same(monkeypatch, diffusers.DDPMScheduler)
    ends = []
    for scheduler in both(
        "DDPMScheduler", variance_type=kind, beta_schedule="squaredcos_cap_v2", thresholding=True
    ):
        same.seeds(scheduler)
        scheduler.set_timesteps(8)
        x = torch.randn(1, 3, 4, 4, generator=torch.Generator().manual_seed(0))
        for t in scheduler.timesteps:
            learned = torch.sin(3 * x) if kind == "learned_range" else 0.01 + 0.01 * x**2
            x = scheduler.step(torch.cat([torch.tanh(x), learned], 1), t, x, return_dict=False)[0]
        ends.append(x)
    assert float((ends[0] - ends[1]).abs().max()) < 1e-5


def test_learned_variance_needs_its_channels() -> None:
    scheduler = compat.DDPMScheduler(variance_type="learned_range")
    scheduler.set_timesteps(4)
    x = torch.randn(1, 3, 4, 4)
    with pytest.raises(ArgumentError, match="6 channels; this output has 3"):
        scheduler.step(x, scheduler.timesteps[0], x)


def test_other_classes_leave_a_learned_variance_unread() -> None:
    ends = []
    for scheduler in both("DPMSolverMultistepScheduler", variance_type="learned_range"):
        scheduler.set_timesteps(5)
        x = torch.randn(1, 3, 4, 4, generator=torch.Generator().manual_seed(0))
        for t in scheduler.timesteps:
            x = scheduler.step(torch.cat([torch.tanh(x), x], 1), t, x, return_dict=False)[0]
        ends.append(x)
    assert torch.allclose(*ends, rtol=1e-5, atol=1e-5)


LISTS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"shift": 3.0}, {"timesteps": [1000.0, 600.0, 200.0], "sigmas": [1.0, 0.6, 0.2]}),  # CogView 4
    (
        {"use_dynamic_shifting": True},
        {"timesteps": [999.0, 500.0, 1.0], "sigmas": [0.9, 0.5, 0.1], "mu": 0.7},
    ),
    ({"invert_sigmas": True}, {"sigmas": [1.0, 0.9, 0.4]}),  # Mochi
    ({"invert_sigmas": True, "shift": 2.0}, {"num_inference_steps": 5}),
    ({"use_beta_sigmas": True, "shift": 2.0}, {"sigmas": [1.0, 0.75, 0.5, 0.25]}),  # Flux' pipeline
    ({"use_karras_sigmas": True}, {"num_inference_steps": 3, "sigmas": [1.0, 0.6, 0.2]}),
]


@pytest.mark.parametrize(("config", "asked"), LISTS)
def test_lists_of_flow_pipelines_are_diffusers(
    config: dict[str, Any], asked: dict[str, Any]
) -> None:
    ends, times = [], []
    for scheduler in both("FlowMatchEulerDiscreteScheduler", **config):
        scheduler.set_timesteps(**asked)
        x = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(0))
        for t in scheduler.timesteps:
            x = scheduler.step(torch.tanh(x) + t / 2000, t, x, return_dict=False)[0]
        ends.append(x)
        times.append(scheduler.timesteps)
    assert torch.allclose(times[0], torch.as_tensor(times[1].tolist()), atol=1e-3)
    assert float((ends[0] - ends[1]).abs().max()) < 1e-5


def test_two_lists_of_unlike_length_are_refused() -> None:
    with pytest.raises(ArgumentError, match="3 timesteps and 2 sigmas"):
        compat.FlowMatchEulerDiscreteScheduler().set_timesteps(
            timesteps=[900.0, 500.0, 100.0], sigmas=[0.9, 0.1]
        )
    with pytest.raises(ArgumentError, match="not a flow"):
        compat.EulerDiscreteScheduler().set_timesteps(timesteps=[900.0], sigmas=[9.0])


def test_a_number_of_steps_beside_a_list_of_that_length_agrees_with_it() -> None:
    alone, both_, times = (
        compat.UniPCMultistepScheduler(),
        compat.UniPCMultistepScheduler(),
        [900, 500, 100],
    )
    alone.set_timesteps(timesteps=times)
    both_.set_timesteps(3, timesteps=times)
    assert both_.timesteps.tolist() == alone.timesteps.tolist() == times
    with pytest.raises(ArgumentError, match="num_inference_steps=4"):
        both_.set_timesteps(4, timesteps=times)


def test_levels_of_tokens_are_diffusers() -> None:
    ends = []
    for scheduler in both("FlowMatchEulerDiscreteScheduler"):
        scheduler.set_timesteps(4)
        x = torch.randn(1, 6, 3, generator=torch.Generator().manual_seed(0))
        held = torch.tensor([[0.0, 0.0, 1000.0, 1000.0, 1000.0, 1000.0]])
        for t in scheduler.timesteps:
            tokens = torch.minimum(held, t)
            x = scheduler.step(-torch.tanh(x), t, x, per_token_timesteps=tokens, return_dict=False)[
                0
            ]
        ends.append(x)
    assert float((ends[0] - ends[1]).abs().max()) < 1e-5


def test_variance_that_editing_pipelines_read_is_diffusers() -> None:
    theirs, ours = both("DDIMScheduler", **MODEL)
    for pair in ((999, 799), (200, 0), (100, -100)):
        assert float(ours._get_variance(*pair)) == pytest.approx(
            float(theirs._get_variance(*pair)), rel=1e-5, abs=1e-7
        )


def test_levels_that_explode_under_a_flows_name_stay_through_a_file(tmp_path: Path) -> None:
    """What Cosmos 2 registers in its constructor, again after it was saved and loaded."""
    registered = {
        "sigma_max": 80.0,
        "sigma_min": 0.002,
        "sigma_data": 1.0,
        "final_sigmas_type": "sigma_min",
    }
    theirs = diffusers.FlowMatchEulerDiscreteScheduler(use_karras_sigmas=True)
    theirs.register_to_config(**registered)
    theirs.set_timesteps(sigmas=torch.linspace(0, 1, 6))
    first = compat.FlowMatchEulerDiscreteScheduler(use_karras_sigmas=True)
    first.register_to_config(**registered)
    first.save_pretrained(tmp_path)
    loaded = compat.FlowMatchEulerDiscreteScheduler.from_pretrained(tmp_path)
    loaded.register_to_config(**registered)
    for ours in (first, loaded, compat.FlowMatchEulerDiscreteScheduler.from_config(theirs.config)):
        ours.set_timesteps(sigmas=torch.linspace(0, 1, 6))
        assert torch.allclose(ours.sigmas, theirs.sigmas[:6], rtol=1e-5)
