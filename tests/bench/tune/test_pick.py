"""Picking: the best median wins, the default stays inside the noise, and what was measured differently never mixes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice

import pytest

from bench.entry import default_settings
from bench.errors import UsageError
from bench.profile import Profile
from bench.record import (
    Environment,
    Failed,
    Label,
    Measured,
    Policy,
    Skipped,
    StopReason,
    Summary,
    Trial,
)
from bench.tune.pick import check_size, pick
from dcp_core import Case, DcpLayout, ModelShape, Settings, Workload
from dcp_core.check import Check
from dcp_core.settings import canonical

H200 = Environment({"device_name": "NVIDIA H200", "driver": "580"}, {"compute_capability": "9.0"})
MODEL = ModelShape.preset("qwen3-235b-a22b")
DCP2 = DcpLayout(8, 2)
SPLIT_FA2 = Settings(path="split", kernel="fa2")
SPLIT_FA3 = Settings(path="split", kernel="fa3")
DECODE = Settings(path="decode", kernel="fa2")
FOLD_FA2 = Settings(path="fold", kernel="fa2")


def timed(
    settings: Settings,
    median_us: float,
    *,
    batch: str = "q2ks32k",
    layout: DcpLayout = DCP2,
    shape: ModelShape = MODEL,
    noise: float = 0.01,
    label: Label = Label.MEASURED,
    timer: str = "graph",
    flushed_bytes: int = 1,
    environment: Environment = H200,
    time: str = "2026-01-01T00:00:00+00:00",
) -> Trial:
    low, high = median_us * (1 - noise), median_us * (1 + noise)
    times = Summary(30, median_us, low, high, low, low, high, noise)
    outcome = Measured(
        label=label,
        check=Check(1, 0.0, 1.0, 0.0, 1.0),
        timer=timer,
        step_us=times,
        launch_us=times,
        plan=(),
        stages=(),
        rank_samples_us=(),
        exchange_timed=label is Label.MEASURED,
        stop=StopReason.PRECISE,
        timer_floor_us=0.0,
        flushed_bytes=flushed_bytes,
        kv_bytes=0,
        layers=94,
    )
    workload = Workload.parse(batch)
    exchange = "alone" if layout.dcp == 1 else "loopback" if label is Label.SIMULATED else settings.exchange
    case = Case(shape, layout, workload, canonical(replace(settings, exchange=exchange), layout, workload))
    return Trial(case, outcome, layout.dcp, Policy(), environment, seconds=1.0, time=time)


def only(trials: list[Trial]) -> Profile:
    (profile,) = pick(trials)
    return profile


def test_the_best_median_wins_and_the_rest_is_kept() -> None:
    trials = [timed(SPLIT_FA3, 100), timed(FOLD_FA2, 80), timed(SPLIT_FA2, 120)]
    (entry,) = only(trials).entries
    assert entry.settings == FOLD_FA2
    assert entry.default == SPLIT_FA3, "auto is fa3 on Hopper"
    assert entry.ratio_to_default == 0.8
    assert entry.runner_up is not None
    assert entry.runner_up.settings == SPLIT_FA3
    assert [one.case for one in entry.candidates] == [trials[1].case.key, trials[0].case.key, trials[2].case.key]


def test_inside_the_noise_the_default_stays() -> None:
    (entry,) = only([timed(SPLIT_FA3, 100), timed(FOLD_FA2, 99)]).entries
    assert entry.settings == SPLIT_FA3
    assert entry.ratio_to_default == 1
    assert entry.runner_up is not None
    assert entry.runner_up.settings == FOLD_FA2
    (entry,) = only([timed(SPLIT_FA3, 100, noise=0), timed(FOLD_FA2, 99, noise=0)]).entries
    assert entry.settings == FOLD_FA2


def test_without_the_default_there_is_no_ratio() -> None:
    (entry,) = only([timed(FOLD_FA2, 80), timed(SPLIT_FA2, 120)]).entries
    assert (entry.settings, entry.default, entry.ratio_to_default) == (FOLD_FA2, None, None)
    unknown = Environment(H200.hard)
    (entry,) = only([timed(FOLD_FA2, 80, environment=unknown), timed(SPLIT_FA3, 120, environment=unknown)]).entries
    assert entry.default is None, "what auto means is not guessed"


def test_skipping_the_empty_context_is_a_gain_over_the_default() -> None:
    keeps, skips = replace(SPLIT_FA3, skip_empty_context=False), SPLIT_FA3
    (entry,) = only([timed(keeps, 100, batch="q512"), timed(skips, 80, batch="q512")]).entries
    assert (entry.default, entry.settings) == (keeps, skips)


def test_skipped_and_failed_trials_play_no_part() -> None:
    good = timed(SPLIT_FA3, 100)
    bad = [replace(timed(FOLD_FA2, 1), outcome=outcome) for outcome in (Skipped("no"), Failed("incorrect", "no"))]
    assert only([good, *bad]).entries[0].candidates[0].case == good.case.key
    assert pick(bad) == ()


@pytest.mark.parametrize("other", [{"timer": "events"}, {"flushed_bytes": 0}])
def test_timers_and_cold_never_mix(other: dict[str, object]) -> None:
    trials = [timed(SPLIT_FA3, 100), timed(SPLIT_FA2, 90), timed(FOLD_FA2, 1, **other)]  # type: ignore[arg-type]
    (entry,) = only(trials).entries
    assert entry.settings == SPLIT_FA2
    assert (entry.timer, entry.cold) == ("graph", True)
    assert FOLD_FA2 not in [one.settings for one in entry.candidates]


def test_protocols_never_mix() -> None:
    old = replace(timed(FOLD_FA2, 1), protocol=1)
    new = [replace(timed(SPLIT_FA3, 100), protocol=2)]
    assert only([old, *new]).entries[0].settings == SPLIT_FA3


def test_labels_never_mix_and_a_simulation_chooses_no_exchange() -> None:
    simulated = [timed(FOLD_FA2, 10, label=Label.SIMULATED), timed(SPLIT_FA3, 20, label=Label.SIMULATED)]
    measured = [timed(SPLIT_FA3, 100), timed(replace(SPLIT_FA3, exchange="a2a"), 90)]
    modelled = timed(FOLD_FA2, 1, label=Label.MODELLED)
    first, second = only([*simulated, *measured, modelled]).entries
    assert (first.label, first.settings.exchange) == (Label.MEASURED, "a2a")
    assert (second.label, second.settings) == (Label.SIMULATED, FOLD_FA2), "ag_rs is published where none was timed"
    assert second.default == SPLIT_FA3


def test_hard_fields_never_mix_and_the_newest_machine_is_last() -> None:
    newer = Environment({**H200.hard, "driver": "590"}, H200.soft)
    trials = [timed(FOLD_FA2, 1, environment=newer, time="2026-02-01"), timed(SPLIT_FA3, 100)]
    profiles = pick(trials)
    assert [profile.environment.hard["driver"] for profile in profiles] == ["580", "590"]
    assert [len(profile.entries[0].candidates) for profile in profiles] == [1, 1]
    assert len({profile.file_name for profile in profiles}) == 1


def test_geometries_have_their_own_profile_and_models_share_one() -> None:
    tp = Settings(path="tp", kernel="fa3", exchange="alone")
    wide = timed(tp, 50, layout=DcpLayout(8))
    small = timed(SPLIT_FA3, 100, shape=ModelShape.preset("qwen3-30b-a3b"))
    profiles = pick([wide, small, timed(FOLD_FA2, 90)])
    assert {str(profile.geometry): len(profile.entries) for profile in profiles} == {
        "q8,kv1,d128,dtype=bfloat16": 2,
        "q16,kv1,d128,dtype=bfloat16": 1,
    }
    eight = next(profile for profile in profiles if profile.geometry.q_heads == 8)
    assert [entry.layout.dcp for entry in eight.entries] == [1, 2]
    assert eight.entries[0].default == tp


def test_the_same_step_at_another_tp_is_the_same_entry() -> None:
    llama = ModelShape(128, 8, 128)  # 8 query heads and one KV head per rank at tp 16, as Qwen3-235B at tp 8
    profile = only([timed(SPLIT_FA3, 100), timed(FOLD_FA2, 80, shape=llama, layout=DcpLayout(16, 2))])
    (entry,) = profile.entries
    assert len(entry.candidates) == 2


def test_of_a_case_measured_twice_the_later_counts() -> None:
    later = timed(SPLIT_FA3, 100, time="2026-03-01")
    (entry,) = only([later, timed(SPLIT_FA3, 10, time="2026-01-01")]).entries
    assert entry.chosen.median_us == 100


def test_a_profile_of_the_cpu_compares_with_the_reference_kernel() -> None:
    cpu = Environment({"device_name": "Some CPU"})
    tiny, layout = ModelShape.preset("tiny"), DcpLayout(4, 2)
    trials = [
        timed(Settings(path=path, kernel="reference"), 10, shape=tiny, layout=layout, batch="8q1s1k", environment=cpu)
        for path in ("decode", "split")
    ]
    assert only(trials).entries[0].default == trials[0].case.settings


def test_regret_of_leaving_a_batch_out() -> None:
    """Three batches in a row: the middle one's neighbour chose otherwise, which would have cost it a quarter."""
    trials = [
        *(timed(SPLIT_FA3, 100, batch=batch) for batch in ("q1ks8k", "q2ks8k")),
        timed(SPLIT_FA3, 50, batch="q64s8k"),
        *(timed(FOLD_FA2, us, batch=batch) for batch, us in (("q1ks8k", 200), ("q2ks8k", 300), ("q64s8k", 40))),
    ]
    regrets = {str(entry.workload): entry.left_out.neighbour for entry in only(trials).entries}
    assert regrets == {"q64s8k": pytest.approx(0.25), "q1ks8k": 0, "q2ks8k": 0}


def test_defaults_are_those_of_the_engine() -> None:
    decode, prefill, mixed = (Workload.parse(batch) for batch in ("8q1s32k", "q2ks32k", "8q1s32k_q2ks32k"))
    assert default_settings(DCP2, decode) == Settings(path="decode", kernel="fa2")
    assert default_settings(DCP2, prefill) == Settings(path="split", kernel="auto")
    assert default_settings(DCP2, mixed) == Settings(
        path="split", kernel="auto", decode_kernel="fa2", batching="separate"
    )
    assert default_settings(DCP2, Workload.parse("q2k")) == Settings(
        path="split", kernel="auto", skip_empty_context=False
    )
    assert default_settings(DCP2, Workload.parse("8q4s32k")).path == "split", "speculative decode too"
    assert default_settings(DcpLayout(8), decode) == Settings(path="tp", kernel="fa2", exchange="alone")


def test_more_batches_than_a_profile_holds_are_refused_before_they_are_measured() -> None:
    def cases(count: int) -> Iterator[Case]:
        batches = (f"{requests}q1s{context}" for requests in range(1, 100) for context in range(1, 100))
        return (Case(MODEL, DCP2, Workload.parse(batch), DECODE) for batch in islice(batches, count))

    check_size(cases(2048))
    with pytest.raises(UsageError, match=r"2049 batches of q16,kv1,d128,.* are more than the 2048 .* 'dcpbench sweep'"):
        check_size(cases(2049))
