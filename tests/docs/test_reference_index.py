"""The index of the reference lists every run and profile that ships, and says of each what stands in it."""

from __future__ import annotations

import argparse
import re
import shlex
from collections import Counter
from dataclasses import fields
from pathlib import Path

import pytest

from bench.cli.options import Asked
from bench.profile import Profile
from bench.record import Environment, Failed, Measured, Skipped
from bench.shipped import EXCHANGES
from bench.store import read_run
from bench.sweep import Sweep
from bench.tune.space import batches_of
from dcp_core.settings import Case

AXES = [field.name for field in fields(Asked) if field.name not in ("sweep", "set", "synthetic")]
REFERENCE = Path(__file__).parents[2] / "results" / "reference"
INDEX = (REFERENCE / "README.md").read_text(encoding="utf-8")
NOT_RIGHT = "h200/searches/20261129T043815.168220Z-711bd9.jsonl"
"""The run with the one trial whose result the oracle refused, as h200/README.md tells."""
RUNS = dict(re.findall(r"^\| `([^`]+\.jsonl)` \| .* \| (\d+ \| \d+ \| \d+ \| \w+) \|$", INDEX, re.MULTILINE))
MADE_BY = dict(re.findall(r"^\| `([^`]+\.jsonl)` \| (.*) \| \d+ \| \d+ \| \d+ \| \w+ \|$", INDEX, re.MULTILINE))
OTHERWISE = {
    "h200/20261128T215445.738636Z-ad105e.jsonl": "`heads` had heads of 256 in it then",
    "h200/searches/20261129T043617.744926Z-c32867.jsonl": "`heads` had heads of 256 in it then",
    "h200/searches/20261129T045152.494671Z-58743a.jsonl": "`heads` had heads of 256 in it then",
    "h200/searches/20261129T043613.908770Z-723fd2.jsonl": "`decode` had other batches in it then",
    "h200/searches/20261129T043815.168220Z-711bd9.jsonl": "`prefill` had other batches in it then",
    "h200/apart/20261129T002124.479757Z-c47fbe.jsonl": "the README has its command, and test_shown.py its table",
}
"""Runs whose cases are not what the command of their row makes of the sweeps of today."""
PROFILES = dict(re.findall(r"^\| `([^`]+\.json)` \| (\d+ \| .*) \|$", INDEX, re.MULTILINE))


def test_the_index_lists_the_runs_and_profiles_that_ship_and_no_others() -> None:
    runs = {path for path in REFERENCE.rglob("*.jsonl") if path.parent.name != EXCHANGES}
    assert set(RUNS) == {str(path.relative_to(REFERENCE)) for path in runs}
    assert set(PROFILES) == {path.name for path in REFERENCE.rglob("profiles/*.json")}


def test_what_a_wheel_carries_of_the_runs_is_what_the_index_says() -> None:
    copies = sorted(REFERENCE.rglob(f"{EXCHANGES}/*.jsonl"))
    for copy in copies:
        run = copy.parent.parent / copy.name
        assert set(copy.read_bytes().splitlines()) <= set(run.read_bytes().splitlines())
    lines = sum(copy.read_bytes().count(b"\n") for copy in copies)
    size = sum(copy.stat().st_size for copy in copies)
    assert f"{lines} lines of {len(copies)} runs, {size / 1e6:.1f} MB" in " ".join(INDEX.split())


@pytest.mark.parametrize("name", RUNS)
def test_a_run_is_what_the_index_says(name: str) -> None:
    trials, notices = read_run(REFERENCE / name, sentinels=True)
    assert notices == []
    skipped = [trial for trial in trials if isinstance(trial.outcome, Skipped)]
    failed = [trial.outcome.fault for trial in trials if isinstance(trial.outcome, Failed)]
    assert failed == (["incorrect"] if name == NOT_RIGHT else [])
    assert not skipped or name.startswith(("h200/exhaustive/", "h200/apart/"))
    cases = [trial for trial in trials if not trial.is_sentinel]
    labels = Counter(str(trial.outcome.label) for trial in cases if isinstance(trial.outcome, Measured))
    (commit,) = {trial.environment.soft["dcpbench"] for trial in trials}
    seconds = sum(trial.seconds for trial in trials)
    assert RUNS[name] == f"{labels['measured']} | {labels['simulated']} | {seconds:.0f} | {commit}"
    assert labels.keys() <= {"measured", "simulated"}


def numbered() -> dict[str, str]:
    """Return the commands in full, by their numbers, with what their variables stand for."""
    variables = dict(re.findall(r'^    (\w)="(.*)"$', INDEX, re.MULTILINE))
    found = dict(re.findall(r"^    # (\d+)\n    (dcpbench .*)$", INDEX, re.MULTILINE))
    return {number: re.sub(r"\$(\w)", lambda name: variables[name[1]], command) for number, command in found.items()}


def command_of(name: str) -> argparse.Namespace:
    """Read the command that made a run: by its number, or as it stands in the row."""
    number = re.search(r"\[command (\d+)\]", MADE_BY[name])
    command = numbered()[number[1]] if number else re.findall(r"`(dcpbench [^`]+)`", MADE_BY[name])[0]
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("verb", choices=("sweep", "tune"))
    parser.add_argument("sweep", nargs="?")
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--set", action="append")
    for axis in AXES:
        parser.add_argument(f"--{axis}", action="append")
    for option in ("--space", "--search", "--time-budget"):
        parser.add_argument(option)
    for option in ("--trace", "--eager"):
        parser.add_argument(option, action="store_true")
    return parser.parse_args(shlex.split(command)[1:])


def asked_for(command: argparse.Namespace, environment: Environment) -> list[Case]:
    """Return the cases that a command asks for on a GPU; of a search the candidates, the engine's defaults among them."""
    asked = Asked(command.sweep, set=command.set, **{axis: getattr(command, axis) for axis in AXES})
    if command.sweep:
        sweep = Sweep.load(command.sweep, on_gpu=True)
        sweep = sweep.override(asked.axes(), asked.settings()) if asked.axes() else sweep
    else:
        sweep = Sweep.from_options(asked.axes(), asked.settings(), on_gpu=True)
    cases = list(sweep.expand(command.ranks).cases)
    if command.verb == "sweep":
        return cases
    return [case for batch in batches_of(cases, environment, cold=True) for case in batch.candidates]


@pytest.mark.parametrize("name", sorted(MADE_BY.keys() - OTHERWISE.keys()))
def test_a_run_holds_the_cases_that_its_command_asks_for(name: str) -> None:
    """All of them, but where the run was stopped or went on with one that was, or raced what was not known already."""
    command, (trials, _) = command_of(name), read_run(REFERENCE / name)
    asked = asked_for(command, trials[0].environment)
    if command.space == "all":  # of settings that the machine had
        assert {(trial.case.layout, trial.case.workload) for trial in trials} <= {
            (case.layout, case.workload) for case in asked
        }
        return
    wanted, found = {case.key for case in asked}, {trial.case.key for trial in trials}
    raced = command.verb == "tune" and command.search != "exhaustive"
    partly = re.search(r"stopped after|the rest of|it holds", MADE_BY[name])
    assert found <= wanted if raced or partly else found == wanted
    assert {trial.policy.trace for trial in trials} == {command.trace and "without `--trace`" not in MADE_BY[name]}


def test_every_command_in_full_made_a_run() -> None:
    assert set(numbered()) == set(re.findall(r"\[command (\d+)\]", INDEX))
    assert OTHERWISE.keys() <= MADE_BY.keys()


@pytest.mark.parametrize("name", PROFILES)
def test_a_profile_is_what_the_index_says(name: str) -> None:
    profile = Profile.load(REFERENCE / "h200" / "profiles" / name)
    layouts = sorted({entry.layout for entry in profile.entries}, key=lambda layout: (layout.dcp, layout.tp))
    assert PROFILES[name] == f"{len(profile.entries)} | {'; '.join(map(str, layouts))}"
