"""What an audit of the measuring says: each stage by two timers, and each case raced against itself. Standard library only."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import NamedTuple, TypeVar

from bench.verdict import FLOORS, Comparison, Verdict
from dcp_core.settings import Case

T = TypeVar("T", bound=tuple[object, ...])
Span = tuple[float, float]
"""When a piece of work began and ended, in microseconds."""
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
        cupti_us: the median of what events enclose: from the end of what is ahead of it to the end of its last kernel.
        kernels: that it consists of, copies and memsets included.
        apart_us: by how much the events exceed CUPTI in the mean over the same repetitions, beyond what they do around the
            smallest kernel.
        rank: of the group, on which it was timed.

    Raises:
        ValueError: for a stage of no kernels, or that took no time.
    """

    stage: str
    events_us: float
    cupti_us: float
    kernels: int
    apart_us: float
    rank: int = 0

    def __post_init__(self) -> None:
        if self.kernels < 1 or not (0 < self.events_us < math.inf and 0 < self.cupti_us < math.inf):
            raise ValueError(
                f"what is timed twice has kernels and takes time: {self.stage} has {self.kernels}, "
                f"and takes {self.events_us:g} µs and {self.cupti_us:g} µs"
            )
        if not math.isfinite(self.apart_us):
            raise ValueError(f"two timers of {self.stage} are so many µs apart, not {self.apart_us:g}")

    @property
    def error(self) -> float:
        """By how much the events exceed CUPTI, relative, beyond what they do around nothing."""
        return self.apart_us / self.cupti_us

    @property
    def agrees(self) -> bool:
        """Whether the two timers differ by no more than TOLERANCE."""
        return abs(self.error) <= TOLERANCE

    def is_short(self, null: Audited) -> bool:
        """Tell whether it is one of those that trials flag: under so many of the timer's floors."""
        return self.events_us < FLOORS * null.events_us


class Repetition(NamedTuple):
    """A stage run once: how long it took between the events around it, and by what CUPTI saw, in how many pieces of work."""

    events_us: float
    cupti_us: float
    kernels: int


def apart_us(stage: Sequence[Repetition], null: Sequence[Repetition]) -> float:
    """Return by how much events exceed CUPTI around a stage, beyond what they do around the smallest kernel.

    In the mean over repetitions: what events read beyond the work between them differs by half a microsecond by whether an even
    or an odd number of kernels ran before them in the graph, and a median would be of the one or of the other.
    """
    return fmean(one.events_us - one.cupti_us for one in stage) - fmean(one.events_us - one.cupti_us for one in null)


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


def repetitions_us(times: Sequence[float], work: Sequence[Span], ahead: int) -> list[Repetition]:
    """Return how long each repetition took by both timers.

    One begins where what is ahead of it has ended, with the gap before its first kernel, as it does for events: how long a
    kernel takes to start depends on the kernel. With nothing ahead it begins with its first kernel.

    Args:
        times: between the events of each repetition, in microseconds.
        work: when each piece of work began and ended, of all repetitions.
        ahead: pieces of work at the beginning of a repetition that are not of it: the cooling of the cache, the rendezvous.

    Raises:
        ValueError: as ``repetitions_of``.
    """
    each = repetitions_of(work, len(times), ahead)
    return [
        Repetition(events_us, _span_us(own, ahead), len(own) - ahead)
        for events_us, own in zip(times, each, strict=True)
    ]


def _span_us(work: Sequence[Span], ahead: int) -> float:
    before, own = work[:ahead], work[ahead:]
    if not own:
        return 0.0
    return max(end for _, end in own) - max((end for _, end in before), default=own[0][0])


def worst(ranks: Sequence[Sequence[Audited | None]]) -> list[Audited]:
    """Return each stage as the rank has it on which the timers are furthest apart, without those that no rank ran.

    Args:
        ranks: the same stages of each, None where a rank had nothing to do.
    """
    stages = ([one for one in each if one is not None] for each in zip(*ranks, strict=True))
    return [max(each, key=lambda one: abs(one.error)) for each in stages if each]


def twin(case: Case) -> Case:
    """Return a case that runs what this one does, to race against it: one more layer, of which a step is one all the same."""
    return replace(case, shape=replace(case.shape, layers=case.shape.layers + 1))


def false_share(comparisons: Sequence[Comparison]) -> float:
    """Return the share of races of a case against itself of which one was called faster."""
    false = sum(one.verdict in (Verdict.FASTER, Verdict.SLOWER) for one in comparisons)
    return false / len(comparisons) if comparisons else 0.0
