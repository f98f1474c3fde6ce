"""Writes names.md: every name that people type. TIMONEL_COMFYUI=CHECKOUT python docs/make_names.py

ComfyUI's part is measured for some minutes, on a checkout that is any folder with ComfyUI's source;
see tests/support/comfyui.py. `--only k-diffusion webui sdnext diffusers` makes these parts anew
(without "k-diffusion" in seconds) and keeps the others as the page has them.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence

import torch

from support import names_lists as listed
from support import names_page as measured
from support.names_page import SAME, STEPS, Row
from support.places import DOCS
from timonel.files import replacing

PAGE = DOCS / "names.md"
CLEAR = 1.15  # one distance is called nearer where the other is so many times as large

HEAD = """# Every name that people type

Made by `TIMONEL_COMFYUI=… python docs/make_names.py` with ComfyUI {version}; \
`tests/docs/test_names_page.py` holds it.

Type the names you know: `tm.Sampler("dpmpp_2m_sde_gpu/karras")`, `--sampler "DPM++ 2M Karras"`, \
"Euler a". This page
says for every name of ComfyUI's KSampler and of k-diffusion's functions whether it does the same \
here, and lists
[A1111's and Forge's](#a1111s-and-forges-labels), [SD.Next's](#sdnexts-samplers) and \
[diffusers' classes](#diffusers-scheduler-classes).

- **same**: on the same levels, with the same noise, the results are equal, \
to {same:g} of their size or better.
- a number: how far apart the two results are, relative to their size, \
at worst in 4, 8 and 20 steps.
- **refused**: there is no such sampler here; the error says why and what to use instead.

Who is nearer to the exact answer is measured as you would use it: ComfyUI's KSampler with a \
sampler and a scheduler,
here the same two names, in 4, 8 and 20 steps. \
The data is a mixture of Gaussians whose denoiser is known exactly,
as an image model (Stable Diffusion's levels) on `karras` and `normal`, and as a flow of shift 3 \
(SD3, Flux) on
`simple`. A deterministic sampler has its root mean square distance to the exact solution, \
a stochastic one the
energy distance of {count} samples to the data, where {floor:.4f} is what exact samples have: \
below twice of that
nothing can be told apart. The first number is ComfyUI's, the second timonel's; \
the nearer one is bold where the
other is {clear:g} times as large or more. \
A network has errors of its own, so small differences here are none on
pictures.

A1111's and Forge's names run what ComfyUI's do. A1111, too,
leaves out the last level but one for `DPM2 a`; \
its `DPM2` is `dpm2` here, which leaves out none (`dpm_2` does).
ComfyUI's `denoise` is `strength`. The `*_cfg_pp` ran with guidance {scale} to a \
class of the data; no number of steps converges at one such scale, so no distance is measured.
"""
SAMPLERS = """
## ComfyUI's samplers

| name | here | karras | normal | flow | remarks |
| --- | --- | --- | --- | --- | --- |
"""
NEAR = """
### {kind}

| name | {columns} |
| --- | {lines} |
"""
GRIDS = """
## ComfyUI's schedulers

The largest relative difference of a level. \
On the levels of both: the distance of DPM++ 2M (image model) and of Heun
(flow) in 4, 8, 20 steps.

| name | image model | flow | remarks | {columns} |
| --- | --- | --- | --- | {lines} |
"""
K = """
## k-diffusion's functions

On Karras' levels. `sample_lms` extrapolates to sigma = 0; \
here the last step returns the denoised sample, as in
ComfyUI, unless `options={{"euler_at_final": False}}`.

| function | here | karras | {columns} |
| --- | --- | --- | {lines} |
"""
WEBUI = """
## A1111's and Forge's labels

A label may name its grid as well (`DPM++ 2M Karras`), and the names of their API work too \
(`k_dpmpp_2m_ka`). They call
k-diffusion's functions, whose parity is above.

| sampler | here | remarks |
| --- | --- | --- |
"""
WEBUI_GRIDS = """
| schedule type | here | remarks |
| --- | --- | --- |
"""
SDNEXT = """
## SD.Next's samplers

They are diffusers' classes with settings of their own; the flags of a class are those of \
`timonel.compat`.

| sampler | here | remarks |
| --- | --- | --- |
"""
DIFFUSERS = """
## diffusers' scheduler classes

Of each class: what `Sampler("…")` is, whether `timonel.compat` has it, what \
`Scheduler.from_config` samples with where a
config names the class alone, and what [parity.md](parity.md) measured, with the largest \
difference in float64.

| class | sampler | timonel.compat | from_config | parity | remarks |
| --- | --- | --- | --- | --- | --- |
"""
GRID_NOTES = {
    "simple": "ComfyUI rounds down to a training index; a flow's is not rounded here",
    "sgm_uniform": "on a flow ComfyUI shifts the cleanest level twice",
    "normal": "on a flow ComfyUI shifts the cleanest level twice",
    "ddim_uniform": "ComfyUI makes more steps than asked for where N does not divide 1000",
    "beta": (
        "ComfyUI rounds to training indices, and drops those that repeat; here they are fractional"
    ),
}
SHORT = {"karras": "karras", "normal": "normal", "simple": "flow"}
PLACES = [SHORT[scheduler] for _, scheduler in measured.PLACES]


def difference(value: float | None) -> str:
    if value is None:
        return "differs"
    return "same" if value <= SAME else "more steps" if value == float("inf") else f"{value:.1g}"


def nearer(peer: float, ours: float, least: float = 0.0) -> str:
    """Both distances, the nearer one bold where it is clear and above what can be told apart."""
    a, b = f"{peer:.3g}", f"{ours:.3g}"
    clear = max(peer, ours) > 2 * least
    if clear and ours > CLEAR * max(peer, least):
        return f"**{a}** / {b}"
    return f"{a} / **{b}**" if clear and peer > CLEAR * max(ours, least) else f"{a} / {b}"


def distances(row: Row, least: float = 0.0) -> list[str]:
    """One cell a place and number of steps."""
    return [
        nearer(a, b, least) for peer, ours in zip(row.peer, row.ours, strict=True)
        for a, b in zip(peer, ours, strict=True)
    ]  # fmt: skip


def line(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |\n"


def sampler_line(row: Row) -> str:
    if row.refused:
        return line(f"`{row.name}`", "-", "refused", "", "", row.refused)
    if not row.differs:
        note = measured.NOTES.get(row.name, "later than this ComfyUI; by its formula")
        return line(f"`{row.name}`", row.here, "", "", "", note)
    note = measured.NOTES.get(row.name, "")
    return line(f"`{row.name}`", row.here, *map(difference, row.differs), note)


def head(places: list[str]) -> dict[str, str]:
    columns = [f"{place} {n}" for place in places for n in STEPS]
    return {"columns": " | ".join(columns), "lines": " | ".join(["---"] * len(columns))}


def comfyui() -> str:
    answer, samplers, grids = measured.comfy_rows()
    least = measured.floor()
    parts = [
        HEAD.format(
            version=answer.version,
            same=SAME,
            count=measured.COUNT,
            floor=least,
            clear=CLEAR,
            scale=measured.LAMBDA,
        )
    ]
    parts += [SAMPLERS, *map(sampler_line, samplers)]
    for stochastic, kind in (
        (False, "Deterministic: distance to the exact solution"),
        (True, f"Stochastic: energy distance to the data (exact samples: {least:.4f})"),
    ):
        parts += [NEAR.format(kind=kind, **head(PLACES))]
        parts += [
            line(f"`{row.name}`", *distances(row, least if stochastic else 0.0))
            for row in samplers if row.peer and row.stochastic == stochastic
        ]  # fmt: skip
    parts += [GRIDS.format(**head(["image model", "flow"]))]
    parts += [
        line(f"`{r.name}`", *map(difference, r.differs), GRID_NOTES.get(r.name, ""), *distances(r))
        for r in grids
    ]
    return "".join(parts)


def k_diffusion() -> str:
    least = measured.floor()
    parts = [K.format(**head(["karras"]))]
    for row in map(measured.k_row, measured.K_DIFFUSION):
        name, blank = f"`sample_{row.name}`", [""] * len(STEPS)
        if row.refused:
            parts += [line(name, "-", f"refused: {row.refused}", *blank)]
        elif not row.differs:
            parts += [line(name, row.here, "`n` is calls there, N is steps here", *blank)]
        else:
            cells = distances(row, least if row.stochastic else 0.0)
            parts += [line(name, row.here, difference(row.differs[0]), *cells)]
    return "".join(parts)


def entries(rows: Sequence[listed.Entry]) -> str:
    return "".join(
        line(one.name, one.here, f"refused: {one.refused}" if one.refused else one.note)
        for one in rows
    )


def webui() -> str:
    samplers = [listed.sampler(name, "WebUI") for name in listed.WEBUI]
    grids = [listed.grid(name, "WebUI") for name in listed.WEBUI_GRIDS]
    return WEBUI + entries(samplers) + WEBUI_GRIDS + entries(grids)


def sdnext() -> str:
    return SDNEXT + entries([listed.sampler(name, "SD.Next") for name in listed.SDNEXT])


def diffusers() -> str:
    parts = [DIFFUSERS]
    for one in map(listed.of_class, listed.classes()):
        drop_in = "drop-in" if one.drop_in else "-"
        cells = one.here, drop_in, one.config, one.parity
        parts += [line(f"`{one.name}`", *cells, f"refused: {one.refused}" if one.refused else "")]
    return "".join(parts)


#: what makes a part of the page, and the heading where it begins
PARTS: dict[str, tuple[Callable[[], str], str]] = {
    "comfyui": (comfyui, "# Every name"),
    "k-diffusion": (k_diffusion, "\n## k-diffusion's functions"),
    "webui": (webui, "\n## A1111's and Forge's labels"),
    "sdnext": (sdnext, "\n## SD.Next's samplers"),
    "diffusers": (diffusers, "\n## diffusers' scheduler classes"),
}


def kept(part: str, text: str) -> str:
    """A part of the page as it stands."""
    starts = [text.find(heading) for _, heading in PARTS.values()]
    place = starts[list(PARTS).index(part)]
    if place < 0:
        raise SystemExit(f"{PAGE} has no part {part!r}: make it too")
    return text[place : min((one for one in starts if one > place), default=len(text))]


def page(only: Sequence[str] = tuple(PARTS)) -> str:
    before = PAGE.read_text("utf-8")
    return "".join(
        make() if part in only else kept(part, before) for part, (make, _) in PARTS.items()
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Write docs/names.md.")
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS))
    torch.set_num_threads(1)
    text = page(parser.parse_args().only)
    with replacing(PAGE) as temporary:
        temporary.write_text(text, "utf-8")
    print(PAGE)
