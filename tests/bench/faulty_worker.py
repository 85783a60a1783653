"""The real worker, but for cases whose model is named for a fault: what a broken kernel does to its process."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

import bench.measure
from bench import worker
from bench.measure import measure
from bench.policy import Policy
from bench.record import Outcome
from dcp_core.mesh import Mesh
from dcp_core.settings import Case
from tests.bench.scripted_worker import misbehave


def measure_or_fail(case: Case, mesh: Mesh, policy: Policy) -> Outcome:
    """Measure a case, unless its name says otherwise. Leave a file in the second folder.

    ``raises``: raise an error; ``stalls``: the last rank's step never ends once it is timed, nor lets anything else of Python
    run, as a driver's call that does not return, while the other ranks wait for it.
    """
    if len(sys.argv) > 2:
        (Path(sys.argv[2]) / str(os.getpid())).touch()
    if case.shape.name == "raises":
        raise ZeroDivisionError("a bug in a kernel")
    if mesh.is_simulated or mesh.rank == mesh.size - 1:
        misbehave(case.shape.name)
        if case.shape.name == "stalls":
            bench.measure._time = lambda *_: ctypes.PyDLL(None).pause()
    return measure(case, mesh, policy)


if __name__ == "__main__":
    (Path(sys.argv[1]) / str(os.getpid())).touch()
    worker.measure = measure_or_fail
    worker.main()
