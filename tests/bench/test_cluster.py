"""A sweep over a Ray cluster of several nodes on this machine: the same store as one process writes, with a node lost too."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bench import cluster
from bench.cli import main
from bench.cli.exits import Exit
from bench.cluster import Cluster
from bench.errors import UsageError
from bench.machine import Machine
from bench.policy import Policy
from bench.record import Environment, Failed, Label, Measured, Trial
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


def test_a_cluster_writes_the_store_that_one_process_writes_though_a_node_is_lost(
    nodes: Any,
    alone: tuple[subprocess.Popen[bytes], Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
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
    capsys.readouterr()
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


class PaperLane:
    """A lane that measures by script: after each case whose batch is in ``deadly`` it is lost."""

    def __init__(self, name: str, deadly: set[str], log: list[tuple[str, str]]) -> None:
        self.name, self.deadly, self.log = name, deadly, log
        self.measure = SimpleNamespace(options=lambda **_: SimpleNamespace(remote=self._measure))

    def _measure(self, cases: list[dict[str, Any]], policy: Policy, seconds: list[float]) -> Iterator[Any]:
        assert len(seconds) == len(cases)
        for data in cases:
            case = Case.from_json(data)
            self.log.append((self.name, str(case.workload)))
            if str(case.workload) in self.deadly:
                yield Lost("the actor died")
                return
            yield trial(case)


def paper_cluster(lanes: list[PaperLane]) -> Cluster:
    """Return a cluster of lanes on paper; the first that was sent something answers first."""

    def get(answer: Any) -> bytes:
        if isinstance(answer, Lost):
            raise answer
        return cluster.encode(answer)

    paper = Cluster.__new__(Cluster)
    paper._ray = SimpleNamespace(
        wait=lambda running, num_returns: ([running[0]], running[1:]),
        get=get,
        exceptions=SimpleNamespace(RayError=Lost),
    )
    paper._lanes, paper.machine = lanes, Machine(1, Environment({"device_name": "paper"}), "", 1 << 30)
    return paper


def test_all_candidates_of_a_batch_meet_in_one_lane() -> None:
    log: list[tuple[str, str]] = []
    cases = [tiny(f"q{new}s64", dcp=2, path=path) for path in ("split", "mask", "fold") for new in (8, 9, 10, 11, 12)]
    paper = paper_cluster([PaperLane(name, set(), log) for name in "ab"])
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
    lanes = [PaperLane(name, {"q9s64"}, log) for name in "abcde"]
    trials = list(paper_cluster(lanes).measure(cases, QUICK))
    assert Counter(one.case for one in trials) == Counter(cases)
    failed = {one.case: one.outcome for one in trials if isinstance(one.outcome, Failed)}
    assert failed.keys() == {case for case in cases if str(case.workload) == "q9s64"}
    assert {outcome.fault for outcome in failed.values()} == {"crashed"}
    assert len(lanes) == 1, "each of the two took two with it"


def test_without_a_lane_left_nothing_is_made_up() -> None:
    paper = paper_cluster([PaperLane("a", {"q8s64"}, [])])
    with pytest.raises(cluster.UnfitError, match="every lane of the cluster is lost; start again"):
        list(paper.measure([tiny("q8s64"), tiny("q9s64")], QUICK))


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


def opened(*answers: Machine | Lost) -> tuple[Cluster, list[int]]:
    """Return a cluster whose lanes describe themselves so, or do not come up, and where the numbers of ended ones go."""
    ended: list[int] = []

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
        exceptions=SimpleNamespace(RayError=Lost),
    )
    paper.left_out, paper._lanes = [], [lane(number, answer) for number, answer in enumerate(answers)]
    return paper, ended


def test_lanes_that_agree_are_all_kept() -> None:
    paper, ended = opened(H200, H200, H200)
    assert paper._agree() == H200
    assert (paper.lanes, ended, paper.left_out) == (3, [], [])


def test_lanes_of_another_kind_and_ones_that_do_not_come_up_are_ended_and_said() -> None:
    paper, ended = opened(Lost("no room\nand more"), H200, H100, H200)
    assert paper._agree() == H200, "of the first that came up"
    assert ([lane.number for lane in paper._lanes], ended) == ([1, 3], [0, 2])
    assert paper.left_out == [
        "a lane did not come up within 60 s: no room",
        "a lane of another kind is left out: device_name: NVIDIA H200 here, NVIDIA H100 there; dcpbench: 1 here, 2 there",
    ]


def test_a_cluster_of_which_no_lane_comes_up_is_unfit() -> None:
    paper, ended = opened(Lost("no room"), Lost("no memory"))
    with pytest.raises(cluster.UnfitError, match=r"no lane of the cluster came up: .*no room; free or repair a node"):
        paper._agree()
    assert ended == [0, 1]
    assert paper.lanes == 0


def test_lanes_of_another_kind_are_told_apart() -> None:
    assert not cluster._differs(H200, H200)
    assert cluster._differs(H200, H100) == (
        "device_name: NVIDIA H200 here, NVIDIA H100 there; dcpbench: 1 here, 2 there"
    )
