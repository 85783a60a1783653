"""Shards as tensors: lengths of all ranks at once, positions of new tokens, and the rows that a rank holds."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from dcp_core.layout import DcpLayout
from dcp_core.shard import local_seq_lens, take_shard, token_positions

LAYOUTS = st.builds(lambda dcp, interleave: DcpLayout(dcp, dcp, interleave), st.integers(1, 9), st.integers(1, 20))


def formula_of_vllm(seq_lens: Tensor, dcp: int, rank: int, interleave: int) -> Tensor:
    """base = L // I // N * I, plus clip(L − base·N − r·I, 0, I)."""
    base = seq_lens // interleave // dcp * interleave
    return base + (seq_lens - base * dcp - rank * interleave).clip(0, interleave)


@given(LAYOUTS, st.lists(st.integers(0, 300), max_size=6))
def test_local_lengths_count_the_positions_of_each_rank(layout: DcpLayout, seq_lens: list[int]) -> None:
    lens = local_seq_lens(seq_lens, layout.dcp, interleave=layout.interleave)
    assert lens.dtype == torch.int32
    assert lens.shape == (len(seq_lens), layout.dcp)
    for row, total in zip(lens.tolist(), seq_lens, strict=True):
        positions = torch.arange(total) // layout.interleave % layout.dcp
        assert row == torch.bincount(positions, minlength=layout.dcp).tolist()


@given(LAYOUTS, st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=4))
def test_local_lengths_are_vllms_formula_and_the_layouts(layout: DcpLayout, seq_lens: list[int]) -> None:
    whole = torch.tensor(seq_lens)
    all_ranks = local_seq_lens(whole, layout.dcp, interleave=layout.interleave)
    for rank in range(layout.dcp):
        one = local_seq_lens(whole, layout.dcp, rank, layout.interleave)
        assert one.equal(all_ranks[..., rank])
        assert one.tolist() == formula_of_vllm(whole, layout.dcp, rank, layout.interleave).tolist()
        assert one.tolist() == [layout.local_len(total, rank) for total in seq_lens]


def test_lengths_of_any_shape_keep_it() -> None:
    lens = torch.arange(24, dtype=torch.int32).view(2, 3, 4)
    assert local_seq_lens(lens, 3).shape == (2, 3, 4, 3)
    assert local_seq_lens(lens, 3, rank=2).shape == (2, 3, 4)
    assert local_seq_lens(lens, 3).sum(-1).equal(lens.long())
    assert local_seq_lens(7, 2).tolist() == [4, 3]


@pytest.mark.parametrize(("dcp", "rank", "interleave"), [(0, None, 1), (2, 2, 1), (2, -1, 1), (2, 0, 0)])
def test_groups_and_ranks_that_cannot_be_are_refused(dcp: int, rank: int | None, interleave: int) -> None:
    with pytest.raises(ValueError, match=r"should be a positive whole number|outside a DCP group"):
        local_seq_lens([5], dcp, rank, interleave)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 50)), max_size=6))
def test_new_tokens_are_the_last_of_their_requests(lens: list[tuple[int, int]]) -> None:
    request, position = token_positions([new for new, _ in lens], [new + context for new, context in lens])
    expected = [(index, context + row) for index, (new, context) in enumerate(lens) for row in range(new)]
    assert list(zip(request.tolist(), position.tolist(), strict=True)) == expected


@pytest.mark.parametrize("lens", [None, "abc", [1.5], [True], ["8"], [[1], [2, 3]], [2**70]])
def test_what_is_no_list_of_lengths_is_refused(lens: Any) -> None:
    with pytest.raises(ValueError, match=r"^lengths should be .*whole numbers.*, not "):
        local_seq_lens(lens, 2)


def test_lists_that_do_not_match_are_refused() -> None:
    with pytest.raises(ValueError, match=r"two equally long lists, not \[2\] and \[1\]"):
        token_positions([1, 2], [3])


@given(LAYOUTS, st.integers(0, 200))
def test_a_shard_is_the_rows_at_a_ranks_positions(layout: DcpLayout, total: int) -> None:
    tokens = torch.arange(total * 2).view(total, 2)
    for rank in range(layout.dcp):
        assert take_shard(tokens, layout, rank).equal(tokens[layout.positions(total, rank)])
