"""Latents to pictures for previews: the pipeline's own autoencoder, or a linear fit of it."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..errors import ModelError
from ..hooks.preview import LatentRGB
from .busy import turn

FIT_PIXELS, FIT_PICTURES = 256, 4
CHUNK = 14  # frames decoded at once where the call does not say


class Context:
    """What hooks may ask of a pipeline. `latent_rgb`: the linear fit; `decode`: the real thing.

    `call`: the arguments of the present call, for the sizes that packed latents do not tell.
    """

    def __init__(self, pipe: Any, latent_rgb: LatentRGB | None = None) -> None:
        self.pipe, self._given = pipe, latent_rgb
        self.call: dict[str, Any] = {}

    @cached_property
    def _fitted(self) -> LatentRGB | None:
        """The model's linear latents-to-RGB map; fitted once from its autoencoder where none is shipped."""
        if self._given is not None:
            return self._given
        if getattr(self.pipe, "vae", None) is None:
            return None
        pictures = synthetic_pictures(FIT_PICTURES, FIT_PIXELS)
        return LatentRGB.fit(self.encode(pictures), pictures)

    @property
    def latent_rgb(self) -> LatentRGB | None:
        """From latents, packed or of a video too, to small RGB (B, 3, h, w) or (B, F, 3, h, w) in 0..1."""
        fitted = self._fitted
        return None if fitted is None else Unpacking(fitted, self)

    @property
    def _vae(self) -> Any:
        vae = getattr(self.pipe, "vae", None)
        if vae is None:
            raise ModelError(f"{type(self.pipe).__name__} has no autoencoder; previews need preview(rgb=…)")
        return vae

    # -- layouts -------------------------------------------------------------------------------
    def frames(self, latents: Tensor) -> tuple[Tensor, bool]:
        """Latents as (B, C, h, w) or, of a video, (B, F, C, h, w), and whether it is one."""
        latents = self._unpacked(latents)
        channels = self._channels
        if latents.ndim == 5 and latents.shape[1] == channels:
            doubtful = latents.shape[2] == channels  # as many frames as channels: the pipeline has to tell
            latents = latents if doubtful and self._frames_first else latents.transpose(1, 2)
        return (latents[:, 0], False) if latents.ndim == 5 and latents.shape[1] == 1 else (latents, latents.ndim == 5)

    @property
    def _channels(self) -> int:
        config = self._vae.config
        found = getattr(config, "latent_channels", None) or getattr(config, "z_dim", None)
        if not isinstance(found, int):
            raise ModelError(f"the autoencoder {type(self._vae).__name__} does not say how many channels latents have")
        return found

    @property
    def _frames_first(self) -> bool:
        """Whether the pipeline's videos are (B, F, C, h, w): those of SVD and CogVideoX are."""
        return "CogVideoX" in type(self.pipe).__name__ or "num_frames" in _parameters(self._vae.decode)

    def _unpacked(self, latents: Tensor) -> Tensor:
        """Latents that are packed as a sequence of patches, with the pipeline's own rule."""
        if latents.ndim != 3 or not hasattr(self.pipe, "_unpack_latents"):
            return latents
        height, width = self._size(latents.shape[1])
        names, pipe = _parameters(self.pipe._unpack_latents), self.pipe
        if "num_frames" not in names:
            made: Tensor = pipe._unpack_latents(latents, height, width, pipe.vae_scale_factor)
            return made
        space, time = (int(getattr(pipe, f"vae_{k}_compression_ratio")) for k in ("spatial", "temporal"))
        patch = [getattr(pipe, f"transformer_{k}_patch_size") for k in ("spatial", "temporal")]
        frames = (self._argument("num_frames") - 1) // time + 1
        video: Tensor = pipe._unpack_latents(latents, frames, height // space, width // space, *patch)
        return video

    def _argument(self, name: str) -> Any:
        given = self.call.get(name)
        return _parameters(self.pipe.__call__)[name].default if given is None else given

    def _size(self, tokens: int) -> tuple[int, int]:
        """Pixels of the picture: as called, or the square that has so many patches."""
        height, width = (self._argument(name) for name in ("height", "width"))
        if height and width:
            return int(height), int(width)
        side = math.isqrt(tokens) * 2 * int(self.pipe.vae_scale_factor)
        return side, side

    def _scaling(self, like: Tensor) -> tuple[Tensor | float, Tensor | float]:
        """(std, mean) with `vae latents = latents·std + mean`, from the autoencoder's config."""
        config = self._vae.config
        factor = float(getattr(config, "scaling_factor", None) or 1.0)
        mean, std = (getattr(config, k, None) for k in ("latents_mean", "latents_std"))
        if mean is None:  # LTX keeps them beside its weights
            mean, std = (dict(self._vae.named_buffers()).get(k) for k in ("latents_mean", "latents_std"))
        if mean is not None and std is not None:
            shape = (1, -1) + (1,) * (like.ndim - 2)
            std, mean = (torch.as_tensor(v).to(like).reshape(shape) for v in (std, mean))
            return std / factor, mean
        return 1.0 / factor, float(getattr(config, "shift_factor", None) or 0.0)

    # -- the autoencoder -----------------------------------------------------------------------
    @contextmanager
    def _safe(self) -> Iterator[Any]:
        """The autoencoder; half-precision ones of the SDXL kind overflow, and say so in their config."""
        vae = self._vae
        with turn(vae):  # not while a pipeline encodes or decodes with it, which may cast it too
            upcast = vae.dtype == torch.float16 and bool(getattr(vae.config, "force_upcast", False))
            if upcast:
                vae.to(dtype=torch.float32)
            try:
                yield vae
            finally:
                if upcast:
                    vae.to(dtype=torch.float16)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Latents as the run has them to pictures (B, 3, H, W), or videos (B, F, 3, H, W), in 0..1."""
        frames, video = self.frames(latents)
        with self._safe() as vae:
            if video and not _is_video(vae):
                decoded = self._decode_frames(vae, frames)
            elif _is_video(vae):
                inner = self._inner(frames.transpose(1, 2) if video else frames.unsqueeze(2), vae)
                decoded = vae.decode(inner, return_dict=False)[0].float().transpose(1, 2)
                decoded = decoded if video else decoded[:, 0]
            else:
                decoded = vae.decode(self._inner(frames, vae), return_dict=False)[0].float()
        return (decoded / 2 + 0.5).clamp(0, 1)

    def _decode_frames(self, vae: Any, frames: Tensor) -> Tensor:
        """Autoencoders of pictures, or of frames (SVD's): some frames at once, as many as the call says."""
        flat = self._inner(frames.flatten(0, 1), vae)
        chunks = torch.split(flat, self.call.get("decode_chunk_size") or CHUNK)
        told = "num_frames" in _parameters(vae.decode)
        more = [{"num_frames": len(chunk)} if told else {} for chunk in chunks]
        made = [vae.decode(c, return_dict=False, **m)[0].float() for c, m in zip(chunks, more, strict=True)]
        return torch.cat(made).reshape(*frames.shape[:2], *made[0].shape[1:])

    def _inner(self, latents: Tensor, vae: Any) -> Tensor:
        std, mean = self._scaling(latents)
        return (latents * std + mean).to(device=vae.device, dtype=vae.dtype)

    @torch.no_grad()
    def encode(self, pictures: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) in 0..1 to the mean latents (B, C, h, w) the network would see."""
        with self._safe() as vae:
            given = pictures.unsqueeze(2) if _is_video(vae) else pictures
            made = vae.encode((given * 2 - 1).to(device=vae.device, dtype=vae.dtype))
            raw: Tensor = (made.latent_dist.mean if hasattr(made, "latent_dist") else made.latent).float()
        std, mean = self._scaling(raw)
        clean = (raw - mean) / std
        return clean[:, :, 0] if clean.ndim == 5 else clean


class Unpacking(LatentRGB):
    """A linear map that first brings latents from the pipeline's layout into frames."""

    def __init__(self, fitted: LatentRGB, context: Context) -> None:
        super().__init__(fitted.weight, fitted.bias, psnr=fitted.psnr)
        self.context = context

    def __call__(self, latents: Tensor) -> Tensor:
        return super().__call__(self.context.frames(latents)[0])


def _parameters(call: Any) -> Any:
    return inspect.signature(call).parameters


def _is_video(vae: Any) -> bool:
    """Whether an autoencoder takes (B, C, F, H, W)."""
    return any(isinstance(module, torch.nn.Conv3d) for module in getattr(vae, "encoder", vae).modules())


def synthetic_pictures(count: int, pixels: int, seed: int = 0) -> Tensor:
    """Smooth random colour fields (count, 3, pixels, pixels) in 0..1, enough to fit a linear map."""
    g = torch.Generator().manual_seed(seed)
    total = torch.zeros(count, 3, pixels, pixels)
    for cells in (2, 4, 8):
        coarse = torch.rand(count, 3, cells, cells, generator=g)
        total += torch.nn.functional.interpolate(coarse, size=pixels, mode="bicubic") / 3
    return ((total - 0.5) * 2 + 0.5).clamp(0, 1)
