"""Measure the claims of the tutorials and write docs/claims.md.

    python docs/make_claims.py [--out FOLDER]

The comparison that they come from is kept in FOLDER (out/claims), with its page; a killed one goes
on.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from timonel.comparison import claims, compare
from timonel.files import replacing

PAGE = Path(__file__).with_name("claims.md")


def text(found: list[dict[str, dict[str, str]]], runs: int) -> str:
    """The page: claim, measurement and verdict in English, then in Spanish."""
    parts = [
        "# What tutorials say, measured\n\n"
        "Made by `python docs/make_claims.py` (`timonel compare --preset tutorial` gives the same "
        f"with pictures) from {runs} runs of the shipped model: {len(claims.PROMPTS)} prompts, "
        f"{claims.SEEDS} seeds each, guidance 4. A verdict follows from the numbers, sample by "
        "sample: better is a mean log ratio beyond two standard errors, the same is at most "
        f"{claims.SAME} times as much, two standard errors included. Other models may differ.\n"
    ]
    heads = {"en": ("claim", "measured", "verdict"), "es": ("afirmación", "medición", "veredicto")}
    verdicts = {
        "en": {
            claims.HOLDS: "holds",
            claims.SOMETIMES: "holds {when}",
            claims.FAILS: "does not hold",
        },
        "es": {
            claims.HOLDS: "se cumple",
            claims.SOMETIMES: "se cumple {when}",
            claims.FAILS: "no se cumple",
        },
    }
    for language, head in heads.items():
        parts += [f"## {'English' if language == 'en' else 'Español'}\n"]
        rows = [
            (
                claim["claim"][language],
                claim["measured"][language],
                verdicts[language][str(claim["verdict"])].format(when=claim["when"][language]),
            )
            for claim in found
        ]
        lines = [head, tuple("---" for _ in head), *rows]
        parts += ["\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"]
    return "\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description="measure the claims of the tutorials")
    parser.add_argument("--out", type=Path, default=Path("out/claims"))
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    compared = compare(plan=claims.plan(), out=asked.out)
    found = claims.measured(compared)
    claims.judged(compared, found)
    with replacing(PAGE) as temporary:
        temporary.write_text(text(found, len(compared.plan)), "utf-8")
    print(PAGE.read_text("utf-8"))


if __name__ == "__main__":
    main()
