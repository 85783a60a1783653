"""The visual language of every picture: a colour per path, a marker per kernel, a line per dcp, a fill per label.

matplotlib is imported where it is used. Colours: Okabe and Ito, "Color Universal Design" (2008), told apart with any
colour vision; two of the paths' are darker than theirs, so that all five are greys of their own where there is no colour.
"""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

from bench.record import Label, Trial
from bench.report.table import counted, kernels_of
from dcp_core.settings import KernelName, PathName, Settings

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

logging.getLogger("matplotlib").setLevel(logging.ERROR)  # or it tells where it keeps a cache if HOME may not be written

PATH_COLOURS: Mapping[PathName, str] = {
    PathName.TP: "#000000",
    PathName.DECODE: "#004C80",
    PathName.SPLIT: "#E69F00",
    PathName.MASK: "#A83600",
    PathName.FOLD: "#009E73",
}
KERNEL_MARKERS: Mapping[KernelName, str] = {
    KernelName.REFERENCE: "o",
    KernelName.FA2: "s",
    KernelName.FA3: "^",
    KernelName.AUTO: "D",
    KernelName.CUDA_CORE: "v",
    KernelName.PERSISTENT: "P",
}
_DCP_LINES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))
LABEL_FILL: Mapping[Label, float] = {Label.MEASURED: 1.0, Label.SIMULATED: 0.0, Label.MODELLED: 0.45}
"""How strong the colour inside a mark is: full, hollow, pale."""
PANELS_PER_ROW = 3
LEAST_INCHES = 6.8
"""Width of a picture, at least."""
LONGEST_NAME, LONGEST_TITLE = 60, 36
"""Characters of a name that a picture shows in its caption, and above a panel."""
_LEFT = 0.012
_OPEN = "////"
_SMALL: dict[str, Any] = {"fontsize": 7, "color": "#555555", "ha": "left"}
_CHARACTERS_PER_INCH = 19
_LINE_INCHES, _TITLE_INCHES = 0.135, 0.4
_LEGEND_INCHES = (0.98, 0.2)
"""Width of a legend's entry, height of its row."""
SWATCH = 2.0
"""Length of a legend's line, in heights of its letters, as matplotlib has it."""
_RC: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 8.5,
    "axes.titlesize": 9,
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e3e3e3",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.linewidth": 1.6,
    "lines.markersize": 5,
    "hatch.linewidth": 0.6,
    "text.parse_math": False,  # names are a user's, who may write a dollar
    "svg.fonttype": "path",
    "svg.hashsalt": "dcpbench",
    "figure.dpi": 150,
}


class Mark(NamedTuple):
    """A point of a picture: its place as (low, middle, high) of x and of y, and how it looks; ``fill`` as of LABEL_FILL."""

    x: tuple[float, float, float]
    y: tuple[float, float, float]
    colour: str
    marker: str
    fill: float = 1.0


@contextmanager
def styled() -> Iterator[None]:
    """Draw and save inside: the house's settings, whatever the user's own matplotlibrc says."""
    from matplotlib import rc_context, rcParamsDefault

    defaults = {name: value for name, value in rcParamsDefault.items() if not name.startswith("backend")}
    with rc_context(defaults | _RC):
        yield


def line_of(dcp: int) -> Any:
    """Return the line style of a dcp size: solid for 1, then by powers of two."""
    return _DCP_LINES[min((dcp - 1).bit_length(), len(_DCP_LINES) - 1)]


def panels(count: int, *, width: float, height: float, columns: int = PANELS_PER_ROW) -> tuple[Figure, list[Axes]]:
    """Return a figure of ``count`` panels, a few per row, each ``width`` by ``height`` inches; ``finish`` adds what is below."""
    from matplotlib.figure import Figure

    columns = min(count, columns)
    rows = -(-count // columns)
    figure = Figure(figsize=(max(width * columns, LEAST_INCHES), height * rows + _TITLE_INCHES), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flatten().tolist()
    for spare in axes[count:]:
        spare.remove()
    return figure, axes[:count]


def title(figure: Figure, text: str) -> None:
    """Write what the figure shows above it."""
    figure.suptitle(text, fontsize=11, fontweight="bold", x=0.01, ha="left")


def finish(
    figure: Figure, entries: Sequence[Any], trials: Sequence[Trial], *notes: str, swatch: float = SWATCH
) -> None:
    """Add below the panels one legend for all, what a reader must know, and where it was measured; panels keep their size.

    Args:
        swatch: length of a legend's line, in heights of its letters.
    """
    from textwrap import wrap

    from matplotlib.layout_engine import ConstrainedLayoutEngine

    width, height = figure.get_size_inches()
    lines = [line for note in (*notes, provenance(trials)) for line in wrap(note, int(width * _CHARACTERS_PER_INCH))]
    entry_inches = _LEGEND_INCHES[0] + (swatch - SWATCH) * _RC["legend.fontsize"] / 72
    columns = max(1, min(len(entries), int(width / entry_inches)))
    caption_inches = _LINE_INCHES * (len(lines) + 1.5)
    below_inches = caption_inches + _LEGEND_INCHES[1] * -(-len(entries) // columns) + 0.12
    height += below_inches
    figure.set_figheight(height)
    figure.text(_LEFT, (caption_inches - 0.03) / height, "\n".join(lines), va="top", **_SMALL, gid="caption")
    if entries:
        anchor = (_LEFT, caption_inches / height)
        place: dict[str, Any] = {"loc": "lower left", "bbox_to_anchor": anchor, "borderaxespad": 0}
        figure.legend(handles=list(entries), ncols=columns, handlelength=swatch, **place)
    bottom = below_inches / height
    engine = figure.get_layout_engine()
    if isinstance(engine, ConstrainedLayoutEngine):
        engine.set(rect=(0, bottom, 1, 1 - bottom), w_pad=0.12, h_pad=0.08)


def not_shown(count: int, noun: str = "batch", nouns: str = "batches") -> str:
    """Return the note that a picture leaves something out."""
    return (
        f"{counted(count, f'more {noun}', f'more {nouns}')} {'was' if count == 1 else 'were'} measured and not drawn."
    )


def name(text: str, longest: int = LONGEST_NAME) -> str:
    """Return a name as a picture can hold it: drawable, and short enough."""
    shown = drawable(text)
    return shown if len(shown) <= longest else f"{shown[: longest - 1]}…"


def drawable(text: str) -> str:
    """Return a text with each character that the font lacks, or that is no character to be seen, written as its code."""
    return "".join(char if ord(char) in _glyphs() else char.encode("unicode_escape").decode() for char in text)


@cache
def _glyphs() -> frozenset[int]:
    from matplotlib.font_manager import findfont, get_font

    found = get_font(findfont(_RC["font.family"])).get_charmap()
    return frozenset(code for code in found if chr(code).isprintable())


def sign(figure: Figure, command: str) -> None:
    """Write the command that makes the figure again below its caption, all of it: the page grows downwards as it is saved."""
    from textwrap import wrap

    width, height = figure.get_size_inches()
    lines = wrap(f"Made by: {drawable(command)}", int(width * _CHARACTERS_PER_INCH), break_on_hyphens=False)
    figure.text(_LEFT, (_LINE_INCHES + 0.03) / height, "\n".join(lines), va="top", **_SMALL)


def scatter(axes: Axes, marks: Iterable[Mark], **look: Any) -> None:
    """Draw marks with the bars of their intervals; those that look alike at once, since each call costs a picture time."""
    alike: dict[tuple[str, str, float], list[Mark]] = defaultdict(list)
    for mark in marks:
        alike[mark.colour, mark.marker, mark.fill].append(mark)
    for (colour, marker, fill), group in alike.items():
        errors: dict[str, Any] = {}
        for error, bars in (("xerr", [one.x for one in group]), ("yerr", [one.y for one in group])):
            if any(low < high for low, _, high in bars):
                errors[error] = [[middle - low for low, middle, _ in bars], [high - middle for _, middle, high in bars]]
        xs, ys = [one.x[1] for one in group], [one.y[1] for one in group]
        axes.errorbar(xs, ys, **errors, color=colour, ls="", marker=marker, mfc=_inside(colour, fill), **look)


def lattice(axes: Axes, columns: int, rows: int) -> None:
    """Make a panel a table of cells: neither grid nor spines, whole numbers at the middle of each."""
    axes.set_xlim(-0.5, columns - 0.5)
    axes.set_ylim(-0.5, rows - 0.5)
    axes.grid(visible=False)
    axes.tick_params(length=0)
    for side in ("left", "bottom"):
        axes.spines[side].set_visible(False)


def cell(axes: Axes, place: tuple[float, float], path: PathName, words: str, *, told_apart: bool) -> None:
    """Draw a cell of a map: filled in its path's colour, hatched where that is not told apart from another."""
    from matplotlib.patches import Rectangle

    corner, size = (place[0] - 0.48, place[1] - 0.46), (0.96, 0.92)
    face = _face(path) if told_apart else "white"
    edge = tint(PATH_COLOURS[path], 0.75)
    axes.add_patch(Rectangle(corner, *size, facecolor=face, edgecolor=edge, lw=0.8))
    if not told_apart:
        pale = tint(PATH_COLOURS[path], 0.22)
        axes.add_patch(Rectangle(corner, *size, fill=False, edgecolor=pale, lw=0, hatch=_OPEN))
    axes.text(*place, words, ha="center", va="center", fontsize=7, linespacing=1.25)


def cell_keys(paths: Collection[PathName], *, told_apart: bool) -> list[Artist]:
    """Return legend entries of cells: one of each path, and one of the hatch unless all are told apart."""
    from matplotlib.patches import Patch

    entries: list[Artist] = [
        Patch(facecolor=_face(path), edgecolor=PATH_COLOURS[path], label=str(path))
        for path in PathName
        if path in paths
    ]
    if not told_apart:
        entries.append(Patch(facecolor="white", edgecolor="#999999", hatch=_OPEN, label="not told apart"))
    return entries


def _face(path: PathName) -> tuple[float, float, float]:
    return tint(PATH_COLOURS[path], 0.16 if path is PathName.TP else 0.38)


def _inside(colour: str, fill: float) -> str | tuple[float, float, float]:
    return colour if fill == 1 else tint(colour, fill)  # a full colour keeps its name: ``dark`` looks it up


def tint(colour: str, strength: float) -> tuple[float, float, float]:
    """Mix a colour with white: 1 leaves it as it is."""
    from matplotlib.colors import to_rgb

    red, green, blue = (1 - strength * (1 - part) for part in to_rgb(colour))
    return red, green, blue


def ink(colour: str) -> tuple[float, float, float]:
    """Darken a colour, so that words in it can be read on white."""
    from matplotlib.colors import to_rgb

    red, green, blue = (0.72 * part for part in to_rgb(colour))
    return red, green, blue


def provenance(trials: Sequence[Trial]) -> str:
    """Return where trials were made, every such place, by which commits of dcpbench or its version, and on which days."""
    places: dict[str, None] = {}
    for trial in trials:
        hard = dict(trial.environment.hard)
        device = hard.pop("device_name", "unknown device")
        places[f"{device} ({', '.join(f'{name} {value}' for name, value in sorted(hard.items()))})"] = None
    days = sorted({trial.time[:10] for trial in trials})
    span = f"{days[0]} to {days[-1]}" if len(days) > 1 else "".join(days)
    return "; ".join([*places, f"dcpbench {_made_by(trials)}", span])


def _made_by(trials: Sequence[Trial]) -> str:
    """Return the commit, or of an installed dcpbench the version, that made most of the trials, and how many more there are."""
    most, *others = Counter(
        trial.environment.soft.get("dcpbench", "of unknown version") for trial in trials
    ).most_common()
    return f"{most[0]} and {len(others)} more" if others else most[0]


def one_marker(found: Iterable[Settings]) -> list[str]:
    """Return the note of whose marker a step of several kernels has; none where every step has one kernel."""
    several = sorted({names for one in found if "+" in (names := kernels_of(one))})
    names = ", ".join(several)
    return [f"Steps of several kernels ({names}) have the marker of the first, which passes over the context."] * bool(
        several
    )


def microseconds(axis: Any, *, log: bool = False) -> None:
    """Write an axis of microseconds in plain figures: 500 ns, 20 µs, 1.5 ms."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    if log:
        axis.set_major_locator(LogLocator(base=10, subs=(1, 2, 5), numticks=12))
        axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: duration(value)))


def duration(value_us: float) -> str:
    """Return a time as it is written in a picture."""
    if value_us == 0:
        return "0"
    shown_us = float(f"{value_us:.3g}")  # rounded first: 999.6 µs are 1 ms
    for least_us, unit in ((1e6, "s"), (1e3, "ms"), (1, "µs")):
        if shown_us >= least_us:
            return f"{shown_us / least_us:g} {unit}"
    return f"{shown_us * 1e3:g} ns"


def stage_kind(name: str) -> str:
    """Return what a stage does, without the part of a mixed batch it does it for: ``gather`` of ``decode: gather``."""
    return name.rpartition(": ")[2]


def tokens(value: float) -> str:
    """Return a number of tokens as it is written in a picture: 1024k, 8k (of 8192 and 8191), 1000."""
    thousands = value / 1024
    if value < 1023:
        return f"{value:.0f}"
    return f"{thousands:.0f}k" if thousands >= 100 else f"{thousands:.3g}k"


def keys(
    paths: Collection[PathName], dcps: Collection[int], kernels: Collection[KernelName], labels: Collection[Label]
) -> list[Artist]:
    """Return legend entries that explain colours, lines, markers and fills: one of each in use, in the order of their names."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    grey = "#555555"
    entries: list[Artist] = [
        Line2D([], [], color=PATH_COLOURS[path], lw=4, label=str(path)) for path in PathName if path in paths
    ]
    entries += [Line2D([], [], color=grey, ls=line_of(dcp), label=f"dcp {dcp}") for dcp in sorted(dcps)]
    entries += [
        Line2D([], [], color=grey, ls="", marker=KERNEL_MARKERS[kernel], label=str(kernel))
        for kernel in KernelName
        if kernel in kernels
    ]
    # Patches, since a dot would look like the marker of a kernel.
    fills = [(label, _inside(grey, LABEL_FILL[label])) for label in Label if label in labels]
    return [*entries, *(Patch(facecolor=face, edgecolor=grey, label=str(label)) for label, face in fills)]
