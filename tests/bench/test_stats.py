"""Statistics say what they claim, for tiny samples as well."""

from __future__ import annotations

import math
import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.stats import is_precise, lag1_correlation, summarize, thin
from bench.times import Outliers

samples = st.lists(st.floats(min_value=1e-3, max_value=1e9), min_size=1, max_size=200)


@given(samples)
def test_every_figure_lies_in_its_place(values: list[float]) -> None:
    summary = summarize(values)
    assert summary.count == len(values)
    assert summary.min == min(values)
    assert min(values) <= summary.low <= summary.median <= summary.high <= max(values)
    assert summary.min <= summary.p10 <= summary.p90 <= max(values)
    assert summary.mad >= 0


@pytest.mark.parametrize(("count", "rank"), [(1, 1), (5, 1), (6, 1), (8, 1), (9, 2), (20, 6), (30, 10), (100, 40)])
def test_interval_is_the_one_of_the_binomial_table(count: int, rank: int) -> None:
    """Ranks, from 1, of the lower bound: the standard 95 % table for the median."""
    summary = summarize(range(1, count + 1))
    assert (summary.low, summary.high) == (rank, count + 1 - rank)


@pytest.mark.parametrize("count", [6, 7, 12, 31, 64, 299])
def test_interval_is_the_narrowest_that_covers_95_percent(count: int) -> None:
    rank = int(summarize(range(1, count + 1)).low)

    def miss(bound: int) -> float:
        return 2 * sum(math.comb(count, below) for below in range(bound)) / 2**count

    assert miss(rank) <= 0.05 < miss(rank + 1)


def test_interval_covers_the_true_median_about_as_often_as_it_says() -> None:
    source = random.Random(0)
    summaries = [summarize([source.lognormvariate(0, 1) for _ in range(30)]) for _ in range(2000)]
    covered = sum(summary.low <= 1 <= summary.high for summary in summaries) / len(summaries)
    assert 0.94 < covered < 0.98


def test_known_sample() -> None:
    summary = summarize([5, 1, 4, 2, 3])
    assert (summary.median, summary.mad, summary.p10, summary.p90) == (3, 1, pytest.approx(1.4), pytest.approx(4.6))


def test_the_99th_percentile_is_told_where_a_sample_lies_beyond_it_with_95_percent() -> None:
    assert 0.99**299 < 0.05 < 0.99**298
    assert summarize(range(298)).p99 is None
    assert summarize(range(299)).p99 == pytest.approx(0.99 * 298)


def test_outliers_are_told_apart_by_side_and_distance_and_all_are_kept() -> None:
    # Quartiles 10 and 20: fences at -5 and 35, far ones at -20 and 50.
    within = [10.0] * 30 + [15.0] * 40 + [20.0] * 30
    found = summarize([*within, 35.0, 36.0, 50.0, 51.0, 80.0, -5.0 + 5.0])
    assert found.outliers == Outliers(far_below=0, below=0, above=2, far_above=2)
    assert (found.count, found.outliers.count) == (106, 4)
    below = summarize([value + 30 for value in [*within, -6.0, -20.0, -21.0]])
    assert below.outliers == Outliers(far_below=1, below=2)


@given(samples)
def test_equal_samples_have_no_outliers_and_half_are_never_any(values: list[float]) -> None:
    found = summarize(values).outliers
    assert found is not None
    assert 2 * found.count <= len(values)
    assert summarize([values[0]] * len(values)).outliers == Outliers()


@pytest.mark.parametrize("bad", [[], [1.0, math.nan], [math.inf]])
def test_nothing_and_nonsense_are_refused(bad: list[float]) -> None:
    with pytest.raises(ValueError, match="a summary needs"):
        summarize(bad)


def test_few_equal_samples_are_not_called_precise() -> None:
    assert not is_precise(summarize([1.0] * 5), 0.01)
    assert is_precise(summarize([1.0] * 6), 0.01)
    assert not is_precise(summarize([1.0, 1.0, 1.0, 1.0, 1.0, 1.02]), 0.01)


@given(samples, st.integers(1, 80))
def test_thinning_keeps_ends_order_and_limit(values: list[float], limit: int) -> None:
    kept = thin(values, limit)
    assert len(kept) == min(limit, len(values))
    assert kept[0] == values[0]
    assert limit == 1 or kept[-1] == values[-1]


def test_thinning_is_even() -> None:
    gaps = {after - before for before, after in pairwise(thin(range(1000), 64))}
    assert gaps <= {15, 16}


def test_correlation_sees_a_trend_and_not_noise() -> None:
    source = random.Random(1)
    assert lag1_correlation(range(50)) > 0.8
    assert abs(lag1_correlation([source.random() for _ in range(1000)])) < 0.1
    assert lag1_correlation([3.0] * 9) == 0
