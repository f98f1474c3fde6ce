"""Files and data with one thing wrong in them, by chance."""

from __future__ import annotations

import copy
import random
from typing import Any

ODD: list[Any] = [
    None, True, -1, 0, 1, 10**9, 10**30, 10**400, 1.5, float("nan"), float("inf"), "", "x", "../x",
    "/etc/passwd",
    "\0", [], {}, [1, "a"], {"a": 1}, [[]] * 3, "1" * 5000,
]  # fmt: skip


def bytes_of(data: bytes, chance: random.Random) -> bytes:
    """Flipped bits, a part cut off, or a part written twice."""
    made = bytearray(data)
    kind = chance.randrange(3)
    if kind == 0:
        for _ in range(chance.choice([1, 1, 3, 20])):
            made[chance.randrange(len(made))] ^= 1 << chance.randrange(8)
    else:
        cut = chance.randrange(len(made))
        made = made[:cut] if kind == 1 else made[:cut] + made[chance.randrange(len(made)) :]
    return bytes(made)


def data_of(data: Any, chance: random.Random) -> Any:
    """One or two values of nested data replaced by an odd one, deleted, or put beside."""
    made = copy.deepcopy(data)
    for _ in range(chance.choice([1, 1, 2])):
        at: Any = made
        while isinstance(at, (dict, list)) and at:
            key = chance.choice(list(at) if isinstance(at, dict) else range(len(at)))
            if not isinstance(at[key], (dict, list)) or not at[key] or chance.random() < 0.4:
                if chance.random() < 0.2:
                    del at[key]
                else:
                    at[key] = copy.deepcopy(chance.choice(ODD))
                break
            at = at[key]
    return made
