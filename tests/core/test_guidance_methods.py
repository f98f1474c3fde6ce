"""Guidance methods: their formulas, what they remember, and the solvers that read both outputs."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from safetensors import safe_open

import timonel as tm
from support.models import PROCESSES
from timonel import exact
from timonel.core import solvers
from timonel.core.data import GuidanceData
from timonel.core.guidance import METHODS, Guidance, Outputs, Place, guide, parsed, words
from timonel.core.run import Run
from timonel.engine.drive import drive, finish
from timonel.engine.network import Denoisers, Query
from timonel.errors import ArgumentError, RunError, UnknownName

DATA = exact.Mixture.random(seed=3, components=6, dimension=6, rank=1, classes=2)
COND = DATA.conditional(0)
NETWORK = Denoisers(COND, DATA)
METHODICAL = {
    "apg": tm.apg(4.0, norm_threshold=2.0, momentum=-0.5),
    "cfg_zero": tm.cfg_zero(4.0, zero_init=0),
    "tcfg": tm.tcfg(4.0), "mambo": tm.mambo(4.0, damping=2.0), "cfg_pp": tm.cfg_pp(0.7),
}  # fmt: skip
EVERY = pytest.mark.parametrize("guidance", METHODICAL.values(), ids=METHODICAL)
TWINS = [name for name, spec in solvers.SOLVERS.items() if spec.reads_uncond]


def start(count: int = 4) -> torch.Tensor:
    return torch.randn(count, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def sampled(sampler: str | tm.Sampler, guidance: Guidance | float, steps: int = 8, **more: object):
    return tm.sample(
        COND, start(), sampler, process=PROCESSES["vp"], steps=steps, unconditional=DATA,
        guidance=guidance, **more,
    )  # fmt: skip


def begun(guidance: Guidance | None, sampler: str = "dpmpp_2m", steps: int = 8, **more) -> Run:
    run = tm.begin(
        start(), sampler, process=PROCESSES["vp"], steps=steps, guidance=guidance, **more
    )
    assert isinstance(run, Run)
    return run


def to_the_end(run: Run) -> torch.Tensor:
    return finish(run, NETWORK)


def to_the_end_of(run: Run, data: exact.Exact) -> torch.Tensor:
    return finish(run, Denoisers(data))


# -- formulas -------------------------------------------------------------------------------------
def test_the_tangential_part_is_that_of_the_singular_vectors():
    cond, uncond = (torch.randn(5, 4, 7, dtype=torch.float64) for _ in range(2))
    right = torch.linalg.svd(torch.stack([cond, uncond], 1).flatten(2), full_matrices=False)[2]
    first = right[:, 0]
    kept = (uncond.flatten(1) * first).sum(1, keepdim=True) * first
    kept = kept.reshape(uncond.shape)
    ours = guide(Outputs(cond, uncond), 3.0, method=METHODS["tcfg"]()).raw
    assert torch.allclose(ours, kept + 3.0 * (cond - kept), rtol=1e-10, atol=1e-10)


def test_the_scale_of_cfg_zero_is_the_least_squares_fit():
    cond, uncond = (torch.randn(5, 4, 7, dtype=torch.float64) for _ in range(2))
    fits = [torch.linalg.lstsq(u.reshape(-1, 1), c.reshape(-1, 1)).solution
            for c, u in zip(cond, uncond, strict=True)]  # fmt: skip
    scaled = uncond * torch.stack(fits)
    ours = guide(Outputs(cond, uncond), 3.0, method=METHODS["cfg_zero"](zero_init=0)).raw
    assert torch.allclose(ours, scaled + 3.0 * (cond - scaled), rtol=1e-10, atol=1e-10)


@EVERY
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_scale_1_is_the_conditional_output_and_equal_outputs_are_left(guidance, dtype):
    cond, uncond, x = (torch.randn(3, 4, 5).to(dtype) for _ in range(3))
    place = Place(1.3, -0.7, 5, 8, "epsilon")
    for pair, scale in (((cond, uncond), 1.0), ((cond, cond), 5.0), ((cond * 0, cond * 0), 5.0)):
        out = guide(Outputs(*pair, x, place), scale, method=guidance.method).raw
        assert out.dtype == dtype
        exact_ = torch.finfo(dtype).eps * 40
        assert torch.allclose(out, pair[0], rtol=exact_, atol=exact_)


@EVERY
def test_what_a_sample_gets_does_not_depend_on_its_batch(guidance):
    x = start(5)
    level, place = tm.At(0.8, 0.6, 300.0), Place(0.0, 1.0, 3, 8, "sample")
    query = Query(
        x, level, scale=4.0, method=guidance.method, place=place, momentum=x * 0.1, uncond=True
    )
    whole = NETWORK.evaluate([query])[0]
    for i, alone in enumerate(NETWORK.evaluate(query.split())):
        for one, all_ in zip(alone, whole, strict=True):
            assert one is all_ is None or torch.equal(one[0], all_[i])


def test_rows_of_velocity_zero_leave_a_flow_where_it_is():
    seen = []
    tm.sample(
        lambda x, at: (x - COND(x, at)) / at.sigma, start(), "euler", process=tm.Flow(3.0),
        steps=8, prediction="flow", unconditional=lambda x, at: (x - DATA(x, at)) / at.sigma,
        guidance=tm.zero_init(4.0, steps=2), hooks=[lambda run: seen.append(run.latents.clone())],
    )  # fmt: skip
    assert torch.equal(seen[0], start())
    assert torch.equal(seen[1], start())
    assert not torch.allclose(seen[2], start())


# -- intervals and evaluations --------------------------------------------------------------------
@EVERY
def test_outside_the_interval_one_output_is_computed_and_the_method_is_idle(guidance):
    calls = []

    def uncond(x, at):
        calls.append(at.time)
        return DATA(x, at)

    half = replace(guidance, stop=0.5)
    tm.sample(
        COND, start(), "dpmpp_2m", process=PROCESSES["vp"], steps=8, unconditional=uncond,
        guidance=half,
    )  # fmt: skip
    assert len(calls) == 4


def test_a_scale_of_1_computes_both_outputs_for_a_solver_that_reads_both():
    for guidance in (tm.cfg_pp(1.0), tm.cfg(1.0)):
        run = begun(guidance, "euler_cfg_pp")
        assert all(scale != 1.0 for scale in run.guided.scales)
    assert set(begun(tm.cfg(1.0)).guided.scales) == {1.0}


@EVERY
def test_a_forecast_of_a_slow_difference_is_near_and_costs_less(guidance):
    full = sampled("dpmpp_2m", guidance, 40)
    calls = []

    def uncond(x, at):
        calls.append(at.time)
        return DATA(x, at)

    forecast = tm.sample(
        COND, start(), "dpmpp_2m", process=PROCESSES["vp"], steps=40, unconditional=uncond,
        guidance=replace(guidance, forecast=2),
    )  # fmt: skip
    assert len(calls) == 21
    assert float((forecast - full).square().mean().sqrt()) < 0.2


# -- between rows ---------------------------------------------------------------------------------
@EVERY
def test_rewound_branched_and_saved_runs_end_bit_for_bit(guidance, tmp_path):
    sampler = "dpmpp_2m_cfg_pp" if guidance.method.reads_uncond else "dpmpp_2m"
    whole = to_the_end(begun(guidance, sampler))
    for keep in (0, 8):
        run = begun(guidance, sampler, keep=keep)
        rows = drive(run, NETWORK)
        for _ in range(5):
            next(rows)
        rows.close()
        twin = run.branch()
        run.save(tmp_path / "run.safetensors")
        loaded = Run.load(tmp_path / "run.safetensors")
        run.rewind(3)
        for one in (run, twin, loaded):
            assert one.guidance == guidance
            assert torch.equal(to_the_end(one), whole)


def test_a_run_without_a_method_is_saved_as_before(tmp_path):
    run = begun(tm.cfg(4.0))
    next(drive(run, NETWORK))
    run.save(tmp_path / "run.safetensors")
    with safe_open(str(tmp_path / "run.safetensors"), framework="pt") as file:
        data = json.loads(file.metadata()["timonel"])
    assert "method" not in data["guidance"]
    assert "unconditional" not in data
    assert "u" not in data["table"]
    assert "method" not in GuidanceData.of(tm.cfg(4.0)).model_dump()


def test_another_method_begins_without_the_momentum_of_the_one_before():
    run = begun(METHODICAL["apg"], keep=8)
    rows = drive(run, NETWORK)
    for _ in range(3):
        next(rows)
    assert run.momentum is not None
    run.guidance = tm.apg(
        6.0, norm_threshold=2.0, momentum=-0.5
    )  # the same method at another scale
    assert run.momentum is not None
    run.guidance = METHODICAL["tcfg"]
    assert run.momentum is None
    run.guidance = METHODICAL["apg"]
    run.rewind(2)
    next(rows)
    fresh = COND(run.newest[0], run.called_at) - DATA(run.newest[0], run.called_at)
    assert torch.allclose(run.momentum, fresh)


# -- solvers that read the unconditional prediction -----------------------------------------------
@pytest.mark.parametrize("name", TWINS)
@pytest.mark.parametrize("process", PROCESSES)
def test_a_twin_that_is_not_guided_is_its_plain_namesake(name, process):
    # res_multistep has order 1 on a long last step, and its twin is ComfyUI's
    for steps in (1, 20) if name == "res_multistep_cfg_pp" else (1, 2, 3, 8):
        plain = tm.Sampler(name.removesuffix("_cfg_pp"), steps=steps).compile(PROCESSES[process])
        twin = tm.Sampler(name, steps=steps).compile(PROCESSES[process]).unguided()
        assert plain.nfe == twin.nfe
        run_of = [Run(table, noise=tm.SeededNoise([0, 1, 2, 3])) for table in (plain, twin)]
        for run in run_of:
            run.start(start())
        a, b = map(to_the_end, run_of)
        assert torch.allclose(a, b, rtol=1e-9, atol=1e-9)


def push(table: tm.Table, w: float) -> list[float]:
    """λ per step that pushes as guidance w does in Euler's method."""
    lam = [float(table.level(k).lam) for k in range(table.steps)]
    return [w * -math.expm1(a - b) for a, b in pairwise(lam)] + [w]


def test_a_step_of_eulers_twin_is_eulers_at_another_scale():
    levels = tm.Sampler("euler", steps=8).compile(PROCESSES["vp"])
    twin = sampled("euler_cfg_pp", tm.cfg(push(levels, 3.0)))
    assert torch.allclose(twin, sampled("euler", 3.0), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", [n for n in TWINS if not solvers.SOLVERS[n].stochastic])
def test_twins_converge_to_the_guided_path_of_their_limit(name):
    """With λ = w·(1 - e^-h), on a Gaussian whose guided denoiser is known."""
    mean, w = torch.tensor([[1.0, -0.5]], dtype=torch.float64), 3.0
    cond, uncond = exact.Gaussian(mean[0], 0.6), exact.Gaussian(0 * mean[0], 0.6)
    guided = exact.Gaussian(w * mean[0], 0.6)  # D is affine in the mean
    process, x = PROCESSES["vp"], torch.randn(16, 2, dtype=torch.float64)
    errors = []
    for steps in (32, 64, 128):
        table = tm.Sampler("euler", steps=steps, grid="karras").compile(process)
        made = tm.sample(
            cond, x, f"{name}/karras", process=process, steps=steps, unconditional=uncond,
            guidance=tm.cfg(push(table, w)),
        )  # fmt: skip
        whole = guided.solution(x, table.level(0))
        errors.append(float((made - whole).square().mean().sqrt()))
    assert errors[-1] < 0.12
    rates = [math.log2(a / b) for a, b in pairwise(errors)]
    assert all(rate > 0.8 for rate in rates), (errors, rates)


def reference(name: str, levels: list[float], w: float, noise, variant: str) -> torch.Tensor:
    """The formulas of ComfyUI's samplers, in x/alpha and s = sigma/alpha, written out."""

    def model(y, s):
        alpha = 1 / math.sqrt(1 + s * s)
        at = tm.At(alpha, alpha * s, 0.0)
        u = DATA(alpha * y, at)
        return u + w * (COND(alpha * y, at) - u), u

    def down_up(s, after, eta):
        up = min(after, eta * math.sqrt(after**2 * (s**2 - after**2) / s**2))
        return math.sqrt(after**2 - up**2), up

    eta = 1.0 if "ancestral" in name else 0.0
    y, u_old, d_old, before = start() * math.sqrt(1 + levels[0] ** 2), None, None, None
    for k, (s, after) in enumerate(pairwise(levels)):
        clean, u = model(y, s)
        down, up = down_up(s, after, eta) if after else (0.0, 0.0)
        d, fall = (y - u) / s, down / s
        if down == 0 or name.startswith("euler"):
            y_new = clean + down * d
        elif name.startswith("dpmpp_2s"):
            half = math.sqrt(s * down)
            second, other = model((half / s) * (y + clean - u) + (1 - half / s) * clean, half)
            y_new = fall * (y + clean - (other if variant else u)) + (1 - fall) * second
        elif name.startswith("dpmpp_2m"):
            y_new = clean + fall * (y - u)
            if u_old is not None:
                r = math.log(levels[k - 1] / s) / math.log(s / after)
                y_new = y_new + (1 - fall) / (2 * r) * (clean - u_old)
        elif name.startswith("res"):
            y_new = clean + down * d
            if u_old is not None:
                h = math.log(s / down)
                c2 = math.log(before / levels[k - 1]) / h
                phi1 = -math.expm1(-h) / h
                phi2 = (phi1 - 1) / -h
                terms = (phi1 - phi2 / c2) * u + phi2 / c2 * u_old
                y_new = fall * (y + clean - u) + h * terms
        else:
            y_new = clean + after * d
            if d_old is not None:
                y_new = y_new + (d - d_old) * (after - s)
        y, u_old, d_old, before = y_new + up * noise(k, y), u, d, down
    return y


@pytest.mark.parametrize("name", [*TWINS, "dpmpp_2s_ancestral_cfg_pp second"])
@pytest.mark.parametrize("w", [0.6, 1.0, 1.8])
def test_twins_are_comfyuis_samplers(name, w):
    name, _, variant = name.partition(" ")
    source = tm.SeededNoise([0, 1, 2, 3])
    levels = tm.Sampler("euler", grid="karras", steps=10).levels(PROCESSES["vp"])
    sampler = tm.Sampler(
        name, grid="karras", steps=10, options={"variant": variant} if variant else {}
    )
    table = sampler.compile(PROCESSES["vp"])
    ours = sampled(
        sampler, tm.cfg(w), 10,
        noise=(lambda row, like: source(table.step[row], like)) if table.stochastic else None,
    )  # fmt: skip
    theirs = reference(name, (levels.sigma / levels.alpha).tolist(), w, source, variant)
    assert float((ours - theirs).abs().max()) < 1e-5 * float(theirs.abs().max())


def test_comfyuis_dpmpp_2s_takes_the_unconditional_prediction_of_the_other_call():
    """Where both predictions are one it does not converge, and the twin here does."""
    data, x = exact.Gaussian(torch.tensor([1.0, -0.5], dtype=torch.float64), 0.6), start()[:, :2]
    errors = {}
    for variant in ("first", "second"):
        for steps in (16, 64):
            sampler = tm.Sampler(
                "dpmpp_2s_ancestral_cfg_pp/karras", steps=steps,
                options={"eta": 0.0, "variant": variant},
            )  # fmt: skip
            run = Run(table := sampler.compile(PROCESSES["vp"]))
            run.start(x)
            made = to_the_end_of(run, data)
            off = made - data.solution(x, table.level(0))
            errors[variant, steps] = float(off.square().mean().sqrt())
    assert errors["first", 64] < errors["first", 16] / 4
    assert errors["second", 64] > 0.1
    assert errors["second", 64] > errors["second", 16] / 2


def test_cfg_pp_takes_the_twin_of_a_sampler_or_names_those_that_have_one():
    assert begun(tm.cfg_pp(0.6), "dpmpp_2m").table.solver == "dpmpp_2m_cfg_pp"
    assert begun(tm.cfg_pp(0.6), "ddim").table.solver == "euler_ancestral_cfg_pp"
    assert not begun(tm.cfg_pp(0.6), "ddim").table.stochastic
    with pytest.raises(ArgumentError, match=r"'unipc' has no such twin.*dpmpp_2m"):
        begun(tm.cfg_pp(0.6), "unipc")
    with pytest.raises(ArgumentError, match="reads the unconditional prediction"):
        Run(tm.Sampler("euler", steps=4).compile(PROCESSES["vp"]), guidance=tm.cfg_pp(0.6))


def test_a_guided_row_of_a_twin_needs_the_unconditional_output():
    run = begun(tm.cfg(0.6), "euler_cfg_pp")
    with pytest.raises(RunError, match=r"remember\(uncond="):
        run.advance(COND(run.latents, run.level))
    assert run.row == 0


# -- bad input ------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: tm.apg(4.0, eta=2), "eta"),
        (lambda: tm.apg(4.0, norm_threshold=0), "norm_threshold=0 leaves nothing"),
        (lambda: tm.apg(4.0, momentum=-2), "momentum"),
        (lambda: tm.apg(4.0, formula="papers"), "did you mean 'paper'"),
        (lambda: tm.apg(4.0, untill=0.4), "untill"),
        (lambda: tm.tcfg(4.0, between=(0.4, 0.4)), "not empty"),
        (lambda: tm.tcfg(4.0, until=0.2, between=(0.1, 0.4)), "not both"),
        (lambda: tm.cfg_pp(5.0), "λ, 0 to 1"),
        (lambda: tm.cfg_pp(None), "λ, 0 to 1"),
        (lambda: tm.cfg_pp(0.6, rescale=0.5), "nobody defines"),
        (lambda: tm.cfg_zero(4.0, zero_init=-1), "zero_init"),
        (lambda: tm.mambo(4.0, damping=-1), "damping"),
        (lambda: tm.Guidance(4.0, method="apg"), "guidance method"),
        (lambda: parsed("agp:5", None), "did you mean 'apg'"),
        (lambda: parsed("apg:5,et=1", None), "did you mean 'eta'"),
        (lambda: parsed("apg:x", None), "got the scale 'x'"),
        (lambda: words.read({"method": {"name": "apg", "et": 1}}), "has no 'et'"),
    ],
)
def test_bad_input_is_refused_before_anything_runs(make, match):
    with pytest.raises((ArgumentError, UnknownName), match=match):
        make()


def test_zero_init_is_refused_where_outputs_are_no_velocities():
    with pytest.raises(ArgumentError, match="velocity of a flow"):
        sampled("euler", tm.cfg_zero(4.0, zero_init=1))


@EVERY
def test_words_and_data_read_back(guidance):
    assert GuidanceData.of(guidance).guidance() == guidance
    assert words.read(json.loads(json.dumps(words.spelled(guidance)))) == guidance
    assert parsed(words.typed(guidance), None) == guidance
