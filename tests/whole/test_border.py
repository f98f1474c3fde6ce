"""The border: a number of numpy or torch is a number, and whatever cannot be used is refused by
timonel, first.
"""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import timonel as tm
from support import border
from support.border import FEW, ODD, Reached, Target
from timonel.errors import finite, whole

X = torch.ones(1, 4, 8, 8)
VP = tm.VP.from_schedule()
SOME = ("native", "schedulers", "classes")


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def every(group: str) -> list[Target]:
    return list(getattr(border, group)())


@pytest.mark.parametrize(
    "one", [t for group in SOME for t in every(group)], ids=lambda one: one.name
)
def test_an_odd_value_is_refused_by_timonel_or_right(one: Target) -> None:
    assert not border.wrong(one, FEW)


@pytest.mark.slow
@pytest.mark.parametrize(
    "one", [t for group in SOME for t in every(group)], ids=lambda one: one.name
)
def test_each_odd_value_is_refused_by_timonel_or_right(one: Target) -> None:
    assert not border.wrong(one, ODD)


def test_every_public_function_is_tried() -> None:
    """What `timonel.__all__` has is among the targets, or a table, an error or a class that others
    make.
    """
    tried = {one.name.split(".")[0].rstrip("(…)") for group in SOME for one in every(group)} | {
        "Engine",
        "Helm",
        "compare",
        "invert",
        "tune",
    }
    made = {
        "ArgumentError",
        "At",
        "TimonelError",
        "GRIDS",
        "SOLVERS",
        "__version__",
        "Handle",
        "Hook",
        "Process",
    }
    tensors = {"Grid"}  # of tensors that are a timonel process' own
    assert set(tm.__all__) - tried <= made | tensors


def test_an_odd_argument_of_a_helm_is_refused_before_any_compute() -> None:
    own, load, engine, start, pipe = border.helms()
    for one, values in ((own, ODD), (load, FEW), (engine, FEW), (start, FEW), (pipe, FEW)):
        assert not border.wrong(one, values)


@pytest.mark.slow
def test_each_odd_argument_of_a_pipeline_is_refused_before_its_network_is_called() -> None:
    assert not border.wrong(border.helms(every=True)[-1], ODD)


def test_an_odd_argument_of_a_long_job_is_refused_before_any_compute(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def reached(*_: Any, **__: Any) -> None:
        raise Reached

    monkeypatch.setattr("timonel.comparison.engine.Engine.run", reached)
    monkeypatch.setattr("timonel.tuning.samples_of", reached)
    monkeypatch.setattr("timonel.make.inversion.capture", reached)
    for one in border.jobs():
        assert not border.wrong(one, FEW)


NUMBERS = [
    np.int64(3),
    np.uint8(3),
    np.array(3),
    torch.tensor(3),
    torch.tensor(3, dtype=torch.int16),
    3,
]
FLOATS = [
    np.float32(0.5),
    np.float16(0.5),
    np.array(0.5),
    torch.tensor(0.5),
    torch.tensor(0.5, requires_grad=True),
]
NONE = [
    True,
    np.bool_(True),
    torch.tensor(True),
    "3",
    b"3",
    None,
    [3],
    np.array([3]),
    torch.tensor([3]),
    1j,
    object(),
]


def test_numbers_of_numpy_and_torch_become_pythons() -> None:
    for value in NUMBERS:
        assert type(whole("n", value)) is int
        assert whole("n", value) == 3
        assert type(finite("n", value)) is float
    for value in FLOATS:
        assert type(finite("x", value)) is float
        assert finite("x", value) == 0.5
        with pytest.raises(tm.ArgumentError, match="x must be a whole number"):
            whole("x", value)
    for bad in NONE:
        for check in (whole, finite):
            with pytest.raises(tm.ArgumentError, match="n must be"):
                check("n", bad)
    for bad in (math.nan, math.inf, np.nan, torch.tensor(math.nan), 10**400):
        with pytest.raises(tm.ArgumentError, match="n must be"):
            finite("n", bad)


def test_a_sampler_and_a_guidance_keep_pythons_numbers() -> None:
    sampler = tm.Sampler("dpmpp_2m_sde/karras", steps=np.int64(3), options={"eta": np.float32(0.5)})
    assert type(sampler.steps) is int
    assert type(sampler.options["eta"]) is float
    listed = tm.Sampler("euler", sigmas=np.array([10.0, 2.0, 0.5]))
    assert listed.sigmas == (10.0, 2.0, 0.5)
    assert tm.Sampler("euler", times=torch.tensor([900, 400])).compile(VP).steps == 2
    assert (
        tm.cfg(np.linspace(1, 4, 3)).scale
        == tm.cfg(list(np.linspace(1, 4, 3))).scale
        == (1.0, 2.5, 4.0)
    )
    assert tm.cfg(torch.tensor(4.0), until=np.float64(0.4)) == tm.cfg(4.0, until=0.4)
    assert tm.Recipe(model="emoji", sampler="euler", steps=np.int64(2), seed=np.int64(7)).seed == 7


def test_seeds_of_numpy_and_torch_draw_what_pythons_draw() -> None:
    def latents(seeds: Any, **more: Any) -> torch.Tensor:
        return tm.sample(
            lambda x, level: 0.1 * x, X, "ddpm", process=VP, steps=2, seeds=seeds, **more
        )

    want = latents([3])
    for seeds in (
        np.array([3]),
        torch.tensor([3]),
        [np.int64(3)],
        [torch.tensor(3)],
        range(3, 4),
        (3,),
    ):
        assert torch.equal(latents(seeds), want)
    for bad in ([-1], [2**64], [True], ["3"], "3", [], [1.0], 3, None if False else {3: 1}):
        with pytest.raises(tm.ArgumentError, match="seeds"):
            latents(bad)


def test_a_helm_takes_numbers_of_numpy_and_torch() -> None:
    helm = tm.Helm("emoji")
    helm.pipe.set_progress_bar_config(disable=True)

    def call(**given: Any) -> torch.Tensor:
        images: torch.Tensor = helm(
            "red apple", sampler="euler", output_type="latent", **given
        ).images
        return images

    want = call(steps=2, seeds=[0], guidance=3.0)
    assert torch.equal(
        call(steps=np.int64(2), seeds=np.arange(1), guidance=np.float32(3), width=np.int64(64)),
        want,
    )
    assert torch.equal(
        call(steps=torch.tensor(2), seeds=torch.tensor(0), guidance=[3.0, 3.0], keep=np.int8(1)),
        want,
    )
    for name, bad in (
        ("latents", np.ones((1, 4, 8, 8))),
        ("latents", torch.ones(1, 4, 8, 8).long()),
        ("seeds", -1),
        ("seeds", True),
        ("seeds", [2**64]),
        ("seeds", "1"),
        ("hooks", tm.progress()),
    ):
        with pytest.raises(tm.ArgumentError, match=name):
            call(steps=1, **{name: bad})


class Network:
    """A denoiser that returns what it is told to, and counts."""

    def __init__(self, answer: Any) -> None:
        self.answer, self.calls = answer, 0

    def __call__(self, x: torch.Tensor, level: Any) -> Any:
        self.calls += 1
        return self.answer(x)


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (lambda x: (x,), r"net\(…\)\[0\]"),
        (lambda x: None, "return its result"),
        (lambda x: x.numpy(), r"torch\.as_tensor"),
        (lambda x: SimpleNamespace(sample=x), r"\.sample"),
        (lambda x: x[:, :2], "shape"),
        (lambda x: x.long(), "int64"),
        (lambda x: x.to("meta"), "meta"),
        (lambda x: 3.0, "tensor"),
    ],
)
def test_what_a_denoiser_returns_is_said_at_its_first_call(answer: Any, says: str) -> None:
    network = Network(answer)
    with pytest.raises(tm.ArgumentError, match=says):
        tm.sample(network, X, "euler", process=VP, steps=4)
    assert network.calls == 1


def test_what_a_pipeline_refuses_before_its_network_is_an_argument_error_with_its_cause() -> None:
    helm = tm.Helm("emoji")
    helm.pipe.set_progress_bar_config(disable=True)
    with pytest.raises(tm.ArgumentError, match=r"StableDiffusionXLPipeline.*63") as raised:
        helm("pizza", steps=1, width=63)
    assert isinstance(raised.value.__cause__, ValueError)
    assert not isinstance(raised.value.__cause__, tm.TimonelError)


@pytest.mark.parametrize(
    "error",
    [MemoryError("full"), OSError("no file"), KeyboardInterrupt(), RuntimeError("CUDA error")],
)
def test_what_no_argument_causes_keeps_its_type(
    error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    helm = tm.Helm("emoji")

    def check(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(helm.pipe, "check_inputs", check)
    with pytest.raises(type(error)) as raised:
        helm("pizza", steps=1)
    assert raised.value is error


def test_an_error_in_the_network_keeps_its_type(monkeypatch: pytest.MonkeyPatch) -> None:
    helm = tm.Helm("emoji")
    helm.pipe.set_progress_bar_config(disable=True)

    def forward(*_: Any, **__: Any) -> None:
        raise ValueError("inside")

    monkeypatch.setattr(helm.pipe.unet, "forward", forward)
    with pytest.raises(ValueError, match="inside") as raised:
        helm("pizza", steps=1)
    assert not isinstance(raised.value, tm.TimonelError)
