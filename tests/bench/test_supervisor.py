"""The supervisor: whatever happens to a worker costs one trial, and no process is left behind."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from bench.errors import UnfitError
from bench.group import ENDING_SECONDS, GroupLost, WorkerGroup
from bench.orders import Compiling
from bench.record import PROTOCOL, Failed, Heat, Label, Measured, Skipped, Trial, Verified
from bench.stats import summarize
from bench.supervisor import COOLING_S, Supervisor, ranks_for
from bench.tune.known import paired
from dcp_core.check import Check
from tests.bench.cases import QUICK, tiny

ROOT = Path(__file__).parents[2]
CASE_SECONDS = 5.0


def command(module: str, *arguments: object) -> tuple[str, ...]:
    """Return how to run a worker that lives among the tests, from wherever they are run."""
    start = f"import runpy, sys; sys.path.insert(0, {str(ROOT)!r}); runpy.run_module({module!r}, run_name='__main__')"
    return (sys.executable, "-c", start, *map(str, arguments))


def scripted(tmp_path: Path, *arguments: object) -> tuple[str, ...]:
    return command("tests.bench.scripted_worker", tmp_path, *arguments)


def processes(folder: Path) -> list[int]:
    """Return every worker that was started."""
    return sorted(int(file.name) for file in folder.iterdir())


def running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def outcomes(tmp_path: Path, *names: str, ranks: int = 2, case_seconds: float = 60.0) -> list[Trial]:
    with Supervisor(ranks, QUICK, case_seconds=case_seconds, command=scripted(tmp_path)) as supervisor:
        return list(supervisor.measure([tiny(name=name) for name in names]))


# --- With workers that only pretend ---------------------------------------------------------------------------------


def test_every_case_gets_its_own_answer_from_one_warm_group(tmp_path: Path) -> None:
    trials = outcomes(tmp_path, "one", "two", "three")
    assert [trial.outcome for trial in trials] == [Skipped("one"), Skipped("two"), Skipped("three")]
    assert len(processes(tmp_path)) == 2


def test_what_workers_compile_is_heard_and_is_no_answer(tmp_path: Path) -> None:
    heard: list[Compiling] = []
    with Supervisor(2, QUICK, case_seconds=60.0, command=scripted(tmp_path)) as supervisor:
        supervisor.told = heard.append
        trials = list(supervisor.measure([tiny(name="one"), tiny(name="compiles0"), tiny(name="two")]))
    assert [trial.outcome for trial in trials] == [Skipped("one"), Skipped("compiles0"), Skipped("two")]
    assert heard == [Compiling("batch_decode", 1.5, ended=ended) for ended in (False, True)]


def test_a_worker_that_compiles_for_ever_is_past_its_deadline_all_the_same(tmp_path: Path) -> None:
    (trial,) = outcomes(tmp_path, "chatters1", case_seconds=1.0)
    assert isinstance(trial.outcome, Failed)
    assert trial.outcome.fault == "timeout"


@pytest.mark.parametrize(
    "said", [None, [], {}, {"kernel": 1, "seconds": 1, "ended": False}, {"kernel": "k", "seconds": -1, "ended": True}]
)
def test_what_is_no_word_of_compiling_is_refused(said: Any) -> None:
    with pytest.raises(ValueError, match="a worker says what it compiles"):
        Compiling.read(said)


def test_a_trial_says_what_was_measured_when_and_where(tmp_path: Path) -> None:
    (trial,) = outcomes(tmp_path, "one")
    assert trial.case == tiny()
    assert trial.key == (tiny().key, 1, PROTOCOL, QUICK.cold, QUICK.graphs, QUICK.calls)
    assert trial.policy == QUICK
    assert trial.environment.hard
    assert trial.seconds > 0
    assert trial.time.endswith("+00:00")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("dies", "a worker died (killed by SIGKILL)"),
        ("dies0", "a worker died (killed by SIGKILL)"),
        ("dies1", "a worker died (killed by SIGKILL)"),
        ("leaves1", "a worker died (exit status 7)"),
    ],
)
def test_a_worker_that_dies_costs_one_trial(tmp_path: Path, name: str, message: str) -> None:
    first, lost, last = outcomes(tmp_path, "one", name, "two")
    assert first.outcome == Skipped("one")
    assert isinstance(lost.outcome, Failed)
    assert (lost.outcome.fault, lost.outcome.message) == ("crashed", message)
    assert last.outcome == Skipped("two")
    assert len(processes(tmp_path)) == 4


def test_the_last_words_of_a_dead_worker_are_kept(tmp_path: Path) -> None:
    (lost,) = outcomes(tmp_path, "dies1")
    assert isinstance(lost.outcome, Failed)
    assert "a last word on the way out" in lost.outcome.traceback


def test_a_worker_past_its_deadline_costs_one_trial(tmp_path: Path) -> None:
    first, lost, last = outcomes(tmp_path, "one", "hangs1", "two", case_seconds=2.0)
    assert first.outcome == Skipped("one")
    assert isinstance(lost.outcome, Failed)
    assert (lost.outcome.fault, lost.outcome.message) == (
        "timeout",
        "no answer within its deadline of 2 s; the workers were killed",
    )
    assert last.outcome == Skipped("two")
    assert 2.0 <= lost.seconds < 12.0


def test_a_deadline_grows_with_what_is_expected_of_the_case(tmp_path: Path) -> None:
    slow, usual = tiny("q8s33", name="hangs1"), tiny(name="hangs1")
    with Supervisor(2, QUICK, case_seconds=1.0, command=scripted(tmp_path)) as supervisor:
        trials = list(supervisor.measure([slow, usual], {slow: 0.5, usual: 0.01}))
    deadlines = [trial.outcome.message for trial in trials if isinstance(trial.outcome, Failed)]
    assert deadlines == [
        "no answer within its deadline of 2 s; the workers were killed",
        "no answer within its deadline of 1 s; the workers were killed",
    ]
    assert trials[0].seconds >= 2.0


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_fails_alone_is_heard_though_its_peers_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rank: int
) -> None:
    monkeypatch.setattr("bench.group.STRAGGLER_SECONDS", 0.2)
    lost, last = outcomes(tmp_path, f"breaks{rank}", "two")
    assert lost.outcome == Failed("error", f"rank {rank} alone: breaks{rank}", "where it happened")
    assert last.outcome == Skipped("two")
    assert lost.seconds < 30
    assert not any(map(running, processes(tmp_path)))


def test_a_poisoned_worker_is_replaced_and_its_answer_kept(tmp_path: Path) -> None:
    lost, last = outcomes(tmp_path, "poisoned1", "two")
    assert last.outcome == Skipped("two")
    assert len(processes(tmp_path)) == 4
    assert isinstance(lost.outcome, Failed)
    assert lost.outcome.traceback == "where it happened"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("raves", "a worker said what is no answer; the workers were killed"),
        ("denies", "a worker said what is no answer; the workers were killed"),
        ("forgets", "a worker said what cannot be: an outcome is measured, skipped or failed, not None"),
        (
            "lies",
            "a worker said what cannot be: Measured: timer_floor_us should be neither negative nor infinite, not -1",
        ),
    ],
)
def test_a_worker_that_says_what_cannot_be_costs_one_trial(tmp_path: Path, name: str, message: str) -> None:
    first, lost, last = outcomes(tmp_path, "one", name, "two")
    assert (first.outcome, last.outcome) == (Skipped("one"), Skipped("two"))
    assert isinstance(lost.outcome, Failed)
    assert (lost.outcome.fault, lost.outcome.message) == ("nonsense", message)
    assert len(processes(tmp_path)) == 4
    assert not any(map(running, processes(tmp_path)))


def test_a_verdict_that_is_none_costs_one_case(tmp_path: Path) -> None:
    with Supervisor(1, QUICK, command=scripted(tmp_path)) as supervisor:
        names = ["right", "forgets", "lies", "right"]
        verdicts = [verdict for _, verdict in supervisor.verify([tiny(name=name) for name in names])]
    assert verdicts[0] == verdicts[-1] == Verified(Check(1, 0.0, 1.0, 0.0, 1.0))
    assert [verdict.fault for verdict in verdicts if isinstance(verdict, Failed)] == ["nonsense", "nonsense"]


def test_no_process_is_left_behind(tmp_path: Path) -> None:
    outcomes(tmp_path, "one", "dies1", "hangs0", "poisoned0", "two", case_seconds=2.0)
    started = processes(tmp_path)
    assert len(started) == 8
    assert not any(map(running, started))


def test_workers_are_ended_when_their_user_fails(tmp_path: Path) -> None:
    def give_up() -> None:
        with Supervisor(2, QUICK, command=scripted(tmp_path)) as supervisor:
            next(supervisor.measure([tiny(name="one"), tiny(name="two")]))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        give_up()
    assert len(processes(tmp_path)) == 2
    assert not any(map(running, processes(tmp_path)))


def test_a_worker_killed_between_two_cases_costs_the_next_one(tmp_path: Path) -> None:
    group = WorkerGroup(2, scripted(tmp_path))
    for process in processes(tmp_path):
        os.kill(process, 9)
        while running_not_defunct(process):
            os.sched_yield()
    with pytest.raises(GroupLost, match="killed by SIGKILL") as lost:
        group.ask({"do": "probe"}, 60.0)
    assert lost.value.fault == "crashed"


def test_a_worker_that_does_not_end_when_it_is_killed_is_not_waited_for_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    group = WorkerGroup(2, scripted(tmp_path))
    waited: list[float] = []

    def stuck(self: subprocess.Popen[bytes], timeout: float) -> int:
        waited.append(timeout)
        raise subprocess.TimeoutExpired("worker", timeout)

    with monkeypatch.context() as in_the_driver:
        in_the_driver.setattr(subprocess.Popen, "wait", stuck)
        group.close()
    assert waited == [ENDING_SECONDS] * 2


def running_not_defunct(process: int) -> bool:
    return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


@pytest.mark.parametrize("how", ["dies", "leaves"])
def test_a_group_that_does_not_come_up_is_a_failure_of_its_case(tmp_path: Path, how: str) -> None:
    with Supervisor(2, QUICK, command=scripted(tmp_path, how)) as supervisor:
        (trial,) = supervisor.measure([tiny()])
        assert isinstance(trial.outcome, Failed)
        assert trial.outcome.fault == "crashed"
        with pytest.raises(UnfitError, match="no worker comes up here: a worker died"):
            supervisor.probe()
    assert not any(map(running, processes(tmp_path)))


def test_what_was_started_is_ended_when_a_signal_interrupts_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(group: WorkerGroup, _seconds: float) -> None:
        wait_for(lambda: len(processes(tmp_path)) == 2)
        raise KeyboardInterrupt

    monkeypatch.setattr(WorkerGroup, "_collect", interrupted)
    with pytest.raises(KeyboardInterrupt):
        WorkerGroup(2, scripted(tmp_path))
    assert not any(map(running, processes(tmp_path)))


def test_a_machine_that_starts_no_more_processes_is_unfit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start = subprocess.Popen

    def one_only(*arguments: object, **options: object) -> object:
        if processes(tmp_path):
            raise OSError(24, "Too many open files")
        worker = start(*arguments, **options)  # type: ignore[call-overload]
        wait_for(lambda: bool(processes(tmp_path)))
        return worker

    monkeypatch.setattr("bench.group.subprocess.Popen", one_only)
    before = open_files()
    with (
        Supervisor(3, QUICK, command=scripted(tmp_path)) as supervisor,
        pytest.raises(UnfitError, match="cannot start 3 workers here: too many open files"),
    ):
        list(supervisor.measure([tiny()]))
    assert not any(map(running, processes(tmp_path)))
    assert open_files() == before


def open_files() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def wait_for(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        os.sched_yield()


def test_another_launcher_s_store_is_not_the_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    say = "import os; print([name for name in os.environ if 'ELASTIC' in name], flush=True); os._exit(3)"
    with pytest.raises(GroupLost) as lost:
        WorkerGroup(1, (sys.executable, "-c", say))
    assert lost.value.log == "[]\n"


def test_verdicts_come_one_by_one(tmp_path: Path) -> None:
    names = ["right", "skipped", "dies1", "poisoned", "right"]
    with Supervisor(2, QUICK, command=scripted(tmp_path)) as supervisor:
        verdicts = [verdict for _, verdict in supervisor.verify([tiny(name=name) for name in names])]
    right = Verified(Check(1, 0.0, 1.0, 0.0, 1.0))
    assert verdicts[0] == verdicts[-1] == right
    assert verdicts[1] == Skipped("skipped")
    assert [verdict.fault for verdict in verdicts if isinstance(verdict, Failed)] == ["crashed", "error"]


def test_probing_asks_the_whole_group(tmp_path: Path) -> None:
    with Supervisor(3, QUICK, command=scripted(tmp_path)) as supervisor:
        assert supervisor.probe()["ranks"] == 3


@pytest.mark.parametrize(
    ("how", "field", "what"),
    [
        ("forgets", "kernels", "'kernels' is missing"),
        ("forgets", "exchanges", "'exchanges' is missing"),
        ("forgets", "timer_floor_us", "'timer_floor_us' is missing"),
        ("forgets", "timer", "'timer' is missing"),
        ("garbles", "kernels", "'int' object is not iterable"),
        ("garbles", "paces", "'int' object is not iterable"),
    ],
)
def test_a_worker_that_does_not_say_what_runs_here_is_of_no_use(
    tmp_path: Path, how: str, field: str, what: str
) -> None:
    with Supervisor(1, QUICK, command=scripted(tmp_path, how, field)) as supervisor:
        with pytest.raises(UnfitError) as unfit:
            supervisor.probe()
        assert str(unfit.value) == f"no worker comes up here: a worker said what cannot be: {what}"
        assert not any(map(running, processes(tmp_path)))


@pytest.mark.parametrize("name", ["TORCH_SYMM_MEM_DISABLE_MULTICAST", "NCCL_NVLS_ENABLE"])
def test_workers_keep_what_turns_multicast_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    for value in ("0", "1"):
        monkeypatch.setenv(name, value)
        with Supervisor(2, QUICK, command=scripted(tmp_path)) as supervisor:
            assert supervisor.probe()["environment"][name] == value


def test_a_case_takes_its_whole_group_or_one_rank() -> None:
    assert ranks_for(tiny()) == 1
    assert ranks_for(tiny(dcp=2, exchange="loopback")) == 1
    assert ranks_for(tiny(dcp=2, exchange="a2a")) == 2


# --- Races ----------------------------------------------------------------------------------------------------------


def races(tmp_path: Path, *names: str, case_seconds: float = 60.0) -> list[Trial]:
    cases = [tiny(f"q8s{32 + place}", name=name) for place, name in enumerate(names)]
    with Supervisor(2, QUICK, case_seconds=case_seconds, command=scripted(tmp_path)) as supervisor:
        return supervisor.race(cases, Heat.RACED, rounds=4, repeats=3)


def test_a_race_is_a_trial_of_each_case_and_their_samples_pair(tmp_path: Path) -> None:
    trials = races(tmp_path, "takes100", "takes90", "one")
    first, second = (trial.outcome for trial in trials[:2])
    assert isinstance(first, Measured)
    assert isinstance(second, Measured)
    assert first.race == second.race
    assert first.race is not None
    assert (first.race.heat, first.race.cases, first.race.repeats) == (Heat.RACED, 2, 3)
    assert len(first.rank_samples_us[0]) == first.step_us.count == 4 * 2 * 3
    assert trials[2].outcome == Skipped("one")
    assert [trial.case.shape.name for trial in trials] == ["takes100", "takes90", "one"]


@pytest.mark.parametrize("culprit", ["dies1", "hangs0", "poisoned0"])
def test_who_ends_a_race_fails_alone(tmp_path: Path, culprit: str) -> None:
    trials = races(tmp_path, "takes100", culprit, "takes90", case_seconds=2.0)
    (failed,) = trials
    assert failed.case.shape.name == culprit
    assert isinstance(failed.outcome, Failed)
    assert not any(map(running, processes(tmp_path)))


def test_a_race_that_only_fails_as_a_whole_is_blamed_on_all_but_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask = Supervisor._ask

    def crowded(supervisor: Supervisor, order: dict[str, Any], deadline_s: float) -> dict[str, Any]:
        if len(order["cases"]) > 1:
            return {"outcome": {"kind": "failed", "fault": "out_of_memory", "message": "no room", "traceback": ""}}
        return ask(supervisor, order, deadline_s)

    monkeypatch.setattr(Supervisor, "_ask", crowded)
    trials = races(tmp_path, "takes100", "takes90", "takes80")
    assert [trial.case.shape.name for trial in trials] == ["takes90", "takes80"]
    assert all(trial.outcome == Failed("out_of_memory", "no room") for trial in trials)


def test_renewed_workers_are_others_and_have_another_name(tmp_path: Path) -> None:
    case = [tiny(name="takes100")]
    with Supervisor(1, QUICK, command=scripted(tmp_path)) as supervisor:
        first, same = (supervisor.race(case, Heat.RACED, rounds=1, repeats=1)[0].outcome for _ in range(2))
        assert supervisor.renew()
        other = supervisor.race(case, Heat.CONFIRMED, rounds=1, repeats=1)[0].outcome
    assert len(processes(tmp_path)) == 2
    names = [outcome.race.process for outcome in (first, same, other) if isinstance(outcome, Measured) and outcome.race]
    assert names[0] == names[1] != names[2]


def test_the_ranks_of_a_launched_job_cannot_be_renewed_once_they_raced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Supervisor(1, QUICK, command=scripted(tmp_path)) as supervisor:
        monkeypatch.setattr("bench.supervisor.launched_ranks", lambda: 2)
        assert supervisor.renew()
        monkeypatch.setattr("bench.supervisor.open_group", WorkerGroup)
        supervisor.race([tiny(name="takes100")], Heat.RACED, rounds=1, repeats=1)
        assert not supervisor.renew()


def test_what_a_hot_device_slowed_down_is_timed_again_and_in_the_end_flagged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reasons = iter(["none", "hardware thermal slowdown", "none", "none"])
    rested: list[float] = []
    monkeypatch.setattr("bench.supervisor.clocks", lambda _index: {"event_reasons": next(reasons, "hardware slowdown")})
    monkeypatch.setattr("bench.supervisor.time.sleep", rested.append)
    with Supervisor(1, QUICK, command=scripted(tmp_path)) as supervisor:
        once, always = (supervisor.race([tiny(name="takes100")], Heat.RACED, rounds=1, repeats=1)[0] for _ in range(2))
    assert isinstance(once.outcome, Measured)
    assert once.outcome.flags == ()
    assert isinstance(always.outcome, Measured)
    assert always.outcome.flags == ("throttled: hardware slowdown, after 3 rests too",)
    assert rested.count(COOLING_S) == 1 + 3
    assert (once.retakes, always.retakes) == (1, 3)


def test_what_was_slowed_down_while_it_was_timed_is_timed_again_and_in_the_end_flagged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rested: list[float] = []
    monkeypatch.setattr("bench.supervisor.time.sleep", rested.append)
    slowed, usual = outcomes(tmp_path, "slowed", "lasts1", ranks=1)
    assert isinstance(slowed.outcome, Measured)
    assert slowed.outcome.flags == ("throttled: hardware thermal slowdown, after 3 rests too",)
    assert (slowed.retakes, usual.retakes, rested.count(COOLING_S)) == (3, 0, 3)


# --- With real workers ----------------------------------------------------------------------------------------------


class Real(NamedTuple):
    """Trials of real workers, after each how many of these ran, and a file for each that was started."""

    trials: list[Trial]
    alive: list[int]
    folder: Path


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Real:
    """Measure a case of every kind, faults between them, on two real ranks."""
    folder = tmp_path_factory.mktemp("processes")
    cases = [
        tiny("4q8s64"),
        tiny("4q8s64", dcp=2, exchange="ag_rs"),
        tiny("4q8s64", dcp=2, exchange="ag_rs", name="dies"),
        tiny("4q8s64", dcp=2, exchange="a2a", path="fold"),
        tiny("4q8s64", dcp=2, exchange="ag_rs", name="stalls"),
        tiny("4q8s64", dcp=3, exchange="loopback"),
        tiny("4q8s64", name="raises"),
        tiny("4q8s64", kernel="fa3"),
        tiny("4q1s64", dcp=2, exchange="a2a", path="decode"),
    ]
    worker = command("tests.bench.faulty_worker", folder)
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("CUDA_VISIBLE_DEVICES", "")
        with Supervisor(2, QUICK, case_seconds=CASE_SECONDS, command=worker) as supervisor:
            found = [(trial, sum(map(running, processes(folder)))) for trial in supervisor.measure(cases)]
    trials, alive = zip(*found, strict=True)
    return Real(list(trials), list(alive), folder)


def test_what_is_right_is_measured_before_and_after_every_fault(real: Real) -> None:
    found = [trial.outcome for trial in real.trials]
    labels = [outcome.label for outcome in found if isinstance(outcome, Measured)]
    assert labels == [Label.MEASURED, Label.MEASURED, Label.MEASURED, Label.SIMULATED, Label.MEASURED], found
    assert [outcome.fault for outcome in found if isinstance(outcome, Failed)] == ["crashed", "timeout", "error"]
    assert [type(outcome) for outcome in found].count(Skipped) == 1


def test_a_real_rank_that_hangs_in_a_step_is_killed_with_those_that_wait_for_it_and_the_next_case_is_right(
    real: Real,
) -> None:
    names = [trial.case.shape.name for trial in real.trials]
    lost, following = real.trials[names.index("stalls") :][:2]
    assert isinstance(lost.outcome, Failed)
    assert lost.outcome.fault == "timeout"
    assert CASE_SECONDS <= lost.seconds < CASE_SECONDS + 10, "so much later the next case begins"
    assert real.alive[names.index("stalls")] == 0
    assert isinstance(following.outcome, Measured)
    assert following.outcome.check.passed


def test_a_real_group_times_every_rank_and_the_exchange(real: Real) -> None:
    trial = real.trials[1]
    assert trial.ranks == 2
    assert isinstance(trial.outcome, Measured)
    assert trial.outcome.exchange_timed
    assert len(trial.outcome.rank_samples_us) == 2
    assert [stage.name for stage in trial.outcome.stages if stage.communicates] == ["gather", "combine"]
    slowest = [max(times) for times in zip(*trial.outcome.rank_samples_us, strict=True)]
    assert trial.outcome.step_us == summarize(slowest)


def test_a_real_error_keeps_its_traceback(real: Real) -> None:
    (failed,) = [t.outcome for t in real.trials if isinstance(t.outcome, Failed) and t.outcome.fault == "error"]
    assert failed.message == "ZeroDivisionError: a bug in a kernel"
    assert "measure_or_fail" in failed.traceback


def test_no_real_worker_is_left_behind(real: Real) -> None:
    assert len(processes(real.folder)) == 6
    assert not any(map(running, processes(real.folder)))


def test_real_ranks_race_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    cases = [tiny("4q8s64", dcp=2, exchange="ag_rs"), tiny("4q8s64", dcp=2, exchange="a2a", path="fold")]
    with Supervisor(2, QUICK) as supervisor:
        screened, raced = (supervisor.race(cases, heat, rounds=2, repeats=3) for heat in (Heat.SCREENED, Heat.RACED))
    for trial in [*screened, *raced]:
        assert isinstance(trial.outcome, Measured), trial.outcome
        assert trial.ranks == 2
        assert trial.outcome.exchange_timed
        assert [len(samples) for samples in trial.outcome.rank_samples_us] == [12, 12]
    comparison = paired([screened[0], raced[0]], [screened[1], raced[1]], Heat.RACED)
    assert comparison is not None
    assert comparison.pairs == 2


SUPERVISES = """
import sys
sys.path.insert(0, {root!r})
from bench.supervisor import Supervisor
from tests.bench.cases import QUICK, tiny
with Supervisor(2, QUICK, command={command!r}) as supervisor:
    list(supervisor.measure([tiny(dcp=2, exchange="ag_rs", name="hangs")]))
"""


def test_real_workers_end_with_a_supervisor_that_is_killed_during_a_case(tmp_path: Path) -> None:
    started, busy = tmp_path / "started", tmp_path / "busy"
    started.mkdir()
    busy.mkdir()
    code = SUPERVISES.format(root=str(ROOT), command=command("tests.bench.faulty_worker", started, busy))
    supervisor = subprocess.Popen([sys.executable, "-c", code], env=os.environ | {"CUDA_VISIBLE_DEVICES": ""})
    wait_for(lambda: len(processes(busy)) == 2)
    supervisor.kill()
    supervisor.wait()
    wait_for(lambda: not any(running(process) and running_not_defunct(process) for process in processes(busy)))


def test_the_real_worker_says_what_runs_here() -> None:
    started = time.monotonic()
    with Supervisor(1, QUICK) as supervisor:
        found = supervisor.probe()
    assert found["kernels"]["reference"] == ""
    assert found["exchanges"]["loopback"] == ""
    assert "at least two ranks" in found["exchanges"]["a2a"]
    assert (found["timer"], found["paces"]) == ("host", [{}])
    assert found["timer_floor_us"] > 0
    assert time.monotonic() - started < 60


def test_a_power_cap_during_a_case_is_flagged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.supervisor.clocks", lambda _index: {"event_reasons": "idle, software power cap"})
    with Supervisor(1, QUICK) as supervisor:
        (trial,) = supervisor.measure([tiny(name="capped")])
    assert isinstance(trial.outcome, Measured)
    assert any(flag.startswith("software power cap") for flag in trial.outcome.flags)
