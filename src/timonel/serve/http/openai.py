"""OpenAI's images API, as far as its client needs it."""

from __future__ import annotations

import json
import re
import time
from collections.abc import AsyncIterator
from typing import Any, Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field
from sse_starlette import EventSourceResponse

from ...errors import ArgumentError, shown
from .answers import finished, preview
from .pictures import base64_of
from .runs import Runs, Served, Wanted

SIZE = re.compile(r"(\d{1,5})x(\d{1,5})")
Kind = Literal["png", "jpeg", "webp"]


class NewImages(BaseModel):
    """A request for pictures; what is not OpenAI's is timonel's, see `Wanted`."""

    model_config = ConfigDict(extra="forbid")

    prompt: str
    model: str | None = None
    n: int | None = Field(1, ge=1)
    size: str | None = None
    response_format: Literal["b64_json", "url"] | None = None
    output_format: Kind | None = None
    stream: bool | None = False
    partial_images: int | None = Field(None, ge=0, le=3)
    user: str | None = None
    quality: Literal["auto", "standard"] | None = None
    background: Literal["auto", "opaque"] | None = None
    moderation: Literal["auto", "low"] | None = None
    negative_prompt: str | None = None
    sampler: str | None = None
    steps: int | None = Field(None, ge=1)
    guidance: float | None = Field(None, ge=0, allow_inf_nan=False)
    until: float | None = Field(None, ge=0, le=1, allow_inf_nan=False)
    seed: int | None = Field(None, ge=0, lt=2**63)

    def wanted(self) -> Wanted:
        """What it asks for. Raises `ArgumentError` for a size that is none."""
        width = height = None
        if self.size not in (None, "auto"):
            match = SIZE.fullmatch(self.size or "")
            if match is None:
                raise ArgumentError(f"size is WIDTHxHEIGHT such as 512x512, got {shown(self.size)}")
            width, height = int(match[1]), int(match[2])
        names = ("negative_prompt", "sampler", "steps", "guidance", "until", "seed")
        return Wanted(
            self.prompt, width=width, height=height, **{name: getattr(self, name) for name in names}
        )


def router(runs: Runs) -> APIRouter:
    """The routes of `/v1`."""
    api = APIRouter(prefix="/v1", tags=["openai"])

    @api.get("/models")
    def models() -> dict[str, Any]:
        """The models of this server."""
        return {"object": "list", "data": [_model(name) for name in runs.engines]}

    @api.get("/models/{name:path}")
    def model(name: str) -> dict[str, Any]:
        """One model."""
        return _model(runs.engine(name)[0])

    @api.post("/images/generations", response_model=None)
    async def generations(wanted: NewImages, request: Request) -> dict[str, Any] | Response:
        """Pictures of a prompt, at once or as a stream with pictures on the way."""
        kind: Kind = wanted.output_format or "png"
        if wanted.stream and (wanted.n or 1) > 1:
            raise ArgumentError("stream=true makes one picture: leave n out")
        if wanted.partial_images and not wanted.stream:
            raise ArgumentError("partial_images come with stream=true")
        if wanted.stream and wanted.response_format == "url":
            raise ArgumentError("a stream has its pictures in it: leave response_format out")
        served = runs.submit(wanted.model, wanted.wanted(), wanted.n or 1)
        if wanted.stream:
            return EventSourceResponse(_stream(served[0], wanted.partial_images or 0, kind))
        await finished(request, served)
        base = str(request.base_url).rstrip("/")
        return {
            "created": int(time.time()),
            "data": [_datum(run, kind, wanted.response_format, base) for run in served],
        }

    return api


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "timonel"}


def _datum(run: Served, kind: Kind, form: str | None, base: str) -> dict[str, Any]:
    """One picture of an answer."""
    if form == "url":
        return {"url": f"{base}/runs/{run.name}/picture"}
    assert run.output is not None
    return {"b64_json": base64_of(run.output.images[0], kind)}


async def _stream(run: Served, partial: int, kind: Kind) -> AsyncIterator[dict[str, Any]]:
    """The events of one picture; it is given up where the client goes."""
    shown_so_far = 0
    try:
        async for event in run.ticket.events():
            due = event.step * (partial + 1) // event.steps if event.steps else 0
            if event.kind == "step" and shown_so_far < min(due, partial):
                picture = await preview(run, kind)
                if picture is not None:
                    index = {"partial_image_index": shown_so_far}
                    yield _event("partial_image", run, kind, picture, **index)
                    shown_so_far += 1
        if run.output is None:
            error = {"message": str(run.ticket.error), "type": "server_error"}
            yield {"event": "error", "data": json.dumps({"type": "error", "error": error})}
        else:
            yield _event("completed", run, kind, base64_of(run.output.images[0], kind))
    finally:
        run.ticket.cancel("the client has gone")


def _event(what: str, run: Served, kind: Kind, picture: str, **more: Any) -> dict[str, Any]:
    name = f"image_generation.{what}"
    data = {
        "type": name, "b64_json": picture, "created_at": int(run.created), "output_format": kind,
        "size": "auto", "quality": "auto", "background": "auto", **more,
    }  # fmt: skip
    return {"event": name, "data": json.dumps(data)}
