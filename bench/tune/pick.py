"""From trials to profiles: for each batch what was shown to beat the engine's default, else the default.

Where a search raced candidates, its confirmation decides; where each was measured by itself, what such trials tell apart does.
Standard library only.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple

from bench.errors import UsageError
from bench.lone import Lone
from bench.profile.entry import MAX_ENTRIES, Candidate, Entry, Geometry, Paired, Ratio, engine_defaults
from bench.profile.nearest import leave_each_out
from bench.profile.profile import Profile
from bench.record import Environment, Heat, Label, Measured, Trial, latest
from bench.tune.known import paired
from bench.verdict import Verdict
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

    @property
    def median_us(self) -> float:
        return self.outcome.step_us.median


class _Place(NamedTuple):
    """What an entry is about: tp is not in it, since ranks of the same geometry run the same step."""

    dcp: int
    interleave: int
    workload: Workload
    label: Label


def pick(trials: Iterable[Trial]) -> tuple[Profile, ...]:
    """Build a profile for each geometry and each machine whose hard fields agree.

    Only measured and simulated trials count, and the two never mix; nor do timers, cold and warm, or protocols: where
    a batch was measured in several ways, the newest protocol, cold, and with most candidates is the one published; between
    ranks that were linked otherwise, or libraries set otherwise, only what is like the newest. Of a
    case measured twice the later counts, but one measured by itself before one that only raced. What a simulation cannot
    time, the exchange, is published as the default's.

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
    """Return the timings that were taken in one way, the best represented, by ranks that are linked as the newest's."""
    newest = timings[-1].trial
    timings = [
        one for one in timings if not newest.environment.differences(one.trial.environment, ranks=one.trial.ranks)
    ]
    ways: dict[tuple[int, bool, str], list[_Timing]] = defaultdict(list)
    for timing in timings:
        ways[timing.trial.protocol, timing.outcome.flushed_bytes > 0, timing.outcome.timer].append(timing)
    cases = {way: len({timing.trial.case.key for timing in taken}) for way, taken in ways.items()}
    return ways[max(ways, key=lambda way: (way[:2], cases[way], way[2]))]


def _entry(place: _Place, timings: Sequence[_Timing], environment: Environment) -> Entry:
    candidates = {settings: _candidate(timing) for settings, timing in _fastest(timings).items()}
    ranked = tuple(sorted(candidates.values(), key=lambda one: (one.median_us, one.case)))
    layout = min((timing.trial.case.layout for timing in timings), key=lambda one: one.tp)
    default = _default(place, timings[0], candidates, environment)
    chosen = _chosen(timings, ranked, default)
    return Entry(
        layout,
        place.workload,
        place.label,
        timings[0].outcome.timer,
        timings[0].outcome.flushed_bytes > 0,
        ranked,
        settings=chosen,
        default=default.settings if default else None,
        paired=_paired(timings, chosen, default),
    )


def _fastest(timings: Iterable[_Timing]) -> dict[Settings, _Timing]:
    """Return the timing that counts of all settings; what several cases run alike, the fastest stands for."""
    fastest: dict[Settings, _Timing] = {}
    for trial in latest(timing.trial for timing in timings):
        if isinstance(trial.outcome, Measured):
            timing, settings = _Timing(trial, trial.outcome), _published(trial.case.settings)
            known = fastest.get(settings)
            if known is None or timing.median_us < known.median_us:
                fastest[settings] = timing
    return fastest


def _chosen(timings: Sequence[_Timing], ranked: Sequence[Candidate], default: Candidate | None) -> Settings:
    if default is None:
        return ranked[0].settings
    confirmed = _confirmed(timings, default)
    if confirmed is not None:
        return confirmed
    # A race that was not confirmed proves nothing yet; nor does a difference that is not told apart.
    alone = _fastest(timing for timing in timings if timing.outcome.race is None)
    theirs = Lone.of_step(alone.get(default.settings, _fastest(timings)[default.settings]).trial)
    faster = {settings: timing for settings, timing in alone.items() if Lone.of_step(timing.trial).is_faster(theirs)}
    return min(
        faster,
        key=lambda settings: (faster[settings].median_us, faster[settings].trial.case.key),
        default=default.settings,
    )


def _confirmed(timings: Sequence[_Timing], default: Candidate) -> Settings | None:
    """Return what the last confirmation decided: its candidate if that was faster, else the default; None without one."""
    cases: dict[Settings, list[Trial]] = defaultdict(list)
    for timing in timings:
        if timing.outcome.race and timing.outcome.race.heat is Heat.CONFIRMED:
            cases[_candidate(timing).settings].append(timing.trial)
    theirs = cases.pop(default.settings, [])
    for settings, mine in sorted(cases.items(), key=lambda item: item[1][-1].time, reverse=True):
        comparison = paired(mine, theirs, Heat.CONFIRMED)
        if comparison is not None:
            return settings if comparison.verdict is Verdict.FASTER else default.settings
    return None


def _paired(timings: Sequence[_Timing], chosen: Settings, default: Candidate | None) -> tuple[Paired, ...]:
    """Return what races say of the chosen settings beside the default, and beside the fastest of the others."""
    trials: dict[Settings, list[Trial]] = defaultdict(list)
    for timing in timings:
        if timing.outcome.race:
            trials[_published(timing.trial.case.settings)].append(timing.trial)
    mine = trials.pop(chosen, [])
    ratios: dict[Settings, Ratio] = {}
    for settings, theirs in trials.items():
        seen = paired(mine, theirs, Heat.CONFIRMED) or paired(mine, theirs, Heat.RACED)
        if seen is not None:
            ratios[settings] = Ratio(*(float(f"{ratio:.6g}") for ratio in (seen.ratio, seen.low, seen.high)))
    told = [default.settings] if default and default.settings in ratios else []
    others = [settings for settings in ratios if settings not in told]
    second = sorted(others, key=lambda settings: ratios[settings].value)[-1:]
    return tuple(Paired(settings, ratios[settings]) for settings in (*told, *second))


def _candidate(timing: _Timing) -> Candidate:
    settings, step = _published(timing.trial.case.settings), timing.outcome.step_us
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
    if place.label is Label.SIMULATED:
        options = tuple(
            _published(canonical(replace(one, exchange=ExchangeName.LOOPBACK), layout, place.workload))
            for one in options
        )
    return next((candidates[settings] for settings in options if settings in candidates), None)


def _published(settings: Settings) -> Settings:
    """Return settings with an exchange that an engine could run: a simulation has none, and so publishes the default's."""
    return replace(settings, exchange=ExchangeName.AG_RS) if settings.exchange is ExchangeName.LOOPBACK else settings
