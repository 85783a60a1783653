"""A table of text, for a terminal of some width, as plain lines, as Markdown and as CSV. Standard library only."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from unicodedata import combining, east_asian_width

WIDTH = 80
"""Columns of a usual terminal; a table that needs more of them stands closer."""
_GAP = "  "
_PIECE = re.compile(r"(?<= )|(?<=[,+:])(?=[a-z])|(?<=_)(?=\d*q)", re.ASCII)
"""Where a cell may be folded: behind a space, between joined names, and between the parts of a batch."""
_INSIDE = re.compile(r"(?<=\d) (?=(?:[µm]?s|min|h|[KMG]iB|%)(?:\W|$))|(?<=\btp) (?=\d)|(?<=\bdcp) (?=\d)", re.ASCII)
"""Spaces inside a value, where nothing is broken: before its unit, and in ``dcp 2``."""
_GLUE = "\N{NO-BREAK SPACE}"
_BOLD, _BEST, _PLAIN = "\x1b[1m", "\x1b[1;32m", "\x1b[0m"


@dataclass(frozen=True, slots=True)
class Column:
    """A column's heading; numbers stand ``right``. A narrow terminal folds headings, and cells of columns that may ``wrap``."""

    heading: str
    right: bool = False
    wrap: bool = False


@dataclass(frozen=True, slots=True)
class Grid:
    """A table: its title, its columns, rows of as many cells, and what is said below.

    Args:
        emphasized: indices of the rows to point out.
        footnotes: a line each.

    Raises:
        ValueError: for a row with more or fewer cells than columns.
    """

    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[str, ...], ...]
    emphasized: frozenset[int] = frozenset()
    footnotes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(
                    f"{self.title}: a row of {len(row)} cells in a table of {len(self.columns)} columns: {row}"
                )
        object.__setattr__(self, "title", printable(self.title))
        object.__setattr__(self, "footnotes", tuple(map(printable, self.footnotes)))
        object.__setattr__(self, "rows", tuple(tuple(printable(cell) for cell in row) for row in self.rows))

    def to_text(self, width: int | None = None, *, colours: bool = False) -> str:
        """Return the table as lines.

        Args:
            width: of a terminal, where cells are folded and footnotes broken to fit; None for a line per row, however long,
                as pipes and ``grep`` want it. A terminal too narrow for any folding gets such rows too, without colours.
            colours: headings in bold, and the rows to point out in green.
        """
        natural, gap = self._widths(width or WIDTH)
        excess = 0 if width is None else sum(natural) + len(gap) * (len(natural) - 1) - width
        widths = self._narrowed(natural, excess)
        if widths is None:
            (widths, gap), colours = self._widths(WIDTH), False
        headings = tuple(column.heading for column in self.columns)
        rule = tuple(("─" if colours else "-") * size for size in widths)
        parts = [(folded(self.title, width), _BOLD)] if self.title else []
        parts += [(self._line(headings, widths, gap), _BOLD), (self._line(rule, widths, gap), "")]
        for index, row in enumerate(self.rows):
            parts.append((self._line(row, widths, gap), _BEST if index in self.emphasized else ""))
        parts += [(folded(footnote, width), "") for footnote in self.footnotes]
        lines = ((line.rstrip(), look) for part, look in parts for line in part.split("\n"))
        return "\n".join(f"{look}{line}{_PLAIN}" if colours and look else line for line, look in lines)

    def _line(self, cells: Sequence[str], widths: Sequence[int], gap: str) -> str:
        """Return a row as lines of text: one, unless a cell is wider than its column."""
        places = list(zip(widths, self.columns, strict=True))
        lines = zip_longest(*(_fold(cell, size) for cell, size in zip(cells, widths, strict=True)), fillvalue="")
        return "\n".join(
            gap.join(
                " " * (size - taken(piece)) + piece if column.right else piece + " " * (size - taken(piece))
                for piece, (size, column) in zip(line, places, strict=True)
            )
            for line in lines
        )

    def to_markdown(self) -> str:
        """Return the table as Markdown, a title above it in bold."""
        rule = ["---:" if column.right else "---" for column in self.columns]
        rows = [[column.heading for column in self.columns], rule]
        rows += [[markdown(cell) for cell in row] for row in self.rows]
        lines = [f"| {' | '.join(row)} |" for row in rows]
        title = [f"**{markdown(self.title)}**", ""] if self.title else []
        below = ["", *map(markdown, self.footnotes)] if self.footnotes else []
        return "\n".join([*title, *lines, *below])

    def _narrowed(self, widths: Sequence[int], excess: int) -> list[int] | None:
        """Take ``excess`` from headings first, then from columns that may wrap, the widest first; None if that is not enough."""
        narrowed = list(widths)
        widest = sorted(range(len(narrowed)), key=lambda index: -narrowed[index])
        for wrap, index in [
            *((False, index) for index in widest),
            *((self.columns[index].wrap, index) for index in widest),
        ]:
            pieces = _pieces(self.columns[index].heading)
            for row in self.rows:
                pieces += _pieces(row[index]) if wrap else [row[index]]
            given = max(0, min(excess, narrowed[index] - max(taken(piece.rstrip()) for piece in pieces)))
            narrowed[index], excess = narrowed[index] - given, excess - given
        return narrowed if excess <= 0 else None

    def _widths(self, room: int) -> tuple[list[int], str]:
        """Return how wide each column is without folding any cell, and what stands between columns in that much room."""
        cells = [[column.heading for column in self.columns], *self.rows]
        widths = [max(taken(row[index]) for row in cells) for index in range(len(self.columns))]
        return widths, _GAP if sum(widths) + len(_GAP) * (len(widths) - 1) <= room else " "


def taken(text: str) -> int:
    """Return how many columns of a terminal a text takes: two for each wide character, as of Chinese, none for an accent."""
    return sum(0 if combining(char) else 2 if east_asian_width(char) in "WF" else 1 for char in text)


def _pieces(cell: str) -> list[str]:
    """Split a cell where it may be folded."""
    return [piece.replace(_GLUE, " ") for piece in _PIECE.split(_INSIDE.sub(_GLUE, cell))]


def _fold(cell: str, width: int) -> list[str]:
    """Break a cell into lines no longer than ``width``, as far as its pieces allow."""
    if taken(cell) <= width:
        return [cell]
    lines = [""]
    for piece in _pieces(cell):
        if lines[-1] and taken(lines[-1]) + taken(piece.rstrip()) > width:
            lines.append("")
        lines[-1] += piece
    return [line.rstrip() for line in lines]


def folded(sentence: str, width: int | None) -> str:
    """Break a sentence, or a shell's comment, between its words into lines no longer than ``width``; None leaves it as it is."""
    if width is None or len(sentence) <= width:
        return sentence
    indent = "# " if sentence.startswith("# ") else " " * (len(sentence) - len(sentence.lstrip()))
    glued = _INSIDE.sub(_GLUE, sentence)
    lines = textwrap.fill(glued, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
    return lines.replace(_GLUE, " ")


def printable(text: str) -> str:
    """Return ``text`` with all that could move a cursor, colour a screen or break a line written out as its code."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def markdown(text: str) -> str:
    """Return ``text`` as Markdown that shows it as it is."""
    escaped = text.replace("\\", "\\\\")
    for char in "|<`*_[":
        escaped = escaped.replace(char, f"\\{char}")
    return escaped
