"""Queries and partial results of every rank of a group, from a seed: what exchanges between processes are fed."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from dcp_core.build import open_exchange
from dcp_core.layout import DcpLayout
from dcp_core.lse import LseBase, Partial
from dcp_core.mesh import Mesh
from dcp_core.settings import Case, ExchangeName, PathName, Settings
from dcp_core.shapes import DType, ModelShape, Workload


@dataclass(frozen=True)
class Traffic:
    """What a group has to exchange.

    Args:
        query, kv: heads of one rank.
        empty: rows without a key on some rank, or on all, garbage in their outputs.
    """

    dcp: int
    query: int = 4
    kv: int = 2
    tokens: int = 5
    dtype: str = "float32"
    base: LseBase = LseBase.NATURAL
    empty: bool = True
    head_dim: int = 8

    def case(self, exchange: ExchangeName) -> Case:
        shape = ModelShape(self.query * self.dcp, self.kv, self.head_dim, dtype=DType(self.dtype))
        settings = Settings(path=PathName.SPLIT, exchange=exchange)
        return Case(shape, DcpLayout(self.dcp, self.dcp), Workload.of([self.tokens], [self.tokens]), settings)

    def queries(self) -> list[Tensor]:
        generator = torch.Generator().manual_seed(1)
        shape = (self.tokens, self.query, self.head_dim)
        return [torch.randn(shape, generator=generator).to(getattr(torch, self.dtype)) for _ in range(self.dcp)]

    def partials(self) -> list[Partial]:
        generator = torch.Generator().manual_seed(2)
        made = []
        for rank in range(self.dcp):
            heads = self.query * self.dcp
            out = torch.randn(self.tokens, heads, self.head_dim, generator=generator).to(getattr(torch, self.dtype))
            lse = 3 * torch.randn(self.tokens, heads, generator=generator)
            if self.empty:
                lse[rank % self.tokens] = lse[-1] = -math.inf
                out[rank % self.tokens], out[-1] = math.nan, math.inf
            made.append(Partial(out, lse, self.base))
        return made


@dataclass(frozen=True)
class Exchanged:
    """What one rank got."""

    gathered: Tensor
    combined: Partial
    into: Partial


def exchange(mesh: Mesh, traffic: Traffic, name: ExchangeName) -> Exchanged:
    """Gather and combine on one rank, twice with other contents between, so that what is left over would show."""
    opened = open_exchange(traffic.case(name), mesh)
    opened.reserve(traffic.tokens)
    q, partial = traffic.queries()[mesh.rank].to(mesh.device), traffic.partials()[mesh.rank]
    partial = Partial(partial.out.to(mesh.device), partial.lse.to(mesh.device), partial.base)
    into = Partial.empty(
        traffic.tokens, traffic.query, traffic.head_dim, dtype=getattr(torch, traffic.dtype), device=mesh.device
    )
    opened.gather_heads(torch.zeros_like(q))
    opened.combine(Partial(torch.ones_like(partial.out), torch.zeros_like(partial.lse), partial.base))
    gathered = opened.gather_heads(q).clone()
    combined = opened.combine(partial)
    combined = Partial(combined.out.clone(), combined.lse.clone(), combined.base)
    opened.gather_heads(q)
    written = opened.combine(partial, into=into)
    assert written.out is into.out
    return Exchanged(gathered.cpu(), on_host(combined), on_host(into))


def on_host(partial: Partial) -> Partial:
    return Partial(partial.out.cpu(), partial.lse.cpu(), partial.base)


def looped_back(traffic: Traffic) -> list[Exchanged]:
    """Exchange among the seats of one process."""
    mesh = Mesh.simulated(traffic.dcp)
    members = mesh.members()
    return mesh.each(lambda index: exchange(members[index], traffic, ExchangeName.LOOPBACK))


def agree(got: Partial, expected: Partial, traffic: Traffic, name: ExchangeName) -> None:
    """Hold that an exchange combined as the loopback does, but for roundings.

    ``ag_rs`` rounds every rank's share and every sum in the output's dtype; ``a2a`` rounds once, as the loopback does.
    """
    roundings = traffic.dcp + 1 if name is ExchangeName.AG_RS else 1
    # Beside them, what exp and log of float32 make of an LSE: a few units in its last place, relative in a weight.
    peak = max(1.0, float(expected.lse[expected.lse.isfinite()].abs().max()))
    of_weights = 8 * torch.finfo(torch.float32).eps * peak
    bound = roundings * torch.finfo(getattr(torch, traffic.dtype)).eps + of_weights
    largest = max(1.0, float(expected.out.abs().max()))
    torch.testing.assert_close(got.out.float(), expected.out.float(), rtol=0, atol=bound * largest)
    torch.testing.assert_close(got.lse, expected.lse, rtol=0, atol=of_weights)
    assert got.base is LseBase.NATURAL
