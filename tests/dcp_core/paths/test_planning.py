"""Planning: once per batch, any number of times, and every mistake in a sentence."""

from __future__ import annotations

import pytest
import torch

from dcp_core.build import SimulatedPath, open_path
from dcp_core.cache import PagedCache, PageTable, slot_mapping
from dcp_core.mesh import Mesh
from dcp_core.settings import KvLayout
from tests.dcp_core.paths.group import HEAD_DIM, Group, case

PATHS = ["split", "mask", "fold"]


@pytest.mark.parametrize("path", PATHS)
def test_a_path_is_planned_again_for_another_batch(path: str) -> None:
    first, second = (Group(case(batch, dcp=3, path=path)) for batch in ("q8s25_q17s40", "q40s300_q2s2_q5s6"))
    for group in (first, second, first):
        group.plan_on(first.path)
        assert group.judge(group.run(first.path)).passed


def test_split_finds_its_way_back_from_a_batch_without_context() -> None:
    first, second = (Group(case(batch, dcp=3, path="split")) for batch in ("q8_q17", "q8s25_q17s40"))
    for group in (first, second, first):
        group.plan_on(first.path)
        assert group.judge(group.run(first.path)).passed


def test_a_mixed_batch_is_planned_again_with_its_requests_elsewhere() -> None:
    first, second = (Group(case(batch, dcp=2, path="fold")) for batch in ("2q1s17_q7s9", "q7s9_q1s17_q30s44_5q1s3"))
    for group in (first, second, first):
        group.plan_on(first.path)
        assert group.judge(group.run(first.path)).passed


def test_short_prompts_are_planned_again_with_their_rows_cut_elsewhere() -> None:
    first, second = (Group(case(batch, dcp=4, path="fold")) for batch in ("q2_q3", "q3_q2"))
    for group in (first, second, first):
        group.plan_on(first.path)
        assert group.judge(group.run(first.path)).passed


@pytest.mark.parametrize("path", ["decode", *PATHS])
def test_one_plan_serves_every_layer(path: str) -> None:
    group = Group(case("4q1s37", dcp=2, path=path)).plan()
    first = [result.out.clone() for result in group.run()]
    assert all(torch.equal(one, other.out) for one, other in zip(first, group.run(), strict=True))
    assert group.judge(group.run()).passed


@pytest.mark.parametrize("path", PATHS)
def test_without_a_table_pages_are_taken_in_order(path: str) -> None:
    group = Group(case("q8s25_q17s40", dcp=2, path=path))
    layout, totals = group.case.layout, group.case.workload.total_lens
    caches = []
    for rank in range(2):
        table = PageTable.over([layout.local_len(total, rank) for total in totals], 16)
        cache = PagedCache.allocate(4, page_size=16, kv_heads=2, head_dim=HEAD_DIM, dtype=torch.float32)
        slots = slot_mapping(totals, totals, table, layout, rank)
        cache.append(torch.cat(group.inputs.keys), torch.cat(group.inputs.values), slots)
        caches.append(cache)
    assert isinstance(group.path, SimulatedPath)
    group.path.plan(group.case.workload)
    outs = [torch.full_like(q, float("nan")) for q in group.inputs.queries]
    k_new, v_new = group.new(group.inputs.keys), group.new(group.inputs.values)
    assert group.judge(group.path.run(group.inputs.queries, k_new, v_new, caches, outs)).passed


def test_the_result_is_what_was_handed_in_with_a_natural_lse() -> None:
    for path in PATHS:
        group = Group(case("q8s25", dcp=2, path=path)).plan()
        for result, q in zip(group.run(), group.inputs.queries, strict=True):
            assert result.out.shape == q.shape
            assert result.lse.shape == q.shape[:-1]
            assert result.lse.dtype == torch.float32


@pytest.mark.parametrize("path", ["tp", "decode", *PATHS])
def test_a_step_before_any_plan_is_refused(path: str) -> None:
    group = Group(case("3q1s37", dcp=1 if path == "tp" else 2, path=path))
    with pytest.raises(ValueError, match=f"path {path} runs a step only after plan"):
        group.run()


def test_a_table_for_other_lengths_is_refused() -> None:
    group = Group(case("q8s25", dcp=2, path="split"))
    with pytest.raises(ValueError, match=r"rank 0 holds \(13,\) tokens in pages of 16; the table is for \(25,\)"):
        group.path.plan(group.case.workload, [PageTable.over([25], 16)] * 2)
    with pytest.raises(ValueError, match=r"the table is for .* in pages of 8"):
        group.path.plan(group.case.workload, [PageTable.over([13], 8), PageTable.over([12], 8)])
    with pytest.raises(ValueError, match="a group of 2 needs as many page tables, one per rank, not 1"):
        group.path.plan(group.case.workload, [PageTable.over([13], 16)])


def test_a_batch_that_a_path_cannot_serve_is_refused_by_plan() -> None:
    longer = Group(case("q8s25", dcp=2, path="split"))
    with pytest.raises(ValueError, match="decode takes one new token per request, the batch has 8"):
        longer.plan_on(Group(case("q1s25", dcp=2, path="decode")).path)


def test_after_a_refused_plan_no_step_runs_on_what_was_planned_before() -> None:
    group = Group(case("3q1s37", dcp=1, path="tp")).plan()
    longer = Group(case("q3s37", dcp=1, path="tp"))
    with pytest.raises(ValueError, match="takes one query per request"):
        longer.plan_on(group.path)
    with pytest.raises(ValueError, match="path tp runs a step only after plan"):
        longer.run(group.path)
    (path,) = group.ranks()
    first, *_ = path.prepare(group.case.workload, group.tables[0])
    with pytest.raises(ValueError, match="path tp runs a step only after plan"):
        group.run()
    first.run()
    assert group.judge(group.run()).passed


@pytest.mark.parametrize("batching", ["separate", "shared"])
@pytest.mark.parametrize("path", PATHS)
def test_a_path_opened_for_both_kinds_serves_each_alone_too(path: str, batching: str) -> None:
    opened = Group(case("q1s25_q8s25", dcp=2, path=path, batching=batching)).path
    for batch in ("3q1s37", "q8s25_q17s40", "q1s25_q8s25", "q2s2", "q1s1"):
        group = Group(case(batch, dcp=2, path=path))
        group.plan_on(opened)
        assert group.judge(group.run(opened)).passed


@pytest.mark.parametrize("dcp", [1, 2])
def test_the_result_of_a_batch_before_is_left_alone(dcp: int) -> None:
    first, second = (Group(case(batch, dcp=dcp, path="split")) for batch in ("q4", "q4s9"))
    first.plan_on(first.path)
    results = [result.out for result in first.run()]
    kept = [result.clone() for result in results]
    second.plan_on(first.path)
    assert second.judge(second.run(first.path)).passed
    assert all(torch.equal(mine, then) for mine, then in zip(results, kept, strict=True))


@pytest.mark.parametrize("path", PATHS)
def test_ranks_of_a_single_query_head_are_right(path: str) -> None:
    for batch in ("q2s4", "2q8s40", "q7s9_q4s600"):
        assert Group(case(batch, dcp=2, path=path, heads=(1, 1))).check().passed


def test_a_simulated_group_takes_one_of_each_per_rank() -> None:
    group = Group(case("q8s25", dcp=2, path="split")).plan()
    assert isinstance(group.path, SimulatedPath)
    assert group.path.case == group.case
    assert [stage.name for stage in group.path.stages()] == group.stage_names()
    queries = list(group.inputs.queries)
    new = group.new(group.inputs.keys)
    for name, given in {"q": (queries[:1], 2, 2), "caches": (queries, 3, 2), "out": (queries, 2, 1)}.items():
        q, caches, outs = given
        with pytest.raises(ValueError, match=f"a group of 2 needs as many {name}, one per rank, not"):
            group.path.run(q, new, new, [group.caches[0]] * caches, [torch.empty_like(queries[0])] * outs)


@pytest.mark.parametrize("wrong", ["page size", "layout", "dtype", "pages"])
def test_a_cache_that_is_not_the_cases_is_refused(wrong: str) -> None:
    group = Group(case("q8s99", dcp=1, path="tp", heads=(4, 2), page_size=2)).plan()
    cache = group.caches[0]
    sizes = {"page_size": 2, "kv_heads": 2, "head_dim": HEAD_DIM, "dtype": torch.float32}
    other = {
        "page size": lambda: PagedCache.allocate(99, **sizes | {"page_size": 8}),
        "layout": lambda: PagedCache.allocate(99, **sizes, kv_layout=KvLayout.HND),
        "dtype": lambda: PagedCache.allocate(99, **sizes | {"dtype": torch.float16}),
        "pages": lambda: PagedCache(cache.pages[:3], cache.kv_layout),
    }[wrong]()
    group.caches = (other,)
    sentence = "and the cache has 3" if wrong == "pages" else r"the cache of this case has pages \[2, 2, 2, 16\] NHD"
    with pytest.raises(ValueError, match=sentence):
        group.run()


@pytest.mark.parametrize("mesh", [Mesh.alone("cpu"), Mesh.simulated(3, "cpu")])
def test_a_mesh_of_another_size_is_refused(mesh: Mesh) -> None:
    with pytest.raises(ValueError, match=f"dcp 2 needs a mesh of as many ranks, not {mesh.size}"):
        open_path(case("q8s25", dcp=2, path="split"), mesh)
