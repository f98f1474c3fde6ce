"""The command line. Nothing heavy is imported until a command needs it."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from . import __version__
from .compare import command as compare_command

if TYPE_CHECKING:
    from .generate import Made
    from .guidance import Guidance
    from .pipelines.helm import Helm
    from .recipe import Recipe
    from .sampler import Sampler

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Take the helm of diffusion sampling: any sampler, any schedule, live previews, guidance only where it pays.",
)

Model = Annotated[str, typer.Option(help="A shipped model (see `timonel models`), a folder or a hub name.")]
Out = Annotated[Path, typer.Option("--out", "-o", help="Folder for the results.")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="An option of the sampler or its grid, such as order=3 or rho=5."),
]


def main() -> None:
    """Entry point: one clear message and exit status 2 for whatever timonel refuses."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # it speaks while it is imported
    from .errors import TimonelError

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


@app.command()
def generate(
    prompt: Annotated[str, typer.Argument(help='What to paint, e.g. "red apple".')],
    model: Model = "emoji",
    steps: Annotated[int | None, typer.Option(help="Steps of the sampler. Default: the model's own.")] = None,
    sampler: Annotated[
        str | None,
        typer.Option(help="solver or solver/grid, see `timonel samplers` and `grids`. Default: the model's own."),
    ] = None,
    eta: Annotated[float | None, typer.Option(help="Share of fresh noise, for samplers that take it.")] = None,
    settings: Settings = None,
    noise: Annotated[
        str | None, typer.Option(help="independent, or brownian: any number of steps follows one noise per seed.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the (first) picture.")] = 0,
    count: Annotated[int, typer.Option(min=1, help="Number of pictures, with consecutive seeds.")] = 1,
    guidance: Annotated[float | None, typer.Option(help="Guidance scale; 1 is none. Default: the model's own.")] = None,
    guidance_until: Annotated[
        str | None, typer.Option(help="End of guidance: 0.4 (of the steps), step:4 or sigma:1.2.")
    ] = None,
    negative: Annotated[str | None, typer.Option(help="Negative prompt.")] = None,
    width: Annotated[int | None, typer.Option(min=8)] = None,
    height: Annotated[int | None, typer.Option(min=8)] = None,
    dtype: Annotated[str | None, typer.Option(help="fp32, fp16 or bf16.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, mps, …")] = None,
    preview: Annotated[bool, typer.Option("--preview", help="Write every step's picture while it runs.")] = False,
    out: Out = Path("out"),
) -> None:
    """Make a picture, a contact sheet of how it came to be, and an animation of the steps.

    Ctrl-C once stops at the next step and still saves what there is; twice aborts.

    Example: timonel generate "red apple" --steps 12 --sampler dpmpp_2m/karras --seed 7 --guidance-until 0.4 --preview
    """
    from . import zoo
    from .errors import ArgumentError
    from .generate import writable
    from .pipelines.helm import Helm
    from .recipe import GuidanceData, Recipe
    from .sampler import DEFAULT, STEPS

    if not prompt.strip():
        raise ArgumentError('the prompt is empty; say what to paint, e.g. "red apple"')
    if sampler is None:
        sampler = zoo.card(model).default_sampler if model in zoo.MODELS else DEFAULT
    chosen = _sampler(sampler, steps, [*(settings or []), *([] if eta is None else [f"eta={eta}"])], noise)
    interval = _guidance(guidance, guidance_until)
    writable(out)
    _quiet()
    helm = Helm(model, dtype=dtype, device=device)
    if helm.card:
        steps = steps or helm.card.default_steps
        interval = _guidance(helm.card.default_guidance if guidance is None else guidance, guidance_until)
    recipe = Recipe(
        model=model, prompt=prompt, negative_prompt=negative, seed=seed, sampler=chosen.name, grid=chosen.grid,
        steps=steps or STEPS, options=dict(chosen.options), grid_options=dict(chosen.grid_options), noise=chosen.source,
        width=width, height=height, dtype=dtype, device=device,
        guidance=None if interval is None else GuidanceData.of(interval),
    )  # fmt: skip
    _paint(helm, recipe, count, out, preview)


def _paint(helm: Helm, recipe: Recipe, count: int, out: Path, preview: bool) -> None:
    """Make the recipe's picture with `count` consecutive seeds, or until one is stopped."""
    from .generate import generate as make
    from .hooks.progress import progress

    for number in range(recipe.seed, recipe.seed + count):
        with _stoppable(helm):
            one = recipe.model_copy(update={"seed": number})
            made = make(one, out, helm=helm, preview=preview, hooks=[progress(recipe.title)])
        _report(made)
        if made.stopped:
            break


@app.command()
def animate(
    picture: Annotated[Path, typer.Argument(help="The picture that the video begins with.")],
    model: Annotated[str, typer.Option(help="An image-to-video model: a folder or a hub name, such as SVD's.")],
    steps: Annotated[int, typer.Option(help="Steps of the sampler.")] = 12,
    sampler: Annotated[str, typer.Option(help="A sampler, such as dpmpp_2m/karras.")] = "dpmpp_2m",
    settings: Settings = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the video.")] = 0,
    motion: Annotated[int, typer.Option(help="How much moves, 1 to 255.")] = 127,
    fps: Annotated[int, typer.Option(help="Frames a second, which the model is told too.")] = 7,
    noise: Annotated[float, typer.Option(help="Noise added to the picture, 0 to 1.")] = 0.02,
    guidance_until: Annotated[
        str | None, typer.Option(help="End of guidance: 0.4 (of the steps), step:4 or sigma:1.2.")
    ] = None,
    width: Annotated[int | None, typer.Option(min=8)] = None,
    height: Annotated[int | None, typer.Option(min=8)] = None,
    frames: Annotated[int | None, typer.Option(min=2, help="Frames; default: the model's own number.")] = None,
    dtype: Annotated[str | None, typer.Option(help="fp32, fp16 or bf16.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, mps, …")] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="An .mp4, .gif or .webp file.")] = Path("out/clip.mp4"),
) -> None:
    """Make a video of a picture with an image-to-video model such as Stable Video Diffusion.

    Ctrl-C once stops at the next step and still decodes and saves what there is; twice aborts.
    """
    from .animate import Motion, still
    from .animate import animate as make
    from .hooks.progress import progress
    from .pipelines.helm import Helm

    chosen, told, first = _sampler(sampler, steps, settings or []), Motion(motion, fps, noise), still(picture)
    interval = _guidance(None, guidance_until) if guidance_until else None
    _quiet()
    helm = Helm(model, dtype=dtype, device=device)
    size = {"width": width, "height": height, "num_frames": frames}
    with _stoppable(helm):
        made = make(
            first, out, helm=helm, sampler=chosen, seed=seed, motion=told, guidance=interval,
            hooks=[progress(picture.name)], **{key: value for key, value in size.items() if value},
        )  # fmt: skip
    if made.stopped:
        print(f"stopped: {made.stopped}")
    print(f"video      {made.video}")
    print(f"{len(made.frames)} frames, {made.calls} network calls, {made.seconds:.2f} s, seed {seed}")


def _sampler(name: str, steps: int | None, settings: Sequence[str], noise: str | None = None) -> Sampler:
    """The sampler, with every KEY=VALUE given to the solver if it has that option, else to the grid."""
    from . import names, solvers
    from .errors import ArgumentError
    from .grids import GRIDS
    from .sampler import Sampler

    named = names.sampler(name)
    grid = GRIDS[named.grid].options if named.grid else ()
    options: dict[str, Any] = {}
    grid_options: dict[str, Any] = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals or not key:
            raise ArgumentError(f"--set takes KEY=VALUE such as eta=0.5, got {setting!r}")
        mine = key in grid and key not in solvers.SOLVERS[named.solver].options
        (grid_options if mine else options)[key] = _value(value)
    return Sampler(name, steps=steps, options=options, grid_options=grid_options, noise=noise)


def _value(text: str) -> int | float | str:
    """A number where it is one."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _report(made: Made) -> None:
    """Say where the results of one job are."""
    if made.stopped:
        print(f"stopped after step {made.recipe.stopped_after} of {made.recipe.steps}")
    print(f"picture    {made.picture}\nsteps      {made.sheet}\nanimation  {made.animation}")
    print(f"{made.calls} network calls, {made.seconds:.2f} s, seed {made.recipe.seed}")


def _quiet() -> None:
    """Keep what the libraries say while loading off the screen; errors still come through."""
    from diffusers.utils import logging as diffusers
    from transformers.utils import logging as transformers

    for logging in (diffusers, transformers):
        logging.set_verbosity_error()
        logging.disable_progress_bar()


def _guidance(scale: float | None, until: str | None) -> Guidance | None:
    """Guidance from the command line's two options."""
    from .errors import ArgumentError
    from .guidance import UNITS, cfg

    if scale is None and until is None:
        return None
    if until is None:
        return cfg(scale)
    unit, colon, number = until.partition(":")
    if not colon:
        unit, number = "ratio", until
    try:
        end = float(number)
    except ValueError:
        raise ArgumentError(f"--guidance-until takes 0.4, step:4 or sigma:1.2, got {until!r}") from None
    if unit not in UNITS:
        raise ArgumentError(f"--guidance-until takes 0.4, step:4 or sigma:1.2, got {until!r}")
    return cfg(scale, until=end, unit=unit)


@contextmanager
def _stoppable(helm: Helm) -> Iterator[None]:
    """Ctrl-C once stops the run at its next step; twice aborts."""

    def stop(number: int, frame: Any) -> None:
        run = helm.run
        if run is None or run.status not in ("new", "running") or run.stopping:
            raise KeyboardInterrupt
        print("\nstopping at the next step; Ctrl-C again to abort", file=sys.stderr)
        run.stop("Ctrl-C")

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@app.command()
def replay(
    picture: Annotated[Path, typer.Argument(help="A PNG that timonel wrote.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Where to write it; default: beside it, -replay.png.")
    ] = None,
) -> None:
    """Make a picture again from the recipe inside it, and say whether it is the same."""
    from PIL import Image, ImageChops

    from .hooks.progress import progress
    from .recipe import Recipe

    recipe = Recipe.read(picture)
    _quiet()
    made, now = recipe.make(hooks=[progress(recipe.title)])
    path = now.save(made, out or picture.with_name(f"{picture.stem}-replay.png"))
    with Image.open(picture) as old:
        same = old.size == made.size and not ImageChops.difference(old.convert("RGB"), made.convert("RGB")).getbbox()
    print(f"picture    {path}")
    print("identical, bit for bit" if same else f"different: {_differences(recipe, now)}")
    raise typer.Exit(0 if same else 1)


def _differences(before: Recipe, now: Recipe) -> str:
    """Which versions changed between two recipes."""
    changed = [
        f"{name} {before.versions.get(name, 'unknown')} -> {now.versions.get(name, 'unknown')}"
        for name in sorted({*before.versions, *now.versions})
        if before.versions.get(name) != now.versions.get(name)
    ]
    return ", ".join(changed) or "same versions, so another machine, device or number of threads"


@app.command()
def samplers() -> None:
    """List the samplers: order, network calls for N steps, noise, options, reference."""
    from .solvers import SOLVERS

    rows = [
        (name, str(s.order or "-"), s.calls, "yes" if s.stochastic else "no", ", ".join(s.options) or "-", s.reference)
        for name, s in SOLVERS.items()
    ]
    _table(("sampler", "order", "calls", "noise", "options", "reference"), rows)


@app.command()
def grids() -> None:
    """List the grids: the space each is defined in, options, reference."""
    from .grids import GRIDS

    _table(
        ("grid", "space", "options", "reference"),
        [(name, g.space, ", ".join(g.options) or "-", g.reference) for name, g in GRIDS.items()],
    )


@app.command()
def models(
    concepts: Annotated[bool, typer.Option("--concepts", help="Also list what each model knows.")] = False,
) -> None:
    """List the models that ship with timonel."""
    from . import zoo

    for name, what in zoo.MODELS.items():
        card = zoo.card(name)
        print(f"{name}: {what}, {len(card.concepts)} concepts in the styles {', '.join(card.styles)}")
        if concepts:
            print(", ".join(card.concepts))


@app.command()
def explain(
    sampler: Annotated[str, typer.Argument(help="A sampler, such as dpmpp_2m/karras.")],
    vs: Annotated[str | None, typer.Option(help="Another sampler to draw beside it.")] = None,
    steps: Annotated[int, typer.Option(help="Steps.")] = 10,
    settings: Settings = None,
    model: Model = "emoji",
    out: Out = Path("out"),
) -> None:
    """Print a sampler's table and plot its levels, weights, noise and stability on a model's noise process."""
    from . import zoo
    from .explain import plot

    process = zoo.process_of(model)
    chosen = [_sampler(sampler, steps, settings or [])] + ([_sampler(vs, steps, [])] if vs else [])
    tables = [one.compile(process) for one in chosen]
    for table in tables:
        print(f"{table}\n")
    names = "-vs-".join(f"{table.solver}-{table.grid}" for table in tables)
    print(f"plot  {plot(tables, out / f'explain-{names}-{steps}.png')}")


@app.command()
def doctor(
    model: Annotated[str, typer.Argument(help="A shipped model, a folder in diffusers' format or a hub name.")],
    sampler: Annotated[
        str | None, typer.Option(help="A sampler, or a class of diffusers, to try on it. Default: its own.")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Steps. Default: those of the recommendation.")] = None,
    flags: Annotated[
        list[str] | None, typer.Option("--flag", metavar="KEY=VALUE", help="What one gives to from_config besides.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what a model is, what suits it, what diffusers would do wrong with a sampler, and what is recommended.

    Example: timonel doctor folder/of/svd --sampler dpmpp_2m_sde/karras --flag timestep_spacing=trailing
    """
    from .diagnosis.command import run

    run(model, sampler, steps, flags or [], as_json)


compare_command.add(app)


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    """Print aligned columns."""
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    for row in [head, *rows]:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


if __name__ == "__main__":
    main()
