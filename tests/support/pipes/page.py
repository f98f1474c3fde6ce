"""The table docs/pipelines.md: what the helm does with each pipeline class, and which classes are
not built.
"""

from __future__ import annotations

import inspect
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from .absent import ABSENT
from .features import CHECKS
from .registry import CASES, Case

COMMAND = "python docs/make_pipelines.py"
APART = (
    "Modular",
    "Blocks",
    "Output",
    "Quantization",
    "Auto",
)  # in names of what is no pipeline class
HEAD = """# Pipelines

Every pipeline class of diffusers {version} that can be built without a checkpoint, \
with tiny random weights, called
under `tm.Helm(pipe)`. Networks, autoencoders and schedulers are diffusers' own classes; \
tokenizers and encoders of
words and pictures are stand-ins (`tests/support/pipes/standins.py`). "yes": the check passed. \
A number points to the
reason below the table. "–": the pipeline has nothing to try. \
Under preview: "linear", pictures by the linear map;
"decoded", by the pipeline's own way, compared with its own picture; \
"says no", a warning with the reason, and the run
goes on. Under compat the pipeline runs without the helm, with the class of `timonel.compat` in \
place of its scheduler,
made of the same configuration, and its picture is compared with the one of diffusers' class \
(largest difference below
2e-4 of the largest value, noise included).

Made by `{command}`; the checks are `tests/support/pipes/features.py`, the pipelines \
`tests/support/pipes/`.
`tests/pipelines/test_every_pipeline.py` fails when a row of this page stops being true.

{classes} classes in {families} families, {cases} configurations.
"""


def lines(rows: Mapping[str, dict[str, Any]]) -> list[str]:
    """The page, from what `features.try_all` said of each case."""
    import diffusers

    cases = [CASES[key] for key in rows]
    head = HEAD.format(
        version=diffusers.__version__, command=COMMAND, classes=len({c.name for c in cases}),
        families=len({c.family for c in cases}), cases=len(cases),
    )  # fmt: skip
    reasons: dict[str, int] = {}
    made = [*head.splitlines(), "", *totals(rows), "", "## Each pipeline", ""]
    made += [f"| class | family | {' | '.join(CHECKS)} |", f"|---|---|{'---|' * len(CHECKS)}"]
    made += [row(CASES[key], said, reasons) for key, said in rows.items()]
    made += ["", "## Reasons", "", *(f"{number}. {reason}" for reason, number in reasons.items())]
    return [*made, "", *absent({c.name for c in cases}), ""]


def row(case: Case, said: dict[str, Any], reasons: dict[str, int]) -> str:
    cells = []
    for name in CHECKS:
        result = said["results"].get(name, {"went": "no", "why": said["built"]})
        if not result["why"]:
            cells.append("" if result["went"] == "no" else result["went"])
        else:
            number = reasons.setdefault(result["why"], len(reasons) + 1)
            cells.append(f"{'–' if result['went'] == '-' else result['went']} [{number}]")
    return f"| {case.key} | {case.family} | {' | '.join(cells)} |"


def totals(rows: Mapping[str, dict[str, Any]]) -> list[str]:
    """One line for each check."""
    went: dict[str, Counter[str]] = {name: Counter() for name in CHECKS}
    for said in rows.values():
        for name in CHECKS:
            went[name][said["results"].get(name, {"went": "not reached"})["went"]] += 1
    # how it is done counts as yes, and saying that it is not as nothing to try
    plain = ("yes", "no", "-", "says no", "not reached")
    made = [
        "| check | what | yes | no | nothing to try | not reached |",
        "|---|---|---|---|---|---|",
    ]
    for name, check in CHECKS.items():
        what, count = " ".join((inspect.getdoc(check) or "").split()).rstrip("."), went[name]
        yes = count["yes"] + sum(n for word, n in count.items() if word not in plain)
        nothing = count["-"] + count["says no"]
        made.append(
            f"| {name} | {what} | {yes} | {count['no']} | {nothing} | {count['not reached']} |"
        )
    return made


def classes() -> list[str]:
    """Names of diffusers' pipeline classes that generate something."""
    import diffusers

    return sorted(
        name
        for name in dir(diffusers)
        if "Pipeline" in name
        and name != "DiffusionPipeline"
        and not any(part in name for part in APART)
    )


def why_absent(name: str) -> str:
    families = (
        why for start, why in ABSENT.items() if start.endswith("*") and name.startswith(start[:-1])
    )
    return ABSENT.get(name) or next(families, "no tiny configuration is written yet")


def absent(built: set[str]) -> list[str]:
    """The classes that are not built, by reason."""
    missing = [name for name in classes() if name not in built]
    by_reason: dict[str, list[str]] = {}
    for name in missing:
        by_reason.setdefault(why_absent(name), []).append(name)
    made = [f"## Not built: {len(missing)} classes", "", "| reason | classes |", "|---|---|"]
    return made + [f"| {reason} | {', '.join(names)} |" for reason, names in by_reason.items()]


def read(text: str) -> dict[str, dict[str, Any]]:
    """The rows of the page as what `features.try_all` said of them; checks that the page does not
    have are left out.
    """
    reasons = dict(re.findall(r"^(\d+)\. (.*)$", text, re.MULTILINE))
    lines = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in text.splitlines()
        if line.startswith("|")
    ]
    names = next(cells[2:] for cells in lines if cells[:2] == ["class", "family"])
    found: dict[str, dict[str, Any]] = {}
    for key, _, *cells in (
        cells for cells in lines if len(cells) == 2 + len(names) and cells[0] in CASES
    ):
        results = {}
        for name, cell in zip(names, cells, strict=True):
            went, number = re.fullmatch(r"(.*?)(?: \[(\d+)\])?", cell).groups()  # type: ignore[union-attr]
            if went:
                results[name] = {"went": went.replace("–", "-"), "why": reasons.get(number, "")}
        found[key] = {"built": "", "results": results}
    return found


def parse(text: str) -> dict[str, Sequence[str]]:
    """The cells of each pipeline's row on the page, without their numbers."""
    found: dict[str, Sequence[str]] = {}
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 2 + len(CHECKS) and cells[0] in CASES:
            found[cells[0]] = [cell.split(" [")[0] for cell in cells[2:]]
    return found
