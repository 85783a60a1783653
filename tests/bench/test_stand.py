"""The test stand: every rank of a case with its shard and inputs, checked against the oracle."""

from __future__ import annotations

import math

import pytest
import torch

from bench import stand as stand_module
from bench.stand import Sequences, Stand, row_difference
from dcp_core import Case, DcpLayout, ModelShape, Settings, Workload
from dcp_core.kernels.reference import attend
from dcp_core.lse import Partial
from dcp_core.memory import cache_bytes
from dcp_core.mesh import Mesh
from dcp_core.oracle import attend_rows, judge
from tests.bench.cases import tiny

CPU = torch.device("cpu")


def simulated(batch: str = "q8s32", dcp: int = 4, **settings: object) -> Stand:
    stand = Stand(tiny(batch, dcp=dcp, **settings), Mesh.simulated(dcp), seed=0)
    stand.plan()
    return stand


@pytest.mark.parametrize("path", ["split", "mask", "fold"])
def test_every_rank_is_checked_on_every_row(path: str) -> None:
    stand = simulated("q8s25_q3s3", path=path)
    assert [seat.rank for seat in stand.seats] == [0, 1, 2, 3]
    check = stand.check()
    assert check.passed
    assert check.rows == 4 * 11


def test_checking_finds_a_key_that_is_not_the_rank_s_own() -> None:
    stand = simulated(path="fold")
    cache, table = stand.seats[2].step.cache, stand.seats[2].table
    cache.pages[int(table.indices[0]), 0, 1] += 0.5
    assert not stand.check().passed


def test_checking_finds_a_row_that_nobody_writes() -> None:
    stand = simulated()
    stand.launch()
    for seat in stand.seats:
        names = [stage.name for stage in seat.path.stages()]
        seat.path._stages = seat.path.stages()[: names.index("combine")]
    check = stand.check()
    assert not check.passed
    assert math.isnan(check.out_error)


def test_pages_that_no_request_uses_are_full_of_nan() -> None:
    stand = simulated("4q8s200", dcp=2)
    for seat in stand.seats:
        used = set(seat.table.indices.tolist())
        unused = [page for page in range(len(seat.step.cache.pages)) if page not in used]
        assert unused
        assert seat.step.cache.pages[unused].isnan().all()


def test_inputs_are_the_same_on_every_rank_and_differ_by_seed() -> None:
    case = tiny(dcp=2)
    one, same, other = (Sequences.draw(case, CPU, seed) for seed in (1, 1, 2))
    assert torch.equal(one.keys[0], same.keys[0])
    assert torch.equal(one.queries[1], same.queries[1])
    assert not torch.equal(one.keys[0], other.keys[0])
    assert not torch.equal(one.queries[0], one.queries[1])


def test_the_new_tokens_are_the_last_of_each_sequence() -> None:
    case = tiny("q2s5_q1s4_q3", dcp=2)
    drawn = Sequences.draw(case, CPU, 0)
    expected = torch.cat([drawn.keys[0][3:], drawn.keys[1][3:], drawn.keys[2]])
    assert torch.equal(drawn.new(case, drawn.keys), expected)


def test_the_fullest_rank_holds_most_keys_and_its_pages_are_counted() -> None:
    # 33 tokens over two ranks: 17 and 16, of which the first needs a second page.
    stand = simulated("q8s33", dcp=2)
    assert stand.fullest.rank == 0
    assert stand.kv_bytes == 2 * 16 * 2 * 16 * 4 == cache_bytes(stand.case)


def test_results_are_copies() -> None:
    stand = simulated(dcp=2)
    stand.launch()
    kept = stand.results()
    before = kept[1].out.clone()
    stand.seats[1].step.out.zero_()
    assert torch.equal(kept[1].out, before)


def test_the_difference_of_two_results_is_that_of_their_worst_row() -> None:
    generator = torch.Generator().manual_seed(0)
    out = torch.randn(5, 2, 8, generator=generator)
    one, lse = Partial(out, torch.zeros(5, 2)), torch.zeros(5, 2)
    changed = out.clone()
    changed[3, 1] *= 1.25
    assert row_difference(one, one) == 0
    assert row_difference(one, Partial(changed, lse)) == pytest.approx(0.2)
    changed[0, 0, 0] = math.nan
    assert math.isnan(row_difference(one, Partial(changed, lse)))
    assert row_difference(Partial(torch.zeros(1, 1, 2), lse[:1, :1]), Partial(torch.zeros(1, 1, 2), lse[:1, :1])) == 0


@pytest.mark.parametrize(("keys_more", "right"), [(0, True), (-1, False), (1, False)])
def test_one_key_too_many_or_too_few_shows_in_a_row_of_32k(keys_more: int, right: bool) -> None:
    workload = Workload.parse("q4s32k")
    settings = Settings(path="split", kernel="reference", exchange="loopback")
    case = Case(ModelShape(16, 1, 128), DcpLayout(2, 2), workload, settings)
    drawn = Sequences.draw(case, torch.device("cpu"), seed=0)
    rows = torch.arange(4)
    truth = attend_rows(drawn.queries[0], drawn.keys, drawn.values, workload, rows)
    found = Partial.empty(4, 8, 128, dtype=torch.bfloat16, device=torch.device("cpu"))
    for row in rows.tolist():
        seen = min(workload.requests[0].context + row + 1 + keys_more, workload.requests[0].total)
        into = Partial(found.out[row : row + 1], found.lse[row : row + 1])
        attend(drawn.queries[0][row : row + 1], drawn.keys[0][:seen], drawn.values[0][:seen], seen=None, into=into)
    assert judge(found, truth).passed is right


def test_cases_of_one_batch_share_inputs_and_the_oracle_s_answer_but_not_across_page_borders() -> None:
    mesh, first = Mesh.simulated(2), tiny("q8s25_q3s3", dcp=2, path="fold")
    one = Stand(first, mesh, seed=0)
    other = Stand(tiny("q8s25_q3s3", dcp=2, path="mask", page_size=1), mesh, 0, one.sequences)
    assert other.sequences is one.sequences
    for stand in (one, other):
        stand.plan()
        assert stand.check().passed
    truth = one.sequences.truth(first, 1, 0)
    assert truth is one.sequences.truth(first, 1, 0)
    assert truth is not one.sequences.truth(other.case, 1, 0)


def test_a_batch_larger_than_a_portion_is_laid_out_in_several(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stand_module, "LAID_OUT_TOGETHER", 30)
    assert list(stand_module._portions([25, 3, 64, 1, 2])) == [[0, 1], [2], [3, 4]]
    assert simulated("q8s25_q3s3_q1s64_2q1s2", path="mask").check().passed
