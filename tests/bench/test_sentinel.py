"""The sentinel: how often a case is repeated, which one, and what its times say of the device."""

from __future__ import annotations

import random
from dataclasses import replace
from statistics import mean

import pytest

from bench.record import Failed, Measured, Trial
from bench.report.drift import drift_json, drift_notes, drift_notices
from bench.sentinel import Drift, Watch, drifts, times_again
from bench.stats import summarize
from dcp_core import Case
from tests.bench.cases import tiny
from tests.bench.made_up import CPU, trial

CASES = [tiny(f"q8s{total}") for total in range(32, 92)]


def order(watch: Watch, fails: int = 0, parts: int = 1) -> list[Trial]:
    """Measure what a watch asks for, the cases handed over in parts; the first ``fails`` fail."""
    found: list[Trial] = []
    size = len(CASES) // parts
    for part in range(parts):
        for case in watch.over(CASES[part * size : (part + 1) * size]):
            outcome = Failed("crashed", "a worker died") if len(found) < fails else None
            found.append(watch.seen(trial(case, outcome, environment=CPU)))
    return found


@pytest.mark.parametrize(
    ("cases", "seconds", "times"),
    [(0, 0, 0), (24, 10, 0), (25, 10, 1), (49, 10, 1), (250, 10, 10), (4, 9999, 0), (10, 9999, 2), (50, 1501, 5)],
)
def test_a_case_is_repeated_every_25_cases_or_five_minutes_and_seldom_in_few(
    cases: int, seconds: float, times: int
) -> None:
    assert times_again(cases, seconds) == times


def test_the_first_case_is_repeated_at_even_distances_and_at_the_end() -> None:
    found = order(Watch(len(CASES), 1.0))
    assert [place for place, one in enumerate(found) if one.is_sentinel] == [30, 61]
    assert [one.case for one in found if not one.is_sentinel] == CASES
    assert {one.case for one in found if one.is_sentinel} == {CASES[0]}


@pytest.mark.parametrize("parts", [2, 5, 20])
def test_a_sweep_in_parts_repeats_it_at_the_same_places(parts: int) -> None:
    assert [one.is_sentinel for one in order(Watch(len(CASES), 1.0), parts=parts)] == [
        one.is_sentinel for one in order(Watch(len(CASES), 1.0))
    ]


@pytest.mark.parametrize(("cases", "seconds"), [(7, 1e4), (26, 1.0), (60, 1e4), (99, 1.0), (260, 1.0)])
def test_it_is_repeated_as_often_as_is_expected_and_after_the_last(cases: int, seconds: float) -> None:
    watch = Watch(cases, seconds, [trial(CASES[0])])
    found = [watch.seen(trial(case, environment=CPU)).is_sentinel for case in watch.over([CASES[1]] * cases)]
    assert sum(found) == times_again(cases, seconds)
    assert found[-1]


def test_what_was_measured_first_is_repeated_though_it_was_in_an_earlier_run() -> None:
    known = [trial(tiny("q9s99"), Failed("crashed", "a worker died")), trial(tiny("q8s99"))]
    assert {one.case for one in order(Watch(len(CASES), 1.0, known)) if one.is_sentinel} == {tiny("q8s99")}


def test_what_failed_is_not_repeated() -> None:
    found = order(Watch(len(CASES), 1.0), fails=2)
    assert {one.case for one in found if one.is_sentinel} == {CASES[2]}
    assert not any(one.is_sentinel for one in order(Watch(len(CASES), 1.0), fails=99))


def timed(
    median_us: float, spread: float, source: random.Random, *, case: Case = CASES[0], again: bool = True
) -> Trial:
    made = trial(case, environment=CPU)
    assert isinstance(made.outcome, Measured)
    step = summarize([median_us * source.lognormvariate(0, spread) for _ in range(30)])
    return replace(made, outcome=replace(made.outcome, step_us=step), is_sentinel=again)


def series(factors: list[float], spread: float, seed: int) -> list[Trial]:
    source = random.Random(seed)
    return [timed(100.0 * factor, spread, source, again=place > 0) for place, factor in enumerate(factors)]


@pytest.mark.parametrize("spread", [0.003, 0.01, 0.03])
@pytest.mark.parametrize("times", [2, 5, 20])
def test_a_steady_device_is_seldom_said_to_drift(spread: float, times: int) -> None:
    assert mean(drifts(series([1.0] * times, spread, seed))[0].is_plain for seed in range(200)) <= 0.02


@pytest.mark.parametrize("times", [2, 5, 20])
def test_a_drift_of_three_percent_is_seen(times: int) -> None:
    factors = [1 + 0.03 * place / (times - 1) for place in range(times)]
    assert mean(drifts(series(factors, 0.01, seed))[0].is_plain for seed in range(200)) >= 0.95


def test_a_drift_is_told_in_a_sentence_and_as_data() -> None:
    found = series([1.0, 1.05], 0.003, 0)
    later = [found[0], replace(found[1], time="2026-02-03T04:35:06+00:00")]
    (note,), (notice,), (data,) = drift_notes(later), drift_notices(later), drift_json(later)
    assert note.startswith("Measured 2 times in 30 min: ")
    assert "took up to 5." in note
    assert notice.startswith("The device drifted: ")
    assert data["case"] == CASES[0].key
    assert (data["times"], data["seconds"], data["drifted"]) == (2, 1800.0, True)
    assert drift_notices(series([1.0, 1.0], 0.01, 0)) == []


def test_only_what_was_repeated_and_timed_alike_says_anything() -> None:
    source = random.Random(0)
    first, again = timed(100.0, 0.01, source, again=False), timed(200.0, 0.01, source)
    assert drifts([first, replace(first, time=again.time)]) == []
    assert drifts([again]) == []
    assert drifts([first, replace(again, policy=replace(again.policy, graphs=False))]) == []
    assert drifts([first, replace(again, outcome=Failed("crashed", "a worker died"))]) == []
    elsewhere = replace(again.environment, hard={"device_name": "another"})
    assert drifts([first, replace(again, environment=elsewhere)]) == []
    (found,) = drifts([first, again])
    assert isinstance(found, Drift)
    assert found.ratio == pytest.approx(2.0, rel=0.02)
