"""Samples of one call as they are taken, block by block, and what is kept of them. Standard library only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

from bench.environment import slowdowns
from bench.times import StopReason


@dataclass(frozen=True, slots=True)
class Timed:
    """Samples of one call on every rank: per repetition, what the slowest took.

    Args:
        warmup: repetitions before the first.
        dropped: samples that are not here, since a rank's device was slowed down.
        states: what each rank's device told of its clocks after each block of samples that is here.
    """

    ranks_us: tuple[tuple[float, ...], ...]
    stop: StopReason
    warmup: int
    dropped: int = 0
    states: tuple[tuple[Mapping[str, str], ...], ...] = ()

    @property
    def slowest_us(self) -> list[float]:
        """The group's time of each repetition."""
        return [max(times) for times in zip(*self.ranks_us, strict=True)]


class Samples:
    """Samples of one call in blocks, each of every rank, as they are taken."""

    def __init__(self) -> None:
        self._clean: list[_Block] = []
        self._slowed: list[_Block] = []

    def add(self, ranks_us: Sequence[Sequence[float]], states: Sequence[Mapping[str, str]]) -> None:
        """Take a block: each rank's times of the same repetitions, and what its device tells of its clocks after them."""
        slowed = slowdowns(state.get("event_reasons", "") for state in states)
        (self._slowed if slowed else self._clean).append((ranks_us, states))

    @property
    def taken(self) -> int:
        """Repetitions in all, kept or not."""
        return _repetitions(self._clean) + _repetitions(self._slowed)

    @property
    def is_clean(self) -> bool:
        """True once there is a block during which no rank's device was slowed down."""
        return bool(self._clean)

    def timed(self, stop: StopReason, warmup: int) -> Timed:
        """Return the samples of clean blocks; of all if none is, as the states among them tell."""
        blocks, dropped = (self._clean, _repetitions(self._slowed)) if self._clean else (self._slowed, 0)
        times, states = (tuple(zip(*each, strict=True)) for each in zip(*blocks, strict=True))
        return Timed(tuple(tuple(chain(*own)) for own in times), stop, warmup, dropped, states)


_Block = tuple[Sequence[Sequence[float]], Sequence[Mapping[str, str]]]


def _repetitions(blocks: Sequence[_Block]) -> int:
    return sum(len(ranks_us[0]) for ranks_us, _ in blocks)
