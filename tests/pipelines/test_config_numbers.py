"""Law: a number of a scheduler's config is of its kind and in its range, or it is refused with what
to do instead.

The same wherever it is said: as an argument, in a config, or written into a scheduler's config
later.
"""

from __future__ import annotations

import inspect
import math
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

import timonel as tm
from support.compat_runs import ALONE, Stepped, counted, turns
from support.published_schedulers import CONFIGS, folders
from timonel.compat.schedulers import CLASSES
from timonel.core import process as processes
from timonel.core.process.keys import RANGES
from timonel.errors import ArgumentError
from timonel.pipelines.sockets.configured import unlike

SD = {
    "_class_name": "DDIMScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
}
ANY: dict[str, type] = {"Scheduler": tm.Scheduler, **CLASSES}
DEFAULTS: dict[str, dict[str, Any]] = {
    "Scheduler": tm.Scheduler._defaults(),
    **{name: dict(cls.defaults) for name, cls in CLASSES.items()},
}
ORDERS = {
    "solver_order": 9,
    "predictor_order": 9,
    "corrector_order": 9,
}  # which formulas there are, says the class


def base(name: str) -> dict[str, Any]:
    """A config that fits the class."""
    if name.startswith(("FlowMatch", "FlowMap")):
        return {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}
    if name in ALONE and name != "UnCLIPScheduler" and not name.startswith("CogVideoX"):
        return {"_class_name": name}
    return {"_class_name": "EDMEulerScheduler", "sigma_data": 0.5} if name.startswith("EDM") else SD


def outside(key: str) -> list[Any]:
    """What is no number for a key, and numbers that are out of its range."""
    one = RANGES[key]
    made: list[Any] = ["2/3", "", 1j, {}, [1.0], True, math.nan, torch.ones(2)]
    made += [one.low - 1] if one.low > -math.inf else []
    made += [one.low] if one.above else []
    made += [2 * one.high + 1] if one.high < math.inf else []
    made += [1.5] if one.whole else []
    return made if one.infinite else [*made, math.inf, 10**400]


@pytest.mark.parametrize("key", RANGES)
def test_a_number_out_of_its_range_is_refused_wherever_it_is_said(key: str) -> None:
    for name in [name for name, defaults in DEFAULTS.items() if key in defaults]:
        for value in outside(key):
            later = ANY[name].from_config(base(name))  # type: ignore[attr-defined]
            before = later.config.get(key)
            later.config.__dict__[key] = value

            def written(later: Any = later) -> None:
                later.set_timesteps(4)

            for say in (
                lambda name=name, value=value: ANY[name](**{key: value}),
                lambda name=name, value=value: ANY[name].from_config({**base(name), key: value}),  # type: ignore[attr-defined]
                lambda name=name, value=value: ANY[name].from_config(base(name), **{key: value}),  # type: ignore[attr-defined]
                written,
            ):
                # True is 1, which changes nothing
                changes = unlike(value, DEFAULTS[name][key]) and unlike(value, before)
                if say is not written or changes:
                    with pytest.raises(ArgumentError, match=key):
                        say()


def test_the_refusal_says_the_range_the_value_and_the_default() -> None:
    for key, value, said in (
        (
            "dynamic_thresholding_ratio",
            24,
            "of at least 0 and at most 1, got 24; leave it out for 0.995",
        ),
        ("clip_sample_range", -1.0, "must be a number above 0, got -1.0; leave it out for 1.0"),
        (
            "num_train_timesteps",
            2.5,
            "of at least 1 and at most 1000000, got 2.5; leave it out for 1000",
        ),
    ):
        with pytest.raises(ArgumentError, match=said):
            CLASSES["DDIMScheduler"](**{key: value})


def test_diffusers_goes_on_with_such_numbers_and_makes_no_picture() -> None:
    for name, given, ends in (
        ("DDIMScheduler", {"beta_end": 2.0}, lambda x: bool(x.isnan().all())),
        ("DDIMScheduler", {"clip_sample_range": -1.0}, lambda x: bool((x == -1).all())),
        ("FlowMatchEulerDiscreteScheduler", {"shift": -3.0}, lambda x: float(x.std()) > 100),
    ):
        theirs = getattr(diffusers, name)(**given)
        theirs.set_timesteps(5)
        x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
        for t in theirs.timesteps:
            x = theirs.step(torch.tanh(x), t, x).prev_sample
        assert ends(x), (name, given)
        with pytest.raises(ArgumentError, match=next(iter(given))):
            CLASSES[name](**given)
    for name, given, error in (
        ("EDMEulerScheduler", {"rho": 0.0}, ZeroDivisionError),
        ("DDPMScheduler", {"thresholding": True, "dynamic_thresholding_ratio": 1.5}, RuntimeError),
    ):
        with pytest.raises(error):
            walked(getattr(diffusers, name)(**given))


def test_every_number_of_a_class_has_a_range_and_diffusers_defaults_lie_in_them() -> None:
    for name, defaults in DEFAULTS.items():
        numbers = {
            k
            for k, v in defaults.items()
            if isinstance(v, (int, float)) and not isinstance(v, bool)
        }
        assert numbers <= RANGES.keys() | ORDERS.keys(), name
    theirs = [getattr(diffusers, name) for name in CLASSES]
    for cls in theirs:
        for key, parameter in inspect.signature(cls.__init__).parameters.items():
            if key in RANGES and parameter.default is not None:
                assert RANGES[key].read(parameter.default) == parameter.default, (cls, key)
    published = [flags for _, flags in CONFIGS.values()] + list(folders().values())
    for flags in published:
        for key in flags.keys() & RANGES.keys():
            assert flags[key] is None or RANGES[key].read(flags[key]) == flags[key], (
                key,
                flags[key],
            )


@pytest.mark.parametrize("key", ORDERS)
def test_an_order_that_has_no_formula_is_refused(key: str) -> None:
    for name in [name for name, cls in CLASSES.items() if key in cls.defaults]:
        for value in (ORDERS[key], -1, 1.5, "x", math.nan):
            with pytest.raises(ArgumentError, match=key):
                CLASSES[name].from_config({**base(name), key: value}).set_timesteps(40)


def test_zero_is_not_what_is_left_out() -> None:
    flow = {"_class_name": "FlowMatchEulerDiscreteScheduler", "use_dynamic_shifting": True}
    for low, top in (
        (0.0, 1.15),
        (0.5, 0.0),
    ):  # mu of a picture of 4096 tokens is max_shift, of 256 base_shift
        process: Any = processes.from_config({**flow, "base_shift": low, "max_shift": top})
        assert math.log(process.with_image_tokens(4096).shift) == pytest.approx(top)
        assert math.log(process.with_image_tokens(256).shift) == pytest.approx(low)
    edm = {"_class_name": "EDMEulerScheduler"}
    for config, key in (
        (flow, "shift"),
        (edm, "sigma_min"),
        (edm, "sigma_max"),
        (edm, "sigma_data"),
    ):
        with pytest.raises(ArgumentError, match=f"{key} must be .* above 0"):
            processes.from_config({**config, key: 0})


def walked(scheduler: Any) -> Tensor:
    counted(scheduler, 3)
    step = Stepped(scheduler)
    x, drawn = (
        torch.ones(1, 1, 2, 2) * float(scheduler.init_noise_sigma),
        torch.Generator().manual_seed(0),
    )
    torch.manual_seed(0)
    for t in turns(scheduler):
        x = step(torch.tanh(scheduler.scale_model_input(x, t)), t, x, generator=drawn)
    return x


@pytest.mark.parametrize("name", ANY)
def test_nan_in_a_key_of_another_class_is_carried_and_changes_nothing(name: str) -> None:
    cls: Any = ANY[name]
    right = walked(cls.from_config(base(name)))
    assert torch.equal(walked(cls.from_config({**base(name), "of_another": math.nan})), right)
    held = torch.full((2,), math.nan)  # arrays have no truth
    assert torch.equal(walked(cls.from_config({**base(name), "of_another": held})), right)
    later = cls.from_config(base(name))
    if name != "Scheduler":  # which refuses keys that it does not have
        later.register_to_config(of_another=math.nan)
    assert torch.equal(walked(later), right)


@pytest.mark.parametrize("name", CLASSES)
def test_a_scheduler_that_is_not_made_yet_has_no_members_and_says_so(name: str) -> None:
    bare = CLASSES[name].__new__(CLASSES[name])
    for word in (
        "config",
        "_internal_dict",
        "defaults_",
        "sample",
        "betas",
        "use_karras_sigmas",
        "session",
        "x",
    ):
        try:
            getattr(bare, word)
        except (AttributeError, KeyError, TypeError, tm.TimonelError):
            continue
