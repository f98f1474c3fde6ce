"""Predictions: raw <-> denoised, the same conversion as diffusers, and refusals."""

from __future__ import annotations

import diffusers
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from support.models import PROCESSES
from timonel.core import prediction
from timonel.core.process import EDM, VP, Level, double
from timonel.errors import PredictionError, UnknownName

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def noise(seed: int) -> torch.Tensor:
    return torch.randn(
        2, 4, 3, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )


def at(process: object, share: float) -> Level:
    return Level(*(v[0] for v in process.at_index(double([share * (process.train_steps - 1)]))))


@pytest.mark.parametrize("kind", prediction.KINDS)
@pytest.mark.parametrize("process", PROCESSES)
@given(share=st.floats(0.01, 0.98))
def test_raw_and_denoised_convert_both_ways(kind, process, share):
    if kind.startswith("edm") and process == "flow":
        return  # the EDM preconditioning belongs to EDM processes
    level, x, raw = at(PROCESSES[process], share), noise(1), noise(2)
    clean = prediction.denoised(kind, raw, x, level)
    assert torch.allclose(prediction.raw(kind, clean, x, level), raw, atol=1e-7)


@pytest.mark.parametrize("process", PROCESSES)
def test_every_kind_gives_back_the_sample_it_was_made_of(process):
    level, x0, eps = at(PROCESSES[process], 0.6), noise(1), noise(2)
    x = level.alpha * x0 + level.sigma * eps
    outputs = {
        "epsilon": eps,
        "sample": x0,
        "v": level.alpha * eps - level.sigma * x0,
        "flow": eps - x0,
    }
    for kind, raw in outputs.items():
        assert torch.allclose(prediction.denoised(kind, raw, x, level), x0, atol=1e-12), kind


@pytest.mark.parametrize(
    ("kind", "name"), [("epsilon", "epsilon"), ("v", "v_prediction"), ("sample", "sample")]
)
@pytest.mark.parametrize("time", [1, 300, 700, 999])
def test_denoised_equals_ddim_of_diffusers(kind, name, time):
    theirs = diffusers.DDIMScheduler(**SD, prediction_type=name, clip_sample=False)
    theirs.set_timesteps(1000)
    x, raw = noise(1).float(), noise(2).float()
    wanted = theirs.step(raw, time, x).pred_original_sample
    level = Level(*(v[0] for v in VP.from_schedule().at_time(double([time]))))
    assert float((prediction.denoised(kind, raw, x, level) - wanted).abs().max()) < 1e-5 / float(
        level.alpha
    )


@pytest.mark.parametrize("data", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("sigma", [0.01, 0.7, 60.0])
@pytest.mark.parametrize(("kind", "name"), [("edm", "epsilon"), ("edm_v", "v_prediction")])
def test_edm_equals_the_preconditioning_of_diffusers(data, sigma, kind, name):
    theirs = diffusers.EDMEulerScheduler(
        sigma_min=0.002, sigma_max=80.0, sigma_data=data, prediction_type=name
    )
    y, raw = noise(1) * sigma, noise(2)  # y = x0 + sigma·eps, the coordinates of diffusers
    wanted = theirs.precondition_outputs(y, raw, torch.tensor(sigma, dtype=torch.float64))
    level = Level(*(v[0] for v in EDM(0.002, 80.0, sigma_data=data).at_sigma(double([sigma]))))
    ours = prediction.denoised(kind, raw, y * level.alpha, level)
    assert torch.allclose(ours, wanted, atol=1e-9)
    if data == 1:
        assert (kind == "edm_v") == torch.allclose(
            prediction.denoised("v", raw, y * level.alpha, level), ours
        )


def test_epsilon_at_pure_noise_is_refused_with_the_remedy():
    level = VP.from_schedule(rescale_zero_snr=True).at_time(double([999.0]))
    with pytest.raises(PredictionError, match=r"pure noise.*v, flow or sample.*leading"):
        prediction.coefficients("epsilon", level)
    for kind in ("v", "flow", "sample"):
        assert all(torch.isfinite(c).all() for c in prediction.coefficients(kind, level))


def test_an_output_that_does_not_depend_on_the_sample_is_refused():
    level = Level(*(v[0] for v in VP.from_schedule().clean()))
    with pytest.raises(PredictionError, match="sigma = 0"):
        prediction.raw("epsilon", noise(1), noise(2), level)


def test_an_edm_prediction_beyond_unit_variance_is_refused():
    level = Level(*(torch.tensor(v, dtype=torch.float64) for v in (1.0, 5.0, 0.4)))
    with pytest.raises(PredictionError, match="unit variance"):
        prediction.coefficients("edm", level)


def test_unknown_kinds_list_the_nearest():
    with pytest.raises(UnknownName, match="did you mean 'sample'"):
        prediction.check("samples")


@pytest.mark.parametrize(
    ("config", "kind"),
    [
        ({}, "epsilon"),
        ({"prediction_type": "v_prediction"}, "v"),
        ({"_class_name": "EDMEulerScheduler", "prediction_type": "epsilon"}, "edm"),
        (
            {
                "_class_name": "EDMEulerScheduler",
                "prediction_type": "v_prediction",
                "sigma_data": 1.0,
            },
            "v",
        ),
        ({"_class_name": "FlowMatchHeunDiscreteScheduler"}, "flow"),
        ({"prediction_type": "flow_prediction"}, "flow"),
    ],
)
def test_configs_are_read(config, kind):
    assert prediction.from_config(config) == kind


@pytest.mark.parametrize("data", [None, 0.5, 2.0])
def test_edm_velocity_at_another_data_scale_is_a_prediction_of_its_own(data):
    config = {
        "_class_name": "EDMEulerScheduler",
        "prediction_type": "v_prediction",
        "sigma_data": data,
    }
    assert prediction.from_config(config) == "edm_v"
