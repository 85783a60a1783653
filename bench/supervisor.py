"""Hands cases to a warm group of workers and turns whatever happens into trials. Never imports torch."""

from __future__ import annotations

import datetime
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

from bench.audit import Audited
from bench.environment import POWER_CAP, SLOWDOWNS, clocks, fingerprint
from bench.errors import UnfitError
from bench.group import WORKER, GroupLost
from bench.launched import Group, launched_ranks, open_group
from bench.line import read_outcome
from bench.orders import Order
from bench.record import Failed, Heat, Measured, Policy, Skipped, Trial, Verified
from dcp_core.check import Check
from dcp_core.settings import Case, ExchangeName

CASE_SECONDS = 300.0
"""Deadline of one case, at least. A GPU's kernels are compiled at first use, twenty seconds each, within the first cases."""
ESTIMATES = 4
"""Times the seconds expected of a case that it may take, where that is more."""


COOL_DOWNS, COOLING_S = 3, 20.0
"""How often something is timed again that heat or supply slowed down, and how long the device rests before."""


@dataclass(frozen=True, slots=True)
class _Ended:
    """What came of an order: the answer, the seconds that it took, and the device's clocks before and after."""

    answer: dict[str, Any]
    seconds: float
    clocks: tuple[dict[str, str], dict[str, str]]

    @property
    def has_times(self) -> bool:
        if "audited" in self.answer:
            return True
        found = self.answer.get("outcomes") or [self.answer["outcome"]]
        return any(outcome["kind"] == "measured" for outcome in found)

    @property
    def slowdowns(self) -> list[str]:
        return [reason for reason in SLOWDOWNS if reason in self.clocks[1].get("event_reasons", "")]

    @property
    def flags(self) -> list[str]:
        capped = POWER_CAP in self.clocks[1].get("event_reasons", "")
        throttled = [f"throttled: {reason}, after {COOL_DOWNS} rests too" for reason in self.slowdowns]
        return [*throttled, *([f"{POWER_CAP}: the device lowered its clocks"] if capped else [])]


class Supervisor:
    """Runs cases on ``ranks`` workers, started at the first order and again after each fault, or on a launched job."""

    def __init__(
        self,
        ranks: int,
        policy: Policy,
        *,
        case_seconds: float = CASE_SECONDS,
        command: Sequence[str] = WORKER,
    ) -> None:
        self.ranks, self.policy = ranks, policy
        self._case_seconds, self._command = case_seconds, command
        self._group: Group | None = None
        self._process, self._has_raced = secrets.token_hex(3), False
        self._environment = fingerprint()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._group is not None:
            self._group.close()
            self._forget()

    def measure(self, cases: Sequence[Case], expected_s: Mapping[Case, float] | None = None) -> Iterator[Trial]:
        """Measure cases one after another, and yield the trial of each as it ends.

        Args:
            expected_s: seconds that a case should take; its deadline grows with them.
        """
        for case in cases:
            ended = self._run(self._order(Order.MEASURE, case=case.to_json()), (expected_s or {}).get(case, 0.0))
            yield self._trial(case, ended.answer["outcome"], ended)

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
        """
        race = {"name": secrets.token_hex(6), "heat": heat, "process": self._process, "repeats": repeats}
        order = self._order(Order.RACE, cases=[case.to_json() for case in cases], race=race, rounds=rounds, whole=whole)
        ended = self._run(order, expected_s)
        self._has_raced = True
        if "outcomes" in ended.answer:
            shared = replace(ended, seconds=ended.seconds / len(cases))
            return [
                self._trial(case, found, shared) for case, found in zip(cases, ended.answer["outcomes"], strict=True)
            ]
        if len(cases) == 1:
            return [self._trial(cases[0], ended.answer["outcome"], ended)]
        alone = [
            self.race([case], heat, rounds=1, repeats=repeats, whole=whole, expected_s=expected_s)[0] for case in cases
        ]
        failed = [trial for trial in alone if isinstance(trial.outcome, Failed)]
        return failed or [self._trial(case, ended.answer["outcome"], ended) for case in cases[1:]]

    def renew(self) -> bool:
        """End the workers, so that the next order starts fresh ones. False for a launched job that has raced: its ranks stay."""
        if launched_ranks() and self._has_raced:
            return False
        self.__exit__()
        return True

    def verify(self, cases: Sequence[Case]) -> Iterator[tuple[Case, Verified | Skipped | Failed]]:
        """Compare cases with the oracle one after another, and yield each verdict as it comes."""
        for case in cases:
            try:
                answer = self._ask(self._order(Order.VERIFY, case=case.to_json()), self._case_seconds)
            except GroupLost as lost:
                yield case, Failed(lost.fault, str(lost), lost.log)
                continue
            found = answer["outcome"]
            if "check" in found and "kind" not in found:
                yield case, Verified(Check(**found["check"]), found["apart"])
                continue
            outcome = read_outcome(found)
            if isinstance(outcome, Skipped | Failed):
                yield case, outcome

    def audit(self, cases: Sequence[Case]) -> Iterator[tuple[Case, list[Audited] | Skipped | Failed]]:
        """Time the stages of cases with two timers, one case after another, and yield what they say as it comes."""
        for case in cases:
            ended = self._run(self._order(Order.AUDIT, case=case.to_json()), 0.0)
            if "audited" in ended.answer:
                yield case, [Audited(**one) for one in ended.answer["audited"]]
                continue
            outcome = read_outcome(ended.answer["outcome"])
            if isinstance(outcome, Skipped | Failed):
                yield case, outcome

    def probe(self) -> dict[str, Any]:
        """Ask what runs here: versions, and for each kernel and exchange why it does not, or an empty sentence.

        Raises:
            UnfitError: if no worker comes up.
        """
        try:
            found = self._answers({"do": Order.PROBE}, self._case_seconds)[0]["probe"]
        except GroupLost as lost:
            raise UnfitError(f"no worker comes up here: {lost}; its last words: {lost.log.strip()[-500:]}") from None
        return dict(found)

    def _order(self, what: Order, **about: Any) -> dict[str, Any]:
        return {"do": what, "policy": asdict(self.policy), **about}

    def _run(self, order: dict[str, Any], expected_s: float) -> _Ended:
        """Give an order to time something, and again once the device has cooled down if that slowed it."""
        deadline_s = max(self._case_seconds, ESTIMATES * expected_s)
        for left in reversed(range(1 + COOL_DOWNS)):
            started, before = time.monotonic(), clocks(0)
            try:
                answer = self._ask(order, deadline_s)
            except GroupLost as lost:
                answer = {"outcome": asdict(Failed(lost.fault, str(lost), lost.log))}
            after = clocks(0)
            ended = _Ended(answer, round(time.monotonic() - started, 3), (before, after))
            if not (left and ended.slowdowns and ended.has_times):
                break
            time.sleep(COOLING_S)
        return ended

    def _trial(self, case: Case, found: dict[str, Any], ended: _Ended) -> Trial:
        outcome = read_outcome(found)
        if isinstance(outcome, Measured):
            outcome = replace(outcome, flags=(*outcome.flags, *ended.flags))
        return Trial(
            case=case,
            outcome=outcome,
            ranks=int(ended.answer.get("ranks", ranks_for(case))),
            policy=self.policy,
            environment=self._environment,
            seconds=round(ended.seconds, 3),
            time=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            clocks=ended.clocks,
        )

    def _ask(self, order: dict[str, Any], deadline_s: float) -> dict[str, Any]:
        answers = self._answers(order, deadline_s)
        if any(answer.get("poisoned") for answer in answers) and self._group is not None:
            self._group.close()
            self._forget()
        return answers[0]

    def _answers(self, order: dict[str, Any], deadline_s: float) -> list[dict[str, Any]]:
        try:
            self._group = self._group or open_group(self.ranks, self._command)
            return self._group.ask(order, deadline_s)
        except GroupLost:
            self._forget()
            raise

    def _forget(self) -> None:
        """Have the next order start workers of their own, under another name."""
        self._group, self._process = None, secrets.token_hex(3)


def ranks_for(case: Case) -> int:
    """Return how many real ranks run a case: its whole DCP group, or 1 for a simulated one."""
    return case.layout.dcp if case.settings.exchange not in (ExchangeName.LOOPBACK, ExchangeName.ALONE) else 1
