"""The native loop: sample from any callable denoiser, without diffusers.

    x0 = tm.sample(denoise, noise, "dpmpp_2m/karras", process=tm.EDM(0.002, 80), steps=10)

`denoise(x, level)` gets the sample in unit-variance coordinates (see `process.py`) and the level as
floats (alpha, sigma, time), and returns what `prediction` says: by default the denoised sample.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import ArgumentError, function, instance
from . import border
from . import guidance as guide
from . import noise as noises
from .driver import Driver
from .guidance import Guidance
from .noise import Noise
from .not_finite import check_result
from .process import At, Process
from .program import Shape
from .run import Run
from .sampler import Sampler

Denoiser = Callable[[Tensor, At], Tensor]


def begin(
    x: Tensor,
    sampler: Sampler | str,
    *,
    process: Process,
    prediction: str = "sample",
    steps: int | None = None,
    seeds: Sequence[int] | None = None,
    noise: Noise | None = None,
    guidance: Guidance | float | None = None,
    hooks: Sequence[Any] = (),
    shape: Shape | None = None,
    keep: int = 0,
) -> Run:
    """A run that has started at the sample x (batch, …): unit normal noise for a full journey.

    `seeds`: one per sample, for the noise that stochastic samplers add, from the source that the
    sampler names; `noise`: a source of your own instead. Raises `ArgumentError` for anything that
    cannot be used, before any network call.
    """
    border.tensor("the start", x)
    instance("process", process, Process, "a timonel process such as tm.VP.from_schedule()")
    if seeds is not None and noise is not None:
        raise ArgumentError("give seeds= or noise=, not both")
    seeds = None if seeds is None else noises.checked(seeds)
    if guidance is not None and not isinstance(guidance, Guidance):
        guidance = guide.cfg(guidance)
    chosen = Sampler.of(sampler, steps)
    if noise is not None and chosen.source != noises.DEFAULT:
        raise ArgumentError(f"give noise= or Sampler(noise={chosen.source!r}), not both")
    table = chosen.compile(process)
    if seeds is not None:
        noise = seeded = noises.source(chosen.source, seeds, table)
        seeded.check(len(x))
    run = Run(
        table, prediction, noise=noise, guidance=guidance, hooks=hooks, shape=shape, keep=keep
    )
    run.start(x)
    return run


@torch.no_grad()
def advance(run: Run, denoise: Denoiser, unconditional: Denoiser | None = None) -> None:
    """One network call (two where guidance is on and its half is not forecast) and one row."""
    at = run.level
    raw = border.output(denoise(run.latents, at), run.latents)
    scale = 1.0 if run.scale is None else run.scale
    if unconditional is not None and scale != 1.0:
        rescale = run.guiding.rescale if run.guiding else 0.0
        forecast = run.forecast
        other = (
            border.output(unconditional(run.latents, at), run.latents)
            if forecast is None
            else raw - forecast
        )
        if forecast is None and run.remembers:
            run.remember(raw - other)
        raw = guide.combine(raw, other, scale, rescale)
    run.advance(raw)


class Loop(Driver):
    """The native loop, which guides where it has an unconditional denoiser, and by a scale only."""

    def __init__(self, unconditional: Denoiser | None) -> None:
        self.unconditional = unconditional

    def admit(self, run: Run, guidance: Guidance) -> None:
        if self.unconditional is None:
            raise ArgumentError(
                "guidance needs the unconditional denoiser: sample(…, unconditional=…)"
            )
        if guidance.scale is None:
            raise ArgumentError(
                "guidance needs a scale here: cfg(4.0, …); only a pipeline has a scale of its own"
            )


def iterate(run: Run, denoise: Denoiser, unconditional: Denoiser | None = None) -> Iterator[Run]:
    """Drive `run` and yield it after every completed step.

    Raises what `denoise` or a hook raises; the run is then failed, or stopped by a
    `KeyboardInterrupt`, and goes on where it was when it is given here again after `run.resume()`.
    """
    instance("run", run, Run, "a run, as begin(…) makes one")
    function("denoise", denoise, "lambda x, level: network(x, level.time)", 2)
    if unconditional is not None:
        function("unconditional", unconditional, "lambda x, level: network(x, level.time)", 2)
    if run.guidance is None and unconditional is not None:
        raise ArgumentError(
            "unconditional= has nothing to do without guidance: give guidance=4.0, or leave it out"
        )
    driver = Loop(unconditional)
    if run.guidance is not None:
        driver.admit(run, run.guidance)
    run.drive_by(driver)
    return _steps(run, denoise, unconditional)


def _steps(run: Run, denoise: Denoiser, unconditional: Denoiser | None) -> Iterator[Run]:
    for row in run.rows():
        try:
            advance(run, denoise, unconditional)
        except BaseException as error:
            run.fail(error)
            raise
        if run.table.ends_step(row):
            yield run


def sample(
    denoise: Denoiser,
    x: Tensor,
    sampler: Sampler | str,
    *,
    process: Process,
    prediction: str = "sample",
    steps: int | None = None,
    seeds: Sequence[int] | None = None,
    noise: Noise | None = None,
    unconditional: Denoiser | None = None,
    guidance: Guidance | float | None = None,
    hooks: Sequence[Any] = (),
    shape: Shape | None = None,
) -> Tensor:
    """Sample to the end and return the result (batch, …); a stopped run gives its denoised
    prediction.

    Raises `GuardStop` where every sample of the result has NaN or infinity; warns where only some
    have. The hook `guard` ends a run at the step where it goes wrong.

    The arguments are those of `begin`, where they are documented and checked.
    """
    function("denoise", denoise, "lambda x, level: network(x, level.time)", 2)
    if unconditional is not None:
        function("unconditional", unconditional, "lambda x, level: network(x, level.time)", 2)
    run = begin(
        x, sampler, process=process, prediction=prediction, steps=steps, seeds=seeds, noise=noise,
        guidance=guidance, hooks=hooks, shape=shape,
    )  # fmt: skip
    for _ in iterate(run, denoise, unconditional):
        pass
    check_result(run, run.result)
    return run.result
