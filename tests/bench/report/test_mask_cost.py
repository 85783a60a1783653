"""The picture of what a mask costs: its three parts are told apart with and without colour."""

from __future__ import annotations

import pytest
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.typing import ColorType

from bench.record import Measured
from bench.report import mask_cost
from bench.report.dark import darken
from tests.bench.made_up import trials


def luma(colour: ColorType) -> float:
    """Rec. 601's, of 255."""
    red, green, blue = to_rgb(colour)
    return 255 * (0.299 * red + 0.587 * green + 0.114 * blue)


@pytest.mark.parametrize("is_dark", [False, True], ids=["light", "dark"])
def test_building_planning_and_running_differ_by_hatch_in_bars_as_in_the_key(*, is_dark: bool) -> None:
    figure = mask_cost.draw(trials("q2ks32k", exchanges=("loopback",)))
    assert isinstance(figure, Figure)
    if is_dark:
        darken(figure)
    (axes,) = figure.axes
    key = list(figure.legends[0].get_patches())
    hatches = [patch.get_hatch() for patch in key]
    assert len(set(hatches)) == len(mask_cost.PARTS)
    assert [bar.get_hatch() for bar in axes.patches] == hatches * len(axes.get_yticks())
    for patch in [*key, *axes.patches]:
        is_seen = abs(luma(patch.get_edgecolor()) - luma(patch.get_facecolor())) > 30
        assert is_seen == bool(patch.get_hatch())


def test_planning_and_running_have_their_intervals() -> None:
    found = trials("q2ks32k", dcps=(2,), exchanges=("loopback",), kernels=("fa2",))
    figure = mask_cost.draw(found)
    assert isinstance(figure, Figure)
    (axes,) = figure.axes
    outcomes = sorted(
        (one.outcome for one in found if isinstance(one.outcome, Measured)), key=lambda one: -total_us(one)
    )
    shown = [bar.get_segments()[0][:, 0].tolist() for bar in axes.collections if isinstance(bar, LineCollection)]
    expected = []
    for outcome in outcomes:
        planning = [stage.host_us for stage in outcome.plan if stage.name not in mask_cost.BUILDING]
        building_us = outcome.plan_us - sum(one.median for one in planning)
        assert all(one.low < one.high for one in (*planning, outcome.step_us))
        expected.append(
            [building_us + sum(one.low for one in planning), building_us + sum(one.high for one in planning)]
        )
        expected.append([outcome.plan_us + outcome.step_us.low, outcome.plan_us + outcome.step_us.high])
    assert shown == [pytest.approx(ends) for ends in expected]


def total_us(outcome: Measured) -> float:
    return outcome.plan_us + outcome.step_us.median
