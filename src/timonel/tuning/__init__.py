"""Fit a sampler to a model: the same picture in fewer steps, proven on noise that the fit has not
seen.

    found = tm.tune("emoji", steps=8, minutes=5, out="fast.json")
    picture = helm("red apple", sampler="fast.json").images[0]

Everything is measured as the distance to the converged picture of the same noise, guided all the
way. What is fitted is in `form.py`, how in `fit.py`; which way is taken is `METHODS`.
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
from ..core.fitted.fitted import Fingerprint, ProcessData, fingerprint
from ..core.guidance import Guidance, cfg
from ..core.process import from_config as process_of
from ..core.sampler import Sampler
from ..errors import ArgumentError
from . import checks, held_out
from .checks import METHODS
from .fitting import Fitting, Outcome, held_bytes
from .model import Model, Pipeline, Plain
from .parameters import Arrays
from .samples import LEAST, Subjects, subjects
from .store import Store
from .targets import FIRST, Targets, Told, converge, march

if TYPE_CHECKING:
    from ..pipelines.helm import Helm

__all__ = ["METHODS", "Pipeline", "Plain", "Tuning", "fit_model", "tune"]

MEMORY = 4  # predictions that a row may correct
SEEDS = 64  # samples, where the time is enough for them
EASY, SHARE, LIMIT = (
    0.25,
    0.6,
    0.8,
)  # of the time: what targets take by choice, may if they converge at once, at most


@dataclass(frozen=True)
class Tuning:
    """What a fit found. `samplers`: by number of steps, those that were better than what they began
    with.
    """

    outcomes: list[Outcome]
    seconds: float
    evaluations: int
    files: list[Path] = field(default_factory=list)

    @property
    def samplers(self) -> dict[int, Sampler]:
        """The fitted samplers by steps."""
        return {one.steps: one.sampler for one in self.outcomes if one.sampler is not None}

    def lines(self) -> list[str]:
        """What was found, in words."""
        found = []
        for one in self.outcomes:
            if one.sampler is None:
                found.append(f"{one.steps} steps: nothing kept, {one.reason}")
            else:
                gain = one.held_start / one.held_tuned
                found.append(
                    f"{one.steps} steps: held-out error {one.held_tuned:.4g}, {gain:.3g} times"
                    f" below {one.start} ({one.held_start:.4g}){_equals(one.sampler)}"
                )
        return found or ["stopped before anything was found"]


def _equals(sampler: Sampler) -> str:
    """How many more steps of the sampler that is to be equalled it stands for, of those that were
    measured.
    """
    fitted = sampler.fitted
    assert fitted is not None
    own, goals = (
        fitted.provenance.held_out["tuned"],
        [m for m in fitted.provenance.errors if m.steps in held_out.GOALS],
    )
    beaten = [m for m in goals if m.error >= own and m.steps > fitted.steps]
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
    told: Told | None = None,
    **inputs: Any,
) -> Tuning:
    """Fit samplers to a model of any diffusers pipeline, and keep those that are better on noise
    they never saw.

    `model`: a name, a pipeline or a `Helm`. `steps`: one number, or several that share the
    converged samples. `prompts`: a list or a file, a line each (pictures for models that begin with
    one); a shipped model has its own. `seeds`: how many samples, a third of them held out, by
    default 64 or, where a quarter of the time is too short to make so many converge, as many as it
    is enough for; `seed`: the first. `guidance`: as the sampler will be used. `minutes`: for
    everything. `out`: a .json file; for several steps a folder of them. `start`: where to begin, by
    default the best of the usual. `method`: one of `METHODS`, by default the best for the network's
    precision. `batch`: network evaluations a call, by default as many as fit into little memory.
    `inputs`: of the pipeline. A fit that was killed goes on where it was.

    Raises `ArgumentError` for what cannot be fitted, before or as soon as it shows: too few seeds
    or minutes, a stochastic start, a network that is not deterministic, samples that do not
    converge.
    """
    from ..pipelines.helm import Helm

    began = time.monotonic()
    counts = checks.asked(steps, seeds=seeds, minutes=minutes, out=out, method=method, batch=batch)
    helm = model if isinstance(model, Helm) else Helm(model)
    given = guidance if guidance is None or isinstance(guidance, Guidance) else cfg(guidance)
    if given is None and helm.card is not None:
        given = cfg(helm.card.default_guidance)
    if (
        helm.card is not None and "image" in helm.parameters
    ):  # such pipelines have a size of their own, far larger
        inputs = {"height": helm.card.resolution, "width": helm.card.resolution, **inputs}
    checks.one_scale(given)
    checks.begins(method, start, counts, process_of(helm.pipe.scheduler.config))
    used = _used(helm, inputs, given)
    telling = told or (lambda message: None)
    made = subjects(helm, prompts, SEEDS if seeds is None else seeds, seed)
    telling("watching the pipeline")
    with _still(helm.pipe):
        network, weights = _network(helm, made, given, batch, inputs, telling)
        where = {
            "model": helm.name or type(helm.pipe).__name__, "fingerprint": weights,
            "guidance": None if used is None else GuidanceData.of(used),
            "dtype": str(helm.pipe.dtype)[6:],
            "prompts": made.prompts, "seeds": made.seeds,
        }  # fmt: skip
        return fit_model(
            network, steps=counts, split=made.split(), fewer=seeds is None, minutes=minutes,
            out=out, start=start,
            method=method, told=telling, where=where, began=began,
        )  # fmt: skip


def _used(helm: Helm, inputs: dict[str, Any], guidance: Guidance | None) -> Guidance | None:
    """The guidance of the fit as a use of its file is looked at: with the pipeline's own scale
    where it has one.
    """
    from ..pipelines import fitted_check
    from ..pipelines.guidance import scale as scales

    options = dict(inputs)
    ordered, _ = scales.order(helm.pipe, helm.parameters, options, guidance)
    return fitted_check.guided(helm.pipe, helm.parameters, options, ordered)


@contextmanager
def _still(pipe: Any) -> Iterator[None]:
    """The pipeline without progress bars, without gradients of its weights and fast; afterwards as
    it was.
    """
    bar = dict(getattr(pipe, "_progress_bar_config", None) or {})
    modules = [
        part
        for part in getattr(pipe, "components", {}).values()
        if isinstance(part, torch.nn.Module)
    ]
    trained = [p for module in modules for p in module.parameters() if p.requires_grad]
    kernels = [p for module in modules for p in module.parameters() if _rearranges(p)]
    for parameter in trained:
        parameter.requires_grad_(False)
    for kernel in kernels:
        kernel.data = kernel.data.contiguous(memory_format=torch.channels_last)
    if hasattr(pipe, "set_progress_bar_config"):
        pipe.set_progress_bar_config(**{**bar, "disable": True})
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
        for kernel in kernels:
            kernel.data = kernel.data.contiguous()
        if hasattr(pipe, "set_progress_bar_config"):
            pipe.set_progress_bar_config(**bar)


def _rearranges(p: torch.nn.Parameter) -> bool:
    """Whether this is the kernel of a convolution that may have channels last, a fifth faster, and
    be put back.
    """
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
    told: Told | None = None,
    where: dict[str, Any] | None = None,
    began: float | None = None,
) -> Tuning:
    """As `tune`, for any `Model`, such as `Plain(denoise, noise, process)`.

    `split`: samples to fit and samples held out, by default the last third. `fewer`: take the first
    of both alone where the time is short. `iterations`: at most so many for every number of steps.
    `memory`: predictions that a row may correct. `where`: what the file says it was fitted to.
    `began`: when the minutes did, by `time.monotonic`.

    Raises what `tune` raises; a guidance scale for every step too, before any compute.
    """
    counts, telling = (
        checks.asked(steps, minutes=minutes, out=out, method=method),
        told or (lambda message: None),
    )
    began = time.monotonic() if began is None else began
    checks.one_scale(model.guidance)
    checks.begins(method, start, counts, model.process)
    chosen, held = checks.thirds(model.count) if split is None else checks.split(split, model.count)
    target = None if out is None else checks.target(Path(out), counts)
    facts = {
        "model": "a denoiser",
        "fingerprint": None,
        "guidance": None,
        "dtype": "float32",
        **(where or {}),
    }
    answer = checks.answer(model)
    way = checks.way(model, method)
    settings = {
        **facts, "fitted": sorted(chosen), "held": sorted(held), "start": str(start), "way": way,
        "memory": memory,
        "process": ProcessData.of(model.process, checks.short(model, 2)), "answer": answer,
        "fewer": fewer,
    }  # fmt: skip
    store = None if target is None else Store(checks.part(target[0]), settings)
    needs = held_bytes(model, len(chosen) + len(held), max(counts), way, memory) / 2**20
    room = f", {needs:,.0f} MiB beside the network" if needs else ""
    telling(f"{way}: {len(chosen)} samples to fit and {len(held)} to judge{room}")
    spent, ends = time.monotonic() - began, began + 60 * minutes
    targets = _targets(model, (chosen, held), fewer, spent, 60 * minutes, store, telling)
    fitting = Fitting(model, targets, way, memory, facts, telling, store)
    fitting.samples = (
        tuple(s for s in chosen if s in targets.samples),
        tuple(s for s in held if s in targets.samples),
    )
    outcomes, files = list[Outcome](), list[Path]()
    try:
        for i, count in enumerate(counts):
            left = max(0.0, ends - time.monotonic())
            share = left * count / sum(counts[i:])
            made = fitting.one(count, start, share, iterations)
            outcomes.append(made)
            if target is not None and made.sampler is not None:
                files.append(
                    made.sampler.save(target[0] / f"{count}.json" if target[1] else target[0])
                )
            if fitting.stopped:
                break
    except KeyboardInterrupt:
        fitting.stopped = True
    if fitting.stopped:
        telling(
            "stopped; what was found so far is kept"
            + (", the same call goes on" if store is not None else "")
        )
    if store is not None and not fitting.stopped:
        store.clear()
    return Tuning(outcomes, time.monotonic() - began, model.evaluations, files)


def _network(
    helm: Helm,
    made: Subjects,
    guidance: Guidance | None,
    batch: int | None,
    inputs: dict[str, Any],
    told: Told,
) -> tuple[Model, Fingerprint | None]:
    """The pipeline's network with the conditions of all samples, or the pipeline as a black box."""
    from ..pipelines.capture import NotCaptured, capture
    from .blackbox import Whole

    scale = None if guidance is None else guidance.scale
    assert not isinstance(scale, tuple)
    try:
        captured = capture(helm, seeds=list(made.seeds), guidance=scale, **made.inputs(), **inputs)
    except NotCaptured as reason:
        told(f"every try is a whole call of the pipeline: {reason}")
        network = getattr(helm.pipe, "unet", None) or getattr(helm.pipe, "transformer", None)
        return Whole(helm, made.each(inputs), made.seeds, guidance), network and fingerprint(
            network
        )
    return Pipeline(captured, guidance, batch), fingerprint(captured.module)


def _targets(
    model: Model, split: tuple[Sequence[int], Sequence[int]], fewer: bool, spent: float,
    budget: float,
    store: Store | None, told: Told,
) -> Targets:  # fmt: skip
    """The converged samples, from before or made now. Raises `ArgumentError` where the time is too
    short for them.
    """
    made = None if store is None else store.targets()
    if (
        made is not None
        and set(made.samples) <= {*split[0], *split[1]}
        and len(made.samples) == len(made.result)
    ):
        told(f"{len(made.samples)} converged samples from before")
        return made
    chosen, held = split
    count, left = len(chosen) + len(held), max(0.0, budget - spent)
    each = 3 * FIRST * _seconds(model, [*chosen, *held])
    easy = max(LEAST, int(EASY * left / each))
    if fewer and easy < count:
        chosen, held = chosen[: easy - easy // 3], held[: easy // 3]
        told(f"{len(chosen) + len(held)} of the {count} samples, for the time is short")
        count = len(chosen) + len(held)
    need = each * count
    if need > SHARE * left:
        most = int(SHARE * left / each)
        raise ArgumentError(
            f"the converged samples alone take about {need / 60:.1f} of the {budget / 60:.3g}"
            f" minutes: give minutes={math.ceil((spent + need / SHARE) / 6) / 10:g}"
            + (f", or seeds={most}" if most >= LEAST else "")
        )
    told(f"about {need:.0f} s for the converged samples, {left - need:.0f} s are left for the fit")
    began = time.monotonic()
    made = converge(model, [*chosen, *held], told, LIMIT * left)
    made = replace(made, seconds=spent + time.monotonic() - began, calls=model.evaluations)
    if store is not None:
        store.keep_targets(made)
    return made


@torch.no_grad()
def _seconds(model: Model, samples: Sequence[int]) -> float:
    """Of one step of one sample, among as many as a network call takes."""
    some = samples[: min(len(samples), 8)]
    began = time.perf_counter()
    march(model, Arrays.of(checks.short(model, 2)), some)
    return (time.perf_counter() - began) / len(some) / 2
