"""The page about the house says what is there: its picture is that of the import contract, and
every file that it names exists.
"""

from __future__ import annotations

import re

import pytest

import make_architecture
from support.places import DOCS, ROOT

CONTRACT = (ROOT / "pyproject.toml").read_text()
PAGE = (DOCS / "architecture.md").read_text()
PLACES = re.findall(r"`((?:[a-z_]+/)+[a-z_]+(?:\.py)?|[a-z_]+\.py)`", PAGE)


def test_the_picture_is_that_of_the_contract() -> None:
    assert make_architecture.PICTURE.read_text() == make_architecture.picture(CONTRACT)


def test_the_picture_has_every_room_once() -> None:
    rooms = [room for floor in make_architecture.floors(CONTRACT) for room in floor]
    there = {path.stem for path in make_architecture.SOURCE.iterdir() if path.suffix == ".py"}
    there |= {path.parent.name for path in make_architecture.SOURCE.glob("*/__init__.py")}
    assert sorted(rooms) == sorted(there - {"__init__", "__main__"})


@pytest.mark.parametrize("place", sorted(set(PLACES)))
def test_a_place_that_the_page_names_exists(place: str) -> None:
    source = make_architecture.SOURCE
    assert (source / place).exists() or (source.parent / place).exists()
