"""``dcpbench tune``: measure, choose, save a profile, draw."""

from __future__ import annotations

import typer

from bench.cli.options import Asked, Running, session_of


def tune(invocation: typer.Context, asked: Asked, running: Running) -> int:
    """The main job: measure what is lacking, pick settings for each batch, write profiles and plots.

    Takes what [bold]sweep[/bold] takes. The fastest settings of each batch win, unless the engine's default is as fast
    within the noise. Ends with a table, a profile to look settings up in, and pictures.

    Examples:
      dcpbench tune quick
      dcpbench --ranks 2 tune decode --model qwen3-30b-a3b --precision strict
    """
    from bench.cli.campaign import campaign, measure
    from bench.cli.dry_run import show_plan
    from bench.cli.outcome import finish, publish
    from bench.tune.pick import check_size

    session = session_of(invocation)
    wanted = campaign(asked, running, session.ranks)
    check_size(wanted.cases)
    if running.dry_run:
        return show_plan(wanted, as_json=running.json)
    trials, interrupted = measure(wanted, session.command)
    if not interrupted:
        publish(trials, wanted, command=session.command, as_json=running.json)
    return finish(trials, interrupted=interrupted)
