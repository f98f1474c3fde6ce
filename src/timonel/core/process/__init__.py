"""Noise processes: how much signal and noise a sample has at which network time.

Every level is a pair (alpha, sigma): `x = alpha * x0 + sigma * eps`. The coordinates are those of
the model, of unit variance where the process has it, so the network needs no input scaling.

| process | alpha, sigma                         | schedule sigma    | network time            |
|---------|--------------------------------------|-------------------|-------------------------|
| VP      | sqrt(abar), sqrt(1 - abar)           | sigma / alpha     | 0 … T-1                 |
| EDM     | 1 / sqrt(s² + d²), s / sqrt(s² + d²) | s = sigma / alpha | 0.25 · log s or `clock` |
| VE      | 1, s                                 | s                 | 0.25 · log s            |
| Flow    | 1 - t, t                             | t                 | T · t or `clock`        |
| Cosine  | sqrt(abar), sqrt(1 - abar)           | sigma / alpha     | t from 1 to 0           |
| Crash   | cos(t·pi/2), sin(t·pi/2)             | tan(t·pi/2)       | t from 1 to 0           |
| Trig    | cos(t), sin(t)                       | tan(t)            | t                       |

"Schedule sigma" is the number in lists of sigmas (`sigmas=[14.6, …]`, on a flow `[1.0, …]`).
All conversions are float64 and differentiable.
"""

from __future__ import annotations

from .config import from_config
from .cosine import Cosine
from .crash import Crash
from .edm import EDM, VE
from .exploding import Exploding
from .flow import Flow
from .level import At, Level, Process, double, interpolate
from .trig import Trig
from .vp import VP, zero_snr

__all__ = [
    "EDM", "VE", "VP", "At", "Cosine", "Crash", "Exploding", "Flow", "Level", "Process", "Trig",
    "double", "from_config", "interpolate", "zero_snr",
]  # fmt: skip
