"""Write the judge as benchmarks/emoji_judge.safetensors: half precision, with the names of its
classes as metadata.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from safetensors.torch import save_file

from benchmarks.emoji_judge import FILE, build
from timonel.files import replacing
from training.emoji.common import load_checkpoint


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--work", type=Path, required=True, help="with judge.safetensors and captions.json"
    )
    parser.add_argument("--out", type=Path, default=FILE)
    args = parser.parse_args()
    names = [row["name"] for row in json.loads((args.work / "captions.json").read_text("utf-8"))]
    judge = build(len(names))
    judge.load_state_dict(load_checkpoint(args.work / "judge.safetensors")["model"])
    with replacing(args.out) as temporary:
        save_file(judge.half().state_dict(), temporary, metadata={"names": json.dumps(names)})
    print(f"{args.out}: {args.out.stat().st_size / 1e6:.2f} MB, {len(names)} names")


if __name__ == "__main__":
    main()
