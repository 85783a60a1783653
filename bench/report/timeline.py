"""The picture of what runs when in a step of ``split``: the exchange above, what computes below.

As CUPTI saw it where the trial tells, else put together from stages timed alone.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from bench.record import Measured, Trial
from bench.report import style
from bench.report.breakdown import STAGE_COLOURS, bar_name, colour_of, draw_step, timed_stages
from bench.times import Piece
from dcp_core.settings import PathName

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_PANELS = 4
_LANE = 0.36
"""Height of a lane; a step has two."""
_SMALL, _CHARACTERS, _FEWEST = 7, 65, 7
"""Size of names in a lane, how many characters of it a panel is wide, and below how many none is shown."""
_SEEN = 0.0005
"""The least share of a step that a traced row's end before its diamond is told from."""
TRACED = {True: ("exchange", "#6aaee6"), False: ("compute", "#c8c8c8")}
"""What a kernel or copy of a traced step is called and its colour, by whether it communicates: they are too many for one each."""
HOW = {
    True: "Traced: each kernel and copy as CUPTI saw it on the rank with most keys, in a repetition of median length.",
    False: "Not traced: put together from stages each timed alone, one after another; two that run at once, timed together, at "
    "the lengths they have alone.",
}
"""How a step was drawn, by whether its trial has a timeline."""
_Step = tuple[Trial, Measured]


def schedule(outcome: Measured, alone: Mapping[str, float]) -> list[Piece]:
    """Lay a step's stages one after another, in the times that each takes by itself.

    Two that run at once, as ``gather beside new``, were timed together: both begin with their stage, and last as long as each
    did alone, or to the end of both. Where that is not known they stay one, on the links.

    Args:
        alone: µs of each stage by its whole name, of the same step with nothing at once.
    """
    pieces, now = [], 0.0
    for stage in timed_stages(outcome):
        end = now + stage.device_us.median
        part, colon, kind = stage.name.rpartition(": ")
        first, _, second = kind.partition(" beside ")
        lengths = [alone.get(f"{part}{colon}{name}") for name in (first, second)]
        if second and lengths[0] is not None and lengths[1] is not None:
            pieces.append(Piece(first, now, min(end, now + lengths[0]), communicates=True))
            pieces.append(Piece(second, now, min(end, now + lengths[1]), communicates=False))
        else:
            pieces.append(Piece(kind, now, end, stage.communicates))
        now = end
    return pieces


def draw(trials: Sequence[Trial]) -> Figure | str:
    """Draw a panel per batch that ``split`` served between real ranks, a step per exchange, with and without overlap.

    Beside them the same step simulated, which exchanges nothing, and the dcp 1 baseline.

    Returns:
        The figure, or why there is none.
    """
    panels = _panels(trials)
    if not panels:
        return "needs a step of path split over some context, measured between real ranks"
    shown = dict(sorted(panels.items(), key=_interest, reverse=True)[:MAX_PANELS])
    most = max(map(len, shown.values()))
    with style.styled():
        figure, axes = style.panels(len(shown), width=6.8, height=1.0 + 0.46 * most, columns=2)
        for place, (name, steps) in zip(axes, shown.items(), strict=True):
            _draw_panel(place, name, steps, trials)
        kept = [step for steps in shown.values() for step in steps]
        has_baseline = any(trial.case.settings.path is PathName.TP for trial, _ in kept)
        style.title(figure, f"What runs when in a step of split{', beside tp at dcp 1' if has_baseline else ''}")
        ways = {bool(outcome.timeline) for _, outcome in kept}
        notes = [HOW[way] for way in sorted(ways, reverse=True)]
        notes.append(
            "Upper lane: the exchange. Diamond: the whole step, timed in one go, without CUPTI, with its 95 % interval."
        )
        if (share := max(map(_missing, kept))) >= _SEEN:
            notes.append(_early(share))
        if len(panels) > len(shown):
            notes.append(style.not_shown(len(panels) - len(shown)))
        style.finish(figure, _key(kept, trials), [trial for trial, _ in kept], *notes)
    return figure


def _panels(trials: Iterable[Trial]) -> dict[str, list[_Step]]:
    """Keep the fastest step of each path, dcp, label, exchange and overlap, of batches that split served between ranks."""
    best: dict[str, dict[tuple[object, ...], _Step]] = defaultdict(dict)
    for trial in trials:
        case, outcome = trial.case, trial.outcome
        settings = case.settings
        if not isinstance(outcome, Measured) or not outcome.stages or case.workload.is_decode:
            continue
        if settings.path not in (PathName.TP, PathName.SPLIT):
            continue
        steps = best[f"{case.shape.name}, tp {case.layout.tp}: {case.workload}"]
        kind = (settings.path, case.layout.dcp, str(outcome.label), str(settings.exchange), settings.overlap)
        if kind not in steps or outcome.step_us.median < steps[kind][1].step_us.median:
            steps[kind] = (trial, outcome)
    panels = {name: sorted(steps.values(), key=_place) for name, steps in best.items()}
    return {name: steps for name, steps in panels.items() if any(map(_exchanges, steps))}


def _exchanges(step: _Step) -> bool:
    return step[1].exchange_timed and any(stage.communicates for stage in step[1].stages)


def _place(step: _Step) -> tuple[object, ...]:
    """Order steps of a panel: the baseline, simulations, then exchange by exchange."""
    case, outcome = step[0].case, step[1]
    return (case.layout.dcp, outcome.exchange_timed, case.settings.exchange, case.settings.overlap)


def _interest(panel: tuple[str, Sequence[_Step]]) -> tuple[object, ...]:
    """Rank panels: those with overlap first, then those of the longest steps."""
    _, steps = panel
    return any(trial.case.settings.overlap for trial, _ in steps), max(outcome.step_us.median for _, outcome in steps)


def _alone(trial: Trial, trials: Iterable[Trial]) -> dict[str, float]:
    """Return each stage's time of the same step without overlap; empty if that was not measured."""
    case = trial.case
    if not case.settings.overlap:
        return {}
    twin = replace(case, settings=replace(case.settings, overlap=False)).key
    found = [
        one.outcome
        for one in trials
        if one.case.key == twin and one.ranks == trial.ranks and one.environment.hard == trial.environment.hard
    ]
    return {stage.name: stage.device_us.median for one in found if isinstance(one, Measured) for stage in one.stages}


def _draw_panel(axes: Axes, name: str, steps: Sequence[_Step], trials: Sequence[Trial]) -> None:
    drawn = [_pieces(step, trials) for step in steps]
    longest = max(outcome.step_us.high for _, outcome in steps)
    longest = max(longest, *(piece.end_us for pieces in drawn for piece in pieces))
    for row, ((_, outcome), pieces) in enumerate(zip(steps, drawn, strict=True)):
        for piece in pieces:
            _draw_piece(axes, row, piece, traced=bool(outcome.timeline), longest=longest)
        draw_step(axes, row, outcome.step_us)
        end = max(outcome.step_us.high, *(piece.end_us for piece in pieces))
        axes.text(end + longest * 0.02, row, style.duration(outcome.step_us.median), va="center", fontsize=8)
    axes.set_yticks(range(len(steps)), [_name(trial, outcome) for trial, outcome in steps])
    axes.set_ylim(len(steps) - 0.4, -0.6)
    axes.set_xlim(0, longest * 1.16)
    axes.grid(visible=False, axis="y")
    axes.locator_params(axis="x", nbins=6)
    style.microseconds(axes.xaxis)
    axes.set_xlabel("device time of one layer's step")
    axes.set_title(name, loc="left")


def _draw_piece(axes: Axes, row: int, piece: Piece, *, traced: bool, longest: float) -> None:
    middle, length = row + (-_LANE if piece.communicates else _LANE) / 2, piece.end_us - piece.start_us
    axes.barh(
        middle,
        length,
        left=piece.start_us,
        height=_LANE,
        color=TRACED[piece.communicates][1] if traced else colour_of(piece.name),
        hatch="////" if piece.communicates else None,
        edgecolor="white",
        linewidth=0.4,
    )
    fits = int(length / longest * _CHARACTERS)
    if traced and fits >= _FEWEST:
        at = (piece.start_us + length / 2, middle)
        axes.text(*at, style.name(piece.name, fits), ha="center", va="center", fontsize=_SMALL, color="#111111")


def _missing(step: _Step) -> float:
    """Return by what share of the step a traced row ends before its diamond; 0 for one that does not."""
    _, outcome = step
    end_us = max((piece.end_us for piece in outcome.timeline), default=0.0)
    return max(0.0, 1 - end_us / outcome.step_us.median) if end_us > 0 else 0.0


def _early(share: float) -> str:
    """Say how far before their diamonds traced rows end, and what may be the reason."""
    return (
        f"Traced rows end up to {100 * share:.1f} % before their diamonds: CUPTI watches a few repetitions only, when the device "
        "may be cooler and so faster than while the step is timed."
    )


def _name(trial: Trial, outcome: Measured) -> str:
    words = [bar_name(trial, outcome)]
    words += ["overlap"] if trial.case.settings.overlap else []
    words += ["traced"] if outcome.timeline else []
    return ", ".join(words)


def _pieces(step: _Step, trials: Sequence[Trial]) -> Sequence[Piece]:
    """Return what runs when in a step: as it was traced, else as its stages were timed."""
    trial, outcome = step
    return outcome.timeline or schedule(outcome, _alone(trial, trials))


def _key(steps: Sequence[_Step], trials: Sequence[Trial]) -> list[object]:
    from matplotlib.patches import Patch

    named = {piece.name: piece for step in steps if not step[1].timeline for piece in _pieces(step, trials)}
    order = sorted(named, key=lambda name: [*STAGE_COLOURS, name].index(name))
    looks = [(name, colour_of(name), named[name].communicates) for name in order]
    traced = {piece.communicates for _, outcome in steps for piece in outcome.timeline}
    looks += [(*TRACED[communicates], communicates) for communicates in sorted(traced, reverse=True)]
    return [
        Patch(facecolor=colour, hatch="////" if communicates else None, edgecolor="white", label=name)
        for name, colour, communicates in looks
    ]
