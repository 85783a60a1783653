"""What the KV cache costs and what fits, against known models and real allocations."""

from __future__ import annotations

from contextlib import suppress

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dcp_core import Case, DcpLayout, ModelShape, Settings, Workload
from dcp_core.cache import PagedCache, page_count
from dcp_core.layout import IllegalLayout
from dcp_core.memory import (
    KvMemory,
    SizeError,
    cache_bytes,
    case_bytes,
    case_parts,
    format_size,
    mask_elements,
    parse_size,
    parse_tokens,
)
from dcp_core.shapes import DType

QWEN = ModelShape.preset("qwen3-235b-a22b")


@pytest.mark.parametrize(
    ("text", "size"),
    [("80GiB", 80 << 30), ("512 MiB", 512 << 20), ("1.5kib", 1536), ("2GB", 2 * 10**9), ("4096", 4096), ("7b", 7)],
)
def test_a_size_is_read_as_people_write_it(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GiB", "-1GiB", "80 gigs", "1e9", "0", "0.0000001KiB", "٣GiB", "9" * 40])
def test_what_is_no_size_is_refused_in_a_sentence(text: str) -> None:
    with pytest.raises(SizeError, match="write it as 80GiB"):
        parse_size(text)


@given(st.text(max_size=30))
def test_any_text_is_a_size_or_a_mistake(text: str) -> None:
    with suppress(SizeError):
        assert parse_size(text) > 0


def test_tokens_are_read_in_the_words_of_the_batch_grammar() -> None:
    assert (parse_tokens("32k"), parse_tokens("1000")) == (32768, 1000)
    for text in ("0", "32m", "", "9999999k"):
        with pytest.raises(SizeError, match="write it as 32k"):
            parse_tokens(text)


def test_sizes_are_printed_with_their_unit() -> None:
    assert [format_size(size) for size in (12, 96256, 80 << 30, 3 << 40)] == ["12 B", "94.0 KiB", "80.0 GiB", "3.0 TiB"]


def test_tensor_parallelism_beyond_the_kv_heads_copies_them_and_dcp_shares_the_copies_out() -> None:
    one, two = (KvMemory(QWEN, DcpLayout(8, dcp)) for dcp in (1, 2))
    assert one.bytes_per_token == 94 * 2 * 1 * 128 * 2
    assert (one.copies, two.copies) == (2.0, 1.0)
    assert two.saved_against(one) == 0.5
    assert KvMemory(QWEN, DcpLayout(4)).copies == 1.0
    assert KvMemory(QWEN, DcpLayout(2)).bytes_per_token == 2 * one.bytes_per_token


def test_a_group_whose_ranks_hold_several_kv_heads_saves_nothing() -> None:
    assert KvMemory(QWEN, DcpLayout(4, 2)).saved_against(KvMemory(QWEN, DcpLayout(4))) == 0.0


def test_an_8_bit_cache_takes_half() -> None:
    small = ModelShape(64, 4, 128, 94, kv_dtype=DType.FLOAT8_E4M3FN)
    assert KvMemory(small, DcpLayout(8)).bytes_per_token == 94 * 2 * 128


def test_a_request_takes_pages_of_the_whole_group() -> None:
    memory = KvMemory(QWEN, DcpLayout(8, 2), page_size=16)
    assert [memory.pages(length) for length in (1, 32, 33)] == [1, 1, 2]
    assert memory.requests_in(10 * memory.page_bytes, 33) == 5
    assert memory.tokens_in(10 * memory.page_bytes) == 320


@given(budget=st.integers(0, 1 << 40), length=st.integers(1, 1 << 18), dcp=st.sampled_from([1, 2]))
def test_requests_that_fit_hold_no_more_tokens_than_fit(budget: int, length: int, dcp: int) -> None:
    memory = KvMemory(QWEN, DcpLayout(8, dcp))
    count = memory.requests_in(budget, length)
    assert count * length <= memory.tokens_in(budget)
    assert (count + 1) * memory.pages(length) * memory.page_bytes > budget


def test_impossible_memory_is_refused() -> None:
    with pytest.raises(IllegalLayout):
        KvMemory(QWEN, DcpLayout(7))
    with pytest.raises(SizeError, match="at least one token"):
        KvMemory(QWEN, DcpLayout(8), page_size=0)
    with pytest.raises(SizeError, match="at least one token"):
        KvMemory(QWEN, DcpLayout(8)).requests_in(1 << 30, 0)


def case(batch: str, *, tp: int = 8, dcp: int = 2, **settings: object) -> Case:
    defaults = {"path": "split", "kernel": "fa2", "exchange": "loopback" if dcp > 1 else "alone"}
    return Case(QWEN, DcpLayout(tp, dcp), Workload.parse(batch), Settings.from_json(defaults | settings))


def test_the_predicted_cache_is_what_a_cache_allocates() -> None:
    one = case("3q5s1000_q7s9")
    lens = [one.layout.local_len(total, 0) for total in one.workload.total_lens]
    pages = page_count(lens, one.settings.page_size)
    cache = PagedCache.allocate(pages, page_size=16, kv_heads=1, head_dim=128, dtype=torch.bfloat16)
    assert cache_bytes(one) == cache.bytes


def test_a_bool_mask_takes_a_byte_per_query_and_local_key() -> None:
    whole = case("q32k", path="mask", mask_form="bool")
    assert mask_elements(whole) == 32768 * 16384
    assert dict(case_parts(whole, 1))["masks"] == (512 << 20) + (64 << 20)
    assert dict(case_parts(case("q32k", path="mask", mask_form="packed"), 1))["masks"] == 64 << 20
    assert dict(case_parts(case("q32k", path="mask", mask_form="computed"), 1))["masks"] == 0


def test_a_plan_for_cuda_graphs_takes_room_for_every_row() -> None:
    def workspaces(**settings: object) -> int:
        return dict(case_parts(case("16q8ks32k", **settings), 1))["FlashInfer's workspaces"]

    assert workspaces(path="fold") == (394 + 16) << 20
    assert workspaces(path="split") == (394 + 64 + 32) << 20
    rows = 16 * 8192 + 16 * 128 // 16 + 1
    assert workspaces(path="mask", kernel="fa2", mask_form="computed", replayable=True) == 4 * 16 * 129 * rows + (
        16 << 20
    )


def test_simulated_ranks_take_the_memory_of_all_of_them() -> None:
    one = case("16q1s32k")
    whole, shared = (dict(case_parts(one, ranks)) for ranks in (2, 1))
    assert whole["KV caches"] == 2 * shared["KV caches"]
    assert whole["keys and values of whole sequences"] == shared["keys and values of whole sequences"]


def test_every_simulated_rank_holds_scores_of_the_reference_kernel_at_once() -> None:
    scores = "the reference kernel's scores"
    split, fold = (case("q512s4k", kernel="reference", path=path) for path in ("split", "fold"))
    assert dict(case_parts(split, 2))[scores] == 2 * dict(case_parts(split, 1))[scores]
    # 16 heads over 512 rows of 2048 keys fit into one chunk, folded or not: as many scores, and half the rows to mask.
    assert dict(case_parts(split, 1))[scores] - dict(case_parts(fold, 1))[scores] == 256 * 2048


def test_what_is_predicted_without_torch_is_what_torch_then_does() -> None:
    from bench import clock, stand
    from dcp_core import memory, oracle
    from dcp_core.kernels import flashinfer_workspace, reference

    assert (memory.ORACLE_SCORES, memory.ORACLE_ROWS) == (oracle.FULL_SCORES, oracle.SAMPLED_ROWS)
    assert memory.REFERENCE_SCORES == reference.SCORE_ELEMENTS
    assert memory.PAGED_WORKSPACE_BYTES == flashinfer_workspace.PAGED_BYTES
    assert memory.RAGGED_WORKSPACE_BYTES == flashinfer_workspace.RAGGED_BYTES
    assert memory.QUERY_TILE == flashinfer_workspace.LARGEST_QUERY_TILE
    assert memory.SPARE_PAGES == stand.SPARE_PAGES
    h200_l2_bytes = 60 << 20
    assert clock.FLUSH_FACTOR * h200_l2_bytes <= memory.FLUSH_BYTES


def test_the_parts_of_a_case_are_named_and_add_up() -> None:
    for path in ("split", "mask", "fold"):
        one = case("2q1s32k_q512s4k", path=path)
        parts = list(case_parts(one, 2))
        assert case_bytes(one, 2) == sum(size for _, size in parts)
        assert all(name and size >= 0 for name, size in parts)
    assert "FlashInfer's workspaces" not in dict(case_parts(case("q8", kernel="reference"), 1))


def test_the_prediction_covers_every_tensor_that_measuring_binds() -> None:
    from bench.stand import Stand
    from dcp_core.mesh import Mesh

    tiny = ModelShape(8, 2, 64, 2, dtype=DType.FLOAT32)
    settings = Settings.from_json({"path": "split", "kernel": "reference", "exchange": "loopback"})
    small = Case(tiny, DcpLayout(4, 2), Workload.parse("3q40s700"), settings)
    stand = Stand(small, Mesh.simulated(2, torch.device("cpu")), seed=0)
    inputs = (*stand.sequences.queries, *stand.sequences.keys, *stand.sequences.values)
    caches = sum(seat.step.cache.bytes for seat in stand.seats)
    steps = [tensor for seat in stand.seats for tensor in (seat.step.k_new, seat.step.v_new, seat.step.out)]
    bound = caches + sum(tensor.numel() * tensor.element_size() for tensor in (*inputs, *steps))
    working = {
        "the oracle",
        "gathered queries and partials",
        "the pass over new tokens",
        "the reference kernel's scores",
    }
    predicted = sum(size for name, size in case_parts(small, 2) if name not in working)
    assert bound <= predicted <= 1.1 * bound
