"""A sweep over a Ray cluster of several nodes on this machine: the same store as one process writes, with a node lost too."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bench import cluster, sentinel
from bench.cli import main
from bench.cli.campaign import Campaign, measure
from bench.cli.exits import Exit
from bench.cluster import Cluster, Lane
from bench.errors import UnfitError, UsageError
from bench.machine import Machine
from bench.policy import Policy
from bench.record import Environment, Failed, Label, Measured, Trial
from bench.sentinel import Watch
from bench.store import Store
from dcp_core.settings import Case
from tests.bench.cases import QUICK, tiny
from tests.bench.made_up import trial
from tests.bench.test_supervisor import wait_for

ROOT = Path(__file__).parents[2]
SWEEP = ("--model", "tiny", "--tp", "4", "--dcp", "1,2", "--context", "512,1k", "--new", "1,8", "--precision", "quick")


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """Start the sweep on this machine by itself, and return the process and where it writes."""
    folder = tmp_path_factory.mktemp("alone")
    command = [sys.executable, "-m", "bench", "--ranks", "1", "sweep", *SWEEP, "--results", str(folder)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        yield process, folder
        process.kill()


@pytest.fixture(scope="module")
def nodes(alone: tuple[subprocess.Popen[bytes], Path]) -> Iterator[Any]:
    """Start a head that measures nothing, and two nodes that do, while the sweep runs alone."""
    from ray.cluster_utils import Cluster as Nodes

    started = Nodes(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    for _ in range(2):
        started.add_node(num_cpus=1)
    started.wait_for_nodes()
    yield started
    started.shutdown()


def sweep(folder: Path, *words: str) -> int:
    return main(["--ranks", "1", "sweep", *SWEEP, "--results", str(folder), *words])


def kept(folder: Path) -> list[Trial]:
    return Store.read(folder)[0]


# --- On real nodes ------------------------------------------------------------------------------------------------------


def test_a_dry_run_says_how_many_lanes_there_are(
    nodes: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sweep(tmp_path, "--cluster", nodes.address, "--dry-run") == Exit.DONE
    assert "cases on 2 lanes of one process" in capsys.readouterr().out


def test_a_group_that_fits_no_node_is_refused(nodes: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--ranks", "7", "sweep", *SWEEP, "--results", str(tmp_path), "--cluster", nodes.address]
    assert main(words) == Exit.USAGE
    assert "no node of the cluster has 7 CPUs" in capsys.readouterr().err


COMPANY = "on GPU 0 there is process 4242 (vllm), so that times would be shared with it"


def beside(others: Path, most: int) -> type[Lane]:
    """Return a lane that finds another process on its device, as a supervisor does, for the first ``most`` that measure.

    Args:
        others: folder in which each of these leaves its process number, in a file named by how many came before.
    """

    class Disturbed:
        def measure(self, cases: object, expected_s: object) -> Iterator[Trial]:
            raise UnfitError(COMPANY)

    class Beside(Lane):
        def measure(
            self, cases: Sequence[dict[str, Any]], policy: Policy, expected_s: Sequence[float], watch: Watch
        ) -> Iterator[bytes]:
            for number in range(most):
                with suppress(FileExistsError), (others / str(number)).open("x") as file:
                    print(os.getpid(), file=file)
                    self._supervisor = Disturbed()  # type: ignore[assignment]
                    break
            yield from Lane.measure(self, cases, policy, expected_s, watch)

    return Beside


def test_a_lane_that_is_not_alone_is_ended_and_costs_no_case(
    nodes: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "Lane", beside(tmp_path, 1))
    cases, told = [tiny("q8s64"), tiny("q9s64"), tiny("q10s64")], list[str]()
    with Cluster(nodes.address, 1, told=told.append) as joined:
        held = [*joined._lanes]  # for as long as somebody knows of a lane, Ray does not end it by itself
        trials = list(joined.measure(cases, QUICK))
        assert (len(held), joined.lanes) == (2, 1)
        process = Path("/proc", (tmp_path / "0").read_text().strip())
        wait_for(lambda: not process.exists())
    assert Counter(one.case for one in trials) == Counter(cases)
    assert all(isinstance(one.outcome, Measured) for one in trials)
    assert told == [f"a lane is left out: {socket.gethostname()}: {COMPANY}."]


def test_where_no_lane_is_alone_nothing_is_measured_and_the_environment_is_unfit(
    nodes: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "others").mkdir()
    monkeypatch.setattr(cluster, "Lane", beside(tmp_path / "others", 99))
    assert sweep(tmp_path / "results", "--cluster", nodes.address) == Exit.UNFIT
    said = capsys.readouterr().err
    assert said.count(f"a lane is left out: {socket.gethostname()}: {COMPANY}.") == 2, "by each of the two"
    assert "no lane of the cluster is left; start again" in said
    assert "\x1b" not in said
    assert "\\x1b" not in said
    assert kept(tmp_path / "results") == []


def test_a_cluster_writes_the_store_that_one_process_writes_though_a_node_is_lost(
    nodes: Any,
    alone: tuple[subprocess.Popen[bytes], Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sentinel, "EVERY", 6)
    process, folder = alone
    assert process.wait(120) == Exit.DONE, [
        one.outcome for one in kept(folder) if not isinstance(one.outcome, Measured)
    ]
    lost = nodes.list_all_nodes()[-1]

    def lose_a_node() -> None:
        wait_for(lambda: len(kept(tmp_path / "cluster")) >= 3)
        nodes.remove_node(lost, allow_graceful=False)

    loser = threading.Thread(target=lose_a_node)
    loser.start()
    assert sweep(tmp_path / "cluster", "--cluster", nodes.address) == Exit.DONE
    loser.join()
    by_itself, together = kept(folder), kept(tmp_path / "cluster")
    assert all(isinstance(one.outcome, Measured) for one in together)
    assert Counter(one.key for one in together) == Counter(one.key for one in by_itself)
    assert {tuple(one.environment.hard.items()) for one in together} == {
        tuple(one.environment.hard.items()) for one in by_itself
    }
    assert len(list((tmp_path / "cluster").glob("*.jsonl"))) == 1
    again = [one for one in Store.read(tmp_path / "cluster", sentinels=True)[0] if one.is_sentinel]
    assert again, "18 cases in two lanes, of which one is lost: the other repeats its first after six"
    assert {one.key for one in again} <= {one.key for one in together}
    said = capsys.readouterr().err
    assert said.count("a lane is lost: ") == 1
    assert "the first case again: " in said
    assert sweep(tmp_path / "cluster") == Exit.DONE
    assert "nothing to measure" in capsys.readouterr().err, "a machine by itself goes on where a cluster ended"


@pytest.fixture
def node_of_two(nodes: Any) -> Iterator[None]:
    """Add a node with room for a group of two ranks, which none of the others has."""
    node = nodes.add_node(num_cpus=2)
    yield
    nodes.remove_node(node, allow_graceful=False)


@pytest.mark.usefixtures("node_of_two")
def test_a_lane_of_two_ranks_measures_exchanges_between_them(
    nodes: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--model", "tiny", "--tp", "4", "--dcp", "1,2", "--batch", "q8s40", "--path", "split", "--exchange", "a2a"]
    asked = ["--ranks", "2", "sweep", *words, "--precision", "quick", "--results", str(tmp_path)]
    assert main([*asked, "--cluster", nodes.address]) == Exit.DONE
    alone, together = sorted(kept(tmp_path), key=lambda one: one.case.layout.dcp)
    for one, ranks in ((alone, 1), (together, 2)):
        assert isinstance(one.outcome, Measured)
        assert (one.ranks, one.outcome.label, len(one.outcome.rank_samples_us)) == (ranks, Label.MEASURED, ranks)
    assert isinstance(together.outcome, Measured)
    assert {stage.name for stage in together.outcome.stages if stage.communicates} == {"gather", "combine"}
    assert {len(stage.rank_samples_us) for stage in together.outcome.stages} == {2}
    capsys.readouterr()
    assert main(asked) == Exit.DONE
    assert "nothing to measure" in capsys.readouterr().err


def test_where_no_cluster_answers_the_environment_is_unfit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sweep(tmp_path, "--cluster", "127.0.0.1:1") == Exit.UNFIT
    assert "no Ray cluster answers at 127.0.0.1:1" in capsys.readouterr().err


def test_a_search_is_not_for_a_cluster(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tune", *SWEEP, "--results", str(tmp_path), "--cluster", "auto"]) == Exit.USAGE
    assert "split a search with --shard" in capsys.readouterr().err


# --- On paper -----------------------------------------------------------------------------------------------------------


class Lost(Exception):
    """Stands for Ray's error of an actor that died."""


class Late(Lost):
    """Stands for Ray's error of an answer that has not come."""


class Raised(Lost):
    """Stands for Ray's error of what an actor raised."""

    def __init__(self, cause: Exception) -> None:
        super().__init__(f"\x1b[36mray::Lane.measure()\x1b[39m (pid=1)\n  File x\n{type(cause).__name__}: {cause}")
        self.cause = cause


EXCEPTIONS = SimpleNamespace(RayError=Lost, GetTimeoutError=Late, RayTaskError=Raised)
DIED = """The actor died unexpectedly before finishing this task.
\tclass_name: Lane
The actor is dead because its node has died."""


class PaperLane:
    """A lane that measures by script: ``troubles`` come in place of the trials of a batch, by its name."""

    def __init__(self, name: str, troubles: dict[str, Lost], log: list[tuple[str, str]]) -> None:
        self.name, self.troubles, self.log = name, troubles, log
        self.measure = SimpleNamespace(options=lambda **_: SimpleNamespace(remote=self._measure))
        self.watch: Watch | None = None

    def _measure(
        self, cases: list[dict[str, Any]], policy: Policy, seconds: list[float], watch: Watch
    ) -> Iterator[Any]:
        assert len(seconds) == len(cases)
        self.watch = self.watch or deepcopy(watch)  # as Ray hands it over
        for case in self.watch.over(map(Case.from_json, cases)):
            batch = str(case.workload)
            self.log.append((self.name, batch))
            if batch in self.troubles:
                yield self.troubles[batch]
                return
            yield self.watch.seen(trial(case))


def paper_cluster(lanes: list[PaperLane]) -> tuple[Cluster, list[str], list[str]]:
    """Return a cluster of lanes on paper, what it tells, and the names of the lanes that it ends.

    The first lane that was sent something answers first.
    """

    def get(answer: Any) -> bytes:
        if isinstance(answer, Lost):
            raise answer
        return cluster.encode(answer)

    told, ended = list[str](), list[str]()
    paper = Cluster.__new__(Cluster)
    paper._ray = SimpleNamespace(
        wait=lambda running, num_returns: ([running[0]], running[1:]),
        get=get,
        kill=lambda lane: ended.append(lane.name),
        exceptions=EXCEPTIONS,
    )
    paper.told = told.append
    paper._lanes, paper.machine = [*lanes], Machine(1, Environment({"device_name": "paper"}), "", 1 << 30)
    return paper, told, ended


def test_all_candidates_of_a_batch_meet_in_one_lane() -> None:
    log: list[tuple[str, str]] = []
    cases = [tiny(f"q{new}s64", dcp=2, path=path) for path in ("split", "mask", "fold") for new in (8, 9, 10, 11, 12)]
    paper, _, _ = paper_cluster([PaperLane(name, {}, log) for name in "ab"])
    trials = list(paper.measure(cases, QUICK))
    assert Counter(one.case for one in trials) == Counter(cases)
    homes = {batch: {name for name, other in log if other == batch} for _, batch in log}
    assert all(len(home) == 1 for home in homes.values())
    assert {name for name, _ in log} == {"a", "b"}


def test_a_case_that_takes_two_lanes_down_with_it_has_failed_and_the_rest_is_measured() -> None:
    log: list[tuple[str, str]] = []
    cases = [
        tiny("q8s64", dcp=2),
        tiny("q9s64", dcp=2, path="split"),
        tiny("q9s64", dcp=2, path="mask"),
        tiny("q10s64"),
    ]
    paper, told, ended = paper_cluster([PaperLane(name, {"q9s64": Lost(DIED)}, log) for name in "abcde"])
    trials = list(paper.measure(cases, QUICK))
    assert Counter(one.case for one in trials) == Counter(cases)
    failed = {one.case: one.outcome for one in trials if isinstance(one.outcome, Failed)}
    assert failed.keys() == {case for case in cases if str(case.workload) == "q9s64"}
    assert set(failed.values()) == {
        Failed("crashed", "2 lanes were lost while they measured it: The actor is dead because its node has died")
    }
    assert paper.lanes == 1, "each of the two took two with it"
    assert told == ["a lane is lost: The actor is dead because its node has died."] * len(ended)


def test_what_a_lane_raises_costs_no_case() -> None:
    occupied = Raised(UnfitError(COMPANY))
    lanes = [PaperLane("a", {"q8s64": occupied}, []), PaperLane("b", {"q9s64": occupied}, []), PaperLane("c", {}, [])]
    paper, told, ended = paper_cluster(lanes)
    cases = [tiny("q8s64"), tiny("q9s64"), tiny("q10s64")]
    trials = list(paper.measure(cases, QUICK))
    assert Counter(one.case for one in trials) == Counter(cases)
    assert all(isinstance(one.outcome, Measured) for one in trials)
    assert sorted(ended) == ["a", "b"]
    assert told == [f"a lane is left out: {COMPANY}."] * 2


def test_a_lane_that_is_lost_once_all_of_its_batch_was_measured_costs_no_case() -> None:
    class LostAfterwards(PaperLane):
        def _measure(self, *asked: Any) -> Iterator[Any]:
            yield from super()._measure(*asked)
            yield Lost(DIED)

    paper, told, ended = paper_cluster([LostAfterwards("a", {}, []), LostAfterwards("b", {}, [])])
    cases = [tiny("q8s64"), tiny("q9s64")]
    trials = list(paper.measure(cases, QUICK))
    assert [one.case for one in trials] == cases
    assert (len(told), ended) == (2, ["a", "b"])


def test_without_a_lane_left_nothing_is_made_up() -> None:
    paper, told, ended = paper_cluster([PaperLane("a", {"q8s64": Lost("no memory")}, [])])
    with pytest.raises(UnfitError, match="no lane of the cluster is left; start again"):
        list(paper.measure([tiny("q8s64"), tiny("q9s64")], QUICK))
    assert (told, ended) == (["a lane is lost: no memory."], ["a"])


def test_a_case_that_takes_the_last_lane_down_with_it_is_kept_as_failed(tmp_path: Path) -> None:
    paper, _, _ = paper_cluster([PaperLane(name, {"q8s64": Lost(DIED)}, []) for name in "ab"])
    asked = Campaign(
        name="paper",
        cases=(tiny("q8s64"),),
        illegal=(),
        policy=QUICK,
        machine=paper.machine,
        results=tmp_path,
        fresh=False,
        anyway=False,
        shard=None,
        cluster=paper,
        often={},
    )
    trials, interrupted = measure(asked, "dcpbench sweep")
    assert [type(one.outcome) for one in trials] == [type(one.outcome) for one in kept(tmp_path)] == [Failed]
    assert not interrupted
    assert paper.lanes == 0


def test_each_lane_repeats_the_first_case_that_it_measured() -> None:
    log: list[tuple[str, str]] = []
    paper, _, _ = paper_cluster([PaperLane(name, {}, log) for name in "ab"])
    cases = [tiny(f"q8s{total}") for total in range(32, 92)]
    trials = list(paper.measure(cases, QUICK))
    assert Counter(one.case for one in trials if not one.is_sentinel) == Counter(cases)
    again = [str(one.case.workload) for one in trials if one.is_sentinel]
    firsts = [next(batch for name, batch in log if name == lane) for lane in "ab"]
    assert sorted(again) == sorted(firsts), "each lane has measured 30 of the 60 cases, after which one is repeated"


def test_a_lane_remembers_its_sentinel_and_how_long_that_may_take(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Case, float]] = []

    class Scripted:
        def __init__(self, ranks: int, policy: Policy, *, alone: bool) -> None:
            assert (ranks, policy, alone) == (1, QUICK, True)

        def measure(self, cases: Iterator[Case], expected_s: dict[Case, float]) -> Iterator[Trial]:
            for case in cases:
                asked.append((case, expected_s[case]))
                yield trial(case)

    monkeypatch.setattr(cluster, "Supervisor", Scripted)
    lane, cases = Lane(1, alone=True), [tiny(f"q8s{total}") for total in range(32, 57)]
    lines = [
        line
        for number, case in enumerate(cases, start=1)
        for line in lane.measure([case.to_json()], QUICK, [float(number)], Watch(len(cases), 1.0))
    ]
    trials = [cluster.decode(line) for line in lines]
    assert [one.case for one in trials] == [*cases, cases[0]]
    assert [one.is_sentinel for one in trials] == [False] * 25 + [True]
    assert asked[0] == asked[-1] == (cases[0], 1.0)


@pytest.mark.parametrize(
    ("nodes_have", "ranks", "expected"),
    [
        ([{"CPU": 4.0}, {"CPU": 5.0}], None, ("CPU", 2, 4)),
        ([{"CPU": 0.0}, {"CPU": 16.0, "GPU": 8.0}, {"CPU": 16.0, "GPU": 4.0}], None, ("GPU", 4, 3)),
        ([{"CPU": 16.0, "GPU": 8.0}], 2, ("GPU", 2, 4)),
        ([{"CPU": 2.0, "GPU": 8.0}], 2, ("GPU", 2, 1)),
    ],
)
def test_there_is_a_lane_for_each_group_that_fits_a_node(
    nodes_have: list[dict[str, float]], ranks: int | None, expected: tuple[str, int, int]
) -> None:
    alive = [{"Alive": True, "Resources": resources} for resources in nodes_have]
    assert cluster._room([*alive, {"Alive": False, "Resources": {"CPU": 64.0, "GPU": 8.0}}], ranks) == expected


def test_a_cluster_without_room_is_refused() -> None:
    with pytest.raises(UsageError, match="no node of the cluster has 16 GPUs"):
        cluster._room([{"Alive": True, "Resources": {"CPU": 64.0, "GPU": 8.0}}], 16)


H200 = Machine(1, Environment({"device_name": "NVIDIA H200"}, {"dcpbench": "1"}), "NVIDIA H200", 1)
H100 = Machine(1, Environment({"device_name": "NVIDIA H100"}, {"dcpbench": "2"}), "NVIDIA H100", 1)


def opened(*answers: Machine | Lost) -> tuple[Cluster, list[str], list[int]]:
    """Return a cluster whose lanes describe themselves so, or do not come up, what it tells, and the numbers of ended ones."""
    told, ended = list[str](), list[int]()

    def get(answer: Machine | Lost, timeout: float) -> Machine:
        if isinstance(answer, Lost):
            raise answer
        return answer

    def lane(number: int, answer: Machine | Lost) -> SimpleNamespace:
        return SimpleNamespace(number=number, describe=SimpleNamespace(remote=lambda: answer))

    paper = Cluster.__new__(Cluster)
    paper._ray = SimpleNamespace(
        wait=lambda asked, num_returns, timeout: (asked, []),
        get=get,
        kill=lambda one: ended.append(one.number),
        exceptions=EXCEPTIONS,
    )
    paper.told, paper._lanes = told.append, [lane(number, answer) for number, answer in enumerate(answers)]
    return paper, told, ended


def test_lanes_that_agree_are_all_kept() -> None:
    paper, told, ended = opened(H200, H200, H200)
    assert paper._agree() == H200
    assert (paper.lanes, ended, told) == (3, [], [])


def test_lanes_of_another_kind_and_ones_that_do_not_come_up_are_ended_and_said() -> None:
    paper, told, ended = opened(Lost(DIED), H100, H200, Late(), H200)
    assert paper._agree() == H200, "as most are, though another came up first"
    assert ([lane.number for lane in paper._lanes], ended) == ([2, 4], [0, 3, 1])
    assert told == [
        "a lane did not come up: The actor is dead because its node has died.",
        "a lane did not come up within 60 s.",
        f"a lane of another kind than 2 of 3 is left out: {cluster._differs(H200, H100)}.",
    ]


def test_of_two_kinds_as_frequent_the_first_is_kept() -> None:
    paper, told, ended = opened(H100, H200, H200, H100)
    assert paper._agree() == H100
    assert ended == [1, 2]
    assert [sentence.partition(":")[0] for sentence in told] == ["a lane of another kind than 2 of 4 is left out"] * 2


def test_a_cluster_of_which_no_lane_comes_up_is_unfit() -> None:
    paper, told, ended = opened(Lost("no room"), Lost("no memory"))
    with pytest.raises(UnfitError, match="no lane of the cluster came up; free or repair a node"):
        paper._agree()
    assert (told, ended) == (["a lane did not come up: no room.", "a lane did not come up: no memory."], [0, 1])
    assert paper.lanes == 0


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (Raised(UnfitError(COMPANY)), COMPANY),
        (Raised(OSError("no room on the disk")), "OSError: no room on the disk"),
        (Lost(DIED), "The actor is dead because its node has died"),
        (
            Lost(
                "The actor died because of an error raised in its creation task, \x1b[36mray::Lane.__init__()\x1b[39m\n"
                "RuntimeError: The actor with name Lane failed to import on the worker:\n\n"
                "\x1b[36mray::Lane.__init__()\x1b[39m (pid=1)\n    ^^^^\nModuleNotFoundError: No module named 'bench'"
            ),
            "ModuleNotFoundError: No module named 'bench'",
        ),
        (Lost("\x1b[31mThe actor is unavailable: Socket closed.\x1b[39m"), "The actor is unavailable: Socket closed"),
        (Lost(""), "Lost"),
        (ConnectionRefusedError(111, "Connection refused"), "[Errno 111] Connection refused"),
    ],
)
def test_a_reason_is_one_plain_line(error: Exception, reason: str) -> None:
    assert cluster._reason(error) == reason


def test_lanes_of_another_kind_are_told_apart() -> None:
    assert not cluster._differs(H200, H200)
    assert cluster._differs(H200, H100) == (
        "device_name: NVIDIA H200 here, NVIDIA H100 there; dcpbench: 1 here, 2 there"
    )
