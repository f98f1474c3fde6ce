"""Guidance on pipelines of every shape: batched halves, three parts, one call each, told to the
network, none.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import timonel as tm
from support import tiny
from timonel.engine.tensor_trees import equal
from timonel.errors import ArgumentError
from timonel.pipelines.guidance import batch_tree as parts

STEPS = 6
# family, class; what its scale is called; how many samples the network computes where guided and
# where not
GUIDED: dict[str, tuple[str, str, tuple[int, int]]] = {
    "StableDiffusionPipeline": ("sd", "guidance_scale", (2, 1)),
    "StableDiffusionXLPipeline": ("sdxl", "guidance_scale", (2, 1)),
    "StableDiffusionImg2ImgPipeline": ("sd", "guidance_scale", (2, 1)),
    "StableDiffusionInpaintPipeline": ("sd", "guidance_scale", (2, 1)),
    "StableDiffusionControlNetPipeline": ("sd", "guidance_scale", (2, 1)),
    "StableDiffusionInstructPix2PixPipeline": ("sd", "guidance_scale", (3, 1)),
    "StableDiffusionXLInstructPix2PixPipeline": ("sdxl", "guidance_scale", (3, 1)),
    "StableDiffusionPAGPipeline": ("sd", "guidance_scale", (3, 2)),
    "StableDiffusion3Pipeline": ("sd3", "guidance_scale", (2, 1)),
    "DiTPipeline": ("dit", "guidance_scale", (2, 1)),
    "LuminaPipeline": ("dit", "guidance_scale", (2, 1)),
    "HiDreamImagePipeline": ("dit_new", "guidance_scale", (2, 1)),
    "ZImagePipeline": ("dit_new", "guidance_scale", (2, 1)),
    "CogVideoXPipeline": ("video", "guidance_scale", (2, 1)),
    "LTXPipeline": ("video", "guidance_scale", (2, 1)),
    "AnimateDiffPipeline": ("video", "guidance_scale", (2, 1)),
    "StableVideoDiffusionPipeline": ("video", "max_guidance_scale", (2, 1)),
    "FluxPipeline (true CFG)": ("flux", "true_cfg_scale", (2, 1)),
    "WanPipeline (2.1)": ("video", "guidance_scale", (2, 1)),
    "WanPipeline (2.2)": ("video", "guidance_scale", (2, 1)),
    "QwenImagePipeline": ("dit_new", "true_cfg_scale", (2, 1)),
}


# the largest to build and to run, so that one law of it is enough for a quick look
EACH = [
    pytest.param(key, marks=pytest.mark.slow) if key == "HiDreamImagePipeline" else key
    for key in GUIDED
]
UNGUIDED = {"ZImagePipeline": 0.0}  # c + g·(c - u)


class Samples:
    """How many samples the networks compute at every step, counted by what reaches their first
    layer.
    """

    def __init__(self, pipe: Any) -> None:
        self.seen: list[int] = []
        self.rows: list[int] = []
        for name in ("unet", "transformer", "transformer_2"):
            network = getattr(pipe, name, None)
            if isinstance(network, nn.Module):
                layers = dict(network.named_modules())
                named = (
                    layers[k]
                    for k in ("conv_in", "x_embedder", "img_in", "patch_embedding", "proj_in")
                    if k in layers
                )
                layer = next(named, None) or next(
                    m for m in layers.values() if isinstance(m, (nn.Conv2d, nn.Linear))
                )
                layer.register_forward_pre_hook(self.see)

    def see(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        self.seen.append(args[0].numel())

    def ends(self, run: tm.Run) -> None:
        self.rows.append(sum(self.seen))
        self.seen = []


def built(key: str, dtype: torch.dtype = torch.float32) -> tuple[Any, dict[str, Any], str]:
    family, name, _ = GUIDED[key]
    pipe, inputs = tiny.case(family, key, dtype)
    inputs.pop(name, None)
    return pipe, inputs, name


def first(output: Any) -> torch.Tensor:
    value = output[0]
    while isinstance(value, (list, tuple)):
        value = value[0]
    return value if isinstance(value, torch.Tensor) else torch.as_tensor(value)


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


@pytest.mark.parametrize("key", EACH)
def test_the_unconditional_part_is_not_computed_outside_the_interval(key: str) -> None:
    pipe, inputs, _ = built(key)
    counted, helm = Samples(pipe), tm.Helm(pipe)
    asked = {"sampler": "dpmpp_2m", "guidance": tm.cfg(4.0, until=0.5)}
    helm(**inputs, **asked, steps=STEPS, seeds=[0], hooks=[counted.ends])
    steps = len(counted.rows)  # img2img takes fewer
    guided = -(-steps // 2)
    high, low = GUIDED[key][2]
    assert counted.rows[:guided] == [counted.rows[0]] * guided
    assert counted.rows[guided:] == [counted.rows[0] // high * low] * (steps - guided)


@pytest.mark.parametrize("key", EACH)
def test_without_the_unconditional_part_a_step_is_the_conditional_prediction(key: str) -> None:
    pipe, inputs, name = built(key)
    helm = tm.Helm(pipe)
    off = first(helm(**inputs, steps=3, seeds=[0], guidance=tm.cfg(between=(0.99, 1.0))))
    none = first(helm(**inputs, steps=3, seeds=[0], **{name: UNGUIDED.get(key, 1.0)}))
    guided = first(helm(**inputs, steps=3, seeds=[0], **{name: 6.0}))
    assert relative(off, none) < 1e-5  # measured: 0, where the network rounds alike in every batch
    assert relative(guided, none) > 1e-5


@pytest.mark.parametrize("key", EACH)
def test_the_scale_is_the_pipelines_own_whatever_it_is_called(key: str) -> None:
    pipe, inputs, name = built(key)
    helm = tm.Helm(pipe)
    ours = first(helm(**inputs, steps=2, seeds=[0], guidance=3.0))
    own = first(helm(**inputs, steps=2, seeds=[0], **{name: 3.0}))
    assert torch.equal(ours, own)
    with pytest.raises(ArgumentError, match=f"guidance= or as {name}="):
        helm(**inputs, steps=2, guidance=3.0, **{name: 3.0})


@pytest.mark.parametrize("key", [k for k in EACH if not isinstance(k, str) or GUIDED[k][2][0] == 2])
def test_a_scale_per_step_is_the_pipelines_formula_with_that_scale(key: str) -> None:
    """Two runs of one Euler step each, with the scales 5 and 2, are the two steps of one run with
    [5, 2].
    """
    pipe, inputs, name = built(key)
    helm = tm.Helm(pipe)
    kept: dict[str, torch.Tensor] = {}

    def keep(run: tm.Run) -> None:
        kept[f"{run.step}"] = run.latents.clone()

    options: dict[str, Any] = {"sampler": "euler", "steps": STEPS, "seeds": [0], "hooks": [keep]}
    helm(
        **inputs,
        **options,
        guidance=tm.cfg([5.0] + [2.0] * (STEPS - 1)) if "Img2Img" not in key else 2.0,
    )
    if "Img2Img" in key:
        return
    mixed = dict(kept)
    high: dict[str, torch.Tensor] = {}

    def swap(run: tm.Run) -> None:
        if run.step == 1:
            run.latents = mixed["1"].clone()
        high[f"{run.step}"] = run.latents.clone()

    helm(
        **inputs,
        sampler="euler",
        steps=STEPS,
        seeds=[0],
        **{name: 5.0},
        hooks=[lambda run: keep(run)],
    )
    assert relative(mixed["1"], kept["1"]) < 1e-5
    helm(**inputs, sampler="euler", steps=STEPS, seeds=[0], **{name: 2.0}, hooks=[swap])
    assert relative(mixed[f"{STEPS}"], high[f"{STEPS}"]) < 1e-4


@pytest.mark.parametrize(
    "key", ["StableDiffusionPipeline", "FluxPipeline (true CFG)", "WanPipeline (2.1)"]
)
def test_rescale_gives_the_guided_output_the_spread_of_the_conditional_one(key: str) -> None:
    pipe, inputs, _ = built(key)
    helm = tm.Helm(pipe)
    outputs: list[torch.Tensor] = []
    for network in (pipe.unet if hasattr(pipe, "unet") else pipe.transformer,):
        network.register_forward_hook(lambda m, a, out: outputs.append(out[0]))
    raws: list[torch.Tensor] = []
    advance = tm.Run.advance
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tm.Run, "advance", lambda run, raw: (raws.append(raw), advance(run, raw))[1])
        helm(**inputs, steps=1, seeds=[0], guidance=tm.cfg(7.0, rescale=1.0))
    conditional = outputs[0].chunk(2)[1] if len(outputs) == 1 else outputs[0]
    assert float(raws[0].std()) == pytest.approx(float(conditional.std()), rel=1e-4)


@pytest.mark.parametrize(
    ("family", "key"), [("flux", "FluxPipeline (dev)"), ("flux", "FluxPipeline (schnell)")]
)
def test_a_model_without_an_unconditional_part_says_that_nothing_can_be_switched_off(
    family: str, key: str
) -> None:
    pipe, inputs = tiny.case(family, key)
    counted, helm = Samples(pipe), tm.Helm(pipe)
    with pytest.raises(
        ArgumentError,
        match=r"guidance-distilled.*negative_prompt|guides only with a negative prompt",
    ):
        helm(**inputs, steps=2, guidance=tm.cfg(until=0.5))
    assert counted.seen == []
    if key.endswith("(dev)"):
        told = first(helm(**inputs, steps=2, seeds=[0], guidance=7.0))
        assert torch.equal(told, first(helm(**inputs, steps=2, seeds=[0], guidance_scale=7.0)))


def test_a_scale_per_step_is_refused_where_two_things_guide() -> None:
    pipe, inputs, _ = built("StableDiffusionInstructPix2PixPipeline")
    with pytest.raises(ArgumentError, match="guides by two things"):
        tm.Helm(pipe)(**inputs, steps=2, guidance=tm.cfg([4.0, 2.0]))


def test_guidance_that_the_pipeline_does_not_do_is_refused_before_the_network() -> None:
    for key in ("StableDiffusionPipeline", "WanPipeline (2.1)"):
        pipe, inputs, name = built(key)
        counted = Samples(pipe)
        with pytest.raises(ArgumentError, match="no unconditional part"):
            tm.Helm(pipe)(**inputs, steps=2, guidance=tm.cfg(until=0.5), **{name: 1.0})
        assert counted.seen == []


@pytest.mark.parametrize("key", GUIDED)
def test_what_the_pipeline_makes_of_its_parts_says_which_is_conditional(key: str) -> None:
    """The table of places in `batch_tree.py` is measured on every class here."""
    pipe, inputs, _ = built(key)
    helm = tm.Helm(pipe)
    seen: list[tuple[list[float], int]] = []
    weigh = parts.weights

    def spy(found: Any, combined: Any) -> Any:
        made = weigh(found, combined)
        if made is not None:
            seen.append((made, len(found)))
        return made

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts, "weights", spy)
        helm(**inputs, steps=2, seeds=[0], guidance=tm.cfg(4.0, until=1.0))
    sequential = key in ("FluxPipeline (true CFG)", "QwenImagePipeline") or key.startswith("Wan")
    for weights, count in seen:
        expected = 0 if sequential else parts.conditional(pipe, count)
        assert weights.index(max(weights)) == expected
        assert sum(weights) == pytest.approx(1)


def test_a_second_sample_in_one_step_is_another_window_not_an_unconditional_part() -> None:
    a, b = torch.zeros(1, 4, 2, 2), torch.ones(1, 4, 2, 2)
    assert equal(a, a)
    assert equal(a, a.clone())
    assert not equal(a, b)
    assert not equal(a, a[..., :1])
    assert equal([a], [a.clone()])
    assert not equal([a], a)


def test_places_and_rotary_embeddings_are_never_taken_for_a_batch() -> None:
    given = {
        "image_rotary_emb": (torch.zeros(4, 8), torch.zeros(4, 8)),
        "txt_ids": torch.zeros(4, 3),
    }
    given |= {"added": {"time_ids": torch.arange(4.0)}, "llama": [torch.arange(4.0)]}
    cut = parts.narrow(given, 4, slice(2, 4), False)
    assert cut["image_rotary_emb"][0].shape == (4, 8)
    assert cut["txt_ids"].shape == (4, 3)
    assert cut["added"]["time_ids"].tolist() == [2.0, 3.0]
    assert cut["llama"][0].tolist() == [2.0, 3.0]


def adapter(network: nn.Module, width: int = 32) -> dict[str, Any]:
    """The weights of an IP-Adapter for `network`, random."""
    from diffusers.models.embeddings import ImageProjection

    projection = ImageProjection(width, width, num_image_text_embeds=4).state_dict()
    named = {k.replace("image_embeds", "proj"): v for k, v in projection.items()}
    attention: dict[str, torch.Tensor] = {}
    for i, name in enumerate(n for n in network.attn_processors if n.endswith("attn2.processor")):  # type: ignore[union-attr]
        inner = network.get_submodule(name.removesuffix(".processor")).to_q.weight.shape[0]
        for key in ("to_k_ip.weight", "to_v_ip.weight"):
            attention[f"{2 * i + 1}.{key}"] = torch.randn(inner, width) * 0.1
    return {"image_proj": named, "ip_adapter": attention}


def test_an_image_prompt_is_halved_with_everything_else() -> None:
    pipe, inputs, _ = built("StableDiffusionPipeline")
    plain = first(tm.Helm(pipe)(**inputs, steps=3, seeds=[0]))
    torch.manual_seed(0)
    pipe.unet._load_ip_adapter_weights([adapter(pipe.unet)])
    picture = torch.randn(1, 1, 32, generator=torch.Generator().manual_seed(1))
    inputs["ip_adapter_image_embeds"] = [torch.cat([torch.zeros_like(picture), picture])]
    counted, helm = Samples(pipe), tm.Helm(pipe)
    off = first(
        helm(
            **inputs, steps=3, seeds=[0], guidance=tm.cfg(between=(0.99, 1.0)), hooks=[counted.ends]
        )
    )
    inputs["ip_adapter_image_embeds"] = [picture]
    none = first(helm(**inputs, steps=3, seeds=[0], guidance_scale=1.0, hooks=[counted.ends]))
    assert counted.rows[:3] == counted.rows[3:]
    assert relative(off, none) < 1e-5
    assert relative(off, plain) > 1e-3
