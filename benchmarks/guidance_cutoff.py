"""What ending guidance early saves, and what the helm costs, in wall time on the shipped models.

    python benchmarks/guidance_cutoff.py [--quick] [--repeats N] [--threads N]

Pictures of 25 steps (DPM++ 2M), prompt to pixels, one at a time and eight at a time. Guided all the
way the network sees 50 samples a picture; guided for the first 40 % it sees 35, so the ideal ratio
is
0.70 for a network whose cost is linear in its batch. A call of this small network costs much the
same for one sample as for two, so one picture at a time cannot reach it; eight at a time can. The
bare diffusers pipeline, guided all the way, makes the same network calls as the helm: its ratio is
the helm's whole overhead. Videos of 8 frames likewise, one at a time, with Euler and guidance up to
3 at the last frame. All variants take turns in one process; ratios are paired.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch

import timonel as tm
from measure import Peer, brief, interleave, machine, markdown, ratio
from timonel import zoo
from timonel.errors import ModelError

MODEL, PROMPT, STEPS, SCALE, UNTIL, SEED = "emoji", "red apple", 25, 4.0, 0.4, 7
VIDEO, VIDEO_SCALE = "emoji-video", 3.0
BATCHES = (1, 8)
FULL, CUT, NONE, BARE = (
    "helm, guided",
    f"helm, guided until {UNTIL:g}",
    "helm, unguided",
    "diffusers, guided",
)


def helmed(name: str, helm: Any, guidance: tm.Guidance, count: int) -> Peer:
    """`count` pictures at once through timonel's public API."""

    def body() -> object:
        prompts = [PROMPT] * count
        return helm(prompts, steps=STEPS, sampler="dpmpp_2m", guidance=guidance, seeds=SEED).images

    return Peer(name, lambda: body)


def bare(count: int) -> Peer:
    """`count` pictures at once through the same pipeline as diffusers runs it."""
    from diffusers import DiffusionPipeline, DPMSolverMultistepScheduler

    pipe = DiffusionPipeline.from_pretrained(zoo.folder(MODEL), dtype=torch.float32)
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)

    def prepare() -> Callable[[], object]:
        made = torch.Generator().manual_seed(SEED)
        prompts = [PROMPT] * count
        return lambda: (
            pipe(prompts, num_inference_steps=STEPS, guidance_scale=SCALE, generator=made).images
        )

    return Peer(BARE, prepare)


def measure(repeats: int) -> str:
    """The tables as Markdown. Raises `ModelError` where a model's files are missing."""
    return "\n\n".join(
        [
            *(_table(repeats, pictures(count), count) for count in BATCHES),
            _table(repeats, videos(), 0),
        ]
    )


def pictures(count: int) -> list[Peer]:
    """What is timed, for `count` pictures at once."""
    helm = tm.Helm(MODEL)
    helm.pipe.set_progress_bar_config(disable=True)
    return [
        helmed(FULL, helm, tm.cfg(SCALE), count),
        helmed(CUT, helm, tm.cfg(SCALE, until=UNTIL), count),
        helmed(NONE, helm, tm.cfg(1.0), count),
        bare(count),
    ]


def videos() -> list[Peer]:
    """What is timed, for one video; diffusers with the pipeline's own Euler scheduler."""
    from diffusers import DiffusionPipeline

    still = tm.Helm(MODEL)(PROMPT, steps=8, guidance=SCALE, seeds=[SEED]).images[0]
    helm = tm.Helm(VIDEO)
    pipe = DiffusionPipeline.from_pretrained(zoo.folder(VIDEO), dtype=torch.float32)
    for one in (helm.pipe, pipe):
        one.set_progress_bar_config(disable=True)
    given = {"height": 64, "width": 64, "fps": 7, "motion_bucket_id": 127}

    def steered(name: str, guidance: tm.Guidance) -> Peer:
        call = {**given, "sampler": "euler", "steps": STEPS, "seeds": [SEED], "guidance": guidance}
        return Peer(name, lambda: lambda: helm(still, **call).frames)

    def plainly() -> object:
        made = torch.Generator().manual_seed(SEED)
        call = {
            **given,
            "num_inference_steps": STEPS,
            "max_guidance_scale": VIDEO_SCALE,
            "generator": made,
        }
        return pipe(still, **call).frames

    return [
        steered(FULL, tm.cfg(VIDEO_SCALE)),
        steered(CUT, tm.cfg(VIDEO_SCALE, until=UNTIL)),
        steered(NONE, tm.cfg(1.0)),
        Peer(BARE, lambda: plainly),
    ]


def _table(repeats: int, peers: list[Peer], count: int) -> str:
    """`count` pictures at once, or a video where it is 0."""
    times = interleave(peers, repeats)
    seen = {FULL: 2 * STEPS, CUT: STEPS + round(UNTIL * STEPS), NONE: STEPS, BARE: 2 * STEPS}
    rows = [
        [
            name, str(seen[name]), brief(ms, 0), f"{ratio(ms, times[FULL]):.3f}",
            f"{seen[name] / seen[FULL]:.2f}",
            f"{ratio(ms, times[BARE]):.3f}",
        ]
        for name, ms in times.items()
    ]  # fmt: skip
    head = (
        f"{count} at a time" if count else "a video",
        "samples a picture" if count else "samples a video",
        f"ms for {count or 1}, min / median",
        "/ guided",
        "ideal",
        "/ diffusers",
    )
    return markdown(head, rows)


def main() -> None:
    parser = argparse.ArgumentParser(
        description="wall time of guidance that ends early, and of the helm"
    )
    parser.add_argument("--quick", action="store_true", help="3 repeats instead of 15")
    parser.add_argument("--repeats", type=int, help="pictures per variant")
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    about = machine()
    try:
        table = measure(asked.repeats or (3 if asked.quick else 15))
    except ModelError as error:
        parser.exit(2, f"{error}\n")
    print(f"{about}\n\n{table}")


if __name__ == "__main__":
    main()
