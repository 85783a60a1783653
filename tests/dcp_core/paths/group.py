"""A simulated DCP group as a server would drive it: pages scattered and full of NaN, results compared with the oracle."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from dcp_core.build import SimulatedPath, open_path
from dcp_core.cache import PagedCache, PageTable, page_count, slot_mapping
from dcp_core.check import Check
from dcp_core.layout import DcpLayout
from dcp_core.lse import Partial
from dcp_core.mesh import Mesh
from dcp_core.oracle import Truth, attend_rows, judge
from dcp_core.paths.base import Path
from dcp_core.settings import Case, ExchangeName, PathName, Settings
from dcp_core.shapes import DType, ModelShape, Workload

HEAD_DIM = 16
SPARE_PAGES = 3


def case(
    batch: str,
    *,
    dcp: int,
    path: str,
    interleave: int = 1,
    heads: tuple[int, int] = (4, 2),
    dtype: str = "float32",
    **others: object,
) -> Case:
    """Return a case for the reference kernel; ``heads``: query and KV heads of one rank."""
    exchange = ExchangeName.ALONE if dcp == 1 else ExchangeName.LOOPBACK
    settings = Settings.from_json({"path": path, "kernel": "reference", "exchange": exchange, **others})
    shape = ModelShape(heads[0] * dcp, heads[1], HEAD_DIM, dtype=DType(dtype))
    return Case(shape, DcpLayout(dcp, dcp, interleave), Workload.parse(batch), settings)


@dataclass(frozen=True)
class Inputs:
    """The sequences of a batch, the queries of every rank, and what attention should make of them."""

    queries: tuple[Tensor, ...]
    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    truths: tuple[Truth, ...]


@cache
def inputs(shape: ModelShape, dcp: int, workload: Workload) -> Inputs:
    """Draw the inputs of a batch: the same for every path and interleave."""
    generator, dtype = torch.Generator().manual_seed(7), getattr(torch, shape.dtype)
    heads = DcpLayout(dcp, dcp).heads(shape)

    def normal(rows: int, count: int) -> Tensor:
        return torch.randn(rows, count, shape.head_dim, generator=generator).to(dtype)

    queries = tuple(2 * normal(workload.new_tokens, heads.query) for _ in range(dcp))
    keys, values = (tuple(normal(total, heads.kv) for total in workload.total_lens) for _ in range(2))
    rows = torch.arange(workload.new_tokens)
    return Inputs(queries, keys, values, tuple(attend_rows(q, keys, values, workload, rows) for q in queries))


class Group:
    """Every rank of a case, its cache filled, ready to plan and run."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.inputs = inputs(case.shape, case.layout.dcp, case.workload)
        self.tables, self.caches = zip(*(self._rank(rank) for rank in range(case.layout.dcp)), strict=True)
        mesh = Mesh.alone("cpu") if case.settings.path is PathName.TP else Mesh.simulated(case.layout.dcp, "cpu")
        self.path = open_path(case, mesh)

    def plan(self) -> Group:
        """Plan this case's batch."""
        self.plan_on(self.path)
        return self

    def plan_on(self, path: Path | SimulatedPath) -> None:
        """Plan this case's batch on a path opened for another."""
        if isinstance(path, SimulatedPath):
            path.plan(self.case.workload, self.tables)
        else:
            path.plan(self.case.workload, self.tables[0])

    def run(self, path: Path | SimulatedPath | None = None) -> list[Partial]:
        """Run the planned batch, outputs full of NaN before, and return every rank's result."""
        path = path or self.path
        k_new, v_new = (self.new(tensors) for tensors in (self.inputs.keys, self.inputs.values))
        outs = [torch.full_like(q, float("nan")) for q in self.inputs.queries]
        if isinstance(path, SimulatedPath):
            return path.run(self.inputs.queries, k_new, v_new, self.caches, outs)
        return [path.run(self.inputs.queries[0], k_new, v_new, self.caches[0], outs[0])]

    def check(self) -> Check:
        """Plan, run, and compare every row of every rank with the oracle."""
        return self.judge(self.plan().run())

    def judge(self, results: list[Partial]) -> Check:
        """Compare every row of every rank with the oracle."""
        return Check.worst(judge(*pair) for pair in zip(results, self.inputs.truths, strict=True))

    def ranks(self) -> Iterator[Path]:
        """Yield the path of every rank."""
        yield from self.path.ranks if isinstance(self.path, SimulatedPath) else (self.path,)

    def stage_names(self) -> list[str]:
        """Return the names of the planned step's stages, the same on every rank."""
        (names,) = {tuple(stage.name for stage in path.stages()) for path in self.ranks()}
        return list(names)

    def new(self, tensors: tuple[Tensor, ...]) -> Tensor:
        """Return the new tokens' keys or values."""
        requests = self.case.workload.requests
        return torch.cat([tensor[request.context :] for tensor, request in zip(tensors, requests, strict=True)])

    def _rank(self, rank: int) -> tuple[PageTable, PagedCache]:
        case, totals = self.case, self.case.workload.total_lens
        lens = [case.layout.local_len(total, rank) for total in totals]
        pages = page_count(lens, case.settings.page_size) + SPARE_PAGES
        table = PageTable.shuffled(lens, case.settings.page_size, pages=pages, seed=rank)
        store = PagedCache.allocate(
            pages,
            page_size=case.settings.page_size,
            kv_heads=case.layout.heads(case.shape).kv,
            head_dim=case.shape.head_dim,
            dtype=getattr(torch, case.shape.cache_dtype),
            kv_layout=case.settings.kv_layout,
        )
        slots = slot_mapping(totals, totals, table, case.layout, rank)
        store.append(torch.cat(self.inputs.keys), torch.cat(self.inputs.values), slots)
        return table, store


def stages_of(group: Group) -> list[str]:
    """Return the names of the stages of planning."""
    path = next(group.ranks())
    return [stage.name for stage in path.prepare(group.case.workload, group.tables[0])]
