"""One run of ``sweep`` or ``tune``: what was asked for, what the store lacks, and the loop that measures it."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from bench.cli.obstacle import obstacle
from bench.cli.options import Asked, Running, ranks_here
from bench.cli.screen import Screen, clock, hint, screen, warn
from bench.errors import UsageError
from bench.policy import Policy
from bench.record import PROTOCOL, Failed, Key, Measured, Skipped, Trial, latest
from bench.report.drift import drift_notices
from bench.report.table import case_line, case_name, counted

if TYPE_CHECKING:
    from bench.cluster import Cluster
    from bench.machine import Machine
    from bench.shard import Shard
    from bench.store import Store
    from bench.sweep import Illegal, Sweep
    from dcp_core.settings import Case
    from dcp_core.shapes import Workload

T = TypeVar("T")
GIVE_UP_AFTER = 2
"""Failures of a case in the store after which it is left alone."""
MOST_REASONS = 5
"""Said where nothing can be measured."""


@dataclass(frozen=True, slots=True)
class Campaign:
    """What a user asked for, on this machine.

    Args:
        machine: that it is measured on, or each lane of the cluster.
        often: how many steps of a batch come, where the sweep says so.
        anyway: measure beside other processes on a GPU too.
        shard: the part of what was asked for that ``cases`` are; None for all of it.
        cluster: whose lanes measure it; None for this machine.
    """

    name: str
    cases: tuple[Case, ...]
    illegal: tuple[Illegal, ...]
    policy: Policy
    often: Mapping[Workload, float]
    machine: Machine
    results: Path
    fresh: bool
    anyway: bool
    shard: Shard | None
    cluster: Cluster | None

    def trials(self) -> list[Trial]:
        """Return what the results folder holds of these cases, made on this machine as it is now.

        Raises:
            UsageError: if another device, driver or version made some that nobody made here, unless asked to measure afresh.
        """
        from bench.store import Store

        found, notices = Store.read(self.results)
        for notice in notices:
            warn(notice)
        keys = {self._key(case) for case in self.cases}
        asked = [(trial, self._differences(trial)) for trial in found if trial.key in keys]
        mine = [trial for trial, differences in asked if not differences]
        here = {trial.key for trial in mine}
        elsewhere = next((differences for trial, differences in reversed(asked) if trial.key not in here), None)
        if elsewhere and not self.fresh:
            raise UsageError(
                f"{self.results} holds trials of these cases from another environment ({'; '.join(elsewhere)}); "
                f"choose another folder with --results, or measure them again with --fresh"
            )
        return mine

    def everything_here(self) -> list[Trial]:
        """Return all that the results folder holds, of whatever case, made on this machine as it is now."""
        from bench.store import Store

        found, _ = Store.read(self.results)
        return [trial for trial in found if not self._differences(trial)]

    def _differences(self, trial: Trial) -> list[str]:
        return self.machine.environment.differences(trial.environment, ranks=trial.ranks)

    def lacking(self, known: Sequence[Trial]) -> list[Case]:
        """Return the cases that ``known`` has no trial for, as careful as asked; failed ones once more, skipped ones always.

        Asking a skipped case again costs next to nothing, and what stood in its way, a lack of memory say, may be gone.
        """
        last = {trial.key: trial for trial in latest(known)}
        left_alone = set(self.given_up(known))
        return [case for case in self.cases if case not in left_alone and self._lacks(last.get(self._key(case)))]

    def given_up(self, known: Sequence[Trial]) -> list[Case]:
        """Return the cases that failed twice, asked as now and of this very dcpbench; none if they are wanted afresh."""
        if self.fresh:
            return []
        last = {trial.key: trial for trial in latest(known)}
        failed = {key for key, trial in last.items() if isinstance(trial.outcome, Failed)}
        failures = Counter(
            trial.key for trial in known if isinstance(trial.outcome, Failed) and self._asked_as_now(trial)
        )
        return [case for case in self.cases if self._key(case) in failed and failures[self._key(case)] >= GIVE_UP_AFTER]

    def obstacles(self, cases: Sequence[Case]) -> dict[Case, str]:
        """Return those of some cases that are known not to run here, and why."""
        on_gpu, memory_bytes = bool(self.machine.device_name), self.machine.memory_bytes
        why = {case: obstacle(case, on_gpu=on_gpu, memory_bytes=memory_bytes) for case in cases}
        return {case: reason for case, reason in why.items() if reason}

    def expected_s(self, cases: Sequence[Case], known: Sequence[Trial]) -> dict[Case, float]:
        """Return the seconds that each case should take: none for one that will not run here."""
        from bench.estimate import seconds_each

        hopeless = self.obstacles(cases)
        seconds = seconds_each(cases, self.policy, self.machine.device_name, known)
        return {case: 0.0 if case in hopeless else each for case, each in zip(cases, seconds, strict=True)}

    def whole_s(self, cases: Sequence[Case], known: Sequence[Trial]) -> float:
        """Return the seconds that measuring some cases should take, with the workers that it starts; 0 if none will run."""
        from bench.estimate import loading_seconds, starting_seconds
        from bench.sentinel import times_again
        from dcp_core.cost import ceiling_of

        cases_s = sum(self.expected_s(cases, known).values())
        if cases:
            cases_s *= 1 + times_again(len(cases), cases_s) / len(cases)
        ceiling = ceiling_of(self.machine.device_name)
        starting_s = starting_seconds(self.machine.ranks, ceiling) + loading_seconds(cases, self.policy, ceiling)
        return cases_s / self.lanes + starting_s if cases_s else 0.0

    @property
    def lanes(self) -> int:
        """How many cases are measured at a time."""
        return self.cluster.lanes if self.cluster else 1

    def _lacks(self, trial: Trial | None) -> bool:
        if trial is None or isinstance(trial.outcome, Failed | Skipped):
            return True
        if isinstance(trial.outcome, Measured) and not trial.outcome.is_whole:
            return True
        if self.policy.trace and trial.case.settings.overlap and not trial.policy.trace:
            return True
        return trial.policy.precision > self.policy.precision

    def _key(self, case: Case) -> Key:
        """Return the key that a trial of this case will have."""
        from bench.estimate import local_ranks

        policy = self.policy
        return Key(case.key, case.layout.dcp // local_ranks(case), PROTOCOL, policy.cold, policy.graphs, policy.calls)

    def _asked_as_now(self, trial: Trial) -> bool:
        ours, theirs = (
            environment.soft.get("dcpbench") for environment in (self.machine.environment, trial.environment)
        )
        return trial.policy == self.policy and ours == theirs


def joined(running: Running, ranks: int | None) -> AbstractContextManager[Cluster | None]:
    """Join the cluster that was asked for, if any, for as long as the context lasts, and say which of its lanes are left out.

    Raises:
        UsageError: without Ray, or if no node has room.
        UnfitError: if no cluster answers, or no lane comes up.
    """
    if running.cluster is None:
        return nullcontext()
    from bench.cluster import Cluster

    return Cluster(running.cluster, ranks, told=warn, alone=not running.anyway)


def campaign(asked: Asked, running: Running, ranks: int | None, cluster: Cluster | None = None) -> Campaign:
    """Work out what was asked for.

    Args:
        ranks: processes to start; if None, one per visible GPU, or two without any.
        cluster: to measure on, in place of this machine.

    Raises:
        UsageError: if nothing legal was asked for, for more ranks than GPUs, and for every mistake in axes and options.
    """
    from bench.environment import devices
    from bench.machine import Machine
    from bench.shard import Shard
    from bench.sweep import parse_precision

    machine = cluster.machine if cluster else Machine.here(ranks_here(ranks, len(devices())))
    sweep = _sweep(asked, on_gpu=bool(machine.device_name))
    policy = sweep.policy
    if running.precision is not None:
        policy = replace(policy, precision=parse_precision(running.precision))
    if running.eager:
        policy = replace(policy, graphs=False)
    if running.trace:
        policy = replace(policy, trace=True)
    expansion = sweep.expand(machine.ranks)
    if not expansion.cases:
        raise UsageError(f"nothing that was asked for can be measured: {_every_reason(expansion.illegal)}")
    shard = Shard.parse(running.shard) if running.shard is not None else None
    return Campaign(
        name=sweep.name if shard is None else f"{sweep.name}, shard {shard}",
        cases=tuple(case for case in expansion.cases if shard is None or shard.holds(case)),
        illegal=expansion.illegal,
        policy=policy,
        often=sweep.often,
        machine=machine,
        results=running.results,
        fresh=running.fresh,
        anyway=running.anyway,
        shard=shard,
        cluster=cluster,
    )


def measure(asked: Campaign, command: str) -> tuple[list[Trial], bool]:
    """Measure what the store lacks, each trial on disk before the next begins.

    Args:
        command: that resumes this run.

    Returns:
        All trials of the cases asked for, and whether the run was interrupted.
    """
    from bench.store import Store

    with Store.open(asked.results, asked.shard) as store:
        known = asked.trials()
        missing = shuffled(asked.lacking(known), asked.policy.seed)
        for line in _announcement(asked, missing, known):
            warn(line)
        if not missing:
            return known, False
        measured: list[Trial] = []
        try:
            _measure(asked, missing, known, store, measured)
        except (KeyboardInterrupt, SystemExit) as stop:
            where = f" in {store.path}" if store.path else ""
            warn(
                f"Stopped. {counted(len(measured), 'trial')} kept{where}, "
                f"{counted(len(missing) - len(measured), 'case')} to go. To go on:"
            )
            hint(command)
            if isinstance(stop, SystemExit):
                raise
            return known + measured, True
        return known + measured, False


def is_empty(asked: Campaign) -> bool:
    """Tell whether there is nothing to do because none of the sweep's batches lies in this shard, and say so."""
    if asked.cases:
        return False
    warn(f"{asked.name}: none of its batches lies in this shard; nothing to measure.")
    return True


def shuffled(cases: Sequence[T], seed: int) -> list[T]:
    """Return cases in the order in which they are measured: a seed's, so that a drift falls on no one setting's cases."""
    return random.Random(seed).sample(cases, len(cases))


def _measure(
    asked: Campaign, missing: Sequence[Case], known: Sequence[Trial], store: Store, measured: list[Trial]
) -> None:
    each, lanes = asked.expected_s(missing, known), asked.lanes
    again: list[Trial] = []
    with (
        screen(len(missing), sum(each.values()) / lanes) as view,
        closing(_trials(asked, missing, known, each, view)) as trials,
    ):
        for trial in trials:
            store.append(trial)
            if trial.is_sentinel:
                again.append(trial)
                view.show(f"the first case again: {case_line(trial)}")
            else:
                measured.append(trial)
                view.advance(case_line(trial), each[trial.case] / lanes)
        view.now("done")
    for line in drift_notices([*known, *measured, *again]):
        warn(line)


def _trials(
    asked: Campaign, missing: Sequence[Case], known: Sequence[Trial], each: Mapping[Case, float], view: Screen
) -> Generator[Trial]:
    """Yield the trials of cases as they end, measured here or on a cluster, those of a sentinel among them."""
    if asked.cluster is not None:
        asked.cluster.told = view.show
        view.now(counted(asked.cluster.lanes, "lane"))
        yield from asked.cluster.measure(missing, asked.policy, each)
        return
    from bench.sentinel import Watch
    from bench.supervisor import Supervisor

    watch = Watch(len(missing), sum(each.values()), known)
    with Supervisor(asked.machine.ranks, asked.policy, alone=not asked.anyway) as supervisor:
        supervisor.told = view.compiling
        for trial in supervisor.measure(said(watch.over(missing), view), each):
            yield watch.seen(trial)


def said(cases: Iterable[Case], view: Screen) -> Iterator[Case]:
    """Yield cases, and say of each that it is being measured."""
    for case in cases:
        view.now(case_name(case))
        yield case


def _announcement(asked: Campaign, missing: Sequence[Case], known: Sequence[Trial]) -> list[str]:
    """Say what will be measured and how long that takes, and what will not be and why."""
    given_up = asked.given_up(known)
    kept = len(asked.cases) - len(missing) - len(given_up)
    there = f"{kept} {_is(kept)} in {asked.results} already" if kept else ""
    if missing:
        what = ", ".join([f"{counted(len(missing), 'case')} to measure", *([there] if there else [])])
        lines = [f"{asked.name}: {what}; about {clock(asked.whole_s(missing, known))}."]
    elif kept == len(asked.cases):
        all_of_them = "Its one case is" if kept == 1 else f"All {kept} cases are"
        lines = [f"{all_of_them} in {asked.results} already; nothing to measure."]
    else:
        lines = [f"{there}; nothing to measure." if there else "Nothing to measure."]
    lines += not_here(asked.obstacles(missing))
    return [*lines, *([left_alone(len(given_up))] if given_up else [])]


def reasons(obstacles: Mapping[Case, str]) -> list[tuple[str, int]]:
    """Return each reason for which cases will not run here, and how many cases it stops."""
    return Counter(obstacles.values()).most_common()


def not_here(obstacles: Mapping[Case, str]) -> list[str]:
    """Say how many of the cases announced will not run here, in a sentence for each reason."""
    return [f"{count} of them will not run here: {why}." for why, count in reasons(obstacles)]


def left_alone(count: int) -> str:
    """Say that some cases failed twice, and what to do about it."""
    them = "it" if count == 1 else "them"
    return f"{counted(count, 'case')} failed twice and {_is(count)} left alone; --fresh measures {them} again."


def _is(count: int) -> str:
    return "is" if count == 1 else "are"


def _sweep(asked: Asked, *, on_gpu: bool) -> Sweep:
    from bench.sweep import Sweep

    axes, settings = asked.axes(), asked.settings()
    if asked.sweep is not None:
        sweep = Sweep.load(asked.sweep, on_gpu=on_gpu)
        sweep = sweep.override(axes, settings) if axes or settings else sweep
    elif axes:
        sweep = Sweep.from_options(axes, settings, on_gpu=on_gpu)
    else:
        from bench.sweep import shipped_sweeps

        raise UsageError(
            f"name a sweep ({', '.join(shipped_sweeps())}, or a .toml file), or type one: "
            f"--model qwen3-235b-a22b --tp 8 --dcp 1,2 --batch 8q1s32k"
        )
    if asked.synthetic:
        sweep = replace(sweep, parts=tuple(replace(part, synthetic=True) for part in sweep.parts))
    return sweep


def _every_reason(illegal: Sequence[Illegal]) -> str:
    """Say why combinations are illegal: each reason once, the most frequent first, which stands in the way of most."""
    counts = Counter(one.reason for one in illegal).most_common()
    if len(counts) == 1:
        return counts[0][0]
    shown = [f"{count}× {reason}" for reason, count in counts[:MOST_REASONS]]
    more = [f"and {counted(len(counts) - MOST_REASONS, 'more reason')}"] if len(counts) > MOST_REASONS else []
    return "; ".join([*shown, *more])
