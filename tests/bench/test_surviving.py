"""The program as a process that is killed, stopped, starved of its disk or started twice. docs/surviving.md has the figures."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from bench.cli.exits import Exit
from bench.orders import SUPERVISOR_VARIABLE
from bench.record import Measured, Trial
from bench.report.table import case_line
from bench.store import Store

ROOT = Path(__file__).parents[2]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
BATCHES = [f"q1s{length}" for length in range(33, 57)]
RESULT = re.compile(r"^\[\d+/\d+[^\]]*\] (.+)\n", re.MULTILINE)
"""A line that acknowledges a trial, whole."""
REAL = ("-m", "bench")


@dataclass
class Program:
    """A sweep as a process of its own, with scripted workers or real ones; ``folder`` holds all that it writes.

    A model's name is what its workers do: see ``tests/bench/scripted_worker.py``.
    """

    folder: Path
    model: str = "lasts15"
    batches: Sequence[str] = tuple(BATCHES)
    results: Path = field(init=False)
    command: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        self.results = self.folder / "results"
        workers = self.folder / "workers"
        workers.mkdir(parents=True)
        self.command = ("-m", "tests.bench.scripted_program", str(workers), "60")

    @property
    def words(self) -> tuple[str, ...]:
        shape = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16, "num_hidden_layers": 1}
        config = self.folder / "config.json"
        config.write_text(json.dumps({**shape, "dtype": "float32", "_name_or_path": self.model}), encoding="utf-8")
        asked = ("--model", str(config), "--tp", "1", "--batch", ",".join(self.batches))
        return ("--ranks", "1", "sweep", *asked, "--precision", "0.9", "--results", str(self.results))

    def start(self, *words: str) -> subprocess.Popen[str]:
        command = [sys.executable, *self.command, *(words or self.words)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)
        if self.command[1] != REAL[1]:
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
            time.sleep(pause_s)
            process.send_signal(number)
            pause_s = source.uniform(0, 0.05)

    return strike


def strikes(tmp_path: Path, count: int, *signals: int, command: tuple[str, ...] = ()) -> Counter[int]:
    """Strike a sweep ``count`` times, going on after each; check what is promised each time, and return the exit codes.

    Workers are scripted unless ``command`` runs real ones, of which nobody counts the cases that they began.
    """
    source, codes, life_s, number = random.Random(f"{signals}"), Counter[int](), 0.0, 0
    while codes.total() < count:
        program = Program(tmp_path / str(number))
        program.command = command or program.command
        seen: list[str] = []
        while True:
            stored, begun = len(program.trials()), program.begun()
            strike = at_random(life_s, source, *signals) if life_s and codes.total() < count else lambda process: None
            started = time.monotonic()
            ended = program.run(strike)
            wait_for(lambda pid=ended.pid: not workers_of(pid))
            trials = program.trials()
            seen += ended.acknowledged
            assert not Counter(seen) - Counter(map(case_line, trials)), "a trial was printed and is lost"
            assert len({trial.key for trial in trials}) == len(trials), "a trial that was kept was measured again"
            assert program.begun() - begun - (len(trials) - stored) <= 1, "more than the case under way was lost"
            assert "Traceback" not in ended.err + ended.out, ended.err
            life_s = life_s or time.monotonic() - started
            if ended.code == Exit.DONE:
                assert len(trials) == len(BATCHES)
                assert all(isinstance(trial.outcome, Measured) for trial in trials)
                break
            codes[ended.code] += 1
        number += 1
    return codes


def slices(few: int, all_of_them: int) -> pytest.MarkDecorator:
    """Parametrize a count: a slice that everybody runs, and the whole, which takes minutes."""
    whole = pytest.param(all_of_them, marks=[pytest.mark.endurance, pytest.mark.timeout(3600)])
    return pytest.mark.parametrize("count", [few, whole])


@slices(12, 1000)
def test_no_printed_trial_is_lost_to_a_kill_and_at_most_one_is_measured_again(tmp_path: Path, count: int) -> None:
    assert strikes(tmp_path, count, signal.SIGKILL) == {128 + signal.SIGKILL: count}


@slices(6, 300)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_at_any_moment_loses_nothing_and_leaves_nothing(tmp_path: Path, number: int, count: int) -> None:
    assert strikes(tmp_path, count, number) == {128 + number: count}


@slices(4, 300)
def test_a_second_ctrl_c_at_any_moment_loses_nothing_and_leaves_nothing(tmp_path: Path, count: int) -> None:
    assert strikes(tmp_path, count, signal.SIGINT, signal.SIGINT) == {Exit.INTERRUPTED: count}
