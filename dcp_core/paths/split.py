"""Context and new tokens apart: gather, non-causal pass over the shard of the context, combine; merge with the new. Floor 5."""

from __future__ import annotations

from dcp_core.cache import PageTable
from dcp_core.kernels.base import Masking, PassBatch, PassKind
from dcp_core.lse import LseBase, Partial
from dcp_core.paths.base import PlanStage, Site, Stage, Step
from dcp_core.paths.gathered import GatheredRows, merge_own, rows_for
from dcp_core.shapes import Workload


class SplitLocal:
    """Queries see all of the context; among the new tokens a ragged causal pass of the rank's own heads needs no peer.

    Where no request has context, gather, context pass and combine are left out if the settings say so. Every rank decides
    that from the batch alone, so none waits for a collective that another skips.

    Args:
        fused: the combine adds up the new tokens' partial as well; otherwise merging it is a stage of its own.
        alone: it may leave out the exchange, since no other requests need it.
    """

    def __init__(self, site: Site, *, fused: bool, alone: bool = True) -> None:
        settings, heads = site.case.settings, site.heads
        self._site, self._fused = site, fused
        # A captured graph holds the stages of the batch it was captured with: the next may have context.
        self._may_skip = alone and settings.skip_empty_context and not settings.replayable
        self._rows = rows_for(site, 0)
        self._context_pass = site.open_pass(
            settings.kernel, PassKind.PAGED, Masking.NONE, q_heads=heads.gathered, kv_heads=heads.kv
        )
        self._new_pass = site.open_pass(
            settings.kernel_for_new, PassKind.RAGGED, Masking.CAUSAL, q_heads=heads.query, kv_heads=heads.kv
        )
        self._new_room = self._new = site.partial(0, heads.query)
        self.exchanges = True

    def prepare(self, workload: Workload, table: PageTable, rows: GatheredRows) -> tuple[PlanStage, ...]:
        """Take a batch."""
        tokens, new_lens = workload.new_tokens, workload.new_lens
        self._rows = rows
        self.exchanges = not self._may_skip or any(workload.context_lens)
        rows.base = LseBase.NATURAL
        if self._new_room.out.shape[0] != tokens:
            self._new_room = self._new = self._site.partial(tokens, self._site.heads.query)
        new = PlanStage("plan new", lambda: self._new_pass.plan(PassBatch(new_lens, new_lens)))
        if not self.exchanges:
            return (new,)
        context_table = table.first(self._site.local_lens(workload.context_lens))
        context = PassBatch(new_lens, context_table.lens, context_table)
        return (PlanStage("plan context", lambda: self._context_pass.plan(context)), new)

    def attend(self) -> tuple[Stage, ...]:
        """Return the pass over the context."""
        return (Stage("context", self._attend_context),)

    def apart(self) -> tuple[Stage, ...]:
        """Return the pass over the new tokens."""
        return (Stage("new", self._attend_new),)

    def beside(self, step: Step) -> Partial | None:  # a Local's signature
        """The new tokens' partial, where the combine takes it."""
        return self._new if self._fused else None

    def finish(self) -> tuple[Stage, ...]:
        """Return the merge; nothing if the combine merged; the pass over the new tokens if nothing was exchanged."""
        if not self.exchanges:
            return (Stage("new", self._attend_new_only),)
        return () if self._fused else (Stage("merge", self._merge),)

    def _attend_context(self, step: Step) -> None:
        self._rows.partial = self._context_pass.run(self._rows.q, step.cache.pages, self._rows.room)

    def _attend_new(self, step: Step) -> None:
        self._new = self._new_pass.run(step.q, (step.k_new, step.v_new), self._new_room)

    def _attend_new_only(self, step: Step) -> None:
        whole = self._new_pass.run(step.q, (step.k_new, step.v_new), Partial(step.out, self._rows.lse))
        self._rows.base = whole.base

    def _merge(self, step: Step) -> None:
        merge_own(self._site, step, self._rows, self._new)
