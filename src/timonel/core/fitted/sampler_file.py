"""A sampler that was fitted to a model: its table and the record of the fit, in one JSON file.

    sampler = tm.Sampler("fast.json")   # works wherever the name of a sampler does

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
from .fingerprint import Fingerprint
from .provenance import Provenance, levels

FORMAT = "timonel-sampler-1"
EQUAL = 1e-3  # relative distance of levels and times that are the same
SCALE_FIELDS = ("scale", "start", "stop", "unit")  # of guidance: its scale in every row


@dataclass(frozen=True, eq=False, repr=False)
class Fitted:
    """A fitted sampler; `Sampler(fitted=…)` runs it. `name`: the stem of its file."""

    name: str
    table: Table
    provenance: Provenance

    @property
    def steps(self) -> int:
        """Number of steps N of its table."""
        return self.table.steps

    def __repr__(self) -> str:
        return f"<Fitted {self.name!r}: {self.steps} steps, for {self.provenance.model!r}>"

    def __str__(self) -> str:
        return "\n".join(self.lines())

    def lines(self) -> Iterator[str]:
        """The record of the fit as text."""
        fit = self.provenance
        network = f" ({fit.fingerprint})" if fit.fingerprint is not None else ""
        yield (
            f"{self.name}: fitted to {fit.model}{network}, {fit.prediction} prediction, {fit.dtype}"
        )
        yield (
            f"with {spoken(self.guidance)}, by {fit.method} from {fit.start}: {fit.calls:,} calls,"
            f" {fit.seconds:.0f} s"
        )
        yield f"fitted on {len(fit.prompts)} prompts and {len(fit.seeds)} seeds"
        yield f"held out: {len(fit.held_out_prompts)} prompts and {len(fit.held_out_seeds)} seeds"
        for name, error in fit.held_out.items():
            fitting = (
                f", {fit.fitting[name]:.5f} where it was fitted" if name in fit.fitting else ""
            )
            yield f"error of {name}: {error:.5f} held out{fitting}"
        for one in fit.errors:
            doubt = "" if one.standard_error is None else f" ± {one.standard_error:.5f}"
            yield f"held out, {one.sampler} with {one.steps} steps: {one.error:.5f}{doubt}"
        yield ", ".join(f"{name} {version}" for name, version in fit.versions.items())

    @property
    def guidance(self) -> Guidance | None:
        """The guidance of the fit; None: without."""
        data = self.provenance.guidance
        return None if data is None else data.guidance()

    # -- as data ------------------------------------------------------------------------------
    def to_dict(self) -> dict[str, Any]:
        """The content of the file, as plain data."""
        return {
            "format": FORMAT,
            "table": self.table.to_dict(),
            "provenance": self.provenance.model_dump(),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], name: str) -> Fitted:
        """The sampler of `to_dict`'s data. Raises `ArgumentError` for anything else."""
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
        if not isinstance(other, Fitted):
            return False
        return (self.name, self.to_dict()) == (other.name, other.to_dict())

    def __hash__(self) -> int:
        return hash(self.name)

    # -- on a process -------------------------------------------------------------------------
    def on(self, process: Process) -> Table:
        """The table, where it was fitted to this process. Raises `ArgumentError` elsewhere."""
        data = self.provenance.process
        fit = (
            f"sampler {self.name!r} was fitted to {self.provenance.model!r}, whose process is"
            f" {data.kind!r},"
        )
        if data.kind != process.kind:
            raise ArgumentError(f"{fit} and this one is {process.kind!r}: name another sampler")
        try:
            here = levels(process, self.table)
        except GridError as error:
            raise ArgumentError(f"{fit} at levels that this one does not have: {error}") from error
        for what in ("alpha", "sigma"):
            fitted, value = getattr(self.table, what), getattr(here, what)
            far = ((fitted - value).abs() > EQUAL * value.abs()).nonzero()
            if len(far):
                k = int(far[0])
                raise ArgumentError(
                    f"{fit} with {what} {fitted[k]:.6g} in row {k}, where this one has"
                    f" {value[k]:.6g}: name another sampler"
                )
        if not _same_times(data.times, here.time[:-1], process):
            raise ArgumentError(
                f"{fit} and its network is told other times than this one's: name another sampler"
            )
        return self.table

    def grid(self, process: Process) -> Grid:
        """The levels of its steps, with the network times of the table. Raises as `on`."""
        table = self.on(process)
        rows = [table.first_row(k) for k in range(table.steps + 1)]
        return Grid(process, table.alpha[rows], table.sigma[rows], table.time[rows], table.grid)

    # -- with another network or guidance -----------------------------------------------------
    def guided_alike(self, guidance: Guidance | None) -> bool:
        """Whether guidance does the same at every row as in the fit."""
        return _effect(self.guidance, self.table) == _effect(guidance, self.table)

    def differences(
        self, networks: Sequence[Fingerprint | None], prediction: str, guidance: Guidance | None
    ) -> list[str]:
        """How a use differs from the fit, a sentence each.

        Args:
            networks: fingerprints of the networks that predict, one of which should be that of the
                fit; None is passed over.
            prediction: of the model.
            guidance: of the use, with its scale; None: no guidance.
        """
        fit, sentences = self.provenance, list[str]()
        known = [one for one in networks if one is not None]
        if fit.fingerprint is not None and known and not any(map(fit.fingerprint.fits, known)):
            other = str(known[0])
            if other == str(fit.fingerprint):
                other = "one with other weights"
            sentences.append(
                f"it was fitted to {fit.model} ({fit.fingerprint}), this network is {other}"
            )
        if fit.prediction != prediction:
            sentences.append(
                f"it was fitted for the prediction {fit.prediction!r}, this model's is"
                f" {prediction!r}"
            )
        if not self.guided_alike(guidance):
            sentences.append(
                f"it was fitted with {spoken(self.guidance)}, this run has {spoken(guidance)}"
            )
        return sentences


def _same_times(times: Sequence[float], here: Tensor, process: Process) -> bool:
    """Whether network times are those of the fit; on flows, whether they run the same way.

    The shift of a flow, and with it the time of some, depends on the size of each picture.
    """
    fitted = double(times)
    if not len(fitted):
        return True
    if len(fitted) != len(here):
        return False
    if process.kind == "flow":
        return bool((fitted[0] >= fitted[-1]) == (here[0] >= here[-1]))
    span = max(float((fitted.max() - fitted.min()).abs()), float(fitted.abs().max()), 1e-12)
    return bool(((fitted - here).abs() <= EQUAL * span).all())


def _effect(guidance: Guidance | None, table: Table) -> tuple[Any, ...]:
    """The scale of guidance in every row of a table, and its other fields where it acts."""
    if guidance is None:
        return (1.0,) * table.nfe, {}
    try:
        scales = guidance.scales(table)
    except ArgumentError:  # a scale per step of another number of steps
        return guidance, {}
    return scales, _unusual(guidance) if any(scale != 1.0 for scale in scales) else {}


def _unusual(guidance: Guidance) -> dict[str, Any]:
    """The fields of guidance besides its scale that are not the default."""
    values = {f.name: getattr(guidance, f.name) for f in fields(guidance)}
    usual = {f.name: f.default for f in fields(guidance) if f.name not in SCALE_FIELDS}
    return {name: values[name] for name, default in usual.items() if values[name] != default}


def spoken(guidance: Guidance | None) -> str:
    """Guidance in words."""
    if guidance is None or guidance.scale == 1.0:
        return "no guidance"
    if isinstance(guidance.scale, tuple):
        words = f"guidance {', '.join(f'{scale:g}' for scale in guidance.scale)}"
    elif guidance.scale is None:
        words = "guidance at the pipeline's own scale"
    else:
        words = f"guidance {guidance.scale:g}"
    whole = (0.0, math.inf) if guidance.unit != "sigma" else (math.inf, 0.0)
    if (guidance.start, guidance.stop) != whole:
        unit = {"ratio": " of the way", "step": " (steps)", "sigma": " (sigma)"}[guidance.unit]
        words += f" from {guidance.start:g} to {guidance.stop:g}{unit}"
    return words + "".join(f", {name} {value}" for name, value in _unusual(guidance).items())
