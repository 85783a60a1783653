"""Verdicts: nothing is called faster that is not, 1 % is seen, and a device that changes speed is told."""

from __future__ import annotations

import random
from itertools import product
from statistics import mean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.noise import NOISES, dropping
from bench.stats import median_interval, signed_rank_p
from bench.tune.known import MOST_ROUNDS, REPEATS
from bench.verdict import Verdict, compare, rounds_of
from tests.bench.paper_device import Pair, verdicts


@pytest.mark.parametrize("name", NOISES)
def test_of_two_equal_settings_neither_is_called_faster(name: str) -> None:
    found = verdicts(NOISES[name], 1.0, 1000)
    assert found[Verdict.FASTER] + found[Verdict.SLOWER] <= 20
    assert found[Verdict.SAME] >= 950


@pytest.mark.parametrize("name", NOISES)
def test_one_percent_is_seen(name: str) -> None:
    assert verdicts(NOISES[name], 0.99, 400)[Verdict.FASTER] >= 380
    assert verdicts(NOISES[name], 1.01, 400)[Verdict.SLOWER] >= 380


ROUND = 2 * 2 * REPEATS
"""Repetitions of a round of two cases."""


@pytest.mark.parametrize("ratio", [0.9, 1.0, 1.1])
@pytest.mark.parametrize("where", [0.3, 0.5, 0.7])
def test_a_drop_of_the_clock_in_the_middle_is_ambiguous(ratio: float, where: float) -> None:
    for seed in range(20):
        pair = Pair(dropping(round(where * MOST_ROUNDS * ROUND)), seed, ratio)
        assert compare(*pair.race(MOST_ROUNDS)).verdict is Verdict.AMBIGUOUS


@pytest.mark.parametrize("ratio", [0.9, 1.0, 1.1])
@pytest.mark.parametrize("rounds", [10, MOST_ROUNDS])
@pytest.mark.parametrize("from_the_end", [False, True])
def test_a_drop_of_the_clock_that_lasts_two_rounds_is_ambiguous_wherever_it_falls(
    ratio: float, rounds: int, from_the_end: bool
) -> None:
    """At either end, there where the race begins or ends with it, and further and further inside, also across rounds."""
    for distance in (0, 1, 5, ROUND // 2, ROUND, 3 * ROUND + 7, 4 * ROUND + 2):
        start = (rounds - 2) * ROUND - distance if from_the_end else distance
        pair = Pair(dropping(warming(distance, ratio) + start, lasting=2 * ROUND), distance, ratio)
        assert compare(*pair.race(rounds)).verdict is Verdict.AMBIGUOUS


def warming(seed: int, ratio: float) -> int:
    """Return the repetitions before the first round of a pair on a device that loses no clock."""
    return Pair(dropping(1 << 30), seed, ratio).warmup


def test_a_round_that_was_disturbed_by_itself_is_no_change_of_the_clock() -> None:
    steady = [100.0 + step / 100 for step in range(40)]
    for where in (0, 7, 39):
        disturbed = [2 * time if place == where else time for place, time in enumerate(steady)]
        assert compare([0.9 * time for time in disturbed], disturbed).verdict is Verdict.FASTER


def test_a_difference_beyond_the_change_of_the_clock_is_believed_all_the_same() -> None:
    repetitions = MOST_ROUNDS * 2 * 2 * REPEATS
    for ratio, verdict in ((0.5, Verdict.FASTER), (2.0, Verdict.SLOWER)):
        assert compare(*Pair(dropping(repetitions // 2), 0, ratio).race(MOST_ROUNDS)).verdict is verdict


def test_a_small_difference_is_none_however_sure() -> None:
    steady = [100.0 + step / 100 for step in range(40)]
    found = compare([0.997 * time for time in steady], steady)
    assert found.p < 1e-6
    assert found.verdict is Verdict.SAME
    assert found.ratio == pytest.approx(0.997)


def test_what_the_timer_does_not_resolve_is_no_verdict_however_sure() -> None:
    steady = [36.0 + step / 100 for step in range(40)]
    near = compare([time + 0.4 for time in steady], steady)
    assert near.p < 1e-6
    assert near.verdict is Verdict.AMBIGUOUS
    assert compare([time + 0.4 for time in steady], steady, resolution_us=0.0).verdict is Verdict.SLOWER
    assert compare([time + 1.0 for time in steady], steady).verdict is Verdict.SLOWER
    assert compare([time + 0.1 for time in steady], steady).verdict is Verdict.SAME


def test_few_pairs_prove_nothing() -> None:
    assert compare([50.0] * 7, [100.0] * 7).verdict is Verdict.AMBIGUOUS
    assert compare([50.0] * 8, [100.0] * 8).verdict is Verdict.FASTER
    assert compare([100.0] * 8, [50.0] * 8).verdict is Verdict.SLOWER


@pytest.mark.parametrize(("mine", "theirs"), [([], []), ([1.0], [1.0, 2.0]), ([0.0], [1.0]), ([float("nan")], [1.0])])
def test_what_is_no_pair_of_times_is_refused(mine: list[float], theirs: list[float]) -> None:
    with pytest.raises(ValueError, match="a comparison needs"):
        compare(mine, theirs)


def test_a_round_is_two_visits_each_worth_its_median() -> None:
    assert rounds_of([1, 4, 99, 9, 9, 1, 2, 2, 2, 8, 8, 8], 3) == [6.0, 4.0]
    with pytest.raises(ValueError, match="4 samples are no whole rounds of 2 visits with 3 each"):
        rounds_of([1.0] * 4, 3)


# --- The test behind it ---------------------------------------------------------------------------------------------


def p_of_all_signs(differences: list[float]) -> float:
    """Wilcoxon's p by trying every choice of signs."""
    amounts = sorted(abs(value) for value in differences if value)
    ranks = {size: mean(place for place, other in enumerate(amounts, start=1) if other == size) for size in amounts}
    total = sum(ranks[size] for size in amounts)
    seen = sum(ranks[abs(value)] for value in differences if value > 0)
    least = min(seen, total - seen)
    sums = [
        sum(ranks[size] for size, up in zip(amounts, signs, strict=True) if up)
        for signs in product((0, 1), repeat=len(amounts))
    ]
    return min(1.0, 2 * mean(found <= least for found in sums))


@given(st.lists(st.integers(-6, 6).map(float), max_size=9))
def test_p_is_exact_ties_and_zeros_included(differences: list[float]) -> None:
    assert signed_rank_p(differences) == pytest.approx(p_of_all_signs(differences))


@pytest.mark.parametrize(("count", "critical"), [(8, 0), (12, 7), (20, 37), (25, 68)])
def test_p_meets_published_tables(count: int, critical: int) -> None:
    """Two-sided 1 % critical values of the rank sum, as every table of Wilcoxon's test has them."""

    def p_of_sum(wanted: int) -> float:
        signs = [-1.0] * count
        for rank in range(count, 0, -1):
            if rank <= wanted:
                signs[rank - 1], wanted = 1.0, wanted - rank
        return signed_rank_p([rank * sign for rank, sign in enumerate(signs, start=1)])

    assert p_of_sum(critical) <= 0.01 < p_of_sum(critical + 1)


def test_p_of_many_is_uniform_where_nothing_differs() -> None:
    source = random.Random(4)
    found = [signed_rank_p([source.gauss(0, 1) for _ in range(80)]) for _ in range(1000)]
    assert mean(p < 0.01 for p in found) < 0.02
    assert mean(p < 0.5 for p in found) == pytest.approx(0.5, abs=0.05)


def test_an_interval_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        median_interval([])
