"""Laws of `timonel serve`: it answers until it is asked to end, and refuses what is unsafe."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from support.places import environment
from timonel.cli import app
from timonel.errors import ArgumentError

SECONDS = 120
CALL = {"prompt": "red apple", "sampler": "euler", "steps": 4, "seed": 7}


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@contextmanager
def serving(state: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server of the command line that answers, and its address."""
    port = free_port()
    command = [sys.executable, "-W", "ignore", "-m", "timonel", "serve", "emoji", "--port"]
    server = subprocess.Popen(
        [*command, str(port), "--state", str(state)], env=environment(HF_HUB_OFFLINE="1"),
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    url, ends = f"http://127.0.0.1:{port}", time.monotonic() + SECONDS
    try:
        while True:
            try:
                assert httpx.get(f"{url}/health").json() == {"status": "ok"}
                break
            except httpx.TransportError:
                assert time.monotonic() < ends
                assert server.poll() is None
                time.sleep(0.1)
        yield server, url
    finally:
        server.kill()
        server.communicate()


def test_it_answers_until_it_is_told_to_end_and_ends_what_it_accepted(tmp_path: Path) -> None:
    with serving(tmp_path) as (server, url):
        name = httpx.post(f"{url}/runs", json=CALL).json()["id"]
        server.send_signal(signal.SIGTERM)
        said, _ = server.communicate(timeout=SECONDS)
    assert f"timonel serves emoji at {url}" in said
    assert [path.name for path in tmp_path.iterdir()] == [f"{name}.png"]


@pytest.mark.slow
def test_after_a_kill_the_next_server_makes_what_was_accepted(tmp_path: Path) -> None:
    with serving(tmp_path) as (server, url):
        names = [httpx.post(f"{url}/runs", json=CALL).json()["id"] for _ in range(12)]
        server.kill()
    with serving(tmp_path) as (_, url):
        ends = time.monotonic() + SECONDS
        while any(httpx.get(f"{url}/runs/{name}/picture").status_code != 200 for name in names):
            assert time.monotonic() < ends
            time.sleep(0.1)
    first, *others = (np.asarray(Image.open(tmp_path / f"{name}.png"), int) for name in names)
    assert all(abs(other - first).max() <= 1 for other in others)  # of batches of other sizes


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "name a model"),
        (["emoji", "--host", "0.0.0.0"], "needs keys"),
        (["emoji", "--keys", "nowhere.txt"], "no file of keys"),
        (["--new-key"], "say which"),
        (["nobody/nothing-of-the-kind"], "nothing-of-the-kind"),
    ],
)
def test_what_cannot_be_served_is_refused_in_a_sentence(arguments: list[str], words: str) -> None:
    done = CliRunner().invoke(app, ["serve", *arguments])
    assert done.exit_code != 0
    assert words in f"{done.output} {done.exception}"


def test_a_new_key_is_shown_once_and_its_digest_kept(tmp_path: Path) -> None:
    path = tmp_path / "keys.txt"
    done = CliRunner().invoke(app, ["serve", "--new-key", "--keys", str(path)])
    key = done.output.split()[0]
    assert key.startswith("tm-")
    assert key not in path.read_text()


def test_a_damaged_file_of_keys_is_refused(tmp_path: Path) -> None:
    (tmp_path / "keys.txt").write_text("plain secret\n")
    done = CliRunner().invoke(app, ["serve", "emoji", "--keys", str(tmp_path / "keys.txt")])
    assert isinstance(done.exception, ArgumentError)
