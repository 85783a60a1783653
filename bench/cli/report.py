"""``dcpbench report``: runs as one page of HTML."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bench.cli.exits import Exit
from bench.cli.options import Results, session_of
from bench.cli.screen import put
from bench.cli.show import Runs, trials_of


def report(
    invocation: typer.Context,
    run: Runs = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="Where to write.", dir_okay=False)
    ] = Path("report.html"),
    results: Results = Path("results"),
) -> int:
    """Write runs as one page: the answer, pictures, every case with the command that repeats it, and the machine.

    The page needs no network and holds everything: send it, print it, open it years later. Its table can be sorted and
    filtered.

    Examples:
      dcpbench report last
      dcpbench report --results results/reference/h200 -o h200.html
    """
    from bench.files import write_whole
    from bench.report.page import page
    from bench.tune.pick import pick

    trials = trials_of(run or [], results)
    write_whole(output, page(trials, pick(trials), command=session_of(invocation).command).encode())
    put(f"report   {output}")
    return Exit.DONE
