"""Simulated + modelled: what is predicted of a step between ranks, of what it may not be, and how it is compared."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from bench.cli import main
from bench.collective import Way, fit_all, readings
from bench.predict import comparisons, messages, modelled, with_exchange
from bench.record import Heat, Label, Measured, Race, Trial
from bench.report.predicted_table import predicted_grids, predicted_json
from bench.store import Store
from dcp_core import Case, DcpLayout, Settings, Workload
from dcp_core.settings import ExchangeName
from tests.bench.made_up import CPU, QWEN, summary, trial, trials
from tests.bench.test_collective import on_a_line

MODELS = fit_all(readings(on_a_line("a2a", latency=9.0, per_byte=4e-6)))


def simulated(batch: str = "16q1s32k", *, dcp: int = 2, step_us: float = 100.0, **settings: object) -> Trial:
    chosen = {"path": "mask", "kernel": "fa2", "exchange": "loopback", **settings}
    found = trial(Case(QWEN, DcpLayout(8, dcp), Workload.parse(batch), Settings.from_json(chosen)))
    assert isinstance(found.outcome, Measured)
    return replace(found, outcome=replace(found.outcome, step_us=summary(step_us)))


def outcome_of(found: Trial | str) -> Measured:
    assert isinstance(found, Trial), found
    assert isinstance(found.outcome, Measured)
    return found.outcome


def exchange_us(tokens: int) -> float:
    gather, combine = 8 * 128 * 2 * tokens, 8 * (128 * 2 + 4) * tokens
    return 2 * 9.0 + 4e-6 * (gather + combine)


def test_a_step_is_its_simulation_plus_its_exchange_and_says_that_it_is_modelled() -> None:
    found = modelled(simulated(), ExchangeName.A2A, MODELS)
    outcome = outcome_of(found)
    assert isinstance(found, Trial)
    assert (outcome.label, outcome.exchange_timed, found.ranks) == (Label.MODELLED, True, 2)
    assert found.case.settings.exchange is ExchangeName.A2A
    assert outcome.step_us.median == pytest.approx(100.0 + exchange_us(16))
    assert [stage.name for stage in outcome.stages] == ["gather", "attention", "combine"]
    assert "gather modelled: a2a was met within 0% on sizes left out" in outcome.flags


def test_a_step_that_was_raced_is_modelled_as_one_that_met_nobody() -> None:
    alone = simulated()
    assert isinstance(alone.outcome, Measured)
    race, samples = Race("1", Heat.RACED, "1", cases=2, repeats=3), (100.0,) * 60
    step = replace(alone.outcome.step_us, count=len(samples))
    raced = replace(alone, outcome=replace(alone.outcome, step_us=step, race=race, rank_samples_us=(samples,)))
    outcome = outcome_of(modelled(raced, ExchangeName.A2A, MODELS))
    assert outcome.race is None
    assert outcome.step_us.median == pytest.approx(100.0 + exchange_us(16))


def test_beyond_the_fitted_group_the_bracket_widens_and_is_told() -> None:
    within, beyond = (outcome_of(modelled(simulated(dcp=dcp), ExchangeName.A2A, MODELS)) for dcp in (2, 8))
    assert within.step_us.high - within.step_us.low < beyond.step_us.high - beyond.step_us.low
    assert beyond.step_us.low <= beyond.step_us.median <= beyond.step_us.high
    # Seven peers: each may cost the latency anew, or none.
    assert beyond.step_us.high - beyond.step_us.low >= 2 * 6 * 9.0
    assert any("at dcp 2, bracketed beyond" in flag for flag in beyond.flags)


@pytest.mark.parametrize(
    ("batch", "settings", "asked"),
    [
        ("16q1s32k", {}, [("gather", 16), ("combine", 16)]),
        ("q512s32k", {"path": "split"}, [("gather", 512), ("combine", 512)]),
        ("q512", {"path": "split"}, []),
        ("4q1s32k_q512s32k", {"path": "split"}, [("gather", 4), ("combine", 4), ("gather", 512), ("combine", 512)]),
        ("4q1s32k_q512s32k", {"path": "split", "batching": "shared"}, [("gather", 516), ("combine", 516)]),
        ("4q1s32k_q512s32k", {"path": "fold", "batching": "joined"}, [("gather", 516), ("combine", 516)]),
    ],
)
def test_each_gather_and_combine_of_a_step_is_asked_for_its_own_tokens(
    batch: str, settings: dict[str, object], asked: list[tuple[str, int]]
) -> None:
    case = simulated(batch, **settings).case
    real = replace(case, settings=replace(case.settings, exchange="a2a"))
    assert list(messages(real)) == asked


def test_what_cannot_be_modelled_says_why() -> None:
    here = simulated()
    for found, exchange, why in (
        (here, ExchangeName.DIRECT, "no gather of direct was measured for rows of 8x128 in 2 bytes on this machine"),
        (replace(here, environment=CPU), ExchangeName.A2A, "no gather of a2a was measured"),
        (modelled(here, ExchangeName.A2A, MODELS), ExchangeName.A2A, "only a simulated trial lacks its exchange"),
        (simulated("q64s32k", path="split", overlap=True), ExchangeName.A2A, "overlap: how much of the exchange hides"),
    ):
        assert isinstance(found, Trial)
        told = modelled(found, exchange, MODELS)
        assert isinstance(told, str)
        assert told.startswith(why)


def test_a_case_and_its_simulation_find_one_another() -> None:
    for one in trials("16q1s32k", "q512s32k", "q512", "4q1s32k_q512s32k", dcps=(2,), exchanges=("a2a",)):
        twin = with_exchange(one.case, ExchangeName.LOOPBACK)
        assert twin.settings.exchange is ExchangeName.LOOPBACK
        assert with_exchange(twin, ExchangeName.A2A) == one.case


def measured(batch: str, *, error: float) -> Trial:
    """Make the trial that a perfect prediction is off by ``error``."""
    twin = simulated(batch)
    tokens = twin.case.workload.new_tokens
    case = with_exchange(twin.case, ExchangeName.A2A)
    found = trial(case, replace(outcome_of(twin), label=Label.MEASURED, exchange_timed=True))
    right = 100.0 + exchange_us(tokens)
    return replace(found, outcome=replace(outcome_of(found), step_us=summary(right / (1 + error))))


def test_steps_are_compared_with_their_simulation_and_a_model_that_knows_nothing_of_their_size() -> None:
    sizes = on_a_line("a2a")
    # The very message of the step compared is off the line: a model that had seen it would err.
    odd = [
        replace(
            one,
            outcome=replace(
                outcome_of(one),
                stages=tuple(
                    replace(stage, device_us=summary(5000.0)) if stage.communicates else stage
                    for stage in outcome_of(one).stages
                ),
            ),
        )
        if one.case.workload.new_tokens == 64
        else one
        for one in sizes
    ]
    steps = [measured("64q1s32k", error=0.05), simulated("64q1s32k")]
    (compared,) = comparisons([*odd, *steps])
    assert compared.error == pytest.approx(0.05)
    assert compared.is_close
    assert compared.measured == steps[0]
    assert compared.stages["attention"][0] == compared.stages["attention"][1]


def test_nothing_is_compared_across_machines_or_ways_of_timing() -> None:
    step, twin = measured("64q1s32k", error=0.0), simulated("64q1s32k")
    sizes = on_a_line("a2a")
    assert len(comparisons([*sizes, step, twin])) == 1
    assert comparisons([*sizes, step, replace(twin, environment=CPU)]) == []
    assert comparisons([*sizes, step, replace(twin, policy=replace(twin.policy, graphs=False))]) == []
    assert comparisons([*sizes, step, replace(twin, protocol=twin.protocol - 1)]) == []
    assert comparisons([*sizes, step]) == []
    assert comparisons([step, twin]) == []
    assert Way.of(step, outcome_of(step)) == Way.of(twin, outcome_of(twin))


def test_the_table_counts_what_came_close() -> None:
    batches = {"64q1s32k": 0.05, "16q1s32k": -0.08, "256q1s32k": 0.4}
    steps = [measured(batch, error=error) for batch, error in batches.items()]
    twins = [simulated(batch) for batch in batches]
    found = comparisons([*on_a_line("a2a"), *steps, *twins])
    whole, stages = predicted_grids(found)
    assert [row[-1] for row in whole.rows] == ["+40.0%", "-8.0%", "+5.0%"]
    assert whole.footnotes == ("2 of 3 steps within 10%; models know no message of the size asked for.",)
    assert stages.rows[-1] == ("whole step", "3", "8.0%", "+40.0%", "67%")
    assert predicted_grids([]) == []
    assert [one["error"] for one in predicted_json(found)] == pytest.approx([0.05, -0.08, 0.4])


BRIEF = """
model = "tiny"
tp = 4
dcp = 2
path = ["decode", "mask"]
exchange = "a2a"
context = 15
concurrency = [1, 4, 16, 64]
policy = { precision = "quick", max_seconds = 0.02 }
"""


def test_what_two_processes_measured_is_read_fitted_and_compared_with_its_simulation(tmp_path: Path) -> None:
    sweep = tmp_path / "brief.toml"
    sweep.write_text(BRIEF, encoding="utf-8")
    for ranks in ("2", "1"):
        assert main(["--ranks", ranks, "sweep", str(sweep), "--results", str(tmp_path), "--json"]) == 0
    found, _ = Store.read(tmp_path)
    exchanged = readings(found)
    assert {(one.operation, one.tokens) for one in exchanged} == {
        (operation, tokens) for operation in ("gather", "combine") for tokens in (1, 4, 16, 64)
    }
    for one in exchanged:
        assert one.pure_us > 0
        assert one.skew_us is not None
    assert {model.operation for model in fit_all(exchanged)} == {"gather", "combine"}
    compared = comparisons(found)
    assert len(compared) == 8
    for pair in compared:
        assert {"gather", "attention", "combine"} <= pair.stages.keys()
        told = outcome_of(pair.modelled)
        added = sum(stage.device_us.median for stage in told.stages if stage.communicates)
        alone = next(one for one in found if one.case == with_exchange(pair.measured.case, ExchangeName.LOOPBACK))
        assert told.step_us.median == pytest.approx(outcome_of(alone).step_us.median + added)
    assert main(["show", "--results", str(tmp_path), "--exchanges"]) == 0
    assert main(["show", "--results", str(tmp_path), "--predicted"]) == 0
