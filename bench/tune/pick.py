"""From trials to profiles: for each batch the best median, unless the default is as good. Standard library only."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple

from bench.entry import MAX_ENTRIES, Candidate, Entry, Geometry, engine_defaults
from bench.errors import UsageError
from bench.nearest import leave_each_out
from bench.profile import Profile
from bench.record import Environment, Label, Measured, Trial
from dcp_core.settings import Case, ExchangeName, KernelName, Settings, canonical
from dcp_core.shapes import Workload


def check_size(cases: Iterable[Case]) -> None:
    """Refuse cases of more batches than a profile holds, before any is measured.

    Raises:
        UsageError: saying how many batches of which geometry there are.
    """
    places: dict[Geometry, set[_Place]] = defaultdict(set)
    for case in cases:
        label = Label.SIMULATED if case.settings.exchange is ExchangeName.LOOPBACK else Label.MEASURED
        place = _Place(case.layout.dcp, case.layout.interleave, case.workload, label)
        places[Geometry.of(case)].add(place)
    for geometry, found in places.items():
        if len(found) > MAX_ENTRIES:
            raise UsageError(
                f"{len(found)} batches of {geometry} are more than the {MAX_ENTRIES} that a profile holds: "
                f"tune fewer, or run 'dcpbench sweep', which makes no profile"
            )


class _Timing(NamedTuple):
    """A measured trial beside its outcome."""

    trial: Trial
    outcome: Measured


class _Place(NamedTuple):
    """What an entry is about: tp is not in it, since ranks of the same geometry run the same step."""

    dcp: int
    interleave: int
    workload: Workload
    label: Label


def pick(trials: Iterable[Trial]) -> tuple[Profile, ...]:
    """Build a profile for each geometry and each machine whose hard fields agree.

    Only measured and simulated trials count, and the two never mix; nor do timers, cold and warm, or protocols: where
    a batch was measured in several ways, the newest protocol, cold, and with most candidates is the one published. Of a
    case measured twice the later counts. What a simulation cannot time, the exchange, is published as the default's.

    Returns:
        The profiles, that with the newest trial last: of two with one file name it is the one to keep.
    """
    machines: dict[tuple[Geometry, tuple[tuple[str, str], ...]], list[_Timing]] = defaultdict(list)
    for trial in sorted(trials, key=lambda one: one.time):
        outcome = trial.outcome
        if isinstance(outcome, Measured) and outcome.label is not Label.MODELLED and _tells(trial.case):
            machine = Geometry.of(trial.case), tuple(sorted(trial.environment.hard.items()))
            machines[machine].append(_Timing(trial, outcome))
    ordered = sorted(machines.items(), key=lambda item: item[1][-1].trial.time)
    return tuple(_profile(geometry, timings) for (geometry, _), timings in ordered)


def _tells(case: Case) -> bool:
    """Tell whether a case's settings are all its own: of two that run the same timed work only one is a candidate."""
    return case.settings == canonical(case.settings, case.layout, case.workload)


def _profile(geometry: Geometry, timings: Sequence[_Timing]) -> Profile:
    environment = timings[-1].trial.environment
    places: dict[_Place, list[_Timing]] = defaultdict(list)
    for timing in timings:
        case = timing.trial.case
        places[_Place(case.layout.dcp, case.layout.interleave, case.workload, timing.outcome.label)].append(timing)
    entries = [_entry(place, _one_way(found), environment) for place, found in places.items()]
    return Profile(geometry, environment, leave_each_out(entries))


def _one_way(timings: Sequence[_Timing]) -> list[_Timing]:
    """Return the timings that were taken in one way, the best represented."""
    ways: dict[tuple[int, bool, str], dict[str, _Timing]] = defaultdict(dict)
    for timing in timings:
        way = timing.trial.protocol, timing.outcome.flushed_bytes > 0, timing.outcome.timer
        ways[way][timing.trial.case.key] = timing
    protocol, cold, timer = max(ways, key=lambda way: (way[:2], len(ways[way]), way[2]))
    return list(ways[protocol, cold, timer].values())


def _entry(place: _Place, timings: Sequence[_Timing], environment: Environment) -> Entry:
    candidates: dict[Settings, Candidate] = {}
    for timing in timings:
        candidate = _candidate(timing)
        known = candidates.get(candidate.settings)
        if known is None or candidate.median_us < known.median_us:
            candidates[candidate.settings] = candidate
    ranked = tuple(sorted(candidates.values(), key=lambda one: (one.median_us, one.case)))
    layout = min((timing.trial.case.layout for timing in timings), key=lambda one: one.tp)
    default = _default(place, timings[0], candidates, environment)
    best = ranked[0]
    in_the_noise = default is not None and default.low_us <= best.high_us
    return Entry(
        layout,
        place.workload,
        place.label,
        timings[0].outcome.timer,
        timings[0].outcome.flushed_bytes > 0,
        ranked,
        settings=default.settings if default is not None and in_the_noise else best.settings,
        default=default.settings if default else None,
    )


def _candidate(timing: _Timing) -> Candidate:
    settings, step = timing.trial.case.settings, timing.outcome.step_us
    if settings.exchange is ExchangeName.LOOPBACK:
        settings = replace(settings, exchange=ExchangeName.AG_RS)  # loopback is no exchange that an engine could run
    median, low, high = (
        float(f"{time_us:.6g}") for time_us in (step.median, step.low, step.high)
    )  # no clock tells more
    return Candidate(settings, median, low, high, timing.trial.case.key, timing.trial.time)


def _default(
    place: _Place, timing: _Timing, candidates: dict[Settings, Candidate], environment: Environment
) -> Candidate | None:
    """Return the engine's default, if it was measured under one of the names that it has on this machine."""
    layout, kernels = timing.trial.case.layout, {settings.kernel for settings in candidates}
    options = engine_defaults(layout, place.workload, environment, reference=kernels == {KernelName.REFERENCE})
    return next((candidates[settings] for settings in options if settings in candidates), None)
