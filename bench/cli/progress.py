"""What a search tells while it goes: who leads and with what time, later what was confirmed, and how long the rest takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from bench.record import Heat, Measured
from bench.report.table import case_name, dcp_of, label_of, micros, spread
from bench.tune.forecast import Forecast
from bench.tune.search import Finding, Step, found, next_step

if TYPE_CHECKING:
    from bench.cli.screen import Screen
    from bench.record import Trial
    from bench.tune.batch import Batch
    from dcp_core.settings import Case


class Progress:
    """Tells a screen of each batch twice at most: when only its winner is to be confirmed, and when nothing is left to do.

    Args:
        forecasts: of the batches; one of nothing is of a batch that has come to its end before.
    """

    def __init__(self, batches: Sequence[Batch], forecasts: Sequence[Forecast], view: Screen) -> None:
        self._view = view
        self._left = {id(batch): one for batch, one in zip(batches, forecasts, strict=True) if one.total_s}

    def tell(self, batch: Batch, trials: Sequence[Trial]) -> None:
        """Say what became of a batch after some trials of it, if that is new."""
        left = self._left.get(id(batch))
        if left is None:
            return
        step = next_step(batch, trials)
        if step is None:
            del self._left[id(batch)]
            self._view.advance(finding_line(batch, found(batch, trials)), left.total_s)
        elif step.heat is Heat.CONFIRMED and left.search_s:
            self._left[id(batch)] = Forecast(0.0, left.confirm_s)
            self._view.spend(_leads_line(batch, step, trials), left.search_s)


def finding_line(batch: Batch, finding: Finding) -> str:
    """Return what was found for a batch, in a line."""
    if finding.chosen is None:
        return f"{batch_name(batch.candidates[0])}: nothing runs here"
    if finding.comparison is None or finding.chosen == finding.default:
        return f"{case_name(finding.chosen)}: the default stays"
    return f"{case_name(finding.chosen)}: {finding.comparison} than the default"


def _leads_line(batch: Batch, step: Step, trials: Sequence[Trial]) -> str:
    """Return who is to be confirmed, and what its step takes as far as is known."""
    leader = step.cases[-1]
    who = " (the default)" if leader == batch.default else ""
    return f"{case_name(leader)}{who} leads with {_newest_time(leader, trials)}, to be confirmed"


def _newest_time(case: Case, trials: Sequence[Trial]) -> str:
    """Return the median of a measured case's newest trial, with its spread and its label: ``103.4 µs ±0.8% measured``."""
    found = [(one, one.outcome) for one in trials if one.case == case and isinstance(one.outcome, Measured)]
    trial, outcome = found[-1]
    return f"{micros(outcome.step_us.median)} µs {spread(outcome.step_us)} {label_of(trial, outcome)}"


def batch_name(case: Case) -> str:
    """Return a case's batch and dcp."""
    return f"{case.workload} dcp {dcp_of(case)}"
