"""A check of what the autoencoder decodes: NaN there would be a black picture without a word."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import GuardStop
from ..network.busy import AUTOENCODERS


class Decoded(ExitStack):
    """A block in which a pipeline decodes; `check` afterwards says whether that was finite.

    Args:
        pipe: the pipeline.
        counts: whether what is decoded now is a result, not a preview.
    """

    def __init__(self, pipe: Any, counts: Callable[[], bool] = lambda: True) -> None:
        super().__init__()
        self._pipe, self._counts, self._thread = pipe, counts, threading.get_ident()
        self._fine: list[Tensor] = []
        self._dtype: torch.dtype | None = None

    def __enter__(self) -> Decoded:
        for name in AUTOENCODERS:
            decoder = getattr(getattr(self._pipe, name, None), "decoder", None)
            if isinstance(decoder, nn.Module):
                self.callback(decoder.register_forward_hook(self._look).remove)
        return self

    def _look(self, module: nn.Module, args: Any, output: Any) -> None:
        if not self._counts() or threading.get_ident() != self._thread:
            return
        if isinstance(output, Tensor) and output.ndim > 1:
            self._fine.append(output.detach().isfinite().flatten(1).all(1))
            self._dtype = output.dtype

    def fine(self) -> Tensor:
        """Whether each decoded picture is finite, (n,) bool; waits for the device."""
        return torch.cat([torch.ones(0, dtype=torch.bool), *(one.cpu() for one in self._fine)])

    def check(self) -> None:
        """Raise `GuardStop` where no picture is finite; warn where only some are."""
        fine = self.fine()
        if bool(fine.all()):
            return
        some = "a part" if bool(fine.any()) else "all"
        remedy = "check its weights, and that it is the one of these latents"
        if self._dtype in (torch.float16, torch.bfloat16):
            remedy = 'run it in float32, tm.Helm(name, dtype={"vae": "fp32", "default": "fp16"})'
        message = (
            f"the autoencoder made NaN or infinity of {some} of the pictures, whose latents are"
            f" finite: {remedy}"
        )
        if not bool(fine.any()):
            raise GuardStop(message)
        warnings.warn(message, RuntimeWarning, stacklevel=5)
