"""Laws of the sampler file: its table gives the same bits wherever a sampler's name works.

The files hold the table of a named sampler, so their results are that sampler's.
"""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import timonel as tm
from support.fitted_files import ALL, NAMED, made
from support.models import PROCESSES
from timonel.core.fitted.fingerprint import Fingerprint, fingerprint
from timonel.core.fitted.provenance import Measured, levels
from timonel.core.fitted.sampler_file import FORMAT, Fitted
from timonel.core.process import VE, double
from timonel.errors import ArgumentError


@pytest.fixture
def fast(tmp_path: Path) -> str:
    """A file for a VP model: six steps of DPM++ 2M on Karras' levels."""
    return str(made(tm.Sampler(NAMED, steps=6), PROCESSES["vp"]).write(tmp_path / "fast.json"))


def bend(x: Tensor, level: Any) -> Tensor:
    """A denoiser that is no straight line."""
    return torch.tanh(x * level.alpha + 0.3)


# -- the file --------------------------------------------------------------------------------------
@given(
    st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=5, max_size=5),
    st.integers(1, 9),
)
def test_every_number_reads_back_to_the_same_bits(numbers: list[float], steps: int) -> None:
    plain = made(tm.Sampler("unipc", steps=steps), PROCESSES["vp"])
    x = plain.table.x.clone()
    x[0, :3], x[-1, -2:] = double(numbers[:3]), double(numbers[3:])
    before = replace(plain, table=replace(plain.table, x=x))
    after = Fitted.from_dict(json.loads(json.dumps(before.to_dict(), allow_nan=False)), "fast")
    for key in ("x", "base", "alpha", "sigma", "time"):
        assert torch.equal(getattr(before.table, key), getattr(after.table, key))
    assert after == before
    assert after.provenance == before.provenance


def test_a_file_keeps_everything_and_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    process = ALL["zsnr"]
    guidance = {"scale": 3.0, "stop": 0.4, "rescale": 0.7}
    one = made(tm.Sampler("dpmpp_2m", steps=4), process, prediction="v", guidance=guidance)
    path = one.write(tmp_path / "out" / "slow.json")
    again = Fitted.read(path)
    assert (again.name, replace(again, name="fast")) == ("slow", one)
    assert again.provenance.process.sigma_max is None
    assert again.provenance.errors == [
        Measured(sampler="euler", steps=6, error=0.5, standard_error=0.01)
    ]
    assert json.loads(path.read_text())["format"] == FORMAT
    broken = replace(one, provenance=one.provenance.model_copy(update={"seconds": float("nan")}))
    with pytest.raises(ArgumentError, match="not finite"):
        broken.write(path)
    assert Fitted.read(path) == again
    assert [p.name for p in path.parent.iterdir()] == ["slow.json"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "cannot read the sampler file.*No such file"),
        ("not json", "is no sampler file"),
        ("[1, 2]", "format None"),
        ('{"format": 2}', "format 2, not 'timonel-sampler-1'"),
        ('{"format": "timonel-sampler-1"}', "lacks 'table'"),
        ('{"format": "timonel-sampler-1", "table": {}, "provenance": {}}', "table format None"),
        (
            '{"format": "timonel-sampler-1", "table": 3, "provenance": {}}',
            "table of 'fast' cannot be read",
        ),
    ],
)
def test_a_file_that_is_none_is_refused_by_its_name(
    text: str | None, said: str, tmp_path: Path
) -> None:
    path = tmp_path / "fast.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ArgumentError, match=said):
        tm.Sampler(str(path))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda d: d["provenance"].pop("seeds"), r"seeds: Field required"),
        (lambda d: d["provenance"].update(author="me"), r"author: Extra inputs"),
        (lambda d: d["table"]["x"][0].pop(), "table of 'fast' cannot be read"),
        (lambda d: d["table"].update(alpha=d["table"]["alpha"][1:]), "levels, got 6"),
        (lambda d: d["provenance"].update(fingerprint={
            "network": "UNet", "parameters": 1, "dtype": "load", "values": [1.0]}),
            "dtype: .*load"),
    ],
)  # fmt: skip
def test_a_damaged_file_is_refused_with_the_place(change: Any, said: str, fast: str) -> None:
    data = json.loads(Path(fast).read_text())
    change(data)
    Path(fast).write_text(json.dumps(data))
    with pytest.raises(ArgumentError, match=said):
        tm.Sampler(fast)


# -- the name of a file is the name of a sampler ---------------------------------------------------
def test_a_file_is_a_sampler_whichever_way_it_is_named(fast: str, tmp_path: Path) -> None:
    one = tm.Sampler(fast)
    assert (one.name, one.label, one.steps, one.grid) == ("fast", "fast", 6, None)
    for other in (
        tm.Sampler.load(fast),
        tm.Sampler.of(fast),
        tm.Sampler.of(fast, 6),
        tm.Sampler(fitted=one.fitted),
    ):
        assert other == one
    assert tm.Sampler.of(one, 6) == one == replace(one, steps=6)
    one.save(tmp_path / "again.json")
    assert tm.Sampler(str(tmp_path / "again.json")).fitted == replace(one.fitted, name="again")


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("solver", ["dpmpp_2m", "heun", "unipc", "dpmpp_2m_sde"])
@pytest.mark.parametrize("steps", [1, 5])
def test_a_fitted_table_is_that_of_its_process_to_the_bit(
    kind: str, solver: str, steps: int
) -> None:
    process, named = ALL[kind], tm.Sampler(solver, steps=steps)
    one, table = tm.Sampler(fitted=made(named, process)), named.compile(process)
    assert torch.equal(one.compile(process).x, table.x)
    for key in ("alpha", "sigma", "time"):
        assert torch.equal(getattr(one.levels(process), key), getattr(named.levels(process), key))
    assert one.on(process) == one


@pytest.mark.parametrize(
    ("solver", "seeds"), [(NAMED, None), ("heun/karras", None), ("dpmpp_2m_sde/karras", [3, 4])]
)
def test_the_native_loop_makes_the_same_bits_from_a_file(
    solver: str, seeds: list[int] | None, tmp_path: Path
) -> None:
    process, noise = PROCESSES["vp"], torch.randn(2, 16, generator=torch.Generator().manual_seed(0))
    path = made(tm.Sampler(solver, steps=5), process).write(tmp_path / "fast.json")
    named = tm.sample(bend, noise, solver, process=process, steps=5, seeds=seeds)
    assert torch.equal(tm.sample(bend, noise, str(path), process=process, seeds=seeds), named)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"steps": 8}, r"fitted for 6 steps, not 8.*timonel tune emoji --steps 8"),
        ({"steps": 2.0}, r"got 2\.0"),
        ({"grid": "karras"}, "own levels.*grid='karras'"),
        ({"options": {"eta": 1}}, "options=.*nothing to set"),
        ({"grid_options": {"rho": 5}}, "grid_options="),
        ({"sigmas": [1.0, 0.0]}, "sigmas="),
        ({"times": torch.tensor([3.0])}, "times="),
        ({"start": 0}, "whole journey.*start=0"),
        ({"stop": 3}, "stop=3"),
        ({"strength": 0.5}, r"strength=0\.5"),
        ({"denoising_start": 0.5}, "denoising_start"),
        ({"denoising_end": 0.5}, "denoising_end"),
        ({"noise": "braunian"}, "braunian"),
    ],
)
def test_what_a_table_does_not_leave_open_is_refused_at_once(
    given: dict[str, Any], said: str, fast: str
) -> None:
    with pytest.raises(ArgumentError, match=said):
        tm.Sampler(fast, **given)


def test_a_noise_source_is_only_for_a_table_that_draws(fast: str) -> None:
    with pytest.raises(ArgumentError, match="nothing to do"):
        tm.Sampler(fast, noise="brownian").compile(PROCESSES["vp"])
    drawing = made(tm.Sampler("dpmpp_2m_sde", steps=4), PROCESSES["vp"])
    assert tm.Sampler(fitted=drawing, noise="brownian").compile(PROCESSES["vp"]) is drawing.table


def test_a_fitted_sampler_has_one_name_and_only_it_is_saved(fast: str, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="'euler' or the fitted 'fast', not both"):
        tm.Sampler("euler", fitted=tm.Sampler(fast).fitted)
    with pytest.raises(ArgumentError, match="is not fitted"):
        tm.Sampler("euler").save(tmp_path / "euler.json")
    with pytest.raises(ArgumentError, match=r"ends in \.json"):
        tm.Sampler(fast).save(tmp_path / "fast.txt")
    assert not (tmp_path / "euler.json").exists()


# -- for this process, or not ----------------------------------------------------------------------
@pytest.mark.parametrize("solver", ["dpmpp_2m", "heun"])
def test_a_table_is_refused_on_every_other_process(solver: str) -> None:
    others = {
        **ALL,
        "edm700": tm.EDM(0.002, 700.0),
        "linear": tm.VP.from_schedule("linear", 1e-4, 0.02),
        "ve": VE(),
    }
    for kind, process in others.items():
        one = tm.Sampler(fitted=made(tm.Sampler(solver, steps=6), process))
        for other, foreign in others.items():
            # a wider EDM process has all levels of a narrower one
            if other == kind or (kind, other) == ("edm", "edm700"):
                assert one.compile(foreign) is one.fitted.table
                continue
            with pytest.raises(
                ArgumentError, match=r"sampler 'fast' was fitted to 'emoji', whose process is"
            ):
                one.compile(foreign)
            with pytest.raises(
                ArgumentError, match=r"name another sampler|at levels that this one does not have"
            ):
                one.levels(foreign)


def test_a_flow_table_goes_with_every_shift_since_the_network_is_told_the_level() -> None:
    one = tm.Sampler(fitted=made(tm.Sampler("euler", steps=4), tm.Flow(3.0)))
    assert one.compile(tm.Flow(1.0).with_mu(0.9)) is one.fitted.table
    with pytest.raises(ArgumentError, match="told other times"):
        one.compile(tm.Flow(3.0, clock="1 - t"))


def test_the_levels_of_a_process_at_the_lam_of_its_own_table_are_the_table_s() -> None:
    for process in ALL.values():
        table = tm.Sampler("dpmpp_2m", steps=7).compile(process)
        own = levels(process, table)
        for mine, theirs in (
            (own.alpha, table.alpha),
            (own.sigma, table.sigma),
            (own.time[:-1], table.time[:-1]),
        ):
            assert torch.allclose(mine, theirs, rtol=1e-6, atol=1e-7)


def test_a_table_may_tell_the_network_another_time_than_its_process(fast: str) -> None:
    fitted = tm.Sampler(fast).fitted
    moved = replace(fitted, table=replace(fitted.table, time=fitted.table.time * 0.9))
    assert torch.equal(
        tm.Sampler(fitted=moved).levels(PROCESSES["vp"]).time, fitted.table.time * 0.9
    )
    moved = replace(fitted, table=replace(fitted.table, alpha=fitted.table.alpha * 1.01))
    with pytest.raises(ArgumentError, match=r"with alpha .* in row"):
        tm.Sampler(fitted=moved).compile(PROCESSES["vp"])


# -- fingerprints ----------------------------------------------------------------------------------
def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(40, 50), nn.SiLU(), nn.Conv2d(3, 20, 3), nn.Linear(7, 3))


def test_a_fingerprint_is_of_the_weights_and_not_of_their_dtype_or_layout() -> None:
    one = network()
    own = fingerprint(one)
    assert own is not None
    assert (own.network, len(own.values), own.dtype) == ("Sequential", 64, "float32")
    assert own.parameters == sum(weight.numel() for weight in one.parameters())
    kinds = [own]
    for dtype in (torch.float64, torch.float16, torch.bfloat16):
        kinds.append(fingerprint(copy.deepcopy(one).to(dtype)))
    for last in (torch.bfloat16, torch.float32):
        kinds.append(fingerprint(copy.deepcopy(one).to(torch.float16).to(last)))
    kinds.append(fingerprint(copy.deepcopy(one).to(memory_format=torch.channels_last)))
    kinds.append(Fingerprint.model_validate(json.loads(own.model_dump_json())))
    for a in kinds:
        for b in kinds:
            assert a is not None
            assert b is not None
            assert a.fits(b)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_fine_tuned_sibling_has_another_fingerprint(dtype: torch.dtype) -> None:
    one, sibling = network().to(dtype), network()
    with torch.no_grad():
        for weight in sibling.parameters():
            weight += 0.01 * weight.std() * torch.randn_like(weight)
    own, other = fingerprint(one), fingerprint(sibling.to(dtype))
    assert own is not None
    assert other is not None
    assert not own.fits(other)
    larger = fingerprint(nn.Sequential(network(), nn.Linear(1, 1)).to(dtype))
    assert larger is not None
    assert not own.fits(larger)


def test_weights_that_are_not_here_have_no_fingerprint() -> None:
    assert fingerprint(network().to("meta")) is None
    assert fingerprint(nn.Identity()) is None
    broken = network()
    nn.init.constant_(next(broken.parameters()), float("nan"))
    assert fingerprint(broken) is None
