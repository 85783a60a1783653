"""How a profile generalises: to the nearest measured batch, or by a tree, and no further than it was measured."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import repeat
from typing import NamedTuple

from bench.entry import Entry, LeftOut, Source, carried
from bench.record import Label
from bench.tree import Sizes, Tree, decide, grow, lengths, rows_of
from dcp_core.settings import Settings
from dcp_core.shapes import Workload

CONTEXT_FLOOR = 128
"""Tokens added to a context before its logarithm: one tile of keys costs about as much as none."""
FURTHEST = 3.0
"""Doublings beyond which nothing is a neighbour, however far apart a region was measured."""
MAX_FOLDS = 64
"""Of leaving out: in a region of more batches several are left out at a time."""
WAYS = (Source.NEIGHBOUR, Source.TREE, Source.DEFAULT)
"""How a batch that was not measured may be answered; of two that do as well, the first."""

Point = tuple[float, float, float]
RegionKey = tuple[int, int, bool, Label]
"""dcp, interleave, mixed or not, label."""


def place(sizes: Sizes) -> Point:
    """Return where a batch lies: log2 of its requests, of their mean new tokens, and of their mean context."""
    return math.log2(sizes.requests), math.log2(sizes.new), math.log2(sizes.total - sizes.new + CONTEXT_FLOOR)


class Neighbour(NamedTuple):
    """A measured batch that answers for another: how far away it is, and its settings as they run that other one."""

    distance: float
    entry: Entry
    settings: Settings


class LeftOutRegret(NamedTuple):
    """What a way of answering would have cost a region's batches, each left out in turn, relative to their best.

    The worst is of those ``measured``; ``unknown`` is the number of the others: what they were answered was not measured
    with them, and the mean takes their ``supposed_regret``.
    """

    mean: float
    worst: float
    unknown: int


@dataclass(frozen=True, slots=True)
class Region:
    """The measured batches that may answer for one another: one dcp, interleave and label, all mixed or none.

    ``low`` and ``high`` bound them; ``spacing`` is the longest way from one to its nearest neighbour. ``way`` is that
    of answering whose mean of ``regrets`` is least; ``tree`` is there if it is the tree.
    """

    entries: tuple[Entry, ...]
    points: tuple[Point, ...] = field(init=False)
    low: Point = field(init=False)
    high: Point = field(init=False)
    spacing: float = field(init=False)
    regrets: Mapping[Source, LeftOutRegret] = field(init=False)
    way: Source = field(init=False)
    tree: Tree | None = field(init=False)

    def __post_init__(self) -> None:
        points = [place(Sizes.of(*lengths(entry.workload))) for entry in self.entries]
        found = {way: _left_out_regret(self.entries, way) for way in WAYS}
        regrets = {way: regret for way, regret in found.items() if regret is not None}
        way = min(regrets, key=lambda one: round(regrets[one].mean, 6), default=Source.NEIGHBOUR)
        derived = {
            "points": tuple(points),
            "low": tuple(map(min, zip(*points, strict=True))),
            "high": tuple(map(max, zip(*points, strict=True))),
            "spacing": min(_spacing(points), FURTHEST),
            "regrets": regrets,
            "way": way,
            "tree": grow(*rows_of(self.entries)) if way is Source.TREE else None,
        }
        for name, value in derived.items():
            object.__setattr__(self, name, value)

    def nearest(self, workload: Workload, here: Point, *, besides: Collection[int] = ()) -> Neighbour | None:
        """Return the nearest entry whose settings can run a batch; None if there is none.

        Args:
            here: the batch's place.
            besides: indices of entries that may not answer.
        """
        distances = list(map(math.dist, self.points, repeat(here)))
        first = distances.index(min(distances))
        for index in (first, *sorted(range(len(distances)), key=distances.__getitem__)):
            entry = self.entries[index]
            settings = carried(entry.settings, entry.layout, workload) if index not in besides else None
            if settings is not None:
                return Neighbour(distances[index], entry, settings)
        return None

    def covers(self, here: Point, distance: float) -> bool:
        """Tell whether a batch lies among the measured ones, ``distance`` from the nearest that can answer for it."""
        inside = zip(self.low, here, self.high, strict=True)
        return distance <= self.spacing and all(low <= value <= high for low, value, high in inside)


def regions_of(entries: Iterable[Entry]) -> dict[RegionKey, Region]:
    """Return entries by region.

    Raises:
        ValueError: for two entries of one batch in a region.
    """
    inside: dict[RegionKey, dict[Workload, Entry]] = defaultdict(dict)
    for entry in entries:
        layout = entry.layout.canonical
        region = inside[layout.dcp, layout.interleave, entry.workload.is_mixed, entry.label]
        if entry.workload in region:
            raise ValueError(f"there are two {entry.label} entries of {entry.workload} with {entry.layout}")
        region[entry.workload] = entry
    return {key: Region(tuple(found.values())) for key, found in inside.items()}


def leave_each_out(entries: Iterable[Entry]) -> tuple[Entry, ...]:
    """Return entries, sorted for people, each with the regret it would have paid for being left out of its region.

    Of two equally near the first answers, here as in a profile's lookup: so both see entries in the same order.
    """
    plain = sorted((replace(entry, left_out=LeftOut()) for entry in entries), key=lambda entry: entry.order)
    found = [entry for region in regions_of(plain).values() for entry in _left_out(region)]
    return tuple(sorted(found, key=lambda entry: entry.order))


def _left_out(region: Region) -> Iterator[Entry]:
    """Yield a region's entries, each with what the others would have answered for it."""
    entries = region.entries
    choices, rows = rows_of(entries)
    folds = min(len(entries), MAX_FOLDS)
    for fold in range(folds):
        besides = range(fold, len(entries), folds)
        kept = [row for index, row in enumerate(rows) if index not in besides]
        tree = grow(choices, kept) if kept else None
        for index in besides:
            entry = entries[index]
            near = region.nearest(entry.workload, region.points[index], besides=besides)
            told = carried(decide(tree, rows[index].sizes), entry.layout, entry.workload) if tree else None
            left_out = LeftOut(_regret(entry, near.settings if near else None), _regret(entry, told))
            yield replace(entry, left_out=left_out)


def _regret(entry: Entry, settings: Settings | None) -> float | None:
    regret = entry.regret(settings) if settings else None
    return None if regret is None else round(regret, 6)


def _left_out_regret(entries: Sequence[Entry], way: Source) -> LeftOutRegret | None:
    regrets = [entry.left_out_regret(way) for entry in entries]
    known = [regret for regret in regrets if regret is not None]
    if not known:
        return None
    supposed = [entry.supposed_regret if one is None else one for entry, one in zip(entries, regrets, strict=True)]
    return LeftOutRegret(sum(supposed) / len(supposed), max(known), len(regrets) - len(known))


def _spacing(points: Sequence[Point]) -> float:
    nearest = [math.inf] * len(points)
    for index, point in enumerate(points):
        for other in range(index):
            distance = math.dist(point, points[other])
            nearest[index] = min(nearest[index], distance)
            nearest[other] = min(nearest[other], distance)
    return max((distance for distance in nearest if distance < math.inf), default=0.0)
