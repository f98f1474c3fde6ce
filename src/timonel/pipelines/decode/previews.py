"""Latents to pictures for previews: by the rest of the pipeline's call, or a linear map.

While a call goes on, latents are decoded by the rest of that call (`tail.py`), whatever it does
with them. Latents of no call, as comparisons have them, go through the autoencoder by the usual
layouts and scalings.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...errors import ModelError, RunError
from ...hooks.rgb import LatentRGB, to_images
from ..caller import is_modular
from ..modular import parameters
from ..network.busy import beside
from ..network.turns import turn, turns
from . import blocks, tail
from .pictures import pictures, spectrogram, spread

if TYPE_CHECKING:
    from PIL import Image

    from ...core.run import Run

FIT_PIXELS, FIT_PICTURES = 256, 4
ROUNDS = 16  # of pictures at most, for autoencoders with many channels
CHUNK = 14  # frames decoded at once where the call does not say


class PipelineContext:
    """What hooks may use of a pipeline: decoding, and a linear map to small pictures.

    Args:
        pipe: the pipeline.
        latent_rgb: a shipped linear map; without one it is fitted to the autoencoder.

    Attributes:
        call: arguments of the present call, for sizes that packed latents do not have.
    """

    def __init__(self, pipe: Any, latent_rgb: LatentRGB | None = None) -> None:
        self.pipe, self._shipped = pipe, latent_rgb
        self.call: dict[str, Any] = {}
        self._tail: tail.Tail | tail.NoTail | None = None
        self._shape: torch.Size | None = None
        self._maps: dict[int, LatentRGB] = {}  # of each autoencoder, from its own latents

    @property
    def shipped(self) -> bool:
        """Whether the linear map came with the model, so that it needs no autoencoder."""
        return self._shipped is not None

    @property
    def moves(self) -> bool:
        """Whether the pipeline's models are moved to their device when they are called."""
        parts = dict(getattr(self.pipe, "components", {})).values()
        return any(getattr(part, "_hf_hook", None) is not None for part in parts)

    # -- in a call -----------------------------------------------------------------------------
    def look(self, latents: Tensor) -> None:
        """Note, from a hook of a run, where the present call is, for latents of this shape."""
        self._shape = latents.shape
        try:
            self._tail = blocks.look(self.pipe) if is_modular(self.pipe) else tail.look(self.pipe)
        except tail.NoTail as error:
            self._tail = error

    def _rest(self, latents: Tensor) -> tail.Tail | None:
        """The rest of the call that has such latents; None for latents of no call."""
        if latents.shape != self._shape:
            return None
        if isinstance(self._tail, tail.NoTail):
            raise self._tail
        return self._tail

    @torch.no_grad()
    def small(self, latents: Tensor) -> Tensor:
        """Small pictures of the call's latents by the linear map.

        Args:
            latents: as the run has them.

        Returns:
            RGB (B, 3, h, w), or (B, F, 3, h, w) of a video, in 0..1.

        Raises:
            ModelError: the pipeline has no autoencoder, or one that no map fits.
        """
        rest = None if self._shipped is not None else self._rest(latents)
        if rest is None:
            if self.latent_rgb is None:
                name = type(self.pipe).__name__
                raise ModelError(f"{name} has no autoencoder that a linear map could stand for")
            return self.latent_rgb(latents)
        parts = dict(getattr(self.pipe, "components", {})).values()
        some = any(isinstance(part, torch.nn.Module) and hasattr(part, "decode") for part in parts)
        with turns(self.pipe):
            shown = [rgb[:, :3] for rgb in rest.output(latents, self._linear)[1]] if some else []
        if not shown:
            raise ModelError(f"{type(self.pipe).__name__} decodes without an autoencoder")
        small = torch.cat(shown)
        spectra = spectrogram(small)
        return spread(small, len(latents)).clamp(0, 1) if spectra is None else spectra

    def _linear(self, vae: Any, z: Tensor) -> Tensor:
        """An autoencoder's latents as small pictures in its channels."""
        if id(vae) not in self._maps:
            self._maps[id(vae)] = fitted(vae, z.shape[1])
        shown = self._maps[id(vae)](z.transpose(1, 2) if z.ndim == 5 else z)
        shown = shown.transpose(1, 2) if z.ndim == 5 else shown
        more = _channels(vae) - 3
        if more < 0:
            return shown[:, :1]
        return torch.cat([shown, torch.ones_like(shown[:, :1]).repeat_interleave(more, 1)], 1)

    def _finished(self, rest: tail.Tail, latents: Tensor) -> Tensor:
        """The pipeline's own pictures of `latents`; of sound its spectrogram."""
        with turns(self.pipe):  # its code may cast the autoencoder, as at the end of the call
            output, decoded = rest.output(latents)
        pixels = pictures(output, len(latents))
        if pixels is None and decoded:
            pixels = spectrogram(decoded[0])
        if pixels is None:
            raise ModelError(f"{type(self.pipe).__name__} makes no pictures")
        return pixels

    # -- without one ---------------------------------------------------------------------------
    @cached_property
    def _fitted(self) -> LatentRGB | None:
        """The linear map from latents to RGB: shipped, or fitted once to the autoencoder."""
        if self._shipped is not None:
            return self._shipped
        if getattr(self.pipe, "vae", None) is None:
            return None
        pictures = synthetic_pictures(FIT_PICTURES, FIT_PIXELS)
        return LatentRGB.fit(self.encode(pictures), pictures)

    @property
    def latent_rgb(self) -> LatentRGB | None:
        """From latents, packed ones too, to RGB (B, 3, h, w), or (B, F, 3, h, w) of a video."""
        fitted = self._fitted
        return None if fitted is None else Unpacking(fitted, self)

    @property
    def _vae(self) -> Any:
        vae = getattr(self.pipe, "vae", None)
        if vae is None:
            raise ModelError(
                f"{type(self.pipe).__name__} has no autoencoder; previews need preview(rgb=…)"
            )
        return vae

    # -- layouts -------------------------------------------------------------------------------
    def frames(self, latents: Tensor) -> tuple[Tensor, bool]:
        """Latents as (B, C, h, w) or, of a video, (B, F, C, h, w), and whether it is one."""
        latents = self._unpacked(latents)
        channels = self._channels
        # where there are as many frames as channels, the pipeline decides
        framed = latents.ndim == 5 and latents.shape[2] == channels and self._frames_first
        if latents.ndim == 5 and latents.shape[1] == channels and not framed:
            latents = latents.transpose(1, 2)
        if latents.ndim == 5 and latents.shape[1] == 1:
            return latents[:, 0], False
        return latents, latents.ndim == 5

    @property
    def _channels(self) -> int:
        config, name = self._vae.config, type(self._vae).__name__
        channels = getattr(config, "latent_channels", None) or getattr(config, "z_dim", None)
        if not isinstance(channels, int):
            raise ModelError(f"the autoencoder {name} does not say how many channels latents have")
        return channels

    @property
    def _frames_first(self) -> bool:
        """Whether the pipeline's videos are (B, F, C, h, w): those of SVD and CogVideoX are."""
        svd = "num_frames" in _parameters(self._vae.decode)
        return svd or "CogVideoX" in type(self.pipe).__name__

    def _unpacked(self, latents: Tensor) -> Tensor:
        """Latents that are packed as a sequence of patches, with the pipeline's own rule."""
        if latents.ndim != 3 or not hasattr(self.pipe, "_unpack_latents"):
            return latents
        height, width = self._size(latents.shape[1])
        names, pipe = _parameters(self.pipe._unpack_latents), self.pipe
        if "num_frames" not in names:
            image: Tensor = pipe._unpack_latents(latents, height, width, pipe.vae_scale_factor)
            return image
        kinds = ("spatial", "temporal")
        space, time = (int(getattr(pipe, f"vae_{kind}_compression_ratio")) for kind in kinds)
        patch = [getattr(pipe, f"transformer_{kind}_patch_size") for kind in kinds]
        size = ((self._argument("num_frames") - 1) // time + 1, height // space, width // space)
        video: Tensor = pipe._unpack_latents(latents, *size, *patch)
        return video

    def _argument(self, name: str) -> Any:
        value = self.call.get(name)
        return parameters(self.pipe)[name].default if value is None else value

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
        keys = ("latents_mean", "latents_std")
        mean, std = (getattr(config, key, None) for key in keys)
        if mean is None:  # LTX keeps them beside its weights
            mean, std = map(dict(self._vae.named_buffers()).get, keys)
        if mean is not None and std is not None:
            shape = (1, -1) + (1,) * (like.ndim - 2)
            std, mean = (torch.as_tensor(v).to(like).reshape(shape) for v in (std, mean))
            return std / factor, mean
        return 1.0 / factor, float(getattr(config, "shift_factor", None) or 0.0)

    # -- the autoencoder -----------------------------------------------------------------------
    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Latents to pictures, by the pipeline's own way.

        Args:
            latents: as the run has them.

        Returns:
            RGB (B, 3, H, W), or (B, F, 3, H, W) of videos, in 0..1.

        Raises:
            ModelError: the pipeline makes no pictures; its own code may raise anything.
        """
        rest = self._rest(latents)
        if rest is not None:
            return self._finished(rest, latents)
        try:
            return self._directly(latents)
        except Exception:
            if self._shape is None or (like := self._alike(latents)) is None:
                raise
            pieces = torch.split(latents, self._shape[0])
            return torch.cat([self._finished(like, piece) for piece in pieces])

    def _alike(self, latents: Tensor) -> tail.Tail | None:
        """The rest of the last call, where `latents` are several batches of it."""
        shape = self._shape
        if shape is None or latents.shape[1:] != shape[1:] or len(latents) % shape[0]:
            return None
        return self._tail if isinstance(self._tail, tail.Tail) else None

    def _directly(self, latents: Tensor) -> Tensor:
        """Latents of no call to pictures, by the usual layouts and scalings."""
        frames, video = self.frames(latents)
        with _safe(self._vae) as vae:
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
        """Frames by an autoencoder of pictures, or of frames (SVD's), some at once."""
        flat = self._inner(frames.flatten(0, 1), vae)
        counted = "num_frames" in _parameters(vae.decode)
        decoded = []
        for chunk in torch.split(flat, self.call.get("decode_chunk_size") or CHUNK):
            more = {"num_frames": len(chunk)} if counted else {}
            decoded.append(vae.decode(chunk, return_dict=False, **more)[0].float())
        return torch.cat(decoded).reshape(*frames.shape[:2], *decoded[0].shape[1:])

    def _inner(self, latents: Tensor, vae: Any) -> Tensor:
        std, mean = self._scaling(latents)
        return (latents * std + mean).to(device=vae.device, dtype=vae.dtype)

    @torch.no_grad()
    def encode(self, pictures: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) in 0..1 to the network's latents (B, C, h, w), their mean."""
        raw = _encoded(self._vae, pictures)
        std, mean = self._scaling(raw)
        clean = (raw - mean) / std
        return clean[:, :, 0] if clean.ndim == 5 else clean


def previewed(
    context: PipelineContext, run: Run, *, decode: bool, going: bool
) -> list[Image.Image]:
    """Pictures of a run's newest prediction, or of its noise before there is one; from any thread.

    Args:
        context: of the pipeline.
        run: the run.
        decode: whether by the autoencoder, not by the linear map.
        going: whether the call is at work in another thread.

    Raises:
        RunError: no picture can be made.
    """
    # neither waits for a row that is computed
    clean = run.result if run.called_at is None else run.denoised
    if going and context.moves and (decode or not context.shipped):
        raise RunError(
            "no picture from outside while the models of this pipeline are moved between devices:"
            " use hooks=[tm.preview(…)], which decodes between the steps, or wait for the end of"
            " the call"
        )
    refusal: Exception | None = None
    with beside(context.pipe):
        for convert in (context.decode,) if decode else (context.small, context.decode):
            try:
                return to_images(convert(clean))
            except Exception as error:
                refusal = error
    raise RunError(f"no picture of this run: {refusal}") from refusal


class Unpacking(LatentRGB):
    """A linear map of latents in the pipeline's own layout, packed or of a video."""

    def __init__(self, fitted: LatentRGB, context: PipelineContext) -> None:
        super().__init__(fitted.weight, fitted.bias, psnr=fitted.psnr)
        self.context = context

    def __call__(self, latents: Tensor) -> Tensor:
        """Small RGB pictures of latents in the pipeline's layout."""
        return super().__call__(self.context.frames(latents)[0])


def _parameters(call: Any) -> Any:
    return inspect.signature(call).parameters


def _is_video(vae: Any) -> bool:
    """Whether an autoencoder takes (B, C, F, H, W)."""
    modules = getattr(vae, "encoder", vae).modules()
    return any(isinstance(module, torch.nn.Conv3d) for module in modules)


@contextmanager
def _safe(vae: Any) -> Iterator[Any]:
    """The autoencoder; in float32 where its config says that it overflows in half precision."""
    with turn(vae):  # not while a pipeline encodes or decodes with it, which may cast it too
        upcast = vae.dtype == torch.float16 and bool(getattr(vae.config, "force_upcast", False))
        if upcast:
            vae.to(dtype=torch.float32)
        try:
            yield vae
        finally:
            if upcast:
                vae.to(dtype=torch.float16)


def _encoded(vae: Any, images: Tensor) -> Tensor:
    """Pictures in 0..1, in the autoencoder's channels, to mean latents (B, C, [1,] h, w)."""
    with _safe(vae):
        values = images.unsqueeze(2) if _is_video(vae) else images
        values = (values * 2 - 1).to(device=vae.device, dtype=vae.dtype)
        # one by one: some take no batch
        return torch.cat([_mean(vae.encode(value)) for value in torch.split(values, 1)])


def _mean(encoded: Any) -> Tensor:
    """The latents, or their mean, in what an autoencoder's `encode` returns."""
    for name in ("latent", "latents"):
        if isinstance(raw := getattr(encoded, name, None), Tensor):
            return raw.float()
    mean: Tensor = encoded.latent_dist.mean
    return mean.float()


def _channels(vae: Any) -> int:
    """Channels of an autoencoder's pictures: 3, 4 with alpha, 6 with depth, 1 of spectra."""
    names = ("out_channels", "in_channels", "input_channels")
    numbers = (getattr(vae.config, name, None) for name in names)
    channels = next((n for n in numbers if isinstance(n, int)), 3)
    patch = getattr(vae.config, "patch_size", None)  # of pixels that it takes for channels
    return channels // patch**2 if isinstance(patch, int) and channels % patch**2 == 0 else channels


def fitted(vae: Any, channels: int) -> LatentRGB:
    """The linear map from an autoencoder's own latents to RGB, fitted to smooth pictures.

    Args:
        vae: the autoencoder.
        channels: of its latents.

    Raises:
        ModelError: it has no encoder, or latents of other than `channels` channels.
    """
    name, more = type(vae).__name__, _channels(vae) - 3
    latents: list[Tensor] = []
    shown: list[Tensor] = []
    for seed in range(ROUNDS):
        images = synthetic_pictures(FIT_PICTURES, FIT_PIXELS, seed)
        if more < 0:
            images = images.mean(1, keepdim=True).expand_as(images)
        rest = torch.ones(len(images), max(more, 0), FIT_PIXELS, FIT_PIXELS)
        try:
            raw = _encoded(vae, torch.cat([images, rest], 1) if more >= 0 else images[:, :1])
        except Exception as error:
            raise ModelError(
                f"no linear map fits {name}, which encodes no picture: {error}"
            ) from error
        raw = raw[:, :, 0] if raw.ndim == 5 else raw
        if raw.ndim != 4 or raw.shape[1] != channels:
            raise ModelError(
                f"no linear map fits {name}, which encodes {tuple(raw.shape)}, not {channels}"
                " channels"
            )
        latents.append(raw)
        shown.append(images)
        if len(latents) * raw[:, 0].numel() > 4 * channels:
            break
    return LatentRGB.fit(torch.cat(latents), torch.cat(shown))


def synthetic_pictures(count: int, pixels: int, seed: int = 0) -> Tensor:
    """Smooth random colour fields (count, 3, pixels, pixels) in 0..1, to fit a linear map."""
    g = torch.Generator().manual_seed(seed)
    total = torch.zeros(count, 3, pixels, pixels)
    for cells in (2, 4, 8):
        coarse = torch.rand(count, 3, cells, cells, generator=g)
        total += torch.nn.functional.interpolate(coarse, size=pixels, mode="bicubic") / 3
    return ((total - 0.5) * 2 + 0.5).clamp(0, 1)
