"""What a server allows: sizes, counts, keys and times."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ...errors import ArgumentError, shown
from ...files import replacing

PREFIX = "tm-"  # of a key


@dataclass(frozen=True)
class Limits:
    """What one request may ask for. Everything above is refused before any compute.

    Args:
        steps: of a run.
        samples: pictures of a request.
        side: pixels of a side.
        prompt: characters of a prompt.
        body: bytes of a request's body.
        body_seconds: in which the body has to arrive.
        run_seconds: from its submission after which a run is given up.
        kept: runs that have ended whose pictures stay in memory.
    """

    steps: int = 200
    samples: int = 8
    side: int = 2048
    prompt: int = 4000
    body: int = 16 << 20
    body_seconds: float = 20.0
    run_seconds: float = 600.0
    kept: int = 64


@dataclass(frozen=True)
class Settings:
    """How a server runs.

    Args:
        limits: see `Limits`.
        keys: SHA-256 digests in hexadecimal of the keys that are let in; empty lets everybody in.
        state: folder of the runs that were accepted, which a killed server goes on with; None keeps
            nothing.
        origins: web pages of these origins may call the server (CORS); none by default.
    """

    limits: Limits = field(default_factory=Limits)
    keys: frozenset[str] = frozenset()
    state: Path | None = None
    origins: Sequence[str] = ()

    def admits(self, key: str | None) -> bool:
        """Whether a key is let in, compared in constant time."""
        if not self.keys:
            return True
        digest = hashed(key or "")
        matches = [hmac.compare_digest(digest, known) for known in self.keys]
        return any(matches)


def hashed(key: str) -> str:
    """The digest of a key, as a file of keys has it. Keys are random, so one round is enough."""
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()


def new_key(path: Path) -> str:
    """Make a key, and add its digest to a file.

    Args:
        path: of the file; it is made where there is none.

    Returns:
        The key, which is written nowhere.
    """
    key = PREFIX + secrets.token_urlsafe(32)
    lines = path.read_text().splitlines() if path.exists() else []
    with replacing(path) as temporary:
        temporary.write_text("\n".join([*lines, hashed(key)]) + "\n")
    return key


def read_keys(path: Path) -> frozenset[str]:
    """The digests in a file of keys.

    Raises:
        ArgumentError: the file is missing, empty, or holds something else.
    """
    if not path.is_file():
        raise ArgumentError(
            f"there is no file of keys at {str(path)!r}: make one with timonel serve --new-key"
            f" --keys {path}"
        )
    digests = [line.strip() for line in path.read_text().splitlines() if line.strip()]
    wrong = [line for line in digests if len(line) != 64 or set(line) - set("0123456789abcdef")]
    if wrong or not digests:
        what = shown(wrong[0]) if wrong else "nothing"
        raise ArgumentError(
            f"{str(path)!r} holds {what}, not digests of keys: make one with timonel serve"
            f" --new-key --keys {path}"
        )
    return frozenset(digests)


def check_host(host: str, keys: Iterable[str]) -> None:
    """Refuse to be reached from other machines without a key.

    Raises:
        ArgumentError: the host is not this machine's loopback, and there is no key.
    """
    if host == "localhost" or any(keys):
        return
    try:
        loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = False
    if not loopback:
        raise ArgumentError(
            f"host {host!r} can be reached from other machines, so it needs keys: timonel serve"
            " --new-key --keys keys.txt, then --keys keys.txt"
        )
