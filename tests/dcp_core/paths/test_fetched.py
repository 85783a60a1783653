"""A step whose exchange is fetched, rank by rank on a CPU: what copy engines would bring is handed over by hand."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from bench.stand import Stand
from dcp_core.build import _recipe, _site
from dcp_core.check import Check
from dcp_core.exchange.base import FusedExchange, interleave_ranks, split_ranks
from dcp_core.kernels.base import Pass
from dcp_core.layout import DcpLayout
from dcp_core.lse import LseBase, Partial, combine
from dcp_core.mesh import Mesh
from dcp_core.oracle import judge
from dcp_core.paths import fetched
from dcp_core.paths.base import PlanStage, Recipe, Stage
from dcp_core.paths.fetched import FetchedSplitRecipe
from dcp_core.paths.gathered import GatheredRecipe
from dcp_core.settings import Case, PathName, Settings
from dcp_core.shapes import ModelShape, Workload


class HandedOver:
    """One rank's exchange, all ranks being here: nothing is copied before it is asked for.

    Args:
        queries: of every rank.
        group: every rank's own, in order; each adds itself.
    """

    def __init__(self, rank: int, case: Case, queries: Sequence[Tensor], group: list[HandedOver]) -> None:
        heads, dim, dtype = case.layout.heads(case.shape), case.shape.head_dim, queries[0].dtype
        self._rank, self._ranks, self._kv, self._queries, self._group = rank, case.layout.dcp, heads.kv, queries, group
        tokens = case.workload.new_tokens
        self.own, self.beside, self.for_peers = (
            Partial.empty(tokens, count, dim, dtype=dtype, device=torch.device("cpu"))
            for count in (heads.query, heads.query, heads.gathered - heads.query)
        )
        self._fetched: list[tuple[Tensor, Tensor]] = []
        group.append(self)

    def reserve_fetching(self, tokens: int) -> HandedOver | None:
        return self if tokens == len(self._queries[0]) else None

    def leave_queries(self, q: Tensor) -> None:
        assert q.equal(self._queries[self._rank])

    def fetch_queries(self) -> None:
        self.queries = interleave_ranks(torch.stack([self._queries[peer] for peer in self._peers()]), self._kv)

    def fetch_partials(self) -> None:
        self._fetched = []
        for peer in self._peers():
            place = (self._rank - peer) % self._ranks - 1
            theirs = self._group[peer].for_peers
            shares = (split_ranks(tensor, self._kv, self._ranks - 1)[place] for tensor in (theirs.out, theirs.lse))
            out, lse = (share.flatten(1, 2) for share in shares)
            self._fetched.append((out, lse))

    def add_up(self, base: LseBase, into: Partial) -> None:
        every = [*self._fetched, *((one.out, one.lse) for one in (self.own, self.beside))]
        outs, lses = (torch.stack(tensors) for tensors in zip(*every, strict=True))
        combine(outs, lses, base=base, into=into)

    def _peers(self) -> list[int]:
        return [(self._rank + step) % self._ranks for step in range(1, self._ranks)]


class Smaller:
    """In the place of the recipe for what is not worth fetching."""

    def prepare(self, workload: Workload, table: object) -> tuple[PlanStage, ...]:
        return (PlanStage("smaller", lambda: None),)

    def stages(self) -> tuple[Stage, ...]:
        return (Stage("smaller", lambda step: None),)

    def result(self, out: Tensor) -> Partial:
        return Partial(out, torch.zeros(out.shape[:2]))


def case_of(batch: str, dcp: int, kv: int = 1, **settings: object) -> Case:
    shape = ModelShape(3 * dcp * kv, kv, 16, dtype="float32")
    chosen = {"path": "split", "kernel": "reference", "exchange": "loopback", "page_size": 4, **settings}
    return Case(shape, DcpLayout(dcp * kv, dcp), Workload.parse(batch), Settings.from_json(chosen))


def opened(case: Case) -> tuple[Stand, list[FetchedSplitRecipe]]:
    stand, group = Stand(case, Mesh.simulated(case.layout.dcp), seed=0), []
    recipes = []
    for rank, member in enumerate(stand.mesh.members()):
        exchange = HandedOver(rank, case, stand.sequences.queries, group)
        site = replace(_site(case, member), exchange=exchange)  # type: ignore[arg-type]
        smaller: Recipe = Smaller()  # type: ignore[assignment]
        recipes.append(FetchedSplitRecipe(site, exchange, smaller))  # type: ignore[arg-type]
    return stand, recipes


@pytest.fixture(autouse=True)
def one_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetched, "ahead", lambda device: nullcontext())
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())


def run(case: Case, stand: Stand, recipes: Sequence[FetchedSplitRecipe]) -> list[Check]:
    """Run a step of every rank stage by stage: each has left what the next stage of another fetches."""
    for seat, recipe in zip(stand.seats, recipes, strict=True):
        plans = recipe.prepare(case.workload, seat.table)
        assert [plan.name for plan in plans] == ["plan context", "plan context of peers", "plan new"]
        for plan in plans:
            plan.run()
    names = ["gather beside context", "context of peers", "combine beside new"]
    for index, name in enumerate(names):
        for seat, recipe in zip(stand.seats, recipes, strict=True):
            stage = recipe.stages()[index]
            assert (stage.name, stage.communicates) == (name, name != "context of peers")
            stage.run(seat.step)
    return [
        judge(recipe.result(seat.step.out), stand.sequences.truth(case, seat.rank, seed=0))
        for seat, recipe in zip(stand.seats, recipes, strict=True)
    ]


@pytest.mark.parametrize(("dcp", "kv"), [(2, 1), (2, 2), (4, 1), (3, 2)])
@pytest.mark.parametrize("batch", ["q7s40", "q9s9_2q5s33", "3q4s4_q2s90"])
def test_every_rank_s_rows_are_right(batch: str, dcp: int, kv: int) -> None:
    case = case_of(batch, dcp, kv)
    for check in run(case, *opened(case)):
        assert check.passed, check


class InBaseTwo:
    """Another pass, whose LSE comes in base 2."""

    def __init__(self, inner: Pass) -> None:
        self._inner, self.plan = inner, inner.plan

    def run(self, q: Tensor, keys_values: Tensor | tuple[Tensor, Tensor], into: Partial) -> Partial:
        made = self._inner.run(q, keys_values, into)
        made.lse.div_(LseBase.TWO.to_natural)
        return made.relabelled(LseBase.TWO)


def test_new_tokens_may_have_an_lse_of_another_base() -> None:
    case = case_of("q7s40", 2)
    stand, recipes = opened(case)
    for recipe in recipes:
        recipe._new_pass = InBaseTwo(recipe._new_pass)
    for check in run(case, stand, recipes):
        assert check.passed, check


def test_split_takes_this_way_if_its_exchange_can_and_overlap_is_asked_for() -> None:
    asked_for = (name for name in dir(FusedExchange) if not name.startswith("_"))
    can_fetch = type("CanFetch", (), dict.fromkeys(asked_for, print))()
    for overlap, expected in ((True, FetchedSplitRecipe), (False, GatheredRecipe)):
        case = case_of("q7s40", 2)
        site = replace(_site(case, Mesh.simulated(2).members()[0]), exchange=can_fetch)
        settings = replace(case.settings, exchange="ag_rs", overlap=overlap)
        asked = replace(site, case=replace(case, settings=settings))
        assert type(_recipe(asked, PathName.SPLIT)) is expected
        assert type(_recipe(site, PathName.SPLIT)) is GatheredRecipe


def test_what_is_not_worth_fetching_or_needs_no_peer_goes_another_way() -> None:
    case = case_of("q7s40", 2)
    stand, (recipe, _) = opened(case)
    for batch in ("q6s40", "q7s7"):
        plans = recipe.prepare(Workload.parse(batch), stand.seats[0].table)
        assert [stage.name for stage in (*plans, *recipe.stages())] == ["smaller", "smaller"]
        assert not recipe.result(stand.seats[0].step.out).lse.any()


def test_without_context_it_fetches_too_where_the_exchange_is_not_to_be_left_out() -> None:
    case = case_of("q7s40", 2, skip_empty_context=False)
    stand, (recipe, _) = opened(case)
    assert recipe.prepare(Workload.parse("q7s7"), stand.seats[0].table.first((4,)))[0].name == "plan context"
