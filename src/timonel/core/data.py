"""Settings as plain data, as files hold them: pydantic models whose errors are timonel's."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, model_serializer

from ..errors import ArgumentError, plain, shown
from .guidance import Guidance, Term, cfg
from .guidance.methods import from_dict


class Data(BaseModel):
    """Plain data whose errors are timonel's."""

    def __init__(self, **fields: Any) -> None:
        try:
            super().__init__(**plain(fields))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or type(self).__name__
            what = type(self).__name__.removesuffix("Data")
            raise ArgumentError(
                f"{where}={shown(first['input'])} cannot be in a {what}: {first['msg']}"
            ) from error


class GuidanceData(Data):
    """`Guidance` as data; an open end of the interval is None, as is a `forecast` of 1.

    `method` is the name and the fields of a method, `terms` are the fields of terms; without them
    the data has no such keys.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    scale: float | list[float] | None = None
    start: float | None = None
    stop: float | None = None
    unit: str = "ratio"
    rescale: float = 0.0
    forecast: int | None = None
    order: int | None = None
    method: dict[str, Any] | None = None
    terms: list[dict[str, Any]] | None = None

    @model_serializer(mode="wrap")
    def _without_what_is_not_there(self, write: Any) -> dict[str, Any]:
        data: dict[str, Any] = write(self)
        absent = [key for key in ("method", "terms") if getattr(self, key) is None]
        return {k: v for k, v in data.items() if k not in absent}

    @classmethod
    def of(cls, guidance: Guidance) -> GuidanceData:
        """The data of a guidance."""
        scale = guidance.scale
        forecasts = guidance.forecast > 1
        return cls(
            scale=list(scale) if isinstance(scale, tuple) else scale,
            start=guidance.start if math.isfinite(guidance.start) else None,
            stop=guidance.stop if math.isfinite(guidance.stop) else None,
            unit=guidance.unit,
            rescale=guidance.rescale,
            forecast=guidance.forecast if forecasts else None,
            order=guidance.order if forecasts else None,
            method=None if guidance.method is None else guidance.method.to_dict(),
            terms=[term.to_dict() for term in guidance.terms] or None,
        )

    def guidance(self) -> Guidance:
        """The guidance, checked by `cfg`."""
        first, last = (math.inf, 0.0) if self.unit == "sigma" else (0.0, math.inf)
        between = (
            first if self.start is None else self.start,
            last if self.stop is None else self.stop,
        )
        guidance = cfg(
            self.scale, between=between, unit=self.unit, rescale=self.rescale,
            forecast=1 if self.forecast is None else self.forecast, order=self.order,
        )  # fmt: skip
        method = None if self.method is None else from_dict(self.method)
        return replace(guidance, method=method, terms=tuple(map(Term.from_dict, self.terms or ())))
