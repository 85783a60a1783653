"""What a run leaves behind: one trial per case, and everything a reader needs to believe it. Standard library only.

History of the schema: 1, the first.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from dcp_core.check import Check
from dcp_core.settings import Case

SCHEMA = 1
"""Version of a trial's fields. An older one is read, a newer one refused."""
PROTOCOL = 2
"""Version of how a case is measured. Trials of different protocols are never compared. History: 1, the first; 2, planning
is timed from taking the batch on, and inputs hold planted keys."""
MAX_SAMPLES = 64
"""Raw samples kept per rank and stage, evenly taken; the count of all is beside them."""


class Label(StrEnum):
    """Where a number comes from: ``dcp`` real devices, ranks run one after another on one, or a fitted model."""

    MEASURED = "measured"
    SIMULATED = "simulated"
    MODELLED = "modelled"


class StopReason(StrEnum):
    """Why sampling ended."""

    PRECISE = "precise"
    CAP = "cap"


@dataclass(frozen=True, slots=True)
class Policy:
    """How long and how carefully to measure.

    Args:
        precision: half width of the median's 95 % interval, relative, at which sampling stops.
        min_samples, max_samples: bounds on repetitions, whatever the precision.
        min_warmup: calls before the first sample.
        max_seconds: of sampling one case.
        cold: flush the L2 cache before every repetition.
        seed: of inputs, page order and case order.
    """

    precision: float = 0.01
    min_samples: int = 30
    max_samples: int = 300
    min_warmup: int = 10
    max_seconds: float = 5.0
    cold: bool = True
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Summary:
    """A sample of one quantity. ``low`` and ``high`` bound the median: the 95 % order-statistic interval."""

    count: int
    median: float
    low: float
    high: float
    min: float
    p10: float
    p90: float
    mad: float


@dataclass(frozen=True, slots=True)
class StageTime:
    """Device time of one stage of a step timed alone, slowest rank; raw samples thinned as ``MAX_SAMPLES`` says."""

    name: str
    device_us: Summary
    communicates: bool = False
    samples_us: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class PlanTime:
    """Host time of one stage of planning, with the device work it waits for."""

    name: str
    host_us: Summary


@dataclass(frozen=True, slots=True)
class Measured:
    """A case that was right, and its times.

    Args:
        label: measured on ``dcp`` devices, or simulated on one.
        check: why it may be believed.
        timer: what took the times; two trials with different timers are never compared.
        step_us: device time of the whole step: per repetition, of the slowest rank. In a simulation, of the rank with
            most keys and without the exchange.
        launch_us: host time to launch one step, eagerly.
        plan: host time of planning a batch, shared by all ``layers`` of the model.
        stages: the breakdown, each stage timed alone.
        rank_samples_us: raw samples of the step per rank, at most MAX_SAMPLES each.
        exchange_timed: False where the exchange's time is not in ``step_us``.
        stop: why sampling ended.
        timer_floor_us: what the timer reads for nothing.
        flushed_bytes: written between repetitions to cool the L2 cache; 0 if warm.
        kv_bytes: allocated for the KV cache of one layer, largest rank.
        flags: what a reader should know, in words.
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
    kind: str = field(default="measured", init=False)

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


@dataclass(frozen=True, slots=True)
class Trial:
    """What happened to a case.

    Args:
        ranks: real ranks that took part; a simulated group has 1.
        seconds: that the trial took, all told.
        time: when it ended, ISO 8601, UTC.
        clocks: of the device before and after, where it tells: SM and memory MHz, temperature, power, event reasons.
    """

    case: Case
    outcome: Outcome
    ranks: int
    policy: Policy
    environment: Environment
    seconds: float
    time: str
    clocks: tuple[dict[str, str], ...] = ()
    protocol: int = PROTOCOL
    schema: int = SCHEMA

    @property
    def key(self) -> tuple[str, int, int]:
        """What makes two trials the same measurement: the case, its real ranks, and the protocol."""
        return self.case.key, self.ranks, self.protocol
