"""What a preview at every step costs at the size of Stable Video Diffusion.

    python benchmarks/preview_cost.py [--quick]

Latents of 14 frames of 576x1024 (1x14x4x72x128). The network is a stand-in that waits, as the CPU
does while an accelerator works, for WAIT seconds a call; SVD takes longer on any card. Every step
writes the preview of its frames, by the linear map, in the background. The overhead is all that the
run takes longer.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

import timonel as tm
from measure import Peer, brief, interleave, machine, markdown, ratio
from timonel import zoo
from timonel.core.process import At

SHAPE, STEPS, WAIT = (1, 14, 4, 72, 128), 10, 0.5
PLAIN, SHOWN, SAVED = "no preview", "preview kept", "preview written as PNG"


def network(x: torch.Tensor, at: At) -> torch.Tensor:
    time.sleep(WAIT)
    return x


def peer(name: str, hooks: Any) -> Peer:
    process = tm.EDM(0.002, 700.0)
    x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))

    def prepare() -> Any:
        run = tm.begin(
            x, "euler/karras", process=process, prediction="v", steps=STEPS, hooks=hooks()
        )

        def body() -> None:
            for _ in tm.iterate(run, network):
                pass

        return body

    return Peer(name, prepare, STEPS)


def measure(repeats: int) -> str:
    """The table as Markdown."""
    with tempfile.TemporaryDirectory() as folder:
        rgb = zoo.card("emoji").latent_rgb()
        peers = [
            peer(PLAIN, list),
            peer(SHOWN, lambda: [tm.collect(rgb=rgb, size=None)]),
            peer(SAVED, lambda: [tm.preview(Path(folder), rgb=rgb)]),
        ]
        times = interleave(peers, repeats)
    rows = [[name, brief(ms, 1), f"{ratio(ms, times[PLAIN]):.4f}"] for name, ms in times.items()]
    return markdown(
        (f"{STEPS} steps of {WAIT:g} s", "ms a step, min / median", "/ no preview"), rows
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="a preview at every step, at SVD's size")
    parser.add_argument("--quick", action="store_true", help="2 repeats instead of 8")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{machine()}\n\n{measure(2 if asked.quick else 8)}")


if __name__ == "__main__":
    main()
