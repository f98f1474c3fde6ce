"""What is tried under the helm with each pipeline.

A check raises what is wrong, or `Lacks` where there is nothing to try.
"""

from __future__ import annotations

import functools
import signal
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import timonel as tm
from timonel.errors import GridError, PreviewMissing
from timonel.hooks.rgb import to_images
from timonel.pipelines.decode import previews
from timonel.pipelines.decode.pictures import pictures

from .alike import MEANT, counterparts, ended, replaced, schedulers
from .registry import Case

STEPS, LIMIT, CLOSE = (
    3,
    60,
    2e-3,
)  # steps of a run, seconds a check may take, relative difference of a batch
ALIKE = 2e-4  # relative difference of two pictures that are one, in float32
# of 255, on average: some blend the last step of the run with noise, which a preview leaves out
NEAR = 8
NETWORKS = (("unet", "transformer", "transformer_2"), ("decoder",), ("prior",))
SCALES = ("guidance_scale", "true_cfg_scale")
SAMPLE = ("sample", "hidden_states", "x", "latent_model_input", "noisy_latents")


class Lacks(Exception):
    """The pipeline has nothing that the check could try."""


def values(output: Any) -> Tensor:
    """What a pipeline returned, as one tensor of numbers."""
    first = output
    while not isinstance(first, (Tensor, np.ndarray)):
        if isinstance(first, list) and isinstance(first[0], (Tensor, np.ndarray)):
            first = torch.stack([torch.as_tensor(one) for one in first])
        elif hasattr(first, "getbands"):
            first = np.array(first)
        elif isinstance(first, list) and hasattr(first[0], "getbands"):
            first = np.stack([np.array(one) for one in first])
        else:
            first = first.to_tuple()[0] if hasattr(first, "to_tuple") else first[0]
    return torch.as_tensor(first).detach().double()


class SaysNo(Lacks):
    """Timonel says that it cannot, with the reason, and goes on."""


class Trial:
    """A pipeline, and calls of it under the helm."""

    def __init__(self, case: Case) -> None:
        self.case, self.pipe = case, case.build()
        self.parameters = case.parameters()
        self._helm: tm.Helm | None = None

    @property
    def helm(self) -> tm.Helm:
        self._helm = self._helm or tm.Helm(self.pipe)
        return self._helm

    @property
    def networks(self) -> list[nn.Module]:
        """What the pipeline calls in its loop."""
        for group in (self.case.networks,) if self.case.networks else NETWORKS:
            found = [getattr(self.pipe, name, None) for name in group]
            if any(isinstance(module, nn.Module) for module in found):
                return [module for module in found if isinstance(module, nn.Module)]
        return []

    def plainly(self, seeds: tuple[int, ...] = (0,), world: int = 0, **more: Any) -> Tensor:
        """The pipeline's own call with its own scheduler."""
        torch.manual_seed(world)
        given = self.case.inputs() | more
        if "generator" in self.parameters:
            drawn = [torch.Generator().manual_seed(seed) for seed in seeds]
            given["generator"] = drawn if len(drawn) > 1 else drawn[0]
        if "num_inference_steps" in self.parameters:
            given.setdefault("num_inference_steps", STEPS)
        return values(self.pipe(**given))

    def steer(self, world: int = 0, **orders: Any) -> Tensor:
        """A call under the helm. Where it is given a guidance scale, the case's own is left out.

        `world`: the seed of torch's global generator.
        """
        torch.manual_seed(world)
        given = self.case.inputs() | {"seeds": [0], "steps": STEPS} | orders
        if isinstance(orders.get("guidance"), float):
            given = {name: value for name, value in given.items() if name not in SCALES}
        return values(self.helm(**given))

    def depends_on_the_batch(self, two: dict[str, Any]) -> bool:
        """Whether the pipeline itself computes something else of two samples than of each."""
        singles = torch.cat([self.plainly(), self.plainly((1,))])
        return gap(self.plainly((0, 1), **two), singles) >= CLOSE

    def fails_alone(self, two: dict[str, Any]) -> None:
        """Raises `Lacks` where the pipeline cannot make two samples without the helm either."""
        try:
            self.plainly((0, 1), **two)
        except Exception as error:
            raise Lacks("two samples fail with diffusers' own scheduler too") from error

    def scaled(self, scale: float) -> dict[str, Any]:
        """The guidance scale as the pipeline takes it: an argument, or what its guider has."""
        name = next((name for name in SCALES if name in self.parameters), None)
        if name is None:
            self.pipe.guider.guidance_scale = scale
        return {name: scale} if name else {}

    @cached_property
    def other(self) -> Tensor:
        return self.steer(seeds=[1])

    @cached_property
    def usual(self) -> Tensor:
        """The call that others are compared with."""
        return self.steer()

    @cached_property
    def euler(self) -> tuple[list[int], int]:
        """Samples in each network call of a run with Euler's method, and its rows."""
        with self.counted() as sizes:
            self.steer(sampler="euler")
        return sizes, self.run.advances

    @property
    def run(self) -> tm.Run:
        assert self.helm.run is not None
        return self.helm.run

    @contextmanager
    def counted(self) -> Iterator[list[int]]:
        """Samples in each call that reaches a network."""
        sizes: list[int] = []
        held = self.networks
        for module in held:
            module.forward = _counting(module.forward, sizes)  # type: ignore[method-assign]
        try:
            yield sizes
        finally:
            for module in held:
                module.__dict__.pop("forward", None)

    def guides(self, *kinds: str) -> None:
        """Raises `Lacks` for pipelines of the given kinds of guidance."""
        if self.case.guidance in kinds:
            told = self.case.guidance == "embedded"
            raise Lacks("the network is told the scale as a number" if told else "no guidance")


def _counting(inner: Callable[..., Any], sizes: list[int]) -> Callable[..., Any]:
    @functools.wraps(inner)  # some pipelines look at what it takes
    def forward(*args: Any, **named: Any) -> Any:
        known = [named[name] for name in SAMPLE if name in named]
        sample = next(v for v in (*known, *args, *named.values()) if isinstance(v, (Tensor, list)))
        sizes.append(len(sample))
        return inner(*args, **named)

    return forward


def gap(a: Tensor, b: Tensor) -> float:
    assert a.shape == b.shape, f"shapes {tuple(a.shape)} and {tuple(b.shape)}"
    return float((a - b).abs().max() / b.abs().max().clamp(min=1e-30))


# -- the checks ------------------------------------------------------------------------------------
def own(trial: Trial) -> None:
    """Runs with its own scheduler."""
    assert trial.plainly().isfinite().all(), "not finite"


def helm(trial: Trial) -> None:
    """Runs to the end with the default sampler."""
    made = trial.usual
    assert made.isfinite().all(), "not finite"
    assert trial.run.status == "done", f"the run is {trial.run.status}"


def grid(trial: Trial) -> None:
    """Takes another solver on another grid."""
    try:
        made = trial.steer(sampler="dpmpp_2m/karras")
    except GridError:  # a process that starts at pure noise has no highest sigma
        made = trial.steer(sampler="dpmpp_2m/trailing")
    assert made.isfinite().all(), "not finite"
    assert trial.run.table.solver == "dpmpp_2m", trial.run.table.solver
    assert trial.run.status == "done", f"the run is {trial.run.status}"


def heun(trial: Trial) -> None:
    """Calls the network twice a step, once in the last."""
    single, once = trial.euler
    with trial.counted() as double:
        trial.steer(sampler="heun")
    rows, steps = trial.run.advances, trial.run.steps
    last = int(
        bool(trial.run.table.sigma[-1] == 0)
    )  # a loop that leaves the last level out ends above it
    assert rows == 2 * steps - last, f"{rows} rows for {steps} steps"
    assert len(double) * once == len(single) * rows, (
        f"{len(double)} network calls, {len(single)} with euler"
    )


def sde(trial: Trial) -> None:
    """Takes a stochastic solver."""
    first, again = trial.steer(sampler="dpmpp_2m_sde"), trial.steer(sampler="dpmpp_2m_sde")
    assert first.isfinite().all(), "not finite"
    assert torch.equal(first, again), "the same seed gave another sample"


def stop(trial: Trial) -> None:
    """A stop after the first step ends the loop; the pipeline returns the denoised prediction."""
    whole, _ = trial.euler
    with trial.counted() as part:
        made = trial.steer(sampler="euler", hooks=[lambda run: run.stop()])
    assert trial.run.status == "stopped", f"the run is {trial.run.status}"
    assert made.isfinite().all(), "not finite"
    assert len(part) < len(whole), f"{len(part)} of {len(whole)} network calls"


def hook(trial: Trial) -> None:
    """A hook sees the sample and its denoised prediction after every step."""
    shapes: list[tuple[Any, Any]] = []
    runs: list[tm.Run] = []

    def look(run: tm.Run) -> None:
        shapes.append((run.latents.shape, run.denoised.shape))
        runs.append(run)

    trial.steer(hooks=[look])
    wanted = sum(
        run.steps for run in {id(run): run for run in runs}.values()
    )  # some calls have several loops
    assert len(shapes) == wanted, f"{len(shapes)} calls for {wanted} steps"
    assert all(a == b for a, b in shapes), f"{shapes[0]}"


def edit(trial: Trial) -> None:
    """What a hook changes is in the result."""

    def shift(run: tm.Run) -> None:
        if run.step == 1:
            run.latents = run.latents + 0.5

    assert not torch.equal(trial.usual, trial.steer(hooks=[shift])), "the result is the same"


def rewind(trial: Trial) -> None:
    """Going back once gives the same result."""
    done: list[int] = []

    def back(run: tm.Run) -> None:
        if run.step == min(2, run.steps - 1) and not done:
            done.append(run.step)
            run.rewind(run.step - 1)

    again = trial.steer(hooks=[back], keep=3)
    assert done, "no step to go back from"
    # not to the bit: some pipelines blend into the sample themselves, which rounds once more
    assert gap(again, trial.usual) < 1e-5, f"{gap(again, trial.usual):.1e} apart"


def seeds(trial: Trial) -> None:
    """The same seed gives the same sample, another one another."""
    first, again, other = trial.usual, trial.steer(world=1), trial.other
    if not torch.equal(first, again) and not torch.equal(trial.plainly(), trial.plainly(world=1)):
        raise Lacks("the pipeline draws from torch's global generator too, which no seed reaches")
    assert torch.equal(first, again), "the same seed gave another sample"
    if torch.equal(first, other) and torch.equal(trial.plainly(), trial.plainly((1,))):
        return  # the pipeline begins with what it is given
    assert not torch.equal(first, other), "another seed gave the same sample"


def batch(trial: Trial) -> None:
    """Two samples of one call are the two single ones."""
    two = trial.case.two
    if isinstance(two, str):
        raise Lacks(two)
    given = two or _two(trial)
    try:
        both = trial.steer(**given, seeds=[0, 1])
    except Exception:
        trial.fails_alone(given)
        raise
    singles = torch.cat([trial.usual, trial.other])
    if gap(both, singles) >= CLOSE and trial.depends_on_the_batch(given):
        raise Lacks("samples depend on their batch with diffusers' own scheduler too")
    assert gap(both, singles) < CLOSE, f"{gap(both, singles):.1e} apart"


def _two(trial: Trial) -> dict[str, Any]:
    for name in (
        "num_images_per_prompt",
        "num_videos_per_prompt",
        "num_waveforms_per_prompt",
        "batch_size",
    ):
        if name in trial.parameters:
            return {name: 2}
    prompt = trial.case.inputs().get("prompt")
    if isinstance(prompt, str):
        return {"prompt": [prompt, prompt]}
    raise Lacks("one sample a call")


def scale(trial: Trial) -> None:
    """The helm's guidance scale is the pipeline's."""
    trial.guides("none")
    low, high = trial.steer(guidance=2.0), trial.steer(guidance=6.0)
    if torch.equal(low, high) and torch.equal(
        trial.plainly(**trial.scaled(2.0)), trial.plainly(**trial.scaled(6.0))
    ):
        raise Lacks(
            "this small network makes the same of every prompt, with diffusers' own scheduler too"
        )
    assert not torch.equal(low, high), "the scale changes nothing"
    if "guidance_scale" in trial.parameters and "true_cfg_scale" not in trial.case.inputs():
        theirs = trial.steer(guidance_scale=6.0)
        assert gap(high, theirs) < CLOSE, f"{gap(high, theirs):.1e} from the pipeline's own"


def interval(trial: Trial) -> None:
    """Outside the guidance interval the unconditional part is not computed."""
    trial.guides("none", "embedded")
    always, _ = trial.euler
    with trial.counted() as first:
        trial.steer(sampler="euler", guidance=tm.cfg(until=1, unit="step"))
    assert sum(first) < sum(always), f"{sum(first)} samples, {sum(always)} without the interval"


def compat(trial: Trial) -> None:
    """The class of `timonel.compat` that its scheduler is named after paints the picture of the
    same generator.
    """
    others = counterparts(trial.pipe)
    if not others:
        raise Lacks(
            f"timonel.compat has no {type(next(iter(schedulers(trial.pipe).values()))).__name__}"
        )
    want, theirs = ended(trial.pipe, trial.plainly)
    with replaced(trial.pipe, others):
        if trial.case.after is not None:
            trial.case.after(trial.pipe)
        made, ours = ended(trial.pipe, trial.plainly)
    apart = gap(made, want)
    if apart < ALIKE or (
        theirs and all(gap(a, b) < ALIKE for a, b in zip(ours, theirs, strict=True))
    ):
        return  # a decoder that picks words of a book may pick others for samples that are the same
    why = next(
        (
            f": {MEANT[word]}"
            for word in (type(one).__name__ for one in others.values())
            if word in MEANT
        ),
        "",
    )
    raise AssertionError(
        f"{apart:.1g} of the largest value from the picture of diffusers' class{why}"
    )


def restored(trial: Trial) -> None:
    """After calls the pipeline is what it was: scheduler, attributes, hooks on the networks."""
    scheduler, names = trial.pipe.scheduler, set(vars(trial.pipe))
    before = [
        (set(m.__dict__), len(m._forward_hooks), len(m._forward_pre_hooks)) for m in trial.networks
    ]
    trial.steer(hooks=[lambda run: run.stop()])
    assert trial.pipe.scheduler is scheduler, "another scheduler is left"
    assert {n for n in set(vars(trial.pipe)) ^ names if not n.startswith("_")} == set(), (
        "attributes are left"
    )
    after = [
        (set(m.__dict__), len(m._forward_hooks), len(m._forward_pre_hooks)) for m in trial.networks
    ]
    assert before == after, "hooks are left on the network"


def preview(trial: Trial) -> str:
    """A preview changes nothing: of every step a picture by the linear map, or decoded as the
    pipeline decodes.
    """
    small: list[Any] = []
    full: list[Any] = []
    solid = trial.case.kind == "3D"  # each of its pictures is 20 views of a shape: one will do
    every = STEPS if solid else 1
    hooks = [
        tm.preview(
            lambda run, images: small.append((run, images)), every, decode=False, block=True
        ),
        tm.preview(lambda run, images: full.append((run, images)), every, decode=True, block=True),
    ]
    steps: list[tm.Run] = []
    with warnings.catch_warnings(record=True) as said, _quickly():
        warnings.simplefilter("always")
        made = trial.steer(hooks=[*hooks, steps.append])
    assert torch.equal(made, trial.usual), "the result is another"
    assert trial.run.status == "done", f"the run is {trial.run.status}"
    ways = [
        name
        for name, shown in (("linear", small), ("decoded", full))
        if len(shown) == len(steps) // every
    ]
    if not ways:
        missing = [str(w.message) for w in said if issubclass(w.category, PreviewMissing)]
        assert missing, (
            f"{len(small)} and {len(full)} pictures of {len(steps)} steps, and not a word"
        )
        raise SaysNo(
            missing[-1]
            .removeprefix("preview: no more pictures of this run: ")
            .removesuffix("; the run goes on")
        )
    if full and not solid and (theirs := _own_picture(trial)) is not None:
        ours = np.asarray(full[-1][1][0], dtype=float)
        assert ours.shape == theirs.shape, f"{ours.shape}, the pipeline's own are {theirs.shape}"
        assert abs(ours - theirs).mean() < NEAR, (
            f"{abs(ours - theirs).mean():.0f} of 255 from the pipeline's own"
        )
    return " + ".join(ways)


@contextmanager
def _quickly() -> Iterator[None]:
    """Linear maps fitted to smaller pictures: tiny autoencoders cost as much as large ones at their
    size.
    """
    pixels, previews.FIT_PIXELS = previews.FIT_PIXELS, 64
    try:
        yield
    finally:
        previews.FIT_PIXELS = pixels


def _own_picture(trial: Trial) -> Any:
    """The first picture, or grid of frames, that the pipeline itself makes of the run; None where
    it makes none.
    """
    if "output_type" not in trial.parameters:
        return None
    torch.manual_seed(0)
    for form in ("np", "pil"):
        try:
            output = trial.helm(
                **(trial.case.inputs() | {"seeds": [0], "steps": STEPS} | trial.case.shown(form))
            )
        except Exception:
            continue
        made = pictures(output, len(trial.run.latents))
        return None if made is None else np.asarray(to_images(made)[0], dtype=float)
    return None


CHECKS: dict[str, Callable[[Trial], str | None]] = {
    check.__name__: check
    for check in (
        own, compat, helm, grid, heun, sde, stop, hook, edit, rewind, seeds, batch, scale, interval,
        preview, restored,
    )
}  # fmt: skip


def attempt(check: Callable[[Trial], str | None], trial: Trial) -> dict[str, str]:
    """How a check went: "yes" or how it does it, "no" with the reason, or "-" with why there is
    nothing to try.
    """
    signal.signal(signal.SIGALRM, _late)
    signal.alarm(LIMIT)
    try:
        return {"went": check(trial) or "yes", "why": "", "where": ""}
    except SaysNo as reason:
        return {"went": "says no", "why": str(reason), "where": ""}
    except Lacks as nothing:
        return {"went": "-", "why": str(nothing), "where": ""}
    except Exception as error:
        frames, last = [], error.__traceback__
        while last is not None:
            code = last.tb_frame.f_code
            frames.append(f"{code.co_filename.rsplit('/', 1)[-1]}:{last.tb_lineno} {code.co_name}")
            last = last.tb_next
        first = (str(error).splitlines() or [""])[0]
        name = "" if isinstance(error, AssertionError) else f"{type(error).__name__}: "
        return {"went": "no", "why": f"{name}{first}"[:300], "where": " < ".join(frames[::-1][:4])}
    finally:
        signal.alarm(0)


def _late(*_: Any) -> None:
    raise TimeoutError(f"took longer than {LIMIT} s")


def try_all(case: Case, only: str = "") -> dict[str, Any]:
    """Every check on one pipeline, or one."""
    began, results = time.perf_counter(), {}
    try:
        trial = Trial(case)
    except Exception as error:
        return {
            "built": f"{type(error).__name__}: {str(error).splitlines()[:1]}",
            "results": {},
            "seconds": 0.0,
        }
    for name, check in CHECKS.items():
        if only not in ("", name):
            continue
        results[name] = attempt(check, trial)
        if name in ("own", "helm") and results[name]["went"] == "no":
            break
    return {"built": "", "results": results, "seconds": time.perf_counter() - began}
