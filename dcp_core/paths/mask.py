"""One pass over the rank's shard of the total, with the interleaved causal mask: what split replaced. Floor 5."""

from __future__ import annotations

from torch import Tensor

from dcp_core.cache import PageTable
from dcp_core.kernels.base import Masking, PassBatch, PassKind
from dcp_core.lse import Partial
from dcp_core.mask import InterleavedMask, PackedMask
from dcp_core.paths.base import PlanStage, Site, Stage, Step
from dcp_core.paths.gathered import GatheredStep
from dcp_core.settings import MaskForm
from dcp_core.shapes import Workload


class MaskRecipe:
    """New tokens are cached first; a query sees the local keys at its position and before."""

    def __init__(self, site: Site) -> None:
        settings, heads = site.case.settings, site.heads
        self._site, self._form = site, settings.mask_form
        self._step = GatheredStep(site)
        self._pass = site.open_pass(
            settings.kernel, PassKind.PAGED, Masking(self._form), q_heads=heads.gathered, kv_heads=heads.kv
        )
        self._mask: Tensor | PackedMask | InterleavedMask | None = None

    def prepare(self, workload: Workload, table: PageTable) -> tuple[PlanStage, ...]:
        """Take a batch: building the mask is a stage of its own."""
        self._step.reserve(workload.new_tokens)
        layout = self._site.case.layout
        rule = InterleavedMask(workload.new_lens, workload.total_lens, layout.dcp, self._site.rank, layout.interleave)
        self._mask = rule
        plan = PlanStage("plan", lambda: self._plan(workload, table))
        if self._form is MaskForm.COMPUTED:
            return (plan,)
        return (PlanStage("mask", lambda: self._build(rule)), plan)

    def stages(self) -> tuple[Stage, ...]:
        """Return gather, attention, combine."""
        return self._step.around(Stage("attention", self._attend))

    def result(self, out: Tensor) -> Partial:
        """Return ``out`` with its LSE."""
        return self._step.result(out)

    def _build(self, rule: InterleavedMask) -> None:
        device = self._site.device
        as_bool = self._form is MaskForm.BOOL
        self._mask = rule.bools(device) if as_bool else self._site.arithmetic.pack_mask(rule, device)

    def _plan(self, workload: Workload, table: PageTable) -> None:
        self._pass.plan(PassBatch(workload.new_lens, table.lens, table, self._mask))

    def _attend(self, step: Step) -> None:
        self._step.partial = self._pass.run(self._step.q, step.cache.pages, self._step.room)
