"""Files written before the code moved still load, and what they hold goes on with the same numbers.

`files_of_before/` holds one of each kind, written by commit e99a0b3: a run saved after step 5 of 9,
a sampler fitted to a model, the configurations of a `Scheduler` and of a class of `timonel.compat`,
and a picture with its recipe. `results.safetensors` holds what each of them came to there.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

import timonel as tm
from timonel import compat

FILES = Path(__file__).parent / "files_of_before"
RESULTS = load_file(FILES / "results.safetensors")
VP = tm.VP.from_schedule()
X = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(0))


def conditional(x: Tensor, level: tm.At) -> Tensor:
    return x * (0.5 * level.alpha)


def unconditional(x: Tensor, level: tm.At) -> Tensor:
    return x * (0.25 * level.alpha)


def test_a_saved_run_goes_on_bit_for_bit() -> None:
    run = tm.Run.load(FILES / "run.safetensors")
    assert (run.step, run.guidance) == (5, tm.cfg(3.0, until=0.8, forecast=2, order=2))
    for _ in tm.iterate(run, conditional, unconditional):
        pass
    assert torch.equal(run.result, RESULTS["run"])


def test_a_fitted_sampler_samples_bit_for_bit() -> None:
    result = tm.sample(conditional, X, str(FILES / "fitted.json"), process=VP)
    assert torch.equal(result, RESULTS["fitted"])


@pytest.mark.parametrize("name", ["scheduler", "compat"])
def test_a_saved_scheduler_steps_bit_for_bit(name: str) -> None:
    classes = {"scheduler": tm.Scheduler, "compat": compat.DPMSolverMultistepScheduler}
    scheduler = classes[name].from_pretrained(FILES / name)
    scheduler.set_timesteps(5)
    x, generator = X * float(scheduler.init_noise_sigma), torch.Generator().manual_seed(3)
    for time in scheduler.timesteps:
        raw = scheduler.scale_model_input(x, time) * 0.25
        x = scheduler.step(raw, time, x, generator=generator).prev_sample
    assert torch.equal(x, RESULTS[name])


def test_a_recipe_makes_its_picture_again() -> None:
    with Image.open(FILES / "recipe.png") as picture:
        before = np.asarray(picture, dtype=int)
    again = np.asarray(tm.replay(FILES / "recipe.png"), dtype=int)
    assert np.abs(again - before).max() <= 1  # another processor may round a network otherwise
