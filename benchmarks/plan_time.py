"""What batching different samplers together saves: a plan of 60 runs against the same 60 one after
another.

    python benchmarks/plan_time.py [--quick] [--threads N]

Five samplers, three numbers of steps, four seeds of one prompt on the shipped model, guided.
*timonel compare* makes all 60 with pictures, the previews of every step, recipes and the page.
*diffusers* makes the 60 pictures with its own schedulers, one call of the pipeline each, and saves
them as PNG. Converged references, of which diffusers has none, are left out for both. All take
turns; ratios are paired.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch

from measure import Peer, brief, interleave, machine, markdown, ratio
from timonel import zoo
from timonel.comparison import compare

MODEL, PROMPT, SCALE, SEEDS = "emoji", "red apple", 4.0, 4
STEPS = (6, 10, 20)
BATCH = 16
OURS, BARE = "timonel compare", "diffusers, one by one"
SAMPLERS: dict[str, tuple[str, dict[str, Any]]] = {
    "euler/leading": ("EulerDiscreteScheduler", {}),
    "dpmpp_2m/leading": ("DPMSolverMultistepScheduler", {}),
    "dpmpp_2m/karras": ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
    "unipc/leading": ("UniPCMultistepScheduler", {}),
    "deis/leading": ("DEISMultistepScheduler", {}),
}


def ours(folder: Path) -> Peer:
    made = iter(range(10**6))

    def prepare() -> Any:
        out = folder / str(next(made))
        return lambda: compare(
            PROMPT, sampler=[*SAMPLERS], steps=STEPS, seeds=SEEDS, guidance=SCALE, model=MODEL,
            batch=BATCH, out=out,
            references=False,
        )  # fmt: skip

    return Peer(OURS, prepare)


def bare(folder: Path) -> Peer:
    import diffusers

    folder.mkdir()
    pipe = diffusers.DiffusionPipeline.from_pretrained(zoo.folder(MODEL), dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    config = pipe.scheduler.config

    def body() -> None:
        for name, (kind, flags) in SAMPLERS.items():
            for steps in STEPS:
                for seed in range(SEEDS):
                    pipe.scheduler = getattr(diffusers, kind).from_config(config, **flags)
                    picture = pipe(
                        PROMPT, num_inference_steps=steps, guidance_scale=SCALE,
                        generator=torch.Generator().manual_seed(seed),
                    ).images[0]  # fmt: skip
                    picture.save(folder / f"{name.replace('/', '-')}-{steps}-{seed}.png")

    return Peer(BARE, lambda: body)


def measure(repeats: int) -> str:
    """The table as Markdown."""
    runs = len(SAMPLERS) * len(STEPS) * SEEDS
    with tempfile.TemporaryDirectory() as folder:
        times = interleave([ours(Path(folder) / "ours"), bare(Path(folder) / "bare")], repeats)
    rows = [
        [name, brief([t / 1e3 for t in ms], 1), f"{ratio(ms, times[BARE]):.2f}"]
        for name, ms in times.items()
    ]
    return markdown((f"{runs} runs", "s, min / median", "/ diffusers"), rows)


def main() -> None:
    parser = argparse.ArgumentParser(description="a plan of 60 runs, batched, against one by one")
    parser.add_argument("--quick", action="store_true", help="1 repeat instead of 3")
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    print(f"{machine()}\n\n{measure(1 if asked.quick else 3)}")


if __name__ == "__main__":
    main()
