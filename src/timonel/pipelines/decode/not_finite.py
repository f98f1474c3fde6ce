"""A check of what autoencoders make: NaN there would be a black picture without a word."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import GuardStop
from ..network.turns import AUTOENCODERS


class Decoded(ExitStack):
    """A block in which a pipeline encodes and decodes; `check` afterwards is about the latter.

    Args:
        pipe: the pipeline.
        counts: whether what is decoded now is a result, not a preview.

    Raises:
        GuardStop: inside the block, where nothing that is encoded is finite.
    """

    def __init__(self, pipe: Any, counts: Callable[[], bool] = lambda: True) -> None:
        super().__init__()
        self._pipe, self._counts, self._thread = pipe, counts, threading.get_ident()
        self._fine: list[Tensor] = []
        self._dtype: torch.dtype | None = None

    def __enter__(self) -> Decoded:
        for name in AUTOENCODERS:
            for part, hook in (("encoder", self._encoded), ("decoder", self._look)):
                module = getattr(getattr(self._pipe, name, None), part, None)
                if isinstance(module, nn.Module):
                    self.callback(module.register_forward_hook(hook).remove)
        return self

    def _encoded(self, module: nn.Module, args: Any, output: Any) -> None:
        if not isinstance(output, Tensor) or output.ndim < 2 or self._elsewhere:
            return
        if bool(output.detach().isfinite().flatten(1).all(1).any()):
            return
        if isinstance(args[0] if args else None, Tensor) and not bool(args[0].isfinite().all()):
            raise GuardStop(
                "the picture that the call begins with has NaN or infinity: check the picture or"
                " tensor that was passed"
            )
        remedy = _remedy(output.dtype, "check its weights")
        raise GuardStop(
            "the autoencoder made NaN or infinity of the picture that the call begins with:"
            f" {remedy}"
        )

    def _look(self, module: nn.Module, args: Any, output: Any) -> None:
        if not self._counts() or self._elsewhere:
            return
        if isinstance(output, Tensor) and output.ndim > 1:
            self._fine.append(output.detach().isfinite().flatten(1).all(1))
            self._dtype = output.dtype

    @property
    def _elsewhere(self) -> bool:
        return threading.get_ident() != self._thread

    def fine(self) -> Tensor:
        """Whether each decoded picture is finite, (n,) bool; waits for the device."""
        return torch.cat([torch.ones(0, dtype=torch.bool), *(one.cpu() for one in self._fine)])

    def check(self, samples: int) -> None:
        """Warn where some pictures are not finite; a video is finite where all its frames are.

        Args:
            samples: of the call.

        Raises:
            GuardStop: no picture or video is finite.
        """
        fine = self.fine()
        if bool(fine.all()):
            return
        whole = self._whole(samples, fine)
        some = "a part" if bool(fine.any()) else "all"
        remedy = _remedy(self._dtype, "check its weights, and that it is the one of these latents")
        message = (
            f"the autoencoder made NaN or infinity of {some} of the pictures, whose latents are"
            f" finite: {remedy}"
        )
        if not bool(whole.any()):
            raise GuardStop(message)
        warnings.warn(message, RuntimeWarning, stacklevel=5)

    def _whole(self, samples: int, fine: Tensor) -> Tensor:
        """Whether all of each sample is finite: tiles are of all at once, frames come in order."""
        if all(len(one) == samples for one in self._fine):
            return torch.stack([one.cpu() for one in self._fine]).all(0)
        return fine.reshape(samples, -1).all(1) if len(fine) % samples == 0 else fine


def _remedy(dtype: torch.dtype | None, other: str) -> str:
    if dtype in (torch.float16, torch.bfloat16):
        return 'run it in float32, tm.Helm(name, dtype={"vae": "fp32", "default": "fp16"})'
    return other
