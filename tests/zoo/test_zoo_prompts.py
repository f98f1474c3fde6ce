"""A shipped model says what it does not know; what is put together of words that it knows is known."""

from __future__ import annotations

import warnings

import pytest

import timonel as tm
from timonel import zoo
from timonel.errors import UnknownPrompt
from timonel.zoo import prompts

CARD = zoo.card("emoji")


@pytest.mark.parametrize("name", zoo.MODELS)
def test_every_concept_in_every_style_is_known(name: str) -> None:
    card = zoo.card(name)
    for concept in card.concepts:
        assert prompts.unknown(card, concept) == []
        assert prompts.unknown(card, f"{concept}, {card.styles[0]} style") == []


@pytest.mark.parametrize(
    "prompt",
    ["a red apple", "Two Red Apples", "dog", "cat with a hat", "pizzas on fire", "blue car"],
)
def test_words_that_are_known_make_prompts_that_are(prompt: str) -> None:
    assert prompts.unknown(CARD, prompt) == []


@pytest.mark.parametrize(("prompt", "words", "near"), [
    ("a red aple", ["aple"], ["red apple"]),
    ("piza", ["piza"], ["pizza"]),
    ("black catt", ["catt"], ["black cat"]),
    ("an astronaut on a horse", ["astronaut"], ["horse face"]),
    ("sofa", ["sofa"], []),
    ("苹果", ["苹果"], []),
    ("!?", ["!?"], []),
])  # fmt: skip
def test_other_words_are_named_with_the_nearest_concepts(
    prompt: str, words: list[str], near: list[str]
) -> None:
    assert prompts.unknown(CARD, prompt) == words
    assert prompts.nearest(CARD, prompt) == near


def test_a_helm_warns_once_for_a_shipped_model_by_name_and_not_for_other_pipelines(
    monkeypatch,
) -> None:
    monkeypatch.setattr(prompts, "_SAID", set())
    helm = tm.Helm("emoji")
    helm.pipe.set_progress_bar_config(disable=True)
    call = {"sampler": "euler", "steps": 1, "seeds": 0}
    with pytest.warns(UnknownPrompt, match=r"'aple'.*did you mean 'red apple'\?") as caught:
        helm(["a red aple", "pizza"], **call)
    assert [w.filename for w in caught] == [__file__]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        helm("a red aple", **call)
        helm("", **call)
        tm.Helm(helm.pipe)("anything at all", **call)
