"""The paged cache: a rank writes the tokens it owns, wherever its pages are, and reads them back in order."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from dcp_core.cache import PagedCache, PageTable, page_count, slot_mapping
from dcp_core.layout import DcpLayout
from dcp_core.settings import KvLayout
from dcp_core.shard import take_shard

HEADS, HEAD_DIM = 2, 4


@dataclass(frozen=True)
class Batch:
    new_lens: list[int]
    total_lens: list[int]
    layout: DcpLayout
    rank: int
    page_size: int
    seed: int

    @property
    def local_lens(self) -> list[int]:
        return [self.layout.local_len(total, self.rank) for total in self.total_lens]

    def table(self, spare_pages: int = 3) -> PageTable:
        pages = page_count(self.local_lens, self.page_size) + spare_pages
        return PageTable.shuffled(self.local_lens, self.page_size, pages=pages, seed=self.seed)

    def slots(self, table: PageTable) -> Tensor:
        return slot_mapping(self.new_lens, self.total_lens, table, self.layout, self.rank)


@st.composite
def batches(draw: st.DrawFn) -> Batch:
    dcp, interleave = draw(st.integers(1, 5)), draw(st.sampled_from([1, 2, 4]))
    lens = draw(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 40)), max_size=5))
    return Batch(
        [new for new, _ in lens],
        [new + context for new, context in lens],
        DcpLayout(dcp, dcp, interleave),
        draw(st.integers(0, dcp - 1)),
        interleave * draw(st.sampled_from([1, 2, 4])),
        draw(st.integers(0, 1000)),
    )


def cache_for(batch: Batch, kv_layout: KvLayout, dtype: torch.dtype = torch.float32) -> PagedCache:
    pages = page_count(batch.local_lens, batch.page_size) + 3
    return PagedCache.allocate(
        pages, page_size=batch.page_size, kv_heads=HEADS, head_dim=HEAD_DIM, dtype=dtype, kv_layout=kv_layout
    )


# --- Page tables ----------------------------------------------------------------------------------------------------


@given(batches())
def test_every_request_has_just_the_pages_it_needs_and_shares_none(batch: Batch) -> None:
    table = batch.table()
    counts = [-(-length // batch.page_size) for length in batch.local_lens]
    assert table.indptr.diff().tolist() == counts
    assert table.indices.unique().numel() == table.indices.numel() == sum(counts)
    assert (table.indptr.dtype, table.indices.dtype) == (torch.int32, torch.int32)
    for length, count, last in zip(table.lens, counts, table.last_page_lens.tolist(), strict=True):
        assert length == max(count - 1, 0) * batch.page_size + last
        assert last == 0 if count == 0 else 1 <= last <= batch.page_size


def test_a_servers_pages_are_out_of_order_and_the_same_for_the_same_seed() -> None:
    one, other, third = (PageTable.shuffled([640], 16, pages=50, seed=seed) for seed in (1, 1, 2))
    assert one.indices.equal(other.indices)
    assert not one.indices.equal(third.indices)
    assert one.indices.tolist() != sorted(one.indices.tolist())
    assert PageTable.over([20, 0, 33], 16).indices.tolist() == [0, 1, 2, 3, 4]


def test_too_few_pages_are_refused() -> None:
    with pytest.raises(ValueError, match="33 tokens need 3 pages of 16, got 2"):
        PageTable.over([33], 16, torch.arange(2, dtype=torch.int32))


@given(batches(), st.data())
def test_a_table_cut_down_keeps_where_the_first_tokens_are(batch: Batch, data: st.DataObject) -> None:
    table = batch.table()
    lens = [data.draw(st.integers(0, length)) for length in table.lens]
    if not lens:
        return
    cut = table.first(lens)
    assert cut.lens == tuple(lens)
    assert cut.indptr.diff().tolist() == [-(-length // batch.page_size) for length in lens]
    for request, length in enumerate(lens):
        index = torch.arange(length)
        where = torch.full_like(index, request)
        assert cut.slots(where, index).equal(table.slots(where, index))


@pytest.mark.parametrize("lens", [(4, 0), (3, 1), (1,)])
def test_a_table_holds_no_more_than_it_holds(lens: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="holds no first"):
        PageTable.over([3, 0], 2).first(lens)


@given(batches(), st.data())
def test_a_table_of_some_requests_keeps_where_their_tokens_are(batch: Batch, data: st.DataObject) -> None:
    table = batch.table()
    if not table.lens:
        return
    chosen = data.draw(st.lists(st.sampled_from(range(len(table.lens))), min_size=1, unique=True))
    some = table.select(chosen)
    for new, old in enumerate(chosen):
        assert some.lens[new] == table.lens[old]
        index = torch.arange(table.lens[old])
        assert some.slots(torch.full_like(index, new), index).equal(table.slots(torch.full_like(index, old), index))


# --- Slots ----------------------------------------------------------------------------------------------------------


@given(batches())
def test_a_rank_has_a_slot_of_its_own_for_each_token_it_owns_and_none_for_others(batch: Batch) -> None:
    table = batch.table()
    slots = batch.slots(table)
    positions = [
        position
        for new, total in zip(batch.new_lens, batch.total_lens, strict=True)
        for position in range(total - new, total)
    ]
    owned = torch.tensor([batch.layout.owner(position) == batch.rank for position in positions], dtype=torch.bool)
    assert slots.dtype == torch.int64
    assert (slots >= 0).equal(owned)
    assert (slots[~owned] == -1).all()
    assert slots[owned].unique().numel() == owned.sum()
    assert set((slots[owned] // batch.page_size).tolist()) <= set(table.indices.tolist())


# --- Writing and reading --------------------------------------------------------------------------------------------


@given(batches(), st.sampled_from(KvLayout))
def test_what_is_appended_in_chunks_reads_back_as_the_ranks_shard(batch: Batch, kv_layout: KvLayout) -> None:
    table, cache = batch.table(), cache_for(batch, kv_layout)
    generator = torch.Generator().manual_seed(batch.seed)
    sequences = [torch.randn(2, total, HEADS, HEAD_DIM, generator=generator) for total in batch.total_lens]
    contexts = [total - new for new, total in zip(batch.new_lens, batch.total_lens, strict=True)]
    for news, totals in ((contexts, contexts), (batch.new_lens, batch.total_lens)):
        slots = slot_mapping(news, totals, table, batch.layout, batch.rank)
        chunks = [tokens[:, total - new : total] for tokens, new, total in zip(sequences, news, totals, strict=True)]
        keys, values = torch.cat([torch.zeros(2, 0, HEADS, HEAD_DIM), *chunks], dim=1)
        cache.append(keys, values, slots)
    for request, tokens in enumerate(sequences):
        keys, values = cache.read(table, request)
        assert keys.equal(take_shard(tokens[0], batch.layout, batch.rank))
        assert values.equal(take_shard(tokens[1], batch.layout, batch.rank))
    written = 2 * HEADS * HEAD_DIM * sum(batch.local_lens)
    assert cache.pages.isfinite().sum() == written, "a slot that no token owns was written"


@given(batches())
def test_both_page_layouts_hold_the_same(batch: Batch) -> None:
    table = batch.table()
    tokens = torch.randn(2, sum(batch.new_lens), HEADS, HEAD_DIM, generator=torch.Generator().manual_seed(batch.seed))
    caches = [cache_for(batch, kv_layout) for kv_layout in (KvLayout.NHD, KvLayout.HND)]
    for cache in caches:
        cache.append(*tokens, batch.slots(table))
        assert cache.page_size == batch.page_size
    torch.testing.assert_close(caches[0].pages, caches[1].pages.transpose(2, 3), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float8_e4m3fn])
@pytest.mark.parametrize("kv_layout", KvLayout)
def test_tokens_are_cast_to_the_caches_dtype_and_unwritten_memory_is_nan(
    dtype: torch.dtype, kv_layout: KvLayout
) -> None:
    batch = Batch([5, 3], [9, 3], DcpLayout(2, 2), 0, 4, seed=0)
    table, cache = batch.table(), cache_for(batch, kv_layout, dtype)
    keys, values = torch.randn(2, 8, HEADS, HEAD_DIM)
    cache.append(keys, values, batch.slots(table))
    owned = [4, 6, 8]
    read_keys, read_values = cache.read(table, 0)
    assert read_keys[:2].float().isnan().all()
    for position, read in zip(owned, read_keys[2:], strict=True):
        assert read.float().equal(keys[position - 4].to(dtype).float())
    assert read_values[2:].float().equal(values[[0, 2, 4]].to(dtype).float())


def test_a_cache_knows_its_bytes() -> None:
    cache = PagedCache.allocate(3, page_size=16, kv_heads=2, head_dim=64, dtype=torch.bfloat16)
    assert cache.bytes == 3 * 2 * 16 * 2 * 64 * 2
    assert cache.pages.shape == (3, 2, 16, 2, 64)


def test_what_does_not_fit_a_cache_or_a_table_is_refused() -> None:
    layout, table = DcpLayout(2, 2), PageTable.over([5], 16)
    with pytest.raises(ValueError, match="0 <= new <= total"):
        slot_mapping([9], [8], table, layout, 0)
    with pytest.raises(ValueError, match="a batch of 2 requests needs a table of as many, not 1"):
        slot_mapping([1, 1], [8, 8], table, layout, 0)
    cache = PagedCache.allocate(3, page_size=16, kv_heads=2, head_dim=64, dtype=torch.float32, kv_layout="NHD")
    assert cache.kv_layout is KvLayout.NHD
    with pytest.raises(ValueError, match=r"takes \[3, 2, 64\] for 3 slots, not \[3, 1, 64\]"):
        cache.append(torch.zeros(3, 2, 64), torch.zeros(3, 1, 64), torch.arange(3))
    with pytest.raises(ValueError, match=r"takes \[2, 2, 64\] for 2 slots, not \[3, 2, 64\]"):
        cache.append(torch.zeros(3, 2, 64), torch.zeros(3, 2, 64), torch.arange(2))
    with pytest.raises(ValueError, match="this cache of 3 pages has slots 0 to 47, not 48"):
        cache.append(torch.zeros(3, 2, 64), torch.zeros(3, 2, 64), torch.tensor([-1, 47, 48]))
    assert cache.pages.isnan().all(), "nothing is written of what is refused"
