"""The native loop: sample from any callable denoiser, without diffusers.

    x0 = tm.sample(denoise, noise, "dpmpp_2m/karras", process=tm.EDM(0.002, 80), steps=10)

`denoise(x, level)` gets x = alpha·x0 + sigma·noise and the level as floats (alpha, sigma, time). It
returns what `prediction` says: by default the denoised sample.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor

from ..core import border
from ..core import guidance as guide
from ..core import noise as noises
from ..core.adaptive import AdaptiveRun
from ..core.driver import Driver
from ..core.guidance import Guidance
from ..core.noise import Noise, Seeded
from ..core.not_finite import check_result
from ..core.process import Process
from ..core.program import DenoisedFn
from ..core.run import Run
from ..core.sampler import Sampler
from ..core.table import Table
from ..errors import ArgumentError, function, instance
from .drive import drive, without_terms
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
    denoised_fn: DenoisedFn | None = None,
    keep: int = 0,
) -> Run:
    """A run that has started at x.

    Args:
        x: Initial sample (batch, …): unit normal noise for a full journey.
        sampler: A `Sampler`, or its name such as "dpmpp_2m/karras".
        process: What noise the denoiser knows.
        prediction: What it returns: sample, epsilon, v or flow.
        steps: Number of steps; None where the sampler says it.
        seeds: One per sample, for the noise that stochastic samplers add.
        noise: Another source of that noise, in the place of `seeds`.
        guidance: `cfg(…)`, or a scale; it needs the unconditional denoiser.
        hooks: Called after every step.
        denoised_fn: Changes the denoised prediction before it is used, as clipping does.
        keep: How many steps stay in memory, so that `rewind` computes little again.

    Returns:
        The run, before its first network call.

    Raises:
        ArgumentError: For anything that cannot be used, before any network call.
    """
    border.tensor("the start", x)
    instance("process", process, Process, "a timonel process such as tm.VP.from_schedule()")
    if seeds is not None and noise is not None:
        raise ArgumentError("give seeds= or noise=, not both")
    seeds = None if seeds is None else noises.checked(seeds)
    if guidance is not None and not isinstance(guidance, Guidance):
        guidance = guide.cfg(guidance)
    chosen = Sampler.of(sampler, steps).guided_by(guidance)
    if noise is not None and chosen.source != noises.DEFAULT:
        raise ArgumentError(f"give noise= or Sampler(noise={chosen.source!r}), not both")
    settings: dict[str, Any] = {
        "guidance": guidance, "hooks": hooks, "denoised_fn": denoised_fn, "keep": keep,
    }  # fmt: skip
    if chosen.controlled:
        plan = chosen.plan(process)
        noise = noise if seeds is None else _seeded(noises.SeededNoise(seeds), x)
        run: Run = AdaptiveRun(plan, prediction, noise=noise, **settings)
    else:
        table = chosen.compile(process)
        noise = noise if seeds is None else _seeded(noises.source(chosen.source, seeds, table), x)
        run = Run(table, prediction, noise=noise, sampler=chosen, process=process, **settings)
    run.start(x)
    return run


def _seeded(source: Seeded, x: Tensor) -> Seeded:
    """A source that has a seed for each sample."""
    source.check(len(x))
    return source


class NativeLoop(Driver):
    """The native loop: it guides by a scale, where it has an unconditional denoiser."""

    def __init__(self, unconditional: Denoiser | None) -> None:
        self.unconditional = unconditional

    def admit(self, run: Run, guidance: Guidance, table: Table) -> None:
        """Raises `ArgumentError` where the coming rows of `run` cannot be guided so."""
        without_terms(guidance)
        if self.unconditional is None:
            raise ArgumentError(
                "guidance needs the unconditional denoiser: sample(…, unconditional=…)"
            )
        if guidance.scale is None:
            raise ArgumentError(
                "guidance needs a scale here: cfg(4.0, …); only a pipeline has a scale of its own"
            )


def iterate(run: Run, denoise: Denoiser, unconditional: Denoiser | None = None) -> Iterator[Run]:
    """Drive a run, step by step.

    The arguments are checked here; the first step is computed at the first `next`.

    Args:
        run: From `begin`, or one that was loaded, resumed or rewound.
        denoise: `denoise(x, level)`, the network.
        unconditional: The same without the condition, where the run is guided.

    Returns:
        An iterator of the run, after every completed step. It raises what `denoise` or a hook
        raises; the run is then failed, or stopped by a `KeyboardInterrupt`, and goes on when it is
        driven again after `run.resume()`.

    Raises:
        ArgumentError: For arguments that do not go together, at once.
    """
    instance("run", run, Run, "a run, as begin(…) makes one")
    _check_denoisers(denoise, unconditional)
    if run.guidance is None and unconditional is not None:
        raise ArgumentError(
            "unconditional= has nothing to do without guidance: give guidance=4.0, or leave it out"
        )
    driver = NativeLoop(unconditional)
    if run.guidance is not None:
        driver.admit(run, run.guidance, run.table)
    run.drive_by(driver)
    network = Denoisers(denoise, unconditional)
    return (run for row in drive(run, network) if run.row > row and run.table.ends[row])


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
    denoised_fn: DenoisedFn | None = None,
) -> Tensor:
    """Sample to the end.

    Args:
        denoise: `denoise(x, level)`, the network.
        unconditional: The same without the condition, where there is guidance.
        x: As the other arguments those of `begin`.
        sampler: See `begin`.
        process: See `begin`.
        prediction: See `begin`.
        steps: See `begin`.
        seeds: See `begin`.
        noise: See `begin`.
        guidance: See `begin`.
        hooks: See `begin`.
        denoised_fn: See `begin`.

    Returns:
        The result (batch, …); of a run that a hook stops its denoised prediction.

    Raises:
        ArgumentError: For anything that cannot be used, before any network call.
        GuardStop: Where every sample of the result has NaN or infinity; a warning where some have.
            The hook `guard` ends a run at the step where it goes wrong.
    """
    return NativeCall(
        denoise, unconditional, x, sampler, process=process, prediction=prediction, steps=steps,
        seeds=seeds, noise=noise, guidance=guidance, hooks=hooks, denoised_fn=denoised_fn,
    )()  # fmt: skip


class NativeCall:
    """A call of the native loop whose run has started; its result is computed when it is called.

    Args:
        denoise: `denoise(x, level)`, the network.
        unconditional: The same without the condition, where there is guidance.
        x: See `begin`.
        sampler: See `begin`.
        **settings: See `begin`.

    Raises:
        ArgumentError: For anything that cannot be used, before the hooks' `on_start`.
    """

    def __init__(
        self,
        denoise: Denoiser,
        unconditional: Denoiser | None,
        x: Tensor,
        sampler: Sampler | str,
        **settings: Any,
    ) -> None:
        _check_denoisers(denoise, unconditional)
        self.run = begin(x, sampler, **settings)
        self._steps = iterate(self.run, denoise, unconditional)

    def __call__(self) -> Tensor:
        """Sample to the end; see `sample`."""
        for _ in self._steps:
            pass
        check_result(self.run, self.run.result)
        return self.run.result

    def cancel(self) -> None:
        """Nothing was claimed."""


def _check_denoisers(denoise: Denoiser, unconditional: Denoiser | None) -> None:
    """Raises `ArgumentError` for a denoiser that cannot be called with a sample and a level."""
    for name, value in (("denoise", denoise), ("unconditional", unconditional)):
        if value is not None or name == "denoise":
            function(name, value, "lambda x, level: network(x, level.time)", 2)
