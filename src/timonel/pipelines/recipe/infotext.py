"""A recipe in A1111's words, the text that its users' programs and Civitai read from a PNG.

Format: the prompt, a line with the negative prompt, and a line "Steps: 12, Sampler: DPM++ 2M, …"
(A1111, `modules/processing.py:create_infotext` and `modules/infotext_utils.py:quote`).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ...version import VERSION
from .data import INFOTEXT, KEY, RecipeData

#: solvers in A1111's words
SAMPLERS = {
    "euler": "Euler", "euler_ancestral": "Euler a", "heun": "Heun", "heunpp2": "HeunPP2",
    "dpm2": "DPM2", "dpm2_ancestral": "DPM2 a", "dpm_fast": "DPM fast", "dpmpp_2m": "DPM++ 2M",
    "dpmpp_2m_sde": "DPM++ 2M SDE", "dpmpp_3m_sde": "DPM++ 3M SDE", "dpmpp_sde": "DPM++ SDE",
    "dpmpp_2s_ancestral": "DPM++ 2S a", "lms": "LMS", "restart": "Restart", "ddim": "DDIM",
    "ddpm": "DDPM", "plms": "PLMS", "unipc": "UniPC", "ipndm": "IPNDM", "deis": "DEIS",
    "lcm": "LCM",
}  # fmt: skip
#: grids in A1111's words
SCHEDULES = {
    "karras": "Karras", "exponential": "Exponential", "polyexponential": "Polyexponential",
    "simple": "Simple", "sgm_uniform": "SGM Uniform", "kl_optimal": "KL Optimal",
    "ays": "Align Your Steps", "normal": "Normal", "ddim_uniform": "DDIM", "beta": "Beta",
    "linspace": "Uniform",
}  # fmt: skip
SCALES = ("guidance_scale", "true_cfg_scale", "max_guidance_scale")


def texts(recipe: RecipeData, size: tuple[int, int]) -> dict[str, str]:
    """The text chunks of a PNG: the recipe, and the same as A1111 and Civitai read it.

    Args:
        recipe: of the picture.
        size: width and height of the picture.
    """
    return {KEY: recipe.model_dump_json(exclude_none=True), INFOTEXT: infotext(recipe, size)}


def infotext(recipe: RecipeData, size: tuple[int, int]) -> str:
    """A recipe as A1111 writes it; what A1111 has no word for keeps timonel's.

    Args:
        recipe: of the picture.
        size: its width and height.
    """
    solver = SAMPLERS.get(recipe.sampler, recipe.sampler)
    if recipe.sampler == "dpmpp_2m_sde" and recipe.options.get("variant") == "heun":
        solver += " Heun"
    facts: dict[str, Any] = {
        "Steps": recipe.steps,
        "Sampler": solver,
        "Schedule type": None if recipe.grid is None else SCHEDULES.get(recipe.grid, recipe.grid),
        "CFG scale": _scale(recipe),
        "Seed": recipe.seed,
        "Variation seed": None if recipe.variation is None else recipe.variation[0],
        "Variation seed strength": None if recipe.variation is None else recipe.variation[1],
        "Size": f"{size[0]}x{size[1]}",
        "Model": Path(recipe.model).name.removesuffix(".safetensors"),
        "Stopped after": recipe.stopped_after,
        "Version": f"timonel {VERSION}",
    }
    lines = [recipe.prompt or ""]
    if recipe.negative_prompt:
        lines.append(f"Negative prompt: {recipe.negative_prompt}")
    said = {key: _quoted(value) for key, value in facts.items() if value is not None}
    lines.append(", ".join(f"{key}: {value}" for key, value in said.items()))
    return "\n".join(lines).strip()


def _scale(recipe: RecipeData) -> float | None:
    """The guidance scale; the largest of several."""
    scale = None if recipe.guidance is None else recipe.guidance.scale
    scales = [scale, *map(recipe.arguments.get, SCALES)]
    scale = next((value for value in scales if value is not None), None)
    return max(scale) if isinstance(scale, (list, tuple)) else scale


def _quoted(value: Any) -> str:
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return json.dumps(text, ensure_ascii=False) if set(text) & set(',:\n"') else text
