"""What a fit checks before it computes: its arguments, and how the network may be used."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from pathlib import Path

import torch

from ..core.grids import few_enough, usual
from ..core.guidance import Guidance
from ..core.process import Level, Process
from ..core.sampler import Sampler
from ..core.table import Table
from ..errors import ArgumentError, among, finite, is_number, path, several, whole
from ..files import writable
from .model import Model
from .parameters import Arrays
from .rollout import roll
from .samples import LEAST
from .starts import named
from .store import usable

METHODS = {
    "levels": (
        "none of the coefficients: the best of the usual grids, the closed form for Gaussian data"
        " and GITS"
    ),
    "rows": "least squares, row after row: one long run and a short one",
    "differences": (
        "Gauss-Newton by forward calls alone: also for networks that are quantised, compiled or"
        " offloaded"
    ),
    "backward": (
        "Gauss-Newton by gradients: for half precision, which rounds small differences away"
    ),
}


def counts(
    steps: int | Sequence[int], *, seeds: int | None = None, minutes: float = 5.0,
    out: str | PathLike[str] | None = None, method: str | None = None, batch: int | None = None,
) -> list[int]:  # fmt: skip
    """The numbers of steps, when all that needs no model has been checked.

    Args:
        steps: One number or several, 2 or more.
        seeds: How many samples.
        minutes: For everything.
        out: A .json file; for several steps a folder.
        method: One of `METHODS`.
        batch: Network evaluations a call.

    Raises:
        ArgumentError: For an argument that is none.
        UnknownName: For a method that is none.
    """
    counts = _counts(steps)
    if seeds is not None and whole("seeds", seeds) < LEAST:
        raise ArgumentError(
            f"{seeds} seeds are too few to fit and to judge by: give at least {LEAST}, better 64"
        )
    if method is not None:
        among("method", method, METHODS)
    if batch is not None:
        whole("batch", batch)
    finite("minutes", minutes, 0.01, 24 * 60)
    if out is not None:
        path("out", out)
        target(Path(out), counts)
    return counts


def one_scale(guidance: Guidance | None) -> None:
    """Refuses a scale for every step: a fit changes the steps, and targets have more of them.

    And what is not plain guidance: a fit differentiates through the sum of two outputs.
    """
    if guidance is not None and (guidance.method is not None or guidance.terms):
        name = "further terms" if guidance.method is None else guidance.method.name
        raise ArgumentError(
            f"a fit is made under plain guidance, not under {name}: give a scale or cfg(…); what"
            " is fitted so runs with any guidance"
        )
    if guidance is not None and isinstance(guidance.scale, tuple):
        raise ArgumentError(
            f"a fit takes one guidance scale and an interval, got {len(guidance.scale)} scales, one"
            f" for each step: give one, such as cfg({max(guidance.scale):g}, until=0.4)"
        )


def _counts(steps: int | Sequence[int]) -> list[int]:
    counts = [steps] if is_number(steps) else list(several("steps", steps, "steps=[4, 6, 8]"))
    if not counts:
        raise ArgumentError("steps is empty: say for how many steps to fit, e.g. steps=8")
    for count in counts:
        if count == 1:
            raise ArgumentError("one step has no levels to choose: fit 2 or more")
    return list(dict.fromkeys(few_enough("steps", count, 2) for count in counts))


def begins(
    method: str | None, start: Sampler | str | None, counts: list[int], process: Process
) -> None:
    """Refuses a start that a fit cannot have.

    Args:
        method: One of `METHODS` or None.
        start: The sampler; None leaves it to the fit.
        counts: The numbers of steps.
        process: Of the model.

    Raises:
        ArgumentError: With the reason.
    """
    if start is None:
        return
    if method == "levels":
        raise ArgumentError(
            f"method='levels' looks for where to begin: leave start={str(start)!r} out"
        )
    for count in counts:
        named(process, start, count)


def way(model: Model, method: str | None) -> str:
    """How to fit: by differences, and in half precision, which rounds them away, by gradients.

    Args:
        model: The network.
        method: One of `METHODS`; None leaves it to the network.

    Raises:
        ArgumentError: For a method that the network does not permit.
    """
    forecast = model.guidance is not None and model.guidance.forecast > 1
    if method is None:
        return "backward" if model.half and not forecast and _flows(model) else "differences"
    if method == "backward" and forecast:
        raise ArgumentError("gradients do not go through forecast halves: use method='differences'")
    if method == "backward" and not _flows(model):
        raise ArgumentError("no gradient flows through this network: use method='differences'")
    if method == "rows" and not model.stepwise:
        raise ArgumentError(
            "the network of this pipeline cannot be called by itself: use method='differences'"
        )
    return method


def _flows(model: Model) -> bool:
    """Whether a gradient comes through the network, from its output to its input."""
    if not (model.differentiable and model.stepwise):
        return False
    x = model.start([0]).detach().requires_grad_()
    level = Level(*(v[:1] for v in Arrays.of(short(model, 2)).levels))
    try:
        with torch.enable_grad():
            (answer,) = model.evaluate([model.query(x, level, [0], None)])
            (gradient,) = torch.autograd.grad(answer.raw.sum(), x, allow_unused=True)
    except (RuntimeError, NotImplementedError):  # quantised or compiled for inference
        return False
    return gradient is not None and bool(torch.isfinite(gradient).all())


def split(
    parts: tuple[Sequence[int], Sequence[int]] | None, count: int
) -> tuple[Sequence[int], Sequence[int]]:
    """The samples to fit and those held out.

    Args:
        parts: Both; None holds the last third out.
        count: How many samples there are.

    Raises:
        ArgumentError: For fewer than six samples, or parts that are none.
    """
    if parts is None:
        if count < 6:
            raise ArgumentError(
                f"{count} samples are too few to fit and to judge by: give 12 or more"
            )
        return range(count - count // 3), range(count - count // 3, count)
    chosen, held = parts
    outside = [s for s in (*chosen, *held) if not 0 <= s < count]
    if outside or set(chosen) & set(held) or len(chosen) < 2 or len(held) < 2:
        raise ArgumentError(
            f"split is two lists of two or more of the {count} samples, and none is in both; got"
            f" {len(chosen)} and {len(held)}, {len(set(chosen) & set(held))} in both,"
            f" {len(outside)} that are not there"
        )
    return chosen, held


def target(out: Path, counts: list[int]) -> tuple[Path, bool]:
    """Where the files go, and whether that is a folder.

    Args:
        out: A .json file; for several numbers of steps a folder.
        counts: The numbers of steps.

    Raises:
        ArgumentError: Where it is neither, or cannot be written.
    """
    several = len(counts) > 1
    if not several and out.suffix.lower() != ".json":
        raise ArgumentError(f"a sampler file's name ends in .json, got {str(out)!r}")
    if several and out.suffix:
        raise ArgumentError(
            f"{len(counts)} numbers of steps make as many files: give a folder, got {str(out)!r}"
        )
    writable(out if several else out.parent)
    usable(part(out))
    return out, several


def part(out: Path) -> Path:
    """The folder of what a fit has so far, beside what it is to become."""
    return out.with_name(out.name + ".part")


def short(model: Model, count: int) -> Table:
    """A usual sampler of a few steps."""
    return Sampler("dpmpp_2m", usual(model.process), count).compile(model.process)


@torch.no_grad()
def answer(model: Model) -> str:
    """What the network answers, in a word.

    Raises:
        ArgumentError: For a network that answers differently the next time.
    """
    table, two = short(model, 2), list(range(min(2, model.count)))
    first, again = (roll(model, Arrays.of(table), two).result for _ in range(2))
    off, size = float((first - again).abs().max()), float(first.double().square().mean().sqrt())
    if off > 1e-4 * float(first.abs().max()):
        raise ArgumentError(
            f"the network is not deterministic: asked twice, it differs by {off:.2g}. Switch"
            " dropout and noise off (module.eval()), or fix its seeds"
        )
    return f"{tuple(first.shape)} {size:.3g}"
