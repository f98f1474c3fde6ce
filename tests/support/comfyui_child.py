"""Runs ComfyUI's samplers and schedulers of a checkout on exact data.

python -m support.comfyui_child CHECKOUT FOLDER

Reads FOLDER/jobs.json, a list of `comfyui.Job` as dictionaries, and writes FOLDER/results.npz:
`names`, `schedulers`, `version`, and for job i `levels_i` and `result_i`, or `error_i`. Only the
files that hold samplers and schedules are imported from the checkout; what else they import is a
stand-in that does nothing.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import inspect
import json
import sys
import types
import unittest.mock
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

import timonel as tm
from timonel import exact
from timonel.core.guidance import combine
from timonel.core.process import Level

REAL = ("comfy.k_diffusion", "comfy.extra_samplers", "comfy.samplers", "comfy.model_sampling")
BETAS = "comfy.ldm.modules.diffusionmodules.util"
PATCHER, AFTER = "comfy.model_patcher", "after guidance"


class Rest(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds a stand-in for every module of ComfyUI that is not among `REAL`."""

    def find_spec(
        self, name: str, path: object = None, target: object = None
    ) -> importlib.machinery.ModuleSpec | None:
        if not name.startswith("comfy.") or name.startswith(REAL):
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        module = types.ModuleType(spec.name)
        anything = unittest.mock.MagicMock()
        module.__getattr__ = lambda name: anything  # type: ignore[method-assign]
        if spec.name == BETAS:  # Stable Diffusion's betas: evenly spaced square roots
            module.make_beta_schedule = lambda kind, count, linear_start, linear_end, **rest: (  # type: ignore[attr-defined]
                torch.linspace(linear_start**0.5, linear_end**0.5, count, dtype=torch.float64) ** 2
            )
        if spec.name == PATCHER:  # a function that sees both predictions of a call
            module.set_model_options_post_cfg_function = lambda options, function, **rest: {  # type: ignore[attr-defined]
                **options, AFTER: function,
            }  # fmt: skip
        return module

    def exec_module(self, module: types.ModuleType) -> None:
        pass


def load(checkout: Path) -> tuple[types.ModuleType, types.ModuleType]:
    """`comfy.samplers` and `comfy.model_sampling`."""
    package = types.ModuleType("comfy")
    package.__path__ = [str(checkout / "comfy")]
    sys.modules["comfy"] = package
    sys.meta_path.insert(0, Rest())
    return importlib.import_module("comfy.samplers"), importlib.import_module(
        "comfy.model_sampling"
    )


class Model:
    """An exact denoiser where ComfyUI expects a guider, its network and its patcher."""

    def __init__(self, sampling: Any, data: exact.Mixture, flow: bool, scale: float) -> None:
        self.inner_model = self.model_patcher = self
        self.model_sampling, self.flow = sampling, flow
        self.uncond, self.cond, self.scale = data, data, scale
        if scale != 1.0:
            self.cond = data.conditional(0)

    def get_model_object(self, name: str) -> Any:
        return {"model_sampling": self.model_sampling}[name]

    def __call__(self, x: torch.Tensor, sigma: torch.Tensor, **rest: Any) -> torch.Tensor:
        """The denoised x; ComfyUI's x of a VP model is x0 + sigma·noise."""
        s = sigma.double()
        level = Level(1 - s, s, s)
        if not self.flow:
            alpha = 1 / torch.sqrt(1 + s**2)
            x, level = x * alpha.reshape(-1, *(1,) * (x.ndim - 1)), Level(alpha, alpha * s, s)
        uncond = self.uncond(x, level)
        clean = uncond if self.scale == 1.0 else combine(self.cond(x, level), uncond, self.scale)
        after = rest.get("model_options", {}).get(AFTER)
        return clean if after is None else after({"denoised": clean, "uncond_denoised": uncond})


def sampling_of(module: types.ModuleType, flow: bool) -> Any:
    """ComfyUI's model sampling: Stable Diffusion's, or a flow's with shift 3."""
    kinds = (
        (module.ModelSamplingDiscreteFlow, module.CONST)
        if flow
        else (module.ModelSamplingDiscrete, module.EPS)
    )
    made = type("Sampling", kinds, {})(None)
    if flow:
        made.set_parameters(shift=3.0)
    return made


def noise_of(job: dict[str, Any], like: torch.Tensor) -> Callable[..., torch.Tensor]:
    """The job's shared noise, one draw a call; where two draws of a step overlap, mixed as
    `parity.mixed` says.
    """
    source, calls = tm.SeededNoise(tuple(range(len(like)))), iter(range(10**6))
    mix = {int(k): v for k, v in job["mix"].items()}

    def noise(*_: object) -> torch.Tensor:
        k = next(calls)
        if k not in mix:
            return source(k, like)
        return mix[k][0] * source(k - 1, like) + mix[k][1] * source(k, like)

    return noise


def run(
    job: dict[str, Any], samplers: types.ModuleType, sampling: types.ModuleType
) -> tuple[list[float], Any]:
    """The levels of a job, and its result where a sampler is named."""
    flow = job["process"] == "flow"
    data = exact.Mixture.random(**job["data"])
    model = Model(sampling_of(sampling, flow), data, flow, job["scale"])
    chosen = samplers.KSampler(
        model, job["steps"], "cpu", job["sampler"] or "euler", job["scheduler"]
    )
    if chosen.scheduler != job["scheduler"] or job["sampler"] not in (None, chosen.sampler):
        raise KeyError(f"this ComfyUI has no {job['sampler']}/{job['scheduler']}")
    if job["sampler"] is None:
        return chosen.sigmas.tolist(), None
    sigmas = chosen.sigmas.double()
    start = exact_start(job["count"], data)
    made = samplers.sampler_object(job["sampler"])
    if "noise_sampler" in inspect.signature(made.sampler_function).parameters:
        made.extra_options = {"noise_sampler": noise_of(job, start)}
    levels, extra = sigmas.tolist(), {"model_options": {}, "seed": 0}
    torch.set_default_dtype(torch.float64)  # UniPC makes its coefficients in it
    try:
        result = made.sample(model, sigmas, extra, None, start, torch.zeros_like(start), None, True)
    finally:
        torch.set_default_dtype(torch.float32)
    return levels, result.numpy()


def exact_start(count: int, data: exact.Exact) -> torch.Tensor:
    """Unit noise (count, …), the same for every sampler."""
    generator = torch.Generator().manual_seed(7)
    return torch.randn(count, *data.shape, generator=generator, dtype=torch.float64)


def main(checkout: Path, folder: Path) -> None:
    samplers, sampling = load(checkout)
    found: dict[str, Any] = {
        "names": samplers.KSampler.SAMPLERS,
        "schedulers": samplers.KSampler.SCHEDULERS,
        "version": (checkout / "comfyui_version.py").read_text("utf-8").split('"')[-2],
    }
    for i, job in enumerate(json.loads((folder / "jobs.json").read_text("utf-8"))):
        try:
            levels, result = run(job, samplers, sampling)
        except Exception as error:  # one that fails is a row of the page, and the others go on
            found[f"error_{i}"] = f"{type(error).__name__}: {error}"
            continue
        found[f"levels_{i}"] = np.array(levels)
        if result is not None:
            found[f"result_{i}"] = result
    np.savez(folder / "results.npz", **found)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), Path(sys.argv[2]))
