"""A batch of several kinds of request as engines run it: each kind through a path of its own. Floor 5."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from dcp_core.cache import PageTable
from dcp_core.lse import Partial
from dcp_core.paths.base import Path, PlanStage, Site, Stage, Step
from dcp_core.shapes import Request, Workload


class Neighbours:
    """Rows of a batch that one of the paths takes, one after another as in an engine that orders decodes first: views."""

    def __init__(self, name: str, path: Path, rows: slice) -> None:
        self.name, self.path, self.rows = name, path, rows

    def stages(self) -> tuple[Stage, ...]:
        """Return the path's stages on these rows."""
        return _on(self.name, self.path, self._part)

    def _part(self, step: Step) -> Step:
        rows = self.rows
        return Step(step.q[rows], step.k_new[rows], step.v_new[rows], step.cache, step.out[rows])


class Scattered:
    """Rows of a batch that one of the paths takes, with others between: copied in before its stages and out after."""

    def __init__(self, name: str, path: Path, rows: Tensor, site: Site) -> None:
        self.name, self.path, self.rows = name, path, rows
        heads, head_dim = site.heads, site.case.shape.head_dim

        def room(count: int) -> Tensor:
            return torch.empty(rows.numel(), count, head_dim, dtype=site.dtype, device=site.device)

        self._q, self._out, self._k_new, self._v_new = (
            room(heads.query),
            room(heads.query),
            room(heads.kv),
            room(heads.kv),
        )

    def stages(self) -> tuple[Stage, ...]:
        """Return the path's stages on these rows, between the copies."""
        inner = _on(self.name, self.path, self._part)
        return (Stage(f"{self.name}: select", self._select), *inner, Stage(f"{self.name}: place", self._place))

    def _part(self, step: Step) -> Step:
        return Step(self._q, self._k_new, self._v_new, step.cache, self._out)

    def _select(self, step: Step) -> None:
        for room, whole in ((self._q, step.q), (self._k_new, step.k_new), (self._v_new, step.v_new)):
            torch.index_select(whole, 0, self.rows, out=room)

    def _place(self, step: Step) -> None:
        step.out.index_copy_(0, self.rows, self._out)


Share = Neighbours | Scattered


def share_of(name: str, path: Path, workload: Workload, requests: Sequence[int], site: Site) -> Share:
    """Return the share of a batch that some of its requests, in order, have."""
    starts = list(accumulate(workload.new_lens, initial=0))
    rows = [row for request in requests for row in range(starts[request], starts[request + 1])]
    if rows[-1] - rows[0] + 1 == len(rows):
        return Neighbours(name, path, slice(rows[0], rows[-1] + 1))
    return Scattered(name, path, torch.tensor(rows, device=site.device), site)


def _on(name: str, path: Path, part: Callable[[Step], Step]) -> tuple[Stage, ...]:
    """Return a path's stages, each on its part of the step."""

    def on_part(run: Callable[[Step], None]) -> Callable[[Step], None]:
        return lambda step: run(part(step))

    return tuple(
        Stage(f"{name}: {stage.name}", on_part(stage.run), stage.communicates, stage.variant) for stage in path.stages()
    )


@dataclass(frozen=True, slots=True)
class _Planned:
    shares: tuple[Share, ...]
    lse: Tensor


@dataclass(frozen=True, slots=True)
class KindPath:
    """Some requests of a batch, and the path that they take. Every request is of exactly one kind."""

    name: str
    takes: Callable[[Request], bool]
    path: Path


class MixedRecipe:
    """A path for each kind of request, each with its own gather and combine, as vLLM does it.

    A batch of one kind runs through one of them alone: every rank sees the same batch, and so takes the same way.
    """

    def __init__(self, site: Site, kinds: Sequence[KindPath]) -> None:
        self._site, self._kinds = site, tuple(kinds)
        self._planned = _Planned((), site.own_lse(0))

    def prepare(self, workload: Workload, table: PageTable) -> tuple[PlanStage, ...]:
        """Take a batch: each path plans its own requests."""
        shares: list[Share] = []
        stages: list[PlanStage] = []
        for kind in self._kinds:
            chosen = [index for index, request in enumerate(workload.requests) if kind.takes(request)]
            if not chosen:
                continue
            part = Workload(tuple(workload.requests[request] for request in chosen))
            planned = kind.path.prepare(part, table.select(chosen))
            stages += [PlanStage(f"{kind.name}: {stage.name}", stage.run) for stage in planned]
            shares.append(share_of(kind.name, kind.path, workload, chosen, self._site))
        self._planned = _Planned(tuple(shares), self._site.own_lse(workload.new_tokens))
        return tuple(stages)

    def stages(self) -> tuple[Stage, ...]:
        """Return the stages of each kind in turn."""
        return tuple(stage for share in self._planned.shares for stage in share.stages())

    def result(self, out: Tensor) -> Partial:
        """Return ``out`` with its natural LSE, put together from the paths'."""
        for share in self._planned.shares:
            self._planned.lse[share.rows] = share.path.result(out[share.rows]).lse
        return Partial(out, self._planned.lse)
