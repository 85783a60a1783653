"""The picture of what a mask costs: its three parts are told apart with and without colour."""

from __future__ import annotations

import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.typing import ColorType

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
