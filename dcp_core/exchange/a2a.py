"""One all-to-all of outputs and LSEs packed together, then combine: less on the wire than ``ag_rs``. Floor 4."""

from __future__ import annotations

import torch
from torch import Tensor

from dcp_core.arithmetic import Arithmetic
from dcp_core.exchange.ag_rs import HeadGather
from dcp_core.exchange.base import split_ranks
from dcp_core.layout import RankHeads
from dcp_core.lse import Partial
from dcp_core.mesh import Mesh
from dcp_core.settings import ExchangeName


class AllToAll:
    """All-gather for queries; outputs and LSEs go to the ranks whose heads they are, which combine in float32."""

    name = ExchangeName.A2A

    def __init__(self, mesh: Mesh, heads: RankHeads, head_dim: int, dtype: torch.dtype, arithmetic: Arithmetic) -> None:
        self._mesh, self._heads, self._head_dim, self._dtype = mesh, heads, head_dim, dtype
        self._combine = arithmetic.combine
        self._gather = HeadGather(mesh, heads, head_dim, dtype)
        self._tokens = -1
        self.reserve(0)

    def reserve(self, tokens: int) -> None:
        """Make room for ``tokens`` rows: per peer, all outputs and behind them all LSEs, so that both stay aligned."""
        if self._tokens == tokens:
            return
        self._tokens = tokens
        self._gather.reserve(tokens)
        rows, lse_width = tokens * self._heads.query, 4 // self._dtype.itemsize
        shape = (self._mesh.size, rows * (self._head_dim + lse_width))
        self._send = torch.empty(shape, dtype=self._dtype, device=self._mesh.device)
        self._receive = torch.empty_like(self._send)
        self._combined = Partial.empty(
            tokens, self._heads.query, self._head_dim, dtype=self._dtype, device=self._mesh.device
        )

    def variant(self, tokens: int) -> str:
        """Know one way only."""
        return ""

    def gather_heads(self, q: Tensor) -> Tensor:
        """Return every rank's query heads."""
        return self._gather(q)

    def combine(self, partial: Partial, *, into: Partial | None = None) -> Partial:
        """Add up every rank's partial for this rank's heads."""
        tokens = partial.out.shape[0]
        kv_heads, size = self._heads.kv, self._mesh.size
        outs, lses = self._parts(self._send, tokens)
        shares, lse_shares = split_ranks(partial.out, kv_heads, size), split_ranks(partial.lse, kv_heads, size)
        outs.view(shares.shape).copy_(shares)
        lses.view(lse_shares.shape).copy_(lse_shares)
        self._mesh.all_to_all(self._receive, self._send)
        return self._combine(*self._parts(self._receive, tokens), base=partial.base, into=into or self._combined)

    def _parts(self, buffer: Tensor, tokens: int) -> tuple[Tensor, Tensor]:
        """Return a buffer's outputs ``[N, T, h, D]`` and LSEs ``[N, T, h]`` float32, both views."""
        heads, split = self._heads.query, tokens * self._heads.query * self._head_dim
        outs = buffer[:, :split].view(-1, tokens, heads, self._head_dim)
        return outs, buffer[:, split:].view(torch.float32).view(-1, tokens, heads)
