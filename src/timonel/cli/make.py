"""The commands that make pictures and videos."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .options import Model, Out, Settings, choose, guidance_of, quiet, sampler_of, stoppable

if TYPE_CHECKING:
    from ..generate import Made
    from ..pipelines.helm import Helm
    from ..recipe import Recipe


def generate(
    prompt: Annotated[str, typer.Argument(help='What to paint, e.g. "red apple".')],
    model: Model = "emoji",
    steps: Annotated[int | None, typer.Option(help="Steps of the sampler. Default: the model's own.")] = None,
    sampler: Annotated[
        str | None,
        typer.Option(
            help="solver or solver/grid, see `timonel samplers` and `grids`, or a fitted one's .json file. "
            "Default: one fitted to the model for these steps, else the model's own."
        ),
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
    from .. import zoo
    from ..errors import ArgumentError
    from ..files import writable

    if not prompt.strip():
        raise ArgumentError('the prompt is empty; say what to paint, e.g. "red apple"')
    card = zoo.card(model) if model in zoo.MODELS else None
    interval = guidance_of(card.default_guidance if card and guidance is None else guidance, guidance_until)
    told = [*(settings or []), *([] if eta is None else [f"eta={eta}"])]
    named = None if sampler is None else sampler_of(sampler, steps, told, noise)
    writable(out)
    quiet()
    from ..pipelines.helm import Helm  # which takes seconds: after everything that may be refused
    from ..recipe import GuidanceData, Recipe

    helm = Helm(model, dtype=dtype, device=device)
    chosen = choose(helm, named, steps, told, noise, interval)
    assert chosen.steps is not None
    recipe = Recipe(
        model=model, prompt=prompt, negative_prompt=negative, seed=seed, steps=chosen.steps, width=width, height=height,
        dtype=dtype, device=device, guidance=None if interval is None else GuidanceData.of(interval),
        **Recipe.choice(chosen),
    )  # fmt: skip
    _paint(helm, recipe, count, out, preview)


def _paint(helm: Helm, recipe: Recipe, count: int, out: Path, preview: bool) -> None:
    """Make the recipe's picture with `count` consecutive seeds, or until one is stopped."""
    from ..generate import generate as make
    from ..hooks.progress import progress

    for number in range(recipe.seed, recipe.seed + count):
        with stoppable(helm):
            one = recipe.model_copy(update={"seed": number})
            made = make(one, out, helm=helm, preview=preview, hooks=[progress(recipe.title)])
        _report(made)
        if made.stopped:
            break


def _report(made: Made) -> None:
    """Say where the results of one job are."""
    if made.stopped:
        print(f"stopped after step {made.recipe.stopped_after} of {made.recipe.steps}")
    print(f"picture    {made.picture}\nsteps      {made.sheet}\nanimation  {made.animation}")
    print(f"{made.calls} network calls, {made.seconds:.2f} s, seed {made.recipe.seed}")


def animate(
    picture: Annotated[Path, typer.Argument(help="The picture that the video begins with.")],
    model: Annotated[
        str, typer.Option(help="An image-to-video model: a shipped one, a folder or a hub name, such as SVD's.")
    ] = "emoji-video",
    steps: Annotated[int | None, typer.Option(help="Steps of the sampler. Default: the model's own.")] = None,
    sampler: Annotated[
        str | None,
        typer.Option(
            help="A sampler, such as dpmpp_2m/karras, or a fitted one's .json file. "
            "Default: one fitted to the model for these steps, else the model's own."
        ),
    ] = None,
    settings: Settings = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the video.")] = 0,
    motion: Annotated[int, typer.Option(help="How much moves, 1 to 255.")] = 127,
    fps: Annotated[int, typer.Option(help="Frames a second, which the model is told too.")] = 7,
    noise: Annotated[float, typer.Option(help="Noise added to the picture, 0 to 1.")] = 0.02,
    guidance: Annotated[
        float | None, typer.Option(help="Guidance scale of the last frame; 1 is none. Default: the model's own.")
    ] = None,
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
    from ..animate import Motion, still
    from ..animate import animate as make
    from ..hooks.progress import progress

    interval = guidance_of(guidance, guidance_until)
    named = None if sampler is None else sampler_of(sampler, steps, settings or [])
    told, first = Motion(motion, fps, noise), still(picture)
    quiet()
    from ..pipelines.helm import Helm  # which takes seconds: after everything that may be refused

    helm = Helm(model, dtype=dtype, device=device)
    chosen = choose(helm, named, steps, settings or [], None, interval)
    size = {"width": width, "height": height, "num_frames": frames}
    with stoppable(helm):
        made = make(
            first, out, helm=helm, sampler=chosen, seed=seed, motion=told, guidance=interval,
            hooks=[progress(picture.name)], **{key: value for key, value in size.items() if value},
        )  # fmt: skip
    if made.stopped:
        print(f"stopped: {made.stopped}")
    print(f"video      {made.video}")
    print(f"{len(made.frames)} frames, {made.calls} network calls, {made.seconds:.2f} s, seed {seed}")


def replay(
    picture: Annotated[Path, typer.Argument(help="A PNG that timonel wrote.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Where to write it; default: beside it, -replay.png.")
    ] = None,
) -> None:
    """Make a picture again from the recipe inside it, and say whether it is the same."""
    from PIL import Image, ImageChops

    from ..hooks.progress import progress
    from ..recipe import Recipe

    recipe = Recipe.read(picture)
    quiet()
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
