"""What the exchanges between ranks cost: read off trials, and fitted by a latency and a bandwidth. Standard library only."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from bench.record import Measured, Summary, Trial
from dcp_core.settings import Case, ExchangeName, PathName

OPERATIONS = ("gather", "combine")
FEWEST = 3
"""Sizes that it takes to fit two numbers and still say how far off they are."""


@dataclass(frozen=True, slots=True)
class Reading:
    """One operation of one exchange at one size, as a trial measured it.

    Args:
        wire_bytes: that a rank must at least receive from its peers.
    """

    operation: str
    exchange: ExchangeName
    dcp: int
    tokens: int
    wire_bytes: int
    time_us: Summary
    trial: Trial

    @property
    def bus_gb_per_s(self) -> float:
        """Bytes that a rank must receive over the time it took, whatever else was moved."""
        return self.wire_bytes / self.time_us.median / 1e3


@dataclass(frozen=True, slots=True)
class Bracket:
    """A modelled time, and what it may lie between where the model is asked beyond what it was fitted to."""

    low_us: float
    high_us: float


@dataclass(frozen=True, slots=True)
class CollectiveModel:
    """One operation of one exchange as ``latency + bytes / bandwidth`` (Hockney, 1994), at the dcp it was fitted to.

    Args:
        bytes_per_us: received by a rank.
        worst_error, mean_error: relative, of each size predicted from the others.
    """

    operation: str
    exchange: ExchangeName
    dcp: int
    latency_us: float
    bytes_per_us: float
    sizes: int
    worst_error: float
    mean_error: float

    def time_us(self, wire_bytes: float) -> float:
        """Return the modelled time of a message at the fitted dcp."""
        return self.latency_us + wire_bytes / self.bytes_per_us

    def at(self, dcp: int, wire_bytes: float) -> Bracket:
        """Return what an operation may take in a group of ``dcp``, whose ranks receive ``wire_bytes`` each.

        At the fitted dcp the bracket is the worst error either way. In a larger group the low end lets all peers' messages
        be under way at once; at the high end each peer costs the latency anew.
        """
        peers = max(1.0, (dcp - 1) / (self.dcp - 1))
        fastest, slowest = self.time_us(wire_bytes), peers * self.latency_us + wire_bytes / self.bytes_per_us
        return Bracket(fastest * (1 - self.worst_error), slowest * (1 + self.worst_error))


def readings(trials: Iterable[Trial]) -> list[Reading]:
    """Return the gathers and combines that trials timed between real ranks, the last of each size and setting.

    Only of decode steps: those of longer ones may fold or merge in the same kernel.
    """
    found: dict[tuple[object, ...], Reading] = {}
    for trial in trials:
        outcome, settings = trial.outcome, trial.case.settings
        if not isinstance(outcome, Measured) or not outcome.exchange_timed or settings.path is not PathName.DECODE:
            continue
        for stage in outcome.stages:
            if not stage.communicates or stage.name not in OPERATIONS:
                continue
            reading = Reading(
                stage.name,
                settings.exchange,
                trial.case.layout.dcp,
                trial.case.workload.new_tokens,
                wire_bytes(trial.case, stage.name),
                stage.device_us,
                trial,
            )
            found[stage.name, trial.case.key] = reading
    return list(found.values())


def wire_bytes(case: Case, operation: str) -> int:
    """Return the bytes that a rank must at least receive: peers' query heads, or their partials of its own heads."""
    heads, shape, rows = case.layout.heads(case.shape), case.shape, case.workload.new_tokens
    per_head = shape.head_dim * shape.dtype.itemsize + (4 if operation == "combine" else 0)
    return (case.layout.dcp - 1) * rows * heads.query * per_head


def fit_all(found: Sequence[Reading]) -> list[CollectiveModel]:
    """Fit a model to each operation of each exchange that was measured at enough sizes, at the largest dcp that was."""
    groups: dict[tuple[str, ExchangeName], list[Reading]] = defaultdict(list)
    for reading in found:
        groups[reading.operation, reading.exchange].append(reading)
    models = []
    for group in groups.values():
        most = max(reading.dcp for reading in group)
        model = fit([reading for reading in group if reading.dcp == most])
        models += [model] if model else []
    return models


def fit(found: Sequence[Reading]) -> CollectiveModel | None:
    """Fit one operation of one exchange at one dcp; None for fewer than FEWEST sizes.

    Squares of relative errors are least, so that a small message counts as much as a large one. The errors stated are
    those of predicting each size from the others.
    """
    times = _by_size(found)
    if len(times) < FEWEST:
        return None
    first = found[0]
    latency, per_byte = _line(times)
    errors = []
    for size, time_us in times.items():
        others = _line({other: value for other, value in times.items() if other != size})
        errors.append(abs(others[0] + others[1] * size - time_us) / time_us)
    rate = 1 / per_byte if per_byte > 0 else float("inf")
    return CollectiveModel(
        first.operation, first.exchange, first.dcp, latency, rate, len(times), max(errors), fmean(errors)
    )


def _by_size(found: Sequence[Reading]) -> Mapping[int, float]:
    """Return the fastest median of each size: kernels and batches beside it do not change what is sent."""
    times: dict[int, float] = {}
    for reading in found:
        median = reading.time_us.median
        times[reading.wire_bytes] = min(times.get(reading.wire_bytes, median), median)
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
