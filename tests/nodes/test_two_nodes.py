"""One DCP group over two nodes, network namespaces with a cable between them: as on one node, but for ``direct``."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from bench.cli import main
from bench.record import Label, Measured, Skipped
from bench.store import Store
from tests.bench.test_launched import SECONDS, port, start

pytestmark = pytest.mark.nodes

NODES = ("dcpbench-0", "dcpbench-1")
ADDRESSES = ("10.11.12.1", "10.11.12.2")
SWEEP = [
    "sweep",
    *("--model", "tiny", "--tp", "4", "--dcp", "2", "--batch", "2q1s40,q8s40", "--path", "decode,split,fold"),
    *("--exchange", "ag_rs,a2a,direct", "--precision", "quick"),
]


def ip(words: str) -> str:
    return subprocess.run(["ip", *words.split()], check=True, capture_output=True, text=True).stdout


@pytest.fixture
def nodes() -> Iterator[list[tuple[str, ...]]]:
    """Make two nodes, and yield what a command on each is started through."""
    for node in NODES:
        ip(f"netns add {node}")
    try:
        ip(f"-n {NODES[0]} link add cable type veth peer name cable netns {NODES[1]}")
        for number, node in enumerate(NODES):
            ip(f"-n {node} addr add {ADDRESSES[number]}/24 dev cable")
            ip(f"-n {node} link set cable up")
            ip(f"-n {node} link set lo up")
        yield [("ip", "netns", "exec", node) for node in NODES]
    finally:
        for node in NODES:
            ip(f"netns del {node}")


@contextmanager
def job(
    nodes: list[tuple[str, ...]], words: list[str], *, program: str = "bench"
) -> Iterator[list[subprocess.Popen[str]]]:
    """Start torchrun on each node with one process, as its documentation tells for several nodes; none outlives the block."""
    meeting = f"{ADDRESSES[0]}:{port()}"
    agents = [
        start(
            [
                *("--nnodes", "2", "--nproc-per-node", "1", "--rdzv-backend", "c10d", "--rdzv-endpoint", meeting),
                *("--rdzv-conf", f"is_host={address == ADDRESSES[0]}", "--local-addr", address),
                *("--module", program, *words),
            ],
            {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "cable"},
            before=node,
            program="torch.distributed.run",
        )
        for address, node in zip(ADDRESSES, nodes, strict=True)
    ]
    try:
        yield agents
    finally:
        for pid in [int(pid) for node in NODES for pid in ip(f"netns pids {node}").split()]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for agent in agents:
            agent.communicate()


def test_a_group_over_two_nodes_gives_what_one_node_gives_and_direct_says_why_it_is_not_for_it(
    nodes: list[tuple[str, ...]], tmp_path: Path
) -> None:
    with job(nodes, [*SWEEP, "--results", str(tmp_path / "two")]) as agents:
        said = [agent.communicate(timeout=SECONDS)[0] for agent in agents]
    assert [agent.returncode for agent in agents] == [0, 0], said
    assert main(["--ranks", "2", *SWEEP, "--results", str(tmp_path / "one"), "--json"]) == 0
    trials, _ = Store.read(tmp_path / "two")
    alone = {trial.key: trial.outcome for trial in Store.read(tmp_path / "one")[0]}
    assert len(trials) == len(alone) == 5 * 3  # decode for one batch, split and fold for both, over three exchanges
    for trial in trials:
        if trial.case.settings.exchange == "direct":
            assert isinstance(trial.outcome, Skipped)
            assert "this group spans 2 nodes" in trial.outcome.reason
        else:
            here = alone[trial.key]
            assert isinstance(trial.outcome, Measured), trial.outcome
            assert isinstance(here, Measured)
            assert trial.outcome.label is Label.MEASURED
            assert trial.outcome.check == here.check  # to the last bit: the same inputs, the same sums
            assert trial.ranks == 2


def test_a_node_that_is_lost_mid_sweep_ends_the_job_with_a_sentence_and_what_was_measured_is_kept(
    nodes: list[tuple[str, ...]], tmp_path: Path
) -> None:
    words = ["nobody", *SWEEP, "--precision", "strict", "--results", str(tmp_path)]
    with job(nodes, words, program="tests.bench.hanging_job") as agents:
        deadline = time.monotonic() + SECONDS
        while len(Store.read(tmp_path)[0]) < 2:
            assert time.monotonic() < deadline
            assert [agent.poll() for agent in agents] == [None, None]
        ip(f"-n {NODES[1]} link set cable down")  # nobody says good-bye: either end just hears nothing any more
        said, _ = agents[0].communicate(timeout=SECONDS)
    assert "no answer within its deadline of 6 s; the workers were killed; start the job again" in said
    assert re.search(r"rank +: 0 .*\n *exitcode +: 4 ", said), said
    kept, notices = Store.read(tmp_path)
    assert sum(isinstance(trial.outcome, Measured) for trial in kept) >= 2
    assert notices == []
