"""Whether the pictures of few steps show what they should: a classifier's answers and a Frechet
distance.

The distance is that of the judge's features to those of the converged pictures of the same captions
and noise. Its scale is the distance of converged pictures of the same captions from other noise.
"""

from __future__ import annotations

from torch import Tensor

import emoji_judge as judge
import timonel as tm
from measure import markdown
from timonel.tuning.model import Model
from timonel.tuning.targets import converge, fine
from tune_models import Size, decoded, network, still, tables, unseen

MODEL = "emoji"
USUAL = {
    "DPM++ 2M karras": "dpmpp_2m/karras", "DPM++ 2M ays": "dpmpp_2m/ays",
    "DPM++ 2M beta": "dpmpp_2m/beta",
    "UniPC karras": "unipc/karras",
}  # fmt: skip
GOAL, MORE = "DPM++ 2M karras", (12, 25)  # of this also so many steps


def pictures(size: Size) -> str:
    """The table of the judge's answers for the pictures of emoji."""
    fitted, helm = tables(MODEL, size.steps), still(MODEL)
    given, seeds, _ = unseen(helm, fitted, size.pictures)
    model = network(helm, given, seeds)
    counts = (*size.steps, *MORE)
    wanted = {
        "**fitted**": {n: sampler.compile(model.process) for n, sampler in fitted.items()}
    } | {
        title: {
            n: tm.Sampler(name, steps=n).compile(model.process)
            for n in (counts if title == GOAL else size.steps)
        }
        for title, name in USUAL.items()
    }
    targets = converge(model, range(size.pictures), lambda message: None)
    names = [given["prompt"][i] for i in targets.samples]
    truth = decoded(helm, targets.result)
    reference = judge.features(truth)

    def painted(asked: Model, table: tm.Table, always: bool = False) -> Tensor:
        return decoded(helm, asked.run(table, targets.samples, always))

    def cell(seen: Tensor) -> str:
        return f"{named(seen, names)}, {apart(judge.features(seen), reference)}"

    rows = [
        [title, *(cell(painted(model, found[n])) if n in found else "–" for n in counts)]
        for title, found in wanted.items()
    ]
    others = network(helm, given, [seed + size.pictures for seed in seeds])
    again = painted(others, fine(others, targets.steps).compile(others.process), always=True)
    about = (
        f"{len(names)} pictures, prompts and seeds that no fit has seen. A cell is the share of "
        "them that the judge calls by their prompt, in %, and their Frechet distance, each ± its "
        "standard error."
    )
    ends = (
        f"* The converged pictures of the same noise: {named(truth, names)}, and 0 by definition.\n"
        f"* The converged pictures of the same prompts from other noise: {cell(again)}."
    )
    return "\n\n".join([about, markdown([f"{MODEL}, steps", *map(str, counts)], rows), ends])


def named(seen: Tensor, names: list[str]) -> str:
    """The share that the judge names right, in %, ± its standard error."""
    share, doubt = judge.top1(seen, names)
    return f"{100 * share:.1f} ±{100 * doubt:.1f}"


def apart(ours: Tensor, reference: Tensor) -> str:
    """The Frechet distance of two sets of features whose rows are pairs, ± its standard error."""
    return f"{judge.frechet(ours, reference):.2g} ±{judge.frechet_error(ours, reference):.1g}"
