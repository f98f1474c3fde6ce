"""One pass over memory on the CPU: thirty lines of C++, built by this machine's compiler.

All sums of a row are computed for some hundred bytes of every tensor before the next, so that each
byte is read from memory once. The arithmetic is that of the eager path, so the bits are the same.
"""

from __future__ import annotations

import ctypes
import functools
import os
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .weighted_sums import WeightedSums

C_TYPES = {torch.float32: ctypes.c_float, torch.float64: ctypes.c_double}
GRAIN = 1 << 15  # elements that are worth a thread, as in torch
FLAGS = ("-O3", "-shared", "-fPIC", "-std=c++17", "-ffp-contract=fast")
SOURCE = r"""
#include <cmath>
#if !defined(__FMA__) && !defined(__aarch64__)
#error "this processor has no fused multiply-add"
#endif
using Whole = long long;

// tensors: inputs, then outputs; sum m has count[m] terms, each a number and the place of a tensor
template <class T> void rows(Whole n, int threads, int inputs, int outputs, const int* count,
                             const int* place, const T* number, T* const* tensors) {
    typedef T V __attribute__((vector_size(32), aligned(sizeof(T)), may_alias));
    constexpr Whole LANES = 32 / sizeof(T), STRIDE = 8 * LANES;
    const Whole strides = n / STRIDE;
#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (Whole stride = 0; stride < strides; stride++) {
        const Whole at = stride * STRIDE;
        const int* p = place;
        const T* c = number;
        for (int m = 0; m < outputs; p += count[m], c += count[m], m++) {
            const T* in = tensors[p[0]] + at;
            const T k = c[0];
#define AT(l) *(const V*)(in + l * LANES)
            V a0 = AT(0) * k, a1 = AT(1) * k, a2 = AT(2) * k, a3 = AT(3) * k;
            V a4 = AT(4) * k, a5 = AT(5) * k, a6 = AT(6) * k, a7 = AT(7) * k;
            for (int j = 1; j < count[m]; j++) {
                const T* in = tensors[p[j]] + at;
                const T k = c[j];
                a0 += AT(0) * k, a1 += AT(1) * k, a2 += AT(2) * k, a3 += AT(3) * k;
                a4 += AT(4) * k, a5 += AT(5) * k, a6 += AT(6) * k, a7 += AT(7) * k;
            }
            V* out = (V*)(tensors[inputs + m] + at);
            out[0] = a0, out[1] = a1, out[2] = a2, out[3] = a3;
            out[4] = a4, out[5] = a5, out[6] = a6, out[7] = a7;
        }
    }
    for (Whole i = strides * STRIDE; i < n; i++) {
        const int* p = place;
        const T* c = number;
        for (int m = 0; m < outputs; p += count[m], c += count[m], m++) {
            T s = c[0] * tensors[p[0]][i];
            for (int j = 1; j < count[m]; j++) s = std::fma(c[j], tensors[p[j]][i], s);
            tensors[inputs + m][i] = s;
        }
    }
}

#define ROWS(name, T)                                                                          \
    void name(Whole n, int threads, int i, int o, const int* m, const int* p, const T* c,      \
              T* const* t) {                                                                   \
        rows(n, threads, i, o, m, p, c, t);                                                    \
    }
extern "C" {
ROWS(rows_4, float)
ROWS(rows_8, double)
}
"""


def supports(sums: WeightedSums, inputs: Sequence[Tensor], dtype: torch.dtype) -> bool:
    """Whether these sums can be computed here: float32 or float64 alone, and a compiler."""
    return dtype in C_TYPES and all(t.dtype is dtype for t in inputs) and library() is not None


def linear(sums: WeightedSums, inputs: Sequence[Tensor], out: Sequence[Tensor]) -> None:
    """Write the sums into `out`; all tensors contiguous, of a dtype of `supports`."""
    built = library()
    assert built is not None
    dtype, n = inputs[0].dtype, inputs[0].numel()
    arrays = sums.prepared.get(dtype)
    if arrays is None:
        arrays = sums.prepared[dtype] = _arrays(sums, C_TYPES[dtype])
    pointers = [t.data_ptr() for t in (*inputs, *out)]
    tensors = (ctypes.c_void_p * len(pointers))(*pointers)
    function = built.rows_4 if dtype is torch.float32 else built.rows_8
    threads = min(torch.get_num_threads(), n // GRAIN) or 1
    function(n, threads, len(inputs), len(out), *arrays, tensors)


def _arrays(sums: WeightedSums, number: Any) -> tuple[object, object, object]:
    """How many terms each sum has, and for all terms the places and the numbers."""
    flat = [term for terms in sums.terms for term in terms]
    return (
        (ctypes.c_int * len(sums.terms))(*(len(terms) for terms in sums.terms)),
        (ctypes.c_int * len(flat))(*(place for _, place in flat)),
        (number * len(flat))(*(value for value, _ in flat)),
    )


@functools.cache
def library() -> ctypes.CDLL | None:
    """The built code, or None and one warning without a C++ compiler. Built once per process."""
    installed = filter(None, map(shutil.which, ("c++", "g++", "clang++")))
    compiler = os.environ.get("CXX") or next(installed, None)
    reason = "no C++ compiler was found" if compiler is None else ""
    if compiler is not None and not sys.platform.startswith("win"):
        for extra in (("-march=native", "-fopenmp"), ("-march=native",), ()):
            try:
                return _build([*compiler.split(), *FLAGS, *extra])
            except (OSError, subprocess.SubprocessError) as error:
                reason = str(getattr(error, "stderr", "") or error).strip()
    warnings.warn(
        f"the native kernel cannot be built, so rows run eagerly: {reason}",
        RuntimeWarning,
        stacklevel=2,
    )
    return None


def _build(command: list[str]) -> ctypes.CDLL:
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        source, target = Path(folder, "rows.cpp"), Path(folder, "rows.so")
        source.write_text(SOURCE)
        command = [*command, str(source), "-o", str(target)]
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
        built = ctypes.CDLL(str(target))
    for function in (built.rows_4, built.rows_8):
        function.argtypes = [ctypes.c_longlong, *[ctypes.c_int] * 3, *[ctypes.c_void_p] * 4]
        function.restype = None
    return built
