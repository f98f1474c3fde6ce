"""A run that goes on with another sampler, other steps or levels from a step on."""

from __future__ import annotations

import math
import random
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import timonel as tm
from timonel import Run, Sampler
from timonel.core import solvers, tail
from timonel.core.legs import Leg
from timonel.core.table import Table
from timonel.core.tail_levels import Turn, levels
from timonel.engine.loop import begin, iterate
from timonel.errors import ArgumentError, GridError, RunError, TimonelError, UnknownName
from timonel.exact import Gaussian

MODEL = Gaussian(torch.tensor([0.5, -1.0, 2.0]), torch.tensor([0.3, 1.0, 0.7]))
PROCESSES: dict[str, tuple[Any, str]] = {
    "vp": (tm.VP.from_schedule(), "karras"),
    "edm": (tm.EDM(0.002, 80), "karras"),
    "flow": (tm.Flow(), "trailing"),
    "pure noise": (tm.VP.from_schedule(rescale_zero_snr=True), "trailing"),
}
START = torch.randn(2, 3, generator=torch.Generator().manual_seed(3))
SEEDS = [1, 2]
CASES = 60  # of the product solvers x solvers x processes


def denoise(x: Tensor, level: Any) -> Tensor:
    return MODEL(x, level)


def begun(name: str, process: Any = None, steps: int = 10, x: Tensor = START, **more: Any) -> Run:
    made = PROCESSES["vp"][0] if process is None else process
    return begin(x, name, process=made, steps=steps, seeds=SEEDS, **more)


def forth(run: Run, steps: int | None = None) -> Run:
    """The run after so many more steps, or at its end."""
    turns = iterate(run, denoise, denoise if run.guidance is not None else None)
    for _ in turns if steps is None else range(steps):
        if steps is not None:
            next(turns)
    return run


def same(one: Table, other: Table) -> bool:
    fields = ("x", "base", "alpha", "sigma", "time")
    alike = all(torch.equal(getattr(one, key), getattr(other, key)) for key in fields)
    return alike and (one.step, one.legs) == (other.step, other.legs)


# -- the tail of the same ----------------------------------------------------------------------
@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("name", solvers.SOLVERS)
def test_a_tail_with_the_same_sampler_grid_and_steps_is_the_same_table(
    name: str, process: str
) -> None:
    made, grid = PROCESSES[process]
    sampler = Sampler(name, grid=grid, steps=9)
    try:
        table = sampler.compile(made)
    except TimonelError:
        return  # no sampler of this process
    for step in (1, 4, 7):
        turn = Turn(table, table.first_row(step), made, sampler)
        for again in (Sampler(name, grid=grid, steps=table.steps - step), Sampler(name)):
            assert same(tail.splice(turn, again), table)


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize(
    "name", ["euler", "dpmpp_2m", "dpmpp_3m", "dpmpp_2m_sde", "res_multistep", "lms", "deis"]
)
def test_rows_that_are_joined_are_those_of_the_same_solver_on_all_levels(
    name: str, process: str
) -> None:
    """The way by which other solvers come too: nothing is known of the rows before but levels."""
    made, grid = PROCESSES[process]
    table = Sampler(name, grid=grid, steps=9).compile(made)
    for step in (3, 6):
        joined = tail.splice(Turn(table, step, made), Sampler(name))
        assert joined.legs[-1].reads or name == "euler"
        assert torch.equal(joined.x, table.x)
        assert joined.step == table.step


def test_another_number_of_steps_is_on_the_grid_whose_level_is_nearest() -> None:
    made, _ = PROCESSES["edm"]
    run = forth(begun("euler/karras", made, 20), 10)
    here = run.level.ratio
    run.tail(steps=5)
    whole = {n: Sampler("euler/karras", steps=n).compile(made) for n in range(6, 40)}
    off = {n: abs(math.log(t.sigma[n - 5] / t.alpha[n - 5] / here)) for n, t in whole.items()}
    best = min(off, key=lambda n: off[n])
    assert torch.equal(run.table.sigma[11:], whole[best].sigma[best - 4 :])
    assert (run.steps, run.step, run.level.ratio) == (15, 10, here)
    assert off[best] < 0.3


# -- order -------------------------------------------------------------------------------------
def tail_error(first: str, then: str, steps: int, process: Any, count: int | None = None) -> float:
    """How far the first `count` steps of the tail, or all, are from where the exact flow ends."""
    run = forth(begun(first, process, steps, START.double()), steps // 2)
    x, at = run.latents.clone(), run.table.level(run.row)
    run.tail(then)
    forth(run, count)
    return float((run.latents - MODEL.solution(x, at, run.level)).abs().max())


def error_anew(first: str, then: str, steps: int, process: Any) -> float:
    """That of one step of a run that begins there."""
    old = forth(begun(first, process, steps, START.double()), steps // 2)
    come = levels(Turn(old.table, old.row, process), Sampler(then))
    run = Run(solvers.make(then, come))
    run.start(old.latents)
    forth(run, 1)
    return float((run.latents - MODEL.solution(old.latents, come[0], run.level)).abs().max())


@pytest.mark.parametrize(
    ("first", "then", "order"),
    [
        ("euler/karras", "dpmpp_2m", 2),
        ("euler/karras", "heun", 2),
        ("dpmpp_2m/karras", "res_multistep", 2),
        ("dpmpp_3m/karras", "deis", 3),
        ("lms/karras", "deis", 3),
        ("dpmpp_2m/karras", "unipc", 2),
        ("heun/karras", "euler", 1),
    ],
)
def test_a_run_that_changes_half_way_converges_with_the_order_of_its_tail(
    first: str, then: str, order: int
) -> None:
    process, _ = PROCESSES["edm"]
    errors = [tail_error(first, then, steps, process) for steps in (64, 128)]
    assert math.log2(errors[0] / errors[1]) > order - 0.35


def test_karras_half_way_and_then_ays_converges_with_the_order_of_the_tail() -> None:
    process, _ = PROCESSES["vp"]
    errors = []
    for steps in (24, 48):
        run = forth(begun("euler/karras", process, steps, START.double()), steps // 2)
        x, at = run.latents.clone(), run.table.level(run.row)
        run.tail("dpmpp_2m/ays")
        assert run.table.grid == "ays"
        errors.append(float((forth(run).result - MODEL.solution(x, at)).abs().max()))
    assert math.log2(errors[0] / errors[1]) > 1.6


@pytest.mark.parametrize(
    ("first", "then"),
    [("euler/karras", "dpmpp_2m"), ("dpmpp_3m/karras", "res_multistep"), ("lms/karras", "deis")],
)
def test_the_first_step_is_more_exact_with_the_predictions_of_the_rows_before(
    first: str, then: str
) -> None:
    process, _ = PROCESSES["edm"]
    assert tail_error(first, then, 64, process, 1) < 0.5 * error_anew(first, then, 64, process)


def test_what_is_read_of_the_rows_before_is_said() -> None:
    expected = {  # first, then, predictions that the new solver reads
        ("euler", "euler"): 0, ("euler", "dpmpp_2m"): 1, ("dpmpp_3m", "res_multistep"): 1,
        ("dpmpp_3m", "dpmpp_3m"): 2, ("lms", "deis"): 2, ("dpmpp_2m", "deis"): 1,
        ("euler", "unipc"): 1, ("euler", "sa_solver"): 0, ("dpmpp_2m", "heun"): 0,
        ("heun", "dpmpp_2m"): 0, ("euler_ancestral", "dpmpp_2m"): 1, ("euler_ancestral", "deis"): 0,
        ("euler", "plms"): 1,
    }  # fmt: skip
    for (first, then), reads in expected.items():
        run = forth(begun(f"{first}/karras"), 5)
        done = run.tail(then, steps=7)
        assert done.reads == reads, (first, then)
        assert len(run.table.legs[-1].reads) == reads
        assert ("starts anew" in str(done)) == (reads == 0)
        assert run.journey == (done,)


# -- every solver behind every other -----------------------------------------------------------
def pairs() -> list[tuple[str, str, str, int, int | None]]:
    pick = random.Random(17)
    names = list(solvers.SOLVERS)
    return [
        (pick.choice(names), pick.choice(names), pick.choice(list(PROCESSES)), pick.randint(0, 8),
         pick.choice([None, 3, 6]))
        for _ in range(CASES)
    ]  # fmt: skip


@pytest.mark.parametrize(("first", "then", "name", "step", "steps"), pairs())
def test_any_solver_goes_on_behind_any_other_bit_for_bit_after_all_that_is_done_to_the_run(
    first: str, then: str, name: str, step: int, steps: int | None, tmp_path: Path
) -> None:
    process, _ = PROCESSES[name]
    try:
        run = begun(first, process, keep=3)
        forth(run, min(step, run.steps - 1))
        run.tail(then, steps=steps)
    except GridError:  # no such levels: the grid lam from pure noise, restarts that rise
        return
    run.save(tmp_path / "run")
    twin, before = run.branch(), run.step
    result = forth(run).result
    assert bool(torch.isfinite(result).all())
    assert torch.equal(forth(twin).result, result)
    assert torch.equal(forth(Run.load(tmp_path / "run", process=process)).result, result)
    for back in {0, max(0, before - 1), before, before + 1}:
        run.rewind(back)
        assert torch.equal(forth(run).result, result)
    # the marginal of every level is kept: all data lies within a few standard deviations
    assert float((result - MODEL.mean).abs().max()) < 8


def test_a_deterministic_product_ends_near_the_exact_solution() -> None:
    pick, process = random.Random(4), PROCESSES["edm"][0]
    names = [n for n, spec in solvers.SOLVERS.items() if not spec.stochastic and spec.order]
    for _ in range(25):
        first, then = pick.choice(names), pick.choice(names)
        run = forth(begun(first, process, 24), pick.randint(2, 20))
        run.tail(then)
        end = MODEL.solution(START, run.table.level(0))
        alone = max(
            float((forth(begun(one, process, 24)).result - end).abs().max())
            for one in (first, then)
        )
        assert float((forth(run).result - end).abs().max()) < 3 * alone, (first, then)


# -- orders ------------------------------------------------------------------------------------
def test_a_tail_replaces_one_that_was_ordered_later_on_the_way() -> None:
    run = forth(begun("euler/karras"), 6)
    run.tail("dpmpp_2m", steps=2)
    forth(run)
    run.rewind(3)  # the steps up to there are computed again
    done = run.tail("heun")
    assert done.step == 3
    forth(run)
    assert run.journey == (done,)
    assert [leg.solver for leg in run.table.legs] == ["euler", "heun"]
    assert run.steps == 8  # the five that were to come since the first tail
    assert run.row == run.table.nfe == 3 + 2 * 5 - 1


def test_tails_follow_each_other_and_are_all_made_again() -> None:
    run = forth(begun("dpmpp_3m/karras", steps=12), 3)
    run.tail("lms")
    forth(run, 3)
    run.tail("deis", steps=4)
    forth(run, 2)
    run.tail("dpmpp_2m_sde")
    result = forth(run).result
    assert [one.step for one in run.journey] == [3, 6, 8]
    assert [leg.solver for leg in run.table.legs] == ["dpmpp_3m", "lms", "deis", "dpmpp_2m_sde"]
    run.rewind(0)
    assert torch.equal(forth(run).result, result)


def test_a_tail_in_a_hook_a_pause_and_another_thread_is_the_same_tail() -> None:
    def hook(run: Run) -> None:
        if run.step == 4 and not run.journey:
            run.tail("dpmpp_2m", steps=3)

    whole = forth(begun("euler/karras", hooks=[hook])).result
    paused = forth(begun("euler/karras"), 4)
    paused.pause()
    paused.tail("dpmpp_2m", steps=3)
    paused.resume()
    assert torch.equal(forth(paused).result, whole)
    run, inside, ordered = begun("euler/karras"), threading.Event(), threading.Event()

    def slow(x: Tensor, level: Any) -> Tensor:
        if run.row == 3:
            inside.set()
            ordered.wait(10)
        return denoise(x, level)

    def order() -> None:
        inside.wait(10)
        assert run.tail("dpmpp_2m", steps=3).step == 4  # the step under way ends first
        assert run.steps == 10
        ordered.set()

    thread = threading.Thread(target=order)
    thread.start()
    for _ in iterate(run, slow):
        pass
    thread.join()
    assert run.steps == 7
    assert torch.equal(run.result, whole)


def test_a_tail_inside_a_step_begins_at_its_end() -> None:
    run = begun("heun/karras")
    for _ in range(5):
        run.proceed()
        run.advance(denoise(run.latents, run.level))
    assert run.row == 5  # the first call of the third step is made
    assert run.tail("euler").step == 3
    forth(run)
    whole = forth(begun("heun/karras"), 3)
    whole.tail("euler")
    assert torch.equal(run.result, forth(whole).result)


def test_a_tail_that_draws_noise_follows_one_that_draws_none_and_the_other_way_round() -> None:
    run = forth(begun("euler/karras"), 5)
    run.tail("euler_ancestral")
    first = forth(run).result
    again = forth(begun("euler/karras"), 5)
    again.tail("euler_ancestral")
    assert torch.equal(forth(again).result, first)
    back = forth(begun("euler_ancestral/karras"), 5)
    back.tail("dpmpp_2m")
    assert not bool(back.table.x[5:, -1].any())
    forth(back)


def test_brownian_noise_goes_on_along_its_path(tmp_path: Path) -> None:
    process = PROCESSES["vp"][0]
    run = begin(
        START, Sampler("dpmpp_2m_sde", "karras", noise="brownian"), process=process, steps=8,
        seeds=SEEDS,
    )  # fmt: skip
    forth(run, 4)
    run.tail("dpmpp_sde", steps=5)
    run.save(tmp_path / "run")
    result = forth(run).result
    assert torch.equal(forth(Run.load(tmp_path / "run")).result, result)


def test_the_guidance_of_a_tail_holds_from_there_on_and_the_other_before(tmp_path: Path) -> None:
    def guided(**more: Any) -> Run:
        run = begun("euler/karras", guidance=tm.cfg(3.0, until=0.5), **more)
        return forth(run, 4)

    run = guided()
    run.tail("dpmpp_2m", steps=4, guidance=[1.0] * 4 + [2.0, 3.0, 1.0, 1.0])
    assert run.scale == 2.0
    run.save(tmp_path / "run")
    result = forth(run).result
    assert torch.equal(forth(Run.load(tmp_path / "run")).result, result)
    run.rewind(0)
    run.proceed()
    assert run.scale == 3.0  # of the rows before, in the steps that there were
    assert torch.equal(forth(run).result, result)
    kept = guided()
    kept.tail(steps=2)
    assert kept.guided.scales[4:] == (1.0, 1.0)  # 4 of 6 steps is behind the half


@pytest.mark.parametrize(
    "then", [3.0, tm.apg(4.0, norm_threshold=1.0, momentum=-0.5), tm.tcfg(3.0)], ids=str
)
def test_a_tail_of_another_method_begins_without_the_momentum_of_the_rows_before(
    then: Any, tmp_path: Path
) -> None:
    def there(**more: Any) -> Run:
        run = forth(
            begun("euler/karras", guidance=tm.apg(4.0, norm_threshold=2.0, momentum=-0.5), **more),
            4,
        )
        assert run.momentum is not None
        run.tail("dpmpp_2m", steps=4, guidance=then)
        return run

    assert there().momentum is None
    results = []
    for steps in (0, 2):
        run = forth(there(), steps)
        run.save(tmp_path / "run")
        twin, loaded = run.branch(), Run.load(tmp_path / "run")
        results += [forth(one).result for one in (run, twin, loaded)]
        run.rewind(2)
        results.append(forth(run).result)
    assert all(torch.equal(one, results[0]) for one in results)


def test_a_tail_of_the_same_method_keeps_its_momentum() -> None:
    run = forth(begun("euler/karras", guidance=tm.apg(4.0, norm_threshold=2.0, momentum=-0.5)), 4)
    before = run.momentum
    run.tail(steps=3)
    assert before is not None
    assert run.momentum is before


def test_guidance_that_needs_another_solver_is_a_tail_of_its_twin() -> None:
    run = forth(begun("euler/karras", guidance=3.0), 4)
    with pytest.raises(ArgumentError, match="for guidance alone"):
        run.tail(guidance=2.0)
    named = run.branch()
    named.tail("euler", guidance=tm.cfg_pp(0.6))
    run.tail(guidance=tm.cfg_pp(0.6))
    assert run.table.solver == "euler_cfg_pp"
    assert same(run.table, named.table)
    assert torch.equal(forth(run).result, forth(named).result)


# -- what is refused ---------------------------------------------------------------------------
def untouched(run: Run, error: type[Exception], match: str, *args: Any, **more: Any) -> None:
    """The order is refused, and the run goes on as if nobody had given it."""
    table, at = run.table, run.latents
    with pytest.raises(error, match=match):
        run.tail(*args, **more)
    assert run.table is table
    assert run.latents is at
    assert run.journey == ()


def test_what_no_tail_can_be_is_refused_and_the_run_stands_where_it_stood() -> None:
    run = forth(begun("euler/karras"), 5)
    whole = forth(begun("euler/karras")).result
    here = run.level.ratio
    untouched(run, UnknownName, "did you mean 'euler'", "eulr")
    untouched(run, ArgumentError, "a tail names what changes")
    untouched(run, ArgumentError, "steps", steps=0)
    untouched(run, GridError, "begin at or below the present one", sigmas=[2 * here, here / 2])
    untouched(run, GridError, "fall", sigmas=[here / 2, here / 2])
    untouched(run, ArgumentError, "names a grid", "euler/ays", grid="karras")
    untouched(run, ArgumentError, "part of a journey", Sampler("euler", strength=0.5))
    untouched(run, ArgumentError, "these levels make 2", sigmas=[here / 2, here / 4], steps=3)
    untouched(run, ArgumentError, "unconditional denoiser", "heun", guidance=4.0)
    assert torch.equal(forth(run).result, whole)


def test_a_tail_at_the_end_is_refused_with_the_call_that_goes_back() -> None:
    run = forth(begun("euler/karras"))
    with pytest.raises(RunError, match=r"run\.rewind\(step\)"):
        run.tail("heun")
    last: list[str] = []

    def hook(run: Run) -> None:
        if run.step == run.steps:
            with pytest.raises(RunError) as error:
                run.tail("heun")
            last.append(str(error.value))

    forth(begun("euler/karras", hooks=[hook]))
    assert len(last) == 1
    new = Run(run.table, process=PROCESSES["vp"][0])
    with pytest.raises(RunError, match="not started"):
        new.tail("heun")


def test_a_tail_that_draws_noise_needs_seeds_and_one_of_listed_scales_new_ones() -> None:
    process = PROCESSES["vp"][0]
    run = forth(begin(START, "euler/karras", process=process, steps=10), 5)
    untouched(run, ArgumentError, r"seeds=\[0\]", "euler_ancestral")
    listed = forth(begun("euler/karras", guidance=tm.cfg([2.0] * 10)), 5)
    wrong = "7 guidance scales for 8"
    untouched(listed, ArgumentError, wrong, steps=3, guidance=[1.0] * 7)
    untouched(listed, ArgumentError, r"tail\(…, guidance=…\)", steps=3)
    alone = Run(Sampler("euler/karras", steps=5).compile(process))
    alone.start(START)
    untouched(alone, RunError, "process=process", "heun")
    independent = forth(begun("euler_ancestral/karras"), 3)
    brownian = Sampler("dpmpp_2m_sde", noise="brownian")
    untouched(independent, ArgumentError, "noise='independent'", brownian)


# -- the table ---------------------------------------------------------------------------------
def test_a_table_of_several_solvers_is_written_and_read() -> None:
    run = forth(begun("lms/karras"), 4)
    run.tail("deis", steps=3)
    table = Table.from_json(run.table.to_json())
    assert same(table, run.table)
    assert table.legs == run.table.legs
    assert table.leg(0) == Leg(0, 0, "lms", "karras", "noise", 4)
    assert "legs" not in Sampler("lms/karras", steps=4).compile(PROCESSES["vp"][0]).to_dict()
    data = run.table.to_dict()
    for broken in (
        [*reversed(data["legs"])],
        data["legs"][1:],
        [{**data["legs"][0], "basis": "x"}, data["legs"][1]],
        [{**data["legs"][0], "more": 1}],
        "legs",
    ):
        with pytest.raises(ArgumentError, match="not a table"):
            Table.from_dict({**data, "legs": broken})


def test_parts_of_a_table_of_several_solvers_keep_their_legs() -> None:
    run = forth(begun("euler/karras"), 4)
    run.tail("dpmpp_2m", steps=3)
    assert [leg.row for leg in run.table.part(2, 7).legs] == [0, 2]
    assert run.table.part(2, 7).legs[1].reads == (1,)
    assert "from row 4: dpmpp_2m on karras, denoised basis, reads rows 3\n" in str(run.table)
    assert run.table.part(0, 3).legs == ()
    assert run.table.part(0, 3).solver == "euler"
