"""The ranks of a DCP group and how they talk: real processes, or seats in one process. Floor 2."""

from __future__ import annotations

import datetime
import os
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from dcp_core import launcher

T = TypeVar("T")
TIMEOUT = datetime.timedelta(minutes=5)
"""How long a collective waits for a rank that never comes."""


class MeshError(ValueError):
    """A group of ranks that cannot be formed."""


class Board:
    """Where the seats of a simulated group meet: each leaves a value and takes everybody's."""

    def __init__(self, size: int) -> None:
        self.solo = False
        self._barrier = threading.Barrier(size)
        self._values: list[Any] = [None] * size

    def swap(self, rank: int, value: T) -> list[T]:
        """Leave a value, wait for the other seats, return every seat's in order."""
        self._values[rank] = value
        self._barrier.wait(TIMEOUT.total_seconds())
        values = list(self._values)
        self._barrier.wait(TIMEOUT.total_seconds())
        return values

    def abort(self) -> None:
        """Wake every waiting seat with an error, since one of them will never come."""
        self._barrier.abort()

    def reset(self) -> None:
        """Make the board usable again after ``abort``."""
        self._barrier.reset()


class Mesh:
    """One rank's view of its DCP group; or, with a board and no seat, a whole simulated group.

    Attributes:
        rank, size: in the group.
        device: of this rank's tensors.
        board: of a simulated group, else None.
        composed: collectives that this build of gloo lacks and that are composed from an all-gather: a time taken with
            them is not that of the collective.
    """

    def __init__(
        self,
        rank: int,
        size: int,
        device: torch.device,
        *,
        group: dist.ProcessGroup | None = None,
        control: dist.ProcessGroup | None = None,
        board: Board | None = None,
        whole: bool = False,
    ) -> None:
        self._token = torch.zeros(1, device=device)
        # As the token names it, "cuda" with its index: the threads of a simulated group must make it their current device.
        self.rank, self.size, self.device, self.board = rank, size, self._token.device, board
        self.whole = whole
        self._group, self._control = group, control
        self._parts: dict[int, Mesh | None] = {}
        self.composed: frozenset[str] = frozenset()
        if group is not None:
            self.composed = self._missing_collectives()

    @classmethod
    def alone(cls, device: torch.device | str = "cpu") -> Mesh:
        """Return a group of one.

        Raises:
            MeshError: for a device that is none, or that this process does not see.
        """
        return cls(0, 1, _usable(device))

    @classmethod
    def simulated(cls, dcp: int, device: torch.device | str = "cpu") -> Mesh:
        """Return a group whose ranks all live in this process, on one device; see ``members``.

        Raises:
            MeshError: for less than one rank, a device that is none, or one that this process does not see.

        Examples:
            >>> mesh = Mesh.simulated(2)
            >>> mesh.is_simulated, [member.rank for member in mesh.members()]
            (True, [0, 1])
        """
        if not isinstance(dcp, int) or dcp < 1:
            raise MeshError(f"a simulated group needs a whole number of ranks, at least one, not {dcp!r}")
        return cls(0, dcp, _usable(device), board=Board(dcp), whole=True)

    @classmethod
    def from_env(cls) -> Mesh:
        """Join the group that a launcher describes in its variables; see ``dcp_core.launcher``.

        NCCL on a machine with CUDA devices, one per local rank; gloo on one without; a group of one without a launcher.

        Raises:
            MeshError: if the variables are incomplete or contradict each other, a local rank has no device, or the ranks do
                not find one another within TIMEOUT.
        """
        try:
            place = launcher.place(os.environ) or launcher.Place(0, 1, 0)
        except launcher.LauncherError as error:
            raise MeshError(str(error)) from None
        if place.size == 1 and os.environ.get("WORLD_SIZE", "1") != "1":
            raise MeshError(f"WORLD_SIZE={os.environ['WORLD_SIZE'][:40]!r} needs RANK beside it, set by the launcher")
        device = _device_of(place.local_rank)
        if device.type == "cuda":
            torch.cuda.set_device(device)
        if place.size == 1:
            return cls.alone(device)
        try:
            return cls._joined(place, device)
        except (RuntimeError, ValueError) as error:
            where = ":".join(os.environ[name] for name in ("MASTER_ADDR", "MASTER_PORT"))
            why = str(error).strip().partition("\n")[0]
            raise MeshError(
                f"rank {place.rank} of {place.size} could not join its group at {where}: {why[:300]}"
            ) from None

    @classmethod
    def _joined(cls, place: launcher.Place, device: torch.device) -> Mesh:
        cuda = device.type == "cuda"
        dist.init_process_group(
            "nccl" if cuda else "gloo",
            rank=place.rank,
            world_size=place.size,
            timeout=TIMEOUT,
            device_id=device if cuda else None,
        )
        control = dist.new_group(backend="gloo", timeout=TIMEOUT) if cuda else dist.group.WORLD
        return cls(place.rank, place.size, device, group=dist.group.WORLD, control=control)

    @property
    def is_simulated(self) -> bool:
        """True if the group's ranks share one process."""
        return self.board is not None

    @property
    def backend(self) -> str:
        """Who carries this group's messages: ``nccl``, ``gloo``, or ``none``."""
        return dist.get_backend(self._group) if self._group is not None else "none"

    def members(self) -> tuple[Mesh, ...]:
        """Return the ranks that live in this process: every seat of a simulated group, or this one."""
        if not self.whole:
            return (self,)
        return tuple(Mesh(rank, self.size, self.device, board=self.board) for rank in range(self.size))

    def each(self, call: Callable[[int], T]) -> list[T]:
        """Call once for every member of this process, by position; the seats of a simulated group meet at their board.

        Raises:
            whatever the first failing seat raised.
        """
        if not self.whole or self.board is None:
            return [call(0)]
        board = self.board

        def seat(index: int) -> T:
            try:
                if self.device.type == "cuda":
                    # The current device belongs to the thread; fa3 makes its descriptors before torch would set one.
                    torch.cuda.set_device(self.device)
                return call(index)
            except BaseException:
                board.abort()
                raise

        with ThreadPoolExecutor(self.size) as pool:
            futures = [pool.submit(seat, index) for index in range(self.size)]
        errors = [error for future in futures if (error := future.exception()) is not None]
        if errors:
            board.reset()
            raise next((error for error in errors if not isinstance(error, threading.BrokenBarrierError)), errors[0])
        return [future.result() for future in futures]

    @contextmanager
    def solo(self) -> Iterator[None]:
        """Let one seat of a simulated group run by itself: exchanges return what they last returned, at no cost."""
        if self.board is not None:
            self.board.solo = True
        try:
            yield
        finally:
            if self.board is not None:
                self.board.solo = False

    def part(self, size: int) -> Mesh | None:
        """Return the group of the first ``size`` ranks, or None on a rank outside it. Every rank must call this.

        Raises:
            MeshError: if there are fewer ranks.
        """
        if size > self.size:
            raise MeshError(f"a group of {size} does not fit into {self.size} ranks")
        if size == self.size:
            return self
        if size not in self._parts:
            group = dist.new_group(list(range(size)), timeout=TIMEOUT) if size > 1 else None
            control = dist.new_group(list(range(size)), backend="gloo", timeout=TIMEOUT) if size > 1 else None
            inside = self.rank < size
            self._parts[size] = Mesh(self.rank, size, self.device, group=group, control=control) if inside else None
        return self._parts[size]

    def channel(self, patience: datetime.timedelta) -> Mesh:
        """Return the same ranks with a way of their own for host objects: what one shares there never meets another message.

        Every rank must call this. ``patience``: how long a rank waits there for another.
        """
        control = dist.new_group(backend="gloo", timeout=patience) if self._control is not None else None
        return Mesh(self.rank, self.size, self.device, control=control)

    def share(self, value: T) -> list[T]:
        """Return every rank's value, in order, on every rank: small host objects only."""
        if self._control is None:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self._control)
        return values

    def first_problem(self, problem: str) -> str:
        """Return the first rank's non-empty ``problem``, the same on every rank; empty if all are."""
        return next((found for found in self.share(problem) if found), "")

    def barrier(self) -> None:
        """Wait on the host for every rank."""
        if self._control is not None:
            dist.barrier(group=self._control)

    def align(self) -> None:
        """Let every rank's device start what follows at the same time: a barrier on the device, or on the host for gloo."""
        if self.device.type == "cuda" and self._group is not None:
            dist.all_reduce(self._token, group=self._group)
        else:
            self.barrier()

    def all_gather(self, out: Tensor, own: Tensor) -> None:
        """Gather contiguous ``own`` of every rank into contiguous ``out``, ``[N, ...]``."""
        gather = getattr(dist, "all_gather_single", dist.all_gather_into_tensor)
        gather(out.view(-1), own.view(-1), group=self._group)

    def all_to_all(self, out: Tensor, own: Tensor) -> None:
        """Send ``own[r]`` to rank r and receive its share into ``out[r]``; both contiguous ``[N, ...]``."""
        if "all_to_all" in self.composed:
            everything = own.new_empty(self.size, *own.shape)
            self.all_gather(everything, own)
            out.copy_(everything[:, self.rank])
        else:
            dist.all_to_all_single(out.view(-1), own.view(-1), group=self._group)

    def reduce_scatter(self, out: Tensor, own: Tensor) -> None:
        """Add up ``own[rank]`` of every rank into ``out``; ``own`` is contiguous ``[N, ...]``."""
        if "reduce_scatter" in self.composed:
            everything = own.new_empty(self.size, *own.shape)
            self.all_gather(everything, own)
            torch.sum(everything[:, self.rank], 0, out=out)
        else:
            scatter = getattr(dist, "reduce_scatter_single", dist.reduce_scatter_tensor)
            scatter(out.view(-1), own.view(-1), group=self._group)

    def nodes(self) -> list[str]:
        """Return the machines that the group's ranks run on, each once; every rank must ask."""
        return list(dict.fromkeys(self.share(_node())))

    def symmetric(self, size: int) -> tuple[Tensor, Tensor]:
        """Allocate ``size`` bytes on every rank's GPU that every rank of the group may write, without NVLink multicast.

        Returns:
            This rank's own, uint8 ``[size]``, zeroed; and where each rank's begins for this one: int64 ``[N]`` on the device.

        Raises:
            MeshError: for a group without real ranks.
            RuntimeError: torch's, if the devices do not reach each other.
        """
        from torch.distributed import _symmetric_memory as symmetric_memory

        if self._group is None:
            raise MeshError("memory is shared among the real ranks of a group, and this one has none")
        os.environ.setdefault("TORCH_SYMM_MEM_DISABLE_MULTICAST", "1")  # read at the first rendezvous
        memory = symmetric_memory.empty(size, dtype=torch.uint8, device=self.device)
        handle = symmetric_memory.rendezvous(memory, self._group)
        return memory.zero_(), torch.tensor(handle.buffer_ptrs, dtype=torch.int64, device=self.device)

    def close(self) -> None:
        """Leave the process group, if there is one."""
        if dist.is_initialized():
            dist.destroy_process_group()

    def _missing_collectives(self) -> frozenset[str]:
        """Try, on every rank alike, the collectives that not every build of gloo has."""
        if self.backend != "gloo":
            return frozenset()
        own, out = torch.zeros(self.size, 1), torch.zeros(self.size, 1)
        attempts: dict[str, Callable[[], None]] = {
            "all_to_all": lambda: self.all_to_all(out, own),
            "reduce_scatter": lambda: self.reduce_scatter(out[0], own),
        }
        return frozenset(name for name, attempt in attempts.items() if not _is_there(attempt))


def _node() -> str:
    """Name this machine: its host name, its boot, and the node's number where a launcher counts them."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    parts = (socket.gethostname(), boot.read_text(encoding="ascii").strip() if boot.is_file() else "")
    return " ".join((*parts, os.environ.get("GROUP_RANK", "")))


def _usable(name: torch.device | str) -> torch.device:
    """Return a device by name, once it is known that this process sees it."""
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError):
        raise MeshError(f"{name!r} is no device; name one as torch does: cpu, cuda or cuda:1") from None
    visible = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device.type == "cuda" and (device.index or 0) >= visible:
        raise MeshError(f"there is no device {device} here: this process sees {visible} CUDA devices")
    return device


def _device_of(local_rank: int) -> torch.device:
    """Return a local rank's device: its own, or the only one that a launcher lets it see. Never one shared silently."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    visible = torch.cuda.device_count()
    if local_rank < visible:
        return torch.device("cuda", local_rank)
    if visible == 1 and "CUDA_VISIBLE_DEVICES" in os.environ:
        return torch.device("cuda", 0)
    raise MeshError(f"local rank {local_rank} has no CUDA device of its own: {visible} visible; start as many ranks")


def _is_there(collective: Callable[[], None]) -> bool:
    try:
        collective()
    except RuntimeError as error:
        if "not support" in str(error) or "not implemented" in str(error).lower():
            return False
        raise
    return True
