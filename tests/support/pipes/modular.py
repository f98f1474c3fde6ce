"""Modular pipelines: blocks of diffusers with the tiny networks of the classic pipelines."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import diffusers as d
import torch

from . import dit_new, flux, sd3, sdxl, video, video_new
from .nets import mask, picture
from .registry import Case, fill, register
from .standins import Text, Words

FAMILY = "Modular"


@dataclass(frozen=True)
class ModularCase(Case):
    """Blocks of a modular pipeline; its call returns the samples of its state.

    `blocks`: their class. `output`: the name of what is shown.
    """

    blocks: str = ""
    output: str = "images"

    @property
    def tree(self) -> Any:
        return getattr(d, self.blocks)()

    def parameters(self) -> Mapping[str, Any]:
        return {one.name: one for one in self.tree.inputs if one.name} | {"output": None}

    def shown(self, form: str) -> dict[str, Any]:
        return {"output_type": form, "output": self.output}

    def inputs(self) -> dict[str, Any]:
        return super().inputs() | {"output_type": "pt", "output": "latents"}

    def build(self, seed: int = 0) -> Any:
        torch.manual_seed(seed)
        given, pipe = self.components(), self.tree.init_pipeline()
        for name in dict(pipe.components):
            if name not in given and "tokenizer" in name:
                given[name] = Words()
            elif name not in given and name.startswith("text_encoder"):
                given[name] = Text()
        for name, part in given.items():
            if name in pipe.component_names:
                setattr(pipe, name, part)
        for part in pipe.components.values():
            if isinstance(part, torch.nn.Module):
                fill(part.eval().requires_grad_(False))
        quiet(pipe._blocks)
        if self.after:
            self.after(pipe)
        return pipe


def quiet(block: Any) -> None:
    """No progress bars; those of loops inside other blocks are not reached by the pipeline's own
    method.
    """
    vars(sys.modules[type(block).__module__]).setdefault("ftfy", SimpleNamespace(fix_text=str))
    if hasattr(block, "set_progress_bar_config"):
        block.set_progress_bar_config(disable=True)
    for one in dict(block.sub_blocks or {}).values():
        quiet(one)


def blocks(
    name: str, tree: str, components: Callable[[], dict[str, Any]], call: Any = dict, **facts: Any
) -> None:
    """Register blocks."""
    options = {"guidance": "sequential"} | facts
    register(ModularCase(name, FAMILY, components, call, blocks=tree, **options))


XL, IMAGE = "StableDiffusionXLModularPipeline", {"image": picture(), "strength": 0.8}
XL_BLOCKS = "StableDiffusionXLAutoBlocks"
blocks(XL, XL_BLOCKS, sdxl.parts)
blocks(XL, XL_BLOCKS, sdxl.parts, lambda: IMAGE, label=" (img2img)")
blocks(
    XL, XL_BLOCKS, sdxl.parts, lambda: IMAGE | {"mask_image": mask()}, label=" (inpaint)"
)  # fmt: skip
blocks(
    XL, XL_BLOCKS, lambda: sdxl.parts() | {"guider": d.AdaptiveProjectedGuidance(
        guidance_scale=4.0, adaptive_projected_guidance_momentum=-0.5)},
    label=" (APG)",
)  # fmt: skip
blocks("StableDiffusion3ModularPipeline", "StableDiffusion3AutoBlocks", sd3.parts)
blocks("FluxModularPipeline", "FluxAutoBlocks", flux.parts, guidance="embedded", label=" (dev)")
blocks("FluxModularPipeline", "FluxAutoBlocks", flux.parts, lambda: IMAGE, guidance="embedded",
       label=" (img2img)")  # fmt: skip
blocks(
    "Flux2KleinBaseModularPipeline", "Flux2KleinBaseAutoBlocks", lambda: flux.flux2(False),
    lambda: flux.LAYERS,
)  # fmt: skip
WAN: dict[str, Any] = {"kind": "video", "output": "videos"}
blocks("WanModularPipeline", "WanBlocks", video.wan, lambda: video.LEAST, label=" (2.1)", **WAN)
blocks(
    "WanModularPipeline", "Wan22Blocks",
    lambda: video.wan(**{k: v for k, v in video.second().items() if k != "boundary_ratio"}),
    lambda: video.LEAST, label=" (2.2)", networks=("transformer", "transformer_2"), **WAN,
)  # fmt: skip
QWEN: dict[str, Any] = {"negative_prompt": "blur", "max_sequence_length": 64}
blocks("QwenImageModularPipeline", "QwenImageAutoBlocks", dit_new.qwen, lambda: QWEN)
blocks("QwenImageModularPipeline", "QwenImageAutoBlocks", dit_new.qwen, lambda: QWEN | IMAGE,
       label=" (img2img)")  # fmt: skip
blocks("Flux2ModularPipeline", "Flux2AutoBlocks", flux.flux2, lambda: flux.LAYERS,
       guidance="embedded")  # fmt: skip
VIDEO: dict[str, Any] = {"kind": "video", "output": "videos"}
LTX = {key: value for key, value in video.LTX.items() if key != "guidance_scale"}
LTX2 = {key: value for key, value in video_new.LTX2.items() if key != "guidance_scale"}
blocks("LTXModularPipeline", "LTXAutoBlocks", lambda: video.ltx(**video.DYNAMIC), lambda: LTX,
       **VIDEO)  # fmt: skip
blocks("LTX2ModularPipeline", "LTX2AutoBlocks", video_new.ltx2, lambda: LTX2, **VIDEO)
blocks("ZImageModularPipeline", "ZImageAutoBlocks",
       lambda: dit_new.zed(guider=d.ClassifierFreeGuidance(guidance_scale=3.0)))  # fmt: skip
blocks("HunyuanVideo15ModularPipeline", "HunyuanVideo15AutoBlocks",
       lambda: video_new.hunyuan15("t2v"), lambda: {"num_frames": 9}, **WAN)  # fmt: skip
