"""The verdict: both errors within budget, and several ranks' verdicts as one."""

from __future__ import annotations

import math

import pytest

from dcp_core.check import Check

WITHIN = Check(rows=10, out_error=0.5, out_budget=1.0, lse_error=0.5, lse_budget=1.0)


def test_both_errors_within_budget_pass() -> None:
    assert WITHIN.passed


@pytest.mark.parametrize("error", [1.5, math.inf, math.nan])
def test_one_error_over_budget_or_no_number_fails(error: float) -> None:
    assert not Check(10, error, 1.0, 0.5, 1.0).passed
    assert not Check(10, 0.5, 1.0, error, 1.0).passed


def test_the_worst_of_several_uses_most_of_its_budget_not_most_error() -> None:
    tight = Check(rows=2, out_error=0.09, out_budget=0.1, lse_error=0.01, lse_budget=1.0)
    worst = Check.worst([WITHIN, tight])
    assert worst == Check(rows=12, out_error=0.09, out_budget=0.1, lse_error=0.5, lse_budget=1.0)


@pytest.mark.parametrize("bad", [math.nan, math.inf, 2.0])
def test_one_rank_that_fails_fails_all(bad: float) -> None:
    for failed in (Check(1, bad, 1.0, 0.0, 1.0), Check(1, 0.0, 1.0, bad, 1.0)):
        assert not Check.worst([WITHIN, failed, WITHIN]).passed
        assert not Check.worst(iter([failed, WITHIN])).passed
