"""A second timer for what the first one times: CUPTI, through torch's profiler, over the very same repetitions."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from statistics import median

import torch

from bench.audit import NULL, Audited, spans_us
from bench.clock import REPETITIONS, CudaClock
from bench.measure import Ready, prepare, timing
from bench.policy import Policy
from bench.record import Failed, Skipped
from bench.timeline import ATTEMPTS, watch
from dcp_core.mesh import Mesh
from dcp_core.settings import Case


def audit(case: Case, mesh: Mesh, policy: Policy) -> list[Audited] | Skipped | Failed:
    """Time a case's step and each of its stages with both timers at once, and the smallest kernel before them.

    Args:
        mesh: of one rank, or a whole simulated group, whose fullest rank is timed.
    """
    if mesh.device.type != "cuda" or (mesh.size > 1 and not mesh.is_simulated):
        return Skipped("CUPTI is asked of one GPU, and of one rank or a simulated group")
    ready = prepare(case, mesh, policy)
    if not isinstance(ready, Ready):
        return ready
    if not (isinstance(ready.clock, CudaClock) and ready.clock.graphs):
        return Skipped("it is not captured in a graph, and repetitions of launches cannot be told apart")
    seat, element = ready.stand.fullest, torch.zeros(1, device=mesh.device)

    def nothing() -> None:
        element.zero_()

    calls: dict[str, Callable[[], None]] = {NULL: nothing, "step": seat.launch}
    calls |= {stage.name: partial(stage.run, seat.step) for stage in seat.path.stages() if not stage.communicates}
    with timing(ready.stand):
        return _seen([_audited(name, call, ready.clock) for name, call in calls.items()])


def _seen(timed: list[Audited]) -> list[Audited] | Skipped:
    """Return what ran, of some batches a stage having nothing to do; the smallest kernel and the step always have."""
    if not all(one.kernels for one in timed[:2]):
        return Skipped("CUPTI sees nothing of what runs here")
    return [one for one in timed if one.kernels]


def _audited(name: str, call: Callable[[], None], clock: CudaClock) -> Audited:
    """Time a call with both timers.

    Raises:
        RuntimeError: if CUPTI never saw as many pieces of work twice.
    """
    call()
    sample, seen = clock.prepare(call), -1
    for _ in range(ATTEMPTS):
        times, pieces = watch(sample, REPETITIONS)
        work = [(piece.start_us, piece.end_us) for piece in pieces]
        if len(work) == seen:
            spans, kernels = spans_us(work, REPETITIONS, ahead=1 if clock.flushed_bytes else 0)
            return Audited(name, median(times), median(spans), kernels)
        seen = len(work)
    raise RuntimeError(f"CUPTI saw {name} in another number of pieces each time, {ATTEMPTS} times")
