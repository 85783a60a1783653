"""What ships of runs tells of exchanges what the runs do, and is what the command makes of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest

from bench.cli.known import Known
from bench.cli.recommend import _evidence
from bench.errors import UsageError
from bench.files import FileError
from bench.line import encode
from bench.profile.profile import Profile
from bench.recommend.evidence import Evidence, Exchanges, Telling
from bench.recommend.exchanges import main, shipped_lines, telling_lines
from bench.record import Environment, Label, Trial
from bench.shipped import reference_folder, runs_beside, shipped_geometries, shipped_gpus, shipped_profiles
from bench.store import Store
from bench.tune.pick import pick
from dcp_core.settings import PathName
from tests.bench.made_up import cases, trial


def decodes(*batches: str, exchange: str = "loopback", tp: int = 8) -> list[Trial]:
    """Return made-up decode steps of groups of two, of ranks with 64 / tp heads."""
    found = map(trial, cases(batches, tp=tp, dcps=[2], exchanges=[exchange], kernels=["fa2"]))
    return [one for one in found if one.case.settings.path is PathName.DECODE]


def picked(trials: Iterable[Trial]) -> Profile:
    (profile,) = (one for one in pick(trials) if one.geometry.q_heads == 16)
    return profile


def exchanges_of(folder: Path, profile: Profile) -> Exchanges:
    return Exchanges.of(Store.read(folder, reader=Telling({2: profile}))[0])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder of two runs and a profile of two simulated decodes, beside which the first run has real exchanges.

    Those of ranks with 8 heads tell of the profile's 16 in groups of 2, those of ranks with 4 in groups of 4.
    """
    simulated, others = decodes("32q1s32k", "64q1s32k"), map(trial, cases(["8q1s8k"], dcps=[1], kernels=["fa2"]))
    picked(simulated).save(tmp_path / "profiles")
    told = [*simulated, *decodes("q1s16", "8q1s16", exchange="ag_rs"), *decodes("q1s16", exchange="ag_rs", tp=16)]
    (tmp_path / "one.jsonl").write_bytes(b"".join(map(encode, told)))
    (tmp_path / "two.jsonl").write_bytes(b"".join(map(encode, others)))
    return tmp_path


def test_what_ships_is_what_the_command_makes_of_the_runs_and_profiles_that_are_here() -> None:
    """If it is not: python -m bench.recommend.exchanges results/reference/h200."""
    for gpu in shipped_gpus():
        folder = reference_folder() / gpu
        shipped = {path.name: path.read_bytes() for path in (folder / "exchanges").iterdir()}
        assert shipped == shipped_lines(folder)


@pytest.mark.parametrize(
    ("gpu", "geometry"), [(gpu, name) for gpu in shipped_gpus() for name in shipped_geometries(gpu)]
)
def test_what_ships_tells_of_every_geometry_what_its_runs_do(gpu: str, geometry: str) -> None:
    (path,) = shipped_profiles(geometry, gpu)
    profile = Profile.load(path)
    heads = profile.geometry.q_heads
    sizes = [dcp for dcp in range(1, heads + 1) if heads % dcp == 0]
    trials, notices = Store.read(path.parent.parent, reader=Telling(dict.fromkeys(sizes, profile)))
    of_runs = Evidence.of(profile, trials)
    answering = _evidence(dict.fromkeys(sizes, Known(path, profile, ())))[heads]
    assert notices == []
    assert answering.beside() == of_runs.beside()
    assert answering.beside().models
    assert answering.way == of_runs.way
    assert (answering.way is not None) == any(entry.label is Label.SIMULATED for entry in profile.entries)


def test_profiles_that_ship_are_read_with_what_ships_and_others_with_the_runs_beside_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shipped = reference_folder() / "h200"
    assert runs_beside(shipped / "profiles" / "any.json") == shipped / "exchanges"
    assert runs_beside(tmp_path / "profiles" / "any.json") == tmp_path
    monkeypatch.chdir(reference_folder())
    assert runs_beside(Path("h200/profiles/any.json")) == Path("h200/exchanges")
    (tmp_path / "linked").symlink_to(shipped)
    assert runs_beside(tmp_path / "linked" / "profiles" / "any.json") == tmp_path / "linked" / "exchanges"


def test_the_command_copies_lines_that_tell_something_and_leaves_no_older_ones(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "exchanges").mkdir()
    (folder / "exchanges" / "older.jsonl").write_bytes(b"gone\n")
    assert main([str(folder)]) == 0
    assert f"{folder / 'exchanges'}: 4 lines of 1 runs" in capsys.readouterr().out
    (copy,) = (folder / "exchanges").iterdir()
    first, _again, *real = (folder / "one.jsonl").read_bytes().splitlines(keepends=True)
    assert (copy.name, copy.read_bytes()) == ("one.jsonl", b"".join([first, *real]))


def test_what_is_copied_tells_each_profile_all_in_whatever_order_they_are_read(folder: Path) -> None:
    """Of one geometry on two machines: what tells how it was timed may be among the proofs of the other profile alone."""
    here = decodes("32q1s32k", "64q1s32k")
    elsewhere = [replace(one, environment=Environment({"device_name": "NVIDIA H100"})) for one in here]
    (folder / "two.jsonl").write_bytes(b"".join(map(encode, elsewhere)))
    profiles = picked(here), picked(elsewhere[1:])
    of_runs = [exchanges_of(folder, profile) for profile in profiles]
    found = telling_lines(folder, profiles)
    assert found == telling_lines(folder, reversed(profiles))
    for name, lines in found.items():
        (folder / name).write_bytes(lines)
    assert [exchanges_of(folder, profile) for profile in profiles] == of_runs
    assert all(one.ways for one in of_runs)


def test_nothing_ships_of_damaged_runs_or_without_profiles(folder: Path) -> None:
    run = folder / "one.jsonl"
    run.write_bytes(run.read_bytes().replace(b'"seconds":', b'"seconds":1'))
    with pytest.raises(FileError, match="its checksum does not match"):
        shipped_lines(folder)
    with pytest.raises(UsageError, match="no runs with profiles beside them"):
        shipped_lines(folder / "profiles")
