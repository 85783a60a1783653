"""Profiles: written, read and asked; a file that is none gives a sentence."""

from __future__ import annotations

import json
import math
import random
import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.errors import UsageError
from bench.files import FileError
from bench.profile.entry import Candidate, Entry, Geometry, LeftOut, Paired, Ratio, default_settings
from bench.profile.file import check_derived
from bench.profile.nearest import Region, leave_each_out, place, regions_of
from bench.profile.profile import MAX_PROFILE_BYTES, Profile, Source, merged
from bench.profile.tree import Cut, Tree, decide, grow, rows_of
from bench.record import Environment, Label
from bench.report.answer import answer_json, source_line
from bench.report.apart import apart_grid, compare
from bench.report.choices import entries_grid, regions_grid
from bench.report.vllm import serving
from bench.shipped import reference_folder
from dcp_core import Case, DcpLayout, ModelShape, Settings, Workload
from dcp_core.shapes import DType

MUTATIONS = 300
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
    assert ask(GRID, "q3s8k") == ("neighbour", FOLD)
    cuda_core = Settings(path="decode", kernel="cuda_core")
    both = profile(
        *(entry(f"q1s{context}k", cuda_core) for context in (8, 16)), entry("q3s8k", FOLD), entry("q8s8k", FOLD)
    )
    assert (ask(both, "q1s12k"), ask(both, "q4s8k")) == (("neighbour", cuda_core), ("neighbour", FOLD))


@pytest.mark.parametrize(
    ("batch", "layout"),
    [
        ("64q1s32k", DCP2),
        ("4q1s512k", DCP2),
        ("4q1s1k", DCP2),
        ("q8ks32k", DCP2),
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


def test_a_question_that_no_profile_can_answer_is_refused() -> None:
    batch = Workload.parse("5q1s9k")
    for wrong in (("5q1s9k", DCP2), (batch, 2)):
        with pytest.raises(ValueError, match="a profile is asked with a Workload and a DcpLayout, not "):
            GRID.lookup(*wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="a DCP group of 7 cannot have gathered 16 query heads over 1 KV heads"):
        GRID.lookup(batch, DcpLayout(28, 7))


def timed(batch: str, layout: DcpLayout = DCP2, label: Label = Label.MEASURED, **us: float) -> Entry:
    """Return an entry of a batch with these settings at these times, the default the last of them."""
    named = {"decode": DECODE, "fold": FOLD, "split": SPLIT, "mask": Settings(path="mask", kernel="fa2")}
    candidates = [Candidate(named[name], time, time, time, "0" * 16) for name, time in us.items()]
    ranked = tuple(sorted(candidates, key=lambda one: one.median_us))
    return Entry(
        layout, Workload.parse(batch), label, "graph", True, ranked, ranked[0].settings, candidates[-1].settings
    )


def region(*entries: Entry) -> Region:
    (found,) = profile(*entries).regions.values()
    return found


def test_the_way_of_answering_is_that_which_costs_batches_left_out_least() -> None:
    """Fold wins up to 64 new tokens, and the nearest batch always lies on the other side: only a tree sees that."""
    sides = [
        timed(f"q{new}s{context}k", fold=10 if new < 64 else 20, split=20 if new < 64 else 10, mask=30)
        for context in (4, 16, 64, 256)
        for new in (60, 70)
    ]
    found = region(*sides)
    assert {way: (regret.mean, regret.worst) for way, regret in found.regrets.items()} == {
        Source.NEIGHBOUR: (1, 1),
        Source.TREE: (0, 0),
        Source.DEFAULT: (2, 2),
    }
    assert found.way is Source.TREE
    assert isinstance(found.tree, Cut)
    assert (found.tree.size, found.tree.limit) == ("new", pytest.approx((60 * 70) ** 0.5))
    choice = profile(*sides).lookup(Workload.parse("q66s17k"), DCP2)
    assert (choice.source, choice.settings, choice.expected_regret) == (Source.TREE, SPLIT, 0)


def test_a_batch_left_out_beyond_what_is_measured_is_answered_by_the_default() -> None:
    """As a lookup is: four doublings away nothing is a neighbour."""
    far = profile(timed("q4s8k", fold=10, split=20), timed("q64s8k", fold=10, split=30))
    assert [(entry.left_out.neighbour, entry.left_out.tree) for entry in far.entries] == [(1, 1), (2, 2)]


def test_settings_are_not_believed_between_batches_of_which_one_was_slower_with_them_than_with_the_default() -> None:
    """Fold is faster with 256 new tokens, slower with 1024: in between the default answers, though 256 are nearer to 400."""
    known = profile(
        *(timed(f"q256s{context}k", fold=10, split=20) for context in (8, 32)),
        *(timed(f"q1024s{context}k", fold=20, split=10) for context in (8, 32)),
    )
    assert ask(known, "q300s9k") == ("default", default_settings(DCP2, Workload.parse("q300s9k")))
    assert ask(known, "q250s9k")[1] == FOLD
    assert ask(known, "q900s9k")[1] == SPLIT


def test_a_tree_is_not_believed_next_to_a_batch_that_was_slower_by_it_than_with_the_default() -> None:
    """Fold wins up to 64 new tokens, but for one batch, which the tree is too coarse for: next to that, it answers itself."""
    odd = timed("q40s20k", fold=20, split=10)
    sides = [
        timed(f"q{new}s{context}k", fold=10 if new < 64 else 20, split=20 if new < 64 else 10, mask=30)
        for context in (4, 16, 64, 256)
        for new in (16, 60, 70)
    ]
    known = profile(*sides, odd)
    (found,) = known.regions.values()
    assert found.way is Source.TREE
    assert ask(known, "q60s17k") == ("tree", FOLD)
    assert ask(known, "q39s21k") == ("neighbour", SPLIT)


TP = Settings(path="tp", kernel="fa2", exchange="alone")
ALONE, DCP4 = DcpLayout(8), DcpLayout(16, 4)
LENDING = profile(
    *(entry(f"q{new}s{context}k", TP, layout=ALONE) for new in (8, 64) for context in (8, 64)),
    *(entry(f"{requests}q1s32k", TP, layout=ALONE) for requests in (4, 16)),
    *(entry(f"{batch}s32k", FOLD, SPLIT, label=Label.SIMULATED, layout=DCP4) for batch in ("q4", "q128")),
    entry("8q1s8k", DECODE, label=Label.SIMULATED, layout=DCP4),
)


def test_a_batch_is_answered_by_one_of_another_dcp_whose_ranks_hold_as_many_keys() -> None:
    """At dcp 4, 128k tokens leave 32k to a rank: what was measured alone over 64k is nearer than what was over 32k at dcp 4."""
    choice = LENDING.lookup(Workload.parse("q60s128k"), DCP4)
    assert (choice.source, choice.settings) == (Source.NEIGHBOUR, FOLD)
    assert choice.entry is not None
    assert (str(choice.entry.workload), choice.entry.layout) == ("q64s64k", ALONE)
    assert "doublings from q64s64k at dcp 1" in source_line(choice)
    assert answer_json(choice)["nearest_dcp"] == 1
    assert ask(LENDING, "6q1s100k", DCP4) == ("neighbour", DECODE)
    assert ask(LENDING, "q100s16k", ALONE) == ("neighbour", TP)


def test_whose_tokens_they_are_matters_less_than_how_many() -> None:
    asked = Workload.parse("4q128s8k")
    near = region(entry("q512s8k", FOLD), entry("4q64s8k", SPLIT)).nearest(asked, place(asked, 2))
    assert near is not None
    assert (str(near.entry.workload), near.distance) == ("q512s8k", pytest.approx(0.5, abs=0.1))


def test_two_kernels_are_not_lent_to_a_single_pass() -> None:
    both = profile(
        *(entry(f"q4s{context}k", TP, layout=ALONE) for context in (2, 32)),
        *(entry(f"q4s{context}k", SPLIT, label=Label.SIMULATED) for context in (24, 64)),
    )
    choice = both.lookup(Workload.parse("q4s12k"), ALONE)
    assert (choice.settings, choice.entry.layout if choice.entry else None) == (TP, ALONE)


def test_what_is_timed_without_the_exchange_is_not_lent_to_what_is_timed_with_it() -> None:
    timed_too = profile(*LENDING.entries, entry("q8s32k", SPLIT), entry("q32s32k", SPLIT))
    assert ask(timed_too, "q16s34k") == ("neighbour", SPLIT)
    assert ask(timed_too, "q32s60k") == ("default", default_settings(DCP2, Workload.parse("q32s60k")))


@pytest.mark.parametrize("decodes", ["q1s100", "4q1s32k", "300q1s2k"])
def test_a_mixed_batch_runs_as_its_longer_requests_do_and_its_decodes_apart(decodes: str) -> None:
    joined = replace(FOLD, batching="joined")
    fa3 = replace(FOLD, kernel="fa3")
    known = profile(entry("q64s32k", fa3), entry("q512s32k", fa3), entry("8q1s8k_q512s8k", joined))
    apart = replace(fa3, decode_kernel="fa2")
    assert ask(known, f"{decodes}_q64s32k") == ("neighbour", apart)
    assert ask(known, f"{decodes}_q500s9k") == ("neighbour", joined)


def test_a_tree_of_longer_batches_leaves_decodes_beside_them_to_the_engines_kernel() -> None:
    sides = [
        timed(f"q{new}s{context}k", fold=10 if new < 64 else 20, split=20 if new < 64 else 10, mask=30)
        for context in (4, 16, 64, 256)
        for new in (60, 70)
    ]
    assert ask(profile(*sides), "8q1s8k_q66s17k") == ("tree", replace(SPLIT, decode_kernel="fa2"))


def test_left_out_with_a_batch_are_those_of_the_same_size() -> None:
    """Only the batch of twice the tokens may answer: not the same one at another dcp, nor the one with decodes beside it."""
    fast = {"fold": 10.0, "split": 20.0}
    simulated = [
        timed(batch, layout, Label.SIMULATED, **fast)
        for batch, layout in (("q8s8k", DCP2), ("q8s8k", DCP4), ("4q1s8k_q8s8k", DCP2))
    ]
    other = timed("q16s8k", DCP2, Label.SIMULATED, fold=20, split=10)
    paid = {(str(one.workload), one.layout.dcp): one.left_out.neighbour for one in profile(*simulated, other).entries}
    assert paid["q8s8k", 2] == paid["q8s8k", 4] == 1


def test_a_few_tokens_beyond_the_outermost_batch_are_still_answered() -> None:
    assert ask(GRID, "4q1s131080") == ("neighbour", DECODE)
    assert ask(GRID, "q64s33k") == ("neighbour", FOLD)


def test_where_batches_tell_nothing_of_one_another_the_default_answers() -> None:
    """The winner alternates and the default is always close: neither a neighbour nor a tree does as well as it."""
    turns = [timed(f"q{2 << step}s32k", fold=10 + 20 * (step % 2), split=11) for step in range(8)]
    found = region(*turns)
    assert found.way is Source.DEFAULT
    choice = profile(*turns).lookup(Workload.parse("q24s32k"), DCP2)
    assert (choice.source, choice.outside, choice.settings) == (
        Source.DEFAULT,
        False,
        default_settings(DCP2, Workload.parse("q24s32k")),
    )
    assert choice.expected_regret == found.regrets[Source.DEFAULT].mean
    beyond = profile(*turns).lookup(Workload.parse("q24s512k"), DCP2)
    assert (beyond.source, beyond.outside) == (Source.DEFAULT, True)
    assert "outside what was measured" in source_line(beyond)


def test_what_was_not_measured_counts_as_slow() -> None:
    apart = region(timed("q4s8k", fold=10, split=30), timed("q8s8k", split=10))
    assert apart.regrets[Source.NEIGHBOUR] == (2.0 / 2 + 1.0 / 2, 2.0, 1)


@settings(max_examples=60)
@given(
    st.lists(
        st.tuples(st.integers(2, 4096), st.integers(0, 20), st.floats(1, 9), st.floats(1, 9)), min_size=1, max_size=12
    )
)
def test_a_tree_is_shallow_and_never_worse_than_one_leaf(rows: list[tuple[int, int, float, float]]) -> None:
    entries = [timed(f"q{new}s{new + context}k", fold=one, split=other) for new, context, one, other in rows]
    choices, table = rows_of(entries)
    tree = grow(choices, table)
    paid = [row.regrets[choices.index(decide(tree, row.sizes))] for row in table]
    assert sum(paid) <= min(map(sum, zip(*(row.regrets for row in table), strict=True))) + 1e-9
    assert depth_of(tree) <= 3


def depth_of(tree: Tree) -> int:
    return 1 + max(depth_of(tree.below), depth_of(tree.above)) if isinstance(tree, Cut) else 0


def test_more_batches_than_folds_are_left_out_several_at_a_time() -> None:
    many = [
        timed(f"{requests}q1s{context}k", decode=10, split=20) for requests in range(1, 11) for context in range(1, 11)
    ]
    assert all(one.left_out == LeftOut(0, 0) for one in leave_each_out(many))


def test_a_far_batch_is_no_neighbour_however_far_apart_they_were_measured() -> None:
    sparse = profile(timed("q1s1k", decode=10), timed("q1s512k", decode=10), timed("128q1s1k", decode=10))
    choice = sparse.lookup(Workload.parse("12q1s16k"), DCP2)
    assert choice.outside
    assert choice.distance > 3


def test_an_entry_says_its_ratio_to_the_default_with_an_interval() -> None:
    fast, slow = Candidate(FOLD, 50, 49, 51, "0" * 16), Candidate(SPLIT, 100, 90, 110, "1" * 16)
    one = Entry(DCP2, Workload.parse("q4s8k"), Label.MEASURED, "graph", True, (fast, slow), FOLD, SPLIT)
    assert one.to_default is not None
    assert one.to_default.value == 0.5
    assert one.to_default.low == pytest.approx(0.5 / math.exp(math.hypot(math.log(50 / 49), math.log(1.1))))
    assert one.to_default.high == pytest.approx(0.5 * math.exp(math.hypot(math.log(51 / 50), math.log(100 / 90))))
    kept = replace(one, settings=SPLIT)
    assert kept.to_default == Ratio(1, 1, 1), "a time over itself is known exactly"


RACED = replace(
    GRID.entries[0], paired=(Paired(SPLIT, Ratio(0.9, 0.89, 0.91)), Paired(FOLD, Ratio(1.001, 0.998, 1.002)))
)


def test_where_settings_raced_their_ratios_are_those_of_the_race_and_not_of_medians(tmp_path: Path) -> None:
    assert RACED.to_default == Ratio(0.9, 0.89, 0.91)
    assert RACED.runner_up is not None
    assert RACED.runner_up.settings == FOLD
    assert RACED.over(RACED.runner_up).value == 1.001, "its median is above the choice's, and yet it was a hair faster"
    duel = replace(RACED, paired=RACED.paired[:1])
    assert duel.runner_up is not None
    assert duel.runner_up.settings == FOLD, "the default alone raced, and is not the next best for that"
    raced = profile(RACED, *GRID.entries[1:])
    path = raced.save(tmp_path)
    assert Profile.load(path) == raced
    first = json.loads(path.read_text())["entries"][0]
    assert (first["ratio_to_default"], first["ratio_low"], first["ratio_high"]) == (0.9, 0.89, 0.91)
    assert first["paired"][1] == {
        "settings": {"path": "fold", "kernel": "fa2"},
        "ratio": 1.001,
        "low": 0.998,
        "high": 1.002,
    }


def test_a_choice_is_compared_with_others_and_once_with_each() -> None:
    for paired in ((Paired(DECODE, Ratio(1, 1, 1)),), (RACED.paired[0], RACED.paired[0])):
        with pytest.raises(ValueError, match="compares its choice with itself, or twice"):
            replace(RACED, paired=paired)
    with pytest.raises(ValueError, match="settings that were not measured"):
        replace(RACED, paired=(Paired(replace(FOLD, page_size=64), Ratio(1, 1, 1)),))


def test_profiles_are_joined_and_of_a_batch_the_last_measured_counts() -> None:
    def at(one: Entry, time: str) -> Entry:
        return replace(one, candidates=tuple(replace(candidate, time=time) for candidate in one.candidates))

    early, late = (
        at(timed("q4s8k", fold=10, split=20), "2026-01-01"),
        at(timed("q4s8k", fold=20, split=10), "2026-02-01"),
    )
    other = at(timed("q16s8k", fold=10, split=20), "2026-01-01")
    for one, two in ((profile(early, other), profile(late)), (profile(late), profile(early, other))):
        joined = merged(one, two)
        assert {str(entry.workload): entry.settings for entry in joined.entries} == {"q4s8k": SPLIT, "q16s8k": FOLD}
        assert [entry.left_out.neighbour for entry in joined.entries] == [1, 1], "learnt anew from all of them"
    elsewhere = replace(profile(late), environment=Environment({**H200.hard, "driver": "590"}))
    with pytest.raises(UsageError, match=r"two machines.*driver: 580.95 here, 590 there"):
        merged(profile(early), elsewhere)
    linked, other = (
        replace(profile(early), environment=Environment(H200.hard, {"topology": f"0-1: {link}"}))
        for link in ("NVLink", "PCIe")
    )
    with pytest.raises(UsageError, match=r"two machines.*link 0-1: NVLink here, PCIe there"):
        merged(linked, other)
    with pytest.raises(UsageError, match="each has its own file"):
        merged(profile(early), replace(profile(), geometry=replace(GEOMETRY, q_heads=8)))


def test_profiles_are_compared_by_what_they_choose() -> None:
    first = profile(timed("q4s8k", fold=10, split=30), timed("q8s8k", fold=10), timed("q16s8k", fold=10))
    second = profile(timed("q4s8k", fold=20, split=10), timed("q8s8k", fold=11), timed("q32s8k", fold=10))
    found = compare(first, second)
    text = apart_grid(found).to_text()
    assert re.search(r"^q4s8k +2 +fold fa2 ag_rs +split fa3\+fa2 ag_rs +3.00 +2.00 +measured$", text, re.MULTILINE)
    assert "Of 2 batches that both hold, 1 differ" in text
    assert "Only in A, 1: q16s8k dcp 2." in text
    assert "B's time over A's is 1.100 in the median" in text
    assert not found.same
    assert compare(first, first).same


def test_two_entries_of_one_batch_are_refused() -> None:
    with pytest.raises(ValueError, match="two measured entries of q4s8k with tp 8, dcp 2"):
        Profile(GEOMETRY, H200, (timed("q4s8k", fold=10), timed("q4s8k", split=10)))
    assert len(profile(timed("q4s8k", fold=10), timed("q4s8k", fold=9, label=Label.SIMULATED)).entries) == 2


def test_version_1_is_read(tmp_path: Path) -> None:
    data = json.loads(GRID.to_text())
    data["schema"] = 1
    del data["regions"]
    for one in data["entries"]:
        one["left_out_regret"] = one.pop("left_out")["neighbour"]
        del one["ratio_low"], one["ratio_high"]
    path = tmp_path / "old.json"
    path.write_text(json.dumps(data))
    old = Profile.load(path)
    assert [one.candidates for one in old.entries] == [one.candidates for one in GRID.entries]
    assert old == GRID
    old.save(tmp_path)
    assert Profile.load(tmp_path / old.file_name) == old


def test_of_an_older_version_what_was_left_out_is_worked_out_anew() -> None:
    data = json.loads(GRID.to_text())
    data["schema"] = 2
    for one in data["entries"]:
        one["left_out"] = {"neighbour": 3.0, "tree": 0.0}
    assert Profile.parse(json.dumps(data), "old.json") == GRID
    data["entries"].append(data["entries"][0])
    with pytest.raises(FileError, match=r"old\.json: there are two measured entries of"):
        Profile.parse(json.dumps(data), "old.json")


def test_the_file_says_how_batches_between_are_answered() -> None:
    first = json.loads(GRID.to_text())["regions"][0]
    found = GRID.regions[2, 1, False, Label.MEASURED]
    assert (first["dcp"], first["entries"], first["way"]) == (2, len(found.entries), str(found.way))
    assert first["left_out"]["neighbour"]["mean"] == pytest.approx(found.regrets[Source.NEIGHBOUR].mean, abs=1e-6)


@pytest.mark.parametrize(
    ("change", "place", "sentence"),
    [
        (
            {"ratio_to_default": 0.5},
            ("entries", 0),
            "entry 1: ratio_to_default should be 0.8333, as its candidates tell",
        ),
        ({"median_us": 9.0}, ("entries", 1), "entry 2: median_us should be 10.0"),
        ({"way": "tree"}, ("regions", 0), "regions are not what its entries tell"),
    ],
)
def test_what_a_file_says_for_the_reader_can_be_checked(
    change: dict[str, object], place: tuple[str | int, ...], sentence: str
) -> None:
    for text in (wrong({}), wrong(change, *place)):
        found = Profile.parse(text, "x.json")
        if text == wrong({}):
            check_derived(text, "x.json", found.entries, found.regions)
            continue
        with pytest.raises(FileError, match=re.escape(sentence)):
            check_derived(text, "x.json", found.entries, found.regions)


def test_more_entries_than_a_profile_holds_are_refused_in_a_sentence(tmp_path: Path) -> None:
    batches = [entry(f"{requests}q1s{context}k", DECODE) for requests in range(1, 65) for context in range(1, 34)]
    with pytest.raises(
        UsageError, match=r"would have 2112 entries, and 2048 are the limit: .* what was measured is kept"
    ):
        Profile(GEOMETRY, H200, tuple(batches))
    from bench.profile.text import render

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
    for source in (GRID, LENDING):
        choice = source.lookup(workload, layout)
        assert Case(MODEL, layout, workload, choice.settings).settings == choice.settings
        assert (choice.source is Source.DEFAULT) == (choice.entry is None)


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
    (wrong({"schema": 4}), "a profile of version 4, this dcpbench reads up to 3; use a newer dcpbench"),
    (wrong({"schema": 0}), "there is no version 0"),
    (wrong({"entires": []}), "unknown key 'entires'; did you mean 'entries'?"),
    (wrong({}).replace('"schema": 3', '"schema": 3, "schema": 3'), "key 'schema' stands twice in one object"),
    (wrong({"median_us": 1e-9, "low_us": 1e-9}, "entries", 1, "candidates", 0), "no step takes 1e-09 to 10.5 µs"),
    (wrong({"exchange": "loopback"}, "unless_given"), "loopback is no exchange that an engine could run"),
    (wrong({"label": "modelled"}, "entries", 0), "is modelled; a profile holds what was measured or simulated"),
    (wrong({"case": "../1"}, "entries", 0, "candidates", 0), "candidate 1, case should be 16 hexadecimal digits"),
    (wrong({"dcp": 10**400}, "entries", 0, "layout"), "layout, dcp should be less than or equal to 65536"),
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
    (
        wrong(
            {"paired": [{"settings": {"path": "fold", "kernel": "fa2"}, "ratio": 2, "low": 1, "high": 1}]}, "entries", 0
        ),
        "entry 1: an interval of 1.0 to 1.0 does not hold a ratio of 2.0",
    ),
    (
        wrong({"paired": [{"settings": {}, "ratio": "x", "low": 1, "high": 1}]}, "entries", 0),
        "entry 1, pair 1, ratio should be a number",
    ),
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


def test_a_small_file_cannot_ask_for_much_memory(tmp_path: Path) -> None:
    one = json.loads(wrong({}))["entries"][0]
    path = tmp_path / "huge.json"
    path.write_text(wrong({"entries": [one | {"workload": f"65536q1s{total}"} for total in range(1, 40)]}))
    with pytest.raises(FileError, match=r"entry 22: requests, each times its candidates, exceed the 4194304"):
        Profile.load(path)


def test_absent_and_huge_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="no such file; a profile was expected"):
        Profile.load(tmp_path / "absent.json")
    huge = tmp_path / "huge.json"
    with huge.open("wb") as file:
        file.truncate(MAX_PROFILE_BYTES + 1)
    with pytest.raises(FileError, match="larger than"):
        Profile.load(huge)


HOSTILE = (
    "NaN", "-Infinity", "1e999", "-1", "0", "1e308", "5e-324", "9" * 400, "9" * 5000, "65536", "3", "1.5",
    "null", "true", "[]", "{}", "[" * 3000 + "]" * 3000, '{"a": 1, "a": 2}', '""', '"' + "x" * 5000 + '"',
    '"\\ud800"', '"\\u001b[2J\\n"', '"65536q1"', '"q1s2147483648"', '"loopback"', '"cuda_core"', '"modelled"', '"fa3"',
)  # fmt: skip


def mutated(seed: int) -> bytes:
    """Return GRID's text with one to three wrong things in it: bytes, or a value in place of another."""
    source = random.Random(seed)
    text = profile(RACED, *GRID.entries[1:3]).to_text()
    for _ in range(source.randint(1, 3)):
        if source.random() < 0.4:
            place = source.randrange(len(text))
            text = (
                text[:place]
                + source.choice(["9", '"', "-", "{}", "\xff", "null", ","])
                + text[place + source.randint(0, 3) :]
            )
        else:
            values = list(re.finditer(r'(?<=: )("[^"]*"|[\d.]+|true|false|null)|"(\w+)"(?=:)', text))
            found = source.choice(values)
            text = text[: found.start()] + source.choice([*HOSTILE, source.choice(values)[0]]) + text[found.end() :]
    return text.encode("latin-1" if source.random() < 0.1 else "utf-8", "replace")


def use(content: bytes, path: Path) -> str:
    """Read a profile and do all that is done with one; return what was said against it, nothing if all went well."""
    path.write_bytes(content)
    try:
        loaded = Profile.load(path)
    except FileError as error:
        return str(error)
    for batch in ("4q1s32k", "3q1s20k", "q7s9k", "9q1s1k_q2k"):
        choice = loaded.lookup(Workload.parse(batch), DCP2)
        Case(MODEL, DCP2, Workload.parse(batch), choice.settings)
        assert source_line(choice)
        assert answer_json(choice)
    for grid in (entries_grid(loaded), regions_grid(loaded), apart_grid(compare(loaded, GRID))):
        assert grid.to_text().isprintable() or "\n" in grid.to_text()
    assert serving(loaded.answering(DCP2), loaded.environment, DCP2).to_text()
    assert Profile.parse(loaded.to_text(), "again") == loaded
    return ""


def test_a_mutated_profile_gives_a_sentence_or_a_profile(tmp_path: Path) -> None:
    said = [use(mutated(seed), tmp_path / "mutated.json") for seed in range(MUTATIONS)]
    refused = [sentence for sentence in said if sentence]
    assert len(refused) > MUTATIONS / 2, "mutations are wrong enough to tell"
    assert len(refused) < MUTATIONS, "and some leave a profile that can be used"
    assert all(sentence.isprintable() and len(sentence) < 1000 for sentence in refused)


def test_batches_left_out_of_the_profiles_that_ship_are_answered_within_three_percent_of_their_best() -> None:
    """In the mean over those that left a choice, as each region answers."""
    total, choices = 0.0, 0
    for path in sorted((reference_folder() / "h200" / "profiles").glob("*.json")):
        for region in regions_of(Profile.load(path).entries).values():
            total += (region.regret(region.way) or 0.0) * len(region.entries)
            choices += sum(len(entry.candidates) > 1 for entry in region.entries)
    assert choices > 400
    assert total / choices <= 0.03
