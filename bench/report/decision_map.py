"""The picture of which dcp to run: context by concurrency, with what is gained, and what fits."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from bench.recommend.decision import Decision, Option, Origin
from bench.recommend.decision_map import Map, Phase, Row, batches_of, maps_of, unlike_of
from bench.record import Label, Trial
from bench.report import style
from bench.report.cells import Size, most, panels
from bench.report.kv_memory import BUDGET_BYTES
from dcp_core.cost import exchanged
from dcp_core.layout import DcpLayout, legal_dcps
from dcp_core.memory import KvMemory, format_size
from dcp_core.settings import Case, PathName
from dcp_core.shapes import ModelShape

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_PANELS = 6
MAX_ROWS = 8
MAX_CONTEXTS = 8
_PAYS, _FULL = "#111111", "#CC79A7"
_ASIDE = 0.035
"""Between lines of one height, in rows, so that they do not hide one another."""
_SWATCH = 3.6
"""Long enough that a line as thick as these shows every dash and dot of its style."""
LEAST_EVEN_US = 0.1
"""An exchange that may cost no more is none."""
_MEANING: Mapping[Label, str] = {
    Label.SIMULATED: "simulated (one rank by itself, without its exchange)",
    Label.MODELLED: "modelled (one rank by itself, with its exchange's time from messages measured)",
}
_CELL_INCHES, _AROUND_INCHES = Size(1.55, 0.66), Size(0.9, 1.45)


def draw(
    trials: Sequence[Trial], *, budget: int = BUDGET_BYTES, most: int | None = None
) -> Figure | Mapping[str, Figure | str] | str:
    """Draw which dcp and path is fastest over context and concurrency, a picture per model, tp and phase.

    Filled where one is fastest over all that is not known, hatched where the exchange decides.

    Args:
        budget: bytes of KV cache on each rank.
        most: draw no more pictures than that, those with most cells; all if None.

    Returns:
        The figure; or several, in the order of a report's answers, by what a file's name can say of their model, tp, device and
        phase, and of those beyond ``most`` what draws them, under an empty name; or why there is none.
    """
    found = maps_of(trials)
    maps = [one for one in found if len(one.cells) > 1]
    if not maps:
        return _missing(found)
    on_which = len({one.subject.deployment.machine for one in maps}) > 1
    batches = batches_of(found, unlike_of(trials))
    pages: dict[str, list[Map]] = defaultdict(list)
    for one in sorted(maps, key=lambda one: -batches[one.subject.deployment]):
        said = f"{_name(one, on_which=on_which)}, {one.subject.phase}"
        pages[re.sub(r"[^A-Za-z0-9.]+", "-", said).strip("-.")].append(one)
    largest = sorted(pages, key=lambda name: -sum(len(one.cells) for one in pages[name]))[:most]
    figures: dict[str, Figure | str] = {
        name: _figure(page, budget, on_which=on_which) for name, page in pages.items() if name in largest
    }
    if hidden := len(pages) - len(figures):
        figures[""] = f"{hidden} more with fewer cells, which 'dcpbench plot --figure decision-map' draws"
    return figures if len(figures) > 1 else next(iter(figures.values()))


def _figure(maps: Sequence[Map], budget: int, *, on_which: bool) -> Figure:
    """Draw a panel per map, the largest that there is room for: several are alike in all but a driver or a version."""
    largest = sorted(maps, key=lambda one: -len(one.cells))[:MAX_PANELS]
    shown = [one for one in maps if one in largest]
    tables = [Size(len(_contexts(one)), len(_rows(one))) for one in shown]
    with style.styled():
        figure, axes = panels(tables, cell=_CELL_INCHES, around=_AROUND_INCHES)
        for place, one in zip(axes, shown, strict=True):
            _draw_panel(place, one, budget, _name(one, on_which=on_which))
        style.title(figure, "Which dcp: the fastest attention step of one layer, at the same number of GPUs")
        sources = [trial for one in shown for trial in one.trials]
        notes = _notes(shown, budget, hidden=len(maps) - len(shown))
        style.finish(figure, _keys(shown), sources, *notes, swatch=_SWATCH)
    return figure


def _missing(found: Sequence[Map]) -> str:
    """Say what maps lack of which none has two cells."""
    needs = "needs two batches or more of one kind, each of like requests, with dcp 1 and a larger legal dcp"
    if not found:
        return needs
    on_which = len({one.subject.deployment.machine for one in found}) > 1
    kinds = [f"{_name(one, on_which=on_which)}, {one.subject.phase}" for one in found]
    more = [f"each of {len(kinds) - MAX_PANELS} more"] if len(kinds) > MAX_PANELS else []
    return f"{needs}; there is only one of {'; one of '.join([*kinds[:MAX_PANELS], *more])}"


def _name(one: Map, *, on_which: bool) -> str:
    name = f"{one.subject.shape.name}, tp {one.subject.tp}"
    return f"{name}, {one.subject.deployment.device}" if on_which else name


def _rows(one: Map) -> list[Row]:
    """Return the rows that a panel has room for: the last."""
    return one.rows[-MAX_ROWS:]


def _contexts(one: Map) -> list[int]:
    """Return the contexts that a panel has room for: those with most cells in its rows."""
    rows = _rows(one)
    return most((context for row, context in one.cells if row in rows), MAX_CONTEXTS)


def _draw_panel(axes: Axes, one: Map, budget: int, name: str) -> None:
    contexts, rows = _contexts(one), _rows(one)
    for y, row in enumerate(rows):
        for x, context in enumerate(contexts):
            if decision := one.cells.get((row, context)):
                _draw_cell(axes, x, y, decision, one.subject.shape)
    for x, context in enumerate(contexts):
        for new in _sizes(rows):
            _draw_break_even(axes, x, rows, new, one.break_even(context, new))
        if one.subject.phase is Phase.DECODE:
            _draw_capacity(axes, x, rows, _fits(one, context, budget))
    axes.set_xticks(range(len(contexts)), [_column(one, context, budget) for context in contexts], fontsize=7)
    axes.set_yticks(range(len(rows)), [_row(row, one.subject.phase) for row in rows])
    axes.set_title(f"{name}: {one.subject.phase}\n{_sources(one)}", loc="left")
    axes.set_xlabel("context per request, tokens")
    axes.set_ylabel("requests" if one.subject.phase is Phase.DECODE else "requests × new tokens")


def _sizes(rows: Sequence[Row]) -> list[int]:
    """Return the new tokens of a request that rows differ by: each has a break-even of its own."""
    return sorted({row.new for row in rows})


def _draw_break_even(axes: Axes, x: int, rows: Sequence[Row], new: int, pays: tuple[int | None, int | None]) -> None:
    """Draw a line below the row from which on a larger dcp is faster: unbroken if surely, broken if at best."""
    at_best, surely = pays
    for number, line in ((surely, "-"), (at_best if at_best != surely else None, ":")):
        if number is not None:
            y = _below(rows, Row(new, number))
            axes.plot(
                (x - 0.5, x + 0.5), (y, y), color=_PAYS, lw=2.4, ls=line, gid="break-even", zorder=3, clip_on=False
            )


def _draw_capacity(axes: Axes, x: int, rows: Sequence[Row], fits: Mapping[int, int]) -> None:
    """Draw for each dcp a line above the last row whose decodes fit, unless all do."""
    for index, (dcp, number) in enumerate(fits.items(), start=1):
        if number < rows[-1].requests:
            y = _below(rows, Row(1, number + 1)) + _ASIDE * index
            axes.plot(
                (x - 0.5, x + 0.5), (y, y), color=_FULL, lw=2.4, ls=style.line_of(dcp), gid="capacity", clip_on=False
            )


def _below(rows: Sequence[Row], row: Row) -> float:
    """Return the height between the rows before one, which need not be among them, and it."""
    return sum(one < row for one in rows) - 0.5


def _draw_cell(axes: Axes, x: int, y: int, decision: Decision, shape: ModelShape) -> None:
    left = decision.unbeaten()
    style.cell(axes, (x, y), _path(left[-1]), _words(decision, left, shape), told_apart=len(left) == 1)


def _words(decision: Decision, left: Sequence[Option], shape: ModelShape) -> str:
    """Say who wins, what the best of the larger sizes gains in one layer and in all of them, and what was not measured."""
    rival = left[-1] if left[-1] is not decision.base else min(decision.options[1:], key=lambda one: one.span.median_us)
    names = ("/" if len(left) > 2 else " or ").join(str(one.layout.dcp) for one in left)  # a cell holds no more
    base, span = decision.base.span, rival.span
    low, high = span.low_us - base.high_us, span.high_us - base.low_us
    lines = [f"dcp {names}, {_way(left[-1], shape)}", _signed(low, high, 1)]
    source = [str(label) for label in Label if label in _labels([decision]) and label is not Label.MEASURED]
    even = rival.break_even_us(decision.base)
    if left[0] is decision.base and len(left) > 1 and even is not None and even >= LEAST_EVEN_US:
        return "\n".join([*lines, f"if exchange < {_short(even)}", *source])
    of_all = [f"× {shape.layers}: {_signed(low, high, shape.layers)}"] if shape.layers > 1 else []
    return "\n".join([*lines, *of_all, *source])


def _signed(low: float, high: float, times: int) -> str:
    if high == math.inf:
        return f"{_short(low * times)} or more"
    one, other = _short(low * times), _short(high * times)
    return one if one == other else f"{one} … {other}"


def _short(value_us: float) -> str:
    """Return a time to two figures, with its sign if it is negative: a picture's cell holds no more."""
    sign, size = ("\u2212" if value_us < 0 else ""), abs(value_us)
    if size < 1000:
        return f"{sign}{size:.0f} µs" if size >= 10 else f"{sign}{size:.1f} µs"
    return f"{sign}{size / 1e3:.1f} ms" if size < 1e4 else f"{sign}{size / 1e3:.0f} ms"


def _path(one: Option) -> PathName:
    return one.parts[0].step.settings.path


def _way(one: Option, shape: ModelShape) -> str:
    """Name the path, and the exchange if there is one and its time is known."""
    (part,) = one.parts
    step, known = part.step, part.exchange.origin in (Origin.MEASURED, Origin.MODELLED)
    shown = known and any(exchanged(Case(shape, step.layout, step.workload, step.settings)))
    return f"{_path(one)} via {step.settings.exchange}" if shown else str(_path(one))


def _row(row: Row, phase: Phase) -> str:
    return str(row.requests) if phase is Phase.DECODE else f"{row.requests} × {style.tokens(row.new)}"


def _column(one: Map, context: int, budget: int) -> str:
    """Name a context, what fits of it by dcp, and from how many requests on dcp pays."""
    if not context:
        return "0"
    fits = _fits(one, context, budget).values()
    lines = [style.tokens(context), f"fits {' | '.join(map(_count, fits))}"]
    if one.subject.phase is Phase.DECODE:
        at_best, surely = one.break_even(context)
        lines.append("pays: not seen" if at_best is None else f"pays from {surely or '–'} ({at_best})")
    return "\n".join(lines)


def _fits(one: Map, context: int, budget: int) -> dict[int, int]:
    """Return the requests of a context that fit, by legal dcp."""
    shape, tp = one.subject.shape, one.subject.tp
    return {dcp: KvMemory(shape, DcpLayout(tp, dcp)).requests_in(budget, context + 1) for dcp in legal_dcps(shape, tp)}


def _labels(decisions: Iterable[Decision]) -> dict[Label, set[int]]:
    """Return the dcp sizes of each label that the compared steps have."""
    found: dict[Label, set[int]] = {}
    for decision in decisions:
        for each in decision.options:
            for part in each.parts:
                found.setdefault(part.step.label, set()).add(each.layout.dcp)
    return found


def _sources(one: Map) -> str:
    """Say where numbers come from, and of which dcp sizes."""
    found = _labels(one.cells.values())
    return "; ".join(f"{label}: dcp {', '.join(map(str, sorted(found[label])))}" for label in Label if label in found)


def _count(number: int) -> str:
    return str(number) if number < 10_000 else f"{number // 1000}k"


def _keys(maps: Sequence[Map]) -> list[Artist]:
    from matplotlib.lines import Line2D

    winners = [decision.unbeaten() for one in maps for decision in one.cells.values()]
    cells = style.cell_keys({_path(left[-1]) for left in winners}, told_apart=all(len(left) == 1 for left in winners))
    decoding = [one for one in maps if one.subject.phase is Phase.DECODE]
    dcps = sorted({dcp for one in decoding for dcp in legal_dcps(one.subject.shape, one.subject.tp)})
    pays = [one.break_even(context, new) for one in maps for context in _contexts(one) for new in _sizes(_rows(one))]
    lines = [("pays from here", _PAYS, "-")] if any(surely for _, surely in pays) else []
    lines += [("pays at best", _PAYS, ":")] if any(at_best != surely for at_best, surely in pays) else []
    lines += [(f"dcp {dcp} is full", _FULL, style.line_of(dcp)) for dcp in dcps]
    return [*cells, *(Line2D([], [], color=colour, ls=line, lw=2.4, label=name) for name, colour, line in lines)]


def _notes(maps: Sequence[Map], budget: int, *, hidden: int) -> list[str]:
    parts = [
        part for one in maps for decision in one.cells.values() for each in decision.options for part in each.parts
    ]
    origins = {part.exchange.origin for part in parts}
    cell = "In a cell: the fastest dcp, path and exchange; the best larger dcp's step less dcp 1's (negative: gain), of one layer"
    capacity = f"Fits: requests of that context in {format_size(budget)} of KV cache on each rank, by legal dcp"
    notes = [f"{cell} and of all.", f"{capacity}."]
    pays = "the least number of requests measured from which on a larger dcp is surely faster than dcp 1 (at best)"
    if any(one.subject.phase is Phase.DECODE for one in maps):
        notes[-1] += f" Above the line of a full dcp they do not fit. Pays: {pays}."
    else:
        notes.append(f"Pays, for each number of new tokens: {pays}; no line where that was not seen.")
    labels = _labels(decision for one in maps for decision in one.cells.values())
    unmeasured = [_MEANING[label] for label in Label if label in labels and label in _MEANING]
    if unmeasured:
        notes.append(
            f"A cell says so if a step that it compares was {', or '.join(unmeasured)}. In others all were measured."
        )
    notes += [f"{note} Hatched: it decides." for note in exchange_notes(origins)]
    if rows := sum(len(one.rows) - len(_rows(one)) for one in maps):
        notes.append(style.not_shown(rows, "row", "rows"))
    if contexts := sum(len(one.contexts) - len(_contexts(one)) for one in maps):
        notes.append(style.not_shown(contexts, "context", "contexts"))
    if hidden:
        notes.append(f"{hidden} more maps were measured and are not shown.")
    return notes


def exchange_notes(origins: Collection[Origin]) -> list[str]:
    """Say what stands for the exchange of simulated steps where nobody measured it."""
    notes = []
    if Origin.ASSUMED in origins:
        notes.append(
            "Simulated steps lack their exchange: assumed, not measured there, from nothing (all hidden) to 40 µs and 27 GB/s a "
            "peer, more than any step between two H200s or H100s on NVLink took."
        )
    if Origin.UNKNOWN in origins:
        notes.append("Simulated steps lack their exchange, and nothing is assumed of this device's links.")
    return notes
