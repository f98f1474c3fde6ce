"""What the server's APIs share: waiting for runs, previews, events, errors as answers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response

from ...errors import ArgumentError, GuardStop, RunError, TimonelError, UnknownName
from ..engine import Full
from .pictures import base64_of
from .runs import Served

LOOK = 0.25  # seconds after which a client that waits is looked at
GONE = 499  # status of an answer that nobody is left to read
RETRY = 5  # seconds after which a refused client may come again


class Gone(Exception):
    """The client has gone."""


async def finished(request: Request, runs: Sequence[Served]) -> None:
    """Wait for the end of runs. They are given up where the client goes.

    Raises:
        TimonelError: one of them has no result.
        Gone: the client has gone.
    """
    waits = [asyncio.ensure_future(run.ticket.ended()) for run in runs]
    try:
        while not all(wait.done() for wait in waits):
            await asyncio.wait(waits, timeout=LOOK)
            if await request.is_disconnected():
                raise Gone
    except BaseException:
        for run in runs:
            run.ticket.cancel("the client has gone")
        raise
    finally:
        for wait in waits:
            wait.cancel()
    for run in runs:
        if run.ticket.error is not None:
            raise run.ticket.error


async def preview(run: Served, kind: str = "png") -> str | None:
    """The newest denoised prediction, small; None where there is none to show."""
    try:
        images = await asyncio.to_thread(run.ticket.preview)
    except RunError:
        return None
    return base64_of(images[0], kind)


async def events(run: Served, previews: bool) -> AsyncIterator[dict[str, Any]]:
    """A run's events for a stream, the newest where the client reads slowly."""
    async for event in run.ticket.events():
        data = {**event._asdict(), "run": run.name}
        if previews and event.kind in ("step", "paused") and event.step:
            data["preview"] = await preview(run)
        yield {"event": event.kind, "data": json.dumps(data)}


def wrong(
    message: str, status: int, kind: str = "invalid_request_error", **headers: str
) -> Response:
    """An error as OpenAI's API has it."""
    message = message.encode(errors="backslashreplace").decode()  # a lone half of a surrogate
    body = {"error": {"message": message, "type": kind, "param": None, "code": None}}
    return JSONResponse(body, status, {key.replace("_", "-"): v for key, v in headers.items()})


def answer_errors(app: FastAPI) -> None:
    """Answer what goes wrong with a sentence and its status."""

    @app.exception_handler(TimonelError)
    async def refused(request: Request, error: TimonelError) -> Response:
        if isinstance(error, Full):
            return wrong(str(error), 429, "rate_limit_error", retry_after=str(RETRY))
        if isinstance(error, UnknownName) and str(error).startswith("unknown model"):
            return wrong(str(error), 404)
        if isinstance(error, ArgumentError):
            return wrong(str(error), 400)
        if isinstance(error, RunError):
            return wrong(str(error), 503 if "closed" in str(error) else 409, "conflict_error")
        return wrong(str(error), 422 if isinstance(error, GuardStop) else 500, "server_error")

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"][1:]) or "the body"
        return wrong(f"{where}: {first['msg']}", 422)

    @app.exception_handler(Gone)
    async def gone(request: Request, error: Gone) -> Response:
        return Response(status_code=GONE)
