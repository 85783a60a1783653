"""What exchanges cost: read off trials, fitted, and never promised closer than sizes left out were met."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.collective import (
    CollectiveModel,
    Curve,
    Kind,
    Reading,
    Row,
    Way,
    fit,
    fit_all,
    link_bytes_per_us,
    model_for,
    readings,
)
from bench.record import PROTOCOL, Environment, Measured, Trial
from dcp_core import ModelShape
from dcp_core.settings import ExchangeName
from tests.bench.made_up import CPU, H200, QWEN, summary, trials

SIZES = tuple(f"{tokens}q1s16" for tokens in (1, 8, 64, 256, 1024, 4096))


WAY = Way(tuple(sorted(H200.hard.items())), "cuda graph", cold=True, graphs=True, calls=1, protocol=PROTOCOL)


def on_a_line(
    exchange: str = "a2a", dcp: int = 2, latency: float = 9.0, per_byte: float = 4e-6, shape: ModelShape = QWEN
) -> list[Trial]:
    """Make trials whose exchanges take times on a straight line."""
    found = []
    for trial in trials(*SIZES, dcps=(dcp,), exchanges=(exchange,), kernels=("fa2",), shape=shape):
        outcome, row = trial.outcome, Row.of(trial.case)
        assert isinstance(outcome, Measured)
        stages = [
            replace(
                stage,
                device_us=summary(latency + per_byte * row.wire_bytes(stage.name, dcp, trial.case.workload.new_tokens)),
            )
            if stage.communicates
            else stage
            for stage in outcome.stages
        ]
        found.append(replace(trial, outcome=replace(outcome, stages=tuple(stages))))
    return found


def exchange_trials(exchange: str = "a2a", dcp: int = 2, latency: float = 9.0, per_byte: float = 4e-6) -> list[Reading]:
    """Make readings whose times are a straight line."""
    return readings(on_a_line(exchange, dcp, latency, per_byte))


def test_a_reading_names_its_exchange_its_tokens_and_its_bytes() -> None:
    found = [reading for reading in exchange_trials() if reading.tokens == 64]
    gather, combine = (next(one for one in found if one.operation == name) for name in ("gather", "combine"))
    # Qwen3-235B at tp 8, dcp 2: 8 query heads of one peer, bfloat16, head_dim 128; an LSE beside each output.
    assert gather.wire_bytes == 64 * 8 * 128 * 2
    assert combine.wire_bytes == 64 * 8 * (128 * 2 + 4)
    assert gather.kind == Kind(WAY, ExchangeName.A2A, 2, Row(8, 128, 2))
    assert gather.bus_gb_per_s == pytest.approx(gather.wire_bytes / gather.time_us.median / 1e3)
    assert gather.skew_us is None


def test_pure_time_and_skew_are_told_apart_where_every_rank_was_sampled() -> None:
    (trial,) = trials("64q1s16", dcps=(2,), exchanges=("a2a",), kernels=("fa2",))[:1]
    assert isinstance(trial.outcome, Measured)
    ranks = ((10.0, 12.0, 30.0), (8.0, 15.0, 9.0))
    stages = tuple(replace(one, rank_samples_us=ranks) if one.communicates else one for one in trial.outcome.stages)
    for reading in readings([replace(trial, outcome=replace(trial.outcome, stages=stages))]):
        assert (reading.pure_us, reading.skew_us) == (9.0, 3.0)
        assert reading.bus_gb_per_s == pytest.approx(reading.wire_bytes / 9.0 / 1e3)


def test_the_share_of_a_link_is_told_where_the_link_is_known() -> None:
    linked = Environment(H200.hard, {"nvlinks": "18"})
    assert link_bytes_per_us(linked) == pytest.approx(478.8e3)
    assert link_bytes_per_us(CPU) == 0
    (trial, *_) = on_a_line()
    here, there = readings([replace(trial, environment=linked)])[0], readings([trial])[0]
    assert here.link_share == pytest.approx(here.wire_bytes / here.pure_us / 478.8e3)
    assert there.link_share is None


def test_a_rank_by_itself_exchanges_nothing_whatever_its_stages_are_called() -> None:
    (between,) = trials("64q1s16", dcps=(2,), exchanges=("a2a",), kernels=("fa2",))[:1]
    (alone,) = trials("64q1s16", dcps=(1,), kernels=("fa2",))
    settings = replace(alone.case.settings, path="decode")
    assert readings([replace(alone, case=replace(alone.case, settings=settings), outcome=between.outcome)]) == []


def test_what_was_simulated_tells_nothing_of_exchanges() -> None:
    assert readings(trials(*SIZES, exchanges=("loopback",))) == []


def test_a_straight_line_is_found_and_states_no_error() -> None:
    models = fit_all(exchange_trials())
    assert {model.operation for model in models} == {"gather", "combine"}
    for model in models:
        assert model.latency_us == pytest.approx(9.0, rel=1e-6)
        assert model.bytes_per_us == pytest.approx(1 / 4e-6, rel=1e-6)
        assert max(model.between_error, model.beyond_error) < 1e-6
        assert model.time_us(1 << 20) == pytest.approx(9.0 + 4e-6 * (1 << 20))


def gathers() -> list[Reading]:
    return sorted((one for one in exchange_trials() if one.operation == "gather"), key=lambda one: one.tokens)


def with_times(found: list[Reading], times_us: Sequence[float]) -> list[Reading]:
    return [replace(one, pure_us=time) for one, time in zip(found, times_us, strict=True)]


def test_a_size_off_the_line_shows_in_the_error_it_states() -> None:
    odd = [replace(one, pure_us=2 * one.pure_us) if one.tokens == 64 else one for one in gathers()]
    model = fit(odd)
    assert model is not None
    assert model.between_error == pytest.approx(0.5, abs=0.05)
    assert 0 < model.mean_error < model.between_error


def test_a_smallest_or_largest_size_off_the_line_shows_in_the_error_beyond() -> None:
    for off in (0, -1):
        found = gathers()
        found[off] = replace(found[off], pure_us=2 * found[off].pure_us)
        model = fit(found)
        assert model is not None
        assert model.beyond_error == pytest.approx(0.5, abs=0.1)
        assert model.error(2, found[1].wire_bytes) == model.between_error
        beyond = max(model.between_error, model.beyond_error)
        assert model.error(2, 2 * found[-1].wire_bytes) == model.error(4, found[1].wire_bytes) == beyond


GATHER_US = (7.74, 10.1, 11.0, 14.8, 32.4, 76.9)
"""Of NCCL between two H100s, 1, 8, 64, 256, 1024 and 4096 tokens: on no straight line."""


def test_a_model_says_of_what_was_measured_what_was_measured() -> None:
    found = with_times(gathers(), GATHER_US)
    model = fit(found)
    assert model is not None
    for one in found:
        assert model.time_us(one.wire_bytes) == pytest.approx(one.pure_us)


def test_a_bent_line_meets_sizes_left_out_nearer_than_a_straight_one() -> None:
    found = with_times(gathers(), GATHER_US)
    model = fit(found)
    assert model is not None
    straight = []
    for index in range(1, len(found) - 1):
        others = fit([*found[:index], *found[index + 1 :]])
        assert others is not None
        straight.append(abs(others.curve.line_us(found[index].wire_bytes) / found[index].pure_us - 1))
    assert model.between_error < 0.9 * max(straight)


@given(times=st.lists(st.floats(1, 1e4), min_size=6, max_size=6), tokens=st.integers(1, 4096))
def test_between_two_sizes_the_time_lies_near_theirs_whatever_was_measured(times: list[float], tokens: int) -> None:
    found = with_times(gathers(), times)
    model = fit(found)
    assert model is not None
    size = tokens * found[0].wire_bytes
    below = max((one for one in found if one.wire_bytes <= size), key=lambda one: one.wire_bytes)
    above = min((one for one in found if one.wire_bytes >= size), key=lambda one: one.wire_bytes)
    # The line may rise within the gap, by no more than the share that it rises by over all of it.
    rise = model.curve.line_us(above.wire_bytes) / model.curve.line_us(below.wire_bytes)
    assert min(below.pure_us, above.pure_us / rise) * 0.999 <= model.time_us(size)
    assert model.time_us(size) <= max(below.pure_us * rise, above.pure_us) * 1.001


def test_neither_latency_nor_bandwidth_is_negative() -> None:
    found = [reading for reading in exchange_trials() if reading.operation == "gather"]
    steep = [replace(one, pure_us=1e-5 * one.wire_bytes**1.2) for one in found]
    flat = [replace(one, pure_us=20 - one.tokens / 1000) for one in found]
    for readings_of_it in (steep, flat):
        model = fit(readings_of_it)
        assert model is not None
        assert model.latency_us >= 0
        assert model.bytes_per_us > 0


def test_two_sizes_are_too_few() -> None:
    found = [reading for reading in exchange_trials() if reading.operation == "gather"]
    assert fit(found[:2]) is None


def test_beyond_the_fitted_dcp_there_is_a_bracket_that_widens() -> None:
    kind = Kind(WAY, ExchangeName.DIRECT, 2, Row(8, 128, 2))
    curve = Curve(4.0, 4e-6, ((1 << 10, 1.0), (1 << 20, 1.0)))
    model = CollectiveModel("gather", kind, curve, between_error=0.1, beyond_error=0.1, mean_error=0.05)
    at = {dcp: model.at(dcp, 1 << 16) for dcp in (2, 4, 8)}
    assert at[2].low_us == pytest.approx(0.9 * model.time_us(1 << 16))
    assert at[2].high_us == pytest.approx(1.1 * model.time_us(1 << 16))
    assert at[8].low_us == at[4].low_us == at[2].low_us
    assert at[2].high_us < at[4].high_us < at[8].high_us
    for bracket in at.values():
        assert bracket.low_us <= bracket.time_us <= bracket.high_us
    assert at[2].time_us == model.time_us(1 << 16)


def test_rows_of_other_shapes_are_fitted_apart_and_so_are_machines_and_ways() -> None:
    here, other_row = on_a_line(), on_a_line(latency=20.0, shape=ModelShape(32, 4, 128, 1))
    elsewhere = [replace(one, environment=CPU) for one in on_a_line(latency=500.0)]
    eager = [replace(one, policy=replace(one.policy, graphs=False)) for one in on_a_line(latency=90.0)]
    models = fit_all(readings([*here, *other_row, *elsewhere, *eager]))
    assert len(models) == 8
    asked = Kind(WAY, ExchangeName.A2A, 2, Row(8, 128, 2))
    for kind, latency in (
        (asked, 9.0),
        (asked._replace(row=Row(4, 128, 2)), 20.0),
        (asked._replace(way=WAY._replace(machine=tuple(sorted(CPU.hard.items())))), 500.0),
        (asked._replace(way=WAY._replace(graphs=False)), 90.0),
    ):
        model = model_for(models, "gather", kind)
        assert model is not None
        assert model.latency_us == pytest.approx(latency)


def test_a_model_of_another_machine_timer_row_or_larger_group_is_never_used() -> None:
    models = fit_all(readings(on_a_line(dcp=2)))
    asked = Kind(WAY, ExchangeName.A2A, 2, Row(8, 128, 2))
    assert model_for(models, "gather", asked) is not None
    for other in (
        asked._replace(way=WAY._replace(machine=tuple(sorted(CPU.hard.items())))),
        asked._replace(way=WAY._replace(timer="host")),
        asked._replace(way=WAY._replace(protocol=PROTOCOL - 1)),
        asked._replace(row=Row(8, 64, 2)),
        asked._replace(exchange=ExchangeName.AG_RS),
    ):
        assert model_for(models, "gather", other) is None
    larger = fit_all(readings(on_a_line(dcp=4)))
    assert larger
    assert model_for(larger, "gather", asked) is None
    beyond = model_for(models, "gather", asked._replace(dcp=8))
    assert beyond is not None
    assert beyond.kind.dcp == 2


def test_of_several_models_the_one_with_most_calls_to_a_sample_is_asked() -> None:
    single = on_a_line(latency=12.0)
    many = [replace(one, policy=replace(one.policy, cold=False, calls=20)) for one in on_a_line(latency=9.0)]
    model = model_for(fit_all(readings([*many, *single])), "gather", Kind(WAY, ExchangeName.A2A, 2, Row(8, 128, 2)))
    assert model is not None
    assert (model.kind.way.calls, model.latency_us) == (20, pytest.approx(9.0))
