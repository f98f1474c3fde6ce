"""What `timonel doctor` does with its arguments."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

from rich.console import Console

from ..diagnosis import doctor
from ..diagnosis.report import show
from ..errors import ArgumentError
from .say import document

WORDS = {"true": True, "false": False, "none": None}


def run(
    model: str, sampler: str | None, steps: int | None, flags: Sequence[str], as_json: bool
) -> None:
    """Print the report, or the same as JSON."""
    found = doctor(model, sampler, steps, flags=parsed(flags))
    if as_json:
        document(found.to_dict())
    else:
        show(found, Console(highlight=False))


def parsed(flags: Sequence[str]) -> dict[str, Any]:
    """KEY=VALUE as Python values. Raises `ArgumentError` for anything else."""
    made: dict[str, Any] = {}
    for flag in flags:
        key, equals, value = flag.partition("=")
        if not equals or not key.isidentifier():
            raise ArgumentError(
                f"--flag takes KEY=VALUE such as timestep_spacing=trailing, got {flag!r}"
            )
        made[key] = _value(value)
    return made


def _value(text: str) -> Any:
    if text.lower() in WORDS:
        return WORDS[text.lower()]
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(text)
    return text
