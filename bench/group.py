"""A group of worker processes, one per rank: started, spoken to, and ended together. Never imports torch."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from bench.errors import UnfitError
from bench.orders import REPLY_VARIABLE, SUPERVISOR_VARIABLE, Compiling, unheard

START_SECONDS = 180.0
"""How long a group may take to import its libraries and find itself."""
STRAGGLER_SECONDS = 10.0
"""How long the others may take once a rank has failed: they may wait in a collective for one that never comes."""
WORKER = (sys.executable, "-m", "bench.worker")
"""The command that a worker is."""
ENDING_SECONDS = 10.0
"""How long a killed worker is waited for: one that is stuck in the driver ends only when that lets go of it."""
EXIT_SECONDS = 5.0
"""How long a worker that has closed its pipe may take to end."""
LOG_TAIL_BYTES = 4000
"""Of a dead worker's own output that are kept with the failure."""
LAUNCHER_PREFIX = "TORCHELASTIC_"
"""Variables that another launcher left: they would have torch join that launcher's store instead of opening ours."""


class GroupLost(RuntimeError):
    """A worker died, did not answer in time, or failed while its peers wait for it; the whole group was ended.

    ``fault``: ``crashed``, ``timeout``, ``nonsense`` for what is no answer, or what the failed worker said.
    """

    def __init__(self, fault: str, message: str, log: str) -> None:
        super().__init__(message)
        self.fault, self.log = fault, log


class WorkerGroup:
    """``ranks`` workers on this machine, each in a process group of its own, so that no signal meant for us hits them."""

    def __init__(
        self,
        ranks: int,
        command: Sequence[str] = WORKER,
        *,
        environment: Mapping[str, str] | None = None,
        seconds: float = START_SECONDS,
    ) -> None:
        """Start the workers and wait until every one is ready.

        Args:
            command: of one worker; whatever speaks as ``bench.orders`` says will do.
            environment: that tells a worker its place in a group; by default that of a group on this machine.
            seconds: that they may take.

        Raises:
            GroupLost: if one does not come up.
            UnfitError: if this machine lets no more processes start, or files open; or a worker says why it cannot work here.
        """
        self._environment = environment
        self._command = tuple(command)
        self._workers: list[subprocess.Popen[bytes]] = []
        self._replies: list[_Lines] = []
        try:
            self._log = tempfile.TemporaryFile()  # noqa: SIM115  # closed with the group
            self._start_all(ranks, seconds)
        except OSError as error:
            why = (error.strerror or str(error)).lower()
            raise UnfitError(f"cannot start {ranks} workers here: {why}; ask for fewer with --ranks") from None

    def ask(
        self, order: dict[str, Any], seconds: float, told: Callable[[Compiling], None] = unheard
    ) -> list[dict[str, Any]]:
        """Give every rank an order, and return their answers by rank.

        Args:
            told: hears what is compiled in the meantime.

        Raises:
            GroupLost: if a worker dies, or one has not answered after ``seconds``, or STRAGGLER_SECONDS after another
                failed; the group is ended then.
        """
        line = json.dumps(order).encode() + b"\n"
        for worker in self._workers:
            if worker.stdin is not None:
                try:
                    worker.stdin.write(line)
                    worker.stdin.flush()
                except BrokenPipeError:
                    raise self._lost("crashed", worker) from None
        return self._collect(seconds, told)

    def close(self) -> None:
        """End the workers: at once, whatever they are doing. Closing twice does nothing more."""
        for worker in self._workers:
            if worker.poll() is None:
                os.killpg(worker.pid, signal.SIGKILL)
        for worker in self._workers:
            with contextlib.suppress(subprocess.TimeoutExpired):
                worker.wait(ENDING_SECONDS)
            if worker.stdin is not None:
                with contextlib.suppress(BrokenPipeError):  # an order that a dead worker never read
                    worker.stdin.close()
        for lines in self._replies:
            lines.close()
        self._log.close()
        self._workers, self._replies = [], []

    def _start_all(self, ranks: int, seconds: float) -> None:
        try:
            port = _free_port()
            for rank in range(ranks):
                self._start(self._environment or _environment(rank, ranks, port))
            for answer in self._collect(seconds):
                if why := answer.get("unfit"):
                    raise UnfitError(why)
        except BaseException:  # a signal may come at any time, and nobody else knows of these workers yet
            self.close()
            raise

    def _start(self, environment: Mapping[str, str]) -> None:
        read_end, write_end = os.pipe()
        try:
            worker = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=self._log,
                stderr=self._log,
                env={**environment, SUPERVISOR_VARIABLE: str(os.getpid()), REPLY_VARIABLE: str(write_end)},
                pass_fds=(write_end,),
                start_new_session=True,
            )
        except BaseException:
            os.close(read_end)
            raise
        finally:
            os.close(write_end)
        self._workers.append(worker)
        os.set_blocking(read_end, False)
        self._replies.append(_Lines(read_end, worker))

    def _collect(self, seconds: float, told: Callable[[Compiling], None] = unheard) -> list[dict[str, Any]]:
        """Wait for one answer of every rank."""
        deadline = time.monotonic() + seconds
        answers: dict[int, dict[str, Any]] = {}
        with selectors.DefaultSelector() as selector:
            for rank, lines in enumerate(self._replies):
                selector.register(lines.descriptor, selectors.EVENT_READ, rank)
            while len(answers) < len(self._replies):
                ready = selector.select(max(0.0, deadline - time.monotonic()))
                if not ready:
                    raise self._deserted(answers) or self._lost("timeout", seconds=seconds)
                for key, _ in ready:
                    lines = self._replies[key.data]
                    try:
                        answer = _heard(lines.read(), told)
                    except ValueError:
                        raise self._lost("nonsense") from None
                    if answer is None and time.monotonic() > deadline:  # whatever a worker goes on saying
                        raise self._deserted(answers) or self._lost("timeout", seconds=seconds)
                    if answer is None and lines.ended:
                        raise self._lost("crashed", lines.worker)
                    if answer is not None:
                        answers[key.data] = answer
                        selector.unregister(lines.descriptor)
                        if failure_of(answer):
                            deadline = min(deadline, time.monotonic() + STRAGGLER_SECONDS)
        return [answers[rank] for rank in range(len(self._replies))]

    def _deserted(self, answers: dict[int, dict[str, Any]]) -> GroupLost | None:
        """End the workers if one of them failed while others still wait, and return what it said; None if none failed."""
        failed = [(rank, failure) for rank, answer in sorted(answers.items()) if (failure := failure_of(answer))]
        if not failed:
            return None
        self.close()
        rank, failure = failed[0]
        return GroupLost(failure["fault"], f"rank {rank} alone: {failure['message']}", failure["traceback"])

    def _lost(self, fault: str, worker: subprocess.Popen[bytes] | None = None, *, seconds: float = 0.0) -> GroupLost:
        log = self._tail()
        if worker is not None:
            code = _end_of(worker)
            how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
            message = f"a worker died ({how})"
        elif fault == "nonsense":
            message = "a worker said what is no answer; the workers were killed"
        else:
            message = f"no answer within its deadline of {seconds:.0f} s; the workers were killed"
        self.close()
        return GroupLost(fault, message, log)

    def _tail(self) -> str:
        self._log.flush()
        size = os.fstat(self._log.fileno()).st_size
        return os.pread(self._log.fileno(), LOG_TAIL_BYTES, max(0, size - LOG_TAIL_BYTES)).decode(errors="replace")


def _environment(rank: int, ranks: int, port: int) -> dict[str, str]:
    """Return a worker's environment: ours, and its place in the group."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(LAUNCHER_PREFIX)}
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, (os.cpu_count() or 1) // ranks))
    return {
        **inherited,
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(ranks),
        "LOCAL_WORLD_SIZE": str(ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": threads,
    }


def _end_of(worker: subprocess.Popen[bytes]) -> int:
    """Return how a worker ended that closed its pipe; one that hangs on its way out is killed."""
    try:
        return worker.wait(EXIT_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(worker.pid, signal.SIGKILL)
        return worker.wait()


class _Lines:
    """The answers of one worker, as they come."""

    def __init__(self, descriptor: int, worker: subprocess.Popen[bytes]) -> None:
        self.descriptor, self.worker, self.ended = descriptor, worker, False
        self._pending = b""

    def read(self) -> Iterator[dict[str, Any]]:
        """Yield the whole lines that have come; none if there is none yet or the worker closed its end.

        Raises:
            ValueError: for a line that is no object.
        """
        chunk = os.read(self.descriptor, 1 << 20)
        self.ended = not chunk
        self._pending += chunk
        while b"\n" in self._pending:
            line, _, self._pending = self._pending.partition(b"\n")
            said = json.loads(line)
            if not isinstance(said, dict):
                raise ValueError(f"a worker answers with an object, not {type(said).__name__}")
            yield said

    def close(self) -> None:
        """Close this end."""
        os.close(self.descriptor)


def _heard(lines: Iterator[dict[str, Any]], told: Callable[[Compiling], None]) -> dict[str, Any] | None:
    """Pass on what a worker says of what it does, and return its answer, or None if that is still to come.

    Raises:
        ValueError: for a line that is neither.
    """
    for said in lines:
        if "compiling" not in said:
            return said
        told(Compiling.read(said["compiling"]))
    return None


def failure_of(answer: dict[str, Any]) -> dict[str, str] | None:
    """Return an answer's outcome if it is a failure, else None."""
    outcome = answer.get("outcome", {})
    return outcome if outcome.get("kind") == "failed" else None


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
