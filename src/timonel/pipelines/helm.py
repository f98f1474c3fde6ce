"""The helm: a diffusers pipeline under timonel's control."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from typing import Any

import torch

from .. import zoo
from ..errors import ArgumentError, ModelError, UnknownName
from ..guidance import Guidance, cfg
from ..noise import checked
from ..run import Run
from ..sampler import Sampler
from .decode import Context
from .gate import gated, networks
from .scheduler import Orders, Scheduler

RENAMED = tuple(int(n) for n in version("diffusers").split(".")[:2]) >= (0, 42)  # torch_dtype became dtype
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class Helm:
    """A pipeline at the helm.

        helm = tm.Helm("emoji")                      # a shipped model, a folder, a hub name or a pipeline object
        picture = helm("red apple", sampler="dpmpp_2m/karras", steps=12, guidance=tm.cfg(4, until=0.4),
                       seeds=[7], hooks=[tm.preview("frames/")]).images[0]

    The pipeline is used as it is: after a call everything on it is what it was before.

    Raises `ModelError` for a model that cannot be loaded or has no scheduler loop.
    """

    def __init__(
        self,
        pipe: Any,
        *,
        dtype: str | torch.dtype | None = None,
        device: str | None = None,
        variant: str | None = None,
    ) -> None:
        self.name: str | None = pipe if isinstance(pipe, str) else None
        self.card: zoo.Card | None = zoo.card(pipe) if isinstance(pipe, str) and pipe in zoo.MODELS else None
        self.pipe = load(pipe, dtype=dtype, device=device, variant=variant) if isinstance(pipe, str) else pipe
        if not callable(self.pipe) or not hasattr(getattr(self.pipe, "scheduler", None), "config"):
            raise ModelError(
                f"{type(self.pipe).__name__} is not a diffusers pipeline with a scheduler; "
                "give a pipeline object, a folder or a model name"
            )
        self.context = Context(self.pipe, self.card.latent_rgb() if self.card else None)
        self.seeds: tuple[int, ...] = ()
        self._scheduler: Scheduler | None = None

    @property
    def run(self) -> Run | None:
        """The run of the present call, or of the last one."""
        return None if self._scheduler is None else self._scheduler.current

    def __call__(
        self,
        *args: Any,
        sampler: Sampler | str | None = None,
        steps: int | None = None,
        guidance: Guidance | float | None = None,
        hooks: Sequence[Any] = (),
        seeds: Sequence[int] | int | None = None,
        keep: int = 0,
        **options: Any,
    ) -> Any:
        """Call the pipeline with its own arguments, under control, and return its own output.

        `sampler, steps`: see `Sampler`; without a grid, the process' usual one. `guidance`: a scale
        or `cfg(…)`. `seeds`: one per sample, or one number for the first of consecutive seeds; drawn
        and left in `self.seeds` where none are given. `keep`: step states kept for instant rewinds.

        Raises `ArgumentError` before any compute for arguments the pipeline does not have.
        """
        scheduler, options = self._prepare(sampler, steps, options)
        batch = self._batch(args, options)
        orders = Orders(hooks=tuple(hooks), keep=keep, context=self.context)
        orders.guidance = self._guidance(guidance, options)
        orders.seeds = self._seed(seeds, batch, options)
        scheduler.orders = orders
        scheduler.set_timesteps(scheduler.sampler.steps)  # everything that can be refused is refused here
        own, bar = self.pipe.scheduler, getattr(self.pipe, "_progress_bar_config", None)
        self.pipe.scheduler = self._scheduler = scheduler
        if any(getattr(hook, "shows_progress", False) for hook in hooks):  # one bar is enough
            self.pipe._progress_bar_config = {**(bar or {}), "disable": True}
        try:
            with gated(networks(self.pipe), lambda: scheduler.current, batch):
                return self.pipe(*args, **options)
        except BaseException:
            if scheduler.current is not None:
                scheduler.current.fail()
            getattr(self.pipe, "maybe_free_model_hooks", lambda: None)()
            raise
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
        self, sampler: Sampler | str | None, steps: int | None, options: dict[str, Any]
    ) -> tuple[Scheduler, dict[str, Any]]:
        """The scheduler of this call and the pipeline's own arguments, checked."""
        parameters, options = self._parameters, dict(options)
        for key in options:
            if key not in parameters:
                raise UnknownName(f"argument of {type(self.pipe).__name__}", key, parameters)
        asked = options.pop("num_inference_steps", None)
        if steps is not None and asked is not None and steps != asked:
            raise ArgumentError(f"steps={steps} and num_inference_steps={asked} disagree; give one")
        scheduler = Scheduler.from_config(self.pipe.scheduler.config)
        chosen = Sampler.of(sampler, asked if steps is None else steps).on(scheduler.process)
        scheduler.sampler = chosen
        if "num_inference_steps" in parameters:
            options["num_inference_steps"] = chosen.steps
        return scheduler, options

    def _batch(self, args: tuple[Any, ...], options: dict[str, Any]) -> int | None:
        """How many samples the call makes, where its arguments tell."""
        named = dict(zip(self._parameters, args, strict=False)) | options
        given = next((named[k] for k in ("prompt", "prompt_embeds", "image") if named.get(k) is not None), None)
        if given is None:
            return None
        count = len(given) if isinstance(given, (list, tuple, torch.Tensor)) else 1
        return count * int(named.get("num_images_per_prompt") or named.get("num_videos_per_prompt") or 1)

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

    def _guidance(self, guidance: Guidance | float | None, options: dict[str, Any]) -> Guidance | None:
        """The guidance of this call; also switches the pipeline's own doubling on where it is needed."""
        made = cfg(guidance) if isinstance(guidance, (int, float)) else guidance
        if made is None:
            return None
        own = self._parameters.get("guidance_scale")
        if made.scale is None and made.rescale:
            scale = options.get("guidance_scale", own.default if own else None)
            if not isinstance(scale, (int, float)):
                raise ArgumentError("guidance rescale needs a scale: cfg(5.0, rescale=0.7)")
            made = replace(made, scale=float(scale))
        if made.scale is None:
            return made
        if options.get("guidance_scale") is not None:
            raise ArgumentError("give the scale in guidance= or as guidance_scale=, not both")
        if own is None:
            raise ArgumentError(f"{type(self.pipe).__name__} takes no guidance_scale; leave the scale out of guidance=")
        scales = made.scale if isinstance(made.scale, tuple) else (made.scale,)
        top = max(scales)
        # above 1 the pipeline doubles its batch; the number itself no longer matters, the gate combines
        options["guidance_scale"] = top if top > 1 else 1.0 if set(scales) == {1.0} else 2.0
        return made


def load(
    name: str, *, dtype: str | torch.dtype | None = None, device: str | None = None, variant: str | None = None
) -> Any:
    """A diffusers pipeline from a shipped model's name, a folder or a hub name. Raises `ModelError`."""
    from diffusers import DiffusionPipeline

    if isinstance(dtype, str):
        if dtype not in DTYPES:
            raise UnknownName("dtype", dtype, DTYPES)
        dtype = DTYPES[dtype]
    source = str(zoo.folder(name)) if name in zoo.MODELS else name
    try:
        named = {"dtype" if RENAMED else "torch_dtype": dtype or torch.float32}
        pipe = DiffusionPipeline.from_pretrained(source, variant=variant, **named)
        return pipe.to(device) if device else pipe
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        shipped = ", ".join(zoo.MODELS)
        raise ModelError(
            f"cannot load the model {name!r}: {str(error).splitlines()[0] if str(error) else error!r} "
            f"(shipped models: {shipped}; else a folder in diffusers' format or a hub name)"
        ) from error
