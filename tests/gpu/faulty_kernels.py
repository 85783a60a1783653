"""The real worker, but for cases whose model is named for a fault: what a broken kernel does to a device."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from bench import worker
from bench.measure import measure
from bench.policy import Policy
from bench.record import Outcome
from dcp_core.mesh import Mesh
from dcp_core.settings import Case


@triton.jit
def _store_at(pointer, offset: tl.int64):
    tl.store(pointer + offset, 1.0)


@triton.jit
def _wait_for_ever(pointer):
    while tl.load(pointer, volatile=True) == 0:
        tl.store(pointer + 1, 1.0)


def measure_or_fail(case: Case, mesh: Mesh, policy: Policy) -> Outcome:
    """Measure a case, unless its name says otherwise."""
    element = torch.zeros(1, device=mesh.device)
    match case.shape.name:
        case "traps":
            torch._assert_async(element)
        case "reaches too far":
            _store_at[(1,)](element, 1 << 42)
        case "spins":
            _wait_for_ever[(1,)](torch.zeros(2, device=mesh.device))
        case "takes too much":
            torch.empty(1 << 50, dtype=torch.uint8, device=mesh.device)
    return measure(case, mesh, policy)


if __name__ == "__main__":
    worker.measure = measure_or_fail
    worker.main()
