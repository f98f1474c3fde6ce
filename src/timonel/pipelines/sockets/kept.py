"""A sampler as the config of a scheduler keeps it: plain data, a fitted one with its whole table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...core.sampler import Sampler
from ...errors import options


def told(sampler: Sampler) -> dict[str, Any]:
    """The keys of a config that say which sampler it is."""
    return {
        "sampler": sampler.label, "sampler_options": dict(sampler.options),
        "sampler_noise": sampler.source,
        "sampler_table": None if sampler.fitted is None else sampler.fitted.to_dict(),
    }  # fmt: skip


def sampler(config: Mapping[str, Any]) -> Sampler:
    """The inverse of `told`; the name may also be that of a sampler file. Raises `ArgumentError`."""
    table, fitted = config["sampler_table"], None
    if table is not None:
        from ...core.fitted.sampler_file import Fitted

        fitted = Fitted.from_dict(table, config["sampler"])
    given = config["sampler_options"]
    chosen = options("sampler_options", {} if given is None else given)
    return Sampler(config["sampler"], options=chosen, noise=config["sampler_noise"], fitted=fitted)
