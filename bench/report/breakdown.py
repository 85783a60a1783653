"""The picture of where a step's time goes: gather, attention, combine, merge, and what the host does beside."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from bench.record import Measured, Trial
from bench.report import style
from bench.report.table import dcp_of, exchange_of, kernels_of, path_of
from bench.times import StageTime, Summary
from dcp_core.settings import PathName

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_PANELS = 6
HOST_COLOURS = {"host: planning": "#CC79A7", "host: launching": "#f0c9dd"}
"""Of the thin bar below the stages."""
_STAGES, _HOST = (0.5, -0.09), (0.17, 0.28)
"""Height of a bar, and how far below the row's middle it lies."""
STAGE_COLOURS = {
    "gather": "#8cc8fa",
    "gather beside new": "#ccdce8",
    "gather beside context": "#3f739e",
    "context of peers": "#6e6e6e",
    "combine beside new": "#2d5575",
    "fold": "#ab9fc7",
    "attention": "#484848",
    "context": "#5b5b5b",
    "new": "#818181",
    "combine": "#5291c4",
    "unfold": "#c2aafa",
    "merge": "#f5d998",
}
"""Blues communicate, the others compute: none of them a path's colour, and each a grey of its own among its kind."""
_OTHER = "#ececec"
_Panel = tuple[str, list[tuple[Trial, Measured]]]


def draw(trials: Sequence[Trial]) -> Figure | str:
    """Draw each step's stages stacked, a panel per model, tp and batch, a bar per path, dcp, label and (decodes) exchange.

    Returns:
        The figure, or why there is none.
    """
    panels = _panels(trials)
    if not panels:
        return "needs a measured step of two stages or more"
    shown = _spread(sorted(panels.items(), key=lambda item: max(outcome.step_us.median for _, outcome in item[1])))
    most = max(len(bars) for _, bars in shown)
    with style.styled():
        figure, axes = style.panels(len(shown), width=4.1, height=1.0 + 0.34 * most)
        for place, (name, bars) in zip(axes, shown, strict=True):
            _draw_panel(place, name, bars)
        style.title(figure, "Where a step's time goes, each stage timed alone")
        measured = [pair for _, bars in shown for pair in bars]
        timed = [stage for _, outcome in measured for stage in timed_stages(outcome)]
        notes = ["Diamond: the whole step, timed in one go, with its 95 % interval."]
        if any(stage.communicates for stage in timed):
            notes[0] += " Hatched: every rank of the group takes part."
        notes.append(
            "Thin: the host's time, which the device does not wait for unless it is idle: a layer's share "
            "of planning a batch, which all layers of the model have together, and launching one step where it "
            "is not replayed from a CUDA graph. Behind an arrow: all of it, where it goes beyond the panel."
        )
        hosts = [
            one for _, outcome in measured for one in (outcome.launch_us, *(stage.host_us for stage in outcome.plan))
        ]
        of_stages, of_host = (f"{100 * _reach(times):.0f} %" for times in ([one.device_us for one in timed], hosts))
        notes.append(
            f"Bars: medians, without their 95 % intervals, which reach up to {of_stages} from them for stages, {of_host} for "
            "the host."
        )
        if any(not outcome.exchange_timed for _, outcome in measured):
            notes.append("Simulated: the fullest rank by itself, the exchange's time is not measured.")
        if len(panels) > len(shown):
            notes.append(style.not_shown(len(panels) - len(shown)))
        style.finish(figure, _key(timed), [trial for trial, _ in measured], *notes)
    return figure


def _panels(trials: Sequence[Trial]) -> dict[str, list[tuple[Trial, Measured]]]:
    """Keep the fastest of each path, dcp and label, where the batch has at least one step of several stages.

    Of decodes, whose step is short beside its exchange, the fastest with each exchange.
    """
    best: dict[tuple[str, ...], tuple[Trial, Measured]] = {}
    for trial in trials:
        if not isinstance(outcome := trial.outcome, Measured) or not outcome.stages:
            continue
        case = trial.case
        panel = f"{case.shape.name}, tp {case.layout.tp}\n{case.workload}"
        exchange = case.settings.exchange if case.settings.path is PathName.DECODE else ""
        key = (panel, dcp_of(case), case.settings.path, outcome.label, exchange)
        if key not in best or outcome.step_us.median < best[key][1].step_us.median:
            best[key] = (trial, outcome)
    panels: dict[str, list[tuple[Trial, Measured]]] = defaultdict(list)
    for (panel, *_), pair in sorted(best.items(), key=lambda item: item[0]):
        panels[panel].append(pair)
    return {name: bars for name, bars in panels.items() if any(len(outcome.stages) > 1 for _, outcome in bars)}


def _spread(panels: list[_Panel]) -> list[_Panel]:
    """Take panels evenly from the quickest to the slowest, if there are too many."""
    if len(panels) <= MAX_PANELS:
        return panels
    return [panels[index * (len(panels) - 1) // (MAX_PANELS - 1)] for index in range(MAX_PANELS)]


def _draw_panel(axes: Axes, name: str, bars: Sequence[tuple[Trial, Measured]]) -> None:
    longest = max(max(outcome.step_us.high, _sum_us(outcome)) for _, outcome in bars)
    for row, (_, outcome) in enumerate(bars):
        left = 0.0
        for stage in timed_stages(outcome):
            width = stage.device_us.median
            hatch = "////" if stage.communicates else None
            axes.barh(
                row + _STAGES[1],
                width,
                left=left,
                height=_STAGES[0],
                color=colour_of(style.stage_kind(stage.name)),
                hatch=hatch,
                edgecolor="white",
                linewidth=0.4,
            )
            left += width
        step = outcome.step_us
        draw_step(axes, row + _STAGES[1], step)
        axes.text(
            max(left, step.high) + longest * 0.03,
            row + _STAGES[1],
            style.duration(step.median),
            va="center",
            fontsize=8,
        )
        _draw_host(axes, row, outcome, room=longest * 1.22)
    axes.set_yticks(range(len(bars)), [bar_name(trial, outcome) for trial, outcome in bars])
    for tick, (trial, _) in zip(axes.get_yticklabels(), bars, strict=True):
        tick.set_color(style.ink(style.PATH_COLOURS[trial.case.settings.path]))
    axes.set_ylim(len(bars) - 0.4, -0.6)
    axes.set_xlim(0, longest * 1.22)
    axes.grid(visible=False, axis="y")
    axes.locator_params(axis="x", nbins=4)
    style.microseconds(axes.xaxis)
    axes.set_xlabel("time of one layer's step")
    axes.set_title(name, loc="left")


def draw_step(axes: Axes, y: float, step: Summary) -> None:
    """Draw the whole step: a diamond at its median, with its interval."""
    errors = [[step.median - step.low], [step.high - step.median]]
    look: dict[str, Any] = {"color": "#111111", "marker": "D", "ms": 4, "mfc": "white", "capsize": 2, "elinewidth": 0.9}
    axes.errorbar(step.median, y, xerr=errors, **look)


def _draw_host(axes: Axes, row: int, outcome: Measured, *, room: float) -> None:
    """Draw host time as a thin bar, and write beside the panel how long it is where it goes beyond."""
    left = 0.0
    times_us = host_us(outcome)
    for colour, width in zip(HOST_COLOURS.values(), times_us, strict=True):
        axes.barh(row + _HOST[1], min(width, room - left), left=left, height=_HOST[0], color=colour, linewidth=0)
        left = min(left + width, room)
    if sum(times_us) > room:
        words = f"→ {style.duration(sum(times_us))}"
        axes.text(room * 1.01, row + _HOST[1], words, va="center", ha="left", fontsize=7, color="#111111")


def _reach(times: Sequence[Summary]) -> float:
    """Return how far an interval's end is from its median at most, of that."""
    return max(
        (max(one.high - one.median, one.median - one.low) / one.median for one in times if one.median), default=0.0
    )


def host_us(outcome: Measured) -> tuple[float, float]:
    """Return a layer's share of planning a batch, and the time of launching one step if no CUDA graph does."""
    return outcome.plan_us / outcome.layers, outcome.launch_us.median


def timed_stages(outcome: Measured) -> list[StageTime]:
    """Leave out exchanges that a simulation only pretends."""
    return [stage for stage in outcome.stages if outcome.exchange_timed or not stage.communicates]


def _sum_us(outcome: Measured) -> float:
    return sum(stage.device_us.median for stage in timed_stages(outcome))


def colour_of(name: str) -> str:
    """Return the colour of a stage by what it does, the same in every picture."""
    return STAGE_COLOURS.get(name, _OTHER)


def bar_name(trial: Trial, outcome: Measured) -> str:
    """Name a step by its path, dcp, kernels, exchange and label, on two lines."""
    settings, exchange = trial.case.settings, exchange_of(trial.case.settings)
    how = " ".join([kernels_of(settings), *([exchange] if exchange.isidentifier() else [])])
    return f"{path_of(settings)}, dcp {dcp_of(trial.case)}, {how}\n{outcome.label}"


def _key(stages: Sequence[StageTime]) -> list[object]:
    from matplotlib.patches import Patch

    named = {style.stage_kind(stage.name): stage for stage in stages}
    order = [*(name for name in STAGE_COLOURS if name in named), *(name for name in named if name not in STAGE_COLOURS)]
    hatches = {name: "////" if named[name].communicates else None for name in order}
    device = [Patch(facecolor=colour_of(name), hatch=hatches[name], edgecolor="white", label=name) for name in order]
    return [*device, *(Patch(facecolor=colour, label=name) for name, colour in HOST_COLOURS.items())]
