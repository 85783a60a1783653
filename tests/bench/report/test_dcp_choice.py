"""Which dcp to run, from trials: firm only where intervals are apart, and never without the label of its numbers."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest

from bench.record import Trial, latest
from bench.report.dcp_choice import DcpChoice, dcp_choices
from bench.shipped import reference_folder
from bench.store import Store
from dcp_core.cost import ceiling_of
from dcp_core.settings import Case
from tests.bench.made_up import CPU, cases, measured, summary, trial, trials

BATCHES = ("1q1s8k", "64q1s8k", "64q1s128k", "8q4s8k", "q2ks10k", "8q1s8k_q512s8k")
MEASURED: dict[str, object] = {"exchanges": ("ag_rs",), "kernels": ("fa2",)}
SIMULATED: dict[str, object] = {"exchanges": ("loopback",), "kernels": ("fa2",)}


def timed(found: Iterable[Case], larger: float) -> list[Trial]:
    """Return trials whose dcp 2 takes so many times as long as the cost model allows."""
    ceiling = ceiling_of("H200")
    return [trial(case, measured(case, ceiling, larger if case.layout.dcp > 1 else 1.0)) for case in found]


def only(found: Iterable[Trial]) -> DcpChoice:
    (choice,) = dcp_choices(found)
    return choice


def rows(choice: DcpChoice) -> tuple[tuple[str, ...], ...]:
    assert choice.grid is not None
    return choice.grid.rows


def test_where_dcp_1_always_wins_its_price_and_what_it_gives_are_said() -> None:
    choice = only(timed(cases(BATCHES, **MEASURED), 100.0))
    *kinds, held = choice.says
    assert [re.split(":", one)[0] for one in kinds] == ["Decode", "Drafted decode", "Chunked prefill", "Mixed batches"]
    assert kinds[0].startswith("Decode: dcp 1 is fastest in all 3 batches measured; dcp 2 takes ")
    assert "in the one batch measured" in kinds[1]
    assert all(re.search(r" takes [\d.]+( to [\d.]+)? times dcp 1's time \(measured\)\.$", one) for one in kinds)
    assert held == "dcp 2 holds 2 times the KV tokens of dcp 1."
    assert {row[1] for row in rows(choice)} == {"dcp 1"}
    assert choice.grid is not None
    assert not choice.grid.emphasized


def test_where_dcp_2_always_wins_no_break_even_is_told() -> None:
    choice = only(timed(cases(BATCHES, **MEASURED), 0.01))
    assert choice.says[0].startswith("Decode: dcp 2 is fastest in all 3 batches measured; dcp 2 takes ")
    assert not any("pays" in one for one in choice.says)
    assert choice.grid is not None
    assert choice.grid.emphasized == set(range(len(choice.grid.rows)))


@pytest.mark.parametrize(
    ("factor", "fastest"), [(0.9, "dcp 2"), (0.98, "dcp 2"), (1.0, "not told apart"), (1.02, "dcp 1"), (1.1, "dcp 1")]
)
def test_a_ratio_has_the_interval_that_its_verdict_rests_on(factor: float, fastest: str) -> None:
    pair = [next(cases(["16q1s32k"], dcps=(dcp,), exchanges=("ag_rs",), kernels=("fa2",))) for dcp in (1, 2)]
    found = []
    for case, step_us in zip(pair, (100.0, 100.0 * factor), strict=True):
        found.append(trial(case, replace(measured(case, ceiling_of("H200")), step_us=summary(step_us))))
    ((_, name, ratio, label),) = rows(only(found))
    assert (name, label) == (fastest, "measured")
    value, percent = map(float, ratio.removesuffix("%").split("±"))
    assert value == factor
    within = value * (1 - percent / 100) <= 1 <= value * (1 + percent / 100)
    assert within is (fastest == "not told apart")


def test_a_simulated_step_is_never_shown_without_its_label_and_what_is_not_known_of_it() -> None:
    choice = only(trials(*BATCHES, **SIMULATED))
    assert {row[3] for row in rows(choice)} == {"simulated, exchange assumed"}
    assert all("(simulated, exchange assumed)" in one for one in choice.says[:-1])
    assert all(re.fullmatch(r"[\d.]+ … [\d.]+", row[2]) for row in rows(choice))
    assert choice.grid is not None
    assert "Simulated steps lack their exchange" in choice.grid.footnotes[0]


def test_a_sentence_says_least_and_most_and_leaves_intervals_to_the_table() -> None:
    found = []
    for batch, step_us in (("1q1s8k", 123.4), ("64q1s8k", 56.78), ("64q1s128k", 99.0)):
        for case in cases([batch], **MEASURED):
            wide = summary(step_us if case.layout.dcp > 1 else 100.0, spread=0.3)
            found.append(trial(case, replace(measured(case, ceiling_of("H200")), step_us=wide)))
    choice = only(found)
    assert "; dcp 2 takes 0.57 to 1.23 times dcp 1's time (measured)" in choice.says[0]
    assert "±" in rows(choice)[0][2]


def test_of_steps_some_of_which_exchange_nothing_a_label_stands_once() -> None:
    told = only(trials("q2k", "q2ks10k", "q512s8k", **SIMULATED)).says[0]
    assert told.startswith("Chunked prefill: ")
    assert " times dcp 1's time (simulated, exchange assumed)" in told


def test_where_an_exchange_would_decide_dcp_pays_perhaps() -> None:
    told = only(trials("1q1s8k", "64q1s128k", **SIMULATED)).says[0]
    assert told.endswith(" and pays from 64 requests on at a context of 128k, perhaps at 8k.")


def test_of_links_that_nobody_knows_no_size_wins() -> None:
    choice = only(trial(case, environment=CPU) for case in cases(BATCHES, **SIMULATED))
    assert {row[1] for row in rows(choice)} <= {"not told apart", "dcp 1"}
    assert all(row[2].endswith(" or more") for row in rows(choice))
    assert re.search(r" takes [\d.]+ times dcp 1's time or more \(simulated, exchange unknown\)", choice.says[0])
    assert {row[3] for row in rows(choice)} == {"simulated, exchange unknown"}


@pytest.mark.parametrize("dcp", [1, 2])
def test_of_one_size_it_says_what_to_measure(dcp: int) -> None:
    choice = only(trials("q1s8k", dcps=(dcp,), **MEASURED))
    assert choice.grid is None
    assert choice.says[0].startswith(f"Only dcp {dcp} was measured: measure the same batches with --dcp 1,2 ")


def test_sizes_that_share_no_batch_are_not_compared() -> None:
    apart = [*trials("q1s8k", dcps=(1,), **MEASURED), *trials("q1s32k", dcps=(2,), **MEASURED)]
    assert only(apart).says[0].startswith("No batch was measured with dcp 1 and with a larger one: measure ")


def test_where_no_larger_dcp_is_legal_none_is_asked_for() -> None:
    assert only(trials("q1s8k", tp=4, dcps=(1,), **MEASURED)).says == ("No server runs a larger dcp than 1 here.",)


def test_of_a_layout_that_no_server_starts_with_nothing_is_advised() -> None:
    odd = only(trials("q1s8k", dcps=(4,), **SIMULATED))
    assert odd.says == ("No server starts with a layout that was measured here, so there is no dcp to choose.",)


def test_the_reference_says_from_where_dcp_pays_and_which_numbers_are_modelled() -> None:
    found = dcp_choices(latest(Store.read(reference_folder() / "h200")[0]))
    first = found[0]
    assert first.subject == "qwen3-235b-a22b, tp 8, on NVIDIA H200"
    tuning = (Path(__file__).parents[3] / "docs" / "tuning.md").read_text(encoding="utf-8")
    assert first.says[0] in " ".join(tuning.replace("\n> ", " ").split())
    assert first.says[0].endswith(
        "(measured) and pays from 16 requests on at a context of 8k, 8 at 32k, 1 at 128k, 1 at 256k, 1 at 512k, not at 1k."
    )
    assert ("decode, 8k", "dcp 1: 1 to 8; dcp 2: 16 to 256") in {row[:2] for row in rows(first)}
    assert {row[3] for row in rows(first)} == {"measured", "modelled"}
    larger = next(choice for choice in found if choice.subject.startswith("qwen3-235b-a22b, tp 32"))
    assert larger.says[-1] == "dcp 2, 4 and 8 hold 2, 4 and 8 times the KV tokens of dcp 1."
    assert ("decode, 128k", "dcp 4 or 8: 16; dcp 8: 64") in {row[:2] for row in rows(larger)}
