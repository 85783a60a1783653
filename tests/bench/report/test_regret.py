"""What a search misses against what it costs: replayed on what was measured, the same each time, and said to be a replay."""

from __future__ import annotations

from itertools import combinations

import pytest
from matplotlib.collections import Collection
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text

from bench.noise import NOISES
from bench.record import Label, Trial
from bench.report import regret, style
from bench.report.dark import GROUND, dark, darken
from bench.report.regret import Tried, tried
from bench.tune.loop import search
from bench.tune.paper import Paper, table_of, told_apart
from bench.tune.replay import STRATEGIES, Score, as_searched
from tests.bench.made_up import H200, trials

FOUND = trials("16q1s8k", "16q1s32k", "64q1s8k", exchanges=("ag_rs", "a2a"))


def test_every_strategy_meets_every_noise_and_none_chooses_better_than_the_best() -> None:
    table = table_of(FOUND)
    found = tried(table, told_apart(table, H200)[:2])
    assert [(one.strategy, one.noise) for one in found] == [(name, noise) for name in STRATEGIES for noise in NOISES]
    for one in found:
        low, high = one.regret_interval
        assert 0 <= low <= one.regret <= high <= max(one.worst, high)
        assert one.regret <= one.worst
    assert {round(score.seconds, 9) for one in found if one.strategy == "each alone" for score in one.scores} == {1.0}
    assert found == tried(table, told_apart(table, H200)[:2])


def test_the_picture_says_how_many_batches_were_replayed_and_that_it_is_no_measurement() -> None:
    figure = regret.draw(FOUND)
    assert isinstance(figure, Figure)
    batches = len(told_apart(table_of(FOUND), H200))
    assert batches > regret.MAX_BATCHES
    said = " ".join(text.get_text() for text in figure.findobj(Text) if isinstance(text, Text)).replace("\n", " ")
    assert f"Modelled: {regret.MAX_BATCHES} batches, those with most candidates of {batches}" in said
    assert all("modelled" in axes.get_title(loc="left") for axes in figure.axes)
    assert {text.get_text() for text in figure.legends[0].get_texts()} == STRATEGIES.keys() | NOISES.keys()


@pytest.mark.parametrize(
    ("shares", "told"),
    [
        ((1.031, 1.081), "races take 103 to 108 % of an exhaustive search's time."),
        ((1.061, 1.062), "races take 106 % of an exhaustive search's time."),
        ((0.981, 1.081), None),
        ((0.101, 0.171), None),
    ],
)
def test_where_races_save_nothing_the_caption_says_so(
    shares: tuple[float, float], told: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def one(strategy: str, noise: str, share: float) -> Tried:
        return Tried(
            strategy, noise, (Score(regret=0.0, over_default=-0.1, false_win=False, cases=1.0, seconds=share),)
        )

    races = [one("races", noise, share) for noise, share in zip(("white", "spiky"), shares, strict=True)]
    others = [one("each alone", "white", 1.0), one("one look each", "white", 0.6)]
    monkeypatch.setattr(regret, "tried", lambda *_: [*races, *others])
    figure = regret.draw(FOUND)
    assert isinstance(figure, Figure)
    said = " ".join(text.get_text() for text in figure.texts).replace("\n", " ")
    assert ("saves nothing" in said) is (told is not None)
    assert told is None or f"Among so few candidates a search saves nothing: {told}" in said


def test_what_real_searches_chose_and_took_is_a_star_of_its_own() -> None:
    table = table_of(FOUND)
    batch = next(one for one in told_apart(table, H200) if len(one.candidates) > 3)
    paper = Paper(table, NOISES["white"](), seed=1)
    *_, (_, raced) = search([batch], (), paper, now=lambda: paper.seconds)
    assert as_searched(table, [batch], FOUND) == []
    (score,) = as_searched(table, [batch], [*FOUND, *raced])
    assert score.regret == pytest.approx(0, abs=0.03)
    assert score.seconds == pytest.approx(paper.seconds / sum(table[case].trial_s for case in batch.candidates))
    assert as_searched(table, [batch], raced[:3]) == [], "an unfinished search has chosen nothing"
    figure = regret.draw([*FOUND, *raced])
    assert isinstance(figure, Figure)
    assert regret.SEARCHED in {text.get_text() for text in figure.legends[0].get_texts()}


def test_every_strategy_and_noise_has_a_mark_of_its_own() -> None:
    assert regret.COLOURS.keys() == STRATEGIES.keys()
    assert regret.MARKERS.keys() == NOISES.keys()
    assert len(set(regret.MARKERS.values())) == len(NOISES)
    assert not {*regret.MARKERS.values(), "*"} & set(style.KERNEL_MARKERS.values()), "none is a kernel's"


@pytest.mark.parametrize("scale", [0.0, 1e-5, 0.001, 0.05, 3.0])
@pytest.mark.parametrize("shares", [(0.01, 0.4, 0.8, 1.0), (1.04, 0.35, 1.02, 1.03)], ids=["apart", "together"])
def test_every_mark_bar_and_name_lies_inside_its_panel_and_no_name_on_another(
    shares: tuple[float, ...], scale: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for place, (strategy, share) in enumerate(zip(STRATEGIES, shares, strict=True)):
        for other, noise in enumerate(NOISES):
            missed = (scale * (1 + place), scale * (2 + other))
            scores = [Score(regret=one, over_default=-0.1, false_win=False, cases=1.0, seconds=share) for one in missed]
            found.append(Tried(strategy, noise, tuple(scores)))
    monkeypatch.setattr(regret, "tried", lambda *_: found)
    figure = regret.draw(FOUND)
    assert isinstance(figure, Figure)
    figure.draw_without_rendering()
    for axes in figure.axes:
        panel = axes.get_window_extent()
        ends = [point for line in axes.lines for point in axes.transData.transform(line.get_xydata())]
        assert len(ends) >= len(found)
        assert all(panel.x0 + 2 < x < panel.x1 - 2 and panel.y0 + 2 < y < panel.y1 - 2 for x, y in ends)
        names = {text.get_text(): text.get_window_extent() for text in axes.texts}
        assert names.keys() == STRATEGIES.keys()
        assert all(panel.y1 + 8 > box.y1 and panel.x0 <= box.x0 and box.x1 <= panel.x1 for box in names.values())
        assert not any(one.overlaps(other) for one, other in combinations(names.values(), 2))
        shown = [tick for tick in axes.get_yticks() if axes.get_ylim()[0] <= tick <= axes.get_ylim()[1]]
        assert len(shown) >= 2, "a reader needs numbers"


@pytest.mark.parametrize("is_dark", [False, True], ids=["light", "dark"])
def test_pale_and_full_are_two_greys_of_what_is_drawn_both_ways(*, is_dark: bool) -> None:
    full = regret.COLOURS["races"]
    pale = style.tint(full, style.LABEL_FILL[Label.MODELLED])
    rgbs = [dark(colour)[:3] if is_dark else to_rgb(colour) for colour in (full, pale)]
    one, other = (255 * (0.299 * red + 0.587 * green + 0.114 * blue) for red, green, blue in rgbs)
    assert abs(one - other) > 15


def test_what_is_modelled_is_pale_and_only_what_was_measured_full() -> None:
    table = table_of(FOUND)
    batch = next(one for one in told_apart(table, H200) if len(one.candidates) > 3)
    paper = Paper(table, NOISES["white"](), seed=1)
    *_, (_, raced) = search([batch], (), paper, now=lambda: paper.seconds)
    figure = regret.draw([*FOUND, *raced])
    assert isinstance(figure, Figure)
    for axes in figure.axes:
        marks = [line for line in axes.lines if line.get_marker() in {*regret.MARKERS.values(), "*"}]
        assert len(marks) > len(NOISES)
        for mark in marks:
            assert (to_rgb(mark.get_markerfacecolor()) == to_rgb(mark.get_color())) == (mark.get_marker() == "*")


@pytest.mark.parametrize("is_dark", [False, True], ids=["light", "dark"])
def test_nothing_is_drawn_over_the_star_which_stands_off_from_what_it_lies_on(*, is_dark: bool) -> None:
    table = table_of(FOUND)
    batch = next(one for one in told_apart(table, H200) if len(one.candidates) > 3)
    paper = Paper(table, NOISES["white"](), seed=1)
    *_, (_, raced) = search([batch], (), paper, now=lambda: paper.seconds)
    figure = regret.draw([*FOUND, *raced])
    assert isinstance(figure, Figure)
    if is_dark:
        darken(figure)
    figure.draw_without_rendering()
    for axes in figure.axes:
        parts = sorted(axes.get_children(), key=lambda part: part.get_zorder())
        (star,) = (line for line in axes.lines if line.get_marker() == "*")
        later = parts[parts.index(star) + 1 :]
        box = star.get_window_extent()
        words = [part for part in later if isinstance(part, Text) and part.get_text()]
        assert not any(part.get_window_extent().overlaps(box) for part in words)
        assert not [part for part in later if isinstance(part, (Line2D, Collection))]
        marks = [line for line in axes.lines if line.get_marker() in regret.MARKERS.values()]
        assert star.get_markersize() > 1.5 * max(mark.get_markersize() for mark in marks)
        edge, inside = star.get_markeredgecolor(), star.get_markerfacecolor()
        assert to_rgb(edge) == pytest.approx(GROUND if is_dark else (1, 1, 1))
        assert to_rgb(edge) != to_rgb(inside)


@pytest.mark.parametrize("found", [[], trials("q512s8k", kernels=("fa3",), dcps=(2,))], ids=["none", "no default"])
def test_without_an_exhaustive_table_the_reason_says_what_to_measure(found: list[Trial]) -> None:
    reason = regret.draw(found)
    assert isinstance(reason, str)
    assert "--search exhaustive" in reason
