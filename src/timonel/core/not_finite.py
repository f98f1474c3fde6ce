"""What is said of a result with NaN or infinity, which nobody sees in a decoded picture."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..errors import GuardStop

if TYPE_CHECKING:
    from .run import Run


def remedy(run: Run, alpha: float) -> str:
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
    """Say that a result has NaN or infinity, which nobody sees in a decoded picture; waits for the
    device once.

    Raises `GuardStop` where every sample has; warns where only some have, for the others are good.
    """
    broken = [
        i
        for i, fine in enumerate(result.detach().isfinite().flatten(1).all(1).tolist())
        if not fine
    ]
    if not broken:
        return
    whole = len(broken) == len(result)
    where = "every sample" if whole else f"sample {', '.join(map(str, broken))} of {len(result)}"
    told = (
        f"the result of {where} has NaN or infinity after {run.table.steps} steps of"
        f" {run.table.solver!r}. {remedy(run, float(run.table.alpha[0]))} hooks=[tm.guard()] names"
        " the step where it begins."
    )
    if whole:
        raise GuardStop(told)
    warnings.warn(told, RuntimeWarning, stacklevel=3)
