"""A diagnosis as text that fits one screen: model, advice, the combination, the presets."""

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


def text(diagnosis: Diagnosis, width: int = WIDTH) -> str:
    """The whole report, in lines of at most `width`."""
    parts = [_what(diagnosis), _suits(diagnosis), _combination(diagnosis), _presets(diagnosis)]
    return "\n\n".join("\n".join(_lines(part, width)) for part in parts)


def show(diagnosis: Diagnosis, console: Console) -> None:
    """The report on a terminal, in its width and colours."""
    from rich.text import Text

    for line in plain(text(diagnosis, min(WIDTH, console.width))).split("\n"):
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


def _what(diagnosis: Diagnosis) -> Iterator[Row]:
    yield f"{diagnosis.model}: {diagnosis.title}", "", 0
    named = "not named in the configuration"
    if diagnosis.known_by:
        yield "known by", f"{diagnosis.pipeline}; {diagnosis.known_by}", 0
    else:
        yield "pipeline", diagnosis.pipeline or named, 0
    if diagnosis.doubt:
        yield "unclear", diagnosis.doubt, 0
    yield "process", diagnosis.process, 0
    yield "predicts", f"{diagnosis.prediction}; the network's time is {diagnosis.time}", 0
    yield "scheduler", diagnosis.scheduler or named, 0


def _suits(diagnosis: Diagnosis) -> Iterator[Row]:
    yield "What suits it", "", 0
    for label, advice in (("samplers", diagnosis.samplers), ("grids", diagnosis.grids)):
        for i, one in enumerate(advice):
            yield label if i == 0 else "", f"{one.name:<16} {one.why}", 17
    if diagnosis.refused:
        yield "no grids", f"{', '.join(diagnosis.refused)}: this process has no such levels", 0


def _combination(diagnosis: Diagnosis) -> Iterator[Row]:
    tried = diagnosis.combination
    whose = "Its own scheduler" if tried.name == diagnosis.scheduler else "Your combination"
    yield f"{whose}: {tried.name}, {tried.steps} steps", "", 0
    if tried.code:
        yield "diffusers", tried.code, 0
    for finding in tried.findings:
        yield "", f"{MARKS[finding.kind]:<8} {finding.text}", 9
    if tried.code and tried.sound:
        yield "", f"ok       {tried.calls} network calls at {shown(tried.times)}", 9
    ours = tried.ours
    if ours.refused:
        yield "timonel", f"REFUSED  {ours.refused}", 9
        return
    yield "timonel", ours.code, 0
    yield "", f"ok       {ours.calls} network calls at {shown(ours.times)}", 9


def _presets(diagnosis: Diagnosis) -> Iterator[Row]:
    yield "Recommended", "", 0
    if not diagnosis.presets:
        yield "", "nothing is known of this pipeline; begin with timonel's defaults", 0
    yield from _listed(diagnosis.presets)
    for title, presets in diagnosis.alike.items():
        yield f"If it is {title}", "", 0
        yield from _listed(presets)


def _listed(presets: Sequence[Preset]) -> Iterator[Row]:
    for preset in presets:
        yield "", preset.command, 4
        note = f"{preset.note}. " if preset.note else ""
        yield "", f"  {note}Source: {preset.source}", 2
