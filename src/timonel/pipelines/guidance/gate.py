"""The gate socket: what the networks of a pipeline compute, under guidance and while the loop only
turns.

Pipelines call their network for a conditional and an unconditional part, in one batch or one call
each, and combine the outputs themselves, by a formula that is theirs: `u + g·(c - u)`, per frame,
with an image's part, rescaled. The gate leaves the formula alone and changes the parts. Where a
step is not guided it computes the conditional part only and hands that back for every part, so that
any such formula yields it, at half the cost or less. Where a step has a scale of its own it hands
back `c + k·(u - c)`, which scales the guidance of the pipeline by k. Where the unconditional part
is forecast, u is `c - d`, d the difference of the parts as it is foreseen from those of the steps
before.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ...core.guidance import Guidance, stretch
from ...core.run import Run
from ...errors import ArgumentError, ModelError
from . import batch_tree as parts

if TYPE_CHECKING:
    from ..network.busy import Claim
    from ..sockets.scheduler import Scheduler

# the first of these groups that a pipeline has is called once a step (or once a part) with the
# sample
NETWORKS = (("unet", "transformer", "transformer_2"), ("prior",), ("decoder",), ("dit",))
HELPERS = ("controlnet",)  # called beside the network, with inputs that are batched alike
NO_HALF = (
    "guidance was asked for, but {pipe} gives its network no unconditional half that can be told"
    " apart: raise its guidance scale above 1 and give what it needs for guidance (a negative"
    " prompt, for some), or leave guidance out for a guidance-distilled model"
)
NO_SUM = "makes something else of its two parts than a sum"
NO_FORECAST = (
    "the unconditional half of {pipe} cannot be forecast: it {why}; leave forecast= out of cfg(…)"
)


def networks(pipe: Any) -> dict[nn.Module, bool]:
    """The modules that a pipeline calls in its loop, and whether each makes the prediction."""
    for group in NETWORKS:
        found = [
            module for name in group if isinstance(module := getattr(pipe, name, None), nn.Module)
        ]
        if found:
            helpers = [
                module
                for name in HELPERS
                if isinstance(module := getattr(pipe, name, None), nn.Module)
            ]
            return dict.fromkeys(helpers, False) | dict.fromkeys(found, True)
    return {}


@contextmanager
def gated(gate: Any, claim: Claim) -> Iterator[None]:
    """Every network call of the pipeline goes through `gate` while the context is open; others are
    refused.

    Raises `RunError` where a call that is not steered uses a network of the pipeline already.
    """
    found = networks(gate.pipe)
    with ExitStack() as stack:
        if hasattr(gate.pipe, "_set_pag_attn_processor"):
            stack.callback(_processors(found))
        for module, main in found.items():
            stack.callback(_put(gate, module, main, claim))
        claim.check()
        yield


def _put(gate: Gate, module: nn.Module, main: bool, claim: Claim) -> Callable[[], None]:
    """Put the gate around a module's forward, outside other hooks and compiled code; returns what
    takes it out.
    """
    name = "_compiled_call_impl" if module._compiled_call_impl is not None else "forward"
    inner, own, open_ = getattr(module, name), module.__dict__, [True]

    @functools.wraps(inner)
    def through(*args: Any, **kwargs: Any) -> Any:
        # closed it may still be reached, where somebody wrapped it during the call
        if not open_ or not claim.admits(module):
            return inner(*args, **kwargs)
        return gate.call(module, main, inner, args, kwargs)

    missing = object()
    before = own.get(name, missing)
    own[name] = through

    def take_out() -> None:
        open_.clear()
        if own.get(name) is not through:
            return  # somebody replaced it during the call, as offloading does at its end
        if before is missing:
            del own[name]
        else:
            own[name] = before

    return take_out


def _processors(found: dict[nn.Module, bool]) -> Callable[[], None]:
    """What restores attention processors, which pipelines with perturbed attention leave changed
    after an error.
    """
    held: list[tuple[Any, dict[str, Any]]] = [
        (module, dict(module.attn_processors))  # type: ignore[arg-type]
        for module, main in found.items()
        if main and hasattr(module, "attn_processors")
    ]

    def restore() -> None:
        for module, before in held:
            if module.attn_processors != before:
                module.set_attn_processor(before)

    return restore


class Gate:
    """The gate of one call. `samples`: how many the call makes, where known; `own`: the pipeline's
    guidance scale.
    """

    def __init__(
        self, pipe: Any, scheduler: Scheduler, samples: int | None, own: float | None = None
    ) -> None:
        self.pipe, self.scheduler, self.samples, self.own = pipe, scheduler, samples, own
        self.usual = own  # the scale that the pipeline guides with, whoever chose it
        self.at: tuple[Run, int, int] | None = None
        self.said: dict[nn.Module, list[Any]] = {}  # outputs of the newest row that was computed
        self.opening: dict[
            nn.Module, list[Any]
        ] = {}  # those of the first row, which may hold what later ones reuse
        # there was no output to hand out again when this turn began: it is computed in full
        self.blank = True
        self.heard: dict[nn.Module, int] = {}  # how many of them were handed out again
        self.first: tuple[Any, int, Any] | None = (
            None  # sample, parts and output of this row's first call
        )
        self.found: list[Tensor] = []  # this row's parts, as the pipeline got them
        self.halves: list[list[Tensor]] = []  # and as the network made them, of each of its outputs
        self.fits = False  # the pipeline was seen to make nothing but a sum of the two
        self.seen: tuple[list[Tensor], Tensor, bool] | None = None  # see `_first_row`
        self.place: int | None = None  # which of them is conditional, once measured
        self.shift = 0.0  # 1 where a pipeline's scale is that of c + g·(c - u)
        self.guided = self.skipped = self.scaled = (
            False  # a second part was seen; a part was left out; k was not 1
        )

    # -- around a network ------------------------------------------------------------------------
    def call(
        self,
        module: nn.Module,
        main: bool,
        forward: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """A network's output: computed, computed in part, or remembered."""
        run = self.scheduler.coming()
        if run is None:
            return forward(*args, **kwargs)
        self._enter(run)
        known = self.opening if self.scheduler.hand.first and self.opening else self.said
        idle = self.scheduler.hand.idle
        remembered = self._remembered(known, module, main) if idle and not self.blank else []
        if remembered:
            self.heard[module] = self.heard.get(module, -1) + 1
            return remembered[min(self.heard[module], len(remembered) - 1)]
        if run.guiding is None or idle:
            made = forward(*args, **kwargs)
        elif main:
            made = self._predict(run, forward, args, kwargs)
        else:
            made = self._help(run, forward, args, kwargs)
        self.said.setdefault(module, []).append(made)
        return made

    def _remembered(
        self, known: dict[nn.Module, list[Any]], module: nn.Module, main: bool
    ) -> list[Any]:
        """The outputs of a network, or of the one that it takes turns with; empty where it has to
        be computed.
        """
        if module in known or not main:
            return known.get(module, [])
        return next(
            (
                known[other]
                for other, alike in networks(self.pipe).items()
                if alike and other in known
            ),
            [],
        )

    def _enter(self, run: Run) -> None:
        """Notice where a new turn of the loop begins."""
        at = (run, run.advances, self.scheduler.hand.turn)
        if self.at is None or self.at[0] is not run or self.at[1:] != at[1:]:
            self.at, self.first, self.found, self.halves, self.heard = at, None, [], [], {}
            self.blank = not (self.opening or self.said)
            if not self.scheduler.hand.idle:
                self.opening, self.said = self.opening or self.said, {}

    def _samples(self, run: Run, size: int) -> int:
        """How many samples the batch is made of."""
        count = len(run.latents) if run.started else 0
        if self.samples and size <= 3 * self.samples and (not count or count % self.samples == 0):
            return self.samples
        if (
            self.samples and not count and size % 2 == 0
        ):  # every frame is one of the batch, in both halves
            return size // 2
        return count or (size // 2 if parts.guides(self.pipe) and size % 2 == 0 else size)

    def _help(
        self, run: Run, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """A controlnet's output; only for the conditional part where the network sees only that."""
        size = len(parts.sample_of(args, kwargs))
        samples = self._samples(run, size)
        count = size // samples
        both = run.scale != 1.0 and not run.forecasting
        if (
            both or count not in (2, 3) or size % samples
        ):  # more where every frame is one of a batch
            return forward(*args, **kwargs)
        return self._cut(forward, args, kwargs, count, samples, frames=True)

    def _predict(
        self, run: Run, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """The prediction's parts."""
        sample = parts.sample_of(args, kwargs)
        if self.first is not None and len(sample) <= len(self.first[0]):
            return self._again(run, sample, forward, args, kwargs)
        size = len(sample)
        samples = self._samples(run, size)
        count = size // samples
        if size % samples or count > 3:
            raise ArgumentError(
                f"{NO_HALF.format(pipe=self._name)} (its network got {size} for {samples} samples)"
            )
        if count == 1:
            if parts.guides(self.pipe) is False and not self._nothing(run):
                raise ArgumentError(NO_HALF.format(pipe=self._name))
            made = forward(*args, **kwargs)
            self._note(run, made, 1, size, isinstance(sample, list))
            self.found = [t for t in (parts.tensors(made),) if t is not None]
        elif run.scale == 1.0:
            self.skipped = self.guided = True
            made = self._cut(forward, args, kwargs, count, samples)
        else:
            self.guided = True
            if run.forecasting:
                made = self._cut(forward, args, kwargs, count, samples, away=self._foreseen(run))
            else:
                made = forward(*args, **kwargs)
                self._note(run, made, count, size, isinstance(sample, list))
                made = self._scaled(run, made, count, size, isinstance(sample, list))
            whole = parts.tensors(made)
            self.found = [] if whole is None or len(whole) != size else list(whole.chunk(count))
        self.first = (sample, count, made)
        return made

    def _again(
        self, run: Run, sample: Any, forward: Callable[..., Any], args: Any, kwargs: dict[str, Any]
    ) -> Any:
        """A later call in the same turn: the unconditional part if it is about the same sample."""
        assert self.first is not None
        before, count, conditional = self.first
        if count > 1 or not parts.same(before, sample):
            return forward(
                *args, **kwargs
            )  # another window of a video, or a part that is not for guidance
        self.guided = True
        if run.scale == 1.0:
            self.skipped = True
            return conditional
        size, listed = len(sample), isinstance(sample, list)
        if run.forecasting:
            away = self._foreseen(run)
            made = parts.rearrange(conditional, lambda found: [found[0] - away], 1, size, listed)
            self.found = [*self.found, *(t for t in (parts.tensors(made),) if t is not None)]
            return made
        made, k = forward(*args, **kwargs), self._share(run)
        self._note(run, made, 1, size, listed)
        if k != 1.0:
            made = parts.blend(conditional, made, k)
        found = parts.tensors(made)
        self.found = [] if found is None else [*self.found, found]
        return made

    # -- parts ---------------------------------------------------------------------------------
    def _conditional(self, count: int) -> int:
        return parts.conditional(self.pipe, count) if self.place is None else self.place

    def _cut(
        self, forward: Callable[..., Any], args: Any, kwargs: dict[str, Any], count: int,
        samples: int, *,
        frames: bool = False, away: Tensor | None = None,
    ) -> Any:  # fmt: skip
        """Compute the conditional part only and hand it back for all that guide by the prompt,
        `away` from it.
        """
        place, size = self._conditional(count), count * samples
        perturbed = parts.perturbed(self.pipe)
        if perturbed and count == 2:
            return forward(*args, **kwargs)  # conditional and perturbed: nothing to leave out
        kept = 2 if perturbed else 1
        wanted = slice(place * samples, (place + kept) * samples)
        listed = isinstance(parts.sample_of(args, kwargs), list)
        less = parts.narrow(args, size, wanted, listed), parts.narrow(kwargs, size, wanted, listed)
        with self._perturbed_pair() if perturbed else ExitStack():
            made = forward(*less[0], **less[1])

        def every(found: list[Any]) -> list[Any]:
            other = found[0] if away is None else found[0] - away
            return [
                found[0] if part == place else other for part in range(count - kept + 1)
            ] + found[1:]

        return parts.rearrange(made, every, kept, kept * samples, listed, frames)

    @contextmanager
    def _perturbed_pair(self) -> Iterator[None]:
        """Attention that expects [conditional, perturbed] instead of [unconditional, conditional,
        perturbed].
        """
        layers = self.pipe.pag_applied_layers
        self.pipe._set_pag_attn_processor(
            pag_applied_layers=layers, do_classifier_free_guidance=False
        )
        try:
            yield
        finally:
            self.pipe._set_pag_attn_processor(
                pag_applied_layers=layers, do_classifier_free_guidance=True
            )

    def _scaled(self, run: Run, made: Any, count: int, size: int, listed: bool) -> Any:
        """The output with its guidance scaled to this row's."""
        k = self._share(run)
        if k == 1.0:
            return made
        if count == 3 and not parts.perturbed(self.pipe):
            raise ArgumentError(
                f"{self._name} guides by two things at once; give one scale, not one per step"
            )
        place = self._conditional(count)

        def nearer(found: list[Tensor]) -> list[Tensor]:
            return [
                found[place].lerp(part, k) if i < 2 and i != place else part
                for i, part in enumerate(found)
            ]

        return parts.rearrange(made, nearer, count, size, listed)

    def _share(self, run: Run) -> float:
        """k: this row's guidance in units of the pipeline's own."""
        if run.scale is None or self.usual is None or run.scale == self.usual:
            return 1.0
        self.scaled = True
        return (run.scale - 1 + self.shift) / (self.usual - 1 + self.shift)

    # -- the unconditional part as it is foreseen ------------------------------------------------
    def _note(self, run: Run, made: Any, count: int, size: int, listed: bool) -> None:
        """Keep the parts of an output, for forecasts, before anything is made of them."""
        if run.scale == 1.0 or not run.remembers:
            return
        found: list[list[Tensor]] = []
        none: list[Tensor] = []

        def look(part: list[Tensor]) -> list[Tensor]:
            found.append(part)
            return part

        parts.rearrange(made, look, count, size, listed)
        self.halves = [a + b for a, b in itertools.zip_longest(self.halves, found, fillvalue=none)]

    def _foreseen(self, run: Run) -> Tensor:
        """How far the unconditional part is from the conditional one, as this row scales guidance."""
        away, k = run.forecast, self._share(run)
        assert away is not None
        return away if k == 1.0 else away * k

    def _difference(self, raw: Tensor) -> Tensor:
        """Conditional minus unconditional part. Raises `ArgumentError` where they are not all that
        guides.
        """
        halves = self.halves[0] if len(self.halves) == 1 else []
        why = ""
        if len(self.halves) > 1:
            why = f"has a network of {len(self.halves)} outputs"
        elif len(halves) != 2 or parts.perturbed(self.pipe):
            why = f"guides by {len(halves)} parts, not by a conditional and an unconditional one"
        elif (
            not self.fits and bool(raw.isfinite().all()) and not _within(halves, raw)
        ):  # else a guard is to say so
            why = NO_SUM
        if why:
            raise ArgumentError(NO_FORECAST.format(pipe=self._name, why=why))
        self.fits = self.fits or bool(raw.isfinite().all())
        place = 0 if self.first is not None and self.first[1] == 1 else self._conditional(2)
        return halves[place] - halves[1 - place]

    # -- after the pipeline combined them ------------------------------------------------------
    def combined(self, raw: Tensor) -> Tensor:
        """What the row is advanced with: the pipeline's combination, checked the first time,
        rescaled where asked.
        """
        run = self.scheduler.run
        self.seen = self._first_row(run, raw) if self.seen is None else self.seen
        if run.guiding is None or self._nothing(run):
            return raw
        if not networks(self.pipe):
            raise ModelError(
                f"timonel does not know the network of {self._name}, so it cannot guide it"
            )
        if (
            not self.guided and getattr(self.pipe, "guider", None) is None
        ):  # guiders have intervals of their own
            raise ArgumentError(NO_HALF.format(pipe=self._name))
        if run.scale == 1.0:
            return raw
        if self.place is None and len(self.found) > 1:
            self._measure(self.found, raw, self.first is not None and self.first[1] == 1)
        if run.remembers and not run.forecasting:
            run.remember(self._difference(raw))
        return self._rescaled(raw, run.guiding.rescale) if run.guiding.rescale else raw

    def _first_row(self, run: Run, raw: Tensor) -> tuple[list[Tensor], Tensor, bool]:
        """A row's parts, guided or not, what the pipeline made of them, and whether they were
        called one by one.
        """
        modules = [module for module, main in networks(self.pipe).items() if main]
        outputs = [parts.tensors(made) for module in modules for made in self.said.get(module, ())]
        each = [t for t in outputs if t is not None and t.ndim]
        if len(each) != 1:
            return each, raw, True
        count = len(each[0]) // self._samples(run, len(each[0]))
        return list(each[0].chunk(count)) if 1 < count <= 3 else each, raw, False

    def admit(self, run: Run, guidance: Guidance) -> None:
        """Raises `ModelError` or `ArgumentError` where the call, as it was begun, cannot be guided
        so.
        """
        scales = set(guidance.scales(run.table)) - {1.0}
        if not scales:
            return
        if not networks(self.pipe):
            raise ModelError(
                f"timonel does not know the network of {self._name}, so it cannot guide it"
            )
        guided = parts.guides(self.pipe)
        if not self.guided and not (
            self.usual is not None and self.usual > 1 if guided is None else guided
        ):
            raise ArgumentError(
                f"{self._name} computes no unconditional half in this call, so guidance cannot be"
                " switched on now: begin a call with guidance above 1, e.g. guidance=1.5;"
                " run.guidance = 1.0 switches it off and run.guidance = 4.0 on again at any step"
            )
        if scales != {None} and (self.usual is None or self.usual - 1 + self.shift == 0):
            raise ArgumentError(
                f"{self._name} has no guidance scale to change: leave the scale out of cfg(…)"
            )
        if self.seen is not None:
            self._admit_parts(guidance, scales, *self.seen)

    def _admit_parts(
        self,
        guidance: Guidance,
        scales: set[float | None],
        seen: list[Tensor],
        raw: Tensor,
        sequential: bool,
    ) -> None:
        """Raises `ArgumentError` where the parts that the network returns do not let it be guided
        so.
        """
        perturbed = parts.perturbed(self.pipe)
        if self.place is None and len(seen) > 1:
            self._measure(seen, raw, sequential)
        if len(seen) == 3 and not perturbed and scales - {None, self.usual}:
            raise ArgumentError(
                f"{self._name} guides by two things at once; give one scale, when the call begins"
            )
        place = 0 if sequential else self._conditional(len(seen))
        if guidance.rescale and seen[place].shape != raw.shape:
            raise ArgumentError(
                f"{self._name} changes what its network returns; it cannot be rescaled from outside"
            )
        if guidance.forecast > 1 and (len(seen) != 2 or perturbed or not _within(seen, raw)):
            raise ArgumentError(NO_FORECAST.format(pipe=self._name, why=NO_SUM))

    def _measure(self, seen: Sequence[Tensor], raw: Tensor, sequential: bool) -> None:
        """Find out which part is the conditional one, and how the pipeline means its scale."""
        assumed = 0 if sequential else self._conditional(len(seen))
        found = parts.weights(seen, raw)
        self.place = assumed
        if found is None:
            return
        heaviest = max(range(len(found)), key=found.__getitem__)
        if heaviest != assumed and found[heaviest] > 1:
            if self.skipped or self.scaled or sequential:
                raise ArgumentError(
                    f"{self._name} has its conditional part at {heaviest} of {len(found)}, not at"
                    f" {assumed}: begin the guidance interval at the first step, without a scale"
                    " per step"
                )
            self.place = heaviest
        if len(found) == 2 and self.usual is not None and not self.scaled:
            self.shift = (
                1.0
                if abs(found[heaviest] - self.usual - 1) < abs(found[heaviest] - self.usual)
                else 0.0
            )

    def _rescaled(self, raw: Tensor, phi: float) -> Tensor:
        """arXiv 2305.08891, eq. 15-16: the std of the conditional part, per sample."""
        place = self._conditional(len(self.found)) if self.first is None or self.first[1] > 1 else 0
        conditional = self.found[place] if self.found else None
        if conditional is None or conditional.shape != raw.shape:
            raise ArgumentError(
                f"{self._name} changes what its network returns; it cannot be rescaled from outside"
            )
        dims = tuple(range(1, raw.ndim))
        factor = stretch(conditional.std(dim=dims, keepdim=True), raw.std(dim=dims, keepdim=True))
        return raw * (1 - phi + phi * factor)

    def _nothing(self, run: Run) -> bool:
        """Whether guidance was asked to be off everywhere."""
        return all(scale == 1.0 for scale in run.scales)

    @property
    def _name(self) -> str:
        return type(self.pipe).__name__


def _within(halves: Sequence[Tensor], made: Tensor) -> bool:
    """Whether `made` is a weighted sum of the two, up to `parts.SLACK`: with weights for each
    sample and its frames.
    """
    if halves[0].ndim == made.ndim > 1 and halves[0].shape[1] == 2 * made.shape[1]:
        halves = [half[:, : made.shape[1]] for half in halves]  # the rest is a learned variance
    if len(made) == 2 * len(halves[0]):
        made = made[: len(halves[0])]  # both halves are stepped, alike
    if halves[0].numel() != made.numel() or len(halves[0]) != len(made):
        return False
    keep = 2 if made.ndim > 2 and halves[0].shape == made.shape else 1
    c, u, left = (t.detach().float().flatten(keep).flatten(0, keep - 1) for t in (*halves, made))

    def without(t: Tensor, other: Tensor) -> Tensor:
        tiny = torch.finfo(t.dtype).tiny
        return t - other * (
            (t * other).sum(1, keepdim=True) / (other * other).sum(1, keepdim=True).clamp(min=tiny)
        )

    rest = without(without(left, c), without(u, c))
    return bool(rest.norm() <= parts.SLACK * left.norm())
