"""Law: a sample's noise depends on its own seed and the row, and on nothing else."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import timonel as tm
from timonel.errors import ArgumentError
from timonel.noise import START, SeededNoise, initial, key

SHAPE = (4, 6, 6)


@given(seeds=st.lists(st.integers(-(2**70), 2**70), min_size=1, max_size=5), row=st.integers(-1, 400))
def test_noise_does_not_depend_on_the_batch_or_its_order(seeds, row):
    together = SeededNoise(tuple(seeds))(row, torch.empty(len(seeds), *SHAPE))
    for i, seed in enumerate(seeds):
        assert torch.equal(SeededNoise((seed,))(row, torch.empty(1, *SHAPE))[0], together[i])
    back = SeededNoise(tuple(reversed(seeds)))(row, torch.empty(len(seeds), *SHAPE))
    assert torch.equal(back.flip(0), together)


def test_noise_is_the_same_at_every_precision_up_to_rounding():
    source, like = SeededNoise((5,)), torch.empty(1, *SHAPE)
    drawn = source(3, like)
    assert torch.equal(source(3, like.double()), drawn.double())
    assert torch.equal(source(3, like.half()), drawn.half())


def test_noise_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    SeededNoise((1, 2))(0, torch.empty(2, *SHAPE))
    assert torch.equal(before, torch.get_rng_state())


def test_seeds_and_rows_are_unrelated_and_unit_normal():
    """Correlations over 4096 values stay within five standard errors; so do mean and variance."""
    n = 4096
    drawn = [SeededNoise((seed,))(row, torch.empty(1, n))[0] for seed in range(8) for row in range(START, 7)]
    values = torch.stack(drawn).double()
    correlation = torch.from_numpy(np.corrcoef(values.numpy())) - torch.eye(len(drawn), dtype=torch.float64)
    assert float(correlation.abs().max()) < 5 / n**0.5
    assert float(values.mean(1).abs().max()) < 5 / n**0.5
    assert float((values.var(1) - 1).abs().max()) < 5 * (2 / n) ** 0.5
    assert float(values.mean().abs()) < 5 / values.numel() ** 0.5


@given(st.integers(-(2**80), 2**80), st.integers(-1, 1000))
def test_keys_are_seeds_a_generator_accepts(seed, row):
    assert 0 <= key(seed, row) < 2**63


def test_keys_do_not_collide():
    keys = {key(seed, row) for seed in range(-50, 200) for row in range(-1, 60)}
    assert len(keys) == 250 * 61
    assert key(1, 0) != key(0, 1)
    assert key(2**64 + 3, 0) != key(3, 0)


def test_the_start_is_its_own_draw():
    assert torch.equal(initial([7, 8], SHAPE), SeededNoise((7, 8))(START, torch.empty(2, *SHAPE)))
    assert initial([7], SHAPE, torch.float64).dtype == torch.float64
    assert not torch.equal(initial([7], SHAPE), SeededNoise((7,))(0, torch.empty(1, *SHAPE)))


@pytest.mark.parametrize("bad", [(), (1.5,), ("1",), (True,), (None,)])
def test_what_cannot_be_seeds_is_refused(bad):
    with pytest.raises(ArgumentError, match="seeds must be whole numbers"):
        SeededNoise(bad)


def test_a_count_of_seeds_that_is_not_the_batch_is_refused_before_any_compute():
    def never(x, level):
        raise AssertionError("the network was called")

    with pytest.raises(ArgumentError, match=r"2 seeds for a batch of 3.*range\(3\)"):
        tm.sample(never, torch.ones(3, 4), "ddpm", process=tm.VP.from_schedule(), seeds=[1, 2])
    with pytest.raises(ArgumentError, match="give seeds= or noise="):
        tm.sample(never, torch.ones(1, 4), "ddpm", process=tm.VP.from_schedule(), seeds=[1], noise=lambda r, x: x)
    with pytest.raises(ArgumentError, match="seeds"):
        tm.sample(never, torch.ones(1, 4), "ddpm", process=tm.VP.from_schedule())
