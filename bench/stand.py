"""The test stand: a case laid out on the ranks of this process, with inputs bound, ready to be checked and timed."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate

import torch
from torch import Tensor

from dcp_core.build import open_path
from dcp_core.cache import PagedCache, PageTable, page_count, slot_mapping
from dcp_core.check import Check
from dcp_core.lse import Partial
from dcp_core.mesh import Mesh
from dcp_core.oracle import Truth, attend_rows, choose_requests, choose_rows, judge
from dcp_core.paths.base import Path, Step
from dcp_core.settings import Case

SPARE_PAGES = 0.25
"""Pages beyond those in use, as a share: a server's cache is never full, and its pages are scattered."""
QUERY_SCALE = 2.0
"""Standard deviation of query elements: flat enough that many keys matter."""
PLANTED = 4
"""Rows per request for which a key is planted that weighs as much as all others together, so that a fault of one key shows
however long the row is."""
LAID_OUT_TOGETHER = 1 << 16
"""Tokens of several requests written to the cache at once, at most."""


@dataclass(frozen=True, slots=True)
class Sequences:
    """The whole batch as the oracle sees it: queries of every rank, keys and values of every sequence.

    Cases of one shape, layout and workload may share it, and with it what the oracle found.
    """

    queries: tuple[Tensor, ...]
    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    _truths: dict[tuple[int, int], Truth] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def draw(cls, case: Case, device: torch.device, seed: int) -> Sequences:
        """Draw random inputs, the same on every rank of the group: from the seed and the device's kind alone."""
        shape, heads = case.shape, case.layout.heads(case.shape)
        generator = torch.Generator(device).manual_seed(seed)
        dtype, kv_dtype = getattr(torch, shape.dtype), getattr(torch, shape.cache_dtype)

        def normal(*size: int) -> Tensor:
            return torch.randn(*size, shape.head_dim, generator=generator, device=device, dtype=dtype)

        rows = case.workload.new_tokens
        queries = tuple(normal(rows, heads.query) * QUERY_SCALE for _ in range(case.layout.dcp))
        # What the cache will hold, so that rounding to its dtype is no error of the kernel.
        keys, values = (
            tuple(normal(total, heads.kv).to(kv_dtype).to(dtype) for total in case.workload.total_lens)
            for _ in range(2)
        )
        drawn = cls(queries, keys, values)
        drawn._plant(case, seed)
        return drawn

    def _plant(self, case: Case, seed: int) -> None:
        """Make some rows of each request that will be checked depend on one key, from its last new token backwards.

        In turns it is the row's own key, which a mask one short would hide, and the next, which one too many would show.
        """
        layout, head_dim = case.layout, case.shape.head_dim
        kv_heads = layout.heads(case.shape).kv
        starts = list(accumulate(case.workload.new_lens, initial=0))
        for index in choose_requests(case.workload, seed):
            request, keys, start = case.workload.requests[index], self.keys[index], starts[index]
            rows = sorted({round(share * (request.new - 1) / (PLANTED - 1)) for share in range(PLANTED)}, reverse=True)
            for turn, row in enumerate(rows):
                position = request.context + row + turn % 2
                if position >= request.total:
                    continue
                # One KV head's queries of every rank: a key along their mean scores high with each of them.
                heads = torch.stack([q[start + row].view(kv_heads, -1, head_dim) for q in self.queries]).float()
                mean = heads.mean((0, 2))
                score = (heads.mean((0, 2)).square().sum(-1) / math.sqrt(head_dim)).clamp(min=1e-6)
                wanted = math.log(request.total) + QUERY_SCALE**2 / 2
                keys[position].copy_(mean * (wanted / score).unsqueeze(-1))

    def truth(self, case: Case, rank: int, seed: int) -> Truth:
        """Return the oracle's results for a rank's queries, on rows chosen for the case's page borders."""
        borders = case.layout.dcp * case.settings.page_size
        if (rank, borders) not in self._truths:
            heads = case.layout.heads(case.shape).query
            rows = choose_rows(case.workload, heads=heads, borders=borders, seed=seed)
            truth = attend_rows(self.queries[rank], self.keys, self.values, case.workload, rows)
            self._truths[rank, borders] = truth
        return self._truths[rank, borders]

    def new(self, case: Case, which: tuple[Tensor, ...]) -> Tensor:
        """Return the new tokens' keys or values, all requests'."""
        requests = case.workload.requests
        return torch.cat([tensor[request.context :] for tensor, request in zip(which, requests, strict=True)])


@dataclass(frozen=True, slots=True)
class Seat:
    """One rank of the group: its open path, its page table, the tensors of a step, and what its cache took when allocated."""

    rank: int
    path: Path
    table: PageTable
    step: Step
    allocated_bytes: int

    def launch(self) -> None:
        """Run a step."""
        self.path.launch(self.step)

    def result(self) -> Partial:
        """Return the last step's result."""
        return self.path.result(self.step.out)


class Stand:
    """A case on the ranks that live in this process."""

    def __init__(
        self,
        case: Case,
        mesh: Mesh,
        seed: int,
        sequences: Sequences | None = None,
        beside: Sequence[Stand] = (),
    ) -> None:
        """Open the path on every rank, lay its shard out in a paged cache, and bind the inputs.

        Args:
            sequences: those of a stand with the same shape, layout, workload and seed; drawn if None.
            beside: stands of these sequences, whose caches are shared where pages are alike: a step only reads them.

        Raises:
            Unsupported: if a kernel or exchange cannot run this here.
        """
        self.case, self.mesh, self.seed = case, mesh, seed
        paths = [open_path(case, member) for member in mesh.members()]
        self.sequences = sequences or Sequences.draw(case, mesh.device, seed)
        self.seats = tuple(
            self._seat(member.rank, path, beside)
            for member, path in zip(mesh.members(), paths, strict=True)
            if isinstance(path, Path)
        )

    @property
    def fullest(self) -> Seat:
        """The rank here with most keys."""
        return max(self.seats, key=lambda seat: sum(seat.table.lens))

    @property
    def kv_bytes(self) -> int:
        """Bytes that the allocator gave out for the largest cache here, one layer: the share of its pages in use."""
        seat = self.fullest
        in_use = page_count(seat.table.lens, seat.table.page_size)
        return seat.allocated_bytes * in_use // len(seat.step.cache.pages)

    def plan(self) -> None:
        """Plan the batch on every rank here."""
        for seat in self.seats:
            seat.path.plan(self.case.workload, seat.table)

    def launch(self) -> None:
        """Run a step on every rank here."""
        self.mesh.each(lambda index: self.seats[index].launch())

    def check(self) -> Check:
        """Run a step on every rank and compare it with the oracle; outputs are poisoned before."""
        for seat in self.seats:
            seat.step.out.fill_(float("nan"))
        self.launch()
        truths = [self.sequences.truth(self.case, seat.rank, self.seed) for seat in self.seats]
        return Check.worst(judge(seat.result(), truth) for seat, truth in zip(self.seats, truths, strict=True))

    def results(self) -> list[Partial]:
        """Return a copy of every rank's last result here, every row of it."""
        found = [seat.result() for seat in self.seats]
        return [Partial(result.out.clone(), result.lse.clone()) for result in found]

    def _seat(self, rank: int, path: Path, beside: Sequence[Stand]) -> Seat:
        case, q = self.case, self.sequences.queries[rank]
        known = next(
            (seat for stand in beside if stand._is_laid_out_as(case) for seat in stand.seats if seat.rank == rank), None
        )
        if known is not None:
            return replace(known, path=path, step=replace(known.step, out=torch.empty_like(q)))
        table, cache, allocated = self._lay_out(rank)
        new_keys, new_values = (self.sequences.new(case, kept) for kept in (self.sequences.keys, self.sequences.values))
        return Seat(rank, path, table, Step(q, new_keys, new_values, cache, torch.empty_like(q)), allocated)

    def _is_laid_out_as(self, case: Case) -> bool:
        mine, theirs = self.case.settings, case.settings
        return (mine.page_size, mine.kv_layout) == (theirs.page_size, theirs.kv_layout)

    def _lay_out(self, rank: int) -> tuple[PageTable, PagedCache, int]:
        """Write a rank's shard to pages in random order; return their table, the cache, and what it was given."""
        case, settings = self.case, self.case.settings
        totals = case.workload.total_lens
        lens = [case.layout.local_len(total, rank) for total in totals]
        pages = max(1, int(page_count(lens, settings.page_size) * (1 + SPARE_PAGES)))
        table = PageTable.shuffled(lens, settings.page_size, pages=pages, seed=self.seed + rank)
        before = _given_out(self.mesh.device)
        cache = PagedCache.allocate(
            pages,
            page_size=settings.page_size,
            kv_heads=case.layout.heads(case.shape).kv,
            head_dim=case.shape.head_dim,
            dtype=getattr(torch, case.shape.cache_dtype),
            kv_layout=settings.kv_layout,
            device=self.mesh.device,
        )
        allocated = _given_out(self.mesh.device) - before or cache.pages.untyped_storage().nbytes()
        for some in _portions(totals):
            few, whole = table.select(some), [totals[request] for request in some]
            slots = slot_mapping(whole, whole, few, case.layout, rank, device=self.mesh.device)
            keys, values = (
                torch.cat([kept[request] for request in some]) if len(some) > 1 else kept[some[0]]
                for kept in (self.sequences.keys, self.sequences.values)
            )
            cache.append(keys, values, slots)
        return table, cache, allocated


def _portions(totals: Sequence[int]) -> Iterator[list[int]]:
    """Yield neighbouring requests to lay out together: one by one takes a millisecond each, all at once a copy of them all."""
    some: list[int] = []
    for request, total in enumerate(totals):
        if some and sum(totals[other] for other in some) + total > LAID_OUT_TOGETHER:
            yield some
            some = []
        some.append(request)
    yield some


def _given_out(device: torch.device) -> int:
    """Return the bytes that the device's allocator has given out; 0 on the host, whose allocator does not count."""
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0


def apart(first: Partial, second: Partial, check: Check) -> float:
    """Return how far two results are from one another on the worst row, over twice the budget of a check; NaN counts as infinite.

    Each may be off by its budget, in ``out`` relative to the row's norm, in the LSE absolutely.
    """
    lse = torch.where(first.lse == second.lse, 0.0, (first.lse - second.lse).abs())
    shares = row_difference(first, second) / check.out_budget, float(lse.max()) / check.lse_budget
    return max(math.inf if math.isnan(share) else share / 2 for share in shares)


def row_difference(first: Partial, second: Partial) -> float:
    """Return the largest distance between two results' rows, relative to the row's norm; NaN if any is."""
    one, other = first.out.float(), second.out.float()
    size = torch.maximum(one.norm(dim=-1), other.norm(dim=-1))
    return float(((one - other).norm(dim=-1) / torch.where(size == 0, 1.0, size)).max())
