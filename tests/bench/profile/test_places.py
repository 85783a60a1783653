"""The nearest of many points is found without a look at all of them, and is the one that such a look would find."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from bench.profile.places import FEW, Places, Point

COORDINATES = st.one_of(st.integers(0, 8).map(float), st.floats(-4, 20, allow_nan=False))  # many of them alike
POINTS = st.tuples(*[COORDINATES] * 4)


@given(st.lists(POINTS, min_size=1, max_size=4 * FEW), POINTS)
def test_the_nearest_is_the_one_that_a_look_at_all_would_find(points: list[Point], here: Point) -> None:
    distances = [math.dist(point, here) for point in points]
    assert Places.of(points).nearest(here) == (min(distances), distances.index(min(distances)))
