"""The density of rows that draw noise, SDE windows, and policy gradients against closed forms."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import timonel as tm
from timonel.core import solvers
from timonel.core.run import Run
from timonel.errors import ArgumentError, RunError
from timonel.exact import Gaussian, Mixture

VP, FLOW = tm.VP.from_schedule(), tm.Flow()
ETA = {"ddim": 1.0, "dpmpp_singlestep": 1.0}
WINDOWED = [n for n, s in solvers.SOLVERS.items() if "eta" in s.options and "stop" not in s.options]
STOCHASTIC = [n for n, s in solvers.SOLVERS.items() if s.stochastic and not s.reads_uncond]


def compiled(name: str, process: Any = VP, steps: int = 6, **options: Any) -> tm.Table:
    given = {"eta": ETA[name]} if name in ETA else {"s_churn": 8.0} if name == "edm" else {}
    if name == "dpm_multistep":
        process = tm.EDM(0.002, 80)
        given = {"eta": 1.0}
    sampler = tm.Sampler(name, steps=steps, options={**given, **options})
    return sampler.compile(process)


def noise(count: int = 3, dimension: int = 5, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, dimension, generator=generator, dtype=torch.float64)


def draws(seed: int = 1) -> Callable[[int, Tensor], Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return lambda row, like: torch.randn(like.shape, generator=generator, dtype=like.dtype)


class Recorded:
    """A run, its samples row after row, and the noise that each row drew."""

    def __init__(self, table: tm.Table, denoise: Callable[..., Tensor], x: Tensor) -> None:
        self.drawn: dict[int, Tensor] = {}
        self.each: list[Tensor | None] = []
        source = draws()

        def draw(row: int, like: Tensor) -> Tensor:
            self.drawn[row] = source(row, like)
            return self.drawn[row]

        self.run = Run(table, noise=draw)
        self.run.start(x)
        self.xs = [x]
        for _ in self.run.rows():
            self.run.advance(denoise(self.run.latents, self.run.level))
            self.xs.append(self.run.latents)
            self.each.append(self.run.log_prob if table.stochastic else None)


@pytest.mark.parametrize(
    "name",
    sorted({*STOCHASTIC, *WINDOWED} - {n for n, s in solvers.SOLVERS.items() if s.reads_uncond}),
)
def test_log_prob_is_that_of_the_noise_that_was_drawn(name: str) -> None:
    """x' = mean + std·eps, so log p(x') = log N(eps; 0, 1) - d·log std."""
    table, data = compiled(name), Mixture.random(0, dimension=5)
    seen = Recorded(table, data, noise())
    for row in range(table.nfe):
        std, value = float(table.std[row]), seen.each[row]
        if not std:
            assert value is None
            continue
        unit = torch.distributions.Normal(0.0, 1.0).log_prob(seen.drawn[row])
        expected = unit.sum(1) - 5 * torch.log(torch.tensor(std, dtype=torch.float64))
        assert value is not None
        torch.testing.assert_close(value, expected, rtol=1e-9, atol=1e-7)


@pytest.mark.parametrize("name", ["ddpm", "dpmpp_2m_sde", "dpmpp_3m_sde", "seeds_3", "sa_solver"])
def test_a_journey_evaluated_again_has_the_densities_of_its_run(name: str) -> None:
    table, data = compiled(name), Mixture.random(0, dimension=5)
    seen = Recorded(table, data, noise())
    again = seen.run.log_probs(seen.xs, data)
    expected = torch.stack([value for value in seen.each if value is not None])
    torch.testing.assert_close(again, expected, rtol=1e-9, atol=1e-7)


def test_half_precision_is_read_in_float32() -> None:
    table, data = compiled("ddpm"), Mixture.random(0, dimension=5)
    wide, half = (Recorded(table, data, noise().to(d)) for d in (torch.float32, torch.float16))
    for a, b in zip(wide.each, half.each, strict=True):
        if a is not None and b is not None:
            assert b.dtype == torch.float64
            torch.testing.assert_close(a, b, rtol=0.02, atol=0.2)


# -- policy gradients -----------------------------------------------------------------------------
def gradients(
    name: str, process: Any, window: tuple[int, int] | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Of E[reward] by the mean of the data: from log densities, its error, and closed."""
    options = {} if window is None else {"sde": window}
    table = compiled(name, process, 4, **options)
    count = 100_000
    x = noise(1, 2).expand(count, -1).contiguous()

    def policy(theta: Tensor) -> Callable[..., Tensor]:
        return lambda x, level: Gaussian(torch.zeros(2), torch.full((2,), 0.7))(x, level) + theta

    weight = torch.tensor([1.0, -0.5], dtype=torch.float64)
    theta = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    with torch.no_grad():
        run = Run(table, noise=draws())
        run.start(x)
        xs = [x]
        for _ in run.rows():
            run.advance(policy(theta)(run.latents, run.level))
            xs.append(run.latents)
    # the reward of the sample where the last noise was drawn: a row without noise has no density
    last = max(row for row in range(table.nfe) if table.std[row] > 0)
    reward = xs[last + 1] @ weight
    each = theta.detach().expand(count, 2).clone().requires_grad_()
    log = run.log_probs(xs, policy(each)).sum()
    terms = (reward - reward.mean())[:, None] * torch.autograd.grad(log, each)[0]
    score, error = terms.mean(0), terms.std(0) / count**0.5
    # closed: the chain is linear in theta and the noise, so E[x] is the journey without noise
    silent = Run(table, noise=lambda row, like: torch.zeros_like(like))
    silent.start(x[:1])
    for row in silent.rows():
        if window is not None and row == window[0]:
            silent.replace(silent.latents.detach())
        silent.advance(policy(theta)(silent.latents, silent.level))
        if row == last:
            closed = torch.autograd.grad((silent.latents @ weight).sum(), theta)[0]
            break
    return score, error, closed


@pytest.mark.parametrize(("name", "process", "window"), [
    ("euler_ancestral", VP, None), ("ddim", FLOW, None), ("dpmpp_2m_sde", VP, None),
    ("dpmpp_2m_sde", FLOW, (1, 3)), ("ddpm", VP, None),
])  # fmt: skip
def test_a_policy_gradient_is_the_closed_form_on_a_gaussian(
    name: str, process: Any, window: tuple[int, int] | None
) -> None:
    """The gradient through `advance` of the mean journey is that of the log densities.

    Where a window begins the sample is fixed, for no density knows how it moves with theta; the
    predictions that are remembered from before move.
    """
    score, error, closed = gradients(name, process, window)
    assert bool((error < 0.1 * closed.abs().max()).all())
    assert bool(((score - closed).abs() < 4 * error).all()), (score, error, closed)


def test_the_expected_score_is_zero() -> None:
    table, count = compiled("ddpm", steps=4), 50_000
    theta = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    data = Gaussian(torch.zeros(2), torch.ones(2))
    with torch.no_grad():
        seen = Recorded(table, data, noise(count, 2))
    log = seen.run.log_probs(seen.xs, lambda x, level: data(x, level) + theta)
    mean = torch.autograd.grad(log.sum() / count, theta)[0]
    # the score of theta in a row is the row's weight of the prediction times eps / std
    rows = [row for row in range(table.nfe) if table.std[row] > 0]
    spread = torch.sqrt(sum((table.x[row, 2] / table.std[row]) ** 2 for row in rows) / count)
    assert bool((mean.abs() < 4 * spread).all())


# -- windows --------------------------------------------------------------------------------------
@pytest.mark.parametrize("process", [VP, FLOW], ids=["vp", "flow"])
@pytest.mark.parametrize("name", [n for n in WINDOWED if n != "dpm_multistep"])
def test_a_window_draws_in_its_steps_and_is_the_ode_elsewhere(name: str, process: Any) -> None:
    table = compiled(name, process, 8, sde=(2, 5))
    sde, ode = compiled(name, process, 8), compiled(name, process, 8, eta=0.0)
    assert {step for row, step in enumerate(table.step) if table.std[row] > 0} == {2, 3, 4}
    for step in range(8):
        twin = sde if 2 <= step < 5 else ode
        rows = slice(table.first_row(step), table.first_row(step + 1))
        theirs = slice(twin.first_row(step), twin.first_row(step + 1))
        assert torch.equal(table.x[rows], twin.x[theirs])
        assert torch.equal(table.sigma[rows], twin.sigma[theirs])


@pytest.mark.parametrize("name", ["euler_ancestral", "dpmpp_2m_sde", "seeds_2"])
def test_a_windowed_run_has_the_law_of_the_data(name: str) -> None:
    """On a Gaussian both the SDE and the ODE keep the law, and so does the splice of them."""
    data = Gaussian(torch.tensor([0.3, -0.2]), torch.tensor([0.5, 1.5]))
    sampler = tm.Sampler(name, steps=80, options={"sde": (20, 50)})
    x = noise(10_000, 2)
    made = tm.sample(data, x, sampler, process=VP, noise=draws())
    torch.testing.assert_close(made.mean(0), data.mean, atol=0.05, rtol=0)
    torch.testing.assert_close(made.std(0), data.std, atol=0.0, rtol=0.06)


@pytest.mark.parametrize(("name", "options", "said"), [
    ("ddpm", {"sde": (1, 2)}, "'ddim' with options"),
    ("euler", {"sde": (1, 2)}, "has no steps with and without noise"),
    ("sa_solver", {"sde": (1, 2)}, "a window of its own"),
    ("euler_ancestral", {"sde": (3, 3)}, "is empty"),
    ("euler_ancestral", {"sde": (5, 2)}, "is empty"),
    ("euler_ancestral", {"sde": (2, 99)}, "ends after the run's last step"),
    ("euler_ancestral", {"sde": (9, 10)}, "draws noise"),
    ("euler_ancestral", {"sde": 3}, "the first step and the one after"),
    ("euler_ancestral", {"sde": "2-5"}, "the first step and the one after"),
    ("euler_ancestral", {"sde": (1, 4), "s_churn": 5}, "leave sde out"),
    ("ddim", {"sde": (1, 4)}, "draws noise"),
])  # fmt: skip
def test_a_window_that_cannot_be_is_refused(name: str, options: Any, said: str) -> None:
    with pytest.raises(ArgumentError, match=said):
        tm.Sampler(name, steps=10, options=options).compile(VP)


def test_a_window_is_text_too_and_is_part_of_a_part() -> None:
    sampler = tm.Sampler("dpmpp_2m_sde", steps=10, options={"sde": "2:6"}, start=4)
    table = sampler.compile(VP)
    assert [step for row, step in enumerate(table.step) if table.std[row] > 0] == [0, 1]


# -- what has no density --------------------------------------------------------------------------
def test_what_has_no_density_says_so(tmp_path: Path) -> None:
    data, x = Mixture.random(0, dimension=5), noise()
    plain = Recorded(compiled("euler"), data, x).run
    with pytest.raises(RunError, match=r"'euler' draws no noise.*Sampler\('ddim'"):
        _ = plain.log_prob
    with pytest.raises(RunError, match="draws no noise"):
        plain.log_probs([x] * 7, data)
    table = compiled("ddpm")
    run = tm.begin(x, "ddpm", process=VP, steps=6, seeds=range(3))
    with pytest.raises(RunError, match="no newest row"):
        _ = run.log_prob
    with pytest.raises(ArgumentError, match="7 samples"):
        run.log_probs([x], data)
    run.advance(data(run.latents, run.level))
    assert run.log_prob is not None
    run.save(tmp_path / "run.safetensors")
    with pytest.raises(RunError, match="no newest row"):
        _ = Run.load(tmp_path / "run.safetensors").log_prob
    seen = Recorded(table, data, x)
    with pytest.raises(RunError, match=r"row 5 draws no noise.*\[0, 1, 2, 3, 4\]"):
        seen.run.program.log_prob(seen.run._here._replace(row=5), x, x)
    transition = seen.run.program.transition(seen.run._here._replace(row=0, x=x), x)
    with pytest.raises(ArgumentError, match="shape"):
        transition.log_prob(x[:, :2])


# -- the SDE of Flow-GRPO --------------------------------------------------------------------------
def flow_grpo(x: Tensor, clean: Tensor, t: float, new: float, a: float) -> tuple[Tensor, float]:
    """Mean and std of a published step (arXiv 2505.05470, eq. 9), from a denoised prediction."""
    dt, sigma = new - t, a * (t / (1 - t)) ** 0.5
    velocity = (x - clean) / t
    drift = velocity + sigma**2 / (2 * t) * (x + (1 - t) * velocity)
    return x + drift * dt, sigma * (-dt) ** 0.5


@pytest.mark.parametrize("name", ["euler_ancestral", "dpmpp_2m_sde"])
def test_the_sde_of_flow_grpo_is_a_share_of_ours(name: str) -> None:
    """Per step the std agrees to a share of order h, the mean to order h²."""
    a = 0.7
    eta = a / 2**0.5 if name == "euler_ancestral" else a**2 / 2
    data, x, off = Gaussian(torch.zeros(4), torch.ones(4)), noise(3, 4), []
    for steps in (20, 40, 80):
        table = compiled(name, FLOW, steps, eta=eta)
        row = steps // 2
        t, new = float(table.sigma[row]), float(table.sigma[row + 1])
        clean = data(x, tm.At(1 - t, t, t))
        # of a multistep row with equal predictions
        weights = table.x[row]
        mean = weights[0] * x + weights[2:-1].sum() * clean
        theirs, std = flow_grpo(x, clean, t, new, a)
        off.append((abs(float(table.std[row]) / std - 1), float((mean - theirs).abs().max())))
    for i in range(2):
        assert 1.7 < off[i][0] / off[i + 1][0] < 2.3
        assert 3.3 < off[i][1] / off[i + 1][1] < 4.7


def test_the_coefficients_preserving_step_is_ddim() -> None:
    """x' = alpha'·D + sqrt(sigma'² - std²)·(predicted noise) + std·eps, of every row."""
    table = compiled("ddim", FLOW, 8, eta=0.6)
    for row in range(table.nfe):
        alpha, sigma = float(table.alpha[row]), float(table.sigma[row])
        new_alpha, new_sigma = float(table.alpha[row + 1]), float(table.sigma[row + 1])
        kept = (new_sigma**2 - float(table.std[row]) ** 2) ** 0.5
        assert abs(float(table.x[row, 0]) - kept / sigma) < 1e-9
        assert abs(float(table.x[row, 2]) - (new_alpha - alpha * kept / sigma)) < 1e-9


def test_a_sampler_that_reads_unconditional_predictions_has_no_density():
    run = tm.begin(
        torch.randn(1, 4),
        "euler_ancestral_cfg_pp",
        process=tm.VP.from_schedule(),
        steps=4,
        seeds=[0],
    )
    run.advance(torch.zeros(1, 4))
    with pytest.raises(RunError, match="choose 'euler_ancestral'"):
        _ = run.log_prob
