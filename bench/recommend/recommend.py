"""Which dcp size to run for some traffic: the fastest that fits, as far as that is known. Standard library only."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import partial
from itertools import combinations

from bench.recommend.decision import Decision, Limits, Option, asked, option
from bench.recommend.evidence import ENGINE_EXCHANGES, EXCHANGES, Evidence, modelled, step_times
from bench.recommend.steptime import StepTime, StepTimes
from dcp_core.exchange_bytes import exchange_bytes
from dcp_core.layout import DcpLayout, legal_dcps
from dcp_core.memory import KvMemory, RankMemory
from dcp_core.serving import WRAPPER_BYTES, Server
from dcp_core.serving import Limits as ServerLimits
from dcp_core.settings import Case, ExchangeName, PathName, Settings
from dcp_core.shapes import ModelShape, Request, Workload
from dcp_core.worst_case import worst_case

ALIKE = 0.01
"""Of two steps that were not told apart, the smaller dcp is preferred though it seems so much slower."""
MOST_REQUESTS = 256
"""Up to which it is said with how many requests a size pays."""


@dataclass(frozen=True, slots=True)
class Traffic:
    """The batches that a server runs, each so many times as often as others; and its requests.

    Args:
        requests: at once.
        length: tokens of each, in the end.
    """

    batches: tuple[tuple[Workload, float], ...]
    requests: int
    length: int


@dataclass(frozen=True, slots=True)
class Room:
    """What a rank holds with a layout.

    Args:
        memory: beside weights and activations; where ``upper``, weights were not told and are not taken off.
        workspace: of FlashInfer, bytes to set.
    """

    memory: RankMemory
    workspace: int
    upper: bool

    def requests(self, traffic: Traffic) -> int:
        """Return the requests of some traffic that fit; at most so many where ``upper``."""
        return self.memory.requests(traffic.length)


class Why(StrEnum):
    """What an answer rests on, said of its size."""

    ONLY = "only"
    """It is the only legal one."""
    FASTEST = "fastest"
    """It is surely the fastest of those with times."""
    FITS = "fits"
    """It is surely the fastest of those that hold all requests; or the only one that does."""
    MOST = "most"
    """It is the same of those that hold the most of them, where none holds all."""
    MAY_KEEP = "may_keep"
    """It is the only one of those not told apart that may keep the time asked for, which no size surely does."""
    OPEN = "open"
    """It is one of some that are not told apart, since an exchange would decide."""
    LEVEL = "level"
    """It is one of some that are not told apart within what was measured or modelled."""
    UNKNOWN = "unknown"
    """It was compared with none, for want of times."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A dcp size, and why.

    Args:
        dcp: to run; of several ``between``, of those that surely keep the time asked for, if any do, the smallest where the
            exchange would decide (``open``), else the one that seems fastest (``level``).
        between: sizes that were not told apart, ascending; ``dcp`` alone where it is firm.
        overfull: not all requests fit with any size.
        late: this size, and any that holds as many requests, is not known to keep the time asked for.
    """

    dcp: int
    why: Why
    between: tuple[int, ...]
    overfull: bool = False
    late: bool = False

    @property
    def is_firm(self) -> bool:
        """Whether it holds over all that is not known of the sizes with times."""
        return self.why not in (Why.OPEN, Why.LEVEL, Why.UNKNOWN)


@dataclass(frozen=True, slots=True)
class Recommendation:
    """Everything that an answer rests on.

    Args:
        model: as it was asked for.
        engine: the options as vLLM runs them; None if dcp 1 was not measured so.
        tuned: with the settings that the profile chose.
        crossing: what decides, by requests of a batch of the same lengths.
        rooms: by dcp, of every legal size.
    """

    model: str
    shape: ModelShape
    tp: int
    traffic: Traffic
    engine: Decision | None
    tuned: Decision | None
    rooms: Mapping[int, Room]
    slo_us: float | None = None
    crossing: tuple[tuple[int, Decision], ...] = ()

    @property
    def decision(self) -> Decision | None:
        """What decides: what vLLM runs, or where that was not measured, what the profile chose."""
        return self.engine or self.tuned

    @property
    def answer(self) -> Answer:
        """The dcp size to run."""
        return _answer(self, self.decision)

    @property
    def tuned_answer(self) -> Answer:
        """The same, if the profile's settings could be run."""
        return _answer(self, self.tuned)

    @property
    def unmeasured(self) -> tuple[int, ...]:
        """Legal sizes that were not compared, for want of times near enough: all, if dcp 1 has none."""
        timed = {one.layout.dcp for one in self.decision.options} if self.decision else set()
        return tuple(dcp for dcp in self.rooms if dcp not in timed)

    @property
    def fitting(self) -> tuple[int, ...]:
        """The sizes that hold all requests, or where none does, the most of them."""
        holding = {dcp: room.requests(self.traffic) for dcp, room in self.rooms.items()}
        most = min(self.traffic.requests, max(holding.values()))
        return tuple(sorted(dcp for dcp, held in holding.items() if held >= most))

    @property
    def is_overfull(self) -> bool:
        """Whether no size holds all requests."""
        return self.rooms[self.fitting[0]].requests(self.traffic) < self.traffic.requests

    @property
    def limit_us(self) -> float:
        """What one layer may take, all batches by their weights: infinite if no time was asked for."""
        weight = sum(weight for _, weight in self.traffic.batches)
        return math.inf if self.slo_us is None else self.slo_us * weight / self.shape.layers


def rooms_of(
    shape: ModelShape,
    tp: int,
    *,
    budget: int,
    upper: bool,
    server: ServerLimits,
    multiprocessors: int,
) -> dict[int, Room]:
    """Return what a rank holds, by legal dcp size.

    Args:
        budget: bytes of a rank that weights and activations leave, or where ``upper``, that activations leave.
    """
    rooms = {}
    for dcp in legal_dcps(shape, tp):
        layout = DcpLayout(tp, dcp)
        one = Server(shape, layout, server, multiprocessors)
        workspace = worst_case(one).need.float_bytes
        exchange = _exchange_buffers(shape, layout, server.max_batched_tokens)
        kv, wrappers = KvMemory(shape, layout), one.wrappers * WRAPPER_BYTES
        memory = RankMemory(kv, budget, one.float_workspace(workspace), wrappers, exchange)
        rooms[dcp] = Room(memory, workspace, upper)
    return rooms


def decide(
    shape: ModelShape,
    tp: int,
    traffic: Traffic,
    known: Mapping[int, Evidence],
    limits: Limits,
    *,
    engine: bool,
) -> Decision | None:
    """Compare the legal dcp sizes over some traffic; None if dcp 1 has no times near enough.

    Args:
        known: by dcp.
        limits: of exchanges that nobody measured.
        engine: with the settings that vLLM runs, not those that the profiles chose.
    """
    return _decide(shape, traffic, known, _step_times(tp, known, engine), limits, engine=engine)


def crossing(
    shape: ModelShape,
    tp: int,
    batch: Workload,
    known: Mapping[int, Evidence],
    limits: Limits,
    *,
    engine: bool,
) -> tuple[tuple[int, Decision], ...]:
    """Return what is decided for 1, 2, 4 … ``MOST_REQUESTS`` requests like those of a batch, all alike, and for as many.

    Without those for which times had to be extrapolated: these would say nothing for a number, nor against it.
    """
    found, times = [], _step_times(tp, known, engine)
    for requests in sorted({len(batch), *(1 << power for power in range(MOST_REQUESTS.bit_length()))}):
        many = Workload(batch.requests[:1] * requests)
        traffic = Traffic(((many, 1.0),), len(many), many.total_lens[0])
        decision = _decide(shape, traffic, known, times, limits, engine=engine)
        if decision and not decision.beyond:
            found.append((len(many), decision))
    return tuple(found)


def _step_times(tp: int, known: Mapping[int, Evidence], engine: bool) -> dict[int, StepTimes]:
    """Return what is known of steps, by dcp, ascending."""
    return {dcp: step_times(known[dcp], DcpLayout(tp, dcp), engine=engine) for dcp in sorted(known)}


def _decide(
    shape: ModelShape,
    traffic: Traffic,
    known: Mapping[int, Evidence],
    times: Mapping[int, StepTimes],
    limits: Limits,
    *,
    engine: bool,
) -> Decision | None:
    options = []
    workloads, weights = zip(*traffic.batches, strict=True)
    for dcp, steps_of in times.items():
        found = [steps_of.find(workload) for workload in workloads]
        steps = [step for step in found if step is not None]
        if len(steps) == len(found):
            choices = [
                option(
                    steps_of.layout,
                    steps,
                    weights,
                    asked(shape, limits, partial(modelled, evidence=known[dcp], among=among), as_engine=engine),
                )
                for among in _exchanges(steps, engine=engine)
            ]
            options.append(min(choices, key=lambda one: (one.is_bracketed, one.span.median_us)))
    return Decision(tuple(options)) if options and options[0].layout.dcp == 1 else None


def _exchanges(steps: Sequence[StepTime], *, engine: bool) -> list[tuple[ExchangeName, ...]]:
    """Return the exchanges that steps without theirs may be run with, a choice each.

    A server has one for all its batches, that of a step that was timed with it, if there is one; a profile one for each batch.
    """
    if not engine:
        return [EXCHANGES]
    timed = {step.settings.exchange for step in steps if step.exchange_timed}
    return [(one,) for one in ENGINE_EXCHANGES if one in timed] or [(one,) for one in ENGINE_EXCHANGES]


def _answer(found: Recommendation, decision: Decision | None) -> Answer:
    """Choose among sizes that hold all requests, or as many as any; of those, the ones in time; of those, the fastest."""
    fitting, limit_us = found.fitting, found.limit_us
    timed = [one for one in decision.options if one.layout.dcp in fitting] if decision else []
    late = found.slo_us is not None and not any(one.keeps(limit_us) for one in timed)

    def because(why: Why, dcp: int, between: tuple[int, ...] = ()) -> Answer:
        return Answer(dcp, why, between or (dcp,), found.is_overfull, late)

    holds = Why.MOST if found.is_overfull else Why.FITS
    if len(found.rooms) == 1:
        return because(Why.ONLY, 1)
    if decision is None or len(timed) < min(2, len(fitting)):
        first = timed[0].layout.dcp if timed else fitting[0]
        return because(holds if len(fitting) == 1 else Why.UNKNOWN, first, fitting)
    fastest = decision.unbeaten(fitting)
    # What is surely late is slower than anything that is surely in time, so that no faster one is left out here.
    left = tuple(one for one in fastest if not one.misses(limit_us)) or fastest
    if len(left) > 1:
        between = tuple(one.layout.dcp for one in left)
        run = [one for one in left if one.keeps(limit_us)] or left
        if any(_exchange_decides(one, other) for one, other in combinations(left, 2)):
            return because(Why.OPEN, run[0].layout.dcp, between)
        seems = min(run, key=lambda one: one.span.median_us * (1 if one is not run[0] else 1 - ALIKE))
        return because(Why.LEVEL, seems.layout.dcp, between)
    is_fastest = len(decision.options) > 1 and left == decision.unbeaten()
    why = Why.FASTEST if is_fastest else holds if left == fastest else Why.MAY_KEEP
    return because(why, left[0].layout.dcp)


def _exchange_decides(one: Option, other: Option) -> bool:
    """Tell whether either may be the faster one only because nobody measured an exchange: their steps as they are."""
    if one.beyond or other.beyond or not (one.is_bracketed or other.is_bracketed):
        return False
    mine, theirs = (side.local.median_us for side in (one, other))
    at_least, at_most = (_exchanges_us(one, end) for end in (False, True))
    other_least, other_most = (_exchanges_us(other, end) for end in (False, True))
    return mine + at_least <= theirs + other_most and theirs + other_least <= mine + at_most


def _exchanges_us(one: Option, most: bool) -> float:
    spans = [(part.exchange.span, part.weight) for part in one.parts]
    return sum((span.high_us if most else span.low_us) * weight for span, weight in spans)


def _exchange_buffers(shape: ModelShape, layout: DcpLayout, tokens: int) -> int:
    """Return what vLLM's default exchange keeps for the largest batch."""
    if layout.dcp == 1:
        return 0
    settings = replace(Settings(), path=PathName.SPLIT, exchange=ExchangeName.AG_RS)
    return exchange_bytes(Case(shape, layout, Workload((Request(tokens, 2 * tokens),)), settings))
