"""The doctor: a configuration is told for what it is, and what diffusers does wrong is found by
running it.
"""

from __future__ import annotations

import contextlib
import json
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import diffusers
import pytest
import torch
from typer.testing import CliRunner

import make_doctor
from support.places import DOCS, TESTS
from timonel import zoo
from timonel.cli import app, main
from timonel.cli.doctor import parsed
from timonel.core import grids
from timonel.core.process.config import SILENT
from timonel.core.sampler import Sampler
from timonel.diagnosis import FAMILIES, PRESETS, Diagnosis, doctor, dry_run
from timonel.diagnosis.findings import Combination
from timonel.errors import ArgumentError, ModelError, UnknownName
from timonel.pipelines.family import facts

PUBLISHED = json.loads((TESTS / "support" / "published.json").read_text("utf-8"))
KINDS = {
    "svd": "edm",
    "svd_xt": "edm",
    **dict.fromkeys(("sd1", "sd2_v", "sd2_base", "sdxl", "lcm"), "vp"),
}
KINDS |= dict.fromkeys(("sdxl_turbo", "sdxl_lightning"), "vp")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Every published configuration as the folder it would be downloaded to."""
    root = tmp_path_factory.mktemp("published")
    return {name: write(root / name, facts) for name, facts in PUBLISHED.items()}


def write(root: Path, facts: dict[str, Any]) -> str:
    files = {
        "model_index.json": facts["model_index"],
        "scheduler/scheduler_config.json": facts["scheduler"],
    }
    files |= {f"{network}/config.json": config for network, config in facts["network"].items()}
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(json.dumps(content), "utf-8")
    return str(root)


def tried(folder: str, sampler: str | None, steps: int = 10, **flags: Any) -> Combination:
    return doctor(folder, sampler, steps, flags=flags).combination


def said(combination: Combination, kind: str) -> str:
    return "\n".join(finding.text for finding in combination.findings if finding.kind == kind)


# -- what it is ------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_configuration_is_told_and_its_own_scheduler_gets_no_complaint(
    name: str, folders: dict[str, str]
) -> None:
    found = doctor(folders[name], steps=6)
    assert found.family == name
    assert facts.read(folders[name]).process.kind == KINDS.get(name, "flow")
    assert found.presets == PRESETS[name]
    assert found.combination.sound, found.combination.findings


@pytest.mark.parametrize("name", PUBLISHED)
def test_its_own_scheduler_in_timonel_tells_the_network_the_same(
    name: str, folders: dict[str, str]
) -> None:
    found = doctor(folders[name], steps=6).combination
    if name == "mochi":  # timonel's only scheduler for it has its own list of levels
        assert found.ours.times[0] == pytest.approx(found.times[0], abs=1.5)
        return
    assert found.ours.times == pytest.approx(found.times, abs=1.5)


def test_what_a_configuration_does_not_tell_is_said_and_both_presets_are_given(
    folders: dict[str, str],
) -> None:
    large = doctor(folders["sd35_large"], steps=2)
    assert "same configuration" in large.doubt
    assert large.alike["Stable Diffusion 3.5 large turbo"][0].steps == 4
    xl = doctor(folders["sdxl"], steps=2)
    assert {"SDXL Lightning", "TCD", "Hyper-SD", "LCM-LoRA"} <= set(xl.alike)
    assert not {"SDXL Turbo"} & set(xl.alike)  # its scheduler tells it


@pytest.mark.parametrize(
    ("name", "change", "family"),
    [
        (
            "flux_dev",
            {},
            None,
        ),  # without the transformer's configuration neither dev nor schnell can be told
        ("sdxl", {"cross_attention_dim": 64}, None),
        ("svd", {"num_frames": 8}, None),
        ("sd1", {"cross_attention_dim": 768, "time_cond_proj_dim": 256}, "lcm"),
    ],
)
def test_another_network_is_another_family_or_none(
    name: str, change: dict[str, Any], family: str | None, tmp_path: Path
) -> None:
    (network,) = PUBLISHED[name]["network"]
    found = doctor(write(tmp_path, {**PUBLISHED[name], "network": {network: change}}), steps=2)
    assert found.family == family
    if family is None:
        assert found.presets[0].source.startswith("diffusers, defaults of")


@pytest.mark.parametrize(
    ("scheduler", "changes", "family"),
    [
        ("LCMScheduler", {}, "lcm_lora"),
        ("TCDScheduler", {}, "tcd"),
        ("DDIMScheduler", {"timestep_spacing": "trailing"}, "hyper_sd"),
        ("DDIMScheduler", {}, "sdxl"),
    ],
)
def test_a_few_step_scheduler_gives_the_distillation_away(
    scheduler: str, changes: dict[str, Any], family: str, tmp_path: Path
) -> None:
    config = {**PUBLISHED["sdxl"]["scheduler"], "_class_name": scheduler, **changes}
    assert (
        doctor(write(tmp_path, {**PUBLISHED["sdxl"], "scheduler": config}), steps=4).family
        == family
    )


def test_a_pipeline_object_is_read_as_its_folder_is(folders: dict[str, str]) -> None:
    import diffusers

    facts = PUBLISHED["svd_xt"]
    pipe = type("StableVideoDiffusionPipeline", (), {})()
    pipe.scheduler = diffusers.EulerDiscreteScheduler.from_config(facts["scheduler"])
    pipe.unet = SimpleNamespace(config=facts["network"]["unet"])
    made, read = doctor(pipe, steps=4), doctor(folders["svd_xt"], steps=4)
    assert (made.family, made.process, made.time) == (read.family, read.process, read.time)
    assert made.combination.times == read.combination.times


@pytest.mark.parametrize("name", zoo.MODELS)
def test_a_shipped_model_is_recommended_what_its_card_says(name: str) -> None:
    found, card = doctor(name), zoo.card(name)
    assert found.presets[0].steps == found.combination.steps == card.default_steps
    assert found.presets[0].guidance == card.default_guidance
    assert found.combination.sound, found.combination.findings


def test_pipelines_are_read_for_what_they_do_with_their_scheduler(folders: dict[str, str]) -> None:
    svd, xl, flux = (facts.loop(facts.read(folders[n])) for n in ("svd", "sdxl", "flux_dev"))
    assert (svd.begins, svd.generator, svd.lists, svd.steps) == (False, False, ("sigmas",), 25)
    assert (xl.begins, xl.generator, xl.init) == (True, True, True)
    for unreadable in (
        "NoSuchPipeline",
        "DiffusionPipeline",
    ):  # diffusers has none, or one without a loop
        assert facts.loop(facts.Facts("", unreadable, {})) == facts.Loop()
    assert (flux.begins, flux.sigmas, flux.mu, flux.init) == (True, True, True, False)


# -- what diffusers does wrong ---------------------------------------------------------------------
def test_the_recommended_svd_recipe_is_found_to_fail(folders: dict[str, str]) -> None:
    found = tried(folders["svd_xt"], "dpmpp_2m/karras", 10, timestep_spacing="trailing")
    assert "step 10 of 10: IndexError" in said(found, "fails")
    assert found.times[:5] == (999.0,) * 5
    assert "at every call the network gets time 999 (x5)" in said(found, "wrong")
    assert "timestep_spacing='trailing' changes nothing" in said(found, "ignored")
    assert not found.sound
    assert found.ours.calls == 10
    assert found.ours.times[0] == pytest.approx(1.6378, abs=1e-3)
    assert found.ours.times[-1] == pytest.approx(-1.5537, abs=1e-3)
    assert found.ours.left == pytest.approx(0, abs=1e-9)


def test_flags_that_a_class_does_not_have_are_found(folders: dict[str, str]) -> None:
    found = tried(folders["sdxl"], "DDIMScheduler", use_karras_sigmas=True, banana=3)
    assert "use_karras_sigmas=True is dropped" in said(found, "ignored")
    assert "banana=3 is dropped" in said(found, "ignored")
    assert "unknown argument of DDIMScheduler" in found.ours.refused


def test_a_lost_shift_is_found_and_giving_it_makes_the_combination_sound(
    folders: dict[str, str],
) -> None:
    lost = tried(folders["sd35_large"], "dpmpp_2m")
    assert "it visits sigmas" in said(lost, "wrong")
    flow = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
    assert tried(folders["sd35_large"], "DPMSolverMultistepScheduler", **flow, flow_shift=3.0).sound
    taken = tried(folders["sd35_large"], "DPMSolverMultistepScheduler")
    assert "takes it for a variance preserving model" in said(taken, "wrong")


@pytest.mark.parametrize(("sampler", "left"), [("deis", 0.0993), ("euler", 0.0)])
def test_noise_that_stays_in_the_result_is_measured(
    sampler: str, left: float, folders: dict[str, str]
) -> None:
    found = tried(folders["sd35_large"], sampler)
    assert found.left == pytest.approx(left, abs=1e-3)
    assert ("noise of standard deviation" in said(found, "wrong")) == (left > 0.05)
    assert found.ours.left == pytest.approx(0, abs=1e-9)


def test_epsilon_at_pure_noise_is_found_and_refused_by_timonel(folders: dict[str, str]) -> None:
    flags = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    found = tried(folders["sdxl"], "DDIMScheduler", **flags)
    assert said(found, "fails") in ("the result is NaN", "the result is not finite")
    assert "pure noise" in found.ours.refused


@pytest.mark.parametrize(
    ("sampler", "sound"), [("ddim/ays_sdxl", False), ("dpmpp_2m/ays_sdxl", True)]
)
def test_a_published_list_is_given_and_taken_or_not(
    sampler: str, sound: bool, folders: dict[str, str]
) -> None:
    found = tried(folders["sdxl"], sampler)
    assert found.sound == sound
    assert ("which DDIMScheduler does not take" in said(found, "fails")) != sound
    assert found.ours.times == pytest.approx((999, 845, 730, 587, 443, 310, 193, 116, 53, 13))


def test_karras_that_begins_elsewhere_is_found(folders: dict[str, str]) -> None:
    assert "begins at sigma 8.39, 'karras' at 14.6" in said(
        tried(folders["sdxl"], "euler/karras"), "wrong"
    )
    assert tried(folders["sdxl"], "dpmpp_2m/karras").sound


def test_a_class_that_mixes_up_the_data_is_found(folders: dict[str, str]) -> None:
    found = tried(folders["svd"], "EDMEulerScheduler")
    assert "sigma_data is 0.5 where the model has 1" in said(found, "wrong")
    assert tried(folders["svd"], "EDMEulerScheduler", sigma_data=1.0).sound


@pytest.mark.parametrize(
    ("name", "sampler", "steps", "other"),
    [
        ("sd2_v", "pndm", 5, "unipc"),  # mixes v-predictions of several levels
        (
            "sdxl",
            "dpmpp_3m_sde/karras",
            24,
            "dpmpp_2m_sde/karras",
        ),  # a sign is wrong in the third order
    ],
)
def test_wrong_mathematics_shows_in_the_spread(
    name: str, sampler: str, steps: int, other: str, folders: dict[str, str]
) -> None:
    assert "data of standard deviation 0.5 come out with" in said(
        tried(folders[name], sampler, steps), "wrong"
    )
    assert tried(folders[name], other, steps).sound


@pytest.mark.parametrize("sampler", ["dpmpp_sde/karras", "dpm2", "heun", "dpmpp_2s"])
def test_samplers_with_levels_between_the_steps_get_no_complaint(
    sampler: str, folders: dict[str, str]
) -> None:
    found = tried(folders["sd1"], sampler, 8)
    assert found.sound, found.findings


def test_the_defaults_of_diffusers_are_those_of_the_installed_one() -> None:
    quoted = [
        (p, p.source.split()[-1])
        for presets in PRESETS.values()
        for p in presets
        if "defaults of" in p.source
    ]
    assert len(quoted) > 5
    for preset, name in quoted:
        habits = facts.loop(facts.Facts("", name, {}))
        assert habits.steps == preset.steps
        assert preset.guidance in (None, habits.guidance)


def test_what_only_timonel_has_is_no_complaint(folders: dict[str, str]) -> None:
    found = tried(folders["sdxl"], "er_sde/kl_optimal")
    assert found.sound
    assert "no scheduler for 'er_sde'" in said(found, "note")
    assert found.ours.calls == 10


class Told:
    """An Euler scheduler on a flow, exact but for what it tells the network and where it ends."""

    config: ClassVar[dict[str, Any]] = {}

    def __init__(self, shift: float = 0.0, end: float = 0.0) -> None:
        self.shift, self.end = shift, end

    def set_timesteps(self, steps: int, device: object) -> None:
        self.sigmas = torch.linspace(1, self.end, steps + 1)
        self.timesteps = (1000 * self.sigmas[:-1] - self.shift).clamp(min=1)
        self.k = 0

    def step(
        self, raw: torch.Tensor, t: torch.Tensor, x: torch.Tensor, return_dict: bool
    ) -> tuple[torch.Tensor]:
        self.k += 1
        return (x + (self.sigmas[self.k] - self.sigmas[self.k - 1]) * raw,)


@pytest.mark.parametrize(("shift", "end"), [(0.0, 0.0), (100.0, 0.0), (0.0, 0.2)])
def test_the_trial_finds_what_is_wrong_and_nothing_else(
    shift: float, end: float, folders: dict[str, str]
) -> None:
    process = facts.read(folders["sd35_large"]).process
    loop = facts.Loop(init=False, scales=False, generator=False)
    done = dry_run.run(Told(shift, end), loop, process, "flow", 10, {})
    assert not done.error
    assert (len(done.off) > 5) == (shift > 0)
    if not shift:
        assert done.left == pytest.approx(end, abs=1e-4)


def test_an_examination_changes_nothing_global(folders: dict[str, str]) -> None:
    logger = logging.getLogger("diffusers")
    before, state = logger.level, torch.get_rng_state()
    tried(folders["svd"], "dpmpp_2m_sde/karras")
    assert logger.level == before
    assert torch.equal(torch.get_rng_state(), state)


# -- what suits it ---------------------------------------------------------------------------------
@pytest.mark.parametrize("name", PUBLISHED)
def test_all_that_is_advised_can_be_done(name: str, folders: dict[str, str]) -> None:
    found, process = doctor(folders[name], steps=2), facts.read(folders[name]).process
    for sampler in found.samplers:
        for grid in found.grids:
            assert Sampler(sampler.name, grid=grid.name, steps=6).compile(process).nfe >= 6
    for preset in (*found.presets, *(p for presets in found.alike.values() for p in presets)):
        options = dict(preset.options)
        shift = {} if preset.shift is None else {"shift": preset.shift}
        made = Sampler(preset.sampler, steps=preset.steps, options=options, grid_options=shift)
        assert made.compile(process).steps == preset.steps
    for grid, why in found.refused.items():
        with pytest.raises(ArgumentError):
            grids.make(grid, process, 10)
        assert why


def test_every_family_has_presets_and_every_preset_a_source() -> None:
    assert set(FAMILIES) == set(PRESETS)
    for row in FAMILIES.values():
        assert set(row.alike) <= set(FAMILIES)
        assert not row.alike or row.doubt
    assert all(
        preset.source and preset.steps > 0 for presets in PRESETS.values() for preset in presets
    )


def test_steps_are_the_recommendations_unless_given(folders: dict[str, str]) -> None:
    assert doctor(folders["sdxl"], "dpmpp_2m/ays_sdxl").combination.steps == 10
    assert doctor(folders["sdxl"], "DPM++ 2M SDE Karras").combination.steps == 20
    assert doctor(folders["flux_schnell"]).combination.steps == 4
    assert doctor(folders["flux_schnell"], steps=3).combination.steps == 3


# -- bad input -------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("model", "sampler", "options", "error", "words"),
    [
        ("nowhere", None, {}, ModelError, "no model 'nowhere'"),
        ("emoji", "dpmp_2m", {}, UnknownName, "'dpmpp_2m'"),
        ("emoji", "dpmpp_2m/karas", {}, UnknownName, "karras"),
        ("emoji", "DIMScheduler", {}, UnknownName, "known: DDIMScheduler"),
        ("emoji", None, {"steps": 0}, ArgumentError, "steps must be a whole number"),
        ("emoji", None, {"flags": {"shift": 3}}, ArgumentError, "belong to a sampler"),
        ("emoji", 3, {}, ArgumentError, "name the sampler"),
        (object(), None, {}, ModelError, "diffusers pipeline with a scheduler; got object"),
    ],
)
def test_what_cannot_be_examined_is_refused_with_the_remedy(
    model: Any, sampler: Any, options: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        doctor(model, sampler, **options)


def test_a_folder_without_a_readable_scheduler_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text("{}")
    with pytest.raises(ModelError, match=r"no scheduler/scheduler_config\.json"):
        doctor(tmp_path)
    (tmp_path / "scheduler").mkdir()
    (tmp_path / "scheduler" / "scheduler_config.json").write_text("{")
    with pytest.raises(ModelError, match="cannot be read"):
        doctor(tmp_path)
    (tmp_path / "scheduler" / "scheduler_config.json").write_text("[1]")
    with pytest.raises(ModelError, match="holds list"):
        doctor(tmp_path)


def test_of_a_hub_name_only_the_configurations_are_fetched(
    folders: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}

    def fetch(name: str, allow_patterns: list[str]) -> str:
        asked[name] = allow_patterns
        return folders["svd_xt"]

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    assert doctor("someone/video", steps=2).family == "svd_xt"
    assert all(pattern.endswith(".json") for pattern in asked["someone/video"])

    def fail(name: str, allow_patterns: list[str]) -> str:
        raise OSError("offline")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    with pytest.raises(ModelError, match="did not give it: offline"):
        doctor("someone/video")


@pytest.mark.parametrize("flag", ["trailing", "=3", "a b=3"])
def test_a_flag_is_key_and_value(flag: str) -> None:
    with pytest.raises(ArgumentError, match="takes KEY=VALUE"):
        parsed([flag])
    assert parsed(["a=true", "b=None", "c=3", "d=0.5", "e=x=y"]) == {
        "a": True, "b": None, "c": 3, "d": 0.5, "e": "x=y",
    }  # fmt: skip


# -- the command -----------------------------------------------------------------------------------
def test_the_report_is_in_order_and_fits_a_screen(folders: dict[str, str]) -> None:
    found: Diagnosis = doctor(folders["svd_xt"], "dpmpp_2m/karras")
    text = found.report()
    heads = [
        "Stable Video Diffusion XT",
        "What suits it",
        "Your combination: dpmpp_2m/karras",
        "Recommended",
    ]
    places = [text.index(head) for head in heads]
    assert places == sorted(places)
    assert all(len(line) <= 110 for line in text.splitlines())
    assert len(text.splitlines()) <= 50


def test_the_command_prints_the_report_or_json(folders: dict[str, str]) -> None:
    asked = ["doctor", folders["svd_xt"], "--sampler", "DPM++ 2M Karras", "--steps", "10"]
    flags = ["--flag", "timestep_spacing=trailing"]
    shown = CliRunner().invoke(app, [*asked, *flags])
    assert shown.exit_code == 0
    assert "FAILS" in shown.output
    assert "\x1b" not in shown.output  # no colours into a pipe
    printed = CliRunner().invoke(app, [*asked, *flags, "--json"])
    data = json.loads(printed.output)
    expected = doctor(
        folders["svd_xt"], "DPM++ 2M Karras", 10, flags={"timestep_spacing": "trailing"}
    ).to_dict()
    assert data == json.loads(json.dumps(expected))
    assert data["sound"] is False
    assert data["combination"]["left"] is None  # NaN is no JSON


def test_the_command_says_what_was_wrong(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["timonel", "doctor", "nowhere"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    assert "timonel: no model 'nowhere'" in capsys.readouterr().err


def test_the_page_is_that_of_the_tables() -> None:
    assert (DOCS / "doctor.md").read_text("utf-8") == make_doctor.page()


# -- a scheduler that was made in code -------------------------------------------------------------
def constructed() -> dict[str, Any]:
    """Every scheduler of diffusers that can be made without arguments, by its class."""
    found = {}
    for name in dir(diffusers.schedulers):
        cls = getattr(diffusers, name, None)
        if name.endswith("Scheduler") and isinstance(cls, type):
            with contextlib.suppress(
                TypeError
            ):  # of tokens or proteins: their own sizes are missing
                found[name] = cls()
    return found


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of numpy, about diffusers
def test_a_scheduler_made_in_code_is_examined_as_the_one_that_is_loaded(tmp_path: Path) -> None:
    schedulers = {name: made for name, made in constructed().items() if name not in SILENT}
    assert len(schedulers) >= 40
    for name, scheduler in schedulers.items():
        assert "_class_name" not in scheduler.config
        found = doctor(scheduler, steps=2)
        assert found.scheduler == name
        assert found.report()
        json.dumps(found.to_dict(), allow_nan=False)
        scheduler.save_pretrained(tmp_path / name / "scheduler")
        for same in (str(tmp_path / name), SimpleNamespace(scheduler=scheduler, config={})):
            one, other = facts.read(same), facts.read(scheduler)
            assert one.scheduler_class == name
            assert one.prediction == other.prediction
            ends = [
                (f.process.kind, f.process.sigma_max, f.process.sigma_min) for f in (one, other)
            ]
            assert ends[0] == ends[1], name


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of numpy, about diffusers
def test_a_scheduler_whose_process_is_not_ours_is_refused_with_the_reason() -> None:
    schedulers = {name: made for name, made in constructed().items() if name in SILENT}
    assert len(schedulers) > 4
    for name, scheduler in schedulers.items():
        with pytest.raises(ArgumentError, match=f"{name}.*{SILENT[name]}"):
            doctor(scheduler, steps=2)


@pytest.mark.parametrize(
    ("name", "process"),
    [
        ("CosineDPMSolverMultistepScheduler", "EDM, sigma 500 to 0.3"),
        ("CMStochasticIterativeScheduler", "EDM, sigma 80 to 0.002"),
        ("LTXEulerAncestralRFScheduler", "rectified flow, t from 1 to 0, shift 1"),
        ("FlowMapEulerDiscreteScheduler", "rectified flow, t from 1 to 0, shift 1"),
        ("UnCLIPScheduler", "variance preserving, 1000 levels, sigma 2.03e+04 to 0.00643"),
    ],
)
def test_a_name_that_says_nothing_of_the_process_leaves_it_to_the_keys(
    name: str, process: str
) -> None:
    assert doctor(getattr(diffusers, name)(), steps=4).process == process


def test_a_scheduler_of_ones_own_counts_as_the_class_it_is_of() -> None:
    class Mine(diffusers.EulerDiscreteScheduler):  # type: ignore[misc]
        pass

    assert doctor(Mine(), steps=4).scheduler == "EulerDiscreteScheduler"
    with pytest.raises(ModelError, match="a diffusers scheduler or"):
        doctor(object())
