"""The batches that carry the time of a replayed trace: steps alike are put together. Standard library only."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import dist, log2
from typing import NamedTuple

from bench.recommend.traffic import Step
from dcp_core.shapes import Request, Workload

MOST = 6
"""Batches that stand for a trace."""
LEAST_SHARE = 0.01
"""Of the time; what carries less joins another batch."""
TIMED_FINENESS, GROUPED_FINENESS = 2, 1
"""How finely steps are told apart to be timed, and to be grouped: in parts of a doubling."""
TILE = 128
"""Of keys: contexts much below are alike."""


class Sizes(NamedTuple):
    """A step in five numbers: its decodes and their mean context; its longer requests, their mean new tokens and context."""

    decodes: float
    decode_context: float
    longer: float
    new: float
    context: float

    @classmethod
    def of(cls, step: Step) -> Sizes:
        """Return those of a step."""
        _, decodes, decode_context, longer, new, context = step
        return cls(
            decodes,
            decode_context / decodes if decodes else 0.0,
            longer,
            new / longer if longer else 0.0,
            context / longer if longer else 0.0,
        )

    def place(self, fineness: int) -> tuple[int, ...]:
        """Return where it lies, in steps of a doubling over ``fineness``; small contexts count as one tile."""
        decodes, decode_context, longer, new, context = self
        of_decodes = round(fineness * log2(decodes + 1)), round(fineness * log2(decode_context + TILE))
        if not longer:  # as in most steps
            return *of_decodes, 0, 0, round(fineness * log2(TILE))
        return (
            *of_decodes,
            round(fineness * log2(longer + 1)),
            round(fineness * log2(new + 1)),
            round(fineness * log2(context + TILE)),
        )

    def workload(self) -> Workload:
        """Return the batch in whole requests, the decodes first."""
        decodes = [Request(1, 1 + round(self.decode_context))] * round(self.decodes)
        new = max(2, round(self.new))
        longer = [Request(new, new + round(self.context))] * round(self.longer)
        return Workload((*decodes, *longer)) if decodes or longer else Workload((Request(1, 1),))


@dataclass(frozen=True, slots=True)
class Carrying:
    """A batch that stands for many steps: how many, and their share of the time of all."""

    workload: Workload
    steps: int
    share: float


@dataclass(slots=True)
class _Group:
    """Steps put together: how many, the sums of their sizes, and their time."""

    steps: int = 0
    decodes: float = 0.0
    decode_context: float = 0.0
    longer: float = 0.0
    new: float = 0.0
    context: float = 0.0
    seconds: float = 0.0

    def add(self, sizes: Sizes, seconds: float) -> None:
        """Put one more step to them."""
        decodes, decode_context, longer, new, context = sizes
        self.steps += 1
        self.decodes += decodes
        self.decode_context += decode_context * decodes
        self.longer += longer
        self.new += new * longer
        self.context += context * longer
        self.seconds += seconds

    def join(self, other: _Group) -> None:
        """Put all of another's to them."""
        for name in self.__slots__:
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def mean(self) -> Sizes:
        """Return the mean step: counts by steps, lengths by the requests that have them."""
        return Sizes(
            _at_least_one(self.decodes, self.steps),
            self.decode_context / self.decodes if self.decodes else 0.0,
            _at_least_one(self.longer, self.steps),
            self.new / self.longer if self.longer else 0.0,
            self.context / self.longer if self.longer else 0.0,
        )


def carrying(steps: Iterable[tuple[Sizes, float]]) -> tuple[Carrying, ...]:
    """Return the few batches that stand for the steps of a replay, those with most time first.

    Args:
        steps: each with the seconds that it took.
    """
    groups: dict[tuple[int, ...], _Group] = defaultdict(_Group)
    for sizes, seconds in steps:
        groups[sizes.place(GROUPED_FINENESS)].add(sizes, seconds)
    total_s = sum(group.seconds for group in groups.values())
    kept = _merged(groups, total_s)
    found = [Carrying(group.mean().workload(), group.steps, group.seconds / total_s) for group in kept if total_s]
    return tuple(sorted(found, key=lambda one: -one.share))


def remembered(time_us: Callable[[Workload], float]) -> Callable[[Sizes], float]:
    """Return the time of a step as that of a batch like it: each half doubling is asked once."""
    known: dict[tuple[int, ...], float] = {}

    def of(sizes: Sizes) -> float:
        place = sizes.place(TIMED_FINENESS)
        if place not in known:
            known[place] = time_us(sizes.workload())
        return known[place]

    return of


def _merged(groups: Mapping[tuple[int, ...], _Group], total_s: float) -> Sequence[_Group]:
    """Join all but the groups with most time to the nearest of those: of the same kinds of requests, if one is kept."""
    ordered = sorted(groups.items(), key=lambda item: -item[1].seconds)
    kinds: set[tuple[bool, bool]] = set()
    kept: dict[tuple[int, ...], _Group] = {}
    for place, group in ordered:
        first = _kind(place) not in kinds
        if not kept or ((len(kept) < MOST or first) and group.seconds >= LEAST_SHARE * total_s):
            kept[place] = group
            kinds.add(_kind(place))
            continue
        alike = [other for other in kept if _kind(other) == _kind(place)] or list(kept)
        kept[min(alike, key=lambda other: dist(other, place))].join(group)
    return list(kept.values())


def _kind(place: tuple[int, ...]) -> tuple[bool, bool]:
    return place[0] > 0, place[2] > 0


def _at_least_one(total: float, steps: int) -> float:
    return max(1.0, total / steps) if total else 0.0
