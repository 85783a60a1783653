"""What ``--dry-run`` prints: the cases, what is illegal and why, memory and time expected."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench.cli.campaign import left_alone, reasons
from bench.cli.exits import Exit
from bench.cli.screen import clock, draw, emit, say
from bench.estimate import local_ranks
from bench.grid import Column, Grid
from bench.need import case_bytes
from bench.report.table import NOT_MEASURED, Footnotes, counted, dcp_of, exchange_of, kernels_of, star_line, starred_dcp
from dcp_core.memory import format_size

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bench.cli.campaign import Campaign
    from bench.cli.searching import Hunt
    from dcp_core.settings import Case

LONGEST = 60
"""Cases listed one by one; more are counted, and listed whole with --json."""


def show_plan(wanted: Campaign, *, as_json: bool) -> Exit:
    """Print what a run would do."""
    known = wanted.trials()
    missing = wanted.lacking(known)
    plan = Plan(missing, wanted.obstacles(missing), wanted.given_up(known))
    expected_s = wanted.expected_s(wanted.cases, known)
    total_s = wanted.whole_s(plan.missing, known)
    if as_json:
        cases = _json(plan, expected_s)
        illegal = [{"what": one.text, "why": one.reason} for one in wanted.illegal]
        emit({"sweep": wanted.name, "cases": cases, "illegal": illegal, "seconds": round(total_s, 3)})
        return Exit.DONE
    _show(wanted, plan, expected_s)
    say()
    ranks = wanted.machine.ranks
    where = "one process" if ranks == 1 else f"{ranks} processes"
    if wanted.cluster is not None:
        where = f"{counted(wanted.lanes, 'lane')} of {where}"
    kept = len(wanted.cases) - len(plan.missing) - len(plan.given_up)
    say(f"{counted(len(wanted.cases), 'case')} on {where}; in {wanted.results} already: {kept}.")
    if plan.given_up:
        say(left_alone(len(plan.given_up)))
    to_measure = len(plan.missing) - len(plan.obstacles)
    say(f"{to_measure} to measure in about {clock(total_s)}; {_assumed(wanted)}.")
    return Exit.DONE


def show_search(hunt: Hunt, *, as_json: bool) -> Exit:
    """Print what a search would look at, and about how long it takes."""
    known = hunt.known()
    total_s = hunt.seconds(hunt.forecasts(known))
    rows = [(batch, sum(case in known for case in batch.candidates)) for batch in hunt.batches]
    if as_json:
        batches = [
            {
                "batch": str(batch.candidates[0].workload),
                "model": batch.candidates[0].shape.name,
                "layout": batch.candidates[0].to_json()["layout"],
                "default": batch.default.settings.to_json() if batch.default else None,
                "candidates": [case.settings.to_json() for case in batch.candidates],
                "known": there,
            }
            for batch, there in rows
        ]
        illegal = [{"what": one.text, "why": one.reason} for one in hunt.campaign.illegal]
        emit({"sweep": hunt.campaign.name, "batches": batches, "illegal": illegal, "seconds": round(total_s, 3)})
        return Exit.DONE
    columns = (
        Column("model", wrap=True),
        Column("tp", right=True),
        Column("dcp"),
        Column("batch", wrap=True),
        Column("candidates", right=True),
        Column("known", right=True),
    )
    cells = [(batch.candidates[0], len(batch.candidates), there) for batch, there in rows]
    draw(
        Grid(
            f"{hunt.campaign.name}: what would be searched",
            columns,
            tuple(
                (case.shape.name, str(case.layout.tp), dcp_of(case), str(case.workload), str(count), str(there))
                for case, count, there in cells
            ),
        )
    )
    obstacles = hunt.obstacles(known)
    if obstacles:
        _say_obstacles(obstacles, "Will not run here:")
    _say_illegal(hunt.campaign)
    say()
    left = len(hunt.campaign.cases) - len(obstacles)
    say(
        f"{counted(left, 'candidate')} to search in about {clock(total_s)}; {_assumed(hunt.campaign)}."
        if left
        else "Nothing of it can be searched here."
    )
    return Exit.DONE


def _assumed(wanted: Campaign) -> str:
    """Say what a time expected is of, or what is not in it."""
    if wanted.machine.device_name:
        return "kernels compiled on first use come on top"
    return "without a GPU that is the reference kernel on the CPU"


@dataclass(frozen=True, slots=True)
class Plan:
    """What the store lacks, why some of that will not run here, and what is left alone because it failed twice."""

    missing: list[Case]
    obstacles: dict[Case, str]
    given_up: list[Case]


def _json(plan: Plan, expected_s: dict[Case, float]) -> list[dict[str, object]]:
    missing, given_up = set(plan.missing), set(plan.given_up)
    return [
        {
            "key": case.key,
            "case": case.to_json(),
            "bytes": case_bytes(case, local_ranks(case)),
            "seconds": round(seconds, 3),
            "lacking": case in missing,
            "failed_twice": case in given_up,
            "obstacle": plan.obstacles.get(case),
        }
        for case, seconds in expected_s.items()
    ]


def _show(wanted: Campaign, plan: Plan, expected_s: dict[Case, float]) -> None:
    largest = max(case_bytes(case, local_ranks(case)) for case in wanted.cases)
    title = f"{wanted.name}: at most {format_size(largest)} on a device"
    columns = (
        Column("model", wrap=True),
        Column("tp", right=True),
        Column("dcp"),
        Column("batch", wrap=True),
        Column("path"),
        Column("kernel", wrap=True),
        Column("via"),
        Column("memory", right=True),
        Column("time", right=True),
    )
    footnotes = Footnotes()
    times = {case: NOT_MEASURED if case in plan.obstacles else _time(expected_s[case]) for case in plan.missing}
    listed = list(times)[:LONGEST]
    rows = tuple(_row(case, times[case], footnotes) for case in listed)
    if rows:
        draw(Grid(title, columns, rows, footnotes=(*footnotes.lines(), *star_line(listed))))
    if len(plan.missing) > LONGEST:
        say(f"… and {len(plan.missing) - LONGEST} more; --json lists all.")
    if plan.obstacles:
        _say_obstacles(plan.obstacles, f"Will not run here ({NOT_MEASURED}):")
    _say_illegal(wanted)


def _say_obstacles(obstacles: Mapping[Case, str], title: str) -> None:
    say()
    say(title)
    for reason, count in reasons(obstacles):
        say(f"  {count}×  {reason}")


def _say_illegal(wanted: Campaign) -> None:
    if wanted.illegal:
        say()
        say("Not possible, and left out:")
        for reason, count in Counter(one.reason for one in wanted.illegal).most_common():
            say(f"  {count}×  {reason}")


def _time(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 10 else clock(seconds)


def _row(case: Case, time: str, footnotes: Footnotes) -> tuple[str, ...]:
    return (
        case.shape.name,
        str(case.layout.tp),
        starred_dcp(case),
        str(case.workload),
        footnotes.path(case.settings),
        kernels_of(case.settings),
        exchange_of(case.settings),
        format_size(case_bytes(case, local_ranks(case))),
        time,
    )
