"""Runs every benchmark and rewrites RESULTS.md.

python benchmarks/run_all.py [--quick]
"""

from __future__ import annotations

import argparse
from datetime import date
from pathlib import Path

import torch

import exact
import guidance_cutoff
import plan_time
import preview_cost
import step_cost
from measure import machine
from timonel.errors import ModelError

RESULTS = Path(__file__).with_name("RESULTS.md")


def page(about: str, steps: str, cutoff: str, preview: str, plan: str, command: str) -> str:
    """The text of RESULTS.md."""
    return f"""# What a step costs

Made by `{command}` on {date.today():%Y-%m-%d}. {about}

Times are min / median; ratios are medians of the paired ratios. Errors on exactly known models:
[docs/exact.md](../docs/exact.md), by benchmarks/exact.py. \
Fitted samplers: [docs/tune.md](../docs/tune.md), by
benchmarks/tune.py.

## One step of the sampler, without the network

{step_cost.STEPS} steps, one thread, milliseconds per network call. {_notes(step_cost.__doc__)}

{steps}

## Guidance that ends early, on the shipped models

{_notes(guidance_cutoff.__doc__)}

{cutoff}

## A preview at every step

{_notes(preview_cost.__doc__)}

{preview}

## Many runs at once

{_notes(plan_time.__doc__)}

{plan}
"""


def _notes(doc: str | None) -> str:
    """A docstring without its first line and its command."""
    parts = (doc or "").strip().split("\n\n")[1:]
    return "\n\n".join(part for part in parts if not part.startswith("    python"))


def main() -> None:
    parser = argparse.ArgumentParser(description="run every benchmark and rewrite RESULTS.md")
    parser.add_argument(
        "--quick", action="store_true", help="few repeats: rough numbers in about a minute"
    )
    quick: bool = parser.parse_args().quick
    torch.set_num_threads(1)
    about = machine()
    steps = step_cost.measure(5 if quick else 30)
    print(f"{about}\n\n{steps}\n", flush=True)
    try:
        cutoff = guidance_cutoff.measure(3 if quick else 15)
    except ModelError:
        cutoff = "Not measured: this installation lacks the files of the shipped model."
    print(cutoff, flush=True)
    preview = preview_cost.measure(2 if quick else 8)
    plan = plan_time.measure(1 if quick else 3)
    print(f"{preview}\n\n{plan}")
    RESULTS.write_text(
        page(
            about, steps, cutoff, preview, plan, "python benchmarks/run_all.py" + " --quick" * quick
        )
    )
    print(exact.run(exact.QUICK if quick else exact.Size(), None if quick else exact.DOCS))


if __name__ == "__main__":
    main()
