"""Whole paths over FlashInfer on one device: every rank of a simulated group, against the oracle and against each other."""

from __future__ import annotations

import pytest
import torch

from bench.stand import Stand, row_difference
from dcp_core import Case, DcpLayout, ModelShape, Settings, Workload
from dcp_core.mesh import Mesh

pytestmark = pytest.mark.gpu


def stand_of(batch: str, *, dcp: int, query: int = 8, kv: int = 1, interleave: int = 1, **settings: str) -> Stand:
    """Lay a group of ``dcp`` ranks out on the device, ``query`` heads over ``kv`` KV heads on each, and plan the batch."""
    layout = DcpLayout(dcp, dcp, interleave)
    chosen = Settings.from_json({"exchange": "loopback" if dcp > 1 else "alone", **settings})
    case = Case(ModelShape(query * dcp, kv, 128), layout, Workload.parse(batch), chosen)
    stand = Stand(case, Mesh.simulated(dcp, "cuda") if dcp > 1 else Mesh.alone("cuda"), seed=0)
    stand.plan()
    return stand


@pytest.mark.parametrize("kernel", ["fa2", "fa3"])
def test_fold_of_32768_new_tokens_without_context_dcp_2_rank_1(kernel: str) -> None:
    folded = stand_of("q32k", dcp=2, path="fold", kernel=kernel)
    assert folded.check().passed
    split = stand_of("q32k", dcp=2, path="split", kernel=kernel)
    check = split.check()
    assert check.passed
    # No rank holds a key that the first row could see, and there are as many rows as keys.
    assert row_difference(folded.results()[1], split.results()[1]) <= 2 * check.out_budget


@pytest.mark.parametrize("kernel", ["fa2", "fa3"])
@pytest.mark.parametrize("batch", ["q1s1", "q2s3", "q9s9", "q40s42", "q5s5_q1s3_q17s130_q3s4", "q64_q7s9_q1s2"])
@pytest.mark.parametrize(("dcp", "kv"), [(2, 1), (4, 1), (8, 1), (3, 2)])
def test_fold_where_the_context_is_shorter_than_the_rank(kernel: str, batch: str, dcp: int, kv: int) -> None:
    stand = stand_of(batch, dcp=dcp, kv=kv, path="fold", kernel=kernel, batching="joined")
    check = stand.check()
    assert check.passed, check
    assert check.rows == stand.case.workload.new_tokens * dcp  # every row, on every rank


@pytest.mark.parametrize("interleave", [1, 16])
@pytest.mark.parametrize(
    "settings",
    [
        {"path": "decode", "kernel": "fa2"},
        {"path": "decode", "kernel": "cuda_core"},
        {"path": "split", "kernel": "fa2"},
        {"path": "split", "kernel": "fa3", "new_kernel": "fa2"},
        {"path": "mask", "kernel": "fa2", "mask_form": "bool"},
        {"path": "mask", "kernel": "fa2", "mask_form": "packed"},
        {"path": "mask", "kernel": "fa2", "mask_form": "computed"},
    ],
    ids=lambda settings: "-".join(settings.values()),
)
def test_paths_over_odd_batches(settings: dict[str, str], interleave: int) -> None:
    batch = "3q1s37_q1s2_2q1s401" if settings["path"] == "decode" else "q5s5_q1s3_q17s130_q1s64_q2s3"
    query = 4 if settings["kernel"] == "cuda_core" else 8  # it takes no head group of 32
    check = stand_of(batch, dcp=4, query=query, interleave=interleave, **settings).check()
    assert check.passed, check


@pytest.mark.parametrize("path", ["tp", "decode", "split", "mask", "fold"])
def test_a_captured_step_gives_what_an_eager_one_gives(path: str) -> None:
    # Of one rank, which writes all of its result itself. Real groups are captured in tests/multi_gpu.
    stand = stand_of("8q1s4k" if path == "decode" else "4q4s4k", dcp=1, path=path, kernel="fa2")
    (seat,) = stand.seats
    seat.launch()
    eager = seat.result().out.clone()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        seat.launch()
    seat.step.out.fill_(float("nan"))
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(seat.step.out, eager)


@pytest.mark.parametrize("kernel", ["fa2", "fa3"])
@pytest.mark.parametrize("batch", ["q2ks8k", "5q1s4k_3q300s5k", "q4s70k"])
def test_new_tokens_beside_the_gather_give_bit_for_bit_what_they_give_after_it(kernel: str, batch: str) -> None:
    settings = {"path": "split", "kernel": kernel, "batching": "joined"}
    before, beside = (stand_of(batch, dcp=2, overlap=overlap, **settings) for overlap in ("false", "true"))
    assert before.check().passed
    for _ in range(20):  # two streams race anew each time
        assert beside.check().passed
        for one, other in zip(before.results(), beside.results(), strict=True):
            assert torch.equal(one.out, other.out)
            assert torch.equal(one.lse, other.lse)
    assert [stage.name for stage in beside.fullest.path.stages()] == [
        "gather beside new",
        "context",
        "combine",
        "merge",
    ]


@pytest.mark.parametrize(
    ("path", "first", "second"),
    [
        ("decode", "8q1s4k", "8q1s3001"),
        ("split", "4q8s4k", "4q8s3001"),
        ("mask", "4q8s4k", "4q8s3001"),
        ("fold", "4q8s4k", "4q8s3001"),
    ],
)
def test_a_replayed_graph_serves_the_next_batch_of_its_size(path: str, first: str, second: str) -> None:
    stand = stand_of(first, dcp=1, path=path, kernel="fa2", replayable="true")
    (seat,) = stand.seats
    seat.launch()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        seat.launch()
    following = stand_of(second, dcp=1, path=path, kernel="fa2")
    assert following.check().passed
    (other,) = following.seats
    seat.path.plan(following.case.workload, other.table)
    seat.step.cache.pages[: len(other.step.cache.pages)].copy_(other.step.cache.pages)
    for tensor in ("q", "k_new", "v_new"):
        getattr(seat.step, tensor).copy_(getattr(other.step, tensor))
    seat.step.out.fill_(float("nan"))
    graph.replay()
    torch.cuda.synchronize()
    # Plans for graphs split keys in other places, so that sums are rounded otherwise.
    assert row_difference(seat.result(), other.result()) <= 0.01


def test_a_graph_of_folded_queries_serves_no_batch_that_folds_otherwise() -> None:
    stand = stand_of("4q8s4k", dcp=2, path="fold", kernel="fa2", replayable="true")
    following = stand_of("2q12s4k_2q4s4k", dcp=2, path="fold", kernel="fa2")
    with pytest.raises(ValueError, match="takes as many new tokens of each request"):
        stand.seats[0].path.plan(following.case.workload, following.seats[0].table)
