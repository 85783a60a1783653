"""Tuned against default: a point per batch, and a geometric mean whose interval is that of a mean over batches."""

from __future__ import annotations

from math import exp, log
from statistics import fmean

import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from bench.record import Label
from bench.report import tuned
from bench.report.tuned import Row, gains_of, mean_ratio
from bench.stats import mean_interval
from tests.bench.made_up import trials
from tests.bench.report.test_gains import entry

BATCHES = ("16q1s8k", "64q1s32k", "8q4s8k", "q512s8k")


def test_the_mean_of_twice_and_half_as_long_is_one() -> None:
    mean = mean_ratio([entry("q4s8k", 50, 100), entry("2q4s8k", 100, 50)])
    assert mean.value == pytest.approx(1)
    assert (mean.low, mean.high) == pytest.approx((0.5, 2))


def test_the_interval_of_a_mean_holds_it_and_narrows_with_more() -> None:
    few, many = [1.0, 2.0, 4.0, 8.0], [1.0, 2.0, 4.0, 8.0] * 25
    for values in (few, many):
        low, high = mean_interval(values)
        assert low < fmean(values) < high
        assert (low, high) == mean_interval(values)
    assert mean_interval(many)[1] - mean_interval(many)[0] < 0.5 * (mean_interval(few)[1] - mean_interval(few)[0])
    assert mean_interval([3.0]) == (3.0, 3.0)
    with pytest.raises(ValueError, match="at least one"):
        mean_interval([])


def test_rows_are_phases_and_dcps_and_every_batch_is_a_point_in_one() -> None:
    found = trials(*BATCHES, dcps=(1, 2), kernels=("fa2", "fa3", "auto"))
    rows = gains_of(found)
    assert {row for label in rows for row in rows[label]} == {
        Row(phase, dcp) for phase in ("decode", "drafted decode", "chunked prefill") for dcp in (1, 2)
    }
    figure = tuned.draw(found)
    assert isinstance(figure, Figure)
    assert [axes.get_title(loc="left") for axes in figure.axes] == [str(label) for label in Label if label in rows]
    for axes, label in zip(figure.axes, (label for label in Label if label in rows), strict=True):
        entries = [one for group in rows[label].values() for one in group]
        points = sorted(
            float(x)
            for container in axes.containers
            for x in container.lines[0].get_xdata()
            if container.lines[0].get_marker() != "d"
        )
        assert points == pytest.approx(sorted(one.ratio_to_default or 0 for one in entries))
        means = sorted(
            float(x)
            for container in axes.containers
            for x in container.lines[0].get_xdata()
            if container.lines[0].get_marker() == "d"
        )
        told = [exp(fmean(log(one.ratio_to_default or 0) for one in group)) for group in rows[label].values()]
        assert means == pytest.approx(sorted(told))


def test_what_is_surely_faster_and_what_stayed_is_counted() -> None:
    figure = tuned.draw(trials(*BATCHES, dcps=(1,), kernels=("fa2", "auto")))
    assert isinstance(figure, Figure)
    said = " ".join(text.get_text() for text in figure.findobj(Text) if isinstance(text, Text)).replace("\n", " ")
    assert "4 in all, 2 surely faster than the default, 2 left at it, 0 surely slower" in said


def test_without_the_default_there_is_nothing_to_compare_with() -> None:
    reason = tuned.draw(trials("q512s8k", kernels=("fa3",), dcps=(2,)))
    assert reason == "needs a batch measured with the engine's default settings and with others"
