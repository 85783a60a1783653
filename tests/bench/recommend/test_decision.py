"""Which dcp: said where it holds over all that is not known, and told apart from what depends on it."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.collective import OPERATIONS, readings
from bench.recommend.decision import Decision, Exchange, Limits, Option, Origin, Part, Standing, asked, option
from bench.recommend.steptime import Span, StepTime
from bench.record import Label, Measured
from bench.shipped import reference_folder
from bench.store import Store
from dcp_core.layout import DcpLayout
from dcp_core.settings import Case, ExchangeName, PathName, Settings
from dcp_core.shapes import Workload
from tests.bench.made_up import QWEN

BATCH = Workload.parse("16q1s32k")


def step(dcp: int, median_us: float, *, half: float = 0.0, timed: bool = False) -> StepTime:
    path = PathName.TP if dcp == 1 else PathName.DECODE
    settings = Settings(path=path, exchange=ExchangeName.ALONE if dcp == 1 else ExchangeName.AG_RS)
    label = Label.MEASURED if dcp == 1 or timed else Label.SIMULATED
    span = Span(median_us, median_us - half, median_us + half)
    return StepTime(BATCH, DcpLayout(8, dcp), settings, span, label, (BATCH,), 0.0, dcp == 1 or timed)


def one(dcp: int, median_us: float, most_us: float = 0.0, *, least_us: float = 0.0, half: float = 0.0) -> Option:
    exchange = Exchange(Span(most_us, least_us, most_us), Origin.ASSUMED if dcp > 1 else Origin.NONE, int(dcp > 1))
    return Option(DcpLayout(8, dcp), (Part(step(dcp, median_us, half=half), exchange, 1.0),))


def test_an_answer_is_given_where_it_holds_over_the_whole_bracket() -> None:
    base = one(1, 100)
    assert one(2, 50, 40).against(base) is Standing.FASTER
    assert one(2, 110, 40).against(base) is Standing.SLOWER
    assert one(2, 80, 40).against(base) is Standing.OPEN
    assert one(2, 90, math.inf).against(base) is Standing.OPEN


def test_measured_steps_whose_intervals_overlap_are_level() -> None:
    base = Option(DcpLayout(8), (Part(step(1, 100, half=2), Exchange(Span(0, 0, 0), Origin.NONE, 0), 1.0),))
    two = option(DcpLayout(8, 2), [step(2, 99, half=2, timed=True)], [1.0], lambda _: pytest.fail("it was timed"))
    assert two.against(base) is Standing.LEVEL
    assert not two.is_bracketed
    assert two.break_even_us(base) is None


@given(st.floats(1, 1e4), st.floats(1, 1e4), st.floats(0, 1e3), st.floats(0, 1e3))
def test_break_even_is_where_the_verdict_turns(base_us: float, local_us: float, below: float, above: float) -> None:
    base = one(1, base_us)
    even = one(2, local_us).break_even_us(base)
    assert even == pytest.approx(base_us - local_us)
    assert even is not None
    cheap, dear = even - 1 - below, even + 1 + above
    if cheap >= 0:
        assert one(2, local_us, cheap).against(base) is Standing.FASTER
    if dear >= 0:
        assert one(2, local_us, dear, least_us=dear).against(base) is Standing.SLOWER


def test_parts_count_by_their_weights() -> None:
    def of(dcp: int, *times: float) -> Option:
        exchange = Exchange(Span(10, 0, 10), Origin.GIVEN, 1) if dcp > 1 else Exchange(Span(0, 0, 0), Origin.NONE, 0)
        parts = (Part(step(dcp, times[0]), exchange, 9.0), Part(step(dcp, times[1]), exchange, 1.0))
        return Option(DcpLayout(8, dcp), parts)

    base, two = of(1, 100, 1000), of(2, 80, 1100)
    assert two.local.median_us == pytest.approx(9 * 80 + 1100)
    assert two.span.high_us == pytest.approx(two.local.median_us + 100)
    assert two.against(base) is Standing.OPEN
    assert two.break_even_us(base) == pytest.approx((1900 - 1820) / 10)


@given(st.lists(st.tuples(st.floats(1, 1e3), st.floats(0, 1e3)), min_size=1, max_size=4))
def test_somebody_is_always_unbeaten(times: list[tuple[float, float]]) -> None:
    options = tuple(one(1 << index, *each) if index else one(1, each[0]) for index, each in enumerate(times))
    decision = Decision(options)
    left = decision.unbeaten()
    assert left
    assert min(options, key=lambda one: one.span.high_us) in left


def test_a_decision_begins_with_dcp_1() -> None:
    with pytest.raises(ValueError, match="between dcp 1"):
        Decision((one(2, 50),))


@pytest.mark.parametrize(
    ("given_us", "device", "origin"),
    [
        ((10.0, 20.0), "NVIDIA H200", Origin.GIVEN),
        (None, "NVIDIA H200", Origin.ASSUMED),
        (None, "NVIDIA L40S", Origin.UNKNOWN),
    ],
)
def test_what_nobody_measured_is_a_bracket_that_says_where_it_is_from(
    given_us: tuple[float, float] | None, device: str, origin: Origin
) -> None:
    found = asked(QWEN, Limits(given_us, device), as_engine=True)(step(2, 50))
    assert (found.origin, found.count) == (origin, 1)
    assert found.span.low_us == (10.0 if given_us else 0.0)
    assert found.span.high_us == {Origin.GIVEN: 20.0, Origin.UNKNOWN: math.inf}.get(origin, found.span.high_us)


def test_what_is_known_of_an_exchange_goes_before_what_is_assumed() -> None:
    known = Exchange(Span(30, 28, 33), Origin.MODELLED, 1)
    assert asked(QWEN, Limits(None, "NVIDIA H200"), lambda _: known, as_engine=True)(step(2, 50)) is known
    given = asked(QWEN, Limits((5.0, 5.0), "NVIDIA H200"), lambda _: known, as_engine=True)(step(2, 50))
    assert (given.origin, given.span.median_us) == (Origin.GIVEN, 5.0)  # who says what it takes is believed


@pytest.mark.parametrize("gpu", ["h100", "h200"])
def test_no_exchange_that_was_measured_costs_more_than_is_assumed(gpu: str) -> None:
    trials, _ = Store.read(reference_folder() / gpu)
    totals: dict[Case, float] = {}
    for reading in readings(trials):
        outcome, in_graph = reading.trial.outcome, reading.trial.policy.graphs
        # With a cold cache each stage alone pays for its own start, and the two together for more than a step does.
        warm = isinstance(outcome, Measured) and not outcome.flushed_bytes
        if reading.operation in OPERATIONS and warm and in_graph:
            totals[reading.trial.case] = totals.get(reading.trial.case, 0.0) + reading.time_us.high
    limits = Limits(None, trials[0].environment.hard["device_name"])
    assert len(totals) >= 15
    for case, high_us in totals.items():
        assert high_us <= limits.of(case).span.high_us
