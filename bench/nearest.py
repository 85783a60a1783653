"""How a profile generalises: to the nearest measured batch, in logarithms, and no further than it was measured."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from bench.entry import Entry, carried
from dcp_core.settings import Settings
from dcp_core.shapes import Workload

CONTEXT_FLOOR = 128
"""Tokens added to a context before its logarithm: one tile of keys costs about as much as none."""

Point = tuple[float, float, float]


def place(workload: Workload) -> Point:
    """Return where a batch lies: log2 of its requests, of their mean new tokens, and of their mean context."""
    requests = len(workload)
    context = sum(workload.context_lens) / requests
    return math.log2(requests), math.log2(workload.new_tokens / requests), math.log2(context + CONTEXT_FLOOR)


class Neighbour(NamedTuple):
    """A measured batch that answers for another: how far away it is, and its settings as they run that other one."""

    distance: float
    entry: Entry
    settings: Settings


@dataclass(frozen=True, slots=True)
class Region:
    """The measured batches that may answer for one another: one dcp, interleave and label, all mixed or none.

    ``low`` and ``high`` bound them; ``spacing`` is the longest way from one to its nearest neighbour; ``regret`` the
    mean of what each would have paid for being left out.
    """

    entries: tuple[Entry, ...]
    points: tuple[Point, ...] = field(init=False)
    low: Point = field(init=False)
    high: Point = field(init=False)
    spacing: float = field(init=False)
    regret: float | None = field(init=False)

    def __post_init__(self) -> None:
        points = [place(entry.workload) for entry in self.entries]
        known = [entry.left_out_regret for entry in self.entries if entry.left_out_regret is not None]
        derived = {
            "points": tuple(points),
            "low": tuple(map(min, zip(*points, strict=True))),
            "high": tuple(map(max, zip(*points, strict=True))),
            "spacing": _spacing(points),
            "regret": sum(known) / len(known) if known else None,
        }
        for name, value in derived.items():
            object.__setattr__(self, name, value)

    def nearest(self, workload: Workload, *, besides: Entry | None = None) -> Neighbour | None:
        """Return the nearest entry whose settings can run a batch; None if there is none."""
        here = place(workload)
        distances = sorted((math.dist(here, point), index) for index, point in enumerate(self.points))
        for distance, index in distances:
            entry = self.entries[index]
            settings = carried(entry, workload) if entry is not besides else None
            if settings is not None:
                return Neighbour(distance, entry, settings)
        return None

    def covers(self, workload: Workload, distance: float) -> bool:
        """Tell whether a batch lies among the measured ones, ``distance`` from the nearest that can answer for it."""
        inside = zip(self.low, place(workload), self.high, strict=True)
        return distance <= self.spacing and all(low <= value <= high for low, value, high in inside)


def leave_each_out(entries: Sequence[Entry]) -> tuple[Entry, ...]:
    """Return one region's entries, each with the regret it would have paid for being left out."""
    region = Region(tuple(entries))
    return tuple(replace(entry, left_out_regret=_left_out(region, entry)) for entry in entries)


def _left_out(region: Region, entry: Entry) -> float | None:
    found = region.nearest(entry.workload, besides=entry)
    regret = entry.regret(found.settings) if found else None
    return None if regret is None else round(regret, 6)


def _spacing(points: Sequence[Point]) -> float:
    nearest = [math.inf] * len(points)
    for index, point in enumerate(points):
        for other in range(index):
            distance = math.dist(point, points[other])
            nearest[index] = min(nearest[index], distance)
            nearest[other] = min(nearest[other], distance)
    return max((distance for distance in nearest if distance < math.inf), default=0.0)
