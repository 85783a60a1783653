"""What became slower between two sets of trials of the same cases, taken at different times. Standard library only.

Two runs are not a race: between them the device may have changed its speed. So a case's difference is believed only if it is
larger than what the caller tolerates, than three times what the runs differ by from case to case anyway, and than what two
trials by themselves tell (``bench.lone``).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import NamedTuple

from bench.errors import UsageError
from bench.lone import Lone, judge, verdict_of
from bench.record import Failed, Measured, Trial, latest
from bench.stats import median_interval, signed_rank_p
from bench.verdict import ALPHA, Verdict

TOLERANCE = 0.02
"""Relative; of the same sweep, twice on H200s, 96 % of cases agreed within it (results/reference/h200)."""
SCATTERS = 3
"""Robust standard deviations of the differences between two runs that a difference must exceed."""
MOST_LOG = 700.0
"""Of the ratio of two times: beyond lies hardly a number that Python has."""
FEWEST = 10
"""Pairs from which the scatter of two runs is known; with fewer, TOLERANCE stands for it."""


class _Place(NamedTuple):
    """What pairs two trials: the case, its real ranks, and how it was timed. Not the commit, driver or versions."""

    key: tuple[object, ...]
    label: str
    timer: str


@dataclass(frozen=True, slots=True)
class Pair:
    """One case before and after.

    Args:
        ratio: of the medians, after over before; infinite where it fails now.
        low, high: the 95 % interval of the ratio, from those of the two medians.
        why: what stands against a verdict, in words; empty where nothing does.
    """

    before: Trial
    after: Trial
    ratio: float
    low: float
    high: float
    verdict: Verdict
    why: str = ""

    @property
    def is_worse(self) -> bool:
        """True if the case is slower now, or fails now."""
        return self.verdict is Verdict.SLOWER


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two sets of trials, case by case.

    Args:
        pairs: the worst first.
        alone: trials of one set that the other lacks, with the reason why not if it has the case: (before, after).
        differences: of the machines and versions, in words.
        scatter: relative; a robust standard deviation of the differences from case to case.
        margin: relative; a smaller difference is none.
        all_low, all_ratio, all_high: the median of all ratios and its 95 % interval.
        all_p: of the hypothesis that the two sets are equally fast on the whole.
    """

    pairs: tuple[Pair, ...]
    alone: tuple[int, int]
    differences: tuple[str, ...]
    scatter: float
    margin: float
    tolerance: float
    all_ratio: float
    all_low: float
    all_high: float
    all_p: float

    @property
    def overall(self) -> Verdict:
        """What holds for all cases together: a shift that no single case shows may be plain here."""
        return verdict_of(math.log(self.all_low), math.log(self.all_high), self.tolerance, believed=self.all_p < ALPHA)

    @property
    def is_worse(self) -> bool:
        """True if a case became slower, or all of them together."""
        return self.overall is Verdict.SLOWER or any(pair.is_worse for pair in self.pairs)


def compare(before: Iterable[Trial], after: Iterable[Trial], *, tolerance: float = TOLERANCE) -> Comparison:
    """Compare two sets of trials, case by case.

    Args:
        tolerance: relative; a case may be so much slower and still count as the same.

    Raises:
        UsageError: if they have no case in common that was timed alike, or ran on different devices.
    """
    first, second = ({_place(trial): trial for trial in latest(trials)} for trials in (before, after))
    _check_devices([*first.values()], [*second.values()])
    both = [(first[place], second[place]) for place in first if place in second]
    failed = [(first[place], trial) for place in first if (trial := _failed_now(first[place], second.values()))]
    timed = [(one, other) for one, other in both if _is_timed(one) and _is_timed(other)]
    if not timed:
        raise UsageError(
            "the two have no case in common that was timed in the same way (ranks, timer, protocol, cold or warm); "
            "run the same sweep for both"
        )
    logs = [math.log(_median(other)) - math.log(_median(one)) for one, other in timed]
    scatter = _scatter(logs)
    margin = max(tolerance, SCATTERS * scatter)
    low, high = median_interval(logs)
    pairs = [_pair(one, other, margin) for one, other in timed]
    pairs += [Pair(one, other, math.inf, math.inf, math.inf, Verdict.SLOWER, "fails now") for one, other in failed]
    seen = len(timed) + len(failed)
    return Comparison(
        tuple(sorted(pairs, key=_worst_first)),
        (len(first) - seen, len(second) - seen),
        _differences(first.values(), second.values()),
        scatter,
        margin,
        tolerance,
        _ratio(median(logs)),
        _ratio(low),
        _ratio(high),
        signed_rank_p(logs),
    )


def _place(trial: Trial) -> _Place:
    outcome = trial.outcome
    how = (outcome.label, outcome.timer) if isinstance(outcome, Measured) else (outcome.kind, "")
    return _Place(tuple(trial.key), *how)


def _is_timed(trial: Trial) -> bool:
    return isinstance(trial.outcome, Measured) and Lone.of_step(trial).low > 0


def _failed_now(before: Trial, after: Iterable[Trial]) -> Trial | None:
    """Return the failure of a case that was measured before."""
    if not isinstance(before.outcome, Measured):
        return None
    return next((trial for trial in after if isinstance(trial.outcome, Failed) and trial.key == before.key), None)


def _pair(before: Trial, after: Trial, margin: float) -> Pair:
    found = judge(Lone.of_step(before), Lone.of_step(after), margin)
    return Pair(before, after, _ratio(found.log), _ratio(found.low), _ratio(found.high), found.verdict, found.why)


def _ratio(log: float) -> float:
    """Return what a logarithm is of, as far as numbers reach: a file may hold times that nothing takes."""
    return math.exp(max(-MOST_LOG, min(log, MOST_LOG)))


def _median(trial: Trial) -> float:
    return Lone.of_step(trial).median


def _scatter(logs: Sequence[float]) -> float:
    if len(logs) < FEWEST:
        return TOLERANCE
    middle = median(logs)
    return 1.4826 * median(abs(one - middle) for one in logs)


def _worst_first(pair: Pair) -> tuple[int, float]:
    order = [Verdict.SLOWER, Verdict.AMBIGUOUS, Verdict.FASTER, Verdict.SAME]
    return order.index(pair.verdict), -abs(math.log(pair.ratio))


def _check_devices(before: Sequence[Trial], after: Sequence[Trial]) -> None:
    devices = [{trial.environment.hard.get("device_name", "unknown") for trial in trials} for trials in (before, after)]
    if before and after and devices[0] != devices[1]:
        names = [" and ".join(sorted(found)) for found in devices]
        raise UsageError(
            f"these ran on different devices, {names[0]} and {names[1]}: what differs is the device; give two runs of one"
        )


def _differences(before: Iterable[Trial], after: Iterable[Trial]) -> tuple[str, ...]:
    """Name every field of the fingerprints that all trials of a set agree on, and the two sets do not."""
    one, other = (_fields(trials) for trials in (before, after))
    names = sorted(one.keys() | other.keys())
    return tuple(
        f"{name}: {one.get(name, 'unknown')} before, {other.get(name, 'unknown')} after"
        for name in names
        if one.get(name) != other.get(name)
    )


def _fields(trials: Iterable[Trial]) -> dict[str, str]:
    found: dict[str, set[str]] = {}
    for trial in trials:
        for name, value in (trial.environment.hard | trial.environment.soft).items():
            found.setdefault(name, set()).add(value)
    return {name: " and ".join(sorted(values)) for name, values in found.items()}
