"""``dcpbench compare``: two runs side by side, for people and for CI."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from bench.cli import completion
from bench.cli.exits import Exit
from bench.cli.options import Form, Results
from bench.cli.screen import draw, emit, put_all, say

_Run = typer.Argument(
    help="A run by name, 'last', a .jsonl file, or a folder of runs.",
    autocompletion=completion.runs,
    show_default=False,
)


def compare(
    before: Annotated[str, _Run],
    after: Annotated[str, _Run],
    form: Form,
    fail_on: Annotated[
        str,
        typer.Option("--fail-on", metavar="2%", help="By how much a case may be slower and still count as the same."),
    ] = "2%",
    everything: Annotated[bool, typer.Option("--all", help="Show the cases that are the same too.")] = False,
    results: Results = Path("results"),
) -> int:
    """Compare two runs of the same cases, and end with exit code 1 if one became slower.

    Cases are paired by what was asked and how it was timed. A difference counts if its interval lies beyond what is
    tolerated, and beyond what the two runs differ by from case to case anyway: two runs are not a race, and between them the
    device may have changed. To tell two settings apart, race them: dcpbench tune.

    Examples:
      dcpbench compare before.jsonl after.jsonl --fail-on 3%
      dcpbench compare baseline/ results/ --json
      dcpbench compare before.jsonl after.jsonl --all --markdown > compared.md
    """
    from bench.cli.show import trials_of
    from bench.compare import compare as compared
    from bench.grid import markdown
    from bench.report.comparison import comparison_grid, comparison_json, comparison_notes, comparison_rows
    from bench.report.sheet import sheet

    tolerance = _share(fail_on)
    found = compared(trials_of([before], results), trials_of([after], results), tolerance=tolerance)
    grid = comparison_grid(found, everything=everything)
    if form.json:
        emit(comparison_json(found))
    elif form.csv:
        put_all(sheet(comparison_rows(found)))
    elif form.markdown:
        put_all(f"{grid.to_markdown()}\n\n" if grid.rows else "")
        put_all("\n".join(f"- {markdown(note)}" for note in comparison_notes(found)))
    else:
        if grid.rows:
            draw(grid)
            say()
        for note in comparison_notes(found):
            say(note)
    return Exit.DIFFERENT if found.is_worse else Exit.DONE


def _share(text: str) -> float:
    """Read ``2%`` or ``0.02``.

    Raises:
        UsageError: for anything else, or a share of nothing or of everything.
    """
    from bench.errors import UsageError

    number = re.fullmatch(r"(\d{1,3}(?:\.\d{1,6})?|\.\d{1,6})(%?)", text, re.ASCII)
    share = float(number[1]) / (100 if number[2] else 1) if number else 0.0
    if not 0 < share < 1:
        raise UsageError(f"--fail-on is a share, as 2% or 0.02, not {text[:40]!r}")
    return share
