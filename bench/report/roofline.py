"""The picture of how near each stage of a step comes to its limits: passes to arithmetic and memory, exchanges to the link."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from bench.collective import NVLINK_BYTES_PER_US, link_bytes_per_us
from bench.record import Measured, Trial
from bench.report import style
from bench.report.breakdown import timed_stages
from bench.report.exchange_cost import COLOURS, MARKERS
from bench.report.table import counted
from bench.times import StageTime
from dcp_core.cost import Ceiling, Work, ceiling_of, step_work
from dcp_core.settings import KernelName

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

STAGES = ("attention", "context", "new", "merge", "gather", "combine")
"""A panel each."""
_Part = TypeVar("_Part")
_DECADES_ALONE = 500
"""The ratio of an axis's ends from which on it has room for powers of ten and no more."""
_LIMIT, _PLANNED = "#444444", "#999999"


@dataclass(frozen=True, slots=True)
class Limit:
    """What a device's datasheet allows: flops of dense products of 16-bit elements, and bytes of its memory, per second."""

    flops_per_s: float
    bytes_per_s: float


LIMITS: Mapping[str, Limit] = {
    "NVIDIA H200": Limit(989e12, 4.8e12),
    "NVIDIA H100 80GB HBM3": Limit(989e12, 3.35e12),
    "NVIDIA A100-SXM4-80GB": Limit(312e12, 2.04e12),
    "NVIDIA B200": Limit(2250e12, 8e12),
}
"""By the device's name as its driver tells it. NVIDIA's datasheets, of the SXM modules."""


@dataclass(frozen=True, slots=True)
class Point:
    """A stage of a step: what it had to do, and what it took."""

    trial: Trial
    outcome: Measured
    stage: StageTime
    work: Work

    @property
    def amount(self) -> int:
        """What there is most of: flops; bytes of memory where there are none; bytes on the wire of an exchange."""
        return self.work.wire_bytes or self.work.flops or self.work.bytes_moved

    @property
    def place(self) -> float:
        """Where it lies along x: flops to a byte; bytes where there are no flops."""
        return self.work.flops / self.work.bytes_moved if self.work.flops else self.amount


def points_of(trials: Iterable[Trial]) -> dict[str, list[Point]]:
    """Return the stages whose work is known, by name: of each path, layout, batch and label those of the fastest settings.

    Passes over a warm cache have no limit in memory and are left out; so are stages that run at once with another.
    """
    found: dict[str, list[Point]] = defaultdict(list)
    for trial, outcome in _fastest(trials):
        works = _apart(step_work(trial.case), lambda one: one.stage)
        for kind, stage in _apart(timed_stages(outcome), lambda one: style.stage_kind(one.name)).items():
            work = works.get(kind)
            if work and stage.device_us.low > 0 and (work.wire_bytes or outcome.flushed_bytes):
                point = Point(trial, outcome, stage, work)
                if point.amount:
                    found[kind].append(point)
    return {name: found[name] for name in STAGES if name in found}


def _fastest(trials: Iterable[Trial]) -> list[tuple[Trial, Measured]]:
    """Keep of each path, layout, batch, exchange and label the fastest settings whose stages were timed."""
    best: dict[tuple[object, ...], tuple[Trial, Measured]] = {}
    for trial in trials:
        case = trial.case
        if isinstance(outcome := trial.outcome, Measured) and outcome.stages:
            key = (case.shape, case.layout, case.workload, case.settings.path, outcome.label, case.settings.exchange)
            if key not in best or outcome.step_us.median < best[key][1].step_us.median:
                best[key] = (trial, outcome)
    return list(best.values())


def _apart(parts: Iterable[_Part], name: Callable[[_Part], str]) -> dict[str, _Part]:
    """Return parts by name, those alone that share theirs with no other."""
    named: dict[str, list[_Part]] = defaultdict(list)
    for part in parts:
        named[name(part)].append(part)
    return {one: group[0] for one, group in named.items() if len(group) == 1}


def draw(trials: Sequence[Trial]) -> Figure | str:
    """Draw what each stage reaches against what it has to do, a panel per stage, under the device's limits.

    Returns:
        The figure, or why there is none.
    """
    panels = points_of(trials)
    if not panels:
        return "needs steps with each stage timed, over a cold cache (or between real ranks)"
    devices = {point.trial.environment.hard.get("device_name", "") for points in panels.values() for point in points}
    device = devices.pop() if len(devices) == 1 else ""
    with style.styled():
        figure, axes = style.panels(len(panels), width=3.9, height=3.0)
        for place, (name, points) in zip(axes, panels.items(), strict=True):
            _draw_panel(place, name, points, device)
        style.title(figure, "How near each stage comes to the device's limits")
        kept = [point for points in panels.values() for point in points]
        notes = [*_notes(device, links_of(kept)), *_left_out(trials, panels)]
        style.finish(figure, _keys(kept, device), [point.trial for point in kept], *notes)
    return figure


def _draw_panel(axes: Axes, name: str, points: Sequence[Point], device: str) -> None:
    work = points[0].work
    per_us, unit = (1e-6, "TFLOP/s") if work.flops else (1e-3, "GB/s")
    style.scatter(axes, (_mark(point, per_us) for point in points), ms=3.5, mew=0.8, elinewidth=0.7)
    axes.set_xscale("log")
    axes.set_yscale("log")
    if work.flops:
        if device in LIMITS:
            _draw_roofs(axes, points, LIMITS[device], ceiling_of(device))
        axes.set_xlabel("flops per byte of memory")
    elif work.wire_bytes:
        _draw_links(axes, links_of(points))
        axes.set_xlabel("bytes received by a rank")
    else:
        if device in LIMITS:
            _draw_line(axes, 1e-9 * LIMITS[device].bytes_per_s, "memory")
        axes.set_xlabel("bytes of memory moved")
    _plain(axes)
    axes.set_ylabel(f"reached, {unit}")
    axes.set_title(name, loc="left")


def _mark(point: Point, per_us: float) -> style.Mark:
    settings, time = point.trial.case.settings, point.stage.device_us
    least, reached, most = (point.amount / us * per_us for us in (time.high, time.median, time.low))
    colour, marker = style.PATH_COLOURS[settings.path], style.KERNEL_MARKERS[_kernel(point)]
    if point.work.wire_bytes:
        colour, marker = COLOURS[settings.exchange], MARKERS[settings.exchange]
    place = (point.place,) * 3
    return style.Mark(place, (least, reached, most), colour, marker, style.LABEL_FILL[point.outcome.label])


def _kernel(point: Point) -> KernelName:
    settings = point.trial.case.settings
    return settings.kernel_for_new if style.stage_kind(point.stage.name) == "new" else settings.kernel


def _draw_roofs(axes: Axes, points: Sequence[Point], limit: Limit, planned: Ceiling) -> None:
    xs = sorted(point.place for point in points)
    ends = [xs[0] / 1.5, xs[-1] * 1.5]
    for flops, moved, colour, line in (
        (limit.flops_per_s, limit.bytes_per_s, _LIMIT, "-"),
        (planned.flops_per_s, planned.bytes_per_s, _PLANNED, "--"),
    ):
        corner = [flops / moved] if ends[0] < flops / moved < ends[1] else []
        places = [ends[0], *corner, ends[1]]
        axes.plot(places, [1e-12 * min(flops, moved * x) for x in places], color=colour, ls=line, lw=1.1, gid="limit")


def links_of(points: Iterable[Point]) -> list[float]:
    """Return what ranks can receive, bytes per µs, where exchanges were measured and that is known: each such limit once."""
    limits = {link_bytes_per_us(point.trial.environment) for point in points if point.work.wire_bytes}
    return sorted(limits - {0.0})


def _draw_links(axes: Axes, limits: Sequence[float]) -> None:
    for limit in limits:
        _draw_line(axes, limit * 1e-3, "link" if len(limits) == 1 else f"link, {limit * 1e-3:.0f} GB/s")


def _draw_line(axes: Axes, height: float, name: str) -> None:
    axes.axhline(height, color=_LIMIT, lw=1.1, gid="limit")
    axes.annotate(
        name, (0.02, height), xycoords=("axes fraction", "data"), xytext=(0, -8), textcoords="offset points", fontsize=7
    )


def _plain(axes: Axes) -> None:
    """Write both axes in plain figures: ``4k``, ``16M``, ``0.5``."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    for axis in (axes.xaxis, axes.yaxis):
        low, high = axis.get_view_interval()
        steps = (1,) if high / low > _DECADES_ALONE else (1, 2, 5)
        axis.set_major_locator(LogLocator(base=10, subs=steps, numticks=9))
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(FuncFormatter(lambda value, _: _figures(value)))


def _figures(value: float) -> str:
    for scale, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= scale:
            return f"{value / scale:.3g}{unit}"
    return f"{value:.3g}"


def _keys(points: Sequence[Point], device: str) -> list[object]:
    from matplotlib.lines import Line2D

    passes = [point for point in points if not point.work.wire_bytes]
    paths = {point.trial.case.settings.path for point in passes}
    kernels = {_kernel(point) for point in passes}
    exchanges = sorted({point.trial.case.settings.exchange for point in points if point.work.wire_bytes})
    labels = {point.outcome.label for point in points}
    keys = style.keys(paths, (), kernels, labels)
    lines = (("datasheet", _LIMIT, "-"), ("planned with", _PLANNED, "--")) if device in LIMITS else ()
    return [
        *keys,
        *(Line2D([], [], color=COLOURS[name], ls="", marker=MARKERS[name], label=str(name)) for name in exchanges),
        *(Line2D([], [], color=colour, ls=line, lw=1.1, label=name) for name, colour, line in lines),
    ]


def _left_out(trials: Iterable[Trial], panels: Mapping[str, Sequence[Point]]) -> list[str]:
    """Say how many stages were timed and have no point, and which."""
    timed = Counter(style.stage_kind(stage.name) for _, outcome in _fastest(trials) for stage in timed_stages(outcome))
    others = timed - Counter({name: len(points) for name, points in panels.items()})
    if not others:
        return []
    named = ", ".join(f"{count} of {name}" for name, count in sorted(others.items()))
    reasons = "their work is not counted, they run at once with another, share its name, or read from a warm cache"
    return [f"Not drawn: {counted(others.total(), 'stage')} ({named}), since {reasons}."]


def _notes(device: str, links: Sequence[float]) -> list[str]:
    link = [f"Link: {NVLINK_BYTES_PER_US * 1e-3:.1f} GB/s of each NVLink, one way."] if links else []
    how = (
        "Flops: both products over the (query, key) pairs that a causal kernel must visit. Bytes: keys, values, queries, "
        "outputs and masks, each once. Stages timed alone, L2 flushed, the fastest settings of each path, batch and exchange. "
        "Bars: 95 % interval of the median."
    )
    if device not in LIMITS:
        return [f"No limits of arithmetic and memory: known here are those of {', '.join(LIMITS)}.", *link, how]
    limit, planned = LIMITS[device], ceiling_of(device)
    limits = (
        f"Datasheet: {limit.flops_per_s * 1e-12:.0f} TFLOP/s of dense 16-bit products, {limit.bytes_per_s * 1e-12:.3g} TB/s of "
        f"memory; planned with: {planned.flops_per_s * 1e-12:.0f} TFLOP/s and {planned.bytes_per_s * 1e-12:.3g} TB/s, from which "
        "dcpbench estimates how long a run takes."
    )
    return [" ".join([limits, *link]), how]
