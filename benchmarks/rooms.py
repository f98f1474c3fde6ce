"""How often control passes from one file to another: in a guided turn of a pipeline's loop, and in
a row of the native loop.

    python benchmarks/rooms.py [-v]             -v: every call, with its file

Counts calls of functions of timonel, and changes of file between two calls that follow each other.
A turn is what happens between two calls of the scheduler's step; the first and the last are left
out.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import Any

import torch

import timonel as tm

ROOT = Path(tm.__file__).parent
STEPS = 8


class Trace:
    """The files and names of timonel's calls, in turns."""

    def __init__(self) -> None:
        self.turns: list[list[tuple[str, str]]] = [[]]

    def __call__(self, frame: FrameType, event: str, argument: Any) -> None:
        """A profile function, see `sys.setprofile`."""
        path = Path(frame.f_code.co_filename)
        if event == "call" and ROOT in path.parents:
            name = str(path.relative_to(ROOT).with_suffix(""))
            self.turns[-1].append((name, frame.f_code.co_name))

    def turn(self) -> None:
        """A turn ends here."""
        self.turns.append([])

    def row(self) -> list[tuple[str, str]]:
        """The calls of a turn in the middle."""
        return self.turns[len(self.turns) // 2]


def changes(calls: list[tuple[str, str]]) -> int:
    """How often the file changes between two calls."""
    return sum(a[0] != b[0] for a, b in zip(calls, calls[1:], strict=False))


def pipeline() -> Trace:
    """A turn of a Stable Diffusion pipeline's loop under guidance."""
    helm, trace = tm.Helm("emoji"), Trace()
    helm.pipe.set_progress_bar_config(disable=True)
    hook = helm.pipe.unet.register_forward_pre_hook(lambda *_: trace.turn())
    sys.setprofile(trace)
    try:
        helm("red apple", steps=STEPS, seeds=[1], guidance=tm.cfg(4.0), output_type="latent")
    finally:
        sys.setprofile(None)
        hook.remove()
    return trace


def native() -> Trace:
    """A row of the native loop under guidance."""
    trace = Trace()

    def denoise(x: torch.Tensor, level: Any) -> torch.Tensor:
        trace.turn()
        return x * float(level.alpha)

    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    sys.setprofile(trace)
    try:
        tm.sample(denoise, x, "dpmpp_2m", process=tm.VP.from_schedule(), steps=STEPS)
    finally:
        sys.setprofile(None)
    return trace


def main() -> None:
    """Print both."""
    for what, trace in (
        ("guided turn of a pipeline's loop", pipeline()),
        ("row of the native loop", native()),
    ):
        calls = trace.row()
        print(f"{what}: {len(calls)} calls, {changes(calls)} changes of file")
        if "-v" in sys.argv:
            for file, count in Counter(file for file, _ in calls).most_common():
                print(f"  {count:3} {file}")
            for file, name in calls:
                print(f"      {file}.{name}")


if __name__ == "__main__":
    main()
