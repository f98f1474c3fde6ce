"""A sampler that was fitted to a model: its table, and what it was fitted with and for. One JSON
file.

    sampler = tm.Sampler("fast.json")       # and "fast.json" works wherever the name of a sampler
    does

The file holds `{"format": …, "table": …, "provenance": …}`; its floats read back to the same bits.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from os import PathLike
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from torch import Tensor

from ... import reading
from ...errors import ArgumentError, GridError
from ...files import replacing
from ..grids import Grid
from ..guidance import Guidance
from ..process import Process, double
from ..table import Table
from .fingerprint import Fingerprint as Fingerprint
from .fingerprint import fingerprint as fingerprint
from .provenance import Measured as Measured
from .provenance import ProcessData as ProcessData
from .provenance import Provenance as Provenance
from .provenance import levels as levels

FORMAT = "timonel-sampler-1"
SAME = 1e-3  # relative: levels and times of one process that are written down twice
WHERE = ("scale", "start", "stop", "unit")  # what guidance is at which row


@dataclass(frozen=True, eq=False, repr=False)
class Fitted:
    """A fitted sampler. `name`: the stem of its file; `Sampler(fitted=…)` makes a sampler of it."""

    name: str
    table: Table
    provenance: Provenance

    @property
    def steps(self) -> int:
        """The steps it was fitted for."""
        return self.table.steps

    def __repr__(self) -> str:
        return f"<Fitted {self.name!r}: {self.steps} steps, for {self.provenance.model!r}>"

    def __str__(self) -> str:
        return "\n".join(self.lines())

    def lines(self) -> Iterator[str]:
        """What it was fitted with and for, and how it did, as text."""
        made = self.provenance
        guidance = None if made.guidance is None else made.guidance.guidance()
        network = f" ({made.fingerprint})" if made.fingerprint is not None else ""
        yield (
            f"{self.name}: fitted to {made.model}{network}, {made.prediction} prediction,"
            f" {made.dtype}"
        )
        yield (
            f"with {spoken(guidance)}, by {made.method} from {made.start}: {made.calls:,} calls,"
            f" {made.seconds:.0f} s"
        )
        yield f"fitted on {len(made.prompts)} prompts and {len(made.seeds)} seeds"
        yield f"held out: {len(made.held_out_prompts)} prompts and {len(made.held_out_seeds)} seeds"
        for name in made.held_out:
            fitting = (
                f", {made.fitting[name]:.5f} where it was fitted" if name in made.fitting else ""
            )
            yield f"error of {name}: {made.held_out[name]:.5f} held out{fitting}"
        for one in made.errors:
            doubt = "" if one.standard_error is None else f" ± {one.standard_error:.5f}"
            yield f"held out, {one.sampler} with {one.steps} steps: {one.error:.5f}{doubt}"
        yield ", ".join(f"{name} {version}" for name, version in made.versions.items())

    # -- as data ------------------------------------------------------------------------------
    def to_dict(self) -> dict[str, Any]:
        """What the file holds, as plain data."""
        return {
            "format": FORMAT,
            "table": self.table.to_dict(),
            "provenance": self.provenance.model_dump(),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], name: str) -> Fitted:
        """The inverse of `to_dict`. Raises `ArgumentError` for data that is no fitted sampler."""
        written = data.get("format") if isinstance(data, Mapping) else None
        if written != FORMAT:
            raise ArgumentError(
                f"{name!r} is no sampler file of this version (format {written!r}, not {FORMAT!r})"
            )
        try:
            return cls(
                name, Table.from_dict(data["table"]), Provenance.model_validate(data["provenance"])
            )
        except KeyError as error:
            raise ArgumentError(f"{name!r} is no sampler file: it lacks {error}") from error
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(part) for part in first["loc"])
            raise ArgumentError(
                f"the provenance of {name!r} cannot be read: {place}: {first['msg']}"
            ) from error
        except (AttributeError, TypeError, ValueError) as error:
            raise ArgumentError(f"the table of {name!r} cannot be read: {error}") from error

    @classmethod
    def read(cls, path: str | PathLike[str]) -> Fitted:
        """The sampler in a file. Raises `ArgumentError` where there is none."""
        try:
            data = reading.parsed(reading.text(path, "the sampler file"))
        except ArgumentError:
            raise
        except ValueError as error:
            raise ArgumentError(f"{str(path)!r} is no sampler file: {error}") from error
        return cls.from_dict(data, Path(path).stem)

    def write(self, path: str | PathLike[str]) -> Path:
        """Write the file, atomically."""
        try:
            text = json.dumps(self.to_dict(), indent=1, allow_nan=False, ensure_ascii=False)
        except ValueError as error:
            raise ArgumentError(
                f"the provenance of {self.name!r} has a number that is not finite: {error}"
            ) from error
        with replacing(path) as temporary:
            temporary.write_text(text + "\n", "utf-8")
        return Path(path)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Fitted) and (self.name, self.to_dict()) == (
            other.name,
            other.to_dict(),
        )

    def __hash__(self) -> int:
        return hash(self.name)

    # -- on a process -------------------------------------------------------------------------
    def on(self, process: Process) -> Table:
        """The table, after a look at whether it is for this process. Raises `ArgumentError` where
        it is not.
        """
        made = self.provenance.process
        told = (
            f"sampler {self.name!r} was fitted to {self.provenance.model!r}, whose process is"
            f" {made.kind!r},"
        )
        if made.kind != process.kind:
            raise ArgumentError(f"{told} and this one is {process.kind!r}: name another sampler")
        try:
            own = levels(process, self.table)
        except GridError as error:
            raise ArgumentError(f"{told} at levels that this one does not have: {error}") from error
        for what, mine, theirs in (
            ("alpha", self.table.alpha, own.alpha),
            ("sigma", self.table.sigma, own.sigma),
        ):
            away = (mine - theirs).abs() > SAME * theirs.abs()
            if bool(away.any()):
                k = int(away.nonzero()[0])
                raise ArgumentError(
                    f"{told} with {what} {mine[k]:.6g} in row {k}, where this one has"
                    f" {theirs[k]:.6g}: name another sampler"
                )
        if not _same_clock(made.times, own.time[:-1], process):
            raise ArgumentError(
                f"{told} and its network is told other times than this one's: name another sampler"
            )
        return self.table

    def grid(self, process: Process) -> Grid:
        """The levels of its steps, with the times that its network is told. Raises as `on`."""
        table = self.on(process)
        rows = [table.first_row(k) for k in range(table.steps + 1)]
        return Grid(process, table.alpha[rows], table.sigma[rows], table.time[rows], table.grid)

    # -- elsewhere ----------------------------------------------------------------------------
    def guided_alike(self, guidance: Guidance | None) -> bool:
        """Whether guidance does the same at every row as where this was fitted."""
        made = self.provenance.guidance
        return _guided(None if made is None else made.guidance(), self.table) == _guided(
            guidance, self.table
        )

    def differences(
        self, networks: Sequence[Fingerprint | None], prediction: str, guidance: Guidance | None
    ) -> list[str]:
        """In what a use differs from what it was fitted for, a sentence each; empty where in
        nothing.

        `networks`: fingerprints of the networks that predict, of which one should be its own; None
        is not looked at. `guidance`: of the whole use, its scale included; None is no guidance.
        """
        made, found = self.provenance, list[str]()
        known = [one for one in networks if one is not None]
        if (
            made.fingerprint is not None
            and known
            and not any(made.fingerprint.fits(one) for one in known)
        ):
            other = (
                str(known[0])
                if str(known[0]) != str(made.fingerprint)
                else "one with other weights"
            )
            found.append(
                f"it was fitted to {made.model} ({made.fingerprint}), this network is {other}"
            )
        if made.prediction != prediction:
            found.append(
                f"it was fitted for the prediction {made.prediction!r}, this model's is"
                f" {prediction!r}"
            )
        if not self.guided_alike(guidance):
            fitted = spoken(None if made.guidance is None else made.guidance.guidance())
            found.append(f"it was fitted with {fitted}, this run has {spoken(guidance)}")
        return found


def _same_clock(told: Sequence[float], own: Tensor, process: Process) -> bool:
    """Whether the process of a fit told its network these times too; of flows, whether time runs
    the same way.
    """
    fitted = double(told)
    if not len(fitted):
        return True
    if len(fitted) != len(own):
        return False
    if (
        process.kind == "flow"
    ):  # its shift, and with it the time of some, is chosen for the size of each picture
        return bool((fitted[0] >= fitted[-1]) == (own[0] >= own[-1]))
    span = max(float((fitted.max() - fitted.min()).abs()), float(fitted.abs().max()), 1e-12)
    return bool(((fitted - own).abs() <= SAME * span).all())


def _guided(guidance: Guidance | None, table: Table) -> tuple[Any, ...]:
    """What guidance comes to on a table: a scale per row, and what else it does where it acts."""
    if guidance is None:
        return (1.0,) * table.nfe, {}
    try:
        scales = guidance.scales(table)
    except ArgumentError:  # a scale per step of another number of steps
        return guidance, {}
    return scales, _how(guidance) if any(scale != 1.0 for scale in scales) else {}


def _how(guidance: Guidance) -> dict[str, Any]:
    """What guidance does besides its scale and where it acts, as far as it is not the usual."""
    named = {
        f.name: (getattr(guidance, f.name), f.default)
        for f in fields(guidance)
        if f.name not in WHERE
    }
    return {name: value for name, (value, usual) in named.items() if value != usual}


def spoken(guidance: Guidance | None) -> str:
    """Guidance in words."""
    if guidance is None or guidance.scale == 1.0:
        return "no guidance"
    if isinstance(guidance.scale, tuple):
        words = f"guidance {', '.join(f'{scale:g}' for scale in guidance.scale)}"
    else:
        words = (
            "guidance at the pipeline's own scale"
            if guidance.scale is None
            else f"guidance {guidance.scale:g}"
        )
    opened = (0.0, math.inf) if guidance.unit != "sigma" else (math.inf, 0.0)
    if (guidance.start, guidance.stop) != opened:
        unit = {"ratio": " of the way", "step": " (steps)", "sigma": " (sigma)"}[guidance.unit]
        words += f" from {guidance.start:g} to {guidance.stop:g}{unit}"
    return words + "".join(f", {name} {value}" for name, value in _how(guidance).items())
