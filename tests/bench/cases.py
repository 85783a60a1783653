"""Cases small enough to be measured on any machine in a moment."""

from __future__ import annotations

from bench.policy import Policy
from dcp_core import Case, DcpLayout, ModelShape, Settings, Workload

QUICK = Policy(precision=0.5, min_samples=6, max_samples=12, min_warmup=2, max_seconds=0.2)
"""The least that a measurement can be."""


def tiny(
    batch: str = "q8s32", *, dcp: int = 1, path: str = "", exchange: str = "", name: str = "", **settings: object
) -> Case:
    """Return a case of 4 query heads and one KV head per rank, float32, in pages of 16."""
    chosen = {
        "path": path or ("tp" if dcp == 1 else "split"),
        "kernel": "reference",
        "exchange": exchange or ("alone" if dcp == 1 else "loopback"),
        **settings,
    }
    shape = ModelShape(4 * dcp, 1, 16, layers=3, dtype="float32", name=name)
    return Case(shape, DcpLayout(dcp, dcp), Workload.parse(batch), Settings.from_json(chosen))
