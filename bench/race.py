"""Cases of one batch, open at once on one device and timed in turns, so that whatever the device does falls on all alike."""

from __future__ import annotations

import gc
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from bench.clock import Sampler
from bench.measure import (
    LAUNCH_SAMPLES,
    MOST_PLAN_SAMPLES,
    Ready,
    outcome_of,
    prepare,
    sampler_of,
    spoilt,
    timing,
)
from bench.policy import Policy
from bench.record import Failed, Outcome, Race, Skipped
from bench.samples import Samples, Timed
from bench.stats import is_precise, summarize
from bench.times import StopReason
from dcp_core.mesh import Mesh
from dcp_core.settings import Case

FEW = 3
"""Times that planning and launching are timed where a case only races."""


@dataclass(frozen=True, slots=True)
class Runner:
    """A case at the start: right, warmed up by so many repetitions, with what samples its step."""

    ready: Ready
    sample: Sampler
    warmup: int


class Course:
    """The cases of one batch that this rank holds open, from one race to the next."""

    def __init__(self) -> None:
        self._batch: tuple[Any, ...] = ()
        self._mesh: Mesh | None = None
        self._open: dict[Case, Runner] = {}

    def race(
        self, cases: Sequence[Case], mesh: Mesh, policy: Policy, race: Race, *, rounds: int, whole: bool
    ) -> list[Outcome]:
        """Check cases and time them in turns; every rank of the group must call this, and all return the same.

        Cases that are open since the last race start again as they are; others of the batch are closed first.

        Args:
            mesh: as for ``measure``.
            race: what to call it; how many cases take part is found out here.
            rounds: in each, every case is visited twice, in an order and back.
            whole: time planning, launching and every stage of each case as carefully as ``measure`` does.

        Returns:
            An outcome for each case.
        """
        first = cases[0]
        batch = (first.shape, first.layout, first.workload, mesh.size, mesh.is_simulated, policy, whole)
        if batch != self._batch:
            self.close()
            gc.collect()
            gc.freeze()  # so that collecting after each race looks at the cases of this batch, and not at every library's objects
            self._batch, self._mesh = batch, mesh
        for case in self._open.keys() - set(cases):
            del self._open[case]
        refused = {
            case: why
            for case in cases
            if case not in self._open and (why := self._enter(case, policy, race.repeats, whole))
        }
        runners = [self._open[case] for case in cases if case in self._open]
        if not runners:
            return [refused[case] for case in cases]
        race = replace(race, cases=len(runners))
        with timing(runners[0].ready.stand):
            timed = _run(runners, mesh, policy, rounds, race.repeats, f"{policy.seed} {race.name}")
            launches = LAUNCH_SAMPLES if whole else FEW
            found: list[Outcome] = [
                outcome_of(runner.ready, step, policy, launches=launches, stages=whole, race=race)
                for runner, step in zip(runners, timed, strict=True)
            ]
        for place, runner in enumerate(runners):
            if problem := mesh.first_problem(spoilt(runner.ready.stand)):
                found[place] = Failed("incorrect", problem)
        outcomes = dict(zip((runner.ready.stand.case for runner in runners), found, strict=True))
        return [outcomes.get(case) or refused[case] for case in cases]

    def close(self) -> None:
        """Close every case; closing twice does nothing more."""
        if self._open:
            self._open.clear()
            gc.collect()
        self._batch, self._mesh = (), None

    def _enter(self, case: Case, policy: Policy, repeats: int, whole: bool) -> Skipped | Failed | None:
        """Open a case, or return why it cannot run."""
        mesh = self._mesh
        if mesh is None:
            raise ValueError("a case enters the course of a batch")
        beside = [runner.ready for runner in self._open.values()]
        plans = MOST_PLAN_SAMPLES if whole else FEW
        ready = prepare(case, mesh, policy, beside=beside, plans=plans, repetitions=repeats)
        if not isinstance(ready, Ready):
            return ready
        with timing(ready.stand):
            self._open[case] = Runner(ready, *sampler_of(ready.stand.fullest.launch, mesh, ready.clock, policy))
        return None


def _run(runners: Sequence[Runner], mesh: Mesh, policy: Policy, rounds: int, repeats: int, seed: str) -> list[Timed]:
    """Return each case's samples in the order of taking. The order of every round follows from the seed alone.

    A round in which a device was slowed down is dropped whole: of every case, so that their rounds still pair.
    """
    source = random.Random(seed)
    own: list[tuple[list[list[float]], dict[str, str]]] = []
    for _ in range(rounds):
        order = source.sample(range(len(runners)), len(runners))
        times: list[list[float]] = [[] for _ in runners]
        for index in (*order, *reversed(order)):
            times[index] += runners[index].sample(repeats)
        own.append((times, runners[0].ready.clock.state()))
    samples = [Samples() for _ in runners]
    for ranks in zip(*mesh.share(own), strict=True):
        states = [state for _, state in ranks]
        for index, each in enumerate(samples):
            each.add([times[index] for times, _ in ranks], states)
    return [_judged(each, policy, runner.warmup) for each, runner in zip(samples, runners, strict=True)]


def _judged(samples: Samples, policy: Policy, warmup: int) -> Timed:
    timed = samples.timed(StopReason.ROUNDS, warmup)
    precise = is_precise(summarize(timed.slowest_us), policy.precision)
    return replace(timed, stop=StopReason.PRECISE) if precise else timed
