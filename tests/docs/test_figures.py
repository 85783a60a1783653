"""Figures in the tables of the pages are those of the runs that ship."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import cache
from statistics import geometric_mean, median

import pytest

from bench.audit import Audited
from bench.collective import readings
from bench.predict import comparisons
from bench.profile import Profile
from bench.profile.entry import Entry
from bench.record import Measured
from bench.report.gains import phase_of
from bench.shipped import reference_folder
from bench.store import Store, read_run
from bench.tune.paper import table_of, told_apart
from dcp_core.settings import Settings
from dcp_core.shapes import Workload
from tests.pages import ROOT, agree, table, words

SEED, DECODE = "20261128T215335.200388Z-1ade03", "20261128T215047.750193Z-8fe47a"
OVERLAPPED, EIGHT_THOUSAND = "20261129T005747.390302Z-fca213", "20261129T004304.253315Z-1e45eb"
WARM = "20261129T045153.148099Z-421c56"
TWO_GPUS, LONGER = "20261128T143205.292902Z-24cf42", "20261128T214915.225486Z-90abc6"


@cache
def fastest(run: str) -> dict[tuple[str, str, str, str], Measured]:
    """Return the fastest outcome of each batch, path, mask form and exchange in a run."""
    trials, _ = read_run(reference_folder() / "h200" / f"{run}.jsonl")
    found: dict[tuple[str, str, str, str], Measured] = {}
    for trial in trials:
        settings, outcome = trial.case.settings, trial.outcome
        assert isinstance(outcome, Measured)
        form = settings.mask_form if settings.path == "mask" else ""
        key = (str(trial.case.workload), str(settings.path), str(form), str(settings.exchange))
        if key not in found or outcome.step_us.median < found[key].step_us.median:
            found[key] = outcome
    return found


def step_us(run: str, batch: str, path: str, form: str = "", exchange: str = "loopback") -> float:
    return fastest(run)[str(Workload.parse(batch)), path, form, "alone" if path == "tp" else exchange].step_us.median


def plan_us(batch: str, form: str) -> float:
    times = fastest(SEED)[str(Workload.parse(batch)), "mask", form, "loopback"].plan
    return sum(time.host_us.median for time in times)


@pytest.mark.parametrize("row", table("README.md", "| 32768 over 0 |"), ids=lambda row: row[0])
def test_the_readme_s_table_is_the_seed_sweep(row: list[str]) -> None:
    new, context = map(int, row[0].split(" over "))
    batch = f"q{new}s{new + context}"
    shown = [text for cell in row[1:] for text in cell.split(" / ")]
    forms = [part for form in ("bool", "packed") for part in (plan_us(batch, form), step_us(SEED, batch, "mask", form))]
    measured = [step_us(SEED, batch, "tp"), *forms, step_us(SEED, batch, "split"), step_us(SEED, batch, "fold")]
    agree(shown, [one / 1000 for one in measured])


@pytest.mark.parametrize("row", table("docs/fold.md", "| 8 requests × 4 new"), ids=lambda row: row[0])
def test_the_table_of_fold_is_what_was_measured(row: list[str]) -> None:
    numbers = [int(number) for number in re.findall(r"\d+", row[0].replace("32k", "32768"))]
    if "requests" in row[0]:
        run, batch = DECODE, f"{numbers[0]}q{numbers[1]}s{numbers[1] + numbers[2]}"
    else:
        run, batch = SEED, f"q{numbers[0]}s{sum(numbers)}"
    for cell, (path, form) in zip(row[1:], (("fold", ""), ("split", ""), ("mask", "packed")), strict=True):
        text, unit = cell.split()
        agree([text], [step_us(run, batch, path, form) / {"µs": 1, "ms": 1000}[unit]])


@pytest.mark.parametrize("row", table("docs/fold.md", "| `8q4s32k` |"), ids=lambda row: row[0])
def test_fold_beside_split_is_what_was_measured_between_two_gpus(row: list[str]) -> None:
    agree(row[1:], [step_us(LONGER, row[0].strip("`"), path, exchange="direct") for path in ("fold", "split")])


@pytest.mark.parametrize("row", table("docs/exchanges.md", "| 1 × 32k |"), ids=lambda row: row[0])
def test_the_table_of_decode_steps_is_what_was_measured_between_two_gpus(row: list[str]) -> None:
    requests, context = row[0].split(" × ")
    batch = f"{requests}q1s{int(context.removesuffix('k')) * 1024 + 1}"
    measured = [step_us(TWO_GPUS, batch, "decode", exchange=name) for name in ("loopback", "ag_rs", "a2a", "direct")]
    agree(row[1:], [step_us(TWO_GPUS, batch, "tp"), *measured])


@pytest.mark.parametrize("row", table("docs/exchanges.md", "| `16q1s8k_q2ks10k` |"), ids=lambda row: row[0])
def test_the_table_of_mixed_batches_is_what_was_measured_between_two_gpus(row: list[str]) -> None:
    trials, _ = read_run(reference_folder() / "h200" / "apart" / "20261128T143444.398542Z-24f5f0.jsonl")
    times = {
        (str(trial.case.settings.exchange), str(trial.case.settings.batching)): trial.outcome.step_us.median
        for trial in trials
        if isinstance(trial.outcome, Measured) and trial.case.workload == Workload.parse(row[0].strip("`"))
    }
    apart = [times[name, batching] for name in ("ag_rs", "a2a", "direct") for batching in ("separate", "shared")]
    shown = [text for cell in row[1:] for text in cell.split(" / ")]
    agree(shown, [times["alone", "separate"], *apart, times["direct", "joined"]])


@pytest.mark.parametrize("row", table("docs/exchanges.md", "| `4q512s16k` |"), ids=lambda row: row[0])
def test_the_table_of_long_prompts_is_what_was_measured_between_two_gpus(row: list[str]) -> None:
    batch, folder = row[0].strip("`"), reference_folder() / "h200"
    trials, _ = read_run(folder / f"{EIGHT_THOUSAND if batch == 'q8ks32k' else OVERLAPPED}.jsonl")
    times = {
        (
            trial.case.settings.path,
            str(trial.case.settings.exchange),
            trial.case.settings.overlap,
        ): trial.outcome.step_us.median
        for trial in trials
        if isinstance(trial.outcome, Measured) and trial.case.workload == Workload.parse(batch)
    }
    both = [times["split", name, overlap] for name in ("ag_rs", "a2a", "direct") for overlap in (False, True)]
    shown = [text for cell in row[1:] for text in cell.split(" / ")]
    agree(shown, [times["tp", "alone", False], times["split", "loopback", False], *both])


def shipped_entries() -> Iterator[Entry]:
    for path in sorted((reference_folder() / "h200" / "profiles").glob("*.json")):
        yield from Profile.load(path).entries


def test_the_ten_largest_gains_are_those_of_the_profiles_that_ship_and_nothing_is_lost() -> None:
    profiles = [Profile.load(path) for path in sorted((reference_folder() / "h200" / "profiles").glob("*.json"))]
    ratios = [
        (ratio, entry, profile.geometry)
        for profile in profiles
        for entry in profile.entries
        if (ratio := entry.ratio_to_default) is not None
    ]
    page = (ROOT / "docs" / "tuning.md").read_text(encoding="utf-8")
    assert f"{len(ratios)} batches whose default was measured: {sum(one < 1 for one, *_ in ratios)} choices" in page
    assert max(one for one, *_ in ratios) == 1
    rows = table("docs/tuning.md", "| `q2s131074` |")
    for row, (ratio, entry, geometry) in zip(rows, sorted(ratios, key=lambda one: one[0])[:10], strict=True):
        assert row[0].strip("`") == str(entry.workload)
        assert row[1] == f"{geometry.q_heads} × {geometry.kv_heads} × {geometry.head_dim}"
        assert row[2] == str(entry.layout.dcp)
        assert row[5] == f"{entry.settings.path} {entry.settings.kernel}"
        agree([row[6], row[7]], [entry.chosen.median_us, ratio])


def test_what_the_choices_gain_by_kind_of_batch_is_what_the_profiles_that_ship_say() -> None:
    ratios: dict[tuple[str, str], list[float]] = defaultdict(list)
    raced = 0
    for entry in shipped_entries():
        if len(entry.candidates) > 1 and (ratio := entry.ratio_to_default) is not None:
            ratios[phase_of(entry.workload), str(entry.label)].append(ratio)
            raced += ratio < 1 and bool(entry.paired)
    rows = table("docs/tuning.md", "| decode | measured |")
    assert len(rows) == len(ratios)
    for kind, label, *shown in rows:
        found = sorted(ratios[kind, label])
        assert shown[:2] == [str(len(found)), str(sum(one < 1 for one in found))]
        agree(shown[2:], [geometric_mean(found), found[len(found) // 10], found[len(found) // 2]])
    every = [one for found in ratios.values() for one in found]
    page = words("docs/tuning.md")
    assert f"By kind of batch, of the {len(every)} that had a choice" in page
    assert f"All together {geometric_mean(every):.2f}." in page
    assert f"showed {raced} to be faster in a race in a fresh process" in page


def test_what_batches_left_out_are_answered_is_as_good_as_the_page_says() -> None:
    regrets: list[tuple[float, int]] = []
    over_default: list[float] = []
    for path in sorted((reference_folder() / "h200" / "profiles").glob("*.json")):
        for region in Profile.load(path).regions.values():
            mean = region.regret(region.way)
            assert mean is not None
            regrets.append((mean * len(region.entries), len(region.entries)))
            for entry in region.entries:
                left_out, default = entry.left_out_regret(region.way), entry.ratio_to_default
                if left_out is not None and default is not None and entry.default is not None:
                    over_default.append((1 + left_out) / (1 + (entry.regret(entry.default) or 0.0)))
    total, count = map(sum, zip(*regrets, strict=True))
    with_choice = sum(len(entry.candidates) > 1 for entry in shipped_entries())
    page = words("docs/tuning.md")
    assert f"over all {count} the answer is {100 * total / count:.1f} % slower than the best" in page
    assert f"over the {with_choice} with a choice {100 * total / with_choice:.1f} %" in page
    assert f"with none of {len(over_default)} it is slower than the default" in page
    assert max(over_default) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("row", table("docs/exchanges.md", "| gather `ag_rs` |"), ids=lambda row: row[0])
def test_the_table_of_messages_is_what_was_measured_between_two_gpus(row: list[str]) -> None:
    trials, _ = read_run(reference_folder() / "h200" / "20261128T110749.852857Z-a1713f.jsonl")
    operation, exchange = row[0].replace("`", "").split()
    times = {
        one.tokens: one.time_us.median
        for one in readings(trials)
        if (one.operation, str(one.kind.exchange)) == (operation, exchange)
        and (one.kind.row.heads, one.kind.row.head_dim) == (8, 128)
    }
    agree(row[1:], [times[tokens] for tokens in (1, 8, 64, 256, 1024, 4096, 8192)])


@cache
def warm_and_cold() -> list[tuple[float, str, float]]:
    """Return of each decode that was timed warm too its keys and values in MiB, its kernel, and warm over cold."""
    trials, _ = read_run(reference_folder() / "h200" / f"{WARM}.jsonl")
    found = []
    for trial in trials:
        outcome = trial.outcome
        assert isinstance(outcome, Measured)
        assert outcome.warm_us is not None
        assert outcome.flushed_bytes == 2 * 60 << 20, "twice the L2"
        ratio = outcome.warm_us.median / outcome.step_us.median
        found.append((outcome.kv_bytes / 2**20, str(trial.case.settings.kernel), ratio))
    return found


WARM_ROWS = table("results/reference/h200/README.md", "| 0 to 5 MiB |")


def sizes_mib(cell: str) -> tuple[float, float]:
    """Return the bounds of a row: ``32 to 33 MiB`` takes what is rounded to one of these or lies between."""
    numbers = [int(number) for number in re.findall(r"\d+", cell)]
    return numbers[0] - 0.5, numbers[-1] + 0.5


@pytest.mark.parametrize("row", WARM_ROWS, ids=lambda row: row[0])
def test_what_a_warm_cache_gains_is_what_was_measured(row: list[str]) -> None:
    least, most = sizes_mib(row[0])
    for kernel, cell in zip(("fa2", "fa3"), row[1:], strict=True):
        ratios = [ratio for size, name, ratio in warm_and_cold() if name == kernel and least <= size < most]
        agree(cell.split(" to "), (min(ratios), max(ratios)))


def test_every_decode_that_was_timed_warm_too_is_in_one_row() -> None:
    rows = [sizes_mib(row[0]) for row in WARM_ROWS]
    assert len(warm_and_cold()) == 64
    assert all(sum(least <= size < most for least, most in rows) == 1 for size, *_ in warm_and_cold())


@pytest.mark.parametrize(
    "row", table("results/reference/h200/README.md", "| [`audit decode`](audits/decode.json) |"), ids=lambda row: row[0]
)
def test_an_audit_that_ships_is_what_the_page_says_of_it(row: list[str]) -> None:
    name, *shown = row
    path = reference_folder() / "h200" / name.partition("](")[2].rstrip(")")
    told = json.loads(path.read_text(encoding="utf-8"))
    timed = [[Audited(**one) for one in case["timed"]] for case in told["cases"]]
    stages = [(one, null) for null, *others in timed for one in others]
    long = [one.agrees for one, null in stages if not one.is_short(null)]
    short = [one.agrees for one, null in stages if one.is_short(null)]
    counts = (len(long), sum(long), len(short), sum(short))
    assert tuple(told[name] for name in ("stages", "agree", "short", "short_agree")) == counts
    false = [case["raced"] for case in told["cases"] if case["raced"]["verdict"] in ("faster", "slower")]
    apart_us = max(abs(one.apart_us) for one, _ in stages)
    cells = [len(told["cases"]), f"{sum(long)} of {len(long)}", f"{sum(short)} of {len(short)}", f"{apart_us:.1f}"]
    off = ", ".join(f"{100 * (one['ratio'] - 1):+.1f} %" for one in false)
    assert shown == [*map(str, cells), f"{len(false)} of {told['races']}" + (f" ({off})" if off else "")]


def test_what_is_simulated_and_modelled_comes_as_near_to_two_gpus_as_the_page_says() -> None:
    trials, _ = Store.read(reference_folder() / "h200")
    found = comparisons(trials)
    near = sum(one.is_close for one in found)
    page = " ".join((ROOT / "docs" / "method.md").read_text(encoding="utf-8").split())
    assert (
        f"{near} of {len(found)} are within 10 % (median error {100 * median(abs(one.error) for one in found):.1f} %)"
        in page
    )
    assert near >= 0.9 * len(found)


def test_what_the_profiles_leave_out_was_worth_what_the_index_says() -> None:
    trials, _ = Store.read(reference_folder() / "h200" / "exhaustive")
    table = table_of(trials)
    batches = told_apart(table, trials[-1].environment)

    def loss(keep: Callable[[Settings], bool]) -> float:
        """Return by how much some settings lose to the best at most."""
        best = [min(table[case].step_us for case in batch.candidates) for batch in batches]
        kept = [min(table[case].step_us for case in batch.candidates if keep(case.settings)) for batch in batches]
        return max(one / other - 1 for one, other in zip(kept, best, strict=True))

    page = words("results/reference/README.md")
    by_page, by_layout, by_wrapper = (
        loss(lambda one: one.page_size == 16),
        loss(lambda one: one.kv_layout == "NHD"),
        loss(lambda one: one.decode_wrapper == "decode"),
    )
    worth = f"{100 * by_page:.1f} % at most by page size, {100 * by_layout:.1f} % by layout"
    assert f"{worth} and {100 * by_wrapper:.1f} % by the wrapper of a decode" in page
    assert loss(lambda one: not one.disable_split_kv and one.fixed_split_size is None) == 0
    for profile in sorted((reference_folder() / "h200" / "profiles").glob("*.json")):
        for entry in Profile.load(profile).entries:
            for candidate in entry.candidates:
                settings = candidate.settings
                assert (settings.page_size, settings.kv_layout, settings.decode_wrapper) == (16, "NHD", "decode")
                assert (settings.disable_split_kv, settings.fixed_split_size) == (False, None)


def test_the_page_says_how_many_trials_are_flagged_as_correlated() -> None:
    outcomes = [
        trial.outcome for trial in Store.read(reference_folder() / "h200")[0] if isinstance(trial.outcome, Measured)
    ]
    flagged = sum(one.is_correlated for one in outcomes)
    page = (ROOT / "results" / "reference" / "h200" / "README.md").read_text(encoding="utf-8")
    assert f"{flagged} of the {len(outcomes)} trials measured in the files beside this page are flagged" in page
