"""The gate socket: hooks on the network that decide what is computed under guidance.

Pipelines feed the network [unconditional, conditional] batches and combine the outputs themselves,
`u + g·(c - u)`. Outside the guidance interval the gate passes only the conditional half through the
network and hands its output back twice, so that the pipeline's formula yields it for any g, at half
the cost. Where a scale or a rescale is given it combines the halves itself and hands that back twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ArgumentError
from ..guidance import combine
from ..run import Run

NETWORKS = ("unet", "transformer", "transformer_2", "controlnet")


def networks(pipe: Any) -> list[nn.Module]:
    """The modules of a pipeline that are called once per step with the whole batch."""
    found = [getattr(pipe, name, None) for name in NETWORKS]
    return [module for module in found if isinstance(module, nn.Module)]


@contextmanager
def gated(modules: list[nn.Module], current: Callable[[], Run | None], samples: int | None) -> Iterator[None]:
    """Put a gate on every module while the context is open. `samples`: batch size, where it is known."""
    gates = [Gate(current, samples) for _ in modules]
    handles = []
    try:
        for module, gate in zip(modules, gates, strict=True):
            handles.append(module.register_forward_pre_hook(gate.before, with_kwargs=True))
            handles.append(module.register_forward_hook(gate.after))
        yield
    finally:
        for handle in handles:
            handle.remove()


class Gate:
    """One network's gate."""

    def __init__(self, current: Callable[[], Run | None], samples: int | None) -> None:
        self.current, self.samples = current, samples
        self.batch = 0  # samples in the half that is computed; 0 while the gate lets everything through
        self.cut = False

    def before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any] | None:
        """Keep only the conditional half of every batched input where this row is not guided."""
        run = self.current()
        self.batch, self.cut = 0, False
        if run is None or run.guidance is None:
            return None
        size = _batch(args, kwargs)
        half = self._half(run, args, kwargs, size)
        if half is None:
            if all(scale == 1.0 for scale in run.scales):
                return None  # no guidance was asked for, and there is none
            raise ArgumentError(
                "guidance was asked for, but this pipeline gives its network no unconditional half "
                f"(batch {size}): pass guidance_scale above 1, or leave guidance out for a guidance-distilled model"
            )
        self.batch, self.cut = half, run.scale == 1.0
        if not self.cut:
            return None

        def conditional(t: Tensor) -> Tensor:
            return t[half:] if t.ndim and len(t) == 2 * half else t

        return _map(args, conditional), _map(kwargs, conditional)

    def after(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        """Hand back twice what the pipeline's own formula must not change."""
        run, half = self.current(), self.batch
        if not half or run is None or run.guidance is None:
            return None

        def twice(t: Tensor) -> Tensor:
            if self.cut:
                return torch.cat([t, t]) if t.ndim and len(t) == half else t
            if not t.ndim or len(t) != 2 * half or run.scale is None:
                return t
            uncond, cond = t.chunk(2)
            guided = combine(cond, uncond, run.scale, run.guidance.rescale if run.guidance else 0.0)
            return torch.cat([guided, guided])

        return _map(output, twice)

    def _half(self, run: Run, args: tuple[Any, ...], kwargs: dict[str, Any], size: int) -> int | None:
        """Samples per half if the batch is doubled for guidance, else None."""
        known = len(run.latents) if run.started else self.samples
        if known is not None:
            return known if size == 2 * known else None
        if size % 2:
            return None
        sample = _first(args, kwargs)
        self.samples = size // 2 if torch.equal(sample[: size // 2], sample[size // 2 :]) else size
        return self.samples if self.samples * 2 == size else None


def _first(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """The network's sample input: the first tensor with a batch."""
    for value in (*args, *kwargs.values()):
        if isinstance(value, Tensor) and value.ndim > 1:
            return value
    raise ArgumentError("the network was called without a batched tensor; timonel cannot tell its batch size")


def _batch(args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    return len(_first(args, kwargs))


def _map(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """`value` with every tensor in it changed; containers keep their type."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, dict):
        changed = {k: _map(v, change) for k, v in value.items()}
        return changed if type(value) is dict else type(value)(**changed)
    if isinstance(value, (list, tuple)):
        items = [_map(v, change) for v in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return value
