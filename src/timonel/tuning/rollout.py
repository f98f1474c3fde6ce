"""Running samplers that are being fitted, many at a time, and how their results move with their
numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..core.guidance import Guiding
from ..core.process import Level
from ..engine.network import Query
from .model import Model
from .parameters import Arrays, Form


@dataclass(frozen=True, eq=False)
class Rollout:
    """What a run of N rows saw.

    Args:
        x: Its N + 1 samples (n, …).
        denoised: Its N predictions (n, …).
        differences: cond - uncond of its rows' outputs, None where a row did not compute both.
    """

    x: list[Tensor]
    denoised: list[Tensor] = field(default_factory=list)
    differences: list[Tensor | None] = field(default_factory=list)

    @property
    def result(self) -> Tensor:
        """The last sample."""
        return self.x[-1]

    def branch(self, row: int) -> Rollout:
        """What was seen before a row, to go on from there."""
        return Rollout(self.x[: row + 1], self.denoised[:row], self.differences[:row])

    def query(
        self, model: Model, arrays: Arrays, samples: Sequence[int], guiding: Guiding
    ) -> Query:
        """What the next row asks."""
        row = len(self.denoised)
        query = model.query(self.x[-1], arrays.at(row), samples, guiding.scales[row])
        weights = guiding.forecasts[row]
        if not weights:
            return query._replace(difference=any(guiding.forecasts))
        known = [d for d in reversed(self.differences) if d is not None]
        parts = [weight * d for weight, d in zip(weights, known, strict=False)]
        return query._replace(forecast=torch.stack(parts).sum(0))


def roll(model: Model, arrays: Arrays, samples: Sequence[int]) -> Rollout:
    """One sampler, from noise to the result; the result alone where only `model.run` works."""
    if not model.stepwise:
        return Rollout([model.run(arrays.table("fit", "fit"), samples)])
    seen, guiding = Rollout([model.start(samples)]), model.guiding(arrays)
    for _ in range(arrays.rows):
        _advance(model, [seen], [arrays], [guiding], samples)
    return seen


def _advance(
    model: Model, seen: Sequence[Rollout], arrays: Sequence[Arrays], guiding: Sequence[Guiding],
    samples: Sequence[int],
) -> None:  # fmt: skip
    """One row of every rollout, in one call of the model."""
    each = list(zip(seen, arrays, guiding, strict=True))
    queries = [one.query(model, numbers, samples, how) for one, numbers, how in each]
    for (one, numbers, _), answer in zip(each, model.denoise(queries), strict=True):
        one.denoised.append(answer.raw)
        one.differences.append(answer.difference)
        one.x.append(_next(numbers, len(one.denoised) - 1, one.x[-1], one.denoised))


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
        denoised.append(model.denoise([query])[0].raw)
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
    first = [_first_change(candidate, base) for candidate in candidates]
    seen = [known.branch(row) for row, _ in first]
    guiding = [model.guiding(candidate) for candidate in candidates]
    for k in range(base.rows):
        called = list[int]()
        for i, (row, calls) in enumerate(first):
            if row < k or (row == k and calls):
                called.append(i)
            elif row == k:  # the same call, and another sum of what it gave
                seen[i].denoised.append(known.denoised[k])
                seen[i].differences.append(known.differences[k])
                seen[i].x.append(_next(candidates[i], k, seen[i].x[-1], seen[i].denoised))
        if called:
            seen_, arrays, how = ([some[i] for i in called] for some in (seen, candidates, guiding))
            _advance(model, seen_, arrays, how, samples)  # type: ignore[arg-type]
        for one in seen:
            del one.x[:-1]
    return [one.result for one in seen]


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
    n, scales = arrays.rows, model.guiding(arrays).scales
    alpha, sigma, time, keep = (numbers[:, i * n : (i + 1) * n] for i in range(4))
    weights = numbers[:, 4 * n :].reshape(len(samples), n, n)
    x = model.start(samples)
    wide = torch.promote_types(x.dtype, torch.float32)
    broad = (-1, *(1,) * (x.ndim - 1))
    predictions = list[Tensor]()

    def denoised(x: Tensor, scale: float | None, *level: Tensor) -> Tensor:
        return model.denoise([model.query(x, Level(*level), samples, scale)])[0].raw

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
