"""Planning: once per batch, any number of times, and every mistake in a sentence."""

from __future__ import annotations

import pytest
import torch

from dcp_core.build import SimulatedPath, open_path
from dcp_core.cache import PagedCache, PageTable, slot_mapping
from dcp_core.mesh import Mesh
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
    with pytest.raises(ValueError, match="needs both decodes and longer requests; q8s25 has one kind"):
        longer.plan_on(Group(case("q1s25_q8s25", dcp=2, path="split")).path)


@pytest.mark.parametrize("mesh", [Mesh.alone("cpu"), Mesh.simulated(3, "cpu")])
def test_a_mesh_of_another_size_is_refused(mesh: Mesh) -> None:
    with pytest.raises(ValueError, match=f"dcp 2 needs a mesh of as many ranks, not {mesh.size}"):
        open_path(case("q8s25", dcp=2, path="split"), mesh)
