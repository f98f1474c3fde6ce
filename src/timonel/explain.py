"""A sampler in one picture: levels, steps, weights, noise, and its effect on Gaussian data."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from .core.analysis import effects, spreads
from .core.table import Table
from .errors import ArgumentError
from .files import ready, replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLORS = ("#1f5fa8", "#c9622b")  # of the first and the second sampler
STDS = (0.1, 0.5, 1.0)  # of the Gaussian data; latents of pictures have about 1, their details less
SUFFIXES = (".png", ".svg", ".pdf")
STYLES = (":", "--", "-")


def plot(tables: Table | Sequence[Table], path: str | PathLike[str]) -> Path:
    """Write a picture of one table, or of two side by side.

    Six panels: the levels; the step sizes in lam; the weights of the newest predictions in every
    row; how much of the noise is fresh; the standard deviation of Gaussian data over the exact one;
    and the weights of all predictions in the sample along the run. See `core.analysis`.

    Args:
        tables: one table, or two.
        path: a .png, .svg or .pdf file, which is replaced.

    Returns:
        The path.

    Raises:
        ArgumentError: for another suffix, or where it cannot be written.
    """
    target(path, overwrite=True)
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    shown = [tables] if isinstance(tables, Table) else list(tables)
    figure, axes = plt.subplots(2, 3, figsize=(15, 8), layout="constrained")
    panels: list[Axes] = list(axes.flat)
    for i, table in enumerate(shown):
        for axis, draw in zip(panels, (_levels, _steps, _weights, _noise, _spread), strict=False):
            draw(axis, table, COLORS[i % len(COLORS)], i, len(shown))
    _path(panels[5], shown[0])
    for axis in panels[:5]:
        axis.grid(alpha=0.3)
    for axis in (panels[0], panels[2], panels[4]):
        axis.legend(fontsize=8)
    figure.suptitle("\n".join(title(table) for table in shown))
    with replacing(path, lasting=False) as temporary:
        figure.savefig(temporary, dpi=110)
    plt.close(figure)
    return Path(path)


def target(path: str | PathLike[str], *, overwrite: bool) -> Path:
    """The path of a plot. Raises `ArgumentError` for another suffix, or an unwritable path."""
    if Path(path).suffix.lower() not in SUFFIXES:
        raise ArgumentError(f"a plot is a {', '.join(SUFFIXES)} file, got {str(path)!r}")
    return ready(path, overwrite=overwrite)


def title(table: Table) -> str:
    """A table in a line: solver, grid, steps, calls, order, noise."""
    noise = "stochastic" if table.stochastic else "deterministic"
    order = f"order {table.order}" if table.order else "no order"
    return (
        f"{table.solver} on {table.grid}: {table.steps} steps, {table.nfe} network calls, {order},"
        f" {noise}"
    )


def name(table: Table) -> str:
    """`solver/grid`."""
    return f"{table.solver}/{table.grid}"


def _levels(axis: Axes, table: Table, color: str, i: int, of: int) -> None:
    inner = (table.alpha > 0) & (table.sigma > 0)
    rows = torch.arange(table.nfe + 1)[inner]
    ratio = (table.sigma / table.alpha)[inner]
    axis.semilogy(rows.numpy(), ratio.numpy(), "o-", ms=4, color=color, label=name(table))
    title = "levels (pure noise and clean left out)"
    axis.set(xlabel="row (network call)", ylabel="sigma / alpha", title=title)


def _steps(axis: Axes, table: Table, color: str, i: int, of: int) -> None:
    first = [table.first_row(step) for step in range(table.steps + 1)]
    lam = (torch.log(table.alpha) - torch.log(table.sigma))[first]
    width = lam.diff()
    shown = torch.isfinite(width)
    place = torch.arange(table.steps)[shown] + 0.8 * (i - (of - 1) / 2) / of
    axis.bar(place.numpy(), width[shown].numpy(), 0.8 / of, color=color)
    axis.set(xlabel="step", ylabel="h = lam' - lam", title="step sizes (infinite ones left out)")


def _weights(axis: Axes, table: Table, color: str, i: int, of: int) -> None:
    table = table.unguided()
    newest = table.x[:, 2 : 2 + table.history]
    total = newest.sum(1, keepdim=True)
    share = newest / torch.where(total == 0, 1.0, total)
    for j, style in zip(range(table.history), ("-", "--", "-.", ":"), strict=False):
        if bool((share[:, j] != 0).any()):
            look: dict[str, Any] = {
                "marker": ".",
                "color": color,
                "label": f"h{j}" if i == 0 else None,
            }
            axis.plot(range(table.nfe), share[:, j].numpy(), style, **look)
    bases = axis.get_ylabel().removeprefix("share of the ").removesuffix(" predictions")
    bases = table.basis if i == 0 or bases == table.basis else f"{bases} | {table.basis}"
    axis.set(xlabel="row (network call)", ylabel=f"share of the {bases} predictions")
    axis.set_title("weights of the newest")


def _noise(axis: Axes, table: Table, color: str, i: int, of: int) -> None:
    added = (effects(table).noise[1:] ** 2).sum(1).sqrt()
    sigma = table.sigma[[table.first_row(k + 1) for k in range(table.steps)]]
    share = torch.where(sigma > 0, added / sigma, 0.0)
    axis.plot(range(1, table.steps + 1), share.numpy(), "s-", ms=4, color=color)
    axis.set(xlabel="steps completed", ylabel="std / sigma", ylim=(-0.05, 1.1))
    axis.set_title("how much of the noise is fresh by now")


def _spread(axis: Axes, table: Table, color: str, i: int, of: int) -> None:
    for std, style in zip(STDS, STYLES, strict=True):
        label, values = f"data std {std:g}" if i == 0 else None, spreads(table, std)
        axis.plot(range(table.steps + 1), values.numpy(), style, color=color, label=label)
    axis.set(xlabel="steps completed", ylabel="std / exact std")
    axis.set_title("spread of Gaussian data (1 is exact)")


def _path(axis: Axes, table: Table) -> None:
    """Weights of the predictions in the sample along the run, each row over its level's alpha."""
    weights = effects(table).weights
    top = float(weights.abs().max()) or 1.0
    look: dict[str, Any] = {"cmap": "RdBu_r", "aspect": "auto", "interpolation": "nearest"}
    picture = axis.imshow(weights.numpy(), vmin=-top, vmax=top, **look)
    axis.figure.colorbar(picture, ax=axis)
    axis.set(xlabel="prediction of row", ylabel="steps completed")
    axis.set_title(f"weights along the way: {name(table)}")
