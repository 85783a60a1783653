"""The picture of what runs when in a step of split: two that run at once begin together, and nothing is made up."""

from __future__ import annotations

from dataclasses import replace

import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from bench.record import Label, Measured, StageTime, Trial
from bench.report import timeline
from bench.report.timeline import Span, schedule
from tests.bench.made_up import CPU, summary, trials

BATCH = "q8ks32k"
TIMES = {"gather": 30.0, "context": 900.0, "new": 200.0, "combine": 40.0}
TOGETHER = {"gather beside new": 215.0, "context": 900.0, "combine": 40.0}


def split(*, exchange: str = "direct", overlap: bool = False, label: Label = Label.MEASURED) -> Trial:
    """Make a step of split whose stages take the times above."""
    (one,) = (one for one in trials(BATCH, dcps=(2,), exchanges=(exchange,), kernels=("fa3",)) if is_split(one))
    assert isinstance(one.outcome, Measured)
    times = TOGETHER if overlap else TIMES
    stages = tuple(
        StageTime(name, summary(time), communicates=name.startswith(("gather", "combine")))
        for name, time in times.items()
    )
    outcome = replace(one.outcome, stages=stages, step_us=summary(sum(times.values()) + 5), label=label)
    settings = replace(one.case.settings, overlap=overlap)
    return replace(one, case=replace(one.case, settings=settings), outcome=outcome)


def is_split(one: Trial) -> bool:
    return one.case.settings.path == "split"


def outcome_of(one: Trial) -> Measured:
    assert isinstance(one.outcome, Measured)
    return one.outcome


def words(figure: Figure) -> str:
    return " ".join(text.get_text() for text in figure.findobj(Text) if isinstance(text, Text)).replace("\n", " ")


def test_stages_follow_one_another_each_as_long_as_it_takes_alone() -> None:
    assert schedule(outcome_of(split()), {}) == [
        Span("gather", 0, 30, communicates=True),
        Span("context", 30, 930, communicates=False),
        Span("new", 930, 1130, communicates=False),
        Span("combine", 1130, 1170, communicates=True),
    ]


def test_two_that_run_at_once_begin_together_and_what_follows_waits_for_both() -> None:
    assert schedule(outcome_of(split(overlap=True)), TIMES)[:3] == [
        Span("gather", 0, 30, communicates=True),
        Span("new", 0, 200, communicates=False),
        Span("context", 215, 1115, communicates=False),
    ]


def test_none_of_two_lasts_longer_than_both_together_did() -> None:
    spans = schedule(outcome_of(split(overlap=True)), {**TIMES, "new": 230.0})
    assert spans[1] == Span("new", 0, 215, communicates=False)


@pytest.mark.parametrize("alone", [{}, {"gather": 30.0}, {"new": 200.0}])
def test_where_nobody_timed_each_alone_the_two_stay_one(alone: dict[str, float]) -> None:
    assert schedule(outcome_of(split(overlap=True)), alone)[0] == Span("gather beside new", 0, 215, communicates=True)


def test_each_kind_of_a_mixed_batch_finds_its_own_times() -> None:
    outcome = outcome_of(split(overlap=True))
    mixed = replace(outcome, stages=tuple(replace(stage, name=f"prefill: {stage.name}") for stage in outcome.stages))
    alone = {f"prefill: {name}": time for name, time in TIMES.items()} | {"decode: gather": 3.0, "decode: new": 3.0}
    assert schedule(mixed, alone)[:2] == schedule(outcome, TIMES)[:2]


def test_the_picture_has_a_step_per_exchange_with_and_without_overlap_and_the_baseline() -> None:
    steps = [split(exchange=exchange, overlap=overlap) for exchange in ("a2a", "direct") for overlap in (False, True)]
    (baseline,) = trials(BATCH, dcps=(1,), kernels=("fa3",))
    figure = timeline.draw([*steps, baseline])
    assert isinstance(figure, Figure)
    (axes,) = figure.axes
    names = [label.get_text().replace("\n", " ") for label in axes.get_yticklabels()]
    assert names == [
        "tp, dcp 1, fa3 measured",
        "split, dcp 2, fa3 a2a measured",
        "split, dcp 2, fa3 a2a measured, overlap",
        "split, dcp 2, fa3 direct measured",
        "split, dcp 2, fa3 direct measured, overlap",
    ]
    assert len(axes.patches) == 1 + 4 * len(TIMES)
    assert "each timed alone" in words(figure)


def test_times_alone_are_never_those_of_another_machine() -> None:
    elsewhere = replace(split(), environment=CPU)
    figure = timeline.draw([split(overlap=True), elsewhere])
    assert isinstance(figure, Figure)
    assert "gather beside new" in words(figure)


def test_without_an_exchange_between_real_ranks_there_is_nothing_to_draw() -> None:
    simulated = trials(BATCH, exchanges=("loopback",), kernels=("fa3",))
    assert timeline.draw(simulated) == "needs a step of path split over some context, measured between real ranks"
