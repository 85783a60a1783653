"""Real ranks for tests: one process each, joined as a launcher would join them."""

from __future__ import annotations

import io
import multiprocessing
import os
import socket
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from typing import Any, TypeVar

import torch

from dcp_core.mesh import Mesh

T = TypeVar("T")
DEADLINE_SECONDS = 100.0


def on_ranks(
    ranks: int,
    work: Callable[..., T],
    *arguments: Any,
    cuda: bool = False,
    join: Callable[[], Mesh] = Mesh.from_env,
    dies: int | None = None,
) -> list[T]:
    """Call ``work(mesh, *arguments)`` on every rank of a real group, and return what each made of it.

    The group talks through gloo, on the CPU; with ``cuda`` through NCCL, a device each, or as ``join`` forms it. ``work``
    and ``join`` are functions of a module, and everything that goes in or comes out can be sent to another process.
    Nothing is returned for the rank that ``dies``, as it must.

    Raises:
        AssertionError: with the traceback of the first rank that fails, or if one does not answer in time.
    """
    context, port = multiprocessing.get_context("spawn"), _free_port()
    answers: dict[int, T] = {}
    with _ended_for_certain() as processes:
        waiting: dict[Connection, int] = {}
        for rank in range(ranks):
            ours, theirs = context.Pipe(duplex=False)
            arguments_of_rank = (rank, ranks, port, theirs, cuda, join, work, arguments)
            processes.append(context.Process(target=_serve, args=arguments_of_rank))
            processes[-1].start()
            theirs.close()
            waiting[ours] = rank
        deadline = time.monotonic() + DEADLINE_SECONDS
        while waiting:
            ready = wait(list(waiting), max(0.0, deadline - time.monotonic()))
            assert ready, f"rank(s) {sorted(waiting.values())} did not answer within {DEADLINE_SECONDS:.0f} s"
            for connection in ready:
                rank = waiting.pop(connection)
                if rank == dies:
                    _expect_death(connection, rank)
                else:
                    answers[rank] = _receive(connection, rank)
    return [answers[rank] for rank in sorted(answers)]


def _expect_death(connection: Connection, rank: int) -> None:
    try:
        connection.recv_bytes()
    except EOFError:
        return
    raise AssertionError(f"rank {rank} answered, and should have died")


def _receive(connection: Connection, rank: int) -> Any:
    try:
        answer, failure = torch.load(io.BytesIO(connection.recv_bytes()), weights_only=False)
    except EOFError:
        raise AssertionError(f"rank {rank} died") from None
    assert not failure, f"rank {rank} failed:\n{failure}"
    return answer


def _serve(
    rank: int,
    ranks: int,
    port: int,
    answers: Connection,
    cuda: bool,
    join: Callable[[], Mesh],
    work: Callable[..., Any],
    arguments: tuple[Any, ...],
) -> None:
    if not cuda:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(ranks),
        "LOCAL_WORLD_SIZE": str(ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    try:
        mesh = join()
        _send(answers, work(mesh, *arguments))
        mesh.barrier()
        mesh.close()
    except BaseException:
        _send(answers, None, traceback.format_exc())
        raise


def _send(answers: Connection, answer: Any, failure: str = "") -> None:
    # As bytes: a tensor sent as such stays in memory shared with its sender, which ends too soon.
    buffer = io.BytesIO()
    torch.save((answer, failure), buffer)
    answers.send_bytes(buffer.getvalue())


@contextmanager
def _ended_for_certain() -> Iterator[list[Any]]:
    """Hold the processes that are started; on an error, end them, since they may wait for one another for ever."""
    processes: list[Any] = []
    try:
        yield processes
    except BaseException:
        for process in processes:
            process.kill()
        raise
    finally:
        for process in processes:
            process.join()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
