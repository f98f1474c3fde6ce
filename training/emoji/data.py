"""Prepare the emoji data set: 64x64 pictures in three drawing styles with captions.

Input: the unpacked npm packages named in README.md, below ``--packages``.
Output: ``<work>/data.npz`` (uint8 pictures, concept and style index) and ``<work>/captions.json``
(concept names and tags). The fixed evaluation captions, ``captions100.txt``, are written once and
never overwritten.
"""

from __future__ import annotations

import argparse
import json
import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

HERE = Path(__file__).parent
STYLES = ("noto", "twemoji", "fluent")
SIZE = 64
PICTURES = {
    "noto": ("emoji-datasource-google", "img/google/64", ".png"),
    "twemoji": ("emoji-datasource-twitter", "img/twitter/64", ".png"),
    "fluent": ("lobehub-fluent-emoji-3d", "assets", ".webp"),
}
GENERIC_TAGS = {"face", "animal", "pet", "it", "lol", "omg", "person"}


@dataclass(frozen=True)
class Concept:
    """One thing that the model can draw: its caption, category, tags and code point."""

    name: str
    category: str
    tags: tuple[str, ...]
    hexcode: str


@dataclass(frozen=True)
class EmojiData:
    """Pictures (N, 64, 64, 3) uint8 with the index of their concept and of their style."""

    pictures: np.ndarray
    concept: np.ndarray
    style: np.ndarray
    names: list[str]
    tags: list[list[str]]


def package(root: Path, name: str) -> Path:
    """The folder of an unpacked npm package, whatever its version."""
    found = sorted(p for p in root.iterdir() if p.name.startswith(name))
    if not found:
        raise FileNotFoundError(f"no folder {name}* below {root}: run npm pack (see README.md)")
    return found[-1]


def read_concepts(root: Path) -> list[Concept]:
    """The concepts of concepts.txt, joined with the names and tags of emojibase."""
    table = json.loads((package(root, "emojibase-data") / "en/data.json").read_text())
    by_label = {row["label"].lower(): row for row in table}
    concepts: list[Concept] = []
    category = ""
    for line in (HERE / "concepts.txt").read_text().splitlines():
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        if line.startswith("["):
            category = line.strip("[]")
            continue
        label, _, caption = (part.strip() for part in line.partition("="))
        row = by_label[label.lower()]
        name = (caption or label).lower()
        words = set(name.split())
        tags = tuple(
            tag.lower()
            for tag in row.get("tags", [])
            if tag.isascii()
            and tag.replace(" ", "").isalpha()
            and len(tag) < 14
            and tag.lower() not in GENERIC_TAGS
            and not set(tag.lower().split()) <= words
        )[:4]
        concepts.append(Concept(name, category, tags, row["hexcode"].lower()))
    names = [c.name for c in concepts]
    if len(set(names)) != len(names):
        raise ValueError(
            f"captions appear twice: {sorted({n for n in names if names.count(n) > 1})}"
        )
    return concepts


def picture_path(root: Path, style: str, hexcode: str) -> Path:
    """The file of one emoji: packages differ in whether they write the variation selector."""
    name, folder, suffix = PICTURES[style]
    for code in (hexcode, hexcode.replace("-fe0f", ""), hexcode + "-fe0f"):
        path = package(root, name) / folder / (code + suffix)
        if path.exists():
            return path
    raise FileNotFoundError(f"{hexcode} has no picture in {name}")


def read_picture(path: Path) -> np.ndarray:
    """A 64x64 RGB picture on white."""
    rgba = Image.open(path).convert("RGBA")
    white = Image.new("RGBA", rgba.size, "white")
    picture = Image.alpha_composite(white, rgba).convert("RGB")
    if picture.size != (SIZE, SIZE):
        picture = picture.resize((SIZE, SIZE), Image.Resampling.LANCZOS)
    return np.asarray(picture)


def fix_captions(concepts: list[Concept], path: Path, count: int = 100) -> None:
    """Write the evaluation captions, spread evenly over the categories; never overwrite them."""
    if path.exists():
        return
    rng = random.Random(2026)
    by_category: dict[str, list[str]] = {}
    for concept in concepts:
        by_category.setdefault(concept.category, []).append(concept.name)
    ranked: list[tuple[float, str]] = []
    for names in by_category.values():
        rng.shuffle(names)
        ranked += [((i + 0.5) / len(names), name) for i, name in enumerate(names)]
    path.write_text("\n".join(name for _, name in sorted(ranked)[:count]) + "\n")


def load(work: Path) -> EmojiData:
    """Read what :func:`main` wrote."""
    arrays = np.load(work / "data.npz")
    captions = json.loads((work / "captions.json").read_text())
    return EmojiData(
        arrays["pictures"],
        arrays["concept"],
        arrays["style"],
        [row["name"] for row in captions],
        [row["tags"] for row in captions],
    )


def caption(data: EmojiData, index: int, rng: random.Random) -> str:
    """A random caption of picture ``index``: the name, often its style, sometimes its tags."""
    concept = int(data.concept[index])
    text = data.names[concept]
    if data.tags[concept] and rng.random() < 0.15:
        text += ", " + ", ".join(rng.sample(data.tags[concept], k=1))
    if rng.random() < 0.5:
        text += f", {STYLES[int(data.style[index])]} style"
    return text


def contact_sheet(pictures: np.ndarray, columns: int, path: Path) -> None:
    """Write pictures (N, H, W, 3) uint8 as one grid."""
    count, height, width, _ = pictures.shape
    rows = -(-count // columns)
    sheet = np.full((rows * height, columns * width, 3), 255, np.uint8)
    for i, picture in enumerate(pictures):
        y, x = divmod(i, columns)
        sheet[y * height : (y + 1) * height, x * width : (x + 1) * width] = picture
    Image.fromarray(sheet).save(path, optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--packages", type=Path, required=True, help="unpacked npm packages")
    parser.add_argument("--work", type=Path, required=True, help="where data and checkpoints go")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    concepts = read_concepts(args.packages)
    fix_captions(concepts, HERE / "captions100.txt")
    pictures, concept_index, style_index = [], [], []
    for i, concept in enumerate(concepts):
        for j, style in enumerate(STYLES):
            pictures.append(read_picture(picture_path(args.packages, style, concept.hexcode)))
            concept_index.append(i)
            style_index.append(j)
    np.savez(
        args.work / "data.npz",
        pictures=np.stack(pictures),
        concept=np.array(concept_index),
        style=np.array(style_index),
    )
    rows = [{"name": c.name, "category": c.category, "tags": c.tags} for c in concepts]
    (args.work / "captions.json").write_text(json.dumps(rows, indent=1))
    contact_sheet(np.stack(pictures), 36, args.work / "data.png")
    print(f"{len(concepts)} concepts, {len(pictures)} pictures")


if __name__ == "__main__":
    main()
