"""Law: a sample's noise depends on its own seed and the row, and on nothing else."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import timonel as tm
from support.models import Gaussian, drive, network
from timonel.core.noise import START, BrownianNoise, SeededNoise, initial, key, source
from timonel.core.run import Run
from timonel.errors import ArgumentError, UnknownName

SHAPE = (4, 6, 6)
VP = tm.VP.from_schedule()
TABLES = {name: tm.Sampler(name, steps=12).compile(VP) for name in ("ddpm", "euler")}
BROWNIAN = tm.Sampler("ddpm", steps=6, noise="brownian")


@given(seeds=st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=5), row=st.integers(-1, 400))
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
    drawn = [
        SeededNoise((seed,))(row, torch.empty(1, n))[0]
        for seed in range(8)
        for row in range(START, 7)
    ]
    values = torch.stack(drawn).double()
    correlation = torch.from_numpy(np.corrcoef(values.numpy())) - torch.eye(
        len(drawn), dtype=torch.float64
    )
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
        tm.sample(
            never,
            torch.ones(1, 4),
            "ddpm",
            process=tm.VP.from_schedule(),
            seeds=[1],
            noise=lambda r, x: x,
        )
    with pytest.raises(ArgumentError, match="seeds"):
        tm.sample(never, torch.ones(1, 4), "ddpm", process=tm.VP.from_schedule())


# -- asking for it -------------------------------------------------------------------------------
def test_the_sampler_keeps_its_noise_and_the_loop_uses_it():
    chosen = tm.Sampler("ddpm", steps=6, noise="brownian")
    assert (
        chosen.on(VP).noise
        == replace(chosen, steps=9).noise
        == tm.Sampler.of(chosen, 4).noise
        == "brownian"
    )
    x = torch.randn(2, 3)
    run = tm.begin(x, chosen, process=VP, seeds=[1, 2])
    assert isinstance(run.noise, BrownianNoise)
    assert isinstance(tm.begin(x, "ddpm", process=VP, steps=6, seeds=[1, 2]).noise, SeededNoise)
    made = tm.sample(Gaussian(), x, chosen, process=VP, seeds=[1, 2])
    assert torch.equal(
        made, drive(run.table, Gaussian(), x, noise=BrownianNoise((1, 2), run.table))
    )
    assert not torch.equal(
        made, tm.sample(Gaussian(), x, "ddpm", process=VP, steps=6, seeds=[1, 2])
    )


@pytest.mark.parametrize(
    ("call", "error", "said"),
    [
        (lambda x: tm.Sampler("ddpm", noise="brownain"), UnknownName, "did you mean 'brownian'"),
        (lambda x: tm.Sampler("dpmpp_2m", noise="brownian").compile(VP), ArgumentError,
        "'dpmpp_2m' draws no noise"),
        (lambda x: tm.begin(x, replace(BROWNIAN, name="euler"), process=VP, seeds=[1]),
        ArgumentError, "no noise"),
        (lambda x: tm.begin(x, BROWNIAN, process=VP), ArgumentError, "give seeds"),
        (lambda x: tm.begin(x, BROWNIAN, process=VP, seeds=[1, 2]), ArgumentError, "2 seeds"),
        (
            lambda x: tm.begin(x, BROWNIAN, process=VP, noise=lambda row, x: x),
            ArgumentError, "not both",
        ),
        (lambda x: BrownianNoise((1,), TABLES["euler"]), ArgumentError, "'euler' draws no noise"),
        (lambda x: BrownianNoise((1,), TABLES["ddpm"])(99, x), ArgumentError,
        "row 99 of this table draws no noise"),
        (lambda x: BrownianNoise((1.5,), TABLES["ddpm"]), ArgumentError,
        "seeds must be whole numbers"),
        (lambda x: source("white", [1], TABLES["ddpm"]), UnknownName,
        "known: brownian, independent"),
        (lambda x: SeededNoise((1,), device="cuda"), ArgumentError, "'cpu' or 'sample'.*'cuda'"),
    ],
)  # fmt: skip
def test_what_cannot_be_drawn_is_refused_before_any_compute(call, error, said):
    with pytest.raises(error, match=said):
        call(torch.ones(1, 4))


# -- through pipelines and recipes ---------------------------------------------------------------
def scheduler_of(sampler: str, noise: str = "brownian") -> tm.Scheduler:
    config = {
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "_class_name": "DDIMScheduler",
    }
    return tm.Scheduler.from_config(config, sampler=sampler, sampler_noise=noise)


def test_a_scheduler_draws_it_from_the_generators_and_keeps_it_when_saved(tmp_path):
    scheduler_of("ddpm/karras").save_pretrained(tmp_path)
    scheduler = tm.Scheduler.from_pretrained(tmp_path)
    assert scheduler.sampler.noise == "brownian"
    scheduler.set_timesteps(5)
    table, x = scheduler.run.table, torch.randn(2, 4, 6, 6)
    seeds, net = (5, 6), network()
    drawn = [
        int(torch.randint(2**62, (1,), generator=torch.Generator().manual_seed(seed)))
        for seed in seeds
    ]
    noise = BrownianNoise(tuple(drawn), table)
    expected = Run(table, "epsilon", noise=noise)
    expected.start(x)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    sample = x
    for t in scheduler.timesteps:
        sample = scheduler.step(
            net(sample, float(t)), t, sample, generator=generators, return_dict=False
        )[0]
    for _ in expected.rows():
        expected.advance(net(expected.latents, float(scheduler.timesteps[expected.row])))
    assert torch.equal(sample, expected.result)


def test_a_scheduler_refuses_it_where_nothing_is_drawn_but_not_for_a_cut():
    with pytest.raises(ArgumentError, match="draws no noise"):
        scheduler_of("dpmpp_2m").set_timesteps(5)
    scheduler = scheduler_of("ddpm/karras")
    scheduler.set_timesteps(5)
    last = scheduler.timesteps[
        4:
    ]  # the step to the clean level, which image-to-image may be left with
    for t in last:
        scheduler.step(torch.zeros(1, 4), t, torch.ones(1, 4))
    assert not scheduler.run.table.stochastic


def test_a_helm_draws_it_from_its_seeds():
    from support.tiny import sdxl

    helm = tm.Helm(sdxl())
    words = {"prompt_embeds": torch.zeros(1, 5, 16), "pooled_prompt_embeds": torch.zeros(1, 8)}
    words |= {f"negative_{name}": value for name, value in words.items()}
    chosen = tm.Sampler("ddpm", steps=3, noise="brownian")

    def latents(sampler: tm.Sampler) -> torch.Tensor:
        return helm(sampler=sampler, seeds=[4], output_type="latent", **words).images

    made = latents(chosen)
    assert helm.run is not None
    assert isinstance(helm.run.noise, BrownianNoise)
    assert helm.run.noise.seeds == (4,)
    assert torch.equal(latents(chosen), made)
    assert not torch.equal(latents(replace(chosen, noise="independent")), made)
    with pytest.raises(ArgumentError, match="draws no noise"):
        latents(tm.Sampler("euler", steps=3, noise="brownian"))


def test_a_recipe_carries_it_and_one_from_before_is_independent():
    plain = {"model": "emoji", "prompt": "x", "seed": 1, "sampler": "ddpm", "steps": 3}
    assert tm.Recipe(**plain).chosen().noise == "independent"
    kept = tm.Recipe.model_validate_json(
        tm.Recipe(**plain, noise="brownian").model_dump_json(exclude_none=True)
    )
    assert kept.chosen().noise == "brownian"


def test_the_command_line_writes_it_into_the_picture(tmp_path):
    from typer.testing import CliRunner

    from timonel.cli import app

    given = [
        "generate",
        "red apple",
        "--steps",
        "2",
        "--sampler",
        "ddpm",
        "--noise",
        "brownian",
        "--out",
        str(tmp_path),
    ]
    assert CliRunner().invoke(app, given).exit_code == 0
    assert tm.Recipe.read(tmp_path / "red-apple-0.png").noise == "brownian"
    for wrong, said in (
        (["--sampler", "dpmpp_2m"], "draws no noise"),
        (["--noise", "white"], "unknown noise source"),
    ):
        assert said in str(CliRunner().invoke(app, [*given, *wrong]).exception)
