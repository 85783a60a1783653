"""A job that a launcher started (torchrun, srun, mpirun), on one node or several: rank 0 leads, the others follow its orders.

Every process runs the same command. Rank 0 is the program that reads, writes and prints; the rest do what a worker does, told
over the job's process group. Nobody can be started again here: a rank that is lost ends the job, and what was measured is kept.
"""

from __future__ import annotations

import gc
import os
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Protocol

from bench.errors import UnfitError
from bench.group import GroupLost, WorkerGroup
from bench.orders import SUPERVISOR_VARIABLE

if TYPE_CHECKING:
    from dcp_core.mesh import Mesh

_NO_ORDER: Any = None
_LEADERLESS = 4
"""Exit code of a rank whose leader went away: the environment is unfit (docs/method.md)."""
AGAIN = "start the job again: it goes on with what is missing"


class Group(Protocol):
    """Ranks that take orders, whoever started them."""

    def ask(self, order: dict[str, Any], seconds: float) -> list[dict[str, Any]]:
        """Give every rank an order, and return their answers by rank.

        Raises:
            GroupLost: if a rank is lost; the group is of no further use then.
        """
        ...

    def close(self) -> None:
        """End the group, or leave it as it is if it outlives this use of it."""
        ...


def launched_ranks() -> int | None:
    """Return the ranks of the job that this process is one of, as its launcher tells; None if there is no launcher."""
    if SUPERVISOR_VARIABLE in os.environ or "RANK" not in os.environ:
        return None
    size = os.environ.get("WORLD_SIZE", "")
    if not (size.isascii() and size.isdigit() and int(size) > 0):
        raise UnfitError(f"RANK is set, as by a launcher, and WORLD_SIZE={size!r} is no number of ranks")
    return int(size)


def open_group(ranks: int, command: Sequence[str]) -> Group:
    """Return the launched job, or start ``ranks`` workers on this machine if there is none."""
    return _job() if launched_ranks() else WorkerGroup(ranks, command)


class Job:
    """The launched ranks, as rank 0 sees them. One for the whole process: a process group is joined once."""

    def __init__(self) -> None:
        from bench.worker import Companion
        from dcp_core.mesh import Mesh

        self._mesh = Mesh.from_env()
        self._companion = Companion()
        self._lost = ""

    def ask(self, order: dict[str, Any], seconds: float) -> list[dict[str, Any]]:
        """Give every rank an order, this one included, and return their answers.

        The deadline is that of the process group's collectives: no rank can be killed from here.

        Raises:
            GroupLost: if a rank is lost.
            UnfitError: if one was lost before, or its device is of no further use.
        """
        from bench.worker import answer

        if self._lost:
            raise UnfitError(f"{self._lost}; {AGAIN}")
        try:
            self._mesh.share(order)
            answers = self._mesh.share(answer(order, self._mesh, self._companion))
        except RuntimeError as error:
            self._lost = f"a rank of this job is lost ({_heart(error)})"
            raise GroupLost("crashed", self._lost, "") from None
        except BaseException:
            self._lost = "this job was stopped in the middle of an order"  # its ranks are in different collectives
            raise
        if any(found.get("poisoned") for found in answers):
            self._lost = "a fault has left a device of this job of no further use"
        return answers

    def close(self) -> None:
        """Leave the job as it is: it may be asked again, and ends with the program."""

    def dismiss(self) -> None:
        """Let the other ranks end."""
        if not self._lost:
            with suppress(RuntimeError):  # of a rank that ended by itself
                self._mesh.share(_NO_ORDER)

    def leave(self) -> None:
        """Leave the process group: one that is still there when the interpreter ends takes the process down with an abort."""
        _leave(self._mesh)


def run(lead: Callable[[], int]) -> int:
    """Run the program: on rank 0 of a launched job as its leader, on the others as followers, else by itself.

    Args:
        lead: the program itself.

    Returns:
        The exit code.
    """
    if not launched_ranks():
        return lead()
    if os.environ["RANK"] != "0":
        return follow()
    try:
        code = lead()
        _job().dismiss()
    except Exception:
        _job().dismiss()
        raise
    finally:
        # On a signal the others got it too, and nobody may be there to be dismissed.
        for job in _JOBS:
            job.leave()
        _JOBS.clear()
    return code


def follow() -> int:
    """Serve rank 0's orders on another rank, until it sends none; return the exit code."""
    from bench.worker import Companion, answer
    from dcp_core.mesh import Mesh

    mesh, companion = Mesh.from_env(), Companion()
    try:
        while (order := mesh.share(_NO_ORDER)[0]) is not None:
            mesh.share(answer(order, mesh, companion))
    except RuntimeError:
        return _LEADERLESS  # rank 0 is gone, and has said why if it could
    finally:
        _leave(mesh)
    return 0


def _leave(mesh: Mesh) -> None:
    gc.unfreeze()  # what a rank keeps from collection, libraries would report as leaked when the interpreter ends
    with suppress(RuntimeError):  # of a group that a lost rank has broken
        mesh.close()


def _heart(error: RuntimeError) -> str:
    """Return what a collective complains of, without the file of gloo that says so and the guesses behind it."""
    first = str(error).splitlines()[0]
    return re.sub(r"^\[[^\]]*\]\s*", "", first).split(". ")[0][:200]


_JOBS: list[Job] = []


def _job() -> Job:
    if not _JOBS:
        _JOBS.append(Job())
    return _JOBS[0]
