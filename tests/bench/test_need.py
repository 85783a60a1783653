"""What measuring a case takes: its parts, the constants it repeats, and what a stand really binds."""

from __future__ import annotations

from itertools import chain
from statistics import median

import torch

from bench import clock, need, stand
from bench.estimate import local_ranks
from bench.need import INT_WORKSPACE_BYTES, case_bytes, case_parts
from bench.record import Measured
from bench.shipped import reference_folder
from bench.store import read_run
from dcp_core import Case, DcpLayout, ModelShape, Settings, Workload
from dcp_core.mesh import Mesh
from dcp_core.shapes import DType
from tests.pages import promise

QWEN = ModelShape.preset("qwen3-235b-a22b")


def case(batch: str, *, tp: int = 8, dcp: int = 2, **settings: object) -> Case:
    defaults = {"path": "split", "kernel": "fa2", "exchange": "loopback" if dcp > 1 else "alone"}
    return Case(QWEN, DcpLayout(tp, dcp), Workload.parse(batch), Settings.from_json(defaults | settings))


def test_a_bool_mask_takes_a_byte_per_query_and_local_key() -> None:
    whole = case("q32k", path="mask", mask_form="bool")
    assert dict(case_parts(whole, 1))["masks"] == (512 << 20) + (64 << 20)
    assert dict(case_parts(case("q32k", path="mask", mask_form="packed"), 1))["masks"] == 64 << 20
    assert dict(case_parts(case("q32k", path="mask", mask_form="computed"), 1))["masks"] == 0


def test_a_plan_for_cuda_graphs_takes_room_for_every_row() -> None:
    def workspaces(**settings: object) -> int:
        return dict(case_parts(case("16q8ks32k", **settings), 1))["FlashInfer's workspaces"]

    assert workspaces(path="fold") == (394 + 16) << 20
    assert workspaces(path="split") == (394 + 64 + 32) << 20
    rows = 16 * 8192 + 16 * 128 // 16 + 1
    assert workspaces(path="mask", kernel="fa2", mask_form="computed", replayable=True) == 4 * 16 * 129 * rows + (
        16 << 20
    )


def test_what_is_fetched_is_kept_by_the_exchange_and_takes_five_passes() -> None:
    without, fetched = (
        dict(case_parts(case("q8ks32k", exchange="direct", overlap=overlap), 1)) for overlap in (False, True)
    )
    assert without["partials of gathered heads"] > without["the pass over new tokens"] > 0
    assert fetched["partials of gathered heads"] == fetched["the pass over new tokens"] == 0
    assert fetched["the exchange's buffers"] > without["the exchange's buffers"]
    assert fetched["FlashInfer's workspaces"] - without["FlashInfer's workspaces"] == 3 * INT_WORKSPACE_BYTES
    small, gathered = (
        dict(case_parts(case("q1ks32k", exchange="direct", overlap=overlap), 1)) for overlap in (True, False)
    )
    assert small["partials of gathered heads"] == gathered["partials of gathered heads"]


def test_simulated_ranks_take_the_memory_of_all_of_them() -> None:
    one = case("16q1s32k")
    whole, shared = (dict(case_parts(one, ranks)) for ranks in (2, 1))
    assert whole["KV caches"] == 2 * shared["KV caches"]
    assert whole["keys and values of whole sequences"] == shared["keys and values of whole sequences"]


def test_every_simulated_rank_holds_scores_of_the_reference_kernel_at_once() -> None:
    scores = "the reference kernel's scores"
    split, fold = (case("q512s4k", kernel="reference", path=path) for path in ("split", "fold"))
    assert dict(case_parts(split, 2))[scores] == 2 * dict(case_parts(split, 1))[scores]
    # 16 heads over 512 rows of 2048 keys fit into one chunk, folded or not: as many scores, and half the rows to mask.
    assert dict(case_parts(split, 1))[scores] - dict(case_parts(fold, 1))[scores] == 256 * 2048


def test_what_is_predicted_without_torch_is_what_torch_then_does() -> None:
    from dcp_core import memory, oracle, workspace
    from dcp_core.kernels import flashinfer_workspace, reference

    told = (need.ORACLE_SCORES, need.ORACLE_ROWS, need.ORACLE_REQUESTS)
    assert told == (oracle.FULL_SCORES, oracle.SAMPLED_ROWS, oracle.SAMPLED_REQUESTS)
    assert need.REFERENCE_SCORES == reference.SCORE_ELEMENTS
    assert memory.PAGED_WORKSPACE_BYTES == flashinfer_workspace.PAGED_BYTES
    assert memory.RAGGED_WORKSPACE_BYTES == flashinfer_workspace.RAGGED_BYTES
    assert workspace.query_tile(1 << 20, 128) == need.QUERY_TILE
    assert need.SPARE_PAGES == stand.SPARE_PAGES
    h200_l2_bytes = 60 << 20
    assert clock.FLUSH_FACTOR * h200_l2_bytes <= need.FLUSH_BYTES


def test_the_parts_of_a_case_are_named_and_add_up() -> None:
    for path in ("split", "mask", "fold"):
        one = case("2q1s32k_q512s4k", path=path)
        parts = list(case_parts(one, 2))
        assert case_bytes(one, 2) == sum(size for _, size in parts)
        assert all(name and size >= 0 for name, size in parts)
    assert "FlashInfer's workspaces" not in dict(case_parts(case("q8", kernel="reference"), 1))


def test_what_cases_of_the_reference_took_is_what_is_predicted() -> None:
    """Within a factor of 1.5, which a dry run promises; that of torch's allocator on the fullest rank's GPU."""
    runs = (read_run(path)[0] for path in (reference_folder() / "h200").glob("*.jsonl"))
    ratios = [
        case_bytes(trial.case, local_ranks(trial.case)) / trial.outcome.peak_bytes
        for trial in chain.from_iterable(runs)
        if isinstance(trial.outcome, Measured) and trial.outcome.peak_bytes
    ]
    assert len(ratios) > 800
    assert min(ratios) > 1 / 1.5
    assert max(ratios) < 1.5
    told = f"from {min(ratios):.2f} to {max(ratios):.2f} times what it took, {median(ratios):.2f} in the median"
    assert f"{len(ratios)} of {len(ratios)} cases: {told}" in promise("The dry run says how much memory")


def test_the_prediction_covers_every_tensor_that_measuring_binds() -> None:
    tiny = ModelShape(8, 2, 64, 2, dtype=DType.FLOAT32)
    settings = Settings.from_json({"path": "split", "kernel": "reference", "exchange": "loopback"})
    small = Case(tiny, DcpLayout(4, 2), Workload.parse("3q40s700"), settings)
    laid_out = stand.Stand(small, Mesh.simulated(2, torch.device("cpu")), seed=0)
    inputs = (*laid_out.sequences.queries, *laid_out.sequences.keys, *laid_out.sequences.values)
    caches = sum(seat.step.cache.bytes for seat in laid_out.seats)
    steps = [tensor for seat in laid_out.seats for tensor in (seat.step.k_new, seat.step.v_new, seat.step.out)]
    bound = caches + sum(tensor.numel() * tensor.element_size() for tensor in (*inputs, *steps))
    working = {
        "the oracle",
        "partials of gathered heads",
        "the exchange's buffers",
        "what simulated ranks stack",
        "the pass over new tokens",
        "the reference kernel's scores",
    }
    predicted = sum(size for name, size in case_parts(small, 2) if name not in working)
    assert bound <= predicted <= 1.1 * bound
