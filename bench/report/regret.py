"""The picture of what a search costs and misses: regret against its share of an exhaustive one, replayed on stored tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any

from bench.noise import NOISES
from bench.record import Label, Trial
from bench.report import style
from bench.report.table import counted
from bench.stats import mean_interval
from bench.tune.batch import Batch
from bench.tune.paper import Table, table_of, told_apart
from bench.tune.replay import STRATEGIES, Score, as_searched, replay

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_BATCHES = 20
"""Replayed, those with most candidates: each takes a search some milliseconds for each kind of noise."""
LEAST_REGRET = 1e-4
"""Below which the axis is linear, down to none."""
COLOURS = {"races": "#23155e", "each alone": "#bc0d32", "one look each": "#347672", "a random third": "#b9790a"}
MARKERS = {"white": "p", "autocorrelated": "<", "drifting": ">", "two clocks": "d", "spiky": "X"}
"""None of them a kernel's."""
SEARCHED = "as searched"
"""In place of a noise: real searches, on the device that the table was measured on."""
_STAR = "*"
"""Of what was measured: larger than the others, edged in white and drawn last, since it lies among those of its strategy."""
_STAR_SIZE = 11
_ASIDE = 0.012
"""Between markers of one strategy, so that they do not hide one another."""
_ROOM = 3.0
"""How many times the highest mark the top of a panel is: room for names."""
_CHARACTER, _LINE = 0.017, 0.065
"""Width and height of a name's, of a panel's."""
_PALE = style.LABEL_FILL[Label.MODELLED]


@dataclass(frozen=True, slots=True)
class Tried:
    """How a strategy fared under one kind of noise, or races SEARCHED for real, over some batches."""

    strategy: str
    noise: str
    scores: tuple[Score, ...]

    @property
    def regret(self) -> float:
        """The mean, relative to the best of each batch."""
        return fmean(score.regret for score in self.scores)

    @property
    def share(self) -> float:
        """The mean time, of an exhaustive search's."""
        return fmean(score.seconds for score in self.scores)

    @property
    def worst(self) -> float:
        """The largest."""
        return max(score.regret for score in self.scores)

    @property
    def regret_interval(self) -> tuple[float, float]:
        """The 95 % interval of that mean."""
        low, high = mean_interval([score.regret for score in self.scores])
        return min(low, self.regret), max(high, self.regret)


def tried(table: Table, batches: Sequence[Batch], seeds: Sequence[int] = (0,)) -> list[Tried]:
    """Replay every strategy under every kind of noise."""
    return [
        Tried(name, noise, tuple(replay(table, batches, strategy, make, seeds)))
        for name, strategy in STRATEGIES.items()
        for noise, make in NOISES.items()
    ]


def draw(trials: Sequence[Trial]) -> Figure | str:
    """Draw regret, of all batches and of the worst, against the share of an exhaustive search's time.

    Returns:
        The figure, or why there is none.
    """
    table = table_of(trials)
    batches = told_apart(table, trials[-1].environment) if table else []
    if not batches:
        return "needs a batch of which the engine's default and other settings were each measured alone (--search exhaustive)"
    chosen = sorted(batches, key=lambda batch: -len(batch.candidates))[:MAX_BATCHES]
    searched = as_searched(table, batches, trials)
    found = [*tried(table, chosen), *([Tried("races", SEARCHED, tuple(searched))] if searched else [])]
    with style.styled():
        figure, axes = style.panels(2, width=4.6, height=3.4)
        for place, value in zip(axes, (_mean, _worst), strict=True):
            _draw_panel(place, {one: _mark(one, value(one)) for one in found})
        for place, name in zip(axes, ("mean of all batches: modelled", "the worst batch: modelled"), strict=True):
            place.set_title(name, loc="left")
        axes[0].set_ylabel("regret: slower than the best, %")
        style.title(figure, "What a search costs, and what it misses")
        cases = {case for batch in chosen for case in batch.candidates}
        sources = [trial for trial in trials if trial.case in cases]
        notes = _notes(chosen, found, hidden=len(batches) - len(chosen), searched=len(searched))
        style.finish(figure, _keys(searched=bool(searched)), sources, *notes)
    return figure


def _mean(one: Tried) -> tuple[float, float, float]:
    low, high = one.regret_interval
    return low, one.regret, high


def _worst(one: Tried) -> tuple[float, float, float]:
    return (one.worst,) * 3


def _mark(one: Tried, y: tuple[float, float, float]) -> style.Mark:
    x = one.share
    if one.noise == SEARCHED:
        return style.Mark((x, x, x), y, COLOURS[one.strategy], _STAR)
    x += _ASIDE * (list(NOISES).index(one.noise) - len(NOISES) // 2)
    return style.Mark((x, x, x), y, COLOURS[one.strategy], MARKERS[one.noise], _PALE)


def _draw_panel(axes: Axes, marks: Mapping[Tried, style.Mark]) -> None:
    style.scatter(axes, (mark for mark in marks.values() if mark.marker != _STAR), capsize=2, elinewidth=0.9, ms=6)
    stars = [mark for mark in marks.values() if mark.marker == _STAR]
    style.scatter(axes, stars, capsize=2, elinewidth=0.9, ms=_STAR_SIZE, mec="white", mew=0.9)
    shares = [mark.x[1] for mark in marks.values()]
    axes.set_xlim(min(0.0, min(shares) - 2 * _ASIDE), max(shares) + 8 * _ASIDE)
    axes.set_xlabel("time, of an exhaustive search's")
    least, most = min(mark.y[0] for mark in marks.values()), max(mark.y[2] for mark in marks.values())
    bottom = least / 2 if least > 2 * LEAST_REGRET else -LEAST_REGRET / 3
    top = _ROOM * max(most, LEAST_REGRET)
    axes.set_yscale("symlog", linthresh=LEAST_REGRET)
    axes.set_ylim(bottom, top)
    _percent(axes, subs=(1, 2, 5) if top < 1000 * max(bottom, LEAST_REGRET) else (1,))
    _write_names(axes, marks)


def _write_names(axes: Axes, marks: Mapping[Tried, style.Mark]) -> None:
    """Write each strategy's name above its marks, higher where it would run into another's."""
    to_panel = axes.transScale + axes.transLimits
    places = {}
    for strategy in {one.strategy: None for one in marks}:
        own = [mark for one, mark in marks.items() if one.strategy == strategy]
        x, y = to_panel.transform((fmean(mark.x[1] for mark in own), max(mark.y[2] for mark in own)))
        half = len(strategy) * _CHARACTER / 2
        places[strategy] = (min(max(x, half), 1 - half), y + 0.7 * _LINE)
    written: list[tuple[float, float, float]] = []
    for strategy, (x, y) in sorted(places.items(), key=lambda place: place[1][1]):
        half, height = len(strategy) * _CHARACTER / 2, y
        for other_x, other_y, other_half in written:
            if abs(x - other_x) < half + other_half and height < other_y + _LINE:
                height = other_y + _LINE
        written.append((x, height, half))
        look: dict[str, Any] = {"transform": axes.transAxes, "ha": "center", "fontsize": 8, "color": COLOURS[strategy]}
        axes.text(x, height, strategy, **look)


def _percent(axes: Axes, subs: Sequence[float]) -> None:
    from matplotlib.ticker import FuncFormatter, NullLocator, PercentFormatter, SymmetricalLogLocator

    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.yaxis.set_major_locator(SymmetricalLogLocator(base=10, linthresh=LEAST_REGRET, subs=subs))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.3g}%"))


def _keys(*, searched: bool) -> list[object]:
    from matplotlib.lines import Line2D

    colours = [Line2D([], [], color=COLOURS[name], lw=4, label=name) for name in STRATEGIES]
    grey = "#555555"
    pale: dict[str, Any] = {"color": grey, "ls": "", "mfc": style.tint(grey, _PALE)}
    noises = [Line2D([], [], marker=one, label=name, **pale) for name, one in MARKERS.items()]
    star = [Line2D([], [], color=grey, ls="", marker=_STAR, label=SEARCHED)] if searched else []
    return [*colours, *noises, *star]


def _notes(batches: Sequence[Batch], found: Sequence[Tried], *, hidden: int, searched: int) -> list[str]:
    sizes = [len(batch.candidates) for batch in batches]
    left_out = f", those with most candidates of {len(batches) + hidden}" if hidden else ""
    between = counted(max(sizes), "candidate")
    if min(sizes) < max(sizes):
        between = f"{min(sizes)} to {between}"
    how = (
        f"Modelled: {counted(len(batches), 'batch', 'batches')}{left_out}, {between} each, searched once under each "
        "kind of noise on a device on paper, which takes the medians measured here with their scatter."
    )
    strategies = (
        "races: as dcpbench tune searches, confirmation included; each alone: every candidate measured, the best median; one "
        "look each: a sample of every one; a random third: of the candidates, with the default."
    )
    notes = [how, f"{strategies} Bars: 95 % interval of the mean over batches; the worst is one of them, and has none."]
    notes += _nothing_saved(found)
    if searched:
        notes.append(
            f"Full star, measured: what dcpbench tune chose for {searched} of the batches, and how long it took."
        )
    return notes


def _nothing_saved(found: Sequence[Tried]) -> list[str]:
    """Say so if races took as long as an exhaustive search under every noise."""
    shares = [one.share for one in found if one.strategy == "races" and one.noise != SEARCHED]
    if min(shares) < 1:
        return []
    least, most = (f"{100 * share:.0f}" for share in (min(shares), max(shares)))
    percent = least if least == most else f"{least} to {most}"
    note = f"Among so few candidates a search saves nothing: races take {percent} % of an exhaustive search's time."
    return [f"{note} Markers of one colour stand a little apart, so that they can be seen."]
