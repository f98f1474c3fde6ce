"""Made-up comparisons for the page: drawn pictures, numbers from simple formulas, the statistics
really computed.
"""

from __future__ import annotations

import base64
import io
import itertools
import math
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from timonel.comparison.page import render

SAMPLERS = {  # name: (error at one step, order, stochastic)
    "euler": (0.9, 1.0, False),
    "dpmpp_2m": (1.6, 1.55, False),
    "dpmpp_2m/karras": (2.4, 1.85, False),
    "unipc/karras": (2.2, 1.82, False),
    "dpmpp_2m_sde/karras": (1.4, 1.2, True),
}
HOSTILE = "</script><img src=x onerror=\"document.title='taken'\"><!-- {{script}} \u2028 'quoted'"
Data = dict[str, Any]


def png(image: Image.Image, kind: str = "png", **options: Any) -> str:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return f"data:image/{kind};base64,{base64.b64encode(out.getvalue()).decode()}"


def pixels(address: str) -> np.ndarray[Any, Any]:
    """The colours of an embedded picture, 0 to 255."""
    with Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2]))) as image:
        return np.asarray(image.convert("RGB"), dtype=np.float64)


def apple(seed: int, size: tuple[int, int] = (64, 64), turn: float = 0.0) -> Image.Image:
    """A round fruit whose colour, place and leaf depend on the seed; `turn` moves its light."""
    rng = np.random.default_rng(seed)
    width, height = size[0] * 4, size[1] * 4
    image = Image.new("RGB", (width, height), (250, 248, 243))
    draw, red = ImageDraw.Draw(image), int(rng.integers(190, 235))
    radius = int(height * rng.uniform(0.3, 0.36))
    cx, cy = width // 2 + int(rng.integers(-12, 12)), int(height * 0.56)
    for k in range(radius, 0, -2):
        shade = 1 - 0.55 * k / radius
        light = (int(0.5 * (radius - k) * math.cos(turn)), -int(0.45 * (radius - k)))
        box = [cx - k + light[0], cy - k + light[1], cx + k + light[0], cy + k + light[1]]
        draw.ellipse(
            box,
            fill=(
                int(red * (0.62 + 0.38 * shade)),
                int(28 + 90 * shade**2),
                int(34 + 60 * shade**2),
            ),
        )
    draw.line([cx, cy - radius + 14, cx + 12, cy - radius - 34], fill=(92, 58, 34), width=12)
    leaf = 40 + int(rng.integers(0, 30))
    draw.ellipse(
        [cx + 8, cy - radius - 40, cx + 8 + leaf, cy - radius - 12],
        fill=(86, int(rng.integers(130, 170)), 60),
    )
    return image.resize(size, Image.Resampling.LANCZOS)


def turning(seed: int, size: tuple[int, int], frames: int) -> list[Image.Image]:
    return [apple(seed, size, 2 * math.pi * i / frames) for i in range(frames)]


def noisy(image: Image.Image, amount: float, seed: int, blur: float = 0.0) -> Image.Image:
    rng = np.random.default_rng(seed + 1000)
    soft = image.filter(ImageFilter.GaussianBlur(blur)) if blur else image
    pixels = np.asarray(soft, dtype=np.float64)
    return Image.fromarray(
        np.clip(pixels + rng.normal(0, 255 * amount, pixels.shape), 0, 255).astype(np.uint8)
    )


def story(final: Image.Image, count: int, seed: int) -> Data:
    """The denoised prediction after every step, side by side: a blur that clears up."""
    width, height = final.size
    sheet = Image.new("RGB", (width * count, height))
    for i in range(count):
        left = 1 - (i + 1) / count
        sheet.paste(noisy(final, 0.12 * left, seed + i, 9 * left), (i * width, 0))
    return {
        "sprite": png(sheet, "webp", quality=80, method=0),
        "count": count,
        "width": width,
        "height": height,
    }


def schedule(grid: str, steps: int) -> Data:
    ramp = np.linspace(0, 1, steps)
    if grid == "karras":
        sigmas = (14.6 ** (1 / 7) + ramp * (0.03 ** (1 / 7) - 14.6 ** (1 / 7))) ** 7
    else:
        sigmas = 14.6 ** (1 - ramp) * 0.03**ramp * (1 + 1.6 * np.sin(math.pi * ramp))
    return {
        "label": f"{grid}, {steps} steps",
        "sigmas": [*map(float, sigmas), 0.0],
        "log_snr": [*(-2 * math.log(sigma) for sigma in sigmas), None],
        "times": [*map(float, 999 * (1 - ramp)), 0.0],
    }


def error(sampler: str, steps: int, seed: int) -> float:
    """A power law, with a spread over the seeds that is shared by all samplers and a little of each
    one's own.
    """
    size, order, _ = SAMPLERS[sampler]
    own = np.random.default_rng([seed, steps, len(sampler)]).normal(0, 0.06)
    return float(size * steps**-order * math.exp(0.25 * math.sin(3 * seed) + own))


def pixel_measures(image: Image.Image, reference: Image.Image) -> Data:
    difference = (np.asarray(image, np.float64) - np.asarray(reference, np.float64)) / 255
    rmse = float(np.sqrt(np.mean(difference**2)))
    return {
        "rmse": rmse,
        "psnr": -20 * math.log10(rmse) if rmse else math.inf,
        "ssim": 1 / (1 + 30 * rmse**2),
    }


def cell(at: Data, group: int, grid: int, reference: Image.Image, frames: int) -> Data:
    sampler, steps, seed = at["sampler"], at["steps"], at["seed"]
    size, stochastic = error(sampler, steps, seed), SAMPLERS[sampler][2]
    final = noisy(
        apple(seed + 50, reference.size) if stochastic else reference,
        size * 0.3,
        seed + steps,
        12 * size,
    )
    measures = dict.fromkeys(("latent_rmse", "rmse", "psnr", "ssim", "lpips", "consistency"))
    if not stochastic:
        measures |= {"latent_rmse": size, **pixel_measures(final, reference)}
    moving = [
        png(noisy(image, size * 0.2, i), "webp")
        for i, image in enumerate(turning(seed, reference.size, frames))
    ]
    made = [
        "timonel",
        "generate",
        at["prompt"],
        "--sampler",
        sampler,
        "--steps",
        str(steps),
        "--seed",
        str(seed),
    ]
    return {
        "id": f"{group:04x}{seed:04x}",
        "at": at,
        "group": group,
        "schedule": grid,
        "status": "done",
        "reason": None,
        "nfe": steps,
        "evaluations": steps + max(1, round(0.4 * steps)),
        "evaluations_saved": steps - max(1, round(0.4 * steps)),
        "seconds": 0.011 * steps * (1.15 if stochastic else 1.0) + 0.0004 * seed,
        "picture": None if frames else png(final),
        "frames": moving or None,
        "fps": 7 if frames else None,
        "story": story(final, steps, seed),
        "measures": measures,
        "recipe": {
            "format": "timonel.make.recipe/1",
            "prompt": at["prompt"],
            "sampler": sampler,
            "steps": steps,
            "seed": seed,
        },
        "command": shlex.join(made),
    }


def group(at: Data, index: int, cells: list[Data]) -> Data:
    done = [one for one in cells if one["group"] == index and one["status"] == "done"]
    stochastic = SAMPLERS[at["sampler"]][2]
    made: Data = {
        "at": at,
        "label": f"{at['sampler']}, {at['steps']} steps",
        "stochastic": stochastic,
        "count": len(done),
    }
    made |= {
        key: float(np.mean([one[key] for one in done])) for key in ("nfe", "evaluations", "seconds")
    }
    made |= {"mean": {}, "stderr": {}, "verdict": None, "pareto": False}
    for measure in ("latent_rmse", "rmse", "psnr", "ssim", "lpips", "consistency"):
        values = [one["measures"][measure] for one in done if one["measures"][measure] is not None]
        made["mean"][measure] = float(np.mean(values)) if values else None
        spread = float(np.std(values, ddof=1) / math.sqrt(len(values))) if len(values) > 1 else None
        made["stderr"][measure] = spread
    level = 0.9 * SAMPLERS[at["sampler"]][0] * at["steps"] ** -SAMPLERS[at["sampler"]][1]
    return made | {"energy": level, "energy_stderr": 0.25 * level}


def judge(groups: list[Data], cells: list[Data]) -> None:
    """Best, tie or worse among equal steps, by the paired difference over the seeds; and the Pareto
    front.
    """

    def errors(index: int) -> dict[int, float]:
        found = (
            (one["at"]["seed"], one["measures"]["latent_rmse"])
            for one in cells
            if one["group"] == index
        )
        return {seed: value for seed, value in found if value is not None}

    scored = {
        i: one["mean"]["latent_rmse"]
        for i, one in enumerate(groups)
        if one["mean"]["latent_rmse"] is not None
    }
    for steps in sorted({one["at"]["steps"] for one in groups}):
        peers = [i for i in scored if groups[i]["at"]["steps"] == steps]
        best = min(peers, key=scored.__getitem__)
        for i in peers:
            mine, other = errors(i), errors(best)
            gap = np.array([mine[seed] - other[seed] for seed in mine if seed in other])
            inside = len(gap) > 1 and gap.mean() <= 2 * gap.std(ddof=1) / math.sqrt(len(gap))
            groups[i]["verdict"] = "best" if i == best else "tie" if inside else "worse"
    for i, mean in scored.items():
        cost = groups[i]["evaluations"]
        groups[i]["pareto"] = not any(
            (other < mean and groups[j]["evaluations"] <= cost)
            or (other <= mean and groups[j]["evaluations"] < cost)
            for j, other in scored.items()
        )


def comparison(
    samplers: list[str] | None = None,
    steps: tuple[int, ...] = (6, 10, 20),
    seeds: int = 4,
    frames: int = 0,
    prompt: str = "red apple",
    fail: bool = True,
) -> Data:
    """A whole comparison; with `frames` a video one. By default 5 samplers x 3 steps x 4 seeds, one
    cell failed.
    """
    names = samplers or list(SAMPLERS)
    grids = sorted({name.partition("/")[2] or "linspace" for name in names})
    schedules = {(grid, n): schedule(grid, n) for grid in grids for n in steps}
    finals = [apple(seed, (96, 64) if frames else (64, 64)) for seed in range(seeds)]
    places = list(itertools.product(names, steps))
    cells = []
    for (index, (name, n)), seed in itertools.product(enumerate(places), range(seeds)):
        at = {
            "model": "emoji",
            "prompt": prompt,
            "sampler": name,
            "steps": n,
            "seed": seed,
            "guidance": "4 until 0.4",
        }
        key = list(schedules).index((name.partition("/")[2] or "linspace", n))
        cells.append(cell(at, index, key, finals[seed], frames))
    if fail:
        gone = dict.fromkeys(
            ("picture", "frames", "story", "nfe", "evaluations", "evaluations_saved", "seconds")
        )
        empty = dict.fromkeys(cells[5]["measures"])
        cells[5] |= {
            **gone,
            "status": "failed",
            "reason": "the latents became NaN at step 3",
            "measures": empty,
        }
    constant = {"model": "emoji", "guidance": "4 until 0.4"}
    groups = [
        group({**constant, "sampler": name, "steps": n}, i, cells)
        for i, (name, n) in enumerate(places)
    ]
    judge(groups, cells)
    references = [
        {
            "at": {"model": "emoji", "prompt": prompt, "seed": seed, "guidance": "4 until 0.4"},
            "picture": None if frames else png(image),
            "frames": [png(one, "webp") for one in turning(seed, image.size, frames)] or None,
            "fps": 7 if frames else None,
            "solver": "dpmpp_3m/karras",
            "steps": 240,
            "change": 0.0008,
        }
        for seed, image in enumerate(finals)
    ]
    axes = {
        "model": ["emoji"],
        "prompt": [prompt],
        "sampler": names,
        "steps": list(steps),
        "seed": list(range(seeds)),
    }
    return {
        "title": prompt,
        "created": "2026-11-21T14:00:00Z",
        "version": "0.1.0",
        "complete": True,
        "axes": [
            {"name": name, "values": values}
            for name, values in (axes | {"guidance": ["4 until 0.4"]}).items()
        ],
        "cells": cells,
        "groups": groups,
        "schedules": list(schedules.values()),
        "references": references,
        "claims": CLAIMS,
        "notes": NOTES,
    }


CLAIMS = [
    {
        "claim": {
            "en": "Euler is soft, DPM++ Karras is sharp.",
            "es": "Euler es suave, DPM++ Karras es nítido.",
        },
        "measured": {
            "en": "Sharpness 0.81 ± 0.02 against 0.97 ± 0.02 of the reference at 10 steps.",
            "es": "Nitidez 0,81 ± 0,02 frente a 0,97 ± 0,02 de la referencia con 10 pasos.",
        },
        "verdict": "holds",
        "when": None,
    },
    {
        "claim": {"en": "Karras gives more detail.", "es": "Karras da más detalle."},
        "measured": {
            "en": "Better from 8 steps on, worse below.",
            "es": "Mejor desde 8 pasos, peor por debajo.",
        },
        "verdict": "holds when",
        "when": {"en": "8 steps or more", "es": "8 pasos o más"},
    },
    {
        "claim": {
            "en": "Guidance off after 40 %: the same picture.",
            "es": "Sin guía tras el 40 %: la misma imagen.",
        },
        "measured": {"en": "Latent RMSE 0.12 ± 0.01.", "es": "RMSE latente 0,12 ± 0,01."},
        "verdict": "does not hold",
        "when": None,
    },
]
NOTES = [
    {
        "en": (
            "A stochastic sampler has no single picture to converge to, so it is measured by the "
            "energy distance between its pictures and the reference's over the seeds, not by a "
            "distance to one picture."
        ),
        "es": (
            "Un sampler estocástico no converge a una sola imagen; por eso se mide con la "
            "distancia de energía entre sus imágenes y las de la referencia sobre las semillas, no "
            "con la distancia a una imagen."
        ),
    }
]


MAKE: dict[str, Callable[[], Data]] = {
    "still": comparison,
    "video": lambda: comparison(["euler", "unipc/karras"], (6, 10), 2, frames=8, fail=False),
    "hostile": lambda: comparison(["euler", "unipc/karras"], (6,), 2, prompt=HOSTILE, fail=False),
    "large": lambda: comparison(steps=(3, 4, 5, 6, 7, 8), seeds=8),
}


class Reports:
    """Comparisons and the files of their pages, each made when first asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.made = folder, dict[str, Data]()

    def data(self, name: str) -> Data:
        if name not in self.made:
            self.made[name] = MAKE[name]()
        return self.made[name]

    def address(self, name: str, **changed: Any) -> str:
        file = self.folder / f"{name}-{len(changed)}.html"
        if changed or not file.exists():
            file.write_text(render({**self.data(name), **changed}), encoding="utf-8")
        return file.as_uri()
