"""Law: a prompt that changes on the way is at every row what a call of that prompt does there, and
whatever else a call draws or returns is as if nobody had looked.
"""

from __future__ import annotations

import inspect
import math
import threading
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import timonel as tm
from support import tiny
from support.pipes.features import values
from timonel.core.data import PromptsData
from timonel.core.prompts import Prompts, parsed, prompts
from timonel.core.run import Run
from timonel.errors import ArgumentError, RunError, TimonelError
from timonel.pipelines.capture import capture

quiet = pytest.mark.filterwarnings("ignore")  # of diffusers, about itself
APPLE, PEARS = "a red apple", "two green pears now"
VP = tm.VP.from_schedule()
# one of each way in which pipelines hand their conditions over
KINDS = {
    "StableDiffusionPipeline": "sd",  # both parts in one batch
    "StableDiffusionXLPipeline": "sdxl",  # pooled embeddings and sizes beside
    "StableDiffusion3Pipeline": "sd3",  # three encoders
    "StableDiffusionControlNetPipeline": "sd",  # a second network that reads the prompt
    "StableDiffusionInstructPix2PixPipeline": "sd",  # three parts
    "StableDiffusionPAGPipeline": "sd",  # perturbed attention
    "FluxPipeline (dev)": "flux",  # one part
    "FluxPipeline (true CFG)": "flux",  # a call for each part
    "PixArtAlphaPipeline": "dit",  # masks
    "QwenImagePipeline": "dit_new",  # lengths that vary
    "WanPipeline (2.2)": "video",  # two networks
}  # fmt: skip


class Case:
    """A small pipeline under the helm, and calls of it."""

    def __init__(self, key: str) -> None:
        self.pipe, self.inputs = tiny.case(KINDS[key], key)
        self.helm, self.computed = tm.Helm(self.pipe), list[dict[str, Any]]()
        self.network = getattr(self.pipe, "transformer", None) or self.pipe.unet
        forward = self.network.forward

        def through(*args: Any, **kwargs: Any) -> Any:
            self.computed.append(kwargs)
            return forward(*args, **kwargs)

        self.network.forward = through

    def call(self, **orders: Any) -> Tensor:
        torch.manual_seed(0)
        passed = {**self.inputs, "seeds": [3], "steps": 4, "sampler": "dpmpp_2m", **orders}
        if any(name in orders for name in ("prompts", "resume")) and "prompt" not in orders:
            passed["prompt"] = APPLE
        return values(self.helm(**passed))


@quiet
@pytest.mark.parametrize("key", KINDS)
def test_from_its_step_on_a_prompt_is_what_a_resumed_run_of_that_prompt_makes(key: str) -> None:
    case, runs = Case(key), list[Run]()
    alone = case.call(
        prompt=APPLE, hooks=[lambda run: runs.append(run.branch()) if run.step == 2 else None]
    )
    torch.testing.assert_close(case.call(prompts={0: APPLE}), alone, rtol=0, atol=0)
    torch.testing.assert_close(case.call(prompts={0: APPLE, 1.0: PEARS}), alone, rtol=0, atol=0)
    changed = case.call(prompts={0: APPLE, 0.5: PEARS})
    assert not torch.equal(changed, alone)
    resumed = case.call(prompt=PEARS, resume=runs[0])
    torch.testing.assert_close(changed, resumed, rtol=0, atol=0)
    live = case.call(prompt=APPLE, hooks=[lambda run: run.prompt(PEARS) if run.step == 2 else None])
    torch.testing.assert_close(live, changed, rtol=0, atol=0)


@quiet
@pytest.mark.parametrize("key", ["StableDiffusionXLPipeline", "WanPipeline (2.2)"])
def test_a_negative_prompt_changes_likewise(key: str) -> None:
    case, runs = Case(key), list[Run]()
    first: dict[str, Any] = {"prompt": APPLE, "negative_prompt": "blur"}
    keep = [lambda run: runs.append(run.branch()) if run.step == 2 else None]
    alone = case.call(**first, hooks=keep)
    changed = case.call(prompt=APPLE, negative_prompts={0: "blur", 0.5: "snow and ice"})
    assert not torch.equal(changed, alone)
    resumed = case.call(prompt=APPLE, negative_prompt="snow and ice", resume=runs[0])
    torch.testing.assert_close(changed, resumed, rtol=0, atol=0)


@quiet
def test_prompt_and_negative_prompt_change_at_steps_of_their_own() -> None:
    case, runs = Case("StableDiffusionXLPipeline"), list[Run]()
    keep = [lambda run: runs.append(run.branch()) if run.step in (1, 3) else None]
    case.call(prompt=APPLE, negative_prompt="blur", hooks=keep)
    middle = case.call(prompt=PEARS, negative_prompt="blur", resume=runs[0], hooks=keep)
    last = case.call(prompt=PEARS, negative_prompt="snow", resume=runs[-1])
    changed = case.call(
        prompts=prompts({0: APPLE, 1: PEARS}, unit="step"),
        negative_prompts={0: "blur", 0.75: "snow"},
    )
    assert not torch.equal(middle, last)
    torch.testing.assert_close(changed, last, rtol=0, atol=0)


@quiet
def test_nothing_is_drawn_and_no_network_computes_for_the_prompts() -> None:
    """Torch's own generator, that of the call, and the calls of the network are those of before."""
    left, calls = [], list[int]()
    for orders in ({"prompt": APPLE}, {"prompts": {0: APPLE, 0.5: PEARS, 0.75: "a boat"}}):
        case, generator = Case("FluxPipeline (true CFG)"), torch.Generator().manual_seed(7)
        hooked = list[int]()
        case.network.register_forward_pre_hook(lambda *_, to=hooked: to.append(1))
        case.call(**orders, seeds=None, generator=generator, sampler="euler_ancestral")
        left.append((generator.get_state(), torch.get_rng_state()))
        assert len(hooked) == len(case.computed)
        calls.append(len(case.computed))
    for one, other in zip(*left, strict=True):
        assert torch.equal(one, other)
    assert calls[0] == calls[1] > 0


@quiet
def test_what_the_pipeline_had_it_has_afterwards() -> None:
    case = Case("StableDiffusionPAGPipeline")
    pipe, before = case.pipe, dict(vars(case.pipe))
    processors = dict(pipe.unet.attn_processors)
    scheduler = pipe.scheduler
    case.call(prompts={0: APPLE, 0.5: PEARS})
    assert pipe.scheduler is scheduler
    assert pipe.unet.attn_processors == processors
    assert vars(pipe)["_progress_bar_config"] == before["_progress_bar_config"]


# -- mixtures and passages -------------------------------------------------------------------------
def seen(case: Case, name: str, **orders: Any) -> list[Tensor]:
    """An argument of the network at every row."""
    case.computed.clear()
    case.call(**orders)
    return [kwargs[name] for kwargs in case.computed]


@quiet
def test_a_passage_goes_in_a_line_from_one_prompt_to_the_next() -> None:
    case, name = Case("StableDiffusionXLPipeline"), "encoder_hidden_states"
    one, other = (seen(case, name, prompt=text)[0] for text in (APPLE, PEARS))
    rows = seen(case, name, prompts={0: APPLE, (0.25, 1.0): PEARS}, steps=8)
    for row, got in enumerate(rows):
        share = max(0.0, (row / 8 - 0.25) / 0.75)
        torch.testing.assert_close(got, one + share * (other - one))
    assert torch.equal(rows[1], one)


@quiet
def test_a_mixture_weighs_the_conditions_and_leaves_the_other_part() -> None:
    case, name = Case("StableDiffusionXLPipeline"), "encoder_hidden_states"
    texts = {APPLE: 0.5, PEARS: 0.3, "a boat": 0.2}
    each = [seen(case, name, prompt=text)[0] for text in texts]
    got = seen(case, name, prompts={0: texts})[0]
    wanted = sum(w * one for w, one in zip(texts.values(), each, strict=True))
    torch.testing.assert_close(got, wanted)
    assert torch.equal(got[0], each[0][0])  # the unconditional part, bit for bit


@quiet
def test_a_mixture_of_masks_sees_what_one_of_them_sees() -> None:
    case, name = Case("PixArtAlphaPipeline"), "encoder_attention_mask"
    one, other = (seen(case, name, prompt=text)[0] for text in (APPLE, PEARS))
    assert not torch.equal(one, other)
    assert torch.equal(
        seen(case, name, prompts={0: {APPLE: 0.5, PEARS: 0.5}})[0], torch.maximum(one, other)
    )


@quiet
def test_prompts_of_different_lengths_change_and_are_not_mixed() -> None:
    case = Case("QwenImagePipeline")
    with pytest.raises(ArgumentError, match=r"different lengths .* change at one step"):
        case.call(prompts={0: APPLE, (0.25, 0.75): PEARS})


# -- in flight -------------------------------------------------------------------------------------
@quiet
@pytest.mark.parametrize("paused", [True, False])
def test_a_handle_changes_the_prompt_from_the_next_row_on(paused: bool) -> None:
    case = Case("FluxPipeline (true CFG)")
    wanted = case.call(prompts={0: APPLE, 0.5: PEARS})
    there, go, waits = threading.Event(), threading.Event(), [True]

    def stop_here(run: Run) -> None:
        if run.step == 2 and waits:
            waits.clear()
            if paused:
                run.pause()
            there.set()
            if not paused:
                go.wait(60)

    passed = {**case.inputs, "prompt": APPLE, "seeds": [3], "steps": 4, "sampler": "dpmpp_2m"}
    handle = case.helm.start(**passed, hooks=[stop_here])
    assert there.wait(60)
    asks = threading.Thread(target=lambda: handle.prompt(PEARS))
    asks.start()
    if paused:
        asks.join(60)
        with pytest.raises(ArgumentError, match="no prompt to change to"):
            handle.prompt()
        handle.resume()
    else:
        while not handle.run.driver._tasks:  # the order waits for the row's end
            threading.Event().wait(0.01)
        go.set()
    torch.testing.assert_close(values(handle.result(60)), wanted, rtol=0, atol=0)
    asks.join(60)
    with pytest.raises(RunError, match="the call has ended"):
        handle.prompt(APPLE)


@quiet
@pytest.mark.parametrize("keep", [0, 4])
def test_after_a_rewind_a_prompt_of_in_flight_holds_from_its_step_on(keep: int) -> None:
    """The rows before, which are computed again where no state was kept, are as they were."""
    case, done = Case("StableDiffusion3Pipeline"), list[int]()

    def back(run: Run) -> None:
        if run.step == 3 and not done:
            done.append(run.step)
            run.prompt(PEARS)
            run.rewind(1)

    changed = case.call(prompt=APPLE, hooks=[back], keep=keep)
    assert torch.equal(changed, case.call(prompts=prompts({0: APPLE, 1: PEARS}, unit="step")))


@quiet
def test_an_order_that_is_refused_leaves_the_run_as_it_was() -> None:
    case, said = Case("StableDiffusion3Pipeline"), list[str]()

    def ask(run: Run) -> None:
        wrong: list[Any] = [{0: APPLE, 0.3: PEARS, 0.31: "a boat"}, {}, 3, ["a", "b"], "w " * 99]
        for value in wrong if run.step == 2 else ():
            with pytest.raises(TimonelError) as error:
                run.prompt(value)
            said.append(str(error.value))
        if run.step == run.steps:
            with pytest.raises(RunError, match="no row is to come"):
                run.prompt(PEARS)

    plain = case.call(prompt=APPLE)
    assert torch.equal(case.call(prompt=APPLE, hooks=[ask]), plain)
    assert len(said) == 5


def test_a_native_run_says_that_its_denoiser_has_the_prompt() -> None:
    def ask(run: Run) -> None:
        run.prompt("a fox")

    with pytest.raises(RunError, match="the denoiser of this run has its prompt itself"):
        tm.sample(lambda x, level: x, torch.zeros(1, 2), "euler", process=VP, steps=2, hooks=[ask])


# -- what is refused, before the network is called ------------------------------------------------
@pytest.mark.parametrize(
    ("schedule", "unit", "said"),
    [
        ({}, "ratio", "must be a dictionary from positions"),
        (3, "ratio", "must be a dictionary from positions"),
        ({0.2: "a"}, "ratio", "holds from the beginning"),
        ({(0, 0.5): "a"}, "ratio", "holds from the beginning"),
        ({0: "a", 0.6: "b", 0.4: "c"}, "ratio", "in the order of the steps"),
        ({0: "a", (0.2, 0.6): "b", 0.4: "c"}, "ratio", "in the order of the steps"),
        ({0: "a", 12: "b"}, "ratio", r"for a step index say tm\.prompts"),
        ({0: "a", 1.5: "b"}, "ratio", "no ratio of the steps"),
        ({0: "a", -0.5: "b"}, "ratio", "finite number in"),
        ({0: "a", math.nan: "b"}, "ratio", "finite number"),
        ({0: "a", (0.6, 0.3): "b"}, "ratio", "from low to high"),
        ({0: "a", (0.1, 0.2, 0.3): "b"}, "ratio", "two ends of a passage"),
        ([(0, "a"), (0.4, "b"), (0.4, "c")], "ratio", "two prompts begin at 0.4"),
        ({0: "a", 0.41: "b", 0.42: "c"}, "ratio", "holds for no step of 10 steps"),
        ({0: "a", 0.99: "b"}, "ratio", "holds for no step of 10 steps"),
        ({0: "a", 11: "b"}, "step", "at step 11 of 10 steps"),
        ({0: "a", 2.5: "b"}, "step", "whole number"),
        ({math.inf: "a", 0.4: "b", 1.0: "c"}, "sigma", "from high to low sigma"),
        ({1.0: "a", 0.4: "b"}, "sigma", "begins at sigma 1 and the run at"),
        ({0: "a", 4: "b"}, "steps", "unknown unit of prompts 'steps': did you mean 'step'"),
        ({0: {"a": 0.7, "b": 0.5}}, "ratio", "sum to 1, got 1.2"),
        ({0: {"a": 1.5, "b": -0.5}}, "ratio", "weight of 'b'"),
        ({0: {}}, "ratio", "texts and weights"),
        ({0: 5}, "ratio", "a prompt is a text"),
        ({0: ["a", "b"], 0.4: ["a"]}, "ratio", "lists of 1 and 2"),
    ],
)
def test_a_schedule_that_cannot_be_is_refused(schedule: Any, unit: str, said: str) -> None:
    with pytest.raises(ArgumentError, match=said):
        prompts(schedule, unit=unit).compile(tm.Sampler("euler", steps=10).compile(VP))


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "another prompt": (
        {"prompt": "a boat", "prompts": {0: APPLE, 0.5: PEARS}}, "leave prompt= out"
    ),
    "a list": ({"prompts": {0: APPLE, 0.5: ["a", "b"]}}, "is a list of 2 and the call has one"),
    "other batch": (
        {"prompt": ["a", "b"], "seeds": 1, "prompts": {0: ["a", "b"], 0.5: ["a", "b", "c"]}},
        "lists of 2 and 3",
    ),
    "embeddings": ({"prompt_embeds": torch.zeros(1, 8, 32), "prompts": {0: APPLE, 0.5: PEARS}},
                   "stands in the place of prompt="),
    "long": ({"prompts": {0: APPLE, 0.5: "one two three four five six seven eight nine"}},
             "has 9 tokens and StableDiffusionXLPipeline reads 8: it would lose"),
    "alike": ({"prompts": {0: APPLE, 0.5: "a red  apple"}}, "gets the same for"),
    "unguided": ({"guidance": 1.0, "negative_prompts": {0: "blur", 0.5: "snow"}},
                 "computes no unconditional part"),
    "forecast": ({"guidance": tm.cfg(4, forecast=2), "prompts": {0: APPLE, 0.5: PEARS}},
                 "leave it out of cfg"),
}  # fmt: skip


@quiet
@pytest.mark.parametrize("why", REFUSED)
def test_what_a_call_cannot_have_is_refused_before_its_network_is_called(why: str) -> None:
    orders, said = REFUSED[why]
    case = Case("StableDiffusionXLPipeline")
    orders = {**({} if "prompts" in orders else {"prompt": APPLE}), **orders}
    with pytest.raises(ArgumentError, match=said):
        case.call(**orders)
    assert case.computed == []


@quiet
def test_a_pipeline_without_a_prompt_says_so() -> None:
    helm = tm.Helm("emoji-video")
    with pytest.raises(ArgumentError, match="takes no prompt, so none can change on the way"):
        helm(tiny.still(), prompts={0: APPLE, 0.5: PEARS})


@quiet
def test_a_capture_says_how_its_slots_change_the_prompt() -> None:
    case = Case("StableDiffusionPipeline")
    with pytest.raises(ArgumentError, match="one prompt in a slot"):
        capture(case.helm, prompts={0: APPLE, 0.5: PEARS}, seeds=1)


# -- the shipped models ----------------------------------------------------------------------------
@pytest.fixture(scope="module")
def emoji() -> tm.Helm:
    helm = tm.Helm("emoji")
    helm.pipe.set_progress_bar_config(disable=True)
    return helm


@pytest.mark.parametrize("model", ["emoji", "emoji-flow"])
def test_shipped_models_take_prompts_over_the_run(model: str, emoji: tm.Helm) -> None:
    helm = emoji if model == "emoji" else tm.Helm(model)
    helm.pipe.set_progress_bar_config(disable=True)
    runs: list[Run] = []
    call: dict[str, Any] = {"steps": 4, "seeds": [1], "output_type": "np"}
    helm("red apple", **call, hooks=[lambda r: runs.append(r.branch()) if r.step == 1 else None])
    changed = helm(prompts={0: "red apple", 0.25: "pizza"}, **call).images
    resumed = helm("pizza", resume=runs[0], **{**call, "steps": None}).images
    assert np.array_equal(changed, resumed)


def test_a_batch_of_prompts_changes_one_by_one(emoji: tm.Helm) -> None:
    call: dict[str, Any] = {"steps": 4, "output_type": "latent"}
    lists = {0: ["red apple", "pizza"], 0.5: ["pizza", "dog"]}
    both = emoji(prompts=lists, seeds=[1, 2], **call).images
    for i, seed in enumerate((1, 2)):
        each = {at: texts[i] for at, texts in lists.items()}
        alone = emoji(prompts=each, seeds=[seed], **call).images
        torch.testing.assert_close(both[i : i + 1], alone, rtol=1e-3, atol=1e-3)


# -- recipes ---------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "orders",
    [
        {"prompts": {0: "red apple", 0.5: {"pizza": 0.75, "dog": 0.25}}},
        {"prompts": prompts({0: "red apple", (1, 3): "pizza"}, unit="step")},
        {
            "prompts": prompts({math.inf: "red apple", 2.0: "pizza"}, unit="sigma"),
            "negative_prompts": {0: "dog", 0.5: "house"},
        },
        {"hooks": [lambda run: run.prompt("pizza") if run.step == 2 else None]},
    ],
    ids=["mixture", "passage", "sigma", "in flight"],
)
def test_a_recipe_holds_the_schedule_and_makes_the_picture_again(
    orders: dict[str, Any], emoji: tm.Helm
) -> None:
    picture = emoji("red apple", steps=4, seeds=[1], guidance=4.0, **orders).images[0]
    recipe = tm.Recipe.of(picture)
    assert recipe.prompt == "red apple"
    assert recipe.prompts is not None
    again, _ = recipe.make(emoji)
    assert np.array_equal(np.array(again), np.array(picture))


@pytest.mark.parametrize(
    "schedule",
    [
        prompts({0: "a", 0.4: "b", (0.5, 0.75): {"c": 0.5, "a": 0.5}}),
        prompts({math.inf: "a", (2.0, 1.0): "b"}, unit="sigma"),
        prompts({0: "a", 3: "b"}, unit="step"),
    ],
)
def test_a_schedule_is_the_same_from_its_data(schedule: Prompts) -> None:
    data = PromptsData.of(schedule)
    assert PromptsData.model_validate_json(data.model_dump_json()).prompts() == schedule


def test_the_words_of_the_command_line_are_the_schedule() -> None:
    assert parsed("a", []) is None
    assert parsed("a", ["0.4:b: c", "0.5-1:d"]) == prompts({0: "a", 0.4: "b: c", (0.5, 1.0): "d"})
    assert parsed("a", ["step:3:b"]) == prompts({0: "a", 3: "b"}, unit="step")
    assert parsed("a", ["sigma:2-1:b"]) == prompts({math.inf: "a", (2.0, 1.0): "b"}, unit="sigma")
    for wrong in ("b", "0.4b", "half:b", "0.4:", "step:1.5:b"):
        with pytest.raises(ArgumentError, match="a position and a prompt"):
            parsed("a", [wrong])
    with pytest.raises(ArgumentError, match="in one unit"):
        parsed("a", ["0.4:b", "step:3:c"])


def test_the_helm_says_what_it_takes() -> None:
    parameters = inspect.signature(tm.Helm.__call__).parameters
    assert {"prompts", "negative_prompts"} <= set(parameters)
