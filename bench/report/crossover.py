"""The picture of who wins where: new tokens by context, in each cell the fastest path and kernel, a panel per dcp."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from bench.lone import Lone
from bench.recommend.decision_map import Row, rounded
from bench.record import Label, Measured, Trial
from bench.report import style
from bench.report.cells import Size, most, panels
from bench.report.table import kernels_of, path_of
from dcp_core.layout import DcpLayout
from dcp_core.shapes import ModelShape, Workload

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_PANELS = 6
MAX_ROWS = 12
MAX_CONTEXTS = 10
LEAST_SHARE = 0.25
"""Of the cells of the largest panel; what has fewer says little beside it and is left out."""
_CELL_INCHES, _AROUND_INCHES = Size(1.12, 0.52), Size(1.0, 1.2)
_Step = tuple[Trial, Measured]


class Subject(NamedTuple):
    """What a panel is of."""

    shape: ModelShape
    layout: DcpLayout
    label: Label


@dataclass(frozen=True, slots=True)
class Contest:
    """One batch: of each path and kernel that ran it the fastest settings, the winner first."""

    steps: tuple[_Step, ...]

    @property
    def is_told_apart(self) -> bool:
        """Whether the winner is told to be faster than the runner-up, each having been measured by itself."""
        first, second = (Lone.of_step(trial) for trial, _ in self.steps[:2])
        return first.is_faster(second)

    @property
    def lead(self) -> float:
        """The runner-up's time over the winner's."""
        return self.steps[1][1].step_us.median / self.steps[0][1].step_us.median


Cells = Mapping[tuple[Row, int], Contest]


def contests(trials: Iterable[Trial]) -> dict[Subject, Cells]:
    """Return of each model, layout and label the batches of like requests that two or more ran, by rows and context.

    A contender is a path with its kernels; the fastest settings stand for it, whatever else they are. Where batches that
    differ by a few tokens share a cell, that with most contenders is in it.
    """
    best: dict[tuple[Subject, Workload], dict[tuple[str, str], _Step]] = defaultdict(dict)
    for trial in trials:
        case, outcome = trial.case, trial.outcome
        if not isinstance(outcome, Measured) or case.synthetic or len(set(case.workload.requests)) > 1:
            continue
        steps = best[Subject(case.shape, case.layout, outcome.label), case.workload]
        name = (path_of(case.settings), kernels_of(case.settings))
        if name not in steps or outcome.step_us.median < steps[name][1].step_us.median:
            steps[name] = (trial, outcome)
    found: dict[Subject, dict[tuple[Row, int], Contest]] = defaultdict(dict)
    for (subject, workload), steps in best.items():
        request = workload.requests[0]
        place = Row(request.new, len(workload)), rounded(request.context)
        if len(steps) > max(1, len(found[subject][place].steps) if place in found[subject] else 0):
            found[subject][place] = Contest(tuple(sorted(steps.values(), key=lambda step: step[1].step_us.median)))
    return {subject: cells for subject, cells in found.items() if cells}


def draw(trials: Sequence[Trial]) -> Figure | str:
    """Draw the fastest path and kernel over new tokens and context, a panel per model, tp, dcp and label.

    Returns:
        The figure, or why there is none.
    """
    found = {subject: cells for subject, cells in contests(trials).items() if len(cells) > 1}
    if not found:
        return "needs two batches or more, each of like requests, each measured with two paths or two kernels on one layout"
    largest = max(map(len, found.values()))
    large = [subject for subject in found if len(found[subject]) >= LEAST_SHARE * largest]
    fullest = sorted(large, key=lambda subject: -len(found[subject]))[:MAX_PANELS]
    whole = {subject: found[subject] for subject in sorted(fullest, key=_order)}
    shown = {subject: _with_room(cells) for subject, cells in whole.items()}
    tables = [Size(len(_contexts(cells)), len(_rows(cells))) for cells in shown.values()]
    with style.styled():
        figure, axes = panels(tables, cell=_CELL_INCHES, around=_AROUND_INCHES)
        for place, (subject, cells) in zip(axes, shown.items(), strict=True):
            _draw_panel(place, subject, cells)
        style.title(figure, "Who wins where: the fastest path and kernel of a step")
        kept = [contest for cells in shown.values() for contest in cells.values()]
        paths = {contest.steps[0][0].case.settings.path for contest in kept}
        keys = style.cell_keys(paths, told_apart=all(contest.is_told_apart for contest in kept))
        sources = [trial for contest in kept for trial, _ in contest.steps]
        style.finish(figure, keys, sources, *_notes(shown, whole, hidden=len(found) - len(shown)))
    return figure


def _order(subject: Subject) -> tuple[object, ...]:
    return subject.shape.name, subject.layout.tp, subject.layout.dcp, subject.layout.interleave, subject.label


def _rows(cells: Cells) -> list[Row]:
    return sorted({row for row, _ in cells})


def _contexts(cells: Cells) -> list[int]:
    return sorted({context for _, context in cells})


def _with_room(cells: Cells) -> Cells:
    """Return the cells that a panel has room for."""
    rows = most((row for row, _ in cells), MAX_ROWS)
    contexts = most((context for row, context in cells if row in rows), MAX_CONTEXTS)
    return {place: contest for place, contest in cells.items() if place[0] in rows and place[1] in contexts}


def _draw_panel(axes: Axes, subject: Subject, cells: Cells) -> None:
    rows, contexts = _rows(cells), _contexts(cells)
    for (row, context), contest in cells.items():
        place = contexts.index(context), rows.index(row)
        path = contest.steps[0][0].case.settings.path
        style.cell(axes, place, path, _words(contest), told_apart=contest.is_told_apart)
    axes.set_xticks(range(len(contexts)), [style.tokens(context) if context else "0" for context in contexts])
    axes.set_yticks(range(len(rows)), [f"{row.requests} × {style.tokens(row.new)}" for row in rows])
    layout = subject.layout
    interleave = f", interleave {layout.interleave}" if layout.interleave > 1 else ""
    name = f"{subject.shape.name}, tp {layout.tp}\ndcp {layout.dcp}{interleave}, {subject.label}"
    axes.set_title(name, loc="left")
    axes.set_xlabel("context per request, tokens")
    axes.set_ylabel("requests × new tokens")


def _words(contest: Contest) -> str:
    """Say who won, and who came next at how many times its time."""
    (first, outcome), (second, _) = contest.steps[:2]
    return f"{_name(first)}\n{style.duration(outcome.step_us.median)}\n{contest.lead:.2f}× {_name(second)}"


def _name(trial: Trial) -> str:
    settings = trial.case.settings
    return f"{path_of(settings)} {kernels_of(settings)}"


def _notes(shown: Mapping[Subject, Cells], whole: Mapping[Subject, Cells], *, hidden: int) -> list[str]:
    cell = "In a cell: the fastest path and kernel of those measured on the same batch, with its median of one layer's step;"
    hatched = "Hatched: the two differ by no more than their samples, or the clock, did."
    notes = [f"{cell} below, who came next and at how many times that. {hatched}"]
    if any(subject.label is Label.SIMULATED for subject in shown):
        notes.append("Simulated: the fullest rank by itself on one device, without the exchange's time.")
    if rows := sum(len(_rows(whole[subject])) - len(_rows(cells)) for subject, cells in shown.items()):
        notes.append(style.not_shown(rows, "row", "rows"))
    if contexts := sum(len(_contexts(whole[subject])) - len(_contexts(cells)) for subject, cells in shown.items()):
        notes.append(style.not_shown(contexts, "context", "contexts"))
    if hidden:
        notes.append(
            f"{hidden} more models, layouts or labels were measured, most of them on fewer batches, and are not shown."
        )
    return notes
