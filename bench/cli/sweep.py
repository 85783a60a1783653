"""``dcpbench sweep``: measure, and nothing else."""

from __future__ import annotations

import typer

from bench.cli.options import Asked, Running, session_of


def sweep(invocation: typer.Context, asked: Asked, running: Running) -> int:
    """Measure what a sweep asks for and the results folder lacks.

    A sweep is a shipped one by name, a TOML file, or typed as options alone. Every case is checked against a float64
    oracle before it is timed, and is on disk before the next begins: stop at any time and run the same command again.

    Examples:
      dcpbench sweep seed --dry-run
      dcpbench sweep --model qwen3-32b --tp 16 --dcp 1,2 --batch 8q1s32k
      dcpbench sweep decode --shard $SLURM_ARRAY_TASK_ID/8
      dcpbench --ranks 2 sweep decode --cluster auto
    """
    from bench.cli.campaign import campaign, is_empty, joined, measure
    from bench.cli.dry_run import show_plan
    from bench.cli.exits import Exit
    from bench.cli.outcome import finish, show_trials

    session = session_of(invocation)
    with joined(running, session.ranks) as cluster:
        wanted = campaign(asked, running, session.ranks, cluster)
        if is_empty(wanted):
            show_trials([], as_json=running.json)
            return Exit.DONE
        if running.dry_run:
            return show_plan(wanted, as_json=running.json)
        trials, interrupted = measure(wanted, session.command)
    show_trials(trials, as_json=running.json)
    return finish(trials, interrupted=interrupted)
