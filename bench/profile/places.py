"""Which of some points is nearest to a place, found without a look at most of them. Standard library only."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import repeat

Point = tuple[float, float, float, float]
FEW = 16
"""Points that are all looked at in less time than it takes to tell which to look at."""
_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True)
class Places:
    """Points in ascending order, each once, with the index that it had first.

    What lies further away along the first coordinate than some point lies altogether need not be looked at.
    """

    points: tuple[Point, ...]
    indices: tuple[int, ...]
    firsts: tuple[float, ...]

    @classmethod
    def of(cls, points: Sequence[Point]) -> Places:
        """Put points in order."""
        first_index: dict[Point, int] = {}
        for index, point in enumerate(points):
            first_index.setdefault(point, index)
        ordered = sorted(first_index)
        return cls(tuple(ordered), tuple(first_index[point] for point in ordered), tuple(point[0] for point in ordered))

    def nearest(self, here: Point) -> tuple[float, int]:
        """Return the distance and the index of the nearest point; of equally near ones, the first index."""
        low, high = (0, len(self.points)) if len(self.points) <= FEW else self._window(here)
        distances = list(map(math.dist, self.points[low:high], repeat(here)))
        least = min(distances)
        if distances.count(least) == 1:
            return least, self.indices[low + distances.index(least)]
        return least, min(index for index, one in zip(self.indices[low:high], distances, strict=True) if one == least)

    def _window(self, here: Point) -> tuple[int, int]:
        """Return between which points the nearest stands: along the first coordinate, none is further away than one of them is.

        That one has nearly the same first coordinate as the place, and the second next to its.
        """
        value, firsts = here[0], self.firsts
        at = bisect_left(firsts, value)
        if at == len(firsts) or (at and value - firsts[at - 1] < firsts[at] - value):
            at -= 1
        at = bisect_left(self.points, (firsts[at], here[1]))
        reach = min(map(math.dist, self.points[max(0, at - 1) : at + 1], repeat(here))) + _ROUNDING
        return bisect_left(firsts, value - reach), bisect_right(firsts, value + reach)
