"""The space: every step that can be run is one candidate, none twice, and the engine's default is among them."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest

import bench.tune.space
from bench.profile.entry import default_settings
from bench.record import Environment
from bench.tune.space import _VALUES, CUDA_CORE_GROUPS, Available, batches_of, everything, least_us, space
from dcp_core import Case, DcpLayout, ModelShape, Settings, Workload
from dcp_core.kernels import flashinfer_refusals
from dcp_core.settings import ExchangeName, KernelName, PathName, canonical, is_legal
from tests.bench.made_up import H200, QWEN

HOPPER = Environment(H200.hard, {"compute_capability": "9.0"})
EVERYTHING = Available(
    (KernelName.FA2, KernelName.FA3, KernelName.CUDA_CORE, KernelName.PERSISTENT),
    (ExchangeName.AG_RS, ExchangeName.A2A, ExchangeName.DIRECT),
)
BATCHES = ("8q1s32k", "8q4s32k", "q2k", "8q1s2k_q512s1k")


def case(batch: str, layout: DcpLayout, shape: ModelShape = QWEN, **settings: object) -> Case:
    workload = Workload.parse(batch)
    chosen = replace(default_settings(layout, workload), **settings)
    return Case(shape, layout, workload, canonical(chosen, layout, workload))


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("dcp", [1, 2])
def test_candidates_are_legal_steps_of_their_own_and_the_default_is_one(batch: str, dcp: int) -> None:
    first = case(batch, DcpLayout(8, dcp))
    found = space(first, EVERYTHING)
    assert len(set(found)) == len(found)
    for settings in found:
        assert settings == canonical(settings, first.layout, first.workload)
        assert is_legal(settings, first.layout, first.workload)
    assert default_settings(first.layout, first.workload, kernel=KernelName.FA3) in found


def test_every_setting_that_changes_a_step_is_varied() -> None:
    """A new setting needs a line in the space, or a reason to be left out here."""
    plan_only = {"index_device"}
    assert {setting.name for setting in fields(Settings)} - plan_only == {"path", *_VALUES}
    mixed = space(case("8q1s2k_4q8s1k_q512s1k", DcpLayout(8, 2)), EVERYTHING)
    for setting in fields(Settings):
        values = {getattr(settings, setting.name) for settings in mixed}
        assert len(values) > 1 or setting.name in {*plan_only, "skip_empty_context"}, setting.name
    empty = space(case("q2k", DcpLayout(8, 2)), EVERYTHING)
    assert {settings.skip_empty_context for settings in empty} == {True, False}


def test_only_what_runs_here_is_a_candidate() -> None:
    found = space(case("8q1s32k", DcpLayout(8, 2)), Available((KernelName.FA2,), (ExchangeName.A2A,)))
    assert {settings.kernel for settings in found} == {KernelName.FA2}
    assert {settings.exchange for settings in found} == {ExchangeName.A2A}


def test_a_simulated_group_exchanges_nothing_and_dcp_1_is_the_baseline() -> None:
    simulated = space(case("8q1s32k", DcpLayout(8, 2), exchange="loopback"), EVERYTHING)
    assert {settings.exchange for settings in simulated} == {ExchangeName.LOOPBACK}
    alone = space(case("8q1s32k", DcpLayout(8)), EVERYTHING)
    assert {(settings.path, settings.exchange) for settings in alone} == {(PathName.TP, ExchangeName.ALONE)}


def test_the_cuda_core_kernel_needs_its_head_group_after_the_gather() -> None:
    assert CUDA_CORE_GROUPS == flashinfer_refusals.CUDA_CORE_GROUPS
    wide = ModelShape(160, 4, 128, layers=1)  # 20 heads a rank, 40 after the gather
    kernels = {settings.kernel for settings in space(case("8q1s32k", DcpLayout(8, 2), wide), EVERYTHING)}
    assert KernelName.CUDA_CORE not in kernels
    assert KernelName.CUDA_CORE in {settings.kernel for settings in space(case("8q1s32k", DcpLayout(8, 2)), EVERYTHING)}


def test_an_interleave_leaves_pages_that_it_divides_and_no_fold() -> None:
    found = space(case("q2ks32k", DcpLayout(8, 2, 32)), EVERYTHING)
    assert {settings.page_size for settings in found} == {32, 64}
    assert PathName.FOLD not in {settings.path for settings in found}


def test_workers_say_what_runs() -> None:
    probe = {
        "kernels": {"reference": "", "fa2": "", "fa3": "needs Hopper", "auto": "", "cuda_core": ""},
        "exchanges": {"alone": "", "loopback": "", "ag_rs": "", "a2a": "", "direct": "needs NVLink"},
    }
    found = Available.probed(probe)
    assert set(found.kernels) == {KernelName.FA2, KernelName.CUDA_CORE}
    assert set(found.exchanges) == {ExchangeName.AG_RS, ExchangeName.A2A}
    cpu = Available.probed({"kernels": {"reference": "", "fa2": "needs a GPU"}, "exchanges": {}})
    assert cpu == Available((KernelName.REFERENCE,), ())


def test_without_a_worker_the_fingerprint_tells() -> None:
    assert KernelName.FA3 in Available.assumed(HOPPER, 2).kernels
    ampere = Available.assumed(Environment({}, {"compute_capability": "8.0"}), 1)
    assert (KernelName.FA3 in ampere.kernels, ampere.exchanges) == (False, ())
    assert Available.assumed(Environment({}), 2) == Available(
        (KernelName.REFERENCE,), (ExchangeName.AG_RS, ExchangeName.A2A)
    )


def test_cases_become_batches_layout_by_layout_with_the_default_added() -> None:
    listed = [
        case("8q1s32k", DcpLayout(8, 2), kernel="fa2", exchange="a2a"),
        case("q2ks32k", DcpLayout(8), kernel="fa2"),
        case("8q1s32k", DcpLayout(8), kernel="fa3"),
        case("8q1s32k", DcpLayout(8, 2), kernel="fa3", exchange="a2a"),
    ]
    batches = batches_of(listed, HOPPER, cold=True)
    assert [(batch.candidates[0].layout.dcp, len(batch.candidates)) for batch in batches] == [(1, 2), (1, 2), (2, 3)]
    for batch in batches:
        assert batch.default is not None
        assert batch.default == batch.candidates[0]
    decode = batches[-1].default
    assert decode is not None
    assert decode.settings == default_settings(decode.layout, decode.workload)


def test_a_default_that_is_listed_under_its_other_name_is_not_added() -> None:
    listed = [case("q2ks32k", DcpLayout(8, 2)), case("q2ks32k", DcpLayout(8, 2), kernel="fa2")]
    (batch,) = batches_of(listed, HOPPER, cold=True)
    assert (batch.default, len(batch.candidates)) == (listed[0], 2)


def test_measured_and_simulated_groups_are_searched_apart() -> None:
    listed = [case("8q1s32k", DcpLayout(8, 2), exchange=name) for name in ("ag_rs", "loopback")]
    batches = batches_of(listed, HOPPER, cold=True)
    assert len(batches) == 2
    assert {batch.default and batch.default.settings.exchange for batch in batches} == {"ag_rs", "loopback"}


def test_the_whole_space_of_a_sweep_is_that_of_its_batches() -> None:
    listed = [case("8q1s32k", DcpLayout(8)), case("8q1s32k", DcpLayout(8), kernel="fa2")]
    assert {one.settings for one in everything(listed, EVERYTHING)} == set(space(listed[0], EVERYTHING))


def test_the_space_of_a_batch_is_written_out_once_however_many_cases_of_it_are_listed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[Case] = []
    monkeypatch.setattr(bench.tune.space, "space", lambda case, available: asked.append(case) or (case.settings,))
    listed = [case("8q1s1k", DcpLayout(8, 2), kernel=name) for name in ("fa2", "fa3")]
    everything([*listed, case("8q1s2k", DcpLayout(8, 2))], EVERYTHING)
    assert [str(one.workload) for one in asked] == ["8q1s1k", "8q1s2k"]


def test_a_bound_holds_for_what_the_best_kernels_took() -> None:
    """facts measured on an H200: 2048 new over 30720, dcp 1, fa3: 503 µs; 16 × 128k decodes at dcp 1: 254 µs."""
    prefill, decode = case("q2ks32k", DcpLayout(8)), case("16q1s128k", DcpLayout(8))
    assert 100 < least_us(prefill, "NVIDIA H200", cold=True) < 503
    assert 200 < least_us(decode, "NVIDIA H200", cold=True) < 254
    assert least_us(decode, "NVIDIA H200", cold=False) < 20, "warm, keys may come from the cache"
    assert least_us(decode, "A CPU", cold=True) == 0


def test_bounds_hold_for_all_that_was_measured() -> None:
    from bench.record import Measured
    from bench.shipped import reference_folder
    from bench.store import Store

    trials, _ = Store.read(reference_folder() / "h200")
    measured = [trial for trial in trials if isinstance(trial.outcome, Measured)]
    assert len(measured) > 500
    for trial in measured:
        bound = least_us(trial.case, "NVIDIA H200", cold=trial.policy.cold)
        assert isinstance(trial.outcome, Measured)
        assert bound < trial.outcome.step_us.median, trial.case
