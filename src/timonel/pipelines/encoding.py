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
from ..core.noise import Noise, source
from ..core.run import Run
from ..core.sampler import Sampler
from ..core.table import Table
from ..engine.conditions import Conditions
from ..engine.drive import without_terms
from ..errors import ArgumentError, RunError
from . import watched
from .capture import Captured, NotCaptured, not_noised
from .guidance import batch_tree
from .guidance.gate import Called, Gate
from .helm import Helm
from .session import Session
from .sockets import requested_levels


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
    row, helm = watched.WatchedRow(), captured.helm
    call = helm.ready(
        tuple(args),
        {**options, "guidance": captured.scale, **_sampler(helm, options, guidance)},
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
    network = _of(captured, row, call.gate.samples or 1)
    run.equip(hooks)
    session.request = replace(session.request, guidance=guidance, hooks=tuple(hooks))
    run.drive_by(CapturedLoop(captured, session))
    run.guidance = guidance
    return Encoded(network, run, session, call.options)


def stays_in_loop(options: Mapping[str, Any], guidance: Guidance | None) -> str:
    """Why a call needs the pipeline's own loop, whatever its network is.

    Args:
        options: of the call of the helm.
        guidance: of the run.

    Returns:
        A sentence; empty where it does not.
    """
    for name in ("prompts", "negative_prompts"):
        if options.get(name) is not None:
            return f"{name}= change on the way, which the pipeline's own loop does"
    if guidance is not None and guidance.terms:
        kind = guidance.terms[0].kind
        return f"{kind} makes the network worse, which the pipeline's own loop does"
    return ""


def _sampler(
    helm: Helm, options: Mapping[str, Any], guidance: Guidance | None
) -> dict[str, Sampler]:
    """The sampler that such guidance needs, for the call itself is guided by the capture's scale.

    Empty where it is the same.
    """
    named = options.get("sampler")
    if guidance is None or (named is None and requested_levels.lists(options)):
        return {}
    if named is None:
        return {"sampler": helm.choose(None, options.get("steps"), guidance).sampler}
    return {"sampler": Sampler.of(named).guided_by(guidance)}


class CapturedLoop(Driver):
    """The loop of a captured network: it guides where it has two parts.

    Args:
        captured: the network.
        session: of the call.
    """

    def __init__(self, captured: Captured, session: Session) -> None:
        self.captured, self.session = captured, session

    def admit(self, run: Run, guidance: Guidance, table: Table) -> None:
        """Raises `ArgumentError` where the coming rows of `run` cannot be guided so."""
        without_terms(guidance)
        parts = self.captured.parts
        scales = set(guidance.scales(table)) - {1.0}
        more = guidance.method is not None or guidance.rescale or guidance.forecast > 1
        others = scales if more else scales - {None, self.captured.scale}
        if others and parts != 2:
            raise ArgumentError(
                f"guidance {_named(guidance, others)} needs a conditional and an unconditional"
                f" part, and {type(self.captured.helm.pipe).__name__} has {parts} here: leave"
                " guidance out, or name a scale above 1 when the call begins"
            )

    def prompt(self, run: Run, prompts: Any, negative: Any) -> None:
        """Raises `RunError`: the conditions of a call are encoded when it is admitted."""
        raise RunError(
            "this call shares its network calls, and its prompt was encoded when it was admitted:"
            " let prompts change by submit(prompts={0.0: …, 0.4: …}), whose call is made alone"
        )

    def source(self, kind: str, table: Table, sample: Tensor) -> Noise | None:
        """The noise of the call's seeds."""
        seeds = self.session.request.seeds
        return None if seeds is None else source(kind, seeds, table).spread(sample)


def _named(guidance: Guidance, scales: set[float | None]) -> str:
    """What of guidance needs two parts, in few words."""
    if guidance.method is not None:
        return guidance.method.name
    numbers = [scale for scale in scales if scale is not None]
    return f"{max(numbers):g}" if numbers else "with forecast= or rescale="


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
