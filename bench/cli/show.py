"""``dcpbench show``: tables of what was measured."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bench.cli import completion
from bench.cli.exits import Exit
from bench.cli.options import Form, Results
from bench.cli.screen import draw, emit, put, put_all, say, warn

if TYPE_CHECKING:
    from bench.record import Trial

Runs = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[RUN]...",
        help="Runs by name, 'last', .jsonl files, or folders of them; all of the results folder if none.",
        autocompletion=completion.runs,
    ),
]


def show(
    form: Form,
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
    nvbench: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Write NVBench's JSON instead, for nvbench-compare-robust, which reads two runs of the same cases only.",
            dir_okay=False,
        ),
    ] = None,
) -> int:
    """Print the trials of runs as tables, the fastest of each group of rivals first.

    Rivals are the settings of one batch, model and tp whose times may be compared: same label, same timer. Notes below
    say what was skipped or failed, and why. A star marks a layout that no server starts with.

    Examples:
      dcpbench show last
      dcpbench show --results results/reference/h200 --markdown
      dcpbench show last --exchanges
      dcpbench show --csv > trials.csv
      dcpbench show last --nvbench last.json
    """
    from bench.cli.outcome import show_trials
    from bench.grid import markdown
    from bench.report.drift import drift_notes
    from bench.report.table import notes_of, trials_grids

    everything = trials_of(run or [], results, sentinels=True)
    trials = [trial for trial in everything if not trial.is_sentinel]
    if nvbench is not None:
        from bench.report.nvbench import write

        put(f"written  {write(trials, nvbench)[-1]}")
    elif exchanges or predicted:
        _show_exchanges(trials, form, predicted=predicted)
    elif form.csv:
        from bench.report.sheet import to_csv

        put_all(to_csv(trials))
    elif form.markdown:
        for grid in trials_grids(trials):
            put_all(f"{grid.to_markdown()}\n\n")
        for note in [*notes_of(trials), *drift_notes(everything)]:
            put(f"- {markdown(note)}")
    else:
        show_trials(everything, as_json=form.json)
    return Exit.DONE


def _show_exchanges(trials: list[Trial], form: Form, *, predicted: bool) -> None:
    from bench.errors import UsageError
    from bench.predict import comparisons
    from bench.report.exchange_table import exchange_grids, readings_json
    from bench.report.predicted_table import predicted_grids, predicted_json, predicted_rows
    from bench.report.sheet import sheet

    compared = comparisons(trials) if predicted else []
    grids = predicted_grids(compared) if predicted else exchange_grids(trials)
    if not grids:
        lacking = "steps both measured between real ranks and simulated, and exchanges at enough sizes to fit a model"
        raise UsageError(
            f"nothing to show: that takes {lacking if predicted else 'decode steps measured between real ranks'}; "
            f"'dcpbench sweep exchange' measures exchanges"
        )
    if form.json:
        emit({"predicted": predicted_json(compared)} if predicted else {"exchanges": readings_json(trials)})
    elif form.csv:
        put_all(sheet(predicted_rows(compared) if predicted else readings_json(trials)))
    for grid in () if form.json or form.csv else grids:
        if form.markdown:
            put_all(f"{grid.to_markdown()}\n\n")
        else:
            draw(grid)
            say()


def _read(name: str, results: Path, *, sentinels: bool) -> tuple[list[Trial], list[str]]:
    """Read a run that is given by its path, or by its name in the results folder, or all of a folder."""
    from bench.store import Store, find_run, read_run

    if name and Path(name).is_dir():
        return Store.read(name, sentinels=sentinels)
    is_path = name.endswith(".jsonl") and ("/" in name or Path(name).is_file())
    return read_run(name if is_path else find_run(results, name), sentinels=sentinels)


def trials_of(names: list[str], results: Path, *, sentinels: bool = False) -> list[Trial]:
    """Read runs by name or path, or all of some folders.

    Args:
        sentinels: those too that repeat a case to show drift.

    Raises:
        UsageError: if there is nothing in them.
        FileError: for a run that does not exist or cannot be read.
    """
    from bench.errors import UsageError
    from bench.store import Store

    parts = [_read(name, results, sentinels=sentinels) for name in names] or [Store.read(results, sentinels=sentinels)]
    trials = [trial for found, _ in parts for trial in found]
    for notice in (notice for _, notices in parts for notice in notices):
        warn(notice)
    if not trials:
        where = " and ".join(names) or str(results)
        raise UsageError(
            f"{where} holds no trials; measure some first, as with 'dcpbench tune quick', or give --results"
        )
    return trials
