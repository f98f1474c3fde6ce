"""The samples of a fit: prompts or pictures with seeds, some of them held out."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any

from .. import reading, zoo
from ..comparison.plan import PICTURES
from ..errors import ArgumentError
from ..pipelines.helm import Helm

LEAST = 12  # seeds of a fit, a third of them held out
NAMED = 48  # prompts taken from a shipped model's list
PAINTER = "emoji"


@dataclass(frozen=True)
class Samples:
    """The samples of a fit.

    Args:
        prompts: One for every sample, or the file of a picture.
        seeds: One for every sample.
        held: How many are held out, the last ones.
        painted: The pictures, where they were painted of the prompts.
    """

    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    held: int
    painted: tuple[Any, ...] = ()

    @property
    def pictures(self) -> bool:
        """Whether the prompts are files of pictures."""
        return Path(self.prompts[0]).suffix.lower() in PICTURES

    def inputs(self) -> dict[str, Any]:
        """What the pipeline is called with."""
        from ..make.animate import still

        if self.painted:
            return {"image": list(self.painted)}
        if self.pictures:
            return {"image": [still(p) for p in self.prompts]}
        return {"prompt": list(self.prompts)}

    def each(self, more: Mapping[str, Any]) -> list[dict[str, Any]]:
        """What the pipeline is called with for one sample at a time.

        Args:
            more: Other arguments, the same for all.
        """
        inputs = self.inputs()
        return [
            {**{name: values[i] for name, values in inputs.items()}, **more}
            for i in range(len(self.seeds))
        ]

    def split(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The samples that are fitted, and those that are held out."""
        first = len(self.seeds) - self.held
        return tuple(range(first)), tuple(range(first, len(self.seeds)))


def samples_of(
    helm: Helm, prompts: Sequence[str] | str | PathLike[str] | None, seeds: int, seed: int
) -> Samples:
    """The samples of a fit.

    Prompts that are held out are none of those that are fitted, where there are three or more.

    Args:
        helm: Whose pipeline.
        prompts: A list, or a text file with one a line; a shipped model has its own, and paints
            them where it begins with pictures.
        seeds: How many.
        seed: The first one.

    Raises:
        ArgumentError: For no prompts, or a file that cannot be read.
    """
    lines = _lines(helm, prompts)
    held = seeds // 3
    cut = len(lines) - max(1, len(lines) // 3) if len(lines) >= 3 else 0
    fitted, other = (lines[:cut], lines[cut:]) if cut else (lines, lines)
    each = [fitted[i % len(fitted)] for i in range(seeds - held)]
    each += [other[i % len(other)] for i in range(held)]
    samples = Samples(tuple(each), tuple(range(seed, seed + seeds)), held)
    if prompts is None and "prompt" not in helm.parameters:
        return replace(samples, painted=tuple(painted(each, samples.seeds)))
    _check(helm, samples)
    return samples


def painted(prompts: Sequence[str], seeds: Sequence[int]) -> list[Any]:
    """Pictures for models that begin with one.

    Args:
        prompts: What is on them.
        seeds: One for each.
    """
    card = zoo.card(PAINTER)
    helm = Helm(PAINTER)
    helm.pipe.set_progress_bar_config(disable=True)
    result = helm(
        list(prompts), sampler="dpmpp_2m/karras", steps=card.default_steps,
        guidance=card.default_guidance, seeds=list(seeds),
    )  # fmt: skip
    return list(result.images)


def _lines(helm: Helm, prompts: Sequence[str] | str | PathLike[str] | None) -> list[str]:
    """The prompts, without repetitions."""
    if prompts is None:
        if helm.card is None:
            what = "prompts" if "prompt" in helm.parameters else "pictures to begin with"
            raise ArgumentError(
                f"say what to fit to: {what}, one a line in a file (--prompts FILE) or as a list"
            )
        every = max(1, len(helm.card.concepts) // NAMED)
        return helm.card.concepts[::every][:NAMED]
    if isinstance(prompts, (str, PathLike)):
        try:
            prompts = reading.text(prompts, "the prompts in").splitlines()
        except ArgumentError as error:
            raise ArgumentError(f"{error}. Give a text file with one a line, or a list") from error
    lines = list(dict.fromkeys(line.strip() for line in prompts if line.strip()))
    if not lines:
        raise ArgumentError("there is no prompt: give one a line")
    return lines


def _check(helm: Helm, samples: Samples) -> None:
    """Refuses pictures that are missing, and warns of prompts that the model cuts off."""
    if samples.pictures:
        missing = [p for p in samples.prompts if not Path(p).is_file()]
        if missing:
            raise ArgumentError(f"there is no picture {missing[0]!r}")
        return
    for name in ("tokenizer", "tokenizer_2"):
        tokenizer = getattr(helm.pipe, name, None)
        most = getattr(tokenizer, "model_max_length", None)
        if tokenizer is not None and isinstance(most, int) and most <= 100_000:
            for prompt in dict.fromkeys(samples.prompts):
                _warn_cut(name, tokenizer, prompt, most)


def _warn_cut(name: str, tokenizer: Any, prompt: str, most: int) -> None:
    """Warn where a prompt has more tokens than the model reads."""
    ids = tokenizer([prompt], truncation=False, verbose=False).input_ids[0]
    if len(ids) > most:
        lost = tokenizer.decode(ids[most - 1 :], skip_special_tokens=True)
        warnings.warn(
            f"the prompt {prompt[:40]!r}… has {len(ids)} tokens and {name} reads {most}:"
            f" {lost.strip()!r} is cut off, by the pipeline too; shorten it",
            stacklevel=5,
        )
