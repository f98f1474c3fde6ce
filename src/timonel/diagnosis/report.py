"""A diagnosis as text: what it is, what suits it, the combination, the presets. Short enough for
one screen.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from ..files import plain
from ..pipelines.family.presets import Preset
from .findings import shown

if TYPE_CHECKING:
    from rich.console import Console

    from . import Diagnosis

WIDTH, INDENT, LABEL = 110, 2, 13
MARKS = {"fails": "FAILS", "wrong": "WRONG", "ignored": "IGNORED", "note": "note"}
#: what is coloured on a terminal: a pattern with one name for each style
STYLES = {
    "title": ("bold", r"^\S.*$"),
    "label": ("cyan", rf"^ {{{INDENT}}}\S[a-z ]{{0,9}}(?= )"),
    "bad": ("bold red", r"\b(FAILS|WRONG|REFUSED)\b"),
    "idle": ("bold yellow", r"\bIGNORED\b"),
    "good": ("green", r"^ +ok\b"),
    "command": ("bold", r"--sampler [^\n]*$"),
}


def text(found: Diagnosis, width: int = WIDTH) -> str:
    """The whole report, in lines of at most `width`."""
    parts = [_what(found), _suits(found), _combination(found), _presets(found)]
    return "\n\n".join("\n".join(_lines(part, width)) for part in parts)


def show(found: Diagnosis, console: Console) -> None:
    """The report on a terminal, in its width and colours."""
    from rich.text import Text

    for line in plain(text(found, min(WIDTH, console.width))).split("\n"):
        styled = Text(line)
        for style, pattern in STYLES.values():
            styled.highlight_regex(pattern, style)
        console.print(styled, soft_wrap=True)


Row = tuple[str, str, int]  # label, body, by how much later lines hang; a title has no body


def _lines(rows: Iterator[Row], width: int) -> Iterator[str]:
    for label, body, hang in rows:
        if not body:
            yield from textwrap.wrap(label, width, break_on_hyphens=False)
            continue
        begin, later = f"{' ' * INDENT}{label:<{LABEL - INDENT}}", " " * (LABEL + hang)
        yield from textwrap.wrap(
            begin + body, width, subsequent_indent=later, break_on_hyphens=False
        )


def _what(found: Diagnosis) -> Iterator[Row]:
    yield f"{found.model}: {found.title}", "", 0
    named = "not named in the configuration"
    if found.told:
        yield "told by", f"{found.pipeline}; {found.told}", 0
    else:
        yield "pipeline", found.pipeline or named, 0
    if found.doubt:
        yield "not told", found.doubt, 0
    yield "process", found.process, 0
    yield "predicts", f"{found.prediction}; the network is told {found.time}", 0
    yield "scheduler", found.scheduler or named, 0


def _suits(found: Diagnosis) -> Iterator[Row]:
    yield "What suits it", "", 0
    for label, advice in (("samplers", found.samplers), ("grids", found.grids)):
        for i, one in enumerate(advice):
            yield label if i == 0 else "", f"{one.name:<16} {one.why}", 17
    if found.refused:
        yield "no grids", f"{', '.join(found.refused)}: this process has no such levels", 0


def _combination(found: Diagnosis) -> Iterator[Row]:
    tried = found.combination
    own = tried.asked == found.scheduler
    yield (
        f"{'Its own scheduler' if own else 'Your combination'}: {tried.asked}, {tried.steps} steps",
        "",
        0,
    )
    if tried.code:
        yield "diffusers", tried.code, 0
    for finding in tried.findings:
        yield "", f"{MARKS[finding.kind]:<8} {finding.text}", 9
    if tried.code and tried.sound:
        yield "", f"ok       {tried.calls} network calls, told {shown(tried.times)}", 9
    ours = tried.ours
    if ours.refused:
        yield "timonel", f"REFUSED  {ours.refused}", 9
        return
    yield "timonel", ours.code, 0
    yield "", f"ok       {ours.calls} network calls, told {shown(ours.times)}", 9


def _presets(found: Diagnosis) -> Iterator[Row]:
    yield "Recommended", "", 0
    if not found.presets:
        yield "", "nothing is known of this pipeline; begin with timonel's defaults", 0
    yield from _listed(found.presets)
    for title, presets in found.alike.items():
        yield f"If it is {title}", "", 0
        yield from _listed(presets)


def _listed(presets: Sequence[Preset]) -> Iterator[Row]:
    for preset in presets:
        yield "", preset.command, 4
        note = f"{preset.note}. " if preset.note else ""
        yield "", f"  {note}Source: {preset.source}", 2
