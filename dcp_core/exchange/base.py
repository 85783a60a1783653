"""The seam between the ranks of a DCP group, and the order of heads after a gather. Floor 4."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from torch import Tensor

from dcp_core.fold import Fold, OwnRows
from dcp_core.lse import LseBase, Partial
from dcp_core.settings import ExchangeName


class Exchange(Protocol):
    """Who moves queries and partial results. Every rank of the group makes the same calls in the same order.

    Gathers and combines alternate: what a gather returned is valid until the combine that follows it.
    """

    @property
    def name(self) -> ExchangeName:
        """Which exchange it is."""
        ...

    def reserve(self, tokens: int) -> None:
        """Make room for ``tokens`` rows, so that neither call below allocates; the same room as long as the number is.

        A captured graph of one batch size then stays right when the next batch of that size is planned.
        """
        ...

    def variant(self, tokens: int) -> str:
        """Say in words which of its ways a gather or combine of so many rows takes; empty where there is but one."""
        ...

    def gather_heads(self, q: Tensor) -> Tensor:
        """Return every rank's query heads: ``[T, h, D] -> [T, H, D]``, heads in the order of ``interleave_ranks``."""
        ...

    def combine(self, partial: Partial, *, into: Partial | None = None) -> Partial:
        """Add up every rank's partial for this rank's own heads: ``[T, H, D] -> [T, h, D]``, with a natural LSE.

        Writes to ``into`` if given, else to a buffer of the exchange's own that the next call overwrites.
        """
        ...


@runtime_checkable
class FusedExchange(Exchange, Protocol):
    """An exchange whose kernels do what a path does before and after those of others, so that it needs no pass of its own."""

    def reserve_folded(self, tokens: int, folds: Sequence[Fold]) -> None:
        """Make room as ``reserve`` does, for rows that fold.

        Args:
            folds: of every rank of the group. Until the next call, gathered queries come as ``[rows, H * dcp, D]``, and
                partials are taken so: see ``dcp_core.fold``.
        """
        ...

    def reserve_fetching(self, tokens: int) -> Fetching | None:
        """Make room for a step of ``tokens`` rows that is exchanged while attention runs; None where that would not pay.

        Every rank of the group must call this; whether it pays depends on the number alone.
        """
        ...

    def combine_beside(self, partial: Partial, beside: Partial | OwnRows, *, into: Partial) -> Partial:
        """Combine as ``combine`` does, and add up one more partial of this rank's own heads, ``[T, h, D]``.

        Args:
            beside: of rows that fold, what to attend to for it.
        """
        ...


class Fetching(Protocol):
    """A step's exchange by what computes nothing; ``dcp_core.exchange.copies`` says in which order all ranks call it.

    Attributes:
        own: room for this rank's partial of its own heads, ``[T, h, D]``.
        beside: room for one more of them, over keys that nobody else saw.
        queries: the peers' heads, once they are fetched, ``[T, H - h, D]``, those of one KV head neighbours.
        for_peers: room for this rank's partials of them, in the same order.
    """

    own: Partial
    beside: Partial
    queries: Tensor
    for_peers: Partial

    def leave_queries(self, q: Tensor) -> None:
        """Leave this rank's query heads, ``[T, h, D]``, for its peers."""
        ...

    def fetch_queries(self) -> None:
        """Fetch the peers' ``queries``, once all have left theirs."""
        ...

    def fetch_partials(self) -> None:
        """Fetch what the peers have left in their ``for_peers``, once all have."""
        ...

    def add_up(self, base: LseBase, into: Partial) -> None:
        """Add up ``own``, ``beside`` and what was fetched, all in ``base``, with a natural LSE."""
        ...


def interleave_ranks(stacked: Tensor, kv_heads: int, *, out: Tensor | None = None) -> Tensor:
    """Order gathered heads as (KV head, rank, head within the group), so that those of one KV head are neighbours.

    Args:
        stacked: ``[N, T, h, ...]``, one entry per rank, each rank's heads ordered (KV head, head within the group).
        out: ``[T, N * h, ...]`` to write to.

    Returns:
        ``[T, N * h, ...]``: the inverse of ``split_ranks``.
    """
    ranks, tokens, heads, *rest = stacked.shape
    grouped = stacked.view(ranks, tokens, kv_heads, heads // kv_heads, *rest)
    ordered = grouped.permute(1, 2, 0, 3, *range(4, grouped.ndim))
    if out is None:
        return ordered.reshape(tokens, ranks * heads, *rest).contiguous()  # a reshape may be a view with strides
    out.view(ordered.shape).copy_(ordered)
    return out


def split_ranks(gathered: Tensor, kv_heads: int, ranks: int) -> Tensor:
    """Return each rank's heads of a gathered tensor: ``[T, N * h, ...] -> [N, T, kv_heads, h / kv_heads, ...]``, a view."""
    tokens, heads, *rest = gathered.shape
    grouped = gathered.view(tokens, kv_heads, ranks, heads // (ranks * kv_heads), *rest)
    return grouped.permute(2, 0, 1, 3, *range(4, grouped.ndim))
