"""What a profile chose, as a table and as plain data."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from bench.grid import Column, Grid
from bench.profile.entry import Entry, Ratio
from bench.profile.nearest import WAYS, LeftOutRegret
from bench.profile.profile import Profile
from bench.report.table import NOT_MEASURED, Footnotes, counted, exchange_of, kernels_of, micros
from dcp_core.shapes import Workload

Batches = Collection[tuple[int, int, Workload]]
"""(dcp, interleave, batch) of the entries to show."""


def entries_grid(profile: Profile, batches: Batches | None = None) -> Grid:
    """Return a profile's choices: the settings of each batch, their step, its ratio to the engine's default.

    ``next`` is the runner-up's time over it. Both ratios are those of races where the settings were timed in turns.

    Args:
        batches: to show; all if None.
    """
    columns = (
        Column("batch", wrap=True),
        Column("dcp"),
        Column("path", wrap=True),
        Column("kernel", wrap=True),
        Column("via"),
        Column("step µs", right=True),
        Column("/default", right=True),
        Column("next", right=True),
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
            "ratio_interval": (entry.to_default.low, entry.to_default.high) if entry.to_default else None,
            "runner_up": entry.runner_up.settings.to_json() if entry.runner_up else None,
            "runner_up_us": entry.runner_up.median_us if entry.runner_up else None,
            "runner_up_ratio": 1 / entry.over(entry.runner_up).value if entry.runner_up else None,
            "case": entry.chosen.case,
            "time": entry.chosen.time or None,
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
    settings, chosen, runner_up = entry.settings, entry.chosen, entry.runner_up
    interleave = f"i{entry.layout.interleave}" if entry.layout.interleave > 1 else ""
    return (
        str(entry.workload),
        f"{entry.layout.dcp}{interleave}",
        footnotes.path(settings),
        kernels_of(settings),
        exchange_of(settings),
        micros(chosen.median_us),
        shown_ratio(entry.to_default),
        f"{1 / entry.over(runner_up).value:.2f}" if runner_up else NOT_MEASURED,
        str(entry.label),
    )


def shown_ratio(ratio: Ratio | None) -> str:
    """Return a ratio with the half width of its interval: ``0.83±1.5%``; 1 where the default is what was chosen."""
    if ratio is None:
        return NOT_MEASURED
    percent = half_width_percent(ratio.value, ratio.low, ratio.high)
    return f"{ratio.value:.2f}±{percent:.1f}%" if percent else f"{ratio.value:.0f}"


def half_width_percent(value: float, low: float, high: float) -> float:
    """Return how far the farther end of an interval lies from its value."""
    return 100 * max(high / value - 1, 1 - low / value)


def regions_grid(profile: Profile) -> Grid:
    """Return how a profile answers for batches it did not measure: the regret of each way, each batch left out in turn."""
    columns = (
        Column("dcp"),
        Column("batches"),
        Column("label"),
        *(Column(str(way), right=True) for way in WAYS),
        Column("answers by"),
    )
    rows = []
    unknown = False
    for (dcp, interleave, longer, label), region in sorted(profile.regions.items()):
        where = f"{dcp}i{interleave}" if interleave > 1 else str(dcp)
        batches = counted(len(region.entries), "longer one" if longer else "decode")
        unknown = unknown or any(regret.unknown for regret in region.regrets.values())
        regrets = (_regret(region.regrets.get(way)) for way in WAYS)
        rows.append((where, batches, str(label), *regrets, str(region.way)))
    notes = [
        "Mean regret (worst) of batches left out, each in turn, relative to their best;",
        "the way with the least mean answers for batches among them, else the default.",
    ]
    if unknown:
        notes.append("?N: what N batches were answered was not measured with them, and counts as slow.")
    return Grid("Between what was measured", columns, tuple(rows), footnotes=tuple(notes))


def _regret(regret: LeftOutRegret | None) -> str:
    if regret is None:
        return NOT_MEASURED
    unknown = f" ?{regret.unknown}" if regret.unknown else ""
    return f"{_percent(regret.mean)} ({_percent(regret.worst)}){unknown}"


def _percent(share: float) -> str:
    return f"{share:.1%}" if share < 0.1 else f"{share:.0%}"
