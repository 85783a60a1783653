"""The order in which batches are searched, and how far within a budget of time. Standard library only."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from statistics import median
from types import MappingProxyType
from typing import Protocol

from bench.record import Heat, Trial
from bench.tune.batch import Batch
from bench.tune.known import Known
from bench.tune.search import Step, first_step, next_step
from dcp_core.shapes import Workload

CONFIRMING_S = 20.0
"""Kept of a budget for starting a fresh process, beside what its races take."""
RACES_TO_CONFIRM = 3
"""Of about the length of those before, for each batch."""


class Track(Protocol):
    """Where races are run."""

    def race(self, step: Step) -> Sequence[Trial]:
        """Run a race and keep what came of it: a trial for each case that took part, or could not.

        A screening may take the first of its cases only, as memory allows; the others are asked for again.
        """
        ...

    def renew(self) -> bool:
        """End the process that races, so that the next race starts a fresh one. False if that is not possible here."""
        ...


def search(
    batches: Sequence[Batch],
    known: Iterable[Trial],
    track: Track,
    *,
    budget_s: float | None = None,
    often: Mapping[Workload, float] = MappingProxyType({}),
    now: Callable[[], float],
) -> Iterator[tuple[Batch, list[Trial]]]:
    """Search batches one after another, then confirm what was found, in a fresh process.

    Yields after each race the batch that it was for, and all trials of that batch so far.

    With a budget every batch gets a coarse look before any is searched in full, those first that carry most of the time: their
    step times how often it comes. Enough is left at the end to confirm what was found: until then the default stays.

    Args:
        known: trials of these batches from before: what they hold is not measured again.
        often: how many steps of a batch come; of one that is not named, one.
        now: a clock, in seconds.
    """
    state = _State(batches, known, track, now, budget_s)
    if budget_s is not None:
        for batch in batches:
            yield from state.run(batch, first_step, (Heat.SCREENED,))
        batches = sorted(batches, key=lambda batch: often.get(batch.workload, 1) * state.step_us(batch), reverse=True)
    for batch in batches:
        yield from state.run(batch, next_step, (Heat.SCREENED, Heat.RACED))
    state.reserve = False
    if any(state.next(batch, next_step, (Heat.CONFIRMED,)) for batch in batches) and track.renew():
        for batch in batches:
            yield from state.run(batch, next_step, (Heat.CONFIRMED,))


class _State:
    """What is known of each batch, and the time that is left."""

    def __init__(
        self,
        batches: Sequence[Batch],
        known: Iterable[Trial],
        track: Track,
        now: Callable[[], float],
        budget_s: float | None,
    ) -> None:
        self._track, self._now, self._started, self._budget_s = track, now, now(), budget_s
        self._count, self.reserve = len(batches), True
        self._spent_s: list[float] = []
        home = {case: batch for batch in batches for case in batch.candidates}
        self._trials: dict[int, list[Trial]] = defaultdict(list)
        for trial in known:
            if batch := home.get(trial.case):
                self._trials[id(batch)].append(trial)

    def step_us(self, batch: Batch) -> float:
        """Return what a batch's step takes as the engine runs it, as far as that is known; 0 if it is not."""
        return Known(batch, self._trials[id(batch)]).reference_us

    def next(
        self, batch: Batch, plan: Callable[[Batch, Sequence[Trial]], Step | None], heats: Sequence[Heat]
    ) -> Step | None:
        """Return a batch's next race if it is one of some kinds."""
        step = plan(batch, self._trials[id(batch)])
        return step if step and step.heat in heats else None

    def run(
        self, batch: Batch, plan: Callable[[Batch, Sequence[Trial]], Step | None], heats: Sequence[Heat]
    ) -> Iterator[tuple[Batch, list[Trial]]]:
        """Run a batch's races of some kinds as long as there are any, and time for them."""
        while self._has_time() and (step := self.next(batch, plan, heats)):
            before = self._now()
            trials = list(self._track.race(step))
            self._spent_s.append(self._now() - before)
            self._trials[id(batch)] += trials
            yield batch, self._trials[id(batch)]

    def _has_time(self) -> bool:
        if self._budget_s is None:
            return True
        # A race that compiled kernels is no measure of the others.
        usual_s = median(self._spent_s) if self._spent_s else 0.0
        kept_s = CONFIRMING_S + RACES_TO_CONFIRM * self._count * usual_s if self.reserve else usual_s
        kept_s = min(kept_s, self._budget_s / 2)
        return self._now() - self._started + kept_s < self._budget_s
