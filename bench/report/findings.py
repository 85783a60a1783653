"""How settings were found: what was tried for each batch, what won, by how much, and how sure that is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bench.grid import Column, Grid
from bench.record import Heat
from bench.report.choices import half_width_percent
from bench.report.table import NOT_MEASURED, dcp_of, exchange_of, kernels_of, path_of
from bench.tune.search import Finding
from bench.verdict import MARGIN, UNSTEADY, Comparison, Verdict
from dcp_core.settings import Case


def findings_grid(findings: Sequence[Finding]) -> Grid:
    """Return a line for each batch: the winner's time over the default's with its interval, the next best, and the effort."""
    columns = (
        Column("batch", wrap=True),
        Column("dcp"),
        Column("found", wrap=True),
        Column("/default", right=True),
        Column("95%", right=True),
        Column("next best", wrap=True),
        Column("", right=True),
        Column("tried", right=True),
        Column("s", right=True),
    )
    shown = [finding for finding in findings if finding.chosen is not None]
    gains = frozenset(
        place for place, finding in enumerate(shown) if finding.chosen != finding.default and finding.default
    )
    return Grid("How it was found", columns, tuple(map(_row, shown)), gains, tuple(_footnotes(shown)))


def findings_json(findings: Sequence[Finding]) -> list[dict[str, Any]]:
    """Return what was found as plain data; see ``findings_grid``."""
    return [
        {
            "batch": str(finding.chosen.workload),
            "dcp": finding.chosen.layout.dcp,
            "interleave": finding.chosen.layout.interleave,
            "settings": finding.chosen.settings.to_json(),
            "case": finding.chosen.key,
            "default": finding.default.settings.to_json() if finding.default else None,
            "comparison": _comparison_json(finding.comparison),
            "runner_up": finding.runner_up[0].settings.to_json() if finding.runner_up else None,
            "runner_up_ratio": finding.runner_up[1] if finding.runner_up else None,
            "found": how_found(finding),
            "done": finding.done,
            "screened": finding.screened,
            "candidates": finding.candidates,
            "trials": finding.trials,
            "seconds": round(finding.seconds, 3),
        }
        for finding in findings
        if finding.chosen is not None
    ]


def how_found(finding: Finding) -> str:
    """Return how sure a finding is: ``confirmed``, ``default`` where that was not beaten, or how far it came."""
    if not finding.done:
        return f"{finding.heat}…" if finding.heat else "…"
    if finding.default is None:
        return "no default"
    return "default" if finding.chosen == finding.default else Heat.CONFIRMED


def _row(finding: Finding) -> tuple[str, ...]:
    chosen, seen = finding.chosen, finding.comparison
    if chosen is None:
        raise ValueError("a finding without a choice has no row")
    second = finding.runner_up
    return (
        str(chosen.workload),
        dcp_of(chosen),
        how_found(finding),
        f"{seen.ratio:.3f}" if seen else NOT_MEASURED,
        f"±{half_width_percent(seen.ratio, seen.low, seen.high):.1f}%" if seen else NOT_MEASURED,
        _settings(second[0]) if second else NOT_MEASURED,
        f"{100 * (second[1] - 1):+.1f}%" if second else "",
        f"{finding.screened}/{finding.candidates}",
        f"{finding.seconds:.0f}",
    )


def _footnotes(findings: Sequence[Finding]) -> list[str]:
    open_ones = sum(not finding.done for finding in findings)
    kept = [finding.comparison for finding in findings if finding.chosen == finding.default and finding.comparison]
    doubted = sum(map(_is_doubted, kept))
    equals = sum(
        finding.runner_up is not None
        and finding.runner_up[1] < 1
        and not (finding.comparison and _is_doubted(finding.comparison))
        for finding in findings
    )
    lines = []
    if kept:
        lines += [
            f"{len(kept)}× no candidate was shown to beat the default in a fresh process;",
            "/default is its time there.",
        ]
    if doubted:
        lines += [
            f"{doubted}× of these it looked faster while the device changed its speed by over {UNSTEADY:.0%}:",
            "only a gain beyond that change is believed. Search again, into another folder.",
        ]
    if equals:
        lines += [
            f"{equals}× the next best seems faster, but is not told apart: of such the default is",
            "chosen, or else the one most like it.",
        ]
    if open_ones:
        lines.append(f"{open_ones}× the search is not at its end (…): until something is confirmed the default stays.")
    return lines


def _is_doubted(seen: Comparison) -> bool:
    """Tell whether a gain was seen that is not believed, since the device was not one all along."""
    return seen.verdict is Verdict.AMBIGUOUS and seen.high < 1 - MARGIN


def _settings(case: Case) -> str:
    exchange = exchange_of(case.settings)
    parts = [path_of(case.settings), kernels_of(case.settings), *([exchange] if exchange != NOT_MEASURED else [])]
    return " ".join(parts)


def _comparison_json(seen: Comparison | None) -> dict[str, Any] | None:
    if seen is None:
        return None
    return {
        "ratio": seen.ratio,
        "low": seen.low,
        "high": seen.high,
        "p": seen.p,
        "pairs": seen.pairs,
        "verdict": str(seen.verdict),
    }
