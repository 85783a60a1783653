"""Fold queries into the head group, so that the interleaved mask becomes plain causal attention. Floor 2.

With interleave 1 a rank's local key ``j`` sits at position ``j * dcp + rank``, so a query at position ``p`` sees the local
keys up to ``g(p) = floor((p - rank) / dcp)``: the same for ``dcp`` consecutive queries. Each such run is a *row*. Laid into
the head dimension, rows ``max(g(first), 0) … g(last)`` with the local keys ``0 … g(last)`` are bottom-right causal attention
with ``dcp`` times the heads. Positions of a row that are no query of the batch are padding; the fewer than ``dcp`` queries
at a position below ``rank`` (g = -1) see no key and are in no row.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from dcp_core.lse import Partial


def rows_of(new: int, total: int, dcp: int, rank: int) -> range:
    """Return a request's rows on a rank, each named by the last local key that it sees; one more where both ends are padded."""
    # Rows must not outnumber keys: with a first row of -1 FlashInfer's unsigned causal bound goes silently wrong.
    return range(max((total - new - rank) // dcp, 0), (total - 1 - rank) // dcp + 1)


@dataclass(frozen=True, slots=True, eq=False)
class Fold:
    """How a batch's queries fold on one rank.

    Args:
        dcp: queries per row.
        rows: per request, its rows.
        kv_lens: per request, its local keys; 0 exactly where it has no row.
        place: int64 ``[new tokens]``, where each query stands among ``dcp * Σ rows`` places; -1 if it sees no key.
    """

    dcp: int
    rows: tuple[int, ...]
    kv_lens: tuple[int, ...]
    place: Tensor

    @classmethod
    def of(cls, new_lens: Sequence[int], total_lens: Sequence[int], dcp: int, rank: int) -> Fold:
        """Work out the fold of a batch; interleave is 1.

        Raises:
            ValueError: for lengths that are no batch's, or a rank outside the group.
        """
        if dcp < 1 or not 0 <= rank < dcp:
            raise ValueError(f"rank {rank} is outside a DCP group of {dcp} (ranks 0 to {dcp - 1})")
        if len(new_lens) != len(total_lens) or any(not 1 <= n <= t for n, t in zip(new_lens, total_lens, strict=True)):
            raise ValueError("a fold needs two equally long lists with 1 <= new <= total")
        ranges = [rows_of(new, total, dcp, rank) for new, total in zip(new_lens, total_lens, strict=True)]
        rows = tuple(map(len, ranges))
        begins = accumulate((row * dcp for row in rows), initial=0)
        places = []
        for new, total, own, begin in zip(new_lens, total_lens, ranges, begins, strict=False):
            context = total - new
            places.append(begin + torch.arange(context, total) - (own.start * dcp + rank))
            places[-1][: max(rank - context, 0)] = -1
        return cls(dcp, rows, tuple(own.stop for own in ranges), torch.cat(places))

    @property
    def offset(self) -> int | None:
        """The place of the first query if all queries stand in one run of places in order, so that folding needs no index."""
        start = int(self.place[0])
        straight = start >= 0 and torch.equal(self.place, torch.arange(start, start + self.place.numel()))
        return start if straight else None

    @property
    def places(self) -> int:
        """Places in all: ``dcp`` per row."""
        return self.dcp * sum(self.rows)


@dataclass(frozen=True, slots=True, eq=False)
class _Indices:
    """Where the queries of a batch stand that are not one run of places: int64 on the device."""

    source: Tensor
    target: Tensor
    unseeing: Tensor

    @classmethod
    def of(cls, fold: Fold, device: torch.device) -> _Indices:
        place = fold.place
        unseeing = (place < 0).nonzero().squeeze(1)
        target = torch.where(place < 0, fold.places, place)
        return cls(place.clamp(min=0).to(device), target.to(device), unseeing.to(device))


class Folder:
    """Folds and unfolds one batch's tensors on a device, in buffers of its own.

    A single request whose queries all see a key is one run of places: its unfolded result is a view, and so is its folded
    query where no place is padding and the rank holds one KV head. Only what a batch needs is allocated.

    Args:
        heads, kv_heads: of the unfolded tensors, after the gather.
    """

    def __init__(
        self, fold: Fold, *, heads: int, kv_heads: int, head_dim: int, dtype: torch.dtype, device: torch.device
    ):
        self.fold = fold
        self._heads, self._kv_heads, self._head_dim = heads, kv_heads, head_dim
        self._offset = fold.offset
        self._whole = self._offset == 0 and fold.places == fold.place.numel()
        scattered = self._offset is None
        self._indices = _Indices.of(fold, device) if scattered else None
        # Zeros, so that padding is a finite query whose result nobody reads. One place more than there are, for queries that
        # see no key: they are put there, so that folding is one copy.
        padded = 0 if self._whole else fold.places + 1
        self._padded = torch.zeros(padded, heads, head_dim, dtype=dtype, device=device)
        several = kv_heads > 1
        self._rowed = torch.empty(self.row_shape(heads, head_dim), dtype=dtype, device=device) if several else None
        self._flat = Partial.empty(fold.places if several else 0, heads, head_dim, dtype=dtype, device=device)
        self._unfolded = Partial.empty(
            fold.place.numel() if scattered else 0, heads, head_dim, dtype=dtype, device=device
        )

    def row_shape(self, heads: int, head_dim: int) -> tuple[int, int, int]:
        """Return the shape of a folded tensor: rows, heads × dcp in the order (KV head, query, rank, head), elements."""
        return sum(self.fold.rows), heads * self.fold.dcp, head_dim

    def fold_queries(self, q: Tensor) -> Tensor:
        """Fold: ``[T, H, D] -> [rows, H * dcp, D]``; a view of ``q`` where it can be, else of the folder's buffer."""
        heads, head_dim = q.shape[1:]
        padded = self._pad(q)
        if self._rowed is None:
            return padded.view(self.row_shape(heads, head_dim))
        by_query = padded.view(-1, self.fold.dcp, self._kv_heads, heads // self._kv_heads, head_dim)
        self._rowed.view(-1, self._kv_heads, self.fold.dcp, heads // self._kv_heads, head_dim).copy_(
            by_query.transpose(1, 2)
        )
        return self._rowed

    def unfold(self, folded: Partial) -> Partial:
        """Unfold a result: ``[rows, H * dcp, D] -> [T, H, D]``, (0, -inf) for queries that see no key; a view if it can be."""
        flat = self._by_query(folded)
        if self._indices is None:
            start = self._offset or 0
            end = start + self.fold.place.numel()
            return Partial(flat.out[start:end], flat.lse[start:end], folded.base)
        into, unseeing = self._unfolded, self._indices.unseeing
        if self.fold.places:
            torch.index_select(flat.out, 0, self._indices.source, out=into.out)
            torch.index_select(flat.lse, 0, self._indices.source, out=into.lse)
        if unseeing.numel():
            into.out.index_fill_(0, unseeing, 0.0)
            into.lse.index_fill_(0, unseeing, -math.inf)
        return into.relabelled(folded.base)

    def _pad(self, q: Tensor) -> Tensor:
        """Bring queries to their places: themselves where they are one run without padding."""
        if self._whole:
            return q.contiguous()
        if self._indices is None:
            start = self._offset or 0
            self._padded[start : start + q.shape[0]].copy_(q)
        else:
            self._padded.index_copy_(0, self._indices.target, q)
        return self._padded[: self.fold.places]

    def _by_query(self, folded: Partial) -> Partial:
        """Bring a folded result back to one entry per place: a view with one KV head, a copy otherwise."""
        places, heads, head_dim = self.fold.places, self._heads, self._head_dim
        if self._rowed is None:
            return Partial(folded.out.view(places, heads, head_dim), folded.lse.view(places, heads), folded.base)
        group, dcp = heads // self._kv_heads, self.fold.dcp
        by_head = folded.out.view(-1, self._kv_heads, dcp, group, head_dim)
        self._flat.out.view(-1, dcp, self._kv_heads, group, head_dim).copy_(by_head.transpose(1, 2))
        lse_by_head = folded.lse.view(-1, self._kv_heads, dcp, group)
        self._flat.lse.view(-1, dcp, self._kv_heads, group).copy_(lse_by_head.transpose(1, 2))
        return self._flat.relabelled(folded.base)
