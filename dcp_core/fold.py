"""Fold queries into the head group, so that the interleaved mask becomes plain causal attention. Floor 2.

With interleave 1, ``dcp`` tokens one after another lie on ``dcp`` ranks, one on each. Cut the new tokens of a request, from the
first on, into *rows* of ``dcp``: from row to row every rank holds one key more. So the queries of row ``g`` all see the same
local keys from before their row, those of the context and ``g`` more. Laid into the head dimension, rows with these keys are
bottom-right causal attention with ``dcp`` times the heads, in as many rows on every rank.

What is left are the keys of a query's own row, at most ``dcp``. They are new, so every rank of the group has them, and attends to
them for its own heads alone: ``attend_own_rows``. Both partials add up.

Behind the last query of a request its row is padding. Where a rank holds no key of the context, the first row sees none, and
is left out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from dcp_core.lse import Partial


@dataclass(frozen=True, slots=True, eq=False)
class Fold:
    """How a batch's queries fold on one rank.

    Args:
        dcp: queries per row.
        rows: per request, its rows that see a key.
        kv_lens: per request, the local keys that its last row sees, the first that the rank holds; 0 exactly where it has no row.
        place: int64 ``[new tokens]``, where each query stands among ``dcp * Σ rows`` places; -1 if its row sees no key.
        earlier: int32 ``[new tokens]``, how many queries of its row stand before each: the same on every rank.
    """

    dcp: int
    rows: tuple[int, ...]
    kv_lens: tuple[int, ...]
    place: Tensor
    earlier: Tensor

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
        of_context = [-((rank + new - total) // dcp) for new, total in zip(new_lens, total_lens, strict=True)]
        # A row that sees no key is left out: FlashInfer's causal bound is unsigned, and goes wrong there without a word.
        left_out = [keys == 0 for keys in of_context]
        rows = tuple(-(-new // dcp) - out for new, out in zip(new_lens, left_out, strict=True))
        kv_lens = tuple(keys + -(-new // dcp) - 1 for keys, new in zip(of_context, new_lens, strict=True))
        begins = accumulate((row * dcp for row in rows), initial=0)
        places = []
        for new, out, begin in zip(new_lens, left_out, begins, strict=False):
            places.append(torch.arange(begin, begin + new) - dcp * out)
            places[-1][: dcp * out] = -1
        earlier = torch.cat([torch.arange(new, dtype=torch.int32) % dcp for new in new_lens])
        return cls(dcp, rows, kv_lens, torch.cat(places), earlier)

    def lays_out_as(self, other: Fold) -> bool:
        """Tell whether the queries of a batch of the other fold stand as these do, however long its contexts are."""
        alike = (self.dcp, self.rows) == (other.dcp, other.rows) and torch.equal(self.place, other.place)
        # Queries that see no key all stand at -1, whichever row is theirs.
        return alike and torch.equal(self.earlier, other.earlier)

    @property
    def straight(self) -> bool:
        """Whether queries stand one after another, as they come, so that folding needs no index."""
        return torch.equal(self.place, torch.arange(self.place.numel()))

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

    Queries that stand as they come, which those of a single request with context do, are unfolded as a view, and folded as one
    where no place is padding and the rank holds one KV head. Only what a batch needs is allocated.

    Args:
        heads, kv_heads: of the unfolded tensors, after the gather.
    """

    def __init__(
        self, fold: Fold, *, heads: int, kv_heads: int, head_dim: int, dtype: torch.dtype, device: torch.device
    ):
        self.fold = fold
        self._heads, self._kv_heads, self._head_dim = heads, kv_heads, head_dim
        self._whole = fold.straight and fold.places == fold.place.numel()
        scattered = not fold.straight
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
            tokens = self.fold.place.numel()
            return Partial(flat.out[:tokens], flat.lse[:tokens], folded.base)
        into, unseeing = self._unfolded, self._indices.unseeing
        if self.fold.places:
            torch.index_select(flat.out, 0, self._indices.source, out=into.out)
            torch.index_select(flat.lse, 0, self._indices.source, out=into.lse)
        if unseeing.numel():
            into.out.index_fill_(0, unseeing, 0.0)
            into.lse.index_fill_(0, unseeing, -math.inf)
        return into.relabelled(folded.base)

    def _pad(self, q: Tensor) -> Tensor:
        """Bring queries to their places: themselves where they stand as they come without padding."""
        if self._whole:
            return q.contiguous()
        if self._indices is None:
            self._padded[: q.shape[0]].copy_(q)
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


@dataclass(frozen=True, slots=True, eq=False)
class OwnRows:
    """Queries, and the new tokens of their own rows that each of them sees: those up to itself.

    Args:
        q: ``[T, h, D]``, the queries of a rank.
        k, v: ``[T, kv_heads, D]``, of the same tokens.
        earlier: int32 ``[T]``, below ``dcp``, contiguous: how many of the tokens just before each it sees besides itself.
        dcp: the longest row.

    Raises:
        ValueError: for shapes that do not fit.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    earlier: Tensor
    dcp: int

    def __post_init__(self) -> None:
        tokens, heads, head_dim = self.q.shape
        kv_heads = self.k.shape[1]
        fits = self.k.shape == self.v.shape == (tokens, kv_heads, head_dim) and self.earlier.shape == (tokens,)
        if not fits or not kv_heads or heads % kv_heads:
            raise ValueError(
                f"queries {list(self.q.shape)} take keys and values of as many tokens, and a count of each, "
                f"not {list(self.k.shape)}, {list(self.v.shape)} and {list(self.earlier.shape)}"
            )

    @property
    def kv_heads(self) -> int:
        """KV heads of the rank."""
        return self.k.shape[1]


def attend_own_rows(rows: OwnRows, into: Partial) -> Partial:
    """Attend to own rows in float32 (float64 for float64 inputs).

    Args:
        into: where to write, ``[T, h, D]``, natural.

    Returns:
        ``into``.
    """
    tokens, heads, head_dim = rows.q.shape
    wide = torch.float64 if rows.q.dtype == torch.float64 else torch.float32
    grouped = rows.q.to(wide).view(tokens, rows.kv_heads, -1, head_dim)
    back = torch.arange(rows.dcp, device=rows.q.device)
    seen = back <= rows.earlier.unsqueeze(1)
    token = (torch.arange(tokens, device=rows.q.device).unsqueeze(1) - back).clamp(min=0)
    scores = torch.einsum("tkgd,tjkd->tkgj", grouped, rows.k.to(wide)[token]) / math.sqrt(head_dim)
    scores = scores.masked_fill(~seen[:, None, None], -math.inf)
    lse = scores.logsumexp(-1)
    out = torch.einsum("tkgj,tjkd->tkgd", (scores - lse.unsqueeze(-1)).exp(), rows.v.to(wide)[token])
    into.out.copy_(out.view(tokens, heads, head_dim))
    into.lse.copy_(lse.view(tokens, heads))
    return into
