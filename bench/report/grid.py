"""A table of text, drawn for a terminal, as plain lines and as Markdown. Imports rich when one is drawn in colour."""

from __future__ import annotations

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
        widths, gap = self._widths()
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
        rows += [[_markdown(cell) for cell in row] for row in self.rows]
        lines = [f"| {' | '.join(row)} |" for row in rows]
        title = [f"**{_markdown(self.title)}**", ""] if self.title else []
        below = ["", *map(_markdown, self.footnotes)] if self.footnotes else []
        return "\n".join([*title, *lines, *below])

    def to_rich(self) -> Table:
        """Return the table for a rich console. No cell is read as markup."""
        from rich import box
        from rich.table import Table
        from rich.text import Text

        _, gap = self._widths()
        table = Table(
            title=Text(self.title, style="bold") if self.title else None,
            title_justify="left",
            caption=Text("\n".join(self.footnotes)) if self.footnotes else None,
            caption_justify="left",
            box=box.SIMPLE_HEAD,
            padding=(0, len(gap) - 1, 0, 0),  # the box itself puts one space between columns
            pad_edge=False,
        )
        for column in self.columns:
            justify: Literal["right", "left"] = "right" if column.right else "left"
            table.add_column(column.heading, justify=justify, no_wrap=not column.wrap, overflow="fold")
        for index, row in enumerate(self.rows):
            style = "bold green" if index in self.emphasized else ""
            table.add_row(*(Text(cell) for cell in row), style=style)
        return table

    def _widths(self) -> tuple[list[int], str]:
        """Return how wide each column is without folding any cell, and what stands between columns."""
        cells = [[column.heading for column in self.columns], *self.rows]
        widths = [max(len(row[index]) for row in cells) for index in range(len(self.columns))]
        return widths, _GAP if sum(widths) + len(_GAP) * (len(widths) - 1) <= WIDTH else " "


def printable(text: str) -> str:
    """Return ``text`` with all that could move a cursor, colour a screen or break a line written out as its code."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def _markdown(cell: str) -> str:
    escaped = cell.replace("\\", "\\\\")
    for char in "|<`*_[":
        escaped = escaped.replace(char, f"\\{char}")
    return escaped
