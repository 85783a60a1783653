"""How long a search will take, batch by batch: what it should screen, race and confirm. Standard library only.

Assumptions, from searches of everything on an H200 (10 batches, 48 to 300 candidates each): of more candidates than are all
screened a tenth of the rest is; all finalists race once, and half as long again is spent on telling the best of them apart.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from statistics import mean

from bench.estimate import case_seconds, opening_seconds, racing_seconds, starting_seconds
from bench.policy import Policy
from bench.record import VISITS, Trial
from bench.tune.batch import Batch
from bench.tune.known import FINALISTS, REPEATS
from bench.tune.search import ROUNDS, SCREEN_ALL, next_step
from dcp_core.cost import ceiling_of
from dcp_core.settings import Case

FURTHER_SHARE = 0.1
"""Of the candidates beyond those that are all screened."""
RACES = 1.5
"""As long as one of all finalists."""


@dataclass(frozen=True, slots=True)
class Forecast:
    """Seconds that a batch should take: until its winner is known, and to confirm that."""

    search_s: float = 0.0
    confirm_s: float = 0.0

    @property
    def total_s(self) -> float:
        """Both."""
        return self.search_s + self.confirm_s

    def within(self, share: float) -> Forecast:
        """Return a share of it."""
        return Forecast(share * self.search_s, share * self.confirm_s)


def forecast(
    batch: Batch, known: Sequence[Trial], policy: Policy, device_name: str, *, hopeless: Collection[Case] = ()
) -> Forecast:
    """Return what a batch should take after some trials of it; nothing if there is nothing left to find out.

    Args:
        device_name: as the driver tells it; empty for a CPU.
        hopeless: candidates that will not run here.
    """
    running = [case for case in batch.candidates if case not in hopeless]
    if not running or next_step(batch, known) is None:
        return Forecast()
    ceiling, first, count = ceiling_of(device_name), running[0], len(running)
    seen = {trial.case for trial in known}
    screened = min(count, SCREEN_ALL) + FURTHER_SHARE * max(count - SCREEN_ALL, 0)
    fresh = screened * sum(case not in seen for case in running) / count
    samples = [VISITS * REPEATS * rounds for rounds in (1, ROUNDS)]
    look_s, race_s = map(mean, zip(*(racing_seconds(case, policy, ceiling, samples) for case in running), strict=True))
    racing_s = RACES * min(count, FINALISTS + 1) * race_s if count > 1 else 0.0
    search_s = opening_seconds(first, ceiling) + fresh * look_s + racing_s
    return Forecast(search_s, min(count, 2) * case_seconds(first, policy, ceiling))


def whole_seconds(batches: Sequence[Forecast], ranks: int, device_name: str) -> float:
    """Return what a search of some batches should take, with the processes that it starts: one to race, one to confirm."""
    searching = any(batch.search_s for batch in batches)
    return sum(batch.total_s for batch in batches) + 2 * searching * starting_seconds(ranks, ceiling_of(device_name))
