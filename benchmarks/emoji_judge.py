"""The judge of emoji pictures: which concept one shows, and how far two sets are apart.

training/emoji/classifier.py trained it, on real emoji only, and training/emoji/export_judge.py
wrote its weights. Pictures are (n, 3, 64, 64) in 0..1.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn

from timonel.errors import ArgumentError, ModelError, UnknownName

FILE = Path(__file__).with_suffix(".safetensors")
SIDE, AT_ONCE = 64, 64  # pixels of a picture, and pictures in a call


def block(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    """Convolution, batch norm, ReLU."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


def build(classes: int) -> nn.Sequential:
    """Logits (N, classes) from pictures (N, 3, 64, 64) in -1..1."""
    return nn.Sequential(
        block(3, 32, 2),
        block(32, 64, 2),
        block(64, 96, 1),
        block(96, 128, 2),
        block(128, 192, 1),
        block(192, 256, 2),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.3),
        nn.Linear(1024, classes),
    )


@cache
def load() -> tuple[nn.Sequential, tuple[str, ...]]:
    """The network, in single precision, and the names of its classes. Raises `ModelError` where the
    file is missing.
    """
    if not FILE.is_file():
        raise ModelError(
            f"no {FILE.name} in {FILE.parent}: `python -m training.emoji.export_judge` makes it"
        )
    with safe_open(str(FILE), framework="pt") as file:
        names = tuple(json.loads(file.metadata()["names"]))
        weights = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    network = build(len(names))
    network.load_state_dict(weights)
    return network.eval(), names


@torch.no_grad()
def features(pictures: Tensor) -> Tensor:
    """The 1024 pooled activations (n, 1024) that the last layer reads. Raises `ArgumentError` for
    other shapes.
    """
    if pictures.ndim != 4 or tuple(pictures.shape[1:]) != (3, SIDE, SIDE):
        raise ArgumentError(
            f"pictures are (n, 3, {SIDE}, {SIDE}) in 0..1, got {tuple(pictures.shape)}"
        )
    network, _ = load()
    return torch.cat([network[:-1](part.float() * 2 - 1) for part in pictures.split(AT_ONCE)])


@torch.no_grad()
def probabilities(pictures: Tensor) -> Tensor:
    """How sure the judge is of every name (n, names)."""
    network, _ = load()
    return torch.softmax(network[-1](features(pictures)), 1)


def top1(pictures: Tensor, names: Sequence[str]) -> tuple[float, float]:
    """The share of pictures that the judge calls by their names, and its standard error.

    The error is the standard deviation of the share under a uniform prior, so that of n right ones
    of n it is about 1/n and not 0. Raises `UnknownName` for a name that it does not know,
    `ArgumentError` for too few or too many.
    """
    known = load()[1]
    if len(names) != len(pictures) or not names:
        raise ArgumentError(
            f"every picture needs its name: got {len(pictures)} pictures and {len(names)} names"
        )
    for name in names:
        if name not in known:
            raise UnknownName("concept", name, known)
    said = probabilities(pictures).argmax(1).tolist()
    n, hits = len(names), sum(known[i] == name for i, name in zip(said, names, strict=True))
    rate = (hits + 1) / (n + 2)
    return hits / n, math.sqrt(rate * (1 - rate) / (n + 3))


def frechet(a: Tensor, b: Tensor) -> float:
    """|mu_a - mu_b|² + tr(S_a + S_b - 2 (S_a S_b)^(1/2)) of two sets of features (n, d), in
    float64.

    The distance of the Gaussians with their means and covariances (Heusel et al., arXiv 1706.08500,
    eq. 6). With few pictures it is biased upward, so compare only sets of the same size and
    captions, to the same reference. Raises `ArgumentError` for fewer than two rows or other widths.
    """
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < 2:
        raise ArgumentError(
            f"features are two tables of two or more rows of one width, got {tuple(a.shape)} and "
            f"{tuple(b.shape)}"
        )
    (mean_a, root_a), (mean_b, root_b) = _statistics(a), _statistics(b)
    # S = root^T root, so the eigenvalues of S_a S_b are the squared singular values of root_a
    # root_b^T, of any rank
    shared = torch.linalg.svdvals(root_a @ root_b.T).sum()
    spread = root_a.square().sum() + root_b.square().sum() - 2 * shared
    return max(0.0, float((mean_a - mean_b).square().sum() + spread))  # below 0 by rounding only


def _statistics(rows: Tensor) -> tuple[Tensor, Tensor]:
    """The mean, and a root of the covariance."""
    wide = rows.double()
    mean = wide.mean(0)
    return mean, (wide - mean) / math.sqrt(len(rows) - 1)


def frechet_error(a: Tensor, b: Tensor) -> float:
    """The standard error of `frechet` of sets whose rows are pairs: a jackknife over the pairs."""
    if len(a) != len(b) or len(a) < 3:
        raise ArgumentError(
            f"the jackknife needs three or more pairs, got {len(a)} and {len(b)} rows"
        )
    n = len(a)
    without = [[j for j in range(n) if j != i] for i in range(n)]
    left = torch.tensor([frechet(a[kept], b[kept]) for kept in without], dtype=torch.float64)
    return float(((n - 1) / n * (left - left.mean()).square().sum()).sqrt())
