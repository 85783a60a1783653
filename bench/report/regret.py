"""The picture of what a search costs and misses: regret against its share of an exhaustive one, replayed on stored tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING

from bench.noise import NOISES
from bench.record import Trial
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
COLOURS = {"races": "#332288", "each alone": "#cc6677", "one look each": "#44aa99", "a random third": "#ddaa33"}
MARKERS = {"white": "o", "autocorrelated": "s", "drifting": "^", "two clocks": "D", "spiky": "P"}
SEARCHED = "as searched"
"""In place of a noise: real searches, on the device that the table was measured on."""
_STAR = "*"
_ASIDE = 0.012
"""Between markers of one strategy, so that they do not hide one another."""


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
            style.scatter(place, (_mark(one, value(one)) for one in found), capsize=2, elinewidth=0.9)
        for place, name in zip(axes, ("mean of all batches: modelled", "the worst batch: modelled"), strict=True):
            _finish_panel(place, name)
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
    return style.Mark((x, x, x), y, COLOURS[one.strategy], MARKERS[one.noise])


def _finish_panel(axes: Axes, name: str) -> None:
    axes.set_yscale("symlog", linthresh=LEAST_REGRET)
    axes.set_ylim(bottom=-LEAST_REGRET / 3)
    _percent(axes)
    axes.set_xlim(left=0)
    axes.set_xlabel("time, of an exhaustive search's")
    axes.set_title(name, loc="left")


def _percent(axes: Axes) -> None:
    from matplotlib.ticker import FuncFormatter, NullLocator, PercentFormatter

    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.3g}%"))


def _keys(*, searched: bool) -> list[object]:
    from matplotlib.lines import Line2D

    colours = [Line2D([], [], color=COLOURS[name], lw=4, label=name) for name in STRATEGIES]
    markers = {**MARKERS, **({SEARCHED: _STAR} if searched else {})}.items()
    return [*colours, *(Line2D([], [], color="#555555", ls="", marker=one, label=name) for name, one in markers)]


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
    notes = [how, f"{strategies} Bars: 95 % interval of the mean over batches."]
    notes += _nothing_saved(found)
    if searched:
        notes.append(f"Star, measured: what dcpbench tune chose for {searched} of the batches, and how long it took.")
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
