"""Who is a rank of a job: what torchrun, mpirun and srun tell, and what looks like it and is none."""

from __future__ import annotations

import pytest

from dcp_core.launcher import LauncherError, Place, place

MASTER = {"MASTER_ADDR": "node1", "MASTER_PORT": "29500"}
TORCHRUN = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}
MPIRUN = {"OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_LOCAL_RANK": "1"}
SRUN = {"SLURM_PROCID": "3", "SLURM_STEP_NUM_TASKS": "4", "SLURM_LOCALID": "1", "SLURM_NTASKS": "4"}


@pytest.mark.parametrize("variables", [TORCHRUN, MPIRUN, SRUN])
def test_each_launcher_tells_rank_size_and_rank_on_the_node(variables: dict[str, str]) -> None:
    assert place(variables | MASTER) == Place(3, 4, 1)


def test_without_a_rank_on_the_node_it_is_the_rank() -> None:
    assert place({"RANK": "3", "WORLD_SIZE": "4"} | MASTER) == Place(3, 4, 3)


def test_torchrun_started_by_srun_and_mpirun_over_srun_s_daemons_are_told_by_the_inner_one() -> None:
    inside = {"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "2", "SLURM_LOCALID": "0"} | MASTER
    assert place(inside | TORCHRUN) == Place(3, 4, 1)
    assert place(inside | MPIRUN) == Place(3, 4, 1)


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"WORLD_SIZE": "4"},
        # A batch script of eight tasks, and salloc's shell: a process by itself within what was allocated.
        {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NTASKS": "8"},
        {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NTASKS": "8", "SLURM_STEP_NUM_TASKS": "1"},
        {"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "1"},
    ],
)
def test_a_process_by_itself_is_no_rank(variables: dict[str, str]) -> None:
    assert place(variables) is None


def test_one_process_of_torchrun_is_a_job_of_one_and_needs_no_master() -> None:
    assert place({"RANK": "0", "WORLD_SIZE": "1"}) == Place(0, 1, 0)


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        (TORCHRUN, "WORLD_SIZE=4 needs MASTER_ADDR: .*torchrun sets both, or export them"),
        (TORCHRUN | {"MASTER_ADDR": "node1"}, "WORLD_SIZE=4 needs MASTER_PORT"),
        (MPIRUN, r"OMPI_COMM_WORLD_SIZE=4 needs MASTER_ADDR: .*mpirun --bind-to none -x MASTER_ADDR=\$\(hostname\)"),
        (SRUN, "SLURM_STEP_NUM_TASKS=4 needs MASTER_ADDR: before srun, export MASTER_ADDR=.*scontrol .*srun -n 1"),
        (TORCHRUN | MASTER | {"WORLD_SIZE": "two"}, "WORLD_SIZE='two' should be a whole number from 1 up"),
        (TORCHRUN | MASTER | {"WORLD_SIZE": "0"}, "WORLD_SIZE='0' should be a whole number from 1 up"),
        (TORCHRUN | MASTER | {"RANK": "-1"}, "RANK='-1' should be a whole number from 0 up"),
        (TORCHRUN | MASTER | {"RANK": "4"}, "RANK=4 is outside WORLD_SIZE=4"),
        (TORCHRUN | MASTER | {"LOCAL_RANK": "²"}, "LOCAL_RANK='²' should be"),
        (SRUN | MASTER | {"SLURM_PROCID": "9"}, "SLURM_PROCID=9 is outside SLURM_STEP_NUM_TASKS=4"),
        (TORCHRUN | {"MASTER_ADDR": "node1", "MASTER_PORT": "x"}, "MASTER_PORT='x' should be a whole number"),
        (TORCHRUN | {"MASTER_ADDR": "node1", "MASTER_PORT": "70000"}, "MASTER_PORT=70000 is no port"),
        ({"RANK": "0"}, "WORLD_SIZE='' should be a whole number from 1 up"),
    ],
)
def test_what_a_launcher_says_wrongly_is_refused_in_a_sentence(variables: dict[str, str], message: str) -> None:
    with pytest.raises(LauncherError, match=message):
        place(variables)
