"""Traces and the scheduler that replays them: each token once, no budget exceeded, whatever comes."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from tempfile import NamedTemporaryFile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.errors import UsageError
from bench.files import FileError
from bench.recommend.batches import MOST, Tally
from bench.recommend.trace_file import read_trace
from bench.recommend.traffic import Arrival, Scheduler, Step, replay
from tests.bench.recommend.plain_replay import Ran, counted, plain_replay

ARRIVALS = st.lists(
    st.builds(Arrival, st.floats(0, 50), st.integers(1, 300), st.integers(1, 40)), min_size=1, max_size=20
)
SCHEDULERS = st.builds(Scheduler, st.integers(1, 200), st.integers(1, 12))


def second(_step: Step) -> float:
    return 1.0


def by_work(step: Step) -> float:
    return 0.01 + 0.1 * step.decodes + 1e-3 * step.new + 1e-5 * (step.decode_context + step.context)


@given(ARRIVALS, SCHEDULERS, st.none() | st.integers(340, 1000), st.sampled_from([second, by_work]))
def test_steps_are_those_of_the_replay_of_each_request(
    arrivals: list[Arrival], scheduler: Scheduler, kv_tokens: int | None, step_s: Callable[[Step], float]
) -> None:
    scheduler = replace(scheduler, kv_tokens=kv_tokens)
    plain = [counted(start_s, ran) for start_s, ran in plain_replay(arrivals, scheduler, step_s)]
    assert list(replay(arrivals, scheduler, step_s)) == plain


@given(ARRIVALS, SCHEDULERS)
def test_every_token_runs_once_in_order_and_none_before_it_came(arrivals: list[Arrival], scheduler: Scheduler) -> None:
    done: Counter[int] = Counter()
    for start_s, ran in plain_replay(arrivals, scheduler, second):
        for one in ran:
            assert one.new >= 1
            assert start_s >= arrivals[one.request].at_s
            done[one.request] += one.new
            assert one.total == done[one.request]
    assert done == {index: one.computed for index, one in enumerate(arrivals)}


@given(ARRIVALS, SCHEDULERS)
def test_no_step_exceeds_its_budgets_and_decodes_come_first(arrivals: list[Arrival], scheduler: Scheduler) -> None:
    for _, ran in plain_replay(arrivals, scheduler, second):
        assert 1 <= sum(one.new for one in ran) <= scheduler.max_batched_tokens
        assert len({one.request for one in ran}) == len(ran) <= scheduler.max_sequences
        prompts = [one.total <= arrivals[one.request].prompt for one in ran]
        assert prompts == sorted(prompts)


@given(ARRIVALS, st.integers(340, 1000))
def test_requests_under_way_never_hold_more_than_the_cache(arrivals: list[Arrival], kv_tokens: int) -> None:
    held: set[int] = set()
    for _, ran in plain_replay(arrivals, Scheduler(64, 8, kv_tokens), second):
        held |= {one.request for one in ran}
        assert sum(arrivals[index].computed for index in held) <= kv_tokens
        held -= {one.request for one in ran if one.total == arrivals[one.request].computed}


def test_a_long_prompt_runs_by_chunks_beside_decodes() -> None:
    arrivals = [Arrival(0.0, 4, 3), Arrival(0.0, 20, 1)]
    steps = [ran for _, ran in plain_replay(arrivals, Scheduler(10), second)]
    assert steps == [
        (Ran(0, 4, 4), Ran(1, 6, 6)),
        (Ran(0, 1, 5), Ran(1, 9, 15)),
        (Ran(0, 1, 6), Ran(1, 5, 20)),
    ]
    assert list(replay(arrivals, Scheduler(10), second)) == [
        Step(0.0, decodes=0, decode_context=0, longer=2, new=10, context=0),
        Step(1.0, decodes=1, decode_context=4, longer=1, new=9, context=6),
        Step(2.0, decodes=1, decode_context=5, longer=1, new=5, context=15),
    ]


def test_what_the_cache_never_holds_is_refused() -> None:
    with pytest.raises(UsageError, match="a request of 100 tokens, and the KV cache holds 64"):
        list(replay([Arrival(0.0, 100, 1)], Scheduler(kv_tokens=64), second))


@given(ARRIVALS, SCHEDULERS)
def test_few_batches_carry_all_steps_and_all_time(arrivals: list[Arrival], scheduler: Scheduler) -> None:
    tally = Tally(lambda batch: 1.0 + len(batch))
    steps = [tally.add(step) for step in replay(arrivals, scheduler, second)]
    found = tally.carrying()
    assert sum(one.steps for one in found) == tally.steps == len(steps)
    assert sum(one.share for one in found) == pytest.approx(1.0)
    assert [one.share for one in found] == sorted((one.share for one in found), reverse=True)
    assert len(found) <= MOST + 3  # one of each kind of step, however many the largest are


def test_steps_that_are_alike_become_their_mean() -> None:
    alike = [Step(0.0, 8, 8 * (1000 + gap), 0, 0, 0) for gap in (0, 2, 4)]
    tally = Tally(lambda _: 1.0)
    for step in alike:
        tally.add(step)
    (one,) = tally.carrying()
    assert (str(one.workload), one.steps, one.share) == ("8q1s1003", 3, 1.0)


def test_steps_that_are_alike_are_timed_once() -> None:
    asked: list[str] = []

    def time_us(workload: object) -> float:
        asked.append(str(workload))
        return 5.0

    tally = Tally(time_us)
    assert {tally.add(Step(0.0, 1, total - 1, 0, 0, 0)) for total in (1000, 1001, 1002)} == {5.0}
    assert asked == ["q1s1000"]


@pytest.mark.parametrize(
    "text",
    [
        "arrival,prompt,output\n5,100,7\n5.5,200,8\n",
        "Timestamp,Model,Request tokens,Response tokens\n5,x,100,7\n5.5,x,200,8\n",
        (
            "TIMESTAMP,ContextTokens,GeneratedTokens\n"
            "2023-11-16 18:15:46.6805900,100,7\n2023-11-16 18:15:47.1805900,200,8\n"
        ),
        (
            '{"timestamp": 5, "input_length": 100, "output_length": 7, "hash_ids": [1]}\n\n'
            '{"timestamp": 5.5, "input_length": 200, "output_length": 8}\n'
        ),
    ],
)
def test_a_trace_is_read_under_the_usual_names(text: str, tmp_path: Path) -> None:
    path = tmp_path / "trace"
    path.write_text(text)
    first, later = read_trace(path)
    assert first == Arrival(0.0, 100, 7)
    assert (later.at_s, later.prompt, later.output) == (pytest.approx(0.5), 200, 8)


def test_arrivals_may_be_in_milliseconds(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text('{"timestamp": 0, "input": 1, "output": 1}\n{"timestamp": 1500, "input": 1, "output": 1}')
    assert read_trace(path, unit="ms")[1].at_s == pytest.approx(1.5)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "trace.csv: an empty file, where a trace should be: below its headings, as arrival,prompt,output,"),
        ("0,1,1\n", "line 1: no column for arrival; it may be called arrival,"),
        ("arrival,prompt,output\n", "a trace without a request"),
        ("arrival,prompt\n0,1\n", "line 1: no column for output; it may be called output,"),
        ("arrival,prompt,output\n0,1\n", "line 2: 2 cells, where line 1 names more columns"),
        ("arrival,prompt,output\n0,1,1\nsoon,1,1\n", "line 3: arrival is a number or a date and time.*'soon'"),
        ("arrival,prompt,output\nnan,1,1\n", "line 2: arrival is a number"),
        ("arrival,prompt,output\n0,-1,1\n", "line 2: prompt is a whole number of tokens, not '-1'"),
        ("arrival,prompt,output\n0,1,0\n", "line 2: a request has one prompt token and one output token or more"),
        ("arrival,prompt,output\n0,9999999999,1\n", "line 2: a request of 10000000000 tokens exceeds"),
        ('{"arrival": 0, "prompt": 1}\n', "line 1: no column for output"),
        ('{"arrival": 0}\n[1]\n', "line 1: no column for prompt"),
        ('{"arrival": 0, "prompt": 1, "output": 1}\n[1]\n', "line 2: a JSON object should stand here"),
        ('{"arrival": 0,\n', "line 1: no JSON"),
        (
            '{"arrival": 0, "prompt": 1, "output": 1}\n{"arrival"\n',
            "line 2: no JSON: Expecting ':' delimiter, column 11$",
        ),
        ('{"arrival": true, "prompt": 1, "output": 1}\n', "line 1: arrival is a number"),
        ('arrival,prompt,output\n0,"1,1\n', "no CSV"),
    ],
)
def test_what_is_wrong_with_a_trace_is_said_with_its_line(text: str, complaint: str, tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_text(text)
    with pytest.raises(FileError, match=complaint):
        read_trace(path)


@given(
    st.dictionaries(
        st.sampled_from(["arrival", "prompt", "output", "x"]),
        st.one_of(st.none(), st.booleans(), st.floats(), st.text(max_size=9), st.lists(st.integers())),
    )
)
def test_no_line_of_json_is_a_traceback(row: dict[str, object]) -> None:
    with NamedTemporaryFile("w", suffix=".jsonl", encoding="utf-8") as file:
        file.write(json.dumps(row))
        file.flush()
        with suppress(FileError):
            assert len(read_trace(Path(file.name))) == 1
