"""The picture of what exchanges cost: time against tokens, the model fitted to it, and the link's limit."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from bench.collective import OPERATIONS, Kind, Reading, Row, Way, fit, fit_all, link_bytes_per_us, readings
from bench.record import Trial
from bench.report import style
from bench.report.exchange_table import BOTH, Place, break_even, changes, leader_name, manner_name, places_of, way_name
from dcp_core.settings import ExchangeName

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Of no path and no kernel: both stand in one picture with them.
COLOURS = {ExchangeName.AG_RS: "#332288", ExchangeName.A2A: "#E78AC3", ExchangeName.DIRECT: "#999933"}
MARKERS = {ExchangeName.AG_RS: "X", ExchangeName.A2A: ">", ExchangeName.DIRECT: "*"}
MAX_GROUPS = 3
"""Kinds of row and ways of timing that have panels of their own: in graphs rather than eager, as engines decode; then those over
the widest range of tokens, of the largest messages, with most readings."""
NCCL = frozenset({ExchangeName.AG_RS, ExchangeName.A2A})
"""What an engine may choose among that has no exchange of dcpbench's."""
_Group = tuple[Way, Row]


def draw(trials: Sequence[Trial]) -> Figure | str:
    """Draw gather and combine side by side, a line per exchange and dcp over the tokens of a decode step.

    Rows of other shapes, and times taken otherwise, eager say, have panels of their own.

    Returns:
        The figure, or why there is none.
    """
    found = readings(trials)
    groups: dict[_Group, list[Reading]] = defaultdict(list)
    for reading in found:
        groups[reading.kind.way, reading.kind.row].append(reading)
    drawable = [
        group for group in groups.values() if len({(one.operation, one.tokens) for one in group}) >= 2 * len(OPERATIONS)
    ]
    if not drawable:
        return "needs decode steps of two batch sizes or more, measured between real ranks"
    shown = sorted(drawable, key=_interest, reverse=True)[:MAX_GROUPS]
    with style.styled():
        figure, axes = style.panels(len(OPERATIONS) * len(shown), width=4.6, height=3.4, columns=len(OPERATIONS))
        for number, group in enumerate(shown):
            for place, operation in zip(axes[number * len(OPERATIONS) :], OPERATIONS, strict=False):
                _draw_panel(place, [one for one in group if one.operation == operation])
                place.set_title(
                    f"{operation}, rows of {group[0].kind.row}, measured\n{manner_name(group[0].kind.way)}", loc="left"
                )
                place.set_xlabel("tokens (requests of one new token)")
            axes[number * len(OPERATIONS)].set_ylabel("one operation, slowest rank (median)")
        style.title(figure, "What an exchange costs")
        kept = [reading for group in shown for reading in group]
        style.finish(
            figure, _keys(kept), [reading.trial for reading in kept], *_notes(kept, hidden=len(groups) - len(shown))
        )
    return figure


def _interest(group: Sequence[Reading]) -> tuple[bool, float, int, int]:
    sizes = {one.tokens for one in group}
    largest = max(one.wire_bytes for one in group)
    return group[0].kind.way.graphs, max(sizes) / min(sizes), largest, len(group)


def _draw_panel(axes: Axes, found: Sequence[Reading]) -> None:
    lines: dict[Kind, list[Reading]] = defaultdict(list)
    for reading in found:
        lines[reading.kind].append(reading)
    for kind, group in sorted(lines.items(), key=lambda item: (item[0].exchange, item[0].dcp)):
        points = sorted(group, key=lambda one: one.tokens)
        xs, ys = [one.tokens for one in points], [one.time_us.median for one in points]
        errors = [[y - one.time_us.low for y, one in zip(ys, points, strict=True)]]
        errors.append([one.time_us.high - y for y, one in zip(ys, points, strict=True)])
        colour, marker = COLOURS[kind.exchange], MARKERS[kind.exchange]
        axes.errorbar(xs, ys, yerr=errors, color=colour, marker=marker, ls=style.line_of(kind.dcp), capsize=2)
        if model := fit(group):
            axes.plot(xs, [model.curve.line_us(one.wire_bytes) for one in points], color=colour, lw=0.8, alpha=0.6)
    for line in _link_lines(found):
        axes.plot(*zip(*line, strict=True), color="#999999", ls=":", gid="link")
    axes.set_ylim(bottom=_bottom_us(found))
    _draw_changes(axes, found)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    style.microseconds(axes.yaxis, log=True)
    ticks = sorted({one.tokens for one in found})
    axes.set_xticks(ticks, [style.tokens(tokens) for tokens in ticks], minor=False)


def _bottom_us(found: Sequence[Reading]) -> float:
    """Return where a panel begins."""
    return min(one.time_us.low for one in found) / 2


def _link_lines(found: Sequence[Reading]) -> list[list[tuple[int, float]]]:
    """Return the time that the link needs over the tokens, µs, a line for each dcp: those that reach into the panel."""
    lines: dict[int, dict[int, float]] = defaultdict(dict)
    for one in sorted(found, key=lambda one: one.tokens):
        if limit := link_bytes_per_us(one.trial.environment):
            lines[one.kind.dcp][one.tokens] = one.wire_bytes / limit
    bottom_us = _bottom_us(found)
    return [list(line.items()) for _, line in sorted(lines.items()) if max(line.values()) > bottom_us]


def _panels(found: Iterable[Reading]) -> list[list[Reading]]:
    """Return the readings of each panel."""
    panels: dict[tuple[object, ...], list[Reading]] = defaultdict(list)
    for one in found:
        panels[one.kind.way, one.kind.row, one.operation].append(one)
    return list(panels.values())


def _draw_changes(axes: Axes, found: Sequence[Reading]) -> None:
    """Draw an upright line where another exchange becomes the fastest, in its colour, with its name and dcp."""
    for place in places_of(found):
        for tokens, exchange in changes(found, place)[1:] if place.operation != BOTH else ():
            colour = COLOURS[exchange] if exchange else "#555555"
            axes.axvline(tokens, color=colour, ls=style.line_of(place.dcp), lw=1, gid="break-even")
            name = f"{leader_name(exchange)} from {style.tokens(tokens)}"
            axes.text(
                tokens,
                0.98,
                f" {name}",
                transform=axes.get_xaxis_transform(),
                va="top",
                rotation=90,
                ha="right",
                fontsize=7,
            )


def _keys(found: Sequence[Reading]) -> list[object]:
    from matplotlib.lines import Line2D

    exchanges = sorted({reading.kind.exchange for reading in found})
    entries = [Line2D([], [], color=COLOURS[name], marker=MARKERS[name], label=str(name)) for name in exchanges]
    dcps = sorted({reading.kind.dcp for reading in found})
    entries += [Line2D([], [], color="#555555", ls=style.line_of(dcp), label=f"dcp {dcp}") for dcp in dcps]
    if fit_all(found):
        entries.append(Line2D([], [], color="#555555", lw=0.7, label="modelled"))
    if any(map(_link_lines, _panels(found))):
        entries.append(Line2D([], [], color="#999999", ls=":", label="link limit"))
    return [*entries]


def _notes(found: Sequence[Reading], *, hidden: int) -> list[str]:
    answers = {place: break_even(found, place) for place in places_of(found)}
    fastest = [f"{_name(place, found)}: {answer}." for place, answer in answers.items()]
    if len(set(answers.values())) == 1:
        fastest = [f"of gather, of combine and of both together, in every panel: {next(iter(answers.values()))}."]
    fastest += _of_nccl(found)
    models = fit_all(found)
    between = max((model.between_error for model in models), default=0.0)
    beyond = max((model.beyond_error for model in models), default=0.0)
    modelled = (
        "Thin: latency + bytes / bandwidth of the quickest rank. The model bends it through what was measured, and meets "
        f"a size left out within {between:.0%} between others, within {beyond:.0%} beyond them."
    )
    more = [f"{hidden} more kinds of row or ways of timing are not shown."] if hidden else []
    composed = {flag for reading in found for flag in _composed(reading)}
    return [f"Fastest, {'  '.join(fastest)}", *([modelled] if models else []), *more, *sorted(composed)]


def _of_nccl(found: Sequence[Reading]) -> list[str]:
    """Say who of NCCL's exchanges is the faster one, where both were measured and another one too."""
    exchanges = {one.kind.exchange for one in found}
    if not exchanges > NCCL:
        return []
    own = [one for one in found if one.kind.exchange in NCCL]
    answers = {place: break_even(own, place) for place in places_of(own) if place.operation == BOTH}
    told = [f"{_name(place, own)}: {answer}." for place, answer in answers.items()]
    if len(set(answers.values())) == 1:
        told = [f"{next(iter(answers.values()))}."]
    return [f"Of NCCL's a2a and ag_rs, gather and combine together: {'  '.join(told)}"]


def _name(place: Place, found: Sequence[Reading]) -> str:
    """Name a place by what sets it apart from others."""
    ways, rows, dcps = ({getattr(one.kind, name) for one in found} for name in ("way", "row", "dcp"))
    parts = [place.operation, *([f"dcp {place.dcp}"] if len(dcps) > 1 else [])]
    parts += [f"rows of {place.row}"] if len(rows) > 1 else []
    parts += [way_name(place.way)] if len(ways) > 1 else []
    return ", ".join(parts)


def _composed(reading: Reading) -> list[str]:
    """Return what a trial says of collectives that were not the library's own."""
    return [flag for flag in getattr(reading.trial.outcome, "flags", ()) if "composed" in flag]
