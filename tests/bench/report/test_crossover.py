"""Who wins where: the fastest path and kernel of one batch on one layout, and only where there was somebody to beat."""

from __future__ import annotations

from dataclasses import replace

from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.text import Text

from bench.recommend.decision_map import Row
from bench.record import CORRELATED_FLAG, Label, Measured, Trial
from bench.report import crossover
from bench.report.crossover import contests
from dcp_core.settings import KernelName, PathName
from tests.bench.made_up import summary, trials


def simulated(*batches: str) -> list[Trial]:
    return trials(*batches, dcps=(2,), exchanges=("loopback",), forms=("packed",))


def taking(one: Trial, step_us: float, spread: float = 0.02) -> Trial:
    assert isinstance(one.outcome, Measured)
    return replace(one, outcome=replace(one.outcome, step_us=summary(step_us, spread)))


def is_by(one: Trial, path: PathName, kernel: KernelName) -> bool:
    return (one.case.settings.path, one.case.settings.kernel) == (path, kernel)


def test_a_cell_names_the_fastest_and_who_came_next_at_how_many_times_its_time() -> None:
    times = {("fold", "fa3"): 100.0, ("split", "fa2"): 125.0}
    found = [
        taking(one, times.get((one.case.settings.path, one.case.settings.kernel), 900.0))
        for one in simulated("q2ks10k", "q2ks34k")
    ]
    figure = crossover.draw(found)
    assert isinstance(figure, Figure)
    (axes,) = figure.axes
    cells = [text.get_text() for text in axes.texts]
    assert cells == ["fold fa3\n100 µs\n1.25× split fa2"] * 2
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["8k", "32k"]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["1 × 2k"]
    assert axes.get_title(loc="left").endswith("dcp 2, simulated")


def test_a_winner_within_the_noise_is_hatched() -> None:
    for gap, hatched in ((0.001, True), (0.5, False)):
        found = [
            taking(one, 100.0 * (1 + gap * number), spread=0.05)
            for number, one in enumerate(simulated("q2ks10k", "q2ks34k"))
        ]
        figure = crossover.draw(found)
        assert isinstance(figure, Figure)
        cells = [patch for patch in figure.axes[0].patches if isinstance(patch, Rectangle)]
        assert any(patch.get_hatch() for patch in cells) is hatched


def test_a_winner_whose_samples_are_correlated_is_hatched_unless_they_lie_apart() -> None:
    for step_us, told_apart in ((97.0, False), (50.0, True)):
        two = [taking(one, time) for one, time in zip(simulated("q2ks10k"), (step_us, 100.0), strict=False)]
        assert all(cell.is_told_apart for cells in contests(two).values() for cell in cells.values())
        flagged = [replace(one, outcome=replace(one.outcome, flags=(CORRELATED_FLAG,))) for one in two]
        (cells,) = contests(flagged).values()
        assert [cell.is_told_apart for cell in cells.values()] == [told_apart]


def test_labels_layouts_and_batches_are_not_mixed() -> None:
    found = contests(trials("16q1s8k", "16q1s32k", dcps=(1, 2)))
    assert {(subject.layout.dcp, subject.label) for subject in found} == {
        (1, Label.MEASURED),
        (2, Label.MEASURED),
        (2, Label.SIMULATED),
    }
    for subject, cells in found.items():
        assert set(cells) == {(Row(1, 16), 8192), (Row(1, 16), 32768)}
        for contest in cells.values():
            (case,) = {(trial.case.workload, trial.case.layout) for trial, _ in contest.steps}
            assert case[1] == subject.layout
            medians = [outcome.step_us.median for _, outcome in contest.steps]
            assert medians == sorted(medians)


def test_what_nobody_else_ran_is_no_contest() -> None:
    alone = [one for one in simulated("q2ks10k", "q2ks34k") if is_by(one, PathName.FOLD, KernelName.FA3)]
    assert contests(alone) == {}
    reason = crossover.draw(alone)
    assert isinstance(reason, str)
    assert "measured with two paths or two kernels" in reason


def test_rows_beyond_the_room_are_counted() -> None:
    figure = crossover.draw(simulated(*(f"{count}q512s{length}k" for count in range(1, 15) for length in (8, 32))))
    assert isinstance(figure, Figure)
    assert len(figure.axes[0].get_yticklabels()) == crossover.MAX_ROWS
    said = " ".join(text.get_text() for text in figure.findobj(Text) if isinstance(text, Text)).replace("\n", " ")
    assert "2 more rows were measured" in said


def test_contexts_beyond_the_room_are_counted_and_the_picture_is_no_wider_than_a_page() -> None:
    lengths = [2**power for power in range(crossover.MAX_CONTEXTS + 1)]
    figure = crossover.draw(
        trials(*(f"{count}q512s{length}k" for count in (1, 4) for length in lengths), dcps=(1, 2), forms=("packed",))
    )
    assert isinstance(figure, Figure)
    assert len(figure.axes) > 1
    assert figure.bbox.width <= 2000
    assert {len(axes.get_xticklabels()) for axes in figure.axes} == {crossover.MAX_CONTEXTS}
    said = " ".join(text.get_text() for text in figure.findobj(Text) if isinstance(text, Text)).replace("\n", " ")
    assert f"{len(figure.axes)} more contexts were measured" in said
