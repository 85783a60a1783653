"""What sentinels say of the device: whether one case's time changed while others were measured. Standard library only."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from bench.record import Trial
from bench.report.table import case_name
from bench.sentinel import Drift, drifts


def drift_notes(trials: Iterable[Trial]) -> list[str]:
    """Return a sentence for each sentinel: how much its time changed, and over how long."""
    return [
        f"Measured {drift.times} times in {_duration(drift.seconds)}: {_changed(drift)}." for drift in drifts(trials)
    ]


def drift_notices(trials: Iterable[Trial]) -> list[str]:
    """Return a sentence for each sentinel that shows a drift larger than what settings are told apart by."""
    return [
        f"The device drifted: {_changed(drift)}. A smaller difference between two cases of this sweep may be the device's; "
        f"'dcpbench tune' compares in turns."
        for drift in drifts(trials)
        if drift.is_plain
    ]


def drift_json(trials: Iterable[Trial]) -> list[dict[str, Any]]:
    """Return the same as plain data."""
    return [
        {
            "case": drift.case.key,
            "times": drift.times,
            "seconds": drift.seconds,
            "ratio": drift.ratio,
            "low": drift.low,
            "high": drift.high,
            "drifted": drift.is_plain,
        }
        for drift in drifts(trials)
    ]


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


def _changed(drift: Drift) -> str:
    low, high = (f"{100 * (bound - 1):.1f}" for bound in (max(drift.low, 1.0), drift.high))
    return (
        f"{case_name(drift.case)} took up to {100 * (drift.ratio - 1):.1f} % [{low}, {high}] longer than at its fastest"
    )
