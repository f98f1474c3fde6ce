"""What a server has accepted and answered, in a folder, so that a killed server loses no run.

A run is written when it is accepted and goes when its picture is written. A server that starts with
the folder makes again what was left, with the same seed, under the same name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ...errors import ArgumentError
from ...files import replacing, writable
from ...reading import parsed

NAME = re.compile(r"[0-9a-f]{24}")


@dataclass(frozen=True)
class Accepted:
    """A run that was accepted and has no picture yet."""

    name: str
    model: str
    wanted: dict[str, Any]


class Journal:
    """The folder of a server's runs.

    Args:
        folder: it is made where there is none.

    Raises:
        ArgumentError: it cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        writable(folder)
        folder.mkdir(parents=True, exist_ok=True)

    def _path(self, name: str, ending: str) -> Path:
        if not NAME.fullmatch(name):
            raise ArgumentError(f"{name!r} is no name of a run")
        return self.folder / f"{name}{ending}"

    def accept(self, run: Accepted) -> None:
        """Write a run, before its client gets an answer."""
        with replacing(self._path(run.name, ".json")) as temporary:
            temporary.write_text(json.dumps(asdict(run)))

    def finish(self, name: str, picture: bytes | None) -> None:
        """Write a run's picture, or that it has none, and forget the run."""
        if picture is not None:
            with replacing(self._path(name, ".png")) as temporary:
                temporary.write_bytes(picture)
        self._path(name, ".json").unlink(missing_ok=True)

    def picture(self, name: str) -> bytes | None:
        """The picture of a run that has ended; None where there is none."""
        if not NAME.fullmatch(name):
            return None
        path = self._path(name, ".png")
        return path.read_bytes() if path.is_file() else None

    def left(self) -> Iterator[Accepted]:
        """The runs that were accepted and have no picture, the oldest first.

        Raises:
            ArgumentError: a file is none of a run.
        """
        for path in sorted(self.folder.glob("*.json"), key=lambda path: path.stat().st_mtime_ns):
            try:
                run = Accepted(**parsed(path.read_text()))
            except (ValueError, TypeError) as error:
                raise ArgumentError(f"{str(path)!r} is no run of a server: {error}") from error
            if run.name == path.stem and NAME.fullmatch(run.name):
                yield run


__all__ = ["Accepted", "Journal"]
