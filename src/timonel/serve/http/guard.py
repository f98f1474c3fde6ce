"""Checks before every request: its key, the size of its body and the time that it takes."""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from .metrics import Metrics
from .settings import Settings

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]
OPEN = ("/health", "/ready")  # without a key
LOG = logging.getLogger("timonel.serve")


class TooLarge(Exception):
    """A body of more bytes than the server takes."""


class Guard:
    """An ASGI application around another.

    Args:
        app: the other.
        settings: keys and limits.
        metrics: counts the answers.
    """

    def __init__(self, app: App, settings: Settings, metrics: Metrics) -> None:
        self.app, self.settings, self.metrics = app, settings, metrics

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        number, began, path = secrets.token_hex(8), time.perf_counter(), scope["path"]
        status, limits = 500, self.settings.limits

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", number.encode())]
            await send(message)

        try:
            if path not in OPEN and not self.settings.admits(_key(scope)):
                await _refuse(answer, 401, "a key is needed: Authorization: Bearer KEY")
                return
            if (refusal := self._too_large(scope)) is not None:
                await _refuse(answer, 413, refusal)
                return
            try:
                body = await asyncio.wait_for(self._body(receive), limits.body_seconds)
            except TooLarge:
                await _refuse(answer, 413, self._size)
            except asyncio.TimeoutError:
                within = f"within {limits.body_seconds:g} seconds"
                await _refuse(answer, 408, f"the body has to arrive {within}")
            else:
                await self.app(scope, _replayed(body, receive), answer)
        finally:
            seconds = time.perf_counter() - began
            self.metrics.answered(scope["method"], path, status, seconds)
            LOG.info(json.dumps({
                "request": number, "method": scope["method"], "path": path, "status": status,
                "seconds": round(seconds, 4),
            }))  # fmt: skip

    @property
    def _size(self) -> str:
        return f"a body has at most {self.settings.limits.body} bytes on this server"

    def _too_large(self, scope: Message) -> str | None:
        """The refusal of a body that says itself that it is too large."""
        for name, value in scope["headers"]:
            small = value.isdigit() and int(value) <= self.settings.limits.body
            if name == b"content-length" and not small:
                return self._size
        return None

    async def _body(self, receive: Receive) -> bytes:
        """The whole body of a request. Raises `TooLarge`."""
        parts, size, more = list[bytes](), 0, True
        while more:
            message = await receive()
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > self.settings.limits.body:
                raise TooLarge
            more = message.get("more_body", False)
        return b"".join(parts)


def _replayed(body: bytes, receive: Receive) -> Receive:
    """`receive` of a request whose body was read: that first, then what comes."""
    rest = [body]

    async def replayed() -> Message:
        if rest:
            return {"type": "http.request", "body": rest.pop(), "more_body": False}
        return await receive()

    return replayed


def _key(scope: Message) -> str | None:
    """The key of a request: a bearer's, or the password of basic authentication."""
    import base64
    import binascii

    headers: dict[bytes, bytes] = dict(scope["headers"])
    kind, _, value = headers.get(b"authorization", b"").decode("latin-1").partition(" ")
    if kind.lower() == "bearer":
        return value.strip()
    if kind.lower() != "basic":
        return None
    try:
        return base64.b64decode(value, validate=True).decode().partition(":")[2]
    except (binascii.Error, UnicodeDecodeError):
        return None


async def _refuse(send: Send, status: int, message: str) -> None:
    body = json.dumps({"error": {"message": message, "type": "invalid_request_error"}}).encode()
    headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
