"""Which family a model belongs to, as far as its configuration says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .facts import Facts

SAME_UNET = "a LoRA or another UNet of the same shape leaves no trace in the configuration"


@dataclass(frozen=True)
class Family:
    """A row of the table.

    Args:
        title: as its authors call it.
        known_by: the facts by which it is recognised.
        alike: families that a configuration like this may also be.
        doubt: why.
        distilled: made for few steps without guidance.
    """

    title: str
    known_by: str
    alike: tuple[str, ...] = ()
    doubt: str = ""
    distilled: bool = False


FAMILIES: dict[str, Family] = {
    "sd1": Family("Stable Diffusion 1.x", "UNet with cross_attention_dim 768",
        ("lcm_lora", "tcd", "hyper_sd"),
        f"1.4, 1.5 and their fine-tunes are configured alike, and {SAME_UNET}"),
    "sd2_base": Family("Stable Diffusion 2.x base",
        "UNet with cross_attention_dim 1024, predicts epsilon", ("tcd",),
        f"2.0 and 2.1 are configured alike, and {SAME_UNET}"),
    "sd2_v": Family("Stable Diffusion 2.x (768)", "UNet with cross_attention_dim 1024, predicts v",
        (), "2.0 and 2.1 are configured alike"),
    "sd_turbo": Family("SD Turbo", "Stable Diffusion 2's UNet, trailing times", (),
        "another few-step distillation of Stable Diffusion 2 looks the same", True),
    "sdxl": Family("SDXL", "UNet with cross_attention_dim 2048, no few-step scheduler",
        ("sdxl_lightning", "hyper_sd", "tcd", "lcm_lora"), SAME_UNET),
    "sdxl_turbo": Family("SDXL Turbo",
        "SDXL's UNet, EulerAncestralDiscreteScheduler on trailing times", (),
        "a fine-tune of SDXL that was saved with this scheduler looks the same", True),
    "sdxl_lightning": Family("SDXL Lightning",
        "SDXL's UNet, EulerDiscreteScheduler on trailing times", ("hyper_sd", "sdxl"),
        "only timestep_spacing='trailing' says so, which Hyper-SD and an SDXL saved like this"
        " have too", True),
    "hyper_sd": Family("Hyper-SD", "DDIMScheduler on trailing times", ("sdxl_lightning", "sdxl"),
        "only the scheduler says so", True),
    "tcd": Family("TCD", "TCDScheduler", ("hyper_sd",), "only the scheduler says so", True),
    "lcm": Family("LCM", "guidance is an input of the network (time_cond_proj_dim)", (), "", True),
    "lcm_lora": Family("LCM-LoRA", "LCMScheduler, and guidance is no input of the network", (),
        "only the scheduler says so", True),
    "svd": Family("Stable Video Diffusion", "14 frames"),
    "svd_xt": Family("Stable Video Diffusion XT", "25 frames", (),
        "XT and XT 1.1 are configured alike"),
    "sd3_medium": Family("Stable Diffusion 3 medium", "24 layers, none of dual attention"),
    "sd35_medium": Family("Stable Diffusion 3.5 medium", "24 layers, some of dual attention", (),
        "few-step fine-tunes of it are configured alike"),
    "sd35_large": Family("Stable Diffusion 3.5 large", "38 layers", ("sd35_large_turbo",),
        "large and large turbo have the same configuration"),
    "sd35_large_turbo": Family("Stable Diffusion 3.5 large turbo",
        "by nothing: large has the same configuration", (), "", True),
    "flux_dev": Family("Flux.1 dev", "guidance is an input of the network (guidance_embeds)", (),
        "fine-tunes and few-step LoRAs of it are configured alike"),
    "flux_schnell": Family("Flux.1 schnell", "guidance_embeds is false", (),
        "de-distilled fine-tunes of it are configured alike, and take more steps", True),
    "flux2_dev": Family("Flux.2 dev", "its pipeline"),
    "flux2_klein": Family("Flux.2 Klein", "its pipeline, is_distilled", (), "", True),
    "wan21_t2v": Family("Wan 2.1 text to video", "one network of 16 channels"),
    "wan21_i2v": Family("Wan 2.1 image to video", "one network that takes a picture"),
    "wan22_t2v_a14b": Family("Wan 2.2 T2V A14B", "two networks (boundary_ratio)"),
    "wan22_i2v_a14b": Family("Wan 2.2 I2V A14B",
        "two networks (boundary_ratio) that take a picture"),
    "wan22_ti2v_5b": Family("Wan 2.2 TI2V 5B",
        "a time for every token (expand_timesteps), or 48 channels"),
    "qwen_image": Family("Qwen-Image", "its pipeline", (),
        "few-step LoRAs leave no trace in the configuration"),
    "hunyuan_video": Family("HunyuanVideo", "its pipeline"),
    "z_image_turbo": Family("Z-Image", "its pipeline", (),
        "no key sets Turbo apart from the base model", True),
    "ltx": Family("LTX Video", "its pipeline", (), "the distilled versions are configured alike"),
    "mochi": Family("Mochi 1", "its pipeline"),
}  # fmt: skip


def recognise(facts: Facts) -> str | None:
    """The family's name in `FAMILIES`, or None where the configuration belongs to none of them."""
    for beginning, tell in PIPELINES:
        if facts.pipeline.startswith(beginning):
            return tell(facts)
    return None


def _svd(facts: Facts) -> str | None:
    return {14: "svd", 25: "svd_xt"}.get(facts.network.get("num_frames", 0))


def _sd3(facts: Facts) -> str | None:
    layers = facts.network.get("num_layers")
    if layers == 24:
        return "sd35_medium" if facts.network.get("dual_attention_layers") else "sd3_medium"
    return "sd35_large" if layers == 38 else None


def _few_steps(facts: Facts) -> str | None:
    """The kind of distillation that the scheduler or the network gives away."""
    if facts.network.get("time_cond_proj_dim"):
        return "lcm"
    named = {"LCMScheduler": "lcm_lora", "TCDScheduler": "tcd"}.get(facts.scheduler_class)
    trailing = facts.scheduler.get("timestep_spacing") == "trailing"
    return (
        "hyper_sd"
        if named is None and trailing and facts.scheduler_class == "DDIMScheduler"
        else named
    )


def _sdxl(facts: Facts) -> str | None:
    if facts.network.get("cross_attention_dim") != 2048:
        return None
    trailing = facts.scheduler.get("timestep_spacing") == "trailing"
    turbo = {
        "EulerAncestralDiscreteScheduler": "sdxl_turbo",
        "EulerDiscreteScheduler": "sdxl_lightning",
    }
    return _few_steps(facts) or (turbo.get(facts.scheduler_class) if trailing else None) or "sdxl"


def _sd(facts: Facts) -> str | None:
    width = facts.network.get("cross_attention_dim")
    if width == 768:
        return _few_steps(facts) or "sd1"
    if width != 1024:
        return None
    if facts.prediction == "v":
        return "sd2_v"
    turbo = facts.scheduler.get(
        "timestep_spacing"
    ) == "trailing" and facts.scheduler_class.startswith("Euler")
    return _few_steps(facts) or ("sd_turbo" if turbo else "sd2_base")


def _lcm(facts: Facts) -> str:
    return "lcm" if facts.network.get("time_cond_proj_dim") else "lcm_lora"


def _flux(facts: Facts) -> str | None:
    embeds = facts.network.get("guidance_embeds")
    return None if embeds is None else "flux_dev" if embeds else "flux_schnell"


def _wan(facts: Facts) -> str | None:
    if facts.index.get("expand_timesteps") or facts.network.get("in_channels") == 48:
        return "wan22_ti2v_5b"
    picture = facts.pipeline == "WanImageToVideoPipeline"
    if facts.index.get("boundary_ratio") is not None:
        return "wan22_i2v_a14b" if picture else "wan22_t2v_a14b"
    return "wan21_i2v" if picture else "wan21_t2v"


#: beginnings of pipeline names, the longer ones first, and what tells their families apart
PIPELINES: tuple[tuple[str, Callable[[Facts], str | None]], ...] = (
    ("StableVideoDiffusion", _svd),
    ("StableDiffusion3", _sd3),
    ("StableDiffusionXL", _sdxl),
    ("StableDiffusion", _sd),
    ("LatentConsistencyModel", _lcm),
    ("Flux2Klein", lambda facts: "flux2_klein" if facts.index.get("is_distilled") else "flux2_dev"),
    ("Flux2", lambda facts: "flux2_dev"),
    ("Flux", _flux),
    ("Wan", _wan),
    ("QwenImage", lambda facts: "qwen_image"),
    ("HunyuanVideoPipeline", lambda facts: "hunyuan_video"),
    ("ZImage", lambda facts: "z_image_turbo"),
    ("LTXPipeline", lambda facts: "ltx"),
    ("LTXImageToVideoPipeline", lambda facts: "ltx"),
    ("Mochi", lambda facts: "mochi"),
)
