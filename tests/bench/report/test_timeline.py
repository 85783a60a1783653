"""The picture of what runs when in a step of split: as it was traced, else two that run at once begin together."""

from __future__ import annotations

from dataclasses import replace

import pytest
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.text import Text

from bench.record import Label, Measured, Trial
from bench.report import timeline
from bench.report.timeline import schedule
from bench.times import Piece, StageTime
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
        Piece("gather", 0, 30, communicates=True),
        Piece("context", 30, 930, communicates=False),
        Piece("new", 930, 1130, communicates=False),
        Piece("combine", 1130, 1170, communicates=True),
    ]


def test_two_that_run_at_once_begin_together_and_what_follows_waits_for_both() -> None:
    assert schedule(outcome_of(split(overlap=True)), TIMES)[:3] == [
        Piece("gather", 0, 30, communicates=True),
        Piece("new", 0, 200, communicates=False),
        Piece("context", 215, 1115, communicates=False),
    ]


def test_none_of_two_lasts_longer_than_both_together_did() -> None:
    spans = schedule(outcome_of(split(overlap=True)), {**TIMES, "new": 230.0})
    assert spans[1] == Piece("new", 0, 215, communicates=False)


@pytest.mark.parametrize("alone", [{}, {"gather": 30.0}, {"new": 200.0}])
def test_where_nobody_timed_each_alone_the_two_stay_one(alone: dict[str, float]) -> None:
    assert schedule(outcome_of(split(overlap=True)), alone)[0] == Piece("gather beside new", 0, 215, communicates=True)


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


TRACED = (
    Piece("meet_once", 0.0, 9.0, communicates=True),
    Piece("BatchPrefillWithRaggedKVCacheKernel", 1.5, 272.0, communicates=False),
    Piece("Memcpy DtoD", 10.0, 47.0, communicates=True),
    Piece("BatchPrefillWithPagedKVCacheKernel", 274.0, 1178.0, communicates=False),
    Piece("combine_rows", 1172.0, 1236.0, communicates=True),
)


def traced(pieces: tuple[Piece, ...] = TRACED) -> Trial:
    one = split(overlap=True)
    return replace(one, outcome=replace(outcome_of(one), timeline=pieces, step_us=summary(1239.0)))


def test_a_step_that_was_traced_is_drawn_as_it_ran_and_named_so() -> None:
    figure = timeline.draw([split(), traced()])
    assert isinstance(figure, Figure)
    (axes,) = figure.axes
    names = [label.get_text().replace("\n", " ") for label in axes.get_yticklabels()]
    assert names == ["split, dcp 2, fa3 direct measured", "split, dcp 2, fa3 direct measured, overlap, traced"]
    bars = [bar for bar in axes.patches if isinstance(bar, Rectangle)][len(TIMES) :]
    for bar, piece in zip(bars, TRACED, strict=True):
        assert (bar.get_x(), bar.get_x() + bar.get_width()) == pytest.approx((piece.start_us, piece.end_us))
        assert bar.get_y() + bar.get_height() / 2 == pytest.approx(1 - 0.18 if piece.communicates else 1 + 0.18)
    (step,) = (line for line in axes.lines if line.get_marker() == "D" and line.get_ydata() == 1)
    assert step.get_xdata() == pytest.approx([1239.0])
    assert "BatchPrefillWithPagedKVCacheKernel" in words(figure)
    assert "Traced: each kernel and copy as CUPTI saw it" in words(figure)
    assert "Not traced: put together from stages each timed alone" in words(figure)


def test_a_step_has_its_interval() -> None:
    figure = timeline.draw([split(), traced()])
    assert isinstance(figure, Figure)
    (axes,) = figure.axes
    intervals = [bar.get_segments()[0] for bar in axes.collections if isinstance(bar, LineCollection)]
    for row, (interval, one) in enumerate(zip(intervals, [split(), traced()], strict=True)):
        step = outcome_of(one).step_us
        assert step.low < step.high
        assert interval.tolist() == [pytest.approx([step.low, row]), pytest.approx([step.high, row])]
    assert "with its 95 % interval" in words(figure)


def test_the_note_tells_only_of_ways_that_were_drawn() -> None:
    for steps, told, untold in (([traced()], "Traced:", "Not traced:"), ([split()], "Not traced:", "Traced:")):
        figure = timeline.draw(steps)
        assert isinstance(figure, Figure)
        assert told in words(figure)
        assert untold not in words(figure)


def test_that_a_traced_row_ends_before_its_diamond_is_explained_only_where_one_does() -> None:
    whole = Piece("combine_rows", 1236.0, 1240.0, communicates=True)
    for steps, is_told in (([split(), traced()], True), ([traced((*TRACED, whole))], False), ([split()], False)):
        figure = timeline.draw(steps)
        assert isinstance(figure, Figure)
        said = " ".join(words(figure).split())
        assert (
            "Traced rows end up to 0.2 % before their diamonds: CUPTI watches a few repetitions only" in said
        ) is is_told


def test_the_title_tells_of_the_baseline_where_a_row_is_one() -> None:
    (baseline,) = trials(BATCH, dcps=(1,), kernels=("fa3",))
    for steps, told in (([split()], ""), ([split(), baseline], ", beside tp at dcp 1")):
        figure = timeline.draw(steps)
        assert isinstance(figure, Figure)
        assert figure.get_suptitle() == f"What runs when in a step of split{told}"


def test_the_panel_holds_a_timeline_that_is_longer_than_the_step() -> None:
    late = Piece("combine_rows", 1000.0, 5000.0, communicates=True)
    figure = timeline.draw([traced((late,))])
    assert isinstance(figure, Figure)
    assert figure.axes[0].get_xlim()[1] > 5000.0


def test_the_name_of_a_kernel_is_drawn_as_text_and_only_where_it_fits() -> None:
    hostile = Piece("$\\frac{1}{\x1b\u202e" * 40, 0.0, 900.0, communicates=False)
    narrow = Piece("combine_rows", 900.0, 901.0, communicates=True)
    figure = timeline.draw([traced((hostile, narrow))])
    assert isinstance(figure, Figure)
    figure.draw_without_rendering()
    assert "$\\frac{1}{\\x1b\\u202e" in words(figure)
    assert "…" in words(figure)
    assert "combine_rows" not in words(figure)


def test_times_alone_are_never_those_of_another_machine() -> None:
    elsewhere = replace(split(), environment=CPU)
    figure = timeline.draw([split(overlap=True), elsewhere])
    assert isinstance(figure, Figure)
    assert "gather beside new" in words(figure)


def test_without_an_exchange_between_real_ranks_there_is_nothing_to_draw() -> None:
    simulated = trials(BATCH, exchanges=("loopback",), kernels=("fa3",))
    assert timeline.draw(simulated) == "needs a step of path split over some context, measured between real ranks"
