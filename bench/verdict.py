"""Which of two settings is faster: paired times, a test, an interval, a verdict. Standard library only."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise
from statistics import median

from bench.record import VISITS
from bench.stats import median_interval, signed_rank_p

ALPHA = 0.01
"""A difference is believed below this p."""
MARGIN = 0.005
"""Relative; a smaller difference is none worth a change of settings."""
RESOLUTION_US = 0.5
"""By so much events around the same work may differ from one graph to another: 0.4 µs at most in twelve graphs each of eight
passes of 3 to 36 µs (H200), and 0.5 in races of a pass against itself.
"""
FLOORS = 10
"""A result under this many timer floors is flagged."""
UNSTEADY = 0.15
"""Relative; a device whose speed changed by more during a comparison was not one device all along."""


class Verdict(StrEnum):
    """What a comparison says of the first of two settings."""

    FASTER = "faster"
    SLOWER = "slower"
    SAME = "same"
    AMBIGUOUS = "ambiguous"


@dataclass(frozen=True, slots=True)
class Comparison:
    """One setting's time over another's.

    Args:
        ratio: the median of paired ratios; below 1 the first is faster.
        low, high: its 95 % interval.
        p: of the hypothesis that neither is faster.
        pairs: compared.
    """

    ratio: float
    low: float
    high: float
    p: float
    pairs: int
    verdict: Verdict

    def __str__(self) -> str:
        return f"{self.ratio:.3f} [{self.low:.3f}, {self.high:.3f}] {self.verdict}"


def compare(mine: Sequence[float], theirs: Sequence[float], *, resolution_us: float = RESOLUTION_US) -> Comparison:
    """Compare two settings by times in microseconds that were taken in the same rounds, interleaved on one device.

    Faster, or slower, if p < ALPHA and the interval lies outside ±MARGIN and beyond what the timer resolves; the same if it lies
    inside ±MARGIN; else ambiguous. Where the device itself changed speed by more than UNSTEADY, only a difference beyond that
    change is believed.

    Args:
        resolution_us: below it two times do not differ for the timer.

    Raises:
        ValueError: for no pairs, times without a partner, or one that is not positive.
    """
    if not mine or len(mine) != len(theirs):
        raise ValueError(f"a comparison needs times in pairs, not {len(mine)} and {len(theirs)}")
    if not all(0 < time < math.inf for time in (*mine, *theirs)):
        raise ValueError("a comparison needs positive times")
    differences = [math.log(one / other) for one, other in zip(mine, theirs, strict=True)]
    low, high = median_interval(differences)
    p = signed_rank_p(differences)
    level = median(math.sqrt(one * other) for one, other in zip(mine, theirs, strict=True))
    margin = max(MARGIN, resolution_us / level)
    return Comparison(
        math.exp(median(differences)),
        math.exp(low),
        math.exp(high),
        p,
        len(differences),
        _verdict(low, high, p, margin, change_of_speed(mine, theirs)),
    )


def change_of_speed(mine: Sequence[float], theirs: Sequence[float]) -> float:
    """Return by what factor the device's speed changed: the slowest stretch's time over the fastest's.

    A stretch is a quarter of all rounds, by the median of their pairs, or two rounds in turn, neither of them better (or worse)
    than it: so a change that lasts two rounds shows wherever it falls, and a round that was disturbed by itself does not.
    """
    levels = [math.sqrt(one * other) for one, other in zip(mine, theirs, strict=True)]
    size = math.ceil(len(levels) / 4)
    quarters = [median(levels[start : start + size]) for start in range(0, len(levels), size)]
    turns = list(pairwise(levels))
    return max([*quarters, *map(min, turns)]) / min([*quarters, *map(max, turns)])


def rounds_of(samples: Sequence[float], repeats: int) -> list[float]:
    """Return a time for each round of a race: of each visit the median, of the round's visits the geometric mean.

    Args:
        samples: of one case in the order they were taken.
        repeats: samples a visit.

    Raises:
        ValueError: for samples that are no whole number of rounds, as of a case that was thinned.
    """
    size = VISITS * repeats
    if repeats < 1 or not samples or len(samples) % size:
        raise ValueError(f"{len(samples)} samples are no whole rounds of {VISITS} visits with {repeats} each")
    visits = [median(samples[start : start + repeats]) for start in range(0, len(samples), repeats)]
    return [math.sqrt(one * other) for one, other in zip(visits[::VISITS], visits[1::VISITS], strict=True)]


def _verdict(low: float, high: float, p: float, least: float, change: float) -> Verdict:
    unsteady = change > 1 + UNSTEADY
    margin = max(math.log1p(least), math.log(change) if unsteady else 0.0)
    if p < ALPHA and high < -margin:
        return Verdict.FASTER
    if p < ALPHA and low > margin:
        return Verdict.SLOWER
    if unsteady:
        return Verdict.AMBIGUOUS
    return Verdict.SAME if max(-low, high) <= math.log1p(MARGIN) else Verdict.AMBIGUOUS
