"""What both benchmarks share: interleaved timing, paired ratios, a Markdown table, the machine in
words.
"""

from __future__ import annotations

import ctypes
import gc
import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median

import torch


@dataclass(frozen=True)
class Peer:
    """Something to time: `prepare`, not timed, returns the body, which makes `calls` calls."""

    name: str
    prepare: Callable[[], Callable[[], object]]
    calls: int = 1


def steady_memory() -> None:
    """Tell the C library (glibc) to keep freed memory, for this process and so for all peers alike.

    By default it returns blocks of some megabytes to the operating system, and each new one costs a
    page fault per 4 KiB: more than the arithmetic, and a matter of luck. Where there is no
    `mallopt` nothing is done.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return
    trim_threshold, mmap_threshold = -1, -3  # malloc.h
    mallopt(trim_threshold, 1 << 30)
    mallopt(mmap_threshold, 1 << 30)


def interleave(peers: Sequence[Peer], repeats: int) -> dict[str, list[float]]:
    """Milliseconds per call, one number per repeat and peer.

    Every repeat runs every peer once, in rotating order, so that number i of one peer and number i
    of another were measured next to each other and their ratio is a paired one.
    """
    times: dict[str, list[float]] = {peer.name: [] for peer in peers}
    for peer in peers:
        peer.prepare()()
    gc.collect()
    gc.disable()
    try:
        for i in range(repeats):
            turn = i % len(peers)
            for peer in [*peers[turn:], *peers[:turn]]:
                body = peer.prepare()
                start = time.perf_counter()
                body()
                times[peer.name].append(1e3 * (time.perf_counter() - start) / peer.calls)
    finally:
        gc.enable()
    return times


def ratio(a: Sequence[float], b: Sequence[float]) -> float:
    """Median of the paired ratios a / b."""
    return median(x / y for x, y in zip(a, b, strict=True))


def brief(times: Sequence[float] | None, digits: int = 3) -> str:
    """ "min / median" of `times`, or a dash."""
    return f"{min(times):.{digits}f} / {median(times):.{digits}f}" if times else "–"


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose columns line up in plain text too; all but the first column to the right."""
    wide = [max(len(line[i]) for line in (head, *rows)) for i in range(len(head))]

    def line(cells: Sequence[str]) -> str:
        padded = [
            cells[0].ljust(wide[0]),
            *(cell.rjust(w) for cell, w in zip(cells[1:], wide[1:], strict=True)),
        ]
        return "| " + " | ".join(padded) + " |"

    rule = "|".join(["", "-" * (wide[0] + 2), *("-" * (w + 1) + ":" for w in wide[1:]), ""])
    return "\n".join([line(head), rule, *(line(row) for row in rows)])


def machine() -> str:
    """CPU, cores, versions, threads, and whether something else was running."""
    cores = os.cpu_count() or 1
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    shared = "shared with another job" if load > 0.5 else "quiet"
    return (
        f"{_cpu()}, {cores} cores; Python {platform.python_version()}, torch {_version('torch')}, "
        f"diffusers {_version('diffusers')}, k-diffusion {_version('k-diffusion')}; "
        f"{torch.get_num_threads()} thread(s), float32. "
        f"Load average when the measurement began: {load:.1f} on {cores} cores ({shared})."
    )


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return f"{line.partition(':')[2].strip()} ({platform.machine()})"
    return platform.processor() or platform.machine()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
