"""Law: whatever a hundred clients do at once, nothing is lost and nothing is left behind."""

from __future__ import annotations

import asyncio
import io
import os
import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import numpy as np
import pytest
import uvicorn
from PIL import Image

import timonel as tm
from timonel.serve.engine import Engine
from timonel.serve.http.app import application
from timonel.serve.http.settings import Limits, Settings

CLIENTS, SECONDS = 100, 60
CALLS: tuple[dict[str, Any], ...] = (
    {"prompt": "red apple", "sampler": "dpmpp_2m/karras", "steps": 4, "seed": 7},
    {"prompt": "pizza", "sampler": "euler_ancestral", "steps": 6, "seed": 3, "guidance": 1.0},
    {"prompt": "frog", "sampler": "unipc", "steps": 3, "seed": 1, "guidance": 5.0, "until": 0.4},
    {"prompt": "ghost", "sampler": "dpmpp_2m_sde", "steps": 5, "seed": 9},
)
BAD: tuple[dict[str, Any], ...] = (
    {"prompt": 3}, {"prompt": "a", "steps": -1}, {"prompt": "a", "sampler": "eulr"},
    {"prompt": "a" * 9999}, {"prompt": "a", "width": 13}, {"prompt": "a", "model": "nobody"},
)  # fmt: skip


@contextmanager
def serving(engine: Engine) -> Iterator[str]:
    app = application({"emoji": engine}, Settings(Limits(kept=1000)))
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join(120)
    assert not thread.is_alive()


def made_alone() -> list[Any]:
    helm = tm.Helm("emoji")
    pictures = []
    for call in CALLS:
        more = {key: call[key] for key in ("prompt", "sampler", "steps")}
        if "guidance" in call:
            more["guidance"] = tm.cfg(call["guidance"], until=call.get("until"))
        pictures.append(np.asarray(helm(seeds=[call["seed"]], **more).images[0]).astype(int))
    return pictures


async def one(url: str, number: int, right: list[Any], ends: float) -> dict[str, int]:
    """A client that submits, pauses, resumes, cancels, leaves and asks for nonsense, at random."""
    chance, count = random.Random(number), dict.fromkeys(("done", "full", "bad", "left"), 0)
    async with httpx.AsyncClient(base_url=url, timeout=120) as client:
        while time.monotonic() < ends:
            if chance.random() < 0.2:
                answer = await client.post("/runs", json=chance.choice(BAD))
                if answer.status_code == 202:  # what only the pipeline can refuse
                    await ended(client, answer.json()["id"])
                else:
                    assert answer.status_code in (400, 404, 422, 429)
                count["bad"] += 1
                continue
            which = chance.randrange(len(CALLS))
            if chance.random() < 0.15:  # leaves in the middle of a stream
                body = {**CALLS[which], "stream": True}
                try:
                    await asyncio.wait_for(
                        client.post("/v1/images/generations", json=body), chance.random()
                    )
                except asyncio.TimeoutError:
                    count["left"] += 1
                continue
            answer = await client.post("/runs", json=CALLS[which])
            if answer.status_code == 429:
                count["full"] += 1
                await asyncio.sleep(chance.random())
                continue
            assert answer.status_code == 202
            await steer(client, answer.json()["id"], chance, right[which], count)
    return count


async def steer(
    client: httpx.AsyncClient, name: str, chance: random.Random, right: Any, count: dict[str, int]
) -> None:
    choice = chance.random()
    if choice < 0.2:
        await client.delete(f"/runs/{name}")
        assert (await ended(client, name))["status"] in ("failed", "done")
        return
    if choice < 0.4:
        await client.post(f"/runs/{name}/pause")
        await asyncio.sleep(chance.random() / 4)
        await client.post(f"/runs/{name}/resume")
    assert (await ended(client, name))["status"] == "done"
    raw = (await client.get(f"/runs/{name}/picture")).content
    picture = np.asarray(Image.open(io.BytesIO(raw))).astype(int)
    assert abs(picture - right).max() <= 2
    count["done"] += 1


async def ended(client: httpx.AsyncClient, name: str) -> dict[str, Any]:
    while True:
        state = (await client.get(f"/runs/{name}")).json()
        if state["status"] in ("done", "stopped", "failed"):
            return dict(state)
        await asyncio.sleep(0.1)


@pytest.mark.slow
def test_a_hundred_clients_lose_nothing_and_leave_nothing() -> None:
    right = made_alone()
    threads, files = threading.active_count(), len(os.listdir("/proc/self/fd"))
    engine = Engine("emoji", waiting=64)

    async def storm(url: str) -> list[dict[str, int]]:
        ends = time.monotonic() + SECONDS
        return list(
            await asyncio.gather(*(one(url, number, right, ends) for number in range(CLIENTS)))
        )

    with serving(engine) as url:
        counts = asyncio.run(storm(url))
        done = sum(count["done"] for count in counts)
    assert done > 20
    assert len(engine) == engine.held == 0
    assert threading.active_count() <= threads + 1
    assert len(os.listdir("/proc/self/fd")) <= files + 4
