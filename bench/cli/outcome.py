"""How a run ends: its trials shown, its profiles and pictures written, its exit code."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from statistics import median
from typing import TYPE_CHECKING, Any

from bench.cli.exits import Exit
from bench.cli.screen import draw, emit, put, say, warn
from bench.files import folder_name
from bench.record import Failed, Measured, Trial, latest
from bench.report.drift import drift_json, drift_notes
from bench.report.table import counted, notes_of, trials_grids

if TYPE_CHECKING:
    from bench.cli.campaign import Campaign
    from bench.cli.searching import Hunt
    from bench.report.plot import NotDrawn, Saved
    from bench.tune.search import Finding


def show_trials(trials: Sequence[Trial], *, as_json: bool) -> None:
    """Print trials as tables with notes, or as JSON; of those that repeat a case only what drift they show."""
    cases = [trial for trial in trials if not trial.is_sentinel]
    if as_json:
        emit({"trials": [trial_json(trial) | _derived(trial) for trial in cases], "drift": drift_json(trials)})
        return
    for grid in trials_grids(cases):
        draw(grid)
        say()
    for note in [*notes_of(cases), *drift_notes(trials)]:
        say(note)


def publish(trials: Sequence[Trial], wanted: Campaign, *, command: str, as_json: bool) -> None:
    """Pick settings and show them, then save profiles and pictures under the results folder, and say where.

    A profile is made from all that the store holds of its geometry, so that tuning decodes does not forget prefills;
    tables and pictures show what was asked for. A shard saves neither: it would put its part in the place of the whole.

    Raises:
        StorageError: if the folder does not take them.
    """
    _publish(trials, wanted, command=command, as_json=as_json, pictures=True)


def publish_findings(
    wanted: Hunt, trials: Sequence[Trial], *, command: str, as_json: bool, pictures: bool = True
) -> None:
    """Show what a search found and how, then publish as ``publish`` does.

    Raises:
        StorageError: if the folder does not take them.
    """
    findings = [finding for _, finding in wanted.findings(trials)]
    _publish(
        trials,
        wanted.campaign,
        command=command,
        as_json=as_json,
        pictures=pictures,
        findings=findings,
    )


def _publish(
    trials: Sequence[Trial],
    wanted: Campaign,
    *,
    command: str,
    as_json: bool,
    pictures: bool,
    findings: Sequence[Finding] | None = None,
) -> None:
    from bench.profile.entry import Geometry
    from bench.report.choices import entries_grid, entries_json
    from bench.report.findings import findings_grid, findings_json
    from bench.report.plot import save_all
    from bench.tune.pick import pick

    geometries = {Geometry.of(trial.case) for trial in trials}
    batches = {(trial.case.layout.dcp, trial.case.layout.interleave, trial.case.workload) for trial in trials}
    profiles = [profile for profile in pick(wanted.everything_here()) if profile.geometry in geometries]
    if not as_json:
        for profile in profiles:
            mine = [one for one in findings or () if one.chosen and Geometry.of(one.chosen) == profile.geometry]
            grid = entries_grid(profile, batches)
            draw(replace(grid, footnotes=(*grid.footnotes, *_not_final(mine))))
            say()
        if findings and (how := findings_grid(findings)).rows:
            draw(how)
            say()
        for note in notes_of(trials):
            say(note)
    saved: list[dict[str, Any]] = []
    is_whole = wanted.shard is None
    for profile in profiles if is_whole else ():
        file = profile.save(wanted.results / "profiles")
        saved.append({"file": str(file), "entries": entries_json(profile, batches)})
        if not as_json:
            put(f"profile  {file}")
    plots_folder = wanted.results / "plots" / folder_name(wanted.name)
    found = save_all(trials, plots_folder, command=command) if pictures and is_whole else ()
    plots = show_pictures(found, quiet=as_json)
    if not is_whole:
        warn(
            "Profiles and pictures are made of all shards together: the same command without --shard reads and writes them."
        )
    if as_json:
        search = {} if findings is None else {"search": findings_json(findings)}
        emit({"cases": _counts(trials), "profiles": saved, **search, **plots})


def _not_final(findings: Sequence[Finding]) -> Iterator[str]:
    """Say below what was chosen for how many batches the search is not at its end."""
    if unfinished := sum(not finding.done for finding in findings):
        how_many = f"{unfinished} of {counted(len(findings), 'batch', 'batches')}"
        yield f"Not final for {how_many}: the search is not done; next may be faster."


def show_pictures(pictures: Iterable[Saved | NotDrawn], *, quiet: bool) -> dict[str, dict[str, Any]]:
    """Say where each picture is as it is saved, unless ``quiet``; return the files of each, and why others have none."""
    from bench.report.plot import Saved

    plots: dict[str, list[str]] = {}
    not_drawn: dict[str, str] = {}
    for picture in pictures:
        if isinstance(picture, Saved):
            plots[picture.name] = [str(file) for file in picture.files]
            if not quiet:
                put(f"plot     {'  '.join(plots[picture.name])}")
        else:
            not_drawn[picture.name] = picture.reason
            if not quiet:
                say(f"no plot  {picture.name}: {picture.reason}")
    return {"plots": plots, "not_drawn": not_drawn}


def _counts(trials: Sequence[Trial]) -> dict[str, int]:
    """Return how many cases were measured, skipped and failed, the last trial of each counting."""
    counts = Counter(trial.outcome.kind for trial in latest(trials))
    return {kind: counts[kind] for kind in ("measured", "skipped", "failed")}


def finish(trials: Sequence[Trial], *, interrupted: bool) -> Exit:
    """Return the exit code of a run that left these trials, the last of each case counting."""
    last = latest(trials)
    failed = sum(isinstance(trial.outcome, Failed) for trial in last)
    if interrupted:
        return Exit.INTERRUPTED
    if failed:
        warn(f"{failed} of {counted(len(last), 'case')} failed; 'dcpbench show --json' has the tracebacks.")
        return Exit.FAILED_CASES
    if not any(isinstance(trial.outcome, Measured) for trial in last):
        warn("No case could run here; 'dcpbench doctor' says what can.")
        return Exit.UNFIT
    return Exit.DONE


def _derived(trial: Trial) -> dict[str, Any]:
    """Return what follows from a trial, beside it: what memory was predicted, and of several ranks the skew and the straggler."""
    from bench.estimate import local_ranks
    from bench.need import case_bytes

    derived: dict[str, Any] = {"predicted_bytes": case_bytes(trial.case, local_ranks(trial.case))}
    if isinstance(trial.outcome, Measured) and (skew_us := trial.outcome.skew_us):
        derived |= {"skew_us": median(skew_us), "straggler": trial.outcome.straggler}
    return {"derived": derived}


def trial_json(trial: Trial) -> dict[str, Any]:
    """Return a trial as it stands in its file."""
    from bench.line import encode

    data: dict[str, Any] = json.loads(encode(trial))["trial"]
    return data
