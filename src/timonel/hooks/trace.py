"""The numbers of a run, step by step."""

from __future__ import annotations

import json
import math
import time
from os import PathLike
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..core.hook import Hook
from ..files import replacing

if TYPE_CHECKING:
    from ..core.run import Run

COLUMNS = {
    "step": "d", "time": ".3f", "alpha": ".5f", "sigma": ".5f", "ratio": ".5f", "latents": ".5f",
    "denoised": ".5f", "cosine": ".5f", "seconds": ".4f", "nfe": "d",
}  # fmt: skip


class Trace(Hook):
    """See `trace`.

    `rows` has a dictionary per step, in the order they happened (a rewound run repeats steps):
    `step`; `time`, `alpha`, `sigma`, `ratio` (sigma/alpha) of the newest network call; `latents`
    and `denoised`, their root mean square per element; `cosine` between this denoised prediction
    and that of the step before, mean over the batch; `seconds` since the step before; `nfe`,
    network calls so far. The first step has no cosine, and no seconds where its start was not seen.
    """

    name = "trace"

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self._before: tuple[int, Tensor] | None = None
        self._clock: float | None = None

    def on_start(self, run: Run) -> None:
        self.rows, self._before, self._clock = [], None, time.perf_counter()

    @torch.no_grad()
    def on_step(self, run: Run) -> None:
        at, step = run.called_at, run.step
        assert at is not None
        clean = run.denoised.detach().float()
        cosine, follows = clean.new_tensor(math.nan), False
        if self._before is not None and self._before[0] == step - 1:
            cosine, follows = _cosine(clean, self._before[1]), True
        numbers = torch.stack([_rms(run.latents.detach().float()), _rms(clean), cosine])
        latents, denoised, alike = numbers.tolist()  # waits once for the device
        now = time.perf_counter()
        seconds = None if self._clock is None else now - self._clock
        level = {"time": at.time, "alpha": at.alpha, "sigma": at.sigma, "ratio": at.ratio}
        sizes = {"latents": latents, "denoised": denoised, "cosine": alike if follows else None}
        self.rows.append({"step": step, **level, **sizes, "seconds": seconds, "nfe": run.row})
        self._before, self._clock = (step, clean), now

    def table(self) -> str:
        """The rows as aligned text under a line of names; unknown values are a dash."""
        cells = [list(COLUMNS)]
        for row in self.rows:
            cells.append(["-" if row[k] is None else format(row[k], f) for k, f in COLUMNS.items()])
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = ([c.rjust(w) for c, w in zip(line, widths, strict=True)] for line in cells)
        return "\n".join(map("  ".join, lines))

    def to_json(self, path: str | PathLike[str]) -> None:
        """Write the rows to a JSON file, atomically; NaN and infinity become null.

        Raises `ArgumentError` where the file cannot be written.
        """
        rows = [{k: None if _strange(v) else v for k, v in row.items()} for row in self.rows]
        with replacing(path) as temporary:
            text = json.dumps(rows, indent=1, allow_nan=False)
            temporary.write_text(text + "\n", encoding="utf-8")


def trace() -> Trace:
    """Measure every step: level, norms, cosine to the prediction before, seconds, network calls.

    Waits for the device once a step, so the seconds are those of the work, not of its queueing.

    Returns:
        The hook, with `rows`, `table()` and `to_json(path)`.

    >>> print(trace().table())
    step  time  alpha  sigma  ratio  latents  denoised  cosine  seconds  nfe
    """
    return Trace()


def _rms(x: Tensor) -> Tensor:
    return x.square().mean().sqrt()


def _cosine(a: Tensor, b: Tensor) -> Tensor:
    return torch.nn.functional.cosine_similarity(a.flatten(1), b.flatten(1)).mean()


def _strange(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)
