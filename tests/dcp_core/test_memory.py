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
    RankMemory,
    SizeError,
    cache_bytes,
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


def test_a_mask_has_an_element_per_query_and_local_key() -> None:
    assert mask_elements(case("q32k", path="mask")) == 32768 * 16384


def test_what_stands_beside_the_cache_comes_off_its_room() -> None:
    kv = KvMemory(QWEN, DcpLayout(8, 2))
    rank = RankMemory(kv, 10 * kv.page_bytes + 700, float_workspace=600, wrappers=90, exchange=10)
    assert (rank.beside, rank.room, rank.tokens) == (700, 10 * kv.page_bytes, 320)
    assert rank.requests(33) == 5
    crowded = RankMemory(kv, 100, exchange=101)
    assert (crowded.room, crowded.tokens, crowded.requests(1)) == (0, 0, 0)
    with pytest.raises(SizeError, match="wrappers of a rank's memory is 0 bytes or more"):
        RankMemory(kv, 1, wrappers=-1)
