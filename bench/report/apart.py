"""Where two profiles of one geometry choose differently, and by how much. Standard library only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median

from bench.grid import Column, Grid
from bench.profile.entry import Entry
from bench.profile.profile import Profile
from bench.record import Label
from bench.report.table import NOT_MEASURED, counted, settings_line
from dcp_core.settings import Settings
from dcp_core.shapes import Workload

_Batch = tuple[int, int, Workload, Label]


@dataclass(frozen=True, slots=True)
class Apart:
    """The entries of two profiles: those that chose differently, those that chose alike, and those that one alone has."""

    differing: tuple[tuple[Entry, Entry], ...]
    alike: tuple[tuple[Entry, Entry], ...]
    only_first: tuple[Entry, ...]
    only_second: tuple[Entry, ...]

    @property
    def same(self) -> bool:
        """True if both answer alike for the same batches, however long those took."""
        return not (self.differing or self.only_first or self.only_second)


def compare(first: Profile, second: Profile) -> Apart:
    """Compare two profiles, entry by entry of the same batch, dcp, interleave and label."""
    one, other = _by_batch(first), _by_batch(second)
    both = [(one[batch], other[batch]) for batch in one if batch in other]
    return Apart(
        tuple(pair for pair in both if pair[0].settings != pair[1].settings),
        tuple(pair for pair in both if pair[0].settings == pair[1].settings),
        tuple(entry for batch, entry in one.items() if batch not in other),
        tuple(entry for batch, entry in other.items() if batch not in one),
    )


def apart_grid(found: Apart) -> Grid:
    """Return the entries that chose differently, and how much longer a step takes with the one's settings for the other."""
    columns = (
        Column("batch", wrap=True),
        Column("dcp"),
        Column("A", wrap=True),
        Column("B", wrap=True),
        Column("B's in A", right=True),
        Column("A's in B", right=True),
        Column("label"),
    )
    rows = tuple(
        (
            str(one.workload),
            str(one.layout.dcp),
            settings_line(one.settings),
            settings_line(other.settings),
            _over(one, other.settings),
            _over(other, one.settings),
            str(one.label),
        )
        for one, other in found.differing
    )
    return Grid("Chosen differently", columns, rows, footnotes=summary(found))


def summary(found: Apart) -> tuple[str, ...]:
    """Return what there is to say in sentences."""
    both = len(found.differing) + len(found.alike)
    differ = "differs in its" if len(found.differing) == 1 else "differ in their"
    lines = [f"Of {counted(both, 'batch', 'batches')} that both hold, {len(found.differing)} {differ} settings."]
    for name, entries in (("A", found.only_first), ("B", found.only_second)):
        if entries:
            batches = ", ".join(f"{entry.workload} dcp {entry.layout.dcp}" for entry in entries[:3])
            more = ", …" if len(entries) > 3 else ""
            lines.append(f"Only in {name}, {len(entries)}: {batches}{more}.")
    if found.alike:
        ratios = [other.chosen.median_us / one.chosen.median_us for one, other in found.alike]
        lines.append(
            f"Where they choose alike, B's time over A's is {median(ratios):.3f} in the median, "
            f"{min(ratios):.3f} to {max(ratios):.3f}."
        )
    return tuple(lines)


def _by_batch(profile: Profile) -> Mapping[_Batch, Entry]:
    layouts = ((entry, entry.layout.canonical) for entry in profile.entries)
    return {(layout.dcp, layout.interleave, entry.workload, entry.label): entry for entry, layout in layouts}


def _over(entry: Entry, settings: Settings) -> str:
    """Return an entry's time with some settings over that of its own choice."""
    found = entry.find(settings)
    return f"{found.median_us / entry.chosen.median_us:.2f}" if found else NOT_MEASURED
