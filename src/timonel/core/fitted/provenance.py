"""What a sampler was fitted with and for, as plain data."""

from __future__ import annotations

import math
from typing import Annotated, Any

import torch
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from ...errors import GridError
from ..data import GuidanceData
from ..process import Level, Process, double
from ..table import Table
from .fingerprint import Fingerprint


def _bounded(value: Any) -> Any:
    return None if value == "inf" or (isinstance(value, float) and math.isinf(value)) else value


class ProcessData(BaseModel):
    """A noise process as a table met it. `sigma_max`: None where it reaches pure noise.

    `times`: what the process itself tells a network at the levels of the table's rows; the table
    may tell another.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: str
    sigma_min: float
    sigma_max: Annotated[float | None, BeforeValidator(_bounded)] = None
    times: list[float] = Field(default_factory=list)

    @classmethod
    def of(cls, process: Process, table: Table) -> ProcessData:
        own = levels(process, table.detach())
        return cls(
            kind=process.kind,
            sigma_min=process.sigma_min,
            sigma_max=process.sigma_max,
            times=own.time[:-1].tolist(),
        )


class Measured(BaseModel):
    """The error of one sampler on held-out samples."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    sampler: str
    steps: int
    error: float
    standard_error: float | None = None


class Provenance(BaseModel):
    """What a table was fitted with and for.

    `guidance`: as the fit ran, None without any. `start`: the sampler it began from. `fitting,
    held_out`: error by sampler, "start" and "tuned" among them: geometric mean over samples of the
    RMSE of the latents to the converged sample. `errors`: the same on held-out samples for whatever
    it was compared with. `calls`: network evaluations.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str
    fingerprint: Fingerprint | None = None
    process: ProcessData
    prediction: str
    guidance: GuidanceData | None = None
    dtype: str
    prompts: list[str]
    seeds: list[int]
    held_out_prompts: list[str]
    held_out_seeds: list[int]
    start: str
    method: str
    fitting: dict[str, float]
    held_out: dict[str, float]
    errors: list[Measured] = Field(default_factory=list)
    seconds: float
    calls: int
    versions: dict[str, str] = Field(default_factory=dict)


def levels(process: Process, table: Table) -> Level:
    """What `process` has at the lam of a table's levels. Raises `GridError` where it has no such
    level.
    """
    alpha, sigma, time = (torch.zeros_like(v) for v in (table.alpha, table.sigma, table.time))
    pure, clean = table.alpha == 0, table.sigma == 0
    top = process.at_index(double([process.train_steps - 1.0]))
    if bool(pure.any()) and float(top.alpha) != 0:
        raise GridError(
            f"pure noise, and its noisiest level has sigma/alpha {float(top.ratio):.6g}"
        )
    inner = ~(pure | clean)
    lam = Level(table.alpha[inner], table.sigma[inner], table.time[inner]).lam
    for where, own in ((inner, process.at_lam(lam)), (pure, top), (clean, process.clean())):
        for made, value in zip((alpha, sigma, time), own, strict=True):
            made[where] = value
    return Level(alpha, sigma, time)
