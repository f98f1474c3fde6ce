"""Law: Brownian noise has the law of independent noise, and any number of steps of one seed follows
one path.
"""

from __future__ import annotations

import gc
import math

import numpy as np
import pytest
import torch
from scipy import stats

import timonel as tm
from support.models import PROCESSES, VARIANTS, Gaussian, drive, label, lam_grid, network, slope
from timonel.core import grids, solvers
from timonel.core.noise import DEVICES, FINE, NOISES, START, BrownianNoise, initial, source, spans
from timonel.core.process import EDM, VP, Flow
from timonel.core.run import Run

N = 4096
BOUND = 5 / N**0.5  # five standard errors of a mean or a correlation of N values
VP_ = PROCESSES["vp"]
JOURNEYS = {
    "vp": (VP_, "karras"),
    "zero snr": (VP.from_schedule(rescale_zero_snr=True), "trailing"),
    "svd": (EDM(0.002, 700.0), "karras"),
    "flow": (Flow(12.0), "trailing"),
}


def table_of(
    name: str = "ddpm", steps: int = 12, process: object = VP_, **options: object
) -> tm.Table:
    return solvers.make(name, lam_grid(process, steps), **options)


def drawn(made: BrownianNoise, n: int = N) -> dict[int, torch.Tensor]:
    """The noise of every row that draws, for the first seed."""
    return {
        row: made(row, torch.empty(len(made.seeds), n))[0].double() for row in spans(made.table)
    }


def tau(place: int) -> float:
    return math.exp(2 * place / FINE)


def length(span: tuple[int, int, int]) -> float:
    return tau(span[2]) - tau(span[1])


def assert_unit_and_unrelated(values: torch.Tensor) -> None:
    correlation = torch.from_numpy(np.corrcoef(values.numpy())) - torch.eye(
        len(values), dtype=torch.float64
    )
    assert float(correlation.abs().max()) < BOUND
    assert float(values.mean(1).abs().max()) < BOUND
    assert float((values.var(1) - 1).abs().max()) < BOUND * 2**0.5
    for row in values.numpy():
        assert stats.kstest(row, "norm").pvalue > 1e-6


# -- the law of the noise ------------------------------------------------------------------------
@pytest.mark.parametrize("journey", JOURNEYS)
def test_every_row_of_a_journey_is_unit_normal_and_unrelated_to_the_others(journey):
    process, grid = JOURNEYS[journey]
    table = tm.Sampler("ddpm", grid, 30).compile(process)
    assert_unit_and_unrelated(torch.stack([*drawn(BrownianNoise((3,), table)).values()]))


def lifted(name: str) -> tm.Table:
    grid = tm.Sampler("euler/karras", steps=10).levels(VP_)
    if name == "churn":
        return solvers.make("euler", grids.churn(grid, 4.0))
    if name == "strong churn":
        return solvers.make(
            "euler", grids.churn(tm.Sampler("euler/karras", steps=40).levels(VP_), 1000.0)
        )
    if name == "restart":
        return solvers.make("ddpm", grids.restart(grid, 3, 0.2, 2.0, 4))
    return solvers.make("dpmpp_sde", grid)


@pytest.mark.parametrize("name", ["churn", "strong churn", "restart", "two draws a step"])
def test_no_noise_is_used_twice_where_levels_rise_or_a_step_draws_twice(name):
    table = lifted(name)
    assert_unit_and_unrelated(torch.stack([*drawn(BrownianNoise((3,), table)).values()]))


def test_levels_beyond_the_ends_of_the_path_and_closer_than_its_lattice_keep_the_law():
    process, values = (
        Flow(),
        [1.0, 1 - 1e-9, 1 - 1e-8, 1 - 1e-6, 0.5, 0.5 - 1e-9, 0.5 - 1e-7, 1e-5, 1e-9, 1e-12, 1e-14],
    )
    table = tm.Sampler("ddpm", sigmas=values).compile(process)
    assert_unit_and_unrelated(torch.stack([*drawn(BrownianNoise((3,), table)).values()]))


def test_noise_of_overlapping_intervals_is_correlated_as_an_integral_of_white_noise():
    """corr = length of the overlap / sqrt(length · length'), in tau."""
    one, two = (BrownianNoise((4,), table_of(steps=steps)) for steps in (7, 12))
    a, b = drawn(one), drawn(two)
    seen = 0
    for i, x in spans(one.table).items():
        for j, y in spans(two.table).items():
            overlap = max(0.0, tau(min(x[2], y[2])) - tau(max(x[1], y[1])))
            expected = overlap / math.sqrt(length(x) * length(y))
            assert abs(np.corrcoef(a[i], b[j])[0, 1] - expected) < BOUND, (i, j)
            seen += expected > 0.1
    assert seen >= 12


def test_a_long_step_draws_the_sum_of_the_short_steps_it_spans():
    fine, coarse = (BrownianNoise((4, 5), table_of(steps=steps)) for steps in (24, 4))
    small, large = drawn(fine), drawn(coarse)
    for k, span in spans(coarse.table).items():
        parts = {r: s for r, s in spans(fine.table).items() if span[1] <= s[1] and s[2] <= span[2]}
        assert len(parts) == 6
        total = sum(small[r] * math.sqrt(length(s)) for r, s in parts.items()) / math.sqrt(
            length(span)
        )
        assert torch.allclose(total, large[k], atol=2e-5)


def test_it_has_the_law_of_torchsdes_brownian_tree():
    """The same intervals from both: two-sample Kolmogorov-Smirnov for each, and all pairwise
    correlations.
    """
    torchsde = pytest.importorskip("torchsde")
    ours, theirs = [], []
    tables = [table_of(steps=steps) for steps in (3, 5, 8)]
    tree = torchsde.BrownianTree(
        0.0, torch.zeros(N, dtype=torch.float64), t1=100.0, entropy=5, tol=1e-9
    )
    for table in tables:
        made = drawn(BrownianNoise((4,), table))
        for row, span in spans(table).items():
            ours.append(made[row].numpy())
            theirs.append((tree(tau(span[1]), tau(span[2])) / math.sqrt(length(span))).numpy())
    for a, b in zip(ours, theirs, strict=True):
        assert stats.ks_2samp(a, b).pvalue > 1e-6
        assert abs(a.var() - b.var()) < 2 * BOUND
    assert np.abs(np.corrcoef(ours) - np.corrcoef(theirs)).max() < 1.5 * BOUND


# -- what it is for ------------------------------------------------------------------------------
CONVERGING = [
    ("ddpm", {}), ("euler_ancestral", {}), ("dpmpp_2m_sde", {}), ("dpmpp_sde", {}),
    ("ddim", {"eta": 0.5}),
]  # fmt: skip
STEPS = (10, 20, 40, 80)


def errors(kind: str, name: str, options: dict, grid: object) -> list[float]:
    """Root mean square distance of 10, 20, 40 and 80 steps from 320 steps, on exactly solvable
    data.
    """
    seeds, x = (
        (1, 2),
        torch.randn(2, 32, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1)),
    )

    def result(steps: int) -> torch.Tensor:
        table = solvers.make(name, grid(steps), **options)
        return drive(table, Gaussian(), x, noise=source(kind, seeds, table))

    exact = result(320)
    return [float((result(steps) - exact).pow(2).mean().sqrt()) for steps in STEPS]


@pytest.mark.parametrize("variant", CONVERGING, ids=label)
def test_brownian_noise_converges_strongly_and_independent_noise_does_not(variant):
    """Measured: errors of 0.05 to 0.13 at 10 steps, orders 0.8 to 1.1; independent noise stays near
    0.7.
    """
    found = errors("brownian", *variant, lambda steps: lam_grid(VP_, steps))
    assert found == sorted(found, reverse=True)
    assert slope(STEPS, found) > 0.7
    apart = errors("independent", *variant, lambda steps: lam_grid(VP_, steps))
    assert abs(slope(STEPS, apart)) < 0.3
    assert apart[-1] > 10 * found[-1]


@pytest.mark.parametrize("journey", JOURNEYS)
def test_whole_journeys_of_one_seed_settle_on_one_sample(journey):
    """From pure noise or the model's noisiest level to the clean one."""
    process, grid = JOURNEYS[journey]
    found = errors("brownian", "ddpm", {}, lambda steps: grids.make(grid, process, steps))
    assert found == sorted(found, reverse=True)
    assert slope(STEPS, found) > 0.5
    assert (
        found[-1]
        < errors("independent", "ddpm", {}, lambda steps: grids.make(grid, process, steps))[-1] / 5
    )


# -- which stretch of the path a row follows -----------------------------------------------------
STOCHASTIC = [
    v for v in VARIANTS if tm.Sampler(v[0], steps=6, options=v[1]).compile(VP_).stochastic
]


@pytest.mark.parametrize("variant", STOCHASTIC, ids=label)
@pytest.mark.parametrize("kind", PROCESSES)
def test_rows_follow_their_own_stretches_and_steps_leave_no_gap(variant, kind):
    table = solvers.make(variant[0], lam_grid(PROCESSES[kind], 8), **variant[1])
    reached: dict[int, int] = {}
    for row, span in spans(table).items():
        if span is None:
            assert (
                table.level(row + 1).lam
                <= table.level(table.first_row(table.step[row])).lam + 1 / FINE
            )
            continue
        path, begin, end = span
        assert reached.get(path, begin) <= begin < end
        assert end == round(float(table.level(row + 1).lam) * FINE)
        first = not any(table.step[r] == table.step[row] for r in spans(table) if r < row)
        start = table.first_row(table.step[row])
        assert not first or begin == round(float(table.level(start).lam) * FINE)
        assert first or begin == reached[path] or spans(table)[row - 1] is None
        reached[path] = end


# -- exact bits ----------------------------------------------------------------------------------
@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_a_sample_gets_the_same_bits_in_every_batch_and_order(size):
    table, seeds = table_of(steps=5), tuple(range(70, 70 + size))
    alone = [BrownianNoise((seed,), table) for seed in seeds]
    together, back = BrownianNoise(seeds, table), BrownianNoise(seeds[::-1], table)
    for row in spans(table):
        like = torch.empty(size, 4, 7, 9)
        made = together(row, like)
        assert torch.equal(made, torch.cat([one(row, like[:1]) for one in alone]))
        assert torch.equal(made, back(row, like).flip(0))


def test_bits_do_not_depend_on_the_order_in_which_rows_are_asked_for():
    table, like = table_of("dpmpp_sde", steps=6), torch.empty(2, 3, 5)
    rows = list(spans(table))
    expected = {row: BrownianNoise((1, 2), table)(row, like) for row in rows}
    made, other = BrownianNoise((1, 2), table), torch.empty(2, 30)
    for row in [*rows, *rows[::-1], *np.random.default_rng(0).permutation(rows).tolist()]:
        made(rows[0], other)  # another shape in between
        assert torch.equal(made(row, like), expected[row]), row


@pytest.mark.parametrize("kind", PROCESSES)
def test_the_same_interval_has_the_same_bits_on_every_process(kind):
    """The path depends on lam alone."""
    expected = drawn(BrownianNoise((9,), table_of(steps=8)), 64)
    made = drawn(BrownianNoise((9,), table_of(steps=8, process=PROCESSES[kind])), 64)
    assert all(torch.equal(made[row], expected[row]) for row in expected)


def test_precision_of_the_sample_only_rounds_the_noise():
    made, like = BrownianNoise((5,), table_of()), torch.empty(1, 4, 6)
    assert torch.equal(made(3, like.double()), made(3, like).double())
    assert torch.equal(made(3, like.half()), made(3, like).half())


def test_the_global_generator_is_left_alone():
    before = torch.get_rng_state()
    BrownianNoise((1,), table_of())(2, torch.empty(1, 9))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("kind", NOISES)
def test_the_start_is_the_same_whatever_the_source_and_the_device(kind):
    for device in DEVICES:
        made = source(kind, [7, 8], table_of(), device=device)
        assert torch.equal(made(START, torch.empty(2, 3, 4)), initial([7, 8], (3, 4)))


@pytest.mark.parametrize("kind", NOISES)
def test_noise_drawn_on_the_cpu_is_the_same_for_a_sample_anywhere(kind):
    """On a CPU both devices are one; where there is a GPU, it gets the CPU's bits by default."""
    table, like = table_of(), torch.empty(2, 4, 8, 8)
    expected = source(kind, [1, 2], table)(3, like)
    assert torch.equal(source(kind, [1, 2], table, device="sample")(3, like), expected)
    assert (
        source(kind, [1, 2], table)(3, like.to("meta")).shape == like.shape
    )  # a device that cannot draw
    with pytest.raises(RuntimeError):
        source(kind, [1, 2], table, device="sample")(3, like.to("meta"))
    if torch.cuda.is_available():
        there = source(kind, [1, 2], table)(3, like.cuda())
        assert there.device.type == "cuda"
        assert torch.equal(there.cpu(), expected)
        own = source(kind, [1, 2], table, device="sample")
        assert torch.equal(
            own(3, like.cuda())[1:], source(kind, [2], table, device="sample")(3, like[1:].cuda())
        )


@pytest.mark.parametrize("name", ["ddpm", "dpmpp_sde"])
def test_a_run_is_resumed_rewound_and_branched_bit_for_bit(name, tmp_path):
    table, x = tm.Sampler(name, steps=5).compile(VP_), torch.randn(2, 4, 6, 6)

    def fresh(kind: str = "brownian") -> Run:
        run = Run(table, "v", noise=source(kind, [11, 12], table))
        run.start(x)
        return run

    def finish(run: Run) -> torch.Tensor:
        for _ in run.rows():
            run.advance(network()(run.latents, run.level.time))
        return run.result

    whole, run = finish(fresh()), fresh()
    assert not torch.equal(whole, finish(fresh("independent")))
    while run.proceed():
        run.save(tmp_path / "run.safetensors")
        loaded = Run.load(tmp_path / "run.safetensors")
        assert isinstance(loaded.noise, BrownianNoise)
        assert loaded.noise.seeds == (11, 12)
        assert torch.equal(finish(loaded), whole)
        assert torch.equal(finish(run.branch()), whole)
        run.advance(network()(run.latents, run.level.time))
    run.rewind(2)
    assert torch.equal(finish(run), whole)


def test_a_saved_run_keeps_the_kind_and_the_device_of_its_noise(tmp_path):
    for kind in NOISES:
        table = table_of(steps=3)
        run = Run(table, noise=source(kind, [1], table, device="sample"))
        run.start(torch.ones(1, 3))
        run.save(tmp_path / "run.safetensors")
        noise = Run.load(tmp_path / "run.safetensors").noise
        assert (noise.kind, noise.seeds, noise.device) == (kind, (1,), "sample")


def test_a_row_computes_one_point_of_the_path_for_the_last_one_is_remembered(monkeypatch):
    from timonel.core import noise

    points, compute = [], noise._point
    monkeypatch.setattr(
        noise, "_point", lambda draw, path, at: points.append(at) or compute(draw, path, at)
    )
    made = BrownianNoise((1,), table_of(steps=9))
    for row in range(9):
        made(row, torch.empty(1, 5))
    assert len(points) == len(set(points)) == 10


def test_memory_does_not_grow_with_the_rows():
    table, like = table_of(steps=40), torch.empty(1, 12345)
    made = BrownianNoise((1,), table)

    def held() -> int:
        gc.collect()
        return sum(type(o) is torch.Tensor and o.shape == like.shape for o in gc.get_objects())

    made(0, like)
    after_one = held()
    for row in range(1, 40):
        made(row, like)
    assert held() == after_one == 2  # `like` and the last point
