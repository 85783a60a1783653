"""Context by concurrency: which dcp is fastest in trials, and from how many requests on it pays. Standard library only."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import NamedTuple

from bench.collective import CollectiveModel, fit_all, readings
from bench.predict import modelled
from bench.recommend.decision import NOTHING, Decision, Exchange, Limits, Option, Origin, Part, break_even_requests
from bench.recommend.steptime import Span, StepTime
from bench.record import Label, Measured, Trial
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


class Subject(NamedTuple):
    """What a map is of."""

    shape: ModelShape
    tp: int
    phase: Phase


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

    def break_even(self, context: int) -> tuple[int | None, int | None]:
        """Return from how many decodes on some larger size beats dcp 1 at a context; see ``break_even_requests``."""
        column = ((row.requests, self.cells.get((row, context))) for row in self.rows if row.new == 1)
        return break_even_requests((requests, decision) for requests, decision in column if decision)


def maps_of(trials: Iterable[Trial]) -> list[Map]:
    """Return a map of each model, tp and phase for which dcp 1 and another legal size were measured or simulated."""
    known = [trial for trial in trials if isinstance(trial.outcome, Measured)]
    models = fit_all(readings(known))
    groups: dict[Subject, dict[tuple[Row, int], list[Trial]]] = defaultdict(lambda: defaultdict(list))
    for trial in known:
        if (place := _place(trial.case)) is not None:
            subject, row, context = place
            groups[subject][row, context].append(trial)
    found = []
    for subject, cells in groups.items():
        decided = {place: _decision(group, models) for place, group in cells.items()}
        kept = {place: decision for place, decision in decided.items() if decision}
        if kept:
            sources = tuple(trial for place in kept for trial in cells[place])
            found.append(Map(subject, kept, sources))
    return sorted(found, key=lambda one: (one.subject.shape.name, one.subject.tp, list(Phase).index(one.subject.phase)))


def _place(case: Case) -> tuple[Subject, Row, int] | None:
    """Return where a case stands: None for one of unlike requests, or that no server runs."""
    if case.synthetic or case.layout.canonical.interleave > 1 or len(set(case.workload.requests)) > 1:
        return None
    request = case.workload.requests[0]
    subject = Subject(case.shape, case.layout.tp, Phase.of(case.workload))
    return subject, Row(request.new, len(case.workload)), rounded(request.context)


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
