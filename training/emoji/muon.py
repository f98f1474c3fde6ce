"""Muon: momentum whose matrices are orthogonalised before the step; AdamW for all else.

Reference: K. Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (2024). The
step is scaled by 0.2 sqrt(max(rows, columns)), which gives it the size of an AdamW step (J. Liu et
al., "Muon is scalable for LLM training", 2025), so that one learning rate serves both.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, distributed

COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def orthogonalise(matrices: Tensor, steps: int) -> Tensor:
    """Newton-Schulz: matrices (K, m, n) with their singular values pushed towards 1.

    Every iterate is a polynomial of the first Gram matrix times the input, so that the iteration
    runs on small m x m matrices (m <= n) and touches the n columns only twice.
    """
    a, b, c = COEFFICIENTS
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    gram = x @ x.mT
    one = torch.eye(gram.shape[1]).expand_as(gram)
    total = one
    for i in range(steps):
        factor = a * one + torch.baddbmm(b * gram, gram, gram, alpha=c)
        total = factor @ total if i else factor
        if i < steps - 1:
            gram = factor @ (factor @ gram)
    x = total @ x
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """For weights of two or more dimensions; convolutions are flattened to matrices."""

    def __init__(
        self, weights: Iterable[Tensor], lr: float, momentum: float = 0.95, decay: float = 0.01
    ) -> None:
        super().__init__(weights, {"lr": lr, "momentum": momentum, "decay": decay, "steps": 5})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            weights = [w for w in group["params"] if w.grad is not None]
            moved = [self._moved(w, group["momentum"]) for w in weights]
            updates = _directions(moved, int(group["steps"]))
            for weight, update in zip(weights, updates, strict=True):
                size = 0.2 * max(update.shape) ** 0.5
                weight.mul_(1 - group["lr"] * group["decay"])
                weight.add_(update.view(weight.shape), alpha=-group["lr"] * size)

    def _moved(self, weight: Tensor, momentum: float) -> Tensor:
        """Nesterov momentum of a weight's gradient, as a matrix."""
        assert weight.grad is not None
        state = self.state[weight]
        if not state:
            state["momentum"] = torch.zeros_like(weight)
        state["momentum"].lerp_(weight.grad, 1 - momentum)
        return weight.grad.lerp(state["momentum"], momentum).flatten(1)


def _directions(matrices: list[Tensor], steps: int) -> list[Tensor]:
    """Every matrix orthogonalised. The processes of a `torchrun` share the work."""
    shared = distributed.is_initialized()
    world, rank = (distributed.get_world_size(), distributed.get_rank()) if shared else (1, 0)
    largest = sorted(range(len(matrices)), key=lambda i: -matrices[i].numel())
    shapes: dict[tuple[int, ...], list[int]] = {}
    for i in largest[rank::world]:
        shapes.setdefault(tuple(matrices[i].shape), []).append(i)
    out = [torch.zeros_like(m) for m in matrices] if shared else list(matrices)
    for same in shapes.values():
        directions = orthogonalise(torch.stack([matrices[i] for i in same]), steps)
        for i, direction in zip(same, directions, strict=True):
            out[i] = direction
    if not shared:
        return out
    flat = torch.cat([m.reshape(-1) for m in out])
    distributed.all_reduce(flat)
    parts = flat.split([m.numel() for m in matrices])
    return [part.view(m.shape) for part, m in zip(parts, matrices, strict=True)]
