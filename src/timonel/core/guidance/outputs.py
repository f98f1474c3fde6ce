"""The outputs of the network calls of one row, and the one function that combines them.

Native loop, captured networks, fits and the gate of a helm all call `guide`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from ...errors import ArgumentError


class Place(NamedTuple):
    """Where a row stands: `denoised = c_x·x + c_raw·raw`.

    Args:
        c_x: of the sample; a tensor (n, 1, …) where the samples are at levels of their own.
        c_raw: of the raw output, as c_x.
        step: the grid step of the row, from 0.
        steps: of the run.
        prediction: what the raw output means.
    """

    c_x: float | Tensor
    c_raw: float | Tensor
    step: int = 0
    steps: int = 1
    prediction: str = "sample"


class Outputs(NamedTuple):
    """The raw outputs of one row, all of one shape (batch, …).

    Args:
        cond: the conditional one.
        uncond: the unconditional one; cond - d where their difference d is forecast.
        x: (batch, …), the sample that the network saw; plain guidance needs none.
        place: of the row; plain guidance needs none.
        more: of further network evaluations, as the method wants them.
    """

    cond: Tensor
    uncond: Tensor
    x: Tensor | None = None
    place: Place | None = None
    more: tuple[Tensor, ...] = ()

    def denoised(self, raw: Tensor) -> tuple[Tensor, float | Tensor]:
        """The denoised prediction that a raw output means, and what a unit of that adds to it.

        Raises:
            ArgumentError: there is no sample or no place.
        """
        if self.x is None or self.place is None:
            raise ArgumentError(
                "this guidance method reads denoised predictions: give Outputs(cond, uncond, x,"
                " place), the sample and place of the row"
            )
        c_x, c_raw = self.place.c_x, self.place.c_raw
        return c_x * self.x + c_raw * raw, c_raw


@dataclass(frozen=True)
class Method:
    """How guidance combines outputs, in the place of `uncond + scale·(cond - uncond)`.

    A subclass is a frozen dataclass whose fields are plain data. It is pure: what it has to know of
    earlier rows it gets as `momentum`, and returns as the momentum of the next row. At scale 1 it
    gives `cond`, for there the unconditional output is not computed.
    """

    name: ClassVar[str]
    has_momentum: ClassVar[bool] = False  # whether it returns a momentum
    reads_uncond: ClassVar[bool] = False  # whether the solver has to read the unconditional output
    rescales: ClassVar[bool] = True  # whether `rescale` composes with it

    def combine(
        self, outputs: Outputs, scale: float, momentum: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """The guided raw output, and the momentum of the next row.

        Args:
            outputs: of the row.
            scale: of the row.
            momentum: what the row before that was guided returned; None at the first.
        """
        raise NotImplementedError

    def check(self, prediction: str) -> None:
        """Raises `ArgumentError` where it cannot guide a network that predicts so."""

    def to_dict(self) -> dict[str, Any]:
        """Its name and fields as plain data; `methods.from_dict` is the inverse."""
        plain = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}
        return {"name": self.name, **plain}


class Combined(NamedTuple):
    """A guided raw output, and what the method has to know at the next row."""

    raw: Tensor
    momentum: Tensor | None = None


def guide(
    outputs: Outputs,
    scale: float,
    *,
    rescale: float = 0.0,
    method: Method | None = None,
    momentum: Tensor | None = None,
) -> Combined:
    """The guided raw output of one row.

    Args:
        outputs: of the row.
        scale: 1 is the conditional output.
        rescale: see `rescaled`; after the method.
        method: None is classifier-free guidance.
        momentum: what the method returned at the guided row before.
    """
    if method is None:
        raw = torch.lerp(outputs.uncond, outputs.cond, scale)
    else:
        raw, momentum = method.combine(outputs, scale, momentum)
    return Combined(rescaled(raw, outputs.cond, rescale) if rescale else raw, momentum)


def combine(cond: Tensor, uncond: Tensor, scale: float, rescale: float = 0.0) -> Tensor:
    """The guided raw output, `uncond + scale·(cond - uncond)`, and its rescaled form.

    Args:
        cond: (batch, …), the conditional raw output.
        uncond: (batch, …), the unconditional one.
        scale: 1 is `cond`.
        rescale: share, 0 to 1, of the output with the standard deviation of `cond`, per sample.

    Source: arXiv 2207.12598; rescaling arXiv 2305.08891, eq. 15-16.
    """
    return guide(Outputs(cond, uncond), scale, rescale=rescale).raw


def rescaled(guided: Tensor, cond: Tensor, share: float) -> Tensor:
    """A share of `guided` with the standard deviation of `cond`, per sample.

    Source: arXiv 2305.08891, eq. 15-16.
    """
    dims = each(cond)
    factor = stretch(cond.std(dim=dims, keepdim=True), guided.std(dim=dims, keepdim=True))
    return guided * (1 - share + share * factor)


def stretch(cond: Tensor, guided: Tensor) -> Tensor:
    """Ratio of two standard deviations, `cond / guided`; 1, its limit, where `guided` is 0."""
    return torch.where(guided > 0, cond / guided, torch.ones_like(guided))


def each(tensor: Tensor) -> tuple[int, ...]:
    """The dimensions of one sample of a batch."""
    return tuple(range(1, tensor.ndim))


def known(what: str, data: Mapping[str, Any], names: Any) -> None:
    """Raises `ArgumentError` for a key of `data` that is none of `names`."""
    unknown = sorted(set(data) - set(names))
    if unknown:
        raise ArgumentError(f"{what} has no {unknown[0]!r}")
