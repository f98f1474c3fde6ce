"""Draws architecture.svg: the rooms of the package, floor above floor, as the import contract in
pyproject.toml has them. python docs/make_architecture.py
"""

from __future__ import annotations

import re
from html import escape
from pathlib import Path

import timonel

ROOT = Path(__file__).resolve().parents[1]
SOURCE = Path(timonel.__file__).parent
PICTURE = ROOT / "docs" / "architecture.svg"
#: what each room is for, in the words of the picture
PURPOSES = {
    "cli": "the commands",
    "tuning": "fit a sampler to a model",
    "comparison": "plans, runs, one page",
    "diagnosis": "the doctor",
    "make": "a picture, a video, once more",
    "compat": "diffusers' names",
    "serve": "many calls, over HTTP",
    "pipelines": "a diffusers pipeline at the helm",
    "zoo": "the models that ship with it",
    "exact": "denoisers known exactly",
    "explain": "a sampler as a picture",
    "grids": "grids by their public name",
    "hooks": "previews, guard, progress, trace",
    "engine": "what calls networks: loops, batches",
    "core": "tables, runs, guidance, noise",
    "errors": "errors",
    "files": "files",
}
WIDTH, FLOOR, GAP, EDGE = 760, 54, 14, 16


def floors(contract: str) -> list[list[str]]:
    """The rooms of each floor, from the top, as the contract lists them."""
    block = re.search(r"^layers = \[(.*?)^\]", contract, re.M | re.S)
    assert block is not None
    lines = re.findall(r'"([^"]+)"', block.group(1))
    return [re.split(r"\s*[|:]\s*", line) for line in lines]


def inside(room: str) -> list[str]:
    """The folders in a room."""
    folder = SOURCE / room
    return sorted(path.parent.name for path in folder.glob("*/__init__.py"))


def box(room: str, x: float, y: float, width: float) -> str:
    lines = [
        f'<rect x="{x:g}" y="{y}" width="{width:g}" height="{FLOOR}" rx="6" class="room"/>',
        f'<text x="{x + 12:g}" y="{y + 22}" class="name">{escape(room)}</text>',
    ]
    words = PURPOSES.get(room, "")
    if words:
        lines.append(f'<text x="{x + 12:g}" y="{y + 41}" class="words">{escape(words)}</text>')
    if folders := inside(room):
        text = " · ".join(folders)
        end = x + width - 12
        lines.append(f'<text x="{end:g}" y="{y + 22}" class="folders">{escape(text)}</text>')
    return "\n".join(lines)


def picture(contract: str) -> str:
    """The SVG."""
    parts, y = [], EDGE
    for rooms in floors(contract):
        width = (WIDTH - 2 * EDGE - GAP * (len(rooms) - 1)) / len(rooms)
        for i, room in enumerate(rooms):
            parts.append(box(room, EDGE + i * (width + GAP), y, width))
        y += FLOOR + GAP
    style = (
        "text{font-family:system-ui,sans-serif;fill:#1d2b3a}.name{font-size:15px;font-weight:600}"
        ".words{font-size:12px;fill:#4a5a6a}.folders{font-size:11px;fill:#4a5a6a;text-anchor:end}"
        ".room{fill:#eef3f8;stroke:#9fb3c8}"
    )
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y}" width="{WIDTH}">'
    ground = f'<rect width="{WIDTH}" height="{y}" fill="#fff"/>'
    return "\n".join([head, f"<style>{style}</style>", ground, *parts, "</svg>", ""])


if __name__ == "__main__":
    PICTURE.write_text(picture((ROOT / "pyproject.toml").read_text()))
