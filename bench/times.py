"""What is kept of samples: of a step, of its stages and of planning, of the device meanwhile. Standard library only."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

MAX_SAMPLES = 64
"""Raw samples kept per rank and stage, evenly taken; the count of all is beside them."""
CORRELATED = 0.2
"""Lag-1 correlation of samples above which the interval of their median is said not to hold."""
FEWEST_FOR_P99 = 299
"""Samples of which, with 95 %, one lies beyond the 99th percentile: 1 - 0.99 ** 299."""


class StopReason(StrEnum):
    """Why sampling ended: the median is known well enough; a limit of samples or time; a race has so many rounds and no more."""

    PRECISE = "precise"
    CAP = "cap"
    ROUNDS = "rounds"


def sm_mhz(clock: Mapping[str, str]) -> float | None:
    """Return the SM clock that a device's state tells, in MHz; None if it tells none, or what is none."""
    told = clock.get("sm_mhz", "")
    mhz = float(told) if told.isdecimal() else math.nan
    return mhz if 0 < mhz < math.inf else None


@dataclass(frozen=True, slots=True)
class Outliers:
    """Samples beyond the quartiles by more than 1.5 times what these are apart, ``far`` ones by more than 3 times; all are kept.

    Source: Tukey, Exploratory Data Analysis, 2C.
    """

    far_below: int = 0
    below: int = 0
    above: int = 0
    far_above: int = 0

    def __post_init__(self) -> None:
        check_amounts("counts of outliers", (self.far_below, self.below, self.above, self.far_above))

    @property
    def count(self) -> int:
        """All of them."""
        return self.far_below + self.below + self.above + self.far_above


@dataclass(frozen=True, slots=True)
class Summary:
    """A sample of one quantity. ``low`` and ``high`` bound the median: the 95 % order-statistic interval.

    Args:
        p99: None of fewer than FEWEST_FOR_P99 samples, or if that was not kept.
        outliers: None if they were not counted.

    Raises:
        ValueError: for numbers that no sample of times has.
    """

    count: int
    median: float
    low: float
    high: float
    min: float
    p10: float
    p90: float
    mad: float
    p99: float | None = None
    outliers: Outliers | None = None

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"a summary is of one sample or more, not {self.count}")
        if not 0 <= self.min <= self.low <= self.median <= self.high < math.inf:
            raise ValueError(
                f"a summary's 0 <= min <= low <= median <= high do not hold: "
                f"min {self.min:g}, low {self.low:g}, median {self.median:g}, high {self.high:g}"
            )
        check_amounts("a summary's p10, p90, mad and p99", (self.p10, self.p90, self.mad, self.p99 or 0.0))
        if self.p99 is not None and self.count < FEWEST_FOR_P99:
            raise ValueError(f"a summary has a p99 from {FEWEST_FOR_P99} samples on, and this is of {self.count}")
        if self.outliers is not None and self.outliers.count > self.count:
            raise ValueError(f"{self.outliers.count} outliers among {self.count} samples")


@dataclass(frozen=True, slots=True)
class StageTime:
    """Device time of one stage of a step timed alone, slowest rank; raw samples thinned as ``MAX_SAMPLES`` says.

    Args:
        rank_samples_us: of real ranks, each one's samples of the same repetitions; empty of one rank, or if that was not kept,
            as once of stages that do not communicate.
        variant: which way of several the exchange took, in words; empty where there is one, or before that was kept.
        dropped: samples that are in none of these, since the device was slowed down while they were taken.
        correlation: of each of all samples with the one before it, -1 to 1; above 0.2 the interval does not hold. None if that
            was not kept.
        stop: why sampling ended; None if that was not kept.
    """

    name: str
    device_us: Summary
    communicates: bool = False
    samples_us: tuple[float, ...] = ()
    rank_samples_us: tuple[tuple[float, ...], ...] = ()
    variant: str = ""
    dropped: int = 0
    correlation: float | None = None
    stop: StopReason | None = None

    def __post_init__(self) -> None:
        check_correlation(self.correlation)
        check_amounts(f"dropped samples of stage {self.name[:40]!r}", (self.dropped,))
        for samples in (self.samples_us, *self.rank_samples_us):
            check_amounts(f"samples of stage {self.name[:40]!r}", samples)
        if len({len(samples) for samples in self.rank_samples_us}) > 1:
            raise ValueError(f"ranks of stage {self.name[:40]!r} have different numbers of samples")

    @property
    def is_correlated(self) -> bool:
        """True if samples resemble those before them, so that the interval of their median does not hold."""
        return self.correlation is not None and self.correlation > CORRELATED

    @property
    def pure_us(self) -> tuple[float, ...]:
        """The quickest rank's time of each repetition kept: it came last, so that it waited for nobody.

        Nothing where ranks do not communicate; nor has it a skew then.
        """
        return tuple(map(min, zip(*self.rank_samples_us, strict=True))) if self.communicates else ()

    @property
    def skew_us(self) -> tuple[float, ...]:
        """How much longer the slowest rank took than the quickest, in each repetition kept: what it waited for the others."""
        return skew(self.rank_samples_us) if self.communicates else ()


@dataclass(frozen=True, slots=True)
class PlanTime:
    """Host time of one stage of planning, with the device work it waits for."""

    name: str
    host_us: Summary


@dataclass(frozen=True, slots=True)
class Pace:
    """What a rank's device told of its state between the blocks of samples that were kept, of stages too, and of a warm step.

    Args:
        readings: how often it was asked.
        sm_mhz_low, sm_mhz_high: between which its SM clock was; None if it does not tell.
        event_reasons: for which it lowered its clocks, each once; empty if for none.
        temperature_c_low, temperature_c_high: between which its temperature was, °C; None if it does not tell, or if that
            was not kept.
        power_w_low, power_w_high: likewise of the power that it drew, watts.

    Raises:
        ValueError: for no reading, or a clock, a temperature or a power that no device has.
    """

    readings: int
    sm_mhz_low: int | None = None
    sm_mhz_high: int | None = None
    event_reasons: tuple[str, ...] = ()
    temperature_c_low: int | None = None
    temperature_c_high: int | None = None
    power_w_low: int | None = None
    power_w_high: int | None = None

    def __post_init__(self) -> None:
        if self.readings < 1:
            raise ValueError(f"a pace is of one reading or more, not {self.readings}")
        for what, low, high, unit in (
            ("an SM clock", self.sm_mhz_low, self.sm_mhz_high, "MHz"),
            ("a temperature", self.temperature_c_low, self.temperature_c_high, "°C"),
            ("a power", self.power_w_low, self.power_w_high, "W"),
        ):
            if (low is None) != (high is None) or not 0 <= (low or 0) <= (high or 0):
                raise ValueError(f"{what} from {low} to {high} {unit}")

    @classmethod
    def of(cls, states: Sequence[Mapping[str, str]]) -> Pace | None:
        """Return what states tell, each as ``bench.environment.pace`` reads it; None if none tells anything."""
        told = [state for state in states if state]
        reasons = {reason for state in told for reason in state.get("event_reasons", "none").split(", ")} - {"none"}

        def between(name: str) -> tuple[int | None, int | None]:
            values = [int(state[name]) for state in told if name in state]
            return min(values, default=None), max(values, default=None)

        clock, temperature, power = between("sm_mhz"), between("temperature_c"), between("power_w")
        return cls(len(told), *clock, tuple(sorted(reasons)), *temperature, *power) if told else None


@dataclass(frozen=True, slots=True)
class Piece:
    """A piece of work within a step, from when to when: a kernel or a copy as the device ran it, or a stage of those timed alone.

    Args:
        name: of the stage, of the kernel without its arguments, or of what kind of copy it is.
        start_us, end_us: since the step's first piece of work began.
        communicates: it is of the exchange.

    Raises:
        ValueError: for times that nothing has, or an end before its beginning.
    """

    name: str
    start_us: float
    end_us: float
    communicates: bool

    def __post_init__(self) -> None:
        check_amounts(f"times of {self.name[:40]!r}", (self.start_us, self.end_us))
        if self.end_us < self.start_us:
            raise ValueError(f"{self.name[:40]!r} ends at {self.end_us:g} µs, before it begins at {self.start_us:g}")


def skew(ranks_us: Sequence[Sequence[float]]) -> tuple[float, ...]:
    """Return how much longer the slowest rank took than the quickest, in each repetition; of one rank nothing."""
    return tuple(max(times) - min(times) for times in zip(*ranks_us, strict=False)) if len(ranks_us) > 1 else ()


def check_correlation(value: float | None) -> None:
    """Refuse a correlation that nothing has; one that was not kept is none."""
    if value is not None and not -1 <= value <= 1:
        raise ValueError(f"a correlation is between -1 and 1, not {value:g}")


def check_amounts(what: str, values: Iterable[float]) -> None:
    """Refuse what is negative, infinite or NaN, where ``what`` can be neither."""
    for value in values:
        if not 0 <= value < math.inf:
            raise ValueError(f"{what} should be neither negative nor infinite, not {value:g}")
