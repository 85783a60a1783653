"""Rows for people: what was measured, what was skipped and why, what was chosen. Standard library only."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median

from bench.grid import Column, Grid
from bench.record import Failed, Label, Measured, Skipped, Trial, latest
from bench.times import Summary
from dcp_core.settings import Case, ExchangeName, KernelName, MaskForm, PathName, Settings

NOT_MEASURED = "–"
_NUMBER = re.compile(r"(?<![\w.])(\d+(?:\.\d+)?)(?!\w)", re.ASCII)
_SHOWN = {"path", "kernel", "new_kernel", "decode_kernel", "exchange", "mask_form"}
"""Settings that have a column of their own."""


@dataclass(frozen=True, slots=True)
class Row:
    """One measured case beside the best of its rivals: same model, tp and workload, same label and timer.

    Args:
        ratio: its median over the best rival's; 1.0 for the best.
    """

    trial: Trial
    outcome: Measured
    ratio: float

    @property
    def case(self) -> Case:
        """The case that was measured."""
        return self.trial.case


def rows_of(trials: Iterable[Trial]) -> list[Row]:
    """Return the measured cases, rivals together, the fastest first. The last trial of a case counts."""
    rivals: dict[tuple[object, ...], list[tuple[Trial, Measured]]] = defaultdict(list)
    for trial in latest(trials):
        if isinstance(trial.outcome, Measured):
            rivals[_rivalry(trial.case, trial.outcome)].append((trial, trial.outcome))
    rows = []
    for group in rivals.values():
        best = min(outcome.step_us.median for _, outcome in group)
        ordered = sorted(group, key=lambda pair: pair[1].step_us.median)
        rows += [Row(trial, outcome, outcome.step_us.median / best if best else 1.0) for trial, outcome in ordered]
    return sorted(rows, key=_place)


def trials_grids(trials: Iterable[Trial]) -> list[Grid]:
    """Return one table per model and tp, the best of each group of rivals pointed out."""
    sections: dict[str, list[Row]] = defaultdict(list)
    for row in rows_of(trials):
        sections[f"{row.case.shape.name}, tp {row.case.layout.tp}"].append(row)
    return [_grid(title, rows) for title, rows in sections.items()]


def notes_of(trials: Iterable[Trial], *, flagged: bool = True) -> list[str]:
    """Return a sentence for every reason for which cases were skipped or failed, and for every flag, with counts.

    Args:
        flagged: False where ``flag_letters`` stand for flags.
    """
    last = latest(trials)
    skipped = Counter(trial.outcome.reason for trial in last if isinstance(trial.outcome, Skipped))
    failed = Counter(
        f"{trial.outcome.fault}: {trial.outcome.message}" for trial in last if isinstance(trial.outcome, Failed)
    )
    flags = _alike(_flags(last)) if flagged else []
    untimed = sum(isinstance(trial.outcome, Measured) and not trial.outcome.exchange_timed for trial in last)
    lines = [f"{counted(count, 'case')} failed: {_sentence(why)}" for why, count in failed.most_common()]
    lines += [f"{counted(count, 'case')} skipped: {_sentence(why)}" for why, count in skipped.most_common()]
    lines += [f"{counted(count, 'case')} flagged: {_sentence(why)}" for why, count in flags]
    if untimed:
        lines.append(
            f"{counted(untimed, 'case')} simulated on one device: every rank was checked, the fullest was timed "
            f"by itself, and the exchange's time is not in the step."
        )
    return lines


def flag_letters(trials: Iterable[Trial]) -> tuple[dict[str, str], list[str]]:
    """Return the letter of each flag, ``(a)`` for the most frequent, and what each letter means, with counts."""
    counts = Counter(_flags(latest(trials))).most_common()
    letters = {flag: f"({_letter(number)})" for number, (flag, _) in enumerate(counts)}
    return letters, [f"{letters[flag]} {counted(count, 'case')} flagged: {_sentence(flag)}" for flag, count in counts]


def kernels_of(settings: Settings) -> str:
    """Return the kernels of a step: ``fa2``, or ``fa2+fa3`` where the pass over new tokens or the decodes differ."""
    names: list[KernelName] = [settings.kernel, settings.kernel_for_new, settings.kernel_for_decode]
    return "+".join(dict.fromkeys(names))


def path_of(settings: Settings) -> str:
    """Return the path, with the mask's form where it is not the default: ``mask:bool``."""
    form = settings.mask_form
    return (
        f"{settings.path}:{form}" if settings.path is PathName.MASK and form is not MaskForm.PACKED else settings.path
    )


def dcp_of(case: Case) -> str:
    """Return the dcp size, with its interleave above 1: ``2i16``."""
    interleave = f"i{case.layout.interleave}" if case.layout.interleave > 1 else ""
    return f"{case.layout.dcp}{interleave}"


def exchange_of(settings: Settings) -> str:
    """Return the exchange, or a dash where ranks exchange nothing on a wire."""
    silent = (ExchangeName.ALONE, ExchangeName.LOOPBACK)
    return NOT_MEASURED if settings.exchange in silent else settings.exchange


def micros(value: float) -> str:
    """Return microseconds with three to five figures: ``8.52``, ``17.2``, ``35269``."""
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 1000 else f"{value:.0f}"


def spread(summary: Summary) -> str:
    """Return the half width of the median's interval, relative: ``±0.8%``."""
    if not summary.median:
        return NOT_MEASURED
    percent = 100 * max(summary.high - summary.median, summary.median - summary.low) / summary.median
    return f"±{percent:.1f}%" if percent < 10 else f"±{percent:.0f}%"


def case_name(case: Case) -> str:
    """Return what a case is, in a line, with every setting that is not at its default.

    For example ``qwen3-32b tp 16 dcp 2 8q1s32k decode fa2 ag_rs page_size=64``.
    """
    what = f"{case.shape.name} tp {case.layout.tp} dcp {dcp_of(case)} {_clipped(str(case.workload))}"
    return f"{what} {settings_line(case.settings)}"


def settings_line(settings: Settings) -> str:
    """Return settings in a line, those left out that are at their default: ``decode fa2 ag_rs page_size=64``."""
    how = [kernels_of(settings), exchange_of(settings)]
    return " ".join([path_of(settings), *(part for part in how if part != NOT_MEASURED), *_others(settings)])


def case_line(trial: Trial) -> str:
    """Return one trial in one line, as a run prints it while it goes."""
    name = case_name(trial.case)
    match trial.outcome:
        case Measured() as outcome:
            return f"{name}: {micros(outcome.step_us.median)} µs {spread(outcome.step_us)} {label_of(trial, outcome)}"
        case Skipped(reason=reason):
            return f"{name}: skipped, {_sentence(reason)}"
        case Failed(fault=fault, message=message):
            return f"{name}: FAILED, {fault}: {_sentence(message)}"


def label_of(trial: Trial, outcome: Measured) -> str:
    """Return where a trial's numbers come from, and how they were timed if not as usual: ``measured``, ``measured eager``."""
    unusual = (("eager", not trial.policy.graphs), ("warm", not trial.policy.cold))
    return " ".join([outcome.label, *(word for word, holds in unusual if holds)])


def _clipped(text: str, size: int = 40) -> str:
    return text if len(text) <= size else f"{text[: size - 1]}…"


class Footnotes:
    """Letters for settings without a column of their own, given out as rows meet them."""

    def __init__(self) -> None:
        self._letters: dict[str, str] = {}

    def path(self, settings: Settings) -> str:
        """Return the path, with the letter of what else is not at its default: ``split(a)``."""
        more = ", ".join(_others(settings))
        if not more:
            return path_of(settings)
        letter = self._letters.setdefault(more, _letter(len(self._letters)))
        return f"{path_of(settings)}({letter})"

    def lines(self) -> tuple[str, ...]:
        """Return what each letter means."""
        return tuple(f"({letter}) {more}" for more, letter in self._letters.items())


def _flags(trials: Iterable[Trial]) -> list[str]:
    return [flag for trial in trials if isinstance(trial.outcome, Measured) for flag in trial.outcome.flags]


def _others(settings: Settings) -> list[str]:
    """Return the settings that have no column of their own and are not at their default: ``page_size=64``."""
    return [f"{name}={mine}" for name, mine, _ in settings.differences(Settings()) if name not in _SHOWN]


def _letter(number: int) -> str:
    return chr(ord("a") + number) if number < 26 else str(number)


def _grid(title: str, rows: Sequence[Row]) -> Grid:
    columns = (
        Column("batch", wrap=True),
        Column("dcp"),
        Column("path", wrap=True),
        Column("kernel", wrap=True),
        Column("via"),
        Column("step µs", right=True),
        Column("95%", right=True),
        Column("plan µs", right=True),
        Column("ratio", right=True),
        Column("label", wrap=True),
    )
    footnotes = Footnotes()
    cells = tuple(_cells(row, footnotes) for row in rows)
    best = frozenset(index for index, row in enumerate(rows) if row.ratio == 1.0)
    below = (*footnotes.lines(), *star_line(row.case for row in rows), *_warm(rows), *_skew(rows))
    return Grid(title, columns, cells, best, below)


def starred_dcp(case: Case) -> str:
    """Return a case's dcp for a table, with a star at a layout that no server starts with."""
    return dcp_of(case) + ("*" if case.synthetic else "")


def star_line(cases: Iterable[Case]) -> tuple[str, ...]:
    """Say what a star at a dcp means, if one of some cases has it."""
    return ("*: no server starts with this layout.",) if any(case.synthetic for case in cases) else ()


def _warm(rows: Sequence[Row]) -> list[str]:
    """Say what a warm L2 cache makes of the steps that were timed with one too; nothing where none was."""
    both = [(row.outcome.warm_us.median, row.outcome.step_us.median) for row in rows if row.outcome.warm_us]
    shares = [warm_us / step_us for warm_us, step_us in both]
    if not shares:
        return []
    low, high = f"{min(shares):.2f}", f"{max(shares):.2f}"
    return [f"Decodes with a warm L2 cache take {low if low == high else f'{low} to {high}'} times as long."]


def _skew(rows: Sequence[Row]) -> list[str]:
    """Say by how much ranks were apart where they were so most, of their step; nothing where all ran by themselves."""
    between = [(median(row.outcome.skew_us), row) for row in rows if row.outcome.skew_us]
    if not between:
        return []
    skew_us, row = max(between, key=lambda pair: pair[0] / pair[1].outcome.step_us.median)
    case, settings = row.case, row.case.settings
    which = f"{_clipped(str(case.workload))} {path_of(settings)} {kernels_of(settings)} {exchange_of(settings)}"
    share = skew_us / row.outcome.step_us.median
    late = f"rank {row.outcome.straggler} took longest most often"
    return [f"Ranks were {micros(skew_us)} µs apart at most, {share:.1%} of a step, in {which}: {late}."]


def _cells(row: Row, footnotes: Footnotes) -> tuple[str, ...]:
    case, outcome, settings = row.case, row.outcome, row.case.settings
    return (
        _clipped(str(case.workload)),
        starred_dcp(case),
        footnotes.path(settings),
        kernels_of(settings),
        exchange_of(settings),
        micros(outcome.step_us.median),
        spread(outcome.step_us),
        micros(outcome.plan_us),
        f"{row.ratio:.2f}",
        label_of(row.trial, outcome),
    )


def _rivalry(case: Case, outcome: Measured) -> tuple[object, ...]:
    cold = outcome.flushed_bytes > 0
    return case.shape, case.layout.tp, case.workload, outcome.label, outcome.exchange_timed, outcome.timer, cold


def _place(row: Row) -> tuple[object, ...]:
    case, workload = row.case, row.case.workload
    order = list(Label).index(row.outcome.label)
    return (
        case.shape.name,
        case.layout.tp,
        max(workload.new_lens),
        sum(workload.total_lens),
        str(workload),
        order,
        not row.trial.policy.graphs,
        row.ratio,
    )


def counted(count: int, noun: str, nouns: str = "") -> str:
    """Return a number of things: ``1 case``, ``2 cases``; ``nouns`` where the plural is another: ``batches``."""
    return f"{count:,} {noun if count == 1 else nouns or f'{noun}s'}"


def all_layers(count: int) -> str:
    """Return what holds for a whole model: ``one layer``, ``all 94 layers``."""
    return "one layer" if count == 1 else f"all {count} layers"


def _alike(sentences: Iterable[str]) -> list[tuple[str, int]]:
    """Count sentences, those that differ in numbers alone as one that gives their range: ``floors of 3.1 to 3.4 us``."""
    groups: dict[tuple[str, ...], list[list[str]]] = defaultdict(list)
    for sentence in sentences:
        parts = _NUMBER.split(sentence)
        groups[tuple(parts[::2])].append(parts[1::2])
    found = []
    for words, numbers in groups.items():
        ranges = [_range(column) for column in zip(*numbers, strict=True)]
        found.append(("".join(map("".join, zip(words, [*ranges, ""], strict=True))), len(numbers)))
    return sorted(found, key=lambda pair: -pair[1])


def _range(numbers: Iterable[str]) -> str:
    ordered = sorted(set(numbers), key=float)
    return ordered[0] if len(ordered) == 1 else f"{ordered[0]} to {ordered[-1]}"


def _sentence(text: str) -> str:
    first = text.strip().splitlines()[0] if text.strip() else "no reason given"
    return first if first.endswith(".") else f"{first}."
