"""How a profile generalises: to the nearest measured batch, or by a tree, and no further than it was measured.

What decides between settings is what a rank's kernel sees: how many rows of queries, and how many keys to each. So batches
lie where their rank computes, and those of one dcp lend their settings to another.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import count, repeat
from operator import le
from typing import NamedTuple

from bench.profile.entry import Entry, LeftOut, Source
from bench.profile.loan import Loan, Loans, Tried
from bench.profile.places import Places, Point
from bench.profile.tree import Sizes, Tree, decide, grow, rows_of
from bench.record import Label
from dcp_core.settings import Settings
from dcp_core.shapes import Workload

CONTEXT_FLOOR = 128
"""Tokens added to a context before its logarithm: one tile of keys costs about as much as none."""
FURTHEST = 3.0
"""Doublings beyond which nothing is a neighbour, however far apart a region was measured."""
EDGE = 0.5
"""Doublings beyond the outermost batches that are still among them: a few tokens more make no other batch."""
MAX_FOLDS = 64
"""Of leaving out: in a region of more batches several are left out at a time."""
WAYS = (Source.NEIGHBOUR, Source.TREE, Source.DEFAULT)
"""How a batch that was not measured may be answered; of two that do as well, the first."""
REQUESTS_WEIGHT = 0.25
"""Of a doubling of requests at the same number of new tokens: it matters little whose rows fill a kernel's tiles."""

RegionKey = tuple[int, int, bool, Label]
"""dcp, interleave, longer than decodes or not, label."""
_Pool = tuple[int, bool, bool]


def place(workload: Workload, dcp: int) -> Point:
    """Return where a batch lies for a rank: log2 of its new tokens, mean context on the rank and dcp; requests count less."""
    requests, new, total = workload.main
    context = (total / requests - new / requests) / dcp
    return (
        math.log2(new),
        math.log2(context + CONTEXT_FLOOR),
        math.log2(dcp),
        REQUESTS_WEIGHT * math.log2(requests),
    )


class Neighbour(NamedTuple):
    """A measured batch that answers for another: how far away it is, and what it lends."""

    distance: float
    entry: Entry
    loan: Loan


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
    """The measured batches that may answer for one another: one dcp, interleave and label, all decodes or all longer.

    ``lenders`` are entries of other dcp that may answer too. ``low`` and ``high`` bound them all, ``EDGE`` away; ``spacing`` is
    the longest way from one of them to its nearest neighbour, at most ``FURTHEST``. ``way`` is that of answering whose mean of
    ``regrets`` over ``entries`` is least; ``tree`` is there if it is the tree, and ``leaf`` says what a leaf of one lends.
    """

    entries: tuple[Entry, ...]
    lenders: tuple[Entry, ...]
    spacing: float
    everyone: tuple[Entry, ...] = field(init=False)
    points: tuple[Point, ...] = field(init=False)
    places: Places = field(init=False)
    loans: tuple[Loans, ...] = field(init=False)
    low: Point = field(init=False)
    high: Point = field(init=False)
    regrets: Mapping[Source, LeftOutRegret] = field(init=False)
    way: Source = field(init=False)
    tree: Tree | None = field(init=False)
    leaf: Callable[[Settings], Loans] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        layout, everyone = self.entries[0].layout.canonical, (*self.entries, *self.lenders)
        points = [_place_of(entry) for entry in everyone]
        tried = cache(lambda settings: Tried.of(settings, everyone, points))
        decodes = self.entries[0].workload.is_decode
        found = {way: _left_out_regret(self.entries, way) for way in WAYS}
        regrets = {way: regret for way, regret in found.items() if regret is not None}
        way = min(regrets, key=lambda one: round(regrets[one].mean, 6), default=Source.NEIGHBOUR)
        tree = grow(*rows_of(self.entries)) if way is Source.TREE else None
        derived = {
            "everyone": everyone,
            "points": tuple(points),
            "places": Places.of(points),
            "loans": tuple(Loans.of(entry, layout, tried) for entry in everyone),
            "low": tuple(min(along) - EDGE for along in zip(*points, strict=True)),
            "high": tuple(max(along) + EDGE for along in zip(*points, strict=True)),
            "regrets": regrets,
            "way": way,
            "tree": tree,
            "leaf": cache(lambda settings: Loans.of_leaf(settings, layout, tried, decodes=decodes)),
        }
        for name, value in derived.items():
            object.__setattr__(self, name, value)

    def nearest(self, workload: Workload, here: Point, *, besides: Collection[int] = ()) -> Neighbour | None:
        """Return the nearest entry whose settings can run a batch, of equally near ones the first; None if there is none.

        Args:
            here: the batch's place.
            besides: indices of entries that may not answer, lenders after the region's own.
        """
        mixed = workload.is_mixed
        distance, index = self.places.nearest(here)
        loan = self.loans[index][mixed]
        if loan and loan.serves(workload) and not besides:
            return Neighbour(distance, self.everyone[index], loan)
        for distance, index in sorted(zip(map(math.dist, self.points, repeat(here)), count(), strict=False)):
            loan = self.loans[index][mixed]
            if loan and index not in besides and loan.serves(workload):
                return Neighbour(distance, self.everyone[index], loan)
        return None

    def answer(self, workload: Workload, here: Point, near: Neighbour) -> tuple[Source, Loan | None]:
        """Return who answers for a batch here, near a measured one, with what; the default, with nothing, if none is believed.

        A tree is asked first, where that is the way, then the batch nearby. Settings are believed unless they were slower than
        the default at the nearest batch of no fewer new tokens that they were measured with, or at that of no more.
        """
        if self.tree and (loan := self.by_tree(self.tree, workload, here)):
            return Source.TREE, loan
        return (Source.DEFAULT, None) if near.loan.tried.loses(here) else (Source.NEIGHBOUR, near.loan)

    def by_tree(self, tree: Tree, workload: Workload, here: Point, besides: Collection[int] = ()) -> Loan | None:
        """Return what a tree grown on this region lends a batch; None if it cannot run that, or is not believed.

        Args:
            besides: places of batches that are left out.
        """
        loan = self.leaf(decide(tree, Sizes.of(workload)))[workload.is_mixed]
        return loan if loan and loan.serves(workload) and not loan.tried.loses(here, besides) else None

    def regret(self, way: Source) -> float | None:
        """Return what a way of answering cost batches left out, on average; None where that is unknown."""
        found = self.regrets.get(way)
        return found.mean if found else None

    def surrounds(self, here: Point) -> bool:
        """Tell whether a place lies between the measured ones, or next to them."""
        return all(map(le, self.low, here)) and all(map(le, here, self.high))


def regions_of(entries: Iterable[Entry]) -> dict[RegionKey, Region]:
    """Return entries by region.

    Raises:
        ValueError: for two entries of one batch in a region.
    """
    inside: dict[RegionKey, dict[Workload, Entry]] = defaultdict(dict)
    for entry in entries:
        layout = entry.layout.canonical
        region = inside[layout.dcp, layout.interleave, not entry.workload.is_decode, entry.label]
        if entry.workload in region:
            raise ValueError(f"there are two {entry.label} entries of {entry.workload} with {entry.layout}")
        region[entry.workload] = entry
    pools: dict[_Pool, list[RegionKey]] = defaultdict(list)
    for key in inside:
        pools[_pool(key)].append(key)
    regions: dict[RegionKey, Region] = {}
    for keys in pools.values():
        spacing = _spacing([_place_of(entry) for key in keys for entry in inside[key].values()])
        for key in keys:
            lenders = [entry for other in keys if other != key for entry in inside[other].values()]
            regions[key] = Region(tuple(inside[key].values()), tuple(lenders), spacing)
    return regions


def leave_each_out(entries: Iterable[Entry]) -> tuple[Entry, ...]:
    """Return entries, sorted for people, each with the regret it would have paid for being left out of its region.

    Of two equally near the first answers, here as in a profile's lookup: so both see entries in the same order.
    """
    plain = sorted((replace(entry, left_out=LeftOut()) for entry in entries), key=lambda entry: entry.order)
    found = [entry for region in regions_of(plain).values() for entry in _left_out(region)]
    return tuple(sorted(found, key=lambda entry: entry.order))


def _pool(key: RegionKey) -> _Pool:
    """Return what regions share whose entries lend to one another: interleave, decodes or longer, an exchange in the times."""
    dcp, interleave, longer, label = key
    return interleave, longer, dcp > 1 and label is Label.MEASURED


def _place_of(entry: Entry) -> Point:
    return place(entry.workload, entry.layout.dcp)


def _left_out(region: Region) -> Iterator[Entry]:
    """Yield a region's entries, each with what the others would have answered for it.

    Left out with a batch are those of other dcp or with other decodes beside it that have the same sizes.
    """
    entries = region.entries
    choices, rows = rows_of(entries)
    sizes = [Sizes.of(entry.workload) for entry in (*entries, *region.lenders)]
    folds = min(len(entries), MAX_FOLDS)
    for fold in range(folds):
        besides = range(fold, len(entries), folds)
        kept = [row for index, row in enumerate(rows) if index not in besides]
        tree = grow(choices, kept) if kept else None
        for index in besides:
            entry, here = entries[index], region.points[index]
            out = {*besides, *(other for other, one in enumerate(sizes) if one == sizes[index])}
            near = region.nearest(entry.workload, here, besides=out)
            if near and near.distance > FURTHEST:  # beyond what is measured the default answers
                default = _regret(entry, None)
                yield replace(entry, left_out=LeftOut(default, default))
            elif near:
                by_near = None if near.loan.tried.loses(here, out) else near.loan
                by_tree = region.by_tree(tree, entry.workload, here, out) if tree else None
                yield replace(entry, left_out=LeftOut(_regret(entry, by_near), _regret(entry, by_tree or by_near)))
            else:
                yield entry


def _regret(entry: Entry, loan: Loan | None) -> float | None:
    """Return the regret of what a batch is lent, or of the default where it is lent nothing."""
    settings = loan.run_by(entry.workload) if loan else entry.default
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
    return min(max((distance for distance in nearest if distance < math.inf), default=0.0), FURTHEST)
