"""The commands that make pictures and videos."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import complete
from . import say as say_
from .options import (
    Device,
    Dtype,
    Model,
    NegativeAt,
    Overwrite,
    Pixels,
    PromptAt,
    SamplerName,
    Scale,
    Settings,
    Steps,
    TailTexts,
    Until,
    choose,
    guidance_of,
    quiet,
    sampler_of,
    schedules,
    stoppable,
    tails_of,
    variation_of,
)
from .say import Json, kept, reporting, say

if TYPE_CHECKING:
    from PIL import Image

    from ..make.generate import Generated
    from ..make.recipe import Recipe
    from ..pipelines.helm import Helm

SEEDS = 2**63 - 1  # the largest that generators of torch take everywhere


def generate(
    prompt: Annotated[str, typer.Argument(help='What to paint, e.g. "red apple".')],
    model: Model = "emoji",
    steps: Steps = None,
    sampler: SamplerName = None,
    eta: Annotated[
        float | None, typer.Option(help="Share of fresh noise, for samplers that take it.")
    ] = None,
    settings: Settings = None,
    noise: Annotated[
        str | None,
        typer.Option(
            help="independent, or brownian: any number of steps follows one noise per seed."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=SEEDS, help="Seed of the (first) picture.")] = 0,
    variation: Annotated[
        str | None,
        typer.Option(
            metavar="SEED:AMOUNT",
            help="Another seed, and how much of its noise is mixed in, such as 8:0.2.",
        ),
    ] = None,
    count: Annotated[
        int, typer.Option(min=1, help="Number of pictures, with consecutive seeds.")
    ] = 1,
    guidance: Scale = None,
    guidance_until: Until = None,
    tail: TailTexts = None,
    negative: Annotated[str | None, typer.Option(help="Negative prompt.")] = None,
    prompt_at: PromptAt = None,
    negative_at: NegativeAt = None,
    width: Pixels = None,
    height: Pixels = None,
    dtype: Dtype = None,
    device: Device = None,
    preview: Annotated[
        bool, typer.Option("--preview", help="Write every step's picture while it runs.")
    ] = False,
    out: Annotated[
        Path,
        typer.Option(
            "--out", "-o", help="Folder for the results, or the name of the picture, a .png."
        ),
    ] = Path("out"),
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Make a picture, a contact sheet of how it came to be, and an animation of the steps.

    Ctrl-C once stops at the next step and still saves what there is; twice aborts. Nothing is
    overwritten: a second red-apple-7.png is called red-apple-7-2.png, and a name of yours that is
    taken is refused.

    Example: timonel generate "red apple" --steps 12 --sampler dpmpp_2m/karras --seed 7
    --guidance-until 0.4 --preview
    """
    from .. import zoo
    from ..errors import ArgumentError
    from ..make.places import placed

    if not prompt.strip():
        raise ArgumentError('the prompt is empty; say what to paint, e.g. "red apple"')
    varied = variation_of(variation)
    folder, name = placed(out, count, overwrite)
    with reporting(as_json) as report:
        card = zoo.card(model) if model in zoo.MODELS else None
        scale = card.default_guidance if card and guidance is None else guidance
        interval = guidance_of(scale, guidance_until)
        tails = tails_of(tail or [])
        prompts = schedules(prompt, prompt_at, negative, negative_at)
        options = [*(settings or []), *([] if eta is None else [f"eta={eta}"])]
        named = None if sampler is None else sampler_of(sampler, steps, options, noise)
        quiet()
        from ..core.data import GuidanceData
        from ..make.recipe import Recipe
        from ..pipelines.helm import Helm  # which takes seconds: after what may be refused
        from ..pipelines.recipe.tails import check as check_tails

        if steps is not None:
            check_tails(tails, steps)
        helm = Helm(model, dtype=dtype, device=device)
        chosen = choose(helm, named, steps, options, noise, interval)
        assert chosen.steps is not None
        check_tails(tails, chosen.steps)
        recipe = Recipe(
            model=model,
            prompt=prompt,
            negative_prompt=negative,
            seed=seed,
            variation=varied,
            steps=chosen.steps,
            width=width,
            height=height,
            dtype=dtype,
            device=device,
            guidance=None if interval is None else GuidanceData.of(interval),
            tails=tails or None,
            **prompts,
            **Recipe.choice(chosen),
        )
        where = {"folder": folder, "name": name, "preview": preview, "overwrite": overwrite}
        report["pictures"] = _paint(helm, recipe, count, where)


def _paint(helm: Helm, recipe: Recipe, count: int, where: dict[str, Any]) -> list[dict[str, Any]]:
    """Make the recipe's picture with `count` consecutive seeds, or until one is stopped."""
    from ..hooks.guard import guard
    from ..hooks.progress import progress
    from ..make.generate import generate as make

    reports = []
    for number in range(recipe.seed, recipe.seed + count):
        with stoppable(helm):
            one = recipe.model_copy(update={"seed": number})
            if recipe.variation is not None:
                other, amount = recipe.variation
                varied = other + number - recipe.seed, amount
                one = one.model_copy(update={"variation": varied})
            result = make(one, helm=helm, hooks=[progress(recipe.title), guard()], **where)
        reports.append(_report(result))
        if result.stopped:
            break
    return reports


def _report(result: Generated) -> dict[str, Any]:
    """Say where the files of one picture are."""
    recipe = result.recipe
    kept(result.picture, result.sheet, result.animation)
    if result.stopped:
        say(f"stopped after step {recipe.stopped_after} of {recipe.steps}")
    say(f"picture    {result.picture}\nsteps      {result.sheet}\nanimation  {result.animation}")
    if result.previews is not None:
        say(f"previews   {result.previews}")
    say(f"{result.calls} network calls, {result.seconds:.2f} s, seed {recipe.seed}")
    return {
        "picture": result.picture,
        "steps": result.sheet,
        "animation": result.animation,
        "previews": result.previews,
        "stopped": result.stopped or None,
        "stopped_after": recipe.stopped_after,
        "calls": result.calls,
        "seconds": round(result.seconds, 3),
        "seed": recipe.seed,
        "recipe": recipe.model_dump(exclude_none=True, exclude={"table"}),
    }


def animate(
    picture: Annotated[Path, typer.Argument(help="The picture that the video begins with.")],
    model: Annotated[
        str,
        typer.Option(
            help="An image-to-video model: a shipped one, a folder or a hub name, such as SVD's.",
            autocompletion=complete.models,
        ),
    ] = "emoji-video",
    steps: Steps = None,
    sampler: SamplerName = None,
    settings: Settings = None,
    seed: Annotated[int, typer.Option(min=0, max=SEEDS, help="Seed of the video.")] = 0,
    motion: Annotated[int, typer.Option(help="How much moves, 1 to 255.")] = 127,
    fps: Annotated[
        int, typer.Option(help="Frames a second, which the model takes as an input too.")
    ] = 7,
    noise: Annotated[float, typer.Option(help="Noise added to the picture, 0 to 1.")] = 0.02,
    guidance: Annotated[
        float | None,
        typer.Option(help="Guidance scale of the last frame; 1 is none. Default: the model's own."),
    ] = None,
    guidance_until: Until = None,
    width: Pixels = None,
    height: Pixels = None,
    frames: Annotated[
        int | None, typer.Option(min=2, help="Frames; default: the model's own number.")
    ] = None,
    dtype: Dtype = None,
    device: Device = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="An .mp4, .gif or .webp file; default: out/clip.mp4."),
    ] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Make a video of a picture with an image-to-video model such as Stable Video Diffusion.

    Ctrl-C once stops at the next step and still decodes and saves what there is; twice aborts.
    """
    from ..files import free
    from ..hooks.guard import guard
    from ..hooks.progress import progress
    from ..make.animate import Motion, still, target
    from ..make.animate import animate as make

    video = target(
        out or free(Path("out/clip"), ".mp4").with_suffix(".mp4"),
        overwrite=overwrite or out is None,
    )
    with reporting(as_json) as report:
        interval = guidance_of(guidance, guidance_until)
        named = None if sampler is None else sampler_of(sampler, steps, settings or [])
        movement, first = Motion(motion, fps, noise), still(picture)
        quiet()
        from ..pipelines.helm import Helm  # which takes seconds: after what may be refused

        helm = Helm(model, dtype=dtype, device=device)
        chosen = choose(helm, named, steps, settings or [], None, interval)
        size = {"width": width, "height": height, "num_frames": frames}
        with stoppable(helm):
            result = make(
                first,
                video,
                helm=helm,
                sampler=chosen,
                seed=seed,
                motion=movement,
                guidance=interval,
                hooks=[progress(picture.name), guard()],
                overwrite=overwrite,
                **{key: value for key, value in size.items() if value},
            )
        kept(result.video)
        if result.stopped:
            say(f"stopped: {result.stopped}")
        say(f"video      {result.video}")
        count, calls = len(result.frames), result.calls
        say(f"{count} frames, {calls} network calls, {result.seconds:.2f} s, seed {seed}")
        report |= {
            "video": result.video,
            "frames": count,
            "calls": calls,
            "seconds": round(result.seconds, 3),
            "seed": seed,
            "sampler": chosen.label,
            "steps": chosen.steps,
            "stopped": result.stopped or None,
        }


def replay(
    picture: Annotated[Path, typer.Argument(help="A PNG that timonel wrote.")],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", help="The .png to write, or its folder; default: beside it, -replay.png."
        ),
    ] = None,
    overwrite: Overwrite = False,
    yes: Annotated[
        bool, typer.Option("--yes", help="Load the model that the picture names, without asking.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Make a picture again from the recipe inside it, and say whether it is the same.

    Before a model is loaded that does not ship with timonel, you are asked: whoever made the file
    chose it.
    """
    from ..files import beside, free, placed, ready, short
    from ..hooks.guard import guard
    from ..hooks.progress import progress
    from ..make.recipe import Recipe
    from ..picture_files import picture as read

    recipe, before = Recipe.read(picture), read(picture)
    recipe.check()
    folder = picture.parent if out is None else out
    named = out if out is not None and out.suffix and not out.is_dir() else None
    path = _png(named or folder / f"{short(picture.stem)}-replay.png")
    if named is None and not overwrite:
        path = beside(free(path.with_suffix(""), ".png"), ".png")
    ready(path, overwrite=overwrite)
    _allowed(picture, recipe, yes)
    with reporting(as_json) as report:
        quiet()
        helm = recipe.helm(recipe.model)
        with stoppable(helm):
            again, now = recipe.make(helm, hooks=[progress(recipe.title), guard()])
        with placed(path, overwrite=overwrite) as path:
            now.save(again, path)
        kept(path)
        difference = _difference(before, again)
        said = "identical, bit for bit"
        if difference:
            said = f"different: {_reasons(recipe, now, difference)}"
        say(f"picture    {path}\n{said}")
        report |= {
            "picture": path,
            "identical": not difference,
            "largest_difference": difference,
            "said": said,
            "versions_before": recipe.versions,
            "versions_now": now.versions,
        }
    raise typer.Exit(1 if difference else 0)


def _allowed(picture: Path, recipe: Recipe, yes: bool) -> None:
    """Ask before a model is loaded that only a file names; an error where nobody can answer."""
    from .. import zoo
    from ..errors import ArgumentError

    if yes or recipe.model in zoo.MODELS:
        return
    loading = "".join(f", {key}={value!r}" for key, value in (recipe.loading or {}).items())
    said = (
        f"{str(picture)!r} names the model {recipe.model!r}{loading}, which does not ship with"
        " timonel"
    )
    if not say_.interactive():
        raise ArgumentError(f"{said}; where you know it, load it with --yes")
    if not say_.confirmed(f"{said}. Load it?"):
        raise typer.Abort


def _png(path: Path) -> Path:
    """`path`, which is a PNG's. Raises `ArgumentError` for another suffix."""
    from ..errors import ArgumentError

    if path.suffix.lower() != ".png":
        raise ArgumentError(f"a picture with its recipe is a .png file, got {str(path)!r}")
    return path


def _difference(before: Image.Image, now: Image.Image) -> float:
    """The largest difference of two pictures, of 255; infinite where their sizes differ."""
    from PIL import ImageChops

    if before.size != now.size:
        return math.inf
    bands = ImageChops.difference(before.convert("RGB"), now.convert("RGB")).split()
    return max(float(band.getextrema()[1]) for band in bands)  # type: ignore[arg-type]


def _reasons(before: Recipe, now: Recipe, difference: float) -> str:
    """How far a picture differs, and what may be why."""
    changed = [
        f"{name} {before.versions.get(name, 'unknown')} -> {now.versions.get(name, 'unknown')}"
        for name in sorted({*before.versions, *now.versions})
        if before.versions.get(name) != now.versions.get(name)
    ]
    if before.besides:
        changed.insert(0, f"it also had {', '.join(before.besides)}, which a file cannot hold")
    if before.batch:
        changed.insert(0, f"it was one of {before.batch} made at once, which rounds otherwise")
    changed = changed or ["same versions, so another machine, device or number of threads"]
    by = "of another size" if difference == math.inf else f"by at most {difference:.0f} of 255"
    return f"{by}; {', '.join(changed)}"
