"""A pipeline's run that goes on with another sampler, live and in another call."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

import timonel as tm
from support import tiny
from timonel import Run
from timonel.compat import EulerDiscreteScheduler
from timonel.errors import ArgumentError, RunError, TimonelError
from timonel.make.recipe import Recipe
from timonel.pipelines.inspect_source import counts
from timonel.pipelines.recipe.tails import TailData, Tails


def first(output: Any) -> torch.Tensor:
    made = next(iter(output.values()))
    while isinstance(made, (list, tuple)):
        made = made[0]
    return made if isinstance(made, torch.Tensor) else torch.as_tensor(made)


def img2img() -> tuple[Any, dict[str, Any]]:
    pipe = diffusers.StableDiffusionXLImg2ImgPipeline(
        **tiny.sdxl().components, add_watermarker=False
    )
    call = {k: v for k, v in tiny.prompt(tiny.sdxl()).items() if k not in ("height", "width")}
    picture = torch.linspace(0, 1, 3 * 16 * 16).reshape(1, 3, 16, 16)
    return pipe, {**call, "image": picture, "strength": 0.8}


def sdxl() -> tuple[Any, dict[str, Any]]:
    pipe = tiny.sdxl()
    return pipe, tiny.prompt(pipe)


PIPES: dict[str, Any] = {
    "sdxl": sdxl,
    "a part": img2img,
    "flux": lambda: tiny.case("flux", "FluxPipeline (dev)"),
    "sd3": lambda: tiny.case("sd3", "StableDiffusion3Pipeline"),
    "wan": lambda: tiny.case("video", "WanPipeline (2.1)"),
}
TAILS: list[dict[str, Any]] = [
    {"sampler": "dpmpp_2m", "steps": 2},
    {"sampler": "heun", "steps": 5},
    {"sampler": "euler_ancestral"},
]


def ordered(run: Run, tail: dict[str, Any], at: int = 3) -> None:
    if run.step == at and not run.journey:
        run.tail(**tail)


@pytest.mark.parametrize("tail", TAILS, ids=lambda tail: tail["sampler"])
@pytest.mark.parametrize("name", PIPES)
def test_live_in_a_hook_and_as_a_resumed_branch_it_is_one_tail(
    name: str, tail: dict[str, Any], tmp_path: Path
) -> None:
    pipe, call = PIPES[name]()
    assert counts(pipe) == (name in ("sd3", "wan"))  # which are called again
    helm, call = tm.Helm(pipe), {**call, "seeds": [1]}
    begun = {"sampler": "euler", "steps": 7}
    live = first(helm(**call, **begun, hooks=[lambda run: ordered(run, tail)]))
    run = helm.run
    assert run is not None
    assert (run.status, run.row) == ("done", run.table.nfe)
    assert run.journey[0].step == 3
    assert run.table.solver == tail["sampler"]
    stops = tm.stop_when(lambda run: run.step == 3)
    helm(**call, **begun, hooks=[stops])
    assert helm.run is not None
    helm.run.save(tmp_path / "run")
    assert torch.equal(first(helm(**call, resume=helm.run.branch(), **tail)), live)
    assert torch.equal(first(helm(**call, resume=Run.load(tmp_path / "run"), **tail)), live)
    inside = tm.stop_when(lambda run: run.step == 4)
    helm(**call, **begun, hooks=[lambda run: ordered(run, tail), inside])
    helm.run.save(tmp_path / "run")
    loaded = Run.load(tmp_path / "run")
    assert loaded.table.legs
    assert torch.equal(first(helm(**call, resume=loaded)), live)


def test_a_rewind_across_the_change_makes_it_again_and_a_handle_takes_tails() -> None:
    pipe, call = sdxl()
    helm, call = tm.Helm(pipe), {**call, "seeds": [1], "sampler": "euler", "steps": 7}
    live = first(helm(**call, hooks=[lambda run: ordered(run, TAILS[0])]))
    back: list[int] = []

    def rewinds(run: Run) -> None:
        if run.step == 4 and not back:
            back.append(run.steps)
            run.rewind(1)

    again = first(helm(**call, hooks=[lambda run: ordered(run, TAILS[0]), rewinds]))
    assert torch.equal(again, live)
    assert back == [5]
    holds: list[int] = []

    def waits(run: Run) -> None:
        if run.step == 3 and not holds:
            holds.append(1)
            run.pause()

    handle = helm.start(**call, hooks=[waits])
    while not (handle.status == "paused" and handle.step == 3):
        handle.wait(0.01)
    done = handle.tail("dpmpp_2m", steps=2)
    assert str(done).startswith("from step 3 on dpmpp_2m")
    handle.resume()
    assert torch.equal(first(handle.result()), live)
    with pytest.raises(RunError, match="the call has ended"):
        handle.tail("heun")


def test_the_progress_bar_of_the_pipeline_has_the_steps_of_the_tail() -> None:
    pipe, call = sdxl()
    helm, totals = tm.Helm(pipe), list[Any]()

    def looks(run: Run) -> None:
        ordered(run, TAILS[0])
        totals.append(helm.session.bar.total)

    helm(**call, seeds=[1], sampler="euler", steps=7, hooks=[looks])
    assert (totals[0], totals[-1]) == (7, 5)
    assert "progress_bar" not in vars(pipe)


def test_what_a_pipeline_cannot_follow_is_refused_and_its_call_goes_on() -> None:
    pipe, call = sdxl()
    pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    plain = first(pipe(**call, num_inference_steps=4, generator=torch.Generator().manual_seed(1)))
    refused: list[str] = []

    def callback(pipe: Any, step: int, time: Any, values: Any) -> Any:
        run = pipe.scheduler.run
        if run.row < run.table.nfe:
            with pytest.raises(TimonelError) as error:
                run.tail("dpmpp_2m")
            refused.append(str(error.value))
        return values

    again = pipe(
        **call, num_inference_steps=4, generator=torch.Generator().manual_seed(1),
        callback_on_step_end=callback,
    )  # fmt: skip
    assert torch.equal(first(again), plain)
    assert len(refused) == 3
    assert "timonel.Helm(pipe)" in refused[0]


def test_the_drop_in_scheduler_goes_on_too() -> None:
    pipe, call = sdxl()
    pipe.scheduler = tm.Scheduler.from_config(pipe.scheduler.config, sampler="euler/karras")

    def callback(pipe: Any, step: int, time: Any, values: Any) -> Any:
        ordered(pipe.scheduler.run, TAILS[0])
        return values

    pipe(**call, num_inference_steps=7, callback_on_step_end=callback)
    assert pipe.scheduler.run.table.solver == "dpmpp_2m"
    assert pipe.scheduler.run.steps == len(pipe.scheduler.timesteps) == 5


def test_bad_tails_of_a_run_to_resume_are_refused_before_any_compute() -> None:
    pipe, call = sdxl()
    helm, call = tm.Helm(pipe), {**call, "seeds": [1]}
    helm(**call, sampler="euler", steps=6, hooks=[tm.stop_when(lambda run: run.step == 3)])
    run, calls = helm.run, list[int]()
    assert run is not None
    table = run.table
    pipe.unet.register_forward_pre_hook(lambda *_: calls.append(1))
    here = run.level.ratio
    for tail, match in (
        ({"sampler": tm.Sampler("euler", sigmas=[2 * here])}, "at or below the present one"),
        ({"sampler": "eulr"}, "unknown sampler"),
        ({"sampler": "heun", "steps": 0}, "steps"),
        ({"sampler": "heun", "guidance": tm.cfg([2.0] * 5)}, "5 guidance scales for 6"),
    ):
        with pytest.raises(TimonelError, match=match):
            helm(**call, resume=run, **tail)
        assert run.table is table
        assert calls == []
    done = helm(**call, resume=run)
    assert done is not None
    with pytest.raises(RunError, match="complete: go back"):
        helm(**call, resume=helm.run, sampler="heun")


def test_a_recipe_holds_the_whole_journey_and_makes_it_again(tmp_path: Path) -> None:
    helm = tm.Helm("emoji")

    def turns(run: Run) -> None:
        if run.step == 2 and not run.journey:
            run.tail("dpmpp_2m_sde", steps=3, guidance=tm.cfg(2.0, until=0.6))

    call = {"sampler": "euler/karras", "steps": 6, "seeds": [5], "guidance": 3.0}
    picture = helm("red apple", **call, hooks=[turns]).images[0]
    recipe = Recipe.of(picture)
    assert (recipe.steps, recipe.sampler) == (6, "euler")
    assert recipe.guidance is not None
    assert recipe.guidance.scale == 3.0
    assert recipe.tails is not None
    assert recipe.tails[0].model_dump(exclude_defaults=True, exclude={"guidance"}) == {
        "step": 2, "sampler": "dpmpp_2m_sde/karras", "steps": 3,
    }  # fmt: skip
    picture.save(tmp_path / "a.png")
    again = tm.replay(tmp_path / "a.png")
    assert again.tobytes() == picture.tobytes()
    late = recipe.model_copy(update={"tails": [recipe.tails[0].model_copy(update={"step": 6})]})
    with pytest.raises(ArgumentError, match="nothing left of 6 steps"):
        late.make(helm)


@pytest.mark.parametrize("scales", [[3.0] * 3 + [1.0, 2.0], [3.0] * 3 + [2.0] * 6])
def test_the_scales_of_a_tail_are_one_for_each_step_of_the_whole_run(scales: list[float]) -> None:
    pipe, call = sdxl()
    helm, tail = tm.Helm(pipe), {"sampler": "heun", "steps": len(scales) - 3}

    def run_of(guidance: Any) -> Run:
        turn = [lambda run: ordered(run, {**tail, "guidance": guidance})]
        helm(**call, seeds=[1], sampler="euler", steps=7, guidance=3.0, hooks=turn)
        assert helm.run is not None
        return helm.run

    run = run_of(scales)
    assert [run.guided.scales[run.table.first_row(step)] for step in range(3, run.steps)] == (
        scales[3:]
    )
    with pytest.raises(TimonelError, match="one per step"):
        run_of(scales[3:])
    if len(set(scales[3:])) == 1:
        alike = run_of(scales[3])
        assert torch.equal(run.result, alike.result)


@pytest.mark.parametrize(
    ("guidance", "tail", "match"),
    [
        ([1.0, 2.0, 3.0, 4.0], {"sampler": "euler", "steps": 4}, "4 guidance scales for 6 steps"),
        (tm.cfg_pp(0.5), {"sampler": "heun", "steps": 4}, "'heun' has no such twin"),
    ],
)
def test_tails_of_a_recipe_are_held_against_its_guidance_before_the_first_step(
    guidance: Any, tail: dict[str, Any], match: str
) -> None:
    made: list[int] = []
    pipe, call = sdxl()
    hooks = [Tails([TailData(step=2, **tail)]), lambda run: made.append(run.step)]
    with pytest.raises(ArgumentError, match=match):
        tm.Helm(pipe)(**call, seeds=[1], sampler="euler", steps=4, guidance=guidance, hooks=hooks)
    assert made == []
