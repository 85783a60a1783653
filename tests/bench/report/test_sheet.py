"""Trials as CSV: read back by a reader of CSV, they are the trials; no label becomes a formula or another line."""

from __future__ import annotations

import csv
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest

from bench.cli import main
from bench.cli.exits import Exit
from bench.record import Failed, Measured, Skipped
from bench.report.sheet import HEADINGS, to_csv
from bench.store import Store
from bench.times import StageTime
from tests.bench.made_up import cases, trial

TRIALS = [trial(case) for case in cases(["8q1s1k", "q512"], exchanges=("ag_rs",))]


def read(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(StringIO(text)))


def test_each_case_is_a_line_of_numbers_and_texts() -> None:
    rows = read(to_csv(TRIALS))
    assert len(rows) == len(TRIALS)
    for row, one in zip(rows, TRIALS, strict=True):
        assert isinstance(one.outcome, Measured)
        assert row["batch"] == str(one.case.workload)
        assert (int(row["tp"]), int(row["dcp"])) == (one.case.layout.tp, one.case.layout.dcp)
        assert float(row["step_us"]) == pytest.approx(one.outcome.step_us.median, abs=1e-3)
        assert float(row["step_low_us"]) <= float(row["step_us"]) <= float(row["step_high_us"])
        assert row["outcome"] == "measured"
        assert row["command"].startswith("dcpbench --ranks ")


def test_a_warm_time_stands_beside_a_cold_one_where_there_is_one() -> None:
    one = TRIALS[0]
    assert isinstance(one.outcome, Measured)
    warm = replace(one, outcome=replace(one.outcome, warm=StageTime("step", one.outcome.launch_us)))
    assert [row["warm_us"] for row in read(to_csv([one]))] == [""]
    assert float(read(to_csv([warm]))[0]["warm_us"]) == one.outcome.launch_us.median


def test_the_last_trial_of_a_case_counts() -> None:
    assert len(read(to_csv([*TRIALS, *TRIALS]))) == len(TRIALS)


@pytest.mark.parametrize("hostile", ["=1+1", "+1", "-1", "@SUM(A1)", 'a","b', "two\nlines", "\x1b[31mred", "\t=1"])
def test_hostile_texts_stay_one_cell_and_no_formula(hostile: str) -> None:
    shape = replace(TRIALS[0].case.shape, name=hostile)
    some = [
        replace(TRIALS[0], case=replace(TRIALS[0].case, shape=shape)),
        replace(TRIALS[1], outcome=Skipped(hostile)),
        replace(TRIALS[2], outcome=Failed(hostile, hostile)),
    ]
    text = to_csv(some)
    assert text.count("\n") == 1 + len(some)
    rows = read(text)
    assert all(set(row) == set(HEADINGS) for row in rows)
    for row in rows:
        assert not any(cell[:1] in ("=", "+", "@", "\t", "\r") for cell in row.values())
    assert not rows[0]["model"].startswith("-")
    assert not rows[1]["reason"].startswith("-")


def test_the_command_prints_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Store.open(tmp_path) as store:
        for one in TRIALS:
            store.append(one)
    assert main(["show", "--results", str(tmp_path), "--csv"]) == Exit.DONE
    assert capsys.readouterr().out == to_csv(TRIALS)
