"""Law: whatever the configuration, either a finite result or a timonel error. Never another
exception.
"""

from __future__ import annotations

import math
import warnings

import torch
from hypothesis import event, given, settings
from hypothesis import strategies as st

import timonel as tm
from timonel.core import grids, prediction, solvers
from timonel.core.process import EDM, VP, Flow
from timonel.core.process import from_config as process_from_config
from timonel.errors import TimonelError

ODD = st.sampled_from(
    [0, -1, 1, 0.5, 1e9, 1e-9, math.nan, math.inf, -math.inf, "x", None, True, (), [1.0]]
)
SMALL = st.one_of(st.floats(0, 2), st.integers(0, 60), ODD)
PROCESSES = st.one_of(
    st.sampled_from([
        VP.from_schedule(), VP.from_schedule("linear", 1e-4, 0.02, 37),
        VP.from_schedule(rescale_zero_snr=True),
        VP.from_schedule("squaredcos_cap_v2", steps_offset=1), EDM(0.002, 700.0),
        EDM(0.01, 80.0, sigma_data=0.5),
        Flow(), Flow(3.0), Flow(0.3), Flow(1.0).with_image_tokens(4096),
    ]),
)  # fmt: skip
NAMES = st.one_of(
    st.sampled_from([*solvers.SOLVERS]), st.sampled_from(["", "euler/", "/karras", "Euler", "dpm"])
)
GRIDS = st.one_of(
    st.none(), st.sampled_from([*grids.GRIDS]), st.sampled_from(["", "karas", "none"])
)
OPTION_NAMES = sorted({o for s in solvers.SOLVERS.values() for o in s.options} | {"banana"})
GRID_OPTION_NAMES = sorted({o for s in grids.GRIDS.values() for o in s.options} | {"banana"})
LEVELS = st.one_of(
    st.none(), st.none(), st.none(),
    st.lists(st.floats(0, 1), max_size=6).map(lambda v: sorted(v, reverse=True)),
    st.lists(st.one_of(st.floats(-1, 900), ODD), max_size=5), ODD,
)  # fmt: skip
GUIDED = tm.cfg(3.0, until=0.5)
DTYPES = st.sampled_from([torch.float64, torch.float32, torch.float16, torch.bfloat16])


def options_of(names: list[str], known: tuple[str, ...]) -> st.SearchStrategy[dict]:
    """Mostly the options that exist, sometimes one that does not."""
    real = st.dictionaries(st.sampled_from(known), SMALL, max_size=2) if known else st.just({})
    return st.one_of(st.just({}), real, st.dictionaries(st.sampled_from(names), SMALL, max_size=2))


@st.composite
def configurations(draw: st.DrawFn) -> dict:
    name = draw(NAMES)
    spec, grid = solvers.SOLVERS.get(name), draw(GRIDS)
    known = grids.GRIDS[grid].options if grid in grids.GRIDS else ()
    sigmas = draw(LEVELS)
    return {
        "process": draw(PROCESSES),
        "name": name,
        "grid": None if sigmas is not None and draw(st.booleans()) else grid,
        "steps": draw(st.one_of(st.none(), st.integers(1, 40), st.integers(1, 40), ODD)),
        "options": draw(options_of(OPTION_NAMES, spec.options if spec else ())),
        "grid_options": draw(options_of(GRID_OPTION_NAMES, known)),
        "sigmas": sigmas,
        "times": draw(st.one_of(st.none(), st.none(), LEVELS)),
        "prediction": draw(st.sampled_from([*prediction.KINDS, "epsilom"])),
        "dtype": draw(DTYPES),
        "seeds": draw(st.one_of(st.just((1, 2)), st.just((1, 2)), st.just((1,)), st.none(), ODD)),
        "guidance": draw(st.one_of(st.none(), st.floats(0, 9),
        st.sampled_from([GUIDED, "x", math.nan]))),
    }  # fmt: skip


def attempt(c: dict) -> torch.Tensor:
    sampler = tm.Sampler(
        c["name"], grid=c["grid"], steps=c["steps"], options=c["options"],
        grid_options=c["grid_options"],
        sigmas=c["sigmas"], times=c["times"],
    )  # fmt: skip
    x = torch.randn(2, 3, generator=torch.Generator().manual_seed(0)).to(c["dtype"])

    def network(x: torch.Tensor, at: object) -> torch.Tensor:
        # a bounded network, as a trained one is; whatever its output is taken to mean
        return torch.tanh(x.float()).to(x.dtype)

    return tm.sample(
        network, x, sampler, process=c["process"], prediction=c["prediction"], seeds=c["seeds"],
        guidance=c["guidance"], unconditional=None if c["guidance"] is None else lambda x,
        at: x * 0,
    )  # fmt: skip


@settings(max_examples=1500)
@given(configurations())
def test_a_configuration_gives_a_finite_result_or_a_timonel_error(c):
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            result = attempt(c)
    except TimonelError as error:
        event(type(error).__name__)
        assert str(error)  # noqa: PT017
        return
    except RuntimeWarning as error:  # of one sample of the two
        assert c["dtype"] == torch.float16
        assert "has NaN or infinity" in str(error)  # noqa: PT017
        return
    event("finite")
    assert result.dtype == c["dtype"]
    # a random network under epsilon divides by alpha; only half precision can overflow on that
    if c["dtype"] != torch.float16:
        assert torch.isfinite(result).all(), c


@settings(max_examples=400)
@given(
    name=st.sampled_from([*solvers.SOLVERS]),
    # cosine betas reach sigma / alpha = 20,000 and do not end at pure noise: a slope method's first
    # step over that
    # range multiplies whatever the network has wrong by it, here and in the peers
    process=PROCESSES.filter(lambda p: not 1e4 < p.sigma_max < math.inf),
    grid=st.sampled_from([*grids.GRIDS]),
    steps=st.integers(1, 40),
    kind=st.sampled_from(["v", "flow", "sample"]),
    dtype=DTYPES,
)
def test_every_sound_configuration_stays_in_range(name, process, grid, steps, kind, dtype):
    """Nothing but a level that a process or grid does not have may be refused."""
    c = {
        "process": process, "name": name, "grid": grid, "steps": steps, "options": {},
        "grid_options": {},
        "sigmas": None, "times": None, "prediction": kind, "dtype": dtype, "seeds": (1, 2),
        "guidance": None,
    }  # fmt: skip
    try:
        result = attempt(c)
    except tm.ArgumentError as error:
        assert any(word in str(error) for word in ("sigma", "steps", "levels", "pure noise")), error  # noqa: PT017
        return
    assert torch.isfinite(result).all()
    assert float(result.abs().max()) < 1e4


@settings(max_examples=150)
@given(
    text=st.one_of(
        st.text(max_size=30), st.recursive(ODD, lambda v: st.lists(v, max_size=3)).map(repr)
    )
)
def test_text_that_is_not_a_table_is_refused(text):
    try:
        tm.Table.from_json(text)
    except TimonelError:
        return
    raise AssertionError(f"{text!r} was taken for a table")


@settings(max_examples=300)
@given(
    scale=st.one_of(st.none(), st.floats(0, 20), ODD, st.lists(st.floats(0, 9), max_size=4)),
    until=st.one_of(st.none(), SMALL),
    between=st.one_of(st.none(), st.tuples(SMALL, SMALL), ODD),
    unit=st.sampled_from(["ratio", "step", "sigma", "percent", None]),
    rescale=SMALL,
)
def test_any_guidance_is_made_or_refused(scale, until, between, unit, rescale):
    table = tm.Sampler("euler", steps=5).compile(VP.from_schedule())
    try:
        scales = tm.cfg(scale, until=until, between=between, unit=unit, rescale=rescale).scales(
            table
        )
    except TimonelError:
        return
    assert len(scales) == table.nfe
    assert all(s is None or math.isfinite(s) for s in scales)


CONFIGS = st.dictionaries(
    st.sampled_from([
        "_class_name", "beta_schedule", "beta_start", "beta_end", "num_train_timesteps",
        "prediction_type",
        "rescale_betas_zero_snr", "sigma_data", "sigma_min", "sigma_max", "shift", "flow_shift",
        "steps_offset",
        "timestep_type", "trained_betas", "use_flow_sigmas", "use_dynamic_shifting", "base_shift",
        "process",
    ]),
    st.one_of(
        ODD, st.floats(0, 1), st.integers(0, 100),
        st.sampled_from(["EDMEulerScheduler", "FlowMatchEulerDiscreteScheduler", "linear",
        "v_prediction", "epsilon",
                         "continuous", "flow", "edm", "vp"]),
    ),
    max_size=6,
)  # fmt: skip


@settings(max_examples=500)
@given(config=CONFIGS)
def test_any_scheduler_config_is_read_or_refused(config):
    try:
        process_from_config(config)
        prediction.from_config(config)
    except TimonelError:
        return
