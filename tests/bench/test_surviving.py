"""The program as a process that is killed, stopped, starved of its disk or started twice. docs/surviving.md has the figures."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import pytest

from bench.cli.exits import Exit
from bench.orders import SUPERVISOR_VARIABLE
from bench.record import Measured, Trial
from bench.report.table import case_line
from bench.store import Store
from tests.pages import promise

ROOT = Path(__file__).parents[2]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
BATCHES = [f"q1s{length}" for length in range(33, 57)]
RESULT = re.compile(r"^\[\d+/\d+[^\]]*\] (.+)\n", re.MULTILINE)
"""A line that acknowledges a trial, whole."""
REAL_START = """
import os, runpy, signal
signal.signal(signal.SIGINT, signal.SIG_DFL)
os.write(1, b"started\\n")
runpy.run_module("bench", run_name="__main__", alter_sys=True)
"""
REAL = ("-c", REAL_START)
"""The program with workers of its own. It says when Python itself has started, as the one with scripted workers does."""
FEW = BATCHES[:4]


@dataclass
class Program:
    """A sweep or a search as a process of its own, with scripted workers or real ones; ``folder`` holds all that it writes.

    A model's name is what its workers do: see ``tests/bench/scripted_worker.py``.
    """

    folder: Path
    model: str = "lasts15"
    batches: Sequence[str] = tuple(BATCHES)
    deadline_s: float = 60.0
    does: Sequence[str] = ("sweep",)
    results: Path = field(init=False)
    command: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        self.results = self.folder / "results"
        workers = self.folder / "workers"
        workers.mkdir(parents=True)
        self.command = ("-m", "tests.bench.scripted_program", str(workers), str(self.deadline_s))

    @property
    def words(self) -> tuple[str, ...]:
        config = self.folder / "config.json"
        config.write_text(named(self.model), encoding="utf-8")
        asked = ("--model", str(config), "--tp", "1", "--batch", ",".join(self.batches))
        return ("--ranks", "1", *self.does, *asked, "--precision", "0.9", "--results", str(self.results))

    def start(self, *words: str) -> subprocess.Popen[str]:
        command = [sys.executable, *self.command, *(words or self.words)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)
        assert process.stdout is not None
        process.stdout.readline()  # Python itself has started
        return process

    def run(self, strike: Callable[[subprocess.Popen[str]], None] = lambda process: None) -> Ended:
        process = self.start()
        strike(process)
        out, err = process.communicate(timeout=100)
        # As a shell tells it: a process that a signal ended has 128 and the signal's number.
        code = process.returncode if process.returncode >= 0 else 128 - process.returncode
        return Ended(process.pid, code, out, err)

    def trials(self) -> list[Trial]:
        trials, notices = Store.read(self.results)
        assert all("torn" in notice for notice in notices)
        return trials

    def begun(self) -> int:
        """Return how often a scripted worker began a case."""
        return sum(len(file.read_text().splitlines()) for file in (self.folder / "workers").iterdir())


def named(name: str) -> str:
    """Return the config of a small model of some name, which tells a scripted worker what to do."""
    sizes = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16, "num_hidden_layers": 1}
    return json.dumps({**sizes, "dtype": "float32", "_name_or_path": name})


@dataclass
class Ended:
    """How a program ended, and what it said."""

    pid: int
    code: int
    out: str
    err: str

    @property
    def acknowledged(self) -> list[str]:
        return RESULT.findall(self.err)


def workers_of(pid: int) -> list[int]:
    """Return the living processes that a program started as workers."""
    mark, found = f"{SUPERVISOR_VARIABLE}={pid}".encode(), []
    for process in Path("/proc").iterdir():
        try:
            if process.name.isdigit() and mark in (process / "environ").read_bytes().split(b"\0"):
                found.append(int(process.name))
        except OSError:
            continue  # it ended meanwhile, or is another user's
    return found


def wait_for(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def at_random(life_s: float, source: random.Random, *signals: int) -> Callable[[subprocess.Popen[str]], None]:
    """Return what sends signals at a random moment of a program's life, later ones within 50 ms of the one before."""

    def strike(process: subprocess.Popen[str]) -> None:
        pause_s = source.uniform(0, life_s)
        for number in signals:
            with suppress(subprocess.TimeoutExpired):
                process.wait(pause_s)
            process.send_signal(number)  # which does nothing to one that has ended
            pause_s = source.uniform(0, 0.05)

    return strike


AT_ONCE = 2
"""Programs that are struck side by side, each in a folder of its own."""


@cache
def life_s(command: tuple[str, ...], batches: tuple[str, ...]) -> float:
    """Return how long a program lives that nobody strikes, beside as many as are struck at once."""

    def live(folder: Path) -> float:
        program, started = Program(folder, batches=batches), time.monotonic()
        program.command = command or program.command
        assert program.run().code == Exit.DONE
        return time.monotonic() - started

    with TemporaryDirectory() as folder, ThreadPoolExecutor(AT_ONCE) as pool:
        return median(pool.map(live, [Path(folder, str(place)) for place in range(AT_ONCE)]))


def strikes(
    tmp_path: Path, count: int, *signals: int, command: tuple[str, ...] = (), batches: Sequence[str] = BATCHES
) -> Counter[int]:
    """Strike sweeps ``count`` times, AT_ONCE side by side; return the exit codes. See ``struck``."""
    shares = [len(range(place, count, AT_ONCE)) for place in range(AT_ONCE)]
    life = life_s(command, tuple(batches))

    def strike(place: int) -> Counter[int]:
        return struck(tmp_path / str(place), shares[place], life, *signals, command=command, batches=batches)

    with ThreadPoolExecutor(AT_ONCE) as pool:
        return sum(pool.map(strike, range(AT_ONCE)), Counter[int]())


def struck(
    folder: Path, count: int, life: float, *signals: int, command: tuple[str, ...], batches: Sequence[str]
) -> Counter[int]:
    """Strike a sweep ``count`` times, going on after each; check what is promised each time, and return the exit codes.

    Workers are scripted unless ``command`` runs real ones, of which nobody counts the cases that they began.
    """
    source, codes, number = random.Random(f"{signals} {folder.name}"), Counter[int](), 0
    while codes.total() < count:
        program = Program(folder / str(number), batches=batches)
        program.command = command or program.command
        seen: list[str] = []
        while True:
            stored, begun = len(program.trials()), program.begun()
            strike = at_random(life, source, *signals) if codes.total() < count else lambda process: None
            started = time.monotonic()
            ended = program.run(strike)
            wait_for(lambda pid=ended.pid: not workers_of(pid))
            trials = program.trials()
            seen += ended.acknowledged
            assert not Counter(seen) - Counter(map(case_line, trials)), "a trial was printed and is lost"
            assert len({trial.key for trial in trials}) == len(trials), "a trial that was kept was measured again"
            assert program.begun() - begun - (len(trials) - stored) <= 1, "more than the case under way was lost"
            assert "Traceback" not in ended.err + ended.out, ended.err
            if ended.code == Exit.DONE:
                assert len(trials) == len(batches)
                assert all(isinstance(trial.outcome, Measured) for trial in trials)
                life = time.monotonic() - started if not stored else life  # machines are more or less busy
                break
            codes[ended.code] += 1
        number += 1
    return codes


def slices(few: int, all_of_them: int) -> pytest.MarkDecorator:
    """Parametrize a count: a slice that everybody runs, and the whole, which takes minutes."""
    whole = pytest.param(all_of_them, marks=[pytest.mark.endurance, pytest.mark.timeout(3600)])
    return pytest.mark.parametrize("count", [few, whole])


KILLS, REAL_KILLS, SIGNALS, REAL_SIGNALS, SEARCH_KILLS = 1000, 40, 300, 20, 100
"""In all of each kind."""


def test_the_page_tells_how_often_the_program_is_struck() -> None:
    assert f"0 of {KILLS:,} kills lost one" in promise("No acknowledged trial is lost to a kill")
    assert f"0 of {REAL_KILLS}; {REAL_SIGNALS} Ctrl-C and {REAL_SIGNALS} SIGTERM" in promise(
        "The same with real workers"
    )
    assert f"{SIGNALS} Ctrl-C, {SIGNALS} twice Ctrl-C and {SIGNALS} SIGTERM" in promise("Ctrl-C and SIGTERM")
    assert f"0 of {SEARCH_KILLS} kills" in promise("A search that is killed")
    failed = f"{CASES} of {CASES} cases accounted for, {FAULTY} of them failed, {CASES - FAULTY} measured"
    assert failed in promise("A worker that hangs, dies")
    assert f"{len(SIZES_KIB)} of {len(SIZES_KIB)} sizes; tmpfs of {SIZES_KIB[0]} to {SIZES_KIB[-1]} KiB" in promise(
        "A full disk"
    )
    assert f"{STARTERS[0]} to {STARTERS[-1]} at once" in promise("Of several starters")


@slices(12, KILLS)
def test_no_printed_trial_is_lost_to_a_kill_and_at_most_one_is_measured_again(tmp_path: Path, count: int) -> None:
    assert strikes(tmp_path, count, signal.SIGKILL) == {128 + signal.SIGKILL: count}


@pytest.mark.endurance
@pytest.mark.timeout(1800)
def test_real_workers_end_with_a_program_that_is_killed(tmp_path: Path) -> None:
    assert strikes(tmp_path, REAL_KILLS, signal.SIGKILL, command=REAL) == {128 + signal.SIGKILL: REAL_KILLS}


@slices(3, SIGNALS)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_at_any_moment_loses_nothing_and_leaves_nothing(tmp_path: Path, number: int, count: int) -> None:
    assert strikes(tmp_path, count, number) == {128 + number: count}


@slices(3, SIGNALS)
def test_a_second_ctrl_c_at_any_moment_loses_nothing_and_leaves_nothing(tmp_path: Path, count: int) -> None:
    assert strikes(tmp_path, count, signal.SIGINT, signal.SIGINT) == {Exit.INTERRUPTED: count}


@pytest.mark.parametrize(
    ("number", "count"),
    [
        (signal.SIGINT, 1),
        *(
            pytest.param(number, REAL_SIGNALS, marks=[pytest.mark.endurance, pytest.mark.timeout(1800)])
            for number in (signal.SIGINT, signal.SIGTERM)
        ),
    ],
)
def test_real_workers_end_with_a_program_that_gets_a_signal(tmp_path: Path, number: int, count: int) -> None:
    assert strikes(tmp_path, count, number, command=REAL, batches=FEW) == {128 + number: count}


# --- Searches -------------------------------------------------------------------------------------------------------


def searched(folder: Path) -> Program:
    """Return a search of three batches with four candidates each, which take the same time."""
    does = ("tune", "--set", "page_size=16,32,64,128")
    return Program(folder, model="takes120", batches=BATCHES[:3], does=does)


def races_of(trials: Sequence[Trial]) -> tuple[Counter[tuple[str, frozenset[str]]], int]:
    """Return of races that are whole the heat and the cases, and how many others there are, of which lines are missing."""
    races: dict[str, list[Trial]] = {}
    sizes: dict[str, tuple[str, int]] = {}
    for trial in trials:
        assert isinstance(trial.outcome, Measured)
        race = trial.outcome.race
        assert race is not None
        races.setdefault(race.name, []).append(trial)
        sizes[race.name] = (str(race.heat), race.cases)
    whole = [name for name, (_, size) in sizes.items() if len(races[name]) == size]
    found = Counter((sizes[name][0], frozenset(trial.case.key for trial in races[name])) for name in whole)
    return found, len(races) - len(whole)


def once_written(results: Path, size: int) -> Callable[[subprocess.Popen[str]], None]:
    """Return what kills a program once the runs in a folder are so large."""

    def strike(process: subprocess.Popen[str]) -> None:
        while process.poll() is None and sum(run.stat().st_size for run in results.glob("*.jsonl")) < size:
            time.sleep(0.0005)
        process.kill()

    return strike


@slices(2, SEARCH_KILLS)
def test_a_search_loses_no_race_that_is_whole_to_a_kill_and_ends_as_if_nobody_had_killed_it(
    tmp_path: Path, count: int
) -> None:
    """A race writes a line for each of its cases: a kill between two of them leaves some of a race, which is raced again."""
    undisturbed = searched(tmp_path / "undisturbed")
    told = undisturbed.run().acknowledged
    assert len(told) == 2 * len(undisturbed.batches)
    written = sum(run.stat().st_size for run in undisturbed.results.glob("*.jsonl"))
    races, _ = races_of(undisturbed.trials())
    source, kills, number, torn = random.Random(count), 0, 0, 0
    while kills < count:
        program, seen, here = searched(tmp_path / str(number)), list[str](), 0
        while True:
            before = program.trials()
            strike = once_written(program.results, source.randrange(written)) if kills < count else lambda process: None
            ended = program.run(strike)
            wait_for(lambda pid=ended.pid: not workers_of(pid))
            trials = program.trials()
            seen += ended.acknowledged
            assert trials[: len(before)] == before, "what was kept is kept"
            assert "Traceback" not in ended.err + ended.out, ended.err
            if ended.code == Exit.DONE:
                break
            assert ended.code == 128 + signal.SIGKILL
            kills, here = kills + 1, here + 1
        found, others = races_of(trials)
        assert found == races, "a race that is whole is not raced again, and every other is"
        assert others <= here
        assert not Counter(seen) - Counter(told), "what leads and what was found is told once, and is what it would be"
        number, torn = number + 1, torn + others
    assert torn or count < SEARCH_KILLS, "some kills came between two lines of a race"


# --- Faults ---------------------------------------------------------------------------------------------------------

FAULTS = ("dies", "leaves", "hangs", "poisoned", "raves", "forgets", "lies")
DEADLINE_S = 1.0
CASES, FAULTY = 200, 20


def sweep_with_faults(folder: Path, faults: Sequence[str], cases: int) -> Path:
    """Write a sweep of so many cases, of which each fault takes one; cases are told apart by their batches."""
    parts = []
    for number in range(cases):
        name = faults[number] if number < len(faults) else "lasts1"
        (folder / f"{name}.json").write_text(named(name), encoding="utf-8")
        parts.append(f'[[part]]\nmodel = "{folder / name}.json"\nbatch = "q1s{33 + number}"\n')
    path = folder / "faults.toml"
    path.write_text(f"tp = 1\n{''.join(parts)}[policy]\nprecision = 0.9\n", encoding="utf-8")
    return path


def test_a_sweep_in_which_a_tenth_of_all_cases_fault_accounts_for_every_one(tmp_path: Path) -> None:
    program = Program(tmp_path / "program", deadline_s=DEADLINE_S)
    faults = [FAULTS[number % len(FAULTS)] for number in range(FAULTY)]
    sweep = sweep_with_faults(tmp_path, faults, CASES)
    process = program.start("--ranks", "1", "sweep", str(sweep), "--results", str(program.results))
    assert process.stderr is not None
    said = [(line, time.monotonic()) for line in process.stderr if RESULT.match(line)]
    process.communicate(timeout=60)
    assert process.returncode == Exit.FAILED_CASES
    trials = program.trials()
    assert len({trial.key for trial in trials}) == len(trials) == len(said) == CASES
    found = Counter((trial.case.shape.name, trial.outcome.kind) for trial in trials)
    assert found == Counter({("lasts1", "measured"): CASES - FAULTY}) + Counter((one, "failed") for one in faults)
    assert not workers_of(process.pid)
    hangs = [place for place, (line, _) in enumerate(said[:-1]) if place and "hangs" in line]
    lost_s = [said[place + 1][1] - said[place - 1][1] for place in hangs]
    assert lost_s, "between the end of the case before a hang and that of the one after it lie"
    assert max(lost_s) < DEADLINE_S + 10


# --- Disks ----------------------------------------------------------------------------------------------------------


def after_results(count: int, act: Callable[[], object]) -> Callable[[subprocess.Popen[str]], None]:
    """Return what does something to a program once it has acknowledged some results."""

    def strike(process: subprocess.Popen[str]) -> None:
        assert process.stderr is not None
        while count and not any(f"[{count}/" in line for line in [process.stderr.readline()]):
            assert process.poll() is None
        act()

    return strike


def stored_in(folder: Path) -> list[str]:
    trials, notices = Store.read(folder)
    assert notices == []
    return [case_line(trial) for trial in trials]


def complaint(ended: Ended) -> str:
    """Return the one sentence that a program ended with."""
    assert ended.code == Exit.STORAGE
    assert "Traceback" not in ended.err
    (sentence,) = [line for line in ended.err.splitlines() if line.startswith("dcpbench: ")]
    assert sentence.startswith("dcpbench: cannot write ")
    return sentence


def test_a_folder_renamed_while_running_ends_the_run_and_takes_its_trials_along(tmp_path: Path) -> None:
    program = Program(tmp_path / "program")
    ended = program.run(after_results(3, lambda: program.results.rename(tmp_path / "elsewhere")))
    assert "it was removed or renamed meanwhile" in complaint(ended)
    assert not program.results.exists()
    assert not Counter(ended.acknowledged) - Counter(stored_in(tmp_path / "elsewhere"))
    (tmp_path / "elsewhere").rename(program.results)
    assert program.run().code == Exit.DONE
    assert len(program.trials()) == len(BATCHES)


def test_a_folder_removed_while_running_ends_the_run_before_it_prints_another_result(tmp_path: Path) -> None:
    program, seen = Program(tmp_path / "program"), []

    def remove() -> None:
        seen.extend(stored_in(program.results))
        shutil.rmtree(program.results)

    ended = program.run(after_results(3, remove))
    assert "it was removed or renamed meanwhile" in complaint(ended)
    assert len(ended.acknowledged) <= 1, "the case under way may have been kept just before"
    assert len(seen) >= 3


def limited(program: Program, command: str) -> Ended:
    """Run a program behind a shell's command."""
    words = ["bash", "-ec", f'{command}; exec "$@"', "bash", sys.executable, *program.command, *program.words]
    done = subprocess.run(words, capture_output=True, text=True, env=ENVIRONMENT, timeout=100, check=False)
    return Ended(0, done.returncode, done.stdout, done.stderr)


def test_a_run_that_may_not_grow_ends_with_a_sentence_and_keeps_what_it_printed(tmp_path: Path) -> None:
    program = Program(tmp_path / "program")
    ended = limited(program, "ulimit -f 16")
    assert "file too large" in complaint(ended)
    assert stored_in(program.results) == ended.acknowledged
    assert 0 < len(ended.acknowledged) < len(BATCHES)
    assert program.run().code == Exit.DONE
    assert len(program.trials()) == len(BATCHES)


def test_a_folder_that_takes_nothing_is_a_sentence(tmp_path: Path) -> None:
    program = Program(tmp_path / "program")
    program.results = Path("/sys/dcpbench")  # where not even root makes a folder
    ended = program.run()
    assert "choose a folder" in complaint(ended)
    assert program.begun() == 0


SIZES_KIB = (4, 8, 16, 24, 32, 40, 48)


@pytest.mark.endurance
@pytest.mark.parametrize("size_kib", SIZES_KIB)
def test_a_small_disk_that_fills_loses_nothing(tmp_path: Path, size_kib: int) -> None:
    program = Program(tmp_path / "program")
    program.results = tmp_path / "disk" / "results"
    (tmp_path / "disk").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size_kib}k", "none", tmp_path / "disk"], check=True)
    try:
        full = program.run()
        assert "no space left on device; free some space" in complaint(full)
        assert stored_in(program.results) == full.acknowledged
        subprocess.run(["mount", "-o", "remount,size=4m", tmp_path / "disk"], check=True)
        assert program.run().code == Exit.DONE
        assert len(program.trials()) == len(BATCHES)
        subprocess.run(["mount", "-o", "remount,ro", tmp_path / "disk"], check=True)
        assert "read-only file system" in complaint(program.run())
        assert len(program.trials()) == len(BATCHES)
    finally:
        subprocess.run(["umount", tmp_path / "disk"], check=True)


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Callable[..., None]]:
    """Return what mounts something on a folder, until the test has ended."""
    with ExitStack() as undone:

        def mount(folder: Path, *how: str) -> None:
            subprocess.run(["mount", *how, folder], check=True)
            undone.callback(subprocess.run, ["umount", folder], check=False, stderr=subprocess.DEVNULL)

        yield mount


@pytest.mark.endurance
def test_a_folder_that_becomes_read_only_while_a_case_runs_is_a_sentence(
    tmp_path: Path, mounted: Callable[..., None]
) -> None:
    program = Program(tmp_path / "program", model="lasts500", batches=BATCHES[:2])

    def forbid() -> None:
        mounted(program.results, "--bind", str(program.results))
        mounted(program.results, "-o", "remount,bind,ro")

    def once_a_case_runs(process: subprocess.Popen[str]) -> None:
        wait_for(lambda: program.begun() > 0)
        forbid()

    ended = program.run(once_a_case_runs)
    assert "read-only file system; choose a folder on a disk that may be written" in complaint(ended)
    assert (ended.acknowledged, program.trials()) == ([], [])
    subprocess.run(["umount", program.results], check=True)
    assert program.run().code == Exit.DONE


@pytest.mark.endurance
def test_a_disk_that_is_taken_out_while_running_ends_the_run_and_holds_what_was_printed(
    tmp_path: Path, mounted: Callable[..., None]
) -> None:
    program = Program(tmp_path / "program")
    disk, place = tmp_path / "disk", tmp_path / "place"
    disk.mkdir()
    place.mkdir()
    program.results = place / "results"
    mounted(place, "--bind", str(disk))
    ended = program.run(after_results(3, lambda: subprocess.run(["umount", "--lazy", place], check=True)))
    assert "it was removed or renamed meanwhile" in complaint(ended)
    assert not Counter(ended.acknowledged) - Counter(stored_in(disk / "results"))
    assert len(stored_in(disk / "results")) >= 3


# --- Starting twice -------------------------------------------------------------------------------------------------


STARTERS = range(2, 9)


@pytest.mark.parametrize(
    "starters", [STARTERS[0], *(pytest.param(n, marks=pytest.mark.endurance) for n in STARTERS[1:-1]), STARTERS[-1]]
)
def test_of_several_starters_one_runs_and_the_others_say_who(tmp_path: Path, starters: int) -> None:
    program = Program(tmp_path / "program", model="hangs")

    def kill_once_it_holds_the_folder(process: subprocess.Popen[str]) -> None:
        wait_for((program.results / ".lock").exists)
        process.kill()

    killed = program.run(kill_once_it_holds_the_folder)
    words = program.words
    started = [program.start(*words) for _ in range(starters)]
    wait_for(lambda: sum(process.poll() is not None for process in started) == starters - 1, 60)
    (winner,) = [process for process in started if process.poll() is None]
    for process in started:
        if process is not winner:
            out, err = process.communicate()
            assert (process.returncode, out) == (Exit.LOCKED, "")
            (sentence,) = err.splitlines()
            known, unknown = f"in use by process {winner.pid} on ", "in use by another process that has just started"
            assert known in sentence or unknown in sentence
            assert str(killed.pid) not in sentence, "who held it before does so no more"
    winner.terminate()
    winner.communicate(timeout=60)
    wait_for(lambda: not workers_of(winner.pid))
    with Store.open(program.results):
        assert winner.returncode == Exit.TERMINATED
