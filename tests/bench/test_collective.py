"""What exchanges cost: read off trials, fitted, and never promised closer than sizes left out were met."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bench.collective import CollectiveModel, Reading, fit, fit_all, readings, wire_bytes
from bench.record import Measured
from dcp_core.settings import ExchangeName
from tests.bench.made_up import summary, trials

SIZES = tuple(f"{tokens}q1s16" for tokens in (1, 8, 64, 256, 1024, 4096))


def exchange_trials(exchange: str = "a2a", dcp: int = 2, latency: float = 9.0, per_byte: float = 4e-6) -> list[Reading]:
    """Make readings whose times are a straight line."""
    found = []
    for trial in trials(*SIZES, dcps=(dcp,), exchanges=(exchange,), kernels=("fa2",)):
        outcome = trial.outcome
        assert isinstance(outcome, Measured)
        stages = [
            replace(stage, device_us=summary(latency + per_byte * wire_bytes(trial.case, stage.name)))
            if stage.communicates
            else stage
            for stage in outcome.stages
        ]
        found.append(replace(trial, outcome=replace(outcome, stages=tuple(stages))))
    return readings(found)


def test_a_reading_names_its_exchange_its_tokens_and_its_bytes() -> None:
    found = [reading for reading in exchange_trials() if reading.tokens == 64]
    gather, combine = (next(one for one in found if one.operation == name) for name in ("gather", "combine"))
    # Qwen3-235B at tp 8, dcp 2: 8 query heads of one peer, bfloat16, head_dim 128; an LSE beside each output.
    assert gather.wire_bytes == 64 * 8 * 128 * 2
    assert combine.wire_bytes == 64 * 8 * (128 * 2 + 4)
    assert gather.exchange is ExchangeName.A2A
    assert gather.bus_gb_per_s == pytest.approx(gather.wire_bytes / gather.time_us.median / 1e3)


def test_what_was_simulated_tells_nothing_of_exchanges() -> None:
    assert readings(trials(*SIZES, exchanges=("loopback",))) == []


def test_a_straight_line_is_found_and_states_no_error() -> None:
    models = fit_all(exchange_trials())
    assert {model.operation for model in models} == {"gather", "combine"}
    for model in models:
        assert model.latency_us == pytest.approx(9.0, rel=1e-6)
        assert model.bytes_per_us == pytest.approx(1 / 4e-6, rel=1e-6)
        assert model.worst_error < 1e-6
        assert model.time_us(1 << 20) == pytest.approx(9.0 + 4e-6 * (1 << 20))


def test_a_size_off_the_line_shows_in_the_error_it_states() -> None:
    found = [reading for reading in exchange_trials() if reading.operation == "gather"]
    odd = [replace(one, time_us=summary(2 * one.time_us.median)) if one.tokens == 64 else one for one in found]
    model = fit(odd)
    assert model is not None
    assert model.worst_error == pytest.approx(0.5, abs=0.05)
    assert 0 < model.mean_error < model.worst_error


def test_neither_latency_nor_bandwidth_is_negative() -> None:
    found = [reading for reading in exchange_trials() if reading.operation == "gather"]
    steep = [replace(one, time_us=summary(1e-5 * one.wire_bytes**1.2)) for one in found]
    flat = [replace(one, time_us=summary(20 - one.tokens / 1000)) for one in found]
    for readings_of_it in (steep, flat):
        model = fit(readings_of_it)
        assert model is not None
        assert model.latency_us >= 0
        assert model.bytes_per_us > 0


def test_two_sizes_are_too_few() -> None:
    found = [reading for reading in exchange_trials() if reading.operation == "gather"]
    assert fit(found[:2]) is None


def test_beyond_the_fitted_dcp_there_is_a_bracket_that_widens() -> None:
    model = CollectiveModel("gather", ExchangeName.DIRECT, 2, 4.0, 2.5e5, 6, worst_error=0.1, mean_error=0.05)
    at = {dcp: model.at(dcp, 1 << 16) for dcp in (2, 4, 8)}
    assert at[2].low_us == pytest.approx(0.9 * model.time_us(1 << 16))
    assert at[2].high_us == pytest.approx(1.1 * model.time_us(1 << 16))
    assert at[8].low_us == at[4].low_us == at[2].low_us
    assert at[2].high_us < at[4].high_us < at[8].high_us
