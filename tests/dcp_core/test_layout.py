"""Layouts: who owns which token, and which layouts a server would start with."""

from __future__ import annotations

import re
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dcp_core.hf_config import ShapeError
from dcp_core.layout import DcpLayout, IllegalLayout, legal_dcps
from dcp_core.shapes import MAX_SIZE, ModelShape

LAYOUTS = st.builds(lambda dcp, interleave: DcpLayout(dcp, dcp, interleave), st.integers(1, 9), st.integers(1, 20))
SHAPES = st.builds(lambda kv, group: ModelShape(kv * group, kv, 128), st.integers(1, 12), st.integers(1, 16))


def dealt(layout: DcpLayout, total: int) -> list[list[int]]:
    """Deal positions out to ranks as cards: interleave to a rank, then the next rank."""
    hands: list[list[int]] = [[] for _ in range(layout.dcp)]
    rank, left = 0, layout.interleave
    for position in range(total):
        if not left:
            rank, left = (rank + 1) % layout.dcp, layout.interleave
        hands[rank].append(position)
        left -= 1
    return hands


# --- Who owns what --------------------------------------------------------------------------------------------------


@given(LAYOUTS, st.integers(0, 400))
def test_tokens_are_dealt_out_to_ranks(layout: DcpLayout, total: int) -> None:
    for rank, hand in enumerate(dealt(layout, total)):
        assert layout.positions(total, rank) == hand
        assert layout.local_len(total, rank) == len(hand)
        for index, position in enumerate(hand):
            assert layout.owner(position) == rank
            assert layout.local_index(position) == index
            assert layout.position(index, rank) == position


@given(LAYOUTS, st.integers(0, 2**31 - 1))
def test_long_sequences_are_shared_out_whole_and_evenly(layout: DcpLayout, total: int) -> None:
    lens = [layout.local_len(total, rank) for rank in range(layout.dcp)]
    assert sum(lens) == total
    assert max(lens) - min(lens) <= layout.interleave
    assert lens == sorted(lens, reverse=True)


@pytest.mark.parametrize("sizes", [(0,), (-8,), (8, 0), (8, -2), (8, 2, 0), (8, 2, -1), (8.0,), (8, "2"), (True,)])
def test_a_layout_that_cannot_be_is_refused_at_birth(sizes: tuple[int, ...]) -> None:
    with pytest.raises(IllegalLayout, match="should be a positive whole number"):
        DcpLayout(*sizes)


@pytest.mark.parametrize("rank", [-1, 4])
def test_a_rank_outside_the_group_is_refused(rank: int) -> None:
    layout = DcpLayout(8, 4)
    for question in (layout.local_len, layout.positions, layout.position):
        with pytest.raises(IllegalLayout, match=f"rank {rank} is outside a DCP group of 4"):
            question(10, rank)


# --- Legality -------------------------------------------------------------------------------------------------------


def servable(shape: ModelShape, tp: int, dcp: int) -> bool:
    """Restate the bounds of vLLM for GQA, and ours: a DCP group lies within the ranks that share one KV head."""
    if shape.q_heads % tp or (tp % shape.kv_heads and shape.kv_heads % tp):
        return False
    if dcp == 1:
        return True
    copies = tp // shape.kv_heads
    vllm = tp > shape.kv_heads and dcp <= copies and (shape.q_heads // shape.kv_heads) % dcp == 0 and tp % dcp == 0
    return vllm and tp % shape.kv_heads == 0 and copies % dcp == 0


def is_legal(shape: ModelShape, tp: int, dcp: int) -> bool:
    try:
        DcpLayout(tp, dcp).check(shape)
    except IllegalLayout:
        return False
    return True


@given(SHAPES, st.integers(1, 64))
def test_legality_is_the_servers_rule_and_ours(shape: ModelShape, tp: int) -> None:
    legal = [dcp for dcp in range(1, tp + 1) if servable(shape, tp, dcp)]
    assert [dcp for dcp in range(1, tp + 3) if is_legal(shape, tp, dcp)] == legal
    assert legal_dcps(shape, tp) == legal


@pytest.mark.parametrize(
    ("model", "largest"),
    [
        ("qwen3-235b-a22b", {8: 2, 16: 4, 32: 8}),
        ("qwen3-32b", {8: 1, 16: 2, 32: 4}),
        ("llama-3.1-70b", {8: 1, 16: 2, 32: 4}),
        ("llama-3.1-405b", {8: 1, 16: 2, 32: 4}),
        ("gpt-oss-120b", {8: 1, 16: 2, 32: 4}),
        ("qwen3-30b-a3b", {8: 2, 16: 4, 32: 8}),
    ],
)
def test_the_largest_dcp_of_known_models(model: str, largest: dict[int, int]) -> None:
    assert {tp: max(legal_dcps(ModelShape.preset(model), tp)) for tp in largest} == largest


@given(SHAPES, st.integers(2, 64))
def test_where_dcp_is_legal_a_rank_holds_one_kv_head_and_gathers_no_more_than_its_group(
    shape: ModelShape, tp: int
) -> None:
    for dcp in legal_dcps(shape, tp)[1:]:
        heads = DcpLayout(tp, dcp).heads(shape)
        assert heads.kv == 1
        assert heads.query == shape.q_heads // tp
        assert heads.gathered == heads.query * dcp <= shape.group


def test_a_group_that_spans_two_kv_heads_is_refused() -> None:
    with pytest.raises(
        IllegalLayout, match=r"dcp must divide tp / kv_heads = 3, .* the nearest legal choice at tp 24 is dcp "
    ):
        DcpLayout(24, 2).check(ModelShape(96, 8, 128))


@pytest.mark.parametrize(
    ("tp", "dcp", "bound"),
    [
        (7, 1, "tp must divide the 64 query heads; the nearest legal tp for dcp 1 is 8"),
        (3, 2, "tp must divide the 64 query heads; the smallest tp for dcp 2 is 8"),
        (12, 2, "tp must divide the 64 query heads; the nearest legal tp for dcp 2 is 8"),
        (7, 5, "tp must divide the 64 query heads; no tp would do for dcp 5, which must divide 16, as 4 does"),
        (4, 2, "needs tp above the 4 KV heads, .*; at tp 4 only dcp 1 is legal; the smallest tp for dcp 2 is 8"),
        (8, 4, "at most tp / kv_heads = 2, .*; the nearest legal choice at tp 8 is dcp 2"),
        (32, 6, "dcp must divide tp / kv_heads = 8, .*; the nearest legal choice at tp 32 is dcp 8"),
        (32, 64, "at most tp / kv_heads = 8, .*; the nearest legal choice at tp 32 is dcp 8"),
    ],
)
def test_an_illegal_layout_is_told_the_bound_and_the_nearest_legal_choice(tp: int, dcp: int, bound: str) -> None:
    with pytest.raises(IllegalLayout, match=rf"^qwen3-235b-a22b with tp {tp}.*: .*{bound}"):
        DcpLayout(tp, dcp).check(ModelShape.preset("qwen3-235b-a22b"))


def test_a_layout_is_checked_against_a_shape() -> None:
    with pytest.raises(IllegalLayout, match="a layout is checked against a ModelShape, not 'qwen3-32b'"):
        DcpLayout(16, 2).check("qwen3-32b")  # type: ignore[arg-type]


@given(SHAPES, st.integers(1, 32), st.integers(1, 12))
def test_whatever_is_advised_is_legal_and_nothing_legal_is_nearer(shape: ModelShape, tp: int, dcp: int) -> None:
    if servable(shape, tp, dcp):
        return
    with pytest.raises(IllegalLayout) as caught:
        DcpLayout(tp, dcp).check(shape)
    advice = str(caught.value)
    if near := re.search(r"the nearest legal choice at tp (\d+) is dcp (\d+)$", advice):
        chosen = int(near[2])
        assert int(near[1]) == tp
        assert servable(shape, tp, chosen)
        assert abs(chosen - dcp) == min(abs(other - dcp) for other in range(1, tp + 1) if servable(shape, tp, other))
    elif smallest := re.search(r"the smallest tp for dcp (\d+) is (\d+)$", advice):
        legal = [size for size in range(1, shape.q_heads + 1) if servable(shape, size, dcp)]
        assert (int(smallest[1]), int(smallest[2])) == (dcp, legal[0])
    elif near := re.search(r"the nearest legal tp for dcp (\d+) is (\d+)$", advice):
        chosen = int(near[2])
        assert int(near[1]) == dcp
        assert servable(shape, chosen, dcp)
        assert not servable(shape, tp, 1)
        legal = [size for size in range(1, shape.q_heads + 1) if servable(shape, size, dcp)]
        assert abs(chosen - tp) == min(abs(size - tp) for size in legal)
    else:
        assert f"no tp would do for dcp {dcp}" in advice
        assert not any(servable(shape, size, dcp) for size in range(1, shape.q_heads + 1))


def test_a_synthetic_group_may_hold_several_kv_heads() -> None:
    for kv_heads, dcp in product((1, 2, 4), (1, 2, 3, 4, 8)):
        heads = DcpLayout(dcp, dcp).heads(ModelShape(8 * dcp * kv_heads, kv_heads, 128))
        assert (heads.query, heads.kv, heads.gathered) == (8 * kv_heads, kv_heads, 8 * kv_heads * dcp)


@pytest.mark.parametrize(
    ("layout", "heads", "complaint"),
    [
        (DcpLayout(3), (8, 2), "tp must divide the 8 query heads; for dcp 1 the nearest tp that does is 2"),
        (
            DcpLayout(2),
            (6, 3),
            "tp / dcp = 2 and the 3 KV heads must divide one another; for dcp 1 the nearest .* is 1",
        ),
        (
            DcpLayout(4),
            (12, 3),
            "tp / dcp = 4 and the 3 KV heads must divide one another; for dcp 1 the nearest .* is 3",
        ),
        (DcpLayout(8, 4), (24, 3), "tp / dcp = 2 and the 3 KV heads must divide one another; .* is 4"),
        (DcpLayout(4, 4), (8, 4), "2 query heads per rank cannot share 4 KV heads; for dcp 4 no tp would do"),
        (DcpLayout(4, 3), (8, 2), "dcp must divide tp, .*; for dcp 3 no tp would do"),
    ],
)
def test_heads_that_do_not_divide_are_refused(layout: DcpLayout, heads: tuple[int, int], complaint: str) -> None:
    with pytest.raises(IllegalLayout, match=complaint):
        layout.heads(ModelShape(*heads, 64))


@given(SHAPES, st.integers(1, 40), st.integers(1, 12))
def test_ranks_hold_every_head_and_copies_of_whole_ones(shape: ModelShape, tp: int, dcp: int) -> None:
    try:
        heads = DcpLayout(tp, dcp).heads(shape)
    except IllegalLayout:
        return
    held = heads.kv * tp // dcp  # by all groups, copies counted
    assert heads.query * tp == shape.q_heads
    assert held % shape.kv_heads == 0
    assert held == shape.kv_heads or heads.kv == 1


def test_advice_is_quick_for_the_largest_model_there_can_be() -> None:
    largest = ModelShape(MAX_SIZE, 1, 64)
    with pytest.raises(IllegalLayout, match="the nearest legal tp for dcp 2 is 65536"):
        DcpLayout(10**10, 2).check(largest)
    with pytest.raises(
        ShapeError, match="q_heads of a model should be a whole number from 1 to 65536, not 10000000000"
    ):
        ModelShape(10**10, 1, 64)


@given(LAYOUTS, st.integers(0, 400))
def test_layouts_that_hold_everything_alike_have_one_canonical_form(layout: DcpLayout, total: int) -> None:
    settled = layout.canonical
    assert settled.canonical == settled
    assert all(settled.positions(total, rank) == layout.positions(total, rank) for rank in range(layout.dcp))
    assert settled == (DcpLayout(1) if layout.dcp == 1 else layout)


def test_a_place_before_the_first_is_refused() -> None:
    layout = DcpLayout(2, 2)
    for question in (layout.local_index, layout.owner, lambda index: layout.position(index, 0)):
        with pytest.raises(IllegalLayout, match="is a whole number from 0, not -1"):
            question(-1)
