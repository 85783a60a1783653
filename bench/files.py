"""How files of others are read and ours written: capped, checked, whole or not at all. Standard library only."""

from __future__ import annotations

import errno
import json
import os
import re
import stat
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from dcp_core.spelling import nearest

MAX_SENTENCE = 900
"""Characters of a complaint: room for a path and a list of what is known, not for what somebody filled a file with."""
_LEFT_OUT = " … "


class FileError(ValueError):
    """A file or a name that cannot be used: which, and what is wrong with it. Exit code 2."""


class StorageError(OSError):
    """The disk does not take or give what it should: full, read-only, no permission. Exit code 5."""


def storage_error(doing: str, path: Path, error: OSError) -> StorageError:
    """Turn an operating system's error into one sentence that says what would help."""
    remedy = {
        errno.ENOSPC: "free some space, or choose a folder on another disk",
        errno.EDQUOT: "free some of your quota, or choose a folder on another disk",
        errno.EROFS: "choose a folder on a disk that may be written",
        errno.EACCES: "choose a folder you may use, or have its permissions changed",
        errno.EPERM: "choose a folder you may use, or have its permissions changed",
        errno.ENOTDIR: "choose a path that leads through folders only",
        errno.ENOENT: "it was removed or renamed meanwhile: put it back, or choose another folder",
        errno.ELOOP: "remove the link that stands in its place, or choose another folder",
        errno.EEXIST: "choose a folder's name that no file has",
    }.get(error.errno or 0, "choose another folder")
    return StorageError(f"cannot {doing} {path}: {(error.strerror or str(error)).lower()}; {remedy}")


def read_capped(path: Path, limit_bytes: int, kind: str) -> str:
    """Return a file's text.

    Args:
        limit_bytes: beyond which the file is not read at all.
        kind: what the file should be, for messages: "a profile", say.

    Raises:
        FileError: if there is no such file, it is a pipe or a device, too large, or no UTF-8.
        StorageError: if it may not be read.
    """
    try:
        check_regular(path, kind)
        with path.open("rb") as file:
            data = file.read(limit_bytes + 1)
    except IsADirectoryError:
        raise FileError(f"{path}: a folder, where {kind} should be") from None
    except (FileNotFoundError, NotADirectoryError):
        raise FileError(f"{path}: no such file; {kind} was expected there") from None
    except OSError as error:
        raise storage_error("read", path, error) from None
    if len(data) > limit_bytes:
        raise FileError(f"{path}: larger than {limit_bytes >> 10} KiB, so it is not {kind}")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise FileError(f"{path}: not {kind}: byte {error.start} is no UTF-8") from None


def read_json(text: str | bytes) -> Any:
    """Read JSON of others. Of a key given twice nobody could tell which counts, and NaN and infinity are no JSON.

    Raises:
        FileError: saying what is wrong with it.
    """
    try:
        return json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_once_each)
    except RecursionError:
        raise FileError("nested more deeply than any file of ours") from None
    except FileError:
        raise
    except ValueError as error:
        raise FileError(str(error)) from None


def _refuse_constant(name: str) -> float:
    raise FileError(f"{name} is no number")


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        raise FileError(f"key {twice[:40]!r} stands twice in one object")
    return found


def check_regular(path: Path, kind: str) -> None:
    """Refuse a pipe or a device, whose reading may never end; a folder is left to ``open`` to refuse.

    Raises:
        FileError: for what is neither a file nor a folder.
        OSError: if it may not be looked at, or does not exist.
    """
    try:
        mode = path.stat().st_mode
    except ValueError:  # of a NUL in the path
        raise FileError(f"{str(path)!r}: no such file; {kind} was expected there") from None
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise FileError(f"{path}: a pipe or a device; {kind} is a regular file")


def write_whole(path: Path, content: bytes) -> None:
    """Replace a file by ``content``, so that a crash leaves the old one or the new one; make its folder if need be.

    Raises:
        StorageError: if the disk does not take it; then nothing has changed.
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}.draft")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with draft.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            draft.replace(path)
        finally:
            draft.unlink(missing_ok=True)
        sync_folder(path.parent)
    except OSError as error:
        raise storage_error("write", path, error) from None


def shortened(sentence: str) -> str:
    """Return a sentence without its middle if that is too long for one, as where it quotes what a file holds."""
    left = MAX_SENTENCE - len(_LEFT_OUT)
    return (
        sentence
        if len(sentence) <= MAX_SENTENCE
        else sentence[: left // 2] + _LEFT_OUT + sentence[-(left - left // 2) :]
    )


def folder_name(text: str) -> str:
    """Return a name for a folder that no text can lead out of its parent, or past what a disk takes."""
    return re.sub(r"[^A-Za-z0-9.-]+", "_", text).strip("._")[:80] or "unnamed"


def sync_folder(folder: Path) -> None:
    """Flush a folder, so that a file new in it is still there after a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_keys(found: Iterable[str], known: Iterable[str], where: str) -> None:
    """Refuse the first key that is not known, naming the nearest that is.

    Raises:
        FileError: with ``where`` in front.
    """
    names = list(known)
    for key in found:
        if key not in names:
            raise FileError(f"{where}: unknown key {key[:40]!r}{nearest(key[:40], names)}; known: {', '.join(names)}")
