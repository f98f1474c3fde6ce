"""The native loop: sample from any callable denoiser, without diffusers.

    x0 = tm.sample(denoise, noise, "dpmpp_2m/karras", process=tm.EDM(0.002, 80), steps=10)

`denoise(x, level)` gets the sample in unit-variance coordinates (see `process.py`) and the level as
floats (alpha, sigma, time), and returns what `prediction` says: by default the denoised sample.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor

from ..core import border
from ..core import guidance as guide
from ..core import noise as noises
from ..core.driver import Driver
from ..core.guidance import Guidance
from ..core.noise import Noise
from ..core.not_finite import check_result
from ..core.process import Process
from ..core.program import Shape
from ..core.run import Run
from ..core.sampler import Sampler
from ..errors import ArgumentError, function, instance
from .drive import drive
from .network import Denoiser, Denoisers


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
    run.driver = Loop(unconditional)
    if run.guidance is not None:
        run.driver.admit(run, run.guidance)
    for row in drive(run, Denoisers(denoise, unconditional)):
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
