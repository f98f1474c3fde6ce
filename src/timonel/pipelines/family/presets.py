"""What is recommended for each family of models, and who says so; report and docs read it.

Guidance is in timonel's words: 1 is no guidance, which diffusers' few-step examples write as
`guidance_scale=0`.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Preset:
    """One recommendation.

    Args:
        sampler: as one types it.
        steps: how many.
        guidance: the scale; None: see `note`.
        source: who says so.
        note: what else there is to say.
        shift: of a flow's times.
        options: of the sampler.
    """

    sampler: str
    steps: int
    guidance: float | None
    source: str
    note: str = ""
    shift: float | None = None
    options: tuple[tuple[str, float], ...] = ()

    @property
    def command(self) -> str:
        """How it is typed."""
        shift = () if self.shift is None else (("shift", self.shift),)
        settings = "".join(f" --set {key}={value:g}" for key, value in (*self.options, *shift))
        guidance = "" if self.guidance is None else f" --guidance {self.guidance:g}"
        return f"--sampler {self.sampler} --steps {self.steps}{settings}{guidance}"


DIFFUSERS = "diffusers 0.42.1, defaults of {}"
AYS = "NVIDIA, Align Your Steps (arXiv 2404.14507); diffusers' AysSchedules"
KARRAS = "A1111 and Forge, sd_samplers_kdiffusion.py"
FEW = "diffusers writes guidance_scale=0"
SVD = "Stability generative-models, svd{}.yaml and simple_video_sample.py"
SD3 = "Stability sd3-ref, sd3_infer.py CONFIGS"
BFL = "Black Forest Labs flux, cli.py"
WAN = "Wan2.1, generate.py"
WAN22 = "Wan2.2, wan/configs"
OSS = "OptimalSteps (arXiv 2503.21774)"
SD2 = (
    "stabilityai/stable-diffusion-2-1, model card; diffusers docs, DPMSolverMultistepScheduler: 20"
    " steps"
)
HYPER = "ByteDance/Hyper-SD, model card"
PAIR = "two networks, guidance {} at low and {} at high noise, expert switch at {} of the times"

PRESETS: dict[str, tuple[Preset, ...]] = {
    "sd1": (
        Preset("dpmpp_2m/karras", 20, 7.5, KARRAS, "the grid A1111 gives this sampler"),
        Preset("dpmpp_2m/ays_sd15", 10, 7.5, AYS, "ten steps on levels searched for SD 1.5"),
        Preset("plms/leading", 50, 7.5, DIFFUSERS.format("StableDiffusionPipeline"),
               "its own scheduler"),
    ),
    "sd2_base": (Preset("dpmpp_2m/linspace", 20, 7.5, SD2),),
    "sd2_v": (Preset("dpmpp_2m/linspace", 20, 7.5, SD2),),
    "sd_turbo": (
        Preset("euler/trailing", 1, 1.0, "stabilityai/sd-turbo, model card",
               f"1 to 4 steps; {FEW}"),
    ),
    "sdxl": (
        Preset("dpmpp_2m_sde/karras", 20, 5.0,
               "diffusers docs, schedulers: a good all-purpose choice"),
        Preset("dpmpp_2m/ays_sdxl", 10, 5.0, AYS, "ten steps on levels searched for SDXL"),
        Preset("euler/leading", 50, 5.0, DIFFUSERS.format("StableDiffusionXLPipeline"),
               "its own scheduler"),
    ),
    "sdxl_turbo": (
        Preset("euler_ancestral/trailing", 1, 1.0, "diffusers docs, SDXL Turbo",
               f"1 to 4 steps; {FEW}"),
    ),
    "sdxl_lightning": (
        Preset("euler/trailing", 4, 1.0, "ByteDance/SDXL-Lightning, model card",
               f"2, 4 or 8 steps, the number in the checkpoint's name; {FEW}"),
    ),
    "hyper_sd": (
        Preset("ddim/trailing", 4, 1.0, HYPER,
               f"2, 4 or 8 steps, the number in the LoRA's name; {FEW}"),
        Preset("tcd", 4, 1.0, HYPER, "the LoRA of 1 step serves 1 to 8; lower eta for more detail",
               None, (("eta", 1.0),)),
    ),
    "tcd": (
        Preset("tcd", 4, 1.0, "h1t/TCD-SD15-LoRA, model card", f"raise eta with the steps; {FEW}",
               None, (("eta", 0.3),)),
    ),
    "lcm": (
        Preset("lcm", 4, 8.5, DIFFUSERS.format("LatentConsistencyModelPipeline"),
               "2 to 8 steps; guidance is an input of the network, so it costs nothing"),
    ),
    "lcm_lora": (
        Preset("lcm", 4, 1.0, "stable-diffusion.cpp, docs/lcm.md; SD.Next wiki",
               "2 to 8 steps, guidance 1 to 2"),
    ),
    "svd": (
        Preset("euler/karras", 25, None, SVD.format(""),
               "guidance rises over the frames, 1.5 to 3"),
        Preset("euler/ays_svd", 10, None, AYS,
               "ten steps on levels searched for SVD; guidance 1 to 3"),
    ),
    "svd_xt": (
        Preset("euler/karras", 30, None, SVD.format("_xt"),
               "guidance rises over the frames, 1.5 to 3"),
        Preset("euler/karras", 25, None, DIFFUSERS.format("StableVideoDiffusionPipeline"),
               "guidance 1 to 3, fps 7"),
        Preset("euler/ays_svd", 10, None, AYS,
               "ten steps on levels searched for SVD; guidance 1 to 3"),
    ),
    "sd3_medium": (
        Preset("dpmpp_2m/linspace", 50, 5.0, SD3,
               "this source takes shift 1; the published configuration has 3"),
        Preset("euler", 28, 7.0, DIFFUSERS.format("StableDiffusion3Pipeline"), "its own scheduler"),
    ),
    "sd35_medium": (
        Preset("dpmpp_2m/linspace", 50, 5.0, SD3,
               "and skip-layer guidance 2.5 on layers 7 to 9, .01 to .3 of the way"),
        Preset("euler", 28, 7.0, DIFFUSERS.format("StableDiffusion3Pipeline"), "its own scheduler"),
    ),
    "sd35_large": (
        Preset("dpmpp_2m/linspace", 40, 4.5, SD3),
        Preset("euler", 28, 7.0, DIFFUSERS.format("StableDiffusion3Pipeline"), "its own scheduler"),
    ),
    "sd35_large_turbo": (Preset("euler/linspace", 4, 1.0, SD3, FEW),),
    "flux_dev": (
        Preset("euler", 50, 3.5, BFL,
               "guidance is an input of the network; nothing is computed twice"),
        Preset("euler", 28, 3.5, DIFFUSERS.format("FluxPipeline")),
        Preset("euler/oss_flux", 10, 3.5, OSS, "ten steps on levels searched for Flux"),
    ),
    "flux_schnell": (Preset("euler", 4, 1.0, BFL, "no guidance at all"),),
    "flux2_dev": (
        Preset("euler", 50, 4.0, DIFFUSERS.format("Flux2Pipeline"),
               "guidance is an input of the network"),
    ),
    "flux2_klein": (Preset("euler", 4, 1.0, "InvokeAI, Flux.2 Klein"),),
    "wan21_t2v": (
        Preset("unipc/flow", 50, 5.0, WAN, "", 5.0),
        Preset("euler/oss_wan", 20, 5.0, OSS, "twenty steps on levels searched for Wan"),
    ),
    "wan21_i2v": (
        Preset("unipc/flow", 40, 5.0, WAN, "shift 3 for 480p, 16 from a first to a last frame",
               5.0),
    ),
    "wan22_t2v_a14b": (
        Preset("unipc/flow", 40, None, WAN22,
               PAIR.format(3, 4, 0.875) + "; the solver is Wan 2.1's", 12.0),
    ),
    "wan22_i2v_a14b": (
        Preset("unipc/flow", 40, None, WAN22,
               PAIR.format(3.5, 3.5, 0.9) + "; the solver is Wan 2.1's", 5.0),
    ),
    "wan22_ti2v_5b": (Preset("unipc/flow", 50, 5.0, WAN22, "the solver is Wan 2.1's", 5.0),),
    "qwen_image": (
        Preset("euler", 50, 4.0, DIFFUSERS.format("QwenImagePipeline"),
               "as true_cfg_scale, with a negative prompt"),
    ),
    "hunyuan_video": (
        Preset("euler/flow", 50, 6.0, "HunyuanVideo, as in diffusers and Swarm",
               "guidance is an input of the network", 7.0),
    ),
    "z_image_turbo": (
        Preset("euler", 8, 1.0, "InvokeAI and diffusers, Z-Image-Turbo", "8 or 9 steps"),
    ),
    "ltx": (Preset("euler", 50, 3.0, DIFFUSERS.format("LTXPipeline")),),
    "mochi": (
        Preset("euler/linear_quadratic", 64, 4.5,
               "genmoai/models, infer.py; diffusers' MochiPipeline"),
    ),
}  # fmt: skip
