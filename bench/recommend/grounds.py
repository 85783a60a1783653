"""What answers about a model on some GPUs rest on, whatever the traffic. Standard library only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from bench.recommend.decision import Decision, Limits
from bench.recommend.evidence import Evidence
from bench.recommend.recommend import Recommendation, Room, Traffic, crossing, decide
from dcp_core.shapes import ModelShape, Workload


@dataclass(frozen=True, slots=True)
class Grounds:
    """A model on ``tp`` GPUs, and all that is known of it.

    Args:
        model: as it was asked for.
        known: by dcp.
        limits: of exchanges that nobody measured.
        rooms: by dcp, of every legal size.
        slo_us: attention of a token may take at most, over all layers.
    """

    model: str
    shape: ModelShape
    tp: int
    known: Mapping[int, Evidence]
    limits: Limits
    rooms: Mapping[int, Room]
    slo_us: float | None = None

    def answer(self, traffic: Traffic) -> Recommendation:
        """Return what to run for some traffic, without what other numbers of requests would change."""
        engine, tuned = (self.decide(traffic, engine=engine) for engine in (True, False))
        return Recommendation(self.model, self.shape, self.tp, traffic, engine, tuned, self.rooms, self.slo_us)

    def decide(self, traffic: Traffic, *, engine: bool) -> Decision | None:
        """Return what is decided for some traffic; see ``bench.recommend.recommend.decide``."""
        return decide(self.shape, self.tp, traffic, self.known, self.limits, engine=engine)

    def recommend(self, traffic: Traffic) -> Recommendation:
        """Return the same with it, where the traffic is one batch of like requests."""
        found = self.answer(traffic)
        first = traffic.batches[0][0]
        if len(traffic.batches) > 1 or len(set(first.requests)) > 1:
            return found
        return replace(found, crossing=self.crossing(first, engine=found.engine is not None))

    def crossing(self, batch: Workload, *, engine: bool) -> tuple[tuple[int, Decision], ...]:
        """Return what is decided by number of requests like those of a batch; see ``bench.recommend.recommend.crossing``."""
        return crossing(self.shape, self.tp, batch, self.known, self.limits, engine=engine)
