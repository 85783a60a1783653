"""The program under a launcher, but for its deadline, six seconds, and one batch, q8s48, which hangs on the rank named first."""

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
    rank, *words = sys.argv[1:]
    answer = worker.answer

    def hang(order: dict[str, Any], *of_rank: Any) -> dict[str, Any]:
        if order["do"] == "measure" and order["case"]["workload"] == "q8s48" and os.environ["RANK"] == rank:
            misbehave("hangs")
        return answer(order, *of_rank)

    worker.answer = hang
    bench.launched.GRACE_SECONDS = 1.0
    if words == ["serve"]:
        bench.launched.serve()
        return 0
    bench.launched.LEADER = (sys.executable, "-m", "tests.bench.hanging_job", rank, "serve")
    bench.supervisor.ESTIMATES = 0
    short = functools.partial(bench.supervisor.Supervisor, case_seconds=DEADLINE_SECONDS)
    bench.supervisor.Supervisor = short  # type: ignore[misc, assignment]
    from bench.cli import main as program

    return program(words)


if __name__ == "__main__":
    sys.exit(main())
