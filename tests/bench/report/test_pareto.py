"""Latency against capacity: a front that nothing measured beats, and where what nobody timed counts at its worst."""

from __future__ import annotations

import math

from matplotlib.figure import Figure
from matplotlib.text import Text

from bench.record import Label
from bench.report import pareto
from bench.report.pareto import Point, front, points_of
from dcp_core.memory import KvMemory
from tests.bench.made_up import CPU, cases, trial, trials

BUDGET = 40 << 30


def points(*batches: str, **choices: object) -> list[Point]:
    (found,) = points_of(trials(*batches, **choices)).values()
    return found


def test_there_is_a_point_for_each_dcp_and_path_with_the_tokens_that_fit() -> None:
    found = points("16q1s32k", tp=16, dcps=(1, 2, 4))
    places = [(one.dcp, str(one.path)) for one in found]
    assert places == sorted(set(places))
    assert {dcp for dcp, _ in places} == {1, 2, 4}
    for one in found:
        assert one.capacity == KvMemory(one.trial.case.shape, one.trial.case.layout).tokens_in(BUDGET)
    assert {one.dcp: one.capacity / found[0].capacity for one in found} == {1: 1.0, 2: 2.0, 4: 4.0}


def test_the_front_is_what_no_other_point_beats() -> None:
    found = points("1q1s32k", tp=32, dcps=(1, 2, 4, 8), exchanges=("ag_rs",))
    best = front(found)
    assert len(best) > 1

    def beats(one: Point, other: Point) -> bool:
        return one.most_us <= other.most_us and one.capacity >= other.capacity and one is not other

    assert not any(beats(one, other) for one in found for other in best)
    assert all(any(beats(one, other) for one in found) for other in found if other not in best)


def test_real_ranks_go_before_a_simulation() -> None:
    assert {one.outcome.label for one in points("16q1s32k", exchanges=("loopback", "ag_rs"))} == {Label.MEASURED}


def test_a_simulated_step_counts_with_all_that_its_exchange_may_take() -> None:
    alone, *shared = points("16q1s32k", exchanges=("loopback",), kernels=("fa2",))
    assert alone.most_us == alone.outcome.step_us.high
    for one in shared:
        assert one.most_us - one.outcome.step_us.high >= 40
    unknown = [trial(one, environment=CPU) for one in cases(["16q1s32k"], exchanges=("loopback",))]
    (elsewhere,) = points_of(unknown).values()
    assert {one.dcp for one in elsewhere if math.isinf(one.most_us)} == {2}
    assert {one.dcp for one in front(elsewhere)} == {1}


def test_the_picture_has_the_front_and_says_what_fits() -> None:
    figure = pareto.draw(trials("1q1s32k", tp=16, dcps=(1, 2, 4), exchanges=("loopback",)))
    assert isinstance(figure, Figure)
    (axes,) = figure.axes
    (line,) = (line for line in axes.lines if line.get_gid() == "front")
    heights = [float(y) for y in line.get_ydata()]
    assert heights == sorted(heights)
    fits = [tick.get_text().split("\n") for tick in axes.get_xticklabels()]
    assert fits == [["dcp 1", "892k", "27 fit"], ["dcp 2", "1.78M", "54 fit"], ["dcp 4", "3.57M", "108 fit"]]
    said = " ".join(text.get_text() for text in figure.findobj(Text) if isinstance(text, Text))
    assert "which was not measured" in said


def test_one_dcp_alone_is_no_choice() -> None:
    reason = pareto.draw(trials("16q1s32k", dcps=(2,)))
    assert isinstance(reason, str)
    assert reason.startswith("needs one batch measured with two dcp sizes")


def test_a_capacity_is_told_in_three_figures_whatever_its_size() -> None:
    assert [pareto._count(tokens) for tokens in (65_536, 1_340_000, 1_006_632_960)] == ["66k", "1.34M", "1.01G"]
