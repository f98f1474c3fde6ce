"""diffusers' own test files on timonel's schedulers: each in a process of its own, what came of it kept as JSON.

    git clone --depth 1 --branch v0.40.0 https://github.com/huggingface/diffusers /tmp/diffusers
    TIMONEL_DIFFUSERS=/tmp/diffusers python tests/peers/suites.py schedulers compat

The records lie under `out/peers`; a file that has one is not run again unless `--again` (all, or those that match).
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

ROOT = Path(__file__).resolve().parents[2]
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT / "tests"))

from peers import reasons

VARIABLE = "TIMONEL_DIFFUSERS"
HOW = (
    f"{VARIABLE} names no checkout of diffusers; make one with `git clone --depth 1 --branch v0.40.0 "
    f"https://github.com/huggingface/diffusers DIR` and set {VARIABLE}=DIR"
)
SOCKETS = ("compat", "scheduler")
Record = dict[str, dict[str, str]]


@dataclass(frozen=True)
class Suite:
    name: str
    sockets: tuple[str, ...]
    patterns: tuple[str, ...]  # of files, below the checkout's `tests`
    without: str = ""  # tests whose name matches this are not about the loop

    def files(self, checkout: Path) -> list[str]:
        found = {p.relative_to(checkout).as_posix() for g in self.patterns for p in checkout.glob(f"tests/{g}")}
        return sorted(found)


SUITES = {
    "schedulers": Suite("schedulers", ("compat",), ("schedulers/test_*.py",)),
}


def checkout() -> Path | None:
    """The folder of the checkout, or None where there is none."""
    place = os.environ.get(VARIABLE)
    if not place or not (Path(place) / "tests" / "schedulers").is_dir():
        return None
    return Path(place).resolve()


def run(suite: Suite, socket: str, file: str, where: Path, record: Path) -> None:
    """Runs one file and writes what became of its tests; where pytest itself broke, an entry says so."""
    record.parent.mkdir(parents=True, exist_ok=True)
    paths = [str(ROOT / "src"), str(ROOT / "tests")]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(paths), "PEERS_SOCKET": socket, "PEERS_RECORD": str(record),
        "PEERS_WITHOUT": suite.without, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "OMP_NUM_THREADS": "1",
        "DIFFUSERS_TEST_DEVICE": "cpu", "HF_HUB_DISABLE_TELEMETRY": "1",
    }  # fmt: skip
    options = ["-q", "--tb=no", "-p", "no:cacheprovider", "-p", "no:warnings", "-p", "no:xdist", "-p", "peers.plugin"]
    call = [sys.executable, "-m", "pytest", *options, file]
    done = subprocess.run(call, cwd=where, env=environment, capture_output=True, text=True, check=False)
    if done.returncode not in (0, 1, 5) or not record.exists():
        tail = " ".join((done.stdout + done.stderr)[-600:].split())
        record.write_text(json.dumps({file: {"outcome": "failed", "error": tail}}), encoding="utf-8")


def results(suite: Suite, socket: str, where: Path, out: Path, again: str | None = None) -> Record:
    """What became of every test, by its name below `tests/`; runs the files that have no record yet."""
    found: Record = {}
    for file in suite.files(where):
        record = out / suite.name / socket / (file.replace("/", "+") + ".json")
        if not record.exists() or (again is not None and re.search(again, file)):
            began = time.monotonic()
            run(suite, socket, file, where, record)
            print(f"{suite.name} {socket} {file}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
        found |= json.loads(record.read_text(encoding="utf-8"))
    return {name.removeprefix("tests/"): value for name, value in found.items()}


def lost(baseline: Record, ours: Record) -> dict[str, str]:
    """The tests that pass with diffusers' schedulers and not with ours, and their errors."""
    passing = [name for name, value in baseline.items() if value["outcome"] == "passed"]
    missing = {"outcome": "failed", "error": "not collected"}
    return {n: ours.get(n, missing)["error"] for n in passing if ours.get(n, missing)["outcome"] != "passed"}


def judge(failing: Iterable[str], listed: Iterable[str]) -> list[str]:
    """What the table of reasons has wrong: a test that fails and is not in it, a test in it that passes."""
    failing, listed = set(failing), set(listed)
    return [f"fails, and has no reason: {name}" for name in sorted(failing - listed)] + [
        f"passes, and has a reason: {name}" for name in sorted(listed - failing)
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suite", choices=sorted(SUITES))
    parser.add_argument("socket", choices=SOCKETS)
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "peers", help="folder of the records")
    parser.add_argument("--again", nargs="?", const="", help="run again the files that match (all of them)")
    parser.add_argument("--list", action="store_true", help="print the tests that fail with their errors")
    args = parser.parse_args()
    where, suite = checkout(), SUITES[args.suite]
    if where is None:
        parser.error(HOW)
    if args.socket not in suite.sockets:
        parser.error(f"{suite.name} runs with {', '.join(suite.sockets)}")
    baseline = results(suite, "diffusers", where, args.out)
    ours = results(suite, args.socket, where, args.out, args.again)
    failing = lost(baseline, ours)
    if args.list:
        print("\n".join(f"{name}\t{error}" for name, error in failing.items()))
    for name, record in (("diffusers", baseline), (args.socket, ours)):
        counted = [value["outcome"] for value in record.values()]
        print(f"{suite.name}, {name}: {counted.count('passed')} of {len(counted) - counted.count('skipped')} pass")
    wrong = judge(failing, reasons.tests(suite.name, args.socket))
    print("\n".join(wrong) or "every other test has its reason")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
