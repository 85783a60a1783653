"""A step between ranks that nobody measured: its simulation, plus its exchange as modelled. Standard library only.

A model of exchanges belongs to the machine and the way of timing that it was fitted on; it is asked for no other.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from bench.collective import (
    OPERATIONS,
    Bracket,
    CollectiveModel,
    Kind,
    Reading,
    Row,
    Way,
    fit_all,
    model_for,
    readings,
)
from bench.record import Label, Measured, Trial
from bench.times import StageTime, Summary
from dcp_core.cost import step_work
from dcp_core.settings import Case, ExchangeName, canonical

CLOSE = 0.1
"""A prediction as near to what was measured is called close."""


@dataclass(frozen=True, slots=True)
class Compared:
    """A step between real ranks, and what simulation and model say of it.

    Args:
        measured, modelled: the same case; the model is fitted without messages of the sizes it is asked for.
        stages: by name, (modelled, measured) medians; gathers and combines of several parts of a batch are added up.
    """

    measured: Trial
    modelled: Trial
    stages: Mapping[str, tuple[float, float]]

    @property
    def error(self) -> float:
        """Of the whole step, relative to what was measured; positive if too much was predicted."""
        return relative(_step_us(self.modelled), _step_us(self.measured))

    @property
    def is_close(self) -> bool:
        """True within CLOSE."""
        return abs(self.error) <= CLOSE


def relative(modelled_us: float, measured_us: float) -> float:
    """Return how far a modelled time is off a measured one; infinite if nothing was measured."""
    return modelled_us / measured_us - 1 if measured_us else float("inf")


def modelled(simulated: Trial, exchange: ExchangeName, models: Sequence[CollectiveModel]) -> Trial | str:
    """Return the trial that a simulated one would be with an exchange between real ranks, labelled ``modelled``.

    Its times are brackets: medians between low and high, not samples. A step of ``overlap`` is not modelled: how much of the
    exchange hides behind attention is what would have to be known.

    Args:
        models: of any machines; those of the simulated trial's own are asked.

    Returns:
        The trial, or why there is none.
    """
    outcome = simulated.outcome
    if not isinstance(outcome, Measured) or outcome.label is not Label.SIMULATED:
        return "only a simulated trial lacks its exchange"
    case = with_exchange(simulated.case, exchange)
    if case.settings.overlap:
        return "overlap: how much of the exchange hides behind attention is not modelled"
    kind = Kind(Way.of(simulated, outcome), exchange, case.layout.dcp, Row.of(case))
    stages, sources = [], []
    for operation, tokens in messages(case):
        model = model_for(models, operation, kind)
        if model is None:
            return f"no {operation} of {exchange} was measured for rows of {kind.row} on this machine and fitted"
        size = kind.row.wire_bytes(operation, kind.dcp, tokens)
        bracket = model.at(kind.dcp, size)
        stages.append(StageTime(operation, _summary(bracket, outcome.step_us.count), communicates=True))
        sources.append((model, model.error(kind.dcp, size)))
    own = tuple(stage for stage in outcome.stages if not stage.communicates)
    total = replace(
        outcome,
        label=Label.MODELLED,
        step_us=_sum([outcome.step_us, *(stage.device_us for stage in stages)]),
        stages=(
            *(one for one in stages if one.name == OPERATIONS[0]),
            *own,
            *(one for one in stages if one.name == OPERATIONS[1]),
        ),
        rank_samples_us=(),
        race=None,  # what is modelled met nobody
        exchange_timed=True,
        flags=(*outcome.flags, *_flags(sources, kind.dcp)),
    )
    return replace(simulated, case=case, outcome=total, ranks=kind.dcp)


def comparisons(trials: Iterable[Trial]) -> list[Compared]:
    """Compare every step measured between real ranks with its simulation, where both were timed in one way on one machine.

    Steps of ``overlap``, and those that exchange though nothing is cached, have none. The model of an exchange is fitted without
    messages of its size.
    """
    known = list(trials)
    simulated: dict[tuple[str, Way], Trial] = {}
    for trial in known:
        if isinstance(trial.outcome, Measured) and trial.outcome.label is Label.SIMULATED:
            simulated[trial.case.key, Way.of(trial, trial.outcome)] = trial
    found, compared = readings(known), []
    for trial in {trial.key: trial for trial in known}.values():
        outcome, case = trial.outcome, trial.case
        if not isinstance(outcome, Measured) or outcome.label is not Label.MEASURED or case.layout.dcp == 1:
            continue
        twin = simulated.get((with_exchange(case, ExchangeName.LOOPBACK).key, Way.of(trial, outcome)))
        if twin is None or with_exchange(twin.case, case.settings.exchange) != case:
            continue  # of overlap, or of an exchange for nothing, a simulation runs the step without
        prediction = modelled(twin, case.settings.exchange, fit_all(_others(found, case)))
        if isinstance(prediction, Trial):
            compared.append(Compared(trial, prediction, _stages(prediction, trial)))
    return compared


def with_exchange(case: Case, exchange: ExchangeName) -> Case:
    """Return a case with another exchange, its settings canonical as a sweep would have them."""
    settings = replace(case.settings, exchange=exchange)
    return replace(case, settings=canonical(settings, case.layout, case.workload))


def messages(case: Case) -> Iterator[tuple[str, int]]:
    """Yield each operation of a step between ranks with the tokens it is for, in order."""
    row_bytes = Row.of(case).wire_bytes(OPERATIONS[0], case.layout.dcp, 1)
    for work in step_work(case):
        if work.stage in OPERATIONS:
            yield work.stage, work.wire_bytes // row_bytes


def _others(found: Iterable[Reading], case: Case) -> list[Reading]:
    """Leave out readings of messages as large as those of a case."""
    asked = set(messages(case))
    return [reading for reading in found if (reading.operation, reading.tokens) not in asked]


def _stages(prediction: Trial, measured: Trial) -> dict[str, tuple[float, float]]:
    told, seen = _by_name(prediction), _by_name(measured)
    return {name: (told[name], time_us) for name, time_us in seen.items() if name in told}


def _by_name(trial: Trial) -> dict[str, float]:
    """Return each stage's median, those of every part's gather and combine added up."""
    times: dict[str, float] = defaultdict(float)
    if isinstance(trial.outcome, Measured):
        for stage in trial.outcome.stages:
            name = stage.name.rpartition(": ")[2] if stage.communicates else stage.name
            times[name] += stage.device_us.median
    return times


def _step_us(trial: Trial) -> float:
    return trial.outcome.step_us.median if isinstance(trial.outcome, Measured) else 0.0


def _summary(bracket: Bracket, count: int) -> Summary:
    low, high = min(bracket.low_us, bracket.time_us), max(bracket.high_us, bracket.time_us)
    return Summary(count, bracket.time_us, low, high, low, low, high, 0.0)


def _sum(parts: Sequence[Summary]) -> Summary:
    low, high = sum(part.low for part in parts), sum(part.high for part in parts)
    middle = sum(part.median for part in parts)
    return Summary(parts[0].count, middle, min(low, middle), max(high, middle), min(low, middle), low, high, 0.0)


def _flags(sources: Iterable[tuple[CollectiveModel, float]], dcp: int) -> Iterator[str]:
    for model, error in dict.fromkeys(sources):
        beyond = f" at dcp {model.kind.dcp}, bracketed beyond" if model.kind.dcp < dcp else ""
        yield f"{model.operation} modelled: {model.kind.exchange} was met within {error:.0%} on sizes left out{beyond}"
