"""What the paths of a DCP group share: gathered queries in, a partial of all heads out, combined into the result. Floor 5."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, partial
from typing import Protocol

import torch
from torch import Tensor

from dcp_core.cache import PageTable
from dcp_core.exchange.base import FusedExchange
from dcp_core.fold import OwnRows
from dcp_core.lse import LseBase, Partial
from dcp_core.paths.base import PlanStage, Site, Stage, Step
from dcp_core.shapes import Workload


class GatheredRows:
    """The rows of a step between gather and combine: all of a batch, or some of it.

    Attributes:
        q: gathered queries ``[T, H, D]``, after the gather.
        room: a partial ``[T, H, D]`` to write to.
        partial: what attention made of it, with the kernel's base; often ``room`` itself.
        lse: of the rank's own heads ``[T, h]``, after the combine, in ``base``.
    """

    def __init__(self, room: Partial, lse: Tensor) -> None:
        self.room = self.partial = room
        self.q, self.lse, self.base = room.out, lse, LseBase.NATURAL

    def part(self, rows: slice) -> GatheredRows:
        """Return some of these rows, as views."""
        room = Partial(self.room.out[rows], self.room.lse[rows])
        return GatheredRows(room, self.lse[rows])


class Local(Protocol):
    """How a rank attends to its own shard, for requests of one kind: what stands between gather and combine."""

    def prepare(self, workload: Workload, table: PageTable, rows: GatheredRows) -> tuple[PlanStage, ...]:
        """Take a batch and its rows, and return the stages that planning it consists of, to be run in order.

        Raises:
            ValueError: if this way cannot serve the batch.
        """
        ...

    @property
    def exchanges(self) -> bool:
        """False if the batch last taken needs no rank but this one, and so neither gather nor combine."""
        ...

    def attend(self) -> tuple[Stage, ...]:
        """Return what makes ``rows.partial`` of ``rows.q``."""
        ...

    def apart(self) -> tuple[Stage, ...]:
        """Return what needs no other rank, and so may run at any time before the end; often nothing."""
        ...

    def beside(self, step: Step) -> Partial | OwnRows | None:
        """One more partial of the rank's own heads that the combine is to add up, or what it is made of; None for none."""
        ...

    def finish(self) -> tuple[Stage, ...]:
        """Return what is left after the combine has written ``step.out`` and ``rows.lse``."""
        ...


class GatheredRecipe:
    """Gather, attend, combine, finish: a batch of one kind. What needs no other rank runs before the combine.

    Args:
        overlap: it runs while the gather does.
    """

    def __init__(self, site: Site, local: Local, *, overlap: bool = False) -> None:
        self._site, self._local = site, local
        self._rows = rows_for(site, 0)
        self._fused = site.exchange if isinstance(site.exchange, FusedExchange) else None
        self._overlap = overlap

    def prepare(self, workload: Workload, table: PageTable) -> tuple[PlanStage, ...]:
        """Take a batch: the same room as long as the number of tokens is, so that a captured graph stays right."""
        tokens = workload.new_tokens
        if self._rows.lse.shape[0] != tokens:
            self._rows = rows_for(self._site, tokens)
        planning = self._local.prepare(workload, table, self._rows)
        self._site.exchange.reserve(tokens if self._local.exchanges else 0)
        return planning

    def stages(self) -> tuple[Stage, ...]:
        """Return the stages of a step, gather and combine among them unless no other rank is needed."""
        if not self._local.exchanges:
            return self._local.finish()
        variant = self._site.exchange.variant(self._rows.lse.shape[0])
        gather = Stage("gather", self._gather, communicates=True, variant=variant)
        combine = Stage("combine", self._combine, communicates=True, variant=variant)
        attend, apart, finish = self._local.attend(), self._local.apart(), self._local.finish()
        if not (self._overlap and apart):
            return (gather, *attend, *apart, combine, *finish)
        beside = partial(self._gather_beside, apart)
        return (Stage("gather beside new", beside, communicates=True, variant=variant), *attend, combine, *finish)

    def result(self, out: Tensor) -> Partial:
        """Return ``out`` with the LSE that the last step left."""
        return Partial(out, self._rows.lse, self._rows.base)

    def _gather_beside(self, apart: tuple[Stage, ...], step: Step) -> None:
        """Gather, and run what needs no other rank in the meantime.

        Not beside attention, which fills the device: two such passes at once take longer than one after the other.
        """
        with ahead(self._site.device) as stream:
            with torch.cuda.stream(stream):
                self._gather(step)
            for stage in apart:
                stage.run(step)

    def _gather(self, step: Step) -> None:
        self._rows.q = self._site.exchange.gather_heads(step.q)

    def _combine(self, step: Step) -> None:
        into, beside = Partial(step.out, self._rows.lse), self._local.beside(step)
        if self._fused is not None and beside is not None:
            self._fused.combine_beside(self._rows.partial, beside, into=into)
        else:
            self._site.exchange.combine(self._rows.partial, into=into)


def rows_for(site: Site, tokens: int) -> GatheredRows:
    """Allocate the rows of a batch."""
    return GatheredRows(site.partial(tokens, site.heads.gathered), site.own_lse(tokens))


def merge_own(site: Site, step: Step, rows: GatheredRows, own: Partial) -> None:
    """Add one more partial of the rank's own heads to what the combine wrote."""
    combined = Partial(step.out, rows.lse)
    site.arithmetic.merge(combined, own, into=combined)


@contextmanager
def ahead(device: torch.device) -> Iterator[torch.cuda.Stream]:
    """Give a stream for what exchanges while the current one computes; both have ended where this does.

    What exchanges is to be launched first: it waits for peers on a few multiprocessors, which nothing else must hold by then.
    """
    here, stream = torch.cuda.current_stream(device), _stream_ahead(device)
    stream.wait_stream(here)
    try:
        yield stream
    finally:
        here.wait_stream(stream)


@cache
def _stream_ahead(device: torch.device) -> torch.cuda.Stream:
    """Return a device's stream whose blocks are scheduled before those of others that wait."""
    return torch.cuda.Stream(device, priority=-1)
