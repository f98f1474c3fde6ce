"""A run that the helm goes on with brings its own sampler, steps and guidance."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

import timonel as tm
from support import tiny
from timonel import Run
from timonel.compat import EulerDiscreteScheduler
from timonel.core.table import Table
from timonel.errors import ArgumentError


def first(output: Any) -> torch.Tensor:
    made = next(iter(output.values()))
    return made if isinstance(made, torch.Tensor) else torch.as_tensor(made)


def stopped(helm: tm.Helm, step: int, **call: Any) -> Run:
    helm(**call, hooks=[tm.stop_when(lambda run: run.step == step)])
    assert helm.run is not None
    assert helm.run.step == step
    return helm.run


def img2img() -> Any:
    return diffusers.StableDiffusionXLImg2ImgPipeline(
        **tiny.sdxl().components, add_watermarker=False
    )


def part(**more: Any) -> dict[str, Any]:
    call = {k: v for k, v in tiny.prompt(tiny.sdxl()).items() if k not in ("height", "width")}
    return {
        **call,
        "image": torch.linspace(0, 1, 3 * 16 * 16).reshape(1, 3, 16, 16),
        "strength": 0.6,
        **more,
    }


def deis(pipe: Any) -> Any:
    pipe.scheduler = diffusers.DEISMultistepScheduler.from_config(pipe.scheduler.config)
    return pipe


CALLS: dict[str, tuple[Any, dict[str, Any]]] = {
    "named": (tiny.sdxl, {"sampler": "dpmpp_2m_sde/exponential", "steps": 7, "guidance": 3.0}),
    "options": (
        tiny.sdxl,
        {"sampler": tm.Sampler("euler_ancestral", options={"eta": 0.4}), "steps": 7},
    ),
    "brownian": (tiny.sdxl, {"sampler": tm.Sampler("dpmpp_sde", noise="brownian"), "steps": 6}),
    "left out": (tiny.sdxl, {"sampler": "uni_pc/normal", "steps": 6}),
    "ends": (
        tiny.sdxl,
        {"sampler": tm.Sampler("euler", "karras", grid_options={"sigma_max": 9.0}), "steps": 6},
    ),
    "levels": (tiny.sdxl, {"sampler": tm.Sampler("euler", sigmas=[9, 5, 3, 1.5, 0.7, 0.2])}),
    "of its scheduler": (lambda: deis(tiny.sdxl()), {"steps": 8}),
    "nearest": (tiny.sdxl, {}),
    "part": (img2img, part(sampler="heun/karras", steps=10)),
    "base": (tiny.sdxl, {"sampler": "restart/karras", "steps": 10, "denoising_end": 0.7}),
    "a flow": (
        lambda: tiny.case("flux", "FluxPipeline (dev)")[0],
        {"sampler": "dpmpp_2m", "steps": 6},
    ),
    "a flow, nothing named": (lambda: tiny.case("flux", "FluxPipeline (dev)")[0], {}),
}


def called(name: str) -> tuple[tm.Helm, dict[str, Any], dict[str, Any]]:
    """A helm; what its pipeline is called with; what says how it is sampled."""
    make, given = CALLS[name]
    ours = {k: v for k, v in given.items() if k in ("sampler", "steps", "guidance")}
    theirs = {k: v for k, v in given.items() if k not in ours}
    helm = tm.Helm(make())
    if name.startswith("a flow"):
        theirs = tiny.case("flux", "FluxPipeline (dev)")[1]
    elif "image" not in theirs:
        theirs = {**tiny.prompt(helm.pipe), **theirs}
    return helm, {**theirs, "seeds": [1]}, ours


@pytest.mark.parametrize("name", CALLS)
def test_a_run_goes_on_with_its_own_sampler_steps_and_guidance(name: str, tmp_path: Path) -> None:
    helm, call, ours = called(name)
    whole = first(helm(**call, **ours))
    run = stopped(helm, 2, **call, **ours)
    run.save(tmp_path / "run")
    label, steps = helm.choice.sampler.label, helm.choice.sampler.steps  # type: ignore[union-attr]
    for one in (
        run.branch(),
        pickle.loads(pickle.dumps(run.branch())),
        Run.load(tmp_path / "run"),
        run,
    ):
        assert torch.equal(first(helm(**call, resume=one)), whole)
        assert helm.choice is not None
        assert (helm.choice.sampler.label, helm.choice.sampler.steps) == (label, steps)
        assert "of the run that goes on" in str(helm.choice)


def test_a_run_with_a_list_of_levels_goes_on_where_the_call_gives_the_list_again() -> None:
    helm = tm.Helm(tiny.sdxl())
    call = {**tiny.prompt(helm.pipe), "seeds": [1], "timesteps": [900, 700, 500, 300, 100]}
    whole = first(helm(**call, sampler="euler"))
    run = stopped(helm, 2, **call, sampler="euler")
    assert torch.equal(first(helm(**call, resume=run)), whole)
    del call["timesteps"]
    with pytest.raises(ArgumentError, match="the run to resume"):
        helm(
            **call,
            resume=stopped(helm, 2, **call, timesteps=[900, 700, 500, 300, 100], sampler="euler"),
        )


def test_a_sampler_or_steps_other_than_those_of_the_run_are_a_tail() -> None:
    helm = tm.Helm(tiny.sdxl())
    call = {**tiny.prompt(helm.pipe), "seeds": [1]}
    run = stopped(helm, 2, **call, sampler="euler/karras", steps=6)
    whole = first(helm(**call, sampler="euler/karras", steps=6))
    for change, steps in (
        ({"sampler": "heun/karras"}, 6),
        ({"sampler": "euler/trailing", "steps": 3}, 5),
        ({"steps": 7}, 9),
        ({"sampler": "euler", "steps": 5}, 7),
    ):
        helm(**call, **change, resume=run.branch())  # type: ignore[arg-type]
        assert helm.run is not None
        assert (helm.run.steps, len(helm.run.journey)) == (steps, 1)
    for fits in ({"steps": 6}, {"sampler": "euler/karras"}, {"sampler": "euler", "steps": 6}):
        assert torch.equal(first(helm(**call, **fits, resume=run.branch())), whole)  # type: ignore[arg-type]
        assert helm.run is not None
        assert helm.run.journey == ()


def test_a_run_of_an_earlier_version_goes_on_though_its_numbers_were_rounded_otherwise() -> None:
    """Its file says no sampler, and its coefficients part from ours in the last digit."""
    helm = tm.Helm(tiny.sdxl())
    call = {**tiny.prompt(helm.pipe), "seeds": [1]}
    whole = first(helm(**call, sampler="dpmpp_2m/karras", steps=6))
    run = stopped(helm, 2, **call, sampler="dpmpp_2m/karras", steps=6)
    data = run.table.to_dict()
    data["x"] = [[value * (1 + 2.0**-52) for value in row] for row in data["x"]]
    run.table, run.sampler = Table.from_dict(data), None
    assert not torch.equal(run.table.x, helm.run.table.detach().x * (1 + 2.0**-40))  # type: ignore[union-attr]
    assert torch.allclose(first(helm(**call, resume=run.branch())), whole, atol=1e-6)
    data["x"] = [[value * 1.001 for value in row] for row in data["x"]]
    run.table = Table.from_dict(data)
    with pytest.raises(ArgumentError, match="their coefficients differ: the options"):
        helm(**call, resume=run)


def test_a_run_of_compat_or_of_another_loop_is_refused_with_where_it_goes_on() -> None:
    helm = tm.Helm(tiny.sdxl())
    call = {**tiny.prompt(helm.pipe), "seeds": [1]}
    theirs = EulerDiscreteScheduler.from_config(helm.pipe.scheduler.config)
    theirs.set_timesteps(6)
    x = torch.ones(1, 4, 8, 8)
    theirs.step(x, theirs.timesteps[0], x)
    with pytest.raises(
        ArgumentError, match=r"timonel.compat goes on there \(for row in run.rows\(\)"
    ):
        helm(**call, resume=theirs.run)
    with pytest.raises(ArgumentError, match="leave both out"):
        helm(**call, sampler="euler/linspace", steps=6, resume=theirs.run)


def test_guidance_is_switched_on_in_flight_only_where_the_call_began_with_it() -> None:
    helm, said = tm.Helm(tiny.sdxl()), list[str]()
    call = {**tiny.prompt(helm.pipe), "seeds": [1], "sampler": "euler/karras", "steps": 4}

    def on(run: Run) -> None:
        if run.step == 2:
            for value in (4.0, tm.cfg([1.0, 1.0, 1.0, 4.0]), tm.cfg(4.0, between=(0.5, 1))):
                with pytest.raises(
                    ArgumentError,
                    match=r"computes no unconditional part in this call.*guidance=1\.5",
                ):
                    run.guidance = value
                said.append(str(run.guidance))

    plain = first(helm(**call, guidance=1.0))
    assert torch.equal(first(helm(**call, guidance=1.0, hooks=[on])), plain)
    assert said == [str(tm.cfg(1.0))] * 3
