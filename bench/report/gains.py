"""What a profile's choices are worth beside the engine's default, by what a batch does. Standard library only."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from math import exp, log
from statistics import fmean, median

from bench.grid import Column, Grid
from bench.profile.entry import Entry
from bench.profile.profile import Profile
from bench.recommend.decision_map import Phase
from dcp_core.shapes import Workload

MIXED = "mixed"


def gains_grid(profile: Profile) -> Grid:
    """Return the chosen settings' time over the default's by phase, dcp and label: mean, spread, and how many lose.

    The mean is geometric. A batch whose default was not measured is none of them.
    """
    groups: dict[tuple[int, str, str], list[Entry]] = defaultdict(list)
    for entry in profile.entries:
        if entry.to_default is not None:
            groups[entry.layout.dcp, phase_of(entry.workload), str(entry.label)].append(entry)
    columns = (
        Column("dcp"),
        Column("phase"),
        Column("batches", right=True),
        Column("mean", right=True),
        Column("least", right=True),
        Column("median", right=True),
        Column("most", right=True),
        Column("as default", right=True),
        Column("slower", right=True),
        Column("label"),
    )
    rows = tuple(_row(*key, entries) for key, entries in sorted(groups.items()))
    return Grid("Chosen over the engine's default", columns, rows)


def phase_of(workload: Workload) -> str:
    """Return what a batch does: decode, drafted decode, chunked prefill, or mixed."""
    return MIXED if workload.is_mixed else Phase.of(workload)


def _row(dcp: int, phase: str, label: str, entries: Sequence[Entry]) -> tuple[str, ...]:
    ratios = [entry.to_default for entry in entries if entry.to_default]
    values = [ratio.value for ratio in ratios]
    numbers = (exp(fmean(map(log, values))), min(values), median(values), max(values))
    same = sum(entry.settings == entry.default for entry in entries)
    slower = sum(ratio.low > 1 for ratio in ratios)
    return str(dcp), phase, str(len(values)), *(f"{one:.2f}" for one in numbers), str(same), str(slower), label
