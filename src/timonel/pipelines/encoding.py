"""A call of a captured pipeline, up to its first network call.

A capture has learned how the pipeline calls its network. What another call adds is its run and the
conditions of its samples: the pipeline encodes them, and its first row is noted and not computed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..core.driver import Driver
from ..core.guidance import Guidance
from ..core.run import Run
from ..core.table import Table
from ..engine.conditions import Conditions
from ..engine.drive import without_terms
from ..errors import ArgumentError
from . import watched
from .capture import Captured, NotCaptured, not_noised
from .guidance import batch_tree
from .guidance.gate import Called, Gate
from .session import Session


@dataclass(frozen=True, eq=False)
class Encoded:
    """A call that has been encoded.

    Args:
        network: the captured network under the conditions of this call alone, in slots 0 … n - 1;
            its `start` is the noise (n, …) that the run begins with. Of another size than the
            capture's its weights and clock are not checked.
        run: of the call, not begun.
        session: of the call.
        options: that the pipeline was called with.
    """

    network: Captured
    run: Run
    session: Session
    options: dict[str, Any]


class EncodingGate(Gate):
    """Notes the network calls of the first row, and ends the call before the last of them.

    Args:
        captured: says how many parts a row has.
        row: gets the calls.
        call: as in `Gate`.
    """

    def __init__(self, captured: Captured, row: watched.WatchedRow, *call: Any) -> None:
        super().__init__(*call)
        self.captured, self.row = captured, row

    def combined(self, raw: Tensor, x: Tensor) -> Tensor:
        """Never right: the row would have fewer parts than when it was captured."""
        raise NotCaptured(f"{self._name} calls its network for fewer parts than in the capture")

    def call(self, called: Called) -> Any:
        """Note a call; the last of the row ends the pipeline's call."""
        self.session.coming()  # the run of this loop
        if called.module is not self.captured.module:
            raise NotCaptured(f"{self._name} calls another network than in the capture")
        self.row.calls.append((called.module, watched.noted(called), torch.empty(0)))
        batches = [batch_tree.sample_of((), named) for _, named, _ in self.row.calls]
        if sum(map(len, batches)) >= (self.samples or 1) * self.captured.parts:
            raise watched.Watched
        return called.compute()


def encode(
    captured: Captured,
    args: Sequence[Any],
    options: Mapping[str, Any],
    guidance: Guidance | None = None,
    hooks: Sequence[Any] = (),
) -> Encoded:
    """The run of a call of the helm, and the conditions of its samples.

    It costs no network call as a rule. Where the pipeline calls its network for one part at a time,
    the parts before the last are computed.

    Args:
        captured: the network of the pipeline; its conditions stay what they are.
        args: as in a call of the helm.
        options: as in a call of the helm, without guidance and hooks.
        guidance: of the run; None is the scale of the capture.
        hooks: of the run.

    Returns:
        The call, whose run has not begun.

    Raises:
        NotCaptured: the pipeline calls its network otherwise than in the capture.
        TimonelError: what a call of the helm raises.
    """
    check_shared(options, guidance)
    row, helm = watched.WatchedRow(), captured.helm
    call = helm.ready(
        tuple(args),
        {**options, "guidance": captured.scale},
        partial(EncodingGate, captured, row),
    )
    session = call.session
    session.scheduler.__dict__["add_noise"] = not_noised
    try:
        call()
        raise NotCaptured(f"{type(helm.pipe).__name__} made no step")
    except watched.Watched:
        pass
    run = session.run
    assert run is not None
    if session.rows[0]:
        raise NotCaptured(f"{type(helm.pipe).__name__} begins on the way, not at pure noise")
    _check_method(guidance, run.table)
    network = _of(captured, row, call.gate.samples or 1)
    run.equip(hooks)
    session.request = replace(session.request, guidance=guidance, hooks=tuple(hooks))
    run.drive_by(CapturedLoop(captured))
    run.guidance = guidance
    return Encoded(network, run, session, call.options)


def check_shared(options: Mapping[str, Any], guidance: Guidance | None) -> None:
    """Refuse what a captured network cannot do for one of the runs that share its calls.

    Args:
        options: of a call of the helm.
        guidance: of its run.

    Raises:
        NotCaptured: the helm alone can make the call.
    """
    for name in ("prompts", "negative_prompts"):
        if options.get(name) is not None:
            raise NotCaptured(f"{name}= change over the run, and its conditions stay the same")
    if guidance is not None and guidance.terms:
        raise NotCaptured(f"{guidance.terms[0].kind} changes layers of the network that others use")


def _check_method(guidance: Guidance | None, table: Table) -> None:
    """Raises `NotCaptured` where the helm would take the CFG++ twin of the sampler."""
    method = None if guidance is None else guidance.method
    if method is not None and method.reads_uncond and not table.reads_uncond:
        raise NotCaptured(
            f"{method.name} takes the twin of {table.solver!r}: name it, e.g."
            " sampler='euler_cfg_pp', to share network calls"
        )


class CapturedLoop(Driver):
    """The loop of a captured network: it guides by a scale where it has two parts.

    Args:
        captured: the network.
    """

    def __init__(self, captured: Captured) -> None:
        self.captured = captured

    def admit(self, run: Run, guidance: Guidance) -> None:
        """Raises `ArgumentError` where the coming rows of `run` cannot be guided so."""
        without_terms(guidance)
        parts = self.captured.parts
        others = set(guidance.scales(run.table)) - {None, 1.0, self.captured.scale}
        if others and parts != 2:
            raise ArgumentError(
                f"guidance {max(filter(None, others)):g} needs a conditional and an unconditional"
                f" part, and {type(self.captured.helm.pipe).__name__} has {parts} here: leave"
                " guidance out"
            )


def _of(captured: Captured, row: watched.WatchedRow, count: int) -> Captured:
    """The captured network with the arguments of a row, whose kinds the capture has checked."""
    arguments = watched.merged(row, count, type(captured.helm.pipe).__name__)
    sample, time = captured.names
    entering = arguments.pop(sample)
    del arguments[time]
    start, extra, joined = entering, None, captured.joined
    if captured.width is not None:
        start = entering.narrow(joined, 0, captured.width)
        extra = entering.narrow(joined, captured.width, entering.shape[joined] - captured.width)
    conditions = Conditions(
        {**arguments, watched.EXTRA: extra}, count, captured.parts, batch_tree.batched
    )
    start = start[:count].to(captured.start, copy=True)
    return replace(captured, start=start, conditions=conditions)
