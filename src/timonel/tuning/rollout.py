"""Running samplers that are being fitted, many at a time, and how their results move with their
numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..core.process import Level
from .model import Model
from .parameters import Arrays, Form


@dataclass(frozen=True, eq=False)
class Journey:
    """What a run of N rows saw: `x`, its N + 1 samples (n, …); `denoised`, its N predictions.

    `apart`: conditional minus unconditional output of its rows, where both were computed.
    """

    x: list[Tensor]
    denoised: list[Tensor]
    apart: list[Tensor | None]

    @property
    def result(self) -> Tensor:
        """The last sample."""
        return self.x[-1]


def travel(model: Model, arrays: Arrays, samples: Sequence[int]) -> Journey:
    """One sampler, from noise to the result; only the result where the network cannot be called by
    itself.
    """
    if not model.stepwise:
        return Journey([model.run(arrays.table("fit", "fit"), samples)], [], [])
    x, plan = model.start(samples), model.plan(arrays)
    seen = Journey([x], [], [])
    for k in range(arrays.rows):
        away = foreseen(plan.weights[k], seen.apart)
        clean, apart = model.call(x, arrays.level(k), samples, plan.scales[k], away)
        seen.denoised.append(clean)
        seen.apart.append(apart)
        x = _next(arrays, k, x, seen.denoised)
        seen.x.append(x)
    return seen


def foreseen(shares: Sequence[float], apart: Sequence[Tensor | None]) -> Tensor | None:
    """The forecast of a row's difference from those before it, `shares` newest first; None where it
    has no shares.
    """
    if not shares:
        return None
    known = [difference for difference in reversed(apart) if difference is not None]
    return torch.stack([share * d for share, d in zip(shares, known, strict=False)]).sum(0)


def walk(
    model: Model, arrays: Arrays, samples: Sequence[int], scale: float | None
) -> Iterator[Tensor]:
    """The samples of every row and the result; of the predictions only those are held that a later
    row reads.
    """
    x = model.start(samples)
    found: list[Tensor | None] = []
    for k in range(arrays.rows):
        yield x
        found.append(model.denoised(x, arrays.level(k), samples, scale))
        x = _next(arrays, k, x, found)
        found = [d if bool(arrays.weights[k + 1 :, j].any()) else None for j, d in enumerate(found)]
    yield x


def _next(arrays: Arrays, k: int, x: Tensor, found: Sequence[Tensor | None]) -> Tensor:
    """The next sample, rounded to the precision of the run as a run rounds it."""
    wide = torch.promote_types(x.dtype, torch.float32)
    total = float(arrays.keep[k]) * x.to(wide)
    for j in range(k + 1):
        c, clean = float(arrays.weights[k, j]), found[j]
        if c and clean is not None:
            total = total.add(clean.to(wide), alpha=c)
    return total.to(x.dtype)


def ends(
    model: Model, candidates: Sequence[Arrays], base: Arrays, known: Journey, samples: Sequence[int]
) -> list[Tensor]:
    """The results of many samplers that differ from `base`, whose journey is known up to their
    first difference.
    """
    if not model.stepwise:
        return [travel(model, candidate, samples).result for candidate in candidates]
    n = base.rows
    calls = torch.stack(
        [
            (c.alpha != base.alpha) | (c.sigma != base.sigma) | (c.time != base.time)
            for c in candidates
        ]
    )
    moves = (
        torch.stack(
            [(c.keep != base.keep) | (c.weights != base.weights).any(-1) for c in candidates]
        )
        | calls
    )
    first = [int(m.nonzero()[0]) if bool(m.any()) else n for m in moves]
    plans = [model.plan(candidate) for candidate in candidates]
    xs = [known.x[f] for f in first]
    found: list[list[Tensor | None]] = [[*known.denoised[:f], *[None] * (n - f)] for f in first]
    apart: list[list[Tensor | None]] = [[*known.apart[:f], *[None] * (n - f)] for f in first]
    for k in range(n):
        alike: dict[tuple[float | None, bool], list[int]] = {}
        for i, f in enumerate(first):
            if f < k or (f == k and bool(calls[i, k])):
                alike.setdefault((plans[i].scales[k], bool(plans[i].weights[k])), []).append(i)
            elif f == k:
                found[i][k], apart[i][k] = known.denoised[k], known.apart[k]
        for (scale, foretold), called in alike.items():
            told = zip(*(candidates[i].level(k) for i in called), strict=True)
            level = Level(*(torch.stack(v).repeat_interleave(len(samples)) for v in told))
            away = [foreseen(plans[i].weights[k], apart[i][:k]) for i in called] if foretold else []
            joined = torch.cat([d for d in away if d is not None]) if foretold else None
            made = model.call(
                torch.cat([xs[i] for i in called]),
                level,
                list(samples) * len(called),
                scale,
                joined,
            )
            for part, held in zip(made, (found, apart), strict=True):
                for i, one in zip(
                    called, [] if part is None else torch.split(part, len(samples)), strict=False
                ):
                    held[i][k] = one
        for i, f in enumerate(first):
            if f <= k:
                xs[i] = _next(candidates[i], k, xs[i], found[i])
    return xs


@dataclass(frozen=True, eq=False)
class Slope:
    """The quadratic model of the mean log error at theta, over some samples.

    `error`: (n,) root mean square distance of each result to its target. `gradient`: (P,) of the
    mean of log error. `curvature`: (P, P), Gauss and Newton's, of the same.
    """

    error: Tensor
    gradient: Tensor
    curvature: Tensor


def distance(result: Tensor, target: Tensor) -> Tensor:
    """(n,) root mean square over everything but the batch, in float64."""
    return (result.double() - target.double()).flatten(1).square().mean(1).sqrt()


def differences(
    model: Model, form: Form, theta: Tensor, samples: Sequence[int], target: Tensor,
    *, floor: float = 0.0, size: float = 2e-3, at_once: int = 16,
) -> Slope:  # fmt: skip
    """By forward calls alone: every parameter is moved by `size`, and the run repeated from where
    that tells.

    `at_once`: candidates that are held in memory together. `floor`: error of the targets
    themselves, below which nothing is gained.
    """
    arrays = form.arrays(theta)
    known = travel(model, arrays, samples)
    miss = (known.result.double() - target.double()).flatten(1)
    columns, ways = list[Tensor](), form.inward(theta)
    for begin in range(0, form.size, at_once):
        moved = range(begin, min(begin + at_once, form.size))
        candidates = [form.arrays(theta + size * ways[p] * _unit(form.size, p)) for p in moved]
        for p, end in zip(moved, ends(model, candidates, arrays, known, samples), strict=True):
            columns.append(
                ((end.double() - known.result.double()) / (size * ways[p])).flatten(1).float()
            )
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
    """By gradients: exact for the error, and the curvature from random projections of the results.

    J^T·J is the mean of (J^T·v)(J^T·v)^T over normal v, so that every backward pass gives each
    sample's share. Costs about 3 + 2·probes evaluations where a run costs one, whatever the number
    of parameters. `at_once`: samples whose graph is held in memory together.
    """
    chain = form.jacobian(theta)
    arrays = form.arrays(theta)
    errors, gradient, curvature = (
        [],
        theta.new_zeros(form.size),
        theta.new_zeros(form.size, form.size),
    )
    at_once = 1 if model.lean else at_once
    for begin in range(0, len(samples), at_once):
        some = list(samples[begin : begin + at_once])
        leaf = arrays.flat().repeat(len(some), 1).requires_grad_()
        with torch.enable_grad():
            result = _each(model, leaf, arrays, some)
        miss = (result.detach().double() - target[begin : begin + at_once].double()).flatten(1)
        weight = _weight(miss, floor)
        seeds = [miss * weight[:, None]]
        for _ in range(probes):
            seeds.append(
                torch.randn(miss.shape, generator=generator, dtype=torch.float64)
                * weight.sqrt()[:, None]
            )
        for i, seed in enumerate(seeds):
            told = seed.reshape(result.shape).to(result)
            (grad,) = torch.autograd.grad(result, leaf, told, retain_graph=i < len(seeds) - 1)
            share = grad.double() @ chain
            if i == 0:
                gradient += share.sum(0)
            else:
                curvature += share.T @ share / probes
        errors.append(_rms(miss))
    return Slope(torch.cat(errors), gradient / len(samples), curvature / len(samples))


def _each(model: Model, numbers: Tensor, arrays: Arrays, samples: Sequence[int]) -> Tensor:
    """The results of a run in which every sample has numbers (n, Q) of its own, with their graph."""
    n, scales = arrays.rows, model.plan(arrays).scales
    alpha, sigma, time, keep = (numbers[:, i * n : (i + 1) * n] for i in range(4))
    weights = numbers[:, 4 * n :].reshape(len(samples), n, n)
    x = model.start(samples)
    wide = torch.promote_types(x.dtype, torch.float32)
    broad = (-1, *(1,) * (x.ndim - 1))
    found = list[Tensor]()
    for k in range(n):
        told = Level(alpha[:, k], sigma[:, k], time[:, k]), samples, scales[k]
        if model.lean:
            found.append(checkpoint(model.denoised, x, *told, use_reentrant=False))
        else:
            found.append(model.denoised(x, *told))
        total = keep[:, k].to(wide).reshape(broad) * x.to(wide)
        for j in range(k + 1):
            total = total + weights[:, k, j].to(wide).reshape(broad) * found[j]
        x = total.to(x.dtype)
    return x


def _unit(size: int, p: int) -> Tensor:
    unit = torch.zeros(size, dtype=torch.float64)
    unit[p] = 1
    return unit


def _weight(miss: Tensor, floor: float) -> Tensor:
    """(n,) one over the squared error: what makes least squares of the error those of its
    logarithm.
    """
    return 1 / (miss.square().sum(1) + floor**2 * miss.shape[1]).clamp(min=1e-30)


def _rms(miss: Tensor) -> Tensor:
    return miss.square().mean(1).sqrt()
