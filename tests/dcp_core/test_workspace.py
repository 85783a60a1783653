"""FlashInfer's workspaces in closed form: against its planner written out, and against bytes that others published."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dcp_core.workspace import (
    Planner,
    WorkspaceError,
    WorkspaceNeed,
    cuda_core_grid,
    cuda_core_need,
    fa2_need,
    fa3_need,
    graph_need,
    release_of,
)
from tests.dcp_core.flashinfer_planner import Overflow, plan

QWEN = Planner(16, 1, 128, 132)
QWEN35 = Planner(32, 2, 256, 132)
"""Qwen3.5-122B and -397B at tp 1."""
BEFORE = "0.6.14"


def random_plan(chance: random.Random, version: str) -> tuple[Planner, list[int], list[int]]:
    """Odd lengths, requests without keys or queries, every option that the version has."""
    kv_heads, group = chance.choice((1, 1, 2, 4, 8)), chance.choice((1, 2, 3, 5, 6, 7, 8, 12, 16, 24, 48))
    requests, longest = chance.choice((1, 1, 2, 3, 8, 40)), chance.choice((1, 1, 4, 20, 700))
    q_lens = [chance.randint(chance.random() > 0.05, longest) for _ in range(requests)]
    keys = chance.choice((1, 100, 2000, 40000))
    graph, uniform, fixed = chance.random() < 0.4, 0, 0
    if graph and chance.random() < 0.3 and release_of(version) >= (0, 6, 15):
        uniform = chance.randint(1, 9)
        q_lens = [uniform] * requests
    if chance.random() < 0.15:
        fixed = chance.choice((1, 4, 64, 500))
    planner = Planner(
        kv_heads * group,
        kv_heads,
        chance.choice((64, 96, 128, 192, 256)),
        chance.choice((7, 78, 108, 132, 142, 148)),
        chance.choice((1, 16, 64, 256)),
        version,
        graph,
        uniform,
        fixed,
        chance.random() > 0.1,
    )
    return planner, q_lens, [chance.randint(0, keys) for _ in range(requests)]


@pytest.mark.parametrize("version", ["0.7.2", "0.7.1", "0.7.0", "0.5.3"])
def test_the_closed_form_is_what_the_planner_allocates(version: str) -> None:
    chance = random.Random(version)
    refused = split = 0
    for _ in range(1500):
        planner, q_lens, kv_lens = random_plan(chance, version)
        max_rows = sum(q_lens) + (0 if planner.uniform_new else chance.choice((0, 0, 100)))
        try:
            expected = plan(planner, q_lens, kv_lens, max_rows)
        except Overflow:
            refused += 1
            with pytest.raises(WorkspaceError, match="FlashInfer refuses it; use longer chunks"):
                fa2_need(planner, q_lens, kv_lens, room_rows=max_rows)
            continue
        assert fa2_need(planner, q_lens, kv_lens, room_rows=max_rows) == WorkspaceNeed(*expected), (
            planner,
            q_lens,
            kv_lens,
        )
        split += expected[0] > 0
        if planner.replayable and planner.split_kv and not planner.fixed_split_pages:
            assert graph_need(planner, rows=max_rows, requests=len(q_lens)) == WorkspaceNeed(*expected)
    assert split > 300
    assert refused > 0


# --- Bytes that were published ---------------------------------------------------------------------------------------------


def partial_rows_bytes(need: WorkspaceNeed, head_dim: int) -> int:
    """Of the two float allocations, that of the partial results: what FlashInfer names when it does not fit."""
    return need.float_bytes * head_dim // (head_dim + 1)


def test_the_capture_of_512_decodes_that_failed_in_vllm() -> None:
    # "batch_prefill_tmp_v with size 536346624", Qwen3.5-397B on a B300 and Qwen3.5-122B, from --max-num-seqs 512 on:
    # vllm-project/vllm issues 40023 and 40381. With more requests than a wave, the device does not matter.
    for multiprocessors in (132, 148, 160):
        planner = replace(QWEN35, multiprocessors=multiprocessors, version=BEFORE)
        need = graph_need(planner, rows=512, requests=512)
        assert partial_rows_bytes(need, 256) == 536_346_624
        assert need.float_bytes > 413_138_944  # "only 413138944 bytes available"


def test_the_prefill_that_failed_on_a_b200() -> None:
    # "batch_prefill_tmp_v with size 155189248": flashinfer-ai/flashinfer issue 1353, days before 0.2.9, pages of 32.
    need = fa2_need(Planner(64, 8, 128, 148, 32, "0.2.9"), (1, 5, 129), (1328, 18, 463))
    assert partial_rows_bytes(need, 128) == 155_189_248


def test_a_promise_of_uniform_requests_shrinks_the_tile() -> None:
    # "at batch 8 / q_len_per_req=3 / 64:8 heads the plan demands 197 MB", and below 128 MB with the promise, on an SM120
    # card of 188 multiprocessors: flashinfer-ai/flashinfer pull request 3871.
    planner = Planner(64, 8, 128, 188, version="0.6.15", replayable=True)
    lens = ((3,) * 8, (1000,) * 8)
    assert round(partial_rows_bytes(fa2_need(planner, *lens), 128), -6) == 197_000_000
    assert fa2_need(replace(planner, uniform_new=3), *lens).float_bytes < 128 << 20


@pytest.mark.parametrize(
    ("q_heads", "kv_heads", "requests", "rows", "before_mib", "after_mib"),
    [
        (32, 2, 512, 512, 514, 32),
        (32, 4, 128, 128 * 577, 18.4 * 1024, 2.3 * 1024),
        (32, 1, 128, 128 * 577, 72.7 * 1024, 2.3 * 1024),
    ],
)
def test_rows_are_reserved_once_per_group_since_0_7_1(
    q_heads: int, kv_heads: int, requests: int, rows: int, before_mib: float, after_mib: float
) -> None:
    # The table of flashinfer-ai/flashinfer pull request 5177, head_dim 256, in graphs.
    planner = Planner(q_heads, kv_heads, 256, 142)
    old, new = (
        graph_need(replace(planner, version=version), rows=rows, requests=requests) for version in ("0.7.0", "0.7.1")
    )
    assert old.float_bytes / (1 << 20) == pytest.approx(before_mib, rel=0.02)
    assert new.float_bytes / (1 << 20) == pytest.approx(after_mib, rel=0.02)


def test_a_measured_plan() -> None:
    # FlashInfer 0.7.2 on an H200: 8 new tokens over 32k, 16 heads, asked of workspace_size().
    assert fa2_need(QWEN, (8,), (32768,)).float_bytes == 16_908_288


# --- The other planners ----------------------------------------------------------------------------------------------------


def test_fa3_splits_nothing_and_lists_its_work() -> None:
    # 1087 tiles of 16 heads; the lists of all but the last are padded to 16 bytes, as is where each of 132 begins.
    need = fa3_need(replace(QWEN, replayable=True), [8] * 1024, [100] * 1024)
    assert need == WorkspaceNeed(0, 7 * 4 * 1087 * 16 + 544)
    assert fa3_need(QWEN, (129, 1), (500, 500)).int_bytes == 7 * 4 * 3 * 16 + 544
    assert fa3_need(replace(QWEN, head_dim=64), (192,), (500,)).int_bytes == 7 * 4 * 16 + 544
    long = fa3_need(QWEN, (1 << 20,), (1 << 20,))
    assert long.int_bytes == 7 * 4 * 8192 + 544


def test_a_decode_without_tensor_cores_fills_the_grid_in_a_graph() -> None:
    graph = replace(QWEN, replayable=True)
    assert cuda_core_need(graph, [100] * 4, grid=528).float_bytes == 4 * 16 * 528 * 129
    assert cuda_core_need(graph, [100] * 528, grid=528) == WorkspaceNeed(0, 3 * 4 * 528 + 8)
    assert cuda_core_need(QWEN, [128] * 4, grid=528).float_bytes == 0
    assert cuda_core_need(QWEN, [256], grid=528).float_bytes == 4 * 16 * 2 * 129


@given(
    st.lists(st.integers(0, 40000), min_size=1, max_size=20),
    st.integers(1, 600),
    st.integers(0, 600),
    st.sampled_from([1, 2, 8]),
    st.booleans(),
)
def test_a_larger_grid_never_needs_less(kv_lens: list[int], grid: int, more: int, kv_heads: int, graph: bool) -> None:
    planner = Planner(8 * kv_heads, kv_heads, 128, 132, replayable=graph)
    small, large = (cuda_core_need(planner, kv_lens, grid=size) for size in (grid, grid + more))
    assert small.float_bytes <= large.float_bytes
    assert small.int_bytes <= large.int_bytes


def test_the_grid_is_bounded_by_the_threads_of_a_multiprocessor() -> None:
    assert cuda_core_grid(QWEN, kv_itemsize=2) == 132 * 8
    assert cuda_core_grid(replace(QWEN, q_heads=1), kv_itemsize=2) == 132 * 16
    assert cuda_core_grid(replace(QWEN, head_dim=256, q_heads=8), kv_itemsize=1) == 132 * 16


# --- What is refused -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["", "0.2.8", "0.8.0", "1.0.0", "latest", "0.7.2/../x", "٣.7.2", "0.7.2 "])
def test_a_version_that_was_not_read_is_refused(version: str) -> None:
    with pytest.raises(WorkspaceError, match=r"known for FlashInfer 0\.2\.9 to 0\.7"):
        replace(QWEN, version=version)


def test_versions_are_read_as_they_are_written() -> None:
    written = ("0.7.2", "0.7.2.post1", "0.6.18rc7", "0.7", "0.7.2+cu130")
    assert [release_of(text) for text in written] == [(0, 7, 2), (0, 7, 2), (0, 6, 18), (0, 7, 0), (0, 7, 2)]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"head_dim": 512}, "up to 256 elements"),
        ({"kv_heads": 3}, "cannot share 3 KV heads"),
        ({"multiprocessors": 0}, "multiprocessors of a plan is a positive"),
        ({"version": "0.3.1", "fixed_split_pages": 4}, r"0 before FlashInfer 0\.4\.0"),
        ({"version": "0.6.14", "uniform_new": 2}, r"0 before FlashInfer 0\.6\.15"),
        ({"fixed_split_pages": -1}, "fixed_split_pages is 0 or more"),
    ],
)
def test_a_plan_that_cannot_be_is_refused(change: dict[str, int], words: str) -> None:
    with pytest.raises(WorkspaceError, match=words):
        replace(QWEN, **change)


def test_a_batch_that_is_none_is_refused() -> None:
    for lens in (((), ()), ((1,), (1, 2)), ((-1,), (1,)), ((1,), (-1,))):
        for need in (fa2_need, fa3_need):
            with pytest.raises(WorkspaceError, match="one request or more"):
                need(QWEN, *lens)
    with pytest.raises(WorkspaceError, match="one request or more"):
        graph_need(QWEN, rows=1, requests=0)
    with pytest.raises(WorkspaceError, match="2 new tokens each was promised"):
        fa2_need(replace(QWEN, replayable=True, uniform_new=2), (2, 3), (9, 9))
