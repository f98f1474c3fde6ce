"""diffusers' official callbacks by name, for any pipeline that calls `callback_on_step_end`.

The cutoffs switch guidance off in every pipeline whose network gets [unconditional, conditional]
batches, Stable Video Diffusion and batches of several prompts included: the network computes the
conditional part only, and the pipeline's own formula `u + g·(c - u)` gives c. As in diffusers, step
`cutoff` itself is still guided, and a ratio counts the calls of the pipeline's loop. One class
would do; they keep diffusers' names so that scripts run.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar

from diffusers.callbacks import MultiPipelineCallbacks as MultiPipelineCallbacks
from diffusers.callbacks import PipelineCallback as Official
from diffusers.configuration_utils import register_to_config
from torch import nn

from ..errors import ArgumentError, finite, whole
from ..pipelines.guidance import batch_tree
from ..pipelines.guidance.gate import networks
from ..pipelines.network.busy import called_by

HELD = "_timonel_cutoff"  # where a pipeline holds its hooks for the time of a call


class PipelineCallback(Official):  # type: ignore[misc]
    """diffusers' base class; `cutoff_step_index` may come alone.

    Args:
        cutoff_step_ratio: the share of the calls after which it acts, 0 to 1.
        cutoff_step_index: the call after which it acts, from 0.

    Raises:
        ArgumentError: values out of range, or both.
    """

    tensor_inputs: ClassVar[Sequence[str]] = ()

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self, cutoff_step_ratio: float | None = 1.0, cutoff_step_index: int | None = None
    ) -> None:
        if cutoff_step_index is not None:
            if cutoff_step_ratio not in (None, 1.0):
                raise ArgumentError("give cutoff_step_ratio or cutoff_step_index, not both")
            whole("cutoff_step_index", cutoff_step_index, 0)
        elif cutoff_step_ratio is None:
            raise ArgumentError("give cutoff_step_ratio, e.g. 0.4, or cutoff_step_index")
        else:
            finite("cutoff_step_ratio", cutoff_step_ratio, 0, 1)

    def cutoff(self, pipeline: Any) -> int:
        """The call of the loop after which it acts: the index, or floor(calls · ratio)."""
        index, ratio = self.config.cutoff_step_index, self.config.cutoff_step_ratio
        return int(index) if index is not None else math.floor(pipeline.num_timesteps * ratio)


class SDCFGCutoffCallback(PipelineCallback):
    """Guidance ends after a share of the steps, or after a step.

    A pipeline that has no guidance to switch off, or runs it in separate calls, is refused with
    `ArgumentError`.

    Args:
        cutoff_step_ratio: the share of the steps, 0 to 1.
        cutoff_step_index: the step, from 0, in place of the share.
    """

    tensor_inputs = ("latents",)

    def callback_fn(
        self, pipeline: Any, step_index: int, timestep: Any, callback_kwargs: dict[str, Any]
    ) -> Any:
        """Hook a gate on the networks at the first step, close it at the cutoff, remove it.

        Args:
            pipeline: that calls back.
            step_index: the step that ended, from 0.
            timestep: of that step; not used.
            callback_kwargs: the tensors that the pipeline shows.

        Returns:
            `callback_kwargs`.
        """
        if step_index == 0:
            self._hang(pipeline, callback_kwargs)
        gates = self._gates(pipeline)
        if gates is not None and step_index == self.cutoff(pipeline):
            gates.close()
        if gates is not None and step_index == pipeline.num_timesteps - 1:
            gates.remove()
        return callback_kwargs

    def _hang(self, pipeline: Any, callback_kwargs: dict[str, Any]) -> None:
        if not hasattr(pipeline, "do_classifier_free_guidance"):
            raise ArgumentError(
                f"{type(pipeline).__name__} has no classifier-free guidance that could be cut off"
            )
        if "latents" not in callback_kwargs:
            raise ArgumentError(
                "the cutoff needs to see the latents: leave callback_on_step_end_tensor_inputs out"
            )
        if pipeline.do_classifier_free_guidance:
            pipeline.__dict__[HELD] = _Gates(pipeline, len(callback_kwargs["latents"]))

    def _gates(self, pipeline: Any) -> _Gates | None:
        held = pipeline.__dict__.get(HELD)
        return held if held is not None and held.present else None


class SDXLCFGCutoffCallback(SDCFGCutoffCallback):
    """`SDCFGCutoffCallback` for SDXL.

    Args:
        cutoff_step_ratio: see `SDCFGCutoffCallback`.
        cutoff_step_index: see `SDCFGCutoffCallback`.
    """


class SDXLControlnetCFGCutoffCallback(SDCFGCutoffCallback):
    """`SDCFGCutoffCallback` for SDXL with ControlNet, which is cut as well.

    Args:
        cutoff_step_ratio: see `SDCFGCutoffCallback`.
        cutoff_step_index: see `SDCFGCutoffCallback`.
    """


class SD3CFGCutoffCallback(SDCFGCutoffCallback):
    """`SDCFGCutoffCallback` for SD3; skip-layer guidance ends with it.

    Args:
        cutoff_step_ratio: see `SDCFGCutoffCallback`.
        cutoff_step_index: see `SDCFGCutoffCallback`.
    """


class IPAdapterScaleCutoffCallback(PipelineCallback):
    """The scale of the IP adapter is 0 after the cutoff, and back after the last step.

    A pipeline without IP adapters is refused with `ArgumentError` at the first step.

    Args:
        cutoff_step_ratio: the share of the steps, 0 to 1.
        cutoff_step_index: the step, from 0, in place of the share.
    """

    def callback_fn(
        self, pipeline: Any, step_index: int, timestep: Any, callback_kwargs: dict[str, Any]
    ) -> Any:
        """Set the scale to 0 at the cutoff, and back after the last step.

        Args:
            pipeline: that calls back.
            step_index: the step that ended, from 0.
            timestep: of that step; not used.
            callback_kwargs: the tensors that the pipeline shows.

        Returns:
            `callback_kwargs`.
        """
        if not hasattr(pipeline, "set_ip_adapter_scale"):
            raise ArgumentError(
                f"{type(pipeline).__name__} takes no IP adapter whose scale could be cut off"
            )
        if step_index == self.cutoff(pipeline):
            denoisers: list[Any] = [m for m, denoises in networks(pipeline).items() if denoises]
            processors = [p for one in denoisers for p in one.attn_processors.values()]
            self._before = [(p, copy.copy(p.scale)) for p in processors if hasattr(p, "scale")]
            pipeline.set_ip_adapter_scale(0.0)
        if step_index == pipeline.num_timesteps - 1:
            for processor, scale in self.__dict__.pop("_before", ()):
                processor.scale = scale
        return callback_kwargs


class _Gates:
    """Hooks on a pipeline's networks for one call of the pipeline."""

    def __init__(self, pipe: Any, samples: int) -> None:
        self.pipe, self.samples, self.closed = pipe, samples, False
        self.times = pipe.scheduler.timesteps  # another call of the pipeline has another list
        self.seen = False  # whether the network was called with both halves
        self.handles: list[Any] = []
        for module, denoises in networks(pipe).items():
            gate = _Half(self, denoises)
            self.handles.append(module.register_forward_pre_hook(gate.before, with_kwargs=True))
            self.handles.append(module.register_forward_hook(gate.after))

    @property
    def present(self) -> bool:
        """Whether the call goes on; a call that was interrupted or failed left its hooks behind."""
        if self.pipe.scheduler.timesteps is not self.times:
            self.remove()
        return bool(self.handles)

    def close(self) -> None:
        self.closed = True
        if hasattr(self.pipe, "_skip_layer_guidance_scale"):
            self.pipe._skip_layer_guidance_scale = 0.0

    def remove(self) -> None:
        for handle in self.handles:
            handle.remove()
        self.handles = []
        self.pipe.__dict__.pop(HELD, None)


class _Half:
    """The hooks of one network: its conditional part goes in, and its output comes out twice."""

    def __init__(self, gates: _Gates, denoises: bool) -> None:
        self.gates, self.denoises, self.cut = gates, denoises, False

    def before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        gates, self.cut = self.gates, False
        if not gates.present or not called_by(gates.pipe):  # another pipeline shares the network
            return None
        size, both = len(batch_tree.sample_of(args, kwargs)), 2 * gates.samples
        if self.denoises and not gates.seen and size != both:
            name = type(gates.pipe).__name__
            gates.remove()
            raise ArgumentError(
                f"{name} does not call its network with both parts of the guidance at once (batch"
                f" {size} for {gates.samples} samples); use timonel.Helm(pipe)(…,"
                " guidance=timonel.cfg(until=…))"
            )
        gates.seen = gates.seen or self.denoises
        if not gates.closed or size != both:
            return None
        self.cut, place = True, batch_tree.conditional(gates.pipe, 2)
        wanted = slice(place * gates.samples, (place + 1) * gates.samples)
        narrow = partial(batch_tree.narrow, size=both, wanted=wanted, listed=False)
        return narrow(args), narrow(kwargs)

    def after(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        if not self.cut:
            return None
        return batch_tree.rearrange(output, lambda parts: parts * 2, 1, self.gates.samples, False)
