"""The group of ranks: seats of one process that meet at a board, and what a launcher says wrongly.

Real groups are tried in ``exchange/test_between_processes.py``.
"""

from __future__ import annotations

import datetime
import socket
from collections.abc import Callable
from typing import Any

import pytest
import torch

from dcp_core import mesh as mesh_module
from dcp_core.mesh import Mesh, MeshError, _device_of

LAUNCHER = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def test_a_group_of_one_talks_to_itself() -> None:
    mesh = Mesh.alone("cpu")
    assert (mesh.rank, mesh.size, mesh.device) == (0, 1, torch.device("cpu"))
    assert (mesh.backend, mesh.is_simulated, mesh.composed) == ("none", False, frozenset())
    assert mesh.members() == (mesh,)
    assert mesh.share("value") == ["value"]
    assert mesh.first_problem("a problem") == "a problem"
    assert mesh.each(lambda index: index + 1) == [1]
    assert mesh.part(1) is mesh
    mesh.barrier()
    mesh.align()
    mesh.close()


def test_a_simulated_group_has_a_seat_per_rank() -> None:
    mesh = Mesh.simulated(4)
    seats = mesh.members()
    assert [(seat.rank, seat.size, seat.is_simulated, seat.whole) for seat in seats] == [
        (rank, 4, True, False) for rank in range(4)
    ]
    assert {seat.board for seat in seats} == {mesh.board}
    assert mesh.members()[0].members()[0].rank == 0


def test_seats_meet_and_take_everybody_s_value_again_and_again() -> None:
    mesh = Mesh.simulated(5)
    board = mesh.board
    assert board is not None

    def work(index: int) -> list[list[int]]:
        return [board.swap(index, 10 * meeting + index) for meeting in range(20)]

    expected = [[10 * meeting + rank for rank in range(5)] for meeting in range(20)]
    assert mesh.each(work) == [expected] * 5


def test_a_seat_that_fails_is_reported_and_the_group_goes_on() -> None:
    mesh = Mesh.simulated(3)
    board = mesh.board
    assert board is not None

    def one_fails(index: int) -> list[int]:
        if index == 2:
            raise ZeroDivisionError("seat 2")
        return board.swap(index, index)

    with pytest.raises(ZeroDivisionError, match="seat 2"):
        mesh.each(one_fails)
    assert mesh.each(lambda index: board.swap(index, index)) == [[0, 1, 2]] * 3


def test_a_seat_is_by_itself_only_while_it_is_told_so() -> None:
    mesh = Mesh.simulated(2)
    assert mesh.board is not None
    seen = []

    def fail_by_itself() -> None:
        with mesh.solo():
            seen.append(mesh.board is not None and mesh.board.solo)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_by_itself()
    assert (seen, mesh.board.solo) == ([True], False)


def test_a_group_needs_a_rank() -> None:
    for wrong in (0, -1, 1.5, "2", None):
        with pytest.raises(MeshError, match="a whole number of ranks, at least one, not "):
            Mesh.simulated(wrong)  # type: ignore[arg-type]


def test_a_device_that_is_not_there_is_refused_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    groups: tuple[Callable[[Any], Mesh], ...] = (Mesh.alone, lambda device: Mesh.simulated(2, device))
    for group in groups:
        for name in ("gpu", "", None):
            with pytest.raises(MeshError, match="is no device; name one as torch does: cpu, cuda or cuda:1"):
                group(name)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        with pytest.raises(MeshError, match="there is no device cuda here: this process sees 0 CUDA devices"):
            group("cuda")
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
        with pytest.raises(MeshError, match="there is no device cuda:2 here: this process sees 2 CUDA devices"):
            group("cuda:2")


def test_a_part_is_no_larger_than_the_group() -> None:
    with pytest.raises(MeshError, match="a group of 2 does not fit into 1 ranks"):
        Mesh.alone().part(2)


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in LAUNCHER:
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_without_a_launcher_a_rank_is_alone(launched: pytest.MonkeyPatch) -> None:
    mesh = Mesh.from_env()
    assert (mesh.rank, mesh.size) == (0, 1)


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE='2' needs RANK beside it"),
        ({"WORLD_SIZE": "two", "RANK": "0"}, "WORLD_SIZE='two' should be a whole number"),
        ({"WORLD_SIZE": "2", "RANK": "-1"}, "RANK='-1' should be a whole number"),
        ({"WORLD_SIZE": "2", "RANK": "2"}, "RANK=2 is outside WORLD_SIZE=2"),
        ({"WORLD_SIZE": "2", "RANK": "0"}, "WORLD_SIZE=2 needs MASTER_ADDR"),
        ({"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1"}, "WORLD_SIZE=2 needs MASTER_PORT"),
    ],
)
def test_what_a_launcher_says_wrongly_is_refused_in_a_sentence(
    launched: pytest.MonkeyPatch, variables: dict[str, str], message: str
) -> None:
    for name, value in variables.items():
        launched.setenv(name, value)
    with pytest.raises(ValueError, match=message):
        Mesh.from_env()


def test_ranks_that_do_not_find_one_another_are_told_where_they_looked(launched: pytest.MonkeyPatch) -> None:
    launched.setattr(mesh_module, "TIMEOUT", datetime.timedelta(seconds=1))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    variables = {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    for name, value in variables.items():
        launched.setenv(name, value)
    with pytest.raises(
        MeshError, match=rf"rank 0 of 2 could not join its group at 127.0.0.1:{port}: .*1/2 clients joined"
    ):
        Mesh.from_env()
    assert not torch.distributed.is_initialized()


@pytest.mark.parametrize(
    ("visible", "pinned", "local_rank", "device"),
    [(2, False, 1, "cuda:1"), (1, True, 3, "cuda:0"), (2, False, 2, None), (1, False, 1, None)],
)
def test_a_local_rank_gets_a_device_of_its_own_or_an_error(
    monkeypatch: pytest.MonkeyPatch, visible: int, pinned: bool, local_rank: int, device: str | None
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: visible)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3") if pinned else monkeypatch.delenv("CUDA_VISIBLE_DEVICES", False)
    if device is None:
        with pytest.raises(
            MeshError, match=f"local rank {local_rank} has no CUDA device of its own: {visible} visible"
        ):
            _device_of(local_rank)
    else:
        assert _device_of(local_rank) == torch.device(device)
