"""Two runs are told apart where they differ by more than two runs do anyway, and nowhere else."""

from __future__ import annotations

import json
import math
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from bench.cli import main
from bench.cli.exits import Exit
from bench.compare import FEWEST, compare
from bench.errors import UsageError
from bench.noise import NOISES
from bench.record import Failed, Measured, Trial
from bench.report.comparison import comparison_grid, comparison_notes
from bench.shipped import reference_folder
from bench.stats import summarize
from bench.store import Store, read_run
from bench.verdict import Verdict
from tests.bench.made_up import CPU, cases, trial

BATCHES = ("1q1s8k", "16q1s8k", "64q1s32k", "q512s8k", "q2ks32k")
TRIALS = [trial(one) for one in cases(BATCHES, exchanges=("ag_rs",))]


def timed(one: Trial, factor: float, noise: Callable[[], float] = lambda: 1.0, count: int = 60) -> Trial:
    """Return the trial with other samples around its median."""
    assert isinstance(one.outcome, Measured)
    samples = [one.outcome.step_us.median * factor * noise() for _ in range(count)]
    return replace(one, outcome=replace(one.outcome, step_us=summarize(samples), rank_samples_us=(tuple(samples),)))


def noisy(factor: float, seed: int, spread: float = 0.01) -> list[Trial]:
    source = random.Random(seed)
    return [timed(one, factor, lambda: source.lognormvariate(0, spread)) for one in TRIALS]


def clocked(trials: Sequence[Trial], mhz: int) -> list[Trial]:
    return [replace(one, clocks=({"sm_mhz": str(mhz)},) * 2) for one in trials]


def of_one_life(name: str, seed: int) -> list[Trial]:
    """Return the trials of a device that misbehaves, switched on for them."""
    source, noise, number = random.Random(seed), NOISES[name](), iter(range(10**9))
    return [timed(one, 1.0, lambda: noise(next(number), source)) for one in TRIALS]


# Where a case lies within one clock each time, only the clock's own reading can stand against a verdict; see below.
@pytest.mark.parametrize(("name", "share"), [(name, 0.08 if name == "two clocks" else 0.001) for name in NOISES])
def test_equal_runs_of_a_noisy_device_are_hardly_ever_told_apart(name: str, share: float) -> None:
    wrong = 0
    for seed in range(40):
        found = compare(of_one_life(name, 2 * seed), of_one_life(name, 2 * seed + 1))
        wrong += sum(pair.verdict in (Verdict.FASTER, Verdict.SLOWER) for pair in found.pairs)
    assert wrong <= share * 40 * len(TRIALS)


@pytest.mark.parametrize(("factor", "verdict"), [(1.06, Verdict.SLOWER), (0.94, Verdict.FASTER), (1.001, Verdict.SAME)])
def test_a_change_of_one_case_is_told_as_what_it_is(factor: float, verdict: Verdict) -> None:
    before, after = noisy(1.0, 1), noisy(1.0, 2)
    after[7] = timed(TRIALS[7], factor)
    found = compare(before, after)
    (pair,) = (pair for pair in found.pairs if pair.after.case == TRIALS[7].case)
    assert pair.verdict is verdict
    assert verdict is not Verdict.SLOWER or found.pairs[0] is pair, "what became slower stands first"
    assert found.is_worse is (verdict is Verdict.SLOWER)


def test_a_shift_of_all_cases_is_seen_where_no_single_one_shows_it() -> None:
    found = compare(noisy(1.0, 1), noisy(1.03, 2), tolerance=0.025)
    assert found.overall is Verdict.SLOWER
    assert found.is_worse
    assert compare(noisy(1.0, 1), noisy(1.0, 2)).overall is Verdict.SAME


def test_runs_that_scatter_must_differ_by_more_than_they_scatter() -> None:
    source = random.Random(3)
    before = noisy(1.0, 1)
    after = [timed(one, source.lognormvariate(0, 0.03)) for one in TRIALS]
    found = compare(before, after)
    assert found.margin > 0.06
    assert not any(pair.is_worse for pair in found.pairs)
    few = compare(before[: FEWEST - 1], after[: FEWEST - 1])
    assert few.margin == pytest.approx(0.06)


def test_a_clock_that_fell_is_no_regression() -> None:
    found = compare(clocked(noisy(1.0, 1), 1980), clocked(noisy(1 / 0.7, 2), 1386))
    assert {pair.verdict for pair in found.pairs} == {Verdict.AMBIGUOUS}
    assert all("1980 MHz before and 1386 after" in pair.why for pair in found.pairs)
    a_little = compare(clocked(noisy(1.0, 1), 1980), clocked(noisy(1.08, 2), 1833))
    assert {pair.verdict for pair in a_little.pairs} == {Verdict.AMBIGUOUS}
    beyond = compare(clocked(noisy(1.0, 1), 1980), clocked(noisy(2.5, 2), 1386))
    assert {pair.verdict for pair in beyond.pairs} == {Verdict.SLOWER}


def test_a_case_that_fails_now_is_worse_and_has_no_ratio() -> None:
    after = [*TRIALS[1:], replace(TRIALS[0], outcome=Failed("incorrect", "over budget"))]
    found = compare(TRIALS, after)
    assert found.pairs[0].why == "fails now"
    assert found.is_worse
    assert comparison_grid(found).rows[0][-3:] == ("–", "–", "slower: fails now")


@pytest.mark.parametrize(("before", "after"), [(1e-300, 1e300), (1e300, 1e-300), (1e300, 1e300)])
def test_times_that_nothing_takes_are_compared_all_the_same(before: float, after: float) -> None:
    def takes(least: float) -> list[Trial]:
        samples = [least, 1e300, 1e300, 1e300, 1e300]
        return [
            replace(one, outcome=replace(one.outcome, step_us=summarize(samples)))
            for one in TRIALS
            if isinstance(one.outcome, Measured)
        ]

    found = compare([timed(one, before) for one in TRIALS], takes(after))
    assert all(0 < pair.low <= pair.ratio <= pair.high < math.inf for pair in found.pairs)
    assert found.overall in Verdict


def test_what_was_not_timed_alike_is_left_out_and_counted() -> None:
    warm = [replace(one, policy=replace(one.policy, cold=False)) for one in TRIALS[:3]]
    found = compare(TRIALS, [*TRIALS[3:], *warm])
    assert len(found.pairs) == len(TRIALS) - 3
    assert found.alone == (3, 3)
    assert any("3 cases only before" in note for note in comparison_notes(found))
    with pytest.raises(UsageError, match="no case in common that was timed in the same way"):
        compare(TRIALS[:3], warm)


def test_two_devices_are_not_compared_and_other_versions_are_named() -> None:
    with pytest.raises(UsageError, match="different devices, A CPU and NVIDIA H200"):
        compare([trial(one.case, environment=CPU) for one in TRIALS], TRIALS)
    newer = replace(TRIALS[0].environment, hard=TRIALS[0].environment.hard | {"torch": "2.12.0"})
    found = compare(TRIALS, [replace(one, environment=newer) for one in TRIALS])
    assert found.differences == ("torch: 2.11.0 before, 2.12.0 after",)


def test_the_exchanges_measured_twice_between_h200s_are_the_same() -> None:
    found = compare(*(read_run(path)[0] for path in earlier("20261124T193927", "20261124T204609")))
    assert len(found.pairs) >= 60
    assert {pair.verdict for pair in found.pairs} <= {Verdict.SAME, Verdict.AMBIGUOUS}
    assert not found.is_worse


def test_a_sweep_twice_on_h200s_is_within_two_percent_in_95_of_100_cases() -> None:
    (first,) = earlier("20261128T141222")
    again = [trial for path in earlier("20261128T141358", "20261128T143839") for trial in read_run(path)[0]]
    found = compare(read_run(first)[0], again)
    near = [pair for pair in found.pairs if abs(pair.ratio - 1) <= 0.02]
    assert (len(found.pairs), len(near)) == (195, 187)
    assert len(near) >= 0.95 * len(found.pairs)
    assert found.overall is Verdict.SAME


def earlier(*names: str) -> list[Path]:
    return [next((reference_folder() / "h200" / "earlier").glob(f"{name}*.jsonl")) for name in names]


def test_decodes_measured_twice_on_two_machines_of_h200s_are_the_same_all_together() -> None:
    runs = [read_run(path)[0] for path in sorted((reference_folder() / "h200").glob("*.jsonl"))]
    real = [trials for trials in runs if {trial.ranks for trial in trials} == {1, 2} and len(trials) > 100]
    (two,) = (trials for trials in real if all(trial.case.workload.is_decode for trial in trials))
    alone = [trials for trials in runs if all(trial.ranks == 1 for trial in trials)]
    one, again = (
        trials for trials in alone if len({trial.case for trial in trials} & {trial.case for trial in two}) >= 30
    )
    found = compare(one, two)
    verdicts = Counter(pair.verdict for pair in found.pairs)
    told = {Verdict.SAME: 28, Verdict.AMBIGUOUS: 2, Verdict.FASTER: 2}
    assert verdicts == told
    assert found.overall is Verdict.SAME
    third = compare(one, again)
    assert Counter(pair.verdict for pair in third.pairs) == {
        Verdict.SAME: 57,
        Verdict.AMBIGUOUS: 4,
        Verdict.FASTER: 2,
        Verdict.SLOWER: 1,
    }
    assert third.overall is Verdict.SAME


@pytest.fixture
def folders(tmp_path: Path) -> tuple[str, str]:
    for name, trials in (("before", noisy(1.0, 1)), ("after", noisy(1.2, 2))):
        with Store.open(tmp_path / name) as store:
            for one in trials:
                store.append(one)
    return str(tmp_path / "before"), str(tmp_path / "after")


def test_ci_is_told_by_the_exit_code(folders: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    before, after = folders
    assert main(["compare", before, before]) == Exit.DONE
    out = capsys.readouterr().out
    assert "0 slower" not in out
    assert f"{len(TRIALS)} cases compared: {len(TRIALS)} same." in out
    assert main(["compare", before, after]) == Exit.DIFFERENT
    assert "slower" in capsys.readouterr().out
    assert main(["compare", before, after, "--fail-on", "30%", "--json"]) == Exit.DONE
    data = json.loads(capsys.readouterr().out)
    assert data["worse"] is False
    assert len(data["pairs"]) == len(TRIALS)
    assert main(["compare", before, after, "--markdown"]) == Exit.DIFFERENT
    assert "| case | before µs |" in capsys.readouterr().out


@pytest.mark.parametrize("share", ["2", "0", "-1%", "100%", "two", "1e-2", "nan"])
def test_a_share_that_is_none_is_refused(
    share: str, folders: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", *folders, f"--fail-on={share}"]) == Exit.USAGE
    assert "--fail-on is a share, as 2% or 0.02" in capsys.readouterr().err
