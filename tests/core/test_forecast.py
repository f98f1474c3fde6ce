"""Laws of forecasts: a step without a call is the forecast it stands for, and so is an
unconditional half.
"""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import timonel as tm
from support import tiny
from support.models import PROCESSES, Constant, Gaussian, Mixture, drive, ends, label, lam_grid
from timonel.core import forecast, grids, solvers
from timonel.core.data import GuidanceData
from timonel.core.guidance import Guidance, cfg
from timonel.core.prediction import KINDS, coefficients, raw
from timonel.core.process import VP, At, Level, double
from timonel.core.run import Run
from timonel.errors import ArgumentError, RunError

ZERO_SNR = VP.from_schedule(rescale_zero_snr=True)
PLACES = {**PROCESSES, "zero snr": ZERO_SNR}
#: solvers that add no noise and make one call a step, in every basis, with and without a base
MULTISTEP: list[tuple[str, dict[str, Any]]] = [
    ("euler", {}), ("ddim", {}), ("lms", {}), ("ipndm", {}), ("deis", {}),
    ("gradient_estimation", {}),
    ("dpmpp_2m", {}), ("dpmpp_3m", {}), ("res_multistep", {"order": 4}), ("unipc", {}),
    ("unipc", {"order": 3}),
    ("sa_solver", {"eta": 0.0}), ("dpmpp_2m_sde", {"eta": 0.0}), ("tcd", {"eta": 0.0}),
]  # fmt: skip
SKIPS: list[tuple[Any, int]] = [(2, 1), (2, 2), ("2/3", 3), ([1, 2, 8, 9], 4)]


def lam(at: Any) -> float:
    return math.log(at.alpha / at.sigma)


def through(places: list[float], values: list[Tensor], at: float) -> Tensor:
    """The polynomial through `values`, by Neville's scheme: another way than the one that is
    tested.
    """
    made = list(values)
    for width in range(1, len(made)):
        for i in range(len(made) - width):
            a, b = places[i], places[i + width]
            made[i] = ((at - b) * made[i] + (a - at) * made[i + 1]) / (a - b)
    return made[0]


class Explicit:
    """A denoiser that is called in some steps and forecasts its predictions in the others."""

    def __init__(self, denoise: Any, skipped: Any, order: int) -> None:
        self.denoise, self.skipped, self.order = denoise, set(skipped), order
        self.step, self.made = 0, list[tuple[At, Tensor]]()

    def __call__(self, x: Tensor, at: At) -> Tensor:
        step, self.step = self.step, self.step + 1
        if step not in self.skipped:
            self.made.insert(0, (at, self.denoise(x, at)))
            return self.made[0][1]
        used = self.made[: self.order]
        noisy = any(level.alpha == 0 for level, _ in used)
        place = (lambda v: v.alpha / (v.alpha + v.sigma)) if noisy else lam
        return through([place(level) for level, _ in used], [clean for _, clean in used], place(at))


def points(seed: int = 0) -> Tensor:
    return torch.randn(5, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# -- steps without a call ------------------------------------------------------------------------
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("variant", MULTISTEP, ids=label)
def test_the_merged_table_is_a_run_with_forecast_predictions(variant, place):
    name, options = variant
    for grid in (grids.make("trailing", PLACES[place], 10), lam_grid(PLACES[place], 10, bend=0.3)):
        for asked, order in SKIPS:
            steps = forecast.chosen(asked, 10)
            whole = solvers.make(name, grid, **options)
            merged = solvers.make(name, grid, **options, skip=asked, skip_order=order)
            wanted = drive(whole, Explicit(Mixture(), steps, order), points())
            error = (drive(merged, Mixture(), points()) - wanted).abs().max()
            assert error <= 1e-12, asked
            assert merged.nfe == merged.steps == 10 - len(steps)


@pytest.mark.parametrize("place", PLACES)
def test_a_forecast_is_exact_for_polynomials_of_lower_degree(place):
    """In lam; in alpha/(alpha + sigma) where one of the levels is pure noise."""
    table = solvers.make("euler", grids.make("trailing", PLACES[place], 9))
    alpha, sigma = table.alpha[:-1], table.sigma[:-1]
    noisy = bool((alpha == 0).any())
    for order in range(1, 5):
        for nodes, at in (
            ([0, 1, 2, 3][:order], 5),
            ([2, 3, 5, 7][:order], 8),
            ([1, 2, 3, 4][:order], 6),
        ):
            bounded = noisy and 0 in nodes
            u = (
                alpha / (alpha + sigma) if bounded else torch.log(alpha / sigma).clamp(min=-50)
            ).numpy()
            values = np.polynomial.Polynomial([0.3, -1.2, 0.7, 0.1][:order])(u)
            made = forecast.weights(table, nodes, at)
            assert float(made @ double(values[nodes])) == pytest.approx(values[at], rel=1e-12)
            if order > 1:
                bent = u**order
                assert abs(float(made @ double(bent[nodes])) - bent[at]) > 1e-6


def test_a_prediction_on_a_line_loses_nothing_by_a_skip():
    grid = lam_grid(PROCESSES["vp"], 12)
    line = lambda x, at: torch.full_like(x, 0.4 - 0.3 * lam(at))  # noqa: E731
    for name in ("dpmpp_2m", "unipc", "deis"):
        whole = drive(solvers.make(name, grid), line, points())
        # the first steps of a solver are of a lower order than its forecasts, so nothing is left
        # out there
        merged = drive(solvers.make(name, grid, skip=2, skip_order=2), line, points())
        assert torch.allclose(merged, whole, atol=1e-13)
        repeated = drive(solvers.make(name, grid, skip=2), line, points())
        assert (repeated - whole).abs().max() > 1e-3


@pytest.mark.parametrize("asked", [2, "2/3"])
@pytest.mark.parametrize("order", [1, 2])
def test_a_table_with_skips_converges_as_its_forecasts_do(order, asked):
    data, x, errors = (
        Gaussian(),
        torch.randn(4, 3, generator=torch.Generator().manual_seed(1)).double(),
        [],
    )
    counts = (24, 48, 96)
    for steps in counts:
        table = solvers.make(
            "unipc", lam_grid(PROCESSES["vp"], steps), skip=asked, skip_order=order
        )
        assert table.order == order
        exact = data.solve(x, *ends(lam_grid(PROCESSES["vp"], steps)))
        errors.append(float((drive(table, data, x) - exact).abs().mean()))
    slope = np.polyfit(np.log(counts), np.log(errors), 1)[0]
    assert -slope == pytest.approx(order, abs=0.3)


@pytest.mark.parametrize("variant", MULTISTEP, ids=label)
def test_a_constant_denoiser_survives_any_skip(variant):
    table = solvers.make(
        variant[0],
        grids.make("trailing", PROCESSES["vp"], 9),
        **variant[1],
        skip="2/3",
        skip_order=4,
    )
    assert torch.allclose(
        drive(table, Constant(0.7), points()), double(0.7).expand(5, 2), atol=1e-10
    )


@pytest.mark.parametrize(
    ("asked", "steps", "left_out"),
    [
        (2, 8, (2, 4, 6)), (3, 9, (2, 5)), ("2/3", 9, (2, 3, 5, 6)), ("1/2", 8, (2, 4, 6)),
        ("2", 5, (2,)),
        ("4,6", 9, (4, 6)), ("4,", 9, (4,)), ([1, 8], 9, (1, 8)), ((3,), 9, (3,)), (2, 4, (2,)),
    ],
)  # fmt: skip
def test_what_is_asked_for_is_left_out_and_counted(asked, steps, left_out):
    assert forecast.chosen(asked, steps) == left_out
    table = tm.Sampler("dpmpp_2m", steps=steps, options={"skip": asked}).compile(PROCESSES["vp"])
    assert table.nfe == steps - len(left_out)
    calls = []
    drive(table, lambda x, at: (calls.append(at.time), x * 0)[1], points())
    whole = tm.Sampler("dpmpp_2m", steps=steps).compile(PROCESSES["vp"])
    assert calls == [float(whole.time[k]) for k in range(steps) if k not in left_out]


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("heun", {"skip": 2}, "19 times in 10 steps"),
        ("plms", {"skip": 2}, "11 times in 10 steps"),
        ("dpmpp_2m_sde", {"skip": 2}, "adds noise"),
        ("euler", {"skip": 2, "s_churn": 5}, "adds noise"),
        (
            "euler",
            {"skip": [0, 3]},
            "step 0 cannot be left out: the first call has nothing before it",
        ),
        ("euler", {"skip": [3, 10]}, "step 10 cannot be left out: the steps are 0 to 9"),
        ("euler", {"skip": [3, -1]}, "step -1"),
        ("euler", {"skip": []}, r"skip takes 2 .*got \[\]"),
        ("euler", {"skip": [2.5]}, r"got \[2.5\]"),
        ("euler", {"skip": 1}, "got 1"),
        ("euler", {"skip": 0}, "got 0"),
        ("euler", {"skip": True}, "got True"),
        ("euler", {"skip": "3/2"}, "got '3/2'"),
        ("euler", {"skip": "0/2"}, "got '0/2'"),
        ("euler", {"skip": "often"}, "got 'often'"),
        ("euler", {"skip": 2, "skip_order": 5}, "skip_order must be at most 4"),
        ("euler", {"skip": 2, "skip_order": 0}, "skip_order.*0"),
        ("euler", {"skip_order": 2}, "give skip too"),
    ],
)
def test_what_cannot_be_left_out_is_refused_with_the_value(name, options, said):
    with pytest.raises(ArgumentError, match=said):
        tm.Sampler(name, steps=3 if name == "ddim" else 10, options=options).compile(
            PROCESSES["vp"]
        )


def test_a_table_with_skips_is_data_with_a_short_memory_and_a_gradient():
    made = tm.Sampler("unipc/karras", steps=24, options={"skip": 2}).compile(PROCESSES["vp"])
    assert made.history <= 4
    again = tm.Table.from_json(made.to_json())
    assert torch.equal(again.x, made.x)
    levels = torch.linspace(-2.0, 1.5, 9, dtype=torch.float64, requires_grad=True)
    grid = grids.Grid.of(PROCESSES["vp"], PROCESSES["vp"].at_lam(levels), "lam", clean=False)
    solvers.make("dpmpp_2m", grid, skip=2).x.square().sum().backward()
    assert levels.grad is not None
    assert bool((levels.grad != 0).all())


def test_skips_run_in_a_pipeline_and_as_a_drop_in_scheduler():
    pipe = tiny.sd()
    given, chosen = (
        tiny.prompt(pipe),
        tm.Sampler("dpmpp_2m/karras", steps=9, options={"skip": "2/3"}),
    )
    rows: list[int] = []
    helm = tm.Helm(pipe)
    ours = helm(
        **given, sampler=chosen, seeds=[4], guidance=3.0, hooks=[lambda run: rows.append(run.row)]
    ).images
    assert rows == [1, 2, 3, 4, 5]
    pipe.scheduler = tm.Scheduler.from_config(pipe.scheduler.config, sampler=chosen)
    generator = torch.Generator().manual_seed(4)
    theirs = pipe(**given, num_inference_steps=9, guidance_scale=3.0, generator=generator).images
    assert torch.equal(ours, theirs)


# -- the unconditional half in the native loop -----------------------------------------------------
def plan(guidance: Guidance, table: tm.Table) -> str:
    """One letter a row: b(oth halves), f(orecast), c(onditional only)."""
    kinds = zip(guidance.scales(table), guidance.forecasts(table, "v"), strict=True)
    return "".join("c" if scale == 1.0 else "f" if weights else "b" for scale, weights in kinds)


@pytest.mark.parametrize(
    ("guidance", "wanted"),
    [
        (cfg(4.0), "bbbbbbbbbb"),
        (cfg(4.0, forecast=2), "bbfbfbfbfb"),
        (cfg(4.0, forecast=3, order=1), "bbffbffbff"),
        (cfg(4.0, forecast=100), "bbffffffff"),
        (cfg(4.0, forecast=2, until=0.5), "bbfbfccccc"),
        (cfg(4.0, forecast=2, between=(0.3, 0.8)), "cccbbfbfcc"),
        (cfg([4.0] * 4 + [1.0] * 2 + [3.0] * 4, forecast=2), "bbfbccfbfb"),
    ],
)
def test_both_halves_are_computed_at_every_so_many_th_guided_call(guidance, wanted):
    table = solvers.make("euler", grids.make("trailing", PROCESSES["vp"], 10))
    assert plan(guidance, table) == wanted


def test_the_second_call_of_a_step_serves_the_first_of_the_next():
    """They are at one level, so the forecast is the difference that was computed there."""
    table = solvers.make("heun", grids.make("trailing", PROCESSES["vp"], 5))
    guidance = cfg(4.0, forecast=2, order=2)
    assert plan(guidance, table) == "bbfbfbfbf"
    assert [w for w in guidance.forecasts(table, "sample") if w] == [
        pytest.approx((1.0, 0.0), abs=1e-12)
    ] * 4


def test_noise_added_in_between_begins_the_differences_anew():
    table = solvers.make("restart", grids.make("karras", PROCESSES["edm"], 12))
    made = cfg(4.0, forecast=2).forecasts(table, "sample")
    where = Level(table.alpha, table.sigma, table.time).lam.tolist()
    lifts = [k for k in range(1, table.nfe) if where[k] < where[k - 1] - 1e-6]
    assert lifts
    assert [made[k] or made[k + 1] for k in lifts] == [()] * len(lifts)
    assert all(made[k + 2] for k in lifts)


class Halves:
    """A conditional and an unconditional network of one kind, whose calls are counted."""

    def __init__(self, kind: str, apart: Any = None) -> None:
        self.kind, self.apart, self.calls = kind, apart, 0

    def level(self, at: At) -> Level:
        return Level(double(at.alpha), double(at.sigma), double(at.time))

    def clean(self, x: Tensor, at: At) -> Tensor:
        return Mixture()(x, at)

    def difference(self, x: Tensor, at: At) -> Tensor:
        return self.apart(at) * torch.ones_like(x) if self.apart else 0.2 * torch.tanh(x + at.alpha)

    def cond(self, x: Tensor, at: At) -> Tensor:
        return raw(self.kind, self.clean(x, at), x, self.level(at))

    def uncond(self, x: Tensor, at: At) -> Tensor:
        self.calls += 1
        return raw(self.kind, self.clean(x, at) - self.difference(x, at), x, self.level(at))


def sampled(
    nets: Halves, guidance: Guidance, name: str = "dpmpp_2m", place: str = "vp", **options: Any
) -> Tensor:
    process = PROCESSES["edm" if nets.kind == "edm" else place]
    return tm.sample(nets.cond, points(), name, process=process, prediction=nets.kind, steps=9,
                     unconditional=nets.uncond, guidance=guidance, **options)  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("order", [1, 2])
def test_a_difference_on_a_line_is_forecast_exactly_whatever_the_network_returns(kind, order):
    apart = (lambda at: 0.3) if order == 1 else (lambda at: 0.3 + 0.1 * lam(at))
    whole = sampled(Halves(kind, apart), cfg(4.0))
    nets = Halves(kind, apart)
    made = sampled(nets, cfg(4.0, forecast=3, order=order))
    assert nets.calls == 4  # rows 0, 1, 4 and 7
    assert (made - whole).abs().max() < 1e-9
    bent = lambda at: 0.3 + 0.1 * lam(at) ** order  # noqa: E731
    off = sampled(Halves(kind, bent), cfg(4.0, forecast=3, order=order)) - sampled(
        Halves(kind, bent), cfg(4.0)
    )
    assert off.abs().max() > 1e-4


@pytest.mark.parametrize("kind", ["v", "flow"])
@pytest.mark.parametrize("rescale", [0.0, 0.6])
def test_a_forecast_half_is_the_denoised_difference_of_the_halves_before(kind, rescale):
    nets, place = Halves(kind), "flow" if kind == "flow" else "vp"
    made = sampled(
        nets,
        cfg([5.0, 4.0, 3.0] * 3, forecast=2, order=2, rescale=rescale, until=0.8),
        "unipc",
        place,
    )
    known: list[tuple[float, Tensor]] = []
    rows = iter("bbfbfbfbc")
    scales = iter([5.0, 4.0, 3.0] * 3)

    def guided(x: Tensor, at: At) -> Tensor:
        letter, scale, conditional = next(rows), next(scales), nets.cond(x, at)
        if letter == "c":
            return conditional
        if letter == "b":
            apart = nets.difference(x, at)
            known.insert(0, (at, apart))
        else:
            at_noise = any(level.alpha == 0 for level, _ in known[:2])
            spot = (lambda v: v.alpha / (v.alpha + v.sigma)) if at_noise else lam
            apart = through([spot(v) for v, _ in known[:2]], [d for _, d in known[:2]], spot(at))
        _, c_raw = coefficients(kind, nets.level(at))
        unconditional = conditional - apart / float(c_raw)
        total = unconditional + scale * (conditional - unconditional)
        if rescale:
            spread = conditional.std(1, keepdim=True) / total.std(1, keepdim=True)
            total = total * (1 - rescale + rescale * spread)
        return total

    again = tm.sample(guided, points(), "unipc", process=PROCESSES[place], prediction=kind, steps=9)
    assert (made - again).abs().max() < 1e-10


def begun(guidance: Guidance, sampler: str = "dpmpp_2m", **options: Any) -> Run:
    return tm.begin(
        points(),
        sampler,
        process=PROCESSES["vp"],
        prediction="v",
        steps=9,
        guidance=guidance,
        **options,
    )


def finished(run: Run, nets: Halves) -> Tensor:
    for _ in tm.iterate(run, nets.cond, nets.uncond):
        pass
    return run.result


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("keep", [0, 9])
def test_remembered_differences_are_a_part_of_the_run(order, keep, tmp_path):
    """Saved, branched or rewound at any step, a run arrives at the same bits."""
    guidance, nets = cfg(4.0, forecast=3, order=order), Halves("v")
    whole, twins = finished(begun(guidance), nets), []
    run = begun(guidance, keep=keep)
    for _ in tm.iterate(run, nets.cond, nets.uncond):
        run.save(tmp_path / f"{run.step}.safetensors")
        twins.append(run.branch())
    assert torch.equal(run.result, whole)
    for step in range(1, 10):
        loaded = Run.load(tmp_path / f"{step}.safetensors")
        assert loaded.forecasts == run.forecasts
        assert torch.equal(finished(loaded, nets), whole)
        assert torch.equal(finished(twins[step - 1], nets), whole)
    for back in (5, 3, 2, 0):
        run.rewind(back)
        assert torch.equal(finished(run, nets), whole)


def test_a_run_saved_before_there_were_forecasts_still_loads(tmp_path):
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    run, path, nets = begun(cfg(4.0)), tmp_path / "run.safetensors", Halves("v")
    for _ in tm.iterate(run, nets.cond, nets.uncond):
        if run.step == 3:
            run.save(path)
    with safe_open(str(path), framework="pt") as file:
        data = json.loads(file.metadata()["timonel"])
    del data["digest"], data["differences"], data["guidance"]["forecast"], data["guidance"]["order"]
    save_file(load_file(path), path, metadata={"timonel": json.dumps(data)})
    assert torch.equal(finished(Run.load(path), nets), run.result)


def test_a_forecast_from_differences_that_nobody_told_is_refused():
    run = begun(cfg(4.0, forecast=2, order=2))
    for _ in range(2):
        assert run.forecast is None
        run.advance(run.latents * 0.1)
    with pytest.raises(
        RunError, match=r"row 2 forecasts.*from 2 differences and 0 are remembered.*run\.remember"
    ):
        _ = run.forecast


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: cfg(4.0, forecast=0), "forecast.*at least 1, got 0"),
        (lambda: cfg(4.0, forecast=1.5), "forecast.*got 1.5"),
        (lambda: cfg(4.0, forecast=2, order=3), "order must be at most 2, got 3"),
        (lambda: cfg(4.0, order=1), "order=1 .*give forecast too"),
    ],
)
def test_what_is_no_forecast_is_refused_with_the_value(call, said):
    with pytest.raises(ArgumentError, match=said):
        call()


def test_the_data_of_a_recipe_carry_the_forecast():
    for made in (cfg(4.0), cfg(4.0, forecast=2), cfg([3.0, 2.0], forecast=3, order=1, until=0.4)):
        data = GuidanceData.of(made)
        assert (
            GuidanceData.model_validate_json(data.model_dump_json(exclude_none=True)).guidance()
            == made
        )
    assert "forecast" not in GuidanceData.of(cfg(4.0)).model_dump(exclude_none=True)
