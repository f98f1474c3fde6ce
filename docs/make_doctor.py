"""Writes doctor.md: what `timonel doctor` prints, and its table of presets. python
docs/make_doctor.py
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from support.places import DOCS, TESTS
from timonel.diagnosis import FAMILIES, PRESETS, doctor
from timonel.pipelines.family.presets import Preset

PAGE = DOCS / "doctor.md"
PUBLISHED = TESTS / "support" / "published.json"

HEAD = """# Doctor

Made by `python docs/make_doctor.py`; \
`tests/diagnosis/test_doctor.py` fails when this page is out of date.

`timonel doctor MODEL` reads a model's configuration, never its weights, and says what it is, \
which samplers and grids
suit it, whether a combination works, and what is recommended. \
`MODEL` is a shipped model, a folder in diffusers'
format, or a hub name, of which only the configurations are fetched. \
In Python: `tm.doctor(model, sampler)`, where
`model` may also be a pipeline object; \
the result has `report()`, `to_dict()` and the fields of the report.

| option | is |
| --- | --- |
| `--sampler NAME` | a sampler as everywhere, or a class of diffusers; \
default: the model's own scheduler |
| `--steps N` | default: those of the recommendation |
| `--flag KEY=VALUE` | what a diffusers script gives to `from_config` besides; may be repeated |
| `--json` | the same as JSON |

## What it prints

The scheduler of Stable Video Diffusion, replaced as many pages recommend:

"""
HOW = """
## How it knows

**What diffusers does** is measured. \
The scheduler is built with `from_config` as a script would build it, and driven as
the pipeline drives it: whether that calls `set_begin_index`, hands a generator to `step`, gives \
a list of sigmas or a
shift of its own is read from the pipeline's source. \
In place of the weights stands a network whose data are Gaussian,
so its answer at any noise level is exact. \
One run on data at a single point shows how much noise is left in the
result; one on spread data shows whether the spread comes out. What is compared:

{marks}

**What timonel does** is its table for the same scheduler config, \
or the message with which it refuses.

**Which family** it is follows from the pipeline's class, its networks' and its scheduler's \
configuration. Where another
model is configured alike, the report says so and gives the presets of both.

**What is recommended** is the table below. Guidance 1 is none; \
examples of few-step models write it as
`guidance_scale=0` for diffusers.

## Presets
"""


MARKS = {
    "FAILS": ("the scheduler cannot be constructed", "an exception", "a result that is not finite"),
    "WRONG": (
        "the class takes the model for another kind",
        "the network gets the time of another level than the sample's",
        "noise stays in the result", "the spread is off by more than timonel's on the same levels",
        "the levels are not those of the configuration, or begin below the named grid",
    ),
    "IGNORED": ("an argument that the class does not have",
    "a flag without which times and sigmas are the same"),
    "note": (
        "more network calls than steps",
        "a run that begins below the noisiest level or ends at the lowest",
        "noise that no seed fixes", "levels that differ from timonel's grid of the same name",
    ),
}  # fmt: skip


def report() -> str:
    """The report on SVD-XT with the sampler and flags of a widely copied recipe."""
    facts = json.loads(PUBLISHED.read_text("utf-8"))["svd_xt"]
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "svd_xt"
        files = {
            "model_index.json": facts["model_index"],
            "scheduler/scheduler_config.json": facts["scheduler"],
            "unet/config.json": facts["network"]["unet"],
        }
        for name, content in files.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(json.dumps(content), "utf-8")
        found = doctor(root, "dpmpp_2m_sde/karras", 12, flags={"timestep_spacing": "trailing"})
        return found.report().replace(str(root), "svd_xt")


def row(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"


def preset_row(title: str, known_by: str, preset: Preset) -> str:
    return row(title, known_by, f"`{preset.command}`", preset.note, preset.source)


def page() -> str:
    rows = [
        preset_row(
            FAMILIES[key].title if i == 0 else "", FAMILIES[key].known_by if i == 0 else "", preset
        )
        for key, presets in PRESETS.items()
        for i, preset in enumerate(presets)
    ]
    doubts = [f"- {row.title}: {row.doubt}." for row in FAMILIES.values() if row.doubt]
    marks = "\n".join(
        [row("mark", "when"), row("---", "---"), *(row(k, "; ".join(v)) for k, v in MARKS.items())]
    )
    command = (
        "timonel doctor svd_xt --sampler dpmpp_2m_sde/karras --steps 12 "
        "--flag timestep_spacing=trailing"
    )
    return "\n".join([
        f"{HEAD}```text\n$ {command}\n{report()}\n```", HOW.format(marks=marks),
        row("family", "known by", "preset", "note", "source"), row(*["---"] * 5), *rows,
        "\n## What a configuration does not tell\n", *doubts, "",
    ])  # fmt: skip


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
    print(PAGE)
