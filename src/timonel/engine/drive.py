"""The loop that drives a run over a network: the one place where rows are evaluated."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from ..core.guidance import Guidance
from ..core.noise import Noise
from ..core.run import Run
from ..core.table import Table
from ..errors import ArgumentError
from .network import Answer, Network, Query, RunnableNetwork


def run_on(
    model: RunnableNetwork,
    table: Table,
    *,
    noise: Noise | None = None,
    guidance: Guidance | None = None,
) -> Run:
    """A run of a table on a model, not begun.

    Args:
        model: The network.
        table: Of a sampler compiled for its process.
        noise: Source of the noise that a stochastic table draws.
        guidance: None is the network's.
    """
    return Run(
        table, model.prediction, noise=noise, guidance=guidance, denoised_fn=model.denoised_fn
    )


def query(run: Run, conditions: Sequence[int] = ()) -> Query:
    """The query of the next row of a run.

    Args:
        run: One that has a row to compute.
        conditions: The slot of each of its samples' conditions.

    Raises:
        ArgumentError: Its guidance has terms.
    """
    guidance = run.guided.guidance
    if guidance is not None:
        without_terms(guidance)
    if guidance is None:
        return Query(run.latents, run.level, conditions, uncond=run.table.reads_uncond)
    forecasts = guidance.forecast > 1
    forecast = run.forecast if forecasts else None
    plain = Query(
        run.latents, run.level, conditions, run.scale, guidance.rescale, forecast, forecasts,
        uncond=run.table.reads_uncond,
    )  # fmt: skip
    if guidance.method is None:
        return plain
    place = run.guided.place(run.row)
    return plain._replace(method=guidance.method, place=place, momentum=run.momentum)


def without_terms(guidance: Guidance) -> None:
    """Raises `ArgumentError` for terms, which change layers that only a pipeline's network has."""
    if guidance.terms:
        raise ArgumentError(
            f"{guidance.terms[0].kind} makes the network of a pipeline worse, so it needs the helm:"
            " helm(…, guidance=…); here give cfg(…) or a method alone"
        )


def advance(run: Run, answer: Answer) -> None:
    """Compute the next row of a run from the network's answer."""
    raw, *aside = answer
    if any(part is not None for part in aside):
        run.remember(answer.difference, uncond=answer.uncond, momentum=answer.momentum)
    run.advance(raw)


def drive(run: Run, network: Network, conditions: Sequence[int] = ()) -> Iterator[int]:
    """Drive a run from where it is to its end.

    It waits while the run is paused, goes back where it is rewound, and ends where it is stopped.

    Args:
        run: One that has started.
        network: What evaluates its rows.
        conditions: The slot of each of its samples' conditions.

    Yields:
        Every row once it is computed.

    Raises:
        Exception: What the network or a hook raises; the run is then failed, or stopped by a
            `KeyboardInterrupt`, and goes on when it is driven again after `run.resume()`.
    """
    for row in run.rows():
        try:
            with torch.no_grad():
                advance(run, network.evaluate([query(run, conditions)])[0])
        except BaseException as error:
            run.fail(error)
            raise
        yield row


def finish(run: Run, network: Network, conditions: Sequence[int] = ()) -> torch.Tensor:
    """The result of a run that is driven to its end; see `drive`."""
    for _ in drive(run, network, conditions):
        pass
    return run.result
