"""The digest of what timonel computes: a short hash for each of some 500 runs.

    python -m digest                    hold every run against digest.json; 1 where one differs
    python -m digest --write            make digest.json anew
    python -m digest --against COMMIT   hold the working tree against a commit, both run here
    python -m digest --only helm/emoji  only names that contain these words

The last bits of a sum differ between kinds of processors and versions of torch, so digest.json says
where it was made; elsewhere use `--against`. A change of layout or names leaves every value as it
is; a commit that changes one says which and why.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[2]
FILE = Path(__file__).with_name("digest.json")


def machine() -> str:
    """What the last bits depend on."""
    import diffusers

    capability = torch.backends.cpu.get_cpu_capability()
    return f"torch {torch.__version__}, diffusers {diffusers.__version__}, {capability}"


def feed(into: Any, value: Any) -> None:
    """Add a value to a hash: tensors and pictures by their bytes, numbers by `repr`."""
    if isinstance(value, torch.Tensor):
        array = value.detach().cpu().contiguous()
        into.update(f"{array.dtype}{tuple(array.shape)}".encode())
        into.update(
            array.view(torch.uint8).numpy().tobytes() if array.ndim else repr(array.item()).encode()
        )
    elif hasattr(value, "convert") or isinstance(value, np.ndarray):
        array = np.asarray(value)
        into.update(f"{array.dtype}{array.shape}".encode() + array.tobytes())
    elif isinstance(value, (list, tuple)):
        into.update(f"[{len(value)}".encode())
        for item in value:
            feed(into, item)
    else:
        into.update(repr(value).encode())


def value_of(case: Any) -> str:
    """The hash of what a case returns; the kind of the error where it is refused."""
    from timonel.errors import TimonelError

    try:
        result = case()
    except TimonelError as error:
        return f"refused: {type(error).__name__}"
    into = hashlib.sha256()
    feed(into, result)
    return into.hexdigest()[:12]


def values(only: Iterable[str]) -> dict[str, str]:
    """The digest: of every case, or of those whose names contain one of the words."""
    from digest.cases import cases

    torch.set_num_threads(1)
    words = tuple(only)
    return {
        name: value_of(case)
        for name, case in cases()
        if not words or any(word in name for word in words)
    }


def of_commit(commit: str, only: list[str]) -> dict[str, str]:
    """The digest of another commit, with this one's cases where it has none."""
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        subprocess.run(
            ["git", "worktree", "add", "--quiet", "--detach", tree, commit], cwd=ROOT, check=True
        )
        try:
            tests = tree / "tests" if (tree / "tests" / "digest").exists() else ROOT / "tests"
            path = os.pathsep.join(map(str, (tree / "src", tests)))
            command = [
                sys.executable,
                "-m",
                "digest",
                "--print",
                *(f"--only={word}" for word in only),
            ]
            done = subprocess.run(
                command,
                cwd=tree,
                env={**os.environ, "PYTHONPATH": path},
                check=True,
                stdout=subprocess.PIPE,
            )
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", tree], cwd=ROOT, check=True)
    there: dict[str, str] = json.loads(done.stdout)
    return there


def differing(now: dict[str, str], before: dict[str, str]) -> list[str]:
    """A line for every case that is not what it was."""
    names = [*before, *(name for name in now if name not in before)]
    pairs = [(name, before.get(name, "absent"), now.get(name, "absent")) for name in names]
    return [f"{name}: {was} -> {is_}" for name, was, is_ in pairs if was != is_]


def stored(only: list[str]) -> dict[str, str]:
    """What digest.json holds. Leaves the program where it was made on another kind of machine."""
    data = json.loads(FILE.read_text())
    if data["machine"] != machine():
        sys.exit(
            f"digest.json was made on {data['machine']}, this is {machine()}: use --against COMMIT"
        )
    kept: dict[str, str] = data["values"]
    return {
        name: value
        for name, value in kept.items()
        if not only or any(word in name for word in only)
    }


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m digest", description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="make digest.json anew")
    parser.add_argument("--print", action="store_true", help="print the digest as JSON")
    parser.add_argument("--against", metavar="COMMIT", help="hold it against a commit, run here")
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="WORDS",
        help="of cases with these in the name",
    )
    options = parser.parse_args()
    before = {}
    if options.against:
        before = of_commit(options.against, options.only)
    elif not (options.write or options.print):
        before = stored(options.only)
    now = values(options.only)
    if options.print:
        print(json.dumps(now))
        return 0
    if options.write:
        FILE.write_text(json.dumps({"machine": machine(), "values": now}, indent=0) + "\n")
        print(
            f"{len(now)} runs, {sum(v.startswith('refused') for v in now.values())} of them refused"
        )
        return 0
    lines = differing(now, before)
    print("\n".join([*lines, f"{len(now)} runs, {len(lines)} differ"]))
    return bool(lines)


if __name__ == "__main__":
    sys.exit(main())
