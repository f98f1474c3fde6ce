"""The runs of a server by their names, and the requests that begin them."""

from __future__ import annotations

import itertools
import secrets
import time
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from ...core.guidance import Guidance, cfg
from ...core.sampler import DEFAULT, is_file
from ...errors import ArgumentError, UnknownName, number_of_steps, shown
from ..engine import Engine
from ..ticket import Output, Ticket
from .journal import Accepted, Journal
from .pictures import encoded
from .settings import Limits


@dataclass(frozen=True)
class Wanted:
    """What a request asks a model for, in whatever API it came.

    Args:
        prompt: the text.
        negative_prompt: what guidance leads away from.
        sampler: by any name that timonel knows; None is the model's.
        grid: its levels, where they are named apart.
        steps: None is the model's.
        guidance: scale; None is the model's.
        until: end of the guidance interval as a share of the steps.
        seed: of the first picture; None draws one. The following pictures have the following seeds.
        width: in pixels; None is the model's.
        height: in pixels; None is the model's.
        priority: as `Engine.submit` has it.
        keep: step ends that are kept, so that a rewind is instant.
    """

    prompt: str
    negative_prompt: str | None = None
    sampler: str | None = None
    grid: str | None = None
    steps: int | None = None
    guidance: float | None = None
    until: float | None = None
    seed: int | None = None
    width: int | None = None
    height: int | None = None
    priority: int = 0
    keep: int = 0

    def check(self, limits: Limits, count: int) -> None:
        """Raise `ArgumentError` for more than the server allows."""
        for what, value, most in (
            ("steps", self.steps or 0, limits.steps), ("n", count, limits.samples),
            ("width", self.width or 0, limits.side), ("height", self.height or 0, limits.side),
            ("keep", self.keep, limits.steps),
        ):  # fmt: skip
            if value > most:
                raise ArgumentError(f"{what} is at most {most} on this server, got {value}")
        if is_file(self.sampler) or is_file(self.grid):
            raise ArgumentError(
                f"sampler {shown(self.sampler)} is a file, and a server reads none: name one of GET"
                " /samplers"
            )
        for text in (self.prompt, self.negative_prompt or ""):
            if len(text) > limits.prompt:
                raise ArgumentError(
                    f"a prompt has at most {limits.prompt} characters on this server, got"
                    f" {len(text)}"
                )

    def options(self) -> dict[str, Any]:
        """The arguments of `Engine.submit`, without seeds."""
        sampler = self.sampler
        if self.grid is not None:
            sampler = f"{self.sampler or DEFAULT}/{self.grid}"
        values = {
            "prompt": self.prompt, "negative_prompt": self.negative_prompt, "sampler": sampler,
            "steps": self.steps, "guidance": self._guidance(), "width": self.width,
            "height": self.height, "priority": self.priority, "keep": self.keep or None,
        }  # fmt: skip
        return {name: value for name, value in values.items() if value is not None}

    def _guidance(self) -> Guidance | None:
        if self.guidance is None and self.until is None:
            return None
        return cfg(self.guidance, until=self.until)


@dataclass(eq=False)
class Served:
    """A run of the server.

    Attributes:
        name: its id in the API.
        model: its model.
        ticket: of the engine.
        created: seconds since 1970.
    """

    name: str
    model: str
    ticket: Ticket
    created: float = field(default_factory=time.time)

    @property
    def output(self) -> Output | None:
        """Its pictures, once they are there."""
        return self.ticket.result() if self.ticket.done and self.ticket.succeeded else None


class Runs:
    """Engines by the names of their models, and the runs that were submitted to them.

    Args:
        engines: by name; the first one is the usual one.
        limits: see `Limits`.
        journal: keeps what was accepted; what one that stopped has left is submitted again.
    """

    def __init__(
        self, engines: Mapping[str, Engine], limits: Limits, journal: Journal | None = None
    ) -> None:
        self.engines, self.limits, self.journal = dict(engines), limits, journal
        self._runs: OrderedDict[str, Served] = OrderedDict()

    def engine(self, model: str | None) -> tuple[str, Engine]:
        """The engine of a model; None is the first one. Raises `UnknownName`."""
        name = next(iter(self.engines)) if model is None else model
        if name not in self.engines:
            raise UnknownName("model", name, self.engines)
        return name, self.engines[name]

    def submit(self, model: str | None, wanted: Wanted, count: int = 1) -> list[Served]:
        """Submit a request, a run for each of its pictures.

        Raises:
            ArgumentError: more than the server allows, or what the model cannot do.
            Full: too many runs wait.
        """
        wanted.check(self.limits, count)
        name, engine = self.engine(model)
        first = secrets.randbelow(2**32) if wanted.seed is None else wanted.seed
        runs = list[Served]()
        _check_steps(engine, wanted.options(), self.limits)
        try:
            for seed in itertools.islice(itertools.count(first), count):
                runs.append(self._begin(secrets.token_hex(12), name, replace(wanted, seed=seed)))
        except BaseException:
            for run in runs:
                run.ticket.cancel("another picture of its request was refused")
            raise
        return runs

    def _begin(self, name: str, model: str, wanted: Wanted) -> Served:
        """Submit one run, and write it down first."""
        if self.journal is not None:
            self.journal.accept(Accepted(name, model, asdict(wanted)))
        try:
            ticket = self.engines[model].submit(
                seeds=[wanted.seed], deadline=self.limits.run_seconds, output_type="pil",
                **wanted.options(),
            )  # fmt: skip
        except BaseException:
            if self.journal is not None:
                self.journal.finish(name, None)
            raise
        run = self._keep(Served(name, model, ticket))
        ticket.when_ended(lambda: self._ended(run))
        return run

    def _ended(self, run: Served) -> None:
        """Write the picture of a run; one that the server's end has cut off is left to the next."""
        output = run.output
        if self.journal is None or (output is None and self.engines[run.model].closing):
            return
        self.journal.finish(run.name, None if output is None else encoded(output.images[0]))

    def go_on(self) -> int:
        """Submit what a server before has left in the journal; how many runs that were.

        Raises:
            ArgumentError: the journal holds something else, or a run of a model that is not served.
        """
        left = [] if self.journal is None else list(self.journal.left())
        for run in left:
            self._begin(run.name, self.engine(run.model)[0], Wanted(**run.wanted))
        return len(left)

    def picture(self, name: str) -> bytes | None:
        """The PNG of a run that has ended; None where there is none."""
        run = self.find(name)
        if run is not None and run.output is not None:
            return encoded(run.output.images[0])
        return None if self.journal is None else self.journal.picture(name)

    def branch(self, run: Served, step: int | None = None, paused: bool = False) -> Served:
        """A second run from where the first one stands.

        Args:
            run: the first one.
            step: goes back to so many completed steps first; None stays.
            paused: whether it waits until it is resumed.

        Raises:
            RunError: the first one has not begun, or is no longer there.
        """
        ticket = self.engines[run.model].branch(run.ticket, step=step, paused=paused)
        return self._keep(Served(secrets.token_hex(12), run.model, ticket))

    def _keep(self, run: Served) -> Served:
        """Keep a run, and let go of the oldest that have ended."""
        self._runs[run.name] = run
        ended = [name for name, one in self._runs.items() if one.ticket.done]
        for name in ended[: max(0, len(ended) - self.limits.kept)]:
            del self._runs[name]
        return run

    def find(self, name: str) -> Served | None:
        """The run of a name; None where there is none, or it was let go of."""
        return self._runs.get(name)

    def all(self) -> Iterable[Served]:
        """Every run that is known, the newest last."""
        return list(self._runs.values())


def _check_steps(engine: Engine, options: Mapping[str, Any], limits: Limits) -> None:
    """Raises `ArgumentError` where sampler and steps make more network calls than allowed."""
    chosen = engine.helm.choose(options.get("sampler"), options.get("steps"))
    steps = chosen.sampler.steps or 0
    if steps > limits.steps:
        raise ArgumentError(
            f"{number_of_steps(steps)} of {shown(chosen.sampler.label)} are more than the"
            f" {limits.steps} of this server"
        )
