"""The noise of compat's classes is diffusers': drawn at the same calls from the same generators,
and again after it.
"""

from __future__ import annotations

import copy
import inspect
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

import timonel as tm
import timonel.compat as compat
from support import tiny
from timonel.compat.schedulers import CLASSES
from timonel.core import tree
from timonel.core.drawn import DrawnNoise
from timonel.errors import ArgumentError, RunError
from timonel.pipelines.session import Request

pytestmark = pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning")
needs_torchsde = pytest.mark.skipif(not tree.installed(), reason="torchsde is not installed")
SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SDE = {**SD, "algorithm_type": "sde-dpmsolver++"}
#: every class of compat that draws noise from a generator: its config, and what its step is given
CASES: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("EulerAncestralDiscrete", SD, {}),
    ("KDPM2AncestralDiscrete", SD, {}),
    ("KDPM2AncestralDiscrete", {**SD, "use_karras_sigmas": True}, {}),
    ("DDPM", SD, {}),
    ("DDPM", {**SD, "steps_offset": 1, "clip_sample": False}, {}),  # draws for its last step too
    ("LCM", SD, {}),
    ("TCD", SD, {}),
    ("TCD", SD, {"eta": 1.0}),
    ("TCD", SD, {"eta": 0.0}),
    ("DDIM", SD, {"eta": 1.0}),
    ("DDIM", SD, {"eta": 0.4}),
    ("DDIM", SD, {}),
    ("SASolver", SD, {}),
    (
        "SASolver",
        {**SD, "num_train_timesteps": 1100},
        {},
    ),  # its noise is between the times 200 and 800
    ("DPMSolverMultistep", SDE, {}),
    ("DPMSolverMultistep", {**SDE, "solver_order": 1}, {}),
    ("DPMSolverMultistep", {**SDE, "use_karras_sigmas": True, "solver_type": "heun"}, {}),
    ("DPMSolverSinglestep", {**SDE, "solver_order": 1, "lower_order_final": True}, {}),
    ("EDMDPMSolverMultistep", {"algorithm_type": "sde-dpmsolver++"}, {}),
    ("FlowMatchEulerDiscrete", {"stochastic_sampling": True, "shift": 3.0}, {}),
    ("DDIMParallel", SD, {"eta": 0.4}),
    ("DDPMParallel", SD, {}),
    ("FlowMatchLCM", {"shift": 3.0}, {}),
    ("CogVideoXDDIM", {}, {}),  # draws none
    ("EulerDiscrete", SD, {}),
    ("UniPCMultistep", SD, {}),
]
WAYS: dict[str, Callable[[], Any]] = {
    "one": lambda: torch.Generator().manual_seed(0),
    "list": lambda: [torch.Generator().manual_seed(seed) for seed in (3, 4)],
    "one twice": lambda: [torch.Generator().manual_seed(9)] * 2,
    "none": lambda: torch.manual_seed(5) and None,
}


def state(generators: Any) -> Tensor:
    if generators is None:
        return torch.get_rng_state()
    return torch.cat(
        [one.get_state() for one in (generators if isinstance(generators, list) else [generators])]
    )


def network(seen: Tensor, t: Any) -> Tensor:
    return 0.8 * torch.tanh(1.3 * seen + float(t) / 700)


def turn(scheduler: Any, x: Tensor, t: Any, generators: Any, given: dict[str, Any]) -> Tensor:
    seen = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
    taken = inspect.signature(scheduler.step).parameters
    named = {"generator": generators} if "generator" in taken else {}
    made: Tensor = scheduler.step(
        network(seen, t).to(x.dtype), t, x, **given, **named, return_dict=False
    )[0]
    return made


def start(scheduler: Any, dtype: torch.dtype = torch.float32) -> Tensor:
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(5))
    return (x * float(getattr(scheduler, "init_noise_sigma", 1.0))).to(dtype)


def loop(
    scheduler: Any, steps: int, generators: Any, given: dict[str, Any], **more: Any
) -> list[tuple[Tensor, Tensor]]:
    """After every call the sample and the state of the generators."""
    scheduler.set_timesteps(steps)
    x, seen = start(scheduler, **more), []
    for t in scheduler.timesteps:
        x = turn(scheduler, x, t, generators, given)
        seen.append((x, state(generators)))
    return seen


def far(one: Tensor, other: Tensor) -> float:
    return float((one.double() - other.double()).abs().max() / other.double().abs().max())


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("name", "config", "given"), CASES)
def test_every_step_is_diffusers_and_leaves_the_generators_as_diffusers_does(
    name: str, config: dict[str, Any], given: dict[str, Any], way: str
) -> None:
    for steps in (2, 9):
        theirs, ours = (
            loop(getattr(library, f"{name}Scheduler")(**config), steps, WAYS[way](), given)
            for library in (diffusers, compat)
        )
        assert len(theirs) == len(ours)
        for (want, after), (got, left) in zip(theirs, ours, strict=True):
            assert far(got, want) < 1e-4
            assert torch.equal(left, after)


def test_every_class_whose_step_takes_a_generator_in_diffusers_is_held_here_or_draws_none() -> None:
    churn = {
        "EDMEulerScheduler",
        "FlowMatchHeunDiscreteScheduler",
    }  # only with s_churn, which is refused
    # in test_more_classes.py, for their steps take more
    others = (
        "UnCLIP", "SCM", "CosineDPMSolverMultistep", "CMStochasticIterative", "CogVideoXDPM",
        "DDPMWuerstchen", "DPMSolverMultistepInverse",
    )  # fmt: skip
    elsewhere = {f"{name}Scheduler" for name in others}
    takes = {
        name
        for name in CLASSES
        if "generator" in inspect.signature(getattr(diffusers, name).step).parameters
    }
    assert takes <= {f"{name}Scheduler" for name, _, _ in CASES} | churn | elsewhere


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["EulerAncestralDiscrete", "DPMSolverMultistep", "LCM", "DDPM"])
def test_half_precision_draws_in_the_dtype_of_diffusers(name: str, dtype: torch.dtype) -> None:
    """The dtype decides the numbers: float32 noise in DPM-Solver, the network's elsewhere."""
    config = SDE if name.startswith("DPM") else SD
    theirs, ours = (
        loop(getattr(library, f"{name}Scheduler")(**config), 4, WAYS["one"](), {}, dtype=dtype)
        for library in (diffusers, compat)
    )
    for (want, after), (got, left) in zip(theirs, ours, strict=True):
        assert far(got, want) < 0.05
        assert torch.equal(left, after)


# -- coming back to a row --------------------------------------------------------------------------
STEPS, AT = 8, 5


def begun(name: str, generators: Any, until: int = AT) -> tuple[Any, Tensor]:
    """A scheduler whose run has made `until` calls, and its sample."""
    more = {"DPMSolverMultistep": SDE, "DDPM": {**SD, "clip_sample": False}}
    scheduler = getattr(compat, f"{name}Scheduler")(**more.get(name, SD))
    scheduler.set_timesteps(STEPS)
    x = start(scheduler)
    for calls, t in enumerate(scheduler.timesteps):
        if calls == until:
            break
        x = turn(scheduler, x, t, generators, {})
    return scheduler, x


def ended(run: tm.Run, scheduler: Any) -> Tensor:
    """The rest of a run without its scheduler."""
    for row in run.rows():
        listed = scheduler._listed
        x = (
            run.latents
            if listed.table.seen is None
            else run.latents * float(listed.table.seen[row])
        )
        run.advance(network(x, listed.times[row]))
    return run.result


NAMES = [
    "EulerAncestralDiscrete",
    "DDPM",
    "DPMSolverMultistep",
    "SASolver",
    "KDPM2AncestralDiscrete",
]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", NAMES)
def test_a_rewound_branched_or_saved_run_has_the_same_noise(
    name: str, way: str, tmp_path: Path
) -> None:
    whole = begun(name, WAYS[way](), 10**6)[1]
    scheduler, _ = begun(name, WAYS[way]())
    run = scheduler.run
    run.save(tmp_path / "run.safetensors")
    carried = pickle.loads(pickle.dumps(run))
    twin = run.branch()
    want = ended(run, scheduler)
    assert far(want, whole) < 1e-6
    generators = run.noise.generators
    before = state(generators)
    for other in (twin, carried, tm.Run.load(tmp_path / "run.safetensors")):
        assert torch.equal(ended(other, scheduler), want)
    for step in (3, 0, run.steps - 1):
        run.rewind(step)
        assert torch.equal(ended(run, scheduler), want)
    assert torch.equal(state(generators), before)  # nothing of that was drawn from the caller's


def test_a_scheduler_that_is_rewound_in_its_loop_leaves_the_generator_alone() -> None:
    drawn = WAYS["one"]()
    scheduler, _ = begun("EulerAncestralDiscrete", drawn, 10**6)
    want, after = scheduler.run.result, drawn.get_state()
    drawn = WAYS["one"]()
    scheduler = compat.EulerAncestralDiscreteScheduler(**SD)
    scheduler.set_timesteps(STEPS)
    x, back = start(scheduler), False
    for t in scheduler.timesteps:
        x = turn(scheduler, x, t, drawn, {})
        if scheduler.run.step == 6 and not back:
            scheduler.run.rewind(2)
            back = True
    assert torch.equal(x, want)
    assert torch.equal(drawn.get_state(), after)
    assert scheduler.run.advances == STEPS + 6  # from the start, for no state was kept


def test_who_else_draws_between_two_steps_is_no_matter() -> None:
    """torch's own generator is everybody's: each stretch of draws remembers where it began."""
    torch.manual_seed(1)
    scheduler = compat.EulerAncestralDiscreteScheduler(**SD)
    scheduler.set_timesteps(6)
    x = start(scheduler)
    for i, t in enumerate(scheduler.timesteps):
        x = turn(scheduler, x, t, None, {})
        if i in (1, 2):
            torch.rand(3)
    assert [stretch.rows for stretch in scheduler.run.noise.stretches] == [[0, 1], [2], [3, 4, 5]]
    scheduler.run.rewind(0)
    assert torch.equal(ended(scheduler.run, scheduler), x)


def test_what_is_kept_does_not_grow_with_the_steps() -> None:
    scheduler = compat.DDPMScheduler(**SD)
    scheduler.set_timesteps(300)
    x, drawn = torch.zeros(1, 1, 2, 2), WAYS["one"]()
    for t in scheduler.timesteps:
        x = turn(scheduler, x, t, drawn, {})
    (stretch,) = scheduler.run.noise.stretches
    assert len(stretch.rows) == 299
    assert len(stretch.states) == 1


def test_a_copy_of_a_scheduler_draws_from_the_generator_that_it_is_given() -> None:
    """As in diffusers, where a copied scheduler has no noise of its own."""
    ends = []
    for library in (diffusers, compat):
        scheduler, drawn = library.EulerAncestralDiscreteScheduler(**SD), WAYS["one"]()
        scheduler.set_timesteps(STEPS)
        x = start(scheduler)
        times = scheduler.timesteps
        for t in times[:3]:
            x = turn(scheduler, x, t, drawn, {})
        twin = copy.deepcopy(scheduler)
        y = x
        for t in times[3:]:
            x = turn(scheduler, x, t, drawn, {})
            y = turn(twin, y, t, drawn, {})
        ends.append((x, y, drawn.get_state()))
    (x, y, after), (ours, copied, left) = ends
    assert far(ours, x) < 1e-4
    assert far(copied, y) < 1e-4
    assert torch.equal(left, after)


# -- DPM-Solver++ SDE: the path of torchsde --------------------------------------------------------
def sde(library: Any, seed: int | None = 3, **more: Any) -> Any:
    cls = library.DPMSolverSDEScheduler
    made = getattr(sys.modules[cls.__module__], "DPMSolverSDEScheduler", cls)
    return made(**SD, noise_sampler_seed=seed, **more)


@needs_torchsde
@pytest.mark.filterwarnings(
    "ignore:Should have t"
)  # diffusers asks for more than the path that it has made
@pytest.mark.parametrize("seed", [0, None])
@pytest.mark.parametrize(
    "more", [{}, {"use_karras_sigmas": True}, {"prediction_type": "v_prediction"}]
)
def test_dpm_solver_sde_follows_the_path_of_diffusers(
    more: dict[str, Any], seed: int | None
) -> None:
    """Up to 1e-3: a path is rough, and sigma in float32 is not sigma (6e-6 apart at 14.6)."""
    theirs, ours = (
        loop(sde(library, seed, **more), 8, WAYS["none"](), {}) for library in (diffusers, compat)
    )
    for (want, after), (got, left) in zip(theirs, ours, strict=True):
        assert far(got, want) < 5e-3
        assert torch.equal(left, after)


@needs_torchsde
def test_a_run_on_the_path_of_torchsde_has_the_same_noise_again(tmp_path: Path) -> None:
    scheduler, torch_before = sde(compat), torch.get_rng_state()
    scheduler.set_timesteps(6)
    x, run = start(scheduler), None
    for calls, t in enumerate(scheduler.timesteps):
        x = turn(scheduler, x, t, None, {})
        if calls == 4:
            run = scheduler.run
            run.save(tmp_path / "run.safetensors")
            twins = [
                pickle.loads(pickle.dumps(run)),
                run.branch(),
                tm.Run.load(tmp_path / "run.safetensors"),
            ]
    assert run is not None
    for twin in twins:
        assert torch.equal(ended(twin, scheduler), x)
    run.rewind(0)
    assert torch.equal(ended(run, scheduler), x)
    assert torch.equal(torch.get_rng_state(), torch_before)


def test_without_torchsde_dpm_solver_sde_has_its_own_path(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tree, "installed", lambda: False)
    scheduler = sde(compat)
    scheduler.set_timesteps(4)
    turn(scheduler, start(scheduler), scheduler.timesteps[0], None, {})
    assert isinstance(scheduler.run.noise, tm.BrownianNoise)
    assert scheduler.run.noise.seeds == (3, 4)
    with pytest.raises(ArgumentError, match="pip install torchsde"):
        tree.TreeNoise(1, 0.1, 10.0, scheduler.run.table)


# -- what is not drawn -----------------------------------------------------------------------------
def test_the_noise_of_an_inversion_is_not_drawn() -> None:
    """Also in the last step of DDIM, which adds none of it."""
    ends = []
    for library in (diffusers, compat):
        scheduler = library.DDIMScheduler(**SD)
        scheduler.set_timesteps(4)
        x, torch_before = start(scheduler), torch.get_rng_state()
        for t in scheduler.timesteps:
            x = turn(scheduler, x, t, None, {"eta": 1.0, "variance_noise": torch.cos(x)})
        ends.append(x)
        assert torch.equal(torch.get_rng_state(), torch_before)
    assert far(ends[1], ends[0]) < 1e-4


def test_seeds_of_a_scheduler_are_the_source_where_it_has_them() -> None:
    scheduler, drawn = compat.EulerAncestralDiscreteScheduler(**SD), WAYS["one"]()
    scheduler.session.request = Request(seeds=(7, 8))
    scheduler.set_timesteps(3)
    before = drawn.get_state()
    turn(scheduler, start(scheduler), scheduler.timesteps[0], drawn, {})
    assert isinstance(scheduler.run.noise, tm.SeededNoise)
    assert torch.equal(drawn.get_state(), before)


# -- what cannot be drawn --------------------------------------------------------------------------
def test_what_cannot_draw_is_refused_before_the_step() -> None:
    scheduler = compat.EulerAncestralDiscreteScheduler(**SD)
    scheduler.set_timesteps(3)
    x, t = torch.zeros(3, 4, 8, 8), scheduler.timesteps[0]
    with pytest.raises(ArgumentError, match="2 generators for a batch of 3"):
        scheduler.step(x, t, x, generator=WAYS["list"]())
    ddim = compat.DDIMScheduler(**SD)
    ddim.set_timesteps(3)
    with pytest.raises(ArgumentError, match="give one of them"):
        ddim.step(x, ddim.timesteps[0], x, eta=1.0, generator=WAYS["one"](), variance_noise=x)
    with pytest.raises(RunError, match="call step first"):
        DrawnNoise()(0, x)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data, tensors: tensors.pop("noise.0.0"), "lacks 'noise.0.0'"),
        (
            lambda data, tensors: tensors.update(
                {"noise.0.0": torch.zeros(5056, dtype=torch.uint8)}
            ),
            "state cannot be",
        ),
        (
            lambda data, tensors: tensors.update(
                {"noise.end.0": torch.zeros(3, dtype=torch.uint8)}
            ),
            "state cannot be",
        ),
        (
            lambda data, tensors: tensors.update({"noise.5.0": torch.zeros(3, dtype=torch.uint8)}),
            "does not use",
        ),
        (lambda data, tensors: data["stretches"][0].update(devices=["cuda:77"]), "cuda:77"),
        (lambda data, tensors: data["stretches"][0].update(rows=[0, 1, 0]), "not rows"),
        (lambda data, tensors: data["stretches"][0].update(rows=[99]), "not rows"),
        (lambda data, tensors: data["stretches"][0].update(shape=[2, 2**20, 2**10]), "for samples"),
        (lambda data, tensors: data["stretches"][0].update(order=[0, 0, 0]), "3 generators"),
        (lambda data, tensors: data["stretches"][0].update(order=[1]), r"uses \(1,\)"),
        (lambda data, tensors: data["stretches"][0].update(dtype="int64"), "int64"),
    ],
)
def test_a_file_whose_noise_cannot_be_had_again_is_refused(
    change: Callable[[Any, dict[str, Tensor]], Any], message: str, tmp_path: Path
) -> None:
    import json

    from safetensors import safe_open
    from safetensors.torch import save_file

    from timonel.core.saving import digest

    scheduler, _ = begun("EulerAncestralDiscrete", WAYS["one"]())
    path = tmp_path / "run.safetensors"
    scheduler.run.save(path)
    with safe_open(path, framework="pt") as file:
        data = json.loads(file.metadata()["timonel"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    change(data["noise"], tensors)
    del data["digest"]
    save_file(tensors, path, {"timonel": json.dumps({**data, "digest": digest(tensors, data)})})
    with pytest.raises(ArgumentError, match=message):
        tm.Run.load(path)


# -- in pipelines ----------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "name", ["EulerAncestralDiscrete", "KDPM2AncestralDiscrete", "DPMSolverMultistep", "SASolver"]
)
def test_one_changed_import_line_keeps_the_picture_of_a_generator(name: str) -> None:
    pictures, states = [], []
    for library in (diffusers, compat):
        pipe = tiny.sd()
        more = {"algorithm_type": "sde-dpmsolver++"} if name.startswith("DPM") else {}
        pipe.scheduler = getattr(library, f"{name}Scheduler").from_config(
            pipe.scheduler.config, **more
        )
        drawn = torch.Generator().manual_seed(0)
        pictures.append(pipe(**tiny.prompt(pipe), num_inference_steps=6, generator=drawn).images)
        states.append(drawn.get_state())
    assert far(pictures[1], pictures[0]) < 1e-3
    assert torch.equal(*states)
