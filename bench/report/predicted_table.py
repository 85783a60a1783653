"""Tables of how near simulated + modelled came to what was measured between real ranks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from statistics import median

from bench.grid import Column, Grid
from bench.predict import CLOSE, Compared, relative
from bench.record import Measured
from bench.report.table import case_name, counted, micros


def predicted_grids(compared: Sequence[Compared]) -> list[Grid]:
    """Return how near simulated + modelled came to what was measured between real ranks: step by step, and stage by stage."""
    if not compared:
        return []
    steps = sorted(compared, key=lambda one: -abs(one.error))
    columns = (Column("case", wrap=True), Column("modelled µs", right=True), Column("measured µs", right=True))
    rows = tuple(_step(one) for one in steps)
    close = sum(one.is_close for one in compared)
    note = (
        f"{close} of {counted(len(compared), 'step')} within {CLOSE:.0%}; models know no message of the size asked for."
    )
    whole = Grid(
        "Simulated + modelled against measured", (*columns, Column("error", right=True)), rows, footnotes=(note,)
    )
    return [whole, _by_stage(compared)]


def predicted_json(compared: Iterable[Compared]) -> list[dict[str, object]]:
    """Return the same, case by case, for machines."""
    return [
        {
            "case": one.measured.case.to_json(),
            "error": one.error,
            "stages": {name: {"modelled_us": told, "measured_us": seen} for name, (told, seen) in one.stages.items()},
        }
        for one in compared
    ]


def predicted_rows(compared: Iterable[Compared]) -> list[dict[str, object]]:
    """Return the same for a spreadsheet, a row for each stage of a case."""
    return [
        {"case": case_name(one.measured.case), "stage": name, "modelled_us": told, "measured_us": seen}
        for one in compared
        for name, (told, seen) in one.stages.items()
    ]


def _step(one: Compared) -> tuple[str, ...]:
    told, seen = one.modelled.outcome, one.measured.outcome
    times = [micros(outcome.step_us.median) for outcome in (told, seen) if isinstance(outcome, Measured)]
    return (case_name(one.measured.case), *times, f"{one.error:+.1%}")


def _by_stage(compared: Iterable[Compared]) -> Grid:
    errors: dict[str, list[float]] = defaultdict(list)
    for one in compared:
        for name, (told, seen) in one.stages.items():
            errors[name].append(relative(told, seen))
        errors["whole step"].append(one.error)
    columns = (
        Column("stage"),
        Column("steps", right=True),
        Column("median error", right=True),
        Column("worst", right=True),
        Column(f"within {CLOSE:.0%}", right=True),
    )
    return Grid("By stage", columns, tuple(_stage_rows(errors)))


def _stage_rows(errors: Mapping[str, Sequence[float]]) -> Iterator[tuple[str, ...]]:
    for name in sorted(errors, key=lambda one: one == "whole step"):
        found = errors[name]
        share = sum(abs(error) <= CLOSE for error in found) / len(found)
        yield name, str(len(found)), f"{median(map(abs, found)):.1%}", f"{max(found, key=abs):+.1%}", f"{share:.0%}"
