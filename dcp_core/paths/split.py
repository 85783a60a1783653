"""Context and new tokens apart: gather, non-causal pass over the shard of the context, combine; merge with the new. Floor 5."""

from __future__ import annotations

from torch import Tensor

from dcp_core.cache import PageTable
from dcp_core.exchange.base import FusedExchange
from dcp_core.kernels.base import Masking, PassBatch, PassKind
from dcp_core.lse import Partial
from dcp_core.paths.base import PlanStage, Site, Stage, Step
from dcp_core.paths.gathered import GatheredStep
from dcp_core.shapes import Workload


class SplitRecipe:
    """Queries see all of the context; among the new tokens a ragged causal pass of the rank's own heads needs no peer.

    A fused exchange merges in the kernel that combines.

    Where no request has context, gather, context pass and combine are left out if the settings say so. Every rank decides
    that from the batch alone, so none waits for a collective that another skips.
    """

    def __init__(self, site: Site) -> None:
        settings, heads = site.case.settings, site.heads
        self._site = site
        self._step = GatheredStep(site)
        self._context_pass = site.open_pass(
            settings.kernel, PassKind.PAGED, Masking.NONE, q_heads=heads.gathered, kv_heads=heads.kv
        )
        self._new_pass = site.open_pass(
            settings.kernel_for_new, PassKind.RAGGED, Masking.CAUSAL, q_heads=heads.query, kv_heads=heads.kv
        )
        self._combined = self._new_room = self._new = site.partial(0, heads.query)
        self._only_new = False

    def prepare(self, workload: Workload, table: PageTable) -> tuple[PlanStage, ...]:
        """Take a batch."""
        tokens, new_lens = workload.new_tokens, workload.new_lens
        self._only_new = self._site.case.settings.skip_empty_context and not any(workload.context_lens)
        self._step.reserve(0 if self._only_new else tokens)
        if self._new_room.out.shape[0] != tokens:
            self._combined = self._site.partial(tokens, self._site.heads.query)
            self._new_room = self._new = self._site.partial(tokens, self._site.heads.query)
        new = PlanStage("plan new", lambda: self._new_pass.plan(PassBatch(new_lens, new_lens)))
        if self._only_new:
            return (new,)
        context_table = table.first(self._site.local_lens(workload.context_lens))
        context = PassBatch(new_lens, context_table.lens, context_table)
        return (PlanStage("plan context", lambda: self._context_pass.plan(context)), new)

    def stages(self) -> tuple[Stage, ...]:
        """Return gather, context, combine, new, merge; fused gather, context, new, combine; or new alone."""
        if self._only_new:
            return (Stage("new", self._attend_new_only),)
        if isinstance(fused := self._site.exchange, FusedExchange):
            return (
                self._step.gather_stage(),
                Stage("context", self._attend_context),
                Stage("new", self._attend_new),
                Stage("combine", lambda step: self._combine_beside(fused, step), communicates=True),
            )
        return (
            self._step.gather_stage(),
            Stage("context", self._attend_context),
            Stage("combine", self._combine, communicates=True),
            Stage("new", self._attend_new),
            Stage("merge", self._merge),
        )

    def result(self, out: Tensor) -> Partial:
        """Return ``out`` with its LSE."""
        if self._only_new:
            return Partial(out, self._new.lse, self._new.base)
        return self._step.result(out)

    def _attend_context(self, step: Step) -> None:
        self._step.partial = self._context_pass.run(self._step.q, step.cache.pages, self._step.room)

    def _combine(self, step: Step) -> None:  # a Stage's signature
        self._site.exchange.combine(self._step.partial, into=self._combined)

    def _combine_beside(self, exchange: FusedExchange, step: Step) -> None:
        exchange.combine_beside(self._step.partial, self._new, into=Partial(step.out, self._step.lse))

    def _attend_new(self, step: Step) -> None:
        self._new = self._new_pass.run(step.q, (step.k_new, step.v_new), self._new_room)

    def _attend_new_only(self, step: Step) -> None:
        self._new = self._new_pass.run(step.q, (step.k_new, step.v_new), Partial(step.out, self._new_room.lse))

    def _merge(self, step: Step) -> None:
        self._site.arithmetic.merge(self._combined, self._new, into=Partial(step.out, self._step.lse))
