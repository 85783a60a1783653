"""``tune`` as a search: the batches, the workers that race for them, and what is told of it while it goes."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING, TypeVar

from bench.cli.campaign import not_here
from bench.cli.progress import Progress, batch_name
from bench.cli.screen import ASKING, Screen, clock, hint, screen, waiting, warn
from bench.errors import UsageError
from bench.record import Heat, Measured, Trial
from bench.report.table import counted
from bench.tune.batch import Batch
from bench.tune.forecast import Forecast, forecast, whole_seconds
from bench.tune.known import REPEATS
from bench.tune.loop import search
from bench.tune.search import Finding, Step, found
from bench.tune.space import Available, batches_of, everything
from dcp_core.spelling import nearest

if TYPE_CHECKING:
    from bench.cli.campaign import Campaign
    from bench.store import Store
    from bench.supervisor import Supervisor
    from dcp_core.settings import Case

MEMORY_SHARE = 0.8
"""Of a device's memory that cases held open together may be predicted to take."""
_UNITS_S = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0}


class Search(StrEnum):
    """How settings are found: by races, or by measuring every candidate by itself."""

    RACE = "race"
    EXHAUSTIVE = "exhaustive"


class Space(StrEnum):
    """Which settings may be chosen: those that the sweep lists, or all that can be run here."""

    SWEEP = "sweep"
    ALL = "all"


@dataclass(frozen=True, slots=True)
class Hunt:
    """A campaign and the batches that it searches; its cases are all their candidates."""

    campaign: Campaign
    batches: tuple[Batch, ...]

    @classmethod
    def of(cls, campaign: Campaign, available: Available | None) -> Hunt:
        """Return what is searched: what the sweep lists, or everything that is available."""
        cases = campaign.cases if available is None else everything(campaign.cases, available)
        batches = batches_of(cases, campaign.machine.environment, cold=campaign.policy.cold)
        every = tuple(case for batch in batches for case in batch.candidates)
        return cls(replace(campaign, cases=every), tuple(batches))

    def known(self) -> dict[Case, list[Trial]]:
        """Return what the store holds of each candidate, without what is worth another try."""
        trials = self.campaign.trials()
        left_alone = set(self.campaign.given_up(trials))
        kept: dict[Case, list[Trial]] = {}
        for trial in trials:
            if isinstance(trial.outcome, Measured) or trial.case in left_alone:
                kept.setdefault(trial.case, []).append(trial)
        return kept

    def findings(self, trials: Sequence[Trial]) -> list[tuple[Batch, Finding]]:
        """Return what was found for each batch."""
        of: dict[Case, list[Trial]] = {}
        for trial in trials:
            of.setdefault(trial.case, []).append(trial)
        return [
            (batch, found(batch, [trial for case in batch.candidates for trial in of.get(case, [])]))
            for batch in self.batches
        ]

    def obstacles(self, known: Mapping[Case, Sequence[Trial]]) -> dict[Case, str]:
        """Return the candidates not known yet that will not run here, and why."""
        return self.campaign.obstacles([case for case in self.campaign.cases if case not in known])

    def forecasts(self, known: Mapping[Case, Sequence[Trial]]) -> list[Forecast]:
        """Return what each batch should take: what is known already is not measured again."""
        campaign, hopeless = self.campaign, self.obstacles(known)
        of = ([trial for case in batch.candidates for trial in known.get(case, ())] for batch in self.batches)
        return [
            forecast(batch, trials, campaign.policy, campaign.machine.device_name, hopeless=hopeless)
            for batch, trials in zip(self.batches, of, strict=True)
        ]

    def seconds(self, forecasts: Sequence[Forecast]) -> float:
        """Return about how long a search takes whose batches take so long."""
        return whole_seconds(forecasts, self.campaign.machine.ranks, self.campaign.machine.device_name)


Choice = TypeVar("Choice", bound=StrEnum)


def choice(option: str, text: str, kind: type[Choice]) -> Choice:
    """Read one of a few words.

    Raises:
        UsageError: naming the option and the words.
    """
    words = [str(word) for word in kind]
    if text not in words:
        raise UsageError(f"{option} is {' or '.join(words)}, not {text[:40]!r}{nearest(text, words)}")
    return kind(text)


def seconds_of(text: str) -> float:
    """Read a duration: ``90``, ``90s``, ``10m``, ``1.5h``.

    Raises:
        UsageError: for anything else, or nothing.
    """
    match = re.fullmatch(r"([0-9]{1,6}(?:\.[0-9]{1,3})?)([smh]?)", text.strip())
    seconds = float(match[1]) * _UNITS_S[match[2]] if match else 0.0
    if seconds <= 0:
        raise UsageError(f"--time-budget is a time, as 90s, 10m or 1.5h, not {text[:40]!r}")
    return seconds


def plan(campaign: Campaign, space: Space) -> Hunt:
    """Return what would be searched, without starting a worker."""
    available = Available.assumed(campaign.machine.environment, campaign.machine.ranks) if space is Space.ALL else None
    return Hunt.of(campaign, available)


def hunt(campaign: Campaign, space: Space, *, budget_s: float | None, command: str) -> tuple[Hunt, list[Trial], bool]:
    """Search every batch, each trial on disk before the next race begins.

    Args:
        command: that goes on with this search.

    Returns:
        What was searched, all trials of its candidates, and whether it was interrupted.
    """
    from bench.store import Store
    from bench.supervisor import Supervisor

    with ExitStack() as held:
        store = held.enter_context(Store.open(campaign.results, campaign.shard))
        supervisor = held.enter_context(Supervisor(campaign.machine.ranks, campaign.policy, alone=not campaign.anyway))
        with waiting(ASKING):
            available = Available.probed(supervisor.probe()) if space is Space.ALL else None
        wanted = Hunt.of(campaign, available)
        known = wanted.known()
        kept = [trial for trials in known.values() for trial in trials]
        forecasts = wanted.forecasts(known)
        expected_s = wanted.seconds(forecasts)
        for line in _announcement(wanted, known, expected_s, budget_s):
            warn(line)
        measured: list[Trial] = []
        try:
            share = 1.0 if budget_s is None else min(1.0, budget_s / max(expected_s, 1e-9))
            forecasts = [one.within(share) for one in forecasts]
            count, total_s = sum(one.total_s > 0 for one in forecasts), sum(one.total_s for one in forecasts)
            with screen(count, total_s, limit_s=budget_s) as view:
                supervisor.told = view.compiling
                track = Track(wanted, supervisor, store, view, measured)
                progress = Progress(wanted.batches, forecasts, view)
                order = search(
                    wanted.batches, kept, track, budget_s=budget_s, often=wanted.campaign.often, now=time.monotonic
                )
                for batch, trials in order:
                    progress.tell(batch, trials)
            if track.is_stuck:
                warn(
                    "The ranks of a launched job cannot be started afresh, and settings are confirmed in a fresh process: "
                    "start the job again, and it goes on with that."
                )
        except (KeyboardInterrupt, SystemExit) as stop:
            where = f" in {store.path}" if store.path else ""
            warn(f"Stopped. {counted(len(measured), 'trial')} kept{where}. To go on:")
            hint(command)
            if isinstance(stop, SystemExit):
                raise
            return wanted, kept + measured, True
    return wanted, kept + measured, False


class Track:
    """Runs races on workers, and keeps every trial before the next race begins."""

    def __init__(self, wanted: Hunt, supervisor: Supervisor, store: Store, view: Screen, measured: list[Trial]) -> None:
        self._wanted, self._supervisor, self._store = wanted, supervisor, store
        self._view, self._measured = view, measured
        self.is_stuck = False

    def race(self, step: Step) -> list[Trial]:
        """Run a race, of a screening as many cases as fit into memory together."""
        cases = self._fitting(step.cases) if step.heat is Heat.SCREENED else step.cases
        self._view.now(f"{_HEATS[step.heat]} {counted(len(cases), 'case')} of {batch_name(cases[0])}")
        expected_s = sum(self._wanted.campaign.expected_s(cases, []).values())
        trials = self._supervisor.race(
            cases, step.heat, rounds=step.rounds, repeats=REPEATS, whole=step.whole, expected_s=expected_s
        )
        for trial in trials:
            self._store.append(trial)
            self._measured.append(trial)
        return trials

    def renew(self) -> bool:
        """Start fresh workers."""
        renewed = self._supervisor.renew()
        self.is_stuck = not renewed
        return renewed

    def _fitting(self, cases: Sequence[Case]) -> Sequence[Case]:
        from bench.estimate import local_ranks
        from bench.need import race_bytes

        most = MEMORY_SHARE * self._wanted.campaign.machine.memory_bytes
        count = len(cases)
        while count > 2 and race_bytes(cases[:count], local_ranks(cases[0])) > most:
            count -= 1
        return cases[:count]


_HEATS = {Heat.SCREENED: "screening", Heat.RACED: "racing", Heat.CONFIRMED: "confirming"}


def _announcement(
    wanted: Hunt, known: Mapping[Case, Sequence[Trial]], expected_s: float, budget_s: float | None
) -> Iterator[str]:
    candidates = len(wanted.campaign.cases)
    there = sum(case in known for case in wanted.campaign.cases)
    trials = f", {there} of them measured before" if there else ""
    batches = counted(len(wanted.batches), "batch", "batches")
    limit = f"; {clock(budget_s)} at most" if budget_s is not None else ""
    yield (
        f"{wanted.campaign.name}: {counted(candidates, 'candidate')} for {batches}{trials}; about {clock(expected_s)}{limit}."
    )
    yield from not_here(wanted.obstacles(known))
