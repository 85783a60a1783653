"""What the exchanges between ranks cost: read off trials, and modelled between what was measured. Standard library only."""

from __future__ import annotations

from bisect import bisect
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import log
from statistics import fmean, median
from typing import NamedTuple

from bench.record import Environment, Measured, Trial
from bench.times import StageTime, Summary
from dcp_core.settings import Case, ExchangeName, PathName

OPERATIONS = ("gather", "combine")
FEWEST = 3
"""Sizes that it takes to fit two numbers and still say how far off they are."""
NVLINK_BYTES_PER_US = 26.6e3
"""Of one NVLink of the fourth generation, each way: 18 of them make the 478 GB/s of an H100 or H200."""
_NVLINK_4 = ("H100", "H200")


class Row(NamedTuple):
    """What a token's message is made of: query heads of one rank, elements of a head, bytes of an element."""

    heads: int
    head_dim: int
    itemsize: int

    @classmethod
    def of(cls, case: Case) -> Row:
        """Return the row of a case's messages."""
        return cls(case.layout.heads(case.shape).query, case.shape.head_dim, case.shape.dtype.itemsize)

    def __str__(self) -> str:
        return f"{self.heads}x{self.head_dim} in {self.itemsize} bytes"

    def wire_bytes(self, operation: str, dcp: int, tokens: int) -> int:
        """Return the bytes that a rank must at least receive: peers' query heads, or their partials of its own heads."""
        per_head = self.head_dim * self.itemsize + (4 if operation == "combine" else 0)
        return (dcp - 1) * tokens * self.heads * per_head


class Way(NamedTuple):
    """Where and how times were taken: only those of one machine, timed in one way, are put together.

    Args:
        machine: the hard fields of the fingerprint.
        graphs: replayed in a CUDA graph, not launched one by one, if the timer does that.
        calls: timed together.
        protocol: of measuring; see ``bench.record``.
    """

    machine: tuple[tuple[str, str], ...]
    timer: str
    cold: bool
    graphs: bool
    calls: int
    protocol: int

    @classmethod
    def of(cls, trial: Trial, outcome: Measured) -> Way:
        """Return how a trial was timed."""
        hard = tuple(sorted(trial.environment.hard.items()))
        policy = trial.policy
        return cls(hard, outcome.timer, outcome.flushed_bytes > 0, policy.graphs, policy.calls, trial.protocol)


class Kind(NamedTuple):
    """What times of an exchange depend on, but for the number of tokens."""

    way: Way
    exchange: ExchangeName
    dcp: int
    row: Row


@dataclass(frozen=True, slots=True)
class Reading:
    """One operation of one exchange at one size, as a trial measured it.

    Args:
        wire_bytes: that a rank must at least receive from its peers.
        time_us: of the slowest rank.
        correlated: the interval of its median does not hold.
        pure_us: median of the quickest rank, which came last and waited for nobody; of the slowest where that was not kept.
        skew_us: median of what the slowest rank took longer than the quickest; None where that was not kept.
        variant: which way of several the exchange took, in words.
    """

    operation: str
    kind: Kind
    tokens: int
    wire_bytes: int
    time_us: Summary
    correlated: bool
    pure_us: float
    skew_us: float | None
    variant: str
    trial: Trial

    @property
    def bus_gb_per_s(self) -> float:
        """Bytes that a rank must receive over the time it took, whatever else was moved."""
        return self.wire_bytes / self.pure_us / 1e3 if self.pure_us else 0.0

    @property
    def link_share(self) -> float | None:
        """That rate over what the device can receive over its links; None where that is not known."""
        limit = link_bytes_per_us(self.trial.environment)
        return 1e3 * self.bus_gb_per_s / limit if limit else None


@dataclass(frozen=True, slots=True)
class Bracket:
    """A modelled time, and what it may lie between."""

    time_us: float
    low_us: float
    high_us: float


@dataclass(frozen=True, slots=True)
class Curve:
    """Time over size: ``latency + bytes / bandwidth`` (Hockney, 1994), bent to go through every measured point.

    Libraries and kernels change their ways as messages grow, so that times lie on no one line: an all-gather between two
    H100s is up to a fifth off one that was fitted to the other sizes. So the share by which points are off is taken along,
    from one size to the next in proportion to the logarithm of the size.

    Args:
        us_per_byte: of what a rank receives.
        shares: (bytes, measured time over the line's), sizes ascending. Below and above them the nearest counts.
    """

    latency_us: float
    us_per_byte: float
    shares: tuple[tuple[int, float], ...]

    @classmethod
    def through(cls, times: Mapping[int, float]) -> Curve:
        """Return the curve through times by size, in microseconds by bytes, none of them 0."""
        latency, per_byte = _line(times)
        return cls(
            latency, per_byte, tuple((size, times[size] / (latency + per_byte * size)) for size in sorted(times))
        )

    def time_us(self, wire_bytes: float) -> float:
        """Return the time of a message."""
        return self.line_us(wire_bytes) * self._share(wire_bytes)

    def line_us(self, wire_bytes: float) -> float:
        """Return what the straight line says of it."""
        return self.latency_us + self.us_per_byte * wire_bytes

    def spans(self, wire_bytes: float) -> bool:
        """True between the smallest and the largest size that was measured."""
        return self.shares[0][0] <= wire_bytes <= self.shares[-1][0]

    def _share(self, wire_bytes: float) -> float:
        after = bisect(self.shares, wire_bytes, key=lambda point: point[0])
        if after in (0, len(self.shares)):
            return self.shares[min(after, len(self.shares) - 1)][1]
        (below, one), (above, other) = self.shares[after - 1 : after + 1]
        return one + (other - one) * log(wire_bytes / below) / log(above / below)


@dataclass(frozen=True, slots=True)
class CollectiveModel:
    """One operation of one exchange as a curve, for the dcp and rows it was measured with.

    Args:
        between_error: worst, relative, of each size predicted from the others, smallest and largest left aside.
        beyond_error: the same of these two, predicted from sizes that lie all above, or all below.
        mean_error: of all sizes.
    """

    operation: str
    kind: Kind
    curve: Curve
    between_error: float
    beyond_error: float
    mean_error: float

    @property
    def latency_us(self) -> float:
        """Of the straight line."""
        return self.curve.latency_us

    @property
    def bytes_per_us(self) -> float:
        """Received by a rank, along the straight line; infinite if size does not tell."""
        return 1 / self.curve.us_per_byte if self.curve.us_per_byte else float("inf")

    def time_us(self, wire_bytes: float) -> float:
        """Return the modelled time of a message at the fitted dcp."""
        return self.curve.time_us(wire_bytes)

    def error(self, dcp: int, wire_bytes: float) -> float:
        """Return how far off a prediction has been that knew as much: from sizes on both sides in such a group, or less."""
        known = dcp == self.kind.dcp and self.curve.spans(wire_bytes)
        return self.between_error if known else max(self.between_error, self.beyond_error)

    def at(self, dcp: int, wire_bytes: float) -> Bracket:
        """Return what an operation may take in a group of ``dcp``, whose ranks receive ``wire_bytes`` each.

        At the fitted dcp the bracket is the error either way. In a larger group the low end lets all peers' messages
        be under way at once; at the high end each peer costs the latency anew; the time is half way.
        """
        peers = max(1.0, (dcp - 1) / (self.kind.dcp - 1))
        fastest = self.time_us(wire_bytes)
        slowest, error = fastest + (peers - 1) * self.latency_us, self.error(dcp, wire_bytes)
        return Bracket((fastest + slowest) / 2, max(0.0, fastest * (1 - error)), slowest * (1 + error))


def readings(trials: Iterable[Trial]) -> list[Reading]:
    """Return the gathers and combines that trials timed between real ranks, the last of each size, setting and way.

    Only of decode steps: those of longer ones may fold or merge in the same kernel.
    """
    found: dict[tuple[object, ...], Reading] = {}
    for trial in trials:
        outcome, case = trial.outcome, trial.case
        told = isinstance(outcome, Measured) and outcome.exchange_timed and case.layout.dcp > 1
        if not told or not isinstance(outcome, Measured) or case.settings.path is not PathName.DECODE:
            continue
        kind = Kind(Way.of(trial, outcome), case.settings.exchange, case.layout.dcp, Row.of(case))
        key = trial.key
        for stage in outcome.stages:
            if stage.communicates and stage.name in OPERATIONS:
                found[stage.name, kind.way, key] = _reading(stage, kind, trial)
    return list(found.values())


def _reading(stage: StageTime, kind: Kind, trial: Trial) -> Reading:
    tokens = trial.case.workload.new_tokens
    return Reading(
        stage.name,
        kind,
        tokens,
        kind.row.wire_bytes(stage.name, kind.dcp, tokens),
        stage.device_us,
        stage.is_correlated,
        median(stage.pure_us) if stage.pure_us else stage.device_us.median,
        median(stage.skew_us) if stage.skew_us else None,
        stage.variant,
        trial,
    )


def link_bytes_per_us(environment: Environment) -> float:
    """Return what a device can receive over its NVLinks; 0 where that is not known."""
    links = environment.soft.get("nvlinks", "0")
    known = any(name in environment.hard.get("device_name", "") for name in _NVLINK_4)
    return int(links) * NVLINK_BYTES_PER_US if known and links.isdigit() else 0.0


def fit_all(found: Sequence[Reading]) -> list[CollectiveModel]:
    """Fit a model to each operation and kind of exchange that was measured at enough sizes."""
    groups: dict[tuple[str, Kind], list[Reading]] = defaultdict(list)
    for reading in found:
        groups[reading.operation, reading.kind].append(reading)
    return [model for group in groups.values() if (model := fit(group))]


def model_for(models: Iterable[CollectiveModel], operation: str, kind: Kind) -> CollectiveModel | None:
    """Return the model that tells most of a kind of exchange: fitted on the same machine, with the same timer, for the same row.

    Of the same dcp if there is one, else of the largest below it: a larger group tells nothing of the latency of a smaller. Of
    several the one with most calls to a sample, since what a timer adds to a call is not in a step once for every stage; in a
    step messages are warm, having just been made.
    """
    asked = _comparable(kind)
    fitting = [
        model
        for model in models
        if model.operation == operation and _comparable(model.kind) == asked and model.kind.dcp <= kind.dcp
    ]
    return max(fitting, key=lambda model: (model.kind.dcp, model.kind.way.calls, not model.kind.way.cold), default=None)


def _comparable(kind: Kind) -> Kind:
    """Leave out of a kind what a model bridges or a message does not depend on."""
    return kind._replace(dcp=0, way=kind.way._replace(cold=False, calls=0))


def fit(found: Sequence[Reading]) -> CollectiveModel | None:
    """Fit one operation of one kind of exchange; None for fewer than FEWEST sizes.

    Squares of the line's relative errors are least, so that a small message counts as much as a large one. The errors stated
    are those of predicting each size from the others.
    """
    times = _by_size(found)
    if len(times) < FEWEST:
        return None
    errors = []
    for size in sorted(times):
        others = Curve.through({other: time_us for other, time_us in times.items() if other != size})
        errors.append(abs(others.time_us(size) / times[size] - 1))
    between, beyond = max(errors[1:-1]), max(errors[0], errors[-1])
    return CollectiveModel(found[0].operation, found[0].kind, Curve.through(times), between, beyond, fmean(errors))


def _by_size(found: Sequence[Reading]) -> Mapping[int, float]:
    """Return the least pure time of each size: kernels and batches beside it do not change what is sent. None is nothing."""
    times: dict[int, float] = {}
    for reading in found:
        if reading.pure_us > 0:
            times[reading.wire_bytes] = min(times.get(reading.wire_bytes, reading.pure_us), reading.pure_us)
    return times


def _line(times: Mapping[int, float]) -> tuple[float, float]:
    """Return (latency, time per byte), neither negative, with the least squares of relative errors."""
    weights = [(size, 1 / time_us**2, time_us) for size, time_us in times.items()]
    total = sum(weight for _, weight, _ in weights)
    x = sum(weight * size for size, weight, _ in weights) / total
    y = sum(weight * time_us for _, weight, time_us in weights) / total
    spread = sum(weight * (size - x) ** 2 for size, weight, _ in weights)
    together = sum(weight * (size - x) * (time_us - y) for size, weight, time_us in weights)
    slope = max(together / spread, 0.0) if spread else 0.0
    if (latency := y - slope * x) >= 0:
        return latency, slope
    # Through nothing: the slope that then errs least.
    square = sum(weight * size**2 for size, weight, _ in weights)
    return 0.0, sum(weight * size * time_us for size, weight, time_us in weights) / square
