"""What trials say of a batch's candidates: how far each is behind, who still races, who leads. Standard library only."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from statistics import median

from bench.record import VISITS, Failed, Heat, Measured, Skipped, Trial
from bench.tune.batch import Batch, cache_of, distance
from bench.verdict import ALPHA, RESOLUTION_US, Comparison, Verdict, compare, rounds_of
from dcp_core.settings import Case

REPEATS = 3
"""Samples of a visit: its median ignores one that was disturbed."""
MOST_ROUNDS = 80
"""Of one comparison, over several races: enough to see 1 % in noise of 1 %."""
FINALISTS = 8
"""Raced beside the default."""
REACH = 1.2
"""A candidate slower than the best by more in the screening is not raced."""
LEAD = 1.01
"""A best candidate leads no further if all is known around one that is no slower by more."""
PATH_REACH = 1.3
"""Around the best of another path nothing is screened if it is slower than the best by more."""


def paired(one: Iterable[Trial], other: Iterable[Trial], heat: Heat) -> Comparison | None:
    """Compare two cases over every race of a kind in which both were timed; None if there is none."""
    one, other = list(one), list(other)
    return _compared(_rounds(one, heat), _rounds(other, heat), _calls(one))


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

    def versus(self, one: Case, other: Case, heat: Heat) -> Comparison | None:
        """Compare two candidates over their races of a kind."""
        return _compared(self._of(one, heat), self._of(other, heat), _calls(self.times.get(one, ())))

    @property
    def reference_us(self) -> float:
        """The step that all are compared with: the default's, or another's where that cannot run. 0 if it was not timed."""
        return _median_us(self.times[self.reference]) if self.reference in self.times else 0.0

    def beside(self, one: Case, other: Case) -> float:
        """Return a measured candidate's time over another's, as the races saw it, or else the screening."""
        seen = self.versus(one, other, Heat.RACED)
        return seen.ratio if seen else self.ratios[one] / self.ratios[other]

    @property
    def leads(self) -> list[Case]:
        """What to screen next: around the best of the screening, and around the best of each other path on the same cache.

        Around the best only as long as nothing is known all around a case as good: what is left to gain then is little.
        """
        ordered = sorted(self.ratios, key=self.ratios.__getitem__)
        if not ordered:
            return []
        best = ordered[0]
        as_good = (case for case in ordered if self.ratios[case] <= LEAD * self.ratios[best])
        found = self._unseen(best) if all(self._unseen(case) for case in as_good) else []
        of_paths = {case.settings.path: case for case in reversed(ordered)}
        for case in of_paths.values():
            if case != best and self.ratios[case] <= PATH_REACH * self.ratios[best]:
                found += [near for near in self._unseen(case) if cache_of(near) == cache_of(case)]
        return list(dict.fromkeys(found))

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
        return min(equal, key=lambda case: distance(case.settings, default.settings))

    def is_worn_out(self, cases: Iterable[Case], heat: Heat) -> bool:
        """Tell whether cases raced as often as pays, or as long as their policy samples a case."""
        for case in cases:
            rounds = [time for times in self._of(case, heat).values() for time in times]
            raced_s = VISITS * REPEATS * sum(rounds) * 1e-6
            if len(rounds) >= MOST_ROUNDS or (rounds and raced_s >= self.times[case][-1].policy.max_seconds):
                return True
        return False

    def _unseen(self, case: Case) -> list[Case]:
        """Return the candidates one change of settings away that are to be screened yet."""
        return [near for near in self.batch.neighbours(case) if self.wants(near)]

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


def _calls(trials: Iterable[Trial]) -> int:
    """Return how many calls make up a sample of these trials."""
    return next((trial.policy.calls for trial in trials), 1)


def _compared(one: Mapping[str, list[float]], other: Mapping[str, list[float]], calls: int) -> Comparison | None:
    shared = [name for name in one if name in other]
    mine, theirs = ([time for name in shared for time in rounds[name]] for rounds in (one, other))
    return compare(mine, theirs, resolution_us=RESOLUTION_US / calls) if shared else None


def _median_us(trials: Sequence[Trial]) -> float:
    return median(trial.outcome.step_us.median for trial in trials if isinstance(trial.outcome, Measured))
