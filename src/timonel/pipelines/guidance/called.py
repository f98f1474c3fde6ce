"""The networks that a pipeline calls in its loop, and one such call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from torch import nn

from . import batch_tree

# the first of these groups that a pipeline has is called once a step (or once a part) with the
# sample
NETWORKS = (("unet", "transformer", "transformer_2"), ("prior",), ("decoder",), ("dit",))
HELPERS = ("controlnet",)  # called beside the network, with inputs that are batched alike


def networks(pipe: Any) -> dict[nn.Module, bool]:
    """The modules that a pipeline calls in its loop, and whether each makes the prediction."""

    def modules(names: Sequence[str]) -> list[nn.Module]:
        values = (getattr(pipe, name, None) for name in names)
        return [module for module in values if isinstance(module, nn.Module)]

    main = next(filter(None, map(modules, NETWORKS)), [])
    return dict.fromkeys(modules(HELPERS) if main else (), False) | dict.fromkeys(main, True)


class Called(NamedTuple):
    """A call of a network: which, whether that makes the prediction, and what computes it."""

    module: nn.Module
    main: bool
    forward: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def compute(self) -> Any:
        """The network's own output."""
        return self.forward(*self.args, **self.kwargs)

    @property
    def sample(self) -> Any:
        """The sample among its arguments, or the list of samples."""
        return batch_tree.sample_of(self.args, self.kwargs)
