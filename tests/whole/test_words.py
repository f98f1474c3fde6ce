"""Words of diffusers and torch mean here what they mean there, and a wrong one names the nearest."""

from __future__ import annotations

import pytest
import torch

import timonel as tm
from timonel import words
from timonel.core import names, prediction
from timonel.core.process import from_config
from timonel.errors import ArgumentError, UnknownName
from timonel.pipelines.load import DTYPES, _one


@pytest.mark.parametrize(("word", "ours"), [
    ("v_prediction", "v"), ("V-Prediction", "v"), ("flow_prediction", "flow"),
    ("epsilon", "epsilon"),
    ("sample", "sample"), ("eps", "epsilon"), ("x0", "sample"), ("reverse_flow", "reverse_flow"),
])  # fmt: skip
def test_a_prediction_by_the_word_of_diffusers_is_the_same_run(word: str, ours: str) -> None:
    noise = torch.randn(2, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    process = tm.Flow() if "flow" in ours else tm.VP.from_schedule()

    def run(kind: str) -> torch.Tensor:
        return tm.sample(
            lambda x, at: x * 0.3, noise, "dpmpp_2m", process=process, steps=4, prediction=kind
        )

    assert torch.equal(run(word), run(ours))
    assert tm.begin(noise, "euler", process=process, steps=2, prediction=word).prediction == ours


@pytest.mark.parametrize("word", ["v_prediction", "v"])
def test_a_scheduler_reads_both_words_alike(word: str) -> None:
    svd = {
        "_class_name": "EulerDiscreteScheduler",
        "timestep_type": "continuous",
        "sigma_max": 700.0,
    }
    svd |= {"prediction_type": word, "beta_schedule": "scaled_linear"}
    assert (from_config(svd).kind, prediction.from_config(svd)) == ("edm", "v")
    flow = {"beta_schedule": "linear", "prediction_type": word.replace("v", "flow")}
    assert (from_config(flow).kind, prediction.from_config(flow)) == ("flow", "flow")
    assert tm.Scheduler(prediction_type=word).prediction == "v"


@pytest.mark.parametrize("word", [
    "fp16", "float16", "torch.float16", "half", "FP16", torch.float16, "bf16", "bfloat16",
    "torch.bfloat16", "fp32",
    "float32", "torch.float32", "float",
])  # fmt: skip
def test_a_dtype_by_any_of_its_names_is_that_dtype(word: object) -> None:
    name = str(word).lower().removeprefix("torch.")
    meant = (
        torch.bfloat16
        if name[0] == "b"
        else torch.float16
        if "16" in name or name == "half"
        else torch.float32
    )
    assert _one(word) == meant
    assert DTYPES[words.dtype(word)] == meant


@pytest.mark.parametrize(("flag", "grid"), [
    ("use_karras_sigmas", "karras"), ("use_exponential_sigmas", "exponential"),
    ("use_beta_sigmas", "beta_sigma"),
    ("use_lu_lambdas", "lam"),
])  # fmt: skip
def test_a_flag_of_diffusers_names_its_grid(flag: str, grid: str) -> None:
    assert names.grid(flag) == grid
    assert names.sampler(f"DPMSolverMultistepScheduler/{flag}").grid == grid


@pytest.mark.parametrize(("call", "near"), [
    (lambda: prediction.check("v_predicton"), "v_prediction"),
    (lambda: prediction.from_config({"prediction_type": "v_predicton", "beta_schedule": "linear"}),
    "v_prediction"),
    (lambda: _one("flaot16"), "float16"),
    (lambda: _one("bfloat"), "bfloat16"),
    (lambda: names.grid("use_karras_sigma"), "use karras sigmas"),
    (lambda: names.sampler("EulerDiscreteSchedular"), "eulerdiscretescheduler"),
])  # fmt: skip
def test_a_wrong_word_names_the_nearest(call, near: str) -> None:
    with pytest.raises(UnknownName, match="did you mean") as caught:
        call()
    assert near in caught.value.nearest


def test_words_are_checked_before_a_run_begins() -> None:
    with pytest.raises(ArgumentError, match="unknown prediction 'noise'"):
        tm.begin(torch.zeros(1, 4), "euler", process=tm.Flow(), steps=2, prediction="noise")
