"""What a profile gains over the engine's default is told by phase, its mean geometric, and a loss is counted as one."""

from __future__ import annotations

import pytest

from bench.profile.entry import Candidate, Entry, Geometry
from bench.profile.profile import Profile
from bench.record import Environment, Label
from bench.report.gains import gains_grid, phase_of
from dcp_core import DcpLayout, Settings, Workload
from dcp_core.shapes import DType

FOLD, SPLIT = Settings(path="fold", kernel="fa2"), Settings(path="split", kernel="fa3")


def entry(batch: str, chosen_us: float, default_us: float | None) -> Entry:
    times = {FOLD: chosen_us} | ({SPLIT: default_us} if default_us else {})
    candidates = sorted(
        (Candidate(one, us, 0.99 * us, 1.01 * us, "0" * 16) for one, us in times.items()), key=lambda one: one.median_us
    )
    default = SPLIT if default_us else None
    return Entry(
        DcpLayout(8, 2), Workload.parse(batch), Label.MEASURED, "graph", True, tuple(candidates), FOLD, default
    )


def test_gains_are_told_by_phase_and_losses_counted() -> None:
    entries = [entry("q4s8k", 50, 100), entry("2q4s8k", 100, 50), entry("q2ks8k", 90, 100), entry("q512s8k", 7, None)]
    geometry = Geometry(16, 1, 128, DType.BFLOAT16, DType.BFLOAT16)
    rows = gains_grid(Profile(geometry, Environment({"device_name": "A"}), tuple(entries))).rows
    assert rows == (
        ("2", "chunked prefill", "1", "0.90", "0.90", "0.90", "0.90", "0", "0", "measured"),
        ("2", "drafted decode", "2", "1.00", "0.50", "1.25", "2.00", "0", "1", "measured"),
    )


@pytest.mark.parametrize(
    ("batch", "phase"),
    [("8q1s32k", "decode"), ("q4s8k", "drafted decode"), ("q512s8k", "chunked prefill"), ("q1s8k_q512s8k", "mixed")],
)
def test_a_batch_has_a_phase(batch: str, phase: str) -> None:
    assert phase_of(Workload.parse(batch)) == phase
