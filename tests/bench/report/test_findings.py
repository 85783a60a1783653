"""What a search says of itself: the tables agree, and what would puzzle a reader is said below them."""

from __future__ import annotations

from bench.record import Heat
from bench.report.findings import findings_grid
from bench.tune.search import Finding
from bench.verdict import compare
from tests.bench.cases import tiny

DEFAULT, OTHER = tiny("4q8s64", dcp=2, path="split"), tiny("4q8s64", dcp=2, path="fold")
STEADY = [100.0, 101.0, 99.0, 100.5] * 10
SLOWING = [100.0] * 10 + [130.0] * 10 + [160.0] * 10 + [190.0] * 10


def finding(mine: list[float], theirs: list[float], *, runner_up: float) -> Finding:
    seen = compare(mine, theirs)
    chosen, second = (OTHER, DEFAULT) if seen.verdict == "faster" else (DEFAULT, OTHER)
    return Finding(chosen, DEFAULT, seen, (second, runner_up), Heat.CONFIRMED, 2, 2, 4, 1.0, done=True)


def notes(*findings: Finding) -> list[str]:
    return list(findings_grid(findings).footnotes)


def test_a_gain_needs_no_note() -> None:
    assert notes(finding([0.8 * us for us in STEADY], STEADY, runner_up=1.25)) == []


def test_a_default_that_stays_though_the_candidate_looks_faster_is_explained() -> None:
    found = notes(finding([0.75 * us for us in SLOWING], SLOWING, runner_up=0.75))
    assert found[0].startswith("1× no candidate was shown to beat the default")
    assert found[2].startswith("1× of these it looked faster while the device changed its speed by over 15%")
    assert len(found) == 4
    assert max(map(len, found)) <= 80
    steady = notes(finding([0.999 * us for us in STEADY], STEADY, runner_up=1.0))
    assert len(steady) == 2


def test_a_next_best_below_the_choice_is_explained() -> None:
    note, rest = notes(finding([0.8 * us for us in STEADY], STEADY, runner_up=0.998))
    assert note.startswith("1× the next best seems faster, but is not told apart: of such the default")
    assert max(len(note), len(rest)) <= 80


def test_an_interval_is_as_wide_as_its_farther_end() -> None:
    (row,) = findings_grid([finding([0.8 * us for us in STEADY], STEADY, runner_up=1.2)]).rows
    assert row[3:5] == ("0.800", "±0.0%")
