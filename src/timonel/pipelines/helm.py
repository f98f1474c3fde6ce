"""The helm: a diffusers pipeline under timonel's control."""

from __future__ import annotations

import inspect
import os
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from .. import zoo
from ..errors import ArgumentError, ModelError, RunError, UnknownName
from ..guidance import Guidance
from ..noise import checked
from ..run import Run
from ..sampler import Sampler
from ..zoo import prompts
from . import elsewhere, levels, scale
from .decode import Context
from .fits import changes, counts, foreign, one_row_loops, steps_with_scheduler, takes_the_run
from .gate import Gate, gated
from .handle import Handle
from .load import Loading, pipeline_of
from .scheduler import Orders, Scheduler
from .signed import sign
from .timesteps import Rewound

if TYPE_CHECKING:
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
MANY = ("num_images_per_prompt", "num_videos_per_prompt", "num_waveforms_per_prompt")
_GUARD = threading.Lock()
_LOCKS: weakref.WeakKeyDictionary[Any, threading.Lock] = weakref.WeakKeyDictionary()


class Helm:
    """A pipeline at the helm.

        helm = tm.Helm("emoji")                      # a shipped model, a folder, a file, a hub name or a pipeline
        picture = helm("red apple", sampler="dpmpp_2m/karras", steps=12, guidance=tm.cfg(4, until=0.4),
                       seeds=[7], hooks=[tm.preview("frames/")]).images[0]

    The pipeline is used as it is: after a call everything on it is what it was before.

    Raises `ModelError` for a model that cannot be loaded or has no scheduler loop, `ArgumentError` for an option of
    loading that does not fit.
    """

    def __init__(self, pipe: Any, **loading: Unpack[Loading]) -> None:
        """`pipe`: a pipeline object, or the name of a model, which `loading` says how to load; see `Loading`."""
        self.name: str | None = os.fspath(pipe) if isinstance(pipe, (str, os.PathLike)) else None
        self.card: zoo.Card | None = zoo.card(pipe) if isinstance(pipe, str) and pipe in zoo.MODELS else None
        self.pipe = pipeline_of(pipe, **loading)
        self.loading: dict[str, Any] = dict(loading)
        if not callable(self.pipe) or not hasattr(getattr(self.pipe, "scheduler", None), "config"):
            raise ModelError(
                f"{type(self.pipe).__name__} is not a diffusers pipeline with a scheduler; "
                "give a pipeline object, a folder or a model name"
            )
        if needs := foreign(self.pipe):
            raise ModelError(f"{type(self.pipe).__name__} {needs}; timonel cannot steer it, use its own scheduler")
        if not steps_with_scheduler(self.pipe):
            raise ModelError(
                f"{type(self.pipe).__name__} has no loop of its own that steps its scheduler; "
                "give the pipelines inside it, one by one"
            )
        self.context = Context(self.pipe, self.card.latent_rgb() if self.card else None)
        self.seeds: tuple[int, ...] = ()
        self._scheduler: Scheduler | None = None

    @property
    def run(self) -> Run | None:
        """The run of the present call, or of the last one."""
        return None if self._scheduler is None else self._scheduler.newest

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

        `sampler, steps`: see `Sampler`; without a grid, the process' usual one. A sampler that was fitted to another
        model, prediction or guidance than this call's warns with `FittedElsewhere`. `guidance`: a scale
        or `cfg(…)`; the scale is given to the pipeline as its own, whatever that argument is called. `seeds`: one per
        sample, or one number for the first of consecutive seeds; drawn and left in `self.seeds` where none are given.
        `keep`: step states kept for instant rewinds. `resume`: a run that was loaded, branched or stopped, to
        continue with the same sampler and steps; a finished one is only decoded.

        Raises `ArgumentError` before any compute for arguments the pipeline does not have or that do not fit
        each other, and `RunError` while another call on this pipeline goes on.
        """
        ours = {"sampler": sampler, "steps": steps, "guidance": guidance, "hooks": hooks, "seeds": seeds, "keep": keep}
        return self.ready(args, {**ours, "resume": resume, **options})()

    def start(self, *args: Any, **options: Any) -> Handle:
        """Call the pipeline in a background thread, with the arguments of a call; see `Handle`.

        Raises before the thread starts what a call would raise before any compute.
        """
        return Handle(self, args, options)

    def ready(self, args: tuple[Any, ...], given: dict[str, Any]) -> Callable[[], Any]:
        """A call with everything checked, to be made later. Raises what a call raises before any compute."""
        scheduler, gate, options = self._prepare(args, {name: given.pop(name, None) for name in OURS}, given)
        return lambda: self._go(scheduler, gate, options)

    # -- around the call -----------------------------------------------------------------------
    def _go(self, scheduler: Scheduler, gate: Gate, options: dict[str, Any]) -> Any:
        """The call itself. After it the pipeline is what it was before, whatever happened."""
        told = scale.told(self.pipe, self._parameters, gate.own)
        with self._alone(), self._steered(scheduler), told, gated(gate), one_row_loops(self.pipe, scheduler):
            self.context.call = options
            try:
                made = self._pass(scheduler, options)
            except BaseException:
                if scheduler.current is not None:
                    scheduler.current.fail()
                getattr(self.pipe, "maybe_free_model_hooks", lambda: None)()
                raise
        if not scheduler.hand.given:
            raise ModelError(f"{type(self.pipe).__name__} made no step with its scheduler; timonel cannot steer it")
        sign(self, scheduler, options, gate.own, made)
        return made

    def _pass(self, scheduler: Scheduler, options: dict[str, Any]) -> Any:
        """Call the pipeline; again from its beginning after a rewind that its loop cannot follow."""
        given = options.get("generator")
        generators = [] if given is None else list(given) if isinstance(given, (list, tuple)) else [given]
        generators += [torch.default_generator, *torch.cuda.default_generators]  # some draw from these too
        states = [generator.get_state() for generator in generators]
        while True:
            try:
                return self.pipe(**options)
            except Rewound:
                scheduler.hand.let_go()
                scheduler.hand.replay = True
                for generator, state in zip(generators, states, strict=True):
                    generator.set_state(state)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """One call at a time, for a pipeline has one scheduler."""
        with _GUARD:
            lock = _LOCKS.setdefault(self.pipe, threading.Lock())
        if not lock.acquire(blocking=False):
            raise RunError("this pipeline is at work in another call: wait for its end, or load a second pipeline")
        try:
            yield
        finally:
            lock.release()

    @contextmanager
    def _steered(self, scheduler: Scheduler) -> Iterator[None]:
        """The pipeline with `scheduler`, and with one progress bar at most."""
        own, bar = self.pipe.scheduler, getattr(self.pipe, "_progress_bar_config", None)
        self.pipe.scheduler = self._scheduler = scheduler
        if any(getattr(hook, "shows_progress", False) for hook in scheduler.orders.hooks):
            self.pipe._progress_bar_config = {**(bar or {}), "disable": True}
        try:
            yield
        finally:
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
        options = self._repeated(self._named(args, options))
        scheduler = self._sampling(ours["sampler"], ours["steps"], options)
        named = levels.named(ours["sampler"], options)
        batch = self._batch(options)
        given, own = scale.order(self.pipe, self._parameters, options, self._scaled(ours["guidance"], options))
        hooks, resume = tuple(ours["hooks"] or ()), ours["resume"]
        for hook in hooks:
            takes_the_run(hook)
        if resume is not None and not resume.row:
            raise RunError("the run to resume has made no step; call without resume= to begin one")
        gate = Gate(self.pipe, scheduler, batch, own)
        scheduler.orders = Orders(
            guidance=given, hooks=hooks, seeds=self._seed(ours["seeds"], batch, options), keep=ours["keep"] or 0,
            context=self.context, guided=gate.combined, recall=counts(self.pipe), resume=resume, named=named,
        )  # fmt: skip
        scheduler.set_timesteps(scheduler.sampler.steps)
        if scheduler.sampler.fitted is not None:
            guided = elsewhere.guided(self.pipe, self._parameters, options, given)
            elsewhere.warn(scheduler.sampler.fitted, self.pipe, scheduler.prediction, guided)
        if self.card is not None:
            prompts.warn(self.card, options.get("prompt"), stacklevel=4)
        return scheduler, gate, options

    def _scaled(self, guidance: Guidance | float | None, options: dict[str, Any]) -> Guidance | float | None:
        """The guidance of a call; a shipped model that is told nothing of it is guided as its card says."""
        if guidance is not None or self.card is None:
            return guidance
        name = scale.argument(self.pipe, self._parameters, options)
        return None if name is None or options.get(name) is not None else self.card.default_guidance

    def _named(self, args: tuple[Any, ...], options: dict[str, Any]) -> dict[str, Any]:
        """The pipeline's own arguments by name; unknown ones are refused."""
        parameters, what = self._parameters, f"argument of {type(self.pipe).__name__}"
        if len(args) > len(parameters):
            raise ArgumentError(f"{type(self.pipe).__name__} takes {len(parameters)} arguments, got {len(args)}")
        named = dict(zip(parameters, args, strict=False))
        for key in options:
            if key not in parameters:
                raise UnknownName(what, key, [*parameters, *OURS])
            if key in named:
                raise ArgumentError(f"{key} was given twice, by position and by name")
        return named | options

    def _repeated(self, options: dict[str, Any]) -> dict[str, Any]:
        """Several videos of one picture as several pictures: so each has its own seed for all of its noise."""
        count = options.get("num_videos_per_prompt") or 1
        if count == 1 or "prompt" in self._parameters:
            return options
        image: Any = options.get("image")
        if isinstance(image, torch.Tensor):
            many: Any = image.repeat_interleave(count, 0)
        else:
            many = [one for one in (image if isinstance(image, list) else [image]) for _ in range(count)]
        return {**options, "image": many, "num_videos_per_prompt": 1}

    def _sampling(self, sampler: Sampler | str | None, steps: int | None, options: dict[str, Any]) -> Scheduler:
        """The scheduler of this call; the number of steps is written into `options`."""
        asked = options.pop("num_inference_steps", None)
        if steps is not None and asked is not None and steps != asked:
            raise ArgumentError(f"steps={steps} and num_inference_steps={asked} disagree; give one")
        scheduler: Scheduler = Scheduler.from_config(self.pipe.scheduler.config, **changes(self.pipe))
        scheduler.sampler = Sampler.of(sampler, asked if steps is None else steps).on(scheduler.process)
        if "num_inference_steps" in self._parameters:
            options["num_inference_steps"] = scheduler.sampler.steps
        return scheduler

    def _batch(self, options: dict[str, Any]) -> int | None:
        """How many samples the call makes, where its arguments tell."""
        name = next((k for k in COUNTED if options.get(k) is not None), None)
        if name is None:
            return options.get("batch_size")
        given = options[name]
        many = len(given) if isinstance(given, (list, tuple)) else 1
        if isinstance(given, torch.Tensor):
            many = 1 if name == "image" and given.ndim == 3 else len(given)
        return many * next((int(options[name]) for name in MANY if options.get(name)), 1)

    def _seed(
        self, seeds: Sequence[int] | int | None, batch: int | None, options: dict[str, Any]
    ) -> tuple[int, ...] | None:
        """Per-sample seeds, for the sampler's noise and for the pipeline's own."""
        if options.get("generator") is not None:
            if seeds is not None:
                raise ArgumentError("give seeds= or generator=, not both; seeds= also seeds the sampler's noise")
            self.seeds = ()
            return None
        if seeds is None:
            seeds = int(torch.randint(2**31, ()))
        self.seeds = checked(tuple(range(seeds, seeds + (batch or 1))) if isinstance(seeds, int) else tuple(seeds))
        if batch is not None and len(self.seeds) != batch:
            raise ArgumentError(f"{len(self.seeds)} seeds for {batch} samples; give one per sample, or one number")
        if "generator" in self._parameters:
            drawn = [torch.Generator().manual_seed(s) for s in self.seeds]
            options["generator"] = drawn[0] if len(drawn) == 1 else drawn
        return self.seeds
