"""Context by concurrency: which dcp is fastest in trials, and from how many requests on it pays. Standard library only."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import NamedTuple, TypeVar

from bench.collective import CollectiveModel, fit_all, readings
from bench.predict import modelled
from bench.recommend.decision import NOTHING, Decision, Exchange, Limits, Option, Origin, Part, break_even_requests
from bench.recommend.steptime import Span, StepTime
from bench.record import Label, Measured, Trial, timed_alike
from dcp_core.settings import Case, ExchangeName
from dcp_core.shapes import ModelShape, Workload

EXCHANGES = (ExchangeName.AG_RS, ExchangeName.A2A, ExchangeName.DIRECT)
LEAST_CHUNK = 128
"""New tokens of a request from which on it is a chunk of a prompt; between one and so many it is a drafted step."""


class Phase(StrEnum):
    """What the batches of a map do."""

    DECODE = "decode"
    DRAFTED = "drafted decode"
    CHUNKS = "chunked prefill"

    @classmethod
    def of(cls, workload: Workload) -> Phase:
        """Return what a batch does, by its longest request."""
        if workload.is_decode:
            return cls.DECODE
        return cls.CHUNKS if max(workload.new_lens) >= LEAST_CHUNK else cls.DRAFTED


class Row(NamedTuple):
    """What stays alike along a row: requests, and new tokens of each."""

    new: int
    requests: int


class Deployment(NamedTuple):
    """A model on so many GPUs of one kind: what runs with one dcp or another. ``machine``: the hard fields of the fingerprint."""

    shape: ModelShape
    tp: int
    machine: tuple[tuple[str, str], ...]

    @classmethod
    def of(cls, trial: Trial) -> Deployment:
        """Return where a trial belongs."""
        return cls(trial.case.shape, trial.case.layout.tp, tuple(sorted(trial.environment.hard.items())))

    @property
    def device(self) -> str:
        """The name of its GPUs."""
        return dict(self.machine).get("device_name", "an unknown device")


class Subject(NamedTuple):
    """What a map is of."""

    deployment: Deployment
    phase: Phase

    @property
    def shape(self) -> ModelShape:
        """Of its model."""
        return self.deployment.shape

    @property
    def tp(self) -> int:
        """Its GPUs."""
        return self.deployment.tp


_Key = TypeVar("_Key")
_Place = TypeVar("_Place")


@dataclass(frozen=True, slots=True)
class Map:
    """The decisions of one subject by row and context, those with dcp 1 and another size beside it.

    Args:
        trials: that they were read off.
    """

    subject: Subject
    cells: Mapping[tuple[Row, int], Decision]
    trials: tuple[Trial, ...]

    @property
    def contexts(self) -> list[int]:
        """Cached tokens, ascending."""
        return sorted({context for _, context in self.cells})

    @property
    def rows(self) -> list[Row]:
        """The rows, ascending."""
        return sorted({row for row, _ in self.cells})

    def break_even(self, context: int, new: int = 1) -> tuple[int | None, int | None]:
        """Return from how many requests of so many new tokens on some larger size beats dcp 1 at a context.

        See ``break_even_requests``.
        """
        column = ((row.requests, self.cells.get((row, context))) for row in self.rows if row.new == new)
        return break_even_requests((requests, decision) for requests, decision in column if decision)


def maps_of(trials: Iterable[Trial]) -> list[Map]:
    """Return a map of each model, tp, machine and phase for which dcp 1 and another legal size were measured or simulated.

    Of trials timed in several ways those of the commonest have a place (see ``timed_alike``); all tell of exchanges, since
    messages are warm in a step, having just been made, whatever was flushed before it.
    """
    found = [
        Map(
            subject,
            {place: decision for place, (decision, _) in cells.items()},
            tuple(trial for _, group in cells.values() for trial in group),
        )
        for subject, cells in _decided(trials, _place).items()
    ]
    return sorted(found, key=lambda one: _order(one.subject.deployment, list(Phase).index(one.subject.phase)))


def unlike_of(trials: Iterable[Trial]) -> dict[Deployment, dict[Workload, Decision]]:
    """Return the decisions of batches of unlike requests, which have a place on no map; trials count as in ``maps_of``."""
    return {
        deployment: {workload: decision for workload, (decision, _) in cells.items()}
        for deployment, cells in _decided(trials, _unlike).items()
    }


def batches_of(maps: Iterable[Map], unlike: Mapping[Deployment, Mapping[Workload, Decision]]) -> Counter[Deployment]:
    """Return how many batches were decided of each deployment: those of its maps, and those of unlike requests."""
    found = Counter({deployment: len(decisions) for deployment, decisions in unlike.items()})
    for one in maps:
        found[one.subject.deployment] += len(one.cells)
    return found


def _order(one: Deployment, phase: int) -> tuple[object, ...]:
    return one.shape.name, one.tp, phase, one.machine


def _decided(
    trials: Iterable[Trial], place_of: Callable[[Trial], tuple[_Key, _Place] | None]
) -> dict[_Key, dict[_Place, tuple[Decision, list[Trial]]]]:
    """Return the decision of each place, and what it was read off; places that have none are left out."""
    everything = list(trials)
    models = fit_all(readings(everything))
    groups: dict[tuple[_Key, _Place], list[Trial]] = defaultdict(list)
    for trial in timed_alike(everything):
        where = place_of(trial) if isinstance(trial.outcome, Measured) and is_served(trial.case) else None
        if where is not None:
            groups[where].append(trial)
    found: dict[_Key, dict[_Place, tuple[Decision, list[Trial]]]] = defaultdict(dict)
    for (key, place), group in groups.items():
        if decision := _decision(group, models):
            found[key][place] = decision, group
    return dict(found)


def is_served(case: Case) -> bool:
    """Tell whether a server runs such a layout."""
    return not case.synthetic and case.layout.canonical.interleave == 1


def _place(trial: Trial) -> tuple[Subject, tuple[Row, int]] | None:
    """Return where a trial stands on a map: None for a batch of unlike requests."""
    workload = trial.case.workload
    if len(set(workload.requests)) > 1:
        return None
    request = workload.requests[0]
    subject = Subject(Deployment.of(trial), Phase.of(workload))
    return subject, (Row(request.new, len(workload)), rounded(request.context))


def _unlike(trial: Trial) -> tuple[Deployment, Workload] | None:
    workload = trial.case.workload
    return (Deployment.of(trial), workload) if len(set(workload.requests)) > 1 else None


def rounded(context: int) -> int:
    """Return a context as people say it: that of 16q1s32k is 32k as well."""
    nearest = round(context / 1024) * 1024
    return nearest if abs(context - nearest) <= context // 100 else context


def _decision(trials: Sequence[Trial], models: Sequence[CollectiveModel]) -> Decision | None:
    """Compare the fastest of each dcp size; None if dcp 1 or all others are missing."""
    options = [option for _, option in sorted(_options(trials, models).items())]
    return Decision(tuple(options)) if len(options) > 1 and options[0].layout.dcp == 1 else None


def _options(trials: Sequence[Trial], models: Sequence[CollectiveModel]) -> dict[int, Option]:
    """Return the fastest of each dcp size: between real ranks if any was, else modelled, else bracketed."""
    found: dict[int, tuple[int, float, Option]] = {}
    for trial in trials:
        for rank, option in _known(trial, models):
            dcp, median = option.layout.dcp, option.span.median_us
            if dcp not in found or (rank, median) < found[dcp][:2]:
                found[dcp] = (rank, median, option)
    return {dcp: option for dcp, (_, _, option) in found.items()}


def _known(trial: Trial, models: Sequence[CollectiveModel]) -> list[tuple[int, Option]]:
    """Return what is known of a trial's step, each with how much it is to be preferred: measured, modelled, bracketed."""
    outcome = trial.outcome
    if not isinstance(outcome, Measured):
        return []
    if outcome.exchange_timed or trial.case.layout.dcp == 1:
        origin = Origin.MEASURED if trial.case.layout.dcp > 1 else Origin.NONE
        return [(0, _option(trial, outcome, Exchange(NOTHING, origin, 0), timed=True))]
    told = [modelled(trial, exchange, models) for exchange in EXCHANGES] if models else []
    sums = [(one, one.outcome) for one in told if isinstance(one, Trial)]
    options = [
        (1, _option(one, total, Exchange(NOTHING, Origin.MODELLED, 0), timed=True))
        for one, total in sums
        if isinstance(total, Measured)
    ]
    if options:
        return options
    case = replace(trial.case, settings=replace(trial.case.settings, exchange=ExchangeName.AG_RS))
    exchange = Limits(None, trial.environment.hard.get("device_name", "")).of(case)
    return [(2, _option(trial, outcome, exchange, timed=False))]


def _option(trial: Trial, outcome: Measured, exchange: Exchange, *, timed: bool) -> Option:
    case, step = trial.case, outcome.step_us
    span = Span(step.median, step.low, step.high)
    label = Label.MEASURED if case.layout.dcp == 1 else outcome.label
    one = StepTime(case.workload, case.layout, case.settings, span, label, (case.workload,), 0.0, timed)
    return Option(case.layout, (Part(one, exchange, 1.0),))
