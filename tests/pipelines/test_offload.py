"""Pipelines whose weights come and go: accelerate's and diffusers' offloading hooks, with the CPU
for an accelerator.

The hooks are the same ones that a GPU gets; what a CPU cannot show is memory that is freed and
copies that overlap.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import accelerate
import pytest
import torch

import timonel as tm
from support import saved
from timonel.errors import HookError

CPU = torch.device("cpu")


def networks(pipe: Any) -> list[Any]:
    return [
        net
        for name in ("unet", "transformer", "transformer_2")
        if (net := getattr(pipe, name, None)) is not None
    ]


def disk(pipe: Any, folder: Path) -> None:
    for i, net in enumerate(networks(pipe)):
        accelerate.disk_offload(net, str(folder / str(i)), execution_device=CPU)


OFFLOADS: dict[str, Callable[[Any, Path], Any]] = {
    "whole models": lambda pipe, _: pipe.enable_model_cpu_offload(device="cpu"),
    "disk": disk,
    "groups": lambda pipe, _: pipe.enable_group_offload(
        onload_device=CPU, offload_type="leaf_level"
    ),
}


def offloaded(key: str, kind: str, folder: Path) -> Any:
    pipe = saved.PIPES[key].build()
    OFFLOADS[kind](pipe, folder)
    return pipe


class Calls:
    """What reaches the networks: how many samples each call."""

    def __init__(self, pipe: Any) -> None:
        self.batches: list[int] = []
        for net in networks(pipe):
            name = next(n for n in ("conv_in", "x_embedder", "patch_embedding") if hasattr(net, n))
            getattr(net, name).register_forward_pre_hook(
                lambda _, args: self.batches.append(len(args[0]))
            )


def steered(pipe: Any, key: str, folder: Path) -> tuple[torch.Tensor, list[int], list[int]]:
    """Latents of a run with guidance up to half, a rewind and previews; the calls' sizes; the steps
    seen.
    """
    helm, calls, seen = tm.Helm(pipe), Calls(pipe), []

    def back(run: tm.Run) -> None:
        seen.append(run.step)
        if seen == [1, 2, 3]:
            run.rewind(1)

    guided = {} if key == "flux-dev" else {"guidance": tm.cfg(until=0.5)}
    hooks = [back, tm.preview(folder, decode=True)]
    made = helm(
        **saved.PIPES[key].inputs(),
        **guided,
        steps=4,
        seeds=[3],
        sampler="dpmpp_2m",
        hooks=hooks,
        keep=4,
    )[0]
    return made, calls.batches, seen


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What the same call makes with all weights at hand."""
    return functools.cache(
        lambda key: steered(saved.PIPES[key].build(), key, tmp_path_factory.mktemp("plain"))
    )


# halves in one call, a call each with two networks; then a network of frames, and one that is told
# its scale
TRIED = [
    *(("sdxl", kind) for kind in OFFLOADS),
    ("wan22", "whole models"),
    ("wan22", "disk"),
    ("svd", "whole models"),
    ("flux-dev", "whole models"),
]


@pytest.mark.parametrize(("key", "kind"), TRIED)
def test_offloaded_networks_are_steered_as_others_are(
    key: str, kind: str, tmp_path: Path, plain: Any
) -> None:
    wanted, calls, _ = plain(key)
    latents, batches, seen = steered(offloaded(key, kind, tmp_path), key, tmp_path / "steps")
    assert seen == [1, 2, 3, 2, 3, 4]
    assert batches == calls
    assert torch.allclose(latents, wanted, rtol=0, atol=1e-5)
    assert len(list((tmp_path / "steps").glob("*.png"))) == 4


@pytest.mark.parametrize("kind", OFFLOADS)
def test_after_a_call_the_offloading_is_as_it_was(kind: str, tmp_path: Path) -> None:
    """Also where the call raised: weights that were away are away again, and the bare pipeline
    makes the same.
    """
    pipe = offloaded("sdxl", kind, tmp_path)
    call = {**saved.PIPES["sdxl"].inputs(), "num_inference_steps": 2}

    def bare() -> torch.Tensor:
        made: torch.Tensor = pipe(**call, generator=torch.Generator().manual_seed(0)).images
        return made

    def state() -> Any:
        return [(name, weight.device) for name, weight in pipe.unet.named_parameters()], hasattr(
            pipe.unet, "_hf_hook"
        )

    before, where = bare(), state()
    helm = tm.Helm(pipe)
    inputs = saved.PIPES["sdxl"].inputs()
    helm(**inputs, steps=2, seeds=[1], guidance=tm.cfg(until=0.5))
    assert state() == where

    def fails(run: tm.Run) -> None:
        raise ValueError("on purpose")

    with pytest.raises(HookError, match="on purpose"):
        helm(**inputs, steps=2, seeds=[1], hooks=[fails])
    assert state() == where
    assert torch.equal(bare(), before)
    if kind == "disk":
        assert {device.type for _, device in where[0]} == {"meta"}
