"""A second timer for what the first one times: CUPTI, through torch's profiler, over the very same repetitions."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from statistics import median

import torch

from bench.audit import NULL, Audited, Repetition, apart_us, repetitions_us, worst
from bench.clock import REPETITIONS, Clock, CudaClock
from bench.measure import Ready, prepare, timing
from bench.policy import Policy
from bench.race import FEW
from bench.record import Failed, Skipped
from bench.timeline import ATTEMPTS, refusal, watch
from dcp_core.mesh import Mesh
from dcp_core.settings import Case

CAPTURES = 3
"""Of each stage: what events read beyond CUPTI differs by a few tenths of a microsecond from one graph to the next."""
AHEAD = "what is ahead of a stage"
UNSEEN = "CUPTI sees nothing of what runs here"


def audit(case: Case, mesh: Mesh, policy: Policy) -> list[Audited] | Skipped | Failed:
    """Time a case's step and each of its stages with both timers at once, and the smallest kernel before them.

    Every rank of the group must call this, and all return the same: of each stage what the rank says on which the timers are
    furthest apart.

    Args:
        mesh: of real ranks, or a whole simulated group, whose fullest rank is timed, and its exchange is not.
    """
    if mesh.device.type != "cuda":
        return Skipped("CUPTI is asked of a GPU")
    ready = prepare(case, mesh, policy, plans=FEW)
    if not isinstance(ready, Ready):
        return ready
    if not (isinstance(ready.clock, CudaClock) and ready.clock.graphs):
        return Skipped("it is not captured in a graph, and repetitions of launches cannot be told apart")
    if problem := mesh.first_problem(refusal()):
        return Skipped(problem)
    seat, referee = ready.stand.fullest, Referee(ready.clock, mesh)
    if problem := mesh.first_problem("" if referee.sees else UNSEEN):
        return Skipped(problem)
    calls: dict[str, Callable[[], None]] = {NULL: referee.nothing, "step": seat.launch}
    calls |= {
        stage.name: partial(stage.run, seat.step)
        for stage in seat.path.stages()
        if not (stage.communicates and mesh.is_simulated)
    }
    with timing(ready.stand):
        return worst(mesh.share([referee.audited(name, call) for name, call in calls.items()]))


class Referee:
    """Times calls with both timers. Every rank of the group must have one, and ask it the same in the same order.

    Attributes:
        ahead: pieces of work before each repetition: what cools the cache, and the ranks' rendezvous with a kernel behind it.
        sees: whether CUPTI sees the smallest kernel behind them as one piece more.
    """

    def __init__(self, clock: Clock, mesh: Mesh) -> None:
        """Count what is ahead of a repetition.

        Raises:
            RuntimeError: if CUPTI never saw as many pieces of work twice.
        """
        self._clock, self._mesh = clock, mesh
        self._align = self._meet if mesh.size > 1 and not mesh.is_simulated else None
        self._element = torch.zeros(1, device=mesh.device)
        self._pieces: dict[str, int] = {}
        self.nothing()
        self.ahead = 0
        self.ahead = self._captured(AHEAD, lambda: None)[0].kernels
        self.sees = self._captured(NULL, self.nothing)[0].kernels == 1

    def nothing(self) -> None:
        """Run the smallest kernel there is."""
        self._element.zero_()

    def _meet(self) -> None:
        """Meet the other ranks, and end with a kernel of one's own: what follows NCCL's begins up to 14 µs after its end."""
        self._mesh.align()
        self.nothing()

    def audited(self, name: str, call: Callable[[], None]) -> Audited | None:
        """Time a call, and in turn with it the smallest kernel, each in several captures; None if it runs nothing on this rank.

        Raises:
            RuntimeError: if CUPTI never saw as many pieces of work twice.
        """
        call()
        stage: list[Repetition] = []
        null: list[Repetition] = []
        for _ in range(CAPTURES):
            stage += self._captured(name, call)
            null += self._captured(NULL, self.nothing)
        if not stage[0].kernels:
            return None
        return Audited(
            name,
            events_us=median(one.events_us for one in stage),
            cupti_us=median(one.cupti_us for one in stage),
            kernels=stage[0].kernels,
            apart_us=apart_us(stage, null),
            rank=self._mesh.rank,
        )

    def _captured(self, name: str, call: Callable[[], None]) -> list[Repetition]:
        """Capture repetitions of a call, and return how long each took.

        All ranks repeat until each saw as many pieces as the time before, in this capture or an earlier one of the call: who
        stopped by itself, or went on, would leave the others waiting at the rendezvous.
        """
        sample = self._clock.prepare(call, self._align)
        for _ in range(ATTEMPTS):
            times, seen = watch(sample, REPETITIONS)
            each, rest = divmod(len(seen), REPETITIONS)
            same = self._pieces.get(name) == len(seen) and not rest and each >= self.ahead
            self._pieces[name] = len(seen)
            if all(self._mesh.share(same)):
                return repetitions_us(times, [(piece.start_us, piece.end_us) for piece in seen], self.ahead)
        raise RuntimeError(f"CUPTI saw {name} in another number of pieces each time, {ATTEMPTS} times")
