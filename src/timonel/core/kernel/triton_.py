"""One launch per row on the GPU, in Triton; importing it fails where Triton is missing or too old.

The coefficients are arguments of the launch: other rows and samplers do not compile anew, and
nothing is copied to the device or waited for. What is compiled is the pattern of the row (which
sums read which tensors) and the dtypes; a sampler has a handful, and Triton keeps them on disk.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .weighted_sums import WeightedSums

triton: Any = importlib.import_module("triton")
tl: Any = importlib.import_module("triton.language")
if tuple(map(int, triton.__version__.split(".")[:2])) < (3, 4):
    raise ImportError(f"Triton {triton.__version__} does not compile tuples of tuples; 3.4 does")

BLOCK = 1024
DTYPES = (torch.float32, torch.float16, torch.bfloat16)  # summed in float32


def supports(sums: WeightedSums, inputs: Sequence[Tensor], dtype: torch.dtype) -> bool:
    """Whether these sums can be computed here: float32 and half precision can."""
    return dtype in DTYPES and all(t.dtype in DTYPES for t in inputs)


def linear(sums: WeightedSums, inputs: Sequence[Tensor], out: Sequence[Tensor]) -> None:
    """Write the sums into `out`; all tensors contiguous, on one device, not empty."""
    arguments = sums.prepared.get("triton")
    if arguments is None:
        numbers = tuple(tuple(number for number, _ in terms) for terms in sums.terms)
        places = tuple(tuple(place for _, place in terms) for terms in sums.terms)
        arguments = sums.prepared["triton"] = (numbers, places)
    n = inputs[0].numel()
    with torch.cuda.device_of(inputs[0]):  # type: ignore[no-untyped-call]
        rows[(-(-n // BLOCK),)](
            tuple(inputs), tuple(out), arguments[0], n, arguments[1], BLOCK, enable_fp_fusion=False
        )


# Products are rounded, then fused: with fusion left to the compiler the bits would be its choice.
@triton.jit  # type: ignore[untyped-decorator]
def rows(  # type: ignore[no-untyped-def]
    inputs, out, numbers, n, PLACES: tl.constexpr, BLOCK: tl.constexpr
):
    """out[m] = sum of numbers[m][j]·(inputs, out)[PLACES[m][j]]; each tensor is touched once."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < n
    known = ()
    for i in tl.static_range(len(inputs)):
        known += (tl.load(inputs[i] + at, mask=inside).to(tl.float32),)  # type: ignore[assignment]
    for m in tl.static_range(len(PLACES)):
        total = known[PLACES[m][0]] * numbers[m][0]
        for j in tl.static_range(1, len(PLACES[m])):
            number = tl.full((BLOCK,), numbers[m][j], tl.float32)
            total = tl.fma(known[PLACES[m][j]], number, total)
        rounded = total.to(out[m].dtype.element_ty)
        tl.store(out[m] + at, rounded, mask=inside)
        known += (rounded.to(tl.float32),)  # type: ignore[assignment]
