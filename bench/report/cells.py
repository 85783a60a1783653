"""Panels that are tables of cells, all cells of a picture of one size, no picture wider than a page shows legibly."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from bench.recommend.decision_map import Row
from bench.report import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.transforms import Bbox

WIDEST_INCHES = 13.3
"""Of a picture: where a page has room for 1246 pixels, its words of 7 points are 9 pixels high."""
_Name = TypeVar("_Name", int, Row)


class Size(NamedTuple):
    """Columns and rows of a table, or inches."""

    width: float
    height: float


def panels(tables: Sequence[Size], *, cell: Size, around: Size) -> tuple[Figure, list[Axes]]:
    """Return a figure with a panel for each table, as large as its own cells need, two side by side where there is room.

    Args:
        tables: columns and rows of each.
        cell: inches.
        around: inches that the names of a table's columns and rows, and its title, take.
    """
    widest = max(table.width for table in tables)
    columns = 2 if 2 * (around.width + cell.width * widest) <= WIDEST_INCHES else 1
    widest = max(widest, (style.LEAST_INCHES / min(columns, len(tables)) - around.width) / cell.width)
    width = around.width + cell.width * widest
    tallest = [
        max(table.height for table in tables[start : start + columns]) for start in range(0, len(tables), columns)
    ]
    height = around.height + cell.height * sum(tallest) / len(tallest)
    figure, axes = style.panels(len(tables), width=width, height=height, columns=columns)
    grid: Any = axes[0].get_gridspec()
    grid.set_height_ratios(tallest)
    for index, (place, table) in enumerate(zip(axes, tables, strict=True)):
        _take(place, table.width / widest, table.height / tallest[index // columns])
        style.lattice(place, int(table.width), int(table.height))
    return figure, axes


def most(names: Iterable[_Name], room: int) -> list[_Name]:
    """Return those columns or rows that most cells name, as many as there is room for, ascending."""
    counts = Counter(names)
    return sorted(sorted(counts, key=lambda name: (-counts[name], name))[:room])


def _take(axes: Axes, width: float, height: float) -> None:
    """Let a panel take so much of its place in the grid, from the upper left corner on."""
    from matplotlib.transforms import Bbox

    def part(axes: Any, _: Any) -> Bbox:
        whole = axes.get_position(original=True)
        return Bbox.from_extents(whole.x0, whole.y1 - height * whole.height, whole.x0 + width * whole.width, whole.y1)

    axes.set_axes_locator(part)
