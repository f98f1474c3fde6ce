"""What a pipeline passes to its networks for a prompt, read in the first turn of its loop.

The pipeline is called as the call calls it, but for the prompt, with a scheduler of the same levels
and the same seeds, until its first step, where it is left. Its networks compute nothing: zeros of
the sample's shape let the loop go on to its next call of the turn; only where a loop cannot go on
with zeros do they compute. Afterwards generators, the scheduler and the pipeline's own attributes
are what they were, so that the call goes on as if this had not happened.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..engine.tensor_trees import map_leaves
from ..errors import ArgumentError
from .guidance.gate import Called, Gate, networks
from .guidance.prompts import Learned, Pair, Seen, tree_of
from .network.busy import Claim, processors
from .session import Session
from .sockets.scheduler import Scheduler


class FirstTurnOver(BaseException):
    """Leaves the pipeline at its first step."""


class Standin(tuple[Any, ...]):
    """The output of a network that computes nothing, by position and by name."""

    @property
    def sample(self) -> Any:
        """The prediction."""
        return self[0]


class Watcher:
    """Notes the calls of a turn.

    A network beside the pipeline's own, such as a ControlNet, computes for the first prompt. For
    the others it repeats that: what it makes of the prompt is none of the prompt's arguments, for
    it is called again at every row.

    Args:
        computes: whether the pipeline's own networks compute.
        beside: outputs of the others, to be repeated.
    """

    def __init__(self, computes: bool, beside: Sequence[Any] = ()) -> None:
        self.seen: list[Seen] = []
        self.beside: list[Any] = []
        self.computes, self._known = computes, list(beside)

    def call(self, called: Called) -> Any:
        """Note a call, and answer it."""
        self.seen.append(Seen(called.main, tree_of(called)))
        if not called.main:
            output = self._known.pop(0) if self._known else called.compute()
            self.beside.append(map_leaves(_copy, output))
            return output
        if self.computes:
            return called.compute()
        sample = called.sample
        zeros: Any = [torch.zeros_like(s) if isinstance(s, Tensor) else s for s in sample]
        return Standin((torch.zeros_like(sample) if isinstance(sample, Tensor) else zeros,))


class FirstTurn:
    """Encodes prompts by the first turn of a call's loop.

    Args:
        pipe: the pipeline.
        session: of the call.
        gate: of the call.
        claim: of the call.
        options: the pipeline's arguments.
    """

    def __init__(
        self, pipe: Any, session: Session, gate: Gate, claim: Claim, options: Mapping[str, Any]
    ) -> None:
        self.pipe, self.session, self.gate = pipe, session, gate
        self.claim, self.options = claim, options

    def learn(self, pairs: Sequence[Pair]) -> Learned:
        """What the networks get for pairs of prompts.

        Args:
            pairs: that of the call first.

        Raises:
            ArgumentError: the prompt of this pipeline cannot change on the way.
        """
        turns, beside = list[list[Seen]](), list[Any]()
        for pair in pairs:
            watcher = self._turn(pair, beside)
            beside = watcher.beside
            turns.append(watcher.seen)
        return Learned(type(self.pipe).__name__, pairs, turns)

    def _turn(self, pair: Pair, beside: list[Any]) -> Watcher:
        """The calls of the networks in the first turn with a pair of prompts."""
        written = {"prompt": _written(pair.prompt), "negative_prompt": _written(pair.negative)}
        options = {**self.options, **{k: v for k, v in written.items() if v is not None}}
        watcher = Watcher(False, beside)
        try:
            self._run(options, watcher)
        except Exception:
            if not any(seen.main for seen in watcher.seen):
                raise  # no network was called: the error is the pipeline's
            watcher = Watcher(True, beside)
            self._run(options, watcher)
        if not any(seen.main for seen in watcher.seen):
            raise ArgumentError(
                f"{type(self.pipe).__name__} makes a step without calling a network that timonel"
                " knows, so its prompt cannot change on the way"
            )
        return watcher

    def _run(self, options: Mapping[str, Any], watcher: Watcher) -> None:
        """Call the pipeline up to its first step."""
        with self._beside(watcher):
            try:
                self.pipe(**options)
            except FirstTurnOver:
                return
        raise ArgumentError(
            f"{type(self.pipe).__name__} made no step with its scheduler, so its prompt cannot"
            " change on the way"
        )

    @contextmanager
    def _beside(self, watcher: Watcher) -> Iterator[None]:
        """The pipeline can be called beside its own call, and is as before afterwards."""
        pipe, gate, claim = self.pipe, self.gate, self.claim
        states = [(one, one.get_state()) for one in generators(self.options)]
        attributes = _private(pipe)
        scheduler, restore = pipe.scheduler, processors(networks(pipe))
        bar, twin = attributes.get("_progress_bar_config") or {}, self._scheduler()
        idle = [m for m, main in networks(pipe).items() if main and not watcher.computes]
        turns, unhook = claim.has_turns, _without_hooks(idle)
        if not turns:
            claim.looping(False)
        gate.watcher, pipe.scheduler = watcher, twin
        pipe._progress_bar_config = {**bar, "disable": True}
        try:
            with claim.again():
                yield
        finally:
            gate.watcher, pipe.scheduler = None, scheduler
            _put_back(pipe, attributes)
            unhook()
            restore()
            for generator, state in states:
                generator.set_state(state)
            if not turns:
                claim.looping(True)

    def _scheduler(self) -> Scheduler:
        """A scheduler of the same levels, whose first step leaves the pipeline."""
        main: Scheduler = self.session.scheduler
        config = {key: value for key, value in main.config.items() if not key.startswith("_")}
        twin: Scheduler = type(main)._of(config)
        twin.sampler = main.sampler
        request = replace(self.session.request, resume=None, recall=False, hooks=(), keep=0)
        twin.session = Session(twin, request)
        twin.__dict__["step"] = _leave
        return twin


def _private(pipe: Any) -> dict[str, Any]:
    """The private attributes of a pipeline, in which it keeps the state of its call."""
    return {key: value for key, value in vars(pipe).items() if key.startswith("_")}


def _put_back(pipe: Any, attributes: Mapping[str, Any]) -> None:
    """Set the private attributes of a pipeline to what they were."""
    for key in _private(pipe).keys() - attributes.keys():
        delattr(pipe, key)
    for key, value in attributes.items():
        if vars(pipe).get(key) is not value:
            setattr(pipe, key, value)


def _without_hooks(modules: Sequence[nn.Module]) -> Callable[[], None]:
    """Switch the hooks of networks that compute nothing off; returns what puts them back."""
    before = [(module, module._forward_pre_hooks, module._forward_hooks) for module in modules]
    for module, _, _ in before:
        module._forward_pre_hooks, module._forward_hooks = OrderedDict(), OrderedDict()

    def end() -> None:
        for module, first, last in before:
            module._forward_pre_hooks, module._forward_hooks = first, last

    return end


def _copy(_: str, leaf: Any) -> Any:
    return leaf.clone() if isinstance(leaf, Tensor) else leaf


def _leave(*_: Any, **__: Any) -> None:
    raise FirstTurnOver


def generators(options: Mapping[str, Any]) -> list[torch.Generator]:
    """The generators that a call may draw from: its own and torch's."""
    option = options.get("generator")
    several = isinstance(option, (list, tuple))
    each = [] if option is None else list(option) if several else [option]
    return [*each, torch.default_generator, *torch.cuda.default_generators]


def _written(text: Any) -> Any:
    """A prompt as pipelines take it."""
    return list(text) if isinstance(text, tuple) else text
