"""Which numbers the keys of a scheduler's config may have.

They are diffusers' arguments and those of `timonel.Scheduler`. A key has one range wherever it is
read: in a config, as an argument, or written into a config later.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from ...errors import ArgumentError, is_number, plain, shown
from .edm import MOST_SIGMA
from .level import MOST_LEVELS

MOST_SEED = 2**63 - 1
MOST_TOKENS = 10**9


class Range(NamedTuple):
    """Numbers from `low` to `high`.

    `whole`: only whole numbers; `above`: not `low` itself; `infinite`: the ends may be.
    """

    low: float = -math.inf
    high: float = math.inf
    whole: bool = False
    above: bool = False
    infinite: bool = False

    def __str__(self) -> str:
        kind = "whole" if self.whole else "" if self.infinite else "finite"
        low = f"{'above' if self.above else 'of at least'} {self.low:g}"
        high = f"at most {self.high:.15g}"
        ends = [low] * (self.low > -math.inf) + [high] * (self.high < math.inf)
        return " ".join(part for part in ("a", kind, "number", " and ".join(ends)) if part)

    def read(self, value: Any) -> float | int | None:
        """`value` as a Python number; None where it is none or lies outside."""
        value = plain(value)
        if not is_number(value):
            return None
        if self.whole:
            value = int(value) if isinstance(value, float) and value.is_integer() else value
            fits = isinstance(value, int)
        else:
            try:
                value = float(value)
            except OverflowError:
                return None
            fits = math.isfinite(value) or (self.infinite and not math.isnan(value))
        inside = fits and self.low <= value <= self.high
        return None if not inside or (self.above and value == self.low) else value


POSITIVE, COUNT = Range(0, above=True), Range(1, MOST_LEVELS, whole=True)
RANGES: dict[str, Range] = {
    # what the model was trained for
    "num_train_timesteps": COUNT, "beta_start": Range(0, 1), "beta_end": Range(0, 1),
    "snr_shift_scale": POSITIVE, "rho": POSITIVE,
    **dict.fromkeys(("sigma_min", "sigma_max", "sigma_data"), Range(0, MOST_SIGMA, above=True)),
    # which levels are visited
    "steps_offset": Range(0, MOST_LEVELS, whole=True), "original_inference_steps": COUNT,
    "shift": POSITIVE, "flow_shift": POSITIVE, "base_shift": Range(), "max_shift": Range(),
    "shift_terminal": Range(0, 1),
    "base_image_seq_len": Range(1, MOST_TOKENS, whole=True),
    "max_image_seq_len": Range(1, MOST_TOKENS, whole=True),
    "lambda_min_clipped": Range(infinite=True),
    # what is done to a prediction, and the noise
    "clip_sample_range": Range(0, above=True, infinite=True),
    "sample_max_value": Range(0, above=True, infinite=True),
    "dynamic_thresholding_ratio": Range(0, 1), "timestep_scaling": Range(0, 1e9),
    "s_noise": Range(0, 1e9), "scaler": POSITIVE, "s": POSITIVE,
    "noise_sampler_seed": Range(0, MOST_SEED, whole=True),
}  # fmt: skip


def number(key: str, value: Any, default: Any = None) -> Any:
    """The number of a key of `RANGES`, as Python's.

    Raises:
        ArgumentError: another kind, or outside of its range.
    """
    read = RANGES[key].read(value)
    if read is None:
        remedy = "leave it out" if default is None else f"leave it out for {default!r}"
        raise ArgumentError(f"{key} must be {RANGES[key]}, got {shown(value)}; {remedy}")
    return read
