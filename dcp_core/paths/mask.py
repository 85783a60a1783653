"""One pass over the rank's shard of the total, with the interleaved causal mask: what split replaced. Floor 5."""

from __future__ import annotations

from torch import Tensor

from dcp_core.cache import PageTable
from dcp_core.kernels.base import Masking, PassBatch, PassKind
from dcp_core.mask import InterleavedMask, PackedMask
from dcp_core.paths.base import PlanStage, Site, Stage, Step
from dcp_core.paths.gathered import GatheredRows, rows_for
from dcp_core.settings import MaskForm
from dcp_core.shapes import Workload


class MaskLocal:
    """New tokens are cached first; a query sees the local keys at its position and before."""

    exchanges = True

    def __init__(self, site: Site) -> None:
        settings, heads = site.case.settings, site.heads
        self._site, self._form = site, settings.mask_form
        self._rows = rows_for(site, 0)
        self._pass = site.open_pass(
            settings.kernel, PassKind.PAGED, Masking(self._form), q_heads=heads.gathered, kv_heads=heads.kv
        )
        self._mask: Tensor | PackedMask | InterleavedMask | None = None

    def prepare(self, workload: Workload, table: PageTable, rows: GatheredRows) -> tuple[PlanStage, ...]:
        """Take a batch: building the mask is a stage of its own."""
        self._rows = rows
        layout = self._site.case.layout
        rule = InterleavedMask(workload.new_lens, workload.total_lens, layout.dcp, self._site.rank, layout.interleave)
        self._mask = rule
        plan = PlanStage("plan", lambda: self._plan(workload, table))
        if self._form is MaskForm.COMPUTED:
            return (plan,)
        return (PlanStage("mask", lambda: self._build(rule)), plan)

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

    def _build(self, rule: InterleavedMask) -> None:
        device = self._site.device
        as_bool = self._form is MaskForm.BOOL
        self._mask = rule.bools(device) if as_bool else self._site.arithmetic.pack_mask(rule, device)

    def _plan(self, workload: Workload, table: PageTable) -> None:
        self._pass.plan(PassBatch(workload.new_lens, table.lens, table, self._mask))

    def _attend(self, step: Step) -> None:
        self._rows.partial = self._pass.run(self._rows.q, step.cache.pages, self._rows.room)
