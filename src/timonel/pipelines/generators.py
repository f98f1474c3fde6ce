"""Seeds of a sampler's noise from the generator of a call, which advances as it does in diffusers."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import torch

Generators = torch.Generator | Sequence[torch.Generator] | None
LARGEST = 2**62


def drawn(generators: Generators, batch: int) -> list[int]:
    """One seed from each of several generators, or `batch` from one; from torch's own without any."""
    if isinstance(generators, (list, tuple)):
        return [seed for generator in generators for seed in _draw(generator, 1)]
    assert not isinstance(generators, Sequence)
    return _draw(generators, batch)


def _draw(generator: torch.Generator | None, count: int) -> list[int]:
    device = "cpu" if generator is None else generator.device
    seeds: list[int] = torch.randint(LARGEST, (count,), generator=generator, device=device).tolist()
    return seeds


def pipelines_generator() -> Generators:
    """The generator of the pipeline whose call this is inside of; None outside of one, or where it was given none.

    Half of diffusers' pipelines (SD3, Flux, Wan, SVD) do not pass theirs to `scheduler.step`, and a sampler's noise
    would come from torch's global generator: the same call would make another picture each time.
    """
    pipelines = sys.modules.get("diffusers.pipelines.pipeline_utils")
    frame = None if pipelines is None else sys._getframe(1)
    while pipelines is not None and frame is not None:
        if isinstance(frame.f_locals.get("self"), pipelines.DiffusionPipeline) and "generator" in frame.f_locals:
            generators: Generators = frame.f_locals["generator"]
            return generators
        frame = frame.f_back
    return None
