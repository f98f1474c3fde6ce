"""A scheduler of diffusers driven as its pipeline drives it, by an exact network, not the weights.

The network's data are Gaussian, so its answer at any noise level is known: a scheduler that tells
it the wrong level, leaves noise in or fails shows so in numbers.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..core import prediction as predictions
from ..core.process import Level, Process, double, keys
from ..pipelines.family.facts import Loop
from . import levels

DATA = 0.5  # standard deviation of the data; latents of pictures have about 1, their details less
SHAPE = (1, 4, 64, 64)
TOKENS = 4096  # of a picture of 1024 x 1024, from which dynamic shifts are computed
# two levels differ where both lam and sigma / (alpha + sigma) do: near the clean level lam alone
# makes much of nothing, and near pure noise as well
SAME_LAM, SAME_SHARE = 0.2, 0.005


@dataclass(frozen=True)
class Trial:
    """What happened.

    Args:
        calls: network calls.
        times: what the network got at each of them.
        meant: what it should have got at the level where the scheduler took the sample to be; empty
            where the two cannot differ.
        off: the calls at which they are two levels.
        strange: the network got a time that the model does not have.
        error: what was raised, in words.
        left: standard deviation of the noise left in the result.
        spread: that of the result on data of standard deviation `DATA`, over it.
    """

    calls: int = 0
    times: tuple[float, ...] = ()
    meant: tuple[float, ...] = ()
    off: tuple[int, ...] = ()
    strange: bool = False
    error: str = ""
    left: float = math.nan
    spread: float = math.nan


class Network:
    """Answers exactly for N(0, std²) at the level of its time; `times` are those it has got."""

    def __init__(self, process: Process, prediction: str, std: float) -> None:
        self.process, self.prediction, self.std = process, prediction, std
        self.times: list[float] = []

    def __call__(self, x: Tensor, time: Tensor) -> Tensor:
        """The raw output at a sample x, (batch, …), and a time."""
        self.times.append(float(time))
        level = heard(self.process, float(time))
        alpha, sigma = float(level.alpha), float(level.sigma)
        gain = alpha * self.std**2 / (alpha**2 * self.std**2 + sigma**2)
        return predictions.raw(self.prediction, x * gain, x, level)


def heard(process: Process, time: float) -> Level:
    """The level that a network takes a time for; outside its training, the nearest it knows."""
    low, high = levels.times_of(process)
    level = process.at_time(double(min(max(time, low), high)))
    return level if float(level.sigma) > 0 else process.at_index(double(0.0))


def run(
    scheduler: Any, loop: Loop, process: Process, prediction: str, steps: int, lists: dict[str, Any]
) -> Trial:
    """Drive a fresh scheduler on data at one point, where all that is left is noise, then on more.

    Nothing global is changed.

    Args:
        scheduler: of diffusers.
        loop: what its pipeline does with it.
        process: of the model.
        prediction: of its network.
        steps: how many.
        lists: times or sigmas in place of the number of steps.
    """
    with torch.random.fork_rng(devices=[]):
        point, data = (Network(process, prediction, std) for std in (0.0, DATA))
        trial, left = _drive(scheduler, loop, point, process, steps, lists)
        if left is None:
            return trial
        _, result = _drive(scheduler, loop, data, process, steps, lists)
    spread = math.nan if result is None else float(result.std()) / DATA
    error = ""
    if not (math.isfinite(spread) and bool(torch.isfinite(left).all())):
        error = f"the result is {'NaN' if bool(torch.isnan(left).any()) else 'not finite'}"
    return replace(trial, error=error, left=float(left.std()), spread=spread)


def listed(
    scheduler: Any,
    loop: Loop,
    process: Process,
    steps: int,
    lists: dict[str, Any],
    configured: bool = False,
) -> None:
    """Make the scheduler's list of times as the pipeline does.

    `configured`: give a shift only where the configuration says that it depends on the picture;
    some pipelines give one always, and diffusers' schedulers do not take it then.
    """
    config = scheduler.config
    sized = bool(config.get("use_dynamic_shifting")) or (loop.sigmas and not configured)
    shift = {"mu": shift_of(process, config)} if loop.mu and sized else {}
    retrieve = getattr(loop.module, "retrieve_timesteps", None)
    if retrieve is None:
        if lists:
            raise ValueError("this pipeline takes no list of times or sigmas")
        scheduler.set_timesteps(steps, device="cpu")
        return
    who = "AysSchedules is a list of"
    if not lists:
        lists, who = _of_pipeline(loop, config, steps), "the pipeline always gives"
    unknown = set(lists) - set(inspect.signature(scheduler.set_timesteps).parameters)
    if unknown:
        raise ValueError(f"{who} {unknown.pop()}, which {type(scheduler).__name__} does not take")
    retrieve(scheduler, None if lists else steps, "cpu", **lists, **shift)


def _of_pipeline(loop: Loop, config: Any, steps: int) -> dict[str, Any]:
    """The list that the pipeline makes itself."""
    makes = loop.sigmas and not config.get("use_flow_sigmas")
    return {"sigmas": [1 - i / steps for i in range(steps)]} if makes else {}


def shift_of(process: Process, config: Any) -> float:
    """The mu of a picture of `TOKENS`, as pipelines compute it from the scheduler's config."""
    usual = {
        "base_shift": 0.5,
        "max_shift": 1.15,
        "base_image_seq_len": 256,
        "max_image_seq_len": 4096,
    }
    base, top, low, high = (
        keys.number(key, default if config.get(key) is None else config[key])
        for key, default in usual.items()
    )
    return float(base + (top - base) * (TOKENS - low) / (high - low))


def _drive(
    scheduler: Any,
    loop: Loop,
    network: Network,
    process: Process,
    steps: int,
    lists: dict[str, Any],
) -> tuple[Trial, Tensor | None]:
    """The pipeline's loop: what happened, and the result, None where something was raised."""
    torch.manual_seed(0)
    noise = torch.randn(SHAPE)
    x = (noise - noise.mean()) / noise.std()
    meant: list[float] = []
    total = steps
    try:
        listed(scheduler, loop, process, steps, lists)
        if loop.begins and hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(0)
        times = scheduler.timesteps
        meant, total = _meant(scheduler, process), len(times)
        if loop.init:
            x = x * scheduler.init_noise_sigma
        extra: dict[str, Any] = {}
        if loop.generator and "generator" in inspect.signature(scheduler.step).parameters:
            extra["generator"] = torch.Generator().manual_seed(1)
        for time in times:
            seen = scheduler.scale_model_input(x, time) if loop.scales else x
            x = scheduler.step(network(seen, time), time, x, return_dict=False, **extra)[0]
    except Exception as error:
        calls = len(network.times)
        where = f"step {calls} of {total}" if calls else "before the first network call"
        return _trial(network, meant, f"{where}: {described(error)}"), None
    return _trial(network, meant), x


def _trial(network: Network, meant: Sequence[float], error: str = "") -> Trial:
    process, times = network.process, tuple(network.times)
    pairs = enumerate(zip(times, meant, strict=False))
    off = tuple(i for i, (time, right) in pairs if _differ(process, time, right))
    strange = any(_strange(process, time) for time in times)
    return Trial(len(times), times, tuple(meant), off, strange, error)


def described(error: Exception) -> str:
    """An exception in one line."""
    text = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}{f': {text}' if text else ''}"


def _meant(scheduler: Any, process: Process) -> list[float]:
    """What the network should get at every call, by the scheduler's own sigmas.

    Empty where it keeps no such list, or has levels between them: then times are all it knows.
    """
    if not levels.complete(scheduler):
        return []
    inside = levels.listed(scheduler)[:-1].clamp(max=process.sigma_max)
    return [float(time) for time in process.at_sigma(inside).time]


def _differ(process: Process, time: float, meant: float) -> bool:
    """Whether two times are two levels to the network; an unknown time is no level of it."""
    if _strange(process, time):
        return True
    a, b = heard(process, time), heard(process, meant)
    shares = [float(level.sigma / (level.alpha + level.sigma)) for level in (a, b)]
    lam = abs(float(a.lam) - float(b.lam))
    return abs(shares[0] - shares[1]) > SAME_SHARE and (math.isnan(lam) or lam > SAME_LAM)


def _strange(process: Process, time: float) -> bool:
    """Whether a time is outside those that the model was trained for, rounding aside."""
    low, high = levels.times_of(process)
    slack = 1e-3 * (high - low)
    return not low - slack <= time <= high + slack
