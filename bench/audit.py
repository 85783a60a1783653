"""What an audit of the measuring says: each stage by two timers, and each case raced against itself. Standard library only."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

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
        apart_us: by how much the events exceed CUPTI in the same repetition, beyond what they do around the smallest kernel in
            the next one: the median over all such pairs.
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


@dataclass(frozen=True, slots=True)
class Turns:
    """What CUPTI saw of repetitions that were in turn of a stage and of the smallest kernel.

    Args:
        stage_us, null_us: how long each took, in the order in which they ran.
        kernels: that the stage consists of.
    """

    stage_us: tuple[float, ...]
    null_us: tuple[float, ...]
    kernels: int

    def apart_us(self, times: Sequence[float]) -> list[float]:
        """Return by how much events exceed CUPTI around the stage, beyond what they do around the smallest kernel after it.

        Args:
            times: between the events of each repetition, in microseconds.
        """
        own = [events - seen for events, seen in zip(times[1::2], self.null_us, strict=True)]
        stage = [events - seen for events, seen in zip(times[::2], self.stage_us, strict=True)]
        return [one - null for one, null in zip(stage, own, strict=True)]


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


def turns_us(work: Sequence[Span], turns: int, ahead: int) -> Turns:
    """Return how long a stage and the smallest kernel took each time, by what ran on the device.

    A repetition begins where what is ahead of it has ended, with the gap before its first kernel, as it does for events: how
    long a kernel takes to start depends on the kernel. With nothing ahead it begins with its first kernel.

    Args:
        work: when each piece of work began and ended, in microseconds, of all repetitions.
        turns: of two repetitions, the stage's and the smallest kernel's.
        ahead: pieces of work at the beginning of every repetition that are not of it: the cooling of the cache, the rendezvous.

    Raises:
        ValueError: as ``repetitions_of``.
    """
    last = ahead + 1
    each = repetitions_of(work, turns, ahead + last)
    return Turns(
        stage_us=tuple(_span_us(own[:-last], ahead) for own in each),
        null_us=tuple(_span_us(own[-last:], ahead) for own in each),
        kernels=len(each[0]) - ahead - last,
    )


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
