"""Law: with a cache of diffusers' on the network a rewind and a branch give the same bits, or a
warning says not.
"""

from __future__ import annotations

import warnings
from typing import Any

import diffusers as d
import pytest
import torch

import timonel as tm
from support import tiny
from timonel.core.run import Run
from timonel.errors import Inexact

STEPS = 12
CACHES: dict[str, Any] = {
    "first block": lambda pipe: d.FirstBlockCacheConfig(threshold=0.3),
    "TaylorSeer": lambda pipe: d.TaylorSeerCacheConfig(
        cache_interval=3, disable_cache_before_step=3, max_order=1,
        taylor_factors_dtype=torch.float32
    ),
    "Mag": lambda pipe: d.MagCacheConfig(
        threshold=0.3, max_skip_steps=3, retention_ratio=0.1, num_inference_steps=STEPS,
        mag_ratios=[1.0] * STEPS
    ),
    "pyramid": lambda pipe: d.PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=2, spatial_attention_timestep_skip_range=(100, 950),
        spatial_attention_block_identifiers=("transformer_blocks",),
        current_timestep_callback=lambda: 500,
    ),
}  # fmt: skip
EVERY = pytest.mark.parametrize("name", CACHES)


def cached(name: str) -> tuple[tm.Helm, dict[str, Any]]:
    """A helm whose network has the cache, and a call of it; the cache changes what it makes."""
    pipe, inputs = tiny.case("flux", "FluxPipeline (true CFG)")
    helm, call = tm.Helm(pipe), {**inputs, "steps": STEPS, "seeds": [3], "sampler": "euler"}
    plain = helm(**call).images
    pipe.transformer.enable_cache(CACHES[name](pipe))
    assert not torch.equal(helm(**call).images, plain)
    return helm, call


@EVERY
@pytest.mark.parametrize("keep", [0, 4, STEPS])
def test_a_rewind_gives_the_same_bits_with_a_cache(name: str, keep: int) -> None:
    helm, call = cached(name)
    whole, visited = helm(**call).images, list[int]()

    def back(run: Run) -> None:
        visited.append(run.step)
        if visited.count(8) == 1 and run.step == 8:
            run.rewind(5)
        if visited.count(9) == 1 and run.step == 9:
            run.rewind(6)

    assert torch.equal(helm(**call, hooks=[back], keep=keep).images, whole)
    assert len(visited) > STEPS
    assert torch.equal(helm(**call).images, whole)


@EVERY
def test_a_branch_and_a_stopped_run_whose_states_are_kept_go_on_exactly(name: str) -> None:
    helm, call = cached(name)
    branches: list[Run] = []
    whole = helm(
        **call, hooks=[lambda run: branches.append(run.branch()) if run.step == 7 else None]
    ).images
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(helm(**call, resume=branches[0]).images, whole)
        helm(**call, hooks=[tm.stop_when(lambda run: run.step == 7)], keep=1)
        assert torch.equal(helm(**call, resume=helm.run).images, whole)


@EVERY
def test_a_run_whose_cache_is_lost_says_so_before_compute(name: str, tmp_path: Any) -> None:
    helm, call = cached(name)
    whole = helm(
        **call, hooks=[lambda run: run.save(tmp_path / "run") if run.step == 7 else None]
    ).images
    with pytest.warns(Inexact, match="has a cache"):
        made = helm(**call, resume=Run.load(tmp_path / "run")).images
    assert float((made - whole).abs().max()) < 0.5 * float(whole.abs().max())
    helm(**call, hooks=[tm.stop_when(lambda run: run.step == 7)])
    with pytest.warns(Inexact):
        helm(**call, resume=helm.run)
    helm.pipe.transformer.disable_cache()
    plain = helm(
        **call, hooks=[lambda run: run.save(tmp_path / "run") if run.step == 7 else None]
    ).images
    assert torch.equal(helm(**call, resume=Run.load(tmp_path / "run")).images, plain)


def test_a_call_begins_with_an_empty_cache_after_one_that_failed() -> None:
    helm, call = cached("first block")
    whole, count = helm(**call).images, list[int]()

    def breaks(*_: Any) -> None:
        count.append(1)
        if len(count) == 9:
            raise RuntimeError("out of memory, say")

    held = helm.pipe.transformer.x_embedder.register_forward_pre_hook(breaks)
    plain = {k: v for k, v in call.items() if k not in ("steps", "seeds", "sampler")}
    with pytest.raises(RuntimeError):
        helm.pipe(**plain, num_inference_steps=STEPS)  # diffusers leaves what the cache knows
    held.remove()
    assert torch.equal(helm(**call).images, whole)
