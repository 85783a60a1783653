"""What a run leaves behind: one trial per case, and everything a reader needs to believe it. Standard library only.

History of the schema: 1, the first; 2, a policy says whether steps are timed in CUDA graphs, a stage between ranks holds
samples of every rank and which way its exchange took, and a case may have been timed in a race; 3, a trial says whether it
repeats a case to show drift, and how often its case was taken again, an outcome how long it warmed up, how correlated its
samples are, how many were dropped, its span, its peak of memory, the timer's floor at the end, what it reads for nothing, what
clocks, temperature and power did meanwhile and what ran when, a summary p99 and outliers, every stage samples of every real rank
and why its sampling ended, and a step with a warm cache the same, of which there was once a summary alone. What an older line
lacks has its default.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

from bench.policy import Policy
from bench.times import Pace, Piece, PlanTime, StageTime, StopReason, Summary, check_amounts, check_correlation, skew
from dcp_core.check import Check
from dcp_core.settings import Case

SCHEMA = 3
"""Version of a trial's fields. An older one is read, a newer one refused."""
PROTOCOL = 3
"""Version of how a case is measured. Trials of different protocols are never compared. History: 1, the first; 2, planning
is timed from taking the batch on, and inputs hold planted keys; 3, repetitions, rendezvous and events are inside the graph."""
MAX_PIECES = 256
"""Pieces of work kept of a step's timeline: ten times what a step of a mixed batch consists of."""
A_PATH = "(a path)"
"""Stands for an environment variable's value that is one."""
SHARED_VARIABLES = re.compile(
    r"env:(?!NCCL_(VERSION|DEBUG)|TORCH_(LOGS|CPP_LOG|SHOW_CPP|CUDA_ARCH_LIST|NCCL_ASYNC_ERROR_HANDLING)|FLASHINFER_LOG)"
    r"(NCCL|TORCH|FLASHINFER)_\w+"
)
"""Fields of environment variables that decide how ranks work together; not those that say what is logged, that an image or a
build leaves behind, or that torchrun sets by itself."""
CORRELATED_FLAG = "samples are correlated: the interval of the median does not hold"
"""What a trial says whose step's samples are."""
_LEAST_US, _MOST_US = 1e-3, 8.64e10
VISITS = 2
"""To each case in a round of a race, as far from its middle the one as the other: a drift falls on all cases alike."""


class Label(StrEnum):
    """Where a number comes from: ``dcp`` real devices, the fullest rank by itself on one, or a fitted model."""

    MEASURED = "measured"
    SIMULATED = "simulated"
    MODELLED = "modelled"


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
        step_us: device time of the whole step: per repetition, of the slowest rank. In a simulation, of the fullest rank,
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
        timer_empty_end_us: the same, after the case; None where it only raced, or if that was not kept.
        dropped: samples of the step that are in none of these, since a device was slowed down while they were taken.
        clocks_during: of each rank's device, where it tells.
        peak_bytes: that torch gave out at most while the case was measured, of the fullest rank's GPU; None on a CPU, in a race,
            or if that was not kept.
        warm: the whole step with nothing done to cool the L2 cache, of decodes that were timed cold and not raced: what they
            read may fit it. None of others, or if that was not kept.
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
    timer_empty_end_us: float | None = None
    dropped: int = 0
    clocks_during: tuple[Pace, ...] = ()
    peak_bytes: int | None = None
    warm: StageTime | None = None
    timeline: tuple[Piece, ...] = ()
    kind: str = field(default="measured", init=False)

    def __post_init__(self) -> None:
        if not self.check.passed:
            raise ValueError("a case that was not right has no times: its check is over budget")
        if self.layers < 1:
            raise ValueError(f"a model has one layer or more, not {self.layers}")
        amounts = (self.flushed_bytes, self.kv_bytes, self.warmup, self.dropped, self.peak_bytes or 0)
        check_amounts("flushed_bytes, kv_bytes, warmup, dropped and peak_bytes", amounts)
        check_correlation(self.correlation)
        check_amounts("timer_floor_us", (self.timer_floor_us,))
        others = (self.timer_floor_end_us, self.timer_empty_us, self.timer_empty_end_us)
        check_amounts("what else a timer reads", (read or 0.0 for read in others))
        for samples in self.rank_samples_us:
            check_amounts("samples of a rank", samples)
        if len(self.timeline) > MAX_PIECES:
            raise ValueError(f"a timeline has {MAX_PIECES} pieces of work at most, not {len(self.timeline)}")
        if self.race and {len(samples) for samples in self.rank_samples_us} != {self.step_us.count}:
            raise ValueError(f"a race keeps all samples of every rank, {self.step_us.count}")
        if self.race and not all(_LEAST_US <= time <= _MOST_US for samples in self.rank_samples_us for time in samples):
            raise ValueError("a race's samples lie between a nanosecond and a day")
        if self.race and self.step_us.count % (VISITS * self.race.repeats):
            raise ValueError(
                f"{self.step_us.count} samples are no whole rounds of {VISITS} visits, {self.race.repeats} each"
            )

    @property
    def is_whole(self) -> bool:
        """True if each stage was timed as well, as of a case measured by itself, or confirmed."""
        return self.race is None or bool(self.stages)

    @property
    def warm_us(self) -> Summary | None:
        """As ``step_us`` with a warm L2 cache; None where that was not timed, or was not kept."""
        return self.warm.device_us if self.warm else None

    @property
    def is_correlated(self) -> bool:
        """True if the step's samples resemble those before them, so that the interval of their median does not hold."""
        return CORRELATED_FLAG in self.flags

    @property
    def skew_us(self) -> tuple[float, ...]:
        """How much longer the slowest rank's step took than the quickest's, in each repetition kept; of one rank nothing."""
        return skew(self.rank_samples_us)

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
    """The fingerprint of where a run was made.

    ``hard`` fields must agree for trials to be compared or share a profile; of trials of several ranks also what ``soft``
    ones tell of the links between their devices, and of libraries' settings.
    """

    hard: dict[str, str]
    soft: dict[str, str] = field(default_factory=dict)

    def differences(self, other: Environment, *, ranks: int = 1) -> list[str]:
        """Name every field in which the two differ so that trials of so many ranks are not alike, with both values.

        Hard fields, known or not. Between several ranks also, where both tell: how many NVLinks a device has, how the devices
        that the ranks use reach each other (the first ones, one for each rank), and which of SHARED_VARIABLES are set, to what.
        """
        found = [
            (name, "unknown", self.hard.get(name), other.hard.get(name))
            for name in self.hard.keys() | other.hard.keys()
        ]
        if ranks > 1:
            mine, theirs = self._between(ranks), other._between(ranks)
            found += [(name, "", mine[name], theirs[name]) for name in mine.keys() & theirs.keys()]
        if ranks > 1 and self.soft and other.soft:
            mine, theirs = self._variables(), other._variables()
            found += [(name, "not set", mine.get(name), theirs.get(name)) for name in mine.keys() | theirs.keys()]
        return [
            f"{name}: {one or lack} here, {two or lack} there" for name, lack, one, two in sorted(found) if one != two
        ]

    def _between(self, ranks: int) -> dict[str, str]:
        """Return what is told of the links of so many ranks' devices: how many NVLinks each has, and of each pair which link."""
        found = {"nvlinks": self.soft["nvlinks"]} if "nvlinks" in self.soft else {}
        for link in self.soft.get("topology", "").split("; "):
            pair, _, kind = link.partition(": ")
            first, _, second = pair.partition("-")
            if first.isdecimal() and second.isdecimal() and max(int(first), int(second)) < ranks:
                found[f"link {pair}"] = kind
        return found

    def _variables(self) -> dict[str, str]:
        """Return the variables that are told to be set; a path, which is not told, says nothing of speed."""
        return {
            name: value for name, value in self.soft.items() if SHARED_VARIABLES.fullmatch(name) and value != A_PATH
        }


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
        check_amounts("a trial's seconds and retakes", (self.seconds, self.retakes))

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


def timed_alike(trials: Sequence[Trial]) -> list[Trial]:
    """Return the trials timed in the way that most were, cold or warm, in graphs or eager; the usual one of two."""
    ways = Counter((trial.policy.cold, trial.policy.graphs) for trial in trials)
    most = max(ways, key=lambda way: (ways[way], way), default=None)
    return [trial for trial in trials if (trial.policy.cold, trial.policy.graphs) == most]


def _only_raced(trial: Trial) -> bool:
    return isinstance(trial.outcome, Measured) and not trial.outcome.is_whole
