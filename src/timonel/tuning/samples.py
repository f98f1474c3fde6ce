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
NAMED = 48  # prompts taken from a shipped model's own list
PAINTER = "emoji"


@dataclass(frozen=True)
class Subjects:
    """One prompt or picture and one seed for every sample; the last `held` samples are held out.

    `painted`: the pictures, where they were made of the prompts.
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
        return (
            {"image": [still(p) for p in self.prompts]}
            if self.pictures
            else {"prompt": list(self.prompts)}
        )

    def each(self, more: Mapping[str, Any]) -> list[dict[str, Any]]:
        """What the pipeline is called with for one sample at a time."""
        return [
            {**{name: values[i] for name, values in self.inputs().items()}, **more}
            for i in range(len(self.seeds))
        ]

    def split(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The samples that are fitted, and those that are held out."""
        first = len(self.seeds) - self.held
        return tuple(range(first)), tuple(range(first, len(self.seeds)))


def subjects(
    helm: Helm, prompts: Sequence[str] | str | PathLike[str] | None, seeds: int, seed: int
) -> Subjects:
    """The samples of a fit. `prompts`: a list, or a text file with one a line; a shipped model has
    its own, and paints them where it begins with pictures.

    Prompts that are held out are none of those that are fitted, where there are three or more.
    Raises `ArgumentError` for no prompts, or for a file that cannot be read.
    """
    lines = _lines(helm, prompts)
    held = seeds // 3
    cut = len(lines) - max(1, len(lines) // 3) if len(lines) >= 3 else 0
    fitted, other = (lines[:cut], lines[cut:]) if cut else (lines, lines)
    told = [fitted[i % len(fitted)] for i in range(seeds - held)] + [
        other[i % len(other)] for i in range(held)
    ]
    made = Subjects(tuple(told), tuple(range(seed, seed + seeds)), held)
    if prompts is None and "prompt" not in helm.parameters:
        return replace(made, painted=tuple(painted(told, made.seeds)))
    _refuse(helm, made)
    return made


def painted(prompts: Sequence[str], seeds: Sequence[int]) -> list[Any]:
    """Pictures of prompts by `PAINTER`, for models that begin with one."""
    card = zoo.card(PAINTER)
    helm = Helm(PAINTER)
    helm.pipe.set_progress_bar_config(disable=True)
    made = helm(
        list(prompts), sampler="dpmpp_2m/karras", steps=card.default_steps,
        guidance=card.default_guidance,
        seeds=list(seeds),
    )  # fmt: skip
    return list(made.images)


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


def _refuse(helm: Helm, made: Subjects) -> None:
    """Pictures that are missing, and prompts that the model would not read to their end."""
    if made.pictures:
        missing = [p for p in made.prompts if not Path(p).is_file()]
        if missing:
            raise ArgumentError(f"there is no picture {missing[0]!r}")
        return
    for name in ("tokenizer", "tokenizer_2"):
        tokenizer = getattr(helm.pipe, name, None)
        most = getattr(tokenizer, "model_max_length", None)
        if tokenizer is None or not isinstance(most, int) or most > 100_000:
            continue
        for prompt in dict.fromkeys(made.prompts):
            ids = tokenizer([prompt], truncation=False, verbose=False).input_ids[0]
            if len(ids) > most:
                lost = tokenizer.decode(ids[most - 1 :], skip_special_tokens=True)
                warnings.warn(
                    f"the prompt {prompt[:40]!r}… has {len(ids)} tokens and {name} reads {most}:"
                    f" {lost.strip()!r} is cut off, by the pipeline too; shorten it",
                    stacklevel=4,
                )
