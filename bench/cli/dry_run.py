"""What ``--dry-run`` prints: the cases, what is illegal and why, memory and time expected."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from bench.cli.exits import Exit
from bench.cli.screen import clock, draw, emit, say
from bench.estimate import local_ranks, seconds_each
from bench.report.grid import Column, Grid
from bench.report.table import Footnotes, counted, dcp_of, exchange_of, kernels_of
from dcp_core.memory import case_bytes, format_size

if TYPE_CHECKING:
    from bench.cli.campaign import Campaign
    from dcp_core.settings import Case

LONGEST = 60
"""Cases listed one by one; more are counted, and listed whole with --json."""


def show_plan(wanted: Campaign, *, as_json: bool) -> Exit:
    """Print what a run would do."""
    known = wanted.trials()
    missing = wanted.lacking(known)
    lacking = {case.key for case in missing}
    seconds = seconds_each(wanted.cases, wanted.policy, wanted.device_name, known)
    expected = dict(zip((case.key for case in wanted.cases), seconds, strict=True))
    total_s = sum(expected[case.key] for case in missing)
    if as_json:
        cases = [
            {
                "key": case.key,
                "case": case.to_json(),
                "bytes": case_bytes(case, local_ranks(case)),
                "seconds": round(expected[case.key], 3),
                "lacking": case.key in lacking,
            }
            for case in wanted.cases
        ]
        illegal = [{"what": one.text, "why": one.reason} for one in wanted.illegal]
        emit({"sweep": wanted.name, "cases": cases, "illegal": illegal, "seconds": round(total_s, 3)})
        return Exit.DONE
    _show(wanted, missing, expected)
    say()
    where = "one process" if wanted.ranks == 1 else f"{wanted.ranks} processes"
    kept = len(wanted.cases) - len(missing)
    say(f"{counted(len(wanted.cases), 'case')} on {where}; in {wanted.results} already: {kept}.")
    say(f"{len(missing)} to measure in about {clock(total_s)}; kernels compiled on first use come on top.")
    return Exit.DONE


def _show(wanted: Campaign, missing: list[Case], expected: dict[str, float]) -> None:
    largest = max(case_bytes(case, local_ranks(case)) for case in wanted.cases)
    title = f"{wanted.name}: at most {format_size(largest)} on a device"
    columns = (
        Column("model", wrap=True),
        Column("tp", right=True),
        Column("dcp"),
        Column("batch", wrap=True),
        Column("path"),
        Column("kernel"),
        Column("via"),
        Column("memory", right=True),
        Column("time", right=True),
    )
    footnotes = Footnotes()
    rows = tuple(_row(case, expected[case.key], footnotes) for case in missing[:LONGEST])
    if rows:
        draw(Grid(title, columns, rows, footnotes=footnotes.lines()))
    if len(missing) > LONGEST:
        say(f"… and {len(missing) - LONGEST} more; --json lists all.")
    if wanted.illegal:
        say()
        say("Not possible, and left out:")
        for reason, count in Counter(one.reason for one in wanted.illegal).most_common():
            say(f"  {count}×  {reason}")


def _row(case: Case, seconds: float, footnotes: Footnotes) -> tuple[str, ...]:
    return (
        case.shape.name,
        str(case.layout.tp),
        dcp_of(case) + ("*" if case.synthetic else ""),
        str(case.workload),
        footnotes.path(case.settings),
        kernels_of(case.settings),
        exchange_of(case.settings),
        format_size(case_bytes(case, local_ranks(case))),
        f"{seconds:.1f} s",
    )
