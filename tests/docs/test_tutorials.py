"""Every Python block of the two tutorials runs as written, on the shipped model, and does what the
text says.

Only the imports (diffusers' schedulers and callbacks come from `timonel.compat`), the model's name
and what needs a GPU are changed. `tests/docs/tutorials` holds the texts as they were given.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image

from timonel import compat, zoo
from timonel.errors import ArgumentError

HERE = Path(__file__).parent / "tutorials"
FENCE = re.compile(r"```python\n(.*?)```", re.S)
CHANGES = (
    ("from diffusers.callbacks import", "from timonel.compat import"),
    ("from diffusers.schedulers import", "from timonel.compat import"),
    (
        "from diffusers import DiffusionPipeline, ",
        "from diffusers import DiffusionPipeline; from timonel.compat import ",
    ),
    ("from diffusers import DPMSolver", "from timonel.compat import DPMSolver"),
    ("stabilityai/stable-diffusion-xl-base-1.0", str(zoo.folder("emoji"))),
    (', torch_dtype=torch.float16, device_map="cuda"', ""),
)
LEADING, TRAILING = (
    [900, 800, 700, 600, 500, 400, 300, 200, 100, 0],
    [999, 899, 799, 699, 599, 499, 399, 299, 199, 99],
)


def blocks(name: str) -> list[str]:
    found = FENCE.findall((HERE / f"{name}.es.md").read_text("utf-8"))
    for old, new in CHANGES:
        found = [code.replace(old, new) for code in found]
    return found


CALLBACKS, SCHEDULERS = blocks("callbacks"), blocks("schedulers")


class Calls:
    """Watches a network: the times it was told and how many samples it saw."""

    def __init__(self, pipe: Any) -> None:
        self.times: list[float] = []
        self.samples: list[int] = []
        self._handles = [
            pipe.unet.register_forward_pre_hook(self._told, with_kwargs=True),
            pipe.unet.conv_in.register_forward_pre_hook(self._seen),
        ]

    def _told(self, module: Any, args: Any, kwargs: Any) -> None:
        self.times.append(
            float(torch.as_tensor(args[1] if len(args) > 1 else kwargs["timestep"]).flatten()[0])
        )

    def _seen(self, module: Any, args: Any) -> None:
        self.samples.append(len(args[0]))

    def done(self) -> None:
        for handle in self._handles:
            handle.remove()


@contextmanager
def watched(pipe: Any) -> Iterator[Calls]:
    calls = Calls(pipe)
    try:
        yield calls
    finally:
        calls.done()


@pytest.fixture(scope="module")
def model() -> Any:
    pipe = DiffusionPipeline.from_pretrained(zoo.folder("emoji"))
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def names(model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """What the blocks may use without saying where it comes from; the model's scheduler is put back
    after.
    """
    monkeypatch.chdir(tmp_path)
    before = model.scheduler
    model.scheduler = compat.EulerDiscreteScheduler.from_config(before.config)
    torch.manual_seed(0)
    yield {
        "torch": torch, "pipeline": model, "pipe": model, "prompt": "red apple",
        "DDIMScheduler": compat.DDIMScheduler,
        "DPMSolverMultistepScheduler": compat.DPMSolverMultistepScheduler,
    }  # fmt: skip
    model.scheduler = before


def run(code: str, space: dict[str, Any]) -> dict[str, Any]:
    exec(compile(code, "tutorial", "exec"), space)
    return space


def block(among: list[str], holding: str) -> str:
    """The first block that holds a text."""
    return next(code for code in among if holding in code)


def picture(pipe: Any, **options: Any) -> torch.Tensor:
    return pipe(
        "red apple", generator=torch.Generator().manual_seed(7), output_type="pt", **options
    ).images


# -- callbacks.es.md -----------------------------------------------------------------------------
def test_there_are_the_blocks_that_are_tested_here():
    assert len(CALLBACKS) == 7
    assert len(SCHEDULERS) == 12
    assert CALLBACKS[0].strip() == "pipeline(...)"  # a picture of a call, not a call


def test_the_interrupt_callback_stops_at_step_10(names, model):
    run(block(CALLBACKS, "def interrupt_callback"), names)
    with watched(model) as calls:
        run(block(CALLBACKS, '"Un gato"'), names)
    assert len(calls.times) == 11  # steps 0 … 10 of 50


def test_every_step_leaves_a_picture_and_they_show_it_forming(names, model):
    run(block(CALLBACKS, "def latents_to_rgb"), names)
    run(block(CALLBACKS, "def decode_tensors"), names)
    run(block(CALLBACKS, "Croissant oso"), names)
    steps = sorted(Path().glob("paso_*.png"), key=lambda path: int(path.stem.split("_")[1]))
    assert [path.name for path in steps] == [f"paso_{i}.png" for i in range(50)]
    last = np.asarray(Image.open(steps[-1]), dtype=float).ravel()
    likeness = [
        np.corrcoef(np.asarray(Image.open(path), dtype=float).ravel(), last)[0, 1] for path in steps
    ]
    assert likeness[0] < 0.5 < likeness[35] < likeness[45] < likeness[49]


def test_guidance_is_off_after_40_percent_and_the_batch_is_halved(names, model):
    with watched(model) as calls:
        run(block(CALLBACKS, "SDXLCFGCutoffCallback"), names)
    assert (
        calls.samples == [2] * 21 + [1] * 29
    )  # the callback acts at the end of step 20 = 40 % of 50


# -- schedulers.es.md ----------------------------------------------------------------------------
def test_the_scheduler_shows_its_configuration(names, model):
    run(block(SCHEDULERS, "pipe.scheduler\n"), names)
    assert "beta_schedule" in repr(model.scheduler)


@pytest.mark.parametrize(
    "code", [c for c in SCHEDULERS if "use_karras_sigmas" in c and "algorithm" not in c]
)
def test_karras_sigmas_are_karras(names, model, code):
    run(code, names)
    picture(model, num_inference_steps=8)
    assert model.scheduler.run.table.grid == "karras"
    sigmas = model.scheduler.run.table.sigma / model.scheduler.run.table.alpha
    assert float(sigmas[0]) == pytest.approx(14.6146, abs=1e-3)
    seventh = sigmas[:-1] ** (1 / 7)
    assert torch.allclose(seventh.diff(), seventh.diff()[0].expand(7), atol=1e-9)


@pytest.mark.parametrize("code", [c for c in SCHEDULERS if "AysSchedules" in c])
def test_align_your_steps_uses_exactly_its_ten_times(names, model, code):
    with watched(model) as calls:
        run(code, names)
    assert calls.times == [999, 845, 730, 587, 443, 310, 193, 116, 53, 13]


def test_trailing_starts_at_999_and_leading_below_the_noise(names, model):
    """The text's own examples; linspace does not start at 1000, as it says, but at 999, the
    noisiest training time.
    """
    code = next(c for c in SCHEDULERS if "trailing" in c and "karras" not in c and "DDIM" not in c)
    run(code, names)
    with watched(model) as calls:
        picture(model, num_inference_steps=10)
    assert calls.times == TRAILING
    for spacing, wanted in (
        ("leading", LEADING),
        ("linspace", [999, 888, 777, 666, 555, 444, 333, 222, 111, 0]),
    ):
        config = {**model.scheduler.config, "steps_offset": 0}
        model.scheduler = compat.EulerDiscreteScheduler.from_config(
            config, timestep_spacing=spacing
        )
        with watched(model) as calls:
            picture(model, num_inference_steps=10)
        assert calls.times == wanted


def test_a_list_of_sigmas_is_visited_as_given(names, model):
    with watched(model) as calls:
        run(block(SCHEDULERS, "sigmas = ["), names)
    table = model.scheduler.run.table
    wanted = torch.tensor(
        [14.6, 6.3, 3.7, 2.1, 1.3, 0.8, 0.5, 0.3, 0.2, 0.1, 0.0], dtype=torch.float64
    )
    assert torch.allclose(table.sigma / table.alpha, wanted, atol=1e-9)
    assert len(calls.times) == 10


def test_the_pro_template_runs_dpmpp_2m_sde_on_karras(names, model):
    run(block(SCHEDULERS, "sde-dpmsolver++"), names)
    picture(model, num_inference_steps=6)
    table = model.scheduler.run.table
    assert (table.solver, table.grid, table.stochastic) == ("dpmpp_2m_sde", "karras", True)


def test_a_scheduler_is_loaded_from_the_models_folder(names):
    code = block(SCHEDULERS, "from_pretrained(")
    made = run(code, names)["pipeline"]
    assert type(made.scheduler).__name__ == "DPMSolverMultistepScheduler"
    made.set_progress_bar_config(disable=True)
    assert picture(made, num_inference_steps=4).isfinite().all()


def test_zero_snr_is_for_v_prediction_and_says_so(names, model):
    """The shipped model predicts epsilon, which says nothing at pure noise: refused, with the
    remedy.
    """
    code = block(SCHEDULERS, "rescale_betas_zero_snr")

    def try_it() -> None:
        run(code, names)
        picture(model, num_inference_steps=4)

    with pytest.raises(ArgumentError, match=r"epsilon.*v_prediction"):
        try_it()
