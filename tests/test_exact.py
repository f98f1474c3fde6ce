"""Laws of the exact denoisers, of the reference that is solved on them, and of the benchmark made
of both.
"""

from __future__ import annotations

import math

import pytest
import torch

import exact as bench
import timonel as tm
from support.models import PROCESSES
from timonel.core.process import At, Level, double
from timonel.errors import ArgumentError, RunError, UnknownName
from timonel.exact import Gaussian, Mixture, Pictures, perturbed, reference, rounded, solve

ALL = PROCESSES | {"zero-SNR": tm.VP.from_schedule(rescale_zero_snr=True)}
#: two processes at once, one that starts at pure noise; the others are left to the slow tests
MAINLY = [
    pytest.param(process, id=name, marks=() if name in ("vp", "flow") else pytest.mark.slow)
    for name, process in ALL.items()
]
LEVELS = (At(0.05, 0.99, 990.0), At(0.7, 0.7, 400.0), At(0.999, 0.03, 2.0))
MIXTURE = Mixture.random(3, components=5, dimension=6, rank=2, classes=2)
EVERY = {
    "gaussian": Gaussian(torch.linspace(-1, 1, 6), 0.3),
    "mixture": MIXTURE,
    "pictures": Pictures(MIXTURE.draw(9, seed=1)),
    "perturbed": perturbed(MIXTURE, 0.1, seed=0),
    "rounded": rounded(MIXTURE, process=tm.VP.from_schedule(), dtype=torch.bfloat16),
}


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# -- the denoisers -------------------------------------------------------------------------------
@pytest.mark.parametrize("process", MAINLY)
def test_the_solution_of_a_gaussian_agrees_with_a_fine_solve(process):
    data, x = Gaussian(double([-1.0, 0.2, 0.5, 2.0]), double([0.01, 0.1, 1.0, 3.0])), draw(3, 4)
    at = process.at_index(double(process.train_steps - 1.0))
    assert (
        solve(data, x, process, sigma_min=1e-6, tolerance=1e-8) - data.solution(x, at)
    ).abs().max() < 1e-8


def test_the_solution_of_a_gaussian_in_two_parts_is_that_in_one():
    data, x = Gaussian(0.5, double([0.1, 2.0])), draw(3, 2)
    noisy, middle, _ = LEVELS
    half = data.solution(x, noisy, middle)
    assert torch.allclose(data.solution(half, middle), data.solution(x, noisy), atol=1e-12)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("rank", [0, 1, 4])
def test_the_denoiser_of_a_mixture_is_the_score_of_its_density(rank, level):
    """Tweedie: alpha·denoised = x + sigma²·grad log p."""
    mixture = Mixture.random(rank, components=4, dimension=5, rank=rank)
    x = (level.alpha * mixture.draw(7, seed=2) + level.sigma * draw(7, 5)).requires_grad_()
    (score,) = torch.autograd.grad(mixture.log_density(x, level).sum(), x)
    assert torch.allclose((x + level.sigma**2 * score) / level.alpha, mixture(x, level), atol=1e-9)


@pytest.mark.parametrize("level", LEVELS)
def test_the_density_of_a_mixture_is_that_of_its_covariances(level):
    m = MIXTURE
    covariance = m.factors @ m.factors.mT + torch.diag_embed(m.variances)
    noisy = level.alpha**2 * covariance + level.sigma**2 * torch.eye(6, dtype=torch.float64)
    normal = torch.distributions.MultivariateNormal(level.alpha * m.means, noisy)
    x = draw(4, 6)
    want = torch.logsumexp(m.weights.log() + normal.log_prob(x[:, None]), -1)
    assert torch.allclose(m.log_density(x, level), want, atol=1e-9)


def test_a_mixture_of_one_without_factors_is_a_gaussian():
    mean, std, x = draw(1, 6, seed=4), draw(1, 6, seed=5).abs(), draw(4, 6)
    mixture, gaussian = Mixture([2.0], mean, std), Gaussian(mean[0], std[0])
    for level in LEVELS:
        assert torch.allclose(mixture(x, level), gaussian(x, level), atol=1e-12)


def test_a_random_mixture_has_mean_zero_and_variance_one():
    drawn = Mixture.random(0, components=6, dimension=4, rank=1).draw(40_000, seed=1)
    assert drawn.mean(0).abs().max() < 0.03
    assert abs(float(drawn.var(0).mean()) - 1) < 0.03


def test_the_mixture_of_its_classes_is_the_mixture():
    """p(x0 | x) = sum of p(class | x)·p(x0 | x, class)."""
    x, level = draw(5, 6), LEVELS[1]
    parts = [MIXTURE.conditional(c) for c in (0, 1)]
    share = torch.stack([MIXTURE.weights[[k == c for k in MIXTURE.classes]].sum() for c in (0, 1)])
    log = torch.stack([p.log_density(x, level) for p in parts], -1) + share.log()
    mean = sum(
        w[:, None] * p(x, level) for w, p in zip(torch.softmax(log, -1).T, parts, strict=True)
    )
    assert torch.allclose(mean, MIXTURE(x, level), atol=1e-12)


def test_guidance_of_a_mixture_is_exact_and_the_loops_own():
    x, process = draw(4, 6), PROCESSES["vp"]
    cond, level = MIXTURE.conditional(1), LEVELS[1]
    want = MIXTURE(x, level) + 3 * (cond(x, level) - MIXTURE(x, level))
    assert torch.allclose(MIXTURE.guided(1, 3.0)(x, level), want, atol=1e-12)
    assert torch.allclose(MIXTURE.guided(1, 1.0)(x, level), cond(x, level), atol=1e-12)
    options = {"process": process, "steps": 6}
    looped = tm.sample(cond, x, "dpmpp_2m", unconditional=MIXTURE, guidance=3.0, **options)
    assert torch.allclose(
        looped, tm.sample(MIXTURE.guided(1, 3.0), x, "dpmpp_2m", **options), atol=1e-12
    )


def test_one_picture_is_returned_and_many_by_nearness():
    pictures = draw(3, 1, 2, 2)
    x = draw(4, 1, 2, 2, seed=1)
    for level in LEVELS:
        assert torch.equal(Pictures(pictures[:1])(x, level), pictures[:1].expand(4, -1, -1, -1))
    sharp = At(1.0, 1e-3, 0.0)
    assert torch.allclose(
        Pictures(pictures)(pictures + 1e-4 * draw(3, 1, 2, 2), sharp), pictures, atol=1e-12
    )


def test_pictures_are_a_mixture_without_width():
    pictures, x = draw(5, 3), draw(4, 3, seed=1)
    mixture = Mixture([1.0] * 5, pictures, 1e-9)
    for level in LEVELS[:2]:
        assert torch.allclose(Pictures(pictures)(x, level), mixture(x, level), atol=1e-9)


@pytest.mark.parametrize("name", EVERY)
def test_levels_may_be_one_per_sample_and_a_batch_changes_nothing(name):
    denoise, x = EVERY[name], draw(3, 6)
    alone = torch.cat([denoise(x[i : i + 1], level) for i, level in enumerate(LEVELS)])
    each = Level(
        *(double([getattr(level, k) for level in LEVELS]) for k in ("alpha", "sigma", "time"))
    )
    assert torch.allclose(denoise(x, each), alone, atol=1e-9)


@pytest.mark.parametrize("name", EVERY)
def test_float32_is_the_float64_result_rounded(name):
    denoise, x = EVERY[name], draw(3, 6).float()
    for level in LEVELS:
        got = denoise(x, level)
        assert got.dtype == torch.float32
        assert torch.allclose(got.double(), denoise(x.double(), level), atol=2e-6)


# -- controlled errors ---------------------------------------------------------------------------
def test_an_error_of_size_0_is_no_error_and_its_size_is_its_size():
    x, level = draw(400, 6), At(0.0, 1.0, 999.0)
    assert torch.equal(perturbed(MIXTURE, 0.0, seed=1)(x, level), MIXTURE(x, level))
    sizes = [
        float((perturbed(MIXTURE, 0.2, seed)(x, level) - MIXTURE(x, level)).square().mean().sqrt())
        for seed in range(8)
    ]
    assert len(set(sizes)) == 8
    assert abs(math.sqrt(sum(s**2 for s in sizes) / 8) - 0.2) < 0.05


def test_rounded_times_are_the_nearest_of_the_trained_ones():
    process, x = PROCESSES["vp"], draw(3, 6)
    seen = rounded(MIXTURE, process=process)
    between, nearest = process.at_time(double(400.3)), process.at_time(double(400.0))
    assert torch.equal(seen(x, between), MIXTURE(x, nearest))
    assert torch.equal(seen(x, nearest), MIXTURE(x, nearest))


def test_rounded_output_keeps_the_digits_of_its_type():
    x, level = draw(50, 6), LEVELS[1]
    off = (rounded(MIXTURE, dtype=torch.bfloat16)(x, level) - MIXTURE(x, level)).abs()
    assert 0 < off.max() < 2**-8 * 5
    assert (rounded(MIXTURE, dtype=torch.float64)(x, level) - MIXTURE(x, level)).abs().max() < 1e-12


# -- the reference -------------------------------------------------------------------------------
@pytest.mark.parametrize("process", MAINLY)
def test_two_methods_have_one_reference(process):
    mixture, x = Mixture.random(1, components=3, dimension=3, rank=1, std=(0.3, 0.5)), draw(2, 3)
    made = [
        solve(mixture, x, process, solver=name, tolerance=1e-5)
        for name in ("exponential_rk", "rk4")
    ]
    assert (made[0] - made[1]).abs().max() < 1e-5


def test_the_reference_visits_the_process_from_end_to_end():
    for process in ALL.values():
        grid = reference(process, 9)
        assert grid.ratio_at(0) == pytest.approx(
            float(process.at_index(double(process.train_steps - 1.0)).ratio)
        )
        assert float(process.at_sigma(double(process.sigma_min)).ratio) == pytest.approx(
            grid.ratio_at(8), rel=1e-6
        )
        assert float(grid.sigma[-1]) == 0


def test_solve_refuses_what_does_not_converge():
    x, generator = draw(2, 6), torch.Generator().manual_seed(0)

    def restless(x: torch.Tensor, level: At) -> torch.Tensor:
        return MIXTURE(x, level) + 1e-3 * torch.randn(x.shape, generator=generator, dtype=x.dtype)

    for denoise in (restless, EVERY["rounded"]):
        with pytest.raises(
            RunError, match=r"has not converged: from 32 to 64 steps .* above the tolerance 1e-08"
        ):
            solve(denoise, x, PROCESSES["vp"], tolerance=1e-8, most=64)
    with pytest.raises(RunError, match="has not converged"):
        solve(lambda x, level: x * math.nan, x, PROCESSES["vp"], most=64)


# -- refusals ------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Gaussian(0.0, -1.0), "std finite and not negative"),
        (lambda: Gaussian(math.nan, 1.0), "mean must be finite"),
        (lambda: Mixture([1.0], torch.zeros(2, 3), 1.0), "1 weights need means"),
        (lambda: Mixture([1.0, 0.0], torch.zeros(2, 3), 1.0), "above 0"),
        (lambda: Mixture([1.0, 1.0], torch.zeros(2, 3), torch.ones(3)), "stds must be one number"),
        (lambda: Mixture([1.0], torch.zeros(1, 3), 1.0, torch.zeros(1, 2, 1)), "factors must be"),
        (
            lambda: Mixture([1.0], torch.zeros(1, 3), 1.0, classes=[0, 1]),
            "1 components need as many classes",
        ),
        (lambda: Mixture.random(0, 0), "components must be a whole number"),
        (lambda: Mixture.random(0, 2, classes=3), "classes must be at most 2"),
        (lambda: MIXTURE.guided(0, -1.0), "guidance scale"),
        (lambda: Pictures(torch.zeros(0, 2)), "pictures must be finite"),
        (lambda: Pictures(torch.zeros(1, 6))(draw(2, 6), At(1.0, 0.0, 0.0)), "sigma above 0"),
        (lambda: MIXTURE(draw(2, 5), LEVELS[0]), r"has shape \(batch, 6\), got \(2, 5\)"),
        (
            lambda: MIXTURE(draw(2, 6), Level(*(torch.ones(3) for _ in range(3)))),
            "one number or one per sample",
        ),
        (lambda: perturbed(MIXTURE, -0.1, seed=0), "size of the error"),
        (lambda: rounded(MIXTURE), "nothing to round"),
        (lambda: rounded(MIXTURE, dtype=torch.int32), "floating-point type"),
        (lambda: solve(MIXTURE, [1.0], PROCESSES["vp"]), "floating-point tensor"),
        (
            lambda: solve(MIXTURE, draw(2, 6), PROCESSES["vp"], solver="ddpm"),
            "deterministic solver that converges",
        ),
        (
            lambda: solve(MIXTURE, draw(2, 6), PROCESSES["vp"], steps=64, most=64),
            "most must be a whole number",
        ),
    ],
)
def test_what_makes_no_model_is_refused(make, says):
    with pytest.raises(ArgumentError, match=says):
        make()


def test_an_unknown_class_lists_the_known():
    with pytest.raises(UnknownName, match="unknown class 7: known: 0, 1"):
        MIXTURE.conditional(7)


# -- the benchmark -------------------------------------------------------------------------------
@pytest.mark.slow
def test_the_quick_benchmark_ranks_second_order_above_first_and_writes_its_page(
    tmp_path, monkeypatch
):
    measured: list[tuple[list, dict]] = []
    measure = bench.measure
    monkeypatch.setattr(
        bench, "measure", lambda size: measured.append(measure(size)) or measured[0]
    )
    printed = bench.run(bench.QUICK, tmp_path)
    (posed, found), twenty = measured[0], bench.QUICK.calls.index(20)
    for i in range(len(posed)):
        second, first = (found[name][i][twenty].error for name in ("dpmpp_2m", "euler"))
        assert second < 0.8 * first, posed[i].title
    assert bench.same(found["dpmpp_2m"], found["DPM++ 2M, k-diffusion"])
    text = (tmp_path / "exact.md").read_text()
    assert all(f"| {name} " in text and f"| {name} " in printed for name in found)
    assert (tmp_path / "exact.png").read_bytes().startswith(b"\x89PNG")
