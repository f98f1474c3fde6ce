"""What one step of the sampler costs, the network left out.

    python benchmarks/step_cost.py [--quick] [--only SAMPLER …] [--repeats N]

The network's output is one fixed tensor. A whole trajectory is timed and divided by its network
calls; compiling the table and `set_timesteps` are left out. The peers take turns inside one
process, so the ratios are paired: they hold on a busy machine, where the milliseconds do not.

- timonel: `run.proceed()` and `run.advance(output)`, an epsilon model, as installed; *native*: the
  same with `TIMONEL_KERNEL=native`, one pass over memory in C++ built by this machine's compiler.
- diffusers: `scheduler.step(output, t, x)`, the same model; its `scale_model_input` is left out.
- k-diffusion: the sampling function with a model that returns the fixed tensor as the *denoised*
  sample, so that it is spared the conversion from epsilon which the other two do; its noise is a
  plain `randn_like`, not its slower Brownian tree; the same goes for the diffusers scheduler that
  has one.
- floor: the row's least memory traffic at the speed of a copy. Each tensor that the row reads (x,
  output, remembered predictions, base, noise) is read once and each that it makes (next x, next
  base where it changes, kept prediction) written once; a copy of one such tensor to another reads
  one and writes one, and is timed among the peers. Mean over the rows; drawing the noise is not in
  it.
- x + a·y: one operation over two tensors.

Noise: timonel draws each sample's own stream, diffusers and k-diffusion one stream for the batch.
The C library is told to keep freed memory, for all alike; else page faults would be what is
measured. Tensor operations are counted in sample sizes written (an operation on a full-size tensor
is one), mean over the calls after the first three and before the last three.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from inspect import signature
from statistics import fmean
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import timonel as tm
from measure import Peer, brief, interleave, machine, markdown, ratio, steady_memory
from timonel.core import kernel
from timonel.core.kernel.native import library
from timonel.core.program import Program
from timonel.core.solvers import SOLVERS

STEPS = 20
ADD, COPY = "x + a·y", "copy"
SIZES = ((1, 4, 128, 128), (8, 4, 128, 128), (1, 14, 4, 72, 128))
BETAS = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
HEAD = (
    "sampler", "size", "x + a·y ms", "floor ms", "timonel ms", "native ms", "diffusers ms",
    "k-diffusion ms",
    "timonel / diffusers", "timonel / k-diffusion", "timonel / floor", "native / floor",
    "operations timonel", "diffusers",
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One sampler and what the peers call it. Times are min / median over the repeats."""

    title: str
    sampler: str
    scheduler: str
    options: dict[str, Any] = field(default_factory=dict)
    k: str | None = None
    k_options: dict[str, Any] = field(default_factory=dict)
    k_noise: bool = False


SDE = {"algorithm_type": "sde-dpmsolver++"}
ALL_CASES = (
    Case("Euler", "euler", "EulerDiscreteScheduler", k="sample_euler"),
    Case(
        "Euler ancestral", "euler_ancestral", "EulerAncestralDiscreteScheduler", {},
        "sample_euler_ancestral", {}, True
    ),
    Case("Heun", "heun", "HeunDiscreteScheduler", k="sample_heun"),
    Case("DPM2", "dpm2", "KDPM2DiscreteScheduler", k="sample_dpm_2"),
    Case("DDIM", "ddim", "DDIMScheduler"),
    Case("LMS", "lms", "LMSDiscreteScheduler", k="sample_lms"),
    Case("iPNDM", "ipndm", "IPNDMScheduler"),
    Case("DEIS", "deis", "DEISMultistepScheduler"),
    Case("DPM++ 2M", "dpmpp_2m", "DPMSolverMultistepScheduler", k="sample_dpmpp_2m"),
    Case("DPM++ 2M SDE", "dpmpp_2m_sde", "DPMSolverMultistepScheduler", SDE, "sample_dpmpp_2m_sde",
    {}, True),
    Case(
        "DPM++ 3M", "dpmpp_3m", "DPMSolverMultistepScheduler", {"solver_order": 3},
        "sample_dpmpp_3m_sde", {"eta": 0.0}, True,
    ),
    Case("DPM++ SDE", "dpmpp_sde", "DPMSolverSDEScheduler", {}, "sample_dpmpp_sde", {}, True),
    Case("UniPC", "unipc", "UniPCMultistepScheduler"),
    Case("SA-Solver", "sa_solver", "SASolverScheduler"),
    Case("LCM", "lcm", "LCMScheduler"),
)  # fmt: skip
CASES = tuple(case for case in ALL_CASES if case.sampler in SOLVERS)
TWO_STAGE = ("heun", "dpm2", "dpmpp_sde")  # two calls a step, in k-diffusion too


# -- the peers: each gives a body that runs one whole trajectory ---------------------------------
def timonel(case: Case, x: Tensor, output: Tensor, choice: str = "auto") -> Peer:
    """The state machine as the native loop and the diffusers adapter drive it."""
    table = compiled(case)

    def prepare() -> Callable[[], object]:
        kernel.use(choice)
        run = tm.Run(table, "epsilon", noise=tm.SeededNoise(tuple(range(len(x)))))
        run.start(x.clone())

        def body() -> Tensor:
            while run.proceed():
                run.advance(output)
            return run.result

        return body

    return Peer("timonel" if choice == "auto" else choice, prepare, table.nfe)


def compiled(case: Case) -> tm.Table:
    """The table of a case; making it is not timed."""
    return tm.Sampler(case.sampler, steps=STEPS).compile(tm.VP.from_schedule())


def diffusers(case: Case, x: Tensor, output: Tensor) -> Peer:
    """The scheduler's `step`, called as a pipeline calls it."""
    scheduler = diffusers_scheduler(case)

    def prepare() -> Callable[[], object]:
        scheduler.set_timesteps(STEPS)
        plain_noise(scheduler, x)
        times = scheduler.timesteps

        def body() -> Tensor:
            sample = x
            for t in times:
                sample = scheduler.step(output, t, sample, return_dict=False)[0]
            return sample

        return body

    return Peer("diffusers", prepare, len(scheduler.timesteps))


def plain_noise(scheduler: Any, x: Tensor) -> None:
    """Spare a scheduler its Brownian tree, where it has one, as k-diffusion is spared it."""
    if hasattr(scheduler, "noise_sampler"):
        scheduler.noise_sampler = lambda sigma, sigma_next: torch.randn_like(x)


def diffusers_scheduler(case: Case) -> Any:
    """The scheduler, ready to step. It has scaled an input once, or some would log a warning at
    every step.
    """
    import diffusers as library

    made = getattr(library, case.scheduler)
    betas = (
        BETAS if "beta_schedule" in signature(made).parameters else {}
    )  # iPNDM has a schedule of its own
    scheduler = made(**betas, **case.options)
    scheduler.set_timesteps(STEPS)
    scheduler.scale_model_input(torch.zeros(1), scheduler.timesteps[0])
    scheduler.set_timesteps(STEPS)
    return scheduler


def k_diffusion(case: Case, x: Tensor, output: Tensor) -> Peer | None:
    """k-diffusion's sampling function, where it has this sampler and is installed."""
    sampling = k_sampling()
    if sampling is None or case.k is None:
        return None
    sample, calls = getattr(sampling, case.k), 2 * STEPS - 1 if case.sampler in TWO_STAGE else STEPS
    sigmas = sampling.get_sigmas_karras(STEPS, 0.0292, 14.6146)
    options = dict(case.k_options)
    if case.k_noise:
        options["noise_sampler"] = lambda sigma, sigma_next: torch.randn_like(x)

    def body() -> object:
        return sample(lambda x, sigma: output, x, sigmas, disable=True, **options)

    return Peer("k-diffusion", lambda: body, calls)


def k_sampling() -> Any:
    """`k_diffusion.sampling`, without the training half of that package and what it needs."""
    if "k_diffusion.sampling" in sys.modules:
        return sys.modules["k_diffusion.sampling"]
    spec = find_spec("k_diffusion")
    if spec is None or spec.submodule_search_locations is None:
        return None
    package = types.ModuleType("k_diffusion")
    package.__path__ = list(spec.submodule_search_locations)
    sys.modules["k_diffusion"] = package
    with _without_torchvision():
        return importlib.import_module("k_diffusion.sampling")


@contextmanager
def _without_torchvision() -> Iterator[None]:
    """An empty torchvision for an import that never uses it, where there is none."""
    if find_spec("torchvision") is not None:
        yield
        return
    names = ("torchvision", "torchvision.transforms", "torchvision.transforms.functional")
    made = {name: types.ModuleType(name) for name in names}
    made[names[1]].functional = made[names[2]]  # type: ignore[attr-defined]
    made[names[0]].transforms = made[names[1]]  # type: ignore[attr-defined]
    sys.modules.update(made)
    try:
        yield
    finally:
        for name in names:
            del sys.modules[name]


def one_operation(x: Tensor, output: Tensor) -> Peer:
    """x + a·y, into a new tensor."""

    def body() -> None:
        sample = x
        for _ in range(STEPS):
            sample = torch.add(x, output, alpha=0.5)
        del sample

    return Peer(ADD, lambda: body, STEPS)


def copy(x: Tensor) -> Peer:
    """One tensor read and one written, among as many as a row of a multistep sampler has."""
    tensors = [torch.randn_like(x) for _ in range(5)]

    def body() -> None:
        for i in range(STEPS):
            tensors[i % 5].copy_(tensors[(i + 1) % 5])

    return Peer(COPY, lambda: body, STEPS)


def traffic(case: Case) -> float:
    """Tensors that a row has to read and write, mean over the rows."""
    rows = Program.bind(compiled(case), "epsilon").rows
    return fmean(len(row.reads) + len(row.sums.terms) for row in rows)


# -- counting ------------------------------------------------------------------------------------
class Written(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts elements written by tensor operations; views, empty tensors and copies of nothing are
    free.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not func.is_view and not func._schema.name.startswith("aten::empty"):
            for value in result if isinstance(result, (tuple, list)) else (result,):
                self.elements += value.numel() if isinstance(value, Tensor) and value.ndim else 0
        return result


def operations(case: Case) -> tuple[float, float]:
    """Sample sizes written per call in the middle of a trajectory, by timonel and by diffusers."""
    x = torch.randn(SIZES[0], generator=torch.Generator().manual_seed(0))
    kernel.use("auto")
    run = tm.Run(compiled(case), "epsilon", noise=tm.SeededNoise((0,)))
    run.start(x)
    scheduler = diffusers_scheduler(case)
    plain_noise(scheduler, x)
    ours, theirs = [], []
    while run.proceed():
        with Written() as written:
            run.advance(x)
        ours.append(written.elements)
    for t in scheduler.timesteps:
        with Written() as written:
            scheduler.step(x, t, x, return_dict=False)
        theirs.append(written.elements)
    return fmean(ours[3:-3]) / x.numel(), fmean(theirs[3:-3]) / x.numel()


# -- the table -----------------------------------------------------------------------------------
def cell(case: Case, size: tuple[int, ...], repeats: int) -> list[str]:
    """One line of the table."""
    made = torch.Generator().manual_seed(0)
    x, output = torch.randn(size, generator=made), torch.randn(size, generator=made)
    peers = [
        one_operation(x, output),
        copy(x),
        timonel(case, x, output),
        diffusers(case, x, output),
    ]
    native = timonel(case, x, output, "native") if has_native() else None
    times = interleave([*peers, *filter(None, (native, k_diffusion(case, x, output)))], repeats)
    ours, k, fused = times["timonel"], times.get("k-diffusion"), times.get("native")
    least = [t * traffic(case) / 2 for t in times[COPY]]
    counts = operations(case)
    return [
        case.title, "×".join(map(str, size)), brief(times[ADD]), brief(least),
        brief(ours), brief(fused), brief(times["diffusers"]), brief(k),
        f"{ratio(ours, times['diffusers']):.2f}", f"{ratio(ours, k):.2f}" if k else "–",
        f"{ratio(ours, least):.2f}", f"{ratio(fused, least):.2f}" if fused else "–",
        *(f"{count:.4g}" for count in counts),
    ]  # fmt: skip


def has_native() -> bool:
    """Whether this machine has a C++ compiler; builds the kernel, so that this is not timed."""
    return bool(library())


@torch.no_grad()
def measure(repeats: int, only: list[str] | None = None) -> str:
    """The table as Markdown. `only`: names of timonel samplers."""
    torch.set_num_threads(1)
    steady_memory()
    cases = [case for case in CASES if not only or case.sampler in only]
    return markdown(HEAD, [cell(case, size, repeats) for case in cases for size in SIZES])


def main() -> None:
    parser = argparse.ArgumentParser(
        description="per-step cost of the sampler, against diffusers and k-diffusion"
    )
    parser.add_argument("--quick", action="store_true", help="5 repeats instead of 30")
    parser.add_argument("--repeats", type=int, help="trajectories per sampler, size and peer")
    parser.add_argument(
        "--only", nargs="+", metavar="SAMPLER", choices=[case.sampler for case in CASES]
    )
    asked = parser.parse_args()
    torch.set_num_threads(1)
    print(machine())
    print()
    print(measure(asked.repeats or (5 if asked.quick else 30), asked.only))


if __name__ == "__main__":
    main()
