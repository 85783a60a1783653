"""The program under a launcher, but for its deadline, six seconds, and one batch, q8s48, which hangs on the rank named first.

Named ``alone0``, that rank fails, while the other one hangs, and the deadline is ten times as long.
"""

from __future__ import annotations

import functools
import os
import sys
from typing import Any

import bench.launched
import bench.supervisor
from bench import worker
from tests.bench.scripted_worker import misbehave

DEADLINE_SECONDS = 6.0


def main() -> int:
    named, *words = sys.argv[1:]
    rank, alone = named.removeprefix("alone"), named.startswith("alone")
    answer = worker.answer

    def hang(order: dict[str, Any], *of_rank: Any) -> dict[str, Any]:
        if order["do"] == "measure" and order["case"]["workload"] == "q8s48":
            if alone and os.environ["RANK"] == rank:
                return {"outcome": {"kind": "failed", "fault": "error", "message": "a bug", "traceback": "where"}}
            if alone or os.environ["RANK"] == rank:
                misbehave("hangs")
        return answer(order, *of_rank)

    worker.answer = hang
    bench.launched.GRACE_SECONDS = 1.0
    bench.launched.STRAGGLER_SECONDS = 0.5
    if words == ["serve"]:
        bench.launched.serve()
        return 0
    bench.launched.LEADER = (sys.executable, "-m", "tests.bench.hanging_job", named, "serve")
    bench.supervisor.ESTIMATES = 0
    short = functools.partial(
        bench.supervisor.Supervisor, case_seconds=10 * DEADLINE_SECONDS if alone else DEADLINE_SECONDS
    )
    bench.supervisor.Supervisor = short  # type: ignore[misc, assignment]
    from bench.cli import main as program

    return program(words)


if __name__ == "__main__":
    sys.exit(main())
