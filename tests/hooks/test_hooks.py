"""Laws of hooks: they act where they say, fail with a name, and their changes last."""

from __future__ import annotations

import io
import json
import math
import subprocess
import sys
from contextlib import contextmanager

import pytest
import torch

import timonel as tm
from timonel import grids
from timonel.core import solvers
from timonel.core.process import Exploding, Level
from timonel.errors import ArgumentError, GuardStop, HookError
from timonel.hooks import progress as progress_module

PROCESS = tm.VP.from_schedule()
MEAN, STD = torch.tensor([0.7, -0.4, 0.2], dtype=torch.float64), 0.5


def gaussian(x, level):
    """The exact denoiser of data N(MEAN, STD²)."""
    gain = level.alpha * STD**2 / (level.alpha**2 * STD**2 + level.sigma**2)
    return MEAN.to(x.dtype) + gain * (x - level.alpha * MEAN.to(x.dtype))


def constant(x, level):
    return MEAN.expand_as(x).clone()


def start(batch=2, dtype=torch.float64):
    return torch.randn(
        batch, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64
    ).to(dtype)


def begin(hooks=(), sampler="dpmpp_2m/karras", steps=6, x=None, **options):
    x = start() if x is None else x
    return tm.begin(x, sampler, process=PROCESS, steps=steps, hooks=hooks, **options)


def drive(run, denoiser=gaussian, **options):
    for _ in tm.iterate(run, denoiser, **options):
        pass
    return run


# -- stop and edit -------------------------------------------------------------------------------
def test_a_run_stops_after_the_step_at_which_the_condition_holds():
    run = drive(begin([tm.stop_when(lambda run: run.step == 4, "enough")]))
    assert (run.status, run.step, run.reason) == ("stopped", 4, "enough")
    assert torch.equal(run.result, run.denoised)
    with pytest.raises(ArgumentError, match="function"):
        tm.stop_when(True)


def by_place(x):
    x.add_(0.25)


def by_value(x):
    return x + 0.25


@pytest.mark.parametrize("change", [by_place, by_value])
@pytest.mark.parametrize("sampler", ["ddim", "euler", "heun", "dpmpp_2m", "dpmpp_3m", "unipc"])
def test_an_edit_is_carried_on_exactly_by_every_solver(sampler, change):
    """With a constant denoiser a shift d at sigma becomes d·sigma'/sigma at every later level."""
    plain, edited = [], []
    drive(begin([lambda run: plain.append(run.latents.clone())], f"{sampler}/karras", 8), constant)

    def record(run: tm.Run) -> None:
        edited.append((run.latents.clone(), run.level.sigma))

    run = drive(begin([tm.edit(change, at=3), record], f"{sampler}/karras", 8), constant)
    assert run.status == "done"
    at = edited[2][1]
    for step, (before, (after, sigma)) in enumerate(zip(plain, edited, strict=True), 1):
        shift = 0.25 * sigma / at if step >= 3 else 0.0
        torch.testing.assert_close(
            after - before, torch.full_like(after, shift), atol=1e-12, rtol=0
        )


def test_unipc_keeps_an_edit_on_a_linear_model():
    """In the table, the edit shifts the corrected sample of the edited row, whatever x was."""
    d, at = 0.25, 4
    table = tm.Sampler("unipc/karras", steps=8).compile(PROCESS)
    names, x, base, history = table.registers, start(), start(), []
    for k in range(table.nfe):
        x = x + d if k == at else x
        h0 = gaussian(
            x, type("At", (), {"alpha": float(table.alpha[k]), "sigma": float(table.sigma[k])})
        )
        registers = dict(
            zip(
                names,
                [x, base, *([h0, *history] + [x * 0] * 9)[: table.history], x * 0],
                strict=True,
            )
        )
        row_x, row_base = (
            dict(zip(names, v.tolist(), strict=True)) for v in (table.x[k], table.base[k])
        )
        new, corrected = (sum(row[n] * registers[n] for n in names) for row in (row_x, row_base))
        if (
            k == at
        ):  # at this row x is seen only by the network; its shift has to reach the corrected sample
            assert row_base["x"] == 0
            corrected = corrected + d
            new = new + d * row_x["base"] / row_base["base"]
        x, base, history = new, corrected, [h0, *history]
    for change in (by_place, by_value):
        run = drive(begin([tm.edit(change, at=at)], "unipc/karras", 8))
        torch.testing.assert_close(run.result, x, atol=1e-12, rtol=0)
    assert (drive(begin((), "unipc/karras", 8)).result - x).abs().min() > 1e-3


def between_calls(table, at, shift):
    """The sample x0 + (sigma / alpha)·noise after the row that follows an edit of it by `shift`."""
    run = tm.Run(table, "sample", noise=lambda row, like: torch.zeros_like(like))
    run.start(start() * table.alpha[0] * 20)
    for k in range(at + 1):
        if k == at:
            run.latents = run.latents + shift * float(table.alpha[k])
        level = run.level
        x = run.latents / level.alpha
        run.advance(gaussian(x, type("At", (), {"alpha": 1.0, "sigma": level.sigma / level.alpha})))
    return run.latents / run.level.alpha


@pytest.mark.parametrize(
    "name",
    ["heun", "dpm2", "rk4", "dpmpp_2s", "dpmpp_sde", "res_3s", "dpm_fast", "pndm", "heunpp2"],
)
def test_an_edit_between_two_calls_of_a_step_means_the_same_in_any_coordinates(name):
    """In samples x0 + s·noise an edit moves the base as it is; at unit variance it is scaled."""
    grid = grids.make("karras", PROCESS, 6)
    exploding = Exploding(PROCESS)
    moved = type(grid)(
        exploding, *exploding.of(Level(grid.alpha, grid.sigma, grid.time)), grid.name
    )
    changes = []
    for each in (grid, moved):
        table = solvers.make(name, each)
        at = max(k for k in range(4) if k != table.first_row(table.step[k]))
        plain, edited = (between_calls(table, at, shift) for shift in (0.0, 0.25))
        changes.append(edited - plain)
    assert float(changes[0].abs().min()) > 1e-3
    torch.testing.assert_close(changes[0], changes[1], rtol=1e-6, atol=1e-9)


def test_an_edit_applies_at_the_named_steps_only():
    seen = []
    drive(begin([tm.edit(lambda x: seen.append(x.clone()), at=[2, 5])]))
    assert len(seen) == 2
    drive(begin([tm.edit(lambda x: seen.append(x.clone()))]))
    assert len(seen) == 2 + 6


def test_an_edit_after_the_last_step_changes_the_result_and_keeps_the_dtype():
    plain = drive(begin(x=start(dtype=torch.float32))).result
    run = drive(begin([tm.edit(lambda x: x.double() + 1, at=6)], x=start(dtype=torch.float32)))
    assert run.result.dtype == torch.float32
    assert torch.equal(run.result, plain + 1)


@pytest.mark.parametrize("at", [0, -1, 7, [2, 9], [], 2.5, True])
def test_an_edit_outside_the_steps_is_refused(at):
    with pytest.raises((ArgumentError, TypeError)):
        begin([tm.edit(by_place, at=at)])


@pytest.mark.parametrize("change", [lambda x: x[:1], lambda x: 3, lambda x: x.resize_(2, 4)])
def test_an_edit_that_changes_the_shape_is_refused(change):
    with pytest.raises(ArgumentError, match="edit"):
        drive(begin([tm.edit(change, at=2)]))


# -- failing -------------------------------------------------------------------------------------
def test_a_hook_that_raises_ends_the_run_and_is_named_with_its_step():
    def careless(run):
        if run.step == 3:
            raise ZeroDivisionError("oh")

    run = begin([careless])
    with pytest.raises(HookError, match=r"'careless' raised at step 3 of 6.*oh") as caught:
        drive(run)
    assert run.status == "failed"
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    assert run.step == 3


@pytest.mark.parametrize("what", [math.nan, math.inf, 1e6])
def test_guard_names_the_step_the_level_and_the_sample(what):
    def breaks(x, level):
        out = gaussian(x, level)
        if run.step == 3:
            out[1, 2] = what
        return out

    run = begin([tm.guard()])
    with pytest.raises(
        GuardStop, match=r"denoised prediction of sample 1 of 2.*at step 4 of 6, level alpha="
    ) as caught:
        drive(run, breaks)
    assert run.status == "failed"
    assert ("exploded to rms" if what == 1e6 else "NaN or infinity in 1 of 3") in str(caught.value)
    assert "Try: " in str(caught.value)
    assert f"time={run.called_at.time:.6g}" in str(caught.value)


def test_guard_sees_a_broken_start_an_edit_and_nothing_else():
    with pytest.raises(GuardStop, match="initial latents of every sample"):
        begin([tm.guard()], x=start() * math.nan)
    with pytest.raises(GuardStop, match=r"latents of every sample.*at step 2"):
        drive(begin([tm.edit(lambda x: x * 1e6, at=2), tm.guard(1e4)]))
    assert drive(begin([tm.guard()])).status == "done"
    assert drive(begin([tm.guard()], x=start(dtype=torch.float16))).status == "done"
    with pytest.raises(ArgumentError):
        tm.guard(math.nan)


# -- trace ---------------------------------------------------------------------------------------
def test_trace_measures_every_step(tmp_path):
    trace, seen = tm.trace(), []
    run = drive(
        begin(
            [trace, lambda r: seen.append((r.latents.clone(), r.denoised.clone()))],
            "heun/karras",
            5,
        )
    )
    assert [row["step"] for row in trace.rows] == [1, 2, 3, 4, 5]
    assert [row["nfe"] for row in trace.rows] == [2, 4, 6, 8, 9]
    assert trace.rows[0]["cosine"] is None
    for i, (row, (x, clean)) in enumerate(zip(trace.rows, seen, strict=True)):
        assert row["latents"] == pytest.approx(x.square().mean().sqrt().item(), rel=1e-5)
        assert row["denoised"] == pytest.approx(clean.square().mean().sqrt().item(), rel=1e-5)
        assert row["ratio"] == pytest.approx(row["sigma"] / row["alpha"])
        assert row["seconds"] >= 0
        if i:
            turn = torch.nn.functional.cosine_similarity(clean, seen[i - 1][1]).mean().item()
            assert row["cosine"] == pytest.approx(turn, abs=1e-5)
    assert trace.rows[-1]["time"] == run.called_at.time
    lines = trace.table().splitlines()
    assert len({len(line) for line in lines}) == 1
    assert len(lines) == 6
    trace.to_json(tmp_path / "trace.json")
    assert json.loads((tmp_path / "trace.json").read_text())[4]["nfe"] == 9


def test_trace_of_a_start_at_pure_noise_is_valid_json(tmp_path):
    trace = tm.trace()
    drive(tm.begin(start(), "euler", process=tm.Flow(1.0), steps=3, hooks=[trace]))
    assert trace.rows[0]["ratio"] == math.inf
    trace.to_json(tmp_path / "t.json")
    assert json.loads((tmp_path / "t.json").read_text())[0]["ratio"] is None


# -- checkpoint ----------------------------------------------------------------------------------
@pytest.mark.parametrize("sampler", ["unipc/karras", "dpmpp_2m_sde/karras", "heun/karras"])
def test_every_checkpoint_continues_to_the_same_bits(tmp_path, sampler):
    def nudge(run):  # in place, as a user would
        run.latents[:, 0] += 0.1

    seeds = [4, 5] if "sde" in sampler else None
    hooks = [nudge, tm.checkpoint(tmp_path / "run-{step}.safetensors", every=2)]
    whole = drive(begin(hooks, sampler, 5, seeds=seeds)).result
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        f"run-0{i}.safetensors" for i in (2, 4, 5)
    ]
    for step in (2, 4, 5):
        run = tm.Run.load(tmp_path / f"run-0{step}.safetensors", hooks=[nudge])
        assert run.step == step
        assert torch.equal(drive(run).result, whole)


def test_a_branch_made_in_a_hook_has_the_edits_made_before_it():
    twins = []

    def split(run):
        if run.step == 3:
            run.latents[:, 0] += 0.1
            twins.append(run.branch())

    run = drive(begin([split], "unipc/karras"))
    assert torch.equal(drive(twins[0]).result, run.result)


def test_one_checkpoint_file_is_replaced_and_a_stopped_run_is_saved(tmp_path):
    path = tmp_path / "run.safetensors"
    drive(begin([tm.checkpoint(path, every=4), tm.stop_when(lambda run: run.step == 5)]))
    assert tm.Run.load(path).step == 5
    assert [p.name for p in tmp_path.iterdir()] == ["run.safetensors"]
    with pytest.raises(ArgumentError, match="is a folder"):
        tm.checkpoint(tmp_path)


def test_hooks_work_on_a_run_that_was_loaded_and_has_no_start(tmp_path):
    drive(
        begin([tm.checkpoint(tmp_path / "a.safetensors"), tm.stop_when(lambda run: run.step == 2)])
    )
    trace = tm.trace()
    hooks = [
        trace,
        tm.guard(),
        tm.progress(),
        tm.edit(by_place, at=3),
        tm.checkpoint(tmp_path / "b.safetensors"),
    ]
    drive(tm.Run.load(tmp_path / "a.safetensors", hooks=hooks))
    assert [row["step"] for row in trace.rows] == [3, 4, 5, 6]
    assert trace.rows[0]["seconds"] is None
    assert "-" in trace.table()


# -- progress ------------------------------------------------------------------------------------
class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self):
        return True


@contextmanager
def terminal(monkeypatch):
    """A terminal as standard error; nothing may be left on it."""
    screen = Terminal()
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", screen)
        yield screen
        assert progress_module._BARS._display is None
        assert sys.stderr is screen


def test_without_a_terminal_progress_is_a_line_every_tenth(capsys):
    guidance = tm.cfg(3.0, until=0.5)
    drive(begin([tm.progress("cat")], steps=20, guidance=guidance), unconditional=gaussian)
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert out == ""
    assert len(lines) == 10
    assert lines[0].startswith("cat: step 2/20  ")
    assert "s/step" in lines[0]
    assert lines[0].endswith("guidance on")
    assert lines[-1].endswith("guidance off")


def test_on_a_terminal_progress_is_a_bar_that_ends(monkeypatch):
    with terminal(monkeypatch) as screen:
        drive(begin([tm.progress("cat")]))
    for text in ("cat", "6/6", "s/step", "σ 0.03"):
        assert text in screen.getvalue()


def test_bars_of_runs_within_runs_share_the_screen(monkeypatch):
    def inner(run):
        if run.step in (2, 4):
            drive(begin([tm.progress("inner")], steps=3))

    with terminal(monkeypatch) as screen:
        drive(begin([tm.progress("outer"), inner]))
    for text in ("outer", "inner", "3/3", "6/6"):
        assert text in screen.getvalue()


def test_the_bar_of_a_failed_run_is_taken_down(monkeypatch):
    def fails(run):
        raise ValueError

    with terminal(monkeypatch):
        run = begin([tm.progress(), fails])
        with pytest.raises(HookError):
            drive(run)
        assert run.status == "failed"
        assert progress_module._BARS._display is None


def test_a_stopped_run_says_why(capsys):
    drive(begin([tm.progress(), tm.stop_when(lambda run: run.step == 2, "enough")]))
    assert capsys.readouterr().err.splitlines()[-1] == "stopped after step 2/6: enough"


def test_progress_survives_a_closed_or_poor_stream(monkeypatch):
    closed = io.StringIO()
    closed.close()
    poor = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    for stream in (closed, poor, None):
        monkeypatch.setattr(sys, "stderr", stream)
        assert drive(begin([tm.progress("gato ñ")])).status == "done"
    poor.seek(0)
    assert "6/6" in poor.read()


# -- imports -------------------------------------------------------------------------------------
def test_importing_hooks_imports_nothing_heavy():
    code = (
        "import sys, torch; before = set(sys.modules); import timonel as tm\n"
        "names = 'preview save_steps stop_when edit trace guard checkpoint progress'\n"
        "[getattr(tm, n) for n in names.split()]\n"
        "import timonel.hooks.collect\n"
        "heavy = {'PIL', 'rich', 'matplotlib', 'numpy', 'safetensors', 'diffusers'}\n"
        "print(heavy & (set(sys.modules) - before))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "set()"
