"""The real worker, but for cases whose model is named for a fault: what a broken kernel does to its process."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from bench import worker
from bench.measure import measure
from bench.policy import Policy
from bench.record import Outcome
from dcp_core.mesh import Mesh
from dcp_core.settings import Case
from tests.bench.scripted_worker import misbehave


def measure_or_fail(case: Case, mesh: Mesh, policy: Policy) -> Outcome:
    """Measure a case, unless its name says otherwise; ``raises``: raise an error. Leave a file in the second folder."""
    if len(sys.argv) > 2:
        (Path(sys.argv[2]) / str(os.getpid())).touch()
    if case.shape.name == "raises":
        raise ZeroDivisionError("a bug in a kernel")
    if mesh.is_simulated or mesh.rank == mesh.size - 1:
        misbehave(case.shape.name)
    return measure(case, mesh, policy)


if __name__ == "__main__":
    (Path(sys.argv[1]) / str(os.getpid())).touch()
    worker.measure = measure_or_fail
    worker.main()
