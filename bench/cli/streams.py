"""Standard output and error, whose failing ends no run: what cannot be printed is dropped, and why is told at the end."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO


class Printed:
    """A stream that never raises: the first failure is kept as ``problem``, and nothing more is printed after it."""

    def __init__(self, stream: TextIO) -> None:
        self.problem: OSError | None = None
        self._stream = stream

    def write(self, text: str) -> int:
        """Write a text, as far as that is possible."""
        try:
            return self._stream.write(text) if self.problem is None else len(text)
        except OSError as error:
            self._give_up(error)
            return len(text)

    def flush(self) -> None:
        """Pass on what was written, as far as that is possible."""
        try:
            if self.problem is None:
                self._stream.flush()
        except OSError as error:
            self._give_up(error)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _give_up(self, error: OSError) -> None:
        self.problem = error
        # What the stream still holds would fail again as the interpreter ends: let it go to a place that takes all.
        with suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)


@contextmanager
def streams() -> Iterator[Printed]:
    """Put streams that never raise in the place of standard output and error, and yield standard output's."""
    _hold_descriptors()
    before = sys.stdout, sys.stderr
    out, err = (Printed(_open(stream, number)) for number, stream in enumerate(before, start=1))
    sys.stdout, sys.stderr = out, err  # they pass on whatever else is asked of a stream
    try:
        yield out
    finally:
        out.flush()
        sys.stdout, sys.stderr = before


def _hold_descriptors() -> None:
    """Occupy those of descriptors 0 to 2 that are closed, lest a pipe to a worker or a run's file get their number."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDONLY)  # the lowest free one, which is this


def _open(stream: TextIO | None, number: int) -> TextIO:
    """Return the stream as the program writes to it: Python has None for one that was closed when it started."""
    if stream is None:
        return open(number, "w", encoding="utf-8", closefd=False)
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="replace")  # a terminal without µ shows a question mark instead of failing
    return stream
