"""What a run shows while it goes: a bar with the time left on a terminal, plain lines elsewhere. Everything on stderr."""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol, TextIO

from bench.report.grid import WIDTH, Grid, folded, printable


class Screen(Protocol):
    """Where a run reports its progress."""

    def show(self, line: str) -> None:
        """Show a line that stays."""
        ...

    def now(self, doing: str) -> None:
        """Say what is being done."""
        ...

    def advance(self, line: str, seconds: float) -> None:
        """Count a case and ``seconds`` of the expected time as done; show its result unless that is empty."""
        ...

    def spend(self, line: str, seconds: float) -> None:
        """Count ``seconds`` of the expected time as done, and no case; show how far it came."""
        ...


class Lines:
    """A line per result, with how many remain and how long that should take, ``limit_s`` at most; no colours, no cursor."""

    def __init__(self, count: int, seconds: float, out: TextIO, *, limit_s: float | None = None) -> None:
        self._count, self._expected_s, self._out = count, seconds, out
        self._done, self._done_s = 0, 0.0
        self._ends = None if limit_s is None else time.monotonic() + limit_s
        self._first: tuple[float, float] | None = None

    def show(self, line: str) -> None:
        """Write a line."""
        _write(printable(line), self._out)

    def now(self, doing: str) -> None:
        """Say nothing: the result's line will."""

    def advance(self, line: str, seconds: float) -> None:
        """Write a result's line; of results without one, each tenth of the run."""
        self._done += 1
        is_shown = line or self._done * 10 // self._count > (self._done - 1) * 10 // self._count
        self._pass(line, seconds, is_shown=bool(is_shown))

    def spend(self, line: str, seconds: float) -> None:
        """Write a line with the time left."""
        self._pass(line, seconds, is_shown=True)

    def _pass(self, line: str, seconds: float, *, is_shown: bool) -> None:
        self._done_s += seconds
        if is_shown:
            left = f", {clock(self._left_s())} left" if self._done < self._count else ""
            self.show(f"[{self._done}/{self._count}{left}] {line}".rstrip())
        self._first = self._first or (time.monotonic(), self._done_s)

    def _left_s(self) -> float:
        """Scale what was expected by the pace so far; the first case, which starts the workers, tells no pace."""
        now, left_s = time.monotonic(), max(self._expected_s - self._done_s, 0.0)
        since, done_s = self._first or (now, self._done_s)
        if self._done_s > done_s:
            left_s *= (now - since) / (self._done_s - done_s)
        return left_s if self._ends is None else min(left_s, self._ends - now)


class Bar:
    """A bar at the bottom of a terminal, results above it."""

    def __init__(self, count: int, seconds: float) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

        self._console = Console(stderr=True, highlight=False)
        columns = (
            SpinnerColumn(),
            BarColumn(20),
            TextColumn("{task.fields[done]}/{task.fields[count]}"),
            TimeRemainingColumn(compact=True, elapsed_when_finished=True),
            TextColumn("{task.description}"),
        )
        self._bar = Progress(*columns, console=self._console)
        self._done = 0
        # In units of expected seconds, so that the time left knows long cases from short ones.
        self._task = self._bar.add_task("starting", total=max(seconds, 1e-9), done=0, count=count)
        self._bar.start()

    def show(self, line: str) -> None:
        """Print a line above the bar."""
        from rich.text import Text

        self._console.print(Text(printable(line)), soft_wrap=True)

    def now(self, doing: str) -> None:
        """Say beside the bar what is being measured."""
        from rich.markup import escape

        self._bar.update(self._task, description=escape(printable(doing)))

    def advance(self, line: str, seconds: float) -> None:
        """Move the bar, and print a result above it."""
        self._done += 1
        self.spend(line, seconds)

    def spend(self, line: str, seconds: float) -> None:
        """Move the bar, and print a line above it."""
        if line:
            self.show(line)
        self._bar.update(self._task, advance=seconds, done=self._done)

    def close(self) -> None:
        """Leave the bar as it is."""
        self._bar.stop()


@contextmanager
def screen(count: int, seconds: float, *, limit_s: float | None = None) -> Iterator[Screen]:
    """Open the screen of a run of ``count`` cases that should take ``seconds``, and ends after ``limit_s`` if given."""
    if not _has_cursor(sys.stderr):
        yield Lines(count, seconds, sys.stderr, limit_s=limit_s)
        return
    bar = Bar(count, seconds)
    try:
        yield bar
    finally:
        bar.close()


def clock(seconds: float) -> str:
    """Return a duration as people say it: ``40 s``, ``3 min``, ``2 h 10 min``, ``4 days 5 h``."""
    seconds = max(seconds, 0.0)
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes, hours = round(seconds / 60), round(seconds / 3600)
    if minutes < 90:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min" if hours < 48 else f"{hours // 24} days {hours % 24} h"


def say(sentence: str = "") -> None:
    """Print a sentence of output on stdout, broken between words where a terminal ends."""
    _write(_fitting(sentence, sys.stdout), sys.stdout)


def put(line: str = "") -> None:
    """Print a line of output on stdout as it is, to be copied or read by a program."""
    _write(printable(line), sys.stdout)


def put_all(text: str) -> None:
    """Print every line of a text as it is."""
    for line in text.splitlines():
        put(line)


def warn(sentence: str) -> None:
    """Print a sentence on stderr, apart from the output, broken between words where a terminal ends."""
    _write(_fitting(sentence, sys.stderr), sys.stderr)


def hint(command: str) -> None:
    """Print on stderr a command to copy."""
    _write(f"  {printable(command)}", sys.stderr)


def _write(text: str, out: TextIO) -> None:
    out.write(f"{text}\n")
    out.flush()


def draw(grid: Grid) -> None:
    """Print a table on stdout: as wide as a terminal, and in colour where there is some; elsewhere a line per row."""
    _write(grid.to_text(_width(sys.stdout), colours=_has_colours(sys.stdout)), sys.stdout)


def _fitting(sentence: str, out: TextIO) -> str:
    return folded(printable(sentence), _width(out))


def _width(out: TextIO) -> int | None:
    """Return the columns of a terminal, as COLUMNS says or else itself; None for what is none."""
    if not out.isatty():
        return None
    asked = os.environ.get("COLUMNS", "")
    if asked.isdecimal() and int(asked):
        return int(asked)
    try:
        return os.get_terminal_size(out.fileno()).columns or WIDTH
    except OSError:
        return WIDTH


def _has_colours(out: TextIO) -> bool:
    """Tell whether a stream may be sent colours: as NO_COLOR and FORCE_COLOR say, else if it leads to a terminal with some."""
    if os.environ.get("NO_COLOR"):
        return False
    return os.environ.get("FORCE_COLOR", "0") not in ("", "0") or _is_smart(out)


def _has_cursor(out: TextIO) -> bool:
    """Tell whether a stream leads to a terminal that someone looks at while it is drawn anew; no log of a CI job does."""
    return _is_smart(out) and not os.environ.get("NO_COLOR") and not os.environ.get("CI")


def _is_smart(out: TextIO) -> bool:
    return out.isatty() and os.environ.get("TERM", "dumb") not in ("dumb", "unknown")


def emit(data: object) -> None:
    """Print JSON on stdout; a number that is NaN or infinite, which JSON lacks, as null."""
    import json

    _write(json.dumps(_finite(data), indent=1, allow_nan=False), sys.stdout)


def _finite(data: object) -> object:
    match data:
        case float():
            return data if math.isfinite(data) else None
        case dict():
            return {name: _finite(value) for name, value in data.items()}
        case list() | tuple():
            return [_finite(value) for value in data]
        case _:
            return data
