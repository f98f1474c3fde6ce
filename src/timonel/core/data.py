"""Settings as plain data, as files hold them: pydantic models whose errors are timonel's."""

from __future__ import annotations

import math
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from ..errors import ArgumentError, plain, shown
from . import guidance as guide
from .guidance import Guidance


class Data(BaseModel):
    """Plain data whose errors are timonel's."""

    def __init__(self, **given: Any) -> None:
        try:
            super().__init__(**plain(given))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or type(self).__name__
            what = type(self).__name__.removesuffix("Data")
            raise ArgumentError(
                f"{where}={shown(first['input'])} cannot be in a {what}: {first['msg']}"
            ) from error


class GuidanceData(Data):
    """`Guidance` as data; `start` and `stop` are None where the interval is open, `forecast` where
    there is none.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    scale: float | list[float] | None = None
    start: float | None = None
    stop: float | None = None
    unit: str = "ratio"
    rescale: float = 0.0
    forecast: int | None = None
    order: int | None = None

    @classmethod
    def of(cls, made: Guidance) -> GuidanceData:
        scale = list(made.scale) if isinstance(made.scale, tuple) else made.scale
        ends = {
            k: v if math.isfinite(v) else None
            for k, v in (("start", made.start), ("stop", made.stop))
        }
        forecast, order = (made.forecast, made.order) if made.forecast > 1 else (None, None)
        return cls(
            scale=scale,
            unit=made.unit,
            rescale=made.rescale,
            forecast=forecast,
            order=order,
            **ends,
        )

    def guidance(self) -> Guidance:
        """The guidance, checked by `cfg`."""
        high = self.unit == "sigma"
        start = self.start if self.start is not None else (math.inf if high else 0.0)
        stop = self.stop if self.stop is not None else (0.0 if high else math.inf)
        return guide.cfg(
            self.scale, between=(start, stop), unit=self.unit, rescale=self.rescale,
            forecast=1 if self.forecast is None else self.forecast, order=self.order,
        )  # fmt: skip
