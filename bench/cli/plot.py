"""``dcpbench plot``: pictures of what was measured."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from bench.cli import completion
from bench.cli.exits import Exit
from bench.cli.options import Json, Results, session_of
from bench.cli.screen import emit
from bench.cli.show import Runs, trials_of


@dataclass(frozen=True, slots=True)
class Room:
    """What a rank has room for, where pictures tell what fits."""

    budget: Annotated[
        str, typer.Option(help="KV cache of a rank, in decision-map, pareto and kv-memory.", metavar="SIZE")
    ] = "40GiB"
    length: Annotated[str, typer.Option(help="Tokens of a request, in kv-memory.", metavar="TOKENS")] = "32k"


def plot(
    invocation: typer.Context,
    room: Room,
    run: Runs = None,
    figure: Annotated[
        list[str] | None,
        typer.Option(
            "--figure",
            metavar="NAME",
            help="decision-map, pareto, latency, mask-cost, crossover, breakdown, timeline, exchange-cost, kv-memory, roofline, "
            "tuned, regret; all possible if none.",
            autocompletion=completion.figures,
        ),
    ] = None,
    to: Annotated[
        Path | None,
        typer.Option("--to", "-o", metavar="FOLDER", help="Where to write; else plots/ in the results folder."),
    ] = None,
    dark: Annotated[bool, typer.Option("--dark", help="The same pictures, for a dark page.")] = False,
    results: Results = Path("results"),
    json: Json = False,
) -> int:
    """Draw runs as PNG and SVG: latency, where its time goes, what masks and exchanges cost, memory, which dcp, tuning.

    Reads the store alone, so that a picture can be made again years later, on a laptop. What the trials do not allow
    is not drawn, and what would have to be measured is printed.

    Examples:
      dcpbench plot
      dcpbench plot last --figure latency,mask-cost --to report/ --dark
      dcpbench plot --figure kv-memory --budget 60GiB --length 128k
    """
    from bench.cli.outcome import show_pictures
    from bench.errors import UsageError
    from bench.report.plot import FIGURES, figures, save_all
    from dcp_core.memory import parse_size, parse_tokens
    from dcp_core.spelling import nearest

    names = [name for text in figure or [] for name in text.split(",")]
    for name in names:
        if name not in FIGURES:
            raise UsageError(
                f"unknown figure {name[:40]!r}{nearest(name, FIGURES)}; known: {', '.join(FIGURES)} (--figure)"
            )
    draws = figures(budget=parse_size(room.budget), length=parse_tokens(room.length))
    trials, folder = trials_of(run or [], results), to or results / "plots"
    command = session_of(invocation).command
    plots = show_pictures(save_all(trials, folder, command=command, names=names, is_dark=dark, draws=draws), quiet=json)
    if json:
        emit(plots["plots"] | plots["not_drawn"])
    return Exit.DONE
