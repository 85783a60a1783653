"""The exchange among the seats of one process: simulation and tests. Floor 4."""

from __future__ import annotations

import torch
from torch import Tensor

from dcp_core.arithmetic import Arithmetic
from dcp_core.exchange.base import interleave_ranks, split_ranks
from dcp_core.lse import Partial
from dcp_core.mesh import Board
from dcp_core.settings import ExchangeName


class Loopback:
    """Every rank lives in this process and reads its peers' tensors directly.

    While the board is ``solo``, both calls return what they last returned: a rank's own work can then be timed, captured
    and repeated without its peers, and without the exchange. What is gathered stays where it is from step to step: a captured
    graph reads it there.
    """

    name = ExchangeName.LOOPBACK

    def __init__(self, board: Board, rank: int, kv_heads: int, arithmetic: Arithmetic) -> None:
        self._board, self._rank, self._kv_heads = board, rank, kv_heads
        self._combine = arithmetic.combine
        self._gathered: Tensor | None = None
        self._combined: Partial | None = None

    def reserve(self, tokens: int) -> None:
        """Forget the results of the batch before."""
        self._gathered = self._combined = None

    def variant(self, tokens: int) -> str:
        """Know one way only."""
        return ""

    def gather_heads(self, q: Tensor) -> Tensor:
        """Return every seat's query heads."""
        if not self._board.solo or self._gathered is None:
            stacked = torch.stack(self._board.swap(self._rank, q))
            self._gathered = interleave_ranks(stacked, self._kv_heads, out=self._gathered)
        return self._gathered

    def combine(self, partial: Partial, *, into: Partial | None = None) -> Partial:
        """Add up every seat's partial for this one's heads."""
        if not self._board.solo or self._combined is None:
            partials = self._board.swap(self._rank, partial)
            ranks = len(partials)
            outs = torch.stack(
                [split_ranks(other.out, self._kv_heads, ranks)[self._rank].flatten(1, 2) for other in partials]
            )
            lses = torch.stack(
                [split_ranks(other.lse, self._kv_heads, ranks)[self._rank].flatten(1, 2) for other in partials]
            )
            self._combined = self._combine(outs, lses, base=partial.base)
            if into is not None:
                into.out.copy_(self._combined.out)
                into.lse.copy_(self._combined.lse)
        return into if into is not None else self._combined
