"""What `timonel doctor` does with its arguments."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console

from ..diagnosis import doctor
from ..diagnosis.report import show
from ..errors import ArgumentError
from .options import number_or_text
from .say import document

WORDS = {"true": True, "false": False, "none": None}


def run(
    model: str, sampler: str | None, steps: int | None, flags: Sequence[str], as_json: bool
) -> None:
    """Print the report, or the same as JSON.

    Args:
        model: a shipped model, a folder or a hub name.
        sampler: a sampler, or a class of diffusers.
        steps: how many; None for those of the recommendation.
        flags: KEY=VALUE, arguments of `from_config`.
        as_json: whether to print JSON.
    """
    report = doctor(model, sampler, steps, flags=parsed(flags))
    if as_json:
        document(report.to_dict())
    else:
        show(report, Console(highlight=False))


def parsed(flags: Sequence[str]) -> dict[str, Any]:
    """KEY=VALUE as Python values. Raises `ArgumentError` for anything else."""
    values: dict[str, Any] = {}
    for flag in flags:
        key, equals, value = flag.partition("=")
        if not equals or not key.isidentifier():
            raise ArgumentError(
                f"--flag takes KEY=VALUE such as timestep_spacing=trailing, got {flag!r}"
            )
        values[key] = WORDS[value.lower()] if value.lower() in WORDS else number_or_text(value)
    return values
