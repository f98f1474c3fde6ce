"""Sampler files for tests, with the tables of named samplers."""

from __future__ import annotations

from typing import Any

import torch

import timonel as tm
from support.models import PROCESSES
from timonel.core.fitted.provenance import ProcessData, Provenance
from timonel.core.fitted.sampler_file import Fitted
from timonel.core.process import Cosine, Process, Trig

ALL = {
    **PROCESSES,
    "zsnr": tm.VP.from_schedule(rescale_zero_snr=True),
    "trig": Trig(),
    "cosine": Cosine(),
}
NAMED = "dpmpp_2m/karras"


def made(sampler: tm.Sampler | str, process: Process, name: str = "fast", **changes: Any) -> Fitted:
    """A sampler file's content with the table of a named sampler."""
    table = tm.Sampler.of(sampler).compile(process)
    told = {
        "model": "emoji", "process": ProcessData.of(process, table), "prediction": "epsilon",
        "guidance": {"scale": 4.0}, "dtype": "float32", "prompts": ["red apple"], "seeds": [0, 1],
        "held_out_prompts": ["pizza"], "held_out_seeds": [2], "start": NAMED, "method": "none",
        "fitting": {"start": 0.2, "tuned": 0.1}, "held_out": {"start": 0.25, "tuned": 1 / 3},
        "errors": [{"sampler": "euler", "steps": 6, "error": 0.5, "standard_error": 0.01}],
        "seconds": 1.5, "calls": 48,
        "versions": {"torch": torch.__version__},
    }  # fmt: skip
    return Fitted(name, table, Provenance(**{**told, **changes}))
