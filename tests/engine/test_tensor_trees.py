"""Trees of tensors keep their form, and are equal where their form and their leaves are."""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from typing import Any, NamedTuple

import pytest
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput

from timonel.engine.tensor_trees import equal, map_leaves


class Pair(NamedTuple):
    a: Any
    b: Any


TREE = {
    "x": [torch.zeros(2), (1, None)],
    "pair": Pair(torch.ones(1), "word"),
    "ordered": OrderedDict(y=2.0),
    "usual": defaultdict(list, z=[3]),
    "output": UNet2DConditionOutput(sample=torch.ones(3)),
}


def test_a_tree_whose_leaves_are_kept_is_the_same_in_form_and_values() -> None:
    copied = map_leaves(lambda _, leaf: leaf, TREE)
    assert equal(copied, TREE)
    assert {key: type(value) for key, value in copied.items()} == {
        key: type(value) for key, value in TREE.items()
    }
    assert copied["output"].sample is TREE["output"].sample
    assert copied["usual"].default_factory is list


def test_a_leaf_has_the_name_of_the_innermost_key_above_it() -> None:
    names = list[str]()
    map_leaves(lambda name, leaf: names.append(name), {"tree": TREE, "n": 1, 2: 3})
    assert names == ["x"] * 3 + ["pair"] * 2 + ["y", "z", "sample", "n", "2"]


def test_trees_are_leaves_where_their_forms_differ() -> None:
    leaves = map_leaves(lambda _, *pair: pair, {"a": [1, 2], "b": (3,)}, {"a": [4, 5], "b": [3]})
    assert leaves == {"a": [(1, 4), (2, 5)], "b": ((3,), [3])}


@pytest.mark.parametrize("other", [
    [torch.zeros(2), 1.0, 0], [torch.zeros(2), 1.0], [torch.zeros(2), 2.0, None],
    [torch.zeros(2, 1), 1.0, None], [torch.zeros(2).double(), 1.0, None], [0.0, 1.0, None],
    (torch.zeros(2), 1.0, None), [[0.0, 0.0], 1.0, None],
])  # fmt: skip
def test_trees_of_another_form_or_value_are_not_equal(other: Any) -> None:
    tree = [torch.zeros(2), 1.0, None]
    assert equal(tree, [torch.zeros(2), 1.0, None])
    assert not equal(tree, other)
    assert not equal(other, tree)
