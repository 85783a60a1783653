"""What a step takes, read off a profile: what was measured as it was, what was not from its neighbours, within their error."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.profile.profile import Profile
from bench.recommend.steptime import SAME, Kind, Span, StepTimes, as_engine, fastest
from bench.record import Label
from bench.shipped import shipped_profiles
from dcp_core.layout import DcpLayout
from dcp_core.settings import KernelName, PathName
from dcp_core.shapes import Workload

ALONE = Profile.load(shipped_profiles("q8,kv1,d128,dtype=bfloat16", "h200")[0])
SHARED = Profile.load(shipped_profiles("q16,kv1,d128,dtype=bfloat16", "h200")[0])
ONE = StepTimes.of(ALONE, DcpLayout(8), as_engine(ALONE.environment))
TWO = StepTimes.of(SHARED, DcpLayout(8, 2), as_engine(SHARED.environment))


def test_a_measured_batch_answers_as_it_was_measured() -> None:
    for times, timed in ((ONE, {True}), (TWO, {True, False})):
        seen = set()
        for row in times.rows:
            found = times.find(row.entry.workload)
            assert found is not None
            assert found.label in (row.entry.label, Label.MEASURED)  # of what was simulated too, the one of real ranks
            assert found.exchange_timed is (found.label is Label.MEASURED)
            assert (found.error, len(found.basis)) == (0.0, 1)
            seen.add(found.exchange_timed)
        assert seen == timed


def test_a_token_more_is_the_same_batch() -> None:
    one, other = (ONE.find(Workload.parse(text)) for text in ("8q1s8193", "8q1s8192"))
    assert one
    assert other
    assert (other.span, other.label) == (one.span, Label.MEASURED)


def test_of_a_mixed_batch_both_parts_hold_their_exchange_or_neither_does() -> None:
    decodes, longer = (TWO.find(Workload.parse(text)) for text in ("32q1s32769", "q8k"))
    assert decodes
    assert longer
    assert (decodes.exchange_timed, longer.exchange_timed) == (True, False)
    whole = TWO.find(Workload.parse("32q1s32769_q8k"))
    assert whole
    assert not whole.exchange_timed
    assert whole.span.median_us < decodes.span.median_us + longer.span.median_us


@pytest.mark.parametrize("times", [ONE, TWO])
@pytest.mark.parametrize("kind", list(Kind))
def test_left_out_batches_are_met_within_what_the_model_says(times: StepTimes, kind: Kind) -> None:
    """The error stated of a batch is that of its neighbours, so it need not hold for each; it does for most."""
    held, told = 0, 0
    for row in times.rows:
        if row.kind is not kind:
            continue
        elsewhere = tuple(one for one in times.rows if math.dist(one.point, row.point) > SAME)
        others = StepTimes(times.layout, times.roofline, elsewhere)
        found = others.find(row.entry.workload)
        if found is None or found.label is not Label.MODELLED:
            continue
        if found.exchange_timed is not (times is ONE or row.entry.label is Label.MEASURED):
            continue  # one holds an exchange that the other does not
        told += 1
        held += found.span.low_us <= row.candidate.median_us <= found.span.high_us
    assert told >= 5
    assert held / told >= 0.6


def test_a_mixed_batch_that_was_not_measured_is_the_sum_of_its_parts() -> None:
    parts = [ONE.find(Workload.parse(text)) for text in ("16q1s32k", "q8ks40k")]
    whole = ONE.find(Workload.parse("16q1s32k_q8ks40k"))
    assert whole
    assert whole.label is Label.MODELLED
    assert whole.span.median_us == pytest.approx(sum(part.span.median_us for part in parts if part))
    assert whole.span.low_us < whole.span.median_us < whole.span.high_us


def test_how_far_a_batch_is_missed_is_worked_out_once(monkeypatch: pytest.MonkeyPatch) -> None:
    times = StepTimes(ONE.layout, ONE.roofline, ONE.rows)
    asked: list[Workload] = []
    missed_by = StepTimes._missed_by
    monkeypatch.setattr(
        StepTimes, "_missed_by", lambda self, row: asked.append(row.entry.workload) or missed_by(self, row)
    )
    for requests in (20, 24, 24, 40):
        found = times.find(Workload.parse(f"{requests}q1s20000"))
        assert found
        assert found.label is Label.MODELLED
    assert 2 <= len(asked) == len(set(asked)) < 8


def test_far_from_all_that_was_measured_nothing_is_said() -> None:
    assert ONE.find(Workload.parse("4096q1s1m".replace("1m", "1024k"))) is None


def test_how_far_a_batch_lies_beyond_those_measured_is_told() -> None:
    for times in (ONE, TWO):
        for row in times.rows:
            found = times.find(row.entry.workload)
            assert found
            assert found.beyond == 0
    for batch, beyond in (("256q1s32k", 0), ("320q1s32k", 0), ("512q1s32k", 1), ("1024q1s32k", 2), ("2048q1s32k", 3)):
        found = ONE.find(Workload.parse(batch))
        assert found
        assert found.beyond == pytest.approx(beyond, abs=0.01)
    mixed = ONE.find(Workload.parse("1024q1s32k_q8ks40k"))
    assert mixed
    assert mixed.beyond == pytest.approx(2, abs=0.01)


def test_the_engine_runs_its_own_kernels_whatever_the_profile_chose() -> None:
    batch = Workload.parse("8q4s32k")
    chosen, own = (
        StepTimes.of(SHARED, DcpLayout(8, 2), pick).find(batch) for pick in (fastest, as_engine(SHARED.environment))
    )
    assert chosen
    assert own
    assert (own.settings.path, own.settings.kernel) == (PathName.SPLIT, KernelName.FA3)
    assert chosen.span.median_us < own.span.median_us


@given(st.integers(0, 7), st.integers(10, 16), st.integers(0, 3))
def test_longer_contexts_and_more_requests_take_longer_by_more_than_errors(
    requests: int, context: int, more: int
) -> None:
    small = ONE.find(Workload.parse(f"{1 << requests}q1s{1 << context}"))
    large = ONE.find(Workload.parse(f"{1 << requests}q1s{1 << (context + more)}"))
    if small and large:
        assert large.span.high_us >= small.span.low_us


def test_a_span_holds_its_median() -> None:
    assert Span(2, 1, 3) + Span(1, 1, 1) == Span(3, 2, 4)
    assert Span(2, 1, 3).times(2) == Span(4, 2, 6)
    with pytest.raises(ValueError, match="does not hold 5"):
        Span(5, 1, 3)
