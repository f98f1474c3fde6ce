"""The pieces that a prediction is taken apart into, and the numbers that are solved for them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import tune_last_row as row


def drawn(count: int, seed: int = 0) -> Tensor:
    return torch.randn(
        count, 3, 16, 16, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )


@pytest.mark.parametrize("kind", ["whole", "channels", "bands"])
def test_pieces_add_up_to_the_prediction(kind: str) -> None:
    v = drawn(2)
    torch.testing.assert_close(torch.stack(getattr(row, kind)(v)).sum(0), v)


def test_bands_share_no_frequency() -> None:
    parts = row.pieces([drawn(2)], row.bands)
    gram = torch.einsum("ndp,ndq->npq", parts, parts)
    assert (gram.diagonal(dim1=1, dim2=2) > 0.1).all()
    assert (gram - torch.diag_embed(gram.diagonal(dim1=1, dim2=2))).abs().max() < 1e-9


def test_pieces_of_a_convolution_span_every_convolution() -> None:
    v = drawn(2)
    kernel = torch.randn(
        3, 3, 3, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64
    )
    around = torch.nn.functional.pad(v, (1, 1, 1, 1), mode="circular")
    wanted = torch.nn.functional.conv2d(around, kernel).flatten()
    parts = row.pieces([v], row.convolved).flatten(0, 1)
    assert parts.shape[1] == 9 * 3 * 3
    numbers = torch.linalg.lstsq(parts, wanted[:, None]).solution[:, 0]
    torch.testing.assert_close(parts @ numbers, wanted)


@pytest.mark.parametrize("kind", ["whole", "channels", "bands", "convolved"])
def test_the_numbers_of_a_known_last_row_are_found(kind: str) -> None:
    columns, apart = [drawn(12, 1), drawn(12, 2)], getattr(row, kind)
    parts = row.pieces(columns, apart)
    numbers = torch.randn(
        parts.shape[-1], generator=torch.Generator().manual_seed(3), dtype=torch.float64
    )
    result = drawn(12, 4)
    truth = result + (parts @ numbers).reshape_as(result)
    torch.testing.assert_close(
        row.solved((result, columns), truth, apart), numbers, rtol=1e-3, atol=1e-3
    )
