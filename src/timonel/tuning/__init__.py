"""Fit a sampler to a model: the same picture in fewer steps, proven on noise no fit has seen.

    result = tm.tune("emoji", steps=8, minutes=5, out="fast.json")
    picture = helm("red apple", sampler="fast.json").images[0]

Everything is measured as the distance to the converged picture of the same noise, guided all the
way. What is fitted is in `parameters.py`, how in `gauss_newton.py`; the ways are `METHODS`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..core.data import GuidanceData
from ..core.fitted.fingerprint import Fingerprint, fingerprint
from ..core.fitted.provenance import ProcessData
from ..core.guidance import Guidance, cfg
from ..core.process import from_config as process_of
from ..core.sampler import Sampler
from ..errors import ArgumentError
from ..pipelines.modular import without_bar
from . import checks, held_out
from .checks import METHODS
from .fitting import FitOutcome, Fitting, held_bytes
from .model import Model, Pipeline, Plain
from .parameters import Arrays
from .samples import LEAST, Samples, samples_of
from .store import FitStore
from .targets import FIRST, Log, Targets, converge, finest

if TYPE_CHECKING:
    from ..pipelines.helm import Helm

__all__ = ["METHODS", "Pipeline", "Plain", "Tuning", "fit_model", "tune"]

MEMORY = 4  # predictions that a row may correct
SEEDS = 64  # samples, where the time is enough for them
# of a model that is not a pipeline
UNKNOWN = {"model": "a denoiser", "fingerprint": None, "guidance": None, "dtype": "float32"}
# shares of the time that targets take by choice, may take if they converge at once, and at most
EASY, SHARE, LIMIT = 0.25, 0.6, 0.8


@dataclass(frozen=True)
class Tuning:
    """The result of `tune`.

    Args:
        outcomes: One for every number of steps.
        seconds: What it took.
        evaluations: Network evaluations that it took.
        files: The samplers that were written.
    """

    outcomes: list[FitOutcome]
    seconds: float
    evaluations: int
    files: list[Path] = field(default_factory=list)

    @property
    def samplers(self) -> dict[int, Sampler]:
        """The samplers by steps, of those fits that were better than what they began with."""
        return {one.steps: one.sampler for one in self.outcomes if one.sampler is not None}

    def lines(self) -> list[str]:
        """The outcomes in words."""
        lines = [
            f"{one.steps} steps: nothing kept, {one.reason}"
            if one.sampler is None
            else f"{one.steps} steps: held-out error {one.held_tuned:.4g},"
            f" {one.held_start / one.held_tuned:.3g} times below {one.start}"
            f" ({one.held_start:.4g}){_equals(one.sampler)}"
            for one in self.outcomes
        ]
        return lines or ["stopped before anything was found"]


def _equals(sampler: Sampler) -> str:
    """The most steps of the usual sampler that it is as good as, of those that were measured."""
    fitted = sampler.fitted
    assert fitted is not None
    error = fitted.provenance.held_out["tuned"]
    beaten = [
        usual
        for usual in fitted.provenance.errors
        if usual.steps in held_out.GOALS and usual.error >= error and usual.steps > fitted.steps
    ]
    return f"; as good as {beaten[-1].sampler} in {beaten[-1].steps} steps" if beaten else ""


def tune(
    model: Helm | Any,
    *,
    steps: int | Sequence[int] = 8,
    prompts: Sequence[str] | str | PathLike[str] | None = None,
    seeds: int | None = None,
    seed: int = 1_000_000,
    guidance: Guidance | float | None = None,
    minutes: float = 5.0,
    out: str | PathLike[str] | None = None,
    start: Sampler | str | None = None,
    method: str | None = None,
    batch: int | None = None,
    log: Log | None = None,
    **inputs: Any,
) -> Tuning:
    """Fit samplers to a model of any diffusers pipeline, and keep those that prove better.

    They are judged on noise that the fit never saw. One that was killed goes on where it was.

    Args:
        model: A name, a pipeline or a `Helm`.
        steps: One number, or several that share the converged samples.
        prompts: A list, or a file with one a line (pictures for models that begin with one); a
            shipped model has its own.
        seeds: How many samples, a third of them held out. By default 64, or as many as converge in
            a quarter of the time.
        seed: The first seed.
        guidance: As the sampler will be used; one scale, with an interval or without.
        minutes: For everything, 0.01 to 1440.
        out: A .json file; for several steps a folder of them.
        start: The sampler where the fit begins, by default the best of the usual.
        method: One of `METHODS`, by default the best for the network's precision.
        batch: Network evaluations a call, by default as many as fit into little memory.
        log: Gets a line for everything that is begun.
        inputs: Other arguments of the pipeline.

    Returns:
        What the fit came to for every number of steps, and the files it wrote.

    Raises:
        ArgumentError: For what cannot be fitted, before or as soon as it shows: too few seeds or
            minutes, a stochastic start, a network that is not deterministic, samples that do not
            converge.
    """
    from ..pipelines.helm import Helm

    began = time.monotonic()
    counts = checks.counts(steps, seeds=seeds, minutes=minutes, out=out, method=method, batch=batch)
    helm = model if isinstance(model, Helm) else Helm(model)
    if guidance is not None and not isinstance(guidance, Guidance):
        guidance = cfg(guidance)
    if helm.card is not None:
        guidance = guidance or cfg(helm.card.default_guidance)
        if "image" in helm.parameters:  # such pipelines have a size of their own, far larger
            inputs = {"height": helm.card.resolution, "width": helm.card.resolution, **inputs}
    checks.one_scale(guidance)
    checks.begins(method, start, counts, process_of(helm.pipe.scheduler.config))
    used, log = _used(helm, inputs, guidance), log or (lambda message: None)
    samples = samples_of(helm, prompts, SEEDS if seeds is None else seeds, seed)
    log("watching the pipeline")
    with _still(helm.pipe):
        network, weights = _network(helm, samples, guidance, batch, inputs, log)
        where = {
            "model": helm.name or type(helm.pipe).__name__, "fingerprint": weights,
            "guidance": None if used is None else GuidanceData.of(used),
            "dtype": str(helm.pipe.dtype)[6:],
            "prompts": samples.prompts, "seeds": samples.seeds,
        }  # fmt: skip
        return fit_model(
            network, steps=counts, split=samples.split(), fewer=seeds is None, minutes=minutes,
            out=out, start=start, method=method, log=log, where=where, began=began,
        )  # fmt: skip


def _used(helm: Helm, inputs: dict[str, Any], guidance: Guidance | None) -> Guidance | None:
    """The guidance as the file of the fit says it, with the pipeline's scale."""
    from ..pipelines import fitted_check
    from ..pipelines.guidance import scale as scales

    options = dict(inputs)
    ordered, _ = scales.resolve_guidance(helm.pipe, helm.parameters, options, guidance)
    return fitted_check.guided(helm.pipe, helm.parameters, options, ordered)


@contextmanager
def _still(pipe: Any) -> Iterator[None]:
    """The pipeline fast, without progress bars and gradients of weights; afterwards as it was."""
    parts = getattr(pipe, "components", {}).values()
    parameters = [
        p for part in parts if isinstance(part, torch.nn.Module) for p in part.parameters()
    ]
    trained = [p for p in parameters if p.requires_grad]
    kernels = [p for p in parameters if _rearranges(p)]
    for parameter in trained:
        parameter.requires_grad_(False)
    for kernel in kernels:
        kernel.data = kernel.data.contiguous(memory_format=torch.channels_last)
    try:
        with without_bar(pipe):
            yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
        for kernel in kernels:
            kernel.data = kernel.data.contiguous()


def _rearranges(p: torch.nn.Parameter) -> bool:
    """Whether a convolution's kernel may have channels last, a fifth faster, and be put back."""
    return p.ndim == 4 and p.is_floating_point() and p.device.type != "meta" and p.is_contiguous()


def fit_model(
    model: Model,
    *,
    steps: int | Sequence[int] = 8,
    split: tuple[Sequence[int], Sequence[int]] | None = None,
    fewer: bool = False,
    minutes: float = 5.0,
    iterations: int | None = None,
    out: str | PathLike[str] | None = None,
    start: Sampler | str | None = None,
    method: str | None = None,
    memory: int = MEMORY,
    log: Log | None = None,
    where: dict[str, Any] | None = None,
    began: float | None = None,
) -> Tuning:
    """As `tune`, for any `Model`, such as `Plain(denoise, noise, process)`.

    Args:
        model: The network with its samples.
        steps: See `tune`.
        split: Samples to fit and samples held out, by default the last third.
        fewer: Whether only the first of both are taken where the time is short.
        minutes: See `tune`.
        iterations: At most so many for every number of steps.
        out: See `tune`.
        start: See `tune`.
        method: See `tune`.
        memory: Predictions that a row may correct.
        log: See `tune`.
        where: What the files say they were fitted to.
        began: When the minutes did, by `time.monotonic`.

    Returns:
        See `tune`.

    Raises:
        ArgumentError: As `tune`; a guidance scale for every step too.
    """
    counts = checks.counts(steps, minutes=minutes, out=out, method=method)
    log, began = log or (lambda message: None), time.monotonic() if began is None else began
    checks.one_scale(model.guidance)
    checks.begins(method, start, counts, model.process)
    chosen, held = checks.split(split, model.count)
    target = None if out is None else checks.target(Path(out), counts)
    facts = {**UNKNOWN, **(where or {})}
    answer, way = checks.answer(model), checks.way(model, method)
    settings = {
        **facts, "fitted": sorted(chosen), "held": sorted(held), "start": str(start), "way": way,
        "memory": memory,
        "process": ProcessData.of(model.process, checks.short(model, 2)), "answer": answer,
        "fewer": fewer,
    }  # fmt: skip
    store = None if target is None else FitStore(checks.part(target[0]), settings)
    needs = held_bytes(model, len(chosen) + len(held), max(counts), way, memory) / 2**20
    room = f", {needs:,.0f} MiB beside the network" if needs else ""
    log(f"{way}: {len(chosen)} samples to fit and {len(held)} to judge{room}")
    spent, ends = time.monotonic() - began, began + 60 * minutes
    targets = _targets(model, (chosen, held), fewer, spent, 60 * minutes, store, log)
    fitting = Fitting(model, targets, way, memory, facts, log, store)
    fitting.samples = targets.among(chosen), targets.among(held)
    outcomes, files = _fit(fitting, counts, start, iterations, ends, target)
    return Tuning(outcomes, time.monotonic() - began, model.evaluations, files)


def _fit(
    fitting: Fitting, counts: list[int], start: Sampler | str | None, iterations: int | None,
    ends: float, target: tuple[Path, bool] | None,
) -> tuple[list[FitOutcome], list[Path]]:  # fmt: skip
    """The outcome of every number of steps, and the files that were written of them."""
    outcomes, files, store = list[FitOutcome](), list[Path](), fitting.store
    try:
        for i, count in enumerate(counts):
            share = max(0.0, ends - time.monotonic()) * count / sum(counts[i:])
            outcome = fitting.one(count, start, share, iterations)
            outcomes.append(outcome)
            if target is not None and outcome.sampler is not None:
                out, several = target
                files.append(outcome.sampler.save(out / f"{count}.json" if several else out))
            if fitting.stopped:
                break
    except KeyboardInterrupt:
        fitting.stopped = True
    if fitting.stopped:
        again = ", the same call goes on" if store is not None else ""
        fitting.log(f"stopped; the results so far are kept{again}")
    elif store is not None:
        store.clear()
    return outcomes, files


def _network(
    helm: Helm, samples: Samples, guidance: Guidance | None, batch: int | None,
    inputs: dict[str, Any], log: Log,
) -> tuple[Model, Fingerprint | None]:  # fmt: skip
    """The pipeline's network with the conditions of all samples, or the pipeline as a black box."""
    from ..pipelines.capture import NotCaptured, capture
    from .blackbox import Whole

    scale = None if guidance is None else guidance.scale
    assert not isinstance(scale, tuple)
    try:
        captured = capture(
            helm, seeds=list(samples.seeds), guidance=scale, **samples.inputs(), **inputs
        )
    except NotCaptured as reason:
        log(f"every try is a whole call of the pipeline: {reason}")
        network = getattr(helm.pipe, "unet", None) or getattr(helm.pipe, "transformer", None)
        whole = Whole(helm, samples.each(inputs), samples.seeds, guidance)
        return whole, network and fingerprint(network)
    return Pipeline(captured, guidance, batch), fingerprint(captured.module)


def _targets(
    model: Model, split: tuple[Sequence[int], Sequence[int]], fewer: bool, spent: float,
    budget: float, store: FitStore | None, log: Log,
) -> Targets:  # fmt: skip
    """The converged samples, from before or computed now.

    Raises `ArgumentError` where the time is too short for them.
    """
    chosen, held = split
    before = None if store is None else store.targets({*chosen, *held})
    if before is not None:
        log(f"{len(before.samples)} converged samples from before")
        return before
    count, left = len(chosen) + len(held), max(0.0, budget - spent)
    each = 3 * FIRST * _seconds(model, [*chosen, *held])
    easy = max(LEAST, int(EASY * left / each))
    if fewer and easy < count:
        chosen, held = chosen[: easy - easy // 3], held[: easy // 3]
        log(f"{len(chosen) + len(held)} of the {count} samples, for the time is short")
        count = len(chosen) + len(held)
    need = each * count
    if need > SHARE * left:
        most = int(SHARE * left / each)
        raise ArgumentError(
            f"the converged samples alone take about {need / 60:.1f} of the {budget / 60:.3g}"
            f" minutes: give minutes={math.ceil((spent + need / SHARE) / 6) / 10:g}"
            + (f", or seeds={most}" if most >= LEAST else "")
        )
    log(f"about {need:.0f} s for the converged samples, {left - need:.0f} s are left for the fit")
    began = time.monotonic()
    targets = converge(model, [*chosen, *held], log, LIMIT * left)
    seconds = spent + time.monotonic() - began
    targets = replace(targets, seconds=seconds, calls=model.evaluations)
    if store is not None:
        store.keep_targets(targets)
    return targets


@torch.no_grad()
def _seconds(model: Model, samples: Sequence[int]) -> float:
    """Of one step of one sample, among as many as a network call takes."""
    some = samples[: min(len(samples), 8)]
    began = time.perf_counter()
    finest(model, Arrays.of(checks.short(model, 2)), some)
    return (time.perf_counter() - began) / len(some) / 2
