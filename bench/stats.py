"""Statistics of repeated measurements: the median first, with an interval that assumes no distribution. Standard library only."""

from __future__ import annotations

import math
import random
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from functools import cache
from itertools import groupby, pairwise
from statistics import fmean, median

from bench.times import FEWEST_FOR_P99, MAX_SAMPLES, Outliers, Summary

CONFIDENCE = 0.95
"""Of the interval of the median."""
FEWEST_FOR_INTERVAL = 6
"""With fewer samples not even (min, max) covers the median with 95 %: 2 * 0.5 ** 5 is 6.25 %."""


def summarize(samples: Sequence[float]) -> Summary:
    """Summarize one sample of a quantity.

    ``low`` and ``high`` are the order statistics that bound the median with at least 95 % (exact binomial; Conover,
    Practical Nonparametric Statistics, 3.2). Below six samples there are none, and the bounds fall to min and max.
    ``mad`` is the plain median absolute deviation, not scaled to a normal one.

    Raises:
        ValueError: for no samples, or one that is not finite.
    """
    if not samples:
        raise ValueError("a summary needs at least one sample")
    ordered = sorted(map(float, samples))
    if not all(map(math.isfinite, ordered)):
        raise ValueError("a summary needs finite samples; one is NaN or infinite")
    middle = median(ordered)
    low, high = median_interval(ordered)
    return Summary(
        count=len(ordered),
        median=middle,
        low=low,
        high=high,
        min=ordered[0],
        p10=_quantile(ordered, 0.1),
        p90=_quantile(ordered, 0.9),
        mad=median(abs(value - middle) for value in ordered),
        p99=_quantile(ordered, 0.99) if len(ordered) >= FEWEST_FOR_P99 else None,
        outliers=_outliers(ordered),
    )


def median_interval(samples: Sequence[float]) -> tuple[float, float]:
    """Return the order statistics that bound the median with at least 95 %; of fewer than six samples, their range.

    Raises:
        ValueError: for no samples.
    """
    if not samples:
        raise ValueError("a median's interval needs at least one sample")
    ordered = sorted(samples)
    rank = _interval_rank(len(ordered))
    return ordered[rank], ordered[-1 - rank]


def mean_interval(values: Sequence[float], *, resamples: int = 400, seed: int = 0) -> tuple[float, float]:
    """Return the 95 % interval of a mean by the percentile bootstrap (Efron 1979); the same one for the same values.

    Raises:
        ValueError: for no values.
    """
    if not values:
        raise ValueError("a mean's interval needs at least one value")
    source = random.Random(seed)
    means = sorted(fmean(source.choices(values, k=len(values))) for _ in range(resamples))
    outside = round((1 - CONFIDENCE) / 2 * resamples)
    return means[outside], means[-1 - outside]


def signed_rank_p(differences: Sequence[float]) -> float:
    """Return the two-sided p of Wilcoxon's signed-rank test: that differences lie above and below 0 alike.

    Exact, with equal amounts too: the chance of a rank sum as far out, over every choice of signs. Differences of 0 are left
    out, and equal amounts share their mean rank (Conover, Practical Nonparametric Statistics, 5.7). 1 where nothing differs.
    """
    amounts = sorted(filter(None, differences), key=abs)
    doubled: list[int] = []  # a mean rank may end in a half
    for _, equal in groupby(amounts, key=abs):
        size = len(list(equal))
        doubled += [2 * len(doubled) + size + 1] * size
    above = sum(rank for rank, amount in zip(doubled, amounts, strict=True) if amount > 0)
    # The product of (1 + x^rank) counts the choices of signs by their sum; a power of x is a digit of one long number.
    base = len(amounts) + 1
    counts = 1
    for rank in doubled:
        counts += counts << (base * rank)
    tail = counts & ((1 << base * (min(above, sum(doubled) - above) + 1)) - 1)
    # A number is its digits' sum modulo one less than its base, and the sum is below that: 2 ** differences at most.
    return min(1.0, 2 * (tail % ((1 << base) - 1)) / 2 ** len(amounts)) if amounts else 1.0


def is_precise(summary: Summary, precision: float) -> bool:
    """Tell whether the interval of the median lies within ``±precision`` (relative) of it; never below six samples."""
    reach = max(summary.high - summary.median, summary.median - summary.low)
    return summary.count >= FEWEST_FOR_INTERVAL and reach <= precision * abs(summary.median)


def thin(samples: Sequence[float], limit: int = MAX_SAMPLES) -> tuple[float, ...]:
    """Return at most ``limit`` samples in their order, evenly taken, the first and the last among them.

    Raises:
        ValueError: for a limit below 1.
    """
    if limit < 1:
        raise ValueError(f"a limit of samples is at least 1, not {limit}")
    count = len(samples)
    if count <= limit:
        return tuple(map(float, samples))
    if limit == 1:
        return (float(samples[0]),)
    return tuple(float(samples[index * (count - 1) // (limit - 1)]) for index in range(limit))


def lag1_correlation(samples: Sequence[float]) -> float:
    """Return how much each sample resembles the one before it, -1 to 1; above 0.2 the interval is too narrow.

    0 where it says nothing: below three samples, or all equal.
    """
    count = len(samples)
    mean = math.fsum(samples) / count if count else 0.0
    spread = math.fsum((value - mean) ** 2 for value in samples)
    if count < 3 or spread == 0:
        return 0.0
    return math.fsum((before - mean) * (after - mean) for before, after in pairwise(samples)) / spread


def _outliers(ordered: Sequence[float]) -> Outliers:
    """Count what lies beyond each of Tukey's fences."""
    lower, upper = _quantile(ordered, 0.25), _quantile(ordered, 0.75)
    near, far = 1.5 * (upper - lower), 3 * (upper - lower)
    far_below, below = bisect_left(ordered, lower - far), bisect_left(ordered, lower - near)
    above, far_above = (len(ordered) - bisect_right(ordered, upper + fence) for fence in (near, far))
    return Outliers(far_below, below - far_below, above - far_above, far_above)


@cache
def _interval_rank(count: int) -> int:
    """Return the index, from either end of the sorted samples, of the narrowest interval with 95 % coverage."""
    # P(fewer than k of n samples lie below the median) = Σ_{i<k} C(n, i) / 2^n; two of those tails may sum to 5 %.
    tail, term, rank = 0, 1, 0
    allowed = (1 << count) * (100 - round(CONFIDENCE * 100))
    while rank < count // 2:
        tail += term
        if 2 * tail * 100 > allowed:
            break
        rank += 1
        term = term * (count - rank + 1) // rank
    return max(rank - 1, 0)


def _quantile(ordered: Sequence[float], share: float) -> float:
    """Interpolate linearly between the two nearest order statistics."""
    place = share * (len(ordered) - 1)
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])
