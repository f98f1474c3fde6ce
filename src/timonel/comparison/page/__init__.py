"""The page of a comparison: one HTML file with its data, style and script, which loads no others.

The pictures in it are small; a click opens the full ones, files in the folder `pictures` beside it.

One concern, one file: `page.html` is the frame, `page.css` the look, `words.json` every sentence in
English and Spanish, and the scripts, in the order of `SCRIPTS`, each draw one part.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import math
import re
from pathlib import Path
from typing import Any

from ...errors import ArgumentError

HERE = Path(__file__).parent
SCRIPTS = (
    "dom", "language", "pictures", "copy", "grid", "slider", "cell", "plots", "sigmas", "errors",
    "table", "main",
)  # fmt: skip
PARTS = (
    "title", "created", "version", "complete", "axes", "cells", "groups", "schedules",
    "references", "claims", "notes",
)  # fmt: skip
STATUSES = ("done", "failed", "waiting")


def render(data: dict[str, Any]) -> str:
    """The whole page of one comparison, as HTML that opens from a file.

    Text in the data stays text: nothing a prompt holds can become markup. A picture that is shown
    in several places is embedded once.

    Args:
        data: the parts of the page (`PARTS`); every picture is a `data:image/…` address, and `full`
            is the path of the full one from the page, where it is beside it.

    Raises:
        ArgumentError: a part is missing, a picture is not embedded, or an index is out of range.
    """
    _check(data)
    style, script = _read("page.css"), "\n".join(_read(f"{name}.js") for name in SCRIPTS)
    parts = {
        "title": html.escape(str(data["title"])),
        "policy": _policy(style, script),
        "style": style,
        "words": _embed(json.loads(_read("words.json"))),
        "data": _embed(_finite(_interned(data))),
        "script": script,
    }
    # one pass, so that a prompt that holds "{{script}}" is left alone
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], _read("page.html"))


def _read(name: str) -> str:
    return (HERE / name).read_text(encoding="utf-8")


def _embed(value: Any) -> str:
    """JSON that cannot end the script element it stands in."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).replace(
        "<", "\\u003c"
    )


def _policy(style: str, script: str) -> str:
    """A content security policy for this style, this script and pictures in and beside the page."""

    def named(text: str) -> str:
        return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

    return (
        f"default-src 'none'; img-src data: 'self'; style-src {named(style)}; script-src"
        f" {named(script)}; base-uri 'none'; form-action 'none'; require-trusted-types-for"
        " 'script'; trusted-types 'none'"
    )


def _interned(data: dict[str, Any]) -> dict[str, Any]:
    """The data with one list, `pictures`, and indices into it in place of the pictures."""
    places: dict[str, int] = {}

    def place(picture: str | None) -> int | None:
        return None if picture is None else places.setdefault(picture, len(places))

    def shown(item: dict[str, Any]) -> dict[str, Any]:
        frames, story = item.get("frames"), item.get("story")
        return {
            **item,
            "picture": place(item.get("picture")),
            "frames": [place(frame) for frame in frames] if frames else None,
            "story": {**story, "sprite": place(story["sprite"])} if story else None,
        }

    parts = {part: [shown(item) for item in data[part]] for part in ("cells", "references")}
    return {**data, **parts, "pictures": list(places)}


def _finite(value: Any) -> Any:
    """A value without infinity and NaN, which JSON lacks: the script reads "Infinity" and null."""
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")
    return value


def _check(data: dict[str, Any]) -> None:
    missing = [part for part in PARTS if part not in data]
    if missing:
        raise ArgumentError(f"the page needs {', '.join(missing)}; give all of {', '.join(PARTS)}")
    axes = [axis["name"] for axis in data["axes"]]
    for i, cell in enumerate(data["cells"]):
        if cell["status"] not in STATUSES:
            raise ArgumentError(
                f"cell {i} has status {cell['status']!r}; it is one of {', '.join(STATUSES)}"
            )
        for part, index in (("groups", cell["group"]), ("schedules", cell["schedule"])):
            if index is not None and not 0 <= index < len(data[part]):
                raise ArgumentError(
                    f"cell {i} points to {part}[{index}], but there are {len(data[part])}"
                )
        for name in axes:
            if name not in cell["at"]:
                raise ArgumentError(f"cell {i} has no place on the axis {name!r}; give it in `at`")
    for part in ("cells", "references"):
        for i, item in enumerate(data[part]):
            _check_pictures(f"{part}[{i}]", item)


def _check_pictures(where: str, item: dict[str, Any]) -> None:
    story = item.get("story")
    for picture in (item.get("picture"), story and story["sprite"], *(item.get("frames") or ())):
        if picture is not None and not picture.startswith("data:image/"):
            raise ArgumentError(
                f"{where} shows {picture[:40]!r}; embed it as data:image/…;base64,…"
            )
    full = item.get("full")
    if full is not None and not re.fullmatch(r"pictures/[\w-]+\.\w+", full):
        raise ArgumentError(
            f"{where} has its full picture at {full[:40]!r}; it is a file in the folder pictures"
        )
