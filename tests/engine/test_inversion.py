"""Laws of inversion: reverse Euler is off by the order of the step, a fixed point by its tolerance,
for every deterministic table, on models that are known exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import timonel as tm
from timonel.core import solvers
from timonel.engine import inversion
from timonel.engine.drive import finish, run_on
from timonel.engine.network import Answer, Denoisers, Query
from timonel.errors import ArgumentError, TimonelError, UnknownName
from timonel.exact import Gaussian, Mixture

VP, FLOW = tm.VP.from_schedule(), tm.Flow()
DETERMINISTIC = [n for n, s in solvers.SOLVERS.items() if not (s.stochastic or s.reads_uncond)]
DATA = Gaussian(torch.full((8,), 0.3), torch.linspace(0.05, 1.5, 8))


class Model:
    """A denoiser as a network that a run goes over, and how often it was called."""

    prediction, denoised_fn = "sample", None

    def __init__(
        self, process: Any, data: Callable[..., Tensor], uncond: Callable[..., Tensor] | None = None
    ) -> None:
        self.process, self.network, self.calls = process, Denoisers(data, uncond), 0

    def cost(self, scale: float | None) -> int:
        return self.network.cost(scale)

    def evaluate(self, queries: Sequence[Query]) -> list[Answer]:
        self.calls += 1
        return self.network.evaluate(queries)


def noise(dtype: torch.dtype = torch.float64, count: int = 3, dimension: int = 8) -> Tensor:
    g = torch.Generator().manual_seed(0)
    return torch.randn(count, dimension, generator=g, dtype=torch.float64).to(dtype)


def there(model: Any, table: tm.Table, x: Tensor) -> Tensor:
    run = run_on(model, table)
    run.start(x)
    return finish(run, model)


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("process", [VP, FLOW, tm.EDM(0.002, 80)], ids=lambda p: p.kind)
@pytest.mark.parametrize("name", DETERMINISTIC)
def test_a_fixed_point_is_the_inverse_of_every_deterministic_table(name: str, process: Any) -> None:
    model = Model(process, DATA)
    try:
        table = tm.Sampler(name, steps=20).compile(process)
    except TimonelError:
        pytest.skip("not on this process")
    x = noise()
    end = there(model, table, x)
    back = inversion.invert(model, table, end, tolerance=1e-7, iterations=80)
    assert back.converged
    assert max(back.residuals) <= 1e-7
    assert relative(back.latents, x) < 1e-4
    assert relative(back.result, end) < 1e-5
    assert max(back.error) < 1e-5


@pytest.mark.parametrize("name", ["ddim", "heun", "dpmpp_2m"])
def test_on_a_mixture_in_single_precision_too(name: str) -> None:
    model, x = Model(VP, Mixture.random(0, dimension=8)), noise(torch.float32)
    table = tm.Sampler(name, steps=20).compile(VP)
    end = there(model, table, x)
    back = inversion.invert(model, table, end, tolerance=1e-6)
    assert back.latents.dtype == torch.float32
    assert relative(back.latents, x) < 1e-4
    assert max(back.error) < 3e-5


@pytest.mark.parametrize("process", [VP, FLOW], ids=lambda p: p.kind)
def test_reverse_euler_is_of_first_order_and_makes_one_call_a_step(process: Any) -> None:
    errors = []
    for steps in (20, 40, 80):
        model = Model(process, DATA)
        table = tm.Sampler("ddim", steps=steps).compile(process)
        end = DATA.draw(3, 1)
        back = inversion.invert(model, table, end, method="ddim")
        assert back.calls == steps
        assert model.calls == 2 * steps  # and the round trip
        assert not back.converged
        assert back.residuals == ()
        errors.append(max(back.error))
    assert 1.6 < errors[0] / errors[1] < 2.4
    assert 1.6 < errors[1] / errors[2] < 2.4


def test_reverse_euler_is_that_of_diffusers() -> None:
    """Its DDIM inverse: the network's output for a sample, at the level that the step goes to."""
    diffusers = pytest.importorskip("diffusers")
    settings: dict[str, Any] = {
        "beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012,
        "clip_sample": False,
    }  # fmt: skip
    theirs = diffusers.DDIMInverseScheduler(
        **settings, timestep_spacing="leading", steps_offset=1, set_alpha_to_one=False
    )
    theirs.set_timesteps(10)
    cumulative = theirs.alphas_cumprod.double()
    x = clean = DATA.draw(3, 1)
    levels = [theirs.initial_alpha_cumprod.double()]
    for time in theirs.timesteps.tolist():
        at = tm.At(float(cumulative[time]) ** 0.5, float(1 - cumulative[time]) ** 0.5, time)
        eps = (x - at.alpha * DATA(x, at)) / at.sigma
        x = theirs.step(eps, time, x).prev_sample
        levels.append(cumulative[time])
    # their levels, the noisiest first: the last is alpha_0, not the clean one
    times = [*theirs.timesteps.tolist()[::-1]]
    table = tm.Sampler("ddim", times=[*map(float, times)]).compile(VP)
    alpha = torch.stack(levels[::-1]).sqrt()
    euler = replace(
        table, alpha=alpha, sigma=(1 - alpha**2).sqrt(), x=table.x.clone(), base=table.base
    )
    for row in range(table.nfe):
        keep = euler.sigma[row + 1] / euler.sigma[row]
        euler.x[row, 0], euler.x[row, 2] = keep, alpha[row + 1] - alpha[row] * keep
    back = inversion.invert(Model(VP, DATA), euler, clean, method="ddim")
    assert relative(back.latents, x) < 1e-5


def test_what_does_not_contract_says_so() -> None:
    """A denoiser that jumps: no iterate satisfies the equations."""

    def jumps(x: Tensor, level: Any) -> Tensor:
        return torch.sign(x) * 3 + torch.sin(40 * x)

    table = tm.Sampler("ddim", steps=4).compile(VP)
    back = inversion.invert(Model(VP, jumps), table, noise(), iterations=15)
    assert not back.converged
    assert max(back.residuals) > 1e-3
    assert bool(torch.isfinite(back.latents).all())


def test_guidance_is_inverted_with_its_scale() -> None:
    data = Mixture.random(0, dimension=8)
    model = Model(VP, data.conditional(0), data)
    table = tm.Sampler("ddim", steps=20).compile(VP)
    x = noise()
    run = run_on(model, table, guidance=tm.cfg(2.0, until=0.5))
    run.start(x)
    end = finish(run, model)
    back = inversion.invert(model, table, end, guidance=tm.cfg(2.0, until=0.5), tolerance=1e-8)
    assert relative(back.latents, x) < 1e-5
    for other in (tm.cfg(2.0, forecast=2), tm.apg(2.0), tm.cfg(2.0) + tm.skip_layers([0])):
        with pytest.raises(ArgumentError, match="only plain guidance"):
            inversion.invert(model, table, end, guidance=other)


@pytest.mark.parametrize(("arguments", "error", "said"), [
    ({"sampler": "euler_ancestral"}, ArgumentError, "draws noise.*'ddim'"),
    ({"method": "fixed-point"}, UnknownName, "fixed_point"),
    ({"tolerance": 0}, ArgumentError, "tolerance"),
    ({"iterations": 0}, ArgumentError, "iterations"),
    ({"x": "noise"}, ArgumentError, "sample to invert"),
])  # fmt: skip
def test_what_cannot_be_inverted_is_refused_before_any_call(
    arguments: dict[str, Any], error: type[Exception], said: str
) -> None:
    given = {"sampler": "ddim", "x": noise(), **arguments}
    model = Model(VP, DATA)
    table = tm.Sampler(given.pop("sampler"), steps=5).compile(VP)
    with pytest.raises(error, match=said):
        inversion.invert(model, table, given.pop("x"), **given)
    assert not model.calls


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_a_journey_is_the_sum_of_its_start_and_predictions(name: str) -> None:
    """What is solved at once for multistep tables, against a run of the table."""
    table, held, xs = tm.Sampler(name, steps=6).compile(VP), list[Tensor](), list[Tensor]()
    run = run_on(Model(VP, DATA), table)
    run.start(noise())
    for row in run.rows():
        xs.append(run.latents)
        clean = DATA(run.latents, run.level)
        alpha, sigma = float(table.alpha[row]), float(table.sigma[row])
        held.append((run.latents - alpha * clean) / sigma)
        run.advance(clean)
    sums = inversion.linear_parts(table)
    for weights, x in zip(sums, [*xs, run.result], strict=True):
        made = sum(w * part for w, part in zip(weights, [xs[0], *held], strict=True))
        torch.testing.assert_close(made, x, rtol=1e-8, atol=1e-8)
