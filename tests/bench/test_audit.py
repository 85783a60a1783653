"""An audit of the measuring: repetitions told apart in what a profiler saw, and what is said of two timers and of A/A races."""

from __future__ import annotations

import gc
import json
import random
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.audit import NULL, Audited, Repetition, apart_us, false_share, repetitions_us, twin, worst
from bench.cli import main
from bench.cli.audit import RACES
from bench.cli.exits import Exit
from bench.race import Course
from bench.record import Failed, Heat, Measured, Race
from bench.verdict import Comparison, Verdict
from dcp_core.cost import ceiling_of, step_work
from dcp_core.mesh import Mesh
from tests.bench.cases import QUICK, tiny
from tests.bench.made_up import measured, summary
from tests.bench.stand_in import Scripted

SWEEP = ("--model", "tiny", "--tp", "4", "--dcp", "1,2", "--context", "512,1k", "--new", "1,8", "--exchange", "ag_rs")
NOTHING = Audited(NULL, 4.8, 1.3, 1, 0.0)


def run(*words: str | Path) -> int:
    return main([str(word) for word in words])


# --- Repetitions --------------------------------------------------------------------------------------------------------


@given(st.integers(1, 12), st.integers(0, 2), st.integers(0, 5), st.randoms())
def test_repetitions_are_told_apart_whatever_order_their_work_is_reported_in(
    repetitions: int, ahead: int, kernels: int, source: random.Random
) -> None:
    work: list[tuple[float, float]] = []
    took: list[float] = []
    now = 0.0
    for _ in range(repetitions):
        start = now
        for _ in range(ahead):
            start = now + 40.0
            work.append((now, start))
            now += source.uniform(40.5, 43)
        begin = start if ahead else now
        for _ in range(kernels):
            long = source.uniform(1, 9)
            work.append((now, now + long))
            now += long + 0.5
        took.append(now - 0.5 - begin if kernels else 0.0)
        now += source.uniform(0.1, 3)
    source.shuffle(work)
    times = [source.uniform(1, 99) for _ in range(repetitions)]
    found = repetitions_us(times, work, ahead)
    assert [one.events_us for one in found] == times
    assert [one.cupti_us for one in found] == pytest.approx(took)
    assert {one.kernels for one in found} == {kernels}


def test_a_kernel_that_runs_beside_others_ends_its_repetition_if_it_ends_last() -> None:
    beside = [(0.0, 9.0), (10.0, 30.0), (11.0, 14.0)]
    assert repetitions_us([22.0], beside, 1) == [Repetition(22.0, 21.0, 2)]


def test_how_long_a_kernel_takes_to_start_after_the_cooling_counts_as_it_does_for_events() -> None:
    assert repetitions_us([22.0], [(0.0, 9.0), (11.0, 30.0)], 1) == [Repetition(22.0, 21.0, 1)]
    assert repetitions_us([22.0], [(11.0, 30.0)], 0) == [Repetition(22.0, 19.0, 1)]


def test_what_waits_for_another_rank_is_ahead_like_the_cooling() -> None:
    met = [(0.0, 9.0), (10.0, 400.0), (402.0, 430.0), (440.0, 449.0), (450.0, 460.0), (462.0, 463.0)]
    assert repetitions_us([31.0, 5.0], met, 2) == [Repetition(31.0, 30.0, 1), Repetition(5.0, 3.0, 1)]


@pytest.mark.parametrize(("kernels", "repetitions", "ahead"), [(7, 3, 0), (8, 3, 1), (6, 3, 3)])
def test_repetitions_of_different_work_are_refused(kernels: int, repetitions: int, ahead: int) -> None:
    sentence = f"{kernels} kernels are not {repetitions} equal repetitions of {ahead} or more"
    with pytest.raises(ValueError, match=sentence):
        repetitions_us([1.0] * repetitions, [(float(at), at + 0.5) for at in range(kernels)], ahead)


def test_what_events_read_beyond_the_work_is_compared_in_the_mean() -> None:
    """Every other repetition of either reads half a microsecond less; a median would be of the one or of the other."""
    stage = [Repetition(20.0 + more, 20.0, 2) for more in (3.5, 3.0, 3.5)]
    null = [Repetition(1.5 + more, 1.5, 1) for more in (3.0, 3.5, 3.0)]
    assert apart_us(stage, null) == pytest.approx(1 / 3 - 1 / 6)


# --- What is said of them -----------------------------------------------------------------------------------------------


def stage(apart_us: float, cupti_us: float = 100.0, name: str = "context", rank: int = 0) -> Audited:
    return Audited(name, cupti_us + 3.5, cupti_us, 2, apart_us, rank)


def test_two_timers_agree_that_are_no_more_than_three_per_cent_apart_either_way() -> None:
    assert stage(2.0).error == pytest.approx(0.02)
    assert all(stage(apart).agrees for apart in (0.0, 2.9, -2.9))
    assert not any(stage(apart).agrees for apart in (3.1, -3.1))
    assert not stage(0.5, cupti_us=10.0).agrees


@pytest.mark.parametrize(
    "values",
    [
        ("step", 3.0, 2.0, 0, 0.0),
        ("step", 0.0, 2.0, 1, 0.0),
        ("step", 3.0, 0.0, 1, 0.0),
        ("step", 3.0, float("inf"), 1, 0.0),
        ("step", float("nan"), 2.0, 1, 0.0),
        ("step", 3.0, 2.0, 1, float("nan")),
    ],
)
def test_what_no_two_timers_say_of_a_stage_is_refused(values: tuple[str, float, float, int, float]) -> None:
    with pytest.raises(ValueError, match="step"):
        Audited(*values)


def test_of_several_ranks_the_one_is_told_on_which_the_timers_are_furthest_apart() -> None:
    first = [NOTHING, stage(1.0), stage(-0.2, name="gather"), None, None]
    second = [NOTHING, stage(-1.5, rank=1), stage(0.1, name="gather", rank=1), stage(0.0, name="new", rank=1), None]
    found = worst([first, second])
    assert [(one.stage, one.rank) for one in found] == [(NULL, 0), ("context", 1), ("gather", 0), ("new", 1)]
    with pytest.raises(ValueError, match="shorter"):
        worst([first, second[:-1]])


def test_a_twin_is_a_case_of_its_own_and_runs_the_same() -> None:
    case = tiny("q8s32", dcp=2)
    other = twin(case)
    assert other != case
    assert (other.layout, other.workload, other.settings) == (case.layout, case.workload, case.settings)
    assert step_work(other) == step_work(case)
    race = Race("a", Heat.RACED, "p", 1, 2)
    first, second = Course().race([case, other], Mesh.simulated(2), QUICK, race, rounds=2, whole=False)
    assert isinstance(first, Measured)
    assert isinstance(second, Measured)
    assert first.rank_samples_us != second.rank_samples_us, "each is timed by itself"
    assert first.check == second.check
    gc.unfreeze()


def test_false_verdicts_are_counted() -> None:
    def verdict(one: Verdict) -> Comparison:
        return Comparison(1.0, 0.99, 1.01, 0.5, 30, one)

    found = [verdict(one) for one in (Verdict.SAME, Verdict.AMBIGUOUS, Verdict.FASTER, Verdict.SLOWER)]
    assert (false_share(found), false_share([])) == (0.5, 0.0)


# --- The program --------------------------------------------------------------------------------------------------------


def test_two_timers_that_agree_are_done_and_two_that_do_not_are_exit_code_1(
    scripted: Scripted, capsys: pytest.CaptureFixture[str]
) -> None:
    scripted.audited = lambda _: [NOTHING, Audited("step", 103.4, 100.0, 2, 2.9), Audited("new", 53.6, 50.0, 1, -0.1)]
    assert run("audit", *SWEEP, "--cases", "5") == Exit.DONE
    out, err = capsys.readouterr()
    assert "5 cases of 18 to audit" in err
    assert "Two timers agree within 3% in 10 of 10 stages of 10 timer floors or more." in out
    assert "Of 5 cases raced against itself, one was called faster in 0.0%." in out
    assert {heat for heat, _ in scripted.races} == {Heat.RACED}
    assert all(twin(first) == second for _, (first, second) in scripted.races)
    scripted.audited = lambda number: [NOTHING, Audited("step", 103.5, 100.0, 2, 3.1 if number == 0 else 0.0)]
    assert run("audit", *SWEEP, "--cases", "5") == Exit.DIFFERENT
    assert "in 4 of 5 stages" in capsys.readouterr().out


def test_stages_below_ten_floors_are_told_apart(scripted: Scripted, capsys: pytest.CaptureFixture[str]) -> None:
    short = [Audited("merge", 4.7, 1.6, 1, -0.4), Audited("new", 9.0, 5.3, 1, 0.2)]
    scripted.audited = lambda _: [NOTHING, Audited("step", 103.4, 100.0, 2, -0.1), *short]
    assert run("audit", *SWEEP, "--cases", "5") == Exit.DONE
    out = capsys.readouterr().out
    assert "in 5 of 5 stages of 10 timer floors or more." in out
    assert "In 10 shorter ones, which trials flag, they are 0.4 µs apart at most." in out.replace("0.40", "0.4")
    assert run("audit", *SWEEP, "--cases", "5", "--json") == Exit.DONE
    told = json.loads(capsys.readouterr().out)
    assert [told[name] for name in ("stages", "agree", "short", "short_agree")] == [5, 5, 10, 0]


def test_an_audit_that_is_interrupted_tells_what_it_has(scripted: Scripted, capsys: pytest.CaptureFixture[str]) -> None:
    def audited(number: int) -> list[Audited]:
        if number == 2:
            raise KeyboardInterrupt
        return [NOTHING, Audited("step", 103.4, 100.0, 2, -0.1)]

    scripted.audited = audited
    assert run("audit", *SWEEP, "--cases", "5", "--json") == Exit.INTERRUPTED
    out, err = capsys.readouterr()
    assert "Stopped after 2 cases of 5." in err
    told = json.loads(out)
    assert [told[name] for name in ("stages", "agree", "races")] == [2, 2, 2]
    assert told["command"] == f"dcpbench audit {' '.join(SWEEP)} --cases 5 --json"


@pytest.mark.parametrize(("step_us", "races"), [(1_000.0, RACES), (4_000.0, 2), (60_000.0, 1)])
def test_a_case_of_long_steps_races_no_longer_than_a_search_would_sample_it(
    step_us: float, races: int, scripted: Scripted, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = tmp_path / "sweep.toml"
    sweep.write_text('model = "tiny"\ntp = 4\nbatch = ["q8"]\nexchange = "alone"\n[policy]\nmax_seconds = 0.3\n')
    scripted.script = lambda _number, case: replace(measured(case, ceiling_of("")), step_us=summary(step_us))
    assert run("audit", sweep, "--cases", "1", "--json") == Exit.DONE
    assert len(scripted.races) == races
    assert json.loads(capsys.readouterr().out)["races"] == 1


def test_an_audit_whose_time_is_spent_begins_no_other_case(
    scripted: Scripted, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now_s = 0.0
    monkeypatch.setattr("bench.cli.audit.time", SimpleNamespace(monotonic=lambda: now_s))

    def audited(_: int) -> list[Audited]:
        nonlocal now_s
        now_s += 31.0
        return [NOTHING, Audited("step", 103.4, 100.0, 2, -0.1)]

    scripted.audited = audited
    assert run("audit", *SWEEP, "--cases", "5", "--time-budget", "1m", "--json") == Exit.DONE
    out, err = capsys.readouterr()
    assert "The time budget is spent after 2 cases of 5." in err
    assert json.loads(out)["stages"] == 2
    assert run("audit", *SWEEP, "--cases", "2", "--time-budget", "1m") == Exit.DONE
    assert "is spent" not in capsys.readouterr().err, "nothing was left to do"
    assert run("audit", *SWEEP, "--time-budget", "soon") == Exit.USAGE


def test_what_could_not_be_audited_is_said_with_its_reason(
    scripted: Scripted, capsys: pytest.CaptureFixture[str]
) -> None:
    scripted.script = lambda _number, _case: Failed("crashed", "a worker died")
    assert run("audit", *SWEEP, "--cases", "2", "--json") == Exit.DONE
    told = json.loads(capsys.readouterr().out)
    assert (told["stages"], told["races"]) == (0, 0)
    assert {(one["timed"], one["raced"]) for one in told["cases"]} == {("no GPU here", "crashed: a worker died")}
    assert run("audit", *SWEEP, "--cases", "2") == Exit.DONE
    out = capsys.readouterr().out
    assert "not timed twice: no GPU here\nnot raced: crashed: a worker died" in out


def test_the_same_cases_are_drawn_again_and_others_with_another_seed(
    scripted: Scripted, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    drawn = []
    for seed in (0, 0, 1):
        sweep = tmp_path / f"sweep{seed}.toml"
        sweep.write_text(
            f'model = "tiny"\ntp = 4\ndcp = [1, 2]\nbatch = ["q8", "q9", "8q1s1k"]\n[policy]\nseed = {seed}\n'
        )
        assert run("audit", sweep, "--cases", "4", "--dry-run") == Exit.DONE
        drawn.append(capsys.readouterr().out)
    assert drawn[0] == drawn[1] != drawn[2]
    assert scripted.races == []


@pytest.mark.parametrize("words", [("--shard", "1/2"), ("--cluster", "auto")])
def test_an_audit_is_of_one_machine(
    scripted: Scripted, words: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("audit", *SWEEP, *words) == Exit.USAGE
    assert "an audit is of one machine" in capsys.readouterr().err
