"""A shallow tree over the size of a batch, with settings for leaves: grown by regret. Standard library only."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from operator import add, sub
from typing import NamedTuple

from bench.profile.entry import MAX_READINGS, Entry, carried
from dcp_core.settings import Settings
from dcp_core.shapes import Workload

MAX_DEPTH = 3
MAX_CHOICES = 64
"""Settings that a tree chooses among; fewer for huge batches, each of which is looked at once for each of them."""


class Sizes(NamedTuple):
    """What a tree asks of a batch: its requests, their mean new and total tokens, and the new tokens of all.

    Of a mixed batch the longer requests are meant: they decide, decodes take next to nothing beside them.
    """

    requests: float
    new: float
    total: float
    new_tokens: float

    @classmethod
    def of(cls, workload: Workload) -> Sizes:
        """Return those of a batch."""
        requests, new, total = workload.main
        return cls(requests, new / requests, total / requests, new)


@dataclass(frozen=True, slots=True)
class Leaf:
    """The settings of all batches that end here."""

    settings: Settings


@dataclass(frozen=True, slots=True)
class Cut:
    """A question: is one of a batch's ``Sizes`` at most ``limit``?"""

    size: str
    limit: float
    below: Tree
    above: Tree


Tree = Leaf | Cut


def decide(tree: Tree, sizes: Sizes) -> Settings:
    """Return the settings that a tree gives a batch."""
    while isinstance(tree, Cut):
        tree = tree.below if getattr(sizes, tree.size) <= tree.limit else tree.above
    return tree.settings


def leaves_of(tree: Tree) -> Iterator[Settings]:
    """Yield the settings of every leaf."""
    if isinstance(tree, Leaf):
        yield tree.settings
    else:
        yield from (*leaves_of(tree.below), *leaves_of(tree.above))


class Row(NamedTuple):
    """A measured batch, as a tree learns from it: its sizes, and its regret under each of the settings."""

    sizes: Sizes
    regrets: tuple[float, ...]


def rows_of(entries: Sequence[Entry]) -> tuple[list[Settings], list[Row]]:
    """Return the settings that most entries measured, and each entry's regret under each of them.

    Settings that were not measured with a batch, or cannot run it, have its ``supposed_regret``.
    """
    most = max(1, min(MAX_CHOICES, MAX_READINGS // sum(len(entry.workload) for entry in entries)))
    measured = Counter(candidate.settings for entry in entries for candidate in entry.candidates)
    choices = [settings for settings, _ in measured.most_common(most)]
    rows = []
    for entry in entries:
        best, unknown = entry.candidates[0].median_us, entry.supposed_regret
        known = {candidate.settings: candidate.median_us / best - 1 for candidate in entry.candidates}
        ran = (carried(settings, entry.layout, entry.workload) for settings in choices)
        regrets = tuple(known.get(one, unknown) if one else unknown for one in ran)
        rows.append(Row(Sizes.of(entry.workload), regrets))
    return choices, rows


def grow(choices: Sequence[Settings], rows: Sequence[Row], depth: int = MAX_DEPTH) -> Tree:
    """Return the tree that leaves little regret with some batches: each cut is the one that leaves least.

    Limits lie halfway between two batches in logarithms.
    """
    sums = [sum(regrets) for regrets in zip(*(row.regrets for row in rows), strict=True)]
    least = min(sums)
    cut = min(_cuts(rows), default=None) if depth and least > 0 else None
    if cut is None or cut[0] >= least:
        return Leaf(choices[sums.index(least)])
    _, size, limit = cut
    below = [row for row in rows if row.sizes[size] <= limit]
    above = [row for row in rows if row.sizes[size] > limit]
    return Cut(Sizes._fields[size], limit, grow(choices, below, depth - 1), grow(choices, above, depth - 1))


def _cuts(rows: Sequence[Row]) -> Iterator[tuple[float, int, float]]:
    """Yield every way to part some batches: the regret that remains if each part has its best settings, size, limit."""
    for size in range(len(Sizes._fields)):
        ordered = sorted(rows, key=lambda row: row.sizes[size])
        sums = list(accumulate((row.regrets for row in ordered), lambda one, two: tuple(map(add, one, two))))
        for place in range(1, len(ordered)):
            low, high = ordered[place - 1].sizes[size], ordered[place].sizes[size]
            if low < high:
                below = sums[place - 1]
                yield min(below) + min(map(sub, sums[-1], below)), size, math.sqrt(low * high)
