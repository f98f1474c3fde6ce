"""The helm: a diffusers pipeline under timonel's control."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..core import border, solvers
from ..core.driver import UNKNOWN
from ..core.guidance import Guidance
from ..core.noise import Seeded
from ..core.prompts import Prompts
from ..core.run import Run
from ..core.sampler import DEFAULT, Sampler
from ..engine.handle import Handle, in_background
from ..errors import ArgumentError, GridError, Inexact, RunError
from ..zoo import prompts as known
from . import choice, fitted_check, prompting, request
from . import variation as variations
from .call import Call
from .decode.previews import previewed
from .guidance import applied, scale
from .guidance.gate import Gate, networks
from .guidance.guider import gate_of, memories
from .inspect_source import (
    changes,
    counts,
    rounds_down,
    takes_the_run,
)
from .load import Loading
from .network import busy, caches
from .network.busy import Claim
from .session import Request, Session
from .sockets import requested_levels
from .sockets.model import forward
from .sockets.scheduler import Scheduler
from .steered import Steered

if TYPE_CHECKING:
    from PIL import Image
    from typing_extensions import Unpack


class Helm(Steered):
    """A pipeline at the helm.

        helm = tm.Helm("emoji")    # a shipped model, a folder, a file, a hub name or a pipeline
        helm("red apple", sampler="dpmpp_2m/karras", steps=12, guidance=tm.cfg(4, until=0.4),
             seeds=[7], hooks=[tm.preview("frames/")]).images[0]

    The pipeline is used as it is: after a call everything on it is what it was before.

    Args:
        pipe: a pipeline object, or the name of a model.
        loading: how to load it, see `Loading`.

    Raises:
        ModelError: the model cannot be loaded, or has no scheduler loop.
        ArgumentError: an option of loading does not fit.
    """

    def __init__(self, pipe: Any, **loading: Unpack[Loading]) -> None:
        super().__init__(pipe, dict(loading))

    def __repr__(self) -> str:
        return f"<Helm: {type(self.pipe).__name__}{'' if self.name is None else f' {self.name!r}'}>"

    def preview(self, *, decode: bool = False) -> list[Image.Image]:
        """Pictures of the newest denoised prediction of `run`, one per sample.

        Of a call that was stopped, interrupted or failed, too.

        Args:
            decode: through the model's autoencoder; else linear and small.

        Raises:
            RunError: there is no run yet.
        """
        if self.run is None or not self.run.started:
            raise RunError("there is no run to show yet; call the helm first")
        return self.pictures(self.run, decode)

    def pictures(self, run: Run, decode: bool) -> list[Image.Image]:
        """Pictures of the newest denoised prediction of a run of this helm.

        Args:
            run: of this helm; before its first network call its noise is shown.
            decode: through the model's autoencoder; else linear and small.

        Returns:
            One for each sample.

        Raises:
            RunError: no picture can be made.
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
        weak: Any = None,
        variation: tuple[int | Sequence[int], float] | None = None,
        prompts: Prompts | Mapping[Any, Any] | str | None = None,
        negative_prompts: Prompts | Mapping[Any, Any] | str | None = None,
        **options: Any,
    ) -> Any:
        """Call the pipeline with its own arguments, under control, and return its own output.

        A sampler that was fitted to another model, prediction or guidance than this call's warns
        with `FittedElsewhere`; a network with a cache of diffusers' warns with `Inexact` where what
        it remembered was not kept with the run to resume.

        Args:
            args: the pipeline's own arguments by position.
            sampler: see `Sampler`. What is not named is taken from the scheduler that is set on the
                pipeline, a shipped model's card, or what was measured nearest, see `choose`.
            steps: as `sampler`.
            guidance: a scale or `cfg(…)`; the scale is given to the pipeline as its own, whatever
                that argument is called.
            hooks: called with the run after every step.
            seeds: one per sample, or one number for the first of consecutive seeds; drawn and left
                in `self.seeds` where none are given.
            keep: how many step states stay in memory for instant rewinds.
            resume: a run that was loaded, branched, stopped or interrupted, or that failed, to
                continue with its own sampler and steps, and with its guidance unless another is
                named; a finished one is only decoded. Another sampler, or another number of steps,
                is a tail: `steps` are then those still to come, see `Run.tail`.
            weak: another network than the pipeline's, for `autoguidance(scale)`.
            variation: (seed, amount): the first noise is that of the seeds, turned by so much
                towards another seed's: 0 is the picture of `seeds`, 1 begins where the other's
                does. One number is the first of consecutive seeds.
            prompts: over the steps, e.g. {0.0: "a fox", 0.4: "a fox in the snow"}, see
                `timonel.prompts`; the first is the pipeline's own `prompt`.
            negative_prompts: likewise.
            options: the pipeline's own arguments by name.

        Returns:
            The pipeline's output.

        Raises:
            ArgumentError: before any compute, for arguments the pipeline does not have or that do
                not fit each other.
            RunError: another call on this pipeline goes on, or on one that shares its network.
        """
        named = {
            "sampler": sampler, "steps": steps, "guidance": guidance, "hooks": hooks,
            "seeds": seeds, "keep": keep, "resume": resume, "weak": weak, "variation": variation,
            "prompts": prompts,
            "negative_prompts": negative_prompts,
        }  # fmt: skip
        return self.ready(args, {**named, **options})()

    def start(self, *args: Any, **options: Any) -> Handle:
        """Call the pipeline in a background thread.

        Until the call ends, plain calls of the pipeline and of others that share its network are
        refused with `RunError`.

        Args:
            args: as in a call.
            options: as in a call.

        Returns:
            The handle of the call; its result is the pipeline's output.

        Raises:
            TimonelError: what a call raises before any compute, before the thread starts.
        """
        resume, hooks = options.get("resume"), border.listed(options.pop("hooks", None))
        return in_background(
            lambda hook: self.ready(args, {**options, "hooks": [hook, *hooks]}),
            lambda run, decode, going: previewed(self.context, run, decode=decode, going=going),
            look=lambda run: run.context.look(run.latents),
            complete=isinstance(resume, Run) and resume.row == resume.table.nfe,
        )

    def ready(
        self,
        args: tuple[Any, ...],
        options: dict[str, Any],
        gate: Callable[[Any, Session, int | None, float | None], Gate] | None = None,
    ) -> Call:
        """A call with everything checked and claimed, to be made later.

        Args:
            args: the pipeline's arguments by position.
            options: those by name, and the helm's own.
            gate: makes what its networks are called through; None: as the pipeline guides.

        Returns:
            The call, which runs when it is called.

        Raises:
            TimonelError: what a call raises before compute.
        """
        with ExitStack() as stack:
            claim = stack.enter_context(Claim(self.pipe))
            session, samples, options = self._prepare(args, options)
            usual = session.request.scale
            if usual is None:
                usual = scale.usual(self.pipe, self.parameters, options)
            through = (gate or gate_of(self.pipe))(self.pipe, session, samples, usual)
            session.gate = through
            return Call(self, session, through, options, claim, stack)

    # -- before the call -----------------------------------------------------------------------
    def _prepare(
        self, args: tuple[Any, ...], options: dict[str, Any]
    ) -> tuple[Session, int | None, dict[str, Any]]:
        """Check a call.

        Returns:
            Its session, how many samples it makes where known, and the pipeline's arguments.
        """
        arguments, options = request.arguments(self.pipe, self.parameters, args, options)
        resume, sampler = arguments.resume, arguments.sampler
        steps = choice.checked(arguments.steps, options.pop("num_inference_steps", None))
        turned = choice.turned(resume, sampler, steps, arguments.guidance)
        sampler, steps = (sampler, steps) if turned is None else (None, None)
        levels = choice.of_run(resume) if sampler is None and resume is not None else sampler
        named = requested_levels.named(levels, options)
        plan = prompting.plan(
            self.pipe, self.parameters, options, arguments.prompts, arguments.negative_prompts
        )
        samples = request.samples(options)
        for hook in arguments.hooks:
            takes_the_run(hook)
        guidance = self._guidance(arguments.guidance, options, resume)
        both = reads_uncond(sampler)
        guidance, scaled = scale.resolve_guidance(
            self.pipe, self.parameters, options, guidance, both
        )
        applied.refuse(self.pipe, self.parameters, options, guidance, arguments.weak)
        requested_levels.agree(steps, options)
        scheduler, chosen = self._choose(sampler, steps, options, guidance, resume)
        guidance = self._for_both(guidance, scheduler.sampler, options)
        steps = scheduler.sampler.steps
        if "num_inference_steps" in self.parameters:
            options["num_inference_steps"] = steps
        if rounds_down(self.pipe):
            requested_levels.left(steps, options, self.parameters)
        self.seeds = request.seeds(
            arguments.seeds, samples, self.parameters, options, self._seeds_of(resume, samples)
        )
        options |= request.generator(self.seeds, self.parameters)
        session = scheduler.session = Session(scheduler, Request(
            guidance, scaled, arguments.hooks, self.seeds or None, arguments.keep, self.context,
            resume, counts(self.pipe, options), named, requested_levels.lists(options),
            arguments.weak, variations.of(arguments.variation, self.seeds, options), turned, plan,
        ))  # fmt: skip
        scheduler.set_timesteps(steps)
        prompting.check(plan, guidance, scheduler.run.table)
        if resume is not None:
            self._check_resumed(resume, scheduler)
        self._check_refined(scheduler, options)
        self.choice = chosen.on(scheduler.settled)
        if scheduler.sampler.fitted is not None and sampler is not None:
            guided = fitted_check.guided(self.pipe, self.parameters, options, guidance)
            fitted_check.warn(scheduler.sampler.fitted, self.pipe, scheduler.prediction, guided)
        if self.card is not None:
            for text in prompting.texts(plan, options):
                known.warn(self.card, text, stacklevel=4)
        return session, samples, options

    def _guidance(
        self, guidance: Guidance | float | None, options: dict[str, Any], resume: Run | None = None
    ) -> Guidance | float | None:
        """The guidance that a call names, else that of the run to resume, else the card's."""
        resumed = None if resume is None else resume.guidance
        if guidance is not None or (self.card is None and resumed is None):
            return guidance
        name = scale.argument(self.pipe, self.parameters, options)
        if name is not None and options.get(name) is not None:
            return None
        if resume is not None:
            return resumed
        return None if name is None or self.card is None else self.card.default_guidance

    def _for_both(
        self, guidance: Guidance | None, sampler: Sampler, options: dict[str, Any]
    ) -> Guidance | None:
        """The guidance of a call, the pipeline's own where the sampler reads both of its parts."""
        if guidance is not None or not reads_uncond(sampler):
            return guidance
        own = scale.usual(self.pipe, self.parameters, options)
        return Guidance() if own is not None and own > 1 else None

    def _seeds_of(self, resume: Run | None, samples: int | None) -> tuple[int, ...]:
        """The seeds that a run was begun with; empty where nobody knows them."""
        if resume is None:
            return ()
        seeds = resume.noise.seeds if isinstance(resume.noise, Seeded) else self.seeds
        return seeds if samples in (None, len(seeds)) else ()

    def _check_resumed(self, run: Run, scheduler: Scheduler) -> None:
        """Raises `TimonelError` for a run that cannot go on in this call."""
        if busy.live(run):
            raise RunError(
                "the run to resume goes on in another call: wait for its end, or resume a"
                " run.branch()"
            )
        if not run.row:
            raise RunError("the run to resume has made no step; call without resume= to begin one")
        table, sampler = run.table, scheduler.sampler
        if scheduler.session.request.tail is not None:
            return
        if table.solver != scheduler.run.table.solver or scheduler.run.table.nfe < table.nfe:
            raise ArgumentError(
                f"the run to resume is {table.solver!r} with {table.steps} steps, this call is"
                f" {sampler.name!r} with {sampler.steps}: give the same sampler and steps, or leave"
                " both out"
            )
        memory = None if run.memory is UNKNOWN else run.memory
        if run.row < table.nfe and not caches.fits(
            [*networks(self.pipe), *memories(self.pipe)], memory
        ):
            warnings.warn(
                f"the network of this {type(self.pipe).__name__} has a cache, and what that"
                " remembered was not kept with the run: it goes on with an empty one, near to what"
                " it would have been but not exactly",
                Inexact,
                stacklevel=5,
            )

    def _check_refined(self, scheduler: Scheduler, options: dict[str, Any]) -> None:
        """Raises `GridError` for a second part of a journey whose first part makes all of it."""
        fraction = options.get("denoising_start")
        if fraction is None or len(scheduler.timesteps) == 0:
            return
        total = scheduler.process.train_steps
        if not bool((scheduler.timesteps < round(total - fraction * total)).any()):
            raise GridError(
                f"denoising_start={fraction:g} of {scheduler.run.table.steps} steps leaves none:"
                " give a smaller one to both parts, or more steps"
            )

    # -- the sampler -----------------------------------------------------------------------------
    def choose(
        self,
        sampler: Sampler | str | None = None,
        steps: int | None = None,
        guidance: Guidance | float | None = None,
        *,
        fitted: bool = True,
    ) -> choice.Choice:
        """The sampler and steps that a call with these arguments runs with, and why.

        Nothing is computed.

        Args:
            sampler: that of the call; None is what the rule in `choice.py` takes.
            steps: as `sampler`.
            guidance: that of the call.
            fitted: whether one that was fitted to a shipped model may be taken.

        Returns:
            The choice; `str` of it is one line.

        Raises:
            ArgumentError: what the call would raise for these arguments.
        """
        settled = guidance if isinstance(guidance, Guidance) else None
        if self.card is not None:
            guided = self._guidance(guidance, {})
            settled, _ = scale.resolve_guidance(self.pipe, self.parameters, {}, guided)
        scheduler, chosen = self._choose(sampler, steps, {}, settled, fitted=fitted)
        scheduler.session = Session(scheduler, Request(context=self.context))
        scheduler.set_timesteps(scheduler.sampler.steps)
        return chosen.on(scheduler.settled)

    def _choose(
        self,
        sampler: Sampler | str | None,
        steps: int | None,
        options: dict[str, Any],
        guidance: Guidance | None,
        resume: Run | None = None,
        fitted: bool = True,
    ) -> tuple[Scheduler, choice.Choice]:
        """The scheduler of a call with its sampler, and why it is this one."""
        forward(type(self.pipe.scheduler).__name__)  # what is made in code does not write its class
        scheduler: Scheduler = Scheduler.from_config(
            self.pipe.scheduler.config, sampler=DEFAULT, **changes(self.pipe)
        )
        loaded, config = self._came
        shipped = self.pipe.scheduler is loaded and dict(loaded.config) == config
        model = choice.Model(
            scheduler.process, self.pipe, self.card, shipped and self.card is not None
        )
        if resume is not None and sampler is None:
            chosen = choice.resumed(model, resume, steps)
        else:
            if steps is None and resume is not None and resume.sampler is not None:
                steps = resume.sampler.steps
            tuned: Sampler | None = None
            if sampler is None and fitted:
                call = (scheduler.prediction, self.pipe, self.parameters, options, guidance)
                tuned = self._shipped_with(model, steps, *call)
            chosen = choice.choose(model, sampler, steps, fitted=tuned)
        chosen = replace(chosen, sampler=chosen.sampler.guided_by(guidance))
        scheduler.sampler = chosen.sampler
        if choice.ends_low(model, chosen):
            scheduler.register_to_config(final_sigmas_type="sigma_min")
        return scheduler, chosen

    @staticmethod
    def _shipped_with(model: choice.Model, steps: int | None, *call: Any) -> Sampler | None:
        """The sampler that was fitted to a shipped model for just this call."""
        if model.card is None or not model.as_shipped:
            return None
        count = model.card.default_steps if steps is None else steps
        return fitted_check.shipped(model.card.name, count, *call)


def reads_uncond(sampler: Sampler | None) -> bool:
    """Whether a sampler reads unconditional predictions."""
    return (
        sampler is not None and sampler.fitted is None and solvers.find(sampler.name).reads_uncond
    )
