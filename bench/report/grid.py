"""A table of text, drawn for a terminal, as plain lines and as Markdown. Imports rich when one is drawn in colour."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from rich.table import Table

WIDTH = 80
"""Columns of a usual terminal; a table that needs more of them stands closer."""
_GAP = "  "


@dataclass(frozen=True, slots=True)
class Column:
    """A column's heading; numbers stand ``right``. Only a column that may ``wrap`` gives way on a narrow screen."""

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

    def to_text(self) -> str:
        """Return the table as plain lines, however long, one per row: for pipes and ``grep``."""
        widths, gap = self._widths(WIDTH)
        headings = [column.heading for column in self.columns]
        lines = [self.title] if self.title else []
        for row in (headings, ["-" * size for size in widths], *self.rows):
            cells = zip(row, widths, self.columns, strict=True)
            lines.append(
                gap.join(cell.rjust(size) if column.right else cell.ljust(size) for cell, size, column in cells)
            )
        return "\n".join(line.rstrip() for line in [*lines, *self.footnotes])

    def to_markdown(self) -> str:
        """Return the table as Markdown, a title above it in bold."""
        rule = ["---:" if column.right else "---" for column in self.columns]
        rows = [[column.heading for column in self.columns], rule]
        rows += [[markdown(cell) for cell in row] for row in self.rows]
        lines = [f"| {' | '.join(row)} |" for row in rows]
        title = [f"**{markdown(self.title)}**", ""] if self.title else []
        below = ["", *map(markdown, self.footnotes)] if self.footnotes else []
        return "\n".join([*title, *lines, *below])

    def to_rich(self, width: int) -> Table | None:
        """Return the table for a rich console of ``width`` columns; None if that would cut a cell. None is read as markup."""
        from rich import box
        from rich.table import Table
        from rich.text import Text

        natural, gap = self._widths(width)
        widths = self._narrowed(natural, sum(natural) + len(gap) * (len(natural) - 1) - width)
        if widths is None:
            return None
        table = Table(
            title=Text(self.title, style="bold") if self.title else None,
            title_justify="left",
            caption=Text("\n".join(self.footnotes)) if self.footnotes else None,
            caption_justify="left",
            box=box.SIMPLE_HEAD,
            padding=(0, len(gap) - 1, 0, 0),  # the box itself puts one space between columns
            pad_edge=False,
            show_edge=False,
        )
        for column, size in zip(self.columns, widths, strict=True):
            justify: Literal["right", "left"] = "right" if column.right else "left"
            table.add_column(column.heading, justify=justify, min_width=size, overflow="fold")
        for index, row in enumerate(self.rows):
            style = "bold green" if index in self.emphasized else ""
            cells = (Text(_folded(cell, size)) for cell, size in zip(row, widths, strict=True))
            table.add_row(*cells, style=style)
        return table

    def _narrowed(self, widths: Sequence[int], excess: int) -> list[int] | None:
        """Take ``excess`` from columns that may wrap, the widest first; None if they cannot give as much."""
        narrowed = list(widths)
        for index in sorted(range(len(narrowed)), key=lambda index: -narrowed[index]):
            if self.columns[index].wrap and excess > 0:
                cells = [self.columns[index].heading, *(row[index] for row in self.rows)]
                least = max(len(piece.rstrip()) for cell in cells for piece in _pieces(cell))
                given = min(excess, narrowed[index] - least)
                narrowed[index], excess = narrowed[index] - given, excess - given
        return narrowed if excess <= 0 else None

    def _widths(self, room: int) -> tuple[list[int], str]:
        """Return how wide each column is without folding any cell, and what stands between columns in that much room."""
        cells = [[column.heading for column in self.columns], *self.rows]
        widths = [max(len(row[index]) for row in cells) for index in range(len(self.columns))]
        return widths, _GAP if sum(widths) + len(_GAP) * (len(widths) - 1) <= room else " "


def _pieces(cell: str) -> list[str]:
    """Split a cell behind every underscore, comma and space: where a batch, a model or a sentence may be folded."""
    return re.split(r"(?<=[_, ])", cell)


def _folded(cell: str, width: int) -> str:
    """Break a cell into lines no longer than ``width``, as far as its pieces allow."""
    lines = [""]
    for piece in _pieces(cell):
        if lines[-1] and len(lines[-1]) + len(piece.rstrip()) > width:
            lines.append("")
        lines[-1] += piece
    return "\n".join(line.rstrip() for line in lines)


def printable(text: str) -> str:
    """Return ``text`` with all that could move a cursor, colour a screen or break a line written out as its code."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def markdown(text: str) -> str:
    """Return ``text`` as Markdown that shows it as it is."""
    escaped = text.replace("\\", "\\\\")
    for char in "|<`*_[":
        escaped = escaped.replace(char, f"\\{char}")
    return escaped
