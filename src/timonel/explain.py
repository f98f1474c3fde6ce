"""A sampler explained: its table as text and its levels as a plot."""

from __future__ import annotations

from os import PathLike
from pathlib import Path

from .files import replacing
from .table import Table


def plot(table: Table, path: str | PathLike[str]) -> Path:
    """Write a picture (png, svg or pdf by suffix) of the levels visited and the step sizes in lam."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    alpha, sigma = table.alpha.numpy(), table.sigma.numpy()
    inner = (alpha > 0) & (sigma > 0)
    rows = range(len(alpha))
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    left.semilogy([r for r in rows if inner[r]], (sigma / alpha.clip(1e-30))[inner], "o-", color="#1f5fa8")
    left.set(xlabel="row (network call)", ylabel="sigma / alpha", title="levels")
    ends = [r for r in range(table.nfe) if inner[r] and inner[r + 1]]
    lam = (table.alpha.log() - table.sigma.log()).numpy()
    right.bar(ends, [lam[r + 1] - lam[r] for r in ends], color="#c9862b")
    right.set(xlabel="row (network call)", ylabel="h = lam' - lam", title="step sizes")
    for axis in (left, right):
        axis.grid(alpha=0.3)
    noise = "stochastic" if table.stochastic else "deterministic"
    figure.suptitle(
        f"{table.solver} on {table.grid}: {table.steps} steps, {table.nfe} network calls, order {table.order}, {noise}"
    )
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=110)
    plt.close(figure)
    return Path(path)
