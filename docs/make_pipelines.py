"""Writes docs/pipelines.md: every pipeline class that can be built, under the helm.

    python docs/make_pipelines.py [--rows FILE] [--only CHECK|FAMILY] [NAME …]

`--only CHECK`: that column alone; the others, and with NAME … the other rows, stay as the page has
them. `--only modular`: the rows of that family alone. `--rows FILE`: one line of JSON for each
pipeline is added to FILE; pipelines that are in it already are not run again, except those named.
Takes about 15 minutes on one core.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from support.pipes import load
from support.pipes.features import CHECKS
from support.pipes.page import lines, read
from support.pipes.worker import table
from support.places import DOCS


def main(arguments: list[str]) -> None:
    kept = Path(arguments.pop(1 + arguments.index("--rows"))) if "--rows" in arguments else None
    only = arguments.pop(1 + arguments.index("--only")) if "--only" in arguments else ""
    named = [name for name in arguments if name not in ("--rows", "--only")]
    rows: dict[str, dict[str, Any]] = {}
    if kept and kept.exists():
        for line in kept.read_text().splitlines():
            row = json.loads(line)
            rows[row.pop("key")] = row
    cases = load()
    if only not in ("", *CHECKS):
        named += [key for key, case in cases.items() if case.family.lower() == only]
        if not named:
            raise SystemExit(f"{only!r} is no check and no family: {', '.join(CHECKS)}, modular")
        only = ""
    page = read((DOCS / "pipelines.md").read_text()) if only or (named and not kept) else {}
    wanted = (
        (named or list(cases))
        if page
        else [key for key in cases if key in named or key not in rows]
    )
    for key, said in table([key for key in wanted if key not in rows or key in named], only=only):
        rows[key] = said
        wrong = {
            name: result["why"]
            for name, result in said["results"].items()
            if result["went"] == "no"
        }
        print(key, said["built"] or wrong or "yes", flush=True)
        if kept:
            with kept.open("a") as file:
                file.write(json.dumps({"key": key} | said) + "\n")
    if page:
        rows = {
            key: merged(page.get(key, {"built": "", "results": {}}), rows.get(key), only)
            for key in cases
        }
    ordered = {key: rows[key] for key in cases}
    (DOCS / "pipelines.md").write_text("\n".join(lines(ordered)))


def merged(old: dict[str, Any], new: dict[str, Any] | None, only: str) -> dict[str, Any]:
    """A row of the page with what was found anew; a row that ended before its checks stays."""
    own = old["results"].get("own", {"went": "no"})["went"]
    reached = only in ("", "own") or (own != "no" if only == "compat" else "grid" in old["results"])
    if new is None or not reached:
        return old
    return {**new, "results": {**old["results"], **new["results"]} if only else new["results"]}


if __name__ == "__main__":
    main(sys.argv[1:])
