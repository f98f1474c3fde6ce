"""Running samplers that are fitted, many at a time, and how results move with the numbers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..core.guidance import CompiledGuidance
from ..core.process import Level
from ..engine.network import Answer, Query
from .model import Model
from .parameters import Arrays, Form


@dataclass(eq=False)
class Rollout:
    """A run of a sampler of N rows on a model, as far as it has come.

    Args:
        model: What it runs on.
        arrays: The sampler.
        samples: Their numbers (n,).
        x: Its samples (n, …), N + 1 at the end.
        denoised: Its predictions (n, …).
        differences: cond - uncond of its rows' outputs, None where a row did not compute both.
    """

    model: Model
    arrays: Arrays
    samples: Sequence[int]
    x: list[Tensor]
    denoised: list[Tensor] = field(default_factory=list)
    differences: list[Tensor | None] = field(default_factory=list)

    @property
    def result(self) -> Tensor:
        """The newest sample."""
        return self.x[-1]

    @cached_property
    def guided(self) -> CompiledGuidance:
        """How every row is guided."""
        return self.model.guided(self.arrays)

    def branch(self, row: int, arrays: Arrays) -> Rollout:
        """The run of another sampler that is the same up to a row."""
        return Rollout(
            self.model, arrays, self.samples, [self.x[row]], self.denoised[:row],
            self.differences[:row],
        )  # fmt: skip

    def query(self) -> Query:
        """The query of the next row."""
        row, guided = len(self.denoised), self.guided
        query = self.model.query(self.result, self.arrays.at(row), self.samples, guided.scales[row])
        weights = guided.weights[row]
        if not weights:
            return query._replace(difference=any(guided.weights))
        known = [d for d in reversed(self.differences) if d is not None]
        parts = [weight * d for weight, d in zip(weights, known, strict=False)]
        return query._replace(forecast=torch.stack(parts).sum(0))

    def answer(self, answer: Answer) -> Tensor:
        """Take the denoised prediction of the next row.

        Returns:
            The sample after that row.
        """
        self.denoised.append(answer.raw)
        self.differences.append(answer.difference)
        return _next(self.arrays, len(self.denoised) - 1, self.result, self.denoised)


def roll(model: Model, arrays: Arrays, samples: Sequence[int]) -> Rollout:
    """One sampler, from noise to the result; the result alone where only `model.run` works."""
    if not model.stepwise:
        return Rollout(model, arrays, samples, [model.run(arrays.table("fit", "fit"), samples)])
    one = Rollout(model, arrays, samples, [model.start(samples)])
    for _ in range(arrays.rows):
        one.x.append(one.answer(model.denoised([one.query()])[0]))
    return one


def path(
    model: Model, arrays: Arrays, samples: Sequence[int], scale: float | None
) -> Iterator[Tensor]:
    """The samples of every row and the result.

    Of the predictions only those are held that a later row reads.
    """
    x = model.start(samples)
    denoised: list[Tensor | None] = []
    for k in range(arrays.rows):
        yield x
        query = model.query(x, arrays.at(k), samples, scale)
        denoised.append(model.denoised([query])[0].raw)
        x = _next(arrays, k, x, denoised)
        read = arrays.weights[k + 1 :].any(0).tolist()
        denoised = [d if reads else None for d, reads in zip(denoised, read, strict=False)]
    yield x


def _next(arrays: Arrays, k: int, x: Tensor, denoised: Sequence[Tensor | None]) -> Tensor:
    """The next sample, rounded to the precision of the run as a run rounds it."""
    wide = torch.promote_types(x.dtype, torch.float32)
    total = float(arrays.keep[k]) * x.to(wide)
    for weight, clean in zip(arrays.weights[k].tolist(), denoised, strict=False):
        if weight and clean is not None:
            total = total.add(clean.to(wide), alpha=weight)
    return total.to(x.dtype)


def results(
    model: Model, candidates: Sequence[Arrays], base: Arrays, known: Rollout, samples: Sequence[int]
) -> list[Tensor]:
    """The results (n, …) of samplers that differ a little from a known one.

    Args:
        model: What they run on.
        candidates: The samplers.
        base: The known sampler.
        known: What its run saw, which is theirs up to the first difference.
        samples: Their numbers (n,).
    """
    if not model.stepwise:
        return [roll(model, candidate, samples).result for candidate in candidates]
    changes = [_first_change(candidate, base) for candidate in candidates]
    runs = [known.branch(row, arrays) for (row, _), arrays in zip(changes, candidates, strict=True)]
    for k in range(base.rows):
        called = []
        for one, (row, calls) in zip(runs, changes, strict=True):
            if row == k and not calls:  # the same call, and another sum of what it gave
                one.x = [one.answer(Answer(known.denoised[k], known.differences[k]))]
            elif row <= k:
                called.append(one)
        answers = model.denoised([one.query() for one in called])
        for one, answer in zip(called, answers, strict=True):
            one.x = [one.answer(answer)]
    return [one.result for one in runs]


def _first_change(candidate: Arrays, base: Arrays) -> tuple[int, bool]:
    """The first row in which two samplers differ, and whether its network call does."""
    calls = torch.stack([
        a != b for a, b in zip(candidate.levels, base.levels, strict=True)
    ]).any(0)  # fmt: skip
    sums = (candidate.keep != base.keep) | (candidate.weights != base.weights).any(-1)
    rows = (calls | sums).nonzero()
    row = int(rows[0]) if len(rows) else base.rows
    return row, row < base.rows and bool(calls[row])


@dataclass(frozen=True, eq=False)
class Slope:
    """The quadratic model of the mean log error at theta, over some samples.

    Args:
        error: Root mean square distance of each result to its target (n,).
        gradient: Of the mean of log error (P,).
        curvature: Gauss and Newton's, of the same (P, P).
    """

    error: Tensor
    gradient: Tensor
    curvature: Tensor


def differences(
    model: Model, form: Form, theta: Tensor, samples: Sequence[int], target: Tensor,
    *, floor: float = 0.0, size: float = 2e-3, at_once: int = 16,
) -> Slope:  # fmt: skip
    """The slope by forward calls alone.

    Every parameter is moved by `size`, and the run repeated from the row that this changes.

    Args:
        model: What the sampler runs on.
        form: What its parameters mean.
        theta: The parameters (P,).
        samples: Their numbers (n,).
        target: The converged samples (n, …).
        floor: Error of the targets themselves, below which nothing is gained.
        size: Of the moves.
        at_once: Candidates that are held in memory together.
    """
    arrays = form.arrays(theta)
    known = roll(model, arrays, samples)
    miss = (known.result.double() - target.double()).flatten(1)
    columns, ways = list[Tensor](), form.inward(theta)
    for begin in range(0, form.size, at_once):
        moved = range(begin, min(begin + at_once, form.size))
        candidates = [form.arrays(theta + size * ways[p] * _unit(form.size, p)) for p in moved]
        ends = results(model, candidates, arrays, known, samples)
        for p, end in zip(moved, ends, strict=True):
            change = (end.double() - known.result.double()) / (size * ways[p])
            columns.append(change.flatten(1).float())
    jacobian = torch.stack(columns, -1)
    weight = _weight(miss, floor)
    scaled = jacobian * weight.sqrt()[:, None, None].to(jacobian)
    flat = scaled.flatten(0, 1)
    gradient = torch.einsum("bdp,bd->p", scaled.double(), miss * weight.sqrt()[:, None])
    return Slope(_rms(miss), gradient / len(miss), (flat.T @ flat).double() / len(miss))


def backward(
    model: Model, form: Form, theta: Tensor, samples: Sequence[int], target: Tensor,
    *, floor: float = 0.0, probes: int = 8, generator: torch.Generator | None = None,
    at_once: int = 8,
) -> Slope:  # fmt: skip
    """The slope by gradients: exact for the error, by random projections for the curvature.

    J^T·J is the mean of (J^T·v)(J^T·v)^T over normal v, so every backward pass gives each sample's
    share. It costs about 3 + 2·probes evaluations where a run costs one, for any number of
    parameters.

    Args:
        model: What the sampler runs on.
        form: What its parameters mean.
        theta: The parameters (P,).
        samples: Their numbers (n,).
        target: The converged samples (n, …).
        floor: Error of the targets themselves, below which nothing is gained.
        probes: Random projections v.
        generator: Of the projections.
        at_once: Samples whose graph is held in memory together.
    """
    chain, arrays = form.jacobian(theta), form.arrays(theta)
    errors, gradient = list[Tensor](), theta.new_zeros(form.size)
    curvature = theta.new_zeros(form.size, form.size)
    at_once = 1 if model.lean else at_once
    for begin in range(0, len(samples), at_once):
        some = list(samples[begin : begin + at_once])
        leaf = arrays.flat().repeat(len(some), 1).requires_grad_()
        with torch.enable_grad():
            result = _differentiable(model, leaf, arrays, some)
        miss = (result.detach().double() - target[begin : begin + at_once].double()).flatten(1)
        weight = _weight(miss, floor)
        seeds = [miss * weight[:, None]]
        for _ in range(probes):
            normal = torch.randn(miss.shape, generator=generator, dtype=torch.float64)
            seeds.append(normal * weight.sqrt()[:, None])
        for i, seed in enumerate(seeds):
            outer = seed.reshape(result.shape).to(result)
            (grad,) = torch.autograd.grad(result, leaf, outer, retain_graph=i < len(seeds) - 1)
            share = grad.double() @ chain
            if i == 0:
                gradient += share.sum(0)
            else:
                curvature += share.T @ share / probes
        errors.append(_rms(miss))
    return Slope(torch.cat(errors), gradient / len(samples), curvature / len(samples))


def _differentiable(
    model: Model, numbers: Tensor, arrays: Arrays, samples: Sequence[int]
) -> Tensor:
    """The results of a run whose samples have numbers (n, Q) each, with their graph."""
    n, scales = arrays.rows, model.guided(arrays).scales
    alpha, sigma, time, keep = (numbers[:, i * n : (i + 1) * n] for i in range(4))
    weights = numbers[:, 4 * n :].reshape(len(samples), n, n)
    x = model.start(samples)
    wide = torch.promote_types(x.dtype, torch.float32)
    broad = (-1, *(1,) * (x.ndim - 1))
    predictions = list[Tensor]()

    def denoised(x: Tensor, scale: float | None, *level: Tensor) -> Tensor:
        return model.denoised([model.query(x, Level(*level), samples, scale)])[0].raw

    for k in range(n):
        row = x, scales[k], alpha[:, k], sigma[:, k], time[:, k]
        if model.lean:
            predictions.append(checkpoint(denoised, *row, use_reentrant=False))
        else:
            predictions.append(denoised(*row))
        total = keep[:, k].to(wide).reshape(broad) * x.to(wide)
        for j, clean in enumerate(predictions):
            total = total + weights[:, k, j].to(wide).reshape(broad) * clean
        x = total.to(x.dtype)
    return x


def _unit(size: int, p: int) -> Tensor:
    unit = torch.zeros(size, dtype=torch.float64)
    unit[p] = 1
    return unit


def _weight(miss: Tensor, floor: float) -> Tensor:
    """One over the squared error (n,): least squares of the error become those of its logarithm."""
    return 1 / (miss.square().sum(1) + floor**2 * miss.shape[1]).clamp(min=1e-30)


def _rms(miss: Tensor) -> Tensor:
    return miss.square().mean(1).sqrt()
