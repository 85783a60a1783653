"""Trials as CSV, for spreadsheets: a line each, numbers as numbers, units in the headings."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from io import StringIO

from bench.grid import printable
from bench.record import Failed, Measured, Skipped, Trial, latest
from bench.report.command import command_of
from bench.report.table import label_of, settings_line

HEADINGS = (
    "model",
    "tp",
    "dcp",
    "interleave",
    "batch",
    "settings",
    "outcome",
    "label",
    "step_us",
    "step_low_us",
    "step_high_us",
    "samples",
    "plan_us",
    "launch_us",
    "warm_us",
    "flags",
    "reason",
    "device",
    "time",
    "command",
)
_FORMULA = ("=", "+", "-", "@")
"""What a spreadsheet would compute where a text begins with it."""


def to_csv(trials: Sequence[Trial]) -> str:
    """Return a line for each trial that counts, of each case the last, and a heading before them."""
    return _written(HEADINGS, map(_cells, latest(trials)))


def sheet(rows: Sequence[Mapping[str, object]]) -> str:
    """Return a line for each of some rows, and before them their keys, which are the same: ``slowest_us.low`` of a key within."""
    flat = [dict(_flat(row)) for row in rows]
    return _written(tuple(flat[0]) if flat else (), ([_cell(value) for value in row.values()] for row in flat))


def _written(headings: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = StringIO()
    writer = csv.writer(lines, lineterminator="\n")
    writer.writerow(headings)
    writer.writerows(rows)
    return lines.getvalue()


def _flat(row: Mapping[str, object], above: str = "") -> Iterator[tuple[str, object]]:
    for name, value in row.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{above}{name}.")
        else:
            yield f"{above}{name}", value


def _cell(value: object) -> object:
    """Return a number with what was measured of it, nothing for what is none, and any other value as a text."""
    match value:
        case float():
            return f"{value:.6g}" if math.isfinite(value) else ""
        case None:
            return ""
        case int():
            return value
        case _:
            return _text(str(value))


def _cells(trial: Trial) -> list[object]:
    case, device = trial.case, trial.environment.hard.get("device_name", "")
    asked = [_text(case.shape.name), case.layout.tp, case.layout.dcp, case.layout.interleave, _text(str(case.workload))]
    asked += [_text(settings_line(case.settings)), trial.outcome.kind]
    nothing = [""] * 9
    match trial.outcome:
        case Measured() as outcome:
            step = outcome.step_us
            times: list[object] = [
                label_of(trial, outcome),
                *(round(us, 3) for us in (step.median, step.low, step.high)),
            ]
            times += [
                step.count,
                round(outcome.plan_us, 3),
                round(outcome.launch_us.median, 3),
                round(outcome.warm_us.median, 3) if outcome.warm_us else "",
                _text("; ".join(outcome.flags)),
            ]
            found = [*times, ""]
        case Skipped(reason=reason):
            found = [*nothing, _text(reason)]
        case Failed(fault=fault, message=message):
            found = [*nothing, _text(f"{fault}: {message}")]
    return [*asked, *found, _text(device), _text(trial.time), _text(command_of(trial))]


def _text(text: str) -> str:
    """Return a text as no spreadsheet takes for a formula, and no line breaks in two."""
    plain = printable(text)
    return f"'{plain}" if plain.startswith(_FORMULA) else plain
