"""What an answer says in words: no sentence contradicts another, nor the same answer as plain data."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.recommend.decision import NOTHING, Decision, Exchange, Option, Origin, Part, Standing
from bench.recommend.recommend import Recommendation, Room, Traffic, Why
from bench.recommend.steptime import Span, StepTime
from bench.record import Label
from bench.report.advice import changes, options_grid, paragraph, tune_command
from bench.report.advice_json import to_json
from dcp_core.layout import DcpLayout
from dcp_core.memory import KvMemory, RankMemory
from dcp_core.settings import ExchangeName, PathName, Settings
from dcp_core.shapes import Workload
from tests.bench.made_up import QWEN

TP = 16
"""So that dcp 1, 2 and 4 are legal."""
BATCHES = tuple(Workload.parse(batch) for batch in ("16q1s32k", "q2ks10k", "8q2s8k"))
IN_STEP = Exchange(NOTHING, Origin.MEASURED, 0)


def exchange(low_us: float, high_us: float, origin: Origin = Origin.ASSUMED) -> Exchange:
    return Exchange(Span(high_us, low_us, high_us), origin, 1)


def part(
    dcp: int,
    low_us: float,
    high_us: float,
    of: Exchange = IN_STEP,
    batch: Workload = BATCHES[0],
    *,
    beyond: float = 0.0,
) -> Part:
    """Return a step between two ends; its exchange, unless it is in it, comes to that."""
    alone, timed = dcp == 1, dcp == 1 or of is IN_STEP
    settings = Settings(
        path=PathName.TP if alone else PathName.DECODE, exchange=ExchangeName.ALONE if alone else ExchangeName.AG_RS
    )
    span = Span((low_us + high_us) / 2, low_us, high_us)
    label = Label.MEASURED if timed else Label.SIMULATED
    step = StepTime(batch, DcpLayout(TP, dcp), settings, span, label, (batch,), 0.0, timed, beyond)
    return Part(step, Exchange(NOTHING, Origin.NONE, 0) if alone else of, 1.0)


def options(*parts: Part | tuple[Part, ...]) -> Decision:
    groups = [(each,) if isinstance(each, Part) else each for each in parts]
    return Decision(tuple(Option(group[0].step.layout, group) for group in groups))


def recommendation(
    decision: Decision | None,
    holding: tuple[int, ...] = (99, 99, 99),
    *,
    limit_us: float | None = None,
    upper: bool = False,
    batches: int = 1,
) -> Recommendation:
    """Return what is made of some options, where each size holds so many of 16 requests and a layer may take so long."""
    length = 32768
    rooms = {}
    for index, held in enumerate(holding):
        kv = KvMemory(QWEN, DcpLayout(TP, 1 << index))
        rooms[1 << index] = Room(RankMemory(kv, held * kv.pages(length) * kv.page_bytes), 0, upper)
    traffic = Traffic(tuple((batch, 1.0) for batch in BATCHES[:batches]), 16, length)
    slo_us = None if limit_us is None else limit_us * QWEN.layers
    return Recommendation("qwen3-235b-a22b", QWEN, TP, traffic, decision, decision, rooms, slo_us)


def test_the_one_that_may_keep_a_time_is_not_said_to_keep_it() -> None:
    found = recommendation(options(part(1, 140, 142), part(2, 100, 120), part(4, 60, 130)), limit_us=80)
    assert (found.answer.dcp, found.answer.why, found.answer.late) == (4, Why.MAY_KEEP, True)
    text = paragraph(found)
    assert text.startswith("Run dcp 4: it is the one size that may keep 7.52 ms of attention per token with 16q1s32k.")
    assert text.endswith("No size is known to keep 7.52 ms of attention per token.")


def test_of_sizes_not_told_apart_one_that_surely_keeps_the_time_is_run() -> None:
    found = recommendation(options(part(1, 90, 110), part(2, 80, 99), part(4, 300, 301)), limit_us=100)
    assert (found.answer.dcp, found.answer.between, found.answer.late) == (2, (1, 2), False)
    assert "Of dcp 1 and dcp 2, only dcp 2 is known to keep 9.4 ms of attention per token." in paragraph(found)
    bracketed = recommendation(
        options(part(1, 90, 110), part(2, 52, 52, exchange(20, 48)), part(4, 300, 301)), limit_us=100
    )
    assert (bracketed.answer.dcp, bracketed.answer.why) == (2, Why.OPEN)


def test_that_a_time_is_kept_is_said_and_that_none_keeps_it_too() -> None:
    decision = options(part(1, 90, 91), part(2, 50, 51), part(4, 70, 71))
    assert paragraph(recommendation(decision, limit_us=60)).endswith("dcp 2 keeps 5.64 ms of attention per token.")
    assert "No size keeps 940 µs of attention per token." in paragraph(recommendation(decision, limit_us=10))
    tight = recommendation(decision, (99, 1, 1), limit_us=60)  # dcp 2 would keep it
    assert "No size that holds as many requests keeps 5.64 ms" in paragraph(tight)


def test_where_no_size_holds_all_the_one_that_holds_most_is_said_to() -> None:
    found = recommendation(options(part(1, 50, 51), part(2, 70, 71), part(4, 90, 91)), (3, 6, 12))
    assert (found.answer.dcp, found.answer.why, found.answer.overfull) == (4, Why.MOST, True)
    assert paragraph(found).startswith("Run dcp 4: it is what holds the most of 16q1s32k, not what is fastest.")


@pytest.mark.parametrize(
    ("four", "speed"),
    [
        (part(4, 90, 91), ", not what is fastest."),
        (part(4, 40, 91), "."),  # not told apart from dcp 1
        (None, ", and nothing is known of its speed."),
    ],
)
def test_what_fits_is_said_to_be_slower_only_where_it_surely_is(four: Part | None, speed: str) -> None:
    timed = [one for one in (part(1, 50, 51), part(2, 60, 61), four) if one]
    found = recommendation(options(*timed), (3, 6, 16))
    assert found.answer.why is Why.FITS
    assert paragraph(found).startswith(f"Run dcp 4: it is what holds 16q1s32k{speed}")


def test_of_several_that_fit_the_fastest_is_said_to_be_that() -> None:
    found = recommendation(options(part(1, 50, 51), part(2, 60, 61), part(4, 90, 91)), (3, 16, 32))
    assert paragraph(found).startswith("Run dcp 2: it is the fastest size that holds 16q1s32k.")


def test_without_weights_nothing_is_known_to_hold_them() -> None:
    found = recommendation(options(part(1, 50, 51), part(2, 60, 61), part(4, 90, 91)), (3, 6, 16), upper=True)
    assert paragraph(found).startswith("Run dcp 4: it is what may hold 16q1s32k, not what is fastest.")


def test_what_was_not_timed_is_beaten_by_nobody() -> None:
    alone = recommendation(options(part(1, 50, 51)))
    assert (alone.answer.why, alone.answer.is_firm) == (Why.UNKNOWN, False)
    assert paragraph(alone).startswith(
        "Leave DCP off until more is known: dcp 2 and dcp 4 were not measured near 16q1s32k"
    )
    two = recommendation(options(part(1, 50, 51), part(2, 30, 31)))
    assert paragraph(two).startswith("Run dcp 2: it is the fastest of the timed sizes for 16q1s32k")
    assert any("dcp 4 is legal here, and has no times near enough" in sentence for sentence in changes(two))
    none = recommendation(None)
    assert paragraph(none).startswith("Leave DCP off until more is known: dcp 1 was not measured near 16q1s32k")
    assert "dcp 1 was not measured near all of these 2 batches" in paragraph(recommendation(None, batches=2))


@pytest.mark.parametrize(
    ("two", "says"),
    [
        (
            (part(2, 90, 90, exchange(0, 9)), part(2, 90, 90)),
            "even where an exchange that was not timed with its step costs",
        ),
        ((part(2, 90, 90, exchange(0, 9)),) * 2, "even where an exchange costs nothing"),
        ((part(2, 90, 90),) * 2, None),
        (
            (part(2, 40, 40, exchange(0, 9)), part(2, 40, 40)),
            "that was not timed with its step costs less than 20.0 µs",
        ),
    ],
)
def test_what_an_exchange_may_cost_is_said_of_those_that_were_not_timed(
    two: tuple[Part, ...], says: str | None
) -> None:
    base = (part(1, 50, 50), part(1, 50, 50))
    sentences = changes(recommendation(options(base, two), (99, 99), batches=2))
    told = [sentence for sentence in sentences if "exchange" in sentence and "measured between" not in sentence]
    assert [sentence for sentence in told if "over these 2 batches" not in sentence] == []
    assert told == [] if says is None else says in told[0]


def test_an_exchange_beside_steps_that_hold_theirs_is_said_to_be_of_the_others() -> None:
    base, two = (part(1, 50, 50),) * 2, (part(2, 20, 20, exchange(4, 9)), part(2, 40, 40))
    text = paragraph(recommendation(options(base, two), (99, 99), batches=2))
    assert (
        "dcp 2 takes 30.0 µs (measured, simulated), and where it is not in them an exchange of 2 to 4 µs (assumed)"
        in text
    )


def test_steps_that_are_uncertain_themselves_do_not_depend_on_an_exchange_as_told() -> None:
    """An exchange with one end decides nothing, and no measurement of it narrows anything."""
    told = exchange(40, 40, Origin.GIVEN)
    found = recommendation(options(part(1, 90, 110), part(2, 50, 65, told), part(4, 200, 201, told)))
    assert found.answer.why is Why.LEVEL
    assert not any("measured between real ranks" in sentence for sentence in changes(found))


def test_what_only_a_bracket_is_known_of_may_have_been_given() -> None:
    found = recommendation(
        options(part(1, 100, 100), part(2, 80, 80, exchange(0, 40, Origin.GIVEN)), part(4, 200, 200))
    )
    assert found.answer.why is Why.OPEN
    assert "nobody" not in paragraph(found)
    level = replace(found, engine=options(part(1, 90, 110), part(2, 80, 100, exchange(0, 1)), part(4, 200, 200)))
    assert level.answer.why is Why.LEVEL
    assert any("would narrow the bracket" in sentence for sentence in changes(level))


def test_a_note_stands_below_each_exchange_that_the_table_shows() -> None:
    engine = options(part(1, 50, 50), part(2, 20, 20))
    tuned = options(part(1, 50, 50), part(2, 20, 20, exchange(1, 2, Origin.MODELLED)))
    notes = options_grid(replace(recommendation(engine, (99, 99)), tuned=tuned)).footnotes
    assert any("Exchange modelled" in note for note in notes)


def test_a_batch_too_long_to_type_is_measured_from_the_sweep_that_is_written() -> None:
    found = recommendation(options(part(1, 100.0, 100.0)))
    assert "--batch" in tune_command(found)
    long = Workload.parse("_".join(f"q{new}s32k" for new in range(100, 120)))
    traffic = replace(found.traffic, batches=((long, 1.0),))
    assert (
        tune_command(replace(found, traffic=traffic))
        == "'dcpbench tune mine.toml', which --sweep mine.toml writes here"
    )


def crossed(*times: tuple[int, Part | None]) -> list[str]:
    found = recommendation(options(part(1, 50, 50), part(2, 20, 20)), (99, 99))
    crossing = tuple((requests, options(part(1, 50, 50), *([two] if two else []))) for requests, two in times)
    return [sentence for sentence in changes(replace(found, crossing=crossing)) if "With this context" in sentence]


def test_with_how_many_requests_a_size_pays_is_said_of_each_that_was_asked_about() -> None:
    fast, slow, perhaps = part(2, 20, 20), part(2, 90, 90), part(2, 20, 90)
    assert crossed((1, slow), (2, slow)) == ["With this context dcp 2 is not faster than dcp 1 up to 2 requests."]
    assert crossed((1, fast), (2, slow)) == ["With this context dcp 2 is faster than dcp 1 at 1 request."]
    assert crossed((1, slow), (2, fast), (4, fast)) == [
        "With this context dcp 2 is faster than dcp 1 from 2 requests on."
    ]
    assert crossed((1, fast), (2, slow), (4, perhaps), (8, fast)) == [
        "With this context dcp 2 may be faster than dcp 1 at 1 and from 4 requests on, and surely is at 1, 8."
    ]
    assert crossed((1, perhaps), (2, slow)) == [
        "With this context dcp 2 may be faster than dcp 1 at 1 request, and not surely up to 2 requests."
    ]
    assert crossed((1, None), (2, None)) == [], "nothing is said of what has no times"


ORIGINS = (Origin.MODELLED, Origin.GIVEN, Origin.ASSUMED, Origin.UNKNOWN)


@st.composite
def asked(draw: st.DrawFn) -> Recommendation:
    """Draw a question: sizes timed and not, exchanges of all kinds, room for all, some or none, a time to keep or none."""
    tens = st.integers(1, 12).map(lambda ten: 10.0 * ten)
    sizes = draw(st.sampled_from([(1,), (1, 2), (1, 2, 4)]))
    batches = draw(st.integers(1, 3))

    def drawn(dcp: int, batch: Workload) -> Part:
        low, wide = draw(tens), draw(st.sampled_from([0.0, 5.0, 40.0]))
        of = IN_STEP
        if dcp > 1 and draw(st.booleans()):
            origin, low_us = draw(st.sampled_from(ORIGINS)), draw(st.sampled_from([0.0, 5.0]))
            high_us = math.inf if origin is Origin.UNKNOWN else low_us + draw(st.sampled_from([0.0, 30.0]))
            of = exchange(low_us, high_us, origin)
        return part(dcp, low, low + wide, of, batch, beyond=draw(st.sampled_from([0.0, 0.0, 0.0, 2.0])))

    timed = [dcp for dcp in sizes if dcp == 1 or draw(st.integers(0, 3))]
    parts = [tuple(drawn(dcp, batch) for batch in BATCHES[:batches]) for dcp in timed]
    decision = options(*parts) if draw(st.integers(0, 9)) else None
    held = draw(st.sampled_from([0, 3, 5, 9, 16]))
    holding = tuple(held * dcp for dcp in sizes)
    limit = draw(st.none() | tens.map(lambda us: us * batches))
    return recommendation(
        decision,
        holding,
        limit_us=None if limit is None else limit / batches,
        upper=draw(st.booleans()),
        batches=batches,
    )


@given(asked())
def test_no_sentence_contradicts_another(found: Recommendation) -> None:
    answer, text, data = found.answer, paragraph(found), to_json(found)
    spans = {one.layout.dcp: one.span for one in found.decision.options} if found.decision else {}
    others = {one.layout.dcp: one for one in found.decision.options} if found.decision else {}
    mine, limit_us = others.pop(answer.dcp, None), found.limit_us
    named = re.match(r".*?(Leave DCP off|Run dcp (\d+))", text)
    assert named
    assert int(named[2] or 1) == answer.dcp == data["answer"]["dcp"]
    assert data["answer"]["why"] == str(answer.why)
    assert answer.dcp in answer.between
    assert set(answer.between) <= set(found.fitting)
    # Speed
    fastest = "it is the fastest for" in text or "fastest of the timed sizes" in text
    assert fastest == (answer.why is Why.FASTEST)
    if fastest:
        assert mine
        assert others
        assert all(mine.against(other) is Standing.FASTER for other in others.values())
        assert ("of the timed sizes" in text) == bool(found.unmeasured)
    if "not what is fastest" in text:
        assert mine
        assert any(other.against(mine) is Standing.FASTER for other in others.values())
    assert ("not told apart" in text) == (len(answer.between) > 1 and answer.why is not Why.UNKNOWN)
    assert not ("not told apart" in text and answer.is_firm)
    # Room
    assert answer.overfull == ("not fit" in text) == (not any(one["fits"] for one in data["capacity"].values()))
    assert not (answer.overfull and answer.why is Why.FITS)
    assert answer.overfull or answer.why is not Why.MOST
    assert ("most of" in text) == (answer.why is Why.MOST)
    # Time
    far = {dcp for dcp, one in others.items() if one.beyond} | ({answer.dcp} if mine and mine.beyond else set())
    keeps = answer.dcp in spans and spans[answer.dcp].high_us <= limit_us and answer.dcp not in far
    assert answer.late == (found.slo_us is not None and not keeps)
    assert answer.late == ("No size" in text)
    if "No size keeps" in text:
        assert all(span.low_us > limit_us for span in spans.values())
        assert not far & set(found.fitting)
    if answer.why is Why.MAY_KEEP:
        assert answer.late
        assert answer.dcp in far or spans[answer.dcp].low_us <= limit_us < spans[answer.dcp].high_us
    if far & set(found.fitting) and len(found.fitting) > 1:
        assert "by more than is uncertain" not in text
        assert "whatever the exchange costs" not in text
    assert ("extrapolated" in text) == bool(far)
    assert ("may keep" in text) == (answer.why is Why.MAY_KEEP)
    assert "-0" not in text
    # What could change it
    for sentence in changes(found):
        if "settle it" in sentence:
            assert answer.why is Why.OPEN
        assert not (
            "costs nothing" in sentence and fastest and answer.dcp > 1 and f"dcp {answer.dcp} loses" in sentence
        )
