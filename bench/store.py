"""Runs on disk: one JSONL file per run, one checksummed line per trial; the store is the union of a folder's files.

A line is written at once, flushed to disk, and never touched again. See docs/format.md.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import secrets
import socket
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from bench.files import FileError, StorageError, check_regular, shortened, storage_error, sync_folder
from bench.line import NewerSchema, decode, encode
from bench.record import Trial
from dcp_core.spelling import nearest

if TYPE_CHECKING:
    from bench.shard import Shard

__all__ = ["FileError", "LockedError", "StorageError", "Store", "find_run", "read_run", "run_files"]

MAX_LINE_BYTES = 8 << 20
"""A trial of 64 samples on a thousand ranks is about 1 MiB; a longer line is no trial."""
LOCK_NAME = ".lock"
"""Of a folder: held alone by a run of everything, together by the runs of shards, each of which holds its own lock alone."""

Reader = Callable[[bytes], Trial | None]
"""Of a run's lines; see ``bench.line.decode`` for what it raises."""

_STARTING = "another process that has just started"


class LockedError(RuntimeError):
    """Another run writes to the same folder, or the same shard of it: who, where and since when. Exit code 6."""


class Store:
    """The writer of one run. A resource: open it with ``Store.open``, as a context manager."""

    def __init__(self, folder: Path, locks: ExitStack) -> None:
        self.folder = folder
        self._locks = locks
        self._file: int | None = None
        self._path: Path | None = None

    @classmethod
    def open(cls, folder: str | Path, shard: Shard | None = None) -> Store:
        """Lock a results folder, made if need be, for this process. The lock dies with it, however it ends.

        Args:
            shard: that this process writes alone, beside the others'; None for all of the folder.

        Raises:
            LockedError: if another process holds it.
            StorageError: if the folder cannot be made or written.
        """
        folder = Path(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise storage_error("write to", folder, error) from None
        with ExitStack() as locks:
            if shard is None:
                _lock(folder, LOCK_NAME, fcntl.LOCK_EX, locks)
            else:
                _lock(folder, LOCK_NAME, fcntl.LOCK_SH, locks)
                _lock(folder, f"{LOCK_NAME}-{shard.number}-of-{shard.count}", fcntl.LOCK_EX, locks)
            return cls(folder, locks.pop_all())

    @property
    def path(self) -> Path | None:
        """The run's file; None before its first trial."""
        return self._path

    def append(self, trial: Trial) -> None:
        """Write one trial and flush it to disk: once this returns, the trial outlives the process and the power.

        Raises:
            StorageError: if the disk does not take it, or the file is not where it was; what was written before is kept.
            ValueError: for a trial that holds NaN or infinity.
        """
        line = encode(trial)
        path = self._path or self.folder / _run_name()
        try:
            if self._file is None:
                self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o644)
                self._path = path
                sync_folder(self.folder)
            _write_whole_line(self._file, line)
            # What has been removed takes lines all the same, and they are gone with the process.
            if not os.path.samestat(path.stat(), os.fstat(self._file)):
                raise FileNotFoundError(errno.ENOENT, "another file has taken its place")
        except OSError as error:
            raise storage_error("write", path, error) from None

    def close(self) -> None:
        """Close the run's file and give the folder back; closing twice does nothing more."""
        if self._file is not None:
            os.close(self._file)
        self._file = None
        self._locks.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @staticmethod
    def read(folder: str | Path, *, sentinels: bool = False, reader: Reader = decode) -> tuple[list[Trial], list[str]]:
        """Read every run of a folder, oldest file first; an absent folder holds none. See ``read_run``."""
        trials: list[Trial] = []
        notices: list[str] = []
        for path in run_files(folder):
            if not path.is_file():
                notices.append(f"{path}: no regular file, as a run is: set aside")
                continue
            more, complaints = read_run(path, sentinels=sentinels, reader=reader)
            trials += more
            notices += complaints
        return trials, notices


def run_files(folder: str | Path) -> list[Path]:
    """Return a folder's runs, oldest first; none if the folder does not exist.

    Raises:
        FileError: if it is no folder.
        StorageError: if it may not be read.
    """
    folder = Path(folder)
    try:
        names = [path.name for path in folder.iterdir()]
    except FileNotFoundError:
        return []
    except NotADirectoryError:
        raise FileError(f"{folder}: a file, where a folder of runs should be") from None
    except OSError as error:
        raise storage_error("read", folder, error) from None
    return [folder / name for name in sorted(names) if name.endswith(".jsonl") and not name.startswith(".")]


def find_run(folder: str | Path, name: str) -> Path:
    """Return the file of a run named by a user: its name, with or without ``.jsonl``, or ``last``.

    Raises:
        FileError: if the folder holds no such run, naming the nearest.
    """
    runs = {path.stem: path for path in run_files(folder) if path.is_file()}
    if name == "last" and runs:
        return list(runs.values())[-1]
    found = runs.get(name.removesuffix(".jsonl"))
    if found is None:
        known = "; it holds none; measure some first, as with 'dcpbench tune quick', or give --results"
        if runs:
            known = nearest(name, runs) or f"; its last is {list(runs)[-1]!r}"
        if Path(name).is_file():
            known = ", but a file of that name, which is none: the file of a run ends in .jsonl"
        raise FileError(f"{folder}: no run {name[:80]!r}{known}")
    return found


def read_run(path: str | Path, *, sentinels: bool = False, reader: Reader = decode) -> tuple[list[Trial], list[str]]:
    """Read one run.

    Args:
        sentinels: return trials that repeat a case to show drift, too.
        reader: of a line; what it returns None for is left out.

    Returns:
        Its trials, and a sentence for each reason for which lines were set aside: a torn last one, damaged ones.

    Raises:
        FileError: if it is absent, a pipe or a device, or was written by a newer dcpbench.
        StorageError: if it may not be read.
    """
    path = Path(path)
    trials: list[Trial] = []
    aside: dict[str, list[int]] = defaultdict(list)
    try:
        check_regular(path, "a run")
        for number, (line, whole) in enumerate(_lines(path), start=1):
            try:
                trial = reader(line)
                if trial and (sentinels or not trial.is_sentinel):
                    trials.append(trial)
            except NewerSchema as error:
                raise FileError(f"{path}, line {number}: {error}") from None
            except ValueError as error:
                why = str(error) if whole else "torn, as by a crash or a full disk while it was written"
                aside[why].append(number)
    except IsADirectoryError:
        raise FileError(f"{path}: a folder, where a run should be; to read all of it give --results") from None
    except FileNotFoundError:
        raise FileError(f"{path}: no such file; a run was expected there") from None
    except OSError as error:
        raise storage_error("read", path, error) from None
    return trials, _notices(path, aside)


def _notices(path: Path, aside: Mapping[str, Sequence[int]]) -> list[str]:
    more = {why: f" and {len(lines) - 1} more" if len(lines) > 1 else "" for why, lines in aside.items()}
    return [shortened(f"{path}, line {lines[0]}{more[why]}: set aside: {why}") for why, lines in aside.items()]


def _lines(path: Path) -> Iterator[tuple[bytes, bool]]:
    """Yield every line and whether it ends as a line does; one that is too long is cut, and so will not decode."""
    with path.open("rb") as file:
        while line := file.readline(MAX_LINE_BYTES + 1):
            whole = line.endswith(b"\n")
            rest = line
            while not rest.endswith(b"\n") and len(rest) > MAX_LINE_BYTES:
                rest = file.readline(MAX_LINE_BYTES + 1)
                whole = True
            yield line, whole


def _write_whole_line(descriptor: int, line: bytes) -> None:
    start = os.fstat(descriptor).st_size
    try:
        written = os.write(descriptor, line)
        while written < len(line):
            written += os.write(descriptor, line[written:])
        os.fsync(descriptor)
    except OSError:
        # A part of a line may be on disk. Take it back, so that a later line does not continue it.
        os.ftruncate(descriptor, start)
        raise


def _lock(folder: Path, name: str, how: int, locks: ExitStack) -> None:
    """Take a lock of a folder, alone or together with others, until ``locks`` are closed.

    Raises:
        LockedError: if another process holds it alone, or holds it where it is wanted alone.
        StorageError: if it cannot be made.
    """
    try:
        # A link would have us overwrite whatever it leads to.
        descriptor = os.open(folder / name, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
    except OSError as error:
        raise storage_error("write to", folder, error) from None
    locks.callback(os.close, descriptor)
    try:
        fcntl.flock(descriptor, how | fcntl.LOCK_NB)
        if how == fcntl.LOCK_EX:
            holder = {"pid": os.getpid(), "host": socket.gethostname(), "since": _now()}
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps(holder).encode(), 0)
    except BlockingIOError:
        raise LockedError(
            f"{folder} is in use by {_holder(folder, name)}; wait for it, or choose another folder"
        ) from None
    except OSError as error:
        raise storage_error("lock", folder, error) from None


def _holder(folder: Path, name: str) -> str:
    """Describe who holds a lock; of a folder's, whoever holds it or a shard of it. The holder may be about to write it."""
    for path in sorted(folder.glob(f"{name}*")):
        with suppress(OSError), ExitStack() as opened:
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            opened.callback(os.close, descriptor)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return _told(os.pread(descriptor, 4096, 0))
    return _STARTING


def _told(holder: bytes) -> str:
    """Say what a lock says of its holder: nothing of one that is gone, which held the lock before."""
    try:
        data = json.loads(holder)
        if data["host"] == socket.gethostname():
            with suppress(PermissionError):  # of another user's process
                os.kill(int(data["pid"]), 0)
        return f"process {int(data['pid'])} on {str(data['host'])[:80]} since {str(data['since'])[:40]}"
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError, ProcessLookupError):
        return _STARTING


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _run_name() -> str:
    """Return a name that sorts by time and that no other run has."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%S.%f}Z-{secrets.token_hex(3)}.jsonl"
