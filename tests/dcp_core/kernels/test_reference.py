"""The torch kernel, by which every other is judged: right by the definition, whatever the pass."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from dcp_core.cache import PagedCache, PageTable, page_count
from dcp_core.kernels import reference
from dcp_core.kernels.base import Masking, PassBatch, PassKind, PassSpec
from dcp_core.kernels.reference import Reference, attend
from dcp_core.lse import LseBase, Partial
from dcp_core.mask import InterleavedMask
from dcp_core.settings import KernelName, KvLayout, Unsupported

KV_HEADS, GROUP, HEAD_DIM, PAGE = 2, 3, 8, 4
HEADS = KV_HEADS * GROUP
CPU = torch.device("cpu")


def spec(
    kind: PassKind = PassKind.PAGED, masking: Masking = Masking.NONE, kv_layout: KvLayout = KvLayout.NHD
) -> PassSpec:
    dtype = torch.float32
    return PassSpec(kind, masking, HEADS, KV_HEADS, HEAD_DIM, dtype, dtype, PAGE, kv_layout)


def normal(*size: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def expect(q: Tensor, k: Tensor, v: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
    """Attend in float64, one head and one row at a time."""
    out, lse = torch.zeros(q.shape, dtype=torch.float64), torch.full(q.shape[:-1], -math.inf, dtype=torch.float64)
    for row, head in torch.cartesian_prod(torch.arange(len(q)), torch.arange(q.shape[1])).tolist():
        kv_head, keys = head // GROUP, seen[row].nonzero().squeeze(1)
        if len(keys):
            scores = k[keys, kv_head].double() @ q[row, head].double() / math.sqrt(HEAD_DIM)
            lse[row, head] = scores.logsumexp(0)
            out[row, head] = torch.exp(scores - lse[row, head]) @ v[keys, kv_head].double()
    return out, lse


def paged(lens: list[int], kv_layout: KvLayout, seed: int) -> tuple[list[Tensor], list[Tensor], PageTable, PagedCache]:
    keys = [normal(length, KV_HEADS, HEAD_DIM, seed=seed + 2 * index) for index, length in enumerate(lens)]
    values = [normal(length, KV_HEADS, HEAD_DIM, seed=seed + 2 * index + 1) for index, length in enumerate(lens)]
    pages = page_count(lens, PAGE) + 2
    table = PageTable.shuffled(lens, PAGE, pages=pages, seed=seed)
    cache = PagedCache.allocate(
        pages, page_size=PAGE, kv_heads=KV_HEADS, head_dim=HEAD_DIM, dtype=torch.float32, kv_layout=kv_layout
    )
    request = torch.tensor([index for index, length in enumerate(lens) for _ in range(length)], dtype=torch.int64)
    place = torch.tensor([token for length in lens for token in range(length)], dtype=torch.int64)
    cache.append(torch.cat(keys), torch.cat(values), table.slots(request, place))
    return keys, values, table, cache


def poisoned(rows: int) -> Partial:
    return Partial(torch.full((rows, HEADS, HEAD_DIM), math.nan), torch.full((rows, HEADS), math.nan))


def agree(result: Partial, out: Tensor, lse: Tensor) -> None:
    torch.testing.assert_close(result.out.double(), out, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(result.lse.double(), lse, rtol=1e-5, atol=1e-6)
    assert result.base is LseBase.NATURAL


@st.composite
def batches(draw: st.DrawFn) -> tuple[list[int], list[int], int, int]:
    lens = draw(st.lists(st.tuples(st.integers(1, 5), st.integers(0, 9)), min_size=1, max_size=3))
    dcp = draw(st.integers(1, 4))
    return [new for new, _ in lens], [new + context for new, context in lens], dcp, draw(st.integers(0, dcp - 1))


@pytest.mark.parametrize("masking", [Masking.BOOL, Masking.PACKED, Masking.COMPUTED])
@given(batch=batches(), interleave=st.sampled_from([1, 2]), kv_layout=st.sampled_from(KvLayout))
def test_a_masked_pass_sees_what_the_mask_says(
    masking: Masking, batch: tuple[list[int], list[int], int, int], interleave: int, kv_layout: KvLayout
) -> None:
    new, total, dcp, rank = batch
    rule = InterleavedMask(tuple(new), tuple(total), dcp, rank, interleave)
    positions = [
        torch.tensor([p for p in range(length) if p // interleave % dcp == rank], dtype=torch.int64) for length in total
    ]
    lens = [len(held) for held in positions]
    keys, values, table, cache = paged(lens, kv_layout, seed=sum(total))
    mask = {Masking.BOOL: rule.bools, Masking.PACKED: rule.packed, Masking.COMPUTED: lambda: rule}[masking]()
    opened = Reference().open(spec(masking=masking, kv_layout=kv_layout), CPU)
    opened.plan(PassBatch(tuple(new), tuple(lens), table, mask))
    q = normal(sum(new), HEADS, HEAD_DIM, seed=99)
    result = opened.run(q, cache.pages, poisoned(sum(new)))
    outs, lses = [], []
    for own, length, held, k, v in zip(q.split(new), total, positions, keys, values, strict=True):
        seen = held <= torch.arange(length - len(own), length).unsqueeze(1)
        out, lse = expect(own, k, v, seen)
        outs.append(out)
        lses.append(lse)
    agree(result, torch.cat(outs), torch.cat(lses))


@pytest.mark.parametrize("kv_layout", KvLayout)
@pytest.mark.parametrize("masking", [Masking.NONE, Masking.CAUSAL])
def test_a_paged_pass_sees_all_keys_or_those_up_to_its_own(masking: Masking, kv_layout: KvLayout) -> None:
    new, lens = [3, 1, 4, 2], [7, 9, 4, 0 if masking is Masking.NONE else 2]
    keys, values, table, cache = paged(lens, kv_layout, seed=5)
    opened = Reference().open(spec(masking=masking, kv_layout=kv_layout), CPU)
    opened.plan(PassBatch(tuple(new), tuple(lens), table))
    q = normal(sum(new), HEADS, HEAD_DIM, seed=9)
    result = opened.run(q, cache.pages, poisoned(sum(new)))
    start = 0
    for own, length, k, v in zip(q.split(new), lens, keys, values, strict=True):
        offset = length - len(own) if masking is Masking.CAUSAL else length
        seen = torch.arange(length) <= torch.arange(len(own)).unsqueeze(1) + offset
        here = slice(start, start + len(own))
        agree(Partial(result.out[here], result.lse[here]), *expect(own, k, v, seen))
        start += len(own)


def test_a_ragged_pass_reads_contiguous_keys() -> None:
    new = [3, 1, 4]
    q, k, v = (normal(8, heads, HEAD_DIM, seed=seed) for seed, heads in enumerate((HEADS, KV_HEADS, KV_HEADS), start=1))
    opened = Reference().open(spec(PassKind.RAGGED, Masking.CAUSAL), CPU)
    opened.plan(PassBatch(tuple(new), tuple(new)))
    result = opened.run(q, (k, v), poisoned(8))
    start = 0
    for length in new:
        here = slice(start, start + length)
        seen = torch.ones(length, length, dtype=torch.bool).tril()
        agree(Partial(result.out[here], result.lse[here]), *expect(q[here], k[here], v[here], seen))
        start += length


def test_requests_without_queries_or_keys_are_passed_over() -> None:
    keys, values, table, cache = paged([0, 5, 3], KvLayout.NHD, seed=1)
    opened = Reference().open(spec(masking=Masking.CAUSAL), CPU)
    opened.plan(PassBatch((0, 2, 0), (0, 5, 3), table))
    q = normal(2, HEADS, HEAD_DIM)
    seen = torch.arange(5) <= torch.tensor([[3], [4]])
    agree(opened.run(q, cache.pages, poisoned(2)), *expect(q, keys[1], values[1], seen))


def test_a_pass_in_chunks_is_the_same_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = (
        normal(37, HEADS, HEAD_DIM),
        normal(50, KV_HEADS, HEAD_DIM, seed=1),
        normal(50, KV_HEADS, HEAD_DIM, seed=2),
    )
    seen = torch.arange(50) <= torch.arange(37).unsqueeze(1) + 13
    whole, chunked = poisoned(37), poisoned(37)
    attend(q, k, v, seen=seen, into=whole)
    monkeypatch.setattr(reference, "SCORE_ELEMENTS", 4 * 50 + 7)
    attend(q, k, v, seen=seen, into=chunked)
    torch.testing.assert_close(chunked.out, whole.out)
    torch.testing.assert_close(chunked.lse, whole.lse)
    agree(chunked, *expect(q, k, v, seen))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_rounded_once(dtype: torch.dtype) -> None:
    q, k, v = (
        normal(20, heads, HEAD_DIM, seed=seed, dtype=dtype)
        for seed, heads in enumerate((HEADS, KV_HEADS, KV_HEADS), start=1)
    )
    seen = torch.ones(20, 20, dtype=torch.bool)
    result = Partial.empty(20, HEADS, HEAD_DIM, dtype=dtype, device=CPU)
    attend(q, k, v, seen=None, into=result)
    out, lse = expect(q, k, v, seen)
    # Half a unit in the last place of the dtype, and what float32 adds before.
    torch.testing.assert_close(result.out.double(), out, rtol=torch.finfo(dtype).eps / 2 * 1.01, atol=1e-6)
    torch.testing.assert_close(result.lse.double(), lse, rtol=1e-6, atol=1e-6)


def test_a_decode_pass_refuses_longer_queries() -> None:
    opened = Reference().open(spec(PassKind.DECODE), CPU)
    with pytest.raises(ValueError, match="one query per request, not 3"):
        opened.plan(PassBatch((1, 3), (4, 4), PageTable.over([4, 4], PAGE)))


def test_a_pass_that_lacks_what_it_needs_says_so() -> None:
    opened = Reference().open(spec(), CPU)
    opened.plan(PassBatch((1,), (4,)))
    with pytest.raises(ValueError, match="a paged pass needs a page table"):
        opened.run(normal(1, HEADS, HEAD_DIM), torch.zeros(1, 2, PAGE, KV_HEADS, HEAD_DIM), poisoned(1))
    masked = Reference().open(spec(masking=Masking.PACKED), CPU)
    masked.plan(PassBatch((1,), (4,), PageTable.over([4], PAGE), torch.ones(4, dtype=torch.bool)))
    with pytest.raises(ValueError, match="packed masking cannot take a mask of type Tensor"):
        masked.run(normal(1, HEADS, HEAD_DIM), torch.zeros(1, 2, PAGE, KV_HEADS, HEAD_DIM), poisoned(1))


def test_it_runs_everything_and_refuses_nothing() -> None:
    kernel = Reference()
    assert kernel.name is KernelName.REFERENCE
    for kind in PassKind:
        for masking in Masking:
            assert kernel.refusal(spec(kind, masking), CPU) is None


def test_what_it_cannot_run_it_refuses_in_a_sentence() -> None:
    plain = spec(PassKind.PAGED, Masking.NONE)
    refused = {
        "takes queries of bfloat16, float16 or float32, not float8_e4m3fn": replace(plain, dtype=torch.float8_e4m3fn),
        "allocates while it runs, so it cannot be replayed": replace(plain, replayable=True),
    }
    for reason, asked in refused.items():
        assert reason in (Reference().refusal(asked, CPU) or "")
        with pytest.raises(Unsupported, match=reason):
            Reference().open(asked, CPU)
