"""Parity with diffusers: the same network, start, times and noise give the same sample within 1e-5.

Errors are relative to the larger of one and the result's own root mean square. Where diffusers
works in y = x·sqrt(1 + s²) the start is converted; the network sees the same x either way.
Where diffusers is wrong, the test says why.
"""

from __future__ import annotations

import importlib

import diffusers
import pytest
import torch

from models import drive, network
from timonel import grids, solvers
from timonel.process import VP, Flow

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
KINDS = {"epsilon": "epsilon", "v": "v_prediction"}
KIND = pytest.mark.parametrize("kind", KINDS)
TOLERANCE = 1e-5
VP1 = VP.from_schedule()


def gaussian(*seed: int) -> torch.Tensor:
    return torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(sum(seed, 1000)))


def noise(row: int, like: torch.Tensor) -> torch.Tensor:
    return gaussian(7, row).to(like.dtype)


def theirs(scheduler: object, x: torch.Tensor, *, inject: str | None = None, **options: object) -> list[torch.Tensor]:
    """Every sample of a diffusers scheduler that has been given its timesteps; `inject` names its noise argument."""
    net, path = network(), []
    for k, t in enumerate(scheduler.timesteps):
        shown = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        extra = {inject: noise(k, x)} if inject else {}
        x = scheduler.step(net(shown, float(t)), t, x, **extra, **options).prev_sample
        path.append(x)
    return path


def ours(name: str, process: object, times: object, kind: str, x: torch.Tensor, **options: object) -> torch.Tensor:
    table, net = solvers.make(name, grids.custom_times(process, times), **options), network()
    return drive(table, lambda x, at: net(x, at.time), x, prediction=kind, noise=noise)


def error(a: torch.Tensor, b: torch.Tensor) -> float:
    assert torch.isfinite(a).all()
    return float((a - b).abs().max()) / max(1.0, float(b.square().mean().sqrt()))


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@KIND
def test_ddim(kind, eta):
    scheduler = diffusers.DDIMScheduler(**SD, prediction_type=KINDS[kind], clip_sample=False)
    scheduler.set_timesteps(10)
    path = theirs(scheduler, gaussian(), inject="variance_noise", eta=eta)
    assert error(ours("ddim", VP1, scheduler.timesteps, kind, gaussian(), eta=eta), path[-1]) <= TOLERANCE


@pytest.mark.parametrize("steps", [1, 7, 20])
@KIND
def test_euler(kind, steps):
    scheduler = diffusers.EulerDiscreteScheduler(**SD, prediction_type=KINDS[kind], timestep_spacing="trailing")
    scheduler.set_timesteps(steps)
    start = gaussian() * (1 + scheduler.sigmas[0] ** 2) ** 0.5
    assert error(ours("euler", VP1, scheduler.timesteps, kind, gaussian()), theirs(scheduler, start)[-1]) <= TOLERANCE


@KIND
def test_euler_ancestral(kind, monkeypatch):
    scheduler = diffusers.EulerAncestralDiscreteScheduler(
        **SD, prediction_type=KINDS[kind], timestep_spacing="trailing"
    )
    scheduler.set_timesteps(10)
    feed(monkeypatch, "euler_ancestral_discrete")
    start = gaussian() * (1 + scheduler.sigmas[0] ** 2) ** 0.5
    result = ours("euler_ancestral", VP1, scheduler.timesteps, kind, gaussian())
    assert error(result, theirs(scheduler, start)[-1]) <= TOLERANCE


@KIND
def test_heun(kind):
    scheduler = diffusers.HeunDiscreteScheduler(**SD, prediction_type=KINDS[kind], timestep_spacing="trailing")
    scheduler.set_timesteps(8)
    start = gaussian() * (1 + scheduler.sigmas[0] ** 2) ** 0.5
    times = scheduler.timesteps[::2]  # diffusers lists the inner calls as well
    assert error(ours("heun", VP1, times, kind, gaussian()), theirs(scheduler, start)[-1]) <= TOLERANCE


@pytest.mark.parametrize("steps", [1, 2, 8, 20])
@KIND
def test_dpmpp_2m(kind, steps):
    scheduler = diffusers.DPMSolverMultistepScheduler(
        **SD, prediction_type=KINDS[kind], timestep_spacing="trailing", final_sigmas_type="zero"
    )
    scheduler.set_timesteps(steps)
    result = ours("dpmpp_2m", VP1, scheduler.timesteps, kind, gaussian())
    assert error(result, theirs(scheduler, gaussian())[-1]) <= TOLERANCE


@KIND
def test_dpmpp_2m_sde(kind):
    scheduler = diffusers.DPMSolverMultistepScheduler(
        **SD, prediction_type=KINDS[kind], timestep_spacing="trailing", algorithm_type="sde-dpmsolver++"
    )
    scheduler.set_timesteps(12)
    path = theirs(scheduler, gaussian(), inject="variance_noise")
    assert error(ours("dpmpp_2m_sde", VP1, scheduler.timesteps, kind, gaussian()), path[-1]) <= TOLERANCE


@pytest.mark.parametrize("variant", ["bh1", "bh2"])
@pytest.mark.parametrize("order", [1, 2, 3])
@KIND
def test_unipc(kind, order, variant):
    scheduler = diffusers.UniPCMultistepScheduler(
        **SD, prediction_type=KINDS[kind], timestep_spacing="trailing", solver_order=order, solver_type=variant
    )
    scheduler.set_timesteps(10)
    path = theirs(scheduler, gaussian())
    table, net, seen = (
        solvers.make("unipc", grids.custom_times(VP1, scheduler.timesteps), order=order, variant=variant),
        network(),
        [],
    )

    def look(x, at):
        seen.append(x)
        return net(x, at.time)

    result = drive(table, look, gaussian(), prediction=kind)
    for k, x in enumerate(seen[1:]):
        assert error(x, path[k]) <= TOLERANCE
    if variant == "bh1":  # its last step multiplies B(h) = h = infinity by 0: diffusers ends in NaN
        assert torch.isnan(path[-1]).all()
        assert torch.isfinite(result).all()
    else:
        assert error(result, path[-1]) <= TOLERANCE


def feed(monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    """Let a scheduler that takes no noise as an argument draw ours, row by row."""
    rows = iter(range(1000))
    target = importlib.import_module(f"diffusers.schedulers.scheduling_{module}")

    def draw(shape, dtype=None, **_):
        return noise(next(rows), torch.empty(0, dtype=dtype))

    monkeypatch.setattr(target, "randn_tensor", draw)


@pytest.mark.parametrize("steps", [1, 4, 8])
@KIND
def test_lcm(kind, steps, monkeypatch):
    scheduler = diffusers.LCMScheduler(**SD, prediction_type=KINDS[kind])
    scheduler.set_timesteps(steps)
    feed(monkeypatch, "lcm")
    path = theirs(scheduler, gaussian())
    assert error(ours("lcm", VP1, scheduler.timesteps, kind, gaussian()), path[-1]) <= TOLERANCE


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
@KIND
def test_tcd(kind, eta, monkeypatch):
    """The last step differs: diffusers ends at training time 0, so that alpha_0·h0 + sigma_0·(predicted noise)

    comes out, sigma_min of noise left in and the picture scaled by alpha_0. Ours ends at sigma = 0 and returns
    h0. The states before it are equal, and its own end follows from them by DDIM's formula to time 0.
    """
    scheduler = diffusers.TCDScheduler(**SD, prediction_type=KINDS[kind])
    scheduler.set_timesteps(4)
    feed(monkeypatch, "tcd")
    path = theirs(scheduler, gaussian(), eta=eta)
    table, net, seen = solvers.make("tcd", grids.custom_times(VP1, scheduler.timesteps), eta=eta), network(), []

    def look(x, at):
        seen.append((x, at))
        return net(x, at.time)

    result = drive(table, look, gaussian(), prediction=kind, noise=noise)
    for k, (x, _) in enumerate(seen[1:]):
        assert error(x, path[k]) <= TOLERANCE
    x, at = seen[-1]
    eps = (x - at.alpha * result) / at.sigma
    zero = VP1.at_time(torch.tensor([0.0]))
    assert error(float(zero.alpha) * result + float(zero.sigma) * eps, path[-1]) <= TOLERANCE


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("steps", [1, 5, 20])
def test_flow_match_euler(steps, shift):
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(sigmas=torch.linspace(1, 1 / steps, steps).tolist())
    result = ours("euler", Flow(shift), scheduler.timesteps, "flow", gaussian())
    assert error(result, theirs(scheduler, gaussian())[-1]) <= TOLERANCE


@pytest.mark.parametrize("kind", ["karras", "exponential"])
def test_edm_euler(kind):
    """Playground's family: the EDM preconditioning, and times of a quarter of log sigma."""
    from timonel.process import EDM

    scheduler = diffusers.EDMEulerScheduler(sigma_min=0.002, sigma_max=80.0, sigma_data=0.5, sigma_schedule=kind)
    scheduler.set_timesteps(10)
    process, net = EDM(0.002, 80.0, sigma_data=0.5), network()
    start = gaussian() * (0.25 + scheduler.sigmas[0] ** 2) ** 0.5
    table = solvers.make("euler", grids.custom_sigmas(process, scheduler.sigmas))
    result = drive(table, lambda x, at: net(x, at.time), gaussian(), prediction="edm") * 0.5  # alpha = 1/sigma_data
    assert error(result, theirs(scheduler, start)[-1]) <= TOLERANCE
