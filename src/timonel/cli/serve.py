"""`timonel serve`: models over HTTP."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Annotated, Any

import typer

from . import say

EXTRA = "timonel serve needs more packages: pip install 'timonel[serve]'"


def _free(host: str) -> int:
    """A port that nobody listens at."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as one:
        one.bind((host, 0))
        return int(one.getsockname()[1])


def serve(
    models: Annotated[
        list[str] | None, typer.Argument(metavar="MODEL …", help="Shipped names, folders or hubs.")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = 8000,
    keys: Annotated[
        Path | None, typer.Option(help="File of keys' digests; without it everybody is let in.")
    ] = None,
    new_key: Annotated[
        bool, typer.Option("--new-key", help="Make a key, add it to --keys, show it, and end.")
    ] = False,
    rows: Annotated[int, typer.Option(min=1, help="Network evaluations a call, at most.")] = 32,
    waiting: Annotated[int, typer.Option(min=1, help="Runs that may wait.")] = 256,
    steps: Annotated[int, typer.Option(min=1, help="Steps of a run, at most.")] = 200,
    side: Annotated[int, typer.Option(min=8, help="Pixels of a side, at most.")] = 2048,
    origin: Annotated[
        list[str] | None, typer.Option(help="Web pages of this origin may call the server (CORS).")
    ] = None,
    state: Annotated[
        Path | None, typer.Option(help="Folder of accepted runs; after a kill they are made again.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, mps.")] = None,
    dtype: Annotated[str | None, typer.Option(help="fp32, fp16, bf16.")] = None,
) -> None:
    """Serve models to many: OpenAI's images API, A1111's, and runs that are watched and steered.

    timonel serve emoji
    """
    try:
        import uvicorn

        from ..serve.engine import Engine
        from ..serve.http.app import application
        from ..serve.http.settings import Limits, Settings, check_host, read_keys
        from ..serve.http.settings import new_key as make
    except ImportError as error:
        raise typer.BadParameter(f"{EXTRA} ({error.name} is missing)") from error
    if new_key:
        if keys is None:
            raise typer.BadParameter("--new-key adds a key to a file: say which, --keys keys.txt")
        say.say(f"{make(keys)}   (it is shown this once; {keys} has its digest)")
        return
    if not models:
        raise typer.BadParameter("name a model, e.g. timonel serve emoji")
    known = frozenset[str]() if keys is None else read_keys(keys)
    check_host(host, known)
    loading: dict[str, Any] = {
        name: value for name, value in (("device", device), ("dtype", dtype)) if value
    }
    engines = {name: Engine(name, rows=rows, waiting=waiting, **loading) for name in models}
    settings = Settings(Limits(steps=steps, side=side), known, state, tuple(origin or ()))
    port = port or _free(host)
    say.say(f"timonel serves {', '.join(engines)} at http://{host}:{port} (API: /docs)")
    uvicorn.run(
        application(engines, settings), host=host, port=port, log_level="warning",
        limit_concurrency=1000, timeout_graceful_shutdown=60,
    )  # fmt: skip
