"""How a device that exists on paper misbehaves: factors on the time that its model says, repetition after repetition.

A factor belongs to the device, whatever runs on it: two cases timed in turns see the same drift. Standard library only.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping

Noise = Callable[[int, random.Random], float]
"""From the number of a repetition, counted over the device's life, and a generator, to the factor on its time. It may remember,
so each life needs a new one."""


def white(spread: float = 0.01) -> Noise:
    """Every repetition by itself, ``spread`` being the relative standard deviation."""
    return lambda _, source: math.exp(source.gauss(0, spread))


def autocorrelated(spread: float = 0.01, memory: float = 0.8) -> Noise:
    """Each repetition resembles the one before it, by a lag-1 correlation of ``memory``."""
    state = 0.0

    def factor(_: int, source: random.Random) -> float:
        nonlocal state
        state = memory * state + source.gauss(0, spread * math.sqrt(1 - memory**2))
        return math.exp(state)

    return factor


def drifting(spread: float = 0.01, per_thousand: float = 0.05) -> Noise:
    """Slower by ``per_thousand`` every thousand repetitions, as a device that warms up."""
    return lambda number, source: (1 + per_thousand * number / 1000) * math.exp(source.gauss(0, spread))


def two_clocks(spread: float = 0.01, gap: float = 0.08, stay: int = 40) -> Noise:
    """Two clock rates, the slower by ``gap``; the device changes between them every ``stay`` repetitions on average."""
    slow = False

    def factor(_: int, source: random.Random) -> float:
        nonlocal slow
        slow ^= source.random() < 1 / stay
        return (1 + gap * slow) * math.exp(source.gauss(0, spread))

    return factor


def spiky(spread: float = 0.01, share: float = 0.03, size: float = 1.0) -> Noise:
    """A ``share`` of repetitions takes longer, by up to ``size`` of its time: interrupts, neighbours."""

    def factor(_: int, source: random.Random) -> float:
        spike = size * source.random() if source.random() < share else 0.0
        return (1 + spike) * math.exp(source.gauss(0, spread))

    return factor


def dropping(at: int, spread: float = 0.01, loss: float = 0.3, lasting: float = math.inf) -> Noise:
    """From repetition ``at`` on, for as many as it is ``lasting``, the clock is lower by ``loss``."""
    return lambda number, source: (
        (1 / (1 - loss) if 0 <= number - at < lasting else 1.0) * math.exp(source.gauss(0, spread))
    )


NOISES: Mapping[str, Callable[[], Noise]] = {
    "white": white,
    "autocorrelated": autocorrelated,
    "drifting": drifting,
    "two clocks": two_clocks,
    "spiky": spiky,
}
"""Those that a comparison has to stand, each a new life of the device."""
