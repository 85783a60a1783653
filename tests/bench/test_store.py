"""A run on disk: what was acknowledged is kept, what is damaged is named, and nobody writes twice."""

from __future__ import annotations

import errno
import json
import math
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.line import MAX_TRACEBACK, decode, encode
from bench.policy import Policy
from bench.record import SCHEMA, Environment, Failed, Label, Measured, Outcome, Skipped, Trial
from bench.stats import summarize
from bench.store import FileError, LockedError, StorageError, Store, find_run, read_run
from bench.times import MAX_SAMPLES, Pace, Piece, PlanTime, StageTime, StopReason
from dcp_core import Case, DcpLayout, ModelShape, Settings, Workload
from dcp_core.check import Check
from tests.pages import promise

CASE = Case(
    ModelShape.preset("qwen3-235b-a22b"),
    DcpLayout(8, 2),
    Workload.parse("2q1s32k_q512"),
    Settings(kernel="fa2", page_size=64),
)


def measured(median_us: float = 10.0) -> Measured:
    times = summarize([median_us * scale for scale in (0.9, 1.0, 1.1)])
    return Measured(
        label=Label.SIMULATED,
        check=Check(rows=7, out_error=1e-3, out_budget=1e-2, lse_error=0.0, lse_budget=1e-4),
        timer="host",
        step_us=times,
        launch_us=times,
        plan=(PlanTime("plan", times),),
        stages=(
            StageTime(
                "gather",
                times,
                communicates=True,
                variant="tiles of 8 rows, 4 warps",
                dropped=30,
                correlation=0.3,
                stop=StopReason.CAP,
            ),
        ),
        rank_samples_us=((9.0, 10.0), (11.0,)),
        exchange_timed=False,
        stop=StopReason.CAP,
        timer_floor_us=0.5,
        flushed_bytes=0,
        kv_bytes=1 << 20,
        layers=94,
        flags=("µ — a flag",),
        warmup=20,
        correlation=-0.125,
        span_us=times,
        timer_floor_end_us=0.75,
        timer_empty_us=0.25,
        timer_empty_end_us=0.375,
        dropped=60,
        clocks_during=(Pace(3, 1755, 1980, ("software power cap",), 47, 61, 480, 702), Pace(1)),
        peak_bytes=3 << 20,
        warm=StageTime("step", times, samples_us=(9.0, 10.0, 11.0), correlation=0.25, stop=StopReason.PRECISE),
        timeline=(Piece("meet_once", 0.0, 9.125, communicates=True), Piece("attend", 1.5, 270.0, communicates=False)),
    )


def trial(outcome: Outcome | None = None, ranks: int = 1) -> Trial:
    environment = Environment({"device_name": "NVIDIA H200"}, {"env:OMP_NUM_THREADS": "1"})
    return Trial(
        CASE,
        outcome or measured(),
        ranks,
        Policy(precision=0.03, cold=False),
        environment,
        seconds=1.25,
        time="2026-01-02T03:04:05+00:00",
        clocks=({"sm_mhz": "1980"}, {}),
        retakes=2,
    )


LATER = {
    "span_us": None,
    "timer_floor_end_us": None,
    "timer_empty_us": None,
    "timer_empty_end_us": None,
    "dropped": 0,
    "clocks_during": (),
    "peak_bytes": None,
    "warm": None,
    "timeline": (),
}
"""What the first lines of schema 3 lack of an outcome, and its default."""

OUTCOMES: list[Outcome] = [measured(), Skipped("needs 3 GiB, has 2 GiB"), Failed("incorrect", "row 3\n", "Traceback …")]


@pytest.mark.parametrize("outcome", OUTCOMES, ids=lambda outcome: outcome.kind)
def test_a_trial_survives_its_line(outcome: Outcome) -> None:
    original = trial(outcome)
    line = encode(original)
    assert line.count(b"\n") == 1
    assert decode(line) == original
    assert decode(json.dumps(json.loads(line), indent=2).encode()) == original, "whitespace is not content"


times = st.floats(min_value=0, allow_nan=False, allow_infinity=False)


@given(st.lists(st.lists(times, max_size=5).map(tuple), max_size=3).map(tuple), st.text(), st.text())
def test_any_trial_survives_its_line(samples: tuple[tuple[float, ...], ...], flag: str, timer: str) -> None:
    original = trial(replace(measured(), rank_samples_us=samples, flags=(flag,), timer=timer))
    assert decode(encode(original)) == original


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_nan_never_reaches_a_file(tmp_path: Path, bad: float) -> None:
    with Store.open(tmp_path) as store:
        store.append(trial())
        with pytest.raises(ValueError, match=r"timer_floor_us should be neither negative nor infinite"):
            store.append(trial(replace(measured(), timer_floor_us=bad)))
        store.append(trial())
    assert Store.read(tmp_path) == ([trial(), trial()], [])


def test_a_long_traceback_keeps_its_end() -> None:
    failed = Failed("error", "boom", "x" * MAX_TRACEBACK + "the error")
    kept = decode(encode(trial(failed))).outcome
    assert isinstance(kept, Failed)
    assert len(kept.traceback) == MAX_TRACEBACK
    assert kept.traceback.endswith("the error")


def test_the_store_is_the_union_of_runs_and_no_run_opens_anothers_file(tmp_path: Path) -> None:
    for ranks in (1, 2):
        with Store.open(tmp_path / "results") as store:
            assert store.path is None
            store.append(trial(ranks=ranks))
            assert store.path is not None
    trials, notices = Store.read(tmp_path / "results")
    assert [one.ranks for one in trials] == [1, 2]
    assert notices == []
    assert len(list((tmp_path / "results").glob("*.jsonl"))) == 2


def test_a_run_without_trials_leaves_no_file(tmp_path: Path) -> None:
    with Store.open(tmp_path):
        pass
    assert list(tmp_path.glob("*.jsonl")) == []
    assert Store.read(tmp_path / "never") == ([], [])


def test_every_truncation_is_readable_up_to_the_cut(tmp_path: Path) -> None:
    lines = [encode(trial(outcome)) for outcome in OUTCOMES[1:]]
    whole, path = b"".join(lines), tmp_path / "run.jsonl"
    ends = [sum(map(len, lines[: count + 1])) for count in range(len(lines))]
    for cut in range(len(whole) + 1):
        path.write_bytes(whole[:cut])
        trials, notices = read_run(path)
        # A line that lacks nothing but its newline is whole.
        assert len(trials) == sum(cut >= end - 1 for end in ends)
        clean = cut == 0 or any(cut in (end, end - 1) for end in ends)
        assert len(notices) == (0 if clean else 1)
        assert all("torn" in notice for notice in notices)
    assert f"each of {len(whole) + 1:,} cuts" in promise("A run cut anywhere")


def test_a_damaged_line_costs_only_itself(tmp_path: Path) -> None:
    line = encode(trial())
    damaged = line.replace(b"0.03", b"0.04")
    path = tmp_path / "run.jsonl"
    path.write_bytes(line + damaged + b"\xff\xfe\n" + b"[1]\n" + line)
    trials, notices = read_run(path)
    assert len(trials) == 2
    assert [notice.split(": ", 2)[2] for notice in notices] == [
        "its checksum does not match: it was changed or damaged after it was written",
        "no JSON",
        "no trial: it should hold a checksum and a trial",
    ]


@settings(max_examples=300)
@given(st.data())
def test_a_mutated_run_gives_sentences_and_no_traceback(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    content = bytearray(encode(trial()) * 2)
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "mutated.jsonl"
    path.write_bytes(content)
    trials, notices = read_run(path)
    assert all(one == trial() for one in trials)
    assert len(trials) + len(notices) >= 1


def sealed(content: dict[str, object]) -> bytes:
    """Return a line with the right checksum, whatever it says."""
    import hashlib

    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return json.dumps({"checksum": hashlib.sha256(text.encode()).hexdigest()[:16], "trial": content}).encode() + b"\n"


def test_a_line_of_schema_1_is_read_with_what_it_lacks_at_its_default(tmp_path: Path) -> None:
    content = json.loads(encode(trial()))["trial"]
    del content["policy"]["graphs"]
    for stage in content["outcome"]["stages"]:
        del stage["rank_samples_us"], stage["variant"]
    path = tmp_path / "run.jsonl"
    path.write_bytes(sealed({**content, "schema": 1}))
    known = trial()
    assert isinstance(known.outcome, Measured)
    stages = tuple(replace(stage, variant="") for stage in known.outcome.stages)
    assert read_run(path) == ([replace(known, outcome=replace(known.outcome, stages=stages), schema=1)], [])


def test_ranks_of_a_stage_that_were_sampled_differently_are_refused() -> None:
    with pytest.raises(ValueError, match="ranks of stage 'gather' have different numbers of samples"):
        StageTime("gather", summarize([1.0]), communicates=True, rank_samples_us=((1.0, 2.0), (1.0,)))


def test_what_a_stage_between_ranks_took_and_what_they_waited_are_told_apart() -> None:
    stage = StageTime("gather", summarize([9.0]), communicates=True, rank_samples_us=((5.0, 9.0), (8.0, 4.0)))
    assert (stage.pure_us, stage.skew_us) == ((5.0, 4.0), (3.0, 5.0))
    apart = replace(stage, name="attention", communicates=False)
    assert (apart.pure_us, apart.skew_us) == ((), ()), "no rank waits for another"


def test_a_line_of_schema_2_is_read_with_what_it_lacks_at_its_default(tmp_path: Path) -> None:
    content = json.loads(encode(trial()))["trial"]
    for name in ("warmup", "correlation"):
        del content["outcome"][name]
    for name in ("is_sentinel", "retakes"):
        del content[name]
    path = tmp_path / "run.jsonl"
    path.write_bytes(sealed({**content, "schema": 2}))
    older = replace(trial(replace(measured(), warmup=0, correlation=None)), retakes=0, schema=2)
    assert read_run(path) == ([older], [])


def test_the_first_lines_of_schema_3_are_read_with_what_they_lack_at_its_default(tmp_path: Path) -> None:
    content = json.loads(encode(trial()))["trial"]
    outcome = content["outcome"]
    for name in LATER:
        del outcome[name]
    times = [outcome["step_us"], outcome["launch_us"], *(stage["device_us"] for stage in outcome["stages"])]
    for time in [*times, *(stage["host_us"] for stage in outcome["plan"])]:
        del time["p99"], time["outliers"]
    for stage in outcome["stages"]:
        del stage["dropped"], stage["correlation"], stage["stop"]
    path = tmp_path / "run.jsonl"
    path.write_bytes(sealed(content))
    (found,), _ = read_run(path)
    assert isinstance(found.outcome, Measured)
    assert {name: getattr(found.outcome, name) for name in LATER} == LATER
    assert {(one.dropped, one.correlation, one.stop) for one in found.outcome.stages} == {(0, None, None)}
    assert {one.device_us.p99 for one in found.outcome.stages} == {None}
    assert {one.device_us.outliers for one in found.outcome.stages} == {None}
    assert found.outcome.step_us == replace(measured().step_us, outliers=None)


@pytest.mark.parametrize("is_warm", [True, False])
def test_a_line_that_kept_no_more_than_the_summary_of_a_warm_step_is_read_with_it(
    is_warm: bool, tmp_path: Path
) -> None:
    content = json.loads(encode(trial()))["trial"]
    warm = content["outcome"].pop("warm")
    path = tmp_path / "run.jsonl"
    path.write_bytes(
        sealed({**content, "outcome": {**content["outcome"], "warm_us": warm["device_us"] if is_warm else None}})
    )
    expected = StageTime("step", measured().step_us) if is_warm else None
    older = trial(replace(measured(), warm=expected))
    assert read_run(path) == ([older], [])
    assert isinstance(older.outcome, Measured)
    assert older.outcome.warm_us == (measured().step_us if is_warm else None)
    assert decode(encode(older)) == older


def test_a_trial_of_as_many_ranks_as_a_group_may_have_fits_in_a_line(tmp_path: Path) -> None:
    ranks = tuple(tuple(100 + math.sin(rank + 7 * sample) for sample in range(MAX_SAMPLES)) for rank in range(64))
    stages = tuple(StageTime(f"stage {number}", summarize([100.0]), rank_samples_us=ranks) for number in range(10))
    large = trial(replace(measured(), rank_samples_us=ranks, stages=stages, warm=stages[0]), ranks=64)
    with Store.open(tmp_path) as store:
        store.append(large)
    assert Store.read(tmp_path) == ([large], [])


def test_a_pace_without_temperature_and_power_is_read_without_them(tmp_path: Path) -> None:
    content = json.loads(encode(trial()))["trial"]
    for pace in content["outcome"]["clocks_during"]:
        for name in ("temperature_c_low", "temperature_c_high", "power_w_low", "power_w_high"):
            del pace[name]
    path = tmp_path / "run.jsonl"
    path.write_bytes(sealed(content))
    older = (Pace(3, 1755, 1980, ("software power cap",)), Pace(1))
    assert read_run(path) == ([trial(replace(measured(), clocks_during=older))], [])


def test_what_repeats_a_case_is_read_only_where_it_is_asked_for(tmp_path: Path) -> None:
    again = replace(trial(), is_sentinel=True)
    with Store.open(tmp_path) as store:
        for one in (trial(), again):
            store.append(one)
    assert Store.read(tmp_path) == ([trial()], [])
    assert Store.read(tmp_path, sentinels=True) == ([trial(), again], [])
    (path,) = tmp_path.glob("*.jsonl")
    assert read_run(path, sentinels=True)[0] == [trial(), again]


def test_a_newer_schema_is_refused_in_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    path.write_bytes(encode(trial()) + sealed({"schema": SCHEMA + 1}))
    with pytest.raises(
        FileError, match=rf"run.jsonl, line 2: written with schema {SCHEMA + 1}, this dcpbench reads up to {SCHEMA};"
    ):
        read_run(path)


@pytest.mark.parametrize(
    "change",
    [
        {"case": 3},
        {"outcome": {"kind": "great"}},
        {"outcome": {"kind": "measured"}},
        {"policy": None},
        {"ranks": "x"},
        {"retakes": -1},
        {"is_sentinel": None},
        {"more": 1},
    ],
)
def test_a_trial_with_a_part_missing_or_wrong_is_set_aside(tmp_path: Path, change: dict[str, object]) -> None:
    path = tmp_path / "run.jsonl"
    path.write_bytes(sealed({**json.loads(encode(trial()))["trial"], **change}))
    trials, notices = read_run(path)
    assert (trials, len(notices)) == ([], 1)


IMPOSSIBLE = {
    "a negative median": ("step_us", {"median": -5.0}),
    "an interval upside down": ("step_us", {"low": 12.0}),
    "a minimum above the median": ("launch_us", {"min": 11.0}),
    "a negative quantile": ("step_us", {"p90": -1.0}),
    "a sample of nothing": ("step_us", {"count": 0}),
    "a result that was wrong": ("check", {"out_error": 1.0}),
    "no layers": (None, {"layers": 0}),
    "a negative sample": (None, {"rank_samples_us": [[-1.0]]}),
    "a negative warm-up": (None, {"warmup": -1}),
    "a correlation beyond one": (None, {"correlation": 1.5}),
    "a warm step of half a summary": (None, {"warm_us": {"median": 5.0}}),
    "a warm step of no time": (None, {"warm_us": 5.0}),
    "an unknown reason to stop": ("warm", {"stop": "tired"}),
}


@pytest.mark.parametrize("what", IMPOSSIBLE)
def test_numbers_that_nothing_measured_has_are_set_aside_though_their_checksum_is_right(
    what: str, tmp_path: Path
) -> None:
    part, change = IMPOSSIBLE[what]
    content = json.loads(encode(trial()))["trial"]
    (content["outcome"][part] if part else content["outcome"]).update(change)
    path = tmp_path / "run.jsonl"
    path.write_bytes(sealed(content) + encode(trial()))
    trials, (notice,) = read_run(path)
    assert trials == [trial()]
    assert "line 1: set aside: not a whole trial" in notice
    assert "Value error" not in notice


def test_a_foreign_file_is_one_notice_however_long(tmp_path: Path) -> None:
    path = tmp_path / "foreign.jsonl"
    path.write_text('{"a": 1}\n' * 500, encoding="utf-8")
    trials, notices = read_run(path)
    assert trials == []
    why = "no trial: it should hold a checksum and a trial"
    assert notices == [f"{path}, line 1 and 499 more: set aside: {why}"]


def test_what_only_looks_like_a_run_stops_no_other(tmp_path: Path) -> None:
    with Store.open(tmp_path) as store:
        store.append(trial())
    (tmp_path / "z-dangling.jsonl").symlink_to(tmp_path / "nowhere")
    (tmp_path / "z-folder.jsonl").mkdir()
    trials, notices = Store.read(tmp_path)
    assert trials == [trial()]
    assert [notice.partition(": ")[2] for notice in notices] == ["no regular file, as a run is: set aside"] * 2
    assert find_run(tmp_path, "last") == store.path


def test_a_folder_where_a_run_should_be_is_called_one(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="a folder, where a run should be"):
        read_run(tmp_path)


def test_the_second_starter_is_told_who_holds_the_folder(tmp_path: Path) -> None:
    with Store.open(tmp_path):
        with pytest.raises(LockedError, match=rf"in use by process {os.getpid()} on .+ since 2\d\d\d-"):
            Store.open(tmp_path)
        assert Store.read(tmp_path) == ([], []), "reading needs no lock"
    Store.open(tmp_path).close()


def test_a_killed_run_gives_back_its_lock_and_keeps_its_trials(tmp_path: Path) -> None:
    program = (
        "import sys; from bench.store import Store; from bench.line import decode; store = Store.open(sys.argv[1])\n"
        "store.append(decode(sys.stdin.buffer.readline())); print('ready', flush=True); sys.stdin.read()"
    )
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdin=pipe, stdout=pipe) as holder:
        assert holder.stdin is not None
        assert holder.stdout is not None
        holder.stdin.write(encode(trial()))
        holder.stdin.flush()
        assert holder.stdout.readline() == b"ready\n"
        with pytest.raises(LockedError, match=f"process {holder.pid} "):
            Store.open(tmp_path)
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    Store.open(tmp_path).close()
    assert Store.read(tmp_path) == ([trial()], [])


def test_a_full_disk_is_a_sentence_and_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    room = [len(encode(trial())) + 100]

    def write_until_full(descriptor: int, data: bytes) -> int:
        if room[0] == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        taken = min(len(data), room[0])
        room[0] -= taken
        return write(descriptor, data[:taken])

    monkeypatch.setattr(os, "write", write_until_full)
    with Store.open(tmp_path) as store:
        store.append(trial())
        with pytest.raises(StorageError, match="no space left on device; free some space"):
            store.append(trial())
        room[0] = 1 << 20
        store.append(trial(ranks=2))
    trials, notices = Store.read(tmp_path)
    assert [one.ranks for one in trials] == [1, 2]
    assert notices == []


def test_a_file_where_a_folder_should_be_is_a_sentence(tmp_path: Path) -> None:
    file = tmp_path / "results"
    file.touch()
    with pytest.raises(StorageError, match="choose a folder's name that no file has"):
        Store.open(file)
    with pytest.raises(FileError, match="a file, where a folder of runs should be"):
        Store.read(file)


def test_a_folder_without_runs_says_how_to_get_some(tmp_path: Path) -> None:
    with pytest.raises(FileError) as caught:
        find_run(tmp_path, "last")
    assert str(caught.value) == (
        f"{tmp_path}: no run 'last'; it holds none; measure some first, as with 'dcpbench tune quick', or give --results"
    )


def test_runs_are_found_by_name_inside_the_folder_only(tmp_path: Path) -> None:
    with Store.open(tmp_path / "results") as store:
        store.append(trial())
    name = store.path
    assert name is not None
    assert find_run(tmp_path / "results", name.stem) == find_run(tmp_path / "results", name.name) == name
    assert find_run(tmp_path / "results", "last") == name
    (tmp_path / "secret.jsonl").touch()
    for outside in ("../secret", "../secret.jsonl", str(tmp_path / "secret.jsonl")):
        with pytest.raises(FileError, match="no run"):
            find_run(tmp_path / "results", outside)
    with pytest.raises(FileError, match=f"did you mean '{name.stem}'"):
        find_run(tmp_path / "results", name.stem[:-1])
    with pytest.raises(FileError, match="no such file"):
        read_run(tmp_path / "absent.jsonl")
