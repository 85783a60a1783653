"""``dcpbench tune`` as a user meets it: it goes on where it stopped, keeps to its time, and says what it found and how."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import pytest

import bench.environment
import bench.supervisor
from bench.cli import main
from bench.cli.exits import Exit
from bench.cli.searching import Search as How
from bench.cli.searching import choice, seconds_of
from bench.errors import UsageError
from bench.need import case_bytes, race_bytes
from bench.orders import Compiling
from bench.profile.profile import Profile
from bench.record import Environment, Failed, Heat, Measured, Outcome, Skipped, Trial
from bench.report.table import case_name
from bench.store import Store
from dcp_core.cost import CPU as SLOW
from dcp_core.settings import Case
from tests.bench.cases import tiny
from tests.bench.made_up import CPU, measured
from tests.bench.stand_in import Scripted

TYPED = ("--model", "tiny", "--tp", "4", "--dcp", "1,2", "--batch", "8q1s1k,q512", "--exchange", "ag_rs,a2a")


@pytest.fixture(autouse=True)
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Draw no pictures, which takes seconds; return the folders that they would be in."""
    folders: list[Path] = []

    def draw(trials: object, folder: Path, *, command: str) -> tuple[()]:
        folders.append(folder)
        return ()

    monkeypatch.setattr("bench.report.plot.save_all", draw)
    return folders


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> Scripted:
    """Return the stand-in, in place, on a machine without a GPU; ``fold`` over a2a takes a fifth of what the others do."""
    stand_in = Scripted(script=lambda number, case: measured(case, SLOW, factor=0.2 if is_fold(case) else 1.0))
    monkeypatch.setattr(bench.supervisor, "Supervisor", stand_in)
    monkeypatch.setattr(bench.environment, "devices", lambda: ())
    monkeypatch.setattr(bench.environment, "fingerprint", lambda on_gpu=None: CPU)
    return stand_in


def is_fold(case: Case) -> bool:
    return case.settings.path == "fold" and case.settings.exchange == "a2a"


def tune(folder: Path, *words: str) -> int:
    return main(["--ranks", "2", "tune", *TYPED, "--results", str(folder), *words])


def stored(folder: Path) -> list[Trial]:
    return Store.read(folder)[0]


def heats(trials: list[Trial]) -> list[Heat]:
    return [trial.outcome.race.heat for trial in trials if isinstance(trial.outcome, Measured) and trial.outcome.race]


def test_what_is_found_is_told_with_its_evidence(
    scripted: Scripted, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tune(tmp_path) == Exit.DONE
    out, err = capsys.readouterr()
    table = out[out.index("How it was found") :].splitlines()
    rows = {tuple(line.split()[:2]): line for line in table[3:7]}
    assert set(rows) == {("8q1s1k", "1"), ("q512", "1"), ("8q1s1k", "2"), ("q512", "2")}
    won = re.search(r"confirmed +(0\.\d+) +±(\S+)% +(.*\S) +\+(\S+)% +(\d+)/\5 +\d+$", rows["8q1s1k", "2"])
    assert won, rows
    assert float(won[1]) < 0.9
    assert rows["8q1s1k", "1"].split()[2] == "default"
    assert max(map(len, table[:7])) <= 80
    assert re.search(r"8q1s1k fold reference a2a: 0\.\d+ \[0\.\d+, 0\.\d+\] faster than the default", err)
    (file,) = (tmp_path / "profiles").glob("q4,*.json")
    for entry in Profile.load(file).entries:
        assert (entry.settings.path, entry.settings.exchange) == ("fold", "a2a")
        assert entry.default is not None
        assert entry.ratio_to_default is not None
        assert entry.ratio_to_default < 0.9


def test_what_is_found_is_told_to_machines(
    scripted: Scripted, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tune(tmp_path, "--json") == Exit.DONE
    found = json.loads(capsys.readouterr().out)
    by_place = {(one["batch"], one["dcp"]): one for one in found["search"]}
    won = by_place["8q1s1k", 2]
    assert won["settings"]["path"] == "fold"
    assert won["comparison"]["verdict"] == "faster"
    assert won["comparison"]["low"] <= won["comparison"]["ratio"] <= won["comparison"]["high"] < 1
    assert won["runner_up_ratio"] > 1
    assert (won["found"], won["done"]) == ("confirmed", True)
    assert won["screened"] == won["candidates"] > 4
    assert by_place["q512", 1]["comparison"] is None
    assert sum(one["trials"] for one in found["search"]) == len(stored(tmp_path))


@dataclass
class Recorded:
    """A screen that keeps what it is told: each line with its seconds, and how many batches it counted."""

    expected: tuple[int, float] = (0, 0.0)
    told: list[tuple[str, float]] = field(default_factory=list)
    counted: int = 0

    @contextmanager
    def open(self, count: int, seconds: float, *, limit_s: float | None = None) -> Iterator[Recorded]:
        self.expected = count, seconds
        yield self

    def show(self, line: str) -> None: ...

    def compiling(self, one: Compiling) -> None:
        raise AssertionError(f"nothing is compiled here: {one}")

    def now(self, doing: str) -> None: ...

    def spend(self, line: str, seconds: float) -> None:
        self.told.append((line, seconds))

    def advance(self, line: str, seconds: float) -> None:
        self.counted += 1
        self.spend(line, seconds)


def test_the_time_left_falls_as_batches_are_searched_and_again_as_they_are_confirmed(
    scripted: Scripted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    view = Recorded()
    monkeypatch.setattr("bench.cli.searching.screen", view.open)
    assert tune(tmp_path) == Exit.DONE
    lines, seconds = zip(*view.told, strict=True)
    leads = re.compile(r" leads with ([\d.]+) µs ±[\d.]+% measured, to be confirmed$")
    times = [found and float(found[1]) for found in map(leads.search, lines)]
    assert [time is not None for time in times] == [True] * 4 + [False] * 4
    assert "(the default) leads" in lines[0]
    medians = [
        trial.outcome.step_us.median
        for trial in stored(tmp_path)
        if isinstance(trial.outcome, Measured) and lines[-1].startswith(case_name(trial.case))
    ]
    assert times[3] in [pytest.approx(median, rel=0.01) for median in medians]
    assert min(seconds) > 0
    assert (view.counted, sum(seconds)) == (4, pytest.approx(view.expected[1]))
    again = Recorded()
    monkeypatch.setattr("bench.cli.searching.screen", again.open)
    assert tune(tmp_path) == Exit.DONE
    assert (again.expected, again.told) == ((0, 0), []), "what came to its end before is not counted again"


def test_a_budget_is_shared_out_among_the_batches(
    scripted: Scripted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    view = Recorded()
    monkeypatch.setattr("bench.cli.searching.screen", view.open)
    assert tune(tmp_path, "--time-budget", "1s") == Exit.DONE
    assert 0 < view.expected[1] <= 1


def test_all_is_confirmed_by_workers_that_raced_nothing(scripted: Scripted, tmp_path: Path) -> None:
    assert tune(tmp_path) == Exit.DONE
    kinds = [heat for heat, _ in scripted.races]
    assert kinds.index(Heat.CONFIRMED) == len(kinds) - 4
    assert scripted.renewed == 1
    assert scripted.closed == 1


def test_going_on_measures_what_is_missing_and_nothing_else(
    scripted: Scripted, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = tmp_path / "whole"
    assert tune(whole) == Exit.DONE
    every = len(scripted.races)
    assert tune(whole) == Exit.DONE
    assert len(scripted.races) == every, "a search that is at its end races no more"
    settings = scripted.script

    for stop in (0, 3, 9):
        folder = tmp_path / str(stop)
        before = len(scripted.measured)

        def stopped(number: int, case: Case, *, last: int = before + stop) -> Outcome | None:
            if number >= last:
                raise KeyboardInterrupt
            return settings(number, case)

        scripted.script = stopped
        assert tune(folder) == Exit.INTERRUPTED
        err = capsys.readouterr().err
        kept = len(stored(folder)) if folder.exists() else 0
        assert f"{kept} trial" in err
        resume = err.strip().splitlines()[-1].split()
        scripted.script = settings
        assert main(resume[1:]) == Exit.DONE
        done = [(str(trial.case.key), heat) for trial, heat in zip(stored(folder), heats(stored(folder)), strict=True)]
        screened = [key for key, heat in done if heat is Heat.SCREENED]
        reference = {key for key in screened if screened.count(key) > 1}
        assert len(reference) <= 4, "only the default of a batch is screened again, as the yardstick"


def test_an_interrupted_search_leaves_a_profile_in_which_the_default_stands(
    scripted: Scripted, tmp_path: Path, drawn: list[Path]
) -> None:
    settings = scripted.script

    def stopped(number: int, case: Case) -> Outcome | None:
        if any(heat is Heat.CONFIRMED for heat, _ in scripted.races):
            raise KeyboardInterrupt
        return settings(number, case)

    scripted.script = stopped
    assert tune(tmp_path) == Exit.INTERRUPTED
    (file,) = (tmp_path / "profiles").glob("q4,*.json")
    for entry in Profile.load(file).entries:
        assert entry.settings == entry.default
        assert len(entry.candidates) > 4
    assert drawn == [], "pictures can be drawn later"
    scripted.script = settings
    assert tune(tmp_path) == Exit.DONE
    assert drawn == [tmp_path / "plots" / "typed"]


def test_a_budget_is_kept_and_leaves_a_valid_profile(
    scripted: Scripted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [0.0]
    monkeypatch.setattr("bench.cli.searching.time.monotonic", lambda: now[0])
    race = scripted.race

    def slow(*about: object, **more: object) -> list[Trial]:
        now[0] += 5.0
        return race(*about, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(scripted, "race", slow)
    assert tune(tmp_path, "--time-budget", "40s") == Exit.DONE
    assert now[0] <= 45
    first = [(str(cases[0].workload), cases[0].layout.dcp) for _, cases in scripted.races[:4]]
    assert len(set(first)) == 4, "every batch gets a look first"
    out = capsys.readouterr().out
    assert "until something is confirmed the default stays" in out
    chosen, how = out.split("How it was found")
    noted = re.findall(
        r"\nNot final for (\d) of \d batch(?:es)?: the search is not done; next may be faster\.\n", chosen
    )
    assert sum(map(int, noted)) == len(re.findall(r"^\S+ +\d +\w*… ", how, re.MULTILINE)) > 0
    assert "Not final" not in how
    assert list((tmp_path / "profiles").glob("*.json"))
    monkeypatch.setattr(scripted, "race", race)
    assert tune(tmp_path) == Exit.DONE
    out = capsys.readouterr().out
    assert "until something" not in out
    assert "Not final" not in out


def test_ranks_of_a_launched_job_confirm_when_the_job_is_started_again(
    scripted: Scripted, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scripted.can_renew = False
    assert tune(tmp_path) == Exit.DONE
    assert "start the job again" in capsys.readouterr().err
    assert Heat.CONFIRMED not in heats(stored(tmp_path))
    scripted.can_renew = True
    assert tune(tmp_path) == Exit.DONE
    assert "start the job again" not in capsys.readouterr().err
    assert Heat.CONFIRMED in heats(stored(tmp_path))


def test_the_whole_space_is_what_the_workers_say_runs(
    scripted: Scripted, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tune(tmp_path, "--space", "all", "--batch", "8q1s1k") == Exit.DONE
    found = {case.settings for case in scripted.measured if case.layout.dcp == 2}
    assert {settings.exchange for settings in found} == {"ag_rs"}, "a2a was said to need two ranks"
    assert {settings.kernel for settings in found} == {"reference"}
    assert {settings.path for settings in found} == {"decode", "split", "fold", "mask"}
    assert len({settings.page_size for settings in found}) > 1


def test_failed_candidates_are_named_and_the_others_searched(
    scripted: Scripted, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = scripted.script
    scripted.script = lambda number, case: (
        Failed("incorrect", "out errs") if case.settings.path == "mask" else settings(number, case)
    )
    assert tune(tmp_path) == Exit.FAILED_CASES
    out = capsys.readouterr().out
    assert "failed: incorrect: out errs." in out
    (file,) = (tmp_path / "profiles").glob("q4,*.json")
    assert {entry.settings.path for entry in Profile.load(file).entries} == {"fold"}
    first = sum(case.settings.path == "mask" for case in scripted.measured)
    for _ in range(3):
        assert tune(tmp_path) == Exit.FAILED_CASES
    assert sum(case.settings.path == "mask" for case in scripted.measured) == 2 * first, (
        "once more, and then left alone"
    )


def test_where_nothing_runs_the_machine_is_unfit(
    scripted: Scripted, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scripted.script = lambda number, case: Skipped("no kernel")
    assert tune(tmp_path) == Exit.UNFIT
    out, err = capsys.readouterr()
    assert "8q1s1k dcp 2: nothing runs here" in err
    assert "How it was found" not in out, "a table without a row"


def test_what_will_not_run_here_is_told_before(
    scripted: Scripted, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    typed = ("tune", "--model", "tiny", "--tp", "4", "--batch", "8q1s1k", "--kernel", "reference,fa2")
    words = (*typed, "--results", str(tmp_path))
    assert main([*words, "--dry-run"]) == Exit.DONE
    out = capsys.readouterr().out
    assert "Will not run here:\n  1×  kernel fa2 needs a GPU\n" in out
    assert "\n1 candidate to search in about " in out
    assert main([*typed[:-1], "fa2", "--results", str(tmp_path), "--dry-run"]) == Exit.DONE
    assert capsys.readouterr().out.endswith("\nNothing of it can be searched here.\n")
    assert main(list(words)) == Exit.DONE
    assert "2 candidates for 1 batch" in (err := capsys.readouterr().err)
    assert "1 of them will not run here: kernel fa2 needs a GPU." in err


def test_a_dry_run_says_how_many_candidates_and_about_how_long(
    scripted: Scripted, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tune(tmp_path, "--dry-run") == Exit.DONE
    out = capsys.readouterr().out
    assert re.search(r"\d+ candidates to search in about \d+ (s|min)", out)
    assert out.endswith("; without a GPU that is the reference kernel on the CPU.\n")
    assert scripted.races == []
    assert tune(tmp_path, "--dry-run", "--json", "--space", "all") == Exit.DONE
    plan = json.loads(capsys.readouterr().out)
    assert {one["layout"]["dcp"] for one in plan["batches"]} == {1, 2}
    assert all(one["default"] in one["candidates"] for one in plan["batches"])
    assert plan["seconds"] > 0


def test_a_sweep_measures_what_only_raced_and_an_exhaustive_search_too(scripted: Scripted, tmp_path: Path) -> None:
    assert tune(tmp_path) == Exit.DONE
    raced = len(scripted.measured)
    whole = {trial.case for trial in stored(tmp_path) if isinstance(trial.outcome, Measured) and trial.outcome.is_whole}
    assert tune(tmp_path, "--search", "exhaustive") == Exit.DONE
    assert len(scripted.measured) - raced == len(set(scripted.measured)) - len(whole)


def test_an_exhaustive_search_of_everything_measures_each_candidate_that_a_race_would_choose_among(
    scripted: Scripted, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tune(tmp_path, "--dry-run", "--json", "--space", "all") == Exit.DONE
    candidates = [one for batch in json.loads(capsys.readouterr().out)["batches"] for one in batch["candidates"]]
    assert tune(tmp_path, "--search", "exhaustive", "--space", "all") == Exit.DONE
    assert len(set(scripted.measured)) == len(candidates)
    assert scripted.races == []


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--search", "races"), "--search is race or exhaustive, not 'races'; did you mean 'race'?"),
        (("--space", "everything"), "--space is sweep or all, not 'everything'"),
        (("--time-budget", "soon"), "--time-budget is a time, as 90s, 10m or 1.5h, not 'soon'"),
        (("--time-budget", "0"), "--time-budget is a time"),
        (("--time-budget", "-5m"), "--time-budget is a time"),
        (("--search", "exhaustive", "--time-budget", "5m"), "--time-budget goes with --search race"),
    ],
)
def test_mistakes_are_a_sentence(
    words: tuple[str, ...], sentence: str, scripted: Scripted, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tune(tmp_path, *words) == Exit.USAGE
    assert sentence in capsys.readouterr().err
    assert scripted.races == []


def test_times_are_read_as_people_write_them() -> None:
    assert [seconds_of(text) for text in ("90", "90s", "10m", "1.5h")] == [90, 90, 600, 5400]
    assert choice("--search", "race", How) is How.RACE
    with pytest.raises(UsageError):
        seconds_of("10 parsecs")


def test_cases_open_together_share_their_inputs_and_alike_caches() -> None:
    some = [tiny("4q8s64", dcp=2, path=path) for path in ("split", "fold")]
    wide = tiny("4q8s64", dcp=2, page_size=32)
    alone = [case_bytes(case, 2) for case in (*some, wide)]
    assert max(alone[:2]) < race_bytes(some, 2) < sum(alone[:2])
    assert race_bytes([*some, wide], 2) > race_bytes(some, 2)
    sizes = [race_bytes([some[0], *[wide] * count], 2) for count in range(3)]
    assert all(one < other for one, other in pairwise(sizes))


def test_a_screening_holds_no_more_open_than_fits(
    scripted: Scripted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bench.cli.searching.MEMORY_SHARE", 1e-6)
    assert tune(tmp_path) == Exit.DONE
    assert {len(cases) for heat, cases in scripted.races if heat is Heat.SCREENED} <= {1, 2}
    (file,) = (tmp_path / "profiles").glob("q4,*.json")
    assert {entry.settings.path for entry in Profile.load(file).entries} == {"fold"}


def test_an_environment_is_compared_before_anything_is_raced(
    scripted: Scripted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tune(tmp_path) == Exit.DONE
    newer = Environment({**CPU.hard, "torch": "9.9.9"})
    monkeypatch.setattr(bench.environment, "fingerprint", lambda on_gpu=None: newer)
    before = len(scripted.races)
    assert tune(tmp_path) == Exit.USAGE
    assert "torch: 9.9.9 here" in capsys.readouterr().err
    assert len(scripted.races) == before
