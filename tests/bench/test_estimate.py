"""How long a run will take: from the model alone, and corrected by what was seen."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bench.estimate import case_seconds, local_ranks, seconds_each, starting_seconds
from bench.line import decode
from bench.policy import Policy
from bench.record import Failed, Measured
from bench.shipped import EXCHANGES, reference_folder
from dcp_core.cost import ceiling_of
from tests.bench.made_up import cases, trial

H200 = ceiling_of("NVIDIA H200")


def test_what_is_larger_takes_longer() -> None:
    (small,), (large,) = (list(cases([batch], dcps=(1,), kernels=("fa2",))) for batch in ("q512", "q32k"))
    assert case_seconds(small, Policy(), H200) < case_seconds(large, Policy(), H200)


def test_what_is_estimated_without_torch_is_what_measuring_then_does() -> None:
    from bench import estimate, measure

    assert estimate.LAUNCHES == measure.LAUNCH_SAMPLES
    assert (estimate.PLAN_SECONDS, estimate.MOST_PLANS) == (measure.PLAN_SECONDS, measure.MOST_PLAN_SAMPLES)
    assert estimate.FEWEST_PLANS == measure.PLAN_SAMPLES


def test_more_samples_take_longer_up_to_the_cap_on_seconds() -> None:
    (case,) = cases(["q32k"], dcps=(1,), kernels=("fa2",))
    few, many = Policy(min_samples=30), Policy(min_samples=3000, max_samples=3000)
    assert case_seconds(case, few, H200) < case_seconds(case, many, H200)
    assert case_seconds(case, replace(many, max_seconds=0.5), H200) < case_seconds(case, many, H200)


def test_a_simulated_group_shares_one_device() -> None:
    split = [case for case in cases(["q8s1k"]) if case.settings.path == "split"]
    assert {(case.settings.exchange, local_ranks(case)) for case in split} == {("loopback", 2), ("ag_rs", 1)}


def test_three_trials_correct_the_model_and_failures_do_not() -> None:
    found = list(cases(["q512", "q2k"], dcps=(1,)))
    plain = seconds_each(found, Policy(), "NVIDIA H200")
    slow = [trial(case, seconds=3 * seconds) for case, seconds in zip(found, plain, strict=True)]
    assert seconds_each(found, Policy(), "NVIDIA H200", slow) == pytest.approx([3 * seconds for seconds in plain])
    assert seconds_each(found, Policy(), "NVIDIA H200", slow[:2]) == plain
    failed = [replace(one, outcome=Failed("error", "boom")) for one in slow]
    assert seconds_each(found, Policy(), "NVIDIA H200", failed) == plain


COMPILED = ("20261128T070905", "20261128T143205", "20261128T215032", "20261129T004304", "20261129T041958")
"""Runs in which kernels were compiled, or CUPTI was started to trace them."""
MISJUDGED = "20261129T045153.148099Z-421c56.jsonl"
"""Half of its decodes are fa3's, which splits no keys and takes up to ten times as long as the model thinks."""
FEWEST = 10
"""Trials of a run from which its sum tells something: one was stopped after its third."""
COMPILING_S = 20.0
"""Beyond what is expected: less than compiling a kernel takes, and more than loading one does."""


def test_every_run_that_ships_took_about_what_is_expected_of_it() -> None:
    """The model alone, without what trials would correct: of sweeps on an H200, one rank or two, the sum of their trials.

    A case that compiles its kernel takes longer, as every estimate says: all others of such a run take what is expected too.
    """
    ratios, compiled = [], set()
    runs = (path for path in (reference_folder() / "h200").rglob("*.jsonl") if path.parent.name != EXCHANGES)
    for run in sorted(runs):
        trials = [trial for trial in map(decode, run.read_bytes().splitlines()) if isinstance(trial.outcome, Measured)]
        if any(isinstance(one.outcome, Measured) and one.outcome.race for one in trials):
            continue  # a search, which has estimates of its own
        if len(trials) < FEWEST:
            continue
        times = [(one.seconds, case_seconds(one.case, one.policy, H200)) for one in trials]
        others = [(took_s, expected_s) for took_s, expected_s in times if took_s < expected_s + COMPILING_S]
        # A process starts in its run's first trial.
        start_s = starting_seconds(max(one.ranks for one in trials), H200) if times[0] in others else 0.0
        if len(others) < len(times):
            compiled.add(run.name.partition(".")[0])
        took_s, expected_s = map(sum, zip(*others, strict=True))
        if run.name != MISJUDGED:
            ratios.append(took_s / (start_s + expected_s))
    assert len(ratios) >= 16
    assert all(1 / 1.5 < ratio < 1.5 for ratio in ratios)
    assert compiled == set(COMPILED)
