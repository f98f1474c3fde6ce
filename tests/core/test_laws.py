"""The laws of the blueprint over every solver. A new line in `SOLVERS` is tested by all of them."""

from __future__ import annotations

import collections
import json

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import timonel as tm
from support.models import (
    MAINLY,
    PROCESSES,
    VARIANTS,
    Constant,
    Gaussian,
    calls,
    drive,
    label,
    lam_grid,
    network,
    propagate,
)
from timonel.core import grids, solvers
from timonel.core.kernel import combine
from timonel.core.process import VP, Flow, double
from timonel.core.run import Run
from timonel.core.table import Table
from timonel.errors import ArgumentError, PredictionError

EVERY = pytest.mark.parametrize("variant", VARIANTS, ids=label)
MAIN = pytest.mark.parametrize("variant", MAINLY, ids=label)
PLACES = pytest.mark.parametrize("process", PROCESSES)
ZERO_SNR = VP.from_schedule(rescale_zero_snr=True)


def table_of(
    variant: tuple[str, dict], process: object, steps: int = 7, grid: str = "trailing"
) -> Table:
    return solvers.make(variant[0], grids.make(grid, process, steps), **variant[1])


def start(
    batch: int, dtype: torch.dtype = torch.float64, seed: int = 3, shape: tuple = (4, 4, 4)
) -> torch.Tensor:
    return torch.randn(
        batch, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    ).to(dtype)


def clean(table: Table) -> bool:
    return float(table.sigma[-1]) == 0


# -- consistency ---------------------------------------------------------------------------------
@PLACES
@EVERY
def test_a_constant_denoiser_is_reproduced_exactly(variant, process):
    table = table_of(variant, PROCESSES[process])
    assert clean(table)
    c = start(2, seed=5)
    error = float((drive(table, Constant(c), start(2)) - c).abs().max())
    # the released LCM checkpoints mix in c_skip·x; at VP times that is at most 1e-4. A slope
    # divides by sigma, so
    # a constant comes back from it with sigma/alpha times the rounding of one number
    slopes = 2e-15 * float((table.sigma / table.alpha.clamp(min=1e-3))[:-1].max())
    assert error <= (1e-4 if variant[0] == "lcm" and process == "vp" else 1e-14 + slopes)


@PLACES
@EVERY
def test_every_row_keeps_the_mean_and_the_noise_of_its_level(variant, process):
    """With data at one point c, x has mean alpha·c and deviation sigma at every level, exactly.

    Deterministic solvers also stay on the line x = alpha·c + sigma·z of their start noise z.
    """
    if variant[0] == "lcm" and process == "vp":
        pytest.skip("c_skip and c_out of the LCM checkpoints are not consistent at small times")
    c = double([0.7, -2.0])
    for grid in (
        grids.index.trailing(PROCESSES[process], 6),
        lam_grid(PROCESSES[process], 6, bend=0.3),
    ):
        table = solvers.make(variant[0], grid, **variant[1])
        first = table.level(0)
        path = propagate(table, lambda level: (0.0, c), first.alpha * c, first.sigma.expand(2))
        for k, x in enumerate(path):
            level = table.level(k)
            assert torch.allclose(x[0], level.alpha * c, atol=1e-12, rtol=0)
            if (
                k == table.nfe or table.first_row(table.step[k]) == k
            ):  # an inner stage may be below its level
                assert torch.allclose(
                    (x[1:] ** 2).sum(0).sqrt(), level.sigma.expand(2), atol=1e-12, rtol=0
                )
            if not table.stochastic:
                assert torch.allclose(x[1], level.sigma.expand(2), atol=1e-12, rtol=0)


def extrapolates(solver, options):
    """Whether a solver keeps its weights on the step to the clean level."""
    return solvers.SOLVERS[solver].extrapolates or not options.get("euler_at_final", True)


@PLACES
@EVERY
def test_the_last_level_returns_the_denoised_sample(variant, process):
    """Adams methods without euler_at_final extrapolate there too, as the peers' do."""
    if extrapolates(*variant):
        table = table_of(variant, PROCESSES[process], 5)
        assert int((table.x[-1] != 0).sum()) > 2
        return
    table, seen = table_of(variant, PROCESSES[process], 5), []
    model = Gaussian([0.3] * 4, [0.6] * 4)

    def denoise(x, level):
        seen.append(model(x, level))
        return seen[-1]

    result = drive(table, denoise, start(2))
    tolerance = 1e-4 if variant[0] == "lcm" and process == "vp" else 1e-13
    assert float((result - seen[-1]).abs().max()) <= tolerance


@PLACES
@EVERY
def test_a_one_step_grid_works(variant, process):
    table = table_of(variant, PROCESSES[process], 1)
    assert table.nfe == 1
    assert torch.isfinite(drive(table, Gaussian([0.3] * 4, [0.6] * 4), start(2))).all()


@pytest.mark.parametrize("process", [ZERO_SNR, Flow(3.0)], ids=["zero-snr", "flow"])
@EVERY
def test_a_start_at_pure_noise_is_finite(variant, process):
    table = table_of(variant, process, 6)
    assert float(table.alpha[0]) == 0
    net = network()
    for kind in ("v", "flow", "sample"):
        result = drive(table, lambda x, at: net(x, at.time), start(2), prediction=kind)
        assert torch.isfinite(result).all()
        assert float(result.abs().max()) < 1e3
    with pytest.raises(PredictionError, match=r"alpha = 0.*leading"):
        drive(table, lambda x, at: x, start(2), prediction="epsilon")


# -- independence --------------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@MAIN
def test_a_sample_does_not_depend_on_its_batch(variant, dtype):
    """Bit-equal alone and in batches: noise is drawn per sample, rows act per element."""
    table = table_of(variant, PROCESSES["vp"])
    model, x, seeds = Gaussian([0.3] * 4, [0.6] * 4), start(8, dtype), list(range(40, 48))
    alone = torch.cat([drive(table, model, x[i : i + 1], seeds=seeds[i : i + 1]) for i in range(8)])
    for size in (2, 3, 8):
        assert torch.equal(drive(table, model, x[:size], seeds=seeds[:size]), alone[:size])
    mixed = torch.tensor([6, 0, 3])
    assert torch.equal(drive(table, model, x[mixed], seeds=[seeds[i] for i in mixed]), alone[mixed])


@PLACES
@MAIN
def test_randomness_is_drawn_only_where_it_is_declared(variant, process):
    table = table_of(variant, PROCESSES[process])
    if not variant[1]:
        assert table.stochastic == solvers.SOLVERS[variant[0]].stochastic

    def none(row, like):
        raise AssertionError("noise was drawn")

    before = torch.get_rng_state()
    if table.stochastic:
        drive(table, Constant(0.5), start(2))
        with pytest.raises(AssertionError, match="noise was drawn"):
            drive(table, Constant(0.5), start(2), noise=none)
        with pytest.raises(ArgumentError, match="seeds"):
            Run(table, "sample")
    else:
        drive(table, Constant(0.5), start(2), noise=none)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("steps", [1, 2, 3, 10])
@PLACES
@MAIN
def test_the_number_of_network_calls_is_the_declared_one(variant, process, steps):
    if variant[1] and variant[0] in (
        "restart",
        "dpm_fast",
        "runge_kutta",
        "exponential_rk",
        "dpm_solver",
    ):
        pytest.skip(
            "their calls depend on the options; the table of solvers declares the defaults'"
        )
    least = 3 if variant[0] == "restart" else 2 if variant[1].get("order", 1) > 1 else 1
    if steps < least:
        pytest.skip("refused, see the one-step law")
    table, called = table_of(variant, PROCESSES[process], steps), []

    def denoise(x, level):
        called.append(level.time)
        return x * 0

    drive(table, denoise, start(1))
    declared = calls(solvers.SOLVERS[variant[0]].calls, steps)
    plain = variant[0].removesuffix("_cfg_pp")
    if plain in ("dpm2_ancestral", "dpmpp_2s_ancestral") and float(table.alpha[0]) == 0:
        declared -= (
            "eta" not in variant[1] and steps > 1
        )  # nothing of pure noise is kept: straight to the clean level
    assert len(called) == table.nfe == declared
    assert table.steps == steps + 9 * (variant[0] == "restart")
    assert called == table.time.tolist()[:-1]


@pytest.mark.parametrize(
    ("dtype", "unit"), [(torch.float16, 2.0**-11), (torch.bfloat16, 2.0**-8)], ids=str
)
@MAIN
def test_half_precision_stays_within_rounding(variant, dtype, unit):
    """Against float32; each row rounds x once, so the error is a few units in the last place."""
    table, model = table_of(variant, PROCESSES["vp"], 10), Gaussian([0.3] * 4, [0.6] * 4)
    x = start(2, dtype)
    noise = tm.SeededNoise((0, 1))
    full = drive(
        table, model, x.float(), noise=lambda row, like: noise(row, like.to(dtype)).to(like.dtype)
    )

    def denoise(z, level):
        return model(z.double(), level).to(dtype)

    half = drive(table, denoise, x, noise=noise)
    assert half.dtype == dtype
    assert float((half.float() - full).abs().max()) < 16 * unit * max(1.0, float(full.abs().max()))


# -- tables as data ------------------------------------------------------------------------------
@PLACES
@MAIN
def test_a_table_round_trips_through_json_to_the_same_bits(variant, process):
    table = table_of(variant, PROCESSES[process])
    again = Table.from_json(table.to_json())
    for name in ("alpha", "sigma", "time", "x", "base"):
        assert torch.equal(getattr(again, name), getattr(table, name))
    assert (again.solver, again.grid, again.basis, again.order) == (
        table.solver, table.grid, table.basis, table.order,
    )  # fmt: skip
    assert again.step == table.step
    assert again.to_json() == table.to_json()


def test_what_is_not_a_table_is_refused():
    good = table_of(("heun", {}), PROCESSES["vp"], 3).to_dict()
    for text, said in [("{", "JSON"), ("[]", "list"), ("{}", "format None")]:
        with pytest.raises(ArgumentError, match=said):
            Table.from_json(text)
    for change, said in [
        ({"format": 9}, "format 9"),
        ({"basis": "noisy"}, "noisy"),
        ({"step": [0, 1]}, "levels"),
        ({"step": [0, 0, 2, 2, 3]}, "without a gap"),
        ({"x": [[1.0]]}, "coefficients"),
        ({"alpha": None}, "not a table"),
    ]:
        with pytest.raises(ArgumentError, match=said):
            Table.from_dict({**good, **change})
    with pytest.raises(ArgumentError, match="not a table"):
        Table.from_dict({k: v for k, v in good.items() if k != "time"})
    endless = json.loads(json.dumps(good))
    endless["x"][1][0] = float("nan")
    with pytest.raises(ArgumentError, match="row 1"):
        Table.from_dict(endless)


@MAIN
def test_coefficients_are_differentiable_in_the_levels(variant):
    """gradcheck of the coefficients of x and base in custom sigmas, along random directions."""
    process = tm.EDM(0.002, 80.0)

    def coefficients(sigmas):
        table = solvers.make(variant[0], grids.custom_sigmas(process, sigmas), **variant[1])
        return table.x, table.base

    sigmas = torch.tensor([9.0, 4.0, 1.9, 0.7, 0.3], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(coefficients, (sigmas,), raise_exception=True, fast_mode=True)
    x, _ = coefficients(sigmas)
    assert x.requires_grad
    loose = solvers.make(variant[0], grids.custom_sigmas(process, sigmas), **variant[1])
    fixed = loose.detach()
    assert not any(
        getattr(fixed, name).requires_grad for name in ("alpha", "sigma", "time", "x", "base")
    )
    assert torch.equal(fixed.x, loose.x)


@pytest.mark.parametrize("process", ["vp", "flow"])
@MAIN
def test_gradients_reach_the_levels_on_every_process(variant, process):
    sigmas = torch.tensor([0.9, 0.6, 0.4, 0.2], dtype=torch.float64, requires_grad=True)
    table = solvers.make(variant[0], grids.custom_sigmas(PROCESSES[process], sigmas), **variant[1])
    (grad,) = torch.autograd.grad((table.x**2).sum() + (table.base**2).sum(), sigmas)
    assert torch.isfinite(grad).all()
    assert float(grad.abs().max()) > 0


@MAIN
def test_a_table_prints_itself_readably(variant):
    table = table_of(variant, PROCESSES["vp"], 4)
    lines = str(table).splitlines()
    assert len(lines) == 1 + table.nfe
    assert table.solver in lines[0]
    assert f"{table.steps} steps" in lines[0]
    assert ("stochastic" if table.stochastic else "deterministic") in lines[0]
    assert all("time" in line and "x' =" in line for line in lines[1:])
    assert ("·eps" in str(table)) == table.stochastic
    assert all(len(line) < 260 for line in lines)


# -- the kernel and its cost ---------------------------------------------------------------------
@pytest.mark.parametrize("count", [1, 2, 3, 6])
def test_combine_is_the_sum_in_float64(count):
    g = torch.Generator().manual_seed(count)
    tensors = [torch.randn(3, 5, generator=g, dtype=torch.float64) for _ in range(count)]
    cs = torch.randn(count, generator=g, dtype=torch.float64).tolist()
    for first in (cs[0], 1.0):
        terms = list(zip([first, *cs[1:]], tensors, strict=True))
        exact = sum(c * t for c, t in terms)
        assert torch.allclose(combine(terms, torch.float64), exact, atol=1e-15, rtol=1e-15)
        single = [(c, t.float()) for c, t in terms]
        assert torch.allclose(combine(single, torch.float32).double(), exact, atol=1e-6, rtol=1e-6)
        for dtype, unit in ((torch.float16, 2.0**-11), (torch.bfloat16, 2.0**-8)):
            halves = [(c, t.to(dtype)) for c, t in terms]
            inside = sum(c * t.double() for c, t in halves)
            got = combine(halves, dtype)
            assert got.dtype == dtype
            assert float(((got.double() - inside).abs() - unit * inside.abs()).max()) < 1e-5


def test_combine_does_not_touch_its_inputs():
    tensors = [torch.ones(3) for _ in range(3)]
    for terms in (
        [(1.0, tensors[0])],
        [(2.0, t) for t in tensors],
        [(1.0, tensors[0]), (3.0, tensors[1])],
    ):
        out = combine(terms, torch.float32)
        out.add_(1)
    assert all(torch.equal(t, torch.ones(3)) for t in tensors)


class Count(TorchDispatchMode):
    """Counts the dispatched operations, and those that write a full-size tensor."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size, self.names, self.full, self.made = size, collections.Counter(), 0, set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.names[func.overloadpacket.__name__] += 1
        if isinstance(out, torch.Tensor) and out.numel() >= self.size:
            self.full += 1
            self.made.add(out.untyped_storage().data_ptr())
        return out


@MAIN
def test_a_row_costs_few_full_size_operations_and_no_synchronisation(variant):
    table, x, noises = (
        table_of(variant, PROCESSES["vp"], 8),
        start(1, torch.float32),
        torch.randn(1, 4, 4, 4),
    )
    run = Run(table, "epsilon", noise=lambda row, like: noises)
    run.start(x)
    raw, kept = torch.randn(1, 4, 4, 4), []
    for row in run.rows():
        with Count(x.numel()) as count:
            run.advance(raw)
        assert not set(count.names) & {
            "_local_scalar_dense",
            "item",
            "nonzero",
            "equal",
            "is_nonzero",
        }
        assert set(count.names) <= {"mul", "add", "add_", "mul_"}, count.names
        # an operation per number of the row, and two that read the network's output as a prediction
        numbers = int((table.x[row] != 0).sum()) + table.uses_base * int(
            (table.base[row] != 0).sum()
        )
        both = 0 if table.u is None else 2 + int((table.u[row] != 0).sum())
        assert count.full <= numbers + 2 + both
        kept.append(len(count.made))
    # nothing is allocated beyond what the run remembers: x, the base, one prediction
    remembers = 0 if table.u is None else table.u.shape[1] > 1
    assert max(kept) <= 1 + table.uses_base + (table.history > 1) + remembers


def test_a_run_remembers_nothing_that_grows():
    table = table_of(("unipc", {"order": 3}), PROCESSES["vp"], 30)
    run = Run(table, "sample")
    run.start(start(1))
    for _ in run.rows():
        run.advance(run.latents * 0.5)
        assert len(run._here.history) == table.history - 1
        assert not run._checkpoints.points


# -- the table of solvers ------------------------------------------------------------------------
@pytest.mark.parametrize("name", solvers.SOLVERS)
def test_every_line_of_the_table_of_solvers_is_true(name):
    spec = solvers.SOLVERS[name]
    assert not set(spec.options) & {"s_noise"}
    assert calls(spec.calls, 9) >= 9
    assert spec.grid is None or spec.grid in grids.GRIDS
    assert (spec.make.__doc__ or "").strip().splitlines()[0][-1] in ".)"
    assert spec.reference
    table = solvers.make(name, grids.index.trailing(PROCESSES["vp"], 3))
    assert table.solver == name
    with pytest.raises(ArgumentError, match="banana"):
        solvers.make(name, grids.index.trailing(PROCESSES["vp"], 3), banana=1)


def test_a_table_with_a_gradient_prints_and_compiles_without_a_warning():
    """torch warns once when a tensor with a gradient becomes a float; none of ours may."""
    sigmas = torch.tensor([0.9, 0.4], dtype=torch.float64, requires_grad=True)
    torch._C._set_warnAlways(True)
    try:
        for name in solvers.SOLVERS:
            str(solvers.make(name, grids.custom_sigmas(PROCESSES["vp"], sigmas)))
        with pytest.raises(tm.TimonelError, match="above"):
            grids.custom_sigmas(PROCESSES["flow"], sigmas * 2)
    finally:
        torch._C._set_warnAlways(False)
