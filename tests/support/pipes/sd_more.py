"""Stable Diffusion's older variants, most of them deprecated by diffusers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import diffusers as d
import torch

from .nets import WIDTH, ddim, kl, mask, picture, tensor, unet
from .registry import add
from .sd import inpaint, parts, pndm
from .standins import Eyes, Lens, Output, Text, Words


def invert(pipe: Any) -> None:
    """What has to be called before the pipeline is."""
    pipe.invert(image=picture(64), num_inversion_steps=3, skip=0.0)


OLD = "Stable Diffusion, older variants"

add("StableDiffusionSAGPipeline", OLD, parts)
add("StableDiffusionPanoramaPipeline", OLD, parts, lambda: {"view_batch_size": 1}, guidance="views")
add(
    "StableDiffusionLDM3DPipeline", OLD,
    lambda: parts(vae=kl(in_channels=6, out_channels=6)), lambda: {"output_type": "np"},
)  # fmt: skip
add("StableDiffusionModelEditingPipeline", OLD, parts)
add("StableDiffusionAttendAndExcitePipeline", OLD, parts,
    lambda: {"token_indices": [1, 2], "max_iter_to_alter": 0, "attn_res": (4, 4)},
    two="one prompt a call")  # fmt: skip
add(
    "StableDiffusionInpaintPipelineLegacy",
    OLD,
    parts,
    lambda: inpaint() | {"image": picture(), "mask_image": picture(), "strength": 0.8},
)
add("StableDiffusionPipelineSafe", OLD, lambda: parts(safety_checker=None), guidance="threefold")
add("SemanticStableDiffusionPipeline", OLD, parts,
    lambda: {"editing_prompt": "green", "edit_warmup_steps": 0}, guidance="threefold")  # fmt: skip
add("CycleDiffusionPipeline", OLD, parts,
    lambda: {"image": tensor(), "source_prompt": "a pear", "strength": 0.8,
    "eta": 0.1})  # fmt: skip
add(
    "StableDiffusionDiffEditPipeline", OLD,
    lambda: parts(inverse_scheduler=d.DDIMInverseScheduler()),
    lambda: {"mask_image": mask()[:, 0, :8, :8], "image_latents": torch.zeros(1, 2, 4, 8, 8)},
)  # fmt: skip
add(
    "StableDiffusionPix2PixZeroPipeline", OLD,
    lambda: parts(inverse_scheduler=d.DDIMInverseScheduler(), caption_generator=None,
    caption_processor=None),
    lambda: {
        "source_embeds": torch.zeros(1, 8, WIDTH), "target_embeds": torch.ones(1, 8, WIDTH),
        "cross_attention_guidance_amount": 0.0,
    },
)  # fmt: skip
for _name in ("AltDiffusionPipeline", "AltDiffusionImg2ImgPipeline"):
    add(_name, "AltDiffusion", parts, lambda more="2" in _name: {"image": tensor()} if more else {})
add(
    "PaintByExamplePipeline", "Paint by Example",
    lambda: parts(unet=unet(9), image_encoder=Painted(), feature_extractor=Lens()),
    lambda: {"image": picture(), "mask_image": picture(seed=1), "example_image": picture(seed=2)},
)  # fmt: skip
add(
    "StableDiffusionDepth2ImgPipeline", "Stable Diffusion",
    lambda: parts(unet=unet(5), depth_estimator=Depth(), feature_extractor=Lens()),
    lambda: {"image": tensor(), "depth_map": tensor(8)[:, 0], "strength": 0.8},
)  # fmt: skip
GATED: dict[str, Any] = {"attention_type": "gated"}
add(
    "StableDiffusionGLIGENPipeline", "GLIGEN", lambda: parts(unet=unet(**GATED)),
    lambda: {"gligen_phrases": ["an apple"], "gligen_boxes": [[0.1, 0.1, 0.6, 0.6]]},
)  # fmt: skip
add("LEditsPPPipelineStableDiffusion", "LEdits++",
    lambda: parts(
        scheduler=d.DPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++"),
        unet=unet(
            block_out_channels=(8, 8, 16),
            down_block_types=("DownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        ),
    ),
    lambda: {"editing_prompt": ["a very green pear"]}, two="one inverted picture a call",
    after=invert)  # fmt: skip
add(
    "TextToVideoZeroPipeline", "Text to video zero", lambda: parts(scheduler=ddim()),
    lambda: {"video_length": 2, "t0": 0, "t1": 1}, kind="video",
)  # fmt: skip
add(
    "BlipDiffusionPipeline", "BLIP Diffusion",
    lambda: {
        "vae": kl(), "unet": unet(), "scheduler": pndm(), "text_encoder": Blip(),
        "tokenizer": Words(),
        "qformer": Former(), "image_processor": Seen(),
    },
    lambda: {
        "prompt": ["a red apple"], "reference_image": picture(),
        "source_subject_category": ["apple"],
        "target_subject_category": ["pear"], "output_type": "pt",
    },
    two="one list of subjects a call",
)  # fmt: skip


class Painted(Eyes):
    """An image encoder with a state for no example."""

    def __init__(self) -> None:
        super().__init__()
        self.uncond_vector = torch.nn.Parameter(torch.zeros(1, 1, WIDTH))

    def forward(
        self, pixel_values: torch.Tensor, return_uncond_vector: bool = False, **_: Any
    ) -> Any:
        one = super().forward(pixel_values).image_embeds[:, None]
        return (one, self.uncond_vector) if return_uncond_vector else one


class Depth(torch.nn.Module):
    """A depth estimator that is not asked: the depth is given."""

    dtype, device = torch.float32, torch.device("cpu")


class Blip(Text):
    """A text encoder that is told the subject's states too."""

    def forward(self, input_ids: torch.Tensor, ctx_embeddings: Any = None, **named: Any) -> Any:
        made = super().forward(input_ids)
        states = (
            made.last_hidden_state
            if ctx_embeddings is None
            else torch.cat([ctx_embeddings, made[0]], 1)
        )
        return Output((states,), last_hidden_state=states)


class Former(torch.nn.Module):
    """A Q-Former: states for a picture and its subject."""

    dtype, device = torch.float32, torch.device("cpu")

    def __init__(self) -> None:
        super().__init__()
        self.tokenizer, self.config = Words(), SimpleNamespace(num_query_tokens=4)
        self.states = torch.nn.Parameter(torch.ones(1, 4, WIDTH))

    def forward(
        self, image_input: torch.Tensor, text_input: Any, return_dict: bool = False
    ) -> torch.Tensor:
        return self.states.repeat(len(image_input), 1, 1)


class Seen(Lens):
    def preprocess(self, *args: Any, **named: Any) -> Any:
        return self(*args)

    def postprocess(self, image: torch.Tensor, output_type: str) -> torch.Tensor:
        return image
