"""The whole program on a device that misbehaves: the command line, the supervisor, worker processes and the store are real,
NVML and the times are scripted."""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import pytest

import bench.supervisor
from bench.audit import NULL
from bench.cli import main
from bench.cli.exits import Exit
from bench.errors import UnfitError
from bench.group import WorkerGroup
from bench.record import Measured, Skipped, Trial
from bench.store import Store, run_files
from bench.supervisor import COOLING_S, Supervisor
from dcp_core.settings import Case
from tests.bench.cases import QUICK, tiny
from tests.bench.test_environment import ScriptedNvml, machine
from tests.bench.test_supervisor import scripted

__all__ = ["machine"]

IDLE, CAPPED, HOT = 0x1, 0x4, 0x40
ONE = ("--model", "q4,kv1,d16", "--tp", "2", "--dcp", "1", "--kernel", "fa2", "--batch")
FOUR = (*ONE, "q8s32,q8s33,q8s34,q8s35")
MANY = (*ONE, ",".join(f"q8s{total}" for total in range(32, 92)))


@pytest.fixture
def gpu(machine: ScriptedNvml) -> ScriptedNvml:
    """Return one idle H200 on which nobody computes."""
    machine.count, machine.reasons, machine.running = 1, IDLE, ()
    return machine


@pytest.fixture
def rests(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Return the seconds of every rest, which takes none here."""
    found: list[float] = []
    sleep = time.sleep

    def rest(seconds: float) -> None:
        if seconds == COOLING_S:
            found.append(seconds)
        else:
            sleep(seconds)

    monkeypatch.setattr("bench.supervisor.time.sleep", rest)
    return found


Program = Callable[..., int]


@pytest.fixture
def program(gpu: ScriptedNvml, rests: list[float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Program:
    """Return what runs a command of the program into ``tmp_path/results``, with workers on a device on paper."""
    started = tmp_path / "started"
    started.mkdir()

    def run(command: str, *words: str, noise: str = "white") -> int:
        workers = scripted(started, "measures", *noise.split())
        monkeypatch.setattr(bench.supervisor, "Supervisor", partial(Supervisor, command=workers))
        return main([*command.split(), *words, "--results", str(tmp_path / "results")])

    return run


def script(gpu: ScriptedNvml, events: Mapping[int, Mapping[str, object]]) -> None:
    """Change the device before its clocks are read for the n-th time: twice a case, before it and after."""
    count = 0

    def happen() -> None:
        nonlocal count
        for name, value in events.get(count, {}).items():
            setattr(gpu, name, value)
        count += 1

    gpu.before_reading = happen


def kept(tmp_path: Path, *, sentinels: bool = False) -> list[Trial]:
    trials, notices = Store.read(tmp_path / "results", sentinels=sentinels)
    assert notices == []
    return trials


def flags(trials: list[Trial]) -> list[tuple[str, ...]]:
    return [trial.outcome.flags for trial in trials if isinstance(trial.outcome, Measured)]


# --- Heat and supply ------------------------------------------------------------------------------------------------


def test_what_heat_slowed_down_is_taken_again_after_a_rest_and_the_trial_says_so(
    program: Program, gpu: ScriptedNvml, rests: list[float], tmp_path: Path
) -> None:
    script(gpu, {3: {"reasons": HOT}, 5: {"reasons": IDLE}})  # after the second case, and cool after its first rest
    assert program("sweep", *FOUR) == Exit.DONE
    assert [trial.retakes for trial in kept(tmp_path)] == [0, 1, 0, 0]
    assert flags(kept(tmp_path)) == [()] * 4
    assert rests == [20.0]


def test_what_stays_hot_is_taken_again_thrice_and_then_flagged(
    program: Program, gpu: ScriptedNvml, rests: list[float], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script(gpu, {3: {"reasons": HOT}, 10: {"reasons": IDLE}})
    assert program("sweep", *FOUR) == Exit.DONE
    assert [trial.retakes for trial in kept(tmp_path)] == [0, 3, 0, 0]
    throttled = ("throttled: hardware thermal slowdown, after 3 rests too",)
    assert flags(kept(tmp_path)) == [(), throttled, (), ()]
    assert rests == [20.0] * 3
    assert "1 case flagged: throttled: hardware thermal slowdown, after 3 rests too." in capsys.readouterr().out


def test_a_power_cap_is_flagged_and_costs_no_rest(
    program: Program, gpu: ScriptedNvml, rests: list[float], tmp_path: Path
) -> None:
    script(gpu, {3: {"reasons": CAPPED}, 4: {"reasons": IDLE}})
    assert program("sweep", *FOUR) == Exit.DONE
    assert flags(kept(tmp_path)) == [(), ("software power cap: the device lowered its clocks",), (), ()]
    assert rests == []


def test_every_device_that_a_case_runs_on_is_watched(
    program: Program, gpu: ScriptedNvml, rests: list[float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu.count = 2
    words = (
        "--model",
        "q4,kv1,d16",
        "--tp",
        "2",
        "--dcp",
        "2",
        "--kernel",
        "fa2",
        "--path",
        "split",
        "--batch",
        "q8s32",
    )
    script(gpu, {3: {"reasons": HOT}, 4: {"reasons": IDLE}})  # the second device, after
    assert program("--ranks 2 sweep", *words, "--exchange", "ag_rs") == Exit.DONE
    (trial,) = kept(tmp_path)
    assert (trial.retakes, len(trial.clocks), rests) == (1, 4, [20.0])


def test_clocks_that_fall_are_in_the_trial(program: Program, gpu: ScriptedNvml, tmp_path: Path) -> None:
    falling = iter(range(1980, 1380, -75))

    def fall() -> None:
        gpu.sm_mhz = next(falling)

    gpu.before_reading = fall
    assert program("sweep", *FOUR) == Exit.DONE
    read = [[int(state["sm_mhz"]) for state in trial.clocks] for trial in kept(tmp_path)]
    assert read == [[1980, 1905], [1830, 1755], [1680, 1605], [1530, 1455]]


def test_a_search_takes_a_race_again_that_heat_slowed_down(
    program: Program, gpu: ScriptedNvml, rests: list[float], tmp_path: Path
) -> None:
    script(gpu, {1: {"reasons": HOT}, 3: {"reasons": IDLE}})
    assert program("tune", *ONE, "q8s32", "--kernel", "fa2,fa3", "--set", "page_size=16,32") == Exit.DONE
    trials = kept(tmp_path)
    assert len(rests) == 1
    assert {trial.retakes for trial in trials} == {0, 1}
    assert all(isinstance(trial.outcome, Measured) for trial in trials)


def test_an_audit_that_heat_disturbed_is_taken_again_after_a_rest(
    gpu: ScriptedNvml, rests: list[float], tmp_path: Path
) -> None:
    with Supervisor(1, QUICK, command=scripted(tmp_path, "measures", "white")) as supervisor:
        script(gpu, {1: {"reasons": HOT}, 3: {"reasons": IDLE}})
        ((_, cooled),) = supervisor.audit([tiny()])
        assert [one.stage for one in cooled if isinstance(cooled, list)] == [NULL, "step"]
        assert rests == [20.0]
        script(gpu, {0: {"reasons": HOT}})
        assert list(supervisor.audit([tiny()])) == [
            (tiny(), Skipped("throttled: hardware thermal slowdown, after 3 rests too"))
        ]
        assert rests == [20.0] * 4


# --- Memory ---------------------------------------------------------------------------------------------------------


def test_the_memory_that_a_case_took_is_shown_beside_what_was_planned_for_it(
    program: Program, capsys: pytest.CaptureFixture[str]
) -> None:
    assert program("sweep", *FOUR, "--dry-run", "--json") == Exit.DONE
    planned = {one["key"]: one["bytes"] for one in json.loads(capsys.readouterr().out)["cases"]}
    assert program("sweep", *FOUR) == Exit.DONE
    capsys.readouterr()
    assert program("show", "--json") == Exit.DONE
    shown = json.loads(capsys.readouterr().out)["trials"]
    assert {one["outcome"]["peak_bytes"] for one in shown} == {3 << 20}
    assert {Case.from_json(one["case"]).key: one["derived"]["predicted_bytes"] for one in shown} == planned


# --- Company --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["sweep", "tune"])
def test_beside_another_process_nothing_is_measured_unless_asked(
    command: str, program: Program, gpu: ScriptedNvml, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gpu.running = ("vllm",)
    assert program(command, *FOUR) == Exit.UNFIT
    complaint = capsys.readouterr().err.strip().splitlines()[-1]
    assert complaint.startswith("dcpbench: on GPU 0 there is process 4242 (vllm)")
    assert complaint.endswith("or measure beside it with --anyway")
    assert run_files(tmp_path / "results") == []
    assert program(command, *FOUR, "--anyway") == Exit.DONE
    assert all("another process on the device" in found for found in flags(kept(tmp_path)))


@pytest.mark.parametrize("command", ["sweep", "tune"])
def test_a_plan_and_what_is_known_are_shown_beside_whatever_runs(
    command: str, program: Program, gpu: ScriptedNvml
) -> None:
    assert program(command, *FOUR) == Exit.DONE
    gpu.running = ("vllm",)
    assert program(command, *FOUR, "--dry-run") == Exit.DONE
    assert program(command, *FOUR) == Exit.DONE


def test_the_ranks_of_a_launched_job_are_no_strangers_to_one_another(
    gpu: ScriptedNvml, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu.running = ("rank1",)

    def measured() -> Trial:
        with Supervisor(2, QUICK, alone=True, command=scripted(tmp_path, "measures", "white")) as supervisor:
            (trial,) = supervisor.measure([tiny()])
            return trial

    with pytest.raises(UnfitError, match=r"on GPU 0 there is process 4242 \(rank1\)"):
        measured()
    monkeypatch.setattr("bench.supervisor.launched_ranks", lambda: 2)
    monkeypatch.setattr("bench.supervisor.open_group", WorkerGroup)
    assert flags([measured()]) == [()]


def test_a_process_that_comes_and_goes_costs_a_rest(
    program: Program, gpu: ScriptedNvml, rests: list[float], tmp_path: Path
) -> None:
    script(gpu, {3: {"running": ("ours", "vllm")}, 5: {"running": ("ours",)}})
    assert program("sweep", *FOUR) == Exit.DONE
    assert [trial.retakes for trial in kept(tmp_path)] == [0, 2, 0, 0]
    assert flags(kept(tmp_path)) == [()] * 4
    assert rests == [20.0] * 2


def test_a_process_that_comes_and_stays_ends_the_run_which_goes_on_later(
    program: Program, gpu: ScriptedNvml, rests: list[float], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script(gpu, {0: {"running": ("ours",)}, 3: {"running": ("ours", "vllm")}})
    assert program("sweep", *FOUR) == Exit.UNFIT
    complaint = capsys.readouterr().err.strip().splitlines()[-1]
    assert "process 4243 (vllm), of which no more than 1 may be this run's own" in complaint
    assert (len(kept(tmp_path)), rests) == (1, [20.0] * 3)
    script(gpu, {0: {"running": ()}})
    gpu.running = ()
    assert program("sweep", *FOUR) == Exit.DONE
    assert len({trial.key for trial in kept(tmp_path)}) == len(kept(tmp_path)) == 4


# --- A disk that goes ------------------------------------------------------------------------------------------------


def refuse_after(lines: int, why: int, disk: pytest.MonkeyPatch) -> None:
    """Have the disk refuse another line of a run that holds so many, and even to take a part of one back."""

    def refusing(act: Callable[..., object]) -> Callable[..., object]:
        def perhaps(descriptor: int, *more: object) -> object:
            path = Path(f"/proc/self/fd/{descriptor}").resolve()
            if path.suffix == ".jsonl" and path.read_bytes().count(b"\n") >= lines:
                raise OSError(why, os.strerror(why))
            return act(descriptor, *more)

        return perhaps

    for name in ("write", "ftruncate"):
        disk.setattr(os, name, refusing(getattr(os, name)))


@pytest.mark.parametrize(
    ("why", "sentence"),
    [
        (errno.EROFS, "read-only file system; choose a folder on a disk that may be written"),
        (errno.EIO, "input/output error; choose another folder"),
        (errno.ESTALE, "stale file handle; choose another folder"),
    ],
)
def test_a_disk_that_goes_while_a_run_writes_ends_it_with_a_sentence_and_keeps_what_was_printed(
    why: int, sentence: str, program: Program, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.MonkeyPatch.context() as disk:
        refuse_after(2, why, disk)
        assert program("sweep", *FOUR) == Exit.STORAGE
    *said, complaint = capsys.readouterr().err.splitlines()
    (run,) = run_files(tmp_path / "results")
    assert complaint == f"dcpbench: cannot write {run}: {sentence}"
    assert sum(line.startswith("[") for line in said) == len(kept(tmp_path)) == 2
    assert program("sweep", *FOUR) == Exit.DONE
    assert len({trial.key for trial in kept(tmp_path)}) == len(kept(tmp_path)) == 4


# --- Another machine ------------------------------------------------------------------------------------------------


def test_a_driver_that_changed_is_named_when_a_sweep_is_resumed(
    program: Program, gpu: ScriptedNvml, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert program("sweep", *FOUR[:-1], "q8s32,q8s33") == Exit.DONE
    gpu.driver = "590.1"
    assert program("sweep", *FOUR) == Exit.USAGE
    assert "driver: 590.1 here, 580.95 there" in capsys.readouterr().err
    assert len(kept(tmp_path)) == 2
    assert program("sweep", *FOUR, "--fresh") == Exit.DONE
    drivers = [trial.environment.hard["driver"] for trial in kept(tmp_path)]
    assert drivers == ["580.95"] * 2 + ["590.1"] * 4


# --- Drift ----------------------------------------------------------------------------------------------------------


def test_a_case_is_repeated_and_a_device_that_drifts_is_told(
    program: Program, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert program("sweep", *MANY, noise="drifting") == Exit.DONE
    notice = next(line for line in capsys.readouterr().err.splitlines() if line.startswith("The device drifted: "))
    assert "took up to" in notice
    everything = kept(tmp_path, sentinels=True)
    assert [number for number, trial in enumerate(everything) if trial.is_sentinel] == [30, 61]
    assert {trial.case for trial in everything if trial.is_sentinel} == {everything[0].case}
    assert len(kept(tmp_path)) == 60
    assert program("show") == Exit.DONE
    assert "Measured 3 times in " in capsys.readouterr().out
    assert program("show", "--json") == Exit.DONE
    shown = json.loads(capsys.readouterr().out)
    (drift,) = shown["drift"]
    # 30 samples a case, 5 % a thousand: the 61 other measurements between first and last are 1830 samples.
    assert drift["ratio"] == pytest.approx(1.0915, abs=0.01)
    assert drift["low"] < 1.0915 < drift["high"]
    assert drift["drifted"]
    assert len(shown["trials"]) == 60


def test_a_steady_device_is_not_said_to_drift(
    program: Program, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert program("sweep", *MANY) == Exit.DONE
    assert "drifted" not in capsys.readouterr().err
    assert sum(trial.is_sentinel for trial in kept(tmp_path, sentinels=True)) == 2


def test_repeated_trials_change_no_table_no_comparison_and_no_profile(
    program: Program, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert program("sweep", *MANY, noise="drifting") == Exit.DONE
    table = capsys.readouterr().out
    assert program("show") == Exit.DONE
    assert capsys.readouterr().out.startswith(table)
    folder = str(tmp_path / "results")
    assert main(["compare", folder, folder, "--json"]) == Exit.DONE
    pairs = json.loads(capsys.readouterr().out)["pairs"]
    assert len(pairs) == 60
    assert {pair["ratio"] for pair in pairs} == {1.0}
    assert program("tune", *MANY, "--search", "exhaustive") == Exit.DONE
    entries = [
        entry
        for file in (tmp_path / "results" / "profiles").iterdir()
        for entry in json.loads(file.read_text())["entries"]
    ]
    assert len(entries) == 60
    first = kept(tmp_path)[0]
    (told,) = [entry["candidates"][0] for entry in entries if entry["workload"] == str(first.case.workload)]
    assert told["time"] == first.time
    assert isinstance(first.outcome, Measured)
    assert told["median_us"] == float(f"{first.outcome.step_us.median:.6g}")


def test_a_resumed_sweep_measures_what_is_missing_and_repeats_the_same_case(
    program: Program, gpu: ScriptedNvml, tmp_path: Path
) -> None:
    def stop() -> None:
        if sum(trial.is_sentinel for trial in kept(tmp_path, sentinels=True)) == 1:
            raise KeyboardInterrupt

    gpu.before_reading = stop
    assert program("sweep", *MANY) == Exit.INTERRUPTED
    first = kept(tmp_path)
    assert len(first) == 30
    gpu.before_reading = lambda: None
    assert program("sweep", *MANY) == Exit.DONE
    assert len({trial.key for trial in kept(tmp_path)}) == len(kept(tmp_path)) == 60
    again = [trial.case for trial in kept(tmp_path, sentinels=True) if trial.is_sentinel]
    assert again == [first[0].case] * 2
    assert program("sweep", *MANY) == Exit.DONE
    assert len(kept(tmp_path, sentinels=True)) == 62
