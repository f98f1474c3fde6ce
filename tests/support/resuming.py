"""The process that test_resume kills: it drives every solver in random order and saves after every
row.

python -m support.resuming FOLDER SEED      prints a line after each saved row
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

import torch

import timonel as tm
from support.models import VARIANTS, label, network
from timonel.core import solvers
from timonel.core.process import VP
from timonel.core.run import Run

STEPS, SEEDS = 6, (11, 12)


def fresh(variant: tuple[str, dict], **options: object) -> Run:
    """A run that has started, the same in every process."""
    name, chosen = variant
    table = tm.Sampler(name, steps=STEPS, options=chosen).compile(VP.from_schedule())
    assert table.solver in solvers.SOLVERS
    run = Run(table, "v", noise=tm.SeededNoise(SEEDS), **options)
    run.start(torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(5)))
    return run


def advance(run: Run) -> None:
    run.advance(network()(run.latents, run.level.time))


def finish(run: Run) -> torch.Tensor:
    for _ in run.rows():
        advance(run)
    return run.result


def path(folder: str | Path, variant: tuple[str, dict]) -> Path:
    return Path(folder) / f"{label(variant)}.safetensors"


def main(folder: str, seed: str) -> None:
    torch.set_num_threads(1)
    chance = random.Random(int(seed))
    runs = {label(v): (v, fresh(v)) for v in VARIANTS}
    for variant, run in runs.values():
        run.save(path(folder, variant))
    while runs:
        name = chance.choice(list(runs))
        variant, run = runs[name]
        if run.proceed():
            advance(run)
            run.save(path(folder, variant))
            print(name, run.row, flush=True)
        else:
            del runs[name]


if __name__ == "__main__":
    main(*sys.argv[1:])
