"""``split`` while copy engines carry its exchange: own heads beside the gather, new tokens beside the combine. Floor 5."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from dcp_core.cache import PageTable
from dcp_core.exchange.base import Fetching, FusedExchange
from dcp_core.kernels.base import Masking, PassBatch, PassKind
from dcp_core.lse import LseBase, Partial
from dcp_core.paths.base import PlanStage, Recipe, Site, Stage, Step
from dcp_core.paths.gathered import ahead
from dcp_core.shapes import Workload

VARIANT = "copy engines"
"""How what is exchanged is moved."""


class FetchedSplitRecipe:
    """The pass over the context is one of the rank's own heads, which needs no peer, and then one of those of its peers.

    Args:
        exchange: the site's.
        smaller: takes batches that the exchange would not carry so, or that need none; both keep their passes open.
    """

    def __init__(self, site: Site, exchange: FusedExchange, smaller: Recipe) -> None:
        settings, heads = site.case.settings, site.heads
        self._site, self._exchange, self._smaller = site, exchange, smaller
        self._may_skip = settings.skip_empty_context and not settings.replayable
        self._own_pass, self._peers_pass = (
            site.open_pass(settings.kernel, PassKind.PAGED, Masking.NONE, q_heads=count, kv_heads=heads.kv)
            for count in (heads.query, heads.gathered - heads.query)
        )
        self._new_pass = site.open_pass(
            settings.kernel_for_new, PassKind.RAGGED, Masking.CAUSAL, q_heads=heads.query, kv_heads=heads.kv
        )
        self._fetching: Fetching | None = None
        self._lse = site.own_lse(0)
        self._base = LseBase.NATURAL

    def prepare(self, workload: Workload, table: PageTable) -> tuple[PlanStage, ...]:
        """Take a batch: which of the ways it goes follows from its lengths, on every rank alike."""
        needless = self._may_skip and not any(workload.context_lens)
        self._fetching = None if needless else self._exchange.reserve_fetching(workload.new_tokens)
        if self._fetching is None:
            return self._smaller.prepare(workload, table)
        if self._lse.shape[0] != workload.new_tokens:
            self._lse = self._site.own_lse(workload.new_tokens)
        context_table = table.first(self._site.local_lens(workload.context_lens))
        context = PassBatch(workload.new_lens, context_table.lens, context_table)
        new = PassBatch(workload.new_lens, workload.new_lens)
        return (
            PlanStage("plan context", lambda: self._own_pass.plan(context)),
            PlanStage("plan context of peers", lambda: self._peers_pass.plan(context)),
            PlanStage("plan new", lambda: self._new_pass.plan(new)),
        )

    def stages(self) -> tuple[Stage, ...]:
        """Return the three passes, two of them with what is exchanged meanwhile."""
        if (fetching := self._fetching) is None:
            return self._smaller.stages()

        return (
            Stage("gather beside context", partial(self._attend_own, fetching), communicates=True, variant=VARIANT),
            Stage("context of peers", partial(self._attend_for_peers, fetching)),
            Stage("combine beside new", partial(self._attend_new, fetching), communicates=True, variant=VARIANT),
        )

    def result(self, out: Tensor) -> Partial:
        """Return ``out`` with the natural LSE that the last step left."""
        return self._smaller.result(out) if self._fetching is None else Partial(out, self._lse)

    def _attend_own(self, fetching: Fetching, step: Step) -> None:
        fetching.leave_queries(step.q)
        with ahead(self._site.device) as stream:
            with torch.cuda.stream(stream):
                fetching.fetch_queries()
            self._base = self._own_pass.run(step.q, step.cache.pages, fetching.own).base

    def _attend_for_peers(self, fetching: Fetching, step: Step) -> None:
        self._peers_pass.run(fetching.queries, step.cache.pages, fetching.for_peers)

    def _attend_new(self, fetching: Fetching, step: Step) -> None:
        with ahead(self._site.device) as stream:
            with torch.cuda.stream(stream):
                fetching.fetch_partials()
            new = self._new_pass.run(step.q, (step.k_new, step.v_new), fetching.beside)
            if new.base is not self._base:
                new.lse.mul_(new.base.to_natural / self._base.to_natural)
        fetching.add_up(self._base, Partial(step.out, self._lse))
