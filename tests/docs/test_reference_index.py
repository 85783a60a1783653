"""The index of the reference lists every run and profile that ships, and says of each what stands in it."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

from bench.profile import Profile
from bench.record import Failed, Measured, Skipped
from bench.shipped import EXCHANGES
from bench.store import read_run

REFERENCE = Path(__file__).parents[2] / "results" / "reference"
INDEX = (REFERENCE / "README.md").read_text(encoding="utf-8")
NOT_RIGHT = "h200/searches/20261129T043815.168220Z-711bd9.jsonl"
"""The run with the one trial whose result the oracle refused, as h200/README.md tells."""
RUNS = dict(re.findall(r"^\| `([^`]+\.jsonl)` \| .* \| (\d+ \| \d+ \| \d+ \| \w+) \|$", INDEX, re.MULTILINE))
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


@pytest.mark.parametrize("name", PROFILES)
def test_a_profile_is_what_the_index_says(name: str) -> None:
    profile = Profile.load(REFERENCE / "h200" / "profiles" / name)
    layouts = sorted({entry.layout for entry in profile.entries}, key=lambda layout: (layout.dcp, layout.tp))
    assert PROFILES[name] == f"{len(profile.entries)} | {'; '.join(map(str, layouts))}"
