"""One pipeline call with diffusers' scheduler and one with timonel's of the same name, from the
same start.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch

import timonel.compat as ours
from support import tiny

CONFIG = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SHAPE = (1, 4, 8, 8)


#: classes whose constructor alone describes the model they are for
ALONE = (
    "CMStochasticIterativeScheduler", "CogVideoXDDIMScheduler", "CogVideoXDPMScheduler",
    "CosineDPMSolverMultistepScheduler", "DDPMWuerstchenScheduler", "FlowMapEulerDiscreteScheduler",
    "MiniMaxH3Scheduler", "SCMScheduler", "UnCLIPScheduler",
)  # fmt: skip
ENDED = ("DDPMWuerstchenScheduler", "SCMScheduler")  # whose list shows where it ends
INVERSE = ("DDIMInverseScheduler", "DPMSolverMultistepInverseScheduler")


def counted(scheduler: Any, steps: int) -> Any:
    """The scheduler with a list of so many steps, as the pipelines of its class make it."""
    angles = type(scheduler).__name__ == "SCMScheduler"
    scheduler.set_timesteps(steps, **({"intermediate_timesteps": None} if angles else {}))
    return scheduler


def turns(scheduler: Any) -> Any:
    """The times that a pipeline's loop goes through."""
    ends = type(scheduler).__name__ in ENDED
    return scheduler.timesteps[:-1] if ends else scheduler.timesteps


class Stepped:
    """Steps of a loop as the pipelines of a scheduler's class make them."""

    def __init__(self, scheduler: Any) -> None:
        self.scheduler, self.before = scheduler, (None, None)

    def __call__(self, output: Any, t: Any, x: Any, **more: Any) -> Any:
        name, step = type(self.scheduler).__name__, self.scheduler.step
        if name == "CogVideoXDPMScheduler":
            old, back = self.before
            x, old = step(output, old, t, back, x, **more, return_dict=False)
            self.before = old, t
            return x
        if name == "DDPMWuerstchenScheduler":
            t = t.expand(len(x))
        if name == "UnCLIPScheduler":
            later = [one for one in self.scheduler.timesteps if one < t]
            more["prev_timestep"] = later[0] if later else None
        return step(output, t, x, **more, return_dict=False)[0]


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


def start() -> torch.Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


def trained(name: str) -> Any:
    """A scheduler of `timonel.compat` for a model that suits it."""
    cls = getattr(ours, name)
    return cls.from_config(CONFIG) if "vp" in cls.kinds and name != "UnCLIPScheduler" else cls()


def draws() -> list[torch.Tensor]:
    g = torch.Generator().manual_seed(11)
    return [torch.randn(SHAPE, generator=g, dtype=torch.float64) for _ in range(64)]


def same_noise(scheduler: Any, monkeypatch: Any) -> None:
    """The k-th noise is the same for both; SA-Solver also draws where it adds none."""
    drawn = draws()
    following = iter(drawn)
    if isinstance(scheduler, ours.SASolverScheduler):
        scheduler.session.noise = lambda row, like: drawn[row].to(like)
    elif isinstance(scheduler, ours.CogVideoXDPMScheduler):  # drawn twice between its ends
        last = lambda: 2 * scheduler.run.table.nfe - 3  # noqa: E731
        scheduler.session.noise = lambda row, like: drawn[min(2 * row, max(0, last()))].to(like)
    elif type(scheduler).__module__.startswith("timonel"):
        scheduler.session.noise = lambda row, like: next(following).to(like)
    else:
        module = sys.modules[type(scheduler).__module__]
        if hasattr(module, "randn_tensor"):
            draw: Callable[..., Any] = lambda shape, dtype=None, **_: next(following).to(dtype)  # noqa: E731
            monkeypatch.setattr(module, "randn_tensor", draw)


def run(pipe: Any, scheduler: Any, steps: int, monkeypatch: Any, **more: Any) -> torch.Tensor:
    """Latents of a call of a pipeline in float64."""
    same_noise(scheduler, monkeypatch)
    pipe.scheduler = scheduler
    asked = {
        k: v.double() if isinstance(v, torch.Tensor) else v for k, v in tiny.prompt(pipe).items()
    }
    images: torch.Tensor = pipe(
        **asked, num_inference_steps=steps, latents=start(), guidance_scale=3.0, **more
    ).images
    return images


def loop(scheduler: Any, monkeypatch: Any, **asked: Any) -> tuple[torch.Tensor, list[float]]:
    """The loop of a pipeline written by hand, with a network that sees the time; also the times."""
    same_noise(scheduler, monkeypatch)
    scheduler.set_timesteps(**asked)
    x, times = start() * float(getattr(scheduler, "init_noise_sigma", 1.0)), []
    step = Stepped(scheduler)
    for t in turns(scheduler):
        times.append(float(t))
        seen = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        x = step(torch.tanh(1.3 * seen + float(t) / 700) + 0.2 * seen, t, x)
    return x, times
