"""The digest repeats itself, and sees a change of any number by the last bit."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from digest.__main__ import FILE, differing, machine, value_of, values
from support.places import environment

SOME = ("native/vp/dpmpp_2m", "native/life/unipc", "compat/UniPC", "levels/flow")


def test_the_same_runs_have_the_same_digest() -> None:
    once, again = values(SOME), values(SOME)
    assert len(once) > 30
    assert differing(once, again) == []


@pytest.mark.parametrize("kind", ["float64", "float32", "uint8"])
def test_one_changed_bit_changes_the_digest(kind: str) -> None:
    array = np.arange(1, 7, dtype=kind).reshape(2, 3)
    other = array.copy()
    other.reshape(-1).view(np.uint8)[0] ^= 1
    assert value_of(lambda: [torch.from_numpy(array)]) != value_of(
        lambda: [torch.from_numpy(other)]
    )
    assert value_of(lambda: torch.from_numpy(array)) != value_of(
        lambda: torch.from_numpy(array.reshape(3, 2))
    )


def test_a_run_that_came_or_went_is_named() -> None:
    assert differing({"a": "1", "b": "2"}, {"a": "1", "c": "3"}) == [
        "c: 3 -> absent",
        "b: absent -> 2",
    ]


@pytest.mark.slow
def test_the_stored_digest_is_that_of_this_code() -> None:
    if json.loads(FILE.read_text())["machine"] != machine():
        pytest.skip(
            "digest.json was made on another kind of machine: python -m digest --against COMMIT"
        )
    done = subprocess.run(
        [sys.executable, "-m", "digest"], env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout
