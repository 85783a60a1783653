"""The kernel that packs masks writes the very bits of its torch twin, whatever lay there before."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dcp_core import mask
from dcp_core.mask import MaskRows
from dcp_core.triton_ops import pack_mask

REQUESTS = st.tuples(
    st.one_of(st.integers(0, 9), st.integers(0, 40)),
    st.one_of(st.just(0), st.integers(0, 12), st.integers(0, 90), st.integers(0, 3000)),
)


def rows_of(
    requests: list[tuple[int, int]], dcp: int, rank: int, interleave: int, device: str | torch.device
) -> MaskRows:
    """Make the mask of requests of (new, context)."""
    totals = [new + context for new, context in requests]
    return MaskRows.of([new for new, _ in requests], totals, dcp, rank % dcp, interleave, torch.device(device))


@settings(max_examples=25)
@given(
    requests=st.lists(REQUESTS, max_size=5),
    dcp=st.integers(1, 8),
    rank=st.integers(0, 7),
    interleave=st.sampled_from([1, 2, 3, 16]),
)
@example(requests=[(5, 20)], dcp=1, rank=0, interleave=1)
@example(requests=[(16, 0)], dcp=8, rank=7, interleave=1)  # rows of one bit and two: a byte spans eight of them
@example(
    requests=[(1, 63), (1, 0), (3, 61), (2, 63)], dcp=1, rank=0, interleave=1
)  # rows of whole words, of one bit, of odd bits
@example(
    requests=[(1, 0)] * 9 + [(1, 500)], dcp=4, rank=3, interleave=1
)  # nine requests without a local key before one with
def test_the_bits_are_those_of_the_torch_twin(
    requests: list[tuple[int, int]], dcp: int, rank: int, interleave: int, triton_device: str
) -> None:
    rows = rows_of(requests, dcp, rank, interleave, triton_device)
    packed = pack_mask.pack_rows(rows)
    assert packed.dtype == torch.uint8
    assert packed.is_contiguous()
    assert packed.equal(mask.pack_rows(rows))


@pytest.mark.parametrize("total", [60_000, 300_000])
def test_a_row_longer_than_a_program_writes_is_whole(total: int, triton_device: str) -> None:
    rows = rows_of([(7, total - 7), (2, 5)], 2, 1, 1, triton_device)
    assert int(rows.widths.max()) > 64 * pack_mask.MOST_WORDS
    assert pack_mask.pack_rows(rows).equal(mask.pack_rows(rows))


@pytest.mark.parametrize("poison", [0, -1])
def test_every_byte_is_written(poison: int, triton_device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = rows_of([(9, 700), (5, 0), (3, 4), (1, 0), (6, 129)], 2, 1, 1, triton_device)
    expected, empty = mask.pack_rows(rows), torch.empty

    def poisoned(*size: int, **options: Any) -> torch.Tensor:
        return empty(*size, **options).fill_(poison)

    monkeypatch.setattr(torch, "empty", poisoned)
    assert pack_mask.pack_rows(rows).equal(expected)


def test_nothing_to_see_is_no_byte(triton_device: str) -> None:
    for requests in ([], [(0, 5)], [(3, 0), (1, 2)]):
        assert pack_mask.pack_rows(rows_of(requests, 8, 7, 1, triton_device)).numel() == 0
