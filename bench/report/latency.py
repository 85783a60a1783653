"""The picture of latency against context and against new tokens: which path and dcp wins where."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from bench.record import Label, Measured, Trial
from bench.report import style
from dcp_core.settings import Case, PathName
from dcp_core.shapes import Request, Workload

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_PANELS = 9
ROOM_OF_A_TICK = 0.13
"""Share of the x axis that the name of a number of tokens takes."""
ROOM_OF_A_NAME = 0.065
"""Share of the y axis that the name of a line takes."""


@dataclass(frozen=True, slots=True)
class Point:
    """A measured step at one place of the x axis."""

    x: int
    trial: Trial
    outcome: Measured


@dataclass(frozen=True, slots=True)
class Line:
    """What one line joins: the best setting of a path at a dcp size, with one label."""

    path: PathName
    dcp: int
    label: Label


@dataclass(frozen=True, slots=True)
class Axis:
    """What may run along x: how to read it off a request, and what is then held fixed.

    Args:
        joined: it is a quantity.
        has: whether a request belongs on it.
    """

    name: str
    read: Callable[[Request], int]
    fixed: Callable[[Request], str]
    joined: bool = True
    has: Callable[[Request], bool] = lambda _: True


@dataclass(frozen=True, slots=True)
class Panel:
    """Points over one axis, all else being alike."""

    name: str
    axis: Axis
    points: Sequence[Point]


_AXES = (
    Axis("context per request, tokens", lambda one: one.context, lambda one: f"{style.tokens(one.new)} new"),
    Axis(
        "new tokens per request",
        lambda one: one.new,
        lambda one: f"context {style.tokens(one.context)}",
        has=lambda one: one.new > 1,  # a decode has paths of its own: no line leads from it to longer requests
    ),
)
_BATCHES = Axis("batch", lambda one: one.total, lambda one: "", joined=False)


def draw(trials: Sequence[Trial]) -> Figure | str:
    """Draw the median step against context and against new tokens, a panel per batch shape; batch by batch, if neither varies.

    A line joins the fastest setting of a path at a dcp size; its markers tell the kernel that won.

    Returns:
        The figure, or why there is none.
    """
    best = _fastest(trials)
    panels = [
        Panel(name, axis, points) for axis in _AXES for name, points in _panels(best, axis).items() if _varies(points)
    ]
    panels = panels or [Panel(name, _BATCHES, points) for name, points in _by_batch(best).items()]
    return _figure(panels) if panels else "needs a measured step"


def _fastest(trials: Sequence[Trial]) -> list[tuple[Trial, Measured]]:
    """Keep the fastest settings of every path, layout, batch and label."""
    found: dict[tuple[object, ...], tuple[Trial, Measured]] = {}
    for trial in trials:
        if isinstance(outcome := trial.outcome, Measured):
            case = trial.case
            key = (case.shape, case.layout, case.workload, case.settings.path, outcome.label)
            if key not in found or outcome.step_us.median < found[key][1].step_us.median:
                found[key] = (trial, outcome)
    return list(found.values())


def _panels(best: Sequence[tuple[Trial, Measured]], axis: Axis) -> dict[str, list[Point]]:
    """Sort points into panels: one per model, tp, interleave and batch shape; only batches of equal requests have an x."""
    panels: dict[str, list[Point]] = defaultdict(list)
    for trial, outcome in best:
        requests = set(trial.case.workload.requests)
        request = requests.pop()
        if not requests and axis.has(request):
            panels[_panel_name(trial.case, axis.fixed(request))].append(Point(axis.read(request), trial, outcome))
    return panels


def _by_batch(best: Sequence[tuple[Trial, Measured]]) -> dict[str, list[Point]]:
    """Sort points into panels of one model, tp and interleave, the batches numbered along x."""
    panels: dict[str, list[Point]] = defaultdict(list)
    numbers: dict[str, dict[Workload, int]] = defaultdict(dict)
    for trial, outcome in best:
        name = _panel_name(trial.case)
        number = numbers[name].setdefault(trial.case.workload, len(numbers[name]))
        panels[name].append(Point(number, trial, outcome))
    return panels


def _panel_name(case: Case, fixed: str = "") -> str:
    interleave = f", interleave {case.layout.interleave}" if case.layout.interleave > 1 else ""
    if not fixed:
        return f"{case.shape.name}, tp {case.layout.tp}{interleave}"
    count = len(case.workload)
    batch = f"{count} request{'s' if count > 1 else ''}, {fixed}"
    return f"{case.shape.name}, tp {case.layout.tp}{interleave}\n{batch}"


def _order(panel: Panel) -> tuple[object, ...]:
    """Sort panels as people count, over context first: tp 8 before tp 16."""
    case = panel.points[0].trial.case
    workload = case.workload
    over_new = panel.axis is _AXES[1]
    size = max(workload.total_lens) - max(workload.new_lens) if over_new else workload.new_tokens
    return over_new, case.shape.name, case.layout.tp, case.layout.interleave, len(workload), size


def _shown(panels: Sequence[Panel]) -> list[Panel]:
    """Return the panels that there is room for, those with most points: a row of those over new tokens, the rest over context."""
    over_new = [panel for panel in panels if panel.axis is _AXES[1]]
    others = [panel for panel in panels if panel.axis is not _AXES[1]]
    fewest = MAX_PANELS if not others else style.PANELS_PER_ROW
    kept = sorted(over_new, key=lambda panel: -len(panel.points))[:fewest]
    return [*sorted(others, key=lambda panel: -len(panel.points))[: MAX_PANELS - len(kept)], *kept]


def _varies(points: Sequence[Point]) -> bool:
    return len({point.x for point in points}) > 1


def _figure(panels: Sequence[Panel]) -> Figure:
    shown = _shown(panels)
    points = [point for panel in shown for point in panel.points]
    joined = shown[0].axis.joined
    with style.styled():
        figure, axes = style.panels(len(shown), width=4.4 if joined else 3.9, height=2.9)
        for place, panel in zip(axes, sorted(shown, key=_order), strict=True):
            _draw_panel(place, panel)
        for place in axes[:: style.PANELS_PER_ROW]:
            place.set_ylabel("one layer's step (median)")
        style.title(figure, "Attention step of one rank, fastest setting of each path")
        notes = _notes(points, hidden=len(panels) - len(shown), joined=joined)
        style.finish(figure, _keys(points, joined=joined), [point.trial for point in points], *notes)
    return figure


def _draw_panel(axes: Axes, panel: Panel) -> None:
    points, axis = panel.points, panel.axis
    lines: dict[Line, list[Point]] = defaultdict(list)
    for point in points:
        case = point.trial.case
        lines[Line(case.settings.path, case.layout.dcp, point.outcome.label)].append(point)
    ordered = sorted(lines.items(), key=lambda item: (item[0].dcp, item[0].path, item[0].label))
    asides: dict[int, list[float]] = defaultdict(list)
    for number, (line, group) in enumerate(ordered):
        # Side by side where x is no quantity, those of one dcp together, so that markers do not hide one another.
        aside = 0.0 if axis.joined else 0.6 * ((number + 0.5) / len(ordered) - 0.5)
        asides[line.dcp].append(aside)
        _draw_line(axes, line, sorted(group, key=lambda point: point.x), axis=axis, aside=aside)
    axes.set_yscale("log")
    if axis.joined:
        _name_lines(axes, lines)
    style.microseconds(axes.yaxis, log=True)
    axes.set_title(panel.name, loc="left")
    axes.set_xlabel(axis.name)
    if axis.joined:
        _quantity(axes, sorted({point.x for point in points}))
    else:
        names = {point.x: str(point.trial.case.workload) for point in points}
        axes.set_xticks(sorted(names), [names[x] for x in sorted(names)], rotation=20, ha="right")
        axes.tick_params(axis="x", length=0, pad=14)
        _name_dcps(axes, sorted({(point.x, point.trial.case.layout.dcp) for point in points}), asides)
        axes.grid(visible=False, axis="x")


def _name_lines(axes: Axes, lines: Mapping[Line, Sequence[Point]]) -> None:
    """Write the path and dcp of each line right of the panel, with a thin line from where it ends."""
    low, high = (math.log(end) for end in axes.get_ylim())
    drawn = {line: [point for point in points if point.outcome.step_us.median > 0] for line, points in lines.items()}
    ends = {line: max(points, key=lambda point: point.x) for line, points in drawn.items() if points}
    heights = {line: (math.log(end.outcome.step_us.median) - low) / (high - low) for line, end in ends.items()}
    ordered = sorted(ends, key=lambda line: (heights[line], line.path, line.dcp, line.label))
    for line, height in zip(ordered, _spread([heights[line] for line in ordered]), strict=True):
        end = ends[line]
        axes.annotate(
            f"{line.path} {line.dcp}",
            (end.x, end.outcome.step_us.median),
            xytext=(1.05, height),
            color=style.ink(style.PATH_COLOURS[line.path]),
            **_BESIDE,
        )


def _name_dcps(axes: Axes, found: Sequence[tuple[int, int]], asides: Mapping[int, Sequence[float]]) -> None:
    """Write each dcp size of a batch below its markers."""
    places = [x + sum(asides[dcp]) / len(asides[dcp]) for x, dcp in found]
    axes.xaxis.remove_overlapping_locs = False  # or that of a batch with one dcp size, in its middle, is left out
    axes.set_xticks(places, [str(dcp) for _, dcp in found], minor=True, fontsize=7)
    axes.tick_params(axis="x", which="minor", length=2, pad=1)


def _spread(heights: Sequence[float]) -> list[float]:
    """Move ascending shares of an axis apart, as little as names of them need, within the axis."""
    count = len(heights)
    gap = min(ROOM_OF_A_NAME, 1 / max(1, count - 1))
    upwards = accumulate(heights, lambda below, height: max(height, below + gap))
    downwards = [*accumulate(reversed(heights), lambda above, height: min(height, above - gap))][::-1]
    middles = [(up + down) / 2 for up, down in zip(upwards, downwards, strict=True)]
    return [max(gap * index, min(middle, 1 - gap * (count - 1 - index))) for index, middle in enumerate(middles)]


def _quantity(axes: Axes, xs: Sequence[int]) -> None:
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    if min(xs) > 0:
        axes.set_xscale("log", base=2)
    else:
        axes.set_xscale("symlog", base=2, linthresh=min(x for x in xs if x))
    axes.xaxis.set_major_locator(FixedLocator(_apart(xs)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: style.tokens(x)))


def _apart(xs: Sequence[int]) -> list[int]:
    """Return those of ascending places on a logarithmic axis that have room for their names, the last one first."""
    smallest = min(x for x in xs if x)
    places = {x: math.log2(x or smallest / 2) for x in xs}
    kept = [xs[-1]]
    for x in reversed(xs[:-1]):
        if places[kept[-1]] - places[x] >= ROOM_OF_A_TICK * (places[xs[-1]] - places[xs[0]]):
            kept.append(x)
    return kept[::-1]


def _draw_line(axes: Axes, line: Line, points: Sequence[Point], *, axis: Axis, aside: float) -> None:
    colour = style.PATH_COLOURS[line.path]
    xs = [point.x + aside for point in points]
    steps = [point.outcome.step_us for point in points]
    if axis.joined:
        axes.fill_between(
            xs, [step.low for step in steps], [step.high for step in steps], color=colour, alpha=0.18, lw=0
        )
        axes.plot(xs, [step.median for step in steps], color=colour, linestyle=style.line_of(line.dcp))
    marks = [
        style.Mark(
            (x, x, x),
            (step.low, step.median, step.high),
            colour,
            style.KERNEL_MARKERS[point.trial.case.settings.kernel],
            style.LABEL_FILL[line.label],
        )
        for x, step, point in zip(xs, steps, points, strict=True)
    ]
    style.scatter(axes, marks, capsize=2, elinewidth=0.9)


_BESIDE: dict[str, Any] = {
    "xycoords": "data",
    "textcoords": "axes fraction",
    "ha": "left",
    "va": "center",
    "fontsize": 7,
    "arrowprops": {"arrowstyle": "-", "color": "#999999", "lw": 0.5, "shrinkA": 1, "shrinkB": 3, "relpos": (0, 0.5)},
}


def _keys(points: Sequence[Point], *, joined: bool) -> list[Artist]:
    """Return legend entries; dcp sizes are told apart only where points are joined by lines."""
    cases = [point.trial.case for point in points]
    paths, kernels = {case.settings.path for case in cases}, {case.settings.kernel for case in cases}
    dcps = {case.layout.dcp for case in cases} if joined else set[int]()
    return style.keys(paths, dcps, kernels, {point.outcome.label for point in points})


def _notes(points: Sequence[Point], *, hidden: int, joined: bool) -> list[str]:
    notes = ["Beside each line: its path and dcp. Bands and bars: 95 % interval of the median."]
    if not joined:
        notes[0] = "Figures below markers: dcp. Bars: 95 % interval of the median."
    if any(not point.outcome.exchange_timed for point in points if point.trial.case.layout.dcp > 1):
        notes[0] += " Hollow markers: the fullest rank by itself on one device, without the exchange's time."
    notes += style.one_marker(point.trial.case.settings for point in points)
    if hidden:
        were, are = ("shape was", "is") if hidden == 1 else ("shapes were", "are")
        notes.append(f"{hidden} more batch {were} measured and {are} not shown.")
    return notes
