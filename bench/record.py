"""What a run leaves behind: one trial per case, and everything a reader needs to believe it. Standard library only.

History of the schema: 1, the first; 2, a policy says whether steps are timed in CUDA graphs, a stage between ranks holds
samples of every rank and which way its exchange took, and a case may have been timed in a race; 3, a trial says whether it
repeats a case to show drift, and how often its case was taken again, an outcome how long it warmed up, how correlated its
samples are, how many were dropped, its span, its peak of memory, the timer's floor at the end, what clocks did meanwhile and
what ran when, a summary p99 and outliers. What an older line lacks has its default.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

from dcp_core.check import Check
from dcp_core.settings import Case

SCHEMA = 3
"""Version of a trial's fields. An older one is read, a newer one refused."""
PROTOCOL = 3
"""Version of how a case is measured. Trials of different protocols are never compared. History: 1, the first; 2, planning
is timed from taking the batch on, and inputs hold planted keys; 3, repetitions, rendezvous and events are inside the graph."""
MAX_SAMPLES = 64
"""Raw samples kept per rank and stage, evenly taken; the count of all is beside them."""
FEWEST_FOR_P99 = 299
"""Samples of which, with 95 %, one lies beyond the 99th percentile: 1 - 0.99 ** 299."""
MAX_PIECES = 256
"""Pieces of work kept of a step's timeline: ten times what a step of a mixed batch consists of."""
VISITS = 2
"""To each case in a round of a race, as far from its middle the one as the other: a drift falls on all cases alike."""


class Label(StrEnum):
    """Where a number comes from: ``dcp`` real devices, the busiest rank by itself on one, or a fitted model."""

    MEASURED = "measured"
    SIMULATED = "simulated"
    MODELLED = "modelled"


class StopReason(StrEnum):
    """Why sampling ended: the median is known well enough; a limit of samples or time; a race has so many rounds and no more."""

    PRECISE = "precise"
    CAP = "cap"
    ROUNDS = "rounds"


@dataclass(frozen=True, slots=True)
class Policy:
    """How long and how carefully to measure.

    Args:
        precision: half width of the median's 95 % interval, relative, at which sampling stops.
        min_samples, max_samples: bounds on repetitions, whatever the precision.
        min_warmup: calls before the first sample.
        max_seconds: of sampling one case.
        cold: flush the L2 cache before every repetition.
        graphs: on a GPU, time what can be captured as replays of a CUDA graph; else all as it is launched, eagerly.
        calls: timed one after another, a sample being their mean; more than one leaves no room to cool the cache between.
        seed: of inputs, page order and case order.
        trace: keep what runs when in steps that overlap; what is launched after that in the same process takes longer to launch.

    Raises:
        ValueError: naming the field that is out of its bounds.
    """

    precision: float = 0.01
    min_samples: int = 30
    max_samples: int = 300
    min_warmup: int = 10
    max_seconds: float = 5.0
    cold: bool = True
    seed: int = 0
    graphs: bool = True
    calls: int = 1
    trace: bool = False

    def __post_init__(self) -> None:
        if self.calls > 1 and self.cold:
            raise ValueError(f"{self.calls} calls one after another cannot be cold; set cold to false, or calls to 1")
        if not 0 < self.precision < 1:
            raise ValueError(f"precision is between 0 and 1, not {self.precision:g}")
        if not 0 < self.max_seconds < math.inf:
            raise ValueError(f"max_seconds is a positive number, not {self.max_seconds:g}")
        for name, (least, most) in _BOUNDS.items():
            if not least <= getattr(self, name) <= most:
                raise ValueError(f"{name} is a whole number from {least} to {most}, not {getattr(self, name)}")
        if self.min_samples > self.max_samples:
            raise ValueError(f"min_samples {self.min_samples} exceeds max_samples {self.max_samples}")


_REPETITIONS = (1, 1_000_000)
_BOUNDS: Mapping[str, tuple[int, int]] = {
    "min_samples": _REPETITIONS,
    "max_samples": _REPETITIONS,
    "min_warmup": _REPETITIONS,
    "calls": (1, 1000),
    "seed": (0, (1 << 32) - 1),
}
"""Of a policy's whole numbers."""


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
        _check_amounts("counts of outliers", (self.far_below, self.below, self.above, self.far_above))

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
        _check_amounts("a summary's p10, p90, mad and p99", (self.p10, self.p90, self.mad, self.p99 or 0.0))
        if self.p99 is not None and self.count < FEWEST_FOR_P99:
            raise ValueError(f"a summary has a p99 from {FEWEST_FOR_P99} samples on, and this is of {self.count}")
        if self.outliers is not None and self.outliers.count > self.count:
            raise ValueError(f"{self.outliers.count} outliers among {self.count} samples")


@dataclass(frozen=True, slots=True)
class StageTime:
    """Device time of one stage of a step timed alone, slowest rank; raw samples thinned as ``MAX_SAMPLES`` says.

    Args:
        rank_samples_us: of a stage between real ranks, each rank's samples of the same repetitions; else empty.
        variant: which way of several the exchange took, in words; empty where there is one, or before that was kept.
        dropped: samples that are in none of these, since the device was slowed down while they were taken.
    """

    name: str
    device_us: Summary
    communicates: bool = False
    samples_us: tuple[float, ...] = ()
    rank_samples_us: tuple[tuple[float, ...], ...] = ()
    variant: str = ""
    dropped: int = 0

    def __post_init__(self) -> None:
        _check_amounts(f"dropped samples of stage {self.name[:40]!r}", (self.dropped,))
        for samples in (self.samples_us, *self.rank_samples_us):
            _check_amounts(f"samples of stage {self.name[:40]!r}", samples)
        if len({len(samples) for samples in self.rank_samples_us}) > 1:
            raise ValueError(f"ranks of stage {self.name[:40]!r} have different numbers of samples")

    @property
    def pure_us(self) -> tuple[float, ...]:
        """The quickest rank's time of each repetition kept: it came last, so that it waited for nobody."""
        return tuple(map(min, zip(*self.rank_samples_us, strict=True)))

    @property
    def skew_us(self) -> tuple[float, ...]:
        """How much longer the slowest rank took than the quickest, in each repetition kept: what it waited for the others."""
        return _skew(self.rank_samples_us)


@dataclass(frozen=True, slots=True)
class PlanTime:
    """Host time of one stage of planning, with the device work it waits for."""

    name: str
    host_us: Summary


@dataclass(frozen=True, slots=True)
class Pace:
    """What a rank's device told of its clocks between the blocks of samples that were kept, those of stages too.

    Args:
        readings: how often it was asked.
        sm_mhz_low, sm_mhz_high: between which its SM clock was; None if it does not tell.
        event_reasons: for which it lowered its clocks, each once; empty if for none.

    Raises:
        ValueError: for no reading, or clocks that no device has.
    """

    readings: int
    sm_mhz_low: int | None = None
    sm_mhz_high: int | None = None
    event_reasons: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.readings < 1:
            raise ValueError(f"a pace is of one reading or more, not {self.readings}")
        is_told = self.sm_mhz_low is not None, self.sm_mhz_high is not None
        if any(is_told) != all(is_told) or not 0 <= (self.sm_mhz_low or 0) <= (self.sm_mhz_high or 0):
            raise ValueError(f"an SM clock from {self.sm_mhz_low} to {self.sm_mhz_high} MHz")

    @classmethod
    def of(cls, states: Sequence[Mapping[str, str]]) -> Pace | None:
        """Return what states tell, each as ``bench.environment.pace`` reads it; None if none tells anything."""
        told = [state for state in states if state]
        clocks = [int(state["sm_mhz"]) for state in told if "sm_mhz" in state]
        reasons = sorted(
            {reason for state in told for reason in state.get("event_reasons", "none").split(", ")} - {"none"}
        )
        return cls(len(told), min(clocks, default=None), max(clocks, default=None), tuple(reasons)) if told else None


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
        _check_amounts(f"times of {self.name[:40]!r}", (self.start_us, self.end_us))
        if self.end_us < self.start_us:
            raise ValueError(f"{self.name[:40]!r} ends at {self.end_us:g} µs, before it begins at {self.start_us:g}")


class Heat(StrEnum):
    """What a race was run for: a first look at many cases, telling the best apart, or proof in a fresh process."""

    SCREENED = "screened"
    RACED = "raced"
    CONFIRMED = "confirmed"


@dataclass(frozen=True, slots=True)
class Race:
    """How a case was timed in turns with others on one device, in rounds: every case VISITS times, in an order and its reverse.

    Args:
        name: of the race, the same in the trial of each case that took part: their samples pair round by round.
        process: of the group of workers that ran it.
        cases: that were timed in it; a race of which some trials are missing was interrupted while they were written.
        repeats: samples taken one after another in a visit.

    Raises:
        ValueError: for a race of no cases, or a visit without a sample.
    """

    name: str
    heat: Heat
    process: str
    cases: int
    repeats: int

    def __post_init__(self) -> None:
        if min(self.cases, self.repeats) < 1:
            raise ValueError(
                f"a race times one case or more, not {self.cases}, and takes a sample or more a visit, not {self.repeats}"
            )


@dataclass(frozen=True, slots=True)
class Measured:
    """A case that was right, and its times.

    Args:
        label: measured on ``dcp`` devices, or simulated on one.
        check: why it may be believed.
        timer: what took the times; two trials with different timers are never compared.
        step_us: device time of the whole step: per repetition, of the slowest rank. In a simulation, of the busiest rank,
            by itself and without the exchange.
        launch_us: host time to launch one step, eagerly.
        plan: host time of planning a batch, shared by all ``layers`` of the model.
        stages: the breakdown, each stage timed alone; none where the case was only raced.
        rank_samples_us: raw samples of the step per rank, at most MAX_SAMPLES each.
        exchange_timed: False where the exchange's time is not in ``step_us``.
        stop: why sampling ended.
        timer_floor_us: what the timer reads for the smallest kernel, before the case.
        flushed_bytes: written between repetitions to cool the L2 cache; 0 if warm.
        kv_bytes: allocated for the KV cache of one layer, largest rank.
        flags: what a reader should know, in words.
        race: if the step was timed in turns with other cases; its raw samples are whole then, in the order they were taken.
        warmup: repetitions of the step before its first sample; 0 if that was not kept.
        correlation: of each of the step's samples with the one before it, -1 to 1; None if that was not kept.
        span_us: host time from launching one step, eagerly, to its end on the device; None if that was not kept.
        timer_floor_end_us: as ``timer_floor_us``, after the case; None where it only raced, or if that was not kept.
        timer_empty_us: what the timer reads with nothing at all in between, before the case; None if that was not kept.
        dropped: samples of the step that are in none of these, since a device was slowed down while they were taken.
        clocks_during: of each rank's device, where it tells.
        peak_bytes: that torch gave out at most while the case was measured, of the fullest rank's GPU; None on a CPU, in a race,
            or if that was not kept.
        timeline: what ran when on rank 0, which has most keys, in one repetition of the step, that of median length, as CUPTI
            saw it; of a step that overlaps between real ranks on GPUs, where it could be had, else empty.

    Raises:
        ValueError: for a case that was not right, or numbers that nothing measured has.
    """

    label: Label
    check: Check
    timer: str
    step_us: Summary
    launch_us: Summary
    plan: tuple[PlanTime, ...]
    stages: tuple[StageTime, ...]
    rank_samples_us: tuple[tuple[float, ...], ...]
    exchange_timed: bool
    stop: StopReason
    timer_floor_us: float
    flushed_bytes: int
    kv_bytes: int
    layers: int
    flags: tuple[str, ...] = ()
    race: Race | None = None
    warmup: int = 0
    correlation: float | None = None
    span_us: Summary | None = None
    timer_floor_end_us: float | None = None
    timer_empty_us: float | None = None
    dropped: int = 0
    clocks_during: tuple[Pace, ...] = ()
    peak_bytes: int | None = None
    timeline: tuple[Piece, ...] = ()
    kind: str = field(default="measured", init=False)

    def __post_init__(self) -> None:
        if not self.check.passed:
            raise ValueError("a case that was not right has no times: its check is over budget")
        if self.layers < 1:
            raise ValueError(f"a model has one layer or more, not {self.layers}")
        amounts = (self.flushed_bytes, self.kv_bytes, self.warmup, self.dropped, self.peak_bytes or 0)
        _check_amounts("flushed_bytes, kv_bytes, warmup, dropped and peak_bytes", amounts)
        if not -1 <= (self.correlation or 0.0) <= 1:
            raise ValueError(f"a correlation is between -1 and 1, not {self.correlation:g}")
        _check_amounts("timer_floor_us", (self.timer_floor_us,))
        _check_amounts("what else a timer reads", (self.timer_floor_end_us or 0.0, self.timer_empty_us or 0.0))
        for samples in self.rank_samples_us:
            _check_amounts("samples of a rank", samples)
        if len(self.timeline) > MAX_PIECES:
            raise ValueError(f"a timeline has {MAX_PIECES} pieces of work at most, not {len(self.timeline)}")
        if self.race and {len(samples) for samples in self.rank_samples_us} != {self.step_us.count}:
            raise ValueError(f"a race keeps all samples of every rank, {self.step_us.count}")
        if self.race and self.step_us.count % (VISITS * self.race.repeats):
            raise ValueError(
                f"{self.step_us.count} samples are no whole rounds of {VISITS} visits, {self.race.repeats} each"
            )

    @property
    def is_whole(self) -> bool:
        """True if each stage was timed as well, as of a case measured by itself, or confirmed."""
        return self.race is None or bool(self.stages)

    @property
    def skew_us(self) -> tuple[float, ...]:
        """How much longer the slowest rank's step took than the quickest's, in each repetition kept; of one rank nothing."""
        return _skew(self.rank_samples_us)

    @property
    def straggler(self) -> int | None:
        """The rank whose step took longest in most of the repetitions kept, it may be waiting for another; None of one rank."""
        slowest = Counter(times.index(max(times)) for times in zip(*self.rank_samples_us, strict=False))
        return slowest.most_common(1)[0][0] if len(self.rank_samples_us) > 1 and slowest else None

    @property
    def plan_us(self) -> float:
        """Host time of planning a batch, all its stages."""
        return sum(stage.host_us.median for stage in self.plan)


@dataclass(frozen=True, slots=True)
class Skipped:
    """A case that cannot run here, with the reason in a sentence."""

    reason: str
    kind: str = field(default="skipped", init=False)


@dataclass(frozen=True, slots=True)
class Failed:
    """A case that should have run. ``fault``: one word, as ``incorrect``, ``error``, ``crashed``, ``timeout``."""

    fault: str
    message: str
    traceback: str = ""
    kind: str = field(default="failed", init=False)


def _skew(ranks_us: Sequence[Sequence[float]]) -> tuple[float, ...]:
    return tuple(max(times) - min(times) for times in zip(*ranks_us, strict=False)) if len(ranks_us) > 1 else ()


def _check_amounts(what: str, values: Iterable[float]) -> None:
    for value in values:
        if not 0 <= value < math.inf:
            raise ValueError(f"{what} should be neither negative nor infinite, not {value:g}")


Outcome = Measured | Skipped | Failed


@dataclass(frozen=True, slots=True)
class Verified:
    """A case that was only checked.

    Args:
        check: against the oracle.
        apart: how far it is from the result of another path on the same batch, on the worst of all rows, over what two
            right results may be apart; None where there was none to compare with.
    """

    check: Check
    apart: float | None = None

    @property
    def passed(self) -> bool:
        """True if the oracle and the other path agree with it; NaN never does."""
        return self.check.passed and (self.apart is None or self.apart <= 1)


@dataclass(frozen=True, slots=True)
class Environment:
    """The fingerprint of where a run was made. ``hard`` fields must agree for trials to be compared or share a profile."""

    hard: dict[str, str]
    soft: dict[str, str] = field(default_factory=dict)

    def differences(self, other: Environment) -> list[str]:
        """Name every hard field in which the two differ, with both values."""
        names = sorted(self.hard.keys() | other.hard.keys())
        return [
            f"{name}: {self.hard.get(name, 'unknown')} here, {other.hard.get(name, 'unknown')} there"
            for name in names
            if self.hard.get(name) != other.hard.get(name)
        ]


class Key(NamedTuple):
    """What makes two trials the same measurement. ``case``: its key; ``cold``, ``graphs``, ``calls``: as the policy asked."""

    case: str
    ranks: int
    protocol: int
    cold: bool
    graphs: bool
    calls: int


@dataclass(frozen=True, slots=True)
class Trial:
    """What happened to a case.

    Args:
        ranks: real ranks that took part; a simulated group has 1.
        seconds: that the trial took, all told.
        time: when it ended, ISO 8601, UTC.
        clocks: of each rank's device before, then of each after, where they tell: SM and memory MHz, temperature, power,
            event reasons, processes.
        is_sentinel: the case had been measured before; whoever asks for trials of a case does not mean this one.
        retakes: times that the case was measured and that was discarded, since heat, supply or another process disturbed it.

    Raises:
        ValueError: for a number of ranks, seconds or retakes that no trial has.
    """

    case: Case
    outcome: Outcome
    ranks: int
    policy: Policy
    environment: Environment
    seconds: float
    time: str
    clocks: tuple[dict[str, str], ...] = ()
    is_sentinel: bool = False
    retakes: int = 0
    protocol: int = PROTOCOL
    schema: int = SCHEMA

    def __post_init__(self) -> None:
        if self.ranks < 1:
            raise ValueError(f"a trial takes one rank or more, not {self.ranks}")
        _check_amounts("a trial's seconds and retakes", (self.seconds, self.retakes))

    @property
    def key(self) -> Key:
        """What makes two trials the same measurement: the case, its real ranks, the protocol, and how it was timed."""
        return Key(self.case.key, self.ranks, self.protocol, self.policy.cold, self.policy.graphs, self.policy.calls)


def latest(trials: Iterable[Trial]) -> list[Trial]:
    """Return the trial that counts for each case: the last, but one with every stage timed before one that only raced."""
    found: dict[Key, Trial] = {}
    for trial in trials:
        known = found.get(trial.key)
        if known is None or not (_only_raced(trial) and isinstance(known.outcome, Measured) and known.outcome.is_whole):
            found[trial.key] = trial
    return list(found.values())


def _only_raced(trial: Trial) -> bool:
    return isinstance(trial.outcome, Measured) and not trial.outcome.is_whole
