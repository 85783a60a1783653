"""What a report says in whichever form, and that as Markdown: short enough for a pull request. Standard library only."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from bench.grid import Column, Grid, markdown, printable
from bench.profile.profile import Profile
from bench.record import Environment, Failed, Skipped, Trial, latest
from bench.report.choices import entries_grid
from bench.report.command import command_of
from bench.report.dcp_choice import dcp_choices
from bench.report.table import counted, dcp_of, notes_of, settings_line

WHAT_WORDS_MEAN = (
    "batch: 8q4s32k is eight requests with 4 new tokens each, of 32768 in total. 8×4: such ones. via: who exchanges.",
    "fastest: with each dcp's best settings, below all others by more than the 95 % intervals; pays: below dcp 1 by as much.",
    "best larger / dcp 1: what the best larger size takes of dcp 1's time, least to most; … where an exchange was not timed.",
    "/default: the time over that of what the engine runs by itself. next: the runner-up's time over the chosen one's.",
    "measured: the group ran on as many devices or processes as it has ranks.",
    "simulated: all its ranks ran on one device and were checked; the fullest was timed alone, without the exchange.",
    "modelled: simulated, with an exchange added that was fitted to those measured between ranks of the same machine.",
    "warm: caches were not emptied before each repetition. eager: launched by the host, not replayed from a CUDA graph.",
)


def to_markdown(trials: Sequence[Trial], profiles: Sequence[Profile], *, command: str) -> str:
    """Return Markdown about some trials: which dcp, which settings, what was skipped, and the machine; no pictures.

    Args:
        profiles: picked from them.
        command: that prints it again.
    """
    last = latest(trials)
    parts = [f"## {_text(about(last))}", f"Printed by {_text(command)}"]
    for choice in dcp_choices(last):
        parts += [
            f"### {_text(choice.subject)}",
            _list(choice.says),
            *([choice.grid.to_markdown()] if choice.grid else []),
        ]
    parts += ["### Settings", _text(gains(profiles)), *(entries_grid(profile).to_markdown() for profile in profiles)]
    parts += ["### Skipped, failed, flagged", _list(notes_of(last) or ["Nothing."])]
    parts += ["### Where it was measured", _machines(last).to_markdown()]
    return "\n\n".join([*parts, "### Words", _list(WHAT_WORDS_MEAN)]) + "\n"


def about(trials: Sequence[Trial]) -> str:
    """Return how many cases these are, of which devices and days."""
    devices = ", ".join(dict.fromkeys(_device(trial.environment) for trial in trials))
    days = sorted({trial.time[:10] for trial in trials})
    return f"{counted(len(trials), 'case')} on {devices}, {days[0]}{f' to {days[-1]}' if len(days) > 1 else ''}"


def gains(profiles: Sequence[Profile]) -> str:
    """Say how many of the choices are faster than the engine's default, and which is so most."""
    entries = [entry for profile in profiles for entry in profile.entries]
    faster = [entry for entry in entries if (entry.ratio_to_default or 1.0) < 1.0]
    if not entries:
        return "Nothing here was measured, so there is nothing to choose."
    if not faster:
        return f"Of {counted(len(entries), 'choice')}, none was shown to be faster than the engine's default."
    best = min(faster, key=lambda entry: entry.ratio_to_default or 1.0)
    return (
        f"Of {counted(len(entries), 'choice')}, {len(faster)} {'is' if len(faster) == 1 else 'are'} faster than the engine's "
        f"default. Most so for {best.workload} at dcp {best.layout.dcp}: {settings_line(best.settings)} takes "
        f"{best.ratio_to_default:.0%} of the default's time."
    )


def others_grid(trials: Sequence[Trial]) -> Grid:
    """Return what was skipped and what failed, each with its reason and its command."""
    found = []
    for trial in trials:
        match trial.outcome:
            case Skipped(reason=reason):
                found.append((trial, "skipped", reason))
            case Failed(fault=fault, message=message):
                found.append((trial, "failed", f"{fault}: {message}"))
    rows = (
        (what, f"{one.case.workload} dcp {dcp_of(one.case)} {settings_line(one.case.settings)}", why, command_of(one))
        for one, what, why in found
    )
    return Grid("", (Column("what"), Column("case"), Column("why"), Column("again")), tuple(rows))


def machine_grids(trials: Sequence[Trial]) -> list[Grid]:
    """Return the fingerprint of every environment, hard fields first."""
    grids = []
    for environment in _environments(trials):
        parts = (environment.hard, environment.soft)
        rows = tuple((name, value) for part in parts for name, value in sorted(part.items()))
        grids.append(Grid(_device(environment), (Column("what"), Column("found")), rows))
    return grids


def _machines(trials: Sequence[Trial]) -> Grid:
    """Return the fingerprints of all environments in one table, with every value that a field has."""
    found: dict[str, dict[str, None]] = defaultdict(dict)
    for grid in machine_grids(trials):
        for name, value in grid.rows:
            found[name][value] = None
    rows = tuple((name, "; ".join(values)) for name, values in found.items())
    return Grid("", (Column("what"), Column("found")), rows)


def _environments(trials: Sequence[Trial]) -> list[Environment]:
    seen: list[Environment] = []
    for trial in trials:
        if trial.environment not in seen:
            seen.append(trial.environment)
    return seen


def _device(environment: Environment) -> str:
    return environment.hard.get("device_name", "an unknown device")


def _list(sentences: Sequence[str]) -> str:
    return "\n".join(f"- {_text(sentence)}" for sentence in sentences)


def _text(text: str) -> str:
    return markdown(printable(text))
