"""What a launcher tells a process of its place in a job: torchrun, mpirun or srun. Floor 0: standard library only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum


class LauncherError(ValueError):
    """Variables of a launcher that are incomplete or contradict each other."""


class Launcher(StrEnum):
    """Who started the processes of a job."""

    TORCHRUN = "torchrun"
    MPIRUN = "mpirun"
    SRUN = "srun"


@dataclass(frozen=True, slots=True)
class Place:
    """One process of a job: its rank of ``size``, and its number among those on its node."""

    rank: int
    size: int
    local_rank: int


# Rank, ranks, and rank on the node; who stands first wins. mpirun starts its daemons through srun, whose names its ranks inherit.
# SLURM_STEP_NUM_TASKS counts the tasks of one srun; SLURM_NTASKS, like SLURM_PROCID, is there in a batch script and in
# salloc's shell as well, and counts what was allocated.
_NAMES: Mapping[Launcher, tuple[str, str, str]] = {
    Launcher.TORCHRUN: ("RANK", "WORLD_SIZE", "LOCAL_RANK"),
    Launcher.MPIRUN: ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"),
    Launcher.SRUN: ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"),
}
# Both launchers bind each rank to one core unless told not to: what exchanges in the background then waits for the rank.
_MASTER: Mapping[Launcher, str] = {
    Launcher.TORCHRUN: "MASTER_ADDR is the host of rank 0 and MASTER_PORT a free port of it: torchrun sets both, or export them",
    Launcher.MPIRUN: "on the host of rank 0, start it as mpirun --bind-to none -x MASTER_ADDR=$(hostname) -x MASTER_PORT=29500 …",
    Launcher.SRUN: 'before srun, export MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1) '
    "MASTER_PORT=29500, and start it as srun --cpu-bind=none …; to have no job of several ranks, srun -n 1",
}


def place(environ: Mapping[str, str]) -> Place | None:
    """Return the place of this process in a launched job; None if no launcher started it, or it started this one alone.

    One process of torchrun's is a job of one; one of mpirun's or srun's, like a batch script or salloc's shell, is none.

    Raises:
        LauncherError: naming the variable, its value, and what would be right.
    """
    launcher = _launcher(environ)
    if launcher is None:
        return None
    rank_name, size_name, local_name = _NAMES[launcher]
    size, rank = _number(environ, size_name, least=1), _number(environ, rank_name)
    if rank >= size:
        raise LauncherError(f"{rank_name}={rank} is outside {size_name}={size}")
    if size > 1:
        _check_master(environ, launcher, f"{size_name}={size}")
    return Place(rank, size, _number(environ, local_name) if local_name in environ else rank)


def _launcher(environ: Mapping[str, str]) -> Launcher | None:
    for launcher, (rank, size, _) in _NAMES.items():
        if rank in environ and (launcher is Launcher.TORCHRUN or environ.get(size, "1") != "1"):
            return launcher
    return None


def _check_master(environ: Mapping[str, str], launcher: Launcher, size: str) -> None:
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        if not environ.get(name):
            raise LauncherError(f"{size} needs {name}: {_MASTER[launcher]}")
    if _number(environ, "MASTER_PORT") >= 1 << 16:
        raise LauncherError(f"MASTER_PORT={environ['MASTER_PORT']} is no port: they end at 65535")


def _number(environ: Mapping[str, str], name: str, *, least: int = 0) -> int:
    text = environ.get(name, "")
    if not (text.isascii() and text.isdigit() and len(text) <= 9 and int(text) >= least):
        raise LauncherError(f"{name}={text[:40]!r} should be a whole number from {least} up, set by the launcher")
    return int(text)
