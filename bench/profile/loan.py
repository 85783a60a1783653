"""What a measured batch lends to others: its settings, unless they lost to the default beside it. Standard library only."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from bench.profile.entry import Entry, apart, carried, lent
from bench.profile.places import Point
from dcp_core.layout import DcpLayout
from dcp_core.settings import Settings, canonical, legal_by_kind
from dcp_core.shapes import Workload

BESIDE = 2.0
"""Doublings within which what settings did with a batch tells of another."""
_DECODE, _LONGER, _MIXED = map(Workload.parse, ("q1", "q2", "q1_q2"))
"""A batch of each kind."""


@dataclass(frozen=True, slots=True)
class Tried:
    """Where settings were measured beside the default, by new tokens, and where they were slower than it.

    Args:
        points, places, lost: of each such batch where it lies, which it is of all, and whether they lost; nothing, if they lost
            nowhere.
    """

    points: tuple[Point, ...] = ()
    places: tuple[int, ...] = ()
    lost: tuple[bool, ...] = ()

    @classmethod
    def of(cls, settings: Settings, entries: Sequence[Entry], points: Sequence[Point]) -> Tried:
        """Look for settings among some entries, whose places are ``points``."""
        seen = (
            (point, place, entry.loses(settings))
            for place, (entry, point) in enumerate(zip(entries, points, strict=True))
        )
        known = sorted((point, place, lost) for point, place, lost in seen if lost is not None)
        return cls(*zip(*known, strict=True)) if any(lost for *_, lost in known) else cls()

    def loses(self, here: Point, besides: Collection[int] = ()) -> bool:
        """Tell whether they lost at the nearest batch of no fewer new tokens than here, or at that of no more.

        Args:
            besides: places of batches that are left out.
        """
        first, count = (here[0],), len(self.points)
        above, below = bisect_left(self.points, first), bisect_left(self.points, (math.nextafter(here[0], math.inf),))
        return self._lost(here, range(above, count), besides) or self._lost(here, range(below - 1, -1, -1), besides)

    def _lost(self, here: Point, order: Iterable[int], besides: Collection[int]) -> bool:
        least, lost = BESIDE, False
        for index in order:
            point = self.points[index]
            if abs(point[0] - here[0]) > least:
                break
            distance = math.dist(point, here)
            if distance < least and self.places[index] not in besides:
                least, lost = distance, self.lost[index]
        return lost


Trying = Callable[[Settings], Tried]


class Loan(NamedTuple):
    """Settings of an entry as a layout runs them; ``always``: every batch of the kind they are for can run them."""

    settings: Settings
    layout: DcpLayout
    always: bool
    tried: Tried

    @classmethod
    def of(cls, settings: Settings, layout: DcpLayout, like: Workload, tried: Trying) -> Loan:
        """Return a loan for batches of the kind of ``like``."""
        always = legal_by_kind(settings) and carried(settings, layout, like) is not None
        return cls(settings, layout, always, tried(settings))

    def serves(self, workload: Workload) -> bool:
        """Tell whether a batch of that kind can run them."""
        return self.always or carried(self.settings, self.layout, workload) is not None

    def run_by(self, workload: Workload) -> Settings:
        """Return the settings as a batch that they serve runs them."""
        return canonical(self.settings, self.layout, workload)


class Loans(NamedTuple):
    """What an entry lends to batches of requests that are all longer or all decodes, and to mixed ones."""

    alike: Loan | None
    mixed: Loan | None

    @classmethod
    def of_leaf(cls, settings: Settings, layout: DcpLayout, tried: Trying, *, decodes: bool) -> Loans:
        """Return what a leaf of a tree lends. A tree of longer batches alone knows nothing of decodes."""
        beside = settings if settings.decode_kernel else apart(settings)
        like = _DECODE if decodes else _LONGER
        return cls(Loan.of(settings, layout, like, tried), Loan.of(beside, layout, _MIXED, tried))

    @classmethod
    def of(cls, entry: Entry, layout: DcpLayout, tried: Trying) -> Loans:
        """Return what an entry lends to a layout. Beside longer requests that were measured alone, decodes run apart."""
        settings, workload = lent(entry, layout), entry.workload
        if settings is None:
            return cls(None, None)
        alike = Loan.of(settings, layout, _DECODE if workload.is_decode else _LONGER, tried)
        return cls(alike, Loan.of(settings if workload.is_mixed else apart(settings), layout, _MIXED, tried))
