"""A batch of decodes and longer requests as engines run it: decodes through one path, the rest through another. Floor 5."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dcp_core.cache import PageTable
from dcp_core.lse import Partial
from dcp_core.paths.base import Path, PlanStage, Site, Stage, Step
from dcp_core.shapes import Workload


class Share:
    """The rows of a batch that one of the two paths takes.

    Neighbouring rows, as in an engine that orders decodes first, are views of the batch's tensors. Scattered rows are
    copied in before the path's stages and out after them.
    """

    def __init__(
        self, name: str, path: Path, workload: Workload, requests: Sequence[int], device: torch.device
    ) -> None:
        self.name, self.path = name, path
        starts = [0]
        for new in workload.new_lens:
            starts.append(starts[-1] + new)
        rows = [row for request in requests for row in range(starts[request], starts[request + 1])]
        self.rows: slice | Tensor = slice(rows[0], rows[-1] + 1)
        if rows[-1] - rows[0] + 1 != len(rows):
            self.rows = torch.tensor(rows, device=device)
        self._copied: Step | None = None

    def stages(self) -> tuple[Stage, ...]:
        """Return the path's stages on these rows."""
        inner = tuple(
            Stage(f"{self.name}: {stage.name}", self._on_rows(stage.run), stage.communicates)
            for stage in self.path.stages()
        )
        if isinstance(self.rows, slice):
            return inner
        return (
            Stage(f"{self.name}: select", self._select),
            *inner,
            Stage(f"{self.name}: place", self._place),
        )

    def _on_rows(self, run: Callable[[Step], None]) -> Callable[[Step], None]:
        return lambda step: run(self._part(step))

    def _part(self, step: Step) -> Step:
        rows = self.rows
        if isinstance(rows, slice):
            return Step(step.q[rows], step.k_new[rows], step.v_new[rows], step.cache, step.out[rows])
        if self._copied is None:
            raise ValueError("scattered rows are selected before any other stage of their path")
        return self._copied

    def _select(self, step: Step) -> None:
        q, k_new, v_new = step.q[self.rows], step.k_new[self.rows], step.v_new[self.rows]
        self._copied = Step(q, k_new, v_new, step.cache, torch.empty_like(q))

    def _place(self, step: Step) -> None:
        step.out[self.rows] = self._part(step).out


@dataclass(frozen=True, slots=True)
class _Planned:
    shares: tuple[Share, ...]
    lse: Tensor


class MixedRecipe:
    """Two paths over the two kinds of request, each with its own gather and combine, as vLLM does it."""

    def __init__(self, site: Site, decode: Path, rest: Path) -> None:
        self._site, self._decode, self._rest = site, decode, rest
        self._planned = _Planned((), site.own_lse(0))

    def prepare(self, workload: Workload, table: PageTable) -> tuple[PlanStage, ...]:
        """Take a mixed batch: each path plans its own requests."""
        if not workload.is_mixed:
            raise ValueError(f"a batch to run apart needs both decodes and longer requests; {workload} has one kind")
        shares, stages = [], []
        for name, path, is_decode in (("decode", self._decode, True), ("rest", self._rest, False)):
            chosen = [i for i, request in enumerate(workload.requests) if (request.new == 1) is is_decode]
            part = Workload(tuple(workload.requests[request] for request in chosen))
            planned = path.prepare(part, table.select(chosen))
            stages += [PlanStage(f"{name}: {stage.name}", stage.run) for stage in planned]
            shares.append(Share(name, path, workload, chosen, self._site.device))
        self._planned = _Planned(tuple(shares), self._site.own_lse(workload.new_tokens))
        return tuple(stages)

    def stages(self) -> tuple[Stage, ...]:
        """Return the decodes' stages, then the others'."""
        return tuple(stage for share in self._planned.shares for stage in share.stages())

    def result(self, out: Tensor) -> Partial:
        """Return ``out`` with its natural LSE, put together from the two paths'."""
        for share in self._planned.shares:
            self._planned.lse[share.rows] = share.path.result(out[share.rows]).lse
        return Partial(out, self._planned.lse)
