"""The picture of latency against capacity: what a step takes by each dcp and path, and what fits, at the same number of GPUs."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from bench.recommend.decision import Limits
from bench.record import Label, Measured, Trial
from bench.report import style
from bench.report.kv_memory import BUDGET_BYTES
from dcp_core.memory import KvMemory, format_size
from dcp_core.settings import ExchangeName, PathName
from dcp_core.shapes import ModelShape, Workload

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_PANELS = 6
_FRONT: dict[str, Any] = {"color": "#8a8a8a", "lw": 5, "alpha": 0.45, "marker": "o", "ms": 15, "mew": 0}
_ASIDE = 0.1
"""Between markers of one dcp, in the distance of two dcp sizes, so that they do not hide one another."""


class Subject(NamedTuple):
    """What a panel is of."""

    shape: ModelShape
    tp: int
    workload: Workload


@dataclass(frozen=True, slots=True)
class Point:
    """The fastest settings of a path at a dcp size.

    Args:
        capacity: tokens of KV cache that fit.
        most_us: the step at most: its interval's end, and all that an exchange which was not timed is assumed to take.
    """

    trial: Trial
    outcome: Measured
    capacity: int
    most_us: float

    @property
    def dcp(self) -> int:
        """Its dcp size."""
        return self.trial.case.layout.dcp

    @property
    def path(self) -> PathName:
        """Its path."""
        return self.trial.case.settings.path


def points_of(trials: Iterable[Trial], budget: int = BUDGET_BYTES) -> dict[Subject, list[Point]]:
    """Return a point for every dcp and path of each batch; what real ranks ran stands before what was simulated."""
    best: dict[Subject, dict[tuple[int, PathName], Point]] = defaultdict(dict)
    for trial in trials:
        case, outcome = trial.case, trial.outcome
        if not isinstance(outcome, Measured) or case.synthetic or case.layout.canonical.interleave > 1:
            continue
        points = best[Subject(case.shape, case.layout.tp, case.workload)]
        point = Point(trial, outcome, KvMemory(case.shape, case.layout).tokens_in(budget), _most_us(trial, outcome))
        key = (case.layout.dcp, case.settings.path)
        if key not in points or _rank(point) < _rank(points[key]):
            points[key] = point
    return {subject: [points[key] for key in sorted(points)] for subject, points in best.items()}


def _rank(point: Point) -> tuple[bool, float]:
    return point.outcome.label is not Label.MEASURED, point.outcome.step_us.median


def _most_us(trial: Trial, outcome: Measured) -> float:
    case = trial.case
    if outcome.exchange_timed or case.layout.dcp == 1:
        return outcome.step_us.high
    exchanging = replace(case, settings=replace(case.settings, exchange=ExchangeName.AG_RS))
    limits = Limits(None, trial.environment.hard.get("device_name", ""))
    return outcome.step_us.high + limits.of(exchanging).span.high_us


def front(points: Iterable[Point]) -> list[Point]:
    """Return the points that no other beats in both, by what their steps take at most: the quickest first, capacity rising."""
    kept: list[Point] = []
    for point in sorted(points, key=lambda one: (one.most_us, -one.capacity)):
        if point.most_us < math.inf and (not kept or point.capacity > kept[-1].capacity):
            kept.append(point)
    return kept


def draw(trials: Sequence[Trial], *, budget: int = BUDGET_BYTES) -> Figure | str:
    """Draw a step's time against the KV tokens that fit, a panel per model, tp and batch, a point per dcp and path.

    Returns:
        The figure, or why there is none.
    """
    found = {
        one: points for one, points in points_of(trials, budget).items() if len({point.dcp for point in points}) > 1
    }
    if not found:
        return "needs one batch measured with two dcp sizes or more that a server allows, at one tp"
    most = _spread(sorted(found, key=lambda one: (len(front(found[one])), _size(one))))
    shown = {one: found[one] for one in sorted(most, key=lambda one: (one.shape.name, one.tp, _size(one)))}
    with style.styled():
        figure, axes = style.panels(len(shown), width=3.9, height=2.9)
        for place, (subject, points) in zip(axes, shown.items(), strict=True):
            _draw_panel(place, subject, points)
        for place in axes[:: style.PANELS_PER_ROW]:
            place.set_ylabel("one layer's step (median)")
        style.title(figure, "Latency against capacity, at the same number of GPUs")
        kept = [point for points in shown.values() for point in points]
        notes = _notes(kept, budget, hidden=len(found) - len(shown))
        style.finish(figure, _keys(kept), [point.trial for point in kept], *notes)
    return figure


def _size(one: Subject) -> tuple[int, int]:
    return sum(one.workload.total_lens), one.workload.new_tokens


def _spread(subjects: Sequence[Subject]) -> list[Subject]:
    """Take a batch of each model and tp in turn, the last first, until the panels are full."""
    by_model: dict[tuple[ModelShape, int], list[Subject]] = defaultdict(list)
    for subject in subjects:
        by_model[subject.shape, subject.tp].append(subject)
    taken: list[Subject] = []
    while len(taken) < MAX_PANELS and any(by_model.values()):
        taken += [left.pop() for left in by_model.values() if left]
    return taken[:MAX_PANELS]


def _draw_panel(axes: Axes, subject: Subject, points: Sequence[Point]) -> None:
    places = {dcp: place for place, dcp in enumerate(sorted({point.dcp for point in points}))}
    capacities = {point.dcp: point.capacity for point in points}
    best = front(points)
    ahead = [(_x(point, places, points), point.most_us) for point in best]
    if ahead:
        axes.plot(*zip(*ahead, strict=True), **_FRONT, drawstyle="steps-pre", zorder=1, gid="front")
    style.scatter(axes, (_mark(point, _x(point, places, points)) for point in points), ms=6, capsize=2, elinewidth=0.9)
    for point in points:
        if point.outcome.step_us.high < point.most_us < math.inf:
            x, colour = _x(point, places, points), style.PATH_COLOURS[point.path]
            axes.vlines(x, point.outcome.step_us.high, point.most_us, color=colour, lw=0.9, linestyles=":")
    length = max(subject.workload.total_lens)
    names = [f"dcp {dcp}\n{_count(capacities[dcp])}\n{capacities[dcp] // length} fit" for dcp in places]
    axes.set_xticks(range(len(places)), names)
    axes.set_xlim(-0.5, len(places) - 0.5)
    _room(axes, points)
    style.microseconds(axes.yaxis, log=True)
    axes.set_xlabel(f"KV tokens, and requests of {style.tokens(length)}, that fit")
    axes.set_title(f"{subject.shape.name}, tp {subject.tp}\n{subject.workload}", loc="left")


def _room(axes: Axes, points: Sequence[Point]) -> None:
    """Let y reach over a factor of six or more, so that two figures or more stand beside it."""
    ends = [point.outcome.step_us.low for point in points] + [
        point.most_us for point in points if point.most_us < math.inf
    ]
    ends += [point.outcome.step_us.high for point in points]
    low, high = min(ends) / 1.3, max(ends) * 1.3
    more = max(1.0, math.sqrt(6 * low / high))
    axes.set_yscale("log")
    axes.set_ylim(low / more, high * more)


def _x(point: Point, places: Mapping[int, int], points: Sequence[Point]) -> float:
    beside = [one.path for one in points if one.dcp == point.dcp]
    return places[point.dcp] + _ASIDE * (beside.index(point.path) - (len(beside) - 1) / 2)


def _mark(point: Point, x: float) -> style.Mark:
    step, marker = point.outcome.step_us, style.KERNEL_MARKERS[point.trial.case.settings.kernel]
    filled = style.LABEL_FILL[point.outcome.label]
    return style.Mark((x, x, x), (step.low, step.median, step.high), style.PATH_COLOURS[point.path], marker, filled)


def _count(tokens: int) -> str:
    for least, unit in ((1e9, "G"), (1e6, "M")):
        if tokens >= least:
            return f"{tokens / least:.3g}{unit}"
    return f"{tokens / 1e3:.0f}k"


def _keys(points: Sequence[Point]) -> list[object]:
    from matplotlib.lines import Line2D

    settings = [point.trial.case.settings for point in points]
    paths, kernels = {one.path for one in settings}, {one.kernel for one in settings}
    labels = {point.outcome.label for point in points}
    keys = style.keys(paths, (), kernels, labels)
    return [*keys, Line2D([], [], **_FRONT | {"ms": 9}, label="front")]


def _notes(points: Sequence[Point], budget: int, *, hidden: int) -> list[str]:
    capacity = f"Capacity: computed for {format_size(budget)} of KV cache on each rank, pages of 16 tokens."
    front = "Front: what no other dcp or path beats both in time and in capacity."
    notes = [f"{capacity} Bars: 95 % interval of the median. {front}"]
    if any(point.outcome.step_us.high < point.most_us < math.inf for point in points):
        notes.append(
            "Hollow: without the exchange's time, which was not measured; dotted, up to what it is assumed to take at most "
            "(40 µs and 27 GB/s a peer, all of it in sight), and by that it stands in the front."
        )
    if any(math.isinf(point.most_us) for point in points):
        notes.append(
            "Hollow: without the exchange's time, of which nothing is known here; such points are in no front."
        )
    notes += style.one_marker(point.trial.case.settings for point in points)
    if hidden:
        notes.append(f"{style.not_shown(hidden)} Drawn are those with most points in the front, the largest.")
    return notes
