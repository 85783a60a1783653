"""A path and what it consists of: stages of planning, stages of a step. Floor 5."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from dcp_core.arithmetic import Arithmetic
from dcp_core.cache import PagedCache, PageTable
from dcp_core.exchange.base import Exchange
from dcp_core.kernels.base import Masking, Pass, PassKind
from dcp_core.layout import RankHeads
from dcp_core.lse import Partial
from dcp_core.settings import Case, KernelName
from dcp_core.shapes import Workload


@dataclass(frozen=True, slots=True)
class Step:
    """The tensors of one layer's attention step on one rank.

    Args:
        q: ``[new tokens, query heads of the rank, head_dim]``.
        k_new, v_new: ``[new tokens, KV heads, head_dim]``, the same on every rank of the group.
        cache: the rank's shard, to which the new tokens were appended already.
        out: ``[new tokens, query heads of the rank, head_dim]`` to write to.
    """

    q: Tensor
    k_new: Tensor
    v_new: Tensor
    cache: PagedCache
    out: Tensor


@dataclass(frozen=True, slots=True)
class Stage:
    """A named part of a step.

    Args:
        communicates: it calls the exchange, so every rank must run it.
        variant: which way of several the exchange takes for this batch, in words.
    """

    name: str
    run: Callable[[Step], None]
    communicates: bool = False
    variant: str = ""


@dataclass(frozen=True, slots=True)
class PlanStage:
    """A named part of planning a batch: building a mask, say, or planning a kernel."""

    name: str
    run: Callable[[], None]


class OpenPass(Protocol):
    """Opens an attention pass for a rank of a case: the rest of its PassSpec is known already."""

    def __call__(
        self, kernel: KernelName, kind: PassKind, masking: Masking, *, q_heads: int, kv_heads: int
    ) -> Pass: ...


@dataclass(frozen=True, slots=True)
class Site:
    """Where a path is built: a case, seen by one rank.

    Args:
        rank: in the DCP group.
        device, dtype: of the step's tensors.
        kv_dtype: of the cache.
        heads: of this rank.
    """

    case: Case
    rank: int
    device: torch.device
    dtype: torch.dtype
    kv_dtype: torch.dtype
    heads: RankHeads
    exchange: Exchange
    arithmetic: Arithmetic
    open_pass: OpenPass

    def partial(self, tokens: int, heads: int) -> Partial:
        """Allocate a result of this rank's head_dim, dtype and device."""
        return Partial.empty(tokens, heads, self.case.shape.head_dim, dtype=self.dtype, device=self.device)

    def local_lens(self, lens: Sequence[int]) -> tuple[int, ...]:
        """Return this rank's share of sequences."""
        return tuple(self.case.layout.local_len(length, self.rank) for length in lens)

    def own_lse(self, tokens: int) -> Tensor:
        """Allocate the LSE of this rank's heads: float32 ``[tokens, h]``."""
        return torch.empty(tokens, self.heads.query, dtype=torch.float32, device=self.device)


class Recipe(Protocol):
    """One way to compute an attention step, for one rank."""

    def prepare(self, workload: Workload, table: PageTable) -> tuple[PlanStage, ...]:
        """Take a batch, and return the stages that planning it consists of, to be run in order.

        Raises:
            ValueError: if this way cannot serve the batch.
        """
        ...

    def stages(self) -> tuple[Stage, ...]:
        """Return what a step consists of for the batch last taken, in order. The last stage writes ``step.out``."""
        ...

    def result(self, out: Tensor) -> Partial:
        """Return ``out`` with the LSE that the last step left."""
        ...


class Path:
    """One way to compute attention, open for one rank: planned once per batch, run once per layer.

    An engine calls ``plan`` and ``run``; a benchmark also takes them apart, with ``prepare``, ``stages`` and ``launch``.
    """

    def __init__(self, site: Site, recipe: Recipe) -> None:
        self.case = site.case
        self._site, self._recipe = site, recipe
        self._stages: tuple[Stage, ...] = ()
        self._tokens, self._pages = 0, 0
        self._unplanned: set[str] = set()

    def prepare(self, workload: Workload, table: PageTable | None = None) -> tuple[PlanStage, ...]:
        """Take a batch, and return the stages that planning it consists of, to be run in order.

        Args:
            workload: the batch.
            table: the rank's pages, holding each request's local share of its total; pages 0, 1, 2, … in order if None.

        Raises:
            ValueError: if the path cannot serve this batch, or the table does not hold it.
        """
        if not isinstance(workload, Workload):
            raise ValueError(f"a batch is a Workload, as Workload.parse('8q1s1k'), not {repr(workload)[:60]}")
        local = self._site.local_lens(workload.total_lens)
        table = table or PageTable.over(local, self.case.settings.page_size)
        if table.lens != local or table.page_size != self.case.settings.page_size:
            raise ValueError(
                f"rank {self._site.rank} holds {local} tokens in pages of {self.case.settings.page_size}; "
                f"the table is for {table.lens} in pages of {table.page_size}"
            )
        self._stages = ()
        planning = self._recipe.prepare(workload, table)
        self._stages, self._tokens = self._recipe.stages(), workload.new_tokens
        self._pages = int(table.indices.max()) + 1 if table.indices.numel() else 0
        self._unplanned = {stage.name for stage in planning}
        return tuple(PlanStage(stage.name, self._ticked_off(stage)) for stage in planning)

    def plan(self, workload: Workload, table: PageTable | None = None) -> None:
        """Prepare for a batch: host work and buffers, shared by all layers. Arguments and errors as ``prepare``."""
        for stage in self.prepare(workload, table):
            stage.run()

    def stages(self) -> tuple[Stage, ...]:
        """Return what a step of the planned batch consists of, in order."""
        return self._stages

    def launch(self, step: Step) -> None:
        """Run every stage: what ``run`` does, without reading the LSE.

        Raises:
            ValueError: if no batch was planned.
        """
        self._check_planned()
        for stage in self._stages:
            stage.run(step)

    def run(self, q: Tensor, k_new: Tensor, v_new: Tensor, cache: PagedCache, out: Tensor) -> Partial:
        """Compute one layer's step; tensors as ``Step`` says.

        Returns:
            ``out`` with its natural LSE ``[new tokens, query heads of the rank]``, which is valid until the next run.

        Raises:
            ValueError: if no batch was planned, or a tensor or the cache is not of the planned batch.
        """
        self._check(q, k_new, v_new, out)
        self._check_cache(cache)
        self.launch(Step(q, k_new, v_new, cache, out))
        return self.result(out)

    def result(self, out: Tensor) -> Partial:
        """Return ``out`` with the natural LSE of the last step launched."""
        return self._recipe.result(out).natural()

    def _ticked_off(self, stage: PlanStage) -> Callable[[], None]:
        def run() -> None:
            stage.run()
            self._unplanned.discard(stage.name)

        return run

    def _check_planned(self) -> None:
        if not self._stages or self._unplanned:
            raise ValueError(f"path {self.case.settings.path} runs a step only after plan")

    def _check(self, q: Tensor, k_new: Tensor, v_new: Tensor, out: Tensor) -> None:
        self._check_planned()
        head_dim, heads = self.case.shape.head_dim, self._site.heads
        for name, tensor, count in (
            ("q", q, heads.query),
            ("k_new", k_new, heads.kv),
            ("v_new", v_new, heads.kv),
            ("out", out, heads.query),
        ):
            wanted = (self._tokens, count, head_dim)
            if tensor.shape != wanted or tensor.dtype != self._site.dtype:
                raise ValueError(
                    f"{name} of the planned batch is {list(wanted)} of {self._site.dtype}, "
                    f"not {list(tensor.shape)} of {tensor.dtype}"
                )

    def _check_cache(self, cache: PagedCache) -> None:
        shape, settings = self.case.shape, self.case.settings
        wanted = PagedCache.page_shape(settings.page_size, self._site.heads.kv, shape.head_dim, settings.kv_layout)
        pages, *inner = cache.pages.shape
        if inner != wanted or cache.kv_layout is not settings.kv_layout or cache.pages.dtype != self._site.kv_dtype:
            raise ValueError(
                f"the cache of this case has pages {wanted} {settings.kv_layout} of {self._site.kv_dtype}, "
                f"not {inner} {cache.kv_layout} of {cache.pages.dtype}"
            )
        if pages < self._pages:
            raise ValueError(f"the planned batch reads page {self._pages - 1}, and the cache has {pages}")
