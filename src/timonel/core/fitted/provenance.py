"""The record of a fit: model, data, method and errors, as plain data."""

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
    """The noise process of a fit.

    Args:
        kind: `Process.kind`.
        sigma_min: smallest schedule sigma.
        sigma_max: largest schedule sigma; None where it reaches pure noise.
        times: network times of the process at the levels of the rows; the table may differ.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: str
    sigma_min: float
    sigma_max: Annotated[float | None, BeforeValidator(_bounded)] = None
    times: list[float] = Field(default_factory=list)

    @classmethod
    def of(cls, process: Process, table: Table) -> ProcessData:
        """The data of a process at the levels of a table."""
        times = levels(process, table.detach()).time[:-1].tolist()
        ends = {"sigma_min": process.sigma_min, "sigma_max": process.sigma_max}
        return cls(kind=process.kind, times=times, **ends)


class Measured(BaseModel):
    """The error of one sampler on held-out samples."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    sampler: str
    steps: int
    error: float
    standard_error: float | None = None


class Provenance(BaseModel):
    """The record of a fit.

    Errors are geometric means over samples of the RMSE of the latents to the converged sample.

    Args:
        model: name or folder.
        fingerprint: of the network; None where its weights could not be read.
        process: the noise process.
        prediction: of the network.
        guidance: of the fit; None: without.
        dtype: of the network.
        prompts: prompts of the fit.
        seeds: seeds of the fit.
        held_out_prompts: prompts for the errors.
        held_out_seeds: seeds for the errors.
        start: name of the sampler that the fit began from.
        method: of the fit, see `tune`.
        fitting: error by sampler on the samples of the fit, "start" and "tuned" among them.
        held_out: the same on the held-out samples.
        errors: the same for other samplers.
        seconds: duration.
        calls: network evaluations.
        versions: of packages, by name.
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
    """The levels of `process` at the lam of a table's. Raises `GridError` where it has none."""
    alpha, sigma, time = (torch.zeros_like(v) for v in (table.alpha, table.sigma, table.time))
    pure, clean = table.alpha == 0, table.sigma == 0
    top = process.at_index(double([process.train_steps - 1.0]))
    if bool(pure.any()) and float(top.alpha) != 0:
        raise GridError(
            f"pure noise, and its noisiest level has sigma/alpha {float(top.ratio):.6g}"
        )
    inner = ~(pure | clean)
    lam = Level(table.alpha[inner], table.sigma[inner], table.time[inner]).lam
    for where, level in ((inner, process.at_lam(lam)), (pure, top), (clean, process.clean())):
        for values, value in zip((alpha, sigma, time), level, strict=True):
            values[where] = value
    return Level(alpha, sigma, time)
