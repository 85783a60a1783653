"""Which dcp size is fastest, said only as far as it is known: what nobody timed is a bracket. Standard library only.

A group simulated on one device lacks its exchange. Until that was measured between real ranks, it is assumed to lie between
nothing (all of it hidden) and an upper end; an answer is firm where it holds over the whole bracket. How much an exchange
may cost for a layout to win needs no assumption, and is told beside it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from bench.recommend.steptime import Span, StepTime
from dcp_core.cost import Work, step_work
from dcp_core.layout import DcpLayout
from dcp_core.settings import Case, ExchangeName, Settings
from dcp_core.shapes import ModelShape

ASSUMED_LATENCY_US, ASSUMED_BYTES_PER_US = 40.0, 27e3
"""At most so much per peer, and per byte of queries gathered: no decode step over next to no context took longer between two
H200s or two H100s on NVLink, ag_rs in CUDA graphs, 1 to 8192 tokens (results/reference)."""
ASSUMED_OF = ("H200", "H100")
"""GPUs of whose links that is assumed."""
NOTHING = Span(0.0, 0.0, 0.0)


class Origin(StrEnum):
    """Where an exchange's time comes from."""

    NONE = "none"
    MEASURED = "measured"
    MODELLED = "modelled"
    GIVEN = "given"
    ASSUMED = "assumed"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Exchange:
    """What the exchanges of one step take: ``count`` gathers and combines. ``span``: all of them.

    Args:
        by: the exchange that a model tells this of; None where no model does.
    """

    span: Span
    origin: Origin
    count: int
    by: ExchangeName | None = None


Known = Callable[[Case], Exchange | None]
"""What was measured or modelled of a case's exchange; None if nothing was."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What an exchange may cost where nobody measured it, on the device: an idle one may also wait for the host's launches.

    Args:
        given_us: of one gather and combine, as (low, high), if the user says so.
        device: the GPU's name.
    """

    given_us: tuple[float, float] | None = None
    device: str = ""

    def of(self, case: Case) -> Exchange:
        """Return the bracket of a case's exchanges.

        The middle of an assumed bracket is its upper end: nothing is hidden.
        """
        wire = [work.wire_bytes for work in _gathers(case)]
        if not wire:
            return Exchange(NOTHING, Origin.NONE, 0)
        if self.given_us is not None:
            low, high = self.given_us
            return Exchange(Span(high, low, high).times(len(wire)), Origin.GIVEN, len(wire))
        if any(name in self.device for name in ASSUMED_OF):
            peers = case.layout.dcp - 1
            most = len(wire) * peers * ASSUMED_LATENCY_US + sum(wire) / ASSUMED_BYTES_PER_US
            return Exchange(Span(most, 0.0, most), Origin.ASSUMED, len(wire))
        return Exchange(Span(math.inf, 0.0, math.inf), Origin.UNKNOWN, len(wire))


@dataclass(frozen=True, slots=True)
class Part:
    """A step of an option's traffic: ``weight`` times as often as others; its attention, and its exchange."""

    step: StepTime
    exchange: Exchange
    weight: float

    @property
    def span(self) -> Span:
        """One such step of one layer, exchange included."""
        return self.step.span + self.exchange.span

    @property
    def settings(self) -> Settings:
        """Those of the step, with the exchange whose time is in ``span``."""
        by = self.exchange.by
        return self.step.settings if by is None else replace(self.step.settings, exchange=by)

    @property
    def via(self) -> ExchangeName | None:
        """The exchange whose time is in ``span``; None where that is of no exchange in particular."""
        return self.settings.exchange if self.step.exchange_timed or self.exchange.by else None


class Standing(StrEnum):
    """How one option stands to another: over the whole of both brackets, or not told apart, as where one is extrapolated."""

    FASTER = "faster"
    SLOWER = "slower"
    LEVEL = "level"
    OPEN = "open"


@dataclass(frozen=True, slots=True)
class Option:
    """A layout, and what its steps take."""

    layout: DcpLayout
    parts: tuple[Part, ...]

    @property
    def span(self) -> Span:
        """One layer's time, all parts by their weights."""
        return _sum(part.span.times(part.weight) for part in self.parts)

    @property
    def local(self) -> Span:
        """The same without those exchanges that nobody measured with the step."""
        return _sum(part.step.span.times(part.weight) for part in self.parts)

    @property
    def exchanges(self) -> float:
        """How many exchanges ``local`` lacks, by the weights of the parts."""
        return sum(part.exchange.count * part.weight for part in self.parts if not part.step.exchange_timed)

    @property
    def via(self) -> ExchangeName | None:
        """The exchange whose time is in all of ``span``; None where its parts are of several, or of none in particular."""
        found = {part.via for part in self.parts}
        return found.pop() if len(found) == 1 else None

    @property
    def is_bracketed(self) -> bool:
        """Whether an exchange is in it that was neither measured nor modelled."""
        vague = (Origin.GIVEN, Origin.ASSUMED, Origin.UNKNOWN)
        return any(part.exchange.origin in vague for part in self.parts)

    @property
    def beyond(self) -> float:
        """Doublings by which the furthest of its steps was extrapolated; 0 if none was. How uncertain that is nobody knows."""
        return max(part.step.beyond for part in self.parts)

    def keeps(self, limit_us: float) -> bool:
        """Tell whether it surely takes no longer than some time."""
        return not self.beyond and self.span.high_us <= limit_us

    def misses(self, limit_us: float) -> bool:
        """Tell whether it surely takes longer."""
        return not self.beyond and self.span.low_us > limit_us

    def against(self, other: Option) -> Standing:
        """Compare with another option over the same parts."""
        if self.beyond or other.beyond:
            return Standing.LEVEL
        mine, theirs = self.span, other.span
        if mine.high_us < theirs.low_us:
            return Standing.FASTER
        if mine.low_us > theirs.high_us:
            return Standing.SLOWER
        return Standing.OPEN if self.is_bracketed or other.is_bracketed else Standing.LEVEL

    def break_even_us(self, base: Option) -> float | None:
        """Return what one exchange may cost for this to be as fast as ``base``: negative if it loses whatever that costs.

        None where nothing is left open: this or ``base`` has no exchange that nobody measured, or ``base`` has one.
        """
        if not self.exchanges or base.exchanges:
            return None
        return (base.local.median_us - self.local.median_us) / self.exchanges


@dataclass(frozen=True, slots=True)
class Decision:
    """The options over the same traffic, ascending by dcp, dcp 1 first.

    Raises:
        ValueError: unless they begin with dcp 1 and ascend.
    """

    options: tuple[Option, ...]

    def __post_init__(self) -> None:
        sizes = [option.layout.dcp for option in self.options]
        if not sizes or sizes[0] != 1 or sizes != sorted(set(sizes)):
            raise ValueError(f"a decision is between dcp 1 and larger sizes, ascending, not {sizes}")

    @property
    def base(self) -> Option:
        """DCP left off."""
        return self.options[0]

    @property
    def beyond(self) -> float:
        """Doublings by which the furthest of their steps was extrapolated; 0 where none was."""
        return max(option.beyond for option in self.options)

    def unbeaten(self, among: Iterable[int] | None = None) -> tuple[Option, ...]:
        """Return the options that no other is surely faster than; of ``among`` these dcp sizes only, if given."""
        allowed = None if among is None else set(among)
        running = [one for one in self.options if allowed is None or one.layout.dcp in allowed]
        return tuple(one for one in running if not any(other.against(one) is Standing.FASTER for other in running))


def break_even_requests(decisions: Iterable[tuple[int, Decision]]) -> tuple[int | None, int | None]:
    """Return from how many requests on a larger size is faster than dcp 1: at best, and surely; None: with none of them.

    Args:
        decisions: by requests of one batch, ascending.
    """
    at_best: int | None = None
    surely: int | None = None
    for requests, decision in decisions:
        standings = {one.against(decision.base) for one in decision.options[1:]}
        if standings:
            # What a larger batch contradicts does not hold from here on.
            at_best = None if standings == {Standing.SLOWER} else at_best or requests
            surely = surely or requests if Standing.FASTER in standings else None
    return at_best, surely


def option(
    layout: DcpLayout,
    steps: Sequence[StepTime],
    weights: Sequence[float],
    exchange_of: Callable[[StepTime], Exchange],
) -> Option:
    """Return a layout's option from its steps, asking for the exchanges that their times do not hold."""
    parts = []
    for step, weight in zip(steps, weights, strict=True):
        held = Exchange(NOTHING, Origin.MEASURED if layout.dcp > 1 else Origin.NONE, 0)
        parts.append(Part(step, held if step.exchange_timed else exchange_of(step), weight))
    return Option(layout, tuple(parts))


def asked(
    shape: ModelShape, limits: Limits, known: Known | None = None, *, as_engine: bool
) -> Callable[[StepTime], Exchange]:
    """Return what answers for the exchanges of a model's steps: what the user says, else what is known of them, else ``limits``.

    Args:
        as_engine: vLLM exchanges even where nothing is cached.
    """

    def exchange_of(step: StepTime) -> Exchange:
        settings = step.settings
        if settings.exchange is ExchangeName.LOOPBACK:
            settings = replace(settings, exchange=ExchangeName.AG_RS)
        if as_engine:
            settings = replace(settings, skip_empty_context=False)
        case = Case(shape, step.layout, step.workload, settings)
        found = known(case) if known and limits.given_us is None else None
        return found or limits.of(case)

    return exchange_of


def _gathers(case: Case) -> list[Work]:
    return [work for work in step_work(case) if work.stage == "gather"]


def _sum(spans: Iterable[Span]) -> Span:
    total = NOTHING
    for span in spans:
        total = total + span
    return total
