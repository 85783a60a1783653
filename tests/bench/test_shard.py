"""Parts of a sweep for several machines: every case in one of them, those that compete together, and locks that agree."""

from __future__ import annotations

from collections import Counter
from itertools import combinations
from pathlib import Path

import pytest

from bench.cli import main
from bench.cli.exits import Exit
from bench.errors import UsageError
from bench.shard import Shard
from bench.store import LockedError, Store
from dcp_core.settings import Case
from tests.bench.cases import tiny
from tests.bench.made_up import cases
from tests.bench.stand_in import Scripted

SWEEP = (
    "--model",
    "tiny",
    "--tp",
    "4",
    "--dcp",
    "1,2",
    "--context",
    "512,1k,2k",
    "--new",
    "1,8",
    "--exchange",
    "ag_rs",
)
MANY = [case for requests in range(1, 30) for case in cases([f"{requests}q1s1k", f"{requests}q8s1k"])]


@pytest.fixture(autouse=True)
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw no pictures, which takes seconds."""
    monkeypatch.setattr("bench.report.plot.save_all", lambda *_, **__: ())


def run(*words: str | Path) -> int:
    return main([str(word) for word in words])


# --- Which part -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 3, 8, 40])
def test_every_case_lies_in_one_part_and_what_competes_with_it_in_the_same(count: int) -> None:
    parts = [Shard(number, count) for number in range(1, count + 1)]
    homes: dict[tuple[object, ...], set[int]] = {}
    for case in MANY:
        (home,) = (part.number for part in parts if part.holds(case))
        homes.setdefault((case.shape, case.layout, case.workload), set()).add(home)
    assert all(len(found) == 1 for found in homes.values())
    assert len(homes) < len(MANY)


def test_parts_are_about_equal() -> None:
    batches = {(case.shape, case.layout, case.workload): case for case in MANY}.values()
    sizes = Counter(number for case in batches for number in range(1, 5) if Shard(number, 4).holds(case))
    assert all(0.5 < 4 * sizes[number] / len(batches) < 1.5 for number in range(1, 5))


def test_a_part_does_not_depend_on_what_a_model_is_called_or_what_else_is_asked_for() -> None:
    # Machines of one job may run versions of a sweep that differ; what was measured where must not change with them.
    held = [str(number) for number in range(1, 8) if Shard(number, 7).holds(tiny("q8s32", dcp=2))]
    assert held == [str(number) for number in range(1, 8) if Shard(number, 7).holds(tiny("q8s32", dcp=2, name="other"))]
    assert held == [str(number) for number in range(1, 8) if Shard(number, 7).holds(tiny("q8s32", dcp=2, path="fold"))]


def test_a_part_is_read_as_it_is_written() -> None:
    assert [Shard.parse(str(part)) for part in (Shard(1, 1), Shard(3, 8))] == [Shard(1, 1), Shard(3, 8)]


@pytest.mark.parametrize("text", ["", "0/4", "5/4", "1", "1/", "1/4/2", "-1/4", "1/99999", "½/2", "a/b"])
def test_what_is_no_part_is_refused_in_a_sentence(text: str) -> None:
    with pytest.raises(UsageError, match=r"^--shard is a part and their count, 1/8 to 8/8 and 9999 at most, not '"):
        Shard.parse(text)


# --- Locks --------------------------------------------------------------------------------------------------------------


def test_shards_write_to_one_folder_side_by_side_and_each_once(tmp_path: Path) -> None:
    with Store.open(tmp_path, Shard(1, 2)), Store.open(tmp_path, Shard(2, 2)):
        with pytest.raises(LockedError, match=r"in use by process \d+ on .+ since 2"):
            Store.open(tmp_path, Shard(1, 2))
        with pytest.raises(LockedError, match=r"in use by process \d+ on .+ since 2"):
            Store.open(tmp_path)
    with Store.open(tmp_path), pytest.raises(LockedError, match=r"in use by process \d+ on .+ since 2"):
        Store.open(tmp_path, Shard(1, 2))
    Store.open(tmp_path, Shard(1, 2)).close()


def test_a_shard_that_is_refused_keeps_no_lock(tmp_path: Path) -> None:
    with Store.open(tmp_path, Shard(1, 2)), pytest.raises(LockedError):
        Store.open(tmp_path, Shard(1, 2))
    Store.open(tmp_path).close()


# --- The program --------------------------------------------------------------------------------------------------------


def test_shards_together_measure_what_one_run_does_each_case_once(scripted: Scripted, tmp_path: Path) -> None:
    assert run("sweep", *SWEEP, "--results", tmp_path / "whole") == Exit.DONE
    whole = [trial.case for trial in Store.read(tmp_path / "whole")[0]]
    scripted.measured.clear()
    parts: list[list[Case]] = []
    for number in range(1, 4):
        assert run("sweep", *SWEEP, "--shard", f"{number}/3", "--results", tmp_path / "parts") == Exit.DONE
        parts.append(list(scripted.measured))
        scripted.measured.clear()
    assert Counter(case for part in parts for case in part) == Counter(whole)
    batches = [{(case.shape, case.layout, case.workload) for case in part} for part in parts]
    assert all(not one & other for one, other in combinations(batches, 2))
    together, alone = (Store.read(tmp_path / name)[0] for name in ("parts", "whole"))
    assert {trial.key for trial in together} == {trial.key for trial in alone}
    assert run("sweep", *SWEEP, "--results", tmp_path / "parts") == Exit.DONE
    assert scripted.measured == [], "a run of everything finds all of it there"


def test_tuned_in_shards_and_read_together_is_one_profile(
    scripted: Scripted, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in (1, 2):
        assert run("tune", *SWEEP, "--shard", f"{number}/2", "--results", tmp_path) == Exit.DONE
        assert "the same command without --shard reads and writes them" in capsys.readouterr().err
        assert not (tmp_path / "profiles").exists()
    searched = len(scripted.measured)
    assert run("tune", *SWEEP, "--results", tmp_path) == Exit.DONE
    assert len(scripted.measured) == searched
    assert capsys.readouterr().out.count("profile  ") == len(list((tmp_path / "profiles").iterdir())) == 2


def test_a_shard_without_a_batch_has_nothing_to_do(
    scripted: Scripted, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ends = {run("sweep", *SWEEP, "--shard", f"{number}/500", "--results", tmp_path) for number in range(1, 4)}
    assert ends == {Exit.DONE}
    assert capsys.readouterr().err.count("none of its batches lies in this shard; nothing to measure.") == 3
    assert scripted.measured == []


def test_an_interrupted_shard_says_how_to_go_on_with_it(
    scripted: Scripted, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(number: int, case: Case) -> None:
        raise KeyboardInterrupt

    scripted.script = stop
    assert run("sweep", *SWEEP, "--shard", "2/2", "--results", tmp_path) == Exit.INTERRUPTED
    assert "--shard 2/2" in capsys.readouterr().err
