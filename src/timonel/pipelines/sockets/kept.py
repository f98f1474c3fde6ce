"""A sampler as a config keeps it: plain data, a fitted one with its whole table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ...core import grids
from ...core.sampler import Sampler
from ...core.table import Table
from ...errors import options


def keys(sampler: Sampler) -> dict[str, Any]:
    """The keys of a config that say which sampler it is."""
    return {
        "sampler": sampler.label, "sampler_options": dict(sampler.options),
        "sampler_noise": sampler.source,
        "sampler_table": None if sampler.fitted is None else sampler.fitted.to_dict(),
    }  # fmt: skip


def sampler(config: Mapping[str, Any]) -> Sampler:
    """The sampler that these keys say; its name may also be that of a sampler file.

    Raises:
        ArgumentError: there is no such sampler.
    """
    table, fitted = config["sampler_table"], None
    if table is not None:
        from ...core.fitted.sampler_file import Fitted

        fitted = Fitted.from_dict(table, config["sampler"])
    values = config["sampler_options"]
    checked = options("sampler_options", {} if values is None else values)
    return Sampler(config["sampler"], options=checked, noise=config["sampler_noise"], fitted=fitted)


def begun(named: Sampler, settled: Sampler, table: Table) -> Sampler | None:
    """The sampler that a run keeps, so that a later call lists the same levels.

    Args:
        named: what was chosen for the call.
        settled: the same with its levels settled; without a grid where a list gave them, which the
            later call gives too.
        table: what it makes of them.

    Returns:
        The sampler; None where it says less than the scheduler did, as a class of `timonel.compat`
        with its own levels.
    """
    if settled.fitted is not None:
        return named
    listed = settled.sigmas is not None or settled.times is not None
    known = listed or settled.grid is not None or table.grid in grids.GRIDS
    if table.seen is not None or not known:
        return None
    if listed and (settled.sigmas, settled.times) == (named.sigmas, named.times):
        return named
    grid = None if listed else settled.grid or table.grid
    return replace(named, grid=grid, grid_options=settled.grid_options, sigmas=None, times=None)
