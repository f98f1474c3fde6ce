"""Guidance methods and terms on pipelines: what the gate makes of their parts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import diffusers
import pytest
import torch
from diffusers.hooks import (
    FirstBlockCacheConfig,
    HookRegistry,
    LayerSkipConfig,
    apply_first_block_cache,
)
from diffusers.hooks.layer_skip import _apply_layer_skip_hook
from diffusers.hooks.smoothed_energy_guidance_utils import _gaussian_blur_2d
from torch import Tensor, nn

import timonel as tm
from support import tiny
from support.pipes import sd3
from support.pipes.registry import CASES
from timonel.core.guidance import Guidance, Method
from timonel.core.process.config import read
from timonel.errors import ArgumentError, ModelError, UnknownName
from timonel.pipelines.guidance import applied, batch_tree, perturbed
from timonel.pipelines.guidance.called import networks

STEPS = 3
# parts in one batch, in a call each, turned and squeezed, with a learned variance, stepped twice,
# packed, of a guider's
SHAPES = {
    "StableDiffusionPipeline": "sd", "StableDiffusion3Pipeline": "sd3", "DiTPipeline": "dit",
    "ZImagePipeline": "dit_new", "PixArtSigmaPipeline": "dit", "FluxPipeline (true CFG)": "flux",
    "WanPipeline (2.1)": "video", "CogVideoXPipeline": "video",
}  # fmt: skip
MIDDLE = "mid_block"


@dataclass(frozen=True)
class Plain(Method):
    """Classifier-free guidance, as a method."""

    name = "plain"

    def combine(
        self, outputs: Any, scale: float, momentum: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        return torch.lerp(outputs.uncond, outputs.cond, scale), momentum


def built(key: str, family: str) -> tuple[Any, dict[str, Any]]:
    pipe, inputs = tiny.case(family, key)
    for name in ("guidance_scale", "true_cfg_scale"):
        inputs.pop(name, None)
    return pipe, inputs


def first(output: Any) -> Tensor:
    value = output[0]
    while isinstance(value, (list, tuple)):
        value = value[0]
    return value if isinstance(value, Tensor) else torch.as_tensor(value)


def made(pipe: Any, inputs: dict[str, Any], **options: Any) -> Tensor:
    chosen = {"steps": STEPS, "seeds": [0], "sampler": "euler"} | options
    return first(tm.Helm(pipe)(**inputs, **chosen))


def apart(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


class Calls:
    """Samples that the networks of a pipeline compute."""

    def __init__(self, pipe: Any) -> None:
        self.sizes: list[int] = []
        for module, main in networks(pipe).items():
            if main:
                layer = next(m for m in module.modules() if isinstance(m, (nn.Conv2d, nn.Linear)))
                layer.register_forward_pre_hook(lambda _, args: self.sizes.append(len(args[0])))


# -- methods -------------------------------------------------------------------------------------
@pytest.mark.parametrize("key", SHAPES)
def test_plain_guidance_as_a_method_is_the_pipelines_own(key: str) -> None:
    pipe, inputs = built(key, SHAPES[key])
    own = made(pipe, inputs, guidance=4.0)
    assert apart(made(pipe, inputs, guidance=Guidance(4.0, method=Plain())), own) < 1e-5
    assert apart(made(pipe, inputs, guidance=1.5), own) > 1e-5


class Start(tm.Hook):
    """Keeps the sample that a run begins with."""

    def on_start(self, run: tm.Run) -> None:
        self.x = run.latents.clone()


@pytest.mark.parametrize(
    "guidance", [tm.apg(6.0, norm_threshold=2.0, momentum=-0.5), tm.cfg_zero(6.0), tm.cfg_pp(0.6)]
)
def test_the_helm_and_the_native_loop_make_the_same_of_a_method(guidance: Guidance) -> None:
    pipe, inputs = built("StableDiffusionPipeline", "sd")
    start = Start()
    ours = made(pipe, inputs, guidance=guidance, sampler="euler/karras", hooks=[start])
    words = pipe.encode_prompt(inputs["prompt"], "cpu", 1, True)

    def network(text: Tensor) -> Callable[[Tensor, Any], Tensor]:
        return lambda x, level: pipe.unet(x, level.time, encoder_hidden_states=text)[0]

    native = tm.sample(
        network(words[0]), start.x, "euler/karras", process=read(dict(pipe.scheduler.config))[0],
        prediction="epsilon", steps=STEPS, guidance=guidance, unconditional=network(words[1]),
    )  # fmt: skip
    assert apart(native, ours) < 1e-5


def test_cfg_pp_steps_with_the_unconditional_part() -> None:
    pipe, inputs = built("StableDiffusionPipeline", "sd")
    ours = made(pipe, inputs, guidance=tm.cfg_pp(0.7))
    assert apart(made(pipe, inputs, guidance=0.7, sampler="euler_cfg_pp"), ours) < 1e-5
    both = made(pipe, inputs, guidance=tm.cfg_pp(1.0))
    counted = Calls(pipe)
    made(pipe, inputs, guidance=tm.cfg_pp(1.0))
    assert counted.sizes == [2] * STEPS
    assert apart(both, ours) > 1e-4
    # the pipeline's own argument guides the sampler that reads both parts, too
    own = made(pipe, inputs, guidance_scale=5.0, sampler="euler_cfg_pp")
    assert torch.equal(own, made(pipe, inputs, guidance=5.0, sampler="euler_cfg_pp"))


@pytest.mark.parametrize(
    "guidance", [tm.apg(6.0, momentum=-0.5), tm.apg(6.0) + tm.pag(2.0), tm.cfg_pp(0.6)]
)
def test_rewound_branched_and_saved_calls_end_bit_for_bit(
    guidance: Guidance, tmp_path: Any
) -> None:
    pipe, inputs = built("StableDiffusionPipeline", "sd")
    helm, went = tm.Helm(pipe), []

    def back(run: tm.Run) -> None:
        if run.step == 3 and not went:
            went.append(run.branch())
            run.save(tmp_path / "run.safetensors")
            run.rewind(1)

    options = {"sampler": "euler", "steps": 5, "seeds": [0], "guidance": guidance}
    plain = first(helm(**inputs, **options))
    assert torch.equal(first(helm(**inputs, **options, hooks=[back], keep=5)), plain)
    loaded = tm.Run.load(tmp_path / "run.safetensors")
    for run in (went[0], loaded):
        assert run.guidance == guidance
        assert torch.equal(first(helm(**inputs, resume=run)), plain)


def test_a_method_and_a_term_may_be_switched_on_in_a_run() -> None:
    pipe, inputs = built("StableDiffusionPipeline", "sd")
    kept: list[Tensor] = []

    def change(run: tm.Run) -> None:
        kept.append(run.latents.clone())
        if run.step == 1:
            run.guidance = tm.apg(4.0, momentum=-0.5) + tm.pag(2.0)

    made(pipe, inputs, guidance=4.0, hooks=[change])
    changed = list(kept)
    kept.clear()
    made(pipe, inputs, guidance=4.0, hooks=[lambda run: kept.append(run.latents.clone())])
    assert torch.equal(changed[0], kept[0])
    assert apart(changed[1], kept[1]) > 1e-4


# -- terms ---------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("key", "family", "peer"),
    [
        ("StableDiffusionPipeline", "sd", "StableDiffusionPAGPipeline"),
        ("StableDiffusionXLPipeline", "sdxl", "StableDiffusionXLPAGPipeline"),
    ],
)
def test_pag_is_diffusers_pag_pipeline(key: str, family: str, peer: str) -> None:
    pipe, inputs = built(key, family)
    switch = {"requires_safety_checker": False} if family == "sd" else {}
    theirs = getattr(diffusers, peer)(**pipe.components, pag_applied_layers="mid", **switch)
    theirs.set_progress_bar_config(disable=True)
    pag = made(theirs, inputs, guidance_scale=5.0, pag_scale=3.0)
    assert apart(made(pipe, inputs, guidance=tm.cfg(5.0) + tm.pag(3.0)), pag) < 1e-5
    assert apart(made(pipe, inputs, guidance_scale=5.0), pag) > 1e-3
    # and where the prompt does not guide
    alone = made(theirs, inputs, guidance_scale=1.0, pag_scale=3.0)
    assert apart(made(pipe, inputs, guidance=tm.cfg(1.0) + tm.pag(3.0)), alone) < 1e-5
    assert apart(made(pipe, inputs, guidance_scale=1.0, guidance=tm.pag(3.0)), alone) < 1e-5


def test_skip_layers_is_that_of_diffusers_sd3_pipeline(monkeypatch: Any) -> None:
    monkeypatch.setitem(sd3.NET, "num_layers", 4)
    pipe, inputs = built("StableDiffusion3Pipeline", "sd3")
    scales = {"skip_layer_guidance_scale": 2.0, "skip_layer_guidance_stop": 0.5}
    theirs = made(pipe, inputs, guidance_scale=5.0, skip_guidance_layers=[1, 2], steps=8, **scales)
    term = tm.skip_layers([1, 2], 2.0, between=(0.01, 0.5))
    assert torch.equal(made(pipe, inputs, guidance=tm.cfg(5.0) + term, steps=8), theirs)
    assert apart(made(pipe, inputs, guidance=5.0, steps=8), theirs) > 1e-4


NETS = {
    "StableDiffusion3Pipeline": "sd3", "FluxPipeline (dev)": "flux", "WanPipeline (2.1)": "video",
    "QwenImagePipeline": "dit_new", "ZImagePipeline": "dit_new", "PixArtSigmaPipeline": "dit",
    "LTXPipeline": "video", "HunyuanDiTPipeline": "dit", "BriaPipeline": "dit_new",
}  # fmt: skip
# diffusers' SkipLayerGuidance hands the two streams of these on in the other order, or fails
SWAPPED = ("StableDiffusion3", "Flux", "QwenImage", "ZImage", "HunyuanDiT", "Bria")


def network(key: str) -> tuple[nn.Module, Callable[[], Tensor], tuple[int, int] | None]:
    """The network of a pipeline, a call of it, and its sample's size."""
    pipe, inputs = tiny.case(NETS[key], key)
    module = next(module for module, main in networks(pipe).items() if main)
    calls: list[Any] = []
    handle = module.register_forward_pre_hook(
        lambda _, args, kwargs: calls.append((args, kwargs)), with_kwargs=True
    )
    tm.Helm(pipe)(**inputs, steps=1, seeds=[0])
    handle.remove()
    args, kwargs = calls[0]
    sample = batch_tree.sample_of(args, kwargs)
    size = tuple(sample.shape[-2:]) if isinstance(sample, Tensor) and sample.ndim == 4 else None

    def call() -> Tensor:
        with torch.no_grad():
            prediction = batch_tree.tensors(module(*args, **kwargs))
        assert prediction is not None
        return prediction.clone()

    return module, call, size  # type: ignore[return-value]


@pytest.mark.parametrize("key", NETS)
def test_a_skipped_layer_is_one_that_is_not_there(key: str) -> None:
    module, call, _ = network(key)
    name, blocks = perturbed._stack(module)
    for block in blocks:  # random weights may change little
        for p in block.parameters():
            p.mul_(1.5)
    last, before = len(blocks) - 1, call()
    with perturbed.perturbed(module, tm.skip_layers(last).terms[0]):
        skipped = call()
    assert torch.equal(call(), before)
    setattr(module, name, blocks[:last])
    assert apart(skipped, call()) < 1e-6
    assert apart(skipped, before) > 1e-5
    setattr(module, name, blocks)
    config = LayerSkipConfig([last], fqn=name)
    if key.startswith(SWAPPED):
        return
    _apply_layer_skip_hook(module, config, name="theirs")
    assert torch.equal(call(), skipped)
    HookRegistry.check_if_exists_or_initialize(module).remove_hook("theirs", recurse=True)


@pytest.mark.parametrize("key", [k for k in NETS if k.startswith(("Qwen", "ZImage", "PixArt"))])
def test_pag_perturbs_as_diffusers_guider(key: str) -> None:
    module, call, _ = network(key)
    name, before = perturbed._stack(module)[0], call()
    with perturbed.perturbed(module, tm.pag(3.0, layers=0).terms[0]):
        ours = call()
    assert torch.equal(call(), before)
    config = LayerSkipConfig([0], name, False, True, False)
    _apply_layer_skip_hook(module, config, name="theirs")
    assert torch.equal(call(), ours)
    HookRegistry.check_if_exists_or_initialize(module).remove_hook("theirs", recurse=True)
    assert apart(ours, before) > 1e-5


@pytest.mark.parametrize("sigma", [0.5, 1.0, 3.0])
def test_queries_are_blurred_as_by_the_gaussian_of_diffusers(sigma: float) -> None:
    """Its branches are exchanged: it takes the mean below the threshold, the Gaussian above."""
    queries = torch.randn(2, 49, 6, generator=torch.Generator().manual_seed(0))
    kernel = -(-int(6 * sigma) // 1) // 2 * 2 + 1
    theirs = _gaussian_blur_2d(queries.clone(), kernel, sigma, sigma_threshold_inf=0.0)
    assert apart(perturbed.blurred(queries, (7, 7), sigma), theirs) < 1e-5
    mean = _gaussian_blur_2d(queries.clone(), kernel, sigma, sigma_threshold_inf=9999.9)
    assert apart(perturbed.blurred(queries, (7, 7), float("inf")), mean) < 1e-5
    wide = torch.randn(1, 24, 3)
    assert perturbed.blurred(wide, (8, 12), 1.0).shape == wide.shape  # 4 rows of 6


def test_every_term_is_one_evaluation_of_the_conditional_part_in_its_interval() -> None:
    pipe, inputs = built("StableDiffusionPipeline", "sd")
    before = {name: str(type(m.processor)) for name, m in pipe.unet.named_modules()
              if hasattr(m, "processor")}  # fmt: skip
    counted = Calls(pipe)
    terms = tm.pag(3.0, until=0.5) + tm.skip_layers(MIDDLE, between=(0.5, 0.75))
    made(pipe, inputs, guidance=tm.cfg(4.0, until=0.25) + terms, steps=4)
    assert counted.sizes == [2, 1, 1, 1, 1, 1, 1]
    after = {name: str(type(m.processor)) for name, m in pipe.unet.named_modules()
             if hasattr(m, "processor")}  # fmt: skip
    assert before == after
    assert not any("forward" in vars(m) for m in pipe.unet.modules())


def test_the_formula_is_that_of_diffusers_guiders() -> None:
    from diffusers import AutoGuidance, SkipLayerGuidance

    c, u, p = torch.randn(3, 2, 4, 8, 8)
    config = LayerSkipConfig([0])
    skip = SkipLayerGuidance(5.0, 2.8, 0.0, 1.0, skip_layer_config=config)
    ours = torch.lerp(u, c, 5.0) + tm.skip_layers(0, 2.8).terms[0].scale * (c - p)
    assert apart(skip.forward(c, u, p).pred, ours) < 1e-5
    auto = AutoGuidance(2.5, auto_guidance_config=config)
    table = tm.Sampler("euler", steps=2).compile(tm.VP.from_schedule())
    share = tm.autoguidance(2.5, layers=0).terms[0].shares(table)[0]
    assert apart(auto.forward(c, p).pred, c + share * (c - p)) < 1e-5


def test_autoguidance_compares_with_another_network_of_the_caller() -> None:
    pipe, inputs = built("StableDiffusionPipeline", "sd")
    torch.manual_seed(5)
    weak = CASES["StableDiffusionPipeline"].components()["unet"].eval().requires_grad_(False)
    counted, layer = [], next(weak.children())
    layer.register_forward_pre_hook(lambda *_: counted.append(1))
    alone = made(pipe, inputs, guidance=tm.cfg(1.0) + tm.autoguidance(2.0), weak=weak)
    assert len(counted) == STEPS
    mixed = pipe.unet.forward

    def both(*args: Any, **kwargs: Any) -> Any:  # w·c + (1 - w)·p, eq. 3
        output = mixed(*args, **kwargs)[0], weak(*args, **kwargs)[0]
        return (2 * output[0] - output[1],)

    pipe.unet.forward = both
    assert apart(alone, made(pipe, inputs, guidance=1.0)) < 1e-5


def test_a_distilled_network_has_terms_beside_its_own_scale() -> None:
    pipe, inputs = tiny.case("flux", "FluxPipeline (dev)")
    inputs.pop("guidance_scale", None)
    plain = made(pipe, inputs, guidance=3.5)
    counted = Calls(pipe)
    ours = made(pipe, inputs, guidance=tm.cfg(3.5) + tm.skip_layers(0, until=0.5))
    assert len(counted.sizes) == STEPS + 2
    assert apart(ours, plain) > 1e-4


# -- refusals ------------------------------------------------------------------------------------
REFUSED: dict[str, tuple[str, str, dict[str, Any], str]] = {
    "three parts": (
        "StableDiffusionInstructPix2PixPipeline", "sd", {"guidance": tm.apg(4.0)},
        "two things at once",
    ),
    "its own pag": (
        "StableDiffusionPAGPipeline", "sd", {"guidance": tm.cfg(4) + tm.pag(2)}, "pag_scale=0",
    ),
    "a rescale of its own": (
        "StableDiffusionPipeline", "sd", {"guidance": tm.apg(4.0), "guidance_rescale": 0.5},
        "guidance_rescale",
    ),
    "a normalization of its own": (
        "Lumina2Pipeline", "dit", {"guidance": tm.apg(4.0)}, "cfg_normalization=False",
    ),
    "a norm of its own": (
        "QwenImagePipeline", "dit_new", {"guidance": tm.apg(4.0)}, "guide it by cfg",
    ),
    "a distilled network": ("FluxPipeline (dev)", "flux", {"guidance": tm.apg(4.0)}, "distilled"),
    "no guidance": (
        "StableDiffusionPipeline", "sd", {"guidance_scale": 1.0, "guidance": tm.apg()},
        "no unconditional part",
    ),
    "no such layer": (
        "StableDiffusionPipeline", "sd", {"guidance": tm.pag(3.0, layers="mid")}, "mid_block",
    ),
    "a number for a unet": (
        "StableDiffusionPipeline", "sd", {"guidance": tm.pag(3.0, layers=3)}, "names, no numbers",
    ),
    "too large a number": (
        "StableDiffusion3Pipeline", "sd3", {"guidance": tm.skip_layers(40)}, "not one of the",
    ),
    "no blocks": (
        "StableDiffusionPipeline", "sd", {"guidance": tm.skip_layers("conv_in")},
        "no transformer block",
    ),
    "no layers": ("StableDiffusion3Pipeline", "sd3", {"guidance": tm.pag(3.0)}, "layers="),
    "linear attention": (
        "SanaPipeline", "dit", {"guidance": tm.pag(3.0, layers=0)}, "scaled_dot_product",
    ),
    "packed tokens": (
        "FluxPipeline (dev)", "flux", {"guidance": tm.seg(3.0, layers=0)}, "seg blurs",
    ),
    "no worse network": (
        "StableDiffusionPipeline", "sd", {"guidance": tm.autoguidance(2.0)}, "weak=",
    ),
    "a worse network for nothing": (
        "StableDiffusionPipeline", "sd", {"guidance": tm.cfg(2.0), "weak": nn.Linear(1, 1)},
        "autoguidance",
    ),
    "layers skipped twice": (
        "StableDiffusion3Pipeline", "sd3",
        {"guidance": tm.skip_layers(0), "skip_guidance_layers": [0]}, "not both",
    ),
    "another list of scales": (
        "StableDiffusionPipeline", "sd", {"guidance": tm.cfg(4) + tm.pag([3.0, 2.0])}, "one per",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_is_refused_before_the_network_is_called(case: str) -> None:
    key, family, options, match = REFUSED[case]
    pipe, inputs = built(key, family)
    counted = Calls(pipe)
    inputs = {k: v for k, v in inputs.items() if k not in options}
    with pytest.raises((ArgumentError, ModelError, UnknownName), match=match):
        made(pipe, inputs, **options)
    assert counted.sizes == []


def test_a_method_is_refused_in_a_run_that_cannot_have_it_which_goes_on() -> None:
    pipe, inputs = built("QwenImagePipeline", "dit_new")
    seen = []

    def change(run: tm.Run) -> None:
        if run.step == 1:
            with pytest.raises(ArgumentError, match="guide it by cfg"):
                run.guidance = tm.apg(4.0)
            with pytest.raises(ArgumentError, match="not one of the"):
                run.guidance = tm.cfg(4.0) + tm.pag(2.0, layers=99)
            seen.append(run.guidance)

    made(pipe, inputs, steps=2, guidance=tm.cfg(4.0), hooks=[change])
    assert seen == [tm.cfg(4.0)]


@pytest.mark.parametrize(
    ("combined", "match"),
    [
        (lambda c, u: (u + 4 * (c - u)) * 0.8, "rescales"),
        (lambda c, u: u + torch.linspace(1, 4, 8) * (c - u), "than a sum"),
        (lambda c, u: (u + 4 * (c - u))[..., :4], "changes what"),
    ],
)
def test_what_is_no_sum_of_two_parts_is_measured(combined: Any, match: str) -> None:
    c, u = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ArgumentError, match=match):
        applied.find([c, u], combined(c, u), c, "A pipeline", strict=True)
    turned = applied.find([c, u], -(u + 4 * (c - u)), c, "A pipeline", strict=True)
    assert turned.sign == -1.0


def test_a_network_with_a_cache_has_no_terms(monkeypatch: Any) -> None:
    monkeypatch.setitem(sd3.NET, "num_layers", 4)
    module = tiny.case("sd3", "StableDiffusion3Pipeline")[0].transformer
    apply_first_block_cache(module, FirstBlockCacheConfig(threshold=0.1))
    with pytest.raises(ModelError, match="disable_cache"):
        perturbed.check(module, tm.skip_layers(0).terms[0])


def test_guidances_add_up_only_with_terms() -> None:
    both = tm.pag(3.0) + tm.apg(5.0) + tm.skip_layers([7, 8])
    assert [term.kind for term in both.terms] == ["pag", "skip_layers"]
    assert both.method == tm.apg().method
    with pytest.raises(ArgumentError, match="adds up"):
        tm.cfg(3.0) + tm.apg(3.0)
    with pytest.raises(ArgumentError, match="not empty"):
        tm.pag(3.0, between=(0.4, 0.4))
    with pytest.raises(ArgumentError, match="layers"):
        tm.pag(3.0, layers=[])
    with pytest.raises(ArgumentError, match="blur"):
        tm.seg(3.0, blur=0)


def test_a_recipe_holds_terms_and_the_data_reads_back() -> None:
    from timonel.core.data import GuidanceData
    from timonel.core.guidance import words

    sigma = tm.pag([3.0, 2.0], between=(14.0, 1.0), unit="sigma")
    for guidance in (
        tm.apg(5.0) + tm.pag(3.0), tm.cfg(4.0) + tm.seg(2.0, blur=3.0), sigma,
        tm.cfg(4.0) + tm.skip_layers([7, "single_transformer_blocks.3"], between=(0.01, 0.2)),
    ):  # fmt: skip
        data = GuidanceData.of(guidance)
        assert GuidanceData(**data.model_dump(mode="json")).guidance() == guidance
        assert words.read(words.spelled(guidance)) == guidance
    assert "terms" not in GuidanceData.of(tm.cfg(4.0)).model_dump()
