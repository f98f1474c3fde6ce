"""Whether a richer last row would come nearer: coefficients that depend on channel, frequency or
neighbourhood.

A row of a table has one number for each prediction. Here the last row of the shipped tables is
solved anew by least squares, on other samples than it is judged by, with every prediction first
taken apart into pieces that each have a number of their own. The halves of the guided prediction
are pieces too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from measure import markdown
from timonel.engine.reference import distance
from timonel.tuning.model import Model
from timonel.tuning.parameters import Arrays
from timonel.tuning.rollout import roll
from timonel.tuning.targets import converge
from tune_models import network, still, tables, unseen
from tune_problem import ratio, told

MODEL = "emoji"
SAMPLES, JUDGES = 64, 16  # samples in all, and those of them that judge
MEMORY = 4  # predictions that the last row reads
RIDGE = 1e-5  # of the mean square of each piece
BANDS = 4

Apart = Callable[[Tensor], list[Tensor]]


# -- pieces of a prediction (n, C, H, W) ---------------------------------------------------------
def whole(v: Tensor) -> list[Tensor]:
    """The prediction itself, as in a table."""
    return [v]


def channels(v: Tensor) -> list[Tensor]:
    """Each channel alone."""
    return [v * at[:, None, None] for at in torch.eye(v.shape[1], dtype=v.dtype)]


def bands(v: Tensor) -> list[Tensor]:
    """Octaves of spatial frequency, the lowest down to 0; together they are the prediction."""
    along = (torch.fft.fftfreq(side, dtype=v.dtype) for side in v.shape[-2:])
    far = torch.stack(torch.meshgrid(*along, indexing="ij")).square().sum(0).sqrt()
    edges = [0.0, *(0.5**i for i in range(BANDS, 1, -1)), 1.0]
    inside = ((far >= low) & (far < high) for low, high in pairwise(edges))
    return [torch.fft.ifft2(torch.fft.fft2(v) * part).real for part in inside]


def convolved(v: Tensor) -> list[Tensor]:
    """Every channel, moved by up to one place either way, as a share of every channel: a 3 x 3
    convolution.
    """
    count = v.shape[1]
    near = [torch.roll(v, (y, x), (-2, -1)) for y in (-1, 0, 1) for x in (-1, 0, 1)]
    into = torch.eye(count, dtype=v.dtype)[:, :, None, None]
    return [
        moved[:, c : c + 1] * into[d] for moved in near for c in range(count) for d in range(count)
    ]


KINDS: dict[str, Apart] = {
    "one number each": whole, "one for each channel": channels,
    f"one for each of {BANDS} octaves of frequency": bands,
    "a 3 x 3 convolution of all channels": convolved,
}  # fmt: skip


# -- the last row --------------------------------------------------------------------------------
def last_row(steps: Sequence[int]) -> str:
    """The table: the shipped last row, and richer ones by the parts of each prediction."""
    fitted, helm = tables(MODEL, steps), still(MODEL)
    given, seeds, _ = unseen(helm, fitted, SAMPLES)
    model = network(helm, given, seeds)
    targets = converge(model, range(SAMPLES), lambda message: None)
    solve, judge = targets.samples[:-JUDGES], targets.samples[-JUDGES:]
    rows = {name: [name] for name in KINDS}
    for n in steps:
        arrays = Arrays.of(fitted[n].compile(model.process))
        known, own = seen(model, arrays, solve), seen(model, arrays, judge)
        truth, aim = targets.of(solve).double(), targets.of(judge).double()
        shipped = distance(own[0], aim)
        for name, apart in KINDS.items():
            numbers = solved(known, truth, apart)
            errors = distance(own[0] + (pieces(own[1], apart) @ numbers).reshape_as(own[0]), aim)
            rows[name] += [told(errors), ratio(errors, shipped), f"{len(numbers):,}"]
    head = [
        MODEL,
        *(
            title
            for n in steps
            for title in (f"{n} steps", "/ the row as it is shipped", "numbers")
        ),
    ]
    about = (
        f"{len(solve)} samples to solve by and {len(judge)} to judge by, all with prompts and "
        f"seeds that no fit has seen. The last row reads the last sample, the last {MEMORY} "
        "predictions, and of the last call the difference of the conditional and the unconditional "
        "half."
    )
    return f"{about}\n\n{markdown(head, list(rows.values()))}"


def seen(model: Model, arrays: Arrays, samples: Sequence[int]) -> tuple[Tensor, list[Tensor]]:
    """The results of a table, and what its last row could have been made of."""
    journey = roll(model, arrays, samples)
    scale = model.guided(arrays).scales[-1]
    last = model.query(journey.x[-2], arrays.at(-1), samples, scale)
    difference = model.evaluate([last._replace(difference=True)])[0].difference
    return journey.result.double(), [
        v.double()
        for v in (journey.x[-2], *journey.denoised[-MEMORY:], difference)
        if v is not None
    ]


def pieces(columns: Iterable[Tensor], apart: Apart) -> Tensor:
    """(n, d, P) of the columns, each taken apart."""
    return torch.stack([piece.flatten(1) for column in columns for piece in apart(column)], -1)


def solved(known: tuple[Tensor, list[Tensor]], truth: Tensor, apart: Apart) -> Tensor:
    """The numbers that move the results nearest to the truth, every sample weighing one over its
    squared error.
    """
    miss = (truth - known[0]).flatten(1)
    weight = 1 / miss.square().mean(1, keepdim=True).sqrt()
    parts = (pieces(known[1], apart) * weight[..., None]).flatten(0, 1)
    normal = parts.T @ parts
    solution: Tensor = torch.linalg.solve(
        normal + RIDGE * torch.diag(normal.diagonal()), parts.T @ (miss * weight).flatten()
    )
    return solution
