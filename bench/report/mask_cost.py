"""The picture of what ``mask`` costs against ``split`` and ``fold``: building, planning, running."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bench.record import Measured, Trial
from bench.report import style
from bench.report.table import all_layers, dcp_of, exchange_of, kernels_of, path_of
from dcp_core.settings import PathName

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_PANELS = 6
BUILDING = frozenset({"mask", "fold"})
"""Stages of planning that build what the pass needs; the others plan a kernel."""
PARTS: Mapping[str, tuple[float, str | None]] = {
    "building": (0.12, "....."),
    "planning": (0.35, "/////"),
    "running": (1.0, None),
}
"""The strength of a path's colour in each part, and the hatch on it, which tells parts apart where there is no colour."""
_ABOVE = 0.38
"""How far above a row's middle the whisker of planning lies: clear of the bar, in whose colours it would be lost."""
_RIVALS = frozenset({PathName.SPLIT, PathName.FOLD})


@dataclass(frozen=True, slots=True)
class Bar:
    """One setting of one batch, and its three parts in microseconds."""

    trial: Trial
    outcome: Measured

    @property
    def parts_us(self) -> tuple[float, float, float]:
        """Building, planning, running."""
        building = sum(stage.host_us.median for stage in self.outcome.plan if style.stage_kind(stage.name) in BUILDING)
        return building, self.outcome.plan_us - building, self.outcome.step_us.median

    @property
    def planning_us(self) -> tuple[float, float]:
        """The ends of planning's interval: those of the stages that it consists of, added up."""
        planning = [stage.host_us for stage in self.outcome.plan if style.stage_kind(stage.name) not in BUILDING]
        return sum(stage.low for stage in planning), sum(stage.high for stage in planning)

    @property
    def total_us(self) -> float:
        """All three: what the first layer of a model waits for."""
        return sum(self.parts_us)

    @property
    def end_us(self) -> float:
        """The upper end of what is drawn: of the interval of running, behind the other two, or of that of planning."""
        building, planning, running = self.parts_us
        return max(building + planning + max(running, self.outcome.step_us.high), building + self.planning_us[1])


def draw(trials: Sequence[Trial]) -> Figure | str:
    """Draw building, planning and running stacked, a panel per batch, a bar per path.

    Returns:
        The figure, or why there is none.
    """
    panels = {name: bars for name, bars in _panels(trials).items() if _comparable(bars)}
    if not panels:
        return "needs one batch measured with path mask and with split or fold, on the same layout"
    shown = sorted(panels.items(), key=lambda item: -max(bar.total_us for bar in item[1]))[:MAX_PANELS]
    most = max(len(bars) for _, bars in shown)
    with style.styled():
        figure, axes = style.panels(len(shown), width=4.1, height=1.0 + 0.34 * most)
        for place, (name, bars) in zip(axes, shown, strict=True):
            _draw_panel(place, name, sorted(bars, key=lambda bar: -bar.total_us))
        style.title(figure, "What a mask costs: the first layer's step after a new batch")
        bars = [bar for _, group in shown for bar in group]
        style.finish(figure, _key(), [bar.trial for bar in bars], *_notes(bars, hidden=len(panels) - len(shown)))
    return figure


def _panels(trials: Sequence[Trial]) -> dict[str, list[Bar]]:
    """Keep the fastest of each path and mask form, a panel per model, layout, batch and label.

    What was measured on real devices is not shown simulated as well.
    """
    best: dict[tuple[str, str], Bar] = {}
    real = {_batch(trial) for trial in trials if isinstance(trial.outcome, Measured) and trial.outcome.exchange_timed}
    for trial in trials:
        if not isinstance(outcome := trial.outcome, Measured) or trial.case.settings.path is PathName.DECODE:
            continue
        if not outcome.exchange_timed and _batch(trial) in real:
            continue
        case, bar = trial.case, Bar(trial, outcome)
        panel = f"{case.shape.name}, tp {case.layout.tp}, dcp {dcp_of(case)}\n{case.workload}, {outcome.label}"
        key = (panel, path_of(case.settings))
        if key not in best or bar.total_us < best[key].total_us:
            best[key] = bar
    panels: dict[str, list[Bar]] = defaultdict(list)
    for (panel, _), bar in best.items():
        panels[panel].append(bar)
    return panels


def _batch(trial: Trial) -> tuple[object, ...]:
    return trial.case.shape, trial.case.layout, trial.case.workload


def _comparable(bars: Sequence[Bar]) -> bool:
    paths = {bar.trial.case.settings.path for bar in bars}
    return PathName.MASK in paths and bool(paths & _RIVALS)


def _draw_panel(axes: Axes, name: str, bars: Sequence[Bar]) -> None:
    longest = max(bar.end_us for bar in bars)
    for row, bar in enumerate(bars):
        colour, left = style.PATH_COLOURS[bar.trial.case.settings.path], 0.0
        for part, time_us in zip(PARTS, bar.parts_us, strict=True):
            axes.barh(row, time_us, left=left, height=0.62, **_look(colour, part))
            left += time_us
        step, (building, planning, running) = bar.outcome.step_us, bar.parts_us
        low, high = bar.planning_us
        _draw_whisker(axes, row - _ABOVE, building + planning, (planning - low, high - planning))
        _draw_whisker(axes, row, left, (running - step.low, step.high - running))
        axes.text(bar.end_us + longest * 0.03, row, style.duration(bar.total_us), va="center", fontsize=8)
    axes.set_yticks(range(len(bars)), [_bar_name(bar) for bar in bars])
    axes.set_ylim(len(bars) - 0.4, -0.6)
    axes.set_xlim(0, longest * 1.22)
    axes.grid(visible=False, axis="y")
    axes.locator_params(axis="x", nbins=4)
    style.microseconds(axes.xaxis)
    axes.set_xlabel("time of one step, host and device")
    axes.set_title(name, loc="left")


def _draw_whisker(axes: Axes, row: float, end_us: float, errors_us: tuple[float, float]) -> None:
    below, above = errors_us
    axes.errorbar(end_us, row, xerr=[[below], [above]], color="#222222", capsize=2, elinewidth=0.9)


def _look(colour: str, part: str) -> dict[str, Any]:
    """Return how a part is drawn, in a bar and in the key alike."""
    strength, hatch = PARTS[part]
    face = style.tint(colour, strength) if hatch else colour
    return {"facecolor": face, "edgecolor": colour, "hatch": hatch, "linewidth": 0}


def _bar_name(bar: Bar) -> str:
    settings = bar.trial.case.settings
    exchange = exchange_of(settings)
    return f"{path_of(settings)}  {kernels_of(settings)}" + (f" {exchange}" if exchange.isidentifier() else "")


def _key() -> list[object]:
    from matplotlib.patches import Patch

    return [Patch(**_look("#555555", part), label=part) for part in PARTS]


def _notes(bars: Sequence[Bar], *, hidden: int) -> list[str]:
    layers = max(bar.outcome.layers for bar in bars)
    first = (
        "Building the mask (or fold's rows) and planning the kernel happen on the host once per batch, for "
        f"{all_layers(layers)}; running happens in each. Whiskers: 95 % interval of "
        "running; above the bar that of planning (of its parts, added up); building has none."
    )
    return [first, style.not_shown(hidden)] if hidden else [first]
