"""Profiles: written, read and asked; a file that is none gives a sentence."""

from __future__ import annotations

import json
import math
import random
import time
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bench.entry import Candidate, Entry, Geometry, default_settings
from bench.errors import UsageError
from bench.files import FileError
from bench.nearest import leave_each_out
from bench.profile import MAX_PROFILE_BYTES, Profile, Source
from bench.record import Environment, Label
from dcp_core import Case, DcpLayout, ModelShape, Settings, Workload
from dcp_core.settings import PathName
from dcp_core.shapes import DType

GEOMETRY = Geometry(16, 1, 128, DType.BFLOAT16, DType.BFLOAT16)
H200 = Environment({"device_name": "NVIDIA H200", "driver": "580.95"}, {"cpu": "a “CPU”"})
MODEL = ModelShape.preset("qwen3-235b-a22b")
DCP2 = DcpLayout(8, 2)
DECODE = Settings(path="decode", kernel="fa2")
FOLD = Settings(path="fold", kernel="fa2")
SPLIT = Settings(path="split", kernel="fa3", new_kernel="fa2")


def entry(
    batch: str, chosen: Settings, *others: Settings, label: Label = Label.MEASURED, layout: DcpLayout = DCP2
) -> Entry:
    candidates = tuple(
        Candidate(one, 10.0 + place, 9.5 + place, 10.5 + place, f"{place:016x}")
        for place, one in enumerate((chosen, *others))
    )
    default = others[-1] if others else None
    return Entry(layout, Workload.parse(batch), label, "graph", True, candidates, chosen, default)


def profile(*entries: Entry) -> Profile:
    return Profile(GEOMETRY, H200, leave_each_out(entries) if entries else ())


GRID = profile(
    *(entry(f"{requests}q1s{context}k", DECODE, FOLD, SPLIT) for requests in (1, 4, 16) for context in (8, 32, 128)),
    *(entry(f"q{new}s{context}k", FOLD, SPLIT) for new in (4, 64) for context in (8, 32)),
)


def ask(source: Profile, batch: str, layout: DcpLayout = DCP2) -> tuple[str, Settings]:
    choice = source.lookup(Workload.parse(batch), layout)
    return str(choice.source), choice.settings


def test_a_profile_survives_its_file(tmp_path: Path) -> None:
    path = GRID.save(tmp_path / "profiles")
    assert path.name == "q16,kv1,d128,dtype=bfloat16,device_name=NVIDIA_H200.json"
    assert Profile.load(path) == GRID
    before = path.read_text()
    assert Profile.load(path).save(tmp_path / "profiles") == path
    assert path.read_text() == before
    assert [file.name for file in path.parent.iterdir()] == [path.name], "no draft is left behind"


def test_the_file_is_for_people(tmp_path: Path) -> None:
    text = GRID.save(tmp_path).read_text()
    data = json.loads(text)
    first = data["entries"][0]
    assert first["settings"] == {"path": "decode", "kernel": "fa2"}
    assert first["ratio_to_default"] == 0.8333
    assert first["runner_up"] == {"path": "fold", "kernel": "fa2"}
    assert (first["median_us"], first["low_us"], first["high_us"]) == (10.0, 9.5, 10.5)
    assert max(map(len, text.splitlines())) < 400
    assert sum('"case"' in line for line in text.splitlines()) >= sum(len(one.candidates) for one in GRID.entries)


def test_settings_of_the_file_do_not_change_with_our_defaults(tmp_path: Path) -> None:
    path = GRID.save(tmp_path)
    data = json.loads(path.read_text())
    data["unless_given"]["page_size"] = 64
    path.write_text(json.dumps(data))
    assert {one.settings.page_size for one in Profile.load(path).entries} == {64}


@pytest.mark.parametrize(
    ("device", "name"),
    [
        ("../../etc/passwd", "etc_passwd"),
        ("Intel(R) Xeon(R) CPU @ 2.5GHz", "Intel_R_Xeon_R_CPU_2.5GHz"),
        ("", "unknown"),
    ],
)
def test_a_device_name_cannot_leave_the_folder(tmp_path: Path, device: str, name: str) -> None:
    path = replace(GRID, environment=Environment({"device_name": device})).save(tmp_path)
    assert path.parent == tmp_path
    assert path.name == f"q16,kv1,d128,dtype=bfloat16,device_name={name}.json"


def test_a_measured_batch_is_exact() -> None:
    choice = GRID.lookup(Workload.parse("4q1s32k"), DCP2)
    assert (choice.settings, choice.source, choice.distance, choice.expected_regret) == (DECODE, Source.EXACT, 0, 0)
    assert choice.entry in GRID.entries


def test_tp_plays_no_part_within_a_geometry() -> None:
    assert ask(GRID, "4q1s32k", DcpLayout(16, 2)) == ("exact", DECODE)


def test_a_batch_among_the_measured_takes_its_neighbours_settings() -> None:
    choice = GRID.lookup(Workload.parse("6q1s40k"), DCP2)
    assert (choice.settings, choice.source) == (DECODE, Source.NEIGHBOUR)
    assert 0 < choice.distance < 1
    assert choice.entry is not None
    assert str(choice.entry.workload) == "4q1s32k"
    paid = [one.left_out.neighbour for one in GRID.entries]
    assert choice.expected_regret == pytest.approx(
        sum(one.supposed_regret if regret is None else regret for one, regret in zip(GRID.entries, paid, strict=True))
        / len(paid)
    )


def test_one_token_settings_are_never_carried_to_longer_batches() -> None:
    assert ask(GRID, "q2s8k") == ("neighbour", FOLD)
    cuda_core = profile(entry("q1s8k", Settings(path="decode", kernel="cuda_core")), entry("q8s8k", FOLD))
    assert ask(cuda_core, "q2s8k") == ("neighbour", FOLD)


@pytest.mark.parametrize(
    ("batch", "layout"),
    [
        ("64q1s32k", DCP2),
        ("4q1s512k", DCP2),
        ("4q1s1k", DCP2),
        ("q8ks32k", DCP2),
        ("4q1s32k_q64s32k", DCP2),
        ("4q1s32k", DcpLayout(16, 4)),
        ("4q1s32k", DcpLayout(8, 2, interleave=16)),
        ("4q1s32k", DcpLayout(8)),
    ],
)
def test_beyond_what_was_measured_the_default_stays(batch: str, layout: DcpLayout) -> None:
    choice = GRID.lookup(Workload.parse(batch), layout)
    assert (choice.source, choice.expected_regret, choice.entry) == (Source.DEFAULT, None, None)
    assert choice.settings == default_settings(layout, Workload.parse(batch))
    assert choice.distance > 0


def test_measured_entries_answer_before_simulated_ones() -> None:
    both = profile(entry("4q1s32k", SPLIT, label=Label.SIMULATED), entry("4q1s32k", DECODE))
    assert ask(both, "4q1s32k") == ("exact", DECODE)


def test_a_profile_of_the_reference_kernel_stays_with_it() -> None:
    cpu = profile(entry("4q1s32k", Settings(path="decode", kernel="reference")))
    assert ask(cpu, "q8s32k") == ("default", Settings(path="split", kernel="reference"))


def test_an_empty_profile_answers_with_the_default() -> None:
    assert ask(profile(), "8q1s32k") == ("default", DECODE)


@pytest.mark.parametrize(("interleave", "page_size"), [(1, 16), (3, 18), (16, 16), (32, 32), (48, 48)])
def test_the_default_has_pages_that_the_interleave_divides(interleave: int, page_size: int) -> None:
    layout, workload = DcpLayout(8, 2, interleave), Workload.parse("4q1s32k")
    settled = GRID.lookup(workload, layout).settings
    assert (settled.page_size, Case(MODEL, layout, workload, settled).settings) == (page_size, settled)


def test_at_dcp_1_an_interleave_means_nothing() -> None:
    one = profile(entry("4q1s32k", Settings(path="tp", kernel="fa2", exchange="alone"), layout=DcpLayout(8)))
    for interleave in (1, 2, 32):
        assert ask(one, "4q1s32k", DcpLayout(8, 1, interleave))[0] == "exact"


def test_a_kept_default_has_the_regret_that_was_measured() -> None:
    kept = replace(entry("4q1s32k", DECODE, FOLD), settings=FOLD)
    assert profile(kept).lookup(kept.workload, DCP2).expected_regret == pytest.approx(0.1)


def test_settings_that_cannot_run_a_batch_are_not_carried_to_it() -> None:
    shared = Settings(path="split", kernel="fa2", batching="shared")
    one = profile(entry("2q1s8k_2q64s8k", shared), entry("2q1s32k_2q64s32k", shared), entry("q1s9k_q64s9k", shared))
    assert ask(one, "2q1s16k_2q64s16k") == ("neighbour", shared)
    torn = Workload.parse("q1s16k_q64s16k_q1s16k_q64s16k")
    choice = one.lookup(torn, DCP2)
    assert (choice.source, choice.distance) == (Source.DEFAULT, math.inf)
    assert Case(MODEL, DCP2, torn, choice.settings).settings == choice.settings


def test_more_entries_than_a_profile_holds_are_refused_in_a_sentence(tmp_path: Path) -> None:
    batches = [entry(f"{requests}q1s{context}k", DECODE) for requests in range(1, 65) for context in range(1, 34)]
    with pytest.raises(
        UsageError, match=r"would have 2112 entries, and 2048 are the limit: .* what was measured is kept"
    ):
        Profile(GEOMETRY, H200, tuple(batches))
    from bench.profile_text import render

    path = tmp_path / "large.json"
    path.write_text(render(GEOMETRY, H200, batches, {}))
    with pytest.raises(FileError, match=r"large\.json: entries.* 2048"):
        Profile.load(path)


@settings(max_examples=300)
@given(
    st.lists(st.tuples(st.integers(1, 40), st.integers(1, 300), st.integers(0, 200_000)), min_size=1, max_size=4),
    st.sampled_from(
        [DcpLayout(8, 1), DCP2, DcpLayout(16, 4), DcpLayout(8, 2, 16), DcpLayout(8, 2, 32), DcpLayout(8, 1, 3)]
    ),
)
def test_whatever_is_asked_the_settings_are_legal(runs: list[tuple[int, int, int]], layout: DcpLayout) -> None:
    workload = Workload.of(
        [new for count, new, _ in runs for _ in range(count)],
        [new + more for count, new, more in runs for _ in range(count)],
    )
    choice = GRID.lookup(workload, layout)
    assert Case(MODEL, layout, workload, choice.settings).settings == choice.settings
    assert (choice.source is Source.DEFAULT) == (choice.entry is None)


def test_lookup_is_fast() -> None:
    batches = [entry(f"{requests}q1s{context}k", DECODE) for requests in range(1, 33) for context in range(1, 33)]
    large = Profile(GEOMETRY, H200, tuple(batches))
    workload = Workload.parse("3q1s1500")
    started = time.perf_counter()
    for _ in range(10):
        assert large.lookup(workload, DCP2).source is Source.NEIGHBOUR
    assert (time.perf_counter() - started) / 10 < 0.02


def wrong(change: dict[str, object], *place: str | int) -> str:
    """Return GRID's text with some keys changed at a place."""
    data = json.loads(profile(*GRID.entries[:2]).to_text())
    part = data
    for step in place:
        part = part[step]
    part.update(change)
    return json.dumps(data)


FOLD_16 = {"path": "fold", "kernel": "fa2", "page_size": 16}
WRONG = [
    ("{", "not valid JSON"),
    ("[" * 100_000, "not valid JSON"),
    ("[]", "no profile"),
    ('{"kind": "recipe"}', "no profile"),
    (wrong({"schema": 3}), "a profile of version 3, this dcpbench reads up to 2; use a newer dcpbench"),
    (wrong({"schema": 0}), "there is no version 0"),
    (wrong({"entires": []}), "unknown key 'entires'; did you mean 'entries'?"),
    (wrong({"lable": "x"}, "entries", 0), "entry 1: unknown key 'lable'; did you mean 'label'?"),
    (wrong({"dcpp": 2}, "entries", 1, "layout"), "entry 2, layout: unknown key 'dcpp'; did you mean 'dcp'?"),
    (wrong({"cold": 3}, "entries", 1), "entry 2, cold should be true or false"),
    (wrong({"entries": [3]}), "entry 1 should be an object"),
    (wrong({"page_size": 1.5}, "unless_given"), "page_size should be a text, a whole number, true or false"),
    (wrong({"dtype": "float33"}, "geometry"), "unknown dtype 'float33'; did you mean 'float32'?"),
    (wrong({"label": "guessed"}, "entries", 0), "wrong.json, entry 1: unknown label 'guessed'; known: measured"),
    (
        wrong({"median_us": -1}, "entries", 1, "candidates", 0),
        "entry 2, candidate 1, median_us should be greater",
    ),
    (wrong({"median_us": 99}, "entries", 1, "candidates", 0), "entry 2: an interval of"),
    (wrong({"candidates": []}, "entries", 0), "entry 1, candidates should not be empty"),
    (wrong({"settings": FOLD_16 | {"page_size": 32}}, "entries", 0), "settings that were not measured"),
    (wrong({"settings": {"paths": "fold"}}, "entries", 0), "unknown setting 'paths'; did you mean 'path'"),
    (wrong({"path": "splitt"}, "entries", 0, "settings"), "unknown path 'splitt'; did you mean 'split'"),
    (wrong({"workload": "8z"}, "entries", 0), "batch '8z', character 2"),
    (wrong({"dcp": 3}, "entries", 0, "layout"), "a DCP group of 3 cannot have gathered 16 query heads"),
    (wrong({"kv_heads": 0}, "geometry"), "geometry, kv_heads should be greater than or equal to 1"),
    (wrong({"kv_heads": 3}, "geometry"), "KV heads divide the query heads"),
    (wrong({"q_heads": "16"}, "geometry"), "geometry, q_heads should be a whole number"),
]


@pytest.mark.parametrize(("text", "sentence"), WRONG)
def test_a_wrong_file_is_one_sentence(tmp_path: Path, text: str, sentence: str) -> None:
    path = tmp_path / "wrong.json"
    path.write_text(text)
    with pytest.raises(FileError) as caught:
        Profile.load(path)
    assert sentence.lower() in str(caught.value).lower()
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_absent_and_huge_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="no such file; a profile was expected"):
        Profile.load(tmp_path / "absent.json")
    huge = tmp_path / "huge.json"
    with huge.open("wb") as file:
        file.truncate(MAX_PROFILE_BYTES + 1)
    with pytest.raises(FileError, match="larger than"):
        Profile.load(huge)


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 1 << 32))
def test_a_mutated_profile_gives_a_sentence_or_a_profile(tmp_path: Path, seed: int) -> None:
    source = random.Random(seed)
    content = bytearray(wrong({}).encode())
    for _ in range(source.randint(1, 4)):
        place = source.randrange(len(content))
        content[place : place + source.randint(0, 3)] = source.choice(
            [b"9", b'"', b"-", b"{}", b"\xff", b"", b"null", b"e9"]
        )
    path = tmp_path / "mutated.json"
    path.write_bytes(content)
    try:
        said = ""
        loaded = Profile.load(path)
    except FileError as error:
        said, loaded = str(error), GRID
    assert "\n" not in said
    assert all(one.settings.path in PathName for one in loaded.entries)
