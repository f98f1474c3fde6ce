"""The command line. Nothing heavy is imported until a command needs it."""

from __future__ import annotations

import os
import sys
import warnings
from typing import Annotated, Any, NoReturn

import typer

from ..files import plain
from ..version import VERSION
from . import compare, say, tune
from .invert import invert
from .look import doctor, explain, grids, models, samplers
from .make import animate, generate, replay
from .serve import serve

DEBUG = "TIMONEL_DEBUG"
MEMORY = ("out of memory", "can't allocate memory", "cannot allocate memory", "not enough memory")
ClickException: Any = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")

app = typer.Typer(
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help=(
        "Take the helm of diffusion sampling: any sampler, any schedule, live previews, guidance"
        " only where it pays."
    ),
)


def main() -> None:
    """Run the command line.

    Wrong input is one line and exit status 2, an error of timonel's own one line and status 1.
    """
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # it speaks while it is imported
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a terminal that lacks a letter gets its number
            stream.reconfigure(errors="backslashreplace")
    warnings.showwarning = _warn
    try:
        status = _run(sys.argv[1:] or ["--help"])
    except BrokenPipeError:
        # nothing is left to flush at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 0
    raise SystemExit(status)


def _run(arguments: list[str]) -> int:
    """The status of a command."""
    from ..errors import TimonelError

    try:
        status = app(arguments, standalone_mode=False)
    except (KeyboardInterrupt, typer.Abort):
        status = 130
    except (TimonelError, UnicodeError) as error:
        _debugged()
        _fail(error)
    except BrokenPipeError:
        raise
    except OSError as error:
        _debugged()
        _fail(error)
    except Exception as error:
        if isinstance(error, ClickException):
            _fail(_usage(error))
        _debugged()
        if isinstance(error, MemoryError) or any(words in str(error).lower() for words in MEMORY):
            _fail(f"not enough memory ({_first(error)}): make it smaller, or try --dtype fp16")
        _fail(
            f"an error of timonel's own, please report it: {type(error).__name__}: {_first(error)} "
            f"({DEBUG}=1 shows where)",
            1,
        )
    if status == 130:
        files = f"; kept: {', '.join(map(str, say.KEPT))}" if say.KEPT else "; no result was saved"
        _fail(f"aborted{files}", 130)
    return status if isinstance(status, int) else 0


def _usage(error: Any) -> str:
    """What is wrong with the arguments, and where to read on."""
    text = error.format_message().rstrip(".")
    command = error.ctx.command_path if getattr(error, "ctx", None) else "timonel"
    if type(error).__name__ == "NoSuchOption":
        return f"{text} (see {command} -h; a text that begins with - goes after --)"
    return f"{text} (see {command} -h)"


def _debugged() -> None:
    """Raise the present exception where its traceback is wanted."""
    if os.environ.get(DEBUG, "") not in ("", "0"):
        raise


def _first(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else ""


def _fail(message: object, status: int = 2) -> NoReturn:
    """One line, and out."""
    print(f"timonel: {plain(' '.join(str(message).split()))}", file=sys.stderr)
    raise SystemExit(status)


def _warn(message: Warning | str, *where: Any, **more: Any) -> None:
    """A warning as a line of the command, without the place in the code."""
    print(f"timonel: {plain(' '.join(str(message).split()))}", file=sys.stderr)


def _version(show: bool) -> None:
    if show:
        print(VERSION)
        raise typer.Exit


def _debug(on: bool) -> None:
    if on:
        os.environ[DEBUG] = "1"


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[
        bool,
        typer.Option(
            "--debug", callback=_debug, help=f"Show where in the code an error arose, as {DEBUG}=1."
        ),
    ] = False,
) -> None:
    """Options before any command."""


for command in (
    generate, animate, replay, invert, samplers, grids, models, explain, doctor, serve,
):  # fmt: skip
    app.command()(command)
compare.add(app)
tune.add(app)
