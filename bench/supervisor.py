"""Hands cases to a warm group of workers and turns whatever happens into trials. Never imports torch."""

from __future__ import annotations

import datetime
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, Generic, Self, TypeVar

from bench.audit import Audited
from bench.environment import POWER_CAP, Process, clocks, fingerprint, processes, slowdowns
from bench.errors import UnfitError
from bench.group import WORKER, GroupLost
from bench.launched import Group, launched_ranks, open_group
from bench.line import read_outcome
from bench.orders import Compiling, Order, unheard
from bench.policy import Policy
from bench.record import Failed, Heat, Measured, Outcome, Skipped, Trial, Verified
from dcp_core.check import Check
from dcp_core.settings import Case, ExchangeName

Told = TypeVar("Told")
Came = TypeVar("Came")
"""Of an order: an outcome, or what two timers say."""
CASE_SECONDS = 300.0
"""Deadline of one case, at least. A GPU's kernels are compiled at first use, twenty seconds each, within the first cases."""
ESTIMATES = 4
"""Times the seconds expected of a case that it may take, where that is more."""


COOL_DOWNS, COOLING_S = 3, 20.0
"""How often something is timed again that heat, supply or another process disturbed, and how long the device rests before."""
ALONE = "end it, choose another device with CUDA_VISIBLE_DEVICES, or measure beside it with --anyway"

State = tuple[dict[str, str], ...]
"""The clocks of the devices that a case runs on, by rank."""


@dataclass(frozen=True, slots=True)
class _Ended(Generic[Came]):
    """What came of an order: one thing for each case, or one for all.

    Args:
        ranks: real ones that took part, as they say; None if they say nothing.
        seconds: that it took.
        workers: of ours that may be on a device at most.
        retakes: of it that were discarded.
    """

    came: tuple[Came | Failed, ...]
    ranks: int | None
    seconds: float
    before: State
    after: State
    workers: int
    retakes: int

    @property
    def has_times(self) -> bool:
        return not all(isinstance(one, Skipped | Failed) for one in self.came)

    @property
    def slowdowns(self) -> list[str]:
        return slowdowns(self._reasons)

    @property
    def shared(self) -> list[int]:
        """The devices with more processes than all of ours together, before or after."""
        counts = [
            [int(state.get("processes", 0)) for state in states] for states in zip(self.before, self.after, strict=True)
        ]
        return [index for index, found in enumerate(counts) if max(found) > self.workers]

    @property
    def flags(self) -> list[str]:
        throttled = [f"throttled: {reason}, after {COOL_DOWNS} rests too" for reason in self.slowdowns]
        capped = any(POWER_CAP in reasons for reasons in self._reasons)
        return [*throttled, *([f"{POWER_CAP}: the device lowered its clocks"] if capped else [])]

    @property
    def _reasons(self) -> list[str]:
        """Why clocks were lowered, after or while samples were taken that were kept."""
        after = [state.get("event_reasons", "") for state in self.after]
        paces = [pace for one in self.came if isinstance(one, Measured) for pace in one.clocks_during]
        return [*after, *(reason for pace in paces for reason in pace.event_reasons)]


class Supervisor:
    """Runs cases on ``ranks`` workers, started at the first order and again after each fault, or on a launched job.

    Args:
        alone: measure nothing beside other processes on the devices; else what was is flagged.
    """

    def __init__(
        self,
        ranks: int,
        policy: Policy,
        *,
        alone: bool = False,
        case_seconds: float = CASE_SECONDS,
        command: Sequence[str] = WORKER,
    ) -> None:
        self.ranks, self.policy = ranks, policy
        self._case_seconds, self._command = case_seconds, command
        self._group: Group | None = None
        self._process, self._has_raced = secrets.token_hex(3), False
        self._environment = fingerprint()
        self.told: Callable[[Compiling], None] = unheard
        """Hears what is compiled while something is asked."""
        self._alone = alone
        # Other ranks of a launched job may be on their devices before this one looks.
        look = not launched_ranks()
        self._others = [(index, found) for index in range(ranks) if look and (found := processes(index))]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._group is not None:
            self._group.close()
            self._forget()

    def measure(self, cases: Iterable[Case], expected_s: Mapping[Case, float] | None = None) -> Iterator[Trial]:
        """Measure cases one after another, and yield the trial of each as it ends.

        Args:
            cases: each is asked for when the trial of the one before was taken.
            expected_s: seconds that a case should take; its deadline grows with them.

        Raises:
            UnfitError: if the workers should be alone and another process was on a device before them, or comes and stays.
        """
        for case in cases:
            order = self._order(Order.MEASURE, case=case.to_json())
            ended = self._timed(order, (expected_s or {}).get(case, 0.0), ranks_for(case))
            yield self._trial(case, ended.came[0], ended)

    def race(
        self,
        cases: Sequence[Case],
        heat: Heat,
        *,
        rounds: int,
        repeats: int,
        whole: bool = False,
        expected_s: float = 0.0,
    ) -> list[Trial]:
        """Time cases of one batch in turns, and return a trial of each.

        Where something ends the race, every case is tried by itself, and the trials of those that failed are returned alone: the
        others are there to be raced without them.

        Args:
            rounds: in which every case is visited twice.
            repeats: samples a visit.
            whole: time planning, launching and every stage of each case too.
            expected_s: seconds that the race should take; its deadline grows with them.

        Raises:
            UnfitError: as ``measure`` does.
        """
        race = {"name": secrets.token_hex(6), "heat": heat, "process": self._process, "repeats": repeats}
        order = self._order(Order.RACE, cases=[case.to_json() for case in cases], race=race, rounds=rounds, whole=whole)
        ended = self._timed(order, expected_s, ranks_for(cases[0]))
        self._has_raced = True
        if len(ended.came) == len(cases):
            shared = replace(ended, seconds=ended.seconds / len(cases))
            return [self._trial(case, found, shared) for case, found in zip(cases, ended.came, strict=True)]
        alone = [
            self.race([case], heat, rounds=1, repeats=repeats, whole=whole, expected_s=expected_s)[0] for case in cases
        ]
        failed = [trial for trial in alone if isinstance(trial.outcome, Failed)]
        return failed or [self._trial(case, ended.came[0], ended) for case in cases[1:]]

    def renew(self) -> bool:
        """End the workers, so that the next order starts fresh ones. False for a launched job that has raced: its ranks stay."""
        if launched_ranks() and self._has_raced:
            return False
        self.__exit__()
        return True

    def verify(self, cases: Iterable[Case]) -> Iterator[tuple[Case, Verified | Skipped | Failed]]:
        """Compare cases with the oracle one after another, and yield each verdict as it comes."""
        for case in cases:
            try:
                yield case, self._heard(_verdict, self._order(Order.VERIFY, case=case.to_json()), self._case_seconds)
            except GroupLost as lost:
                yield case, Failed(lost.fault, str(lost), lost.log)

    def audit(self, cases: Iterable[Case]) -> Iterator[tuple[Case, list[Audited] | Skipped | Failed]]:
        """Time the stages of cases with two timers, one case after another, and yield what they say as it comes.

        Raises:
            UnfitError: as ``measure`` does.
        """
        for case in cases:
            order = self._order(Order.AUDIT, case=case.to_json())
            ended = self._run(_audited, order, self._case_seconds, ranks_for(case))
            throttled = ended.has_times and ", ".join(ended.slowdowns)
            yield case, Skipped(f"throttled: {throttled}, after {COOL_DOWNS} rests too") if throttled else ended.came[0]

    def probe(self) -> dict[str, Any]:
        """Ask what runs here: versions, and for each kernel and exchange why it does not, or an empty sentence.

        Raises:
            UnfitError: if no worker comes up, or it says what cannot be.
        """
        try:
            return self._heard(_probed, {"do": Order.PROBE}, self._case_seconds)
        except GroupLost as lost:
            words = f"; its last words: {lost.log.strip()[-500:]}" if lost.log else ""
            raise UnfitError(f"no worker comes up here: {lost}{words}") from None

    def _order(self, what: Order, **about: Any) -> dict[str, Any]:
        return {"do": what, "policy": asdict(self.policy), **about}

    def _timed(self, order: dict[str, Any], expected_s: float, ranks: int) -> _Ended[Outcome]:
        """Give an order that is answered with an outcome for each of its cases, or one for all."""
        read = partial(_outcomes, most=len(order.get("cases", ())) or 1)
        return self._run(read, order, max(self._case_seconds, ESTIMATES * expected_s), ranks)

    def _run(
        self,
        read: Callable[[dict[str, Any]], tuple[tuple[Came, ...], int | None]],
        order: dict[str, Any],
        deadline_s: float,
        ranks: int,
    ) -> _Ended[Came]:
        """Give an order to time something, and again after a rest if heat, supply or another process disturbed it."""
        if self._alone and self._others:
            raise UnfitError(f"{_and(self._others)}, so that times would be shared with it: {ALONE}")
        for retakes in range(1 + COOL_DOWNS):
            started, before = time.monotonic(), _state(ranks)
            came: tuple[Came | Failed, ...]
            try:
                came, took_part = self._heard(read, order, deadline_s)
            except GroupLost as lost:
                came, took_part = (Failed(lost.fault, str(lost), lost.log),), None
            seconds = round(time.monotonic() - started, 3)
            ended = _Ended(came, took_part, seconds, before, _state(ranks), self.ranks, retakes)
            disturbed = ended.slowdowns or (self._alone and ended.shared)
            if not (disturbed and ended.has_times):
                return ended
            if retakes < COOL_DOWNS:
                time.sleep(COOLING_S)
        if self._alone and ended.shared:
            others = [(index, processes(index)) for index in ended.shared]
            raise UnfitError(f"{_and(others)}, of which no more than {self.ranks} may be this run's own: {ALONE}")
        return ended

    def _trial(self, case: Case, outcome: Outcome, ended: _Ended[Outcome]) -> Trial:
        if isinstance(outcome, Measured):
            beside = ["another process on the device"] if self._others or ended.shared else []
            outcome = replace(outcome, flags=(*outcome.flags, *ended.flags, *beside))
        return Trial(
            case=case,
            outcome=outcome,
            ranks=ended.ranks or ranks_for(case),
            policy=self.policy,
            environment=self._environment,
            seconds=round(ended.seconds, 3),
            time=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            clocks=(*ended.before, *ended.after),
            retakes=ended.retakes,
        )

    def _heard(self, read: Callable[[dict[str, Any]], Told], order: dict[str, Any], deadline_s: float) -> Told:
        """Ask, and read the answer; workers that answer with what cannot be are ended like those that die."""
        answer = self._ask(order, deadline_s)
        try:
            return read(answer)
        except (ValueError, TypeError, KeyError) as error:
            self.__exit__()
            why = f"{error} is missing" if isinstance(error, KeyError) else error
            raise GroupLost("nonsense", f"a worker said what cannot be: {why}", "") from None

    def _ask(self, order: dict[str, Any], deadline_s: float) -> dict[str, Any]:
        answers = self._answers(order, deadline_s)
        if any(answer.get("poisoned") for answer in answers) and self._group is not None:
            self._group.close()
            self._forget()
        return answers[0]

    def _answers(self, order: dict[str, Any], deadline_s: float) -> list[dict[str, Any]]:
        try:
            self._group = self._group or open_group(self.ranks, self._command)
            return self._group.ask(order, deadline_s, self.told)
        except GroupLost:
            self._forget()
            raise

    def _forget(self) -> None:
        """Have the next order start workers of their own, under another name."""
        self._group, self._process = None, secrets.token_hex(3)


def _outcomes(answer: dict[str, Any], most: int) -> tuple[tuple[Outcome, ...], int | None]:
    """Read an answer: its outcomes, ``most`` or the one that ended all, and the real ranks that took part.

    Raises:
        ValueError: (or another error of what is of the wrong kind) for what is no such answer.
    """
    outcomes = tuple(read_outcome(found) for found in answer.get("outcomes", [answer.get("outcome")]))
    if len(outcomes) != most and (len(outcomes) != 1 or isinstance(outcomes[0], Measured)):
        raise ValueError(f"{len(outcomes)} outcomes of {most} cases")
    ranks = answer.get("ranks")
    return outcomes, None if ranks is None else max(1, int(ranks))


def _verdict(answer: dict[str, Any]) -> Verified | Skipped | Failed:
    """Read what came of a check.

    Raises:
        ValueError: (or another error of what is of the wrong kind) for what is no verdict.
    """
    found = answer["outcome"]
    if "check" in found and "kind" not in found:
        return Verified(Check(**found["check"]), found["apart"])
    outcome = read_outcome(found)
    if isinstance(outcome, Measured):
        raise ValueError("times, where only a check was asked for")
    return outcome


def _audited(answer: dict[str, Any]) -> tuple[tuple[list[Audited] | Skipped | Failed], None]:
    """Read what two timers say, or why they do not.

    Raises:
        ValueError: (or another error of what is of the wrong kind) for neither.
    """
    if "audited" in answer:
        return ([Audited(**one) for one in answer["audited"]],), None
    outcome = read_outcome(answer["outcome"])
    if isinstance(outcome, Measured):
        raise ValueError("times of one timer, where two were asked for")
    return (outcome,), None


def _probed(answer: dict[str, Any]) -> dict[str, Any]:
    """Read what runs here.

    Raises:
        ValueError: (or another error of what is of the wrong kind) for what is no such answer.
    """
    found = dict(answer["probe"])
    for name in ("kernels", "exchanges", "flashinfer_exchanges"):
        if not all(isinstance(text, str) for pair in dict(found[name]).items() for text in pair):
            raise ValueError(f"{name}, which should be a sentence for each name, are {str(found[name])[:80]}")
    paces = [{str(name): str(value) for name, value in dict(pace).items()} for pace in found["paces"]]
    return found | {"timer": str(found["timer"]), "timer_floor_us": float(found["timer_floor_us"]), "paces": paces}


def _state(ranks: int) -> State:
    return tuple(clocks(index) for index in range(ranks))


def _and(others: Sequence[tuple[int, Sequence[Process]]]) -> str:
    """Say who computes on which device."""
    return "; ".join(f"on GPU {index} there is {' and '.join(map(str, found))}" for index, found in others)


def ranks_for(case: Case) -> int:
    """Return how many real ranks run a case: its whole DCP group, or 1 for a simulated one."""
    return case.layout.dcp if case.settings.exchange not in (ExchangeName.LOOPBACK, ExchangeName.ALONE) else 1
