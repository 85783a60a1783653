"""The interleaved causal mask: a query sees a local key iff the key's position is not beyond its own."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dcp_core import mask as masks
from dcp_core.layout import DcpLayout
from dcp_core.mask import InterleavedMask, MaskRows, interleaved_causal_mask, pack_rows, packed_interleaved_causal_mask


@dataclass(frozen=True)
class Batch:
    new_lens: list[int]
    total_lens: list[int]
    dcp: int
    rank: int
    interleave: int

    @property
    def arguments(self) -> tuple[list[int], list[int], int, int, int]:
        return self.new_lens, self.total_lens, self.dcp, self.rank, self.interleave

    def by_hand(self) -> list[np.ndarray]:
        """Return each request's mask from the definition, position by position."""
        layout = DcpLayout(self.dcp, self.dcp, self.interleave)
        requests = []
        for new, total in zip(self.new_lens, self.total_lens, strict=True):
            keys = np.array(layout.positions(total, self.rank), dtype=np.int64)
            queries = np.arange(total - new, total)
            requests.append(keys[None, :] <= queries[:, None])
        return requests


@st.composite
def batches(draw: st.DrawFn) -> Batch:
    dcp = draw(st.integers(1, 8))
    context = st.one_of(st.just(0), st.integers(0, 12), st.integers(0, 150))
    lens = draw(st.lists(st.tuples(st.integers(0, 20), context), max_size=6))
    new, total = [new for new, _ in lens], [new + before for new, before in lens]
    return Batch(new, total, dcp, draw(st.integers(0, dcp - 1)), draw(st.sampled_from([1, 2, 3, 4, 16])))


@given(batches())
def test_the_mask_is_what_its_definition_says(batch: Batch) -> None:
    expected = np.concatenate([np.zeros(0, dtype=bool), *(request.ravel() for request in batch.by_hand())])
    bools = interleaved_causal_mask(*batch.arguments)
    assert bools.dtype == torch.bool
    np.testing.assert_array_equal(bools.numpy(), expected)


@given(batches())
def test_the_packed_mask_is_each_requests_bits_padded_to_a_byte(batch: Batch) -> None:
    packed, indptr = packed_interleaved_causal_mask(*batch.arguments)
    requests = [np.packbits(request.ravel(), bitorder="little") for request in batch.by_hand()]
    assert (packed.dtype, indptr.dtype) == (torch.uint8, torch.int32)
    assert indptr.tolist() == [0, *np.cumsum([request.size for request in requests], dtype=int)]
    np.testing.assert_array_equal(packed.numpy(), np.concatenate([np.zeros(0, np.uint8), *requests]))


@given(batches())
def test_lists_tensors_and_the_rule_itself_say_the_same(batch: Batch) -> None:
    new, total, *rest = batch.arguments
    rule = InterleavedMask(tuple(new), tuple(total), *rest)
    bools = interleaved_causal_mask(torch.tensor(new, dtype=torch.int32), torch.tensor(total, dtype=torch.int64), *rest)
    assert bools.equal(interleaved_causal_mask(*batch.arguments))
    assert rule.bools().equal(bools)
    packed, indptr = packed_interleaved_causal_mask(*batch.arguments)
    assert rule.packed().bits.equal(packed)
    assert rule.packed().byte_indptr.equal(indptr)


@given(batches())
def test_a_row_begins_with_its_ones(batch: Batch) -> None:
    rows = MaskRows.of(*batch.arguments, None)
    expected = [row for request in batch.by_hand() for row in request]
    assert rows.visible.tolist() == [int(row.sum()) for row in expected]
    assert rows.widths[rows.request].tolist() == [row.size for row in expected]
    assert all(not row[ones:].any() for row, ones in zip(expected, rows.visible.tolist(), strict=True))


@given(batches())
def test_the_ranks_masks_together_are_plain_causal(batch: Batch) -> None:
    seen = sum(MaskRows.of(*batch.arguments[:3], rank, batch.interleave, None).visible for rank in range(batch.dcp))
    causal = [
        context + 1 for new, total in zip(*batch.arguments[:2], strict=True) for context in range(total - new, total)
    ]
    assert torch.as_tensor(seen).tolist() == causal


def test_the_example_of_the_pull_request() -> None:
    # 8 new of 25 tokens over 4 ranks: rank 0 holds positions 0, 4, …, 24, and the queries are 17 … 24.
    expected = [
        [1, 1, 1, 1, 1, 0, 0],
        [1, 1, 1, 1, 1, 0, 0],
        [1, 1, 1, 1, 1, 0, 0],
        [1, 1, 1, 1, 1, 1, 0],
        [1, 1, 1, 1, 1, 1, 0],
        [1, 1, 1, 1, 1, 1, 0],
        [1, 1, 1, 1, 1, 1, 0],
        [1, 1, 1, 1, 1, 1, 1],
    ]
    assert interleaved_causal_mask([8], [25], 4, 0).view(8, 7).int().tolist() == expected
    packed, indptr = packed_interleaved_causal_mask([8], [25], 4, 0)
    assert packed.tolist() == [0x9F, 0xCF, 0xE7, 0xF7, 0xFB, 0xFD, 0xFE]
    assert indptr.tolist() == [0, 7]


def test_requests_without_a_local_key_take_no_room_among_others() -> None:
    # Rank 3 of 4 holds nothing of a sequence of 3 tokens.
    packed, indptr = packed_interleaved_causal_mask([2, 3, 1], [9, 3, 8], 4, 3)
    assert interleaved_causal_mask([2, 3, 1], [9, 3, 8], 4, 3).tolist() == [True] * 2 * 2 + [True] * 2
    assert (packed.tolist(), indptr.tolist()) == ([0b1111, 0b11], [0, 1, 1, 2])


@pytest.mark.parametrize("lens", [([], []), ([0], [0]), ([0, 0], [5, 0]), ([3], [3])], ids=str)
def test_nothing_to_see_is_an_empty_mask(lens: tuple[list[int], list[int]]) -> None:
    packed, indptr = packed_interleaved_causal_mask(*lens, 8, 7)
    assert interleaved_causal_mask(*lens, 8, 7).numel() == packed.numel() == 0
    assert indptr.tolist() == [0] * (len(lens[0]) + 1)


@pytest.mark.parametrize("function", [interleaved_causal_mask, pack_rows, MaskRows.of, MaskRows.byte_indptr])
def test_no_function_loops_over_requests(function: Callable[..., object]) -> None:
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    loops = [node for node in ast.walk(tree) if isinstance(node, ast.For | ast.While | ast.comprehension)]
    assert all(ast.unparse(loop.iter) == "range(8)" for loop in loops if isinstance(loop, ast.For))
    assert len(loops) == (1 if function is pack_rows else 0)


def test_the_packed_mask_is_made_without_the_bool_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the bool mask was built")

    expected, _ = packed_interleaved_causal_mask([5], [20], 2, 1)
    monkeypatch.setattr(masks, "interleaved_causal_mask", refuse)
    packed, _ = packed_interleaved_causal_mask([5], [20], 2, 1)
    assert packed.equal(expected)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (([4], [3], 2, 0), "0 <= new <= total"),
        (([1, 2], [3], 2, 0), "two equally long lists"),
        (([1], [3], 2, 2), "rank 2 is outside a DCP group of 2"),
        (([1], [3], 0, 0), "should be a positive whole number"),
        (([1], [3], 2, 0, 0), "interleave should be a positive whole number"),
    ],
)
def test_lengths_and_ranks_that_cannot_be_are_refused(
    arguments: tuple[list[int], list[int], int, int], complaint: str
) -> None:
    for function in (interleaved_causal_mask, packed_interleaved_causal_mask):
        with pytest.raises(ValueError, match=complaint):
            function(*arguments)


def test_a_mask_beyond_int32_offsets_is_refused() -> None:
    rows = MaskRows.of([32768] * 33, [32768] * 33, 2, 0, 1, None)
    with pytest.raises(ValueError, match="2214592512 bytes is more than int32 offsets reach"):
        rows.byte_indptr()


@pytest.mark.parametrize("device", ["nowhere", 1.5, "cuda:63"])
def test_a_device_that_is_not_there_is_a_value_error(device: object) -> None:
    for function in (interleaved_causal_mask, packed_interleaved_causal_mask):
        with pytest.raises(ValueError, match="lengths cannot be moved to"):
            function([8], [25], 4, 0, 1, device)  # type: ignore[arg-type]
