"""The picture of what exchanges cost: time against tokens, the model fitted to it, and the link's limit."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING

from bench.collective import OPERATIONS, CollectiveModel, Reading, fit_all, readings
from bench.record import Environment, Trial
from bench.report import style
from dcp_core.settings import ExchangeName

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = {ExchangeName.AG_RS: "#4477aa", ExchangeName.A2A: "#aa7733", ExchangeName.DIRECT: "#228833"}
MARKERS = {ExchangeName.AG_RS: "o", ExchangeName.A2A: "s", ExchangeName.DIRECT: "D"}
NVLINK_BYTES_PER_US = 26.6e3
"""Of one NVLink of the fourth generation, each way: 18 of them make the 478 GB/s of an H100 or H200."""
_NVLINK_4 = ("H100", "H200")


def draw(trials: Sequence[Trial]) -> Figure | str:
    """Draw gather and combine side by side, a line per exchange and dcp over the tokens of a decode step.

    Returns:
        The figure, or why there is none.
    """
    found = readings(trials)
    if len({(reading.operation, reading.tokens) for reading in found}) < 2 * len(OPERATIONS):
        return "needs decode steps of two batch sizes or more, measured between real ranks"
    models = fit_all(found)
    with style.styled():
        figure, axes = style.panels(len(OPERATIONS), width=4.6, height=3.4)
        for place, operation in zip(axes, OPERATIONS, strict=True):
            _draw_panel(
                place,
                [one for one in found if one.operation == operation],
                [one for one in models if one.operation == operation],
            )
            place.set_title(operation, loc="left")
            place.set_xlabel("tokens (requests of one new token)")
        axes[0].set_ylabel("one operation, slowest rank (median)")
        style.title(figure, "What an exchange costs")
        style.finish(figure, _keys(found), [reading.trial for reading in found], *_notes(found, models))
    return figure


def break_even(found: Sequence[Reading], operation: str) -> str:
    """Say in words which exchange is fastest from how many tokens on."""
    at: dict[int, Reading] = {}
    for reading in found:
        if reading.operation == operation:
            known = at.get(reading.tokens)
            if known is None or reading.time_us.median < known.time_us.median:
                at[reading.tokens] = reading
    winners = [(tokens, at[tokens].exchange) for tokens in sorted(at)]
    changes = [
        f"{exchange} from {style.tokens(tokens)}"
        for index, (tokens, exchange) in enumerate(winners)
        if index == 0 or winners[index - 1][1] is not exchange
    ]
    if len(changes) == 1:
        return f"Fastest {operation}: {winners[0][1]} at every size."
    return f"Fastest {operation}: {', '.join(changes)} tokens on."


def _draw_panel(axes: Axes, found: Sequence[Reading], models: Sequence[CollectiveModel]) -> None:
    lines: dict[tuple[ExchangeName, int], list[Reading]] = defaultdict(list)
    for reading in found:
        lines[reading.exchange, reading.dcp].append(reading)
    for (exchange, dcp), group in sorted(lines.items()):
        points = sorted(group, key=lambda one: one.tokens)
        xs, ys = [one.tokens for one in points], [one.time_us.median for one in points]
        errors = [[y - one.time_us.low for y, one in zip(ys, points, strict=True)]]
        errors.append([one.time_us.high - y for y, one in zip(ys, points, strict=True)])
        axes.errorbar(
            xs, ys, yerr=errors, color=COLOURS[exchange], marker=MARKERS[exchange], ls=style.line_of(dcp), capsize=2
        )
    for model in models:
        points = sorted(lines[model.exchange, model.dcp], key=lambda one: one.tokens)
        fitted = [model.time_us(one.wire_bytes) for one in points]
        axes.plot([one.tokens for one in points], fitted, color=COLOURS[model.exchange], lw=0.8, alpha=0.6)
    limit = _link_bytes_per_us(found[0].trial.environment)
    if limit:
        points = sorted({one.tokens: one for one in found}.values(), key=lambda one: one.tokens)
        axes.plot([one.tokens for one in points], [one.wire_bytes / limit for one in points], color="#999999", ls=":")
        axes.set_ylim(bottom=min(one.time_us.low for one in found) / 2)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    style.microseconds(axes.yaxis, log=True)
    ticks = sorted({one.tokens for one in found})
    axes.set_xticks(ticks, [style.tokens(tokens) for tokens in ticks], minor=False)


def _link_bytes_per_us(environment: Environment) -> float:
    """Return what a device can receive over its NVLinks; 0 where that is not known."""
    links = environment.soft.get("nvlinks", "0")
    known = any(name in environment.hard.get("device_name", "") for name in _NVLINK_4)
    return int(links) * NVLINK_BYTES_PER_US if known and links.isdigit() else 0.0


def _keys(found: Sequence[Reading]) -> list[object]:
    from matplotlib.lines import Line2D

    exchanges = sorted({reading.exchange for reading in found})
    entries = [Line2D([], [], color=COLOURS[name], marker=MARKERS[name], label=str(name)) for name in exchanges]
    dcps = sorted({reading.dcp for reading in found})
    entries += [Line2D([], [], color="#555555", ls=style.line_of(dcp), label=f"dcp {dcp}") for dcp in dcps]
    if _link_bytes_per_us(found[0].trial.environment):
        entries.append(Line2D([], [], color="#999999", ls=":", label="link limit"))
    return [*entries]


def _notes(found: Sequence[Reading], models: Sequence[CollectiveModel]) -> list[str]:
    notes = [break_even(found, operation) for operation in OPERATIONS]
    notes += [
        f"Thin line, modelled: {model.exchange} {model.operation} at dcp {model.dcp} is {model.latency_us:.1f} µs + bytes / "
        f"{model.bytes_per_us / 1e3:.3g} GB/s; a size left out is met within {model.worst_error:.0%}."
        for model in models
    ]
    composed = {flag for reading in found for flag in _composed(reading)}
    return [*notes, *sorted(composed)]


def _composed(reading: Reading) -> list[str]:
    """Return what a trial says of collectives that were not the library's own."""
    return [flag for flag in getattr(reading.trial.outcome, "flags", ()) if "composed" in flag]
