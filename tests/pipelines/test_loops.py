"""Loops over `scheduler.timesteps`: who drives the run, which row a step belongs to, and where
parts meet.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

import timonel as tm
import timonel.compat as compat
from support import tiny
from timonel.core.solvers import SOLVERS
from timonel.errors import GridError, RunError

XL = {
    "_class_name": "EulerDiscreteScheduler", "beta_start": 0.00085, "beta_end": 0.012,
    "beta_schedule": "scaled_linear", "prediction_type": "epsilon", "steps_offset": 1,
    "timestep_spacing": "leading", "num_train_timesteps": 1000,
}  # fmt: skip
FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 3.0}
SHAPE = (1, 4, 8, 8)
VP = tm.VP.from_schedule("scaled_linear", 0.00085, 0.012)
ONE_STEP = (
    "heun",
    "heunpp2",
    "dpm2",
    "rk4",
    "dpm_solver",
    "dpm_fast",
    "dpmpp_2s",
    "res_2s",
    "res_3s",
    "euler",
)
QUIET: dict[str, dict[str, Any]] = {
    "edm": {"s_churn": 0.0},
    "restart": {"restarts": 0},
    "dpmpp_sde": {"eta": 0.0},
}


def noise(seed: int = 0) -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))


def epsilon(x: Tensor, time: Any) -> Tensor:
    """Exact for data of mean 0.3 and standard deviation 0.4."""
    level = VP.at_time(torch.tensor([float(time)], dtype=torch.float64))
    alpha, sigma = float(level.alpha), float(level.sigma)
    clean = 0.3 + alpha * 0.16 / (alpha**2 * 0.16 + sigma**2) * (x.double() - alpha * 0.3)
    return ((x.double() - alpha * clean) / sigma).to(x)


def loop(scheduler: Any, x: Tensor, times: Iterable[Tensor] | None = None, **more: Any) -> Tensor:
    for t in scheduler.timesteps if times is None else times:
        x = scheduler.step(epsilon(scheduler.scale_model_input(x, t), t), t, x, **more).prev_sample
    return x


def made(sampler: str, steps: int = 10, **options: Any) -> tm.Scheduler:
    scheduler: tm.Scheduler = tm.Scheduler.from_config(
        XL, sampler=tm.Sampler(sampler, options={**QUIET.get(sampler, {}), **options})
    )
    scheduler.set_timesteps(steps)
    return scheduler


def euler(steps: int = 10) -> Any:
    scheduler = compat.EulerDiscreteScheduler.from_config(XL)
    scheduler.set_timesteps(steps)
    return scheduler


MAKERS: dict[str, Callable[[], Any]] = {
    "dpmpp_2m": lambda: made("dpmpp_2m"), "heun": lambda: made("heun"),
    "restart": lambda: made("restart"),
    "compat": euler,
}  # fmt: skip
SOCKETS = pytest.mark.parametrize("socket", MAKERS)


# -- readers ---------------------------------------------------------------------------------------
HELD: list[Any] = []


def held(times: Tensor) -> Any:
    """An iteration that somebody keeps and does not go on with."""
    HELD.append(iter(times))
    return HELD[-1]


READERS: dict[str, Callable[[Tensor], Any]] = {
    "list": list, "tuple of a slice": lambda ts: tuple(ts[2:5]), "max": max,
    "first": lambda ts: next(iter(ts)),
    "a for that breaks": lambda ts: [t for t, _ in zip(ts, range(3), strict=False)],
    "filter": lambda ts: len(list(filter(lambda t: t >= 500, ts))),
    "enumerate": lambda ts: dict(enumerate(ts)),
    "sorted": sorted, "index": lambda ts: ts.tolist().index(ts[3].item()),
    "mask": lambda ts: ts[ts < 500],
    "held and never ended": lambda ts: next(held(ts)),
}  # fmt: skip


@SOCKETS
@pytest.mark.parametrize("reader", list(READERS))
def test_whoever_reads_the_times_during_a_run_changes_nothing(socket: str, reader: str) -> None:
    read, count = READERS[reader], 0
    want = loop(MAKERS[socket](), noise())
    scheduler, x = MAKERS[socket](), noise()
    listed = scheduler.timesteps.tolist()
    read(scheduler.timesteps)
    for t in scheduler.timesteps:
        read(scheduler.timesteps)
        output = epsilon(scheduler.scale_model_input(x, t), t)
        read(scheduler.timesteps)
        x = scheduler.step(output, t, x).prev_sample
        read(scheduler.timesteps)
        assert [t.item() for t in list(scheduler.timesteps)] == listed
        count += 1
    assert count == len(listed)
    assert torch.equal(x, want)
    assert [t.item() for t in scheduler.timesteps] == listed


def test_a_reader_inside_the_network_changes_nothing_under_the_helm() -> None:
    helm = tm.Helm("emoji")
    helm.pipe.set_progress_bar_config(disable=True)
    call = {
        "steps": 5,
        "seeds": [3],
        "sampler": "heun/karras",
        "guidance": tm.cfg(4.0, until=0.5),
        "output_type": "latent",
    }
    want = helm("red apple", **call).images
    unet, seen = helm.pipe.unet, []
    forward = unet.forward

    def reads(*args: Any, **kwargs: Any) -> Any:
        seen.append(len(list(helm.session.scheduler.timesteps)))  # type: ignore[union-attr]
        return forward(*args, **kwargs)

    unet.forward = reads
    try:
        assert torch.equal(helm("red apple", **call).images, want)
    finally:
        unet.forward = forward
    assert seen == [9] * len(seen)


def test_a_run_that_is_rewound_while_somebody_reads_goes_on_from_there() -> None:
    scheduler, x, turns = made("dpmpp_2m"), noise(), 0
    for t in scheduler.timesteps:
        if turns == 6:
            scheduler.run.rewind(2)
        x = scheduler.step(epsilon(x, t), t, x).prev_sample
        list(scheduler.timesteps)
        turns += 1
    assert turns == 7 + 10  # nothing was kept: it begins anew
    assert torch.allclose(x, loop(made("dpmpp_2m"), noise()), atol=1e-6)


# -- the row of a step -----------------------------------------------------------------------------
WAYS: dict[str, Callable[[Any, int], Iterable[Tensor]]] = {
    "slice": lambda s, k: s.timesteps[k:],
    "if i >= start": lambda s, k: (t for i, t in enumerate(s.timesteps) if i >= k),
    "list": lambda s, k: list(s.timesteps)[k:],
    "index": lambda s, k: (s.timesteps[i] for i in range(k, len(s.timesteps))),
    "mask": lambda s, k: s.timesteps[s.timesteps <= s.timesteps[k]],
    "numbers": lambda s, k: s.timesteps[k:].tolist(),
    "in half precision": lambda s, k: s.timesteps[k:].as_subclass(Tensor).bfloat16(),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "sampler", ["euler", "dpmpp_2m", "lms", "unipc", "plms", "pndm", "dpmpp_3m"]
)
def test_a_loop_that_begins_on_the_way_is_the_part_of_the_journey(sampler: str, way: str) -> None:
    scheduler = made(sampler, 20)
    start = scheduler.order * 8
    clean = 0.3 + 0.4 * noise(1)
    x = scheduler.add_noise(clean, noise(2), scheduler.timesteps[start : start + 1])
    got = loop(scheduler, x, WAYS[way](scheduler, start))
    reference = made(sampler, 20)
    want = loop(reference, x, reference.timesteps[start:])
    assert torch.allclose(got, want, atol=0.05 if way == "in half precision" else 1e-5)
    assert abs(float(want.mean()) - float(clean.mean())) < 0.03
    assert scheduler.run.status == "done"
    level = scheduler.run.table.level(0)
    assert float(level.time) == float(scheduler.timesteps[start])


#: of those that a scheduler alone drives; PECE's first step has fewer calls than the others
CUT = [
    name
    for name, spec in SOLVERS.items()
    if spec.grid != "lcm" and not spec.reads_uncond and name != "sa_solver_pece"
]


@pytest.mark.parametrize("sampler", CUT)
def test_every_sampler_begins_where_a_pipeline_cuts_its_list(sampler: str) -> None:
    """`timesteps[t_start * scheduler.order:]` begins step t_start of the levels, and the last loop
    entry is a step.
    """
    for start in (1, 2, 4, 9):
        scheduler = made(sampler, 10)
        grid = scheduler._listed.grid
        first = scheduler.timesteps[start * scheduler.order :]
        turns, x = 0, scheduler.add_noise(noise(1), noise(2), first[:1])
        for t in first:
            turns += 1
            x = scheduler.step(epsilon(x, t), t, x).prev_sample
        assert turns == len(first) == scheduler.run.table.nfe
        assert float(scheduler.run.table.alpha[0]) == pytest.approx(
            float(grid.alpha[start]), rel=1e-9
        )
        assert torch.equal(scheduler.run.table.time[:-1].to(first.dtype), first.as_subclass(Tensor))


@SOCKETS
def test_a_second_loop_on_the_same_list_is_a_run_of_its_own(socket: str) -> None:
    scheduler = MAKERS[socket]()
    once = loop(scheduler, noise())
    assert torch.equal(loop(scheduler, noise()), once)
    assert torch.equal(loop(scheduler, noise(), scheduler.timesteps.tolist()), once)
    for t in scheduler.timesteps:  # one that is left half-way
        x = scheduler.step(epsilon(scheduler.scale_model_input(noise(), t), t), t, noise())
        assert x is not None
        break
    assert torch.equal(loop(scheduler, noise()), once)


@SOCKETS
def test_a_step_that_is_made_twice_says_so(socket: str) -> None:
    scheduler = MAKERS[socket]()
    for t in scheduler.timesteps:
        scheduler.step(epsilon(noise(), t), t, noise())
        with pytest.raises(RunError, match=r"again with time .*copy\.deepcopy"):
            scheduler.step(epsilon(noise(1), t), t, noise(1))
        break


def test_two_samples_a_turn_are_stepped_by_two_schedulers() -> None:
    one, two = made("dpmpp_2m"), made("dpmpp_2m")
    x, y = noise(1), noise(2)
    for t in one.timesteps:
        x, y = (s.step(epsilon(v, t), t, v).prev_sample for s, v in ((one, x), (two, y)))
    assert torch.equal(x, loop(made("dpmpp_2m"), noise(1)))
    assert torch.equal(y, loop(made("dpmpp_2m"), noise(2)))


def test_what_is_no_row_of_the_run_is_refused_with_what_happened() -> None:
    scheduler = made("dpmpp_2m")
    times = scheduler.timesteps.tolist()
    x = scheduler.step(epsilon(noise(), times[0]), times[0], noise()).prev_sample
    with pytest.raises(RunError, match=r"steps cannot be left out"):
        scheduler.step(x, times[2], x)
    with pytest.raises(RunError, match=r"12345, which is not in scheduler\.timesteps"):
        scheduler.step(x, 12345, x)
    for odd in ("now", None, [], torch.empty(0)):
        with pytest.raises(tm.TimonelError, match=r"step takes the time of its row"):
            scheduler.step(x, odd, x)
    x = scheduler.step(
        epsilon(x, times[1]), times[1], x
    ).prev_sample  # and the run stands where it stood
    assert scheduler.run.step == 2
    dpm2 = made("dpm2")
    with pytest.raises(RunError, match=r"at which no step begins"):
        dpm2.step(x, dpm2.timesteps[3], x)


@pytest.mark.parametrize(
    "rounded", [int, float, lambda t: torch.tensor(t).half(), lambda t: torch.tensor(t).bfloat16()]
)
def test_a_time_that_was_rounded_on_its_way_is_that_of_the_next_row(
    rounded: Callable[[float], Any],
) -> None:
    scheduler, x = made("dpmpp_2m/karras", 25), noise()
    for t in scheduler.timesteps.tolist():
        x = scheduler.step(epsilon(x, t), rounded(t), x).prev_sample
    assert torch.equal(x, loop(made("dpmpp_2m/karras", 25), noise()))
    first = scheduler.timesteps[0].item()
    scheduler.step(epsilon(noise(), first), rounded(first), noise())  # and another loop begins so
    assert scheduler.run.row == 1


# -- lists that are assigned -----------------------------------------------------------------------
def test_times_that_are_assigned_are_the_levels_of_the_run() -> None:
    scheduler, other = made("dpmpp_2m"), made("dpmpp_2m")
    scheduler.timesteps = torch.tensor([981, 600, 300, 90])
    other.set_timesteps(timesteps=[981, 600, 300, 90])
    assert torch.equal(loop(scheduler, noise()), loop(other, noise()))
    part = made("dpmpp_2m")
    part.timesteps = part.timesteps[4:]
    clone = made("dpmpp_2m")
    clone.timesteps = clone.timesteps.clone()[4:]
    x = part.add_noise(noise(1), noise(2), part.timesteps[:1])
    assert torch.equal(loop(part, x), loop(clone, x))
    assert part.run.steps == clone.run.steps == 6
    with pytest.raises(GridError, match="fall strictly"):
        scheduler.timesteps = torch.tensor([1, 2, 3])


# -- two models on one journey ---------------------------------------------------------------------
def parts(scheduler: Any, fraction: float) -> tuple[Tensor, Tensor]:
    """What SDXL's two pipelines do with the list."""
    cut, times = round(1000 - fraction * 1000), scheduler.timesteps
    before, after = int((times >= cut).sum()), int((times < cut).sum())
    if scheduler.order == 2 and after % 2 == 0:
        after += 1
    return times[:before], times[len(times) - after :]


@pytest.mark.parametrize("fraction", [0.3, 0.5, 0.8, 0.95])
@pytest.mark.parametrize("sampler", [*ONE_STEP, *QUIET])
def test_base_and_refiner_make_what_one_run_makes(sampler: str, fraction: float) -> None:
    for steps in (7, 10, 25):
        base, refiner, whole = (made(sampler, steps) for _ in range(3))
        half = loop(base, noise(), parts(base, fraction)[0])
        assert torch.equal(loop(refiner, half, parts(refiner, fraction)[1]), loop(whole, noise()))


@pytest.mark.parametrize(
    "sampler", ["lms", "plms", "pndm", "dpmpp_2m", "unipc", "euler_ancestral", "restart", "edm"]
)
def test_a_base_ends_where_its_refiner_begins(sampler: str) -> None:
    for steps in (10, 25):
        scheduler = made(sampler, steps)
        first, second = parts(scheduler, 0.6)
        loop(scheduler, noise(), first)
        end = scheduler.run.table
        other = made(sampler, steps)
        loop(other, noise(), second)
        assert float(end.alpha[-1]) == pytest.approx(float(other.run.table.alpha[0]), rel=1e-12)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of numpy, in diffusers' KDPM2
@pytest.mark.parametrize(
    "name", ["EulerDiscreteScheduler", "HeunDiscreteScheduler", "KDPM2DiscreteScheduler"]
)
@pytest.mark.parametrize("libraries", [(compat, compat), (compat, diffusers), (diffusers, compat)])
def test_base_and_refiner_meet_whatever_library_made_them(
    libraries: tuple[Any, Any], name: str
) -> None:
    """With two calls a step diffusers' own base ends one level below where the refiner begins."""
    if libraries[0] is diffusers and name != "EulerDiscreteScheduler":
        pytest.skip("diffusers' base has passed the refiner's first level")
    for steps, fraction in ((7, 0.3), (10, 0.6), (25, 0.8)):
        base, refiner = (getattr(library, name).from_config(XL) for library in libraries)
        whole = getattr(diffusers, name).from_config(XL)
        for scheduler in (base, refiner, whole):
            scheduler.set_timesteps(steps)
        first, second = parts(base, fraction)[0], parts(refiner, fraction)[1]
        if libraries[1] is diffusers:
            refiner.set_begin_index(len(refiner.timesteps) - len(second))
        half = loop(base, noise() * base.init_noise_sigma, first)
        want = loop(whole, noise() * whole.init_noise_sigma)
        assert torch.allclose(loop(refiner, half, second), want, atol=2e-5)


def test_a_base_that_holds_no_whole_step_is_refused_with_the_remedy() -> None:
    scheduler = made("heun", 4)
    with pytest.raises(GridError, match=r"no whole step of 'heun'.*larger denoising_end"):
        loop(scheduler, noise(), scheduler.timesteps[:1])


# -- generators ------------------------------------------------------------------------------------
STOCHASTIC = [
    name
    for name, spec in SOLVERS.items()
    if spec.stochastic and not spec.reads_uncond and name != "restart"
]


def correlation(a: Tensor, b: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1])


@pytest.mark.parametrize("sampler", STOCHASTIC)
def test_a_generator_advances_when_a_sampler_draws(sampler: str) -> None:
    """From one start: the same generator again makes another sample, a generator of the same seed
    the same one.
    """
    options = {
        "edm": {"s_churn": 20.0},
        "ddim": {"eta": 1.0},
        "tcd": {"eta": 1.0},
        "dpmpp_sde": {"eta": 1.0},
    }

    def run(generator: torch.Generator | None) -> Tensor:
        scheduler = made(sampler, 6, **options.get(sampler, {}))
        return loop(scheduler, noise(), generator=generator)

    generator = torch.Generator().manual_seed(5)
    once, again = run(generator), run(generator)
    assert torch.equal(run(torch.Generator().manual_seed(5)), once)
    assert not torch.equal(once, again)
    torch.manual_seed(1)
    free = run(None), run(None)
    torch.manual_seed(1)
    assert torch.equal(run(None), free[0])
    assert not torch.equal(*free)


def test_a_deterministic_sampler_leaves_the_generator_alone() -> None:
    generator = torch.Generator().manual_seed(5)
    before = generator.get_state()
    loop(made("dpmpp_2m"), noise(), generator=generator)
    assert torch.equal(generator.get_state(), before)


@pytest.mark.parametrize("count", [1, 3])
def test_noise_of_a_generator_each_is_that_of_the_sample_alone(count: int) -> None:
    scheduler = made("euler_ancestral")
    x = noise().repeat(count, 1, 1, 1)
    several = [torch.Generator().manual_seed(i) for i in range(count)]
    together = loop(scheduler, x, generator=several)
    for i in range(count):
        alone = loop(made("euler_ancestral"), noise(), generator=torch.Generator().manual_seed(i))
        assert torch.allclose(together[i : i + 1], alone, atol=1e-6)


def test_a_copy_of_a_scheduler_in_a_run_changes_nothing() -> None:
    scheduler, x = made("dpmpp_2m"), noise()
    for t in scheduler.timesteps:
        copy.deepcopy(scheduler)
        x = scheduler.step(epsilon(x, t), t, x).prev_sample
    assert torch.equal(x, loop(made("dpmpp_2m"), noise()))


@pytest.mark.filterwarnings("ignore")  # of diffusers, about itself
@pytest.mark.parametrize(
    ("family", "key"),
    [
        ("sd3", "StableDiffusion3Pipeline"),
        ("video", "StableVideoDiffusionPipeline"),
        ("sd", "StableDiffusionPipeline"),
    ],
)
def test_a_pipelines_generator_reaches_a_sampler_that_is_given_none(family: str, key: str) -> None:
    pipe, inputs = tiny.case(family, key)
    config = pipe.scheduler.config

    def run(seed: int, generator: torch.Generator | None = None) -> Tensor:
        pipe.scheduler = tm.Scheduler.from_config(config, sampler="euler_ancestral")
        torch.manual_seed(seed)
        generator = generator or torch.Generator().manual_seed(7)
        result = pipe(**inputs, num_inference_steps=4, generator=generator, return_dict=False)
        return torch.as_tensor(result[0])

    assert torch.equal(run(0), run(1))
    generator = torch.Generator().manual_seed(7)
    assert not torch.equal(run(0, generator), run(0, generator))


@pytest.mark.filterwarnings("ignore")  # of diffusers, about itself
def test_a_modular_pipelines_generator_reaches_a_sampler_that_is_given_none() -> None:
    from diffusers.modular_pipelines.flux.modular_blocks_flux import FluxAutoBlocks

    flux, inputs = tiny.case("flux", "FluxPipeline (schnell)")
    pipe = FluxAutoBlocks().init_pipeline()
    pipe.update_components(
        **{k: v for k, v in flux.components.items() if v is not None and k in pipe._component_specs}
    )
    pipe.set_progress_bar_config(disable=True)

    def run(seed: int, key: int) -> Tensor:
        pipe.update_components(
            scheduler=tm.Scheduler.from_config(flux.scheduler.config, sampler="euler_ancestral")
        )
        torch.manual_seed(seed)
        generator, latents = torch.Generator().manual_seed(key), noise(3).reshape(1, 16, 16)
        more = {**inputs, "latents": latents, "num_inference_steps": 3, "generator": generator}
        return torch.as_tensor(pipe(**more, output="latents"))

    assert torch.equal(run(0, 7), run(1, 7))
    assert not torch.equal(run(0, 7), run(0, 8))


def test_a_run_keeps_its_noise_when_the_next_one_of_the_scheduler_begins(tmp_path: Path) -> None:
    scheduler, x = made("euler_ancestral"), noise()
    times = list(scheduler.timesteps)
    for t in times[:4]:
        x = scheduler.step(
            epsilon(x, t), t, x, generator=torch.Generator().manual_seed(5)
        ).prev_sample
    runs = [scheduler.run.branch()]
    scheduler.run.save(tmp_path / "run.safetensors")
    runs.append(tm.Run.load(tmp_path / "run.safetensors"))
    for t in times[4:]:
        x = scheduler.step(epsilon(x, t), t, x).prev_sample
    scheduler.set_timesteps(10)
    loop(scheduler, noise(1), generator=torch.Generator().manual_seed(6))
    for run in runs:
        for _ in run.rows():
            run.advance(epsilon(run.latents, run.level.time))
        assert torch.equal(run.result, x)
