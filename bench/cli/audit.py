"""``dcpbench audit``: whether what this machine measures is so, by a second timer, and by races of cases against themselves."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from bench.cli.exits import Exit
from bench.cli.options import Asked, Running, session_of
from bench.cli.screen import draw, emit, put, say, screen, warn
from bench.grid import Column, Grid
from bench.record import Failed, Heat, Measured, Skipped, Trial
from bench.report.table import NOT_MEASURED, case_name, counted, micros
from bench.tune.known import REPEATS, paired
from bench.tune.search import ROUNDS
from bench.verdict import FLOORS, Comparison

if TYPE_CHECKING:
    from bench.audit import Audited
    from bench.supervisor import Supervisor
    from dcp_core.settings import Case

Stage = tuple["Audited", "Audited"]
"""A stage, or the whole step, and the smallest kernel beside it."""
RACES = 3
"""Of each case against itself; a search may run as many before it believes."""


@dataclass(frozen=True, slots=True)
class Examined:
    """What two timers say of a case's stages, and how it raced against itself; or why not."""

    case: Case
    timed: list[Audited] | Skipped | Failed
    raced: Comparison | Skipped | Failed


def audit(
    invocation: typer.Context,
    asked: Asked,
    running: Running,
    cases: Annotated[
        int, typer.Option(min=1, max=10_000, metavar="N", help="Cases, drawn from what is asked for.")
    ] = 20,
    time_budget: Annotated[
        str | None,
        typer.Option("--time-budget", metavar="TIME", help="Begin no other case after 90s, 10m, 2h."),
    ] = None,
) -> int:
    """Check the measuring itself on a sample of cases: with a second timer, and by racing each case against itself.

    CUPTI, through torch's profiler, times the same repetitions of each stage; the two should agree within 3 % in 95 % of
    stages, and exit code 1 says that they do not. Stages under ten timer floors, which trials flag, are told apart. Between
    ranks each stage is told of the one on which the timers are furthest apart. Of a case raced against itself neither should be
    called faster. Nothing is stored; --json prints all; Ctrl-C ends it with what it has.

    Examples:
      dcpbench audit decode
      dcpbench --ranks 2 audit decode --cases 30
      dcpbench audit prefill --cases 40 --time-budget 10m --json
    """
    from bench.cli.campaign import campaign, said
    from bench.cli.searching import seconds_of
    from bench.errors import UsageError
    from bench.supervisor import Supervisor

    session = session_of(invocation)
    if running.cluster is not None or running.shard is not None:
        raise UsageError("an audit is of one machine: leave --cluster and --shard")
    budget_s = seconds_of(time_budget) if time_budget is not None else math.inf
    wanted = campaign(asked, running, session.ranks)
    hopeless = wanted.obstacles(wanted.cases)
    able = [case for case in wanted.cases if case not in hopeless]
    chosen = random.Random(wanted.policy.seed).sample(able, min(cases, len(able)))
    if not chosen:
        raise UsageError(
            f"nothing that was asked for runs here: {next(iter(hopeless.values()))}; 'dcpbench doctor' says what does"
        )
    warn(f"{wanted.name}: {counted(len(chosen), 'case')} of {len(wanted.cases)} to audit.")
    if running.dry_run:
        for case in chosen:
            put(case_name(case))
        return Exit.DONE
    ranks, alone = wanted.machine.ranks, not running.anyway
    opened = screen(len(chosen), float(len(chosen)), forecast=False)
    with Supervisor(ranks, wanted.policy, alone=alone) as supervisor, opened as view:
        supervisor.told = view.compiling
        found: list[Examined] = []
        interrupted, end_s = False, time.monotonic() + budget_s
        try:
            for one in _examine(said(chosen, view), supervisor, wanted.policy.max_seconds):
                found.append(one)
                view.advance(case_name(one.case), 1.0)
                if time.monotonic() > end_s and len(found) < len(chosen):
                    warn(f"The time budget is spent after {counted(len(found), 'case')} of {len(chosen)}.")
                    break
        except KeyboardInterrupt:
            warn(f"Stopped after {counted(len(found), 'case')} of {len(chosen)}.")
            interrupted = True
    made = {"command": session.command, "environment": asdict(wanted.machine.environment)}
    end = _tell(found, made, as_json=running.json)
    return Exit.INTERRUPTED if interrupted else end


def _examine(cases: Iterable[Case], supervisor: Supervisor, most_s: float) -> Iterator[Examined]:
    """Yield what comes of each case.

    Args:
        most_s: that a case races, at most, once it has been raced: as a search has it, which samples no case for longer.
    """
    from bench.audit import twin

    for case, timed in supervisor.audit(cases):
        both, trials = (case, twin(case)), list[Trial]()
        for _ in range(RACES):
            trials += supervisor.race(both, Heat.RACED, rounds=ROUNDS, repeats=REPEATS)
            if _raced_s(trials, case) >= most_s:
                break
        first, second = ([trial for trial in trials if trial.case == one] for one in both)
        ended = [trial.outcome for trial in trials if isinstance(trial.outcome, Skipped | Failed)]
        raced = paired(first, second, Heat.RACED) or next(iter(ended), Skipped("its races were not of both"))
        yield Examined(case, timed, raced)


def _raced_s(trials: Iterable[Trial], case: Case) -> float:
    """Return for how long a case was sampled."""
    steps = [trial.outcome.step_us for trial in trials if trial.case == case and isinstance(trial.outcome, Measured)]
    return sum(step.count * step.median for step in steps) * 1e-6


def _tell(found: Sequence[Examined], made: Mapping[str, object], *, as_json: bool) -> Exit:
    from bench.audit import SHARE, TOLERANCE, false_share

    long, short = _stages(found)
    agree, stages = sum(one.agrees for one, _ in long), len(long)
    races = [one.raced for one in found if isinstance(one.raced, Comparison)]
    end = Exit.DONE if agree >= SHARE * stages else Exit.DIFFERENT
    if as_json:
        agreeing = {"agree": agree, "short_agree": sum(one.agrees for one, _ in short)}
        told = {"stages": stages, "short": len(short), **agreeing, "races": len(races)}
        emit({**made, **told, "false_share": false_share(races), "cases": _json(found)})
        return end
    draw(_grid(found))
    say()
    if stages:
        say(
            f"Two timers agree within {TOLERANCE:.0%} in {agree} of {counted(stages, 'stage')} of {FLOORS} timer floors or more."
        )
    if short:
        worst = max(abs(one.apart_us) for one, _ in short)
        say(f"In {counted(len(short), 'shorter one')}, which trials flag, they are {micros(worst)} µs apart at most.")
    if races:
        share = false_share(races)
        say(f"Of {counted(len(races), 'case')} raced against itself, one was called faster in {share:.1%}.")
    for what, outcomes in (("timed twice", [one.timed for one in found]), ("raced", [one.raced for one in found])):
        for reason in sorted({_reason(outcome) for outcome in outcomes if isinstance(outcome, Skipped | Failed)}):
            say(f"not {what}: {reason}")
    return end


def _stages(found: Sequence[Examined]) -> tuple[list[Stage], list[Stage]]:
    """Return the stages of ten floors or more, then the shorter ones."""
    stages = [(one, each.timed[0]) for each in found if isinstance(each.timed, list) for one in each.timed[1:]]
    return [one for one in stages if not one[0].is_short(one[1])], [one for one in stages if one[0].is_short(one[1])]


def _reason(outcome: Skipped | Failed) -> str:
    return outcome.reason if isinstance(outcome, Skipped) else f"{outcome.fault}: {outcome.message}"


def _grid(found: Sequence[Examined]) -> Grid:
    columns = (
        Column("case", wrap=True),
        Column("stage"),
        Column("events µs", right=True),
        Column("CUPTI µs", right=True),
        Column("apart", right=True),
        Column("against itself", right=True),
    )
    rows: list[tuple[str, ...]] = []
    for one in found:
        name, timed = case_name(one.case), one.timed if isinstance(one.timed, list) else []
        race = str(one.raced.verdict) if isinstance(one.raced, Comparison) else NOT_MEASURED
        rows += [
            (name, each.stage, micros(each.events_us), micros(each.cupti_us), f"{each.error:+.1%}", race)
            for each in timed[1:]
        ]
        if not timed:
            rows.append((name, *4 * [NOT_MEASURED], race))
    note = (
        "apart: what events read more than CUPTI, beyond what they do around the smallest kernel; between ranks, of the one on "
        "which they are furthest apart."
    )
    return Grid("Two timers, and each case against itself", columns, tuple(rows), footnotes=(note,))


def _json(found: Sequence[Examined]) -> list[dict[str, object]]:
    return [
        {
            "case": one.case.to_json(),
            "timed": [asdict(each) for each in one.timed] if isinstance(one.timed, list) else _reason(one.timed),
            "raced": asdict(one.raced) if isinstance(one.raced, Comparison) else _reason(one.raced),
        }
        for one in found
    ]
