"""What one layer's step takes: as a profile has it, or modelled from the nearest batches that it has. Standard library only."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from operator import itemgetter

from bench.profile.entry import Candidate, Entry, Geometry, carried, default_settings, engine_defaults
from bench.profile.nearest import CONTEXT_FLOOR, EDGE, FURTHEST
from bench.profile.profile import Profile
from bench.record import Environment, Label
from dcp_core.cost import Ceiling, ceiling_of, step_work
from dcp_core.layout import DcpLayout
from dcp_core.settings import Batching, Case, ExchangeName, Settings
from dcp_core.shapes import ModelShape, Workload

SAME = 0.02
"""Doublings within which two batches are one: a token more or less, of contexts of 1k and up."""
NEIGHBOURS = 2
PASS_US = 6.0
"""Of any pass, however little it reads, beside its work: what ratios of small batches to large ones need to come out right."""
LEAST_ERROR = 0.02
"""Of a model, whatever its neighbours say."""

Point = tuple[float, float, float]
Pick = Callable[[Entry], Candidate | None]
"""Which of a batch's candidates is meant; None where it was not measured."""


@dataclass(frozen=True, slots=True)
class Span:
    """A time in µs, and what it lies between; ``high_us`` is infinite where nothing bounds it.

    Raises:
        ValueError: unless 0 <= low <= median <= high.
    """

    median_us: float
    low_us: float
    high_us: float

    def __post_init__(self) -> None:
        if not 0 <= self.low_us <= self.median_us <= self.high_us:
            raise ValueError(f"{self.low_us} to {self.high_us} µs does not hold {self.median_us}")

    def __add__(self, other: Span) -> Span:
        return Span(self.median_us + other.median_us, self.low_us + other.low_us, self.high_us + other.high_us)

    def times(self, factor: float) -> Span:
        """Return the span of so many such steps."""
        return Span(self.median_us * factor, self.low_us * factor, self.high_us * factor)


@dataclass(frozen=True, slots=True)
class StepTime:
    """One layer's step of a batch on a layout.

    Args:
        span: with the 95 % interval of what was measured, or the model's error.
        label: measured or simulated of this very batch (give or take a token); else modelled.
        basis: the batches that it was read off.
        error: of the model, relative: how far its neighbours, each left out, are off; 0 where nothing is modelled.
        exchange_timed: the time holds the exchange between ranks, or there is none.
        beyond: doublings by which a modelled batch lies beyond the outermost of its kind, with or without exchange as itself: 0
            up to ``EDGE``. ``error``, of batches among these, says nothing about one so far out.
    """

    workload: Workload
    layout: DcpLayout
    settings: Settings
    span: Span
    label: Label
    basis: tuple[Workload, ...]
    error: float
    exchange_timed: bool
    beyond: float = 0.0


class Kind(StrEnum):
    """Batches whose times scale alike with their work."""

    DECODE = "decode"
    EXTEND = "extend"
    MIXED = "mixed"

    @classmethod
    def of(cls, workload: Workload) -> Kind:
        """Return a batch's kind."""
        return cls.DECODE if workload.is_decode else cls.MIXED if workload.is_mixed else cls.EXTEND


def fastest(entry: Entry) -> Candidate:
    """Pick the settings that the profile chose."""
    return entry.chosen


def as_engine(environment: Environment) -> Pick:
    """Return the pick of what vLLM's FlashInfer backend runs by itself, over either of its exchanges.

    A simulation cannot tell whether gather and combine are left out where nothing is cached, so that either stands for both.
    """

    def pick(entry: Entry) -> Candidate | None:
        wanted = {_untimed(one, entry) for one in engine_defaults(entry.layout, entry.workload, environment)}
        return next((one for one in entry.candidates if _untimed(one.settings, entry) in wanted), None)

    return pick


def _untimed(settings: Settings, entry: Entry) -> Settings:
    if settings.exchange is ExchangeName.A2A:
        settings = replace(settings, exchange=ExchangeName.AG_RS)
    return replace(settings, skip_empty_context=True) if entry.label is Label.SIMULATED else settings


@dataclass(frozen=True, slots=True)
class Roofline:
    """What a rank's attention cannot be faster than, without exchange.

    Args:
        shape, layout: any model and tp of the geometry that the rank computes: one whose ranks are one DCP group.
    """

    shape: ModelShape
    layout: DcpLayout
    ceiling: Ceiling

    @classmethod
    def of(cls, geometry: Geometry, layout: DcpLayout, ceiling: Ceiling) -> Roofline:
        """Return that of a geometry's ranks on a layout."""
        shape = ModelShape(geometry.q_heads, geometry.kv_heads, geometry.head_dim, 1, geometry.dtype, geometry.kv_dtype)
        return cls(shape, DcpLayout(layout.dcp, layout.dcp, layout.canonical.interleave), ceiling)

    def work_us(self, workload: Workload, settings: Settings) -> float:
        """Return the least time of a batch, and ``PASS_US``."""
        works = step_work(Case(self.shape, self.layout, workload, settings))
        own = [work for work in works if work.stage not in ("gather", "combine")]
        return PASS_US + 1e6 * sum(
            max(work.flops / self.ceiling.flops_per_s, work.bytes_moved / self.ceiling.bytes_per_s) for work in own
        )


@dataclass(frozen=True, slots=True, eq=False)
class _Row:
    """A measured batch: where it lies, its time, and the time that its work alone would take. A key by itself, not its values."""

    entry: Entry
    candidate: Candidate
    kind: Kind
    point: Point
    work_us: float


@dataclass(frozen=True, slots=True)
class StepTimes:
    """What a profile has to say about the time of steps on one layout.

    ``sums_errors``: how far sums of passes are off the mixed batches that were measured, those whose parts were measured too:
    of steps with their exchange (True), and without.
    """

    layout: DcpLayout
    roofline: Roofline
    rows: tuple[_Row, ...]
    sums_errors: Mapping[bool, float] = field(init=False, repr=False, compare=False)
    _of_kind: Mapping[Kind, tuple[_Row, ...]] = field(init=False, repr=False, compare=False)
    _missed: dict[_Row, float] = field(init=False, repr=False, compare=False)
    """By how much rows are missed by their neighbours, as far as that was asked: most are asked often."""

    def __post_init__(self) -> None:
        of_kind = {kind: tuple(row for row in self.rows if row.kind is kind) for kind in Kind}
        object.__setattr__(self, "_of_kind", of_kind)
        object.__setattr__(self, "_missed", {})
        object.__setattr__(
            self, "sums_errors", {timed: _sums_error(self.layout, self._only(timed)) for timed in (True, False)}
        )

    @classmethod
    def of(cls, profile: Profile, layout: DcpLayout, pick: Pick) -> StepTimes:
        """Read the steps of a layout off a profile of its geometry, those between real ranks and those of one device."""
        ceiling = ceiling_of(profile.environment.hard.get("device_name", ""))
        found = ((entry, pick(entry)) for entry in profile.of_layout(layout))
        roofline = Roofline.of(profile.geometry, layout, ceiling)
        rows = (_row(roofline, entry, candidate) for entry, candidate in found if candidate)
        return cls(layout, roofline, tuple(rows))

    def find(self, workload: Workload) -> StepTime | None:
        """Return what a batch takes; None if nothing near enough was measured.

        The very batch, if it was measured. Of others the two nearest of its kind are asked by how much they exceed what
        their work allows, weighted by nearness. A mixed batch is taken apart, as an engine does: its decodes, and the rest.
        """
        here, kind = _place(workload), Kind.of(workload)
        if very := _row_at(self.layout, self._of_kind[kind], here, kind):
            return self._measured(workload, very)
        if kind is Kind.MIXED:
            return self._apart(workload)
        near = self._near(here, kind)
        if not near or math.dist(near[0].point, here) > FURTHEST:
            return None
        return self._modelled(workload, here, near)

    def least_us(self, workload: Workload) -> float:
        """Return what the engine's settings take for a batch at best: a bound, for where nothing near was measured."""
        return self.roofline.work_us(workload, default_settings(self.layout, workload))

    def _near(self, here: Point, kind: Kind, *, besides: Point | None = None) -> list[_Row]:
        """Return the nearest rows of a kind, no two at one place: of real ranks only, where there are any near enough.

        Args:
            besides: a place whose rows may not answer.
        """
        rows = [row for row in self._of_kind[kind] if not (besides and _together(row.point, besides))]
        alike = [(math.dist(row.point, here), row) for row in rows]
        real = [one for one in alike if one[0] <= FURTHEST and one[1].entry.label is Label.MEASURED]
        chosen: list[_Row] = []
        for _, row in sorted(real or alike, key=itemgetter(0)):
            if not any(_together(row.point, other.point) for other in chosen):
                chosen.append(row)
            if len(chosen) == NEIGHBOURS:
                break
        return chosen

    def _measured(self, workload: Workload, row: _Row) -> StepTime:
        entry, one = row.entry, row.candidate
        span = Span(one.median_us, one.low_us, one.high_us)
        return StepTime(
            workload, self.layout, one.settings, span, entry.label, (entry.workload,), 0.0, _timed(self.layout, entry)
        )

    def _modelled(self, workload: Workload, here: Point, near: Sequence[_Row]) -> StepTime | None:
        settings = carried(near[0].candidate.settings, self.layout.canonical, workload)
        if settings is None:
            return None
        median = self.roofline.work_us(workload, settings) * _excess(near, here)
        error = max(LEAST_ERROR, *(self._left_out(row) for row in near))
        span = Span(median, median / (1 + error), median * (1 + error))
        basis, timed = tuple(row.entry.workload for row in near), _timed(self.layout, near[0].entry)
        alike = [row.point for row in self._of_kind[near[0].kind] if _timed(self.layout, row.entry) is timed]
        beyond = _beyond(alike, here)
        return StepTime(workload, self.layout, settings, span, Label.MODELLED, basis, error, timed, beyond)

    def _left_out(self, row: _Row) -> float:
        """Return by what factor less 1 a row is missed by its own neighbours; 1 if it has none."""
        if row not in self._missed:
            self._missed[row] = self._missed_by(row)
        return self._missed[row]

    def _missed_by(self, row: _Row) -> float:
        near = self._near(row.point, row.kind, besides=row.point)
        if not near:
            return 1.0
        ratio = row.work_us * _excess(near, row.point) / row.candidate.median_us
        return max(ratio, 1 / ratio) - 1

    def _apart(self, workload: Workload) -> StepTime | None:
        """Add up the passes of a mixed batch. Its settings are those of the longer requests, decodes apart."""
        decodes = Workload(tuple(one for one in workload.requests if one.new == 1))
        longer = Workload(tuple(one for one in workload.requests if one.new > 1))
        first, second = self.find(decodes), self.find(longer)
        if first and second and first.exchange_timed is not second.exchange_timed:
            simulated = replace(self, rows=self._only(timed=False))
            first, second = simulated.find(decodes), simulated.find(longer)
        if first is None or second is None:
            return None
        settings = replace(
            second.settings, decode_kernel=first.settings.kernel, batching=Batching.SEPARATE, overlap=False
        )
        carried_on = carried(settings, self.layout.canonical, workload)
        if carried_on is None:
            return None
        error = max(LEAST_ERROR, first.error, second.error, self.sums_errors[first.exchange_timed])
        whole = first.span + second.span
        span = Span(
            whole.median_us,
            min(whole.low_us, whole.median_us / (1 + error)),
            max(whole.high_us, whole.median_us * (1 + error)),
        )
        basis = (*first.basis, *second.basis)
        timed, beyond = first.exchange_timed, max(first.beyond, second.beyond)
        return StepTime(workload, self.layout, carried_on, span, Label.MODELLED, basis, error, timed, beyond)

    def _only(self, timed: bool) -> tuple[_Row, ...]:
        """Return the steps with their exchange, or those without."""
        return tuple(row for row in self.rows if _timed(self.layout, row.entry) is timed)


def _row_at(layout: DcpLayout, rows: Iterable[_Row], here: Point, kind: Kind) -> _Row | None:
    """Return the row at a place, that of real ranks before a simulated one; None if there is none."""
    found = [row for row in rows if row.kind is kind and _together(row.point, here)]
    return min(found, key=lambda row: (not _timed(layout, row.entry), math.dist(row.point, here)), default=None)


def _sums_error(layout: DcpLayout, rows: Sequence[_Row]) -> float:
    mixed = [row for row in rows if row.kind is Kind.MIXED]
    ratios = [told / row.candidate.median_us for row in mixed if (told := _parts_us(layout, rows, row.entry.workload))]
    return max((max(ratio, 1 / ratio) - 1 for ratio in ratios), default=0.0)


def _parts_us(layout: DcpLayout, rows: Sequence[_Row], workload: Workload) -> float | None:
    """Return the sum of a mixed batch's two passes; None where one was not measured by itself."""
    parts = [Workload(tuple(one for one in workload.requests if (one.new == 1) is decode)) for decode in (True, False)]
    found = [_row_at(layout, rows, _place(part), Kind.of(part)) for part in parts]
    return sum(row.candidate.median_us for row in found if row) if all(found) else None


def _place(workload: Workload) -> Point:
    """Return where a batch's time lies: log2 of its requests, of their mean new tokens, and of their mean context."""
    requests = len(workload)
    new, total = workload.new_tokens / requests, sum(workload.total_lens) / requests
    return math.log2(requests), math.log2(new), math.log2(total - new + CONTEXT_FLOOR)


def _beyond(points: Iterable[Point], here: Point) -> float:
    """Return how far a place lies outside all that some points span; 0 up to ``EDGE``."""
    along = zip(zip(*points, strict=True), here, strict=True)
    far = math.hypot(*(max(min(places) - place, place - max(places), 0.0) for places, place in along))
    return far if far > EDGE else 0.0


def _together(one: Point, other: Point) -> bool:
    return math.dist(one, other) <= SAME


def _timed(layout: DcpLayout, entry: Entry) -> bool:
    return layout.dcp == 1 or entry.label is Label.MEASURED


def _row(roofline: Roofline, entry: Entry, candidate: Candidate) -> _Row:
    work_us = roofline.work_us(entry.workload, candidate.settings)
    return _Row(entry, candidate, Kind.of(entry.workload), _place(entry.workload), work_us)


def _excess(near: Iterable[_Row], here: Point) -> float:
    """Return by what factor steps near a place exceed their work: a mean in logarithms, weighted by 1 / distance²."""
    rows = [(1 / max(math.dist(row.point, here), SAME) ** 2, row) for row in near]
    total = sum(weight for weight, _ in rows)
    return math.exp(sum(weight * math.log(row.candidate.median_us / row.work_us) for weight, row in rows) / total)
