"""The exchange of vLLM's default: all-gather the LSEs, correct, reduce-scatter the outputs. Floor 4."""

from __future__ import annotations

import torch
from torch import Tensor

from dcp_core.arithmetic import Arithmetic
from dcp_core.exchange.base import interleave_ranks, split_ranks
from dcp_core.layout import RankHeads
from dcp_core.lse import Partial
from dcp_core.mesh import Mesh
from dcp_core.settings import ExchangeName


class HeadGather:
    """The all-gather of query heads that ``ag_rs`` and ``a2a`` share, with its buffers."""

    def __init__(self, mesh: Mesh, heads: RankHeads, head_dim: int, dtype: torch.dtype) -> None:
        self._mesh, self._heads, self._head_dim, self._dtype = mesh, heads, head_dim, dtype
        self._tokens = -1
        self.reserve(0)

    def reserve(self, tokens: int) -> None:
        """Make room for ``tokens`` rows."""
        if self._tokens == tokens:
            return
        self._tokens = tokens
        size, device = self._mesh.size, self._mesh.device
        stacked = (size, tokens, self._heads.query, self._head_dim)
        self._stacked = torch.empty(stacked, dtype=self._dtype, device=device)
        ordered = (tokens, self._heads.gathered, self._head_dim)
        self._ordered = torch.empty(ordered, dtype=self._dtype, device=device)

    def __call__(self, q: Tensor) -> Tensor:
        """Gather ``[T, h, D] -> [T, H, D]``."""
        self._mesh.all_gather(self._stacked, q.contiguous())
        return interleave_ranks(self._stacked, self._heads.kv, out=self._ordered)


class AllGatherReduceScatter:
    """All-gather for queries and LSEs, reduce-scatter for outputs; the sum over ranks is rounded in the output's dtype."""

    name = ExchangeName.AG_RS

    def __init__(self, mesh: Mesh, heads: RankHeads, head_dim: int, dtype: torch.dtype, arithmetic: Arithmetic) -> None:
        self._mesh, self._heads, self._head_dim, self._dtype = mesh, heads, head_dim, dtype
        self._rescale = arithmetic.rescale
        self._gather = HeadGather(mesh, heads, head_dim, dtype)
        self._tokens = -1
        self.reserve(0)

    def reserve(self, tokens: int) -> None:
        """Make room for ``tokens`` rows."""
        if self._tokens == tokens:
            return
        self._tokens = tokens
        size, device, heads = self._mesh.size, self._mesh.device, self._heads
        self._gather.reserve(tokens)
        self._lses = torch.empty(size, tokens, heads.gathered, dtype=torch.float32, device=device)
        self._weighed = Partial.empty(tokens, heads.gathered, self._head_dim, dtype=self._dtype, device=device)
        self._by_rank = torch.empty(size, tokens, heads.query, self._head_dim, dtype=self._dtype, device=device)
        self._combined = Partial.empty(tokens, heads.query, self._head_dim, dtype=self._dtype, device=device)

    def variant(self, tokens: int) -> str:
        """Know one way only."""
        return ""

    def gather_heads(self, q: Tensor) -> Tensor:
        """Return every rank's query heads."""
        return self._gather(q)

    def combine(self, partial: Partial, *, into: Partial | None = None) -> Partial:
        """Add up every rank's partial for this rank's heads."""
        into = into or self._combined
        kv_heads, size = self._heads.kv, self._mesh.size
        self._mesh.all_gather(self._lses, partial.lse)
        weighed = self._rescale(partial, self._lses, into=self._weighed)
        shares = split_ranks(weighed.out, kv_heads, size)
        self._by_rank.view(shares.shape).copy_(shares)
        self._mesh.reduce_scatter(into.out, self._by_rank)
        own = split_ranks(weighed.lse, kv_heads, size)[self._mesh.rank]
        into.lse.view(own.shape).copy_(own)
        return into
