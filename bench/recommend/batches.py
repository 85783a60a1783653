"""The batches that carry the time of a replayed trace: steps alike are put together. Standard library only."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import dist, log2

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
_OF_TILE = log2(TILE)

Place = tuple[int, int, int, int, int]
"""Of a step among others: by its decodes, their mean context, its longer requests, their mean new tokens and context."""


@dataclass(frozen=True, slots=True)
class Carrying:
    """A batch that stands for many steps: how many, and their share of the time of all."""

    workload: Workload
    steps: int
    share: float


@dataclass(slots=True)
class _Group:
    """Steps put together: how many, the sums of what they have, and their time."""

    steps: int = 0
    decodes: int = 0
    decode_context: int = 0
    longer: int = 0
    new: int = 0
    context: int = 0
    time_us: float = 0.0

    def add(self, step: Step, time_us: float) -> None:
        """Put one more step to them."""
        _, decodes, decode_context, longer, new, context = step
        self.steps += 1
        self.decodes += decodes
        self.decode_context += decode_context
        self.longer += longer
        self.new += new
        self.context += context
        self.time_us += time_us

    def join(self, other: _Group) -> None:
        """Put all of another's to them."""
        for name in self.__slots__:
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def mean(self) -> Workload:
        """Return the mean step as a batch, the decodes first: counts by steps, lengths by the requests that have them."""
        requests: list[Request] = []
        if self.decodes:
            context = round(self.decode_context / self.decodes)
            requests += [Request(1, 1 + context)] * _at_least_one(self.decodes, self.steps)
        if self.longer:
            new, context = max(2, round(self.new / self.longer)), round(self.context / self.longer)
            requests += [Request(new, new + context)] * _at_least_one(self.longer, self.steps)
        return Workload(tuple(requests or [Request(1, 1)]))


class Tally:
    """The steps of a replay, put together as they come: a trace has too many to keep.

    Args:
        time_us: of a batch; asked once for each half doubling of what steps have.
    """

    def __init__(self, time_us: Callable[[Workload], float]) -> None:
        self._time_us = time_us
        self._known: dict[Place, float] = {}
        self._groups: dict[Place, _Group] = defaultdict(_Group)

    @property
    def steps(self) -> int:
        """How many there were."""
        return sum(group.steps for group in self._groups.values())

    def add(self, step: Step) -> float:
        """Take one more step; return its time, that of a batch like it."""
        logarithms = _logarithms(step)
        timed = _place(logarithms, TIMED_FINENESS)
        if timed not in self._known:
            alone = _Group()
            alone.add(step, 0.0)
            self._known[timed] = self._time_us(alone.mean())
        time_us = self._known[timed]
        self._groups[_place(logarithms, GROUPED_FINENESS)].add(step, time_us)
        return time_us

    def carrying(self) -> tuple[Carrying, ...]:
        """Return the few batches that stand for the steps, those with most time first."""
        total_us = sum(group.time_us for group in self._groups.values())
        kept = _merged(self._groups, total_us)
        found = [Carrying(group.mean(), group.steps, group.time_us / total_us) for group in kept if total_us]
        return tuple(sorted(found, key=lambda one: -one.share))


def _logarithms(step: Step) -> tuple[float, float, float, float, float]:
    """Return log2 of a step's decodes, their mean context, longer requests, their mean new tokens and context."""
    _, decodes, decode_context, longer, new, context = step
    of_decodes = log2(decodes + 1), log2((decode_context / decodes if decodes else 0.0) + TILE)
    if not longer:  # as in most steps
        return *of_decodes, 0.0, 0.0, _OF_TILE
    return *of_decodes, log2(longer + 1), log2(new / longer + 1), log2(context / longer + TILE)


def _place(logarithms: tuple[float, float, float, float, float], fineness: int) -> Place:
    """Return where a step lies, in steps of a doubling over ``fineness``."""
    decodes, decode_context, longer, new, context = logarithms
    return (
        round(fineness * decodes),
        round(fineness * decode_context),
        round(fineness * longer),
        round(fineness * new),
        round(fineness * context),
    )


def _merged(groups: Mapping[Place, _Group], total_us: float) -> Sequence[_Group]:
    """Join all but the groups with most time to the nearest of those: of the same kinds of requests, if one is kept."""
    ordered = sorted(groups.items(), key=lambda item: -item[1].time_us)
    kinds: set[tuple[bool, bool]] = set()
    kept: dict[Place, _Group] = {}
    for place, group in ordered:
        first = _kind(place) not in kinds
        if not kept or ((len(kept) < MOST or first) and group.time_us >= LEAST_SHARE * total_us):
            kept[place] = replace(group)
            kinds.add(_kind(place))
            continue
        alike = [other for other in kept if _kind(other) == _kind(place)] or list(kept)
        kept[min(alike, key=lambda other: dist(other, place))].join(group)
    return list(kept.values())


def _kind(place: Place) -> tuple[bool, bool]:
    return place[0] > 0, place[2] > 0


def _at_least_one(total: int, steps: int) -> int:
    return round(max(1.0, total / steps))
