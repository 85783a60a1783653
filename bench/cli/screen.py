"""What a run shows while it goes, on stderr: a bar on a terminal, plain lines elsewhere. And how the rest is printed."""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol, TextIO

from bench.grid import WIDTH, Grid, folded, printable
from bench.orders import Compiling

if TYPE_CHECKING:
    from rich.text import Text


ASKING = "starting workers, and asking them what runs here"


class Screen(Protocol):
    """Where a run reports its progress."""

    def show(self, line: str) -> None:
        """Show a line that stays."""
        ...

    def now(self, doing: str) -> None:
        """Say what is being done."""
        ...

    def compiling(self, one: Compiling) -> None:
        """Say that a kernel is being compiled, or was."""
        ...

    def advance(self, line: str, seconds: float) -> None:
        """Count a case and ``seconds`` of the expected time as done; show its result unless that is empty."""
        ...

    def spend(self, line: str, seconds: float) -> None:
        """Count ``seconds`` of the expected time as done, and no case; show how far it came."""
        ...


class Headway:
    """How far a run of ``count`` cases has come, and how long the rest should take, ``limit_s`` at most.

    What was expected is scaled by the pace so far, without the time that kernels took to compile; the first case, which starts
    the workers, tells no headway.

    Args:
        forecast: whether ``seconds`` are what the run should take; else they only weigh its cases against one another, and
            how long the rest should take is not known before the second case has told the pace.
    """

    def __init__(self, count: int, seconds: float, limit_s: float | None = None, *, forecast: bool = True) -> None:
        self.count, self.done = count, 0
        self._expected_s, self._done_s = seconds, 0.0
        self._began = time.monotonic()
        self._ends = None if limit_s is None else self._began + limit_s
        self._is_known = forecast
        self._compiled_s, self._compiling_since = 0.0, 0.0
        self._first: tuple[float, float] | None = None
        self._last = (0.0, seconds)

    def spend(self, seconds: float) -> None:
        """Count ``seconds`` of those that were expected as done. What was still compiled then ended with its worker."""
        if self._compiling_since:
            self._compiled_s += time.monotonic() - self._compiling_since
            self._compiling_since = 0.0
        self._done_s += seconds
        now, left_s = self._working_s, max(self._expected_s - self._done_s, 0.0)
        since, done_s = self._first or (now, self._done_s)
        if self._done_s > done_s:
            left_s *= (now - since) / (self._done_s - done_s)
            self._is_known = True
        self._first = self._first or (now, self._done_s)
        self._last = now, left_s

    def compiling(self, one: Compiling) -> None:
        """Count the time of a kernel apart, from when it began on."""
        self._compiling_since = 0.0 if one.ended else time.monotonic() - one.seconds
        self._compiled_s += one.seconds if one.ended else 0.0

    @property
    def share(self) -> float:
        """How much of what was expected is done."""
        return min(self._done_s / self._expected_s, 1.0) if self._expected_s else float(self.done == self.count)

    @property
    def left_s(self) -> float | None:
        """Seconds that the rest should take from now on, or None while nothing tells."""
        if not self._is_known:
            return None
        at, left_s = self._last
        left_s = max(left_s - (self._working_s - at), 0.0)
        return left_s if self._ends is None else max(min(left_s, self._ends - time.monotonic()), 0.0)

    @property
    def told(self) -> str:
        """Return it in words: ``3 of 20 done, 2 min left``."""
        if self.done == self.count:
            return f"{self.done} of {self.count} done in {clock(time.monotonic() - self._began)}"
        left_s, done = self.left_s, f"{self.done} of {self.count} done"
        if left_s is None:
            return done
        return f"{done}, {clock(left_s)} left" if left_s else f"{done}, longer than expected"

    @property
    def _working_s(self) -> float:
        now = time.monotonic()
        compiling_s = now - self._compiling_since if self._compiling_since else 0.0
        return now - self._began - self._compiled_s - compiling_s


class Lines:
    """A line per result, with how many remain and how long that should take; no colours, no cursor."""

    def __init__(self, headway: Headway, out: TextIO) -> None:
        self._headway, self._out = headway, out

    def show(self, line: str) -> None:
        """Write a line."""
        _write(_fitting(line, self._out), self._out)

    def now(self, doing: str) -> None:
        """Say nothing: the result's line will."""

    def compiling(self, one: Compiling) -> None:
        """Write a line as a kernel is compiled, and one when it is."""
        self._headway.compiling(one)
        self.show(_compiled(one) if one.ended else f"compiling {one.kernel} …")

    def advance(self, line: str, seconds: float) -> None:
        """Write a result's line; of results without one, each tenth of the run."""
        headway = self._headway
        headway.done += 1
        is_shown = line or headway.done * 10 // headway.count > (headway.done - 1) * 10 // headway.count
        self._pass(line, seconds, is_shown=bool(is_shown))

    def spend(self, line: str, seconds: float) -> None:
        """Write a line with the time left."""
        self._pass(line, seconds, is_shown=True)

    def _pass(self, line: str, seconds: float, *, is_shown: bool) -> None:
        headway = self._headway
        headway.spend(seconds)
        if is_shown:
            left_s = headway.left_s if headway.done < headway.count else None
            left = "" if left_s is None else f", {clock(left_s)} left"
            self.show(f"[{headway.done}/{headway.count}{left}] {line}".rstrip())


class Bar:
    """Two lines at the bottom of a terminal, how far a run has come and what it is doing since when; results above them."""

    def __init__(self, headway: Headway) -> None:
        from rich.console import Console
        from rich.live import Live

        self._headway = headway
        self._doing, self._since = "starting", time.monotonic()
        self._compiling: tuple[str, float] | None = None
        self._console = Console(stderr=True, highlight=False)
        self._live = Live(
            console=self._console,
            get_renderable=self._drawn,
            refresh_per_second=4,
            redirect_stdout=False,
            transient=True,
        )
        self._live.start()

    def show(self, line: str) -> None:
        """Print a line above."""
        from rich.text import Text

        self._console.print(Text(folded(printable(line), self._console.width)), soft_wrap=True)

    def now(self, doing: str) -> None:
        """Say what is being measured."""
        self._doing, self._since, self._compiling = printable(doing), time.monotonic(), None

    def compiling(self, one: Compiling) -> None:
        """Say which kernel is compiled, and for how long; when it is, print that above."""
        self._headway.compiling(one)
        self._compiling = None if one.ended else (f"compiling {printable(one.kernel)}", time.monotonic() - one.seconds)
        if one.ended:
            self.show(_compiled(one))

    def advance(self, line: str, seconds: float) -> None:
        """Count a case, and print its result above."""
        self._headway.done += 1
        self.spend(line, seconds)

    def spend(self, line: str, seconds: float) -> None:
        """Move on, and print a line above."""
        self._headway.spend(seconds)
        if line:
            self.show(line)

    def close(self) -> None:
        """Leave of the bar how far it came."""
        self._live.stop()
        if self._headway.count:
            self.show(self._headway.told)

    def _drawn(self) -> Text:
        from rich.text import Text

        width = self._console.width
        size = min(max(width - 40, 0), 40)
        full = round(size * self._headway.share)
        doing, since = self._compiling or (self._doing, self._since)
        after = f", {clock(time.monotonic() - since)}"
        room = max(width - len(after) - 1, 1)
        cut = doing if len(doing) <= room else f"{doing[: room - 1]}…"
        told = Text.assemble(
            ("━" * full, "green"),
            ("━" * (size - full), "bright_black"),
            f" {self._headway.told}"[: width - size],
            "\n",
            cut,
        )
        return told.append(after, "bright_black")


def _compiled(one: Compiling) -> str:
    return f"compiled {one.kernel} in {clock(one.seconds)}"


@contextmanager
def screen(count: int, seconds: float, *, limit_s: float | None = None, forecast: bool = True) -> Iterator[Screen]:
    """Open the screen of a run of ``count`` cases, which ends after ``limit_s`` if given; arguments as of ``Headway``."""
    headway = Headway(count, seconds, limit_s, forecast=forecast)
    if not _has_cursor(sys.stderr):
        yield Lines(headway, sys.stderr)
        return
    bar = Bar(headway)
    try:
        yield bar
    finally:
        bar.close()


@contextmanager
def waiting(doing: str) -> Iterator[None]:
    """Show on a terminal what is waited for, as long as the context lasts; elsewhere nothing."""
    if not _has_cursor(sys.stderr):
        yield
        return
    from rich.console import Console
    from rich.markup import escape

    with Console(stderr=True).status(escape(printable(doing))):
        yield


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


def put_shell(text: str) -> None:
    """Print what a shell reads: comments broken between words where a terminal ends, commands as they are."""
    for line in text.splitlines():
        (say if line.startswith("# ") else put)(line)


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
