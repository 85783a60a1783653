"""The picture of what tuning gains: the chosen settings' time over the engine's default, batch by batch, by what a batch does."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from math import exp, log
from statistics import fmean
from typing import TYPE_CHECKING, NamedTuple

from bench.profile.entry import Entry, Ratio
from bench.recommend.decision_map import Phase
from bench.record import Label, Trial
from bench.report import style
from bench.report.gains import MIXED, phase_of
from bench.report.table import counted
from bench.stats import mean_interval
from bench.tune.pick import pick

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PHASES = (*Phase, MIXED)
_HEIGHT = 0.62
"""Of a row's points; rows are 1 apart."""
_MEAN = "#111111"


class Row(NamedTuple):
    """What the points of a row have in common."""

    phase: str
    dcp: int


def gains_of(trials: Sequence[Trial]) -> dict[Label, dict[Row, list[Entry]]]:
    """Return by label, phase and dcp the batches whose default was measured beside other settings."""
    found: dict[Label, dict[Row, list[Entry]]] = defaultdict(lambda: defaultdict(list))
    for profile in pick(trials):
        for entry in profile.entries:
            if entry.to_default is not None and len(entry.candidates) > 1:
                found[entry.label][Row(phase_of(entry.workload), entry.layout.dcp)].append(entry)
    return found


def mean_ratio(entries: Sequence[Entry]) -> Ratio:
    """Return the geometric mean of the ratios to the default, with the 95 % interval of a mean over batches."""
    logs = [log(entry.to_default.value) for entry in entries if entry.to_default]
    low, high = mean_interval(logs)
    mean = fmean(logs)
    return Ratio(exp(mean), exp(min(low, mean)), exp(max(high, mean)))


def draw(trials: Sequence[Trial]) -> Figure | str:
    """Draw the ratio of chosen to default settings, a panel per label, a row per phase and dcp, a point per batch.

    Returns:
        The figure, or why there is none.
    """
    found = gains_of(trials)
    if not found:
        return "needs a batch measured with the engine's default settings and with others"
    shown = {label: found[label] for label in Label if label in found}
    most = max(map(len, shown.values()))
    with style.styled():
        figure, axes = style.panels(len(shown), width=5.2, height=1.1 + 0.42 * most, columns=2)
        for place, (label, rows) in zip(axes, shown.items(), strict=True):
            _draw_panel(place, label, rows)
        style.title(figure, "Tuned against the engine's default")
        entries = [entry for rows in shown.values() for group in rows.values() for entry in group]
        style.finish(figure, _keys(entries), trials, *_notes(entries))
    return figure


def _draw_panel(axes: Axes, label: Label, rows: Mapping[Row, Sequence[Entry]]) -> None:
    ordered = sorted(rows.items(), key=lambda item: (PHASES.index(item[0].phase), item[0].dcp))
    means = [mean_ratio(entries) for _, entries in ordered]
    for number, ((_, entries), mean) in enumerate(zip(ordered, means, strict=True)):
        _draw_row(axes, number, sorted(entries, key=lambda entry: entry.ratio_to_default or 1.0))
        errors = [[mean.value - mean.low], [mean.high - mean.value]]
        axes.errorbar(
            mean.value,
            number,
            xerr=errors,
            color=_MEAN,
            marker="d",
            mfc="none",
            ms=9,
            mew=1.4,
            capsize=4,
            elinewidth=1.6,
        )
    axes.axvline(1, color=_MEAN, lw=0.8)
    names = [
        f"{row.phase}, dcp {row.dcp}\n{_batches(len(entries))}: {mean.value:.2f}×"
        for (row, entries), mean in zip(ordered, means, strict=True)
    ]
    axes.set_yticks(range(len(ordered)), names)
    axes.set_ylim(len(ordered) - 0.4, -0.6)
    axes.grid(visible=False, axis="y")
    axes.set_xscale("log", base=2)
    _ratios(axes)
    axes.set_xlabel("step of the chosen settings over the default's")
    axes.set_title(str(label), loc="left")


def _batches(count: int) -> str:
    return counted(count, "batch", "batches")


def _draw_row(axes: Axes, number: int, entries: Sequence[Entry]) -> None:
    marks = [
        _mark(entry, ratio, number + _HEIGHT * ((place + 0.5) / len(entries) - 0.5))
        for place, entry in enumerate(entries)
        if (ratio := entry.to_default)
    ]
    style.scatter(axes, marks, ms=3.2, mew=0.8, elinewidth=0.7)


def _mark(entry: Entry, ratio: Ratio, y: float) -> style.Mark:
    colour, marker = style.PATH_COLOURS[entry.settings.path], style.KERNEL_MARKERS[entry.settings.kernel]
    return style.Mark((ratio.low, ratio.value, ratio.high), (y, y, y), colour, marker, style.LABEL_FILL[entry.label])


def _ratios(axes: Axes) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    low, high = axes.get_xlim()
    steps = (1, 1.1, 1.25, 1.5, 1.75) if high / low < 4 else (1,)
    axes.xaxis.set_major_locator(LogLocator(base=2, subs=steps))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}×"))


def _keys(entries: Sequence[Entry]) -> list[object]:
    from matplotlib.lines import Line2D

    paths, kernels = ({getattr(entry.settings, name) for entry in entries} for name in ("path", "kernel"))
    labels = {entry.label for entry in entries}
    keys = style.keys(paths, (), kernels, labels)
    return [*keys, Line2D([], [], color=_MEAN, ls="", marker="d", mfc="white", ms=8, label="mean")]


def _notes(entries: Sequence[Entry]) -> list[str]:
    faster = sum(entry.to_default.high < 1 for entry in entries if entry.to_default)
    kept = sum(entry.settings == entry.default for entry in entries)
    slower = sum(entry.to_default.low > 1 for entry in entries if entry.to_default)
    point = (
        "A point is a batch on one layout, in the colour of the path and with the marker of the kernel that were chosen"
    )
    bars = (
        "Bars: 95 % interval, of paired rounds where both raced, else of two medians. Diamonds: geometric mean over the batches "
        "of a row, with the 95 % interval of a mean (bootstrap over batches). Where nothing raced, the same medians chose and "
        "are compared: the best of several is a little flattered."
    )
    notes = [
        f"{point}: {len(entries)} in all, {faster} surely faster than the default, {kept} left at it, {slower} surely slower.",
        bars,
        *style.one_marker(entry.settings for entry in entries),
    ]
    if any(entry.label is Label.SIMULATED for entry in entries):
        notes.append("Simulated: both without the exchange's time, so that what is gained in it is not seen.")
    return notes
