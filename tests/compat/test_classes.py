"""diffusers' classes as rows: the helm, compat and the reader of configs agree on them."""

from __future__ import annotations

import inspect
import json
import warnings
from typing import Any

import diffusers
import pytest

import timonel as tm
import timonel.compat as compat
from support.compat_runs import INVERSE
from support.places import TESTS
from timonel.compat.schedulers import CLASSES as SHELLS
from timonel.core import prediction
from timonel.core.process import config as configs
from timonel.core.process import from_config
from timonel.pipelines import choice
from timonel.pipelines.classes.config import carried_over, level_flags, meaning
from timonel.pipelines.classes.levels import make
from timonel.pipelines.classes.rows import CLASSES
from timonel.pipelines.classes.rule import LevelRequest

PUBLISHED = json.loads((TESTS / "support" / "published.json").read_text("utf-8"))
CONFIGS = {name: one["scheduler"] for name, one in PUBLISHED.items() if "scheduler" in one}
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def theirs(name: str, **flags: Any) -> Any:
    """A scheduler of diffusers."""
    cls = getattr(diffusers, name)
    known = inspect.signature(cls).parameters
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of numpy, inside diffusers
        betas = {} if name == "UnCLIPScheduler" else BETAS  # which has its own
        return cls(**{key: value for key, value in {**betas, **flags}.items() if key in known})


def test_every_row_is_a_class_of_compat_and_every_class_a_row() -> None:
    assert set(CLASSES) == set(SHELLS)
    assert set(compat.__all__) >= set(CLASSES)
    for name, row in CLASSES.items():
        assert SHELLS[name].row is row
        theirs = inspect.signature(getattr(diffusers, name)).parameters.values()
        assert list(row.defaults) == [p.name for p in theirs if p.kind is not p.VAR_KEYWORD]


@pytest.mark.parametrize("name", [name for name in CLASSES if name not in INVERSE])
def test_the_helm_reads_a_class_of_diffusers_as_the_class_of_compat_does(name: str) -> None:
    scheduler = theirs(name)
    ours = getattr(compat, name).from_config(scheduler.config)
    for one in (scheduler, ours):
        sampler = choice.of_scheduler(one)
        assert sampler.name == ours.sampler.name
        assert sampler.options.items() <= ours.sampler.options.items()


@pytest.mark.parametrize("name", CLASSES)
def test_the_levels_of_a_row_are_those_of_the_class(name: str) -> None:
    scheduler = getattr(compat, name).from_config(theirs(name).config)
    scheduler.set_timesteps(7)
    keys = carried_over(name, scheduler.config)
    process = meaning(keys).process
    flags = level_flags(name, process, keys.config)
    grid = make(CLASSES[name].levels, process, flags, LevelRequest(7)).grid
    assert grid.time.tolist() == scheduler.run.table.time[list(_firsts(scheduler))].tolist()


def _firsts(scheduler: Any) -> list[int]:
    """The rows where steps begin, and the end."""
    step = scheduler.run.table.step
    return [row for row, k in enumerate(step) if row == step.index(k)] + [len(step)]


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_is_read_by_one_rule(name: str) -> None:
    process, predicts = configs.read(CONFIGS[name])
    alone = from_config(CONFIGS[name])
    assert (process.kind, process.sigma_min) == (alone.kind, alone.sigma_min)
    assert predicts == prediction.from_config(CONFIGS[name])
    scheduler = tm.Scheduler.from_config(CONFIGS[name])
    assert (scheduler.process.kind, scheduler.prediction) == (process.kind, predicts)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_model_is_the_same_in_every_class_that_is_for_it(name: str) -> None:
    process, predicts = configs.read(CONFIGS[name])
    for cls in SHELLS.values():
        if cls.row.fits(process):
            scheduler = cls.from_config(CONFIGS[name])
            assert (scheduler.process.kind, scheduler.prediction) == (process.kind, predicts)


def test_a_key_of_flows_says_nothing_of_another_process() -> None:
    """What diffusers' Euler does with the config: betas, and an epsilon prediction."""
    config = {"_class_name": "EulerDiscreteScheduler", **BETAS, "invert_sigmas": True}
    process, predicts = configs.read(config)
    assert (process.kind, predicts) == ("vp", "epsilon")
    flow = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0, "invert_sigmas": True}
    assert configs.read(flow).prediction == "reverse_flow"
