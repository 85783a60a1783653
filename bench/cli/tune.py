"""``dcpbench tune``: measure, choose, save a profile, draw."""

from __future__ import annotations

from typing import Annotated

import typer

from bench.cli import completion
from bench.cli.options import Asked, Running, session_of

_SEARCH = "How to search"


def tune(
    invocation: typer.Context,
    asked: Asked,
    running: Running,
    search: Annotated[
        str,
        typer.Option(
            metavar="race|exhaustive",
            help="race: look at all, race the best, confirm the winner in a fresh process. "
            "exhaustive: measure each by itself.",
            autocompletion=completion.searches,
            rich_help_panel=_SEARCH,
        ),
    ] = "race",
    space: Annotated[
        str,
        typer.Option(
            metavar="sweep|all",
            help="Settings to choose among: those that the sweep lists, or all that run here.",
            autocompletion=completion.spaces,
            rich_help_panel=_SEARCH,
        ),
    ] = "sweep",
    time_budget: Annotated[
        str | None,
        typer.Option(
            "--time-budget",
            metavar="TIME",
            help="Stop searching after 90s, 10m, 2h: a look at every batch first, then the longest steps.",
            rich_help_panel=_SEARCH,
        ),
    ] = None,
) -> int:
    """The main job: find the fastest settings for each batch, write profiles and plots.

    Takes what [bold]sweep[/bold] takes: the batches and layouts, and the settings to choose among. Settings replace the
    engine's default only if they beat it in a fresh process, by more than 0.5 %. Ends with a table, a profile to look
    settings up in, and pictures. Stop at any time and run the same command again: it goes on.

    Examples:
      dcpbench tune quick
      dcpbench --ranks 2 tune decode --space all --time-budget 10m
    """
    from bench.cli.campaign import campaign, is_empty, measure
    from bench.cli.dry_run import show_plan, show_search
    from bench.cli.exits import Exit
    from bench.cli.outcome import finish, publish, publish_findings, show_trials
    from bench.cli.searching import Search, Space, choice, hunt, plan, seconds_of
    from bench.errors import UsageError
    from bench.tune.pick import check_size

    if running.cluster is not None:
        raise UsageError("--cluster is sweep's: what races meets in one process, so split a search with --shard")
    session = session_of(invocation)
    how, where = choice("--search", search, Search), choice("--space", space, Space)
    budget_s = seconds_of(time_budget) if time_budget is not None else None
    wanted = campaign(asked, running, session.ranks)
    if is_empty(wanted):
        show_trials([], as_json=running.json)
        return Exit.DONE
    check_size(wanted.cases)
    if how is Search.EXHAUSTIVE:
        if budget_s is not None:
            raise UsageError("--time-budget goes with --search race: an exhaustive search measures every candidate")
        if where is Space.ALL:
            wanted = plan(wanted, where).campaign
        if running.dry_run:
            return show_plan(wanted, as_json=running.json)
        trials, interrupted = measure(wanted, session.command)
        if not interrupted:
            publish(trials, wanted, command=session.command, as_json=running.json)
        return finish(trials, interrupted=interrupted)
    if running.dry_run:
        return show_search(plan(wanted, where), as_json=running.json)
    searched, trials, interrupted = hunt(wanted, where, budget_s=budget_s, command=session.command)
    publish_findings(searched, trials, command=session.command, as_json=running.json, pictures=not interrupted)
    return finish(trials, interrupted=interrupted)
