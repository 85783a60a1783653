"""What trials that were each taken by themselves say of two times: which is less, where it is not told. Standard library only.

Between two moments a device may have changed its speed. So a difference is believed only beyond half of what the samples of
either differ by (those of a device that changes between two clocks lie apart), beyond all of it where they are correlated and
their interval does not hold, and beyond what the clocks that the device told explain.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from bench.record import Measured, Trial
from bench.times import Summary, sm_mhz
from bench.verdict import Verdict


class Clocks(NamedTuple):
    """Between which MHz SM clocks were."""

    low: float
    high: float

    @classmethod
    def of(cls, trial: Trial) -> Clocks | None:
        """Return those told between the samples of a trial, else after it: before, devices may idle. None if none were told."""
        during = trial.outcome.clocks_during if isinstance(trial.outcome, Measured) else ()
        told = [float(mhz) for pace in during for mhz in (pace.sm_mhz_low, pace.sm_mhz_high) if mhz]
        told = told or [mhz for mhz in map(sm_mhz, trial.clocks[len(trial.clocks) // 2 :]) if mhz]
        return cls(min(told), max(told)) if told else None

    def __str__(self) -> str:
        return f"{self.low:.0f}" if self.low == self.high else f"{self.low:.0f} to {self.high:.0f}"


@dataclass(frozen=True, slots=True)
class Lone:
    """A time in µs, as a trial by itself tells it.

    Args:
        low, high: the 95 % interval of the median.
        apart: over the median, what lies between the first and the last tenth of the samples: half of it, or all where the
            samples are correlated, so that the interval does not hold.
        clocks: meanwhile; None if the device does not tell.
    """

    low: float
    median: float
    high: float
    apart: float
    clocks: Clocks | None = None

    @classmethod
    def of(cls, summary: Summary, trial: Trial, *, correlated: bool) -> Lone:
        """Return what a summary of some samples tells that were taken in a trial."""
        tenths = max(0.0, summary.p90 - summary.p10) * (1.0 if correlated else 0.5)
        apart = tenths / summary.median if summary.median else 0.0
        return cls(summary.low, summary.median, summary.high, apart, Clocks.of(trial))

    @classmethod
    def of_step(cls, trial: Trial) -> Lone:
        """Return what a trial tells of its step.

        Raises:
            TypeError: for a trial that measured nothing.
        """
        if not isinstance(trial.outcome, Measured):
            raise TypeError(f"a {trial.outcome.kind} trial has no step time")
        return cls.of(trial.outcome.step_us, trial, correlated=trial.outcome.is_correlated)

    @classmethod
    def together(cls, parts: Iterable[Lone]) -> Lone:
        """Return the time of several, one after another."""
        parts = list(parts)
        low, middle, high = (sum(getattr(part, name) for part in parts) for name in ("low", "median", "high"))
        apart = sum(part.apart * part.median for part in parts) / middle if middle else 0.0
        told = [part.clocks for part in parts if part.clocks]
        clocks = Clocks(min(one.low for one in told), max(one.high for one in told)) if told else None
        return cls(low, middle, high, apart, clocks)

    def is_faster(self, other: Lone) -> bool:
        """Tell whether this is the less of two times that were taken at different moments, beyond all that stands against it."""
        return min(self.low, other.low) > 0 and judge(other, self).verdict is Verdict.FASTER


class Judgement(NamedTuple):
    """How much longer one time is than another: a logarithm and its 95 % interval, from those of the two medians.

    ``why``: what stands against a verdict, in words; empty where nothing does.
    """

    low: float
    log: float
    high: float
    verdict: Verdict
    why: str


def judge(before: Lone, after: Lone, margin: float = 0.0) -> Judgement:
    """Compare two times that were taken at different moments; neither may be 0.

    Args:
        margin: relative; a smaller difference is none, however little the samples differ.
    """
    margin = max(margin, before.apart, after.apart)
    log = math.log(after.median) - math.log(before.median)
    half = math.hypot(_half_width(before), _half_width(after))
    why = _explained(before, after, log, margin)
    verdict = Verdict.AMBIGUOUS if why else verdict_of(log - half, log + half, margin)
    return Judgement(log - half, log, log + half, verdict, why)


def verdict_of(low: float, high: float, margin: float, *, believed: bool = True) -> Verdict:
    """Return what the interval of a logarithm says: slower or faster where it lies beyond a relative margin, if believed."""
    most = math.log1p(margin)
    if believed and low > most:
        return Verdict.SLOWER
    if believed and high < -most:
        return Verdict.FASTER
    return Verdict.SAME if -most <= low <= high <= most else Verdict.AMBIGUOUS


def _half_width(time: Lone) -> float:
    return max(math.log(time.high / time.median), math.log(time.median / time.low))


def _explained(before: Lone, after: Lone, log: float, margin: float) -> str:
    """Say between which MHz SM clocks were, where what they may have changed by explains a difference."""
    if not (before.clocks and after.clocks):
        return ""
    faster, slower = (before.clocks, after.clocks) if log > 0 else (after.clocks, before.clocks)
    change = math.log(faster.high / slower.low)
    explained = change > 0 and margin < abs(log) <= change + margin
    return f"the SM clock was {before.clocks} MHz before and {after.clocks} after" if explained else ""
