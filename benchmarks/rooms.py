"""How often control passes from one file to another: in a guided turn of a pipeline's loop, and in
a row of the native loop.

    python benchmarks/rooms.py [-v]             -v: every call

Counts calls of functions and methods of timonel, and changes of file between two calls that follow
each other. Reading an attribute is no call, nor is a comprehension. A turn goes from one call of
the network to the next; one in the middle is taken.
"""

from __future__ import annotations

import sys
from itertools import pairwise
from pathlib import Path
from types import FrameType
from typing import Any

import torch

import timonel as tm

ROOT = Path(tm.__file__).parent
STEPS = 8
Called = tuple[str, str]  # a file and a function


class Trace:
    """The calls of timonel's functions, in turns."""

    def __init__(self) -> None:
        self.turns: list[list[Called]] = [[]]

    def __call__(self, frame: FrameType, event: str, argument: Any) -> None:
        """A profile function, see `sys.setprofile`."""
        code = frame.f_code
        path = Path(code.co_filename)
        if event == "call" and ROOT in path.parents and not _is_read(frame):
            name = str(path.relative_to(ROOT).with_suffix(""))
            self.turns[-1].append((name, code.co_name))

    def turn(self) -> None:
        """A turn ends here."""
        self.turns.append([])


def _is_read(frame: FrameType) -> bool:
    """Whether a frame is of a property or a comprehension."""
    name = frame.f_code.co_name
    owner = frame.f_locals.get("self")
    known = (vars(cls).get(name) for cls in type(owner).__mro__)
    return name.startswith("<") or isinstance(next(filter(None, known), None), property)


def changes(calls: list[Called]) -> int:
    """How often the file changes between two calls."""
    return sum(a[0] != b[0] for a, b in pairwise(calls))


def pipeline() -> list[Called]:
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
    return trace.turns[STEPS // 2]


def native() -> list[Called]:
    """A row of the native loop."""
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
    return trace.turns[STEPS // 2]


def main() -> None:
    """Print both."""
    for what, calls in (("guided turn of a pipeline's loop", pipeline()),
                        ("row of the native loop", native())):  # fmt: skip
        print(f"{what}: {len(calls)} calls, {changes(calls)} changes of file")
        for file, name in calls if "-v" in sys.argv else ():
            print(f"    {file}: {name}")


if __name__ == "__main__":
    main()
