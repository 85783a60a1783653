"""One DCP group over two nodes, network namespaces with a cable between them: as on one node, but for ``direct``."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.record import Label, Measured, Skipped
from bench.store import Store
from tests.bench.test_launched import SECONDS, port, start

pytestmark = pytest.mark.nodes

NODES = ("dcpbench-0", "dcpbench-1")
SWEEP = [
    "sweep",
    *("--model", "tiny", "--tp", "4", "--dcp", "2", "--batch", "2q1s40,q8s40", "--path", "decode,split,fold"),
    *("--exchange", "ag_rs,a2a,direct", "--precision", "quick"),
]


def ip(words: str) -> None:
    subprocess.run(["ip", *words.split()], check=True, capture_output=True)


@pytest.fixture
def nodes() -> Iterator[list[tuple[str, ...]]]:
    """Make two nodes, and yield what a command on each is started through."""
    for node in NODES:
        ip(f"netns add {node}")
    try:
        ip(f"-n {NODES[0]} link add cable type veth peer name cable netns {NODES[1]}")
        for number, node in enumerate(NODES):
            ip(f"-n {node} addr add 10.11.12.{number + 1}/24 dev cable")
            ip(f"-n {node} link set cable up")
            ip(f"-n {node} link set lo up")
        yield [("ip", "netns", "exec", node) for node in NODES]
    finally:
        for node in NODES:
            ip(f"netns del {node}")


def test_a_group_over_two_nodes_is_right_and_direct_says_why_it_is_not_for_it(
    nodes: list[tuple[str, ...]], tmp_path: Path
) -> None:
    common = {"WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "10.11.12.1", "MASTER_PORT": str(port())}
    ranks = [
        start(
            [*SWEEP, "--results", str(tmp_path)],
            common | {"RANK": str(number), "GROUP_RANK": str(number), "GLOO_SOCKET_IFNAME": "cable"},
            before=node,
        )
        for number, node in enumerate(nodes)
    ]
    try:
        said = [rank.communicate(timeout=SECONDS)[0] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [0, 0], said
    trials, _ = Store.read(tmp_path)
    assert len(trials) == 5 * 3  # decode for one batch, split and fold for both, over three exchanges
    for trial in trials:
        if trial.case.settings.exchange == "direct":
            assert isinstance(trial.outcome, Skipped)
            assert "this group spans 2 nodes" in trial.outcome.reason
        else:
            assert isinstance(trial.outcome, Measured), trial.outcome
            assert trial.outcome.label is Label.MEASURED
            assert trial.outcome.check.passed
            assert trial.ranks == 2
