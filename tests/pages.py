"""What a page says: its words, and the rows of its tables."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).parents[1]


def table(page: str, start: str) -> list[list[str]]:
    """Return the rows of the table whose first row begins so, without its head."""
    lines = (ROOT / page).read_text(encoding="utf-8").splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith(start))
    rows: list[list[str]] = []
    for line in lines[first:]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows


def words(page: str) -> str:
    """Return the words of a page with single spaces between them."""
    return " ".join((ROOT / page).read_text(encoding="utf-8").split())


def promise(start: str) -> str:
    """Return what stands beside a promise of docs/surviving.md: the figure, and how it was measured."""
    _, *told = table("docs/surviving.md", f"| {start}")[0]
    return "; ".join(told)


def agree(shown: Iterable[str], measured: Iterable[float]) -> None:
    """Hold that figures are the measured ones, rounded as they are shown."""
    shown = list(shown)
    assert shown == [f"{value:.{len(text.partition('.')[2])}f}" for text, value in zip(shown, measured, strict=True)]
