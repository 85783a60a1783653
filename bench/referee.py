"""A second timer for what the first one times: CUPTI, through torch's profiler, over the very same repetitions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import chain, cycle
from statistics import median

import torch

from bench.audit import NULL, Audited, Span, turns_us, worst
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
        ahead: pieces of work before each repetition: what cools the cache, and the ranks' rendezvous.
        sees: whether CUPTI sees the smallest kernel behind them as one piece more.
    """

    def __init__(self, clock: Clock, mesh: Mesh) -> None:
        """Count what is ahead of a repetition.

        Raises:
            RuntimeError: if CUPTI never saw as many pieces of work twice.
        """
        self._clock, self._mesh = clock, mesh
        self._align = mesh.align if mesh.size > 1 and not mesh.is_simulated else None
        self._element = torch.zeros(1, device=mesh.device)
        self.nothing()
        self.ahead = self._pieces(lambda: None)
        self.sees = self._pieces(self.nothing) == self.ahead + 1

    def nothing(self) -> None:
        """Run the smallest kernel there is."""
        self._element.zero_()

    def audited(self, name: str, call: Callable[[], None]) -> Audited | None:
        """Time a call in turn with the smallest kernel, in several captures; None if it runs nothing on this rank.

        Raises:
            RuntimeError: if CUPTI never saw as many pieces of work twice.
        """
        call()
        turns = REPETITIONS // 2
        watched = list(self._watched(name, (call, self.nothing), CAPTURES, least=2 * self.ahead + 1))
        seen = [(times, turns_us(work, turns, self.ahead)) for times, work in watched]
        kernels = seen[-1][1].kernels
        if not kernels:
            return None
        return Audited(
            name,
            events_us=median(chain.from_iterable(times[::2] for times, _ in seen)),
            cupti_us=median(chain.from_iterable(each.stage_us for _, each in seen)),
            kernels=kernels,
            apart_us=median(chain.from_iterable(each.apart_us(times) for times, each in seen)),
            rank=self._mesh.rank,
        )

    def _pieces(self, call: Callable[[], None]) -> int:
        """Return of how many pieces of work a repetition of a call consists, with those ahead of it."""
        ((_, work),) = self._watched(NULL, (call,), 1, least=0)
        return len(work) // REPETITIONS

    def _watched(
        self, name: str, calls: Sequence[Callable[[], None]], captures: int, *, least: int
    ) -> Iterator[tuple[list[float], list[Span]]]:
        """Capture repetitions of calls in turn, so many times, and yield of each capture the times and what CUPTI saw.

        All ranks repeat until each saw as many pieces as the time before: who stopped by itself, or went on, would leave the
        others waiting at the rendezvous.

        Args:
            least: pieces of work that one turn of the calls has, on whatever rank.
        """
        turns, before = REPETITIONS // len(calls), -1
        for _ in range(captures):
            sample = self._clock.prepare(partial(_next, cycle(calls)), self._align)
            for _ in range(ATTEMPTS):
                times, pieces = watch(sample, REPETITIONS)
                each, rest = divmod(len(pieces), turns)
                same, before = len(pieces) == before and not rest and each >= least, len(pieces)
                if all(self._mesh.share(same)):
                    break
            else:
                raise RuntimeError(f"CUPTI saw {name} in another number of pieces each time, {ATTEMPTS} times")
            yield times, [(piece.start_us, piece.end_us) for piece in pieces]


def _next(turn: Iterator[Callable[[], None]]) -> None:
    next(turn)()
