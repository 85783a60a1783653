"""The report as Markdown: the same answer and tables as the page, no pictures, and every label a text."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from bench.cli import main
from bench.cli.exits import Exit
from bench.record import Failed, Skipped
from bench.report.dcp_choice import dcp_choices
from bench.report.summary import to_markdown
from bench.store import Store
from bench.tune.pick import pick
from tests.bench.made_up import cases, trial

TRIALS = [trial(case) for case in cases(["8q1s1k", "q512"], exchanges=("ag_rs",))]
HOSTILE = '"><script>alert(1)</script> | [x](javascript:x) `y` *z* ![p](q)\n# h\x1b[31m'


def test_the_answer_comes_first_then_settings_then_what_is_missing_and_the_machine() -> None:
    missing = [replace(TRIALS[0], outcome=Skipped("no room")), replace(TRIALS[1], outcome=Failed("crashed", "gone"))]
    found = [*TRIALS[2:], *missing]
    text = to_markdown(found, pick(found), command="dcpbench report")
    headings = re.findall(r"^#+ (.*)", text, re.MULTILINE)
    assert headings[0] == f"{len(TRIALS)} cases on NVIDIA H200, 2026-02-03"
    assert headings[1].startswith("qwen3-235b-a22b, tp 8")
    assert headings[2:] == ["Settings", "Skipped, failed, flagged", "Where it was measured", "Words"]
    assert "- 1 case skipped: no room." in text
    assert "- 1 case failed: crashed: gone." in text
    assert "| driver | 580.95 |" in text


def test_it_says_what_the_page_says_of_dcp() -> None:
    text = to_markdown(TRIALS, pick(TRIALS), command="")
    (choice,) = dcp_choices(TRIALS)
    assert all(f"- {sentence}\n" in text for sentence in choice.says)
    assert choice.grid is not None
    assert choice.grid.to_markdown() in text


def test_hostile_labels_stay_text() -> None:
    shape = replace(TRIALS[0].case.shape, name=HOSTILE)
    found = [replace(one, case=replace(one.case, shape=shape)) for one in TRIALS]
    found[0] = replace(found[0], outcome=Skipped(HOSTILE))
    found[1] = replace(
        found[1], environment=replace(found[1].environment, hard={"device_name": HOSTILE, HOSTILE: HOSTILE})
    )
    text = to_markdown(found, pick(found), command=f"dcpbench report {HOSTILE}")
    assert not re.findall(r"(?<!\\)[<`\[]", text)
    assert "\x1b" not in text
    assert "\n# h" not in text
    tables = [line for line in text.splitlines() if line.startswith("| ")]
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in tables} <= {3, 5, 10}  # a name makes no column


def test_the_command_prints_it_and_refuses_to_call_a_page_otherwise(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Store.open(tmp_path / "results") as store:
        for one in TRIALS[:3]:
            store.append(one)
    where = ["report", "--results", str(tmp_path / "results")]
    assert main([*where, "--markdown"]) == Exit.DONE
    assert capsys.readouterr().out.startswith("## 3 cases on NVIDIA H200")
    for name, instead in (("x.md", "dcpbench report --markdown"), ("x.csv", "dcpbench show --csv")):
        assert main([*where, "-o", str(tmp_path / name)]) == Exit.USAGE
        assert instead in capsys.readouterr().err.replace("\n", " ")
        assert not (tmp_path / name).exists()
    for name in ("x.pdf", "x.HTML.gz", "x.svg"):
        assert main([*where, "-o", str(tmp_path / name)]) == Exit.USAGE
        assert "would be a page of HTML: call it .html" in capsys.readouterr().err.replace("\n", " ")
        assert not (tmp_path / name).exists()
    assert main([*where, "--markdown", "-o", str(tmp_path / "x.html")]) == Exit.USAGE


def test_of_runs_in_which_nothing_was_measured_it_says_so() -> None:
    text = to_markdown([replace(one, outcome=Skipped("no room")) for one in TRIALS], (), command="")
    assert "Nothing here was measured, so there is nothing to choose." in text
    assert f"- {len(TRIALS)} cases skipped: no room." in text
