"""Laws of the sampler file on pipelines: helm, drop-in scheduler, warning elsewhere."""

from __future__ import annotations

import copy
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import timonel as tm
from support import tiny
from support.fitted_files import NAMED, made
from support.models import PROCESSES
from timonel.core.fitted.fingerprint import fingerprint
from timonel.core.fitted.provenance import ProcessData
from timonel.core.fitted.sampler_file import Fitted
from timonel.errors import ArgumentError, FittedElsewhere


@pytest.fixture
def fast(tmp_path: Path) -> str:
    """A file for a VP model: six steps of DPM++ 2M on Karras' levels."""
    return str(made(tm.Sampler(NAMED, steps=6), PROCESSES["vp"]).write(tmp_path / "fast.json"))


# -- the helm --------------------------------------------------------------------------------------
def own(pipe: Any, sampler: tm.Sampler | str, **changes: Any) -> Fitted:
    """A fitted sampler that says it was fitted to `pipe` as its call below uses it."""
    told = {"model": "tiny", "fingerprint": fingerprint(pipe.unet), "guidance": {"scale": 5.0}}
    return made(
        sampler, tm.Scheduler.from_config(pipe.scheduler.config).process, **{**told, **changes}
    )


@pytest.mark.parametrize("named", [NAMED, "heun/karras", "dpmpp_2m_sde/karras"])
def test_the_helm_makes_the_same_bits_from_a_file_and_takes_its_steps(
    named: str, tmp_path: Path
) -> None:
    pipe = tiny.sdxl()
    helm, inputs = tm.Helm(pipe), tiny.prompt(pipe)
    path = str(own(pipe, tm.Sampler(named, steps=4)).write(tmp_path / "fast.json"))
    theirs = helm(**inputs, sampler=named, steps=4, guidance=5.0, seeds=[3]).images
    assert torch.equal(helm(**inputs, sampler=path, guidance=5.0, seeds=[3]).images, theirs)
    assert helm.run is not None
    assert helm.run.steps == 4
    assert torch.equal(
        helm(**inputs, sampler=path, steps=4, guidance=5.0, seeds=[3]).images, theirs
    )


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"steps": 6}, "fitted for 4 steps, not 6"),
        ({"num_inference_steps": 6}, "fitted for 4 steps, not 6"),
        ({"sigmas": [1.0, 0.5, 0.2, 0.1]}, "both set the levels"),
        ({"denoising_end": 0.5}, "whole journey of 4 steps.*rows 0 to"),
    ],
)
def test_the_helm_refuses_what_a_table_does_not_leave_open(
    options: dict[str, Any], said: str
) -> None:
    pipe = tiny.sdxl()
    sampler = tm.Sampler(fitted=own(pipe, tm.Sampler(NAMED, steps=4)))
    with pytest.raises(ArgumentError, match=said):
        tm.Helm(pipe)(**tiny.prompt(pipe), sampler=sampler, guidance=5.0, seeds=[0], **options)


def test_a_picture_that_is_only_partly_made_anew_takes_a_named_sampler() -> None:
    pipe, inputs = tiny.case("sd", "StableDiffusionImg2ImgPipeline")
    sampler = tm.Sampler(fitted=own(pipe, tm.Sampler(NAMED, steps=4), guidance={"scale": 7.5}))
    with pytest.raises(ArgumentError, match="strength below 1"):
        tm.Helm(pipe)(**{**inputs, "strength": 0.5}, sampler=sampler, seeds=[0])
    whole = tm.Helm(pipe)(**{**inputs, "strength": 1.0}, sampler=sampler, seeds=[0])[0]
    theirs = tm.Helm(pipe)(**{**inputs, "strength": 1.0}, sampler=NAMED, steps=4, seeds=[0])[0]
    assert torch.equal(torch.as_tensor(whole), torch.as_tensor(theirs))


@pytest.mark.parametrize(
    ("changes", "call", "said"),
    [
        ({}, {"guidance": 5.0}, None),
        ({}, {}, None),  # 5 is this pipeline's own scale
        ({}, {"guidance_scale": 5.0}, None),
        ({}, {"guidance": tm.cfg(between=(0.0, 1.0))}, None),
        ({"guidance": {"scale": 5.0, "stop": 0.4}}, {"guidance": tm.cfg(5.0, until=2, unit="step")},
        None),
        ({"guidance": None}, {"guidance": 1.0}, None),
        ({"fingerprint": None}, {"guidance": 5.0}, None),
        ({}, {"guidance": 7.0}, "fitted with guidance 5, this run has guidance 7"),
        ({}, {"guidance_scale": 1.0}, "fitted with guidance 5, this run has no guidance"),
        ({}, {"guidance": tm.cfg(5.0, until=0.4)},
        "fitted with guidance 5, this run has guidance 5 from 0 to 0.4 of"),
        ({}, {"guidance": tm.cfg(5.0, rescale=0.7)}, "this run has guidance 5, rescale 0.7"),
        ({"prediction": "v"}, {"guidance": 5.0}, "the prediction 'v', this model's is 'epsilon'"),
        ({"fingerprint": {"network": "UNet", "parameters": 9, "dtype": "float32", "values": [1.0]}},
         {"guidance": 5.0},
         "fitted to tiny .UNet of 9 parameters., this network is UNet2DConditionModel of"),
    ],
)  # fmt: skip
def test_a_use_elsewhere_warns_with_both(
    changes: dict[str, Any], call: dict[str, Any], said: str | None
) -> None:
    pipe = tiny.sdxl()
    sampler = tm.Sampler(fitted=own(pipe, tm.Sampler(NAMED, steps=4), **changes))
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        tm.Helm(pipe)(**tiny.prompt(pipe), sampler=sampler, seeds=[0], **call)
    told = [str(one.message) for one in heard if issubclass(one.category, FittedElsewhere)]
    if said is None:
        assert told == []
        return
    with pytest.warns(FittedElsewhere, match=said):
        warnings.warn(told[0], FittedElsewhere, stacklevel=1)
    assert [one.filename for one in heard if issubclass(one.category, FittedElsewhere)] == [
        __file__
    ]


def test_a_sibling_of_the_network_warns_since_its_weights_are_others() -> None:
    pipe = tiny.sdxl()
    sampler = tm.Sampler(fitted=own(pipe, tm.Sampler(NAMED, steps=4)))
    with torch.no_grad():
        for weight in pipe.unet.parameters():
            weight *= 1.01
    with pytest.warns(FittedElsewhere, match="this network is one with other weights"):
        tm.Helm(pipe)(**tiny.prompt(pipe), sampler=sampler, guidance=5.0, seeds=[0])


# -- the drop-in scheduler -------------------------------------------------------------------------
def test_the_scheduler_makes_the_same_bits_and_survives_without_the_file(
    fast: str, tmp_path: Path
) -> None:
    pipe = tiny.sdxl()
    config, inputs = pipe.scheduler.config, tiny.prompt(pipe)

    def picture(scheduler: Any) -> Tensor:
        pipe.scheduler = scheduler
        found: Tensor = pipe(
            **inputs, num_inference_steps=6, generator=torch.Generator().manual_seed(3)
        ).images
        return found

    named = picture(tm.Scheduler.from_config(config, sampler=NAMED))
    first = tm.Scheduler.from_config(config, sampler=fast)
    keys = {k: v for k, v in first.config.items() if not k.startswith(("_", "sampler"))}
    in_code = tm.Scheduler(**keys, sampler=fast)
    first.save_pretrained(tmp_path / "one")
    in_code.save_pretrained(tmp_path / "two")
    Path(fast).unlink()
    for scheduler in (
        first, in_code, copy.deepcopy(first), tm.Scheduler.from_config(first.config),
        tm.Scheduler.from_pretrained(tmp_path / "one"),
        tm.Scheduler.from_pretrained(tmp_path / "two"),
    ):  # fmt: skip
        assert scheduler.config.sampler == "fast"
        assert scheduler.sampler.fitted == first.sampler.fitted
        assert torch.equal(picture(scheduler), named)
    back = tm.Scheduler.from_config(first.config, sampler=NAMED)
    assert (back.sampler.fitted, back.config.sampler_table) == (None, None)
    assert torch.equal(picture(back), named)


def test_the_scheduler_refuses_other_steps_lists_and_parts(fast: str) -> None:
    pipe = tiny.sdxl()
    pipe.scheduler = tm.Scheduler.from_config(pipe.scheduler.config, sampler=fast)
    inputs = tiny.prompt(pipe)
    with pytest.raises(ArgumentError, match="fitted for 6 steps, not 20"):
        pipe(**inputs, num_inference_steps=20)
    with pytest.raises(ArgumentError, match="has levels of its own"):
        pipe(**inputs, timesteps=[999, 800, 600, 400, 200, 0])
    with pytest.raises(ArgumentError, match="whole journey"):
        pipe(**inputs, num_inference_steps=6, denoising_end=0.5)
    with pytest.raises(ArgumentError, match=r"strength=0\.5 asks for a part"):
        pipe.scheduler.set_timesteps(6, strength=0.5)
    with pytest.raises(ArgumentError, match="options="):
        tm.Scheduler.from_config(pipe.scheduler.config, sampler_options={"eta": 1.0})


@pytest.mark.parametrize(
    ("family", "key"),
    [
        ("flux", "FluxPipeline (dev)"),
        ("sd3", "StableDiffusion3Pipeline"),
        ("video", "MochiPipeline"),
    ],
)
@pytest.mark.filterwarnings("ignore:In CPU autocast")
def test_fitted_levels_go_before_the_list_that_a_flow_pipeline_makes(family: str, key: str) -> None:
    pipe, inputs = tiny.case(family, key)
    helm = tm.Helm(pipe)
    named = helm(**inputs, sampler="dpmpp_2m/trailing", steps=3, seeds=[0])[0]
    assert helm.run is not None
    process = helm.session.scheduler._listed.grid.process  # type: ignore[union-attr]
    table = helm.run.table
    fitted = made(tm.Sampler("euler", steps=3), process, prediction="flow")
    fitted = replace(fitted, table=table, provenance=fitted.provenance.model_copy(
        update={"guidance": None, "process": ProcessData.of(process, table)}))  # fmt: skip
    sampler = tm.Sampler(fitted=fitted)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FittedElsewhere)
        found = helm(**inputs, sampler=sampler, seeds=[0])[0]
    assert torch.equal(torch.as_tensor(found), torch.as_tensor(named))
    pipe.scheduler = tm.Scheduler.from_config(pipe.scheduler.config, sampler=sampler)
    dropped = pipe(**inputs, num_inference_steps=3, generator=torch.Generator().manual_seed(0))[0]
    assert torch.equal(torch.as_tensor(dropped), torch.as_tensor(named))
    with pytest.raises(ArgumentError, match="fitted for 3 steps, not 4"):
        pipe(**inputs, num_inference_steps=4)


def test_noise_is_added_at_the_level_of_the_row_even_where_the_network_is_told_another_time(
    fast: str,
) -> None:
    fitted = tm.Sampler(fast).fitted
    moved = replace(fitted, table=replace(fitted.table, time=fitted.table.time * 0.9))
    scheduler = tm.Scheduler.from_config(
        tiny.sdxl().scheduler.config, sampler=tm.Sampler(fitted=moved)
    )
    scheduler.set_timesteps(6)
    clean, noise = torch.zeros(1, 4), torch.ones(1, 4)
    for row in range(6):
        made_ = scheduler.add_noise(clean, noise, scheduler.timesteps[row : row + 1])
        assert torch.allclose(made_, fitted.table.sigma[row].float().expand(1, 4))


def test_a_stopped_call_of_a_shipped_model_goes_on_with_the_sampler_that_was_fitted_to_it() -> None:
    helm = tm.Helm("emoji")
    call: dict[str, Any] = {"prompt": "red apple", "steps": 4, "seeds": [1]}
    theirs = helm(**call).images[0]
    assert helm.choice is not None
    assert helm.choice.sampler.fitted is not None
    helm(**call, hooks=[tm.stop_when(lambda run: run.step == 2)])
    assert helm.run is not None
    assert helm.run.status == "stopped"
    assert helm(**call, resume=helm.run).images[0] == theirs
