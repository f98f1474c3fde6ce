"""diffusers' own tests on timonel's schedulers: each folder in a process of its own, its results
kept as JSON.

    git clone --depth 1 --branch v0.40.0 https://github.com/huggingface/diffusers /tmp/diffusers
    TIMONEL_DIFFUSERS=/tmp/diffusers python -m support.peers.suites schedulers compat

The records lie under `out/peers`; a folder that has one is not run again unless `--again` (all, or
those that match).
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from support.peers import hub, reasons
from support.places import ROOT, environment

VARIABLE = "TIMONEL_DIFFUSERS"
HOW = (
    f"{VARIABLE} names no checkout of diffusers; make one with "
    "`git clone --depth 1 --branch v0.40.0 https://github.com/huggingface/diffusers DIR` "
    f"and set {VARIABLE}=DIR"
)
SOCKETS = ("compat", "scheduler")
Record = dict[str, dict[str, str]]


@dataclass(frozen=True)
class Suite:
    name: str
    sockets: tuple[str, ...]
    folder: str  # below the checkout
    within: tuple[str, ...] = ("",)  # its folders, each run by one process
    without: str = "(?!)"  # tests whose name matches this are not about the loop
    passed_over: str = "(?!)"  # files whose name matches this cannot run here

    def files(self, checkout: Path, within: str) -> list[str]:
        found = sorted((checkout / self.folder / within).glob("test_*.py"))
        return [
            p.relative_to(checkout).as_posix()
            for p in found
            if not re.search(self.passed_over, p.name)
        ]


SUITES = {
    "schedulers": Suite("schedulers", ("compat",), "tests/schedulers"),
    "pipelines": Suite(
        "pipelines",
        ("compat", "scheduler"),
        "tests/pipelines",
        (
            "cosmos", "deepfloyd_if", "latent_consistency_models", "ltx", "stable_diffusion",
            "stable_diffusion_2",
            "stable_diffusion_xl", "controlnet", "ddim", "ddpm", "dit", "kandinsky2_2", "marigold",
            "animatediff",
            "aura_flow", "bria", "chroma", "chronoedit", "cogvideo", "cogview4", "controlnet_sd3",
            "flux", "helios",
            "latte", "ledits_pp", "mochi", "pixart_alpha", "pixart_sigma", "skyreels_v2",
            "stable_cascade",
            "stable_diffusion_3", "stable_diffusion_adapter", "stable_video_diffusion", "wan",
        ),
        without="offload|lora|attention|vae|xformers|layerwise|variant|dtype|cache|pyramid|freeu|qkv|ip_adapter|encode"
        "|device|quant|low_cpu|components_function|signature|Mixin|from_pipe|float16|half_precision|compile|stable_dif"
        "fusion_.*_textual_inversion|logs_info",
        passed_over="onnx|cosmos2_5|cosmos3",
    ),
}  # fmt: skip


def checkout() -> Path | None:
    """The folder of the checkout, or None where there is none."""
    place = os.environ.get(VARIABLE)
    if not place or not (Path(place) / "tests" / "schedulers").is_dir():
        return None
    return Path(place).resolve()


def run(suite: Suite, socket: str, within: str, where: Path, record: Path) -> None:
    """Runs a folder's files and writes what became of their tests; where pytest itself broke, an
    entry says so.
    """
    record.parent.mkdir(parents=True, exist_ok=True)
    more = {
        "PEERS_SOCKET": socket,
        "PEERS_RECORD": str(record), "PEERS_WITHOUT": suite.without, "OMP_NUM_THREADS": "1",
        "HF_HUB_CACHE": str(hub.build(record.parents[2] / "hub")), "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1", "DIFFUSERS_TEST_DEVICE": "cpu",
    }  # fmt: skip
    options = ["-q", "--tb=no", "--continue-on-collection-errors", "-p", "support.peers.plugin"]
    options += [
        word for name in ("cacheprovider", "warnings", "xdist") for word in ("-p", f"no:{name}")
    ]
    call = [sys.executable, "-m", "pytest", *options, *suite.files(where, within)]
    record.unlink(missing_ok=True)
    done = subprocess.run(
        call, cwd=where, env=environment(**more), capture_output=True, text=True, check=False
    )
    if done.returncode not in (0, 1) or not record.exists():
        tail = " ".join((done.stdout + done.stderr)[-600:].split())
        raise RuntimeError(f"pytest broke in {suite.folder}/{within}: {tail}")


def results(
    suite: Suite, socket: str, within: str, where: Path, out: Path, again: bool = False
) -> Record:
    """What became of every test of a folder, by its name below `tests/`; runs it where there is no
    record yet.
    """
    record = out / suite.name / socket / f"{within or suite.name}.json"
    if again or not record.exists():
        began = time.monotonic()
        run(suite, socket, within, where, record)
        print(
            f"{suite.name} {socket} {within}: {time.monotonic() - began:.0f} s",
            file=sys.stderr,
            flush=True,
        )
    found = json.loads(record.read_text(encoding="utf-8"))
    return {name.removeprefix("tests/"): value for name, value in found.items()}


def compared(
    suite: Suite, socket: str, where: Path, out: Path, again: str | None = None
) -> tuple[Record, Record]:
    """All results with the socket, and diffusers' own of the folders where one does not pass."""
    ours: Record = {}
    baseline: Record = {}
    for within in suite.within:
        repeated = again is not None and re.search(again, within) is not None
        found = results(suite, socket, within, where, out, repeated)
        if any(value["outcome"] not in ("passed", "skipped") for value in found.values()):
            baseline |= results(suite, "diffusers", within, where, out)
        ours |= found
    return ours, baseline


def lost(baseline: Record, ours: Record) -> dict[str, str]:
    """The tests that pass with diffusers' schedulers and not with ours, and their errors."""
    passing = [name for name, value in baseline.items() if value["outcome"] == "passed"]
    missing = {"outcome": "failed", "error": "not collected"}
    return {
        n: ours.get(n, missing)["error"]
        for n in passing
        if ours.get(n, missing)["outcome"] != "passed"
    }


def judge(failing: Iterable[str], listed: Iterable[str]) -> list[str]:
    """What the table of reasons has wrong: a test that fails and is not in it, a test in it that
    passes.
    """
    failing, listed = set(failing), set(listed)
    return [f"fails, and has no reason: {name}" for name in sorted(failing - listed)] + [
        f"passes, and has a reason: {name}" for name in sorted(listed - failing)
    ]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("suite", choices=sorted(SUITES))
    parser.add_argument("socket", choices=SOCKETS)
    parser.add_argument(
        "--out", type=Path, default=ROOT / "out" / "peers", help="folder of the records"
    )
    parser.add_argument(
        "--again", nargs="?", const="", help="run again the folders that match (all of them)"
    )
    parser.add_argument(
        "--list", action="store_true", help="print the tests that fail with their errors"
    )
    parser.add_argument(
        "--update", action="store_true", help="write the tests that fail into the table of reasons"
    )
    args = parser.parse_args()
    where, suite = checkout(), SUITES[args.suite]
    if where is None:
        parser.error(HOW)
    if args.socket not in suite.sockets:
        parser.error(f"{suite.name} runs with {', '.join(suite.sockets)}")
    ours, baseline = compared(suite, args.socket, where, args.out, args.again)
    failing = lost(baseline, ours)
    if args.list:
        print("\n".join(f"{name}\t{error}" for name, error in failing.items()))
    counted = [value["outcome"] for value in ours.values() if value["outcome"] != "skipped"]
    print(f"{suite.name}, {args.socket}: {counted.count('passed')} of {len(counted)} pass;")
    print(f"{len(failing)} of the others pass with diffusers' own scheduler")
    if args.update:
        reasons.update(suite.name, args.socket, failing)
    wrong = judge(failing, reasons.tests(suite.name, args.socket))
    print("\n".join(wrong) or "every other test has its reason")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
