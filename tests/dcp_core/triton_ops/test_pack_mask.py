"""The kernel that packs masks writes the very bits of its torch twin, whatever lay there before."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dcp_core.mask import InterleavedMask, PackedMask
from dcp_core.triton_ops.pack_mask import MOST_WORDS, pack_mask

REQUESTS = st.tuples(
    st.one_of(st.integers(0, 9), st.integers(0, 40)),
    st.one_of(st.just(0), st.integers(0, 12), st.integers(0, 90), st.integers(0, 3000)),
)


def rule_of(requests: list[tuple[int, int]], dcp: int, rank: int, interleave: int) -> InterleavedMask:
    """Make the mask of requests of (new, context)."""
    totals = tuple(new + context for new, context in requests)
    return InterleavedMask(tuple(new for new, _ in requests), totals, dcp, rank % dcp, interleave)


def same(packed: PackedMask, expected: PackedMask) -> bool:
    return packed.bits.equal(expected.bits) and packed.byte_indptr.equal(expected.byte_indptr)


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
    rule, device = rule_of(requests, dcp, rank, interleave), torch.device(triton_device)
    packed = pack_mask(rule, device)
    assert (packed.bits.dtype, packed.byte_indptr.dtype) == (torch.uint8, torch.int32)
    assert packed.bits.is_contiguous()
    assert same(packed, rule.packed(device))


@pytest.mark.parametrize("total", [60_000, 300_000])
def test_a_row_longer_than_a_program_writes_is_whole(total: int, triton_device: str) -> None:
    rule, device = rule_of([(7, total - 7), (2, 5)], 2, 1, 1), torch.device(triton_device)
    assert total // 2 > 64 * MOST_WORDS
    assert same(pack_mask(rule, device), rule.packed(device))


@pytest.mark.parametrize("poison", [0, -1])
def test_every_byte_is_written(poison: int, triton_device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rule, device = rule_of([(9, 700), (5, 0), (3, 4), (1, 0), (6, 129)], 2, 1, 1), torch.device(triton_device)
    expected, empty = rule.packed(device), torch.empty

    def poisoned(*size: int, **options: Any) -> torch.Tensor:
        return empty(*size, **options).fill_(poison)

    monkeypatch.setattr(torch, "empty", poisoned)
    assert same(pack_mask(rule, device), expected)


def test_nothing_to_see_is_no_byte(triton_device: str) -> None:
    for requests in ([], [(0, 5)], [(3, 0), (1, 2)]):
        packed = pack_mask(rule_of(requests, 8, 7, 1), torch.device(triton_device))
        assert packed.bits.numel() == 0
        assert packed.byte_indptr.tolist() == [0] * (len(requests) + 1)


def test_a_row_among_many_requests_finds_its_own(triton_device: str) -> None:
    for requests in (127, 128, 129, 500):
        rule = rule_of([(1 + index % 3, index % 7) for index in range(requests)], 2, requests % 2, 1)
        device = torch.device(triton_device)
        assert same(pack_mask(rule, device), rule.packed(device))
