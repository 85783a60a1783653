"""A worker: takes orders one a line, turns whatever happens into an answer, and stays warm."""

from __future__ import annotations

import gc
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import pytest
import torch

from bench import worker
from bench.measure import verify
from bench.orders import REPLY_VARIABLE, SUPERVISOR_VARIABLE, Order
from bench.policy import Policy
from bench.record import Failed, Outcome, Skipped, Verified
from bench.worker import Companion, group_for
from dcp_core.check import Check
from dcp_core.lse import Partial
from dcp_core.mesh import Mesh
from dcp_core.settings import Case
from tests.bench.cases import QUICK, tiny

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _thawed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let objects be collected again that a worker froze; a worker here is alone on the CPU, whatever is there."""
    monkeypatch.setattr(worker.Mesh, "from_env", Mesh.alone)
    yield
    gc.unfreeze()


def order(what: Order, case: Case) -> dict[str, Any]:
    return {"do": str(what), "case": case.to_json(), "policy": asdict(QUICK)}


def answers(monkeypatch: pytest.MonkeyPatch, *orders: dict[str, Any]) -> list[dict[str, Any]]:
    """Serve orders in this process, and return every answer."""
    read_end, write_end = os.pipe()
    monkeypatch.setenv(REPLY_VARIABLE, str(write_end))
    monkeypatch.setattr("sys.stdin", io.StringIO("".join(json.dumps(one) + "\n" for one in orders)))
    worker.main()
    with os.fdopen(read_end) as replies:
        return [json.loads(line) for line in replies]


def test_a_worker_says_that_it_is_ready_and_answers_every_order_with_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    found = answers(
        monkeypatch,
        {"do": "probe"},
        order(Order.VERIFY, tiny()),
        order(Order.MEASURE, tiny(dcp=3, path="fold")),
        order(Order.MEASURE, tiny(dcp=2, exchange="ag_rs")),
    )
    ready, probed, verified, measured, skipped = found
    assert ready == {"ready": 0}
    assert probed["probe"]["kernels"]["reference"] == ""
    assert Check(**verified["outcome"]["check"]).passed
    assert measured["outcome"]["kind"] == "measured"
    assert measured["outcome"]["label"] == "simulated"
    assert measured["ranks"] == 1
    assert skipped["outcome"]["kind"] == "skipped"
    assert "2 real ranks" in skipped["outcome"]["reason"]
    assert not any(answer["poisoned"] for answer in found[2:])


@pytest.mark.parametrize(
    ("error", "fault", "message"),
    [
        (ZeroDivisionError("a bug"), "error", "ZeroDivisionError: a bug"),
        (torch.OutOfMemoryError("no room\nand a long table"), "out_of_memory", "no room"),
    ],
)
def test_an_error_is_an_outcome_and_the_next_case_is_right(
    monkeypatch: pytest.MonkeyPatch, error: Exception, fault: str, message: str
) -> None:
    real = worker.measure

    def fail_once(case: Case, mesh: Mesh, policy: Policy) -> Outcome:
        monkeypatch.setattr(worker, "measure", real)
        raise error

    monkeypatch.setattr(worker, "measure", fail_once)
    _, failed, right = answers(monkeypatch, order(Order.MEASURE, tiny()), order(Order.MEASURE, tiny()))
    assert (failed["outcome"]["fault"], failed["outcome"]["message"]) == (fault, message)
    assert ("fail_once" in failed["outcome"]["traceback"]) == (fault == "error")
    assert right["outcome"]["kind"] == "measured"


def test_probing_says_why_each_kernel_and_exchange_does_not_run() -> None:
    found = worker.probe(Mesh.alone())
    assert found["kernels"].keys() == {"reference", "fa2", "fa3", "auto", "cuda_core", "persistent"}
    assert [name for name, why in found["kernels"].items() if not why] == ["reference"]
    assert found["exchanges"]["ag_rs"] == found["exchanges"]["a2a"] == "needs at least two ranks: start with --ranks N"
    assert set(found["flashinfer_exchanges"].values()) == {"needs CUDA devices, and this rank runs on cpu"}
    assert (found["device"], found["backend"], found["ranks"]) == ("cpu", "none", 1)


# --- Which ranks run a case -----------------------------------------------------------------------------------------


def test_a_rank_alone_runs_what_needs_no_peer_and_simulates_the_rest() -> None:
    mesh = Mesh.alone()
    assert group_for(tiny(), mesh) is mesh
    simulated = group_for(tiny(dcp=3), mesh)
    assert simulated is not None
    assert (simulated.size, simulated.is_simulated) == (3, True)


def test_of_two_ranks_one_is_idle_where_a_case_needs_or_simulates_fewer() -> None:
    first, second = (Mesh(rank, 2, CPU) for rank in (0, 1))
    for case in (tiny(), tiny(dcp=2, exchange="loopback"), tiny(dcp=3, exchange="ag_rs")):
        assert group_for(case, second) is None
        assert group_for(case, first) is not None
    for rank in (first, second):
        assert group_for(tiny(dcp=2, exchange="ag_rs"), rank) is rank


# --- Paths against each other ---------------------------------------------------------------------------------------


@dataclass
class Told:
    """A stand that was told its results."""

    rows: list[Partial]
    sequences: None = None

    def results(self) -> list[Partial]:
        return self.rows


def told(*scales: float) -> Told:
    out = torch.randn(6, 2, 8, generator=torch.Generator().manual_seed(1))
    return Told([Partial(out * scale, torch.zeros(6, 2)) for scale in scales])


PASSED = Check(rows=6, out_error=1e-4, out_budget=1e-3, lse_error=0.0, lse_budget=1.0)


def compare(monkeypatch: pytest.MonkeyPatch, *verified: tuple[Case, Told, Check]) -> list[Verified | Outcome]:
    companion, mesh, found = Companion(), Mesh.alone(), []
    for case, stand, check in verified:
        monkeypatch.setattr(worker, "verify", lambda *_, it=(stand, check), **__: it)
        found.append(companion.verify(case, mesh, QUICK))
    return found


def test_a_path_that_differs_from_the_one_before_fails_though_both_are_within_budget(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one, other = tiny(dcp=2, path="split"), tiny(dcp=2, path="fold")
    found = compare(monkeypatch, (one, told(1.0, 1.0), PASSED), (other, told(1.0, 1.01), PASSED))
    assert found[0] == Verified(PASSED)
    assert isinstance(found[1], Failed)
    assert found[1].fault == "differs"
    assert "path split" in found[1].message


def test_paths_of_other_batches_or_within_twice_the_budget_are_not_held_against_each_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    near, far = told(1.0, 1.001), told(2.0, 2.0)
    split, fold, other = tiny(dcp=2, path="split"), tiny(dcp=2, path="fold"), tiny("q9s32", dcp=2, path="fold")
    found = compare(monkeypatch, (split, told(1.0, 1.0), PASSED), (fold, near, PASSED), (other, far, PASSED))
    assert [verified.check for verified in found if isinstance(verified, Verified)] == [PASSED] * 3
    first, second, third = (verified.apart for verified in found if isinstance(verified, Verified))
    assert (first, third) == (None, None)
    assert second is not None
    assert 0.4 < second < 0.6  # a thousandth away, where each may err by as much


def test_a_path_with_nan_differs(monkeypatch: pytest.MonkeyPatch) -> None:
    case = tiny(dcp=2)
    found = compare(monkeypatch, (case, told(1.0, 1.0), PASSED), (case, told(1.0, float("nan")), PASSED))
    assert isinstance(found[1], Failed)


def test_a_path_over_budget_is_reported_as_that(monkeypatch: pytest.MonkeyPatch) -> None:
    case, failed = tiny(dcp=2), Check(6, 1.0, 1e-3, 0.0, 1.0)
    assert compare(monkeypatch, (case, told(1.0, 1.0), PASSED), (case, told(2.0, 1.0), failed))[1].check == failed


def test_real_paths_of_one_batch_agree() -> None:
    companion = Companion()
    for path in ("split", "mask", "fold"):
        verdict = companion.verify(tiny("q8s25_q3s3", dcp=4, path=path), Mesh.simulated(4), QUICK)
        assert isinstance(verdict, Verified), verdict
        assert verdict.passed
        assert (verdict.apart is None) == (path == "split")


def test_an_lse_that_differs_is_seen_too(monkeypatch: pytest.MonkeyPatch) -> None:
    case, exact = tiny(dcp=2), replace(PASSED, lse_budget=1e-4)
    other = told(1.0, 1.0)
    other.results()[1].lse.add_(1e-3)
    found = compare(monkeypatch, (case, told(1.0, 1.0), exact), (case, other, exact))
    assert isinstance(found[1], Failed)
    assert "5 times as far from path" in found[1].message


def test_what_cannot_run_is_skipped() -> None:
    assert isinstance(verify(tiny(kernel="fa2"), Mesh.alone(), seed=0), Skipped)
    assert isinstance(Companion().verify(tiny(kernel="fa2"), Mesh.alone(), QUICK), Skipped)


@pytest.mark.parametrize(("supervisor", "code"), [("ours", 0), ("another", 1)])
def test_a_worker_that_lost_its_supervisor_while_it_started_ends_at_once(supervisor: str, code: int) -> None:
    named = str(os.getpid() if supervisor == "ours" else os.getppid())
    start = [sys.executable, "-c", "from bench.worker import end_with_supervisor as end; end()"]
    assert subprocess.run(start, env=os.environ | {SUPERVISOR_VARIABLE: named}, check=False).returncode == code
