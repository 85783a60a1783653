"""``dcpbench show``: tables of what was measured."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bench.cli import completion
from bench.cli.exits import Exit
from bench.cli.options import Json, Results
from bench.cli.screen import draw, emit, say, warn

if TYPE_CHECKING:
    from bench.record import Trial

Runs = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[RUN]...",
        help="Runs by name, 'last', or .jsonl files; all of the results folder if none.",
        autocompletion=completion.runs,
    ),
]


def show(
    run: Runs = None,
    results: Results = Path("results"),
    exchanges: Annotated[
        bool,
        typer.Option(
            "--exchanges", help="What gathers and combines cost between real ranks, and which exchange to choose."
        ),
    ] = False,
    predicted: Annotated[
        bool, typer.Option("--predicted", help="How near simulated + modelled steps came to measured ones.")
    ] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print Markdown tables.")] = False,
    csv: Annotated[bool, typer.Option("--csv", help="Print CSV, for spreadsheets: a line for each case.")] = False,
    nvbench: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write NVBench's JSON instead, for nvbench-compare-robust.", dir_okay=False),
    ] = None,
    json: Json = False,
) -> int:
    """Print the trials of runs as tables, the fastest of each group of rivals first.

    Rivals are the settings of one batch, model and tp whose times may be compared: same label, same timer. Notes below
    say what was skipped or failed, and why. A star marks a layout that no server starts with.

    Examples:
      dcpbench show last
      dcpbench show --results results/reference/h200 --markdown
      dcpbench show last --exchanges
      dcpbench show last --nvbench last.json
    """
    from bench.cli.outcome import show_trials
    from bench.report.drift import drift_notes
    from bench.report.grid import markdown as as_markdown
    from bench.report.table import notes_of, trials_grids

    everything = trials_of(run or [], results, sentinels=True)
    trials = [trial for trial in everything if not trial.is_sentinel]
    if csv:
        from bench.report.sheet import to_csv

        for line in to_csv(trials).splitlines():
            say(line)
        return Exit.DONE
    if nvbench is not None:
        from bench.report.nvbench import write

        say(f"written  {write(trials, nvbench)[-1]}")
        return Exit.DONE
    if exchanges or predicted:
        return _show_exchanges(trials, predicted=predicted, markdown=markdown, as_json=json)
    if not markdown or json:
        show_trials(everything, as_json=json)
        return Exit.DONE
    for grid in trials_grids(trials):
        say_lines(grid.to_markdown())
    for note in [*notes_of(trials), *drift_notes(everything)]:
        say(f"- {as_markdown(note)}")
    return Exit.DONE


def _show_exchanges(trials: list[Trial], *, predicted: bool, markdown: bool, as_json: bool) -> int:
    from bench.errors import UsageError
    from bench.predict import comparisons
    from bench.report.exchange_table import exchange_grids, readings_json
    from bench.report.predicted_table import predicted_grids, predicted_json

    compared = comparisons(trials) if predicted else []
    grids = predicted_grids(compared) if predicted else exchange_grids(trials)
    if not grids:
        lacking = "steps both measured between real ranks and simulated, and exchanges at enough sizes to fit a model"
        raise UsageError(
            f"nothing to show: that takes {lacking if predicted else 'decode steps measured between real ranks'}; "
            f"'dcpbench sweep exchange' measures exchanges"
        )
    if as_json:
        emit({"predicted": predicted_json(compared)} if predicted else {"exchanges": readings_json(trials)})
        return Exit.DONE
    for grid in grids:
        if markdown:
            say_lines(grid.to_markdown())
        else:
            draw(grid)
            say()
    return Exit.DONE


def _is_path(name: str) -> bool:
    """Tell a file from the name of a run in the results folder, which may end the same."""
    return name.endswith(".jsonl") and ("/" in name or Path(name).is_file())


def trials_of(names: list[str], results: Path, *, sentinels: bool = False) -> list[Trial]:
    """Read runs by name or path, or all of a folder.

    Args:
        sentinels: those too that repeat a case to show drift.

    Raises:
        UsageError: if there is nothing in them.
        FileError: for a run that does not exist or cannot be read.
    """
    from bench.errors import UsageError
    from bench.store import Store, find_run, read_run

    if names:
        parts = [read_run(name if _is_path(name) else find_run(results, name), sentinels=sentinels) for name in names]
    else:
        parts = [Store.read(results, sentinels=sentinels)]
    trials = [trial for found, _ in parts for trial in found]
    for notice in (notice for _, notices in parts for notice in notices):
        warn(notice)
    if not trials:
        where = " and ".join(names) or str(results)
        raise UsageError(
            f"{where} holds no trials; measure some first, as with 'dcpbench tune quick', or give --results"
        )
    return trials


def say_lines(text: str) -> None:
    """Print several lines and an empty one."""
    for line in text.splitlines():
        say(line)
    say()
