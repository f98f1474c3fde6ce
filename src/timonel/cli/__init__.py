"""The command line. Nothing heavy is imported until a command needs it."""

from __future__ import annotations

import os
import sys
from typing import Annotated, NoReturn

import typer

from .. import __version__
from . import compare, tune
from .look import doctor, explain, grids, models, samplers
from .make import animate, generate, replay

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Take the helm of diffusion sampling: any sampler, any schedule, live previews, guidance only where it pays.",
)


def main() -> None:
    """Entry point: one clear message and exit status 2 for whatever timonel refuses."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # it speaks while it is imported
    from ..errors import TimonelError

    try:
        app()
    except TimonelError as error:
        _fail(str(error))
    except KeyboardInterrupt:
        print("aborted", file=sys.stderr)
        raise SystemExit(130) from None
    except BrokenPipeError:
        raise SystemExit(0) from None
    except OSError as error:
        _fail(str(error))


def _fail(message: str) -> NoReturn:
    print(f"timonel: {message}", file=sys.stderr)
    raise SystemExit(2)


def _version(show: bool) -> None:
    if show:
        print(__version__)
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


for command in (generate, animate, replay, samplers, grids, models, explain, doctor):
    app.command()(command)
compare.add(app)
tune.add(app)
