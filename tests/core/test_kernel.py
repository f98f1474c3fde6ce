"""The one operation of a run: every path makes the same sums, to the same bits."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import warnings

import pytest
import torch

import timonel as tm
from support.models import PROCESSES, Gaussian, drive
from support.places import environment
from support.sums import SUMS, tensors
from timonel.core import grids, kernel, solvers
from timonel.core.kernel import WeightedSums, eager, native
from timonel.core.process import double
from timonel.core.run import Run
from timonel.errors import UnknownName

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
UNIT = {
    torch.float64: 2.0**-53,
    torch.float32: 2.0**-24,
    torch.float16: 2.0**-11,
    torch.bfloat16: 2.0**-8,
}
#: rows of first, second and third order, corrected, two-stage and stochastic
SAMPLERS = ("euler", "dpmpp_2m", "dpmpp_3m", "unipc", "heun", "dpmpp_2m_sde", "euler_ancestral")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of what is skipped
    COMPILER = pytest.mark.skipif(native.library() is None, reason="no C++ compiler")


@pytest.fixture(autouse=True)
def _choice():
    before = kernel.chosen()
    yield
    kernel.use(before)


def table_of(name: str, steps: int = 6) -> tm.Table:
    return solvers.make(name, grids.make("trailing", PROCESSES["vp"], steps))


def journey(name: str, x: torch.Tensor) -> torch.Tensor:
    def denoise(z, level):
        return Gaussian([0.3] * z.shape[-1], [0.6] * z.shape[-1])(z, level)

    return drive(table_of(name), denoise, x)


# -- the sums ------------------------------------------------------------------------------------
@pytest.mark.parametrize("choice", ["eager", pytest.param("native", marks=COMPILER)])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_sums_are_those_in_float64(dtype, choice):
    kernel.use(choice)
    inputs = tensors(4, (3, 35), dtype)
    made = kernel.linear(SUMS, inputs, dtype)
    read = [t.double() for t in inputs]
    for terms, out in zip(SUMS.terms, made, strict=True):
        exact = sum(c * read[i] for c, i in terms)
        size = sum(abs(c) * read[i].abs() for c, i in terms)
        # one rounding to the dtype, and one per term in the type that is summed in
        summing = torch.float32 if dtype in eager.HALF else dtype
        bound = (
            UNIT[dtype] * exact.abs()
            + 2 * len(terms) * UNIT[summing] * size
            + 1e-7 * (dtype == torch.float16)
        )
        assert out.dtype == dtype
        assert bool(((out.double() - exact).abs() <= bound).all())
        read.append(out.double())  # a sum reads the outputs before it as they are after rounding


@pytest.mark.slow
@COMPILER
def test_inductor_compiles_the_same_sums():
    """Equal to eager but where inductor fuses a product and a sum that eager rounds."""
    inputs = tensors(4, (4, 4, 16, 16), torch.float32)
    compiled = torch.compile(lambda *t: eager.compute(SUMS, t, torch.float32), fullgraph=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, of its compiler
        made = compiled(*inputs)
    for one, two in zip(made, eager.compute(SUMS, inputs, torch.float32), strict=True):
        assert torch.allclose(one, two, rtol=4 * UNIT[torch.float32], atol=4 * UNIT[torch.float32])


@pytest.mark.parametrize("choice", ["eager", pytest.param("native", marks=COMPILER)])
def test_inputs_are_left_alone_and_outputs_share_no_memory(choice):
    kernel.use(choice)
    inputs = tensors(4, (2, 8), torch.float32)
    before = [t.clone() for t in inputs]
    made = kernel.linear(SUMS, inputs, torch.float32)
    kept = [t.clone() for t in made]
    for out, copy in zip(made, kept, strict=True):
        assert torch.equal(out, copy)
        out.fill_(7)
    assert all(torch.equal(a, b) for a, b in zip(inputs, before, strict=True))


@pytest.mark.parametrize("choice", ["eager", pytest.param("native", marks=COMPILER)])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_bits_depend_on_neither_batch_layout_nor_chunk(dtype, choice, monkeypatch):
    """Odd sizes, so that vectors, tails and chunk ends fall everywhere."""
    kernel.use(choice)
    inputs = tensors(4, (5, 3, 7, 11), dtype)
    whole = kernel.linear(SUMS, inputs, dtype)
    alone = [kernel.linear(SUMS, [t[i : i + 1] for t in inputs], dtype) for i in range(5)]
    strided = [t.transpose(1, 3).contiguous().transpose(1, 3) for t in inputs]
    mixed = [inputs[0], *strided[1:]]
    monkeypatch.setattr(eager, "CACHE", 0)
    for size in (1, 13, 256, 10**6):
        monkeypatch.setattr(eager, "CHUNK", size)
        assert all(
            torch.equal(a, b)
            for a, b in zip(kernel.linear(SUMS, inputs, dtype), whole, strict=True)
        )
    for m, out in enumerate(whole):
        assert torch.equal(torch.cat([one[m] for one in alone]), out)
        assert torch.equal(kernel.linear(SUMS, strided, dtype)[m], out)
        assert torch.equal(kernel.linear(SUMS, mixed, dtype)[m], out)


def test_chunks_write_what_is_remembered_and_nothing_else(monkeypatch):
    """Working in chunks makes the outputs and no temporary of the tensors' size."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Made(TorchDispatchMode):
        sizes: list = []  # noqa: RUF012

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if func.overloadpacket.__name__.startswith("empty"):
                self.sizes.append(out.numel())
            return out

    monkeypatch.setattr(eager, "CACHE", 0)
    monkeypatch.setattr(eager, "CHUNK", 100)
    with Made() as made:
        kernel.linear(SUMS, tensors(4, (1000,), torch.float32), torch.float32)
    assert made.sizes == [1000, 1000, 1000]


def test_mixed_dtypes_are_summed_before_they_are_rounded():
    x, raw = tensors(1, (64,), torch.bfloat16)[0], tensors(1, (64,), torch.float32, 1)[0]
    (out,) = kernel.linear(WeightedSums(2, (((0.3, 0), (0.7, 1)),)), [x, raw], torch.bfloat16)
    exact = 0.3 * x.double() + 0.7 * raw.double()
    assert bool(((out.double() - exact).abs() <= 2.0**-8 * exact.abs() + 1e-6).all())


# -- whole journeys ------------------------------------------------------------------------------
@COMPILER
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", SAMPLERS)
def test_a_journey_has_the_same_bits_on_every_path(name, dtype):
    x = tensors(1, (2, 3, 5, 4), dtype)[0]
    kernel.use("eager")
    wanted = journey(name, x)
    kernel.use("native")
    assert torch.equal(journey(name, x), wanted)


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_rows_of_a_run_are_the_tables(name):
    """Against the registers combined one by one in float64, from the table alone."""
    table, g = table_of(name), torch.Generator().manual_seed(1)
    x, raws, noises = (
        torch.randn(table.nfe, 2, 3, generator=g, dtype=torch.float64) for _ in range(3)
    )
    run = Run(table, "sample", noise=lambda row, like: noises[row])
    run.start(x[0])
    here, base, history = x[0], x[0], [torch.zeros(2, 3, dtype=torch.float64)] * (table.history - 1)
    for k in run.rows():
        run.advance(raws[k])
        clean, (_, sigma, _) = raws[k], table.level(k)
        scale = {
            "denoised": 0.0,
            "noise": float(table.alpha[k]),
            "velocity": float(table.alpha[k] + sigma),
        }
        h0 = clean if table.basis == "denoised" else (here - scale[table.basis] * clean) / sigma
        registers = torch.stack([here, base, h0, *history, noises[k]])
        here, base = (torch.einsum("r,rij->ij", row[k], registers) for row in (table.x, table.base))
        history = [h0, *history][: table.history - 1]
        assert torch.allclose(run.latents, here, atol=1e-12, rtol=1e-12)


@COMPILER
def test_one_build_serves_every_row_and_sampler():
    kernel.use("native")
    before = native.library.cache_info().misses
    for name in SAMPLERS:
        for shape in ((1, 3, 4), (2, 5, 2)):
            journey(name, tensors(1, shape, torch.float32)[0])
    assert native.library.cache_info().misses == before


# -- gradients -----------------------------------------------------------------------------------
@pytest.mark.parametrize("choice", ["eager", pytest.param("native", marks=COMPILER)])
@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.filterwarnings(
    "ignore:`torch.jit.script` is deprecated"
)  # torch.func.jvp itself calls it
def test_a_journey_is_differentiable(name, choice, monkeypatch):
    """gradcheck of the result in the start and in a weight of the network, on every path."""
    kernel.use(choice)
    monkeypatch.setattr(eager, "CACHE", 0)
    table = table_of(name, 4)

    def sample(x, weight):
        return drive(table, lambda z, level: torch.tanh(weight * z), x)

    x = tensors(1, (1, 3))[0].requires_grad_()
    weight = double(0.6).requires_grad_()
    assert torch.autograd.gradcheck(sample, (x, weight))
    _, tangent = torch.func.jvp(lambda w: sample(x.detach(), w), (weight.detach(),), (double(1.0),))
    (grad,) = torch.autograd.grad(sample(x, weight).sum(), weight)
    assert torch.allclose(tangent.sum(), grad)


# -- choosing a path -----------------------------------------------------------------------------
def test_an_unknown_path_is_refused():
    with pytest.raises(UnknownName, match="native"):
        kernel.use("nativ")


def test_the_environment_chooses(monkeypatch):
    monkeypatch.setattr(kernel, "_chosen", [])
    monkeypatch.setenv("TIMONEL_KERNEL", "eager")
    assert kernel.chosen() == "eager"
    monkeypatch.setattr(kernel, "_chosen", [])
    monkeypatch.setenv("TIMONEL_KERNEL", "fast")
    with pytest.raises(UnknownName, match="fast"):
        kernel.chosen()


def test_without_a_compiler_rows_run_eagerly_after_one_warning(monkeypatch):
    monkeypatch.setenv("CXX", "there-is-no-such-compiler")
    native.library.cache_clear()
    kernel.use("native")
    try:
        inputs = tensors(4, (9,), torch.float32)
        with pytest.warns(RuntimeWarning, match="there-is-no-such-compiler"):
            made = kernel.linear(SUMS, inputs, torch.float32)
        again = kernel.linear(
            SUMS, inputs, torch.float32
        )  # warnings are errors here: the second says nothing
        wanted = eager.compute(SUMS, inputs, torch.float32)
        assert all(
            torch.equal(a, b) and torch.equal(a, c)
            for a, b, c in zip(wanted, made, again, strict=True)
        )
    finally:
        native.library.cache_clear()


@COMPILER
def test_what_the_native_path_cannot_serve_is_summed_eagerly():
    """Broadcast noise, empty tensors, another dtype than the result's; but it sums many terms."""
    kernel.use("native")
    small = [*tensors(3, (4, 6), torch.float32), torch.ones(1, 6)]
    wanted = eager.compute(SUMS, small, torch.float32)
    assert all(
        torch.equal(a, b)
        for a, b in zip(kernel.linear(SUMS, small, torch.float32), wanted, strict=True)
    )
    long = WeightedSums(1, (tuple((1 / (i + 1), 0) for i in range(12)),))
    inputs = tensors(1, (5,), torch.float32)
    assert torch.equal(
        kernel.linear(long, inputs, torch.float32)[0], eager.compute(long, inputs, torch.float32)[0]
    )
    half = tensors(4, (5,), torch.float16)
    assert torch.equal(
        kernel.linear(SUMS, half, torch.float32)[2], eager.compute(SUMS, half, torch.float32)[2]
    )
    assert kernel.linear(SUMS, tensors(4, (0, 3), torch.float32), torch.float32)[0].shape == (0, 3)


# -- the GPU -------------------------------------------------------------------------------------
TRITON = """
import torch
from timonel.core.kernel import eager, triton_
from support.sums import SUMS, tensors
for dtype in (torch.float32, torch.float16):
    for n in (1, 37, 5000):
        inputs = tensors(4, (n,), dtype)
        wanted = eager.compute(SUMS, inputs, dtype)
        made = [torch.empty(n, dtype=dtype) for _ in wanted]
        triton_.linear(SUMS, inputs, made)
        unit = 2.0**-23 if dtype is torch.float32 else 2.0**-11
        # to the bit on a GPU; some interpreters round a product before they add
        for a, b in zip(made, wanted):
            assert torch.allclose(a.float(), b.float(), rtol=4 * unit, atol=4 * unit), (dtype, n)
"""


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
def test_the_triton_kernel_interpreted_on_the_cpu_makes_the_same_sums():
    subprocess.run(
        [sys.executable, "-c", TRITON],
        check=True,
        env=environment(TRITON_INTERPRET="1"),
    )


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_the_gpu_has_the_bits_of_the_cpu(dtype):
    inputs = tensors(4, (2, 37, 41), dtype)
    wanted = eager.compute(SUMS, inputs, dtype)
    for choice in ("eager", "auto"):
        kernel.use(choice)
        made = kernel.linear(SUMS, [t.cuda() for t in inputs], dtype)
        assert all(torch.equal(a.cpu(), b) for a, b in zip(made, wanted, strict=True))
