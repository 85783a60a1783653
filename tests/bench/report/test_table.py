"""Rows of what was measured: rivals compared with their like, labels beside every number, reasons below."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from bench.cli import main
from bench.cli.exits import Exit
from bench.record import Failed, Label, Measured, Skipped, Trial
from bench.report.choices import regions_grid
from bench.report.style import not_shown
from bench.report.table import (
    Footnotes,
    all_layers,
    case_line,
    case_name,
    counted,
    kernels_of,
    label_of,
    micros,
    notes_of,
    path_of,
    rows_of,
    spread,
    trials_grids,
)
from bench.store import Store
from bench.times import StageTime
from bench.tune.pick import pick
from dcp_core import Settings
from tests.bench.made_up import cases, summary, trial, trials


def test_a_ratio_compares_only_what_may_be_compared() -> None:
    rows = rows_of(trials("16q1s32k"))
    for label in (Label.MEASURED, Label.SIMULATED):
        ratios = [row.ratio for row in rows if row.outcome.label is label]
        assert min(ratios) == 1.0
        assert len(ratios) > 2
    best = next(row for row in rows if row.ratio == 1.0 and row.outcome.label is Label.SIMULATED)
    assert best.outcome.step_us.median < min(
        row.outcome.step_us.median for row in rows if row.outcome.label is Label.MEASURED
    )


def test_cold_and_warm_are_no_rivals() -> None:
    one, other = trials("16q1s32k", dcps=(1,))
    assert isinstance(other.outcome, Measured)
    warm = replace(other, outcome=replace(other.outcome, flushed_bytes=0, step_us=summary(1.0)))
    assert [row.ratio for row in rows_of([one, warm])] == [1.0, 1.0]


def test_what_a_warm_cache_makes_of_decodes_is_said_where_it_was_timed() -> None:
    one, other = trials("16q1s32k", dcps=(1,))
    assert isinstance(one.outcome, Measured)
    assert isinstance(other.outcome, Measured)
    assert not any("warm" in line for grid in trials_grids([one, other]) for line in grid.footnotes)
    half, most = (
        replace(cold, outcome=replace(outcome, warm=StageTime("step", summary(share * outcome.step_us.median))))
        for cold, outcome, share in ((one, one.outcome, 0.5), (other, other.outcome, 0.9))
    )
    (grid,) = trials_grids([half, most])
    assert "Decodes with a warm L2 cache take 0.50 to 0.90 times as long." in grid.footnotes
    (grid,) = trials_grids([half])
    assert "Decodes with a warm L2 cache take 0.50 times as long." in grid.footnotes


def test_eager_stands_beside_graphs_and_is_named() -> None:
    (replayed,) = trials("16q1s32k", dcps=(1,), kernels=("fa2",))
    assert isinstance(replayed.outcome, Measured)
    slow = replace(replayed.outcome, timer="cuda_events", step_us=summary(900.0))
    eager = replace(replayed, policy=replace(replayed.policy, graphs=False), outcome=slow)
    rows = rows_of([eager, replayed])
    assert [(row.trial, row.ratio) for row in rows] == [(replayed, 1.0), (eager, 1.0)]
    assert [label_of(row.trial, row.outcome) for row in rows] == ["measured", "measured eager"]
    assert case_line(eager).endswith(" measured eager")


def test_the_last_trial_of_a_case_counts() -> None:
    (case,) = cases(["q1s1k"], dcps=(1,), kernels=("fa2",))
    assert rows_of([trial(case), trial(case, Failed("crashed", "gone"))]) == []
    assert len(rows_of([trial(case, Failed("crashed", "gone")), trial(case)])) == 1


def test_tables_are_split_by_model_and_tp_and_fit_80_columns() -> None:
    found = trials("16q1s32k", "q2ks32k", "4q1s8k_q512s4k") + trials("q2k", tp=16, dcps=(1, 2, 4))
    grids = trials_grids(found)
    assert [grid.title for grid in grids] == ["qwen3-235b-a22b, tp 8", "qwen3-235b-a22b, tp 16"]
    for grid in grids:
        assert max(map(len, grid.to_text().splitlines())) <= 80
        assert {row[-1] for row in grid.rows} <= {"measured", "simulated"}


def between_ranks(one: Trial) -> Trial:
    """Return a trial whose second rank takes 2 µs longer."""
    assert isinstance(one.outcome, Measured)
    return replace(one, outcome=replace(one.outcome, rank_samples_us=((900.0, 901.0), (902.0, 903.0))))


def test_the_skew_between_ranks_and_its_straggler_stand_in_tables_and_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    alone, *others = trials("16q1s32k", kernels=("fa2",), exchanges=("ag_rs",))
    with Store.open(tmp_path) as store:
        for one in (alone, *map(between_ranks, others)):
            store.append(one)
    assert main(["show", "--results", str(tmp_path)]) == Exit.DONE
    out = capsys.readouterr().out
    assert " 2.00 µs apart at most" in " ".join(out.split())
    assert "rank 1 took longest most often." in " ".join(out.split())
    assert main(["show", "--results", str(tmp_path), "--json"]) == Exit.DONE
    derived = [one["derived"] for one in json.loads(capsys.readouterr().out)["trials"]]
    assert [one.get("skew_us") for one in derived] == [None, *[2.0] * len(others)]
    assert [one.get("straggler") for one in derived] == [None, *[1] * len(others)]


def test_rows_stand_in_order_of_the_batch_and_then_of_time() -> None:
    rows = rows_of(trials("q512", "16q1s32k", "q8s32k", exchanges=("ag_rs",)))
    batches = list(dict.fromkeys(str(row.case.workload) for row in rows))
    assert batches == ["16q1s32k", "q8s32k", "q512"]
    decodes = [row.outcome.step_us.median for row in rows if str(row.case.workload) == "16q1s32k"]
    assert decodes == sorted(decodes)


def test_a_layout_that_no_server_starts_with_is_marked() -> None:
    grids = trials_grids(trials("q1s1k", dcps=(4,), kernels=("fa2",), exchanges=("loopback",)))
    assert {row[1] for row in grids[0].rows} == {"4*"}
    assert "*: no server starts with this layout." in grids[0].footnotes


def test_reasons_are_counted_and_said_once() -> None:
    found = trials("q2ks32k", exchanges=("loopback",))
    found = [
        replace(found[0], outcome=Skipped("fa3 needs a Hopper GPU")),
        replace(found[1], outcome=Skipped("fa3 needs a Hopper GPU")),
        replace(found[2], outcome=Failed("timeout", "no answer within 300 s\nand more")),
        *found[3:],
    ]
    notes = notes_of(found)
    assert notes[0] == "1 case failed: timeout: no answer within 300 s."
    assert notes[1] == "2 cases skipped: fa3 needs a Hopper GPU."
    assert notes[-1].startswith(f"{len(found) - 3} cases simulated on one device: every rank was checked")


def test_flags_that_differ_in_numbers_alone_are_one_note() -> None:
    found = trials("q2ks32k", exchanges=("loopback",))
    for index, floor in enumerate(("3.33", "10.1", "3.4")):
        outcome = found[index].outcome
        assert isinstance(outcome, Measured)
        flags = (f"under 10 timer floors of {floor} us", "all_gather2 composed")
        found[index] = replace(found[index], outcome=replace(outcome, flags=flags))
    notes = [note for note in notes_of(found) if "flagged" in note]
    assert notes == [
        "3 cases flagged: under 10 timer floors of 3.33 to 10.1 us.",
        "3 cases flagged: all_gather2 composed.",
    ]


def test_other_settings_than_the_default_get_a_footnote() -> None:
    notes = Footnotes()
    assert notes.path(Settings()) == "split"
    assert notes.path(Settings(page_size=64)) == "split(a)"
    assert notes.path(Settings(skip_empty_context=False)) == "split(b)"
    assert notes.path(Settings(page_size=64)) == "split(a)"
    assert notes.lines() == ("(a) page_size=64", "(b) skip_empty_context=False")


def test_settings_are_named_in_short() -> None:
    assert path_of(Settings.from_json({"path": "mask", "kernel": "fa2", "mask_form": "bool"})) == "mask:bool"
    assert kernels_of(Settings.from_json({"kernel": "fa2", "new_kernel": "fa3"})) == "fa2+fa3"


@pytest.mark.parametrize(("value", "shown"), [(8.524, "8.52"), (17.23, "17.2"), (35269.4, "35269")])
def test_times_have_three_figures_or_more(value: float, shown: str) -> None:
    assert micros(value) == shown


def test_the_interval_is_shown_as_its_wider_half() -> None:
    assert spread(replace(summary(100.0), median=100.0, low=99.0, high=102.5)) == "±2.5%"
    assert spread(replace(summary(100.0), median=100.0, min=20.0, low=20.0, high=102.5)) == "±80%"


def test_a_trial_fits_a_line_whatever_became_of_it() -> None:
    case = next(case for case in cases(["2q8s1k"], dcps=(2,)) if case.settings.exchange == "ag_rs")
    assert case_name(case) == "qwen3-235b-a22b tp 8 dcp 2 2q8s1k split fa2 ag_rs"
    assert case_name(replace(case, settings=replace(case.settings, skip_empty_context=False, page_size=64))) == (
        "qwen3-235b-a22b tp 8 dcp 2 2q8s1k split fa2 ag_rs page_size=64 skip_empty_context=False"
    )
    assert case_line(trial(case)).endswith("% measured")
    assert case_line(trial(case, Skipped("no room"))).endswith("skipped, no room.")
    assert case_line(trial(case, Failed("error", "boom\nline two"))).endswith("FAILED, error: boom.")


def test_one_of_something_is_told_in_the_singular() -> None:
    assert [counted(many, "case") for many in (0, 1, 2, 1134)] == ["0 cases", "1 case", "2 cases", "1,134 cases"]
    assert [counted(many, "batch", "batches") for many in (1, 2)] == ["1 batch", "2 batches"]
    assert [all_layers(many) for many in (1, 94)] == ["one layer", "all 94 layers"]
    assert not_shown(1) == "1 more batch was measured and not drawn."
    assert not_shown(3, "row", "rows") == "3 more rows were measured and not drawn."


def test_a_profile_counts_the_batches_that_answer_for_others() -> None:
    def told(*batches: str) -> set[str]:
        (profile,) = pick([one for batch in batches for one in trials(batch, dcps=(2,))])
        return {row[1] for row in regions_grid(profile).rows}

    assert told("16q1s32k", "q512s8704") == {"1 decode", "1 longer one"}
    assert told("16q1s32k", "8q1s32k", "q512s8704", "q2k") == {"2 decodes", "2 longer ones"}
