"""Latents to pictures for previews: the pipeline's own autoencoder, or a linear fit of it."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..errors import ModelError
from ..hooks.preview import LatentRGB

FIT_PIXELS, FIT_PICTURES = 256, 4


class Context:
    """What hooks may ask of a pipeline. `latent_rgb`: the linear fit; `decode`: the real thing."""

    def __init__(self, pipe: Any, latent_rgb: LatentRGB | None = None) -> None:
        self.pipe, self._given = pipe, latent_rgb

    @cached_property
    def latent_rgb(self) -> LatentRGB | None:
        """The model's linear latents-to-RGB map; fitted once from its autoencoder where none is shipped."""
        if self._given is not None:
            return self._given
        if getattr(self.pipe, "vae", None) is None:
            return None
        pictures = synthetic_pictures(FIT_PICTURES, FIT_PIXELS)
        return LatentRGB.fit(self.encode(pictures), pictures)

    @property
    def _vae(self) -> Any:
        vae = getattr(self.pipe, "vae", None)
        if vae is None:
            raise ModelError(f"{type(self.pipe).__name__} has no autoencoder; previews need preview(rgb=…)")
        return vae

    def _scaling(self, like: Tensor) -> tuple[Tensor | float, Tensor | float]:
        """(std, mean) with `vae latents = latents·std + mean`, from the autoencoder's config."""
        config = self._vae.config
        factor = float(getattr(config, "scaling_factor", None) or 1.0)
        mean, std = getattr(config, "latents_mean", None), getattr(config, "latents_std", None)
        if mean is not None and std is not None:
            shape = (1, -1) + (1,) * (like.ndim - 2)
            return torch.tensor(std).to(like).reshape(shape) / factor, torch.tensor(mean).to(like).reshape(shape)
        return 1.0 / factor, float(getattr(config, "shift_factor", None) or 0.0)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Latents (B, C, h, w) to pictures (B, 3, H, W) in 0..1."""
        vae = self._vae
        std, mean = self._scaling(latents)
        # half-precision autoencoders of the SDXL kind overflow; they say so in their config
        upcast = vae.dtype == torch.float16 and bool(getattr(vae.config, "force_upcast", False))
        if upcast:
            vae.to(dtype=torch.float32)
        try:
            inner = (latents * std + mean).to(device=vae.device, dtype=vae.dtype)
            decoded: Tensor = vae.decode(inner, return_dict=False)[0].float()
        finally:
            if upcast:
                vae.to(dtype=torch.float16)
        return (decoded / 2 + 0.5).clamp(0, 1)

    @torch.no_grad()
    def encode(self, pictures: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) in 0..1 to the mean latents (B, C, h, w) the network would see."""
        vae = self._vae
        upcast = vae.dtype == torch.float16 and bool(getattr(vae.config, "force_upcast", False))
        if upcast:
            vae.to(dtype=torch.float32)
        try:
            raw: Tensor = vae.encode((pictures * 2 - 1).to(device=vae.device, dtype=vae.dtype)).latent_dist.mean.float()
        finally:
            if upcast:
                vae.to(dtype=torch.float16)
        std, mean = self._scaling(raw)
        return (raw - mean) / std


def synthetic_pictures(count: int, pixels: int, seed: int = 0) -> Tensor:
    """Smooth random colour fields (count, 3, pixels, pixels) in 0..1, enough to fit a linear map."""
    g = torch.Generator().manual_seed(seed)
    total = torch.zeros(count, 3, pixels, pixels)
    for cells in (2, 4, 8):
        coarse = torch.rand(count, 3, cells, cells, generator=g)
        total += torch.nn.functional.interpolate(coarse, size=pixels, mode="bicubic") / 3
    return ((total - 0.5) * 2 + 0.5).clamp(0, 1)
