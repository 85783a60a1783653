"""The recommendation as a whole, on what ships: legal, monotone in memory, the same in plain data as in words."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import bench.environment
import bench.recommend.evidence
from bench.cli.exits import Exit
from bench.collective import Row
from bench.files import FileError
from bench.line import decode, encode
from bench.profile.profile import Profile
from bench.recommend.decision import Limits, Origin
from bench.recommend.evidence import ENGINE_EXCHANGES, EXCHANGES, Evidence, Telling, modelled
from bench.recommend.recommend import Recommendation, Traffic, Why, decide, rooms_of
from bench.record import SCHEMA, Environment, Label, Measured, Trial
from bench.shipped import shipped_profiles
from bench.store import Store, read_run
from bench.sweep import Sweep
from bench.tune.pick import pick
from dcp_core.layout import DcpLayout, legal_dcps
from dcp_core.serving import Limits as ServerLimits
from dcp_core.settings import ExchangeName, PathName, Settings
from dcp_core.shapes import ModelShape, Request, Workload
from tests.bench.made_up import CPU, H200, QWEN, cases, trial
from tests.bench.recommend.conftest import Run


def of_one_device(dcp: int) -> Evidence:
    """Return what ships of a geometry, without what was measured between real ranks."""
    profile = Profile.load(shipped_profiles(f"q{8 * dcp},kv1,d128,dtype=bfloat16", "h200")[0])
    label = Label.MEASURED if dcp == 1 else Label.SIMULATED
    return Evidence(replace(profile, entries=tuple(entry for entry in profile.entries if entry.label is label)))


HEAVY = ("torch", "triton", "flashinfer", "matplotlib", "numpy", "scipy", "transformers", "ray", "rich")
EVIDENCE = {dcp: of_one_device(dcp) for dcp in (1, 2)}
ASSUMED = Limits(None, "NVIDIA H200")


def asked(
    batch: str, *, budget: int = 60 << 30, slo_us: float | None = None, limits: Limits = ASSUMED
) -> Recommendation:
    workload = Workload.parse(batch)
    traffic = Traffic(((workload, 1.0),), len(workload), max(workload.total_lens))
    rooms = rooms_of(QWEN, 8, budget=budget, upper=False, server=ServerLimits(), multiprocessors=132)
    engine, tuned = (decide(QWEN, 8, traffic, EVIDENCE, limits, engine=engine) for engine in (True, False))
    return Recommendation("qwen3-235b-a22b", QWEN, 8, traffic, engine, tuned, rooms, slo_us)


@pytest.mark.parametrize(
    ("batch", "dcp", "why"),
    [
        ("16q1s128k", 2, Why.FASTEST),  # 254 µs against 175 with ag_rs between two H200s
        ("q2ks10k", 1, Why.FASTEST),  # dcp 2 loses even with an exchange that costs nothing
        ("q1s32k", 1, Why.OPEN),
        ("q1s1025", 1, Why.OPEN),
    ],
)
def test_what_is_fastest_is_recommended_where_that_is_sure(batch: str, dcp: int, why: Why) -> None:
    answer = asked(batch, budget=80 << 30).answer
    assert (answer.dcp, answer.why) == (dcp, why)
    assert answer.is_firm is (why is Why.FASTEST)


def test_an_exchange_that_is_told_settles_what_an_assumed_one_leaves_open() -> None:
    assert asked("q1s32k", limits=Limits((30.0, 40.0))).answer.why is Why.FASTEST
    assert asked("q1s32k", limits=Limits((0.0, 0.1))).answer.dcp == 2


def test_dcp_may_cost_time_and_be_what_holds_the_requests() -> None:
    found = asked("16q1s8193", budget=5 << 30, limits=Limits((500.0, 500.0)))
    assert found.decision
    assert found.decision.unbeaten()[0].layout.dcp == 1
    assert (found.answer.dcp, found.answer.why) == (2, Why.FITS)


def test_what_fits_with_no_size_is_said() -> None:
    answer = asked("64q1s128k", budget=20 << 30).answer
    assert answer.overfull
    assert answer.dcp == 2


def test_a_time_to_keep_leaves_out_what_cannot_keep_it() -> None:
    limits = Limits((10.0, 10.0))
    assert asked("64q1s32k", slo_us=94 * 200.0, limits=limits).answer.dcp == 2
    assert asked("64q1s32k", slo_us=94 * 10.0, limits=limits).answer.late
    assert not asked("64q1s32k", slo_us=94 * 1000.0, limits=limits).answer.late


@given(st.integers(8, 200), st.integers(0, 100), st.sampled_from(["4q1s8k", "64q1s32k"]))
def test_more_memory_never_holds_fewer_requests(budget: int, more: int, batch: str) -> None:
    small, large = asked(batch, budget=budget << 30), asked(batch, budget=(budget + more) << 30)
    for dcp, room in small.rooms.items():
        assert large.rooms[dcp].requests(large.traffic) >= room.requests(small.traffic)
    assert not (large.answer.overfull and not small.answer.overfull)


@given(st.integers(0, 8), st.integers(7, 17), st.integers(1, 8))
def test_a_dearer_exchange_never_speaks_for_dcp(requests: int, context: int, dearer: int) -> None:
    batch = f"{1 << requests}q1s{1 << context}"
    cheap, dear = (asked(batch, limits=Limits((us, us))).decision for us in (10.0 * dearer, 40.0 * dearer))
    if cheap and dear and 2 not in {one.layout.dcp for one in cheap.unbeaten()}:
        assert 2 not in {one.layout.dcp for one in dear.unbeaten()}


@given(
    st.sampled_from(["qwen3-235b-a22b", "qwen3-30b-a3b", "qwen3-32b", "llama-3.1-70b", "llama-3.1-405b"]),
    st.sampled_from([1, 2, 4, 8, 16, 32, 64]),
)
def test_only_layouts_that_a_server_takes_are_among_the_answers(model: str, tp: int) -> None:
    shape = ModelShape.preset(model)
    rooms = rooms_of(shape, tp, budget=60 << 30, upper=False, server=ServerLimits(), multiprocessors=132)
    assert list(rooms) == legal_dcps(shape, tp)
    for dcp in rooms:
        DcpLayout(tp, dcp).check(shape)


def timed(exchanges: Sequence[str], *batches: str) -> list[Trial]:
    """Return made-up decode steps with the timer of a profile."""
    found = [trial(one) for one in cases(batches, dcps=[2], exchanges=exchanges, kernels=["fa2"])]
    return [
        replace(one, outcome=replace(one.outcome, timer="cuda_graph_events"))
        for one in found
        if isinstance(one.outcome, Measured) and one.case.settings.path is PathName.DECODE
    ]


def test_exchanges_measured_in_the_way_of_the_profile_are_modelled_and_others_are_not() -> None:
    simulated, real = timed(["loopback"], "32q1s32k"), timed(["ag_rs"], "q1s16", "8q1s16", "64q1s16", "256q1s16")
    (profile,) = (one for one in pick([*simulated, *real]) if one.geometry.q_heads == 16)
    case = real[0].case
    found = modelled(case, Evidence.of(profile, [*simulated, *real]), EXCHANGES)
    assert found
    assert (found.origin, found.by) == (Origin.MODELLED, ExchangeName.AG_RS), "of the others no message was measured"
    assert 0 < found.span.low_us <= found.span.median_us <= found.span.high_us
    for other in (
        [replace(one, environment=replace(one.environment, hard={"device_name": "NVIDIA H100"})) for one in real],
        [replace(one, protocol=one.protocol - 1) for one in real],
    ):
        assert modelled(case, Evidence.of(profile, [*simulated, *other]), EXCHANGES) is None


def test_the_reference_is_timed_in_one_way() -> None:
    """So that exchanges, once measured in that way on such a machine, are put to use by lying beside it."""
    (path,) = shipped_profiles("q16,kv1,d128,dtype=bfloat16", "h200")
    trials, _ = Store.read(path.parent.parent)
    profile = Profile.load(path)
    whole = Evidence.of(profile, trials)
    assert whole.way is not None
    telling, _ = Store.read(path.parent.parent, reader=Telling({2: profile}))
    some = Evidence.of(profile, telling)
    models = tuple(model for model in whole.beside().models if model.kind.row == Row(8, 128, 2))
    assert models
    assert (some.way, some.beside().models) == (whole.way, models)
    assert len(telling) < len(trials) / 8, "most lines say nothing of such messages, or nothing new"


def test_runs_are_read_for_ways_of_the_profile_and_exchanges_between_real_ranks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[bytes] = []
    monkeypatch.setattr(bench.recommend.evidence, "decode", lambda line: decoded.append(line) or decode(line))
    of_profile, again = timed(["loopback"], "32q1s32k", "64q1s32k")
    (elsewhere,) = timed(["loopback"], "8q1s1k")
    (real,) = timed(["ag_rs"], "q1s16")
    of_others = replace(real, case=replace(real.case, shape=replace(real.case.shape, head_dim=64)))
    alone = next(trial(one) for one in cases(["32q1s32k"], dcps=[1]))
    otherwise = replace(again, protocol=again.protocol - 1)
    (profile,) = (one for one in pick([of_profile, again]) if one.geometry.q_heads == 16)
    written = [replace(of_profile, is_sentinel=True), elsewhere, of_profile, again, real, of_others, alone, otherwise]
    lines = [
        encode(of_profile).replace(b'"seconds":', b'"seconds":1'),
        *map(encode, written),
        b'{"checksum":1,"trial":{}}\n',
    ]
    path = tmp_path / "run.jsonl"
    path.write_bytes(b"".join([*lines, encode(alone).replace(b'"seconds":', b'"seconds":1')]))
    trials, notices = read_run(path, reader=Telling({2: profile}))
    assert trials == [of_profile, real, otherwise]
    (notice,) = notices  # of what tells nothing it does not matter whether it is damaged
    assert "line 1 and 1 more: set aside: its checksum does not match" in notice
    assert len(decoded) == len(trials) + 2  # and those two
    path.write_bytes(encode(replace(alone, schema=SCHEMA + 1)))
    with pytest.raises(FileError, match="use a newer dcpbench"):
        read_run(path, reader=Telling({2: profile}))


PLAIN = "--model qwen3-235b-a22b --tp 8 --context 32k --concurrency 64"


@pytest.mark.parametrize(
    ("question", "folders"),
    [
        (PLAIN, []),  # every step was measured with its exchange
        (f"{PLAIN} --slo-us 20000 --gpu-memory 80GiB --json", []),
        ("--model qwen3-235b-a22b --tp 16 --context 32k --concurrency 64 --exchange-us 40", []),
        ("--model qwen3-235b-a22b --tp 16 --context 32k --concurrency 64", ["exchanges"]),
        ("--model qwen3-235b-a22b --tp 16 --map", ["exchanges"]),
        ("--model qwen3-235b-a22b --tp 16 --map --exchange-us 40 --json", []),
    ],
)
def test_an_answer_reads_each_file_once_and_no_run_that_it_does_not_need(question: str, folders: list[str]) -> None:
    """And imports nothing heavy: what it costs is told by this, not by a clock."""
    code = f"""
import json, sys
opened = []
sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == "open" else None)
from bench.cli import main
status = main({["recommend", *question.split(), "--gpu", "h200"]!r})
heavy = [name for name in {HEAVY!r} if name in sys.modules]
print(json.dumps([status, heavy, [name for name in opened if name.endswith((".jsonl", ".json"))]]), file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    status, heavy, opened = json.loads(done.stderr.splitlines()[-1])
    assert (status, heavy) == (Exit.DONE, [])
    read = Counter(Path(name).name for name in opened)
    assert set(read.values()) == {1}
    assert {Path(name).parent.name for name in opened if name.endswith(".jsonl")} == set(folders)
    profiles = [name for name in read if name.endswith(".json")]
    assert 2 <= len(profiles) <= 3, "those of the geometries that are asked about, one for each legal dcp"


def test_a_chunk_without_context_exchanges_under_vllm_alone() -> None:
    found = asked("q8k")
    assert found.engine
    assert found.tuned
    ours, theirs = (decision.options[1].parts[0] for decision in (found.tuned, found.engine))
    assert (ours.exchange.count, theirs.exchange.count) == (0, 1)
    assert theirs.step.label is Label.SIMULATED


TYPED = ("--model", "qwen3-235b-a22b", "--tp", "8", "--context", "32k", "--concurrency", "64")


def test_the_answer_comes_first_and_the_flags_last(run: Run) -> None:
    code, out, _ = run(*TYPED)
    assert code == Exit.DONE
    assert out.startswith("Run dcp 2: it is the fastest for 64q1s32769")
    assert "dcp 2 takes 179.6 µs (measured)" in out
    assert "simulated" not in out
    assert "assumed" not in out
    assert out.rstrip().endswith("--attention-backend FLASHINFER")
    assert "--decode-context-parallel-size 2" in out
    assert "dcp 2 may be faster than dcp 1 at 4 and from 16 requests on, and surely is from 32 on" in out


def test_the_machine_at_hand_is_looked_at_once_for_all_sizes(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[bool] = []
    monkeypatch.setattr(bench.environment, "fingerprint", lambda on_gpu: looked.append(on_gpu) or CPU)
    code, out, _ = run("--model", "qwen3-235b-a22b", "--tp", "16", "--context", "32k", "--concurrency", "64")
    assert code == Exit.DONE
    assert "\n  4  " in out
    assert len(looked) == 1


def test_where_a_size_is_surely_faster_is_said_though_with_a_larger_batch_it_is_not(run: Run) -> None:
    code, out, _ = run(
        "--model", "qwen3-235b-a22b", "--tp", "8", "--context", "32k", "--new", "4", "--concurrency", "1"
    )
    assert code == Exit.DONE
    assert out.startswith("Run dcp 2: it is the fastest for q4s32772")
    assert "With this context dcp 2 is faster than dcp 1 at 1, 2, 4, 8, 16 requests." in " ".join(out.split())


def test_with_as_many_requests_as_were_asked_about_it_says_no_other_thing(run: Run) -> None:
    code, out, _ = run(*TYPED[:-1], "10")
    assert code == Exit.DONE
    assert out.startswith("Leave DCP off, as it seems: dcp 1 and dcp 2 are not told apart for 10q1s32769")
    assert "dcp 2 may be faster than dcp 1 at 4 and from 10 requests on" in out


def test_its_json_says_the_same(run: Run) -> None:
    code, out, _ = run(*TYPED, "--json")
    data: dict[str, Any] = json.loads(out)
    assert code == Exit.DONE
    assert (data["answer"]["dcp"], data["answer"]["firm"]) == (2, True)
    assert data["serve"]["flags"]["--decode-context-parallel-size"] == "2"
    assert [one["dcp"] for one in data["engine"]] == [1, 2]
    assert data["engine"][1]["parts"][0]["exchange"]["origin"] == "measured"
    for one in data["engine"]:
        for part in one["parts"]:
            Settings.from_json(part["settings"])
            Workload.parse(part["batch"])


@pytest.mark.parametrize("requests", ["1", "16", "64"])
def test_the_flag_is_the_exchange_whose_modelled_time_decided(requests: str, run: Run) -> None:
    asking = ("--model", "qwen3-235b-a22b", "--tp", "16", "--context", "32k", "--concurrency", requests)
    _, out, _ = run(*asking, "--json")
    data = json.loads(out)
    for name, able in (("engine", ENGINE_EXCHANGES), ("tuned", EXCHANGES)):
        four = data[name][-1]
        (part,) = four["parts"]
        told = part["exchange"]
        assert (four["dcp"], told["origin"]) == (4, "modelled")
        assert told["via"] == part["settings"]["exchange"]
        assert told["via"] in able
    run_by_vllm, tuned = (data[name][-1]["parts"][0]["exchange"] for name in ("engine", "tuned"))
    assert tuned["median_us"] <= run_by_vllm["median_us"]
    if data["answer"]["dcp"] == 4:
        assert data["serve"]["flags"]["--dcp-comm-backend"] == run_by_vllm["via"]
        assert any(
            f"{run_by_vllm['via']} is that of the times told, modelled, not timed" in note
            for note in data["serve"]["notes"]
        )
    _, out, _ = run(*asking)
    assert re.search(rf" 4 +vLLM +decode +fa2 +{run_by_vllm['via']} .* modelled ", out)
    assert re.search(rf" 4 +tuned +decode +fa2 +{tuned['via']} .* modelled ", out)
    assert f"({run_by_vllm['via']}, modelled)" in " ".join(out.split())


def test_of_64_requests_dcp_4_is_run_with_the_exchange_of_its_times(run: Run) -> None:
    _, out, _ = run("--model", "qwen3-235b-a22b", "--tp", "16", "--context", "32k", "--concurrency", "64")
    assert out.startswith("Run dcp 4: it is the fastest for 64q1s32769")
    assert "--dcp-comm-backend a2a" in out
    assert "# Interleave 1 is what was timed: the profiles were asked about no other." in out


@pytest.mark.parametrize("dcp", [2, 4])
def test_a_server_has_one_exchange_for_all_its_batches(dcp: int, run: Run) -> None:
    _, out, _ = run(
        "--model", "qwen3-235b-a22b", "--tp", "16", "--context", "32k", "--concurrency", "64", "--chunk", "8k", "--json"
    )
    (option,) = (one for one in json.loads(out)["engine"] if one["dcp"] == dcp)
    first, second = option["parts"]
    assert first["exchange"]["via"] == second["exchange"]["via"]
    assert second["exchange"]["origin"] == "modelled"


def test_where_the_user_says_what_an_exchange_costs_none_is_named(run: Run) -> None:
    asking = ("--model", "qwen3-235b-a22b", "--tp", "16", "--context", "32k", "--concurrency", "64")
    _, out, _ = run(*asking, "--exchange-us", "40", "--json")
    data = json.loads(out)
    assert data["engine"][-1]["parts"][0]["exchange"]["via"] is None
    assert any("ag_rs is vLLM's default" in note for note in data["serve"]["notes"])


def test_beyond_what_was_measured_nothing_is_sure(run: Run) -> None:
    """Of 2000 requests as many as 256 were measured; on one layer all of them fit."""
    asking = ("--model", "q64,kv4,d128,l1", "--tp", "8", "--context", "32k", "--slo-us", "1000000")
    code, out, _ = run(*asking, "--concurrency", "2000")
    text = " ".join(out.split())
    assert code == Exit.DONE
    assert text.startswith(
        "Run dcp 2, as it seems: dcp 1 and dcp 2 are not told apart for 2000q1s32769, of which times are extrapolated 3.0 "
        "doublings beyond what was measured."
    )
    assert "by more than is uncertain" not in text
    assert "surely is from 32 on" in text, "of what was measured"
    assert "(modelled, extrapolated)" in text
    assert "No size is known to keep 1 s of attention" in text
    assert "Up to 3.0 doublings beyond what was measured nothing is known of the error." in text
    assert "settle nothing: measure them with 'dcpbench tune" in text
    _, out, _ = run(*asking, "--concurrency", "2000", "--json")
    data = json.loads(out)
    assert (data["answer"]["firm"], data["answer"]["between"], data["answer"]["late"]) == (False, [1, 2], True)
    assert data["engine"][1]["parts"][0]["doublings_beyond"] == pytest.approx(3.0, abs=0.05)
    _, out, _ = run(*asking, "--concurrency", "256")
    assert out.startswith("Run dcp 2: it is the fastest for 256q1s32769")
    assert "extrapolated" not in out


def test_where_tp_is_too_small_it_says_which_would_do(run: Run) -> None:
    for model, tp, least in (("qwen3-235b-a22b", "4", "8"), ("llama-3.1-70b", "8", "16"), ("qwen3-32b", "2", "16")):
        code, out, _ = run("--model", model, "--tp", tp, "--context", "8k", "--concurrency", "8")
        assert code == Exit.DONE
        assert out.startswith("Leave DCP off: ")
        assert f"the smallest tp for dcp 2 is {least}." in out
        assert "--decode-context-parallel-size" not in out


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (TYPED[:4], "give --context and --concurrency"),
        ((*TYPED, "--trace", "x.csv"), "--trace tells context, concurrency and chunks by itself"),
        ((*TYPED, "--gpu", "h2oo"), "no reference ships for GPU 'h2oo'"),
        ((*TYPED, "--exchange-us", "40,25"), "--exchange-us is a time in µs, as 40, or a bracket, as 0,40"),
        ((*TYPED, "--exchange-us", "nan"), "--exchange-us is a time in µs"),
        ((*TYPED, "--weights", "150GiB"), "weights of 150GiB leave nothing of 0.9 of 140GiB"),
        (
            ("--model", "q48,kv2,d128,l48", "--tp", "8", *TYPED[4:]),
            "no profile here is for q6,kv1,d128.*there are: .*dcpbench tune",
        ),
        (("--model", "qwen3-235b-a22b", "--tp", "6", *TYPED[4:]), "tp must divide the 64 query heads"),
        (
            ("--model", "qwen3-235b-a22b", "--tp", "8", "--trace", "none.csv"),
            "none.csv: no such file; a trace was expected there",
        ),
    ],
)
def test_what_is_wrong_is_one_sentence(words: tuple[str, ...], complaint: str, run: Run) -> None:
    code, out, err = run(*words)
    assert (code, out) == (Exit.USAGE, "")
    (line,) = err.splitlines()
    assert line.startswith("dcpbench: ")
    assert re.search(complaint, line)


def measured_on(environment: Environment, folder: Path) -> None:
    """Write the profiles of one who measured a small model elsewhere than on what ships."""
    for profile in pick([trial(case, environment=environment) for case in cases(["8q1s1k"], exchanges=("ag_rs",))]):
        profile.save(folder / "results" / "profiles")


def test_what_was_measured_without_a_gpu_advises_nobody(run: Run, tmp_path: Path) -> None:
    measured_on(CPU, tmp_path)
    code, out, err = run(*TYPED[:4], "--context", "1k", "--concurrency", "8")
    assert (code, out) == (Exit.USAGE, "")
    assert err.startswith("dcpbench: A CPU is no GPU, and what was measured on it says nothing of one")


def test_a_gpu_of_which_nothing_ships_needs_its_memory_told(run: Run, tmp_path: Path) -> None:
    hard = {**H200.hard, "device_name": "NVIDIA Fast Card"}
    measured_on(Environment(hard, {"sm_count": "100"}), tmp_path)
    asking = (*TYPED[:4], "--context", "1k", "--concurrency", "8")
    code, _, err = run(*asking)
    assert code == Exit.USAGE
    assert "the memory of 'NVIDIA Fast Card' is not known" in err
    code, out, _ = run(*asking, "--gpu-memory", "80GiB")
    assert code == Exit.DONE
    assert "8q1s1025" in out


def test_a_gain_is_told_by_the_intervals_that_the_answer_rests_on(run: Run) -> None:
    code, out, _ = run(*TYPED[:-1], "4")
    assert code == Exit.DONE
    assert "dcp 1 and dcp 2 are not told apart for 4q1s32769" in out
    assert re.search(r"between [\d.]+ µs a\s+layer lost and [\d.]+ gained", out)


def test_a_trace_stands_in_for_context_and_becomes_a_sweep(run: Run, tmp_path: Path) -> None:
    trace = tmp_path / "trace.csv"
    with trace.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["arrival", "prompt_tokens", "output_tokens"])
        writer.writerows([0.2 * number, 30_000, 200] for number in range(40))
    sweep = tmp_path / "mine.toml"
    code, out, err = run(
        "--model", "qwen3-235b-a22b", "--tp", "8", "--trace", str(trace), "--sweep", str(sweep), "--json"
    )
    assert code == Exit.DONE
    data = json.loads(out)
    assert any("40 requests make" in note for note in data["notes"])
    batches = [Workload.parse(one["batch"]) for one in data["batches"]]
    assert any(batch.is_decode for batch in batches)
    assert any(not batch.is_decode for batch in batches)
    loaded = Sweep.load(sweep)
    assert set(loaded.parts[0].batch) == set(batches)
    assert loaded.parts[0].dcp == (1, 2)
    assert loaded.often == {Workload.parse(one["batch"]): one["weight"] for one in data["batches"]}
    assert len(set(loaded.often.values())) > 1
    expansion = loaded.expand(1)
    assert {case.workload for case in expansion.cases} == set(batches)
    assert err == ""


def test_drafted_tokens_and_chunks_are_batches_of_their_own(run: Run) -> None:
    code, out, _ = run(*TYPED, "--new", "4", "--chunk", "8k", "--json")
    assert code == Exit.DONE
    first, second = (Workload.parse(one["batch"]) for one in json.loads(out)["batches"])
    assert set(first.requests) == {Request(4, 32772)}
    assert second.requests[-1] == Request(8192, 40960)
