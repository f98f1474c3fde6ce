"""The helm: a diffusers pipeline under timonel's control."""

from __future__ import annotations

import inspect
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch

from .. import zoo
from ..core.driver import UNKNOWN
from ..core.guidance import Guidance
from ..core.noise import MOST, Seeded, checked
from ..core.run import Run
from ..core.sampler import DEFAULT, Sampler
from ..errors import (
    ArgumentError,
    GridError,
    Inexact,
    ModelError,
    RunError,
    UnknownName,
    is_number,
    whole,
)
from ..zoo import prompts
from . import choice, fitted_check, request
from .decode.not_finite import Decoded
from .decode.previews import Context, previewed
from .guidance import scale
from .guidance.gate import Gate, gated, networks
from .handle import Handle
from .inspect_source import (
    changes,
    counts,
    foreign,
    one_row_loops,
    rounds_down,
    steps_with_scheduler,
    takes_the_run,
)
from .load import Loading, pipeline_of
from .network import busy, caches
from .network.busy import Claim
from .piped import Piped
from .recipe.sign import sign
from .sockets import requested_levels
from .sockets.model import forward
from .sockets.scheduler import Orders, Scheduler
from .sockets.timesteps import Rewound

if TYPE_CHECKING:
    from PIL import Image
    from typing_extensions import Unpack

OURS = ("sampler", "steps", "guidance", "hooks", "seeds", "keep", "resume")
COUNTED = (
    "prompt",
    "prompt_embeds",
    "task_prompt",
    "class_labels",
    "image",
    "image_embeds",
    "image_embeddings",
)  # one per sample


class Ready:
    """A call that has everything it needs for itself. Calling it makes the call; else `cancel` lets
    go of it.
    """

    def __init__(self, go: Callable[[], Any], held: ExitStack) -> None:
        self._go, self._held = go, held

    def __call__(self) -> Any:
        with self._held:
            return self._go()

    def cancel(self) -> None:
        """Make no call."""
        self._held.close()


def _ended(run: Run | None) -> bool:
    """Whether a run has ended, and none of its hooks makes pictures."""
    return run is not None and run.status in ("done", "stopped") and not run.firing


class Helm:
    """A pipeline at the helm.

        helm = tm.Helm("emoji")                      # a shipped model, a folder, a file, a hub name
        or a pipeline picture = helm("red apple", sampler="dpmpp_2m/karras", steps=12,
        guidance=tm.cfg(4, until=0.4),
                       seeds=[7], hooks=[tm.preview("frames/")]).images[0]

    The pipeline is used as it is: after a call everything on it is what it was before.

    Raises `ModelError` for a model that cannot be loaded or has no scheduler loop, `ArgumentError`
    for an option of loading that does not fit.
    """

    def __init__(self, pipe: Any, **loading: Unpack[Loading]) -> None:
        """`pipe`: a pipeline object, or the name of a model, which `loading` says how to load; see
        `Loading`.
        """
        self.name: str | None = os.fspath(pipe) if isinstance(pipe, (str, os.PathLike)) else None
        self.card: zoo.Card | None = (
            zoo.card(pipe) if isinstance(pipe, str) and pipe in zoo.MODELS else None
        )
        self.pipe = pipeline_of(pipe, **loading)
        self.loading: dict[str, Any] = dict(loading)
        if not callable(self.pipe) or not hasattr(getattr(self.pipe, "scheduler", None), "config"):
            raise ModelError(
                f"{type(self.pipe).__name__} is not a diffusers pipeline with a scheduler; "
                "give a pipeline object, a folder or a model name"
            )
        if needs := foreign(self.pipe):
            raise ModelError(
                f"{type(self.pipe).__name__} {needs}; timonel cannot steer it, use its own"
                " scheduler"
            )
        if not steps_with_scheduler(self.pipe):
            raise ModelError(
                f"{type(self.pipe).__name__} has no loop of its own that steps its scheduler; "
                "give the pipelines inside it, one by one"
            )
        self.context = Context(self.pipe, self.card.latent_rgb() if self.card else None)
        self.seeds: tuple[int, ...] = ()
        self.choice: choice.Choice | None = (
            None  # the sampler and steps of the last call, and why; see `choose`
        )
        self._scheduler: Scheduler | None = None
        self._came = (self.pipe.scheduler, dict(self.pipe.scheduler.config))  # with the model

    def __repr__(self) -> str:
        return f"<Helm: {type(self.pipe).__name__}{'' if self.name is None else f' {self.name!r}'}>"

    @property
    def run(self) -> Run | None:
        """The run of the present call, or of the last one, however that ended: `resume=helm.run`
        goes on with it.
        """
        return None if self._scheduler is None else self._scheduler.newest

    def preview(self, *, decode: bool = False) -> list[Image.Image]:
        """Pictures of the newest denoised prediction of `run`, one per sample; linear and small
        unless `decode`.

        Of a call that was stopped, interrupted or failed, too. Raises `RunError` before there is a
        run.
        """
        if self.run is None or not self.run.started:
            raise RunError("there is no run to show yet; call the helm first")
        return self.pictures(self.run, decode)

    def pictures(self, run: Run, decode: bool) -> list[Image.Image]:
        """Pictures of the newest denoised prediction of a run of this helm; of its noise where
        there is none yet.
        """
        return previewed(self.context, run, decode=decode, going=False)

    def __call__(
        self,
        *args: Any,
        sampler: Sampler | str | None = None,
        steps: int | None = None,
        guidance: Guidance | float | None = None,
        hooks: Sequence[Any] = (),
        seeds: Sequence[int] | int | None = None,
        keep: int = 0,
        resume: Run | None = None,
        **options: Any,
    ) -> Any:
        """Call the pipeline with its own arguments, under control, and return its own output.

        `sampler, steps`: see `Sampler`; what is not named here is taken from the scheduler that is
        set on the pipeline, a shipped model's card, or what was measured nearest: see `choose`. A
        sampler that was fitted to another model, prediction or guidance than this call's warns with
        `FittedElsewhere`. `guidance`: a scale or `cfg(…)`; the scale is given to the pipeline as
        its own, whatever that argument is called. `seeds`: one per sample, or one number for the
        first of consecutive seeds; drawn and left in `self.seeds` where none are given. `keep`:
        step states kept for instant rewinds. `resume`: a run that was loaded, branched, stopped or
        interrupted, or that failed, to continue with its own sampler and steps, and with its
        guidance unless another is named here; a finished one is only decoded. A network with a
        cache of diffusers' warns with `Inexact` where what it remembered was not kept with the run.

        Raises `ArgumentError` before any compute for arguments the pipeline does not have or that
        do not fit each other, and `RunError` while another call on this pipeline goes on, or on one
        that shares its network.
        """
        ours = {
            "sampler": sampler,
            "steps": steps,
            "guidance": guidance,
            "hooks": hooks,
            "seeds": seeds,
            "keep": keep,
        }
        return self.ready(args, {**ours, "resume": resume, **options})()

    def start(self, *args: Any, **options: Any) -> Handle:
        """Call the pipeline in a background thread, with the arguments of a call; see `Handle`.

        Raises before the thread starts what a call would raise before any compute. Until the call
        ends, plain calls of the pipeline and of others that share its network are refused with
        `RunError`.
        """
        return Handle(self, args, options)

    def ready(self, args: tuple[Any, ...], given: dict[str, Any]) -> Ready:
        """A call with everything checked and claimed, to be made later. Raises what a call raises
        before compute.
        """
        with ExitStack() as stack:
            claim = stack.enter_context(Claim(self.pipe))
            scheduler, gate, options = self._prepare(
                args, {name: given.pop(name, None) for name in OURS}, given
            )
            stack.enter_context(self.opened(claim, scheduler, gate))
            return Ready(lambda: self._go(scheduler, gate, options, claim), stack.pop_all())

    # -- around the call -----------------------------------------------------------------------
    @contextmanager
    def opened(self, claim: Claim, scheduler: Scheduler, gate: Gate) -> Iterator[None]:
        """The networks behind `gate`. Raises `RunError` where something else uses them already."""
        claim.scheduler, driver = scheduler, Piped(self.pipe, gate, claim)
        scheduler.orders.driver = driver
        scheduler.run.drive_by(driver)
        with gated(gate, claim):
            yield

    def _go(self, scheduler: Scheduler, gate: Gate, options: dict[str, Any], claim: Claim) -> Any:
        """The call itself. After it the pipeline is what it was before, whatever happened."""
        told, driver = scale.told(self.pipe, self._parameters, gate.own), scheduler.run.driver
        with claim.working(), self._steered(scheduler), told:
            self.context.call = options
            driver.recall(None)  # a plain call that failed leaves its caches as they are
            decoded = Decoded(self.pipe, lambda: _ended(scheduler.current))
            try:
                with one_row_loops(self.pipe, scheduler), decoded:
                    made = self._pass(scheduler, options, claim)
                if scheduler.current is not None:
                    scheduler.current.leave()
            except BaseException as error:
                if scheduler.current is not None:
                    scheduler.current.fail(error)
                getattr(self.pipe, "maybe_free_model_hooks", lambda: None)()
                begun = gate.at is not None or scheduler.hand.given
                if not begun and (refused := request.refused(self.pipe, error)) is not None:
                    raise refused from error
                raise
            finally:
                if scheduler.current is not None:
                    scheduler.current.disown()
        if not scheduler.hand.given:
            requested_levels.left(scheduler.sampler.steps, options, self._parameters)
            raise ModelError(
                f"{type(self.pipe).__name__} made no step with its scheduler; timonel cannot"
                " steer it"
            )
        if self.choice is not None and scheduler.orders.listed:
            self.choice = self.choice.listed(scheduler.settled, scheduler.run.table.steps)
        decoded.check(gate.samples or len(scheduler.run.latents))
        sign(self, scheduler, options, gate.own, made)
        return made

    def _pass(self, scheduler: Scheduler, options: dict[str, Any], claim: Claim) -> Any:
        """Call the pipeline; again from its beginning after a rewind that its loop cannot follow."""
        given = options.get("generator")
        generators = (
            [] if given is None else list(given) if isinstance(given, (list, tuple)) else [given]
        )
        generators += [
            torch.default_generator,
            *torch.cuda.default_generators,
        ]  # some draw from these too
        states = [generator.get_state() for generator in generators]
        while True:
            try:
                return self.pipe(**options)
            except Rewound:
                claim.looping(False)
                scheduler.hand.let_go()
                scheduler.hand.replay = True
                for generator, state in zip(generators, states, strict=True):
                    generator.set_state(state)

    @contextmanager
    def _steered(self, scheduler: Scheduler) -> Iterator[None]:
        """The pipeline with `scheduler`, and with one progress bar at most."""
        own, bar = self.pipe.scheduler, getattr(self.pipe, "_progress_bar_config", None)
        before, self._scheduler = self._scheduler, scheduler
        self.pipe.scheduler = scheduler
        if any(getattr(hook, "shows_progress", False) for hook in scheduler.orders.hooks):
            self.pipe._progress_bar_config = {**(bar or {}), "disable": True}
        try:
            yield
        finally:
            if scheduler.newest is None or not scheduler.newest.started:
                # it ended before its run began: the last run is still there to go on with
                self._scheduler = before
            self.pipe.scheduler = own
            if bar is not None:
                self.pipe._progress_bar_config = bar
            elif hasattr(self.pipe, "_progress_bar_config"):
                del self.pipe._progress_bar_config

    # -- before the call -----------------------------------------------------------------------
    @property
    def _parameters(self) -> dict[str, inspect.Parameter]:
        given = inspect.signature(self.pipe.__call__).parameters
        return {name: p for name, p in given.items() if p.kind is not p.VAR_KEYWORD}

    def _prepare(
        self, args: tuple[Any, ...], ours: dict[str, Any], options: dict[str, Any]
    ) -> tuple[Scheduler, Gate, dict[str, Any]]:
        """Everything of a call but the call; what can be refused is refused here."""
        ours = request.ours(ours)
        options = requested_levels.shares(
            self._repeated(request.options(self._named(args, options), self._parameters))
        )
        hooks, resume = tuple(ours["hooks"]), ours["resume"]
        chosen = (
            choice.of_run(resume)
            if resume is not None and ours["sampler"] is None
            else ours["sampler"]
        )
        named = requested_levels.named(chosen, options)
        batch = self._batch(options)
        for hook in hooks:
            takes_the_run(hook)
        guidance = self._scaled(ours["guidance"], options, resume)
        given, own = scale.order(self.pipe, self._parameters, options, guidance)
        scheduler, made = self._sampling(ours, options, given)
        if rounds_down(self.pipe):
            requested_levels.left(scheduler.sampler.steps, options, self._parameters)
        gate = Gate(self.pipe, scheduler, batch, own)
        gate.usual = scale.usual(self.pipe, self._parameters, options) if own is None else own
        scheduler.orders = Orders(
            guidance=given, hooks=hooks, seeds=self._seed(ours["seeds"], batch, options, resume),
            keep=ours["keep"],
            context=self.context, guided=gate.combined, recall=counts(self.pipe), resume=resume,
            resumed=resume is not None, named=named,
            listed=options.get("sigmas") is not None or options.get("timesteps") is not None,
        )  # fmt: skip
        scheduler.set_timesteps(scheduler.sampler.steps)
        if resume is not None:
            self._resumable(resume, scheduler)
        self._refinable(scheduler, options)
        self.choice = made.on(scheduler.settled)
        if scheduler.sampler.fitted is not None and ours["sampler"] is not None:
            guided = fitted_check.guided(self.pipe, self._parameters, options, given)
            fitted_check.warn(scheduler.sampler.fitted, self.pipe, scheduler.prediction, guided)
        if self.card is not None:
            prompts.warn(self.card, options.get("prompt"), stacklevel=4)
        return scheduler, gate, options

    def _scaled(
        self, guidance: Guidance | float | None, options: dict[str, Any], resume: Run | None = None
    ) -> Guidance | float | None:
        """The guidance of a call: what it names, else that of the run it resumes, else what the
        model's card says.
        """
        resumed = resume.guidance if isinstance(resume, Run) else None
        if guidance is not None or (self.card is None and resumed is None):
            return guidance
        name = scale.argument(self.pipe, self._parameters, options)
        if name is not None and options.get(name) is not None:
            return None
        if resume is not None:
            return resumed
        return None if name is None or self.card is None else self.card.default_guidance

    def _resumable(self, run: Run, scheduler: Scheduler) -> None:
        """Refuse, before anything is computed, a run that cannot go on in this call."""
        if busy.live(run):
            raise RunError(
                "the run to resume goes on in another call: wait for its end, or resume a"
                " run.branch()"
            )
        if not run.row:
            raise RunError("the run to resume has made no step; call without resume= to begin one")
        table, sampler = run.table, scheduler.sampler
        if table.solver != scheduler.run.table.solver or scheduler.run.table.nfe < table.nfe:
            raise ArgumentError(
                f"the run to resume is {table.solver!r} with {table.steps} steps, this call is"
                f" {sampler.name!r} with {sampler.steps}: give the same sampler and steps, or leave"
                " both out"
            )
        if run.row < table.nfe and not caches.fits(
            networks(self.pipe), None if run.memory is UNKNOWN else run.memory
        ):
            warnings.warn(
                f"the network of this {type(self.pipe).__name__} has a cache, and what that remembered was not kept "
                "with the run: it goes on with an empty one, near to what it would have been but not exactly",
                Inexact, stacklevel=5,
            )  # fmt: skip

    def _refinable(self, scheduler: Scheduler, options: dict[str, Any]) -> None:
        """Refuse a second part of a journey whose first part makes all of it."""
        fraction = options.get("denoising_start")
        if fraction is None or len(scheduler.timesteps) == 0:
            return
        total = scheduler.process.train_steps
        if not bool((scheduler.timesteps < round(total - fraction * total)).any()):
            raise GridError(
                f"denoising_start={fraction:g} of {scheduler.run.table.steps} steps leaves none:"
                " give a smaller one to both parts, or more steps"
            )

    def _named(self, args: tuple[Any, ...], options: dict[str, Any]) -> dict[str, Any]:
        """The pipeline's own arguments by name; unknown ones are refused."""
        parameters, what = self._parameters, f"argument of {type(self.pipe).__name__}"
        if len(args) > len(parameters):
            raise ArgumentError(
                f"{type(self.pipe).__name__} takes {len(parameters)} arguments, got {len(args)}"
            )
        named = dict(zip(parameters, args, strict=False))
        for key in options:
            if key not in parameters:
                raise UnknownName(what, key, [*parameters, *OURS])
            if key in named:
                raise ArgumentError(f"{key} was given twice, by position and by name")
        return named | options

    def _repeated(self, options: dict[str, Any]) -> dict[str, Any]:
        """Several videos of one picture as several pictures: so each has its own seed for all of
        its noise.
        """
        count = options.get("num_videos_per_prompt") or 1
        if count == 1 or "prompt" in self._parameters:
            return options
        image: Any = options.get("image")
        if isinstance(image, torch.Tensor):
            many: Any = image.repeat_interleave(count, 0)
        else:
            many = [
                one for one in (image if isinstance(image, list) else [image]) for _ in range(count)
            ]
        return {**options, "image": many, "num_videos_per_prompt": 1}

    def choose(
        self,
        sampler: Sampler | str | None = None,
        steps: int | None = None,
        guidance: Guidance | float | None = None,
        *,
        fitted: bool = True,
    ) -> choice.Choice:
        """The sampler and steps that a call with these arguments runs with, and why; nothing is
        computed.

        Args:
            sampler, steps, guidance: those of the call; None is what the rule in `choice.py` takes.
            fitted: whether one that was fitted to a shipped model may be taken.

        Returns:
            The choice; `str` of it is one line.

        Raises:
            ArgumentError: what the call would raise for these arguments.
        """
        given: Guidance | None = None
        if self.card is not None:
            given, _ = scale.order(
                self.pipe, self._parameters, {}, self._scaled(guidance, {}, None)
            )
        ours = {"sampler": sampler, "steps": steps, "fitted": fitted}
        scheduler, made = self._sampling(ours, {}, given)
        scheduler.set_timesteps(scheduler.sampler.steps)
        return made.on(scheduler.settled)

    def _sampling(
        self, ours: dict[str, Any], options: dict[str, Any], guidance: Guidance | None
    ) -> tuple[Scheduler, choice.Choice]:
        """The scheduler of this call, and why it is this one; the number of steps is written into
        `options`.
        """
        steps = choice.checked(ours["steps"], options.pop("num_inference_steps", None))
        requested_levels.agree(steps, options)
        forward(type(self.pipe.scheduler).__name__)  # what is made in code does not write its class
        scheduler: Scheduler = Scheduler.from_config(
            self.pipe.scheduler.config, sampler=DEFAULT, **changes(self.pipe)
        )
        own, config = self._came
        shipped = (
            self.card is not None and self.pipe.scheduler is own and dict(own.config) == config
        )
        model = choice.Model(scheduler.process, self.pipe, self.card, shipped)
        fitted = None
        if (
            model.card is not None
            and shipped
            and ours["sampler"] is None
            and ours.get("fitted", True)
        ):
            count = model.card.default_steps if steps is None else steps
            asked = (self.pipe, self._parameters, options, guidance)
            fitted = fitted_check.shipped(model.card.name, count, scheduler.prediction, *asked)
        run = ours.get("resume")
        if run is not None and ours["sampler"] is None:
            made = choice.resumed(model, run, steps)
        else:
            own = None if run is None or steps is not None else run.sampler
            made = choice.choose(
                model, ours["sampler"], steps if own is None else own.steps, fitted=fitted
            )
        scheduler.sampler = made.sampler
        if choice.ends_low(model, made):
            scheduler.register_to_config(final_sigmas_type="sigma_min")
        if "num_inference_steps" in self._parameters:
            options["num_inference_steps"] = scheduler.sampler.steps
        return scheduler, made

    def _batch(self, options: dict[str, Any]) -> int | None:
        """How many samples the call makes, where its arguments tell."""
        name = next((k for k in COUNTED if options.get(k) is not None), None)
        if name is None:
            return options.get("batch_size")
        given = options[name]
        many = len(given) if isinstance(given, (list, tuple)) else 1
        if isinstance(given, torch.Tensor):
            many = 1 if name == "image" and given.ndim == 3 else len(given)
        return many * next(
            (int(options[name]) for name in request.PER_PROMPT if options.get(name)), 1
        )

    def _resumed(self, run: Run | None, batch: int | None) -> tuple[int, ...]:
        """The seeds that a run was begun with, as far as it or the last call says; empty where
        neither does.
        """
        if run is None:
            return ()
        seeds = run.noise.seeds if isinstance(run.noise, Seeded) else self.seeds
        return seeds if batch in (None, len(seeds)) else ()

    def _seed(
        self,
        seeds: Sequence[int] | int | None,
        batch: int | None,
        options: dict[str, Any],
        resume: Run | None,
    ) -> tuple[int, ...] | None:
        """Per-sample seeds, for the sampler's noise and for the pipeline's own."""
        if options.get("generator") is not None:
            request.generators(options["generator"])
            if seeds is not None:
                raise ArgumentError(
                    "give seeds= or generator=, not both; seeds= also seeds the sampler's noise"
                )
            self.seeds = ()
            return None
        if seeds is None:
            seeds = self._resumed(resume, batch) or int(torch.randint(2**31, ()))
        if is_number(seeds):
            first, count = whole("seeds", seeds, 0, MOST - (batch or 1) + 1), batch or 1
            seeds = range(first, first + count)
        self.seeds = checked(seeds)
        if batch is not None and len(self.seeds) != batch:
            many = next((name for name in request.PER_PROMPT if name in self._parameters), None)
            more = (
                f", or ask for more samples with {many}={len(self.seeds)}"
                if many and batch == 1
                else ""
            )
            raise ArgumentError(
                f"{len(self.seeds)} seeds for a call of {batch} sample{'s' * (batch > 1)}: give one"
                f" per sample, or one number{more}"
            )
        if "generator" in self._parameters:
            drawn = [torch.Generator().manual_seed(s) for s in self.seeds]
            options["generator"] = drawn[0] if len(drawn) == 1 else drawn
        return self.seeds
