"""Latents to RGB by a linear map, and RGB tensors to PIL images."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import ArgumentError, finite, instance, whole

if TYPE_CHECKING:
    from PIL import Image

_MOST_PSNR = 120.0  # dB; an exact fit has no finite PSNR


class LatentRGB:
    """A linear map from latents to RGB, per pixel: `weight @ latents + bias`, clamped to 0 … 1.

    Args:
        weight: (3, C).
        bias: (3,).
        psnr: dB of the fit against pictures at the size of the latents; None: unknown.
        frames_dim: dimension of the frames of video latents: 1 for (B, F, C, h, w), 2 for
            (B, C, F, h, w).

    Raises:
        ArgumentError: for other shapes, and numbers that are not finite.

    >>> LatentRGB(torch.eye(3), torch.zeros(3))(torch.full((1, 3, 2, 2), 0.5)).mean().item()
    0.5
    """

    def __init__(
        self, weight: Tensor, bias: Tensor, *, psnr: float | None = None, frames_dim: int = 1
    ) -> None:
        for what, value in (("weight", weight), ("bias", bias)):
            instance(what, value, Tensor, "a tensor")
        if weight.ndim != 2 or weight.shape[0] != 3 or bias.shape != (3,):
            raise ArgumentError(
                f"LatentRGB needs a weight (3, C) and a bias (3,), got {tuple(weight.shape)} and"
                f" {tuple(bias.shape)}"
            )
        what = "frames_dim, 1 for (B, F, C, h, w) or 2 for (B, C, F, h, w),"
        self.frames_dim = whole(what, frames_dim, 1, 2)
        self.weight, self.bias = weight.detach().float(), bias.detach().float()
        if not bool(self.weight.isfinite().all() and self.bias.isfinite().all()):
            raise ArgumentError(
                "LatentRGB needs finite numbers; its weight or bias has NaN or infinity"
            )
        self.psnr = None if psnr is None else finite("psnr", psnr)
        self._placed: dict[torch.device, tuple[Tensor, Tensor]] = {}  # copied to a device once

    @property
    def channels(self) -> int:
        """C, the channels of the latents."""
        return self.weight.shape[1]

    def __call__(self, latents: Tensor) -> Tensor:
        """RGB (B, 3, h, w) of latents (B, C, h, w), of video (B, F, 3, h, w); float32, in 0 … 1."""
        frames = _frames_second(latents, self.frames_dim)
        if frames.shape[-3] != self.channels:
            raise ArgumentError(
                f"this LatentRGB is for {self.channels} channels, got latents"
                f" {tuple(latents.shape)}"
            )
        if latents.device not in self._placed:
            pair = self.weight.to(latents.device), self.bias.to(latents.device)
            self._placed[latents.device] = pair
        weight, bias = self._placed[latents.device]
        rgb = torch.einsum("oc,...chw->...ohw", weight, frames.detach().float())
        return rgb.add_(bias[:, None, None]).clamp_(0, 1)

    @classmethod
    def fit(cls, latents: Tensor, images: Tensor, *, frames_dim: int = 1) -> LatentRGB:
        """The least-squares map from latents to the pictures that they encode, in float64.

        Args:
            latents: (B, C, h, w), of video 5-dimensional.
            images: (B, 3, H, W) in 0 … 1, of video (B, F, 3, H, W); averaged to h x w.
            frames_dim: as in the class.

        Returns:
            The map; its `psnr` is that of the clamped fit, at most 120 dB.

        Raises:
            ArgumentError: for shapes that do not belong together, or too few pixels.
        """
        from torch.nn.functional import adaptive_avg_pool2d

        x = _frames_second(latents, frames_dim).detach().double().cpu()
        y = images.detach().double().cpu()
        if y.ndim != x.ndim or y.shape[:-3] != x.shape[:-3] or y.shape[-3] != 3:
            raise ArgumentError(
                f"latents {tuple(latents.shape)} and images {tuple(images.shape)} do not belong"
                f" together: the images must be ({', '.join(map(str, x.shape[:-3]))}, 3, H, W)"
            )
        small = adaptive_avg_pool2d(y.flatten(0, -4), (x.shape[-2], x.shape[-1]))
        small = small.movedim(1, -1).reshape(-1, 3)
        flat = x.flatten(0, -4).movedim(1, -1).reshape(-1, x.shape[-3])
        if len(flat) <= flat.shape[1]:
            raise ArgumentError(
                f"{len(flat)} latent pixels cannot fix {flat.shape[1] + 1} unknowns; give more"
                " pictures"
            )
        columns = torch.cat([flat, torch.ones(len(flat), 1, dtype=flat.dtype)], 1)
        solution = torch.linalg.lstsq(columns, small, driver="gelsd").solution
        error = ((columns @ solution).clamp(0, 1) - small).square().mean().item()
        psnr = _MOST_PSNR if error < 10 ** (-_MOST_PSNR / 10) else -10 * math.log10(error)
        return cls(solution[:-1].T.contiguous(), solution[-1], psnr=psnr, frames_dim=frames_dim)

    def to_card(self) -> dict[str, Any]:
        """Plain data for a model card: weight (3 lists of C), bias, psnr; frames_dim unless 1."""
        card: dict[str, Any] = {"weight": self.weight.tolist(), "bias": self.bias.tolist()}
        card |= {"psnr": self.psnr}
        return card if self.frames_dim == 1 else {**card, "frames_dim": self.frames_dim}

    @classmethod
    def from_card(cls, card: Mapping[str, Any]) -> LatentRGB:
        """The map of `to_card`'s data. Raises `ArgumentError` for anything else."""
        try:
            weight, bias = (torch.tensor(card[k], dtype=torch.float32) for k in ("weight", "bias"))
            psnr = None if card.get("psnr") is None else float(card["psnr"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ArgumentError(
                f"this is not a LatentRGB card (weight, bias, psnr): {error!r}"
            ) from error
        return cls(weight, bias, psnr=psnr, frames_dim=card.get("frames_dim", 1))


def _frames_second(latents: Tensor, frames_dim: int) -> Tensor:
    if latents.ndim not in (4, 5):
        raise ArgumentError(
            f"pictures come from latents (B, C, h, w) or video (5 dims), got {tuple(latents.shape)}"
        )
    return latents.transpose(1, 2) if latents.ndim == 5 and frames_dim == 2 else latents


def to_bytes(rgb: Tensor) -> Tensor:
    """RGB (…, 3, H, W) in 0 … 1 as uint8 (…, H, W, 3), on its device and without waiting for it."""
    if rgb.ndim not in (4, 5) or rgb.shape[-3] != 3:
        raise ArgumentError(f"pictures are (B, 3, H, W) or (B, F, 3, H, W), got {tuple(rgb.shape)}")
    scaled = rgb.detach().float().nan_to_num(0.0).clamp(0, 1).mul(255).add_(0.5)
    return scaled.to(torch.uint8).movedim(-3, -1).contiguous()


def to_images(rgb: Tensor, size: int | None = None) -> list[Image.Image]:
    """One PIL image per sample; of a video the grid of its frames.

    Args:
        rgb: (B, 3, H, W), of video (B, F, 3, H, W), in 0 … 1; clamped, NaN is black.
        size: least pixels of the longer side, by the smallest whole factor, nearest neighbour;
            None: no change.

    Returns:
        B images.

    Raises:
        ArgumentError: for another shape.
    """
    return bytes_to_images(to_bytes(rgb), size)


def bytes_to_images(pixels: Tensor, size: int | None = None) -> list[Image.Image]:
    """PIL images from uint8 (B, H, W, 3) or (B, F, H, W, 3)."""
    from PIL import Image

    images = []
    for sample in pixels.cpu():
        picture = _grid(sample) if sample.ndim == 4 else sample
        image = Image.fromarray(picture.numpy())
        factor = -(-size // max(image.size)) if size else 1
        if factor > 1:
            larger = (image.width * factor, image.height * factor)
            image = image.resize(larger, Image.Resampling.NEAREST)
        images.append(image)
    return images


def _grid(frames: Tensor) -> Tensor:
    """Frames (F, H, W, 3) as a grid, nearly square, row by row; the rest is black."""
    count, height, width, _ = frames.shape
    columns = max(1, min(count, round(math.sqrt(count * height / width))))
    rows = -(-count // columns)
    full = frames.new_zeros(rows * columns, height, width, 3)
    full[:count] = frames
    laid = full.view(rows, columns, height, width, 3).transpose(1, 2)
    return laid.reshape(rows * height, columns * width, 3)
