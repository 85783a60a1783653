"""Measuring and racing on a device on paper, often: how often an interval covers, and how often a verdict is wrong.

``python -m tests.bench.paper_device`` prints the figures that docs/method.md tells.
"""

from __future__ import annotations

import random
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from statistics import NormalDist, mean, median
from types import SimpleNamespace
from typing import Any, cast

from bench.clock import Scripted
from bench.measure import _time, sampler_of
from bench.noise import NOISES, Noise, autocorrelated, drifting, spiky, two_clocks, white
from bench.policy import Policy
from bench.race import Runner, _run
from bench.stats import lag1_correlation, summarize
from bench.times import CORRELATED
from bench.tune.known import MOST_ROUNDS, REPEATS
from bench.verdict import Comparison, Verdict, compare, rounds_of
from dcp_core.mesh import Mesh

ROUNDS = 10
"""Of a race, after which a search looks again."""
STEP_US = 200.0
"""Of what races: far above what a timer resolves."""
SHARES = {"quick": 0.03, "standard": 0.01, "strict": 0.005}
MESH = Mesh.alone()


# --- Intervals ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Kind:
    """A device on paper.

    Args:
        noise: a new life of it, from the spread of its samples.
        truth: the median that an interval should cover, from the spread and what each sample would have been without it.
        independent: no sample tells anything of the next.
    """

    noise: Callable[[float], Noise]
    truth: Callable[[float, Sequence[float]], float]
    independent: bool


def _one(spread: float, levels: Sequence[float]) -> float:
    return 1.0


def _of_spikes(spread: float, levels: Sequence[float]) -> float:
    """Return the median of a long life."""
    return _long_median(spread)


@cache
def _long_median(spread: float) -> float:
    noise, source = spiky(spread), random.Random(1)
    return median(noise(number, source) for number in range(200_001))


def _middle(spread: float, levels: Sequence[float]) -> float:
    return median(levels)


def _of_both(spread: float, levels: Sequence[float]) -> float:
    """Return the median of samples around the levels that the device was at while it was sampled."""
    counts, below, above = Counter(levels), min(levels) / 1.5, max(levels) * 1.5
    noises = {level: NormalDist(level, spread * level) for level in counts}
    for _ in range(40):
        middle = (below + above) / 2
        if sum(count * noises[level].cdf(middle) for level, count in counts.items()) < len(levels) / 2:
            below = middle
        else:
            above = middle
    return middle


KINDS = {
    "white": Kind(white, _one, independent=True),
    "drifting": Kind(drifting, _middle, independent=True),
    "spiky": Kind(spiky, _of_spikes, independent=True),
    **{
        f"autocorrelated {memory}": Kind(partial(autocorrelated, memory=memory), _one, independent=False)
        for memory in (0.3, 0.5, 0.8, 0.95)
    },
    "two clocks": Kind(two_clocks, _of_both, independent=False),
}


@dataclass(frozen=True, slots=True)
class Coverage:
    """Shares of runs: whose interval covers, that are flagged as correlated, and of which one or the other holds; samples."""

    covered: float
    flagged: float
    either: float
    samples: float


def coverage(kind: Kind, spread: float, precision: float, runs: int) -> Coverage:
    """Measure as a case is, until the interval is narrow, over so many lives of a device."""
    policy = Policy(precision=precision, max_seconds=1e9)
    found = [_life(kind, spread, policy, seed) for seed in range(runs)]
    covered, flagged, samples = zip(*found, strict=True)
    either = mean(one or other for one, other in zip(covered, flagged, strict=True))
    return Coverage(mean(covered), mean(flagged), either, mean(samples))


def _life(kind: Kind, spread: float, policy: Policy, seed: int) -> tuple[bool, bool, int]:
    noise, count = kind.noise(spread), 0

    def latency_us(number: int, source: random.Random) -> float:
        nonlocal count
        count = number + 1
        return noise(number, source)

    samples = _time(lambda: None, MESH, Scripted(latency_us, seed=seed), policy).slowest_us
    # The same life without its spread: of each sample the level that the device was at.
    quiet, source = kind.noise(0.0), random.Random(seed)
    levels = [quiet(number, source) for number in range(count)][-len(samples) :]
    summary = summarize(samples)
    covers = summary.low <= kind.truth(spread, levels) <= summary.high
    return covers, lag1_correlation(samples) > CORRELATED, len(samples)


# --- Verdicts -------------------------------------------------------------------------------------------------------


class Pair:
    """Two settings open on one device; the first takes ``ratio`` times as long as the second."""

    def __init__(self, noise: Noise, seed: int, ratio: float) -> None:
        self._seed, self._races = seed, 0
        takes = 0.0

        def running(step_us: float) -> Callable[[], None]:
            def call() -> None:
                nonlocal takes
                takes = step_us

            return call

        clock = Scripted(lambda number, source: takes * noise(number, source), seed=seed)
        ready = cast("Any", SimpleNamespace(clock=clock))  # a race asks nothing else of it while it samples
        self._runners = [
            Runner(ready, *sampler_of(running(each), MESH, clock, Policy())) for each in (ratio * STEP_US, STEP_US)
        ]

    @property
    def warmup(self) -> int:
        """Repetitions of both before the first race."""
        return sum(runner.warmup for runner in self._runners)

    def race(self, rounds: int) -> tuple[list[float], list[float]]:
        """Time the two in turns, as a race does, and return a time of each for every round."""
        self._races += 1
        one, other = _run(self._runners, MESH, Policy(), rounds, REPEATS, f"{self._seed} {self._races}")
        return rounds_of(one.slowest_us, REPEATS), rounds_of(other.slowest_us, REPEATS)


def decided(noise: Noise, seed: int, ratio: float) -> Comparison:
    """Race until the verdict is clear, looking after every race, as a search does."""
    pair, mine, theirs = Pair(noise, seed, ratio), list[float](), list[float]()
    while len(mine) < MOST_ROUNDS:
        one, other = pair.race(ROUNDS)
        mine += one
        theirs += other
        found = compare(mine, theirs)
        if found.verdict is not Verdict.AMBIGUOUS:
            break
    return found


def verdicts(noise: Callable[[], Noise], ratio: float, runs: int) -> Counter[Verdict]:
    """Return how often each verdict is given over so many lives of a device."""
    return Counter(decided(noise(), seed, ratio).verdict for seed in range(runs))


def report() -> Iterator[str]:
    """Yield lines of coverage for every kind, spread and precision, then of verdicts for every noise."""
    for name, kind in KINDS.items():
        for spread in (0.01, 0.03, 0.06):
            for word, precision in SHARES.items():
                found = coverage(kind, spread, precision, 2000)
                yield (
                    f"{name:20} spread {spread:.0%} {word:9} covered {found.covered:.1%} flagged {found.flagged:.1%} "
                    f"either {found.either:.1%} samples {found.samples:.0f}"
                )
    for name, noise in NOISES.items():
        for ratio in (1.0, 0.99, 1.01):
            found = ", ".join(f"{count} {word}" for word, count in verdicts(noise, ratio, 1000).items())
            yield f"{name:20} times {ratio}: {found}"


if __name__ == "__main__":
    for line in report():
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()
