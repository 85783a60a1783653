"""Measuring: right before fast, and no number without what a reader needs to believe it."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import count
from statistics import mean, median

import pytest
import torch
from torch import Tensor

from bench import measure as measuring
from bench.clock import Scripted
from bench.measure import _time, measure
from bench.policy import Policy
from bench.record import Failed, Label, Measured, Outcome, Skipped
from bench.stats import lag1_correlation
from bench.times import CORRELATED, MAX_SAMPLES, Pace, StopReason
from dcp_core import build
from dcp_core.kernels.base import PassBatch, PassSpec
from dcp_core.kernels.reference import Reference, ReferencePass
from dcp_core.lse import Partial
from dcp_core.memory import cache_bytes
from dcp_core.mesh import Mesh
from dcp_core.settings import Case, KernelName, Unsupported
from tests.bench.cases import QUICK, tiny
from tests.bench.paper_device import KINDS, coverage
from tests.ranks import on_ranks

FLOOR_US = 1.0


@pytest.fixture(autouse=True)
def _plan_briefly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "PLAN_SECONDS", 0.0)


def measured(case: Case, policy: Policy = QUICK) -> Measured:
    outcome = run(case, policy)
    assert isinstance(outcome, Measured), outcome
    return outcome


def run(case: Case, policy: Policy = QUICK) -> Outcome:
    mesh = Mesh.alone() if case.layout.dcp == 1 else Mesh.simulated(case.layout.dcp)
    return measure(case, mesh, policy)


# --- What a measurement holds ---------------------------------------------------------------------------------------


def test_a_group_of_one_is_measured_whole() -> None:
    found = measured(tiny("4q8s64"))
    assert found.label is Label.MEASURED
    assert found.exchange_timed
    assert [stage.name for stage in found.stages] == ["attention"]
    assert found.check.passed
    assert found.check.rows == 32


@pytest.mark.parametrize(
    ("path", "stages", "planning"),
    [
        ("split", ["context", "new", "merge"], ["batch", "plan context", "plan new"]),
        ("mask", ["attention"], ["batch", "mask", "plan"]),
        ("fold", ["fold", "attention", "unfold", "new", "merge"], ["batch", "fold", "plan"]),
    ],
)
def test_a_simulation_checks_every_rank_and_times_one_without_the_exchange(
    path: str, stages: list[str], planning: list[str]
) -> None:
    found = measured(tiny("4q8s64", dcp=4, path=path))
    assert found.label is Label.SIMULATED
    assert not found.exchange_timed
    assert found.check.rows == 4 * 32
    assert len(found.rank_samples_us) == 1
    assert [stage.name for stage in found.stages] == stages
    assert not any(stage.communicates for stage in found.stages)
    assert [stage.name for stage in found.plan] == planning


def test_every_field_says_something() -> None:
    case = tiny("4q8s64", dcp=4)
    found = measured(case)
    assert found.timer == "host"
    assert found.flushed_bytes == 0
    assert found.timer_floor_us > 0
    assert found.timer_floor_end_us
    assert found.timer_empty_us
    assert found.timer_empty_end_us
    assert found.span_us
    assert found.span_us.min >= found.launch_us.min
    assert (found.clocks_during, found.peak_bytes) == ((), None), "a CPU tells neither"
    assert found.layers == 3
    assert found.kv_bytes == cache_bytes(case)
    for summary in (found.step_us, found.launch_us, *(stage.device_us for stage in found.stages)):
        assert 0 < summary.min <= summary.low <= summary.median <= summary.high
        assert summary.count >= QUICK.min_samples
    assert all(stage.host_us.min > 0 for stage in found.plan)
    assert found.plan_us == sum(stage.host_us.median for stage in found.plan)


def test_the_peak_of_memory_is_that_of_the_fullest_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 5 << 30)
    mesh = Mesh.alone()
    monkeypatch.setattr(mesh, "device", torch.device("cuda"))
    monkeypatch.setattr(mesh, "share", lambda own: [own, 7 << 30])
    assert measuring._peak_bytes(mesh) == 7 << 30


@pytest.mark.parametrize(
    ("batch", "dcp", "page_size"), [("2q8s64", 2, 16), ("q8s256_q16s128", 4, 32), ("q8s48", 1, 16)]
)
def test_the_kv_bytes_of_whole_pages_are_those_of_the_tokens(batch: str, dcp: int, page_size: int) -> None:
    case = tiny(batch, dcp=dcp, page_size=page_size)
    tokens = sum(case.workload.total_lens) // dcp
    assert measured(case).kv_bytes == tokens * 2 * 1 * 16 * 4


@pytest.mark.parametrize(
    ("kernel", "graphs", "captured"), [("fa2", True, True), ("fa2", False, False), ("reference", True, False)]
)
def test_the_clock_captures_what_can_be_captured_unless_asked_to_be_eager(
    kernel: str, graphs: bool, captured: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[dict[str, bool]] = []
    monkeypatch.setattr(measuring, "CudaClock", lambda device, **how: opened.append(how))
    mesh = Mesh.alone()
    monkeypatch.setattr(mesh, "device", torch.device("cuda"))
    measuring._open_clock(tiny(kernel=kernel), mesh, replace(QUICK, graphs=graphs))
    assert opened == [{"graphs": captured, "cold": QUICK.cold, "repetitions": 10}]


def test_a_layout_that_no_server_starts_with_is_flagged() -> None:
    flag = "synthetic layout: no server starts with it"
    legal = tiny(dcp=4)
    two_kv_heads = replace(legal, shape=replace(legal.shape, kv_heads=2))
    assert flag not in measured(legal).flags
    assert flag in measured(two_kv_heads).flags


# --- No pass, no number ---------------------------------------------------------------------------------------------


class Faulty:
    """A kernel that computes something, then spoils it."""

    name = KernelName.REFERENCE

    def __init__(self, spoil: Callable[[Partial], None]) -> None:
        self._spoil = spoil

    def refusal(self, spec: PassSpec, device: torch.device) -> None:
        return None

    def open(self, spec: PassSpec, device: torch.device) -> FaultyPass:
        return FaultyPass(Reference().open(spec, device), self._spoil)


class FaultyPass:
    def __init__(self, inner: ReferencePass, spoil: Callable[[Partial], None]) -> None:
        self._inner, self._spoil = inner, spoil

    def plan(self, batch: PassBatch) -> None:
        self._inner.plan(batch)

    def run(self, q: Tensor, keys_values: Tensor | tuple[Tensor, Tensor], into: Partial) -> Partial:
        result = self._inner.run(q, keys_values, into)
        self._spoil(result)
        return result


def set_one_row(partial: Partial) -> None:
    partial.out[-1] = 0.25


def raise_the_lse(partial: Partial) -> None:
    partial.lse.add_(0.01)


def leave_nan(partial: Partial) -> None:
    partial.out[0, 0, 0] = float("nan")


@pytest.mark.parametrize("dcp", [1, 2])
@pytest.mark.parametrize("spoil", [set_one_row, raise_the_lse, leave_nan])
def test_a_wrong_result_is_a_failure_and_never_timed(
    monkeypatch: pytest.MonkeyPatch, spoil: Callable[[Partial], None], dcp: int
) -> None:
    monkeypatch.setattr(build, "open_kernel", lambda name: Faulty(spoil))
    monkeypatch.setattr(measuring, "_open_clock", lambda *_: pytest.fail("a wrong result was about to be timed"))
    outcome = run(tiny("q8s32", dcp=dcp))
    assert isinstance(outcome, Failed)
    assert outcome.fault == "incorrect"
    assert "budget" in outcome.message


def test_results_that_stop_being_numbers_while_they_are_timed_are_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    runs, attend = count(), ReferencePass.run

    def run_until_spoilt(
        self: ReferencePass, q: Tensor, keys_values: Tensor | tuple[Tensor, Tensor], into: Partial
    ) -> Partial:
        result = attend(self, q, keys_values, into)
        return Partial(result.out.fill_(math.nan), result.lse) if next(runs) > 3 else result

    monkeypatch.setattr(ReferencePass, "run", run_until_spoilt)
    outcome = run(tiny("4q8s64"))
    assert isinstance(outcome, Failed)
    assert (outcome.fault, "no longer finite" in outcome.message) == ("incorrect", True)


def test_what_cannot_run_here_is_skipped_with_the_kernel_s_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(spec: PassSpec, device: torch.device) -> ReferencePass:
        raise Unsupported(f"head_dim {spec.head_dim} is not for this kernel")

    kernel = Reference()
    monkeypatch.setattr(kernel, "open", refuse)
    monkeypatch.setattr(build, "open_kernel", lambda name: kernel)
    assert run(tiny()) == Skipped("head_dim 16 is not for this kernel")


def test_a_gpu_kernel_without_a_gpu_is_skipped() -> None:
    outcome = run(tiny(kernel="fa2"))
    assert isinstance(outcome, Skipped)
    assert "fa2" in outcome.reason


def test_what_does_not_fit_is_skipped_before_anything_is_allocated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "_free_bytes", lambda device: 1 << 20)
    monkeypatch.setattr(measuring, "Stand", lambda *_: pytest.fail("memory was about to be allocated"))
    outcome = run(tiny("64q1s32k", dcp=2))
    assert isinstance(outcome, Skipped)
    assert outcome.reason.startswith("needs ")
    assert outcome.reason.endswith("1.0 MiB are free")


# --- When to stop, on a scripted clock ------------------------------------------------------------------------------


def on_script(
    monkeypatch: pytest.MonkeyPatch,
    latency_us: Callable[[int, random.Random], float],
    policy: Policy,
    told: Callable[[int], dict[str, str]] = lambda count: {},
) -> Measured:
    """Measure with a clock whose floor is FLOOR_US, and whose repetitions take what the script says."""
    monkeypatch.setattr(measuring, "floor_us", lambda clock, device: FLOOR_US)
    monkeypatch.setattr(measuring, "empty_us", lambda clock: FLOOR_US / 2)
    monkeypatch.setattr(measuring, "_open_clock", lambda *_: Scripted(latency_us, told=told))
    return measured(tiny(), policy)


CAREFUL = Policy(precision=0.01, min_samples=30, max_samples=300, min_warmup=10, max_seconds=1e9)


def steady(count: int, noise: random.Random) -> float:
    return 100 + noise.gauss(0, 0.5)


def noisy(count: int, noise: random.Random) -> float:
    return 100 + noise.gauss(0, 4)


def wild(count: int, noise: random.Random) -> float:
    return 100 * noise.lognormvariate(0, 1)


def waves(count: int, noise: random.Random) -> float:
    return 100 + (count // 20) % 2 * 0.5 + noise.gauss(0, 0.05)


def test_a_steady_device_is_believed_after_the_fewest_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    found = on_script(monkeypatch, steady, CAREFUL)
    assert found.stop is StopReason.PRECISE
    assert found.step_us.count == 30
    assert found.step_us.median == pytest.approx(100, rel=0.01)
    assert found.timer == "scripted"
    assert found.flags == ()


def test_a_noisy_device_is_sampled_until_the_interval_is_narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    found = on_script(monkeypatch, noisy, CAREFUL)
    assert found.stop is StopReason.PRECISE
    assert 30 < found.step_us.count <= 300
    assert found.step_us.high - found.step_us.low <= 2 * 0.01 * found.step_us.median
    assert len(found.rank_samples_us[0]) <= MAX_SAMPLES
    assert all(len(stage.samples_us) <= MAX_SAMPLES for stage in found.stages)


def test_a_wild_device_is_given_up_at_the_cap_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    found = on_script(monkeypatch, wild, CAREFUL)
    assert found.stop is StopReason.CAP
    assert found.step_us.count == 300
    assert "stopped at the cap, before the interval was narrow enough" in found.flags


def test_the_cap_of_time_counts_too(monkeypatch: pytest.MonkeyPatch) -> None:
    found = on_script(monkeypatch, wild, replace(CAREFUL, max_seconds=1e-9))
    assert found.stop is StopReason.CAP
    assert found.step_us.count == 30


def test_a_stage_says_why_its_sampling_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    step = 3 * CAREFUL.min_warmup + CAREFUL.min_samples
    found = on_script(monkeypatch, lambda count, noise: (steady if count < step else wild)(count, noise), CAREFUL)
    assert (found.stop, [stage.stop for stage in found.stages]) == (StopReason.PRECISE, [StopReason.CAP])
    assert found.flags == ()
    assert {stage.stop for stage in on_script(monkeypatch, steady, CAREFUL).stages} == {StopReason.PRECISE}


def test_correlated_samples_are_flagged(monkeypatch: pytest.MonkeyPatch) -> None:
    found = on_script(monkeypatch, waves, replace(CAREFUL, precision=1e-9))
    assert "samples are correlated: the interval of the median does not hold" in found.flags
    assert found.correlation is not None
    assert found.correlation > 0.2


def test_a_stage_says_how_correlated_its_own_samples_are(monkeypatch: pytest.MonkeyPatch) -> None:
    step = 3 * CAREFUL.min_warmup + CAREFUL.min_samples

    def steady_at_first(count: int, noise: random.Random) -> float:
        return steady(count, noise) if count < step else 100 + (count // 10) % 2 + noise.gauss(0, 0.05)

    found = on_script(monkeypatch, steady_at_first, CAREFUL)
    assert found.correlation is not None
    assert found.correlation < CORRELATED
    assert found.stages
    for stage in found.stages:
        assert stage.correlation is not None
        assert stage.correlation > CORRELATED
        assert stage.correlation == pytest.approx(lag1_correlation(stage.samples_us))


@pytest.mark.parametrize("name", KINDS)
def test_an_interval_covers_what_the_device_did_or_is_flagged(name: str) -> None:
    found = coverage(KINDS[name], spread=0.03, precision=0.01, runs=2000)
    assert found.samples > 1.5 * Policy().min_samples, (
        "it stopped because the interval was narrow, not at the first look"
    )
    if KINDS[name].independent:
        assert found.covered >= 0.93
        assert found.flagged <= 0.05
    else:
        assert found.either >= 0.9


def test_few_independent_samples_are_flagged_as_correlated_by_accident_in_one_of_eight() -> None:
    found = coverage(KINDS["white"], spread=0.01, precision=0.03, runs=2000)
    assert found.samples == Policy().min_samples
    assert found.covered >= 0.93
    assert found.flagged <= 0.125


def test_what_takes_less_than_ten_floors_is_flagged(monkeypatch: pytest.MonkeyPatch) -> None:
    short = on_script(monkeypatch, lambda count, noise: 9 + noise.gauss(0, 0.01), CAREFUL)
    assert "under 10 timer floors" in short.flags
    long = on_script(monkeypatch, lambda count, noise: 11 + noise.gauss(0, 0.01), CAREFUL)
    assert not any("floors" in flag for flag in long.flags)


def test_a_floor_that_rose_meanwhile_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    found = on_script(monkeypatch, steady, CAREFUL)
    assert (found.timer_empty_us, found.timer_floor_us, found.timer_floor_end_us) == (FLOOR_US / 2, FLOOR_US, FLOOR_US)
    floors, empty = iter([1.0, 10.5]), iter([0.5, 9.75])
    monkeypatch.setattr(measuring, "floor_us", lambda clock, device: next(floors))
    monkeypatch.setattr(measuring, "empty_us", lambda clock: next(empty))
    risen = measured(tiny(), CAREFUL)
    assert (risen.timer_floor_us, risen.timer_floor_end_us) == (1.0, 10.5)
    assert (risen.timer_empty_us, risen.timer_empty_end_us) == (0.5, 9.75)
    assert "under 10 timer floors" in risen.flags


# --- While the device is slowed down --------------------------------------------------------------------------------

WARM = 3 * CAREFUL.min_warmup
"""Repetitions before the first sample of a steady device."""


def slowed(*counts: int) -> tuple[Callable[[int, random.Random], float], Callable[[int], dict[str, str]]]:
    """Return a device that takes 130 us instead of 100 in these repetitions and says why, and what it says."""

    def latency_us(count: int, noise: random.Random) -> float:
        return (130 if count in counts else 100) + noise.gauss(0, 0.5)

    def told(count: int) -> dict[str, str]:
        if count - 1 in counts:
            return {"sm_mhz": "1200", "event_reasons": "idle, hardware thermal slowdown", "temperature_c": "88"}
        return {"sm_mhz": "1980", "event_reasons": "none", "temperature_c": "61", "power_w": str(600 + count)}

    return latency_us, told


def test_what_was_taken_while_heat_slowed_the_device_down_is_dropped_and_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    latency_us, told = slowed(*range(WARM, WARM + 30))
    found = on_script(monkeypatch, latency_us, CAREFUL, told)
    assert (found.dropped, found.step_us.count, len(found.rank_samples_us[0])) == (30, 30, 30)
    assert found.step_us.high < 102
    watts = [600 + WARM + 60, 600 + 2 * WARM + 90]
    assert found.clocks_during == (Pace(2, 1980, 1980, (), 61, 61, *watts),), "of the step and of its one stage"
    assert found.flags == ()


def test_where_nothing_else_was_taken_it_is_kept_and_the_clocks_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    latency_us, told = slowed(*range(100_000))
    found = on_script(monkeypatch, latency_us, CAREFUL, told)
    assert (found.dropped, found.step_us.count, found.stop) == (0, 300, StopReason.CAP)
    assert found.clocks_during == (Pace(20, 1200, 1200, ("hardware thermal slowdown", "idle"), 88, 88),)


def test_a_stage_drops_samples_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    latency_us, told = slowed(*range(2 * WARM + 30, 2 * WARM + 60))
    found = on_script(monkeypatch, latency_us, CAREFUL, told)
    assert (found.dropped, [stage.dropped for stage in found.stages]) == (0, [30])
    assert found.stages[0].device_us.high < 102


def test_a_power_cap_drops_nothing_and_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    found = on_script(monkeypatch, steady, CAREFUL, lambda count: {"event_reasons": "software power cap"})
    assert found.dropped == 0
    assert found.clocks_during == (Pace(2, event_reasons=("software power cap",)),)


# --- With a warm cache ----------------------------------------------------------------------------------------------


def warmed(
    monkeypatch: pytest.MonkeyPatch,
    latency_us: Callable[[int, random.Random], float],
    told: Callable[[int], dict[str, str]] = lambda count: {},
    *,
    batch: str = "4q1s40",
    policy: Policy = CAREFUL,
) -> Measured:
    """Measure on a device that is steady where it is cold, and does as the script says where it is warm."""

    def clock(case: Case, mesh: Mesh, policy: Policy, *_: object) -> Scripted:
        scripted = Scripted(steady) if policy.cold else Scripted(latency_us, told=told)
        scripted.flushed_bytes = policy.cold << 20
        return scripted

    monkeypatch.setattr(measuring, "floor_us", lambda clock, device: FLOOR_US)
    monkeypatch.setattr(measuring, "_open_clock", clock)
    return measured(tiny(batch), policy)


def quick(count: int, noise: random.Random) -> float:
    return 0.6 * steady(count, noise)


@pytest.mark.parametrize(
    ("batch", "cold", "warm_us"), [("4q1s40", True, 60), ("4q1s40", False, None), ("q8s40", True, None)]
)
def test_decodes_that_are_timed_cold_are_timed_warm_too_and_nothing_else_is(
    batch: str, cold: bool, warm_us: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = warmed(monkeypatch, quick, batch=batch, policy=replace(CAREFUL, cold=cold))
    assert found.step_us.median == pytest.approx(100 if cold else 60, rel=0.01)
    assert (found.warm_us.median if found.warm_us else None) == (warm_us and pytest.approx(warm_us, rel=0.01))


def test_of_a_warm_step_its_samples_are_kept_and_why_they_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    found = warmed(monkeypatch, quick)
    assert found.warm is not None
    assert found.warm_us == found.warm.device_us
    assert (found.warm.stop, found.warm.dropped, len(found.warm.samples_us)) == (StopReason.PRECISE, 0, 30)
    assert found.warm.correlation == pytest.approx(lag1_correlation(found.warm.samples_us))
    assert (found.warm.rank_samples_us, found.flags) == ((), ())


@pytest.mark.parametrize(
    ("latency_us", "doubts"),
    [
        (wild, {"stopped at the cap, before the interval was narrow enough"}),
        (waves, {"samples are correlated: the interval of the median does not hold"}),
        (lambda count, noise: 0.09 * steady(count, noise), {"under 10 timer floors"}),
    ],
    ids=["the cap", "correlation", "the floor"],
)
def test_a_warm_step_is_doubted_as_a_cold_one_is(
    latency_us: Callable[[int, random.Random], float],
    doubts: set[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert set(warmed(monkeypatch, latency_us).flags) == {f"with a warm cache, {doubt}" for doubt in doubts}


def test_a_warm_step_drops_samples_of_its_own_and_its_clocks_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    found = warmed(monkeypatch, *slowed(*range(WARM, WARM + 30)))
    assert found.warm is not None
    assert (found.dropped, found.warm.dropped, found.warm.device_us.count) == (0, 30, 30)
    assert [(pace.readings, pace.event_reasons) for pace in found.clocks_during] == [(1, ())]


# --- Warming up -----------------------------------------------------------------------------------------------------


def test_a_slow_start_is_warmed_up_and_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    def warming(count: int, noise: random.Random) -> float:
        return 100 + 900 * 0.9**count + noise.gauss(0, 0.1)

    found = on_script(monkeypatch, warming, CAREFUL)
    assert found.step_us.median < 103
    assert found.warmup > on_script(monkeypatch, steady, CAREFUL).warmup == WARM


@pytest.mark.parametrize(
    ("start", "calls", "bias"), [(0.3, 20, 0.01), (0.3, 50, 0.04), (0.1, 50, 0.04), (1.0, 30, 0.01)]
)
def test_what_falls_slowly_is_still_warming_up(start: float, calls: int, bias: float) -> None:
    """A device that begins slower by ``start`` and is nearer by a factor of e after so many ``calls``."""

    def life(seed: int) -> float:
        def warming(count: int, noise: random.Random) -> float:
            return (1 + start * math.exp(-count / calls)) * math.exp(noise.gauss(0, 0.01))

        return median(_time(lambda: None, Mesh.alone(), Scripted(warming, seed=seed), CAREFUL).slowest_us)

    assert mean(life(seed) for seed in range(100)) - 1 < bias


def test_a_device_that_gets_faster_without_end_is_warmed_up_no_longer_than_twenty_blocks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = on_script(monkeypatch, lambda count, noise: 1e6 * 0.99**count, CAREFUL)
    assert found.warmup == 20 * CAREFUL.min_warmup


# --- Between real ranks ---------------------------------------------------------------------------------------------

LATE_MS = 5.0
BETWEEN_RANKS = Policy(precision=0.5, min_samples=30, max_samples=30, min_warmup=5, max_seconds=10.0)


def measured_twice(mesh: Mesh) -> tuple[Outcome, Outcome]:
    """Measure on real ranks, then once more while the last rank comes late to every rendezvous."""
    case, meet = tiny("4q8s64", dcp=2, exchange="ag_rs"), mesh.align

    def come_late() -> None:
        meet()
        if mesh.rank == mesh.size - 1:
            time.sleep(LATE_MS / 1e3)

    punctual = measure(case, mesh, BETWEEN_RANKS)
    mesh.align = come_late  # type: ignore[method-assign]
    return punctual, measure(case, mesh, BETWEEN_RANKS)


def test_a_rank_that_comes_late_moves_the_skew_and_the_slowest_rank_and_not_the_pure_time() -> None:
    punctual, late = on_ranks(2, measured_twice)[0]
    assert isinstance(punctual, Measured)
    assert isinstance(late, Measured)
    communicating = [(one, other) for one, other in zip(punctual.stages, late.stages, strict=True) if one.communicates]
    assert [one.name for one, _ in communicating] == ["gather", "combine"]

    for before, after in communicating:
        assert undisturbed_ms(before.skew_us) < LATE_MS / 2 < median(after.skew_us) / 1e3 < 2 * LATE_MS
        assert undisturbed_ms(before.samples_us) < LATE_MS / 2 < undisturbed_ms(after.samples_us) < 2 * LATE_MS
        assert max(undisturbed_ms(before.pure_us), undisturbed_ms(after.pure_us)) < LATE_MS / 2
    assert late.step_us.p10 - punctual.step_us.p10 > 1e3 * LATE_MS / 2
    assert undisturbed_ms(punctual.skew_us) < LATE_MS / 2 < median(late.skew_us) / 1e3 < 2 * LATE_MS
    assert late.straggler == 0, "it waits for the other"


UNEVEN = replace(BETWEEN_RANKS, precision=1e-9, max_samples=2 * MAX_SAMPLES)


def measured_unevenly(mesh: Mesh) -> Outcome:
    """Measure on real ranks on paper, the second of which takes 20 us more, cold or warm."""

    def clock(case: Case, mesh: Mesh, policy: Policy, *_: object) -> Scripted:
        base = (100 if policy.cold else 60) + 20 * mesh.rank
        scripted = Scripted(lambda count, noise: base + noise.gauss(0, 0.1), seed=mesh.rank)
        scripted.flushed_bytes = policy.cold << 20
        return scripted

    measuring._open_clock = clock  # type: ignore[assignment]
    return measure(tiny("4q1s64", dcp=2, exchange="ag_rs", path="decode"), mesh, UNEVEN)


def test_every_rank_s_samples_are_kept_of_every_stage_and_of_a_warm_step() -> None:
    found, other = on_ranks(2, measured_unevenly)
    assert found == other
    assert isinstance(found, Measured)
    assert found.warm is not None
    assert {stage.communicates for stage in found.stages} == {True, False}
    for stage, first_us in (*((stage, 100) for stage in found.stages), (found.warm, 60)):
        assert [len(samples) for samples in stage.rank_samples_us] == [MAX_SAMPLES, MAX_SAMPLES]
        for samples, median_us in zip(stage.rank_samples_us, (first_us, first_us + 20), strict=True):
            assert median(samples) == pytest.approx(median_us, abs=0.1)
        assert stage.device_us.median == pytest.approx(first_us + 20, abs=0.1)
        assert stage.samples_us == tuple(map(max, zip(*stage.rank_samples_us, strict=True)))
        assert bool(stage.skew_us) == bool(stage.pure_us) == stage.communicates
        assert stage.device_us.count > MAX_SAMPLES
        assert stage.stop is StopReason.CAP
    assert found.warm.communicates
    assert "with a warm cache, stopped at the cap, before the interval was narrow enough" in found.flags


def undisturbed_ms(samples_us: Sequence[float]) -> float:
    """Return what a tenth of the samples takes at most: whatever else this machine does makes them longer."""
    return sorted(samples_us)[len(samples_us) // 10] / 1e3
