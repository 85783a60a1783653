"""Hands cases to a warm group of workers and turns whatever happens into trials. Never imports torch."""

from __future__ import annotations

import datetime
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, Self

from bench.environment import POWER_CAP, clocks, fingerprint
from bench.errors import UnfitError
from bench.group import WORKER, GroupLost
from bench.launched import Group, open_group
from bench.line import read_outcome
from bench.orders import Order
from bench.record import Failed, Measured, Outcome, Policy, Skipped, Trial, Verified
from dcp_core.check import Check
from dcp_core.settings import Case, ExchangeName

CASE_SECONDS = 300.0
"""Deadline of one case, at least. A GPU's kernels are compiled at first use, twenty seconds each, within the first cases."""
ESTIMATES = 4
"""Times the seconds expected of a case that it may take, where that is more."""


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
        self._environment = fingerprint()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._group is not None:
            self._group.close()
            self._group = None

    def measure(self, cases: Sequence[Case], expected_s: Mapping[Case, float] | None = None) -> Iterator[Trial]:
        """Measure cases one after another, and yield the trial of each as it ends.

        Args:
            expected_s: seconds that a case should take; its deadline grows with them.
        """
        for case in cases:
            started, before = time.monotonic(), clocks(0)
            outcome, ranks = self._outcome(case, self._deadline_s((expected_s or {}).get(case, 0.0)))
            after = clocks(0)
            if isinstance(outcome, Measured) and POWER_CAP in after.get("event_reasons", ""):
                outcome = replace(outcome, flags=(*outcome.flags, f"{POWER_CAP}: the device lowered its clocks"))
            yield Trial(
                case=case,
                outcome=outcome,
                ranks=ranks,
                policy=self.policy,
                environment=self._environment,
                seconds=round(time.monotonic() - started, 3),
                time=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
                clocks=(before, after),
            )

    def verify(self, cases: Sequence[Case]) -> Iterator[tuple[Case, Verified | Skipped | Failed]]:
        """Compare cases with the oracle one after another, and yield each verdict as it comes."""
        for case in cases:
            try:
                answer = self._ask(Order.VERIFY, case, self._case_seconds)
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

    def _deadline_s(self, expected_s: float) -> float:
        return max(self._case_seconds, ESTIMATES * expected_s)

    def _outcome(self, case: Case, deadline_s: float) -> tuple[Outcome, int]:
        try:
            answer = self._ask(Order.MEASURE, case, deadline_s)
        except GroupLost as lost:
            return Failed(lost.fault, str(lost), lost.log), ranks_for(case)
        return read_outcome(answer["outcome"]), int(answer["ranks"])

    def _ask(self, order: Order, case: Case, deadline_s: float) -> dict[str, Any]:
        wanted = {"do": order, "case": case.to_json(), "policy": asdict(self.policy)}
        answers = self._answers(wanted, deadline_s)
        if any(answer.get("poisoned") for answer in answers) and self._group is not None:
            self._group.close()
            self._group = None
        return answers[0]

    def _answers(self, order: dict[str, Any], deadline_s: float) -> list[dict[str, Any]]:
        try:
            self._group = self._group or open_group(self.ranks, self._command)
            return self._group.ask(order, deadline_s)
        except GroupLost:
            self._group = None
            raise


def ranks_for(case: Case) -> int:
    """Return how many real ranks run a case: its whole DCP group, or 1 for a simulated one."""
    return case.layout.dcp if case.settings.exchange not in (ExchangeName.LOOPBACK, ExchangeName.ALONE) else 1
