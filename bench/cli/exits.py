"""How a command may end: the exit codes of docs/method.md."""

from __future__ import annotations

from enum import IntEnum


class Exit(IntEnum):
    """What the shell, or a CI job, is told."""

    DONE = 0
    DIFFERENT = 1
    USAGE = 2
    FAILED_CASES = 3
    UNFIT = 4
    STORAGE = 5
    LOCKED = 6
    INTERRUPTED = 130
    TERMINATED = 143
