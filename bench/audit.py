"""What an audit of the measuring says: each stage by two timers, and each case raced against itself. Standard library only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from bench.verdict import FLOORS, Comparison, Verdict
from dcp_core.settings import Case

T = TypeVar("T", bound=tuple[object, ...])
TOLERANCE = 0.03
"""By how much two timers may differ and still agree."""
SHARE = 0.95
"""Of the stages, in which they should."""
NULL = "nothing"
"""Stands for a stage that writes one element: what a timer reads of it is its own."""


@dataclass(frozen=True, slots=True)
class Audited:
    """A stage, or the whole step, timed at once by events on the device and by CUPTI.

    Args:
        events_us: the median between the events around it, as trials have it.
        cupti_us: the median of what events enclose: from the end of the cooling before it to the end of its last kernel.
        kernels: that it consists of, copies and memsets included.
    """

    stage: str
    events_us: float
    cupti_us: float
    kernels: int

    def error(self, null: Audited) -> float:
        """Return by how much the events exceed CUPTI, relative, beyond what they do around nothing."""
        own_us = null.events_us - null.cupti_us
        return (self.events_us - own_us) / self.cupti_us - 1

    def is_short(self, null: Audited) -> bool:
        """Tell whether it is one of those that trials flag: under so many of the timer's floors."""
        return self.events_us < FLOORS * null.events_us

    def agrees(self, null: Audited) -> bool:
        """Tell whether the two timers differ by no more than TOLERANCE."""
        return abs(self.error(null)) <= TOLERANCE


def repetitions_of(work: Sequence[T], repetitions: int, least: int) -> list[list[T]]:
    """Return the pieces of work of each repetition, in the order in which they began.

    Args:
        work: of all repetitions, each piece beginning with when it began.
        least: pieces that a repetition has.

    Raises:
        ValueError: where repetitions cannot be told apart, since they are not of equally many pieces.
    """
    each, rest = divmod(len(work), repetitions)
    if rest or each < least:
        raise ValueError(f"{len(work)} kernels are not {repetitions} equal repetitions of {least} or more")
    ordered = sorted(work)
    return [ordered[place * each : (place + 1) * each] for place in range(repetitions)]


def spans_us(work: Sequence[tuple[float, float]], repetitions: int, ahead: int) -> tuple[list[float], int]:
    """Return how long each repetition took by what ran on the device, and of how many pieces of work each consisted.

    One begins where what is ahead of it has ended, with the gap before its first kernel, as it does for events: how long a
    kernel takes to start depends on the kernel. With nothing ahead it begins with its first kernel.

    Args:
        work: when each piece of work began and ended, in microseconds, of all repetitions.
        ahead: pieces of work at the beginning of a repetition that are not of it: the cooling of the cache.

    Raises:
        ValueError: as ``repetitions_of``.
    """
    each = repetitions_of(work, repetitions, ahead)
    return [_span_us(own[:ahead], own[ahead:]) for own in each], len(each[0]) - ahead


def _span_us(before: Sequence[tuple[float, float]], own: Sequence[tuple[float, float]]) -> float:
    if not own:
        return 0.0
    return max(end for _, end in own) - max((end for _, end in before), default=own[0][0])


def twin(case: Case) -> Case:
    """Return a case that runs what this one does, to race against it: one more layer, of which a step is one all the same."""
    return replace(case, shape=replace(case.shape, layers=case.shape.layers + 1))


def false_share(comparisons: Sequence[Comparison]) -> float:
    """Return the share of races of a case against itself of which one was called faster."""
    false = sum(one.verdict in (Verdict.FASTER, Verdict.SLOWER) for one in comparisons)
    return false / len(comparisons) if comparisons else 0.0
