"""A warning about results with NaN or infinity, which nobody sees in a decoded picture."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..errors import GuardStop

if TYPE_CHECKING:
    from .run import Run


def remedy(run: Run, alpha: float) -> str:
    """What to try against NaN or infinity.

    Args:
        run: where they came up.
        alpha: of the level where they did.
    """
    tries = []
    if run.latents.dtype in (torch.float16, torch.bfloat16):
        tries.append("run the network and the VAE in float32")
    if run.guidance is not None:
        tries.append("lower the guidance scale")
    if run.prediction == "epsilon" and alpha < 0.05:
        tries.append(
            "check that the model predicts epsilon: zero terminal SNR needs a v-prediction model"
        )
    tries.append("try another grid, e.g. karras or trailing, or more steps")
    return f"Try: {'; '.join(tries)}."


@torch.no_grad()
def check_result(run: Run, result: Tensor) -> None:
    """Warn where some samples of a result have NaN or infinity; waits for the device once.

    Args:
        run: that has ended.
        result: (batch, …), its result.

    Raises:
        GuardStop: every sample has.
    """
    finite = result.detach().isfinite().flatten(1).all(1).tolist()
    if all(finite):
        return
    broken = [str(i) for i, fine in enumerate(finite) if not fine]
    where = f"sample {', '.join(broken)} of {len(result)}" if any(finite) else "every sample"
    message = (
        f"the result of {where} has NaN or infinity after {run.table.steps} steps of"
        f" {run.table.solver!r}. {remedy(run, float(run.table.alpha[0]))} hooks=[tm.guard()] names"
        " the step where it begins."
    )
    if not any(finite):
        raise GuardStop(message)
    warnings.warn(message, RuntimeWarning, stacklevel=3)
