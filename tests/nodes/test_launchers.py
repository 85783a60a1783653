"""Started by a real mpirun and a real srun, as a run without MASTER_ADDR tells to: every rank takes part, on all cores."""

from __future__ import annotations

import os
import re
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from bench.record import Measured
from bench.store import Store
from tests.bench.test_launched import SECONDS, port

pytestmark = pytest.mark.launchers

SWEEP = (
    *(sys.executable, "-m", "bench", "sweep", "--model", "tiny", "--tp", "4", "--dcp", "2", "--batch", "q8s40"),
    *("--path", "split", "--exchange", "a2a", "--precision", "quick", "--results"),
)
CORES = (sys.executable, "-c", "import os; print(len(os.sched_getaffinity(0)))")
AS_ROOT_ON_FEW_CORES = "--allow-run-as-root --oversubscribe"
SLURM = """
ClusterName=one
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmdPort={daemon}
AuthType=auth/none
CredType=cred/none
SlurmUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/pgid
TaskPlugin=task/affinity
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SwitchType=switch/none
MpiDefault=none
NodeName={host} NodeAddr=127.0.0.1 {cores}
PartitionName=main Nodes={host} Default=YES State=UP
"""


def shell(command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    words, environment = ["bash", "-c", command], os.environ | {"OMP_NUM_THREADS": "1"} | variables
    return subprocess.run(words, check=False, env=environment, capture_output=True, text=True, timeout=SECONDS)


def advised(said: str, launcher: str) -> str:
    """Return the command that a run advises to start it with, at a port that is free here."""
    found = re.search(rf"start it as ({launcher} .*?) …", said)
    assert found is not None, said
    return found[1].replace("29500", str(port()))


def check_job(command: str, results: Path, **variables: str) -> None:
    """Check that a job of two ranks measures together, and that each may use every core."""
    done = shell(f"{command} {shlex.join((*SWEEP, str(results)))}", **variables)
    assert done.returncode == 0, done.stderr
    (one,) = Store.read(results)[0]
    assert isinstance(one.outcome, Measured)
    assert (one.ranks, len(one.outcome.rank_samples_us)) == (2, 2)
    here = str(len(os.sched_getaffinity(0)))
    assert shell(f"{command} {shlex.join(CORES)}", **variables).stdout.split() == [here, here]


def test_a_job_of_mpirun_s_measures_as_a_run_advises_to_start_it(tmp_path: Path) -> None:
    words = f"-np 2 {AS_ROOT_ON_FEW_CORES}"
    refused = shell(f"mpirun {words} {shlex.join((*SWEEP, str(tmp_path)))}")
    assert refused.returncode == 4
    check_job(f"{advised(refused.stderr, 'mpirun')} {words}", tmp_path)


@pytest.fixture
def slurm(tmp_path: Path) -> Iterator[Mapping[str, str]]:
    """Start a cluster of this machine alone, and yield the variables of an allocation's shell."""
    host = socket.gethostname().partition(".")[0]
    hardware = subprocess.run(["slurmd", "-C"], check=True, capture_output=True, text=True).stdout
    cores = " ".join(word for word in hardware.split() if word.startswith(("CPUs", "Sockets", "Cores", "Threads")))
    file = tmp_path / "slurm.conf"
    for folder in ("state", "spool"):
        (tmp_path / folder).mkdir()
    file.write_text(SLURM.format(host=host, controller=port(), daemon=port(), folder=tmp_path, cores=cores))
    variables = {"SLURM_CONF": str(file)}
    daemons = [
        subprocess.Popen([*words, "-D", "-f", str(file)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for words in (["slurmctld"], ["slurmd", "-N", host])
    ]
    try:
        wait_until_idle(variables)
        yield variables
    finally:
        for daemon in daemons:
            daemon.terminate()
            daemon.wait()


def wait_until_idle(variables: Mapping[str, str]) -> None:
    deadline = time.monotonic() + SECONDS
    while shell("sinfo --noheader --format %t", **variables).stdout.strip() != "idle":
        assert time.monotonic() < deadline


def test_a_job_of_srun_s_measures_as_a_run_advises_to_start_it(slurm: Mapping[str, str], tmp_path: Path) -> None:
    results = tmp_path / "results"
    refused = shell(f"srun -n 2 {shlex.join((*SWEEP, str(results)))}", **slurm)
    assert refused.returncode == 4
    exported = re.search(r"before srun, (export .*), and", refused.stderr)
    assert exported is not None, refused.stderr
    script = f'{exported[1].replace("29500", str(port()))}; {advised(refused.stderr, "srun")} -n 2 "$@"'
    check_job(f"salloc -n 2 bash -c {shlex.quote(script)} job", results, **slurm)
