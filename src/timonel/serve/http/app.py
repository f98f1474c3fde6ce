"""The application: engines behind three APIs, with health, readiness and metrics."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Response
from fastapi.middleware.cors import CORSMiddleware

from ...version import VERSION
from ..engine import Engine
from . import a1111, native, openai
from .answers import answer_errors
from .guard import Guard
from .journal import Journal
from .metrics import Metrics
from .runs import Runs
from .settings import Settings


def application(engines: Mapping[str, Engine], settings: Settings | None = None) -> FastAPI:
    """A server of engines. They are closed when it ends, after the runs that were accepted.

    Args:
        engines: by the names of their models; the first one is the usual one.
        settings: keys, limits and origins.

    Returns:
        An ASGI application.
    """
    chosen = settings or Settings()
    journal = None if chosen.state is None else Journal(chosen.state)
    runs, metrics = Runs(engines, chosen.limits, journal), Metrics(engines)
    runs.go_on()

    @asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        yield
        for engine in engines.values():
            await asyncio.to_thread(engine.close)

    app = FastAPI(
        title="timonel", version=VERSION, lifespan=life, redoc_url=None,
        description="Diffusion sampling for many: watched, paused, rewound, branched.",
    )  # fmt: skip
    app.state.runs = runs
    answer_errors(app)
    for router in (native.router(runs), openai.router(runs), a1111.router(runs)):
        app.include_router(router)

    @app.get("/health", tags=["server"])
    def health() -> dict[str, str]:
        """The server is there."""
        return {"status": "ok"}

    @app.get("/ready", tags=["server"])
    def ready() -> Any:
        """Whether every engine takes runs."""
        full = [name for name, engine in engines.items() if not engine.takes]
        return Response(f"not ready: {', '.join(full)}\n", 503) if full else {"status": "ready"}

    @app.get("/metrics", tags=["server"])
    def numbers() -> Response:
        """What the server counts, for Prometheus."""
        return Response(metrics.text(), media_type="text/plain; version=0.0.4")

    if chosen.origins:
        app.add_middleware(
            CORSMiddleware, allow_origins=list(chosen.origins), allow_methods=["*"],
            allow_headers=["*"],
        )  # fmt: skip
    app.add_middleware(Guard, settings=chosen, metrics=metrics)
    return app
