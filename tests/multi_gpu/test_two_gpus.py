"""Exchanges and paths between two GPUs: the same as on paper, launched or replayed from a graph."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest
import torch

from bench.audit import NULL, Audited
from bench.measure import measure
from bench.policy import Policy
from bench.record import Label, Measured
from bench.referee import audit
from bench.stand import Stand, row_difference
from bench.worker import group_for
from dcp_core.check import Check
from dcp_core.layout import DcpLayout
from dcp_core.lse import LseBase
from dcp_core.mesh import Mesh
from dcp_core.oracle import judge
from dcp_core.settings import Case, ExchangeName, IllegalSettings, Settings
from dcp_core.shapes import ModelShape, Workload
from tests.dcp_core.exchange.made_partials import Exchanged, Traffic, agree, exchange, looped_back
from tests.gpu.test_referee import SHORT_US
from tests.ranks import on_ranks

pytestmark = pytest.mark.multi_gpu

RANKS = 2
EXCHANGES = (ExchangeName.AG_RS, ExchangeName.A2A, ExchangeName.DIRECT)
TRAFFIC = {
    "one KV head": Traffic(dcp=RANKS, query=8, kv=1, dtype="bfloat16", head_dim=128),
    "several KV heads": Traffic(dcp=RANKS, query=6, kv=3, dtype="bfloat16", head_dim=64),
    "one token": Traffic(dcp=RANKS, tokens=1, empty=False, dtype="bfloat16", head_dim=128),
    "float16, base two": Traffic(dcp=RANKS, dtype="float16", base=LseBase.TWO, head_dim=256),
    "float32": Traffic(dcp=RANKS, head_dim=64),
}
BATCHES = (
    "8q1s1037",
    "q128s4001",
    "q4s133_q17s130_q2s3",
    "q512",
    "q7s9_q1s17_q4s600",
    "16q1s900_q700s1900",
    "q2300s6000",
)
PATHS = ("decode", "split", "mask", "fold")
WAYS = ((False, "separate"), (True, "separate"), (False, "shared"))
"""To go through ``split``: new tokens beside the gather or after it, and one exchange for decodes and the others."""
POLICY = Policy(precision=0.1, max_samples=60, max_seconds=1.0)
TRACING = replace(POLICY, trace=True)


def exchange_everything(mesh: Mesh) -> dict[tuple[str, ExchangeName], Exchanged]:
    assert (mesh.backend, mesh.device.type, mesh.composed) == ("nccl", "cuda", frozenset())
    return {(name, which): exchange(mesh, traffic, which) for name, traffic in TRAFFIC.items() for which in EXCHANGES}


@pytest.fixture(scope="module")
def exchanged() -> list[dict[tuple[str, ExchangeName], Exchanged]]:
    return on_ranks(RANKS, exchange_everything, cuda=True)


@pytest.mark.parametrize("which", EXCHANGES)
@pytest.mark.parametrize("name", TRAFFIC)
def test_an_exchange_gives_what_the_loopback_gives(
    exchanged: list[dict[tuple[str, ExchangeName], Exchanged]], name: str, which: ExchangeName
) -> None:
    for got, expected in zip(exchanged, looped_back(TRAFFIC[name]), strict=True):
        assert torch.equal(got[name, which].gathered, expected.gathered)
        agree(got[name, which].combined, expected.combined, TRAFFIC[name], which)
        agree(got[name, which].into, expected.combined, TRAFFIC[name], which)


def cases() -> Iterator[Case]:
    """Yield every path and exchange on every batch that it serves: Qwen3-235B's geometry at tp 8, dcp 2."""
    shape, layout = ModelShape(16, 1, 128), DcpLayout(RANKS, RANKS)
    fetched = {"path": "split", "kernel": "fa3", "new_kernel": "fa2", "exchange": "direct", "overlap": True}
    for batch in ("3q700s1500_q400s4000", "q2500s2501"):
        several = ModelShape(16 * RANKS, 2, 128)
        yield Case(several, DcpLayout(2 * RANKS, RANKS), Workload.parse(batch), Settings.from_json(fetched))
    for batch in BATCHES:
        for path in PATHS:
            for which in EXCHANGES:
                for overlap, batching in WAYS if path == "split" else WAYS[:1]:
                    data = {"path": path, "kernel": "fa2", "exchange": which, "overlap": overlap, "batching": batching}
                    try:
                        yield Case(shape, layout, Workload.parse(batch), Settings.from_json(data))
                    except IllegalSettings:
                        continue


@dataclass(frozen=True)
class Ran:
    """What one rank saw of a case: its check as launched, and how far a replay of a captured graph is from that."""

    check: Check
    replay_difference: float


def run_everything(mesh: Mesh) -> list[Ran]:
    return [run_and_replay(case, mesh) for case in cases()]


def run_and_replay(case: Case, mesh: Mesh) -> Ran:
    stand = Stand(case, mesh, seed=0)
    stand.plan()
    check = stand.check()
    (launched,) = stand.results()
    (seat,) = stand.seats
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        seat.launch()
    seat.step.out.fill_(float("nan"))
    mesh.align()
    graph.replay()
    torch.cuda.synchronize()
    (replayed,) = stand.results()
    return Ran(check, row_difference(launched, replayed))


@pytest.fixture(scope="module")
def ran() -> list[list[Ran]]:
    return on_ranks(RANKS, run_everything, cuda=True)


@pytest.mark.parametrize("index", range(len(list(cases()))))
def test_a_path_is_right_launched_and_replayed(index: int, ran: list[list[Ran]]) -> None:
    for rank in range(RANKS):
        found = ran[rank][index]
        assert found.check.passed, f"{list(cases())[index]}: {found.check}"
        assert found.replay_difference == 0.0


FOLLOWING = (
    ("decode", "8q1s4k", "8q1s3001"),
    ("split", "4q8s4k", "4q8s3001"),
    ("split", "q2100s6000", "q2100s4001"),
    ("mask", "4q8s4k", "4q8s3001"),
    ("fold", "4q7s4k", "4q7s3001"),
)
"""Paths that serve the next batch of a size from one graph, with a batch to capture and one to replay it for."""


def replay_for_another_batch(mesh: Mesh) -> list[Check]:
    return [replayed_for(mesh, *following, which) for following in FOLLOWING for which in EXCHANGES]


def replayed_for(mesh: Mesh, path: str, first: str, second: str, which: ExchangeName) -> Check:
    """Capture a step of one batch, plan another, replay the graph, and compare what it gives with the oracle."""
    overlap = path == "split" and which is ExchangeName.DIRECT
    settings = Settings.from_json(
        {"path": path, "kernel": "fa2", "exchange": which, "replayable": True, "overlap": overlap}
    )
    captured, following = (
        Stand(Case(ModelShape(16, 1, 128), DcpLayout(RANKS, RANKS), Workload.parse(batch), settings), mesh, seed=0)
        for batch in (first, second)
    )
    captured.plan()
    captured.launch()
    ((seat,), (other,)) = captured.seats, following.seats
    torch.cuda.synchronize()
    mesh.barrier()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        seat.launch()
    seat.path.plan(following.case.workload, other.table)
    seat.step.cache.pages[: len(other.step.cache.pages)].copy_(other.step.cache.pages)
    for tensor in ("q", "k_new", "v_new"):
        getattr(seat.step, tensor).copy_(getattr(other.step, tensor))
    seat.step.out.fill_(float("nan"))
    mesh.align()
    graph.replay()
    torch.cuda.synchronize()
    return judge(seat.result(), following.sequences.truth(following.case, mesh.rank, seed=0))


@pytest.fixture(scope="module")
def replayed() -> list[list[Check]]:
    return on_ranks(RANKS, replay_for_another_batch, cuda=True)


@pytest.mark.parametrize("index", range(len(FOLLOWING) * len(EXCHANGES)))
def test_a_replayed_graph_serves_the_next_batch_of_its_size(index: int, replayed: list[list[Check]]) -> None:
    for rank in range(RANKS):
        assert replayed[rank][index].passed, replayed[rank][index]


def measure_one(mesh: Mesh) -> Measured:
    case = next(case for case in cases() if case.settings.exchange is ExchangeName.A2A)
    group = group_for(case, mesh)
    assert group is mesh
    outcome = measure(case, mesh, POLICY)
    assert isinstance(outcome, Measured), outcome
    return outcome


def test_a_measurement_on_two_gpus_times_both_and_the_exchange() -> None:
    first, second = on_ranks(RANKS, measure_one, cuda=True)
    for found in (first, second):
        assert found.label is Label.MEASURED
        assert found.exchange_timed
        assert found.timer == "cuda_graph_events"
        assert len(found.rank_samples_us) == RANKS
        assert not any("composed" in flag or "synthetic" in flag for flag in found.flags)
    assert first.step_us == second.step_us


def measure_overlapped(mesh: Mesh) -> Measured:
    """Measure a prefill that is large enough to be exchanged by copy engines."""
    settings = Settings.from_json({"path": "split", "kernel": "fa2", "exchange": "direct", "overlap": True})
    case = Case(ModelShape(16, 1, 128), DcpLayout(RANKS, RANKS), Workload.parse("q8ks32k"), settings)
    outcome = measure(case, mesh, TRACING)
    assert isinstance(outcome, Measured), outcome
    return outcome


def test_the_timeline_of_a_prefill_shows_what_is_exchanged_beside_attention_and_is_as_long_as_its_step() -> None:
    first, second = on_ranks(RANKS, measure_overlapped, cuda=True)
    names = ["gather beside context", "context of peers", "combine beside new"]
    assert [stage.name for stage in first.stages[: len(names)]] == names
    assert [stage.variant for stage in first.stages[: len(names)]] == ["copy engines", "", "copy engines"]
    assert first.timeline, "CUPTI saw nothing, or never as much twice"
    assert first.timeline == second.timeline
    exchange = [piece for piece in first.timeline if piece.communicates]
    compute = [piece for piece in first.timeline if not piece.communicates]
    names = [piece.name for piece in exchange]
    assert [name for name in names if not name.lower().startswith("memcpy")] == ["meet_once", "meet_once", "_combine"]
    copies = [piece for piece in exchange if piece.name == "Memcpy PtoP"]
    assert len(copies) == 3 * (RANKS - 1), "a rank fetches queries, outputs and LSEs of every other"
    assert any(one.start_us < other.end_us and other.start_us < one.end_us for one in copies for other in compute)
    assert max(piece.end_us for piece in first.timeline) == pytest.approx(first.step_us.median, rel=0.1)


def measure_others(mesh: Mesh) -> dict[tuple[ExchangeName, bool], Measured]:
    found = {}
    for case in cases():
        settings = case.settings
        if (settings.path, str(case.workload)) == (
            "split",
            "q128s4001",
        ) and settings.exchange is not ExchangeName.DIRECT:
            outcome = measure(case, mesh, TRACING)
            assert isinstance(outcome, Measured), outcome
            found[settings.exchange, settings.overlap] = outcome
    return found


def test_only_a_step_that_overlaps_has_a_timeline_and_the_rendezvous_is_not_in_it() -> None:
    first, _ = on_ranks(RANKS, measure_others, cuda=True)
    assert len(first) == 4
    for (_, overlap), outcome in first.items():
        assert bool(outcome.timeline) == overlap
        assert not any("AllReduce" in piece.name for piece in outcome.timeline)
    for which, own in ((ExchangeName.AG_RS, "_rescale"), (ExchangeName.A2A, "_combine")):
        exchange = [piece.name for piece in first[which, True].timeline if piece.communicates]
        assert own in exchange
        assert any(name.startswith("nccl") for name in exchange)


def audit_everything(mesh: Mesh) -> dict[ExchangeName, list[Audited]]:
    found = {}
    for which in EXCHANGES:
        settings = Settings.from_json({"path": "decode", "kernel": "fa2", "exchange": which})
        case = Case(ModelShape(16, 1, 128), DcpLayout(RANKS, RANKS), Workload.parse("8q1s32k"), settings)
        audited = audit(case, mesh, POLICY)
        assert isinstance(audited, list), audited
        found[which] = audited
    return found


def test_two_timers_agree_on_an_exchange_between_ranks_and_on_the_step_with_it() -> None:
    first, second = on_ranks(RANKS, audit_everything, cuda=True)
    assert first == second
    for timed in first.values():
        null, step, *stages = timed
        assert (null.stage, null.kernels, step.stage) == (NULL, 1, "step")
        assert {"gather", "combine"} <= {each.stage for each in stages}
        assert all(each.agrees or (each.is_short(null) and abs(each.apart_us) < SHORT_US) for each in timed[1:]), timed
