"""Under a launcher: rank 0 leads, the others follow, and a rank that is lost ends the job with a sentence and nothing lost."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import Empty, Queue
from typing import Any

import pytest
from torch.distributed import HashStore

from bench.launched import Alarm, launched_ranks, run
from bench.record import Failed, Label, Measured
from bench.store import Store
from dcp_core.mesh import Mesh
from dcp_core.settings import ExchangeName

SWEEP = [
    "sweep",
    *("--model", "tiny", "--tp", "4", "--dcp", "1,2,4", "--synthetic", "--batch", "2q1s40,q8s40"),
    *("--path", "decode,split", "--exchange", "a2a", "--precision", "quick"),
]
BRIEF = """
model = "tiny"
tp = 4
dcp = 2
path = "split"
exchange = "a2a"
batch = ["q8s40", "q8s48", "q8s56"]
policy = { precision = "quick", max_seconds = 0.02 }
"""
SECONDS = 90.0


def port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def told(of_the_job: dict[str, str], *ranks: str) -> tuple[dict[str, str], ...]:
    """Return what a launcher tells each of two processes: the same of the job, and its rank under some names."""
    return tuple({**of_the_job, **dict.fromkeys(ranks, str(rank))} for rank in range(2))


TORCHRUN = told({"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}, "RANK", "LOCAL_RANK")
# Of Open MPI 4.1.4 and Slurm 22.05, on one node.
MPIRUN = told(
    {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_SIZE": "2"},
    *("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_NODE_RANK"),
)
SRUN = told(
    {"SLURM_NTASKS": "2", "SLURM_STEP_NUM_TASKS": "2", "SLURM_NODEID": "0", "SLURM_JOB_NODELIST": "node1"},
    *("SLURM_PROCID", "SLURM_LOCALID"),
)


@contextmanager
def job(
    words: list[str], *, places: tuple[dict[str, str], ...] = TORCHRUN, program: str = "bench"
) -> Iterator[list[subprocess.Popen[str]]]:
    """Start the same command on two ranks, as a launcher does that tells each its place; none outlives the block."""
    master = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port()), "OMP_NUM_THREADS": "1"}
    processes = [start(words, master | place, program=program) for place in places]
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def start(
    words: list[str], variables: dict[str, str], *, before: tuple[str, ...] = (), program: str = "bench"
) -> subprocess.Popen[str]:
    """Start one rank; ``before``: what to start it through."""
    return subprocess.Popen(
        [*before, sys.executable, "-m", program, *words],
        env=os.environ | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_a_launched_job_measures_what_one_command_does(tmp_path: Path) -> None:
    with job([*SWEEP, "--results", str(tmp_path)]) as (leader, follower):
        said, _ = leader.communicate(timeout=SECONDS)
        heard, _ = follower.communicate(timeout=SECONDS)
    assert (leader.returncode, follower.returncode) == (0, 0), said
    assert heard == ""
    trials, notices = Store.read(tmp_path)
    assert notices == []
    assert len(list(tmp_path.glob("*.jsonl"))) == 1
    real = [trial for trial in trials if trial.case.settings.exchange is ExchangeName.A2A]
    assert {trial.ranks for trial in real} == {2}
    for trial in trials:
        assert isinstance(trial.outcome, Measured)
        simulated = trial.case.settings.exchange is ExchangeName.LOOPBACK
        assert trial.outcome.label is (Label.SIMULATED if simulated else Label.MEASURED)
    assert {trial.case.layout.dcp for trial in trials} == {1, 2, 4}
    stages = [stage for trial in trials if isinstance(trial.outcome, Measured) for stage in trial.outcome.stages]
    between = [stage for stage in stages if stage.communicates]
    assert {stage.name for stage in between} == {"gather", "combine"}
    for trial in trials:
        assert isinstance(trial.outcome, Measured)
        for stage in trial.outcome.stages:
            assert len(stage.rank_samples_us) == (2 if trial.ranks == 2 else 0)
    for stage in (stage for stage in stages if stage.rank_samples_us):
        assert stage.samples_us == tuple(map(max, zip(*stage.rank_samples_us, strict=True)))


@pytest.mark.parametrize("places", [MPIRUN, SRUN], ids=["mpirun", "srun"])
def test_ranks_that_mpirun_or_srun_tells_of_measure_together(
    places: tuple[dict[str, str], ...], tmp_path: Path
) -> None:
    words = ["--model", "tiny", "--tp", "4", "--dcp", "2", "--batch", "q8s40", "--path", "split", "--exchange", "a2a"]
    with job(["sweep", *words, "--precision", "quick", "--results", str(tmp_path)], places=places) as (
        leader,
        follower,
    ):
        said, _ = leader.communicate(timeout=SECONDS)
        heard, _ = follower.communicate(timeout=SECONDS)
    assert (leader.returncode, follower.returncode, heard) == (0, 0, ""), said
    (one,) = Store.read(tmp_path)[0]
    assert isinstance(one.outcome, Measured)
    assert (one.ranks, one.outcome.label, len(one.outcome.rank_samples_us)) == (2, Label.MEASURED, 2)


def test_a_rank_that_is_lost_ends_the_job_and_what_was_measured_is_kept(tmp_path: Path) -> None:
    slow = [word.replace("quick", "strict") for word in SWEEP]
    with job([*slow, "--results", str(tmp_path)]) as (leader, follower):
        deadline = time.monotonic() + SECONDS
        while not any(trial.ranks == 2 for trial in Store.read(tmp_path)[0]):
            assert time.monotonic() < deadline
            assert leader.poll() is None
        follower.send_signal(signal.SIGKILL)
        said, _ = leader.communicate(timeout=SECONDS)
    assert leader.returncode == 4, said
    assert "a rank of this job is lost" in said
    assert "start the job again: it goes on with what is missing" in said
    assert "Traceback" not in said
    kept, notices = Store.read(tmp_path)
    assert kept
    assert notices == []


@pytest.mark.parametrize("rank", ["0", "1"])
def test_a_rank_that_hangs_costs_its_case_and_ends_the_job_and_starting_again_goes_on(
    rank: str, tmp_path: Path
) -> None:
    sweep = tmp_path / "brief.toml"
    sweep.write_text(BRIEF, encoding="utf-8")
    words = ["sweep", str(sweep), "--results", str(tmp_path)]
    with job([rank, *words], program="tests.bench.hanging_job") as (leader, follower):
        said, _ = leader.communicate(timeout=SECONDS)
        heard, _ = follower.communicate(timeout=SECONDS)
    assert (leader.returncode, follower.returncode) == (4, 4), said + heard
    assert "no answer within its deadline of 6 s; the workers were killed; start the job again" in said
    assert ("rank 1 did not end its part of a case within 7 s" in heard) == (rank == "1")
    assert "Traceback" not in said + heard
    with job(["nobody", *words], program="tests.bench.hanging_job") as (leader, follower):
        said, _ = leader.communicate(timeout=SECONDS)
        follower.communicate(timeout=SECONDS)
    assert (leader.returncode, follower.returncode) == (0, 0), said
    found = [(str(trial.case.workload), trial.outcome.kind) for trial in Store.read(tmp_path)[0]]
    measured = "measured"
    assert sorted(found) == [("q8s40", measured), ("q8s48", "failed"), ("q8s48", measured), ("q8s56", measured)]
    assert found.index(("q8s48", "failed")) < found.index(("q8s48", measured))


def test_a_rank_that_fails_alone_is_told_long_before_the_deadline(tmp_path: Path) -> None:
    sweep = tmp_path / "brief.toml"
    sweep.write_text(BRIEF, encoding="utf-8")
    words = ["alone1", "sweep", str(sweep), "--results", str(tmp_path)]
    with job(words, program="tests.bench.hanging_job") as (leader, follower):
        said, _ = leader.communicate(timeout=SECONDS)
        heard, _ = follower.communicate(timeout=SECONDS)
    assert (leader.returncode, follower.returncode, heard) == (4, 4, ""), said
    assert "rank 1 of this job failed alone; start the job again: it goes on with what is missing" in said
    assert "Traceback" not in said
    (failed,) = [trial for trial in Store.read(tmp_path)[0] if isinstance(trial.outcome, Failed)]
    assert failed.outcome == Failed("error", "rank 1 alone: a bug", "where")
    assert failed.seconds < 30


FAILED = {"outcome": {"kind": "failed", "fault": "error", "message": "a bug", "traceback": "where"}}


@pytest.fixture
def alarm(monkeypatch: pytest.MonkeyPatch) -> Alarm:
    """Return rank 0's, which looks often and waits for nobody."""
    monkeypatch.setattr("bench.launched.LOOK_SECONDS", 0.001)
    monkeypatch.setattr("bench.launched.STRAGGLER_SECONDS", 0.001)
    found = Alarm(Mesh.alone())
    found._store = HashStore()
    return found


def test_a_leader_that_fails_alone_is_told_though_it_waits_for_the_others(alarm: Alarm) -> None:
    told: Queue[dict[str, Any]] = Queue()

    def lead() -> None:
        with alarm.heard(told.put):
            alarm.ring(FAILED)
            threading.Event().wait()  # for ranks that never answer

    threading.Thread(target=lead, daemon=True).start()
    assert told.get(timeout=SECONDS) == {"alone": {**FAILED["outcome"], "rank": 0}}


def test_who_failed_at_one_order_is_not_told_at_the_next(alarm: Alarm) -> None:
    told: Queue[dict[str, Any]] = Queue()
    alarm.ring(FAILED)
    with alarm.heard(told.put):
        with pytest.raises(Empty):
            told.get(timeout=0.1)
        alarm.ring({"outcome": {"kind": "skipped", "reason": "no room"}})
    assert told.empty()


@pytest.mark.parametrize(
    ("variables", "sentence"),
    [
        ({"RANK": "1", "WORLD_SIZE": "2"}, "WORLD_SIZE=2 needs MASTER_ADDR"),
        ({"RANK": "0", "WORLD_SIZE": "x"}, "WORLD_SIZE='x' should be a whole number"),
        ({"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "2"}, "before srun, export MASTER_ADDR="),
    ],
)
def test_a_job_that_cannot_be_joined_is_a_sentence_and_an_unfit_environment(
    variables: dict[str, str], sentence: str
) -> None:
    rank = start(SWEEP, variables)
    said, _ = rank.communicate(timeout=SECONDS)
    assert rank.returncode == 4, said
    assert sentence in said
    assert "Traceback" not in said


def test_a_leader_whose_port_is_taken_says_so() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = str(other.getsockname()[1])
        place = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": taken}
        leader = start(SWEEP, place)
        said, _ = leader.communicate(timeout=SECONDS)
    assert leader.returncode == 4, said
    assert f"rank 0 of 2 could not join its group at 127.0.0.1:{taken}" in said
    assert "Traceback" not in said


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_rank_that_waits_for_the_others_ends_at_once_if_told_to(number: signal.Signals) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        silent.settimeout(SECONDS)
        place = {
            "RANK": "1",
            "WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(silent.getsockname()[1]),
        }
        follower = start(SWEEP, place)
        connection, _ = silent.accept()
        with connection:
            follower.send_signal(number)
            follower.communicate(timeout=10)
    assert follower.returncode == -number


def test_a_command_that_needs_no_other_rank_lets_the_others_end() -> None:
    with job(["memory", "--model", "tiny", "--tp", "4", "--dcp", "1,2"]) as (leader, follower):
        said, _ = leader.communicate(timeout=SECONDS)
        follower.communicate(timeout=SECONDS)
    assert (leader.returncode, follower.returncode) == (0, 0), said


def test_ranks_are_the_launchers_to_choose(tmp_path: Path) -> None:
    with job(["--ranks", "3", *SWEEP, "--results", str(tmp_path)]) as (leader, follower):
        said, _ = leader.communicate(timeout=SECONDS)
        follower.communicate(timeout=SECONDS)
    assert leader.returncode == 2
    assert "--ranks 3, but the launcher started 2: leave --ranks to it" in said


def test_without_a_launcher_the_program_runs_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    assert launched_ranks() is None
    assert run(lambda: 3) == 3
