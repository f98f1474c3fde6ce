"""Many requests on one model: an engine against diffusers, one by one and batched where equal.

python benchmarks/serve.py [REQUESTS]

Every request has its prompt, sampler, steps, guidance scale and size. First all come at once: that
is the throughput. Then they come at random times (Poisson) at 80 % of what diffusers one by one can
do: that is the latency, from a request's arrival to its pictures. All three run in this process, in
turns, with the same requests and arrivals; diffusers runs its own schedulers of those names.
"""

from __future__ import annotations

import random
import resource
import statistics
import sys
import threading
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import diffusers
import torch

import timonel as tm
from timonel.serve.engine import Engine

PROMPTS = ("red apple", "pizza", "frog", "rocket", "blue whale", "ghost", "cactus", "violin")
SAMPLERS: dict[str, tuple[str, dict[str, Any]]] = {
    "euler": ("EulerDiscreteScheduler", {}),
    "euler_ancestral": ("EulerAncestralDiscreteScheduler", {}),
    "dpmpp_2m/karras": ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
    "dpmpp_2m_sde": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    "unipc": ("UniPCMultistepScheduler", {}),
    "ddim": ("DDIMScheduler", {}),
}
STEPS, SCALES, SIZES = (6, 8, 12, 16, 20), (1.0, 2.0, 4.0, 6.0), (64, 64, 64, 96)
LOAD = 0.8


@dataclass
class Asked:
    """A request, and when its pictures were there."""

    prompt: str
    sampler: str
    steps: int
    scale: float
    size: int
    seed: int
    arrives: float = 0.0
    latency: float = 0.0

    @property
    def alike(self) -> tuple[Any, ...]:
        """What diffusers needs to be equal in a batch."""
        return self.sampler, self.steps, self.scale, self.size


@dataclass
class Served:
    """How it went: seconds from the first arrival to the last picture."""

    seconds: float
    cpu: float
    latencies: list[float] = field(default_factory=list)
    calls: int = 0
    rows: int = 0

    def at(self, share: float) -> float:
        """A quantile of the latencies."""
        return statistics.quantiles(self.latencies, n=100)[round(100 * share) - 1]


def requests(count: int) -> list[Asked]:
    chance = random.Random(0)
    return [Asked(
        chance.choice(PROMPTS), chance.choice(list(SAMPLERS)), chance.choice(STEPS),
        chance.choice(SCALES), chance.choice(SIZES), seed,
    ) for seed in range(count)]  # fmt: skip


def arrivals(asked: list[Asked], rate: float | None) -> None:
    """Poisson arrivals at so many a second; None: all at once."""
    chance, now = random.Random(1), 0.0
    for one in asked:
        one.arrives = now
        now += 0.0 if rate is None else chance.expovariate(rate)


class OneByOne:
    """diffusers' pipeline, in a queue; `alike` lets equal requests that wait share a call."""

    def __init__(self, pipe: Any, batches: bool) -> None:
        self.pipe, self.batches = pipe, batches
        self.calls = self.rows = 0

    def serve(self, asked: list[Asked], began: float) -> None:
        waiting = list(asked)
        while waiting:
            now = time.perf_counter() - began
            if waiting[0].arrives > now:
                time.sleep(waiting[0].arrives - now)
                continue
            first, come = waiting[0], [one for one in waiting if one.arrives <= now]
            group = [one for one in come if one.alike == first.alike] if self.batches else [first]
            group = group[:8]
            self.call(group)
            for one in group:
                one.latency = time.perf_counter() - began - one.arrives
                waiting.remove(one)

    def call(self, group: list[Asked]) -> None:
        first = group[0]
        name, options = SAMPLERS[first.sampler]
        cls = getattr(diffusers, name)
        self.pipe.scheduler = cls.from_config(self.pipe.scheduler.config, **options)
        generators = [torch.Generator().manual_seed(one.seed) for one in group]
        self.pipe(
            [one.prompt for one in group], num_inference_steps=first.steps,
            guidance_scale=first.scale, generator=generators, width=first.size, height=first.size,
        )  # fmt: skip
        self.calls, self.rows = self.calls + first.steps, self.rows + first.steps * len(group)


def by_diffusers(batches: bool) -> Callable[[list[Asked]], Served]:
    def run(asked: list[Asked]) -> Served:
        pipe = tm.Helm("emoji").pipe
        pipe.set_progress_bar_config(disable=True)
        queue = OneByOne(pipe, batches)
        queue.call(asked[:1])
        queue.calls = queue.rows = 0
        began, cpu = time.perf_counter(), time.process_time()
        queue.serve(asked, began)
        seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
        return Served(seconds, cpu, [one.latency for one in asked], queue.calls, queue.rows)

    return run


def by_engine(asked: list[Asked]) -> Served:
    with Engine("emoji", waiting=len(asked) + 1) as engine:
        for size in sorted(set(SIZES)):
            engine.submit("pizza", steps=1, seeds=[0], width=size, height=size).result()
        before = engine.numbers()
        began, cpu = time.perf_counter(), time.process_time()
        ends = [threading.Event() for _ in asked]

        def ended(one: Asked, end: threading.Event) -> None:
            one.latency = time.perf_counter() - began - one.arrives
            end.set()

        for one, end in zip(asked, ends, strict=True):
            wait = one.arrives - (time.perf_counter() - began)
            if wait > 0:
                time.sleep(wait)
            ticket = engine.submit(
                one.prompt, sampler=one.sampler, steps=one.steps, guidance=one.scale,
                seeds=[one.seed], width=one.size, height=one.size,
            )  # fmt: skip
            ticket.when_ended(lambda one=one, end=end: ended(one, end))  # type: ignore[misc]
        for end in ends:
            end.wait()
        seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
        calls, rows = (int(b - a) for a, b in zip(before[3:5], engine.numbers()[3:5], strict=True))
        return Served(seconds, cpu, [one.latency for one in asked], calls, rows)


KINDS: dict[str, Callable[[list[Asked]], Served]] = {
    "diffusers, one by one": by_diffusers(False),
    "diffusers, equal ones together": by_diffusers(True),
    "timonel's engine": by_engine,
}


def main() -> None:
    warnings.simplefilter("ignore")
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    rate: float | None = None
    for title in ("all at once", f"at {LOAD:.0%} load"):
        print(f"\n{count} requests, {title}")
        print(f"{'':32}  req/s  p50 s  p95 s   CPU s  calls  rows/call")
        results = {}
        for name, run in KINDS.items():
            asked = requests(count)
            arrivals(asked, rate)
            results[name] = one = run(asked)
            print(
                f"{name:32}  {count / one.seconds:5.2f}  {one.at(0.5):5.2f}  {one.at(0.95):5.2f}"
                f"  {one.cpu:6.1f}  {one.calls:5}  {one.rows / max(1, one.calls):9.2f}",
                flush=True,
            )
        first = results["diffusers, one by one"]
        last = results["timonel's engine"]
        faster, later = first.seconds / last.seconds, last.at(0.95) / first.at(0.95)
        print(f"throughput x {faster:.2f}, p95 x {later:.2f}")
        rate = rate or LOAD * count / first.seconds
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10} MiB")


if __name__ == "__main__":
    main()
