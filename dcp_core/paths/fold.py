"""One plain causal pass over the rank's shard, dcp consecutive queries folded into the heads; their own keys apart. Floor 5."""

from __future__ import annotations

import torch

from dcp_core.cache import PageTable
from dcp_core.exchange.base import FusedExchange
from dcp_core.fold import Fold, Folder, OwnRows
from dcp_core.kernels.base import Masking, PassBatch, PassKind
from dcp_core.paths.base import PlanStage, Site, Stage, Step
from dcp_core.paths.gathered import GatheredRows, merge_own, rows_for
from dcp_core.shapes import Workload


class FoldLocal:
    """The interleaved mask as bottom-right causal attention; see ``dcp_core.fold`` for why.

    Args:
        fused: an exchange that gathers queries folded, and attends to their own rows while it combines; with none, all this is
            stages of their own.
    """

    exchanges = True

    def __init__(self, site: Site, *, fused: FusedExchange | None) -> None:
        heads, dcp = site.heads, site.case.layout.dcp
        self._site, self._fused = site, fused
        self._rows = rows_for(site, 0)
        self._pass = site.open_pass(
            site.case.settings.kernel, PassKind.PAGED, Masking.CAUSAL, q_heads=heads.gathered * dcp, kv_heads=heads.kv
        )
        self._fold_placed: Fold | None = None
        self._folder: Folder | None = None
        self._earlier = torch.empty(0, dtype=torch.int32, device=site.device)
        self._own = site.partial(0, heads.query)
        self._folded_room = self._folded = site.partial(0, heads.gathered * dcp)
        self._q_folded = self._folded_room.out

    def prepare(self, workload: Workload, table: PageTable, rows: GatheredRows) -> tuple[PlanStage, ...]:
        """Take a batch: working out the fold is a stage of its own.

        Raises:
            ValueError: if it is to be replayable, and the batch's queries fold otherwise than those of the first.
        """
        fold, placed = self._fold_of(workload, self._site.rank), self._fold_placed
        if self._site.case.settings.replayable and placed is not None and not fold.lays_out_as(placed):
            raise ValueError(
                f"a replayable path fold takes as many new tokens of each request as in its first batch, not {workload}; "
                "open a path for each"
            )
        self._rows = rows
        batch = PassBatch(fold.rows, fold.kv_lens, table.first(fold.kv_lens))
        return (
            PlanStage("fold", lambda: self._place(workload, fold)),
            PlanStage("plan", lambda: self._pass.plan(batch)),
        )

    def attend(self) -> tuple[Stage, ...]:
        """Return fold, attention, unfold; attention alone if the exchange folds."""
        if self._fused is not None:
            return (Stage("attention", self._attend_gathered),)
        return (Stage("fold", self._fold), Stage("attention", self._attend), Stage("unfold", self._unfold))

    def apart(self) -> tuple[Stage, ...]:
        """Return the attention of every query to the new tokens of its own row; nothing if the combine attends to them."""
        return () if self._fused is not None else (Stage("new", self._attend_own_rows),)

    def beside(self, step: Step) -> OwnRows | None:
        """Return the queries' own rows, where the combine attends to them."""
        return self._own_rows(step) if self._fused is not None else None

    def finish(self) -> tuple[Stage, ...]:
        """Return the merge; nothing if the combine did it."""
        return () if self._fused is not None else (Stage("merge", self._merge),)

    def _fold_of(self, workload: Workload, rank: int) -> Fold:
        return Fold.of(workload.new_lens, workload.total_lens, self._site.case.layout.dcp, rank)

    def _place(self, workload: Workload, fold: Fold) -> None:
        if self._fold_placed is not None and fold.lays_out_as(self._fold_placed):
            self._reserve(workload)
            return
        heads, dcp = self._site.heads, fold.dcp
        self._folded_room = self._folded = self._site.partial(sum(fold.rows), heads.gathered * dcp)
        self._earlier = fold.earlier.to(self._site.device)
        if self._fused is None:
            self._own = self._site.partial(workload.new_tokens, heads.query)
            self._folder = Folder(
                fold,
                heads=heads.gathered,
                kv_heads=heads.kv,
                head_dim=self._site.case.shape.head_dim,
                dtype=self._site.dtype,
                device=self._site.device,
            )
        self._reserve(workload)
        self._fold_placed = fold

    def _reserve(self, workload: Workload) -> None:
        if self._fused is not None:
            ranks = range(self._site.case.layout.dcp)
            self._fused.reserve_folded(workload.new_tokens, [self._fold_of(workload, rank) for rank in ranks])

    def _opened(self) -> Folder:
        if self._folder is None:
            raise ValueError("path fold runs a step only after plan")
        return self._folder

    def _fold(self, step: Step) -> None:  # a Stage's signature
        self._q_folded = self._opened().fold_queries(self._rows.q)

    def _attend(self, step: Step) -> None:
        self._folded = self._pass.run(self._q_folded, step.cache.pages, self._folded_room)

    def _attend_gathered(self, step: Step) -> None:
        self._rows.partial = self._pass.run(self._rows.q, step.cache.pages, self._folded_room)

    def _unfold(self, step: Step) -> None:  # a Stage's signature
        self._rows.partial = self._opened().unfold(self._folded)

    def _own_rows(self, step: Step) -> OwnRows:
        return OwnRows(step.q, step.k_new, step.v_new, self._earlier, self._site.case.layout.dcp)

    def _attend_own_rows(self, step: Step) -> None:
        self._site.arithmetic.attend_own_rows(self._own_rows(step), self._own)

    def _merge(self, step: Step) -> None:
        merge_own(self._site, step, self._rows, self._own)
