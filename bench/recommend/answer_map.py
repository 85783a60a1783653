"""Context by concurrency: the answer to each such question, and from how many requests on dcp pays. Standard library only."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from bench.profile.profile import Profile
from bench.recommend.decision import Option, Origin, Standing, break_even_requests
from bench.recommend.decision_map import rounded
from bench.recommend.grounds import Grounds
from bench.recommend.recommend import MOST_REQUESTS, Recommendation, Traffic
from bench.record import Label
from dcp_core.layout import DcpLayout

MOST_CONTEXTS, MOST_CONCURRENCIES = 12, 7
"""That stand for those that were measured, where nobody says otherwise: so many columns of cells make 100 of text."""
MOST_CELLS = 2048
"""That anybody reads, or waits for."""
NUMBERS = tuple(1 << power for power in range(MOST_REQUESTS.bit_length()))
"""Of requests, with which a larger size is compared to learn from how many on it pays."""


@dataclass(frozen=True, slots=True)
class Ratio:
    """The time of one size over that of dcp 1: by the medians, and over all that is not known of either."""

    dcp: int
    median: float
    low: float
    high: float

    @classmethod
    def of(cls, one: Option, base: Option) -> Ratio:
        """Divide the times of two options over the same traffic."""
        mine, theirs = one.span, base.span
        return cls(
            one.layout.dcp,
            mine.median_us / theirs.median_us,
            mine.low_us / theirs.high_us,
            mine.high_us / theirs.low_us,
        )


@dataclass(frozen=True, slots=True)
class Cell:
    """The answer to one question."""

    found: Recommendation

    @property
    def rival(self) -> Option | None:
        """The larger size that is told beside dcp 1: the answer, or if that is dcp 1, the one that comes nearest to it."""
        decision, answer = self.found.decision, self.found.answer
        if decision is None or len(decision.options) < 2:
            return None
        larger = decision.options[1:]
        if answer.dcp > 1:
            return next((one for one in larger if one.layout.dcp == answer.dcp), None)
        near = [one for one in larger if one.layout.dcp in answer.between]
        return min(near or larger, key=lambda one: one.span.median_us)

    @property
    def ratio(self) -> Ratio | None:
        """What the rival takes of dcp 1's time; None where either has no times near enough."""
        rival, decision = self.rival, self.found.decision
        return Ratio.of(rival, decision.base) if rival and decision else None

    @property
    def is_between(self) -> bool:
        """Whether the ratio is told by its ends: sizes are not told apart, or an exchange was not timed with its step."""
        rival, decision = self.rival, self.found.decision
        if rival is None or decision is None or not self.found.answer.is_firm:
            return True
        return bool(rival.exchanges) or rival.against(decision.base) in (Standing.OPEN, Standing.LEVEL)

    @property
    def labels(self) -> tuple[Label, ...]:
        """Where the times that are compared come from; an exchange that a model tells makes them modelled too."""
        decision = self.found.decision
        parts = [part for one in decision.options for part in one.parts] if decision else []
        found = {part.step.label for part in parts}
        found |= {Label.MODELLED for part in parts if part.exchange.origin is Origin.MODELLED}
        return tuple(label for label in Label if label in found)

    @property
    def is_extrapolated(self) -> bool:
        """Whether a time is compared of a batch that lies beyond what was measured."""
        decision = self.found.decision
        return bool(decision and decision.beyond)

    @property
    def is_bracketed(self) -> bool:
        """Whether an exchange is compared that was neither measured nor modelled."""
        decision = self.found.decision
        return bool(decision and any(one.is_bracketed for one in decision.options))

    @property
    def is_otherwise_tuned(self) -> bool:
        """Whether the answer would be another with the settings that the profile chose."""
        found = self.found
        return bool(found.engine and found.tuned and found.answer.between != found.tuned_answer.between)


@dataclass(frozen=True, slots=True)
class AnswerMap:
    """The answers by context and concurrency.

    Args:
        cells: of every context with every number of requests.
        pays: by context, from how many requests on, of ``NUMBERS``, a larger size is faster than dcp 1: at best, and surely (see
            ``break_even_requests``); without those contexts where no larger size was compared within what is measured.
    """

    grounds: Grounds
    cells: Mapping[tuple[int, int], Cell]
    pays: Mapping[int, tuple[int | None, int | None]]

    @classmethod
    def of(
        cls,
        grounds: Grounds,
        contexts: Sequence[int],
        concurrencies: Sequence[int],
        traffic: Callable[[int, int], Traffic],
    ) -> AnswerMap:
        """Answer every question.

        Args:
            traffic: of a context and a number of requests.
        """
        cells: dict[tuple[int, int], Cell] = {}
        pays: dict[int, tuple[int | None, int | None]] = {}
        for context in contexts:
            row = {requests: Cell(grounds.answer(traffic(context, requests))) for requests in concurrencies}
            cells |= {(context, requests): cell for requests, cell in row.items()}
            engine = any(cell.found.engine is not None for cell in row.values())
            asked = ((requests, grounds.decide(traffic(context, requests), engine=engine)) for requests in NUMBERS)
            known = [(requests, found) for requests, found in asked if found and not found.beyond]
            if compared := [one for one in known if len(one[1].options) > 1]:
                pays[context] = break_even_requests(compared)
        return cls(grounds, cells, pays)

    @property
    def contexts(self) -> list[int]:
        """Cached tokens, ascending."""
        return sorted({context for context, _ in self.cells})

    @property
    def concurrencies(self) -> list[int]:
        """Numbers of requests, ascending."""
        return sorted({requests for _, requests in self.cells})

    def fits(self, context: int) -> dict[int, int]:
        """Return the requests of a context that fit, by legal dcp."""
        traffic = self.cells[context, self.concurrencies[0]].found.traffic
        return {dcp: room.requests(traffic) for dcp, room in self.grounds.rooms.items()}


def measured_axes(profile: Profile, tp: int) -> tuple[list[int], list[int]]:
    """Return the contexts and the numbers of requests that stand for the decodes of dcp 1 in a profile: none, if it has none.

    The powers of two from the least to the most, or if these are too many, those of them with most decodes; what was measured,
    if there is none between.
    """
    decodes = [
        entry.workload
        for entry in profile.of_layout(DcpLayout(tp))
        if entry.workload.is_decode and len(set(entry.workload.requests)) == 1
    ]
    contexts = _spanned((rounded(one.requests[0].context) for one in decodes), MOST_CONTEXTS)
    return contexts, _spanned((len(one) for one in decodes), MOST_CONCURRENCIES)


def _spanned(values: Iterable[int], most: int) -> list[int]:
    counts = Counter(value for value in values if value > 0)
    if not counts:
        return []
    first, last = (min(counts) - 1).bit_length(), max(counts).bit_length() - 1
    powers = [1 << power for power in range(first, last + 1)] or list(counts)
    return sorted(sorted(powers, key=lambda power: -counts[power])[:most])
