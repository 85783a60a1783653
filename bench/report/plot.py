"""Pictures of a store: pure functions from trials to figures, and the files they are saved to."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from bench.files import write_whole
from bench.record import Environment, Measured, Trial, latest, timed_alike
from bench.report import (
    breakdown,
    crossover,
    decision_map,
    exchange_cost,
    kv_memory,
    latency,
    mask_cost,
    pareto,
    regret,
    roofline,
    style,
    timeline,
    tuned,
)
from bench.report.dark import darken

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Draw = Callable[[Sequence[Trial]], "Figure | Mapping[str, Figure | str] | str"]
"""What draws trials: a figure, several by what their files' names add, or why there is none, as of several may be said too."""


def figures(
    *, budget: int = kv_memory.BUDGET_BYTES, length: int = kv_memory.LENGTH, most_maps: int | None = None
) -> Mapping[str, Draw]:
    """Return what draws each picture, by the name of its files.

    Args:
        budget: bytes of KV cache on each rank, where a picture tells what fits.
        length: tokens of a request, where it tells how many of them do.
        most_maps: draw no more decision maps than that; all if None.
    """
    return {
        "decision-map": partial(decision_map.draw, budget=budget, most=most_maps),
        "pareto": partial(pareto.draw, budget=budget),
        "latency": latency.draw,
        "mask-cost": mask_cost.draw,
        "crossover": crossover.draw,
        "breakdown": breakdown.draw,
        "timeline": timeline.draw,
        "exchange-cost": exchange_cost.draw,
        "kv-memory": partial(kv_memory.draw, budget=budget, length=length),
        "roofline": roofline.draw,
        "tuned": tuned.draw,
        "regret": regret.draw,
    }


FIGURES = figures()
"""Every picture, where nobody says what a rank has room for."""
OF_EVERY_WAY = ("decision-map", "exchange-cost")
"""Those that keep what was timed otherwise apart themselves."""
OF_EVERY_TRIAL = ("regret",)
"""Those that look at what a case took alone and in a search: not at the last trial of a case, but at every one."""


FORMATS: Mapping[str, dict[str, None]] = {"png": {"Software": None}, "svg": {"Date": None, "Creator": None}}
"""Each with what would make two files of the same trials differ."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """A picture, in each format that was asked for, and the title that stands in it; ``page``: which one, if there are more."""

    figure: str
    page: str
    title: str
    contents: tuple[bytes, ...]

    @property
    def name(self) -> str:
        """The name of its files."""
        return f"{self.figure}-{self.page}" if self.page else self.figure


@dataclass(frozen=True, slots=True)
class Saved:
    """A picture on disk: PNG and SVG."""

    name: str
    files: tuple[Path, ...]


@dataclass(frozen=True, slots=True)
class NotDrawn:
    """A picture that the trials do not allow, and why."""

    name: str
    reason: str


def save_all(
    trials: Sequence[Trial],
    folder: Path,
    *,
    command: str,
    names: Sequence[str] = (),
    is_dark: bool = False,
    draws: Mapping[str, Draw] = FIGURES,
) -> Iterator[Saved | NotDrawn]:
    """Draw pictures and save them, each as it is done. The last trial of a case counts, but for OF_EVERY_TRIAL.

    Args:
        command: what makes them again, for the caption.
        names: of ``FIGURES``; all of them if empty.
        is_dark: on a dark ground.
        draws: as ``figures`` returns them.

    Raises:
        StorageError: if the folder does not take them.
    """
    for picture in draw_all(trials, command=command, names=names, is_dark=is_dark, draws=draws):
        if isinstance(picture, Drawn):
            files = tuple(folder / f"{picture.name}.{kind}" for kind in FORMATS)
            for file, content in zip(files, picture.contents, strict=True):
                write_whole(file, content)
            yield Saved(picture.name, files)
        else:
            yield picture


def draw_all(
    trials: Sequence[Trial],
    *,
    command: str,
    names: Sequence[str] = (),
    formats: Sequence[str] = tuple(FORMATS),
    is_dark: bool = False,
    draws: Mapping[str, Draw] = FIGURES,
) -> Iterator[Drawn | NotDrawn]:
    """Draw pictures, each as it is asked for. The last trial of a case counts; arguments as of ``save_all``."""
    last = [_presentable(trial) for trial in latest(trials)]
    alike = timed_alike(last)
    if others := len(last) - len(alike):
        yield NotDrawn("timed otherwise", f"{others} of {len(last)} trials, warm or eager, which no picture mixes")
    for name in names or draws:
        if name in OF_EVERY_TRIAL:
            shown = timed_alike([_presentable(trial) for trial in trials])
        else:
            shown = last if name in OF_EVERY_WAY else alike
        drawn = draws[name](shown)
        for page, figure in drawn.items() if isinstance(drawn, Mapping) else [("", drawn)]:
            if isinstance(figure, str):
                yield NotDrawn(name, figure)
            else:
                yield Drawn(name, page, figure.get_suptitle(), _contents(figure, command, formats, is_dark))


def _contents(figure: Figure, command: str, formats: Sequence[str], is_dark: bool) -> tuple[bytes, ...]:
    """Return a figure in each format, the same bytes for the same trials."""
    contents = []
    with style.styled():
        style.sign(figure, command)
        if is_dark:
            darken(figure)
        for kind in formats:
            picture = BytesIO()
            figure.savefig(picture, format=kind, metadata=FORMATS[kind], bbox_inches="tight", pad_inches=0.08)
            contents.append(picture.getvalue())
    return tuple(contents)


def _presentable(trial: Trial) -> Trial:
    """Make every name of a trial fit for a picture: those of models, stages and machines come out of files."""
    shape = replace(trial.case.shape, name=style.name(trial.case.shape.name, style.LONGEST_TITLE))
    hard, soft = (
        {style.name(name): style.name(value) for name, value in part.items()}
        for part in (trial.environment.hard, trial.environment.soft)
    )
    outcome = trial.outcome
    if isinstance(outcome, Measured):
        stages = tuple(replace(stage, name=_stage(stage.name)) for stage in outcome.stages)
        outcome = replace(outcome, stages=stages)
    return replace(
        trial,
        case=replace(trial.case, shape=shape),
        outcome=outcome,
        environment=Environment(hard, soft),
        time=style.name(trial.time),
    )


def _stage(name: str) -> str:
    """Return a stage's name as a picture can hold it: what it does stays whole beside a long name of what it does it for."""
    part, colon, kind = name.rpartition(": ")
    return f"{style.name(part)}{colon}{style.name(kind)}"
