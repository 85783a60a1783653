"""What to measure next to find the best settings for one batch, and what was found: decided from trials, and nothing else.

Screen every candidate once; race the best against one another and the engine's default; confirm the winner in a fresh
process. A search keeps no state: it reads what was measured, so that going on after an interruption is reading the store.
Standard library only.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from statistics import median
from typing import Any

from bench.record import VISITS, Failed, Heat, Measured, Skipped, Trial
from bench.verdict import ALPHA, Comparison, Verdict, compare, rounds_of
from dcp_core.settings import Case, IllegalSettings, Settings, canonical, is_legal

REPEATS = 3
"""Samples of a visit: its median ignores one that was disturbed."""
ROUNDS = 10
"""Of one race: with its visits and their samples about the most that a trial keeps of each case."""
MOST_ROUNDS = 80
"""Of one comparison, over several races: enough to see 1 % in noise of 1 %."""
SEATS = 16
"""Cases held open at once while screening."""
FINALISTS = 8
"""Raced beside the default."""
REACH = 1.2
"""A candidate slower than the best by more in the screening is not raced."""
SCREEN_ALL = 24
"""Candidates that are all screened. Of more, those next to the best ones found are, until nothing next to them is left."""
WIDTH, ALIKE = 2, 1.02
"""The best ones whose neighbours are screened: so many, if they are no slower than the best by more …"""
PATH_REACH = 1.3
"""… and the best of each path that is no slower by more than this."""


@dataclass(frozen=True, slots=True)
class Batch:
    """The candidates for one batch on one layout.

    Args:
        candidates: legal, each a step of its own; the default among them.
        default: what the engine runs; None if that cannot run here.
        least_us: the time that a candidate cannot beat, where that is known.

    Attributes:
        places: of the candidates in their order.
    """

    candidates: tuple[Case, ...]
    default: Case | None
    least_us: Mapping[Case, float] = field(default_factory=dict)
    places: dict[Case, int] = field(init=False, repr=False, compare=False)
    _values: dict[str, list[object]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.candidates or (self.default and self.default not in self.candidates):
            raise ValueError("a batch is searched among candidates, its default one of them")
        values = {
            setting.name: list(dict.fromkeys(getattr(case.settings, setting.name) for case in self.candidates))
            for setting in fields(Settings)
        }
        object.__setattr__(self, "places", {case: place for place, case in enumerate(self.candidates)})
        object.__setattr__(self, "_values", values)

    def neighbours(self, case: Case) -> list[Case]:
        """Return the candidates that one change of settings leads to, in the order of the candidates.

        Where a pass runs the main one's kernel, changing the main one alone is one change too.
        """
        found = set()
        for base in (case.settings, _spelt_out(case.settings)):
            for name, values in self._values.items():
                for value in values:
                    settings = changed(base, name, value)
                    settings = settings and canonical(settings, case.layout, case.workload)
                    if settings and is_legal(settings, case.layout, case.workload):
                        found.add(replace(case, settings=settings))
        return sorted(found & self.places.keys() - {case}, key=self.places.__getitem__)


@dataclass(frozen=True, slots=True)
class Step:
    """A race to run. ``whole``: time planning and every stage of each case too."""

    heat: Heat
    cases: tuple[Case, ...]
    rounds: int
    whole: bool = False


@dataclass(frozen=True, slots=True)
class Finding:
    """What a search found, so far or in the end.

    Args:
        chosen: the winner if it was shown to beat the default in a fresh process, else the default; None if nothing runs.
        comparison: of the winner with the default; None if they are one, or there is no default.
        runner_up: the best of the others, as ``(case, its time over the chosen one's)``; None if it was alone.
        heat: how far the search came; None if nothing was measured.
        screened: of how many ``candidates``.
        trials, seconds: spent on it.
    """

    chosen: Case | None
    default: Case | None
    comparison: Comparison | None
    runner_up: tuple[Case, float] | None
    heat: Heat | None
    screened: int
    candidates: int
    trials: int
    seconds: float
    done: bool


def next_step(batch: Batch, trials: Sequence[Trial]) -> Step | None:
    """Return the race to run after these trials of a batch; None if there is nothing left to find out."""
    known = Known(batch, trials)
    return _screen(known) or _race(known) or _confirm(known)


def first_step(batch: Batch, trials: Sequence[Trial]) -> Step | None:
    """Return the race that gives a coarse picture: the default beside the likeliest settings of each path."""
    known = Known(batch, trials)
    return known.race_of([case for case in _likeliest(batch) if known.wants(case)])


def found(batch: Batch, trials: Sequence[Trial]) -> Finding:
    """Return what these trials of a batch say."""
    known = Known(batch, trials)
    step = _screen(known) or _race(known)
    winner = None if step else known.winner
    comparison = None
    if winner and batch.default and winner != batch.default:
        comparison = known.versus(winner, batch.default, Heat.CONFIRMED)
    beaten = comparison is not None and comparison.verdict is Verdict.FASTER
    default = batch.default if batch.default in known.times else None
    chosen = winner if beaten or default is None else default
    chosen = chosen or (min(known.ratios, key=known.ratios.__getitem__) if known.ratios else None)
    others = {case: known.beside(case, chosen) for case in known.ratios if chosen and case != chosen}
    second = min(others, key=others.__getitem__, default=None)
    heats = [trial.outcome.race.heat for trial in trials if isinstance(trial.outcome, Measured) and trial.outcome.race]
    return Finding(
        chosen,
        default,
        comparison,
        (second, others[second]) if second else None,
        max(heats, key=list(Heat).index, default=Heat.SCREENED if known.times else None),
        len(known.times),
        len(batch.candidates),
        len(trials),
        sum(trial.seconds for trial in trials),
        done=not (step or _confirm(known)),
    )


def paired(one: Iterable[Trial], other: Iterable[Trial], heat: Heat) -> Comparison | None:
    """Compare two cases over every race of a kind in which both were timed; None if there is none."""
    return _compared(_rounds(one, heat), _rounds(other, heat))


class Known:
    """What trials say of a batch's candidates.

    Attributes:
        times: the measured ones with their trials, all timed in one way.
        refused: those that cannot run, or failed.
        ratios: each measured candidate's time over the reference's, as the screening saw it.
    """

    def __init__(self, batch: Batch, trials: Sequence[Trial]) -> None:
        self.batch = batch
        self.times: dict[Case, list[Trial]] = {}
        self._rounds: dict[tuple[Case, Heat], dict[str, list[float]]] = {}
        self.refused: set[Case] = set()
        timers = {trial.case: trial.outcome.timer for trial in trials if isinstance(trial.outcome, Measured)}
        timer = timers.get(batch.default) if batch.default else None
        timer = timer or next(iter(timers.values()), None)
        for trial in _complete(trials):
            if trial.case not in batch.places:
                continue
            if isinstance(trial.outcome, Measured) and trial.outcome.timer == timer:
                self.times.setdefault(trial.case, []).append(trial)
                self.refused.discard(trial.case)
            elif isinstance(trial.outcome, Failed | Skipped | Measured):
                # One timed by another timer runs, and yet cannot be compared.
                self.refused.add(trial.case)
                self.times.pop(trial.case, None)
        order = [*([batch.default] if batch.default else []), *batch.candidates]
        self.reference = next((case for case in order if case not in self.refused), None)
        self.ratios = {case: self._ratio(case) for case in self.times}

    def wants(self, case: Case) -> bool:
        """Tell whether a candidate is to be screened yet: not known, and not hopeless."""
        return case not in self.times and case not in self.refused and not self._is_hopeless(case)

    def race_of(self, cases: Sequence[Case]) -> Step | None:
        """Return the screening of the first of some cases beside the reference; None if there are none."""
        if not cases or self.reference is None:
            return None
        others = [case for case in cases if case != self.reference][: SEATS - 1]
        return Step(Heat.SCREENED, (self.reference, *others), rounds=1)

    def versus(self, one: Case, other: Case, heat: Heat) -> Comparison | None:
        """Compare two candidates over their races of a kind."""
        return _compared(self._of(one, heat), self._of(other, heat))

    def beside(self, one: Case, other: Case) -> float:
        """Return a measured candidate's time over another's, as the races saw it, or else the screening."""
        seen = self.versus(one, other, Heat.RACED)
        return seen.ratio if seen else self.ratios[one] / self.ratios[other]

    @property
    def roots(self) -> list[Case]:
        """The best of the screening, and the best of each path: what is next to them may be better still."""
        ordered = sorted(self.ratios, key=self.ratios.__getitem__)
        of_paths = {case.settings.path: case for case in reversed(ordered)}.values()
        alike = [case for case in ordered[:WIDTH] if self.ratios[case] <= ALIKE * self.ratios[ordered[0]]]
        hopeful = [case for case in of_paths if self.ratios[case] <= PATH_REACH * self.ratios[ordered[0]]]
        return list(dict.fromkeys([*alike, *hopeful]))

    @property
    def finalists(self) -> tuple[Case, ...]:
        """The best of the screening, and the default."""
        best = sorted(self.ratios, key=self.ratios.__getitem__)[:FINALISTS]
        near = [case for case in best if self.ratios[case] <= REACH * self.ratios[best[0]]]
        default = self.batch.default
        return tuple(dict.fromkeys([*([default] if default in self.times else []), *near]))

    @property
    def is_a_duel(self) -> bool:
        """True if only one candidate is left beside the default: confirming it is all the race there need be."""
        return len(self.finalists) == 2 and self.finalists[0] == self.batch.default

    @property
    def racing(self) -> tuple[Case, ...]:
        """The finalists that no race has shown to be slower than the best of them, that one first."""
        last = self._last_race()
        still = [case for case in self.finalists if not last or case in last]
        if not last or len(still) < 2:
            return tuple(still)
        leader = self._leader(still)
        against = {case: self.versus(case, leader, Heat.RACED) for case in still if case != leader}
        kept = [case for case, seen in against.items() if not (seen and seen.p < ALPHA and seen.ratio > 1)]
        return leader, *kept

    @property
    def winner(self) -> Case | None:
        """The best of the races: of those that cannot be told apart the default, else the one most like it."""
        racing, default = self.racing, self.batch.default
        if not racing or default is None:
            return racing[0] if racing else None
        if self.is_a_duel:
            return racing[-1]
        leader = racing[0]
        if default in racing:
            seen = self.versus(leader, default, Heat.RACED) if leader != default else None
            return leader if seen and seen.verdict is Verdict.FASTER else default
        equal = [case for case in racing if case == leader or self._is_same(case, leader)]
        return min(equal, key=lambda case: len(list(case.settings.differences(default.settings))))

    def is_worn_out(self, cases: Iterable[Case], heat: Heat) -> bool:
        """Tell whether cases raced as often as pays, or as long as their policy samples a case."""
        for case in cases:
            rounds = [time for times in self._of(case, heat).values() for time in times]
            raced_s = VISITS * REPEATS * sum(rounds) * 1e-6
            if len(rounds) >= MOST_ROUNDS or (rounds and raced_s >= self.times[case][-1].policy.max_seconds):
                return True
        return False

    def _of(self, case: Case, heat: Heat) -> dict[str, list[float]]:
        if (case, heat) not in self._rounds:
            self._rounds[case, heat] = _rounds(self.times.get(case, ()), heat)
        return self._rounds[case, heat]

    def _is_same(self, case: Case, leader: Case) -> bool:
        seen = self.versus(case, leader, Heat.RACED)
        return seen is not None and seen.verdict is Verdict.SAME

    def _last_race(self) -> tuple[Case, ...]:
        """Return who took part in the last race, of those that can still run."""
        races: dict[str, list[Case]] = defaultdict(list)
        for case in self.times:
            for name in self._of(case, Heat.RACED):
                races[name].append(case)
        # Whoever is dropped stays away, so that the last race is the smallest: of equal ones any will do.
        newest = min(races, key=lambda name: len(races[name]), default="")
        return tuple(races.get(newest, ()))

    def _leader(self, cases: Sequence[Case]) -> Case:
        """Return the case with the least median time relative to the first's, over their races."""
        against = {case: self.versus(case, cases[0], Heat.RACED) for case in cases[1:]}
        ratios = {cases[0]: 1.0} | {case: seen.ratio for case, seen in against.items() if seen}
        return min(ratios, key=ratios.__getitem__)

    def _is_hopeless(self, case: Case) -> bool:
        """Tell whether a candidate cannot beat the best known one: its bound lies above that one's interval."""
        if case == self.batch.default or not self.ratios:
            return False
        best = min(self.ratios, key=self.ratios.__getitem__)
        outcome = self.times[best][-1].outcome
        return isinstance(outcome, Measured) and self.batch.least_us.get(case, 0.0) > outcome.step_us.high

    def _ratio(self, case: Case) -> float:
        """Return a candidate's time over the reference's: from the races of both, else from their medians."""
        if case == self.reference or self.reference not in self.times:
            return 1.0 if case == self.reference else _median_us(self.times[case])
        seen = self.versus(case, self.reference, Heat.SCREENED)
        return seen.ratio if seen else _median_us(self.times[case]) / _median_us(self.times[self.reference])


def _screen(known: Known) -> Step | None:
    """Screen the likeliest first, then all; of many the neighbours of the best, as long as they lead on."""
    batch = known.batch
    unseen = [case for case in _likeliest(batch) if known.wants(case)]
    if not unseen and len(batch.candidates) <= SCREEN_ALL:
        unseen = [case for case in batch.candidates if known.wants(case)]
    elif not unseen:
        unseen = [case for one in known.roots for case in batch.neighbours(one) if known.wants(case)]
        unseen = list(dict.fromkeys(unseen))
    # Those with one cache beside one another: laying it out is what a case costs most.
    unseen.sort(key=lambda case: (case.settings.page_size, case.settings.kv_layout))
    return known.race_of(unseen)


def _race(known: Known) -> Step | None:
    racing = known.racing
    if len(racing) < 2 or known.is_a_duel or known.is_worn_out(racing, Heat.RACED):
        return None
    verdicts = [known.versus(case, racing[0], Heat.RACED) for case in racing[1:]]
    if all(seen is not None and seen.verdict is Verdict.SAME for seen in verdicts):
        return None
    return Step(Heat.RACED, racing, ROUNDS)


def _confirm(known: Known) -> Step | None:
    """Prove the winner against the default; where the default itself won, or there is none, look at every stage of it."""
    winner, default = known.winner, known.batch.default
    if winner is None:
        return None
    pair = (winner,) if default in (None, winner) or default not in known.times else (default, winner)
    seen = known.versus(winner, pair[0], Heat.CONFIRMED)
    enough = seen and (seen.verdict is not Verdict.AMBIGUOUS or known.is_worn_out(pair, Heat.CONFIRMED))
    if enough:
        return None
    return Step(Heat.CONFIRMED, pair, ROUNDS, whole=seen is None)


def _likeliest(batch: Batch) -> Iterator[Case]:
    """Yield the default, then of each path the candidate most like it."""
    if batch.default:
        yield batch.default
    first = (batch.default or batch.candidates[0]).settings
    paths: dict[str, list[Case]] = defaultdict(list)
    for case in batch.candidates:
        paths[case.settings.path].append(case)
    for cases in paths.values():
        yield min(cases, key=lambda case: _distance(case.settings, first))


def _spelt_out(settings: Settings) -> Settings:
    """Name the kernel of every pass, where settings may."""
    spelt = changed(settings, "decode_kernel", settings.kernel_for_decode) or settings
    return changed(spelt, "new_kernel", settings.kernel_for_new) or spelt


def changed(settings: Settings, name: str, value: object) -> Settings | None:
    """Return settings with one changed; None if they cannot go together."""
    new: dict[str, Any] = {name: value}
    try:
        return replace(settings, **new)
    except IllegalSettings:
        return None


def _distance(one: Settings, other: Settings) -> int:
    return sum(1 for _ in one.differences(other))


def _rounds(trials: Iterable[Trial], heat: Heat) -> dict[str, list[float]]:
    """Return a time for each round of every race of a kind, slowest rank, by the race's name."""
    found: dict[str, list[float]] = {}
    for trial in trials:
        outcome = trial.outcome
        if isinstance(outcome, Measured) and outcome.race and outcome.race.heat is heat:
            slowest = [max(times) for times in zip(*outcome.rank_samples_us, strict=True)]
            found[outcome.race.name] = rounds_of(slowest, outcome.race.repeats)
    return found


def _complete(trials: Sequence[Trial]) -> Iterator[Trial]:
    """Yield all trials but those of races that were interrupted while they were written."""
    races = [trial.outcome.race if isinstance(trial.outcome, Measured) else None for trial in trials]
    written = Counter(race.name for race in races if race)
    for trial, race in zip(trials, races, strict=True):
        if race is None or written[race.name] == race.cases:
            yield trial


def _compared(one: Mapping[str, list[float]], other: Mapping[str, list[float]]) -> Comparison | None:
    shared = [name for name in one if name in other]
    return compare(*([time for name in shared for time in rounds[name]] for rounds in (one, other))) if shared else None


def _median_us(trials: Sequence[Trial]) -> float:
    return median(trial.outcome.step_us.median for trial in trials if isinstance(trial.outcome, Measured))
