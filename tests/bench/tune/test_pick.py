"""Picking: the best median wins, the default stays inside the noise, and what was measured differently never mixes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice

import pytest

from bench.errors import UsageError
from bench.policy import Policy
from bench.profile.entry import Ratio, default_settings
from bench.profile.profile import Profile
from bench.record import Environment, Failed, Heat, Label, Measured, Race, Skipped, Trial, latest
from bench.stats import summarize
from bench.times import StageTime, StopReason, Summary
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


def raced(one: Trial, heat: Heat, name: str, samples: float | None = None, *, stages: bool = False) -> Trial:
    """Return a trial as it came out of a race of two: ten rounds, its samples all alike or as its median."""
    assert isinstance(one.outcome, Measured)
    us = samples or one.outcome.step_us.median
    times = (us,) * 40
    stage = (StageTime("attention", summarize(times)),) if stages else ()
    outcome = replace(
        one.outcome,
        step_us=summarize(times),
        rank_samples_us=(times,),
        stages=stage,
        race=Race(name, heat, "process", 2, 2),
    )
    return replace(one, outcome=outcome)


def test_a_fastest_that_is_not_told_apart_leaves_the_choice_to_one_that_is() -> None:
    (entry,) = only([timed(SPLIT_FA3, 100), timed(FOLD_FA2, 80, noise=0.2), timed(SPLIT_FA2, 90)]).entries
    assert entry.candidates[0].settings == FOLD_FA2
    assert entry.settings == SPLIT_FA2


def test_links_between_ranks_never_mix_and_the_newest_are_published() -> None:
    def linked(one: Trial, link: str, **variables: str) -> Trial:
        told = {name.replace("env_", "env:"): value for name, value in variables.items()}
        return replace(one, environment=Environment(H200.hard, {**H200.soft, "topology": f"0-1: {link}", **told}))

    first, second = timed(SPLIT_FA3, 100), timed(FOLD_FA2, 80, time="2026-02-01T00:00:00+00:00")
    for one, other in (
        (linked(first, "NVLink"), linked(second, "PCIe")),
        (linked(first, "NVLink"), linked(second, "NVLink", env_NCCL_ALGO="Ring")),
    ):
        (entry,) = only([one, other]).entries
        assert [candidate.settings for candidate in entry.candidates] == [FOLD_FA2]
        (entry,) = only([replace(trial, ranks=1) for trial in (one, other)]).entries
        assert len(entry.candidates) == 2, "a rank by itself has no links"
    (entry,) = only([linked(first, "NVLink"), linked(second, "NVLink", env_NCCL_DEBUG="INFO")]).entries
    assert len(entry.candidates) == 2
    (entry,) = only([first, linked(second, "NVLink")]).entries
    assert len(entry.candidates) == 2, "what one does not tell is no difference"


def test_a_race_that_was_not_confirmed_leaves_the_default() -> None:
    both = [timed(SPLIT_FA3, 100), timed(FOLD_FA2, 80)]
    for heat in (Heat.SCREENED, Heat.RACED):
        (entry,) = only([raced(one, heat, "a") for one in both]).entries
        assert entry.settings == SPLIT_FA3
        assert len(entry.candidates) == 2


def test_a_confirmation_decides_whatever_the_medians_say() -> None:
    both = [timed(SPLIT_FA3, 100), timed(FOLD_FA2, 80)]
    confirmed = [raced(one, Heat.CONFIRMED, "a") for one in both]
    other = raced(timed(SPLIT_FA2, 50), Heat.RACED, "b")
    (entry,) = only([*confirmed, other]).entries
    assert entry.settings == FOLD_FA2, "what only raced proves nothing, however fast"
    assert [one.settings for one in entry.candidates] == [SPLIT_FA2, FOLD_FA2, SPLIT_FA3]
    not_faster = [raced(both[0], Heat.CONFIRMED, "a", 100.0), raced(both[1], Heat.CONFIRMED, "a", 99.9)]
    (entry,) = only(not_faster).entries
    assert entry.settings == SPLIT_FA3


def test_an_entry_says_what_races_said_whatever_medians_of_other_moments_say() -> None:
    """The default and the winner confirmed, the winner and another raced; then each measured by itself on a slower device."""
    default, winner, other = timed(SPLIT_FA3, 100), timed(FOLD_FA2, 80), timed(SPLIT_FA2, 81)
    confirmed = [raced(one, Heat.CONFIRMED, "a") for one in (default, winner)]
    finals = [raced(one, Heat.RACED, "b", us) for one, us in ((winner, 90.0), (other, 99.0), (default, 200.0))]
    alone = [timed(SPLIT_FA3, 150), timed(FOLD_FA2, 140), timed(SPLIT_FA2, 130)]
    (entry,) = only([*confirmed, *finals, *alone]).entries
    assert entry.settings == FOLD_FA2
    assert entry.to_default == Ratio(0.8, 0.8, 0.8), "as confirmed, not as raced before"
    assert entry.runner_up is not None
    assert entry.runner_up.settings == SPLIT_FA2
    assert entry.over(entry.runner_up).value == pytest.approx(90 / 99, rel=1e-5)
    (kept,) = only([raced(one, Heat.CONFIRMED, "a", us) for one, us in ((default, 100.0), (winner, 99.9))]).entries
    assert kept.to_default == Ratio(1, 1, 1)
    assert kept.runner_up is not None
    assert kept.over(kept.runner_up).value == pytest.approx(100 / 99.9, rel=1e-5)


def test_the_last_confirmation_counts() -> None:
    earlier = [raced(one, Heat.CONFIRMED, "a") for one in (timed(SPLIT_FA3, 100), timed(FOLD_FA2, 80))]
    later = [
        raced(timed(settings, us, time="2026-02-01T00:00:00+00:00"), Heat.CONFIRMED, "b")
        for settings, us in ((SPLIT_FA3, 100), (SPLIT_FA2, 90))
    ]
    (entry,) = only([*earlier, *later]).entries
    assert entry.settings == SPLIT_FA2


def test_cases_measured_by_themselves_decide_where_a_search_is_not_at_its_end() -> None:
    alone = [timed(SPLIT_FA3, 100), timed(FOLD_FA2, 80)]
    screened = [raced(timed(settings, us), Heat.SCREENED, "a") for settings, us in ((SPLIT_FA3, 100), (SPLIT_FA2, 60))]
    (entry,) = only([*alone, *screened]).entries
    assert entry.settings == FOLD_FA2


def test_the_trial_that_counts_is_the_last_but_a_whole_one_before_one_that_raced() -> None:
    alone, screened = timed(FOLD_FA2, 80), raced(timed(FOLD_FA2, 70), Heat.SCREENED, "a")
    confirmed = raced(timed(FOLD_FA2, 75), Heat.CONFIRMED, "b", stages=True)
    assert latest([alone, screened]) == [alone]
    assert latest([screened, raced(timed(FOLD_FA2, 71), Heat.RACED, "c")])[0].outcome.race.name == "c"  # type: ignore[union-attr]
    assert latest([alone, confirmed, screened]) == [confirmed]


def test_simulated_groups_without_context_know_their_default() -> None:
    trials = [
        timed(settings, us, batch="q2k", label=Label.SIMULATED) for settings, us in ((SPLIT_FA3, 100), (FOLD_FA2, 80))
    ]
    (entry,) = only(trials).entries
    assert entry.default == SPLIT_FA3
    assert entry.settings == FOLD_FA2


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
