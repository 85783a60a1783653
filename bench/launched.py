"""A job that a launcher started (torchrun, srun, mpirun), on one node or several: rank 0 leads, the others follow its orders.

Every process runs the same command. Rank 0 is the program that reads, writes and prints, and never imports torch: a worker of
its own takes its place in the job and passes its orders on. The other processes are workers themselves. Nobody can be started
again here: a rank that is lost, or does not answer in time, ends the job, and what was measured is kept.
"""

from __future__ import annotations

import datetime
import gc
import json
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Protocol

from bench.errors import UnfitError
from bench.group import STRAGGLER_SECONDS, GroupLost, WorkerGroup, failure_of
from bench.orders import REPLY_VARIABLE, SUPERVISOR_VARIABLE, Compiling, unheard
from dcp_core import launcher

if TYPE_CHECKING:
    from dcp_core.mesh import Mesh

LEADER = (sys.executable, "-m", "bench.launched")
"""The command of the worker that takes rank 0's place."""
JOIN_SECONDS = 480.0
"""How long that may take: to import its libraries, and for the ranks to find one another, whose own limit is five minutes."""
GRACE_SECONDS = 10.0
"""How much longer than a case's deadline a rank may work on it before it ends itself; its leader has given up by then."""
LOOK_SECONDS = 1.0
"""How often rank 0 looks whether a rank has failed at the order under way."""
PATIENCE = datetime.timedelta(days=7)
"""How long a rank waits for the next order, or for another's answer to one: the leader's deadlines and the launcher end jobs."""
_NO_ORDER: Any = None
_ENDED = 4
"""Exit code of a rank whose job is at its end: the environment is unfit (docs/method.md)."""
AGAIN = "start the job again: it goes on with what is missing"


class Group(Protocol):
    """Ranks that take orders, whoever started them."""

    def ask(
        self, order: dict[str, Any], seconds: float, told: Callable[[Compiling], None] = ...
    ) -> list[dict[str, Any]]:
        """Give every rank an order, and return their answers by rank; ``told`` hears what is compiled in the meantime.

        Raises:
            GroupLost: if a rank is lost; the group is of no further use then.
        """
        ...

    def close(self) -> None:
        """End the group, or leave it as it is if it outlives this use of it."""
        ...


def launched_ranks() -> int | None:
    """Return the ranks of the job that this process is one of, as its launcher tells; None if there is no launcher.

    Raises:
        UnfitError: if what the launcher tells makes no sense.
    """
    place = _place()
    return place.size if place else None


def _place() -> launcher.Place | None:
    if SUPERVISOR_VARIABLE in os.environ:
        return None
    try:
        return launcher.place(os.environ)
    except launcher.LauncherError as error:
        raise UnfitError(str(error)) from None


def open_group(ranks: int, command: Sequence[str]) -> Group:
    """Return the launched job, or start ``ranks`` workers on this machine if there is none."""
    return _job() if launched_ranks() else WorkerGroup(ranks, command)


class Job:
    """The launched ranks, as rank 0 sees them. One for the whole process: a process group is joined once."""

    def __init__(self) -> None:
        self._worker: WorkerGroup | None = None
        self._lost = ""

    def ask(
        self, order: dict[str, Any], seconds: float, told: Callable[[Compiling], None] = unheard
    ) -> list[dict[str, Any]]:
        """Give every rank an order, and return their answers by rank.

        Args:
            told: hears what rank 0 compiles in the meantime.

        Raises:
            GroupLost: if a rank is lost, or one has not answered after ``seconds``, or STRAGGLER_SECONDS after another failed.
            UnfitError: if that happened before, a device is of no further use, or the ranks do not find one another.
        """
        worker = self._open()
        try:
            (answer,) = worker.ask({**order, "seconds": seconds}, seconds, told)
        except GroupLost as lost:
            self._lost = str(lost)
            raise
        except BaseException:
            self._lost = "this job was stopped in the middle of an order"  # its ranks are in different collectives
            raise
        if failed := answer.get("alone"):
            self._lost = f"rank {failed['rank']} of this job failed alone"
            raise GroupLost(failed["fault"], f"rank {failed['rank']} alone: {failed['message']}", failed["traceback"])
        if "lost" in answer:
            self._lost = f"a rank of this job is lost ({answer['lost']})"
            raise GroupLost("crashed", self._lost, "")
        answers: list[dict[str, Any]] = answer["answers"]
        if any(found.get("poisoned") for found in answers):
            self._lost = "a fault has left a device of this job of no further use"
        return answers

    def close(self) -> None:
        """Leave the job as it is: it may be asked again, and ends with the program."""

    def dismiss(self) -> None:
        """Let the other ranks end."""
        if not self._lost:
            with suppress(GroupLost, UnfitError):  # of ranks that ended by themselves
                self._open().ask(_NO_ORDER, JOIN_SECONDS)

    def leave(self) -> None:
        """End rank 0's worker; ranks that were not dismissed see it go, and end."""
        if self._worker is not None:
            self._worker.close()

    def _open(self) -> WorkerGroup:
        if self._lost:
            raise UnfitError(f"{self._lost}; {AGAIN}")
        if self._worker is None:
            try:
                self._worker = WorkerGroup(1, LEADER, environment=os.environ, seconds=JOIN_SECONDS)
            except UnfitError as unfit:
                self._lost = str(unfit)
                raise
            except GroupLost as lost:
                self._lost = f"rank 0 of this job does not come up: {lost}; its last words: {lost.log.strip()[-500:]}"
                raise UnfitError(self._lost) from None
            except BaseException:
                self._lost = (
                    "this job was stopped before its ranks had found one another"  # nor can they be asked to end
                )
                raise
        return self._worker


def run(lead: Callable[[], int]) -> int:
    """Run the program: on rank 0 of a launched job as its leader, on the others as followers, else by itself.

    Args:
        lead: the program itself.

    Returns:
        The exit code.

    Raises:
        UnfitError: if what the launcher tells makes no sense, or the ranks do not find one another.
    """
    place = _place()
    if place is None:
        return lead()
    if place.rank:
        return follow()
    try:
        code = lead()
        _job().dismiss()
    except Exception:  # whatever the program ends with, the others are not left waiting
        _job().dismiss()
        raise
    finally:
        # On a signal the others got it too, and nobody may be there to be dismissed.
        for job in _JOBS:
            job.leave()
        _JOBS.clear()
    return code


def follow() -> int:
    """Serve rank 0's orders on another rank, until it sends none; return the exit code.

    A rank that does not come to an end with an order ends itself, since others wait for it in vain and nobody else can end it.
    """
    from bench.worker import Companion, answer

    with _ended_by_signals():
        mesh, orders = _join()
    companion, alarm = Companion(), Alarm(mesh)
    try:
        while (order := orders.share(_NO_ORDER)[0]) is not None:
            with _ended_after(order["seconds"] + GRACE_SECONDS, mesh.rank):
                found = answer(order, mesh, companion)
            alarm.ring(found)
            orders.share(found)
    except RuntimeError:
        return _ENDED  # rank 0 is gone, and has said why if it could
    finally:
        gc.unfreeze()  # what a rank keeps from collection, libraries would report as leaked when the interpreter ends
        with suppress(RuntimeError):  # of a group that a lost rank has broken
            mesh.close()
    return 0


def serve() -> None:
    """Be rank 0 of a job as a worker: pass each order on, and answer with what every rank answered, until there is none."""
    from bench.worker import Companion, answer, end_with_supervisor, tell_compiles

    end_with_supervisor()
    with os.fdopen(int(os.environ[REPLY_VARIABLE]), "w", encoding="utf-8") as replies:

        def reply(found: dict[str, Any]) -> None:
            print(json.dumps(found), file=replies, flush=True)

        try:
            mesh, orders = _join()
        except UnfitError as unfit:
            reply({"unfit": str(unfit)})
            return
        reply({"ready": mesh.rank})
        tell_compiles(mesh, reply)
        companion, alarm = Companion(), Alarm(mesh)
        try:
            for line in sys.stdin:
                order = orders.share(json.loads(line))[0]
                if order is _NO_ORDER:
                    break
                with alarm.heard(reply):
                    found = answer(order, mesh, companion)
                    alarm.ring(found)
                    answers = orders.share(found)
                reply({"answers": answers})
        except RuntimeError as error:
            reply({"lost": _heart(error)})
            sys.stdin.read()  # until the supervisor ends this process: leaving a broken group could wait for a lost rank
        mesh.close()


class Alarm:
    """Where a rank says that it failed at an order, in the store of the rendezvous: the others may be waiting for it in vain.

    Every rank has one, and rings it, or not, after each order.
    """

    def __init__(self, mesh: Mesh) -> None:
        from torch.distributed.distributed_c10d import _get_default_store

        self._rank, self._orders = mesh.rank, 0
        self._store = _get_default_store() if mesh.size > 1 else None

    def ring(self, found: dict[str, Any]) -> None:
        """Say what this rank answers to an order, if it failed."""
        failed = failure_of(found)
        if failed and self._store is not None:
            self._store.set(self._key, json.dumps({**failed, "rank": self._rank}))
        self._orders += 1

    @contextmanager
    def heard(self, reply: Callable[[dict[str, Any]], None]) -> Iterator[None]:
        """Have a rank that failed told if the others do not come to an end with the order, STRAGGLER_SECONDS later.

        They never do then: this does not return.
        """
        key, store, ended, told = self._key, self._store, threading.Event(), threading.Lock()

        def listen() -> None:
            while store is not None and not ended.wait(LOOK_SECONDS):
                if store.check([key]):
                    if not ended.wait(STRAGGLER_SECONDS) and told.acquire(blocking=False):
                        reply({"alone": json.loads(store.get(key))})
                    return

        threading.Thread(target=listen, daemon=True).start()
        try:
            yield
        finally:
            ended.set()
        if not told.acquire(blocking=False):
            threading.Event().wait()  # until the supervisor, which was told, ends this process

    @property
    def _key(self) -> str:
        return f"dcpbench/failed/{self._orders}"


def _join() -> tuple[Mesh, Mesh]:
    """Join the job's ranks: for what a case does, and to hear of orders, which never meet a case's messages that went astray."""
    from dcp_core.mesh import Mesh, MeshError

    try:
        mesh = Mesh.from_env()
    except MeshError as error:
        raise UnfitError(str(error)) from None
    return mesh, mesh.channel(PATIENCE)


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Let signals end this process at once: Python's handlers would wait until torch has found the other ranks, or given up."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {
        number: handler for number in numbers if (handler := signal.getsignal(number)) not in (None, signal.SIG_IGN)
    }
    for number in before:
        signal.signal(number, signal.SIG_DFL)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _ended_after(seconds: float, rank: int) -> Iterator[None]:
    """End this process if what is inside takes longer, whatever it waits for."""

    def give_up() -> None:
        os.write(2, f"dcpbench: rank {rank} did not end its part of a case within {seconds:.0f} s; {AGAIN}\n".encode())
        os._exit(_ENDED)

    timer = threading.Timer(seconds, give_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _heart(error: RuntimeError) -> str:
    """Return what a collective complains of, without the file of gloo that says so and the guesses behind it."""
    first = str(error).splitlines()[0]
    return re.sub(r"^\[[^\]]*\]\s*", "", first).split(". ")[0][:200]


_JOBS: list[Job] = []


def _job() -> Job:
    if not _JOBS:
        _JOBS.append(Job())
    return _JOBS[0]


if __name__ == "__main__":
    serve()
