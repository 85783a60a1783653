"""One new token per request: gather, one non-causal pass over the rank's shard, combine. Floor 5."""

from __future__ import annotations

from dcp_core.cache import PageTable
from dcp_core.kernels.base import Masking, PassBatch, PassKind
from dcp_core.paths.base import PlanStage, Site, Stage, Step
from dcp_core.paths.gathered import GatheredRows, rows_for
from dcp_core.settings import KernelName
from dcp_core.shapes import Workload


class DecodeLocal:
    """The current token is cached already, so every query sees every key of the shard."""

    exchanges = True

    def __init__(self, site: Site, kernel: KernelName, kind: PassKind) -> None:
        self._rows = rows_for(site, 0)
        self._pass = site.open_pass(kernel, kind, Masking.NONE, q_heads=site.heads.gathered, kv_heads=site.heads.kv)

    def prepare(self, workload: Workload, table: PageTable, rows: GatheredRows) -> tuple[PlanStage, ...]:
        """Take a batch of decodes."""
        if not workload.is_decode:
            raise ValueError(f"path decode takes one new token per request, the batch has {max(workload.new_lens)}")
        self._rows = rows
        batch = PassBatch(workload.new_lens, table.lens, table)
        return (PlanStage("plan", lambda: self._pass.plan(batch)),)

    def attend(self) -> tuple[Stage, ...]:
        """Return the one pass."""
        return (Stage("attention", self._attend),)

    def apart(self) -> tuple[Stage, ...]:
        """Return nothing: every query needs every rank."""
        return ()

    def beside(self, step: Step) -> None:  # a Local's signature
        """Return nothing."""

    def finish(self) -> tuple[Stage, ...]:
        """Return nothing: the combine is the end."""
        return ()

    def _attend(self, step: Step) -> None:
        self._rows.partial = self._pass.run(self._rows.q, step.cache.pages, self._rows.room)
