"""FlashInfer's workspaces on a device: what ``workspace_size()`` says, runs in exactly the computed bytes, a rank's memory."""

from __future__ import annotations

import gc
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import flashinfer
import pytest
import torch
from torch import Tensor

from dcp_core import Case, DcpLayout, ModelShape, Settings, Workload
from dcp_core.build import arithmetic_for
from dcp_core.cache import PagedCache, PageTable
from dcp_core.exchange.ag_rs import AllGatherReduceScatter
from dcp_core.exchange_bytes import exchange_bytes
from dcp_core.kernels.base import Masking, PassBatch, PassKind, PassSpec
from dcp_core.kernels.flashinfer import FlashInfer
from dcp_core.kernels.flashinfer_workspace import PAGED_BYTES
from dcp_core.lse import Partial
from dcp_core.memory import KvMemory, RankMemory
from dcp_core.mesh import Mesh
from dcp_core.serving import WRAPPER_BYTES, Limits, Server
from dcp_core.settings import ExchangeName, KernelName, KvLayout, PathName
from dcp_core.workspace import (
    ALIGNMENT,
    Planner,
    WorkspaceNeed,
    cuda_core_grid,
    cuda_core_need,
    fa2_need,
    fa3_need,
    graph_need,
)
from dcp_core.worst_case import worst_eager, worst_graph

# The first test of a kind compiles its kernel.
pytestmark = [pytest.mark.gpu, pytest.mark.timeout(900)]

DEVICE = torch.device("cuda")
DTYPE = torch.bfloat16
TYPES = {"q_data_type": DTYPE, "kv_data_type": DTYPE, "o_data_type": DTYPE}
FLOAT_BYTES = 256 << 20
AG_RS = Settings(path=PathName.SPLIT, exchange=ExchangeName.AG_RS, skip_empty_context=False)


def planner_here(q_heads: int, kv_heads: int, head_dim: int = 128, page_size: int = 16, **options: Any) -> Planner:
    multiprocessors = torch.cuda.get_device_properties(DEVICE).multi_processor_count
    return Planner(q_heads, kv_heads, head_dim, multiprocessors, page_size, flashinfer.__version__, **options)


@dataclass(frozen=True)
class Batch:
    """Lengths with their index tensors, on the host as the core gives them."""

    q_lens: tuple[int, ...]
    kv_lens: tuple[int, ...]
    page_size: int

    @property
    def pages(self) -> int:
        return sum(-(-length // self.page_size) for length in self.kv_lens)

    @property
    def qo_indptr(self) -> Tensor:
        return indptr(self.q_lens)

    @property
    def paged(self) -> tuple[Tensor, Tensor, Tensor]:
        """Where each request's pages begin, the pages, and the tokens of each last page."""
        starts = indptr([-(-length // self.page_size) for length in self.kv_lens])
        last = [(length - 1) % self.page_size + 1 if length else 0 for length in self.kv_lens]
        return starts, torch.arange(self.pages, dtype=torch.int32), torch.tensor(last, dtype=torch.int32)


def indptr(lengths: Sequence[int]) -> Tensor:
    return torch.tensor(list(accumulate(lengths, initial=0)), dtype=torch.int32)


def room(count: int) -> Tensor:
    return torch.zeros(max(1, count), dtype=torch.int32, device=DEVICE)


def workspace(size: int) -> Tensor:
    return torch.zeros(size, dtype=torch.uint8, device=DEVICE)


def prefill_wrapper(planner: Planner, batch: Batch, size: int, backend: str = "fa2") -> Any:
    graph: dict[str, Any] = {}
    if planner.replayable:
        graph = {
            "use_cuda_graph": True,
            "qo_indptr_buf": room(len(batch.q_lens) + 1),
            "paged_kv_indptr_buf": room(len(batch.q_lens) + 1),
            "paged_kv_indices_buf": room(batch.pages),
            "paged_kv_last_page_len_buf": room(len(batch.q_lens)),
        }
    return flashinfer.BatchPrefillWithPagedKVCacheWrapper(workspace(size), "NHD", backend=backend, **graph)


def decode_wrapper(planner: Planner, batch: Batch, size: int, *, tensor_cores: bool = True) -> Any:
    graph: dict[str, Any] = {}
    if planner.replayable:
        graph = {
            "use_cuda_graph": True,
            "paged_kv_indptr_buffer": room(len(batch.kv_lens) + 1),
            "paged_kv_indices_buffer": room(batch.pages),
            "paged_kv_last_page_len_buffer": room(len(batch.kv_lens)),
        }
    return flashinfer.BatchDecodeWithPagedKVCacheWrapper(
        workspace(size), "NHD", use_tensor_cores=tensor_cores, backend="fa2", **graph
    )


def heads_of(planner: Planner) -> tuple[int, int, int, int]:
    return planner.q_heads, planner.kv_heads, planner.head_dim, planner.page_size


def options_of(planner: Planner) -> dict[str, Any]:
    return {"fixed_split_size": planner.fixed_split_pages or None, "disable_split_kv": not planner.split_kv}


def asked(planner: Planner, batch: Batch, *, decode: bool) -> WorkspaceNeed:
    """What FlashInfer itself says the plan takes."""
    if decode:
        wrapper = decode_wrapper(planner, batch, ALIGNMENT)
        return WorkspaceNeed(*wrapper.workspace_size(*batch.paged, *heads_of(planner), **TYPES, **options_of(planner)))
    wrapper = prefill_wrapper(planner, batch, ALIGNMENT)
    uniform = {"uniform_q_len": planner.uniform_new or None}
    return WorkspaceNeed(
        *wrapper.workspace_size(
            batch.qo_indptr, *batch.paged, *heads_of(planner), **TYPES, **options_of(planner), **uniform
        )
    )


def random_plan(chance: random.Random, *, decode: bool, graph: bool) -> tuple[Planner, Batch]:
    kv_heads, group = chance.choice((1, 1, 2, 8)), chance.choice((1, 2, 4, 5, 8, 12, 16, 64))
    requests, longest = chance.choice((1, 2, 3, 8, 64)), 1 if decode else chance.choice((1, 4, 20, 700))
    q_lens = [chance.randint(1, longest) for _ in range(requests)]
    uniform = 0
    if graph and not decode and chance.random() < 0.3:
        uniform = chance.randint(1, 9)
        q_lens = [uniform] * requests
    fixed = chance.choice((0, 0, 4, 64)) if not graph else 0
    keys = chance.choice((1, 100, 2000, 40000))
    planner = planner_here(
        kv_heads * group,
        kv_heads,
        chance.choice((64, 128, 256)),
        chance.choice((16, 64)),
        replayable=graph,
        uniform_new=uniform,
        fixed_split_pages=fixed,
        split_kv=chance.random() > 0.1,
    )
    return planner, Batch(tuple(q_lens), tuple(chance.randint(0, keys) for _ in range(requests)), planner.page_size)


@pytest.mark.parametrize("graph", [False, True], ids=["eager", "graph"])
@pytest.mark.parametrize("decode", [False, True], ids=["prefill", "decode"])
def test_the_closed_form_is_what_flashinfer_says(decode: bool, graph: bool) -> None:
    chance = random.Random(f"{decode} {graph}")
    for _ in range(1000):
        planner, batch = random_plan(chance, decode=decode, graph=graph)
        assert asked(planner, batch, decode=decode) == fa2_need(planner, batch.q_lens, batch.kv_lens), (planner, batch)


def test_the_closed_form_of_a_decode_without_tensor_cores_holds_at_one_grid() -> None:
    planner = planner_here(8, 1)

    def said(planner: Planner, kv_lens: Sequence[int]) -> WorkspaceNeed:
        batch = Batch((1,) * len(kv_lens), tuple(kv_lens), planner.page_size)
        wrapper = decode_wrapper(planner, batch, ALIGNMENT, tensor_cores=False)
        return WorkspaceNeed(*wrapper.workspace_size(*batch.paged, *heads_of(planner), **TYPES))

    # A graph's plan fills the grid, which tells its size.
    grid = said(replace(planner, replayable=True), [100]).float_bytes // (4 * planner.q_heads * (planner.head_dim + 1))
    assert 0 < grid <= cuda_core_grid(planner, kv_itemsize=DTYPE.itemsize)
    assert grid % planner.multiprocessors == 0
    chance = random.Random(0)
    for _ in range(500):
        keys, requests = chance.choice((1, 100, 2000, 40000)), chance.choice((1, 2, 8, 64, 600, 2000))
        kv_lens = [chance.randint(0, keys) for _ in range(requests)]
        one = replace(planner, replayable=chance.random() < 0.5)
        assert said(one, kv_lens) == cuda_core_need(one, kv_lens, grid=grid)


# --- Running at exactly the computed bytes ---------------------------------------------------------------------------------

EAGER = Batch((8, 5, 33), (32768, 40000, 1000), 16)
DECODES = Batch((1,) * 100, tuple(range(7, 30007, 300)), 16)


def inputs(planner: Planner, batch: Batch) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    q = torch.randn(sum(batch.q_lens), planner.q_heads, planner.head_dim, device=DEVICE, dtype=DTYPE)
    shape = (batch.pages, 2, planner.page_size, planner.kv_heads, planner.head_dim)
    return q, torch.randn(shape, device=DEVICE, dtype=DTYPE)


def planned(planner: Planner, batch: Batch, need: WorkspaceNeed, *, decode: bool, backend: str = "fa2") -> Any:
    """A wrapper with workspaces of just these bytes, planned."""
    make = decode_wrapper(planner, batch, ALIGNMENT) if decode else prefill_wrapper(planner, batch, ALIGNMENT, backend)
    make.reset_workspace_buffer(workspace(need.float_bytes), workspace(need.int_bytes))
    if decode:
        make.plan(*batch.paged, *heads_of(planner), **TYPES)
    else:
        make.plan(batch.qo_indptr, *batch.paged, *heads_of(planner), **TYPES)
    return make


@pytest.mark.parametrize("graph", [False, True], ids=["eager", "graph"])
@pytest.mark.parametrize(("batch", "decode"), [(EAGER, False), (DECODES, True)], ids=["prefill", "decode"])
def test_a_plan_runs_in_exactly_the_computed_bytes_and_in_no_fewer(batch: Batch, decode: bool, graph: bool) -> None:
    planner = planner_here(16, 1, replayable=graph)
    need = fa2_need(planner, batch.q_lens, batch.kv_lens)
    assert need.float_bytes > 0
    q, pages = inputs(planner, batch)
    exact = planned(planner, batch, need, decode=decode)
    out, lse = exact.run(q, pages, return_lse=True)
    if graph:
        captured = torch.cuda.CUDAGraph()
        with torch.cuda.graph(captured):
            exact.run(q, pages, out=out, lse=lse, return_lse=True)
        out.zero_()
        captured.replay()
    roomy = planned(planner, batch, WorkspaceNeed(FLOAT_BYTES, WRAPPER_BYTES), decode=decode)
    expected, expected_lse = roomy.run(q, pages, return_lse=True)
    assert torch.equal(out, expected)
    assert torch.equal(lse, expected_lse)
    for less in (
        replace(need, float_bytes=need.float_bytes - ALIGNMENT),
        replace(need, int_bytes=(need.int_bytes - 1) // ALIGNMENT * ALIGNMENT),
    ):
        with pytest.raises(RuntimeError, match="Buffer overflow when allocating memory"):
            planned(planner, batch, less, decode=decode)


def test_the_worst_batch_of_a_scheduler_plans_in_what_is_told_and_in_no_less() -> None:
    shape, layout = ModelShape.preset("qwen3-235b-a22b"), DcpLayout(8, 2)
    multiprocessors = planner_here(16, 1).multiprocessors
    limits = Limits().captured_as_vllm_does()
    server = Server(shape, layout, limits, multiprocessors, version=flashinfer.__version__)
    worst = worst_eager(server)
    assert worst.batch is not None
    context = tuple(layout.local_len(request.context, 0) for request in worst.batch.requests)
    batch = Batch(worst.batch.new_lens, context, server.page_size)
    need = replace(worst.need, int_bytes=WRAPPER_BYTES)
    planned(server.planner(), batch, need, decode=False)
    with pytest.raises(RuntimeError, match="Buffer overflow when allocating memory for batch_prefill_tmp_s"):
        planned(server.planner(), batch, replace(need, float_bytes=need.float_bytes - ALIGNMENT), decode=False)
    graph = worst_graph(server)
    assert graph is not None
    decodes, planner = Batch((1,) * 512, (1000,) * 512, server.page_size), replace(server.planner(), replayable=True)
    assert graph.need == graph_need(planner, rows=512, requests=512)
    planned(planner, decodes, graph.need, decode=True)
    with pytest.raises(RuntimeError, match="Buffer overflow when allocating memory for batch_prefill_tmp_s"):
        planned(planner, decodes, replace(graph.need, float_bytes=graph.need.float_bytes - ALIGNMENT), decode=True)


def test_fa3_plans_in_the_computed_int_bytes_and_in_no_fewer() -> None:
    if torch.cuda.get_device_capability(DEVICE)[0] != 9:
        pytest.fail("fa3 needs a Hopper device", pytrace=False)
    planner, q_pages = planner_here(16, 1), inputs(planner_here(16, 1), EAGER)
    need = fa3_need(planner, EAGER.q_lens, EAGER.kv_lens)
    exact = replace(need, float_bytes=ALIGNMENT)
    planned(planner, EAGER, exact, decode=False, backend="fa3").run(*q_pages)
    less = replace(exact, int_bytes=(need.int_bytes - 1) // ALIGNMENT * ALIGNMENT)
    with pytest.raises(RuntimeError, match="Buffer overflow when allocating memory for batch_prefill_sm90"):
        planned(planner, EAGER, less, decode=False, backend="fa3")


def test_chunks_of_a_fixed_size_get_more_scratch_than_passes_share() -> None:
    spec = PassSpec(PassKind.PAGED, Masking.NONE, 16, 1, 128, DTYPE, DTYPE, 16, KvLayout.NHD)
    lengths = Batch((64,), (32768,), 16)
    batch = PassBatch(lengths.q_lens, lengths.kv_lens, PageTable.over(lengths.kv_lens, 16))
    q, pages = inputs(planner_here(16, 1), lengths)
    results = []
    for fixed in (None, 1):
        opened = FlashInfer(KernelName.FA2).open(replace(spec, fixed_split_size=fixed), DEVICE)
        opened.plan(batch)
        got = Partial.empty(*q.shape, dtype=DTYPE, device=DEVICE)
        results.append(opened.run(q, pages, got).natural())
        needed = fa2_need(planner_here(16, 1, fixed_split_pages=fixed or 0), lengths.q_lens, lengths.kv_lens)
        assert (needed.float_bytes > PAGED_BYTES) is (fixed is not None)
        assert opened._workspace.buffer.numel() >= needed.float_bytes
    torch.testing.assert_close(results[0].out, results[1].out, rtol=0.02, atol=0.02)
    torch.testing.assert_close(results[0].lse, results[1].lse, rtol=1e-3, atol=1e-3)


# --- Memory ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("tp", "dcp"), [(4, 1), (8, 2), (16, 4)])
def test_the_memory_of_a_rank_is_what_is_allocated(tp: int, dcp: int) -> None:
    shape, layout, captured = ModelShape(64, 4, 128, 4), DcpLayout(tp, dcp), (1, 2, 4, 8)
    server = Server(shape, layout, Limits(2048, 64, 32768, captured), planner_here(16, 1).multiprocessors)
    kv, most = KvMemory(shape, layout), server.limits.max_batched_tokens
    told = exchange_bytes(Case(shape, layout, Workload.parse(f"q{most}"), AG_RS)) if dcp > 1 else 0
    rank = RankMemory(kv, 1 << 30, server.float_workspace(), server.wrappers * WRAPPER_BYTES, told)
    pages = rank.tokens // (kv.page_size * layout.dcp)
    gc.collect()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated(DEVICE)
    buffer = workspace(rank.float_workspace)
    wrappers = [
        flashinfer.BatchPrefillWithPagedKVCacheWrapper(buffer, "NHD"),
        flashinfer.BatchPrefillWithRaggedKVCacheWrapper(buffer, "NHD"),
        flashinfer.BatchDecodeWithPagedKVCacheWrapper(buffer, "NHD", use_tensor_cores=True),
        *(
            flashinfer.BatchDecodeWithPagedKVCacheWrapper(
                buffer,
                "NHD",
                use_cuda_graph=True,
                use_tensor_cores=True,
                paged_kv_indptr_buffer=room(size + 1),
                paged_kv_indices_buffer=room(size),
                paged_kv_last_page_len_buffer=room(size),
            )
            for size in captured
        ),
    ]
    beside = torch.cuda.memory_allocated(DEVICE) - before
    exchange = buffers_of_ag_rs(layout, shape, most) if dcp > 1 else None
    exchanged = torch.cuda.memory_allocated(DEVICE) - before - beside
    caches = [
        PagedCache.allocate(pages, page_size=kv.page_size, kv_heads=1, head_dim=128, dtype=DTYPE, device=DEVICE)
        for _ in range(shape.layers)
    ]
    taken = torch.cuda.memory_allocated(DEVICE) - before
    assert len(wrappers) == server.wrappers
    assert beside == pytest.approx(rank.beside - rank.exchange, rel=0.01)
    assert (exchange is not None) is (dcp > 1)
    assert exchanged == pytest.approx(rank.exchange, rel=0.01)
    assert sum(cache.bytes for cache in caches) == pages * kv.page_bytes
    assert taken == pytest.approx(rank.beside + pages * kv.page_bytes, rel=0.01)
    assert taken <= rank.budget * 1.01


def buffers_of_ag_rs(layout: DcpLayout, shape: ModelShape, tokens: int) -> AllGatherReduceScatter:
    """Return the exchange of one rank with room for so many rows; nothing is exchanged, so no other rank is there."""
    mesh = Mesh(0, layout.dcp, DEVICE)
    exchange = AllGatherReduceScatter(mesh, layout.heads(shape), shape.head_dim, DTYPE, arithmetic_for(DEVICE))
    exchange.reserve(tokens)
    return exchange
