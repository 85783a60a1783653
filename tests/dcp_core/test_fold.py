"""Folding: one rank's part of a causal mask is plain causal attention over rows of dcp queries, and their own keys."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dcp_core.fold import Fold, Folder, OwnRows, attend_own_rows
from dcp_core.layout import DcpLayout
from dcp_core.lse import LseBase, Partial, combine

HEAD_DIM = 2


@dataclass(frozen=True)
class Batch:
    new_lens: list[int]
    total_lens: list[int]
    dcp: int
    kv_heads: int
    group: int
    seed: int

    @property
    def heads(self) -> int:
        return self.kv_heads * self.group

    def folder(self, rank: int, *, dtype: torch.dtype = torch.float64) -> Folder:
        fold = Fold.of(self.new_lens, self.total_lens, self.dcp, rank)
        return Folder(
            fold,
            heads=self.heads,
            kv_heads=self.kv_heads,
            head_dim=HEAD_DIM,
            dtype=dtype,
            device=torch.device("cpu"),
        )

    def queries(self, *, dtype: torch.dtype = torch.float64) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed)
        return torch.randn(sum(self.new_lens), self.heads, HEAD_DIM, generator=generator, dtype=dtype)

    def keys_values(self) -> list[tuple[Tensor, Tensor]]:
        """Return, per request, all keys and all values ``[total, kv_heads, D]``."""
        generator = torch.Generator().manual_seed(self.seed + 1)
        shapes = [(2, total, self.kv_heads, HEAD_DIM) for total in self.total_lens]
        return [tuple(torch.randn(shape, generator=generator, dtype=torch.float64)) for shape in shapes]

    def new(self) -> tuple[Tensor, Tensor]:
        """Return the keys and the values of the new tokens ``[T, kv_heads, D]``."""
        both = zip(self.keys_values(), self.new_lens, strict=True)
        keys, values = zip(*((k[len(k) - new :], v[len(v) - new :]) for (k, v), new in both), strict=True)
        return torch.cat(keys), torch.cat(values)


def lengths(longest: int) -> st.SearchStrategy[list[tuple[int, int]]]:
    one = st.tuples(st.integers(1, longest), st.integers(0, longest))
    return st.lists(one, min_size=1, max_size=4)


@st.composite
def batches(draw: st.DrawFn, longest: int = 24) -> Batch:
    lens = draw(lengths(longest))
    return Batch(
        [new for new, _ in lens],
        [new + context for new, context in lens],
        draw(st.sampled_from([1, 2, 3, 4, 5, 8])),
        draw(st.sampled_from([1, 1, 2, 3])),
        draw(st.sampled_from([1, 2])),
        draw(st.integers(0, 1 << 20)),
    )


def attend(q: Tensor, k: Tensor, v: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
    """Attend in float64: q ``[T, H, D]``, k and v ``[J, K, D]``, seen ``[T, J]``; a row that sees nothing gives (0, -inf)."""
    group = q.shape[1] // k.shape[1]
    scores = torch.einsum("thd,jhd->thj", q, k.repeat_interleave(group, 1)) / math.sqrt(HEAD_DIM)
    scores = scores.masked_fill(~seen.unsqueeze(1), -math.inf)
    lse = scores.logsumexp(-1)
    weights = torch.where(lse.isinf().unsqueeze(-1), 0.0, torch.exp(scores - lse.unsqueeze(-1)))
    return torch.einsum("thj,jhd->thd", weights, v.repeat_interleave(group, 1)), lse


def causal(batch: Batch, q: Tensor) -> tuple[Tensor, Tensor]:
    """Attend as the definition says: a query at position p sees the keys at positions up to p."""
    outs, lses = [], []
    for own, total, (k, v) in zip(q.split(batch.new_lens), batch.total_lens, batch.keys_values(), strict=True):
        out, lse = attend(own, k, v, torch.arange(total) <= torch.arange(total - len(own), total).unsqueeze(1))
        outs.append(out)
        lses.append(lse)
    return torch.cat(outs), torch.cat(lses)


def folded_causal(batch: Batch, rank: int, folder: Folder, q: Tensor) -> Partial:
    """Attend to the folded queries with nothing but the plain bottom-right causal rule, over the first keys of a rank."""
    fold = folder.fold
    outs, lses = [], []
    rows = folder.fold_queries(q).split(list(fold.rows))
    for own, kv_len, (k, v) in zip(rows, fold.kv_lens, batch.keys_values(), strict=True):
        held = slice(rank, None, batch.dcp)
        seen = torch.arange(kv_len) <= torch.arange(len(own)).unsqueeze(1) + kv_len - len(own)
        out, lse = attend(own, k[held][:kv_len], v[held][:kv_len], seen)
        outs.append(out)
        lses.append(lse)
    return Partial(torch.cat(outs), torch.cat(lses).float())


def own_rows(batch: Batch, q: Tensor) -> Partial:
    room = Partial(torch.empty_like(q), q.new_empty(q.shape[:2]))
    earlier = batch.folder(0).fold.earlier
    return attend_own_rows(OwnRows(q, *batch.new(), earlier, batch.dcp), room)


@settings(max_examples=800)
@given(batches())
def test_folded_causal_attention_of_all_ranks_and_own_rows_are_causal_attention(batch: Batch) -> None:
    q = batch.queries()
    parts = [own_rows(batch, q)]
    for rank in range(batch.dcp):
        folder = batch.folder(rank)
        parts.append(folder.unfold(folded_causal(batch, rank, folder, q)))
    outs, lses = torch.stack([part.out for part in parts]), torch.stack([part.lse.double() for part in parts])
    result, (out, lse) = combine(outs, lses), causal(batch, q)
    torch.testing.assert_close(result.out, out, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(result.lse, lse, rtol=1e-6, atol=1e-6)


@settings(max_examples=800)
@given(batches(longest=3000))
def test_every_rank_with_a_key_of_the_context_has_as_many_rows_and_they_never_outnumber_keys(batch: Batch) -> None:
    layout = DcpLayout(batch.dcp, batch.dcp)
    for rank in range(batch.dcp):
        fold = Fold.of(batch.new_lens, batch.total_lens, batch.dcp, rank)
        for rows, keys, new, total in zip(fold.rows, fold.kv_lens, batch.new_lens, batch.total_lens, strict=True):
            held = layout.local_len(total - new, rank)
            assert rows == -(-new // batch.dcp) - (held == 0)
            assert keys == held + -(-new // batch.dcp) - 1 <= layout.local_len(total, rank)
            assert 0 <= rows <= keys
            assert (rows == 0) == (keys == 0)


@settings(max_examples=800)
@given(batches(longest=300))
def test_a_query_has_a_place_of_its_own_in_the_row_of_its_number_or_sees_no_key(batch: Batch) -> None:
    number = torch.cat([torch.arange(new) for new in batch.new_lens])
    context = torch.tensor([total - new for new, total in zip(batch.new_lens, batch.total_lens, strict=True)])
    context = context.repeat_interleave(torch.tensor(batch.new_lens))
    for rank in range(batch.dcp):
        fold = Fold.of(batch.new_lens, batch.total_lens, batch.dcp, rank)
        assert torch.equal(fold.earlier, number.int() % batch.dcp)
        assert torch.equal(fold.place < 0, (number < batch.dcp) & (context <= rank))
        placed = fold.place[fold.place >= 0]
        assert placed.unique().numel() == placed.numel()
        assert placed.numel() == 0 or int(placed.max()) < fold.places
        assert torch.equal(placed % batch.dcp, fold.earlier[fold.place >= 0].long())


def one_request(new: int, total: int, dcp: int, kv_heads: int = 1) -> Batch:
    return Batch([new], [total], dcp, kv_heads, 2, 0)


def numbered(batch: Batch, folder: Folder) -> Partial:
    """Return a folded result whose every element differs."""
    shape = folder.row_shape(batch.heads, HEAD_DIM)
    out = torch.arange(math.prod(shape), dtype=torch.float64).view(shape)
    return Partial(out, out[..., 0].float())


def test_whole_rows_of_one_kv_head_are_folded_as_a_view() -> None:
    batch = one_request(8, 24, 4)
    q, folder = batch.queries(), batch.folder(rank=0)
    folded = folder.fold_queries(q)
    assert folded.shape == (2, 4 * batch.heads, HEAD_DIM)
    assert folded.data_ptr() == q.data_ptr()


def test_queries_with_strides_are_folded_by_a_copy() -> None:
    fold = Fold.of([4], [4], 2, 0)
    folder = Folder(fold, heads=2, kv_heads=1, head_dim=8, dtype=torch.float32, device=torch.device("cpu"))
    q = torch.randn(2, 4, 8).transpose(0, 1)
    assert folder.fold_queries(q).equal(folder.fold_queries(q.contiguous()))


def test_padded_rows_are_folded_by_a_copy_that_leaves_the_queries_alone() -> None:
    batch = one_request(7, 23, 4)
    q, folder = batch.queries(), batch.folder(rank=1)
    before = q.clone()
    folded = folder.fold_queries(q)
    assert folded.data_ptr() != q.data_ptr()
    assert folded.isfinite().all()
    assert torch.equal(q, before)


@pytest.mark.parametrize(("new", "total", "rank"), [(8, 24, 0), (8, 24, 3), (7, 23, 1), (1, 9, 2)])
def test_a_single_request_with_context_is_unfolded_as_a_view(new: int, total: int, rank: int) -> None:
    batch = one_request(new, total, 4)
    folder = batch.folder(rank)
    folded = numbered(batch, folder)
    result = folder.unfold(folded)
    start, end = folded.out.data_ptr(), folded.out.data_ptr() + folded.out.nbytes
    assert start <= result.out.data_ptr() < end
    assert result.out.shape == (new, 2, HEAD_DIM)


def test_several_kv_heads_or_requests_are_unfolded_by_a_copy_with_the_same_contents() -> None:
    for batch in (one_request(8, 24, 4, kv_heads=2), Batch([3, 5], [9, 5], 2, 1, 2, 3)):
        for rank in range(batch.dcp):
            folder = batch.folder(rank)
            q = batch.queries()
            folded = folder.fold_queries(q)
            back = folder.unfold(Partial(folded, folded[..., 0].float()))
            seeing = folder.fold.place >= 0
            assert torch.equal(back.out[seeing], q[seeing])
            assert torch.equal(back.lse[seeing], q[seeing][..., 0].float())


def test_queries_that_see_no_key_get_nothing_whatever_the_kernel_left() -> None:
    batch = Batch([5, 2], [5, 2], 4, 1, 2, 0)
    folder = batch.folder(rank=3)
    shape = folder.row_shape(batch.heads, HEAD_DIM)
    garbage = torch.full(shape, math.nan, dtype=torch.float64)
    result = folder.unfold(Partial(garbage, garbage[..., 0].float()))
    unseeing = torch.tensor([True, True, True, True, False, True, True])
    assert torch.equal(result.lse[unseeing], torch.full((6, 2), -math.inf))
    assert torch.equal(result.out[unseeing], torch.zeros(6, 2, HEAD_DIM, dtype=torch.float64))
    assert result.out[~unseeing].isnan().all()


def test_a_rank_without_any_key_needs_no_row() -> None:
    folder = Batch([1, 2], [1, 2], 4, 1, 2, 0).folder(rank=3)
    assert folder.fold.rows == folder.fold.kv_lens == (0, 0)
    result = folder.unfold(Partial(torch.empty(0, 8, HEAD_DIM, dtype=torch.float64), torch.empty(0, 8)))
    assert (result.lse == -math.inf).all()
    assert (result.out == 0).all()


@pytest.mark.parametrize("batch", [one_request(8, 24, 4), Batch([3, 5], [9, 5], 2, 2, 1, 3)])
def test_unfolding_keeps_the_base_of_the_lse(batch: Batch) -> None:
    folder = batch.folder(rank=0)
    folded = folder.fold_queries(batch.queries())
    assert folder.unfold(Partial(folded, folded[..., 0].float(), LseBase.TWO)).base is LseBase.TWO


def test_the_published_example_folds_to_two_rows_a_rank() -> None:
    # New 8, total 25, dcp 4: of the context's 17 rank 0 holds five (0, 4 … 16), and rank 1 four. The second row sees one more.
    for rank, keys in enumerate((6, 5, 5, 5)):
        fold = Fold.of([8], [25], 4, rank)
        assert fold.rows == (2,)
        assert fold.kv_lens == (keys,)
        assert fold.place.tolist() == [0, 1, 2, 3, 4, 5, 6, 7]
        assert fold.earlier.tolist() == [0, 1, 2, 3, 0, 1, 2, 3]


def test_own_rows_take_nothing_from_the_request_before() -> None:
    batch = Batch([3, 3], [9, 5], 2, 1, 2, 0)
    q, (k, v) = batch.queries(), batch.new()
    whole = own_rows(batch, q)
    torch.testing.assert_close(whole.out[[0, 2, 3, 5]], v[[0, 2, 3, 5]].expand(-1, 2, -1), rtol=0, atol=1e-15)
    one = attend(q[3:5], k[3:5], v[3:5], torch.ones(2, 2, dtype=torch.bool).tril())
    torch.testing.assert_close(whole.out[3:5], one[0], rtol=0, atol=1e-15)
    torch.testing.assert_close(whole.lse[3:5], one[1], rtol=0, atol=1e-15)


@pytest.mark.parametrize(
    ("keys", "counts"), [((4, 1, 2), 5), ((5, 3, 2), 5), ((5, 0, 2), 5), ((5, 1, 3), 5), ((5, 1, 2), 4)]
)
def test_own_rows_of_other_shapes_are_refused(keys: tuple[int, ...], counts: int) -> None:
    with pytest.raises(ValueError, match="queries"):
        OwnRows(torch.zeros(5, 2, 2), torch.zeros(keys), torch.zeros(keys), torch.zeros(counts, dtype=torch.int32), 2)


@pytest.mark.parametrize(
    ("new", "total", "dcp", "rank"),
    [([1], [1], 2, 2), ([1], [1], 2, -1), ([1], [1], 0, 0), ([0], [1], 2, 0), ([2], [1], 2, 0), ([1, 1], [1], 2, 0)],
)
def test_what_is_no_batch_or_no_rank_is_refused_in_a_sentence(
    new: list[int], total: list[int], dcp: int, rank: int
) -> None:
    with pytest.raises(ValueError, match=r"rank|lists"):
        Fold.of(new, total, dcp, rank)
