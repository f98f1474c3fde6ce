"""Previews of pipelines: by the rest of the pipeline's own call, without a trace in the run that is
shown.
"""

from __future__ import annotations

import threading
import warnings
from types import SimpleNamespace
from typing import Any, ClassVar

import diffusers
import numpy as np
import pytest
import torch
from torch import Tensor, nn

import timonel as tm
from support import pipes, tiny
from support.pipes.features import CHECKS, SaysNo, Trial
from timonel.errors import PreviewMissing, RunError
from timonel.hooks.rgb import to_images
from timonel.pipelines.capture import capture
from timonel.pipelines.decode.previews import PipelineContext

CASES = pipes.load()
# one of each way of decoding: packed, statistics of a batch norm, channels last, quantised, with
# sound, layers,
# spectra, depth, pixels; and of what is cleaned up after a loop: attention processors, caches
SHOWN = {
    "FluxPipeline (dev)": "linear + decoded", "Flux2KleinKVPipeline": "linear + decoded",
    "Kandinsky5T2VPipeline": "linear + decoded", "KandinskyV22Pipeline": "linear + decoded",
    "LTX2Pipeline": "linear + decoded", "QwenImageLayeredPipeline": "linear + decoded",
    "AudioLDMPipeline": "linear + decoded", "MarigoldDepthPipeline": "linear + decoded",
    "StableDiffusionPAGPipeline": "linear + decoded", "IFPipeline": "decoded",
}  # fmt: skip
SAYS = {
    "StableAudioPipeline": "makes no pictures", "KandinskyPriorPipeline": "makes no pictures",
    "TextToVideoZeroPipeline": "steps its scheduler in backward_loop",
}  # fmt: skip
quiet = pytest.mark.filterwarnings("ignore")  # of diffusers, about itself


@quiet
@pytest.mark.parametrize("key", SHOWN)
def test_a_preview_is_the_pipelines_own_picture_and_changes_nothing(key: str) -> None:
    assert CHECKS["preview"](Trial(CASES[key])) == SHOWN[key]


@quiet
@pytest.mark.parametrize("key", SAYS)
def test_a_pipeline_that_cannot_be_shown_says_so_and_goes_on(key: str) -> None:
    with pytest.raises(SaysNo, match=SAYS[key]):
        CHECKS["preview"](Trial(CASES[key]))


class Net(nn.Module):
    """A network with a cache, that is cleared after the loop."""

    def __init__(self) -> None:
        super().__init__()
        self.config, self.cleared = SimpleNamespace(in_channels=3), 0

    def clear_cache(self) -> None:
        self.cleared += 1

    def forward(self, sample: Tensor, timestep: Any) -> tuple[Tensor]:
        return (0.1 * sample,)


class Odd:
    """A pipeline that draws, cleans up, calls back and leaves a mark after its loop, and can do
    without none of it.
    """

    components: ClassVar[dict[str, Any]] = {}

    def __init__(self) -> None:
        self.scheduler, self.unet = diffusers.DDIMScheduler(), Net()
        self.marks: list[str] = []
        self.freed, self.called = 0, 0

    def maybe_free_model_hooks(self) -> None:
        self.freed += 1

    def finish(self, latents: Tensor) -> Tensor:
        self.mark = "finished"
        return (latents / 4 + 0.5).clamp(0, 1)

    def __call__(
        self,
        num_inference_steps: int = 4,
        generator: Any = None,
        output_type: str = "pt",
        callback: Any = None,
    ) -> Any:
        latents = torch.randn(1, 3, 8, 8, generator=generator)
        self.scheduler.set_timesteps(num_inference_steps)
        timesteps, known, cache = (
            self.scheduler.timesteps,
            torch.zeros(1, 3, 8, 8),
            {"kept": torch.ones(())},
        )
        for i, t in enumerate(timesteps):
            noise = self.unet(latents, t)[0]
            latents = self.scheduler.step(noise, t, latents, generator=generator).prev_sample
            if i < len(timesteps) - 1:
                known = self.scheduler.add_noise(
                    known, torch.randn_like(latents), timesteps[i + 1 : i + 2]
                )
                latents = latents + 0.01 * known
            if callback is not None:
                self.called += callback(i)
        self.unet.clear_cache()
        known += 1.0
        scale = cache.pop("kept")
        latents = latents * scale + 0.1 * torch.randn(latents.shape, generator=generator)
        latents = latents + 0.1 * torch.randn_like(latents)
        image = self.finish(latents) if output_type != "latent" else latents
        self.maybe_free_model_hooks()
        return (image,)


def test_looking_leaves_no_trace_in_a_call() -> None:
    plain, shown, seen = Odd(), Odd(), []
    torch.manual_seed(5)
    want = tm.Helm(plain)(seeds=[3], steps=4, callback=lambda i: 1)[0]
    hooks = [
        tm.preview(lambda run, images: seen.append(np.asarray(images[0])), decode=True, block=True)
    ]
    torch.manual_seed(5)
    made = tm.Helm(shown)(seeds=[3], steps=4, callback=lambda i: 1, hooks=hooks)[0]
    assert torch.equal(made, want)
    assert (
        (shown.freed, shown.called, shown.unet.cleared)
        == (plain.freed, plain.called, plain.unet.cleared)
        == (1, 4, 1)
    )
    assert (
        seen[-1] == np.asarray(to_images(made)[0])
    ).all()  # the noise that the end draws is the same too
    assert len(seen) == 4


def test_the_picture_of_a_stopped_run_is_the_one_that_it_returns() -> None:
    helm, seen = tm.Helm(tiny.sdxl()), []
    hooks = [
        tm.preview(
            lambda run, images: seen.append(np.asarray(images[0])), every=5, decode=True, block=True
        ),
        tm.stop_when(lambda run: run.step == 2),
    ]
    made = helm(
        **tiny.prompt(helm.pipe) | {"output_type": "pt"}, steps=5, seeds=[0], hooks=hooks
    ).images
    assert len(seen) == 1  # of the step at which it stopped
    assert abs(seen[0].astype(float) - np.asarray(to_images(made)[0])).max() <= 1


def test_a_decode_that_fails_does_not_reach_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    helm = tm.Helm(tiny.sdxl())
    call = {**tiny.prompt(helm.pipe), "steps": 4, "seeds": [0]}
    want = helm(**call).images

    def broken(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(helm.pipe.vae, "decode", broken)
    with pytest.warns(PreviewMissing, match="out of memory") as said:
        made = helm(**call, hooks=[tm.preview(lambda run, images: None, decode=True)]).images
    assert torch.equal(made, want)
    assert len([w for w in said if w.category is PreviewMissing]) == 1


@quiet
def test_a_handle_refuses_a_picture_by_name_and_its_run_goes_on() -> None:
    trial = Trial(CASES["KandinskyPriorPipeline"])
    want = trial.steer(steps=3)
    torch.manual_seed(0)
    reached: list[str] = []

    def ask(run: tm.Run) -> None:
        with pytest.raises(RunError, match="makes no pictures"):
            handle.preview()
        reached.append(run.status)

    hooks: list[Any] = []
    gate = threading.Event()
    hooks.append(lambda run: (gate.wait(30), ask(run))[1] if run.step == 2 else None)
    handle = trial.helm.start(**trial.case.inputs(), steps=3, seeds=[0], hooks=hooks)
    gate.set()
    output = handle.result(60)
    assert reached == ["running"]
    assert torch.equal(output[0].double(), want)


def test_a_picture_from_outside_is_refused_while_models_move_between_devices() -> None:
    helm = tm.Helm(tiny.sdxl())
    helm.pipe.unet._hf_hook = object()
    assert PipelineContext(helm.pipe).moves
    asked: list[str] = []
    ready = threading.Event()

    def ask(run: tm.Run) -> None:
        if run.step == 1:
            with pytest.raises(RunError, match="decodes between the steps"):
                handle.preview(decode=True)
            asked.append("yes")

    handle = helm.start(
        **tiny.prompt(helm.pipe), steps=2, seeds=[0], hooks=[lambda run: ready.wait(30), ask]
    )
    ready.set()
    handle.result(60)
    assert asked == ["yes"]
    assert handle.preview()[0].size == (8, 8)  # it is over


@quiet
def test_latents_of_a_captured_call_are_decoded_as_the_call_would() -> None:
    """Flux 2 scales its packed latents by statistics of its autoencoder, by no usual rule."""
    case = CASES["Flux2Pipeline"]
    helm = tm.Helm(case.build())
    call = {**case.inputs(), "steps": 2, "seeds": [0], "sampler": "euler"}
    latents = helm(**call).images
    own = helm(**call | {"output_type": "pt"}).images
    capture(helm, **case.inputs(), seeds=[0])
    both = helm.context.decode(torch.cat([latents, latents]))
    torch.testing.assert_close(both, torch.cat([own, own]), atol=1e-4, rtol=0)


def test_warnings_as_errors_do_not_end_a_pipeline() -> None:
    helm = tm.Helm(tiny.sdxl())
    with warnings.catch_warnings():
        warnings.simplefilter("error", PreviewMissing)
        helm(
            **tiny.prompt(helm.pipe),
            steps=2,
            seeds=[0],
            hooks=[tm.preview(lambda run, images: 1 / 0)],
        )
    assert helm.run is not None
    assert helm.run.status == "done"
