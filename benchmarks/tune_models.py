"""The models of the benchmark: mixtures that are fitted here, and the shipped ones with the tables
they come with.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

import timonel as tm
from timonel import zoo
from timonel.errors import ModelError
from timonel.exact import Mixture, solve
from timonel.make.animate import Motion
from timonel.pipelines.capture import capture
from timonel.tuning import Pipeline, Plain, fit_model
from timonel.tuning.samples import painted
from timonel.tuning.targets import Targets, converge
from tune_problem import Problem

FITTED, DIMENSION, SCALE = (
    192,
    16,
    4.0,
)  # samples and dimension of the mixtures that are fitted, and their guidance
MEMORY = 8  # predictions that a row of theirs may correct
SEED = 2_000_000  # first seed of the shipped models
SIBLINGS = ("emoji-zsnr", "emoji-lcm")


@dataclass(frozen=True)
class Size:
    """How much is measured. `samples`: of the shipped models; the mixtures are judged by four times
    as many.

    `iterations`: of the fits of the mixtures. `pictures`: of each sampler that the judge is shown.
    """

    steps: tuple[int, ...] = (3, 4, 5, 6, 8, 10)
    samples: int = 16
    iterations: int = 60
    pictures: int = 96


def exact(name: str, size: Size) -> Problem:
    """A mixture, fitted to some noise and judged by other noise against its exact answer."""
    mixture = Mixture.random(1, components=8, dimension=DIMENSION, classes=2)
    process = tm.Flow() if name == "flow-mixture" else tm.VP.from_schedule()
    guidance = tm.cfg(SCALE) if name == "guided-mixture" else None

    def posed(count: int, seed: int) -> Plain:
        noise = torch.randn(
            count, DIMENSION, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
        )
        if guidance is None:
            return Plain(mixture, noise, process)
        return Plain(
            mixture.conditional(0), noise, process, unconditional=mixture, guidance=guidance
        )

    made = fit_model(
        posed(FITTED, 0),
        steps=size.steps,
        iterations=size.iterations,
        minutes=24 * 60,
        memory=MEMORY,
    )
    judged = posed(4 * size.samples, 1)
    truth = solve(
        mixture if guidance is None else mixture.guided(0, SCALE), judged.x, process, tolerance=1e-6
    )
    targets = Targets(
        tuple(range(judged.count)), truth, torch.zeros(judged.count, dtype=torch.float64), 0
    )
    about = (
        f"8 Gaussians in {DIMENSION} dimensions, "
        + ("flow" if process.kind == "flow" else "the noise levels of Stable Diffusion")
        + (f", guidance {SCALE:g} toward one of two classes" if guidance else "")
        + f"; the answer is exact. Fitted here to {FITTED} samples in {made.seconds:.0f} s "
        f"({made.evaluations:,} evaluations for all numbers of steps together), judged by "
        f"{judged.count} others."
    )
    return Problem(name, judged, targets, made.samplers, about)


@dataclass(frozen=True)
class Setting:
    """How a shipped model is run. `scale`: of the guidance, None for its own; `inputs`: of the
    pipeline.
    """

    title: str
    scale: float | None = None
    until: float | None = None
    dtype: str | None = None
    model: str | None = None
    inputs: tuple[tuple[str, Any], ...] = ()


SETTINGS = (
    Setting("as fitted"), Setting("guidance 2", scale=2.0), Setting("guidance 6", scale=6.0),
    Setting("guidance until 0.4", until=0.4), Setting("bf16", dtype="bf16"),
    Setting("96 x 96 pixels", inputs=(("height", 96), ("width", 96))),
    *(Setting(sibling, model=sibling) for sibling in SIBLINGS if sibling in zoo.MODELS),
)  # fmt: skip


def shipped(
    name: str, size: Size, setting: Setting = SETTINGS[0], truth: Targets | None = None
) -> Problem:
    """A shipped model with prompts and seeds that its tables have not seen; `truth`: the converged,
    where known.

    Raises `ModelError` where no table is shipped with it.
    """
    fitted = tables(name, size.steps)
    helm = still(setting.model or name, setting.dtype)
    given, seeds, about = unseen(helm, fitted, size.samples)
    model = network(helm, given, seeds, setting)
    targets = truth or converge(model, range(size.samples), lambda message: None)
    return Problem(name, model, targets, fitted, about, partial(decoded, helm))


def tables(name: str, steps: Iterable[int]) -> dict[int, tm.Sampler]:
    """The samplers that a model is shipped with, by steps. Raises `ModelError` where there are
    none.
    """
    own = tm.cfg(zoo.card(name).default_guidance)
    found = {n: zoo.tuned(name, n, own) for n in steps}
    fitted = {n: sampler for n, sampler in found.items() if sampler is not None}
    if not fitted:
        raise ModelError(f"no fitted tables are shipped with {name}")
    return fitted


def still(name: str, dtype: str | None = None) -> tm.Helm:
    """A shipped model without progress bars, with its convolutions in the memory order that is
    faster on CPUs.
    """
    helm = tm.Helm(name, dtype=dtype)
    helm.pipe.set_progress_bar_config(disable=True)
    unet = getattr(helm.pipe, "unet", None)
    for kernel in [] if unet is None else unet.parameters():
        if kernel.ndim == 4:
            kernel.data = kernel.data.contiguous(memory_format=torch.channels_last)
    return helm


def network(
    helm: tm.Helm, given: dict[str, Any], seeds: list[int], setting: Setting = SETTINGS[0]
) -> Pipeline:
    """The network of a shipped model under a setting, with a sample for every seed."""
    assert helm.card is not None
    scale = helm.card.default_guidance if setting.scale is None else setting.scale
    captured = capture(helm, seeds=seeds, guidance=scale, **given, **dict(setting.inputs))
    return Pipeline(captured, tm.cfg(scale, until=setting.until))


def decoded(helm: tm.Helm, latents: Tensor) -> Tensor:
    """Pictures, or clips, of which the autoencoder is to see one at a time."""
    if latents.ndim < 5:
        return helm.context.decode(latents)
    return torch.cat([helm.context.decode(clip) for clip in latents.split(1)])


def unseen(
    helm: tm.Helm, fitted: dict[int, tm.Sampler], count: int
) -> tuple[dict[str, Any], list[int], str]:
    """Inputs and seeds that are in no table's provenance, and what they are in words."""
    known = [sampler.fitted.provenance for sampler in fitted.values() if sampler.fitted is not None]
    first = max([SEED, *(seed + 1 for told in known for seed in told.seeds + told.held_out_seeds)])
    seeds = list(range(first, first + count))
    prompts = {prompt for told in known for prompt in told.prompts + told.held_out_prompts}
    card = helm.card
    assert card is not None
    fresh = [concept for concept in card.concepts if concept not in prompts]
    chosen = fresh[:: max(1, len(fresh) // count)][:count]
    chosen = [chosen[i % len(chosen)] for i in range(count)]
    if "prompt" in helm.parameters:
        return (
            {"prompt": chosen},
            seeds,
            f"{count} prompts and seeds that no fit has seen; in brackets that of pixels.",
        )
    side = {"height": card.resolution, "width": card.resolution}
    about = (
        f"{count} pictures painted for this by emoji, and seeds, that no fit has seen; in brackets "
        "that of pixels."
    )
    return {"image": painted(chosen, seeds), **Motion().arguments(), **side}, seeds, about
