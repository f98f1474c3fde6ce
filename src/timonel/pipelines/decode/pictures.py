"""What a pipeline returns, as pictures."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

COLOURS = (1, 3, 4)  # channels of a picture: grey, RGB, RGB with transparency
OTHER = ("embed", "audio", "latent")  # in the names of fields without pictures
LEAST = 8  # pixels of a side


def pictures(output: Any, count: int) -> Tensor | None:
    """A pipeline's output as pictures.

    Args:
        output: what the pipeline returned.
        count: samples of the run; several pictures of a sample are its frames.

    Returns:
        RGB (B, 3, H, W), or (B, F, 3, H, W) of videos, in 0..1; None where it holds no pictures.
    """
    values = _tensor(_first(output))
    if values is None or not 3 <= values.ndim <= 5:
        return None
    values = _channels_last(values)
    if values is None:
        return None
    rgb = _rgb(values).movedim(-1, -3)
    return spread(rgb, count) if rgb.ndim == 4 else rgb


def spread(pixels: Tensor, count: int) -> Tensor:
    """Pictures (B, 3, H, W) or videos (B, 3, F, H, W) with frames second.

    Args:
        pixels: the pictures or videos.
        count: samples; where there are more pictures, those of a sample are its frames.

    Returns:
        Pictures (B, 3, H, W), or videos (B, F, 3, H, W).
    """
    if pixels.ndim == 5:
        frames = pixels.transpose(1, 2)
        return frames[:, 0] if frames.shape[1] == 1 else frames
    if count and len(pixels) > count and len(pixels) % count == 0:
        return pixels.reshape(count, -1, *pixels.shape[1:])
    return pixels


def spectrogram(decoded: Tensor) -> Tensor | None:
    """Decoded spectra (B, 1, time, frequency) as grey pictures in 0..1, low tones below."""
    if decoded.ndim != 4 or decoded.shape[1] != 1:
        return None
    values = decoded.float().transpose(-1, -2).flip(-2)
    low, high = values.amin((1, 2, 3), keepdim=True), values.amax((1, 2, 3), keepdim=True)
    return ((values - low) / (high - low).clamp(min=1e-6)).expand(-1, 3, -1, -1)


def _first(output: Any) -> Any:
    """The first field of an output object; None where its name says that it is none."""
    if hasattr(output, "to_tuple"):
        if any(word in next(iter(output)) for word in OTHER):
            return None
        output = output.to_tuple()
    return output[0] if isinstance(output, tuple) and output else output


def _tensor(value: Any) -> Tensor | None:
    """Nested lists of tensors, arrays or PIL images as one tensor."""
    if isinstance(value, Tensor):
        return value.detach()
    if isinstance(value, np.ndarray):
        return _last(torch.from_numpy(np.ascontiguousarray(value)))
    if hasattr(value, "getbands"):
        return _last(torch.from_numpy(np.array(value.convert("RGB"))))
    parts = [_tensor(v) for v in value] if isinstance(value, (list, tuple)) else []
    tensors = [part for part in parts if part is not None]
    alike = len(tensors) == len(parts) and len({t.shape for t in tensors}) == 1
    return torch.stack(tensors) if alike else None


def _last(values: Tensor) -> Tensor:
    """An array with channels last, as torch lays it out."""
    return values.movedim(-1, -3) if values.ndim >= 3 and values.shape[-1] in COLOURS else values


def _channels_last(values: Tensor) -> Tensor | None:
    """(…, H, W, C), from wherever the channels are."""
    if values.ndim >= 3 and values.shape[-3] in COLOURS and values.ndim > 3:
        return values.movedim(-3, -1)
    if values.ndim == 5 and values.shape[1] in COLOURS:  # (B, C, F, H, W)
        return values.movedim(1, -1)
    if values.ndim >= 4 and values.shape[-1] in COLOURS:
        return values
    # grey pictures without a channel; sound has few rows
    if values.ndim == 3 and min(values.shape[-2:]) >= LEAST:
        return values[..., None]
    return None


def _rgb(pixels: Tensor) -> Tensor:
    """Three channels in 0..1, on white where it is transparent."""
    values = pixels.float() if pixels.is_floating_point() else pixels.float() / 255
    if bool((values < -0.01).any()):  # some give directions or pictures between -1 and 1
        values = values / 2 + 0.5
    values = values.nan_to_num(0.0).clamp(0, 1)
    if values.shape[-1] == 4:
        values = values[..., :3] * values[..., 3:] + 1 - values[..., 3:]
    return values.expand(*values.shape[:-1], 3) if values.shape[-1] == 1 else values
