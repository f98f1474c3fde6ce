"""The runs of the digest: a name and the tensors, pictures or numbers that it ends in.

Every case uses public names only and begins from fixed seeds, so it says what timonel computes, not
how.
"""

from __future__ import annotations

import inspect
import tempfile
import warnings
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import timonel as tm
from timonel import compat
from timonel.core.grids import GRIDS
from timonel.core.solvers import CONTROLLED, SOLVERS
from timonel.exact import Mixture

Case = tuple[str, Callable[[], Any]]

PROCESSES: dict[str, Any] = {
    "vp": tm.VP.from_schedule(),
    "edm": tm.EDM(0.002, 80.0),
    "flow": tm.Flow(),
}
STOCHASTIC = [1, 2]
MODELS = ("emoji", "emoji-flow", "emoji-lcm", "emoji-zsnr")
VIDEO = "emoji-video"
SCHEDULERS = [name for name in compat.__all__ if name.endswith("Scheduler")]
MEASURES = (
    "latent_rmse",
    "levels",
    "nfe",
    "psnr",
    "rmse",
    "sampler",
    "seed",
    "ssim",
    "steps",
    "times",
)
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


# -- native ----------------------------------------------------------------------------------------
@cache
def mixture() -> Mixture:
    return Mixture.random(seed=0, components=4, dimension=8, classes=2)


def noise(batch: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randn(batch, 8, generator=generator, dtype=torch.float64)


def sampled(process: str, sampler: str, steps: int = 6, **more: Any) -> Tensor:
    clean: Tensor = tm.sample(
        mixture(),
        noise(),
        sampler,
        process=PROCESSES[process],
        steps=steps,
        seeds=STOCHASTIC,
        **more,
    )
    return clean


def controlled(process: str, sampler: str) -> Tensor:
    """The result of a sampler that chooses how many steps it makes."""
    clean: Tensor = tm.sample(mixture(), noise(), sampler, process=PROCESSES[process])
    return clean


def levels(process: str, grid: str) -> list[float]:
    table = tm.Sampler(f"euler/{grid}", steps=7).compile(PROCESSES[process])
    at = [table.level(row) for row in range(table.nfe)]
    return [float(number) for one in at for number in (one.alpha, one.sigma, one.time)]


def guided(sampler: str, guidance: Any) -> Tensor:
    clean: Tensor = tm.sample(
        mixture().conditional(1), noise(), sampler, process=PROCESSES["vp"], steps=6,
        unconditional=mixture(), guidance=guidance,
    )  # fmt: skip
    return clean


def native_life(sampler: str) -> list[Tensor]:
    """Stopped, saved, loaded, rewound, edited and branched; the result of each part."""
    run = tm.begin(noise(), sampler, process=PROCESSES["vp"], steps=8, seeds=STOCHASTIC, keep=8)
    parts = []
    with tempfile.TemporaryDirectory() as folder:
        for _ in tm.iterate(run, mixture()):
            if run.step == 3:
                run.save(Path(folder) / "run.safetensors")
            if run.step == 5 and len(parts) == 0:
                parts.append(run.latents.clone())
                branch = run.branch()
                branch.latents = branch.latents + 0.1
                parts.append(finished(branch))
                run.rewind(2)
        parts.append(run.result)
        parts.append(finished(tm.Run.load(Path(folder) / "run.safetensors")))
    stopping = tm.begin(noise(), sampler, process=PROCESSES["vp"], steps=8, seeds=STOCHASTIC)
    for _ in tm.iterate(stopping, mixture()):
        if stopping.step == 4:
            stopping.stop()
    parts.append(stopping.result)
    return parts


def finished(run: Any) -> Tensor:
    for _ in tm.iterate(run, mixture()):
        pass
    clean: Tensor = run.result
    return clean


def native() -> Iterator[Case]:
    for process in PROCESSES:
        for solver in SOLVERS:
            yield f"native/{process}/{solver}", partial(sampled, process, solver)
        for solver in CONTROLLED:
            yield f"native/{process}/{solver}", partial(controlled, process, solver)
        for grid in GRIDS:
            yield f"levels/{process}/{grid}", partial(levels, process, grid)
    for sampler in (
        "dpmpp_2m/karras",
        "unipc",
        "dpmpp_2m_sde/karras",
        "euler_ancestral",
        "heun",
        "sa_solver",
    ):
        yield f"native/life/{sampler}", partial(native_life, sampler)
    cut = tm.cfg(3.0, until=0.5)
    kinds = {
        "plain": 3.0,
        "cut": cut,
        "rescale": tm.cfg(3.0, rescale=0.5),
        "forecast": tm.cfg(3.0, forecast=2),
    }
    for name, guidance in kinds.items():
        for sampler in ("euler", "dpmpp_2m/karras", "heun"):
            yield f"native/guided/{name}/{sampler}", partial(guided, sampler, guidance)


# -- the helm on shipped models --------------------------------------------------------------------
@cache
def helm(model: str) -> tm.Helm:
    return tm.Helm(model)


def call(model: str, **more: Any) -> list[Any]:
    """The pictures of a call and the latents it ended with."""
    options: dict[str, Any] = {"steps": 4, "seeds": [7], **more}
    words = options.pop("prompt", "red apple")
    out = helm(model)(words, **options)
    run = helm(model).run
    assert run is not None
    return [out.images, run.result]


def stopped_then_resumed(model: str, sampler: str) -> list[Any]:
    first = call(model, sampler=sampler, steps=5, hooks=[tm.stop_when(lambda run: run.step == 2)])
    stopped = helm(model).run
    assert stopped is not None
    stopped.resume()
    return [*first, *call(model, sampler=sampler, steps=5, resume=stopped, seeds=None)]


def saved_then_resumed(model: str, sampler: str) -> list[Any]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.safetensors"
        call(
            model,
            sampler=sampler,
            steps=5,
            hooks=[lambda run: run.save(path) if run.step == 3 else None],
        )
        return call(model, resume=tm.Run.load(path), steps=None, seeds=None)


def rewound(model: str, sampler: str) -> list[Any]:
    seen: list[int] = []

    def back(run: Any) -> None:
        seen.append(run.step)
        if run.step == 4 and seen.count(4) == 1:
            run.latents = run.latents * 0.9
            run.rewind(2)

    return [*call(model, sampler=sampler, steps=5, hooks=[back], keep=5), seen]


def branched(model: str, sampler: str) -> list[Any]:
    branches: list[Any] = []

    def split(run: Any) -> None:
        if run.step == 2:
            branches.append(run.branch())

    first = call(model, sampler=sampler, steps=5, hooks=[split])
    branches[0].latents = branches[0].latents + 0.05
    return [*first, *call(model, resume=branches[0], steps=None, seeds=None)]


def edited(model: str) -> list[Any]:
    def brighten(run: Any) -> None:
        if run.step == 2:
            run.latents[:, 0] += 0.1

    return call(model, hooks=[brighten])


def video(**more: Any) -> list[Any]:
    picture = call("emoji", steps=2)[0][0]
    options: dict[str, Any] = {"steps": 3, "seeds": [3], "height": 64, "width": 64, **more}
    out = helm(VIDEO)(picture, **options)
    run = helm(VIDEO).run
    assert run is not None
    return [out.frames[0], run.result]


def background(model: str) -> list[Any]:
    handle = helm(model).start("red apple", steps=4, seeds=[7], keep=4)
    return [handle.result().images]


def dropped_in(sampler: str) -> list[Any]:
    pipe = helm("emoji").pipe
    before = pipe.scheduler
    pipe.scheduler = tm.Scheduler.from_config(before.config, sampler=sampler)
    try:
        generator = torch.Generator().manual_seed(3)
        return [
            pipe("pizza", num_inference_steps=4, generator=generator, output_type="latent").images
        ]
    finally:
        pipe.scheduler = before


def steered() -> Iterator[Case]:
    for model in MODELS:
        yield f"helm/{model}/plain", partial(call, model)
        yield f"helm/{model}/two", partial(call, model, prompt=["red apple", "ghost"], seeds=[1, 2])
        yield f"helm/{model}/cut", partial(call, model, guidance=tm.cfg(4.0, until=0.5))
        yield (
            f"helm/{model}/forecast",
            partial(call, model, guidance=tm.cfg(4.0, forecast=2), sampler="euler", steps=6),
        )
        yield f"helm/{model}/edited", partial(edited, model)
        yield f"helm/{model}/background", partial(background, model)
        for sampler in ("euler", "unipc", "dpmpp_2m_sde", "heun"):
            yield f"helm/{model}/sampler/{sampler}", partial(call, model, sampler=sampler)
        for sampler in ("dpmpp_2m", "euler_ancestral"):
            yield f"helm/{model}/resumed/{sampler}", partial(stopped_then_resumed, model, sampler)
            yield f"helm/{model}/saved/{sampler}", partial(saved_then_resumed, model, sampler)
            yield f"helm/{model}/rewound/{sampler}", partial(rewound, model, sampler)
            yield f"helm/{model}/branched/{sampler}", partial(branched, model, sampler)
    yield "helm/emoji-video/plain", video
    yield "helm/emoji-video/two", partial(video, sampler="dpmpp_2m_sde/karras")
    for sampler in ("dpmpp_2m_sde/karras", "unipc", "euler_ancestral", "lcm", "ddim"):
        yield f"scheduler/{sampler}", partial(dropped_in, sampler)


# -- the classes of diffusers' names ---------------------------------------------------------------
def walked(name: str, config: dict[str, Any]) -> list[Any]:
    """The times, and the sample after every step."""
    scheduler = getattr(compat, name).from_config(config)
    scheduler.set_timesteps(6)
    x = noise().float() * float(scheduler.init_noise_sigma)
    drawn = {"generator": torch.Generator().manual_seed(2)}
    if "generator" not in inspect.signature(scheduler.step).parameters:
        drawn = {}
    torch.manual_seed(2)  # some draw from the global generator
    path = [scheduler.timesteps]
    for t in scheduler.timesteps:
        seen = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        x = scheduler.step(torch.tanh(seen), t, x, **drawn).prev_sample
        path.append(x)
    return path


def drop_in() -> Iterator[Case]:
    plain: dict[str, dict[str, Any]] = {
        "vp": BETAS,
        "v": {**BETAS, "prediction_type": "v_prediction"},
        "karras": {**BETAS, "use_karras_sigmas": True},
        "trailing": {**BETAS, "timestep_spacing": "trailing"},
        "flow": {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0},
        "default": {},
    }
    for name in SCHEDULERS:
        for kind, config in plain.items():
            yield f"compat/{name}/{kind}", partial(walked, name, config)


# -- compare, tune ---------------------------------------------------------------------------------
def compared(**more: Any) -> list[Any]:
    """The measures of a small comparison, and its pictures."""
    from PIL import Image

    with tempfile.TemporaryDirectory() as folder:
        result = tm.compare(
            helm("emoji"), "ghost", sampler=["euler", "dpmpp_2m"], steps=[2, 4], seeds=2,
            out=Path(folder),
            progress=False, **more,
        )  # fmt: skip
        rows = [[row[key] for key in sorted(row) if key in MEASURES] for row in result.rows]
        pictures = [np.asarray(Image.open(path)) for path in sorted(Path(folder).rglob("*.png"))]
        return [rows, sorted(array.tobytes() for array in pictures)]


def fitted(process: str) -> list[Any]:
    from timonel.tuning import fit_model
    from timonel.tuning.model import Plain

    x = torch.randn(12, 8, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    fit = fit_model(
        Plain(mixture(), x, PROCESSES[process]),
        steps=3,
        iterations=4,
        start="dpmpp_2m/karras",
        method="differences",
    )
    outcome = fit.outcomes[0]
    table = None if outcome.sampler is None else outcome.sampler.compile(PROCESSES[process])
    return [outcome.held_start, outcome.held_tuned, None if table is None else table.x]


def others() -> Iterator[Case]:
    yield "compare/converged", compared
    yield "compare/rows", partial(compared, references=False)
    for process in ("vp", "flow"):
        yield f"fit/{process}", partial(fitted, process)


def cases() -> Iterator[Case]:
    """All of them."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    warnings.simplefilter("ignore")
    for part in (native, steered, drop_in, others):
        yield from part()
