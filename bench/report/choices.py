"""What a profile chose, as a table and as plain data."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from bench.entry import Candidate, Entry
from bench.profile import Profile
from bench.report.grid import Column, Grid
from bench.report.table import NOT_MEASURED, Footnotes, exchange_of, kernels_of, micros
from dcp_core.shapes import Workload

Batches = Collection[tuple[int, int, Workload]]
"""(dcp, interleave, batch) of the entries to show."""


def entries_grid(profile: Profile, batches: Batches | None = None) -> Grid:
    """Return a profile's choices: the settings of each batch, their step, and its ratio to the engine's default.

    Args:
        batches: to show; all if None.
    """
    columns = (
        Column("batch", wrap=True),
        Column("dcp"),
        Column("path"),
        Column("kernel"),
        Column("via"),
        Column("step µs", right=True),
        Column("95%", right=True),
        Column("/default", right=True),
        Column("label"),
    )
    device = profile.environment.hard.get("device_name", "unknown device")
    footnotes = Footnotes()
    entries = _wanted(profile, batches)
    rows = tuple(_row(entry, footnotes) for entry in entries)
    gains = frozenset(index for index, entry in enumerate(entries) if (entry.ratio_to_default or 1.0) < 1.0)
    return Grid(f"Chosen for {profile.geometry} on {device}", columns, rows, gains, footnotes.lines())


def entries_json(profile: Profile, batches: Batches | None = None) -> list[dict[str, Any]]:
    """Return a profile's choices as plain data; see ``entries_grid``."""
    return [
        {
            "batch": str(entry.workload),
            "dcp": entry.layout.dcp,
            "interleave": entry.layout.interleave,
            "label": str(entry.label),
            "settings": entry.settings.to_json(),
            "median_us": entry.chosen.median_us,
            "low_us": entry.chosen.low_us,
            "high_us": entry.chosen.high_us,
            "ratio_to_default": entry.ratio_to_default,
            "case": entry.chosen.case,
        }
        for entry in _wanted(profile, batches)
    ]


def _wanted(profile: Profile, batches: Batches | None) -> list[Entry]:
    return [
        entry
        for entry in profile.entries
        if batches is None or (entry.layout.dcp, entry.layout.interleave, entry.workload) in batches
    ]


def _row(entry: Entry, footnotes: Footnotes) -> tuple[str, ...]:
    settings, chosen, ratio = entry.settings, entry.chosen, entry.ratio_to_default
    interleave = f"i{entry.layout.interleave}" if entry.layout.interleave > 1 else ""
    return (
        str(entry.workload),
        f"{entry.layout.dcp}{interleave}",
        footnotes.path(settings),
        kernels_of(settings),
        exchange_of(settings),
        micros(chosen.median_us),
        _interval(chosen),
        NOT_MEASURED if ratio is None else f"{ratio:.2f}",
        str(entry.label),
    )


def _interval(candidate: Candidate) -> str:
    percent = 100 * max(candidate.high_us - candidate.median_us, candidate.median_us - candidate.low_us)
    percent /= candidate.median_us
    return f"±{percent:.1f}%" if percent < 10 else f"±{percent:.0f}%"
