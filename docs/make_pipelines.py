"""Writes docs/pipelines.md: every pipeline class that can be built, under the helm.

    python docs/make_pipelines.py [--rows FILE] [NAME …]

`--rows FILE`: one line of JSON for each pipeline is added to FILE; pipelines that are in it already are not run
again, except those named. Takes about 15 minutes on one core.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parent
sys.path.insert(0, str(DOCS.parent / "tests"))

from pipes import load  # noqa: E402
from pipes.page import lines  # noqa: E402
from pipes.worker import table  # noqa: E402


def main(arguments: list[str]) -> None:
    kept = Path(arguments.pop(1 + arguments.index("--rows"))) if "--rows" in arguments else None
    named = [name for name in arguments if name != "--rows"]
    rows: dict[str, dict[str, Any]] = {}
    if kept and kept.exists():
        for line in kept.read_text().splitlines():
            row = json.loads(line)
            rows[row.pop("key")] = row
    cases = load()
    for key, said in table([key for key in cases if key not in rows or key in named]):
        rows[key] = said
        wrong = {name: result["why"] for name, result in said["results"].items() if result["went"] == "no"}
        print(key, said["built"] or wrong or "yes", flush=True)
        if kept:
            with kept.open("a") as file:
                file.write(json.dumps({"key": key} | said) + "\n")
    ordered = {key: rows[key] for key in cases}
    (DOCS / "pipelines.md").write_text("\n".join(lines(ordered)))


if __name__ == "__main__":
    main(sys.argv[1:])
