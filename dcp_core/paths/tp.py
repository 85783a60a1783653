"""The baseline, dcp 1: one causal pass of the rank's own heads over the whole cache. Floor 5."""

from __future__ import annotations

from torch import Tensor

from dcp_core.cache import PageTable
from dcp_core.kernels.base import Masking, PassBatch, PassKind
from dcp_core.lse import LseBase, Partial
from dcp_core.paths.base import PlanStage, Site, Stage, Step
from dcp_core.settings import KernelName
from dcp_core.shapes import Workload


class TpRecipe:
    """Attention as it is without DCP: what a user runs on the same number of GPUs if DCP stays off."""

    def __init__(self, site: Site, kernel: KernelName, kind: PassKind) -> None:
        self._site = site
        masking = Masking.NONE if kind is PassKind.DECODE else Masking.CAUSAL
        self._pass = site.open_pass(kernel, kind, masking, q_heads=site.heads.query, kv_heads=site.heads.kv)
        self._lse = site.own_lse(0)
        self._base = LseBase.NATURAL

    def prepare(self, workload: Workload, table: PageTable) -> tuple[PlanStage, ...]:
        """Take a batch."""
        if self._lse.shape[0] != workload.new_tokens:
            self._lse = self._site.own_lse(workload.new_tokens)
        batch = PassBatch(workload.new_lens, workload.total_lens, table)
        return (PlanStage("plan", lambda: self._pass.plan(batch)),)

    def stages(self) -> tuple[Stage, ...]:
        """Return the one stage."""
        return (Stage("attention", self._attend),)

    def result(self, out: Tensor) -> Partial:
        """Return ``out`` with its LSE."""
        return Partial(out, self._lse, self._base)

    def _attend(self, step: Step) -> None:
        self._base = self._pass.run(step.q, step.cache.pages, Partial(step.out, self._lse)).base
