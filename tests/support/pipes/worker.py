"""Runs the checks in one subprocess at a time: a pipeline that dies or hangs costs only its row.

In tests/, `python -m support.pipes.worker NAME …` prints one line of JSON for each pipeline;
`--only=CHECK` makes one check.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from support.places import environment

SHARE = 40  # pipelines before a fresh process, for its memory


def table(
    keys: Sequence[str], seconds: int = 900, only: str = ""
) -> Iterator[tuple[str, dict[str, Any]]]:
    """(key, what `features.try_all` says) of each pipeline, in order. `only`: the one check to
    make.
    """
    left = list(keys)
    while left:
        share = left[:SHARE]
        done = 0
        for key, made in _process(share, seconds, only):
            yield key, made
            done += 1
        if done < len(share):
            yield share[done], {"built": "the process ended or hung", "results": {}, "seconds": 0.0}
            done += 1
        left = left[done:]


def _process(keys: Sequence[str], seconds: int, only: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """What one process says about `keys`; ends early where it does."""
    quiet = {
        "OMP_NUM_THREADS": "1",
        "DIFFUSERS_VERBOSITY": "error",
        "TRANSFORMERS_VERBOSITY": "error",
    }
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-m",
        "support.pipes.worker",
        *([f"--only={only}"] if only else []),
        *keys,
    ]
    with subprocess.Popen(
        ["timeout", str(seconds), *command], env=environment(**quiet), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("{"):
                row = json.loads(line)
                yield row.pop("key"), row


def main(keys: Sequence[str]) -> None:
    import torch

    from . import load
    from .features import try_all

    torch.set_num_threads(1)
    cases = load()
    only = next((word.removeprefix("--only=") for word in keys if word.startswith("--only=")), "")
    for key in keys:
        if not key.startswith("--only="):
            print(json.dumps({"key": key} | try_all(cases[key], only)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
