"""Writes names.md: ComfyUI's and k-diffusion's names, measured. TIMONEL_COMFYUI=CHECKOUT python
docs/make_names.py

Takes some minutes. The checkout is any folder with ComfyUI's source; see tests/support/comfyui.py.
"""

from __future__ import annotations

import torch

from support import names_page as measured
from support.names_page import SAME, STEPS, Row
from support.places import DOCS
from timonel.files import replacing

PAGE = DOCS / "names.md"
CLEAR = 1.15  # one distance is called nearer where the other is so many times as large

HEAD = """# ComfyUI's, A1111's and k-diffusion's names

Made by `TIMONEL_COMFYUI=… python docs/make_names.py` with ComfyUI {version}; \
`tests/docs/test_names_page.py` holds it.

Type the names you know: `tm.Sampler("dpmpp_2m_sde_gpu/karras")`, `--sampler "DPM++ 2M Karras"`, \
"Euler a". This page
says for every name of ComfyUI's KSampler and of k-diffusion's functions whether it does the same \
here.

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

A1111's and Forge's names are listed in [samplers.md](samplers.md#other-names); \
they run what ComfyUI's do. A1111, too,
leaves out the last level but one for `DPM2 a`; \
its `DPM2` is `dpm2` here, which leaves out none (`dpm_2` does).
ComfyUI's `denoise` is `strength`. The `*_cfg_pp` ran with guidance {scale} to a class of the data; \
no number of steps converges at one such scale, so no distance is measured.
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
        return line(
            f"`{row.name}`", row.here, "", "", "", "later than this ComfyUI; by its formula"
        )
    note = measured.NOTES.get(row.name, "")
    return line(f"`{row.name}`", row.here, *map(difference, row.differs), note)


def head(places: list[str]) -> dict[str, str]:
    columns = [f"{place} {n}" for place in places for n in STEPS]
    return {"columns": " | ".join(columns), "lines": " | ".join(["---"] * len(columns))}


def page() -> str:
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
    parts += [K.format(**head(["karras"]))]
    for row in map(measured.k_row, measured.K_DIFFUSION):
        if row.refused:
            parts += [
                line(f"`sample_{row.name}`", "-", f"refused: {row.refused}", *[""] * len(STEPS))
            ]
        elif not row.differs:
            parts += [
                line(
                    f"`sample_{row.name}`",
                    row.here,
                    "`n` is calls there, N is steps here",
                    *[""] * len(STEPS),
                )
            ]
        else:
            cells = distances(row, least if row.stochastic else 0.0)
            parts += [line(f"`sample_{row.name}`", row.here, difference(row.differs[0]), *cells)]
    return "".join(parts)


if __name__ == "__main__":
    torch.set_num_threads(1)
    with replacing(PAGE) as temporary:
        temporary.write_text(page(), "utf-8")
    print(PAGE)
