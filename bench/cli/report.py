"""``dcpbench report``: runs as one page of HTML, or its words and tables as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bench.cli.exits import Exit
from bench.cli.options import Markdown, Results, session_of
from bench.cli.screen import Screen, put, put_all, screen
from bench.cli.show import Runs, trials_of
from bench.errors import UsageError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from bench.record import Trial
    from bench.report.plot import Draw

_PAGE = (".html", ".htm", "")
_NO_PAGE = {".md": "dcpbench report --markdown", ".csv": "dcpbench show --csv"}
"""What prints a file of another kind."""


def report(
    invocation: typer.Context,
    run: Runs = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="FILE", help="Where to write the page; report.html if not given.", dir_okay=False
        ),
    ] = None,
    markdown: Markdown = False,
    results: Results = Path("results"),
) -> int:
    """Write runs as one page: which dcp to run, pictures, every case with the command that repeats it, and the machine.

    The page needs no network and holds everything: send it, print it, open it years later. Its tables can be sorted, and
    long ones filtered. Markdown holds its answer, the tables of what was chosen, what was skipped and the machine, without
    pictures and single cases. For a spreadsheet: 'dcpbench show --csv', a line for each case.

    Examples:
      dcpbench report last
      dcpbench report --results results/reference/h200 -o h200.html
      dcpbench report last --markdown > report.md
    """
    from bench.files import write_whole
    from bench.report.page import PICTURES, page
    from bench.report.plot import Draw
    from bench.report.summary import to_markdown
    from bench.tune.pick import pick

    if output is not None and markdown:
        raise UsageError(
            f"--markdown prints, and -o is where the page goes: give one of them, or '--markdown > {output}'"
        )
    if output is not None and (ending := output.suffix.lower()) not in _PAGE:
        instead = f", or use '{_NO_PAGE[ending]} > {output}'" if ending in _NO_PAGE else ""
        instead += ", and print that from a browser" if ending == ".pdf" else ""
        raise UsageError(f"{output} would be a page of HTML: call it .html{instead}")
    trials = trials_of(run or [], results)
    command = session_of(invocation).command
    if markdown:
        put_all(to_markdown(trials, pick(trials), command=command))
        return Exit.DONE
    written = output or Path("report.html")
    with screen(len(PICTURES), float(len(PICTURES)), forecast=False) as progress:
        before, draws = "", dict[str, Draw]()
        for name, draw in PICTURES.items():
            draws[name] = partial(_draw, draw, name, before, progress)
            before = name
        text = page(trials, pick(trials), command=command, draws=draws)
        progress.advance(f"drawn {before}", 1.0)
    write_whole(written, text.encode())
    put(f"report   {written}")
    return Exit.DONE


def _draw(
    draw: Draw, name: str, before: str, progress: Screen, trials: Sequence[Trial]
) -> Figure | Mapping[str, Figure | str] | str:
    """Draw a picture, and say so; when it is begun, the one before it is on the page."""
    if before:
        progress.advance(f"drawn {before}", 1.0)
    progress.now(f"drawing {name}")
    return draw(trials)
