"""The judge of emoji pictures, the Frechet distance, and what the benchmark of fitted samplers
makes of them.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import scipy.linalg
import torch
from torch import Tensor

import emoji_judge as judge
import timonel as tm
import tune as bench
import tune_models
import tune_pictures as shown
import tune_problem as kit
from support.places import DOCS
from timonel import zoo
from timonel.comparison.measure import psnr
from timonel.errors import ArgumentError, UnknownName
from timonel.tuning import Plain


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def points(mean: Tensor, root: Tensor) -> Tensor:
    """2d points of exactly this mean and unbiased covariance, root root^T."""
    d = len(mean)
    arms = math.sqrt((2 * d - 1) / 2) * root.T
    return torch.cat([mean + arms, mean - arms])


# -- the distance --------------------------------------------------------------------------------
@pytest.mark.parametrize("shape", [(40, 6), (9, 60)])
def test_the_distance_of_a_set_to_itself_in_any_order_is_zero(shape):
    a = drawn(*shape)
    assert judge.frechet(a, a) == pytest.approx(0, abs=1e-9)
    assert judge.frechet(a, a.flip(0)) == pytest.approx(0, abs=1e-9)
    assert judge.frechet(a, 1.1 * a) > 1e-3


@pytest.mark.parametrize("rank", [5, 2, 0])
def test_the_distance_is_that_of_the_gaussians_whose_statistics_the_sets_have(rank):
    mean_a, mean_b, root_a, root_b = (
        drawn(5),
        drawn(5, seed=1),
        drawn(5, 5, seed=2),
        drawn(5, 5, seed=3),
    )
    root_b[:, rank:] = 0
    cov_a, cov_b = root_a @ root_a.T, root_b @ root_b.T
    middle = scipy.linalg.sqrtm(cov_a.numpy())
    shared = scipy.linalg.eigvalsh(middle @ cov_b.numpy() @ middle).clip(min=0) ** 0.5
    expected = float(
        (mean_a - mean_b).square().sum() + cov_a.trace() + cov_b.trace() - 2 * shared.sum()
    )
    a, b = points(mean_a, root_a), points(mean_b, root_b)
    torch.testing.assert_close(torch.cov(b.T), cov_b)
    assert judge.frechet(a, b) == pytest.approx(expected, rel=1e-6)
    assert judge.frechet(b, a) == pytest.approx(judge.frechet(a, b), rel=1e-9)


def test_a_shift_adds_its_square_and_has_no_error():
    a, shift = drawn(12, 30), drawn(30, seed=1)
    assert judge.frechet(a, a + shift) == pytest.approx(float(shift.square().sum()), rel=1e-9)
    assert judge.frechet_error(a, a + shift) == pytest.approx(0, abs=1e-6)


def test_the_jackknife_is_the_spread_over_fresh_sets():
    def made(seed: int) -> tuple[Tensor, Tensor]:
        return drawn(60, 3, seed=2 * seed), 1 + 2 * drawn(60, 3, seed=2 * seed + 1)

    found = torch.tensor([judge.frechet(*made(seed)) for seed in range(40)])
    told = torch.tensor([judge.frechet_error(*made(seed)) for seed in range(4)])
    assert float(told.mean()) == pytest.approx(float(found.std()), rel=0.5)


def test_sets_that_cannot_be_compared_are_refused():
    for a, b in ((drawn(4, 3), drawn(4, 2)), (drawn(1, 3), drawn(4, 3)), (drawn(4), drawn(4))):
        with pytest.raises(ArgumentError, match="two or more rows of one width"):
            judge.frechet(a, b)
    with pytest.raises(ArgumentError, match="three or more pairs, got 4 and 5 rows"):
        judge.frechet_error(drawn(4, 3), drawn(5, 3))


# -- the judge -----------------------------------------------------------------------------------
def test_the_judge_knows_the_models_concepts_and_its_answer_is_a_distribution():
    pictures = drawn(3, 3, 64, 64).float().sigmoid()
    sure = judge.probabilities(pictures)
    assert judge.load()[1] == tuple(zoo.card("emoji").concepts)
    assert sure.shape == (3, len(zoo.card("emoji").concepts))
    torch.testing.assert_close(sure.sum(1), torch.ones(3))
    assert judge.features(pictures).shape == (3, 1024)
    torch.testing.assert_close(judge.probabilities(pictures[1:2]), sure[1:2])


def test_top1_is_the_share_that_is_called_by_its_name():
    pictures, known = drawn(4, 3, 64, 64).float().sigmoid(), judge.load()[1]
    said = [known[i] for i in judge.probabilities(pictures).argmax(1).tolist()]
    share, doubt = judge.top1(pictures, said)
    assert share == 1
    assert 0 < doubt < 1 / 4
    other = next(name for name in known if name not in said)
    assert judge.top1(pictures, [*said[:3], other])[0] == 0.75
    with pytest.raises(UnknownName, match=r"red aple.*red apple"):
        judge.top1(pictures, [*said[:3], "red aple"])
    with pytest.raises(ArgumentError, match="got 4 pictures and 3 names"):
        judge.top1(pictures, said[:3])
    with pytest.raises(ArgumentError, match=r"got \(4, 3, 32, 32\)"):
        judge.features(pictures[..., :32, :32])


@pytest.mark.slow
def test_the_judge_names_what_emoji_paints():
    helm = tm.Helm("emoji")
    names = list(zoo.card("emoji").concepts)[::40]
    painted = helm(
        names,
        sampler="dpmpp_2m/karras",
        steps=20,
        guidance=4.0,
        seeds=range(len(names)),
        output_type="pt",
    ).images
    assert len(names) == 8
    assert judge.top1(painted, names)[0] >= 6 / 8
    assert judge.top1(painted, names[1:] + names[:1])[0] <= 2 / 8


# -- the benchmark -------------------------------------------------------------------------------
def test_every_table_of_the_benchmark_has_its_place_on_the_page():
    page = (DOCS / "tune.md").read_text("utf-8")
    for name in bench.parts(bench.Size()):
        assert page.count(f"<!-- {name} -->\n") == page.count(f"\n<!-- /{name} -->") == 1, name


def test_frame_consistency_is_told_of_clips_beside_the_converged_and_not_of_pictures():
    clips = drawn(8, 3, 3, 4, 4).sigmoid()
    found = kit.steady(clips)
    assert kit.steady(clips[:, 0]) is None
    assert found.tolist() == pytest.approx([psnr(clip[1:], clip[:-1]) for clip in clips])
    model = Plain(
        lambda x, at: 0.5 * clips[0] + 0.1 * x, drawn(8, 3, 3, 4, 4, seed=1), tm.VP.from_schedule()
    )
    targets = kit.Targets(tuple(range(8)), clips, torch.zeros(8), 0)
    problem = kit.Problem(
        "clips", model, targets, {5: tm.Sampler("dpmpp_2m/lam", steps=5)}, "", decode=lambda x: x
    )
    same = problem.shown(problem.cell(clips))
    assert problem.steadiness(same) == f"{float(found.mean()):.2f} (+0.00 ±0.00)"
    calmer = problem.shown(problem.cell(clips.lerp(clips.mean(1, keepdim=True), 0.5)))
    assert (calmer.steady - found).tolist() == pytest.approx([20 * math.log10(2)] * 8)
    told = bench.section(problem, bench.Size((5,), 8))
    assert f" {problem.steadiness(problem.tuned(5))} |" in told
    assert "frame consistency, the best above" in told
    problem.__dict__["steady"] = None
    assert "frame consistency" not in bench.section(problem, bench.Size((5,), 8)).lower()


def test_the_table_of_pictures_has_a_cell_for_every_run_and_more_steps_are_nearer_than_other_noise(
    monkeypatch,
):
    names = list(zoo.card("emoji").concepts)[:8]

    def gaussian(x: Tensor, at: Any) -> Tensor:
        return at.alpha * 0.25 / (at.alpha**2 * 0.25 + at.sigma**2) * x

    def network(helm: None, given: dict[str, list[str]], seeds: list[int]) -> Plain:
        return Plain(gaussian, drawn(8, 3, 64, 64, seed=seeds[0]).float(), tm.VP.from_schedule())

    fakes = {
        "still": lambda name: None, "tables": lambda name,
        steps: {5: tm.Sampler("dpmpp_2m/lam", steps=5)},
        "unseen": lambda helm, fitted, count: ({"prompt": names}, list(range(count)), ""),
        "network": network, "decoded": lambda helm, latents: latents.sigmoid(),
    }  # fmt: skip
    for name, fake in fakes.items():
        monkeypatch.setattr(shown, name, fake)
    text = shown.pictures(tune_models.Size((5,), pictures=8))
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in text.splitlines()
        if line.startswith("|")
    ]
    cells = {row[0]: row[1:] for row in rows}
    assert cells["emoji, steps"] == ["5", "12", "25"]
    assert cells["**fitted**"][1:] == cells["UniPC karras"][1:] == ["–", "–"]
    assert "–" not in (cells["**fitted**"][0], *cells["DPM++ 2M karras"])
    near = float(cells["DPM++ 2M karras"][2].split(", ")[1].split()[0])
    far = float(text.rsplit(", ", 1)[1].split()[0])
    assert near < far
