"""What forecasts cost and save on the shipped model: network evaluations, time and distance to the
converged picture.

    python benchmarks/forecast.py [--quick] [--repeats N] [--threads N]

Pictures of 20 steps of DPM++ 2M, guided with the scale 4. The unconditional half is forecast, or
left out after 40 % of the steps; or whole steps are forecast. The network's conditions are captured
once and all captions run in one batch. Error: root mean square distance of the latents to those of
UniPC with many steps from the same noise, guided all the way; geometric mean over the captions.
"plain" is the sampler without any of it that makes as many evaluations, on the straight line in log
error between the two nearest numbers of steps; "/ plain" is the mean ratio of paired errors and its
95 % interval: below 1 it pays. A step that is left out also moves the levels of the calls, so "same
levels" is the sampler without forecasts on the levels that are left: where that is as good, the
levels pay, not the forecasts.
"""

from __future__ import annotations

import argparse
import math
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import timonel as tm
from measure import machine, markdown
from timonel.core import solvers
from timonel.core.grids import Grid
from timonel.engine.batch import Batch, Job
from timonel.engine.drive import run_on
from timonel.errors import ModelError
from timonel.pipelines.capture import Captured, capture

MODEL, STEPS, SCALE, UNTIL, BATCH = "emoji", 20, 4.0, 0.4, 16
CAPTIONS = (
    "red apple",
    "pizza",
    "grinning face",
    "blue car",
    "sun",
    "green leaf",
    "house",
    "birthday cake",
)
STUDENT = {2: 12.71, 8: 2.36}  # 97.5 % quantile of Student's t, by the number of captions
SAMPLERS = ("dpmpp_2m/karras", "dpmpp_2m/trailing")
GUIDED: dict[str, dict[str, Any]] = {
    "full": {},
    "half forecast=2": {"forecast": 2},
    "half forecast=2, order=2": {"forecast": 2, "order": 2},
    "half forecast=3": {"forecast": 3},
    f"until={UNTIL}": {"until": UNTIL},
}
SKIPS: dict[str, dict[str, Any]] = {
    "skip=4": {"skip": 4},
    "skip=3": {"skip": 3},
    "skip=2": {"skip": 2},
    "skip=2, skip_order=2": {"skip": 2, "skip_order": 2},
    "skip=2/3": {"skip": "2/3"},
}


@dataclass
class Measured:
    """One way to sample. `errors`: (captions,); `seconds` and `evaluations` are of one picture."""

    name: str
    evaluations: float
    seconds: float
    errors: Tensor


class Bench:
    """The captured model, the converged latents, and what was measured of plain samplers."""

    def __init__(self, captions: Sequence[str], fine: int, repeats: int) -> None:
        helm = tm.Helm(MODEL)
        helm.pipe.set_progress_bar_config(disable=True)
        self.captured: Captured = capture(
            helm, list(captions), seeds=range(len(captions)), guidance=SCALE
        )
        self.repeats, self.plain = repeats, dict[tuple[str, int], Measured]()
        coarse, self.truth = (
            self._run(self._table("unipc/karras", n), tm.cfg(SCALE))[0] for n in (fine // 2, fine)
        )
        self.doubt = _mean(_rmse(coarse, self.truth))

    def _table(self, sampler: str, steps: int = STEPS, **options: Any) -> tm.Table:
        return tm.Sampler(sampler, steps=steps, options=options).compile(self.captured.process)

    def _run(self, table: tm.Table, guidance: tm.Guidance) -> tuple[Tensor, list[Job], float]:
        jobs = [
            Job(
                run_on(self.captured, table, guidance=guidance),
                self.captured.start[i : i + 1],
                (i,),
                keeps_steps=False,
            )
            for i in range(self.captured.count)
        ]
        began = time.perf_counter()
        for _ in Batch(self.captured, BATCH, jobs).turns():
            pass
        seconds = time.perf_counter() - began
        if failed := next((job.reason for job in jobs if job.reason), ""):
            raise ModelError(failed)
        return torch.cat([job.run.result for job in jobs]), jobs, seconds

    def measure(
        self, name: str, table: tm.Table, guidance: tm.Guidance, repeats: int | None = None
    ) -> Measured:
        """The best time of the repeats; the result is the same in each."""
        runs = [
            self._run(table, guidance) for _ in range(self.repeats if repeats is None else repeats)
        ]
        made, jobs, _ = runs[0]
        count = self.captured.count
        spent, cost = min(seconds for _, _, seconds in runs), sum(job.evaluations for job in jobs)
        return Measured(name, cost / count, spent / count, _rmse(made, self.truth))

    def like(self, sampler: str, evaluations: float) -> Tensor:
        """(captions,) log errors of the plain sampler at so many evaluations."""
        steps = evaluations / 2
        low, share = math.floor(steps), steps - math.floor(steps)
        logs = []
        for n in (low, low + 1) if share else (low,):
            if (sampler, n) not in self.plain:
                self.plain[sampler, n] = self.measure(
                    "plain", self._table(sampler, n), tm.cfg(SCALE), 1
                )
            logs.append(self.plain[sampler, n].errors.log())
        return logs[0] if not share else logs[0].lerp(logs[1], share)

    def same_levels(self, table: tm.Table) -> Measured:
        """The solver without forecasts on the levels that `table` visits."""
        levels = Grid(self.captured.process, table.alpha, table.sigma, table.time, "same")
        return self.measure("same levels", solvers.make(table.solver, levels), tm.cfg(SCALE), 1)

    def table(self, samplers: Sequence[str]) -> str:
        rows = []
        for name in samplers:
            found = [
                self.measure(k, self._table(name), tm.cfg(SCALE, **v)) for k, v in GUIDED.items()
            ]
            rows += [self._row(name, one, found[0]) for one in found]
            for k, options in SKIPS.items():
                made = self._table(name, **options)
                one = self.measure(k, made, tm.cfg(SCALE))
                rows.append(self._row(name, one, found[0], self.same_levels(made)))
        head = (
            "20 steps",
            "evaluations",
            "ms",
            "time / full",
            "error",
            "plain, as many",
            "/ plain",
            "same levels",
            "/ same",
        )
        return markdown(head, rows)

    def _row(
        self, sampler: str, one: Measured, full: Measured, same: Measured | None = None
    ) -> list[str]:
        plain = full.errors.log() if one is full else self.like(sampler, one.evaluations)
        return [
            f"{sampler}, {one.name}", f"{one.evaluations:.0f}", f"{1e3 * one.seconds:.0f}",
            f"{one.seconds / full.seconds:.2f}", f"{_mean(one.errors):.4f}",
            f"{float(plain.mean().exp()):.4f}",
            "–" if one is full else _against(one.errors.log() - plain),
            "–" if same is None else f"{_mean(same.errors):.4f}",
            "–" if same is None else _against(one.errors.log() - same.errors.log()),
        ]  # fmt: skip


def _against(apart: Tensor) -> str:
    """The mean ratio whose paired logarithms these are, and its 95 % interval."""
    middle, sure = (
        float(apart.mean()),
        STUDENT[len(apart)] * float(apart.std()) / math.sqrt(len(apart)),
    )
    return (
        f"{math.exp(middle):.2f} ({math.exp(middle - sure):.2f} to {math.exp(middle + sure):.2f})"
    )


def _rmse(a: Tensor, b: Tensor) -> Tensor:
    return (a.double() - b.double()).square().flatten(1).mean(1).sqrt()


def _mean(errors: Tensor) -> float:
    return float(errors.log().mean().exp())


def main() -> None:
    parser = argparse.ArgumentParser(
        description="what forecasts of network calls and of halves save and cost"
    )
    parser.add_argument(
        "--quick", action="store_true", help="2 captions and one sampler, against 32 steps"
    )
    parser.add_argument("--repeats", type=int, help="how often each is timed, 3")
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(asked.threads)
    about = machine()
    try:
        captions, fine = (CAPTIONS[:2], 32) if asked.quick else (CAPTIONS, 96)
        bench = Bench(captions, fine, asked.repeats or (1 if asked.quick else 3))
        table = bench.table(SAMPLERS[:1] if asked.quick else SAMPLERS)
    except ModelError as error:
        parser.exit(2, f"{error}\n")
    print(
        f"{about}\n"
        f"{len(captions)} captions; the converged latents, {fine} steps, change by "
        f"{bench.doubt:.4f} from half"
    )
    print(f"as many steps.\n\n{table}")


if __name__ == "__main__":
    main()
