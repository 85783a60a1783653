"""Two sets of trials side by side: what became slower, case by case and on the whole. Standard library only."""

from __future__ import annotations

import math
from collections import Counter

from bench.compare import Comparison, Pair
from bench.grid import Column, Grid
from bench.record import Measured, Trial
from bench.report.table import NOT_MEASURED, case_name, counted, micros, settings_line
from bench.verdict import Verdict


def comparison_grid(comparison: Comparison, *, everything: bool = False) -> Grid:
    """Return the cases, the worst first; those that are the same only if ``everything`` is asked for."""
    shown = [pair for pair in comparison.pairs if everything or pair.verdict is not Verdict.SAME]
    columns = (
        Column("case", wrap=True),
        Column("before µs", right=True),
        Column("after µs", right=True),
        Column("after/before", right=True),
        Column("95%", right=True),
        Column("verdict", wrap=True),
    )
    worse = frozenset(index for index, pair in enumerate(shown) if pair.is_worse)
    return Grid("After against before", columns, tuple(map(_row, shown)), worse)


def comparison_notes(comparison: Comparison) -> list[str]:
    """Return what a reader should know: how many of which verdict, the whole, what was not compared, what else differs."""
    counts = Counter(pair.verdict for pair in comparison.pairs)
    told = ", ".join(f"{counts[verdict]} {verdict}" for verdict in Verdict if counts[verdict])
    whole = f"{comparison.all_ratio:.3f} [{comparison.all_low:.3f}, {comparison.all_high:.3f}]"
    tolerated, anyway = f"{comparison.tolerance:.1%} are tolerated", f"differ by {comparison.scatter:.1%} anyway"
    notes = [
        f"{counted(len(comparison.pairs), 'case')} compared: {told}.",
        f"All together: {whole}, {comparison.overall}.",
        f"A difference within {comparison.margin:.1%} is none: {tolerated}, and from case to case these runs {anyway}.",
    ]
    for side, count in zip(("before", "after"), comparison.alone, strict=True):
        if count:
            notes.append(f"{counted(count, 'case')} only {side}, or not timed in the same way.")
    return [*notes, *(f"Differs: {difference}." for difference in comparison.differences)]


def comparison_json(comparison: Comparison) -> dict[str, object]:
    """Return the comparison for machines."""
    return {
        "worse": comparison.is_worse,
        "overall": {
            "ratio": comparison.all_ratio,
            "low": comparison.all_low,
            "high": comparison.all_high,
            "p": comparison.all_p,
            "verdict": comparison.overall,
        },
        "margin": comparison.margin,
        "scatter": comparison.scatter,
        "alone": {"before": comparison.alone[0], "after": comparison.alone[1]},
        "differences": list(comparison.differences),
        "pairs": [
            {
                "case": pair.after.case.to_json(),
                "ratio": _finite(pair.ratio),
                "low": _finite(pair.low),
                "high": _finite(pair.high),
                "verdict": pair.verdict,
                "why": pair.why,
            }
            for pair in comparison.pairs
        ],
    }


def comparison_rows(comparison: Comparison) -> list[dict[str, object]]:
    """Return every pair for a spreadsheet, the worst first: times in µs, empty where nothing was measured."""
    return [
        {
            "model": pair.after.case.shape.name,
            "tp": pair.after.case.layout.tp,
            "dcp": pair.after.case.layout.dcp,
            "interleave": pair.after.case.layout.interleave,
            "batch": str(pair.after.case.workload),
            "settings": settings_line(pair.after.case.settings),
            "before_us": _median_us(pair.before),
            "after_us": _median_us(pair.after),
            "ratio": pair.ratio,
            "low": pair.low,
            "high": pair.high,
            "verdict": str(pair.verdict),
            "why": pair.why,
        }
        for pair in comparison.pairs
    ]


def _median_us(trial: Trial) -> float | None:
    return trial.outcome.step_us.median if isinstance(trial.outcome, Measured) else None


def _row(pair: Pair) -> tuple[str, ...]:
    times = [NOT_MEASURED if us is None else micros(us) for us in map(_median_us, (pair.before, pair.after))]
    known = math.isfinite(pair.ratio)
    half = max(pair.high / pair.ratio, pair.ratio / pair.low) - 1 if known else 0.0
    return (
        case_name(pair.after.case),
        *times,
        f"{pair.ratio:.3f}" if known else NOT_MEASURED,
        f"±{half:.1%}" if known else NOT_MEASURED,
        f"{pair.verdict}: {pair.why}" if pair.why else pair.verdict,
    )


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
