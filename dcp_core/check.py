"""The verdict of a comparison with the oracle. Floor 0: standard library only, so that records can carry it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Check:
    """The worst row of a result, and what it may err: twice what the same precision errs, plus rounding.

    Args:
        rows: compared, over all ranks.
        out_error, out_budget: distance to the oracle's row over that row's norm.
        lse_error, lse_budget: absolute, natural log.
    """

    rows: int
    out_error: float
    out_budget: float
    lse_error: float
    lse_budget: float

    @property
    def passed(self) -> bool:
        """True if both errors are within budget; NaN never is."""
        return self.out_error <= self.out_budget and self.lse_error <= self.lse_budget

    @property
    def share(self) -> float:
        """The larger of the two errors over its budget; infinite for NaN."""
        return max(_use(self.out_error, self.out_budget), _use(self.lse_error, self.lse_budget))

    @classmethod
    def worst(cls, checks: Iterable[Check]) -> Check:
        """Return one check for several: their rows together, and of each error the one that exhausts its budget most."""
        found = list(checks)
        out = max(found, key=lambda check: _use(check.out_error, check.out_budget))
        lse = max(found, key=lambda check: _use(check.lse_error, check.lse_budget))
        rows = sum(check.rows for check in found)
        return cls(rows, out.out_error, out.out_budget, lse.lse_error, lse.lse_budget)


def _use(error: float, budget: float) -> float:
    """Return the share of a budget that an error takes; a NaN takes more than any other."""
    return math.inf if math.isnan(error) else error / budget
