"""Trials as NVBench's tools read them: the real ones, of cuda-bench."""

from __future__ import annotations

import json
import re
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from bench.cli import main
from bench.cli.exits import Exit
from bench.record import Failed, Measured, Skipped, Trial
from bench.report.nvbench import AXES, write
from bench.shipped import reference_folder
from bench.store import read_run
from tests.bench.made_up import cases, trial
from tests.pages import words

H200 = reference_folder() / "h200"
EARLIER, LATER = "earlier/20261124T193927.983309Z-4408b7.jsonl", "earlier/20261125T005258.987801Z-93db44.jsonl"
TRIALS = [trial(case) for case in cases(["8q1s1k", "q512"], exchanges=("ag_rs",))]


def ended(name: str, *words: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", f"cuda.bench.scripts.{name}", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def tool(name: str, *words: str | Path) -> str:
    done = ended(name, *words)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout


def test_nvbench_finds_the_same_two_runs_apart_and_calls_faster_what_became_so(tmp_path: Path) -> None:
    files = [tmp_path / "before.json", tmp_path / "after.json"]
    for file, run in zip(files, (EARLIER, LATER), strict=True):
        assert main(["show", str(H200 / run), "--nvbench", str(file)]) == Exit.DONE
    told = tool("nvbench_compare_robust", "--no-color", *files)
    assert "Total Matches: 63" in told
    assert re.search(r"Unknown .*: 0", told)
    assert re.search(r"Regression .*: 0", told)
    faster = [line for line in told.splitlines() if "FAST" in line]
    # Small messages of direct learnt to travel as words between these runs; nothing else changed.
    assert len(faster) == 9
    assert all("direct" in line for line in faster)


def test_nvbench_sums_a_run_up(tmp_path: Path) -> None:
    write(TRIALS, tmp_path / "run.json")
    told = tool("nvbench_json_summary", tmp_path / "run.json")
    assert all(str(one.case.workload) in told for one in TRIALS)
    assert len(re.findall(r"^\|.+ us ", told, re.MULTILINE)) == len(TRIALS)


def test_samples_are_the_slowest_rank_s_in_seconds(tmp_path: Path) -> None:
    (run,), _ = ([one for one in read_run(H200 / LATER)[0] if one.ranks == 2][:1], None)
    assert isinstance(run.outcome, Measured)
    assert len(run.outcome.rank_samples_us) == 2
    samples, file = write([run], tmp_path / "run.json")
    (state,) = json.loads(file.read_text())["benchmarks"][0]["states"]
    told = {summary["tag"]: summary["data"][0]["value"] for summary in state["summaries"]}
    assert told["nv/json/bin:nv/cold/sample_times"] == samples.relative_to(tmp_path).as_posix()
    seconds = struct.unpack(f"<{told['nv/cold/sample_size']}f", samples.read_bytes())
    slowest = [max(pair) for pair in zip(*run.outcome.rank_samples_us, strict=True)]
    assert [1e6 * second for second in seconds] == pytest.approx(slowest, rel=1e-6)
    assert float(told["nv/cold/time/gpu/median"]) == pytest.approx(1e-6 * run.outcome.step_us.median, rel=0.02)
    assert float(told["nv/cold/sm_clock_rate/mean"]) == pytest.approx(1980e6, rel=0.2)


def test_cold_is_what_was_flushed_not_what_was_asked_for(tmp_path: Path) -> None:
    one = TRIALS[0]
    assert isinstance(one.outcome, Measured)
    for cold, flushed, word in ((True, 0, "unflushed"), (True, 1 << 20, "cold"), (False, 0, "warm")):
        policy = replace(one.policy, cold=cold)
        write([replace(one, policy=policy, outcome=replace(one.outcome, flushed_bytes=flushed))], tmp_path / "run.json")
        (state,) = json.loads((tmp_path / "run.json").read_text())["benchmarks"][0]["states"]
        assert word in state["axis_values"][0]["value"].split(", ")


def test_what_holds_no_times_is_skipped_and_a_clock_that_is_none_left_out(tmp_path: Path) -> None:
    one = TRIALS[0]
    assert isinstance(one.outcome, Measured)
    empty = replace(one, outcome=replace(one.outcome, rank_samples_us=((),)))
    fast = replace(one, clocks=({"sm_mhz": "9" * 400},))
    for case, skipped in ((empty, True), (fast, False)):
        write([case], tmp_path / "run.json")
        (state,) = json.loads((tmp_path / "run.json").read_text())["benchmarks"][0]["states"]
        assert state["is_skipped"] == skipped
        assert not any("clock" in summary["tag"] for summary in state["summaries"])


def test_what_was_skipped_or_failed_is_a_state_with_its_reason_so_that_two_runs_match(tmp_path: Path) -> None:
    outcomes = (Skipped("needs 9 GiB, 8 are free"), Failed("hung", "no answer within 300 s"), None)
    mixed = [trial(one.case, outcome) for one, outcome in zip(TRIALS, outcomes, strict=False)]
    whole = TRIALS[: len(mixed)]
    for name, run in (("mixed", mixed), ("whole", whole)):
        write(run, tmp_path / f"{name}.json")
    states = json.loads((tmp_path / "mixed.json").read_text())["benchmarks"][0]["states"]
    reasons = {state["skip_reason"] for state in states if state["is_skipped"]}
    assert reasons == {"needs 9 GiB, 8 are free", "hung: no answer within 300 s"}
    told = tool("nvbench_compare_robust", "--no-color", tmp_path / "whole.json", tmp_path / "mixed.json")
    assert "Total Matches: 3" in told


def test_two_runs_of_different_cases_are_none_that_nvbench_compares_as_the_page_says(tmp_path: Path) -> None:
    files = [tmp_path / "whole.json", tmp_path / "less.json"]
    for file, run in zip(files, (TRIALS, TRIALS[:-1]), strict=True):
        write(run, file)
    done = ended("nvbench_compare_robust", "--no-color", *files)
    assert done.returncode == 1
    assert "mismatched state occurrences" in done.stdout
    assert '"mismatched state occurrences"' in words("docs/method.md")


def test_every_case_and_way_of_timing_has_a_place_of_its_own(tmp_path: Path) -> None:
    both: list[Trial] = [*TRIALS, *(replace(one, policy=replace(one.policy, graphs=False)) for one in TRIALS)]
    write(both, tmp_path / "run.json")
    states = [state for one in json.loads((tmp_path / "run.json").read_text())["benchmarks"] for state in one["states"]]
    places = {tuple(value["value"] for value in state["axis_values"]) for state in states}
    assert len(places) == len(states) == len(both)
    assert all([value["name"] for value in state["axis_values"]] == list(AXES) for state in states)


def test_a_folder_that_is_none_is_exit_code_5(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert main(["show", str(H200 / LATER), "--nvbench", str(tmp_path / "file" / "run.json")]) == Exit.STORAGE
    assert capsys.readouterr().err.count("\n") == 1
