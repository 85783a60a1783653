"""What a profile answers for a batch, in words and as plain data. Standard library only."""

from __future__ import annotations

import math
from typing import Any

from bench.profile.entry import Candidate
from bench.profile.profile import Choice, Source
from bench.report.choices import shown_ratio
from bench.report.table import micros, settings_line


def answer_json(choice: Choice) -> dict[str, Any]:
    """Return a choice as plain data."""
    entry = choice.entry
    runner_up = entry.runner_up if entry else None
    return {
        "settings": choice.settings.to_json(),
        "source": str(choice.source),
        "distance": choice.distance,
        "expected_regret": choice.expected_regret,
        "outside": choice.outside,
        "nearest": str(entry.workload) if entry else None,
        "nearest_dcp": entry.layout.dcp if entry else None,
        "label": str(entry.label) if entry else None,
        "chosen": _candidate_json(entry.chosen) if entry else None,
        "ratio_to_default": entry.ratio_to_default if entry else None,
        "runner_up": _candidate_json(runner_up) if runner_up else None,
    }


def _candidate_json(candidate: Candidate) -> dict[str, Any]:
    times = {"median_us": candidate.median_us, "low_us": candidate.low_us, "high_us": candidate.high_us}
    return {"settings": candidate.settings.to_json(), **times, "case": candidate.case, "time": candidate.time or None}


def source_line(choice: Choice) -> str:
    """Say where a choice comes from, how far away that is, and what it is expected to cost."""
    if choice.outside:
        nearest = f"the nearest is {choice.distance:.1f} doublings away" if choice.distance < math.inf else ""
        return f"{choice.source}, since it lies outside what was measured{f' ({nearest})' if nearest else ''}"
    regret = choice.expected_regret
    expected = "" if regret is None else f", expected {regret:.1%} over the best"
    if choice.source is Source.EXACT or choice.entry is None:
        return f"{choice.source}{expected}"
    nearest = f"{choice.entry.workload} at dcp {choice.entry.layout.dcp}"
    return f"{choice.source}, {choice.distance:.1f} doublings from {nearest}{expected}"


def evidence_lines(choice: Choice) -> list[str]:
    """Say what was measured that speaks for a choice."""
    entry = choice.entry
    if entry is None:
        return []
    chosen, runner_up = entry.chosen, entry.runner_up
    times = f"{micros(chosen.median_us)} µs ({micros(chosen.low_us)} to {micros(chosen.high_us)})"
    when = f", {chosen.time}" if chosen.time else ""
    lines = [f"{entry.workload} {entry.label}: {times} with {settings_line(chosen.settings)}, case {chosen.case}{when}"]
    if entry.to_default:
        ratio = shown_ratio(entry.to_default)
        lines.append(
            "The engine's default is what was chosen." if ratio == "1" else f"Over the engine's default: {ratio}"
        )
    if runner_up:
        longer = 1 / entry.over(runner_up).value
        lines.append(f"Runner-up: {settings_line(runner_up.settings)}, {longer:.2f} of it, case {runner_up.case}")
    return lines
