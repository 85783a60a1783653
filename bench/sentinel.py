"""A case of a sweep that is measured again and again: what its time does meanwhile, the device does. Standard library only."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from statistics import NormalDist

from bench.record import Measured, Trial
from bench.stats import CONFIDENCE
from bench.times import Summary
from bench.verdict import MARGIN
from dcp_core.settings import Case

EVERY, EVERY_S = 25, 300.0
"""The sentinel is measured again after so many cases, or seconds expected of them."""
FEWEST = 5
"""Cases between two of its measurements at least, however long they take."""


def times_again(cases: int, seconds: float) -> int:
    """Return how often the sentinel is measured again in a sweep of so many cases that should take so many seconds."""
    return min(max(cases // EVERY, int(seconds // EVERY_S)), cases // FEWEST)


class Watch:
    """The order of a sweep: its cases, and the sentinel again at even distances and at the end.

    The sentinel is the case that was measured first. Cases are asked for one at a time: the trial of each is ``seen`` before.

    Args:
        cases: of the whole sweep, as many.
        seconds: that they should take.
        known: trials from before, of which the first may have made the sentinel already.
    """

    def __init__(self, cases: int, seconds: float, known: Iterable[Trial] = ()) -> None:
        self._cases, self._again = cases, times_again(cases, seconds)
        self._passed = 0
        self._sentinel = next((trial.case for trial in known if _is_timed_alone(trial)), None)
        self._is_again = False

    def over(self, cases: Iterable[Case]) -> Iterator[Case]:
        """Yield the sweep's cases, or those of its next part, and the sentinel wherever it is due."""
        for case in cases:
            self._is_again = False
            yield case
            self._passed += 1
            is_due = self._passed * self._again % self._cases < self._again
            if is_due and self._sentinel is not None:
                self._is_again = True
                yield self._sentinel

    def seen(self, trial: Trial) -> Trial:
        """Return the trial of the case asked for last, marked if it is the sentinel's again."""
        if self._sentinel is None and _is_timed_alone(trial):
            self._sentinel = trial.case
        return replace(trial, is_sentinel=self._is_again)


@dataclass(frozen=True, slots=True)
class Drift:
    """What became of one case's time while others were measured.

    Args:
        times: that it was measured.
        seconds: from the first time to the last.
        ratio: its slowest median over its fastest.
        low, high: 95 % interval of that ratio, wider the more medians there were to choose from.
    """

    case: Case
    times: int
    seconds: float
    ratio: float
    low: float
    high: float

    @property
    def is_plain(self) -> bool:
        """True if it is larger than what two settings must differ by to be told apart."""
        return self.low > 1 + MARGIN


def drifts(trials: Iterable[Trial]) -> list[Drift]:
    """Return the drift of each sentinel among some trials, that of its case's other trials included."""
    series: dict[tuple[object, ...], list[Trial]] = defaultdict(list)
    for trial in trials:
        outcome = trial.outcome
        if isinstance(outcome, Measured) and _is_timed_alone(trial):
            environment = tuple(sorted(trial.environment.hard.items()))
            series[trial.key, outcome.label, outcome.timer, environment].append(trial)
    return [_drift(found) for found in series.values() if len(found) > 1 and any(trial.is_sentinel for trial in found)]


def _drift(trials: Sequence[Trial]) -> Drift:
    steps = sorted((trial.outcome.step_us for trial in trials if isinstance(trial.outcome, Measured)), key=_median)
    fastest, slowest = steps[0], steps[-1]
    # Of many medians the two farthest apart are compared: the interval holds for all pairs at once (Bonferroni).
    pairs = len(steps) * (len(steps) - 1) / 2
    wider = _normal(1 - (1 - CONFIDENCE) / pairs) / _normal(CONFIDENCE)
    half = wider * math.hypot(_half_width(fastest), _half_width(slowest))
    ratio = math.log(slowest.median / fastest.median)
    moments = sorted(datetime.fromisoformat(trial.time) for trial in trials)
    seconds = (moments[-1] - moments[0]).total_seconds()
    return Drift(trials[0].case, len(steps), seconds, math.exp(ratio), math.exp(ratio - half), math.exp(ratio + half))


def _is_timed_alone(trial: Trial) -> bool:
    return isinstance(trial.outcome, Measured) and trial.outcome.race is None and trial.outcome.step_us.median > 0


def _median(summary: Summary) -> float:
    return summary.median


def _half_width(summary: Summary) -> float:
    """Return the larger half of the median's interval, as a logarithm."""
    return max(math.log(summary.high / summary.median), -math.log(max(summary.low / summary.median, 1e-9)))


def _normal(coverage: float) -> float:
    """Return how many standard deviations on either side of its mean hold that share of a normal distribution."""
    return NormalDist().inv_cdf((1 + coverage) / 2)
