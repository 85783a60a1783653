"""One new token per request: gather, one non-causal pass over the rank's shard, combine. Floor 5."""

from __future__ import annotations

from torch import Tensor

from dcp_core.cache import PageTable
from dcp_core.kernels.base import Masking, PassBatch, PassKind
from dcp_core.lse import Partial
from dcp_core.paths.base import PlanStage, Site, Stage, Step
from dcp_core.paths.gathered import GatheredStep
from dcp_core.settings import KernelName
from dcp_core.shapes import Workload


class DecodeRecipe:
    """The current token is cached already, so every query sees every key of the shard."""

    def __init__(self, site: Site, kernel: KernelName) -> None:
        self._step = GatheredStep(site)
        self._pass = site.open_pass(
            kernel, PassKind.DECODE, Masking.NONE, q_heads=site.heads.gathered, kv_heads=site.heads.kv
        )

    def prepare(self, workload: Workload, table: PageTable) -> tuple[PlanStage, ...]:
        """Take a batch of decodes."""
        if not workload.is_decode:
            raise ValueError(f"path decode takes one new token per request, the batch has {max(workload.new_lens)}")
        self._step.reserve(workload.new_tokens)
        batch = PassBatch(workload.new_lens, table.lens, table)
        return (PlanStage("plan", lambda: self._pass.plan(batch)),)

    def stages(self) -> tuple[Stage, ...]:
        """Return gather, attention, combine."""
        return self._step.around(Stage("attention", self._attend))

    def result(self, out: Tensor) -> Partial:
        """Return ``out`` with its LSE."""
        return self._step.result(out)

    def _attend(self, step: Step) -> None:
        self._step.partial = self._pass.run(self._step.q, step.cache.pages, self._step.room)
