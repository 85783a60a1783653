"""FlashInfer's kernels against float64, on inputs whose every unused byte is NaN."""

from __future__ import annotations

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from dcp_core.cache import PagedCache, PageTable, page_count
from dcp_core.kernels.base import Masking, PassBatch, PassKind, PassSpec
from dcp_core.kernels.flashinfer import FlashInfer, FlashInferPass
from dcp_core.lse import LseBase, Partial
from dcp_core.mask import InterleavedMask, PackedMask
from dcp_core.settings import IndexDevice, KernelName, KvLayout
from dcp_core.shard import local_seq_lens

# The first test of a kind compiles its kernel, and several compile at once.
pytestmark = [pytest.mark.gpu, pytest.mark.timeout(900)]

DEVICE = torch.device("cuda")
PAGE = 16

PAGED, DECODE, RAGGED = PassKind.PAGED, PassKind.DECODE, PassKind.RAGGED
NONE, CAUSAL, BOOL, PACKED, COMPUTED = Masking
FA2, FA3, AUTO, CUDA_CORE = KernelName.FA2, KernelName.FA3, KernelName.AUTO, KernelName.CUDA_CORE
PERSISTENT = KernelName.PERSISTENT

REPLAYABLE = [
    *((FA2, PAGED, masking) for masking in Masking),
    *((FA2, RAGGED, masking) for masking in Masking),
    *((AUTO, kind, masking) for kind in (PAGED, RAGGED) for masking in (NONE, CAUSAL, BOOL, PACKED)),
    *((FA3, kind, masking) for kind in (PAGED, RAGGED) for masking in (NONE, CAUSAL)),
    *((name, DECODE, NONE) for name in (FA2, FA3, AUTO, CUDA_CORE)),
]
PASSES = [*REPLAYABLE, (PERSISTENT, PAGED, NONE), (PERSISTENT, PAGED, CAUSAL), (PERSISTENT, DECODE, NONE)]
EVERY_PASS, EVERY_REPLAYABLE_PASS = (
    pytest.mark.parametrize(("name", "kind", "masking"), passes, ids=["-".join(map(str, one)) for one in passes])
    for passes in (PASSES, REPLAYABLE)
)
SHAPES = [(torch.bfloat16, 64), (torch.bfloat16, 128), (torch.bfloat16, 256), (torch.float16, 128)]
EVERY_SHAPE = pytest.mark.parametrize(
    ("dtype", "head_dim"), SHAPES, ids=["bf16-64", "bf16-128", "bf16-256", "fp16-128"]
)


@dataclass(frozen=True)
class Lengths:
    """A batch's queries and keys; a rule where a mask is to be made of it."""

    q_lens: tuple[int, ...]
    kv_lens: tuple[int, ...]
    rule: InterleavedMask | None = None

    @classmethod
    def masked(cls, new: tuple[int, ...], total: tuple[int, ...], dcp: int, rank: int, interleave: int = 1) -> Lengths:
        local = tuple(local_seq_lens(total, dcp, rank, interleave).tolist())
        return cls(new, local, InterleavedMask(new, total, dcp, rank, interleave))


def lengths_for(kind: PassKind, masking: Masking) -> Lengths:
    """Odd lengths; a request without keys, one of a single key, one that ends on a page; one without queries if it may."""
    if kind is DECODE:
        return Lengths((1,) * 5, (333, 0, 1, 64, 2049))
    if masking.custom:
        return Lengths.masked((5, 3, 8, 65, 130), (1333, 3, 8, 258, 2049), dcp=4, rank=3)
    return Lengths((5, 0, 1, 33, 130, 7), (333, 40, 1, 64, 2049, 0))


@dataclass(frozen=True)
class Scene:
    """A pass with its inputs, and the keys and values of each request once more, in order."""

    spec: PassSpec
    batch: PassBatch
    q: Tensor
    source: Tensor | tuple[Tensor, Tensor]
    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    rule: InterleavedMask | None

    @classmethod
    def of(cls, spec: PassSpec, lengths: Lengths, seed: int = 0) -> Scene:
        torch.manual_seed(seed)
        shape = (sum(lengths.kv_lens), spec.kv_heads, spec.head_dim)
        keys, values = (torch.randn(shape, device=DEVICE).to(spec.kv_dtype) for _ in range(2))
        q = torch.randn(sum(lengths.q_lens), spec.q_heads, spec.head_dim, device=DEVICE, dtype=spec.dtype)
        table = None
        source: Tensor | tuple[Tensor, Tensor] = (keys, values)
        if spec.kind is not RAGGED:
            table, source = paged(spec, lengths.kv_lens, keys, values, seed)
        batch = PassBatch(lengths.q_lens, lengths.kv_lens, table, mask_of(spec.masking, lengths.rule))
        return cls(spec, batch, q, source, keys.split(lengths.kv_lens), values.split(lengths.kv_lens), lengths.rule)

    def room(self) -> Partial:
        """Return room full of NaN, so that a row that nobody writes shows."""
        room = Partial.empty(*self.q.shape, dtype=self.q.dtype, device=self.q.device)
        room.out.fill_(math.nan)
        room.lse.fill_(math.nan)
        return room


def paged(
    spec: PassSpec, kv_lens: tuple[int, ...], keys: Tensor, values: Tensor, seed: int
) -> tuple[PageTable, Tensor]:
    """Lay keys and values out over pages in random order, every other page and every page's tail being NaN."""
    pages = 2 * page_count(kv_lens, spec.page_size) + 3
    table = PageTable.shuffled(kv_lens, spec.page_size, pages=pages, seed=seed)
    cache = PagedCache.allocate(
        pages,
        page_size=spec.page_size,
        kv_heads=spec.kv_heads,
        head_dim=spec.head_dim,
        dtype=torch.float32,
        kv_layout=spec.kv_layout,
        device=DEVICE,
    )
    request = torch.repeat_interleave(torch.arange(len(kv_lens)), torch.tensor(kv_lens))
    index = torch.cat([torch.arange(length) for length in kv_lens])
    cache.append(keys.float(), values.float(), table.slots(request, index))
    return table, cache.pages.to(spec.kv_dtype)


def mask_of(masking: Masking, rule: InterleavedMask | None) -> Tensor | PackedMask | InterleavedMask | None:
    if rule is None:
        return None
    forms = {BOOL: rule.bools(DEVICE), PACKED: rule.packed(DEVICE), COMPUTED: rule}
    return forms[masking]  # type: ignore[return-value]  # each of them is one of the three


def spec_of(kind: PassKind, masking: Masking, dtype: torch.dtype = torch.bfloat16, head_dim: int = 128) -> PassSpec:
    return PassSpec(kind, masking, 8, 1, head_dim, dtype, dtype, PAGE, KvLayout.NHD)


def run(opened: FlashInferPass, scene: Scene) -> Partial:
    opened.plan(scene.batch)
    return opened.run(scene.q, scene.source, scene.room())


def seen_by_request(scene: Scene) -> Iterator[Tensor]:
    """Yield bool ``[queries, keys]``, what each query of a request sees."""
    for request, (rows, keys) in enumerate(zip(scene.batch.q_lens, scene.batch.kv_lens, strict=True)):
        if scene.rule is not None:
            rule = scene.rule
            one = InterleavedMask(
                (rule.new_lens[request],), (rule.total_lens[request],), rule.dcp, rule.rank, rule.interleave
            )
            yield one.bools(DEVICE).view(rows, keys)
        elif scene.spec.masking is CAUSAL:
            last = torch.arange(rows, device=DEVICE).unsqueeze(1) + (keys - rows)
            yield torch.arange(keys, device=DEVICE) <= last
        else:
            yield torch.ones(rows, keys, dtype=torch.bool, device=DEVICE)


def attention(scene: Scene, *, rounded: bool = False) -> Partial:
    """Attend in float64; ``rounded``: with weights and output rounded to the queries' dtype, as the kernels do."""
    group, dtype = scene.spec.group, scene.spec.dtype
    outs, lses = [], []
    rows = zip(scene.q.split(scene.batch.q_lens), scene.keys, scene.values, seen_by_request(scene), strict=True)
    for q, k, v, seen in rows:
        wide_k, wide_v = (tensor.double().repeat_interleave(group, 1) for tensor in (k, v))
        scores = torch.einsum("qhd,khd->qhk", q.double(), wide_k) / math.sqrt(scene.spec.head_dim)
        scores = scores.masked_fill(~seen.unsqueeze(1), -math.inf)
        lse = torch.logsumexp(scores, -1)
        top = scores.amax(-1, keepdim=True) if k.shape[0] else lse.unsqueeze(-1)
        weights = torch.exp(scores - top.where(top > -math.inf, 0.0))
        total = weights.sum(-1, keepdim=True).clamp(min=torch.finfo(torch.float64).tiny)
        if rounded:
            weights = weights.to(dtype).double()
        out = torch.einsum("qhk,khd->qhd", weights / total, wide_v)
        outs.append(out.to(dtype).double() if rounded else out)
        lses.append(lse.float())
    return Partial(torch.cat(outs), torch.cat(lses))


def assert_right(got: Partial, scene: Scene) -> None:
    """Hold every row to twice the error of a computation of the same precision, plus one rounding; empty rows to (0, -inf).

    The LSE is a sum of weights each of which may be rounded to the queries' dtype, so half an epsilon, and of scores summed
    in float32.
    """
    assert got.base is LseBase.TWO
    exact, rounded = attention(scene), attention(scene, rounded=True)
    lse = got.natural().lse
    empty = exact.lse == -math.inf
    assert torch.equal(lse == -math.inf, empty)
    assert not got.out[empty].any()
    seen = ~empty
    if not bool(seen.any()):
        return
    norm = exact.out[seen].norm(dim=-1)
    error = (got.out.double() - exact.out)[seen].norm(dim=-1) / norm
    same_precision = (rounded.out - exact.out)[seen].norm(dim=-1) / norm
    eps, eps32 = torch.finfo(scene.spec.dtype).eps, torch.finfo(torch.float32).eps
    assert float(error.max()) <= 2 * float(same_precision.max()) + eps
    lse_budget = eps / 2 + scene.spec.head_dim * eps32 * float(exact.lse[seen].abs().max())
    assert float((lse - exact.lse)[seen].abs().max()) <= lse_budget


@EVERY_SHAPE
@EVERY_PASS
def test_every_row_is_right_with_empty_shards_and_poisoned_pages(
    name: KernelName, kind: PassKind, masking: Masking, dtype: torch.dtype, head_dim: int
) -> None:
    scene = Scene.of(spec_of(kind, masking, dtype, head_dim), lengths_for(kind, masking))
    assert_right(run(FlashInfer(name).open(scene.spec, DEVICE), scene), scene)


@pytest.mark.parametrize("kv_layout", KvLayout)
@pytest.mark.parametrize(("q_heads", "kv_heads"), [(4, 4), (12, 2), (64, 4), (16, 1)])
@EVERY_PASS
def test_several_kv_heads_in_both_page_layouts(
    name: KernelName, kind: PassKind, masking: Masking, q_heads: int, kv_heads: int, kv_layout: KvLayout
) -> None:
    spec = replace(spec_of(kind, masking), q_heads=q_heads, kv_heads=kv_heads, kv_layout=kv_layout)
    scene = Scene.of(spec, lengths_for(kind, masking), seed=1)
    assert_right(run(FlashInfer(name).open(spec, DEVICE), scene), scene)


@pytest.mark.parametrize("page_size", [1, 32, 64])
@EVERY_PASS
def test_other_page_sizes(name: KernelName, kind: PassKind, masking: Masking, page_size: int) -> None:
    scene = Scene.of(replace(spec_of(kind, masking), page_size=page_size), lengths_for(kind, masking), seed=2)
    assert_right(run(FlashInfer(name).open(scene.spec, DEVICE), scene), scene)


@pytest.mark.parametrize(
    "split", [{"fixed_split_size": 1}, {"fixed_split_size": 7}, {"disable_split_kv": True}], ids=str
)
@pytest.mark.parametrize(("kind", "masking"), [(PAGED, NONE), (PAGED, CAUSAL), (PAGED, PACKED), (DECODE, NONE)])
def test_kv_split_as_told_or_not_at_all(kind: PassKind, masking: Masking, split: dict[str, Any]) -> None:
    spec = spec_of(kind, masking)
    scene = Scene.of(replace(spec, **split), lengths_for(kind, masking), seed=14)
    opened, told = FlashInfer(FA2).open(spec, DEVICE), FlashInfer(FA2).open(scene.spec, DEVICE)
    result = run(told, scene)
    assert_right(result, scene)
    opened.plan(scene.batch)
    assert list(opened._wrapper._plan_info) != list(told._wrapper._plan_info)


@pytest.mark.parametrize("group", [1, 2, 3, 4, 6, 8, 16])
def test_cuda_core_decodes_with_every_head_group_it_accepts(group: int) -> None:
    scene = Scene.of(replace(spec_of(DECODE, NONE), q_heads=2 * group, kv_heads=2), lengths_for(DECODE, NONE), seed=3)
    assert_right(run(FlashInfer(CUDA_CORE).open(scene.spec, DEVICE), scene), scene)


@pytest.mark.parametrize(
    ("name", "kind", "masking"),
    [(FA2, PAGED, NONE), (FA2, PAGED, PACKED), (FA2, PAGED, COMPUTED), (FA2, DECODE, NONE), (CUDA_CORE, DECODE, NONE)],
)
def test_queries_of_16_bits_over_an_8_bit_cache(name: KernelName, kind: PassKind, masking: Masking) -> None:
    scene = Scene.of(replace(spec_of(kind, masking), kv_dtype=torch.float8_e4m3fn), lengths_for(kind, masking), seed=4)
    assert_right(run(FlashInfer(name).open(scene.spec, DEVICE), scene), scene)


@EVERY_PASS
def test_a_batch_in_which_no_request_has_a_key(name: KernelName, kind: PassKind, masking: Masking) -> None:
    lengths = Lengths.masked((1, 2), (1, 2), dcp=4, rank=2) if masking.custom else Lengths((1, 1), (0, 0))
    scene = Scene.of(spec_of(kind, masking), lengths)
    got = run(FlashInfer(name).open(scene.spec, DEVICE), scene)
    assert not got.out.any()
    assert bool((got.lse == -math.inf).all())


@pytest.mark.parametrize("name", [FA2, AUTO])
@pytest.mark.parametrize("masking", [BOOL, PACKED])
@pytest.mark.parametrize("empty", [0, 1, 2])
def test_packed_mask_of_three_requests_one_without_a_local_key(name: KernelName, masking: Masking, empty: int) -> None:
    new, total = [9, 130, 33], [400, 1031, 77]
    new[empty], total[empty] = 2, 2  # positions 0 and 1 live on ranks 0 and 1
    scene = Scene.of(spec_of(PAGED, masking), Lengths.masked(tuple(new), tuple(total), dcp=4, rank=3))
    assert scene.batch.kv_lens[empty] == 0
    assert_right(run(FlashInfer(name).open(scene.spec, DEVICE), scene), scene)


@pytest.mark.parametrize("interleave", [1, 2, 16])
@pytest.mark.parametrize("rank", [0, 1, 3])
def test_a_computed_mask_says_what_the_packed_one_says(interleave: int, rank: int) -> None:
    lengths = Lengths.masked((8, 200, 1, 40), (25, 1500, 700, 40), dcp=4, rank=rank, interleave=interleave)
    results = []
    for masking in (PACKED, COMPUTED):
        scene = Scene.of(spec_of(PAGED, masking), lengths, seed=5)
        results.append(run(FlashInfer(FA2).open(scene.spec, DEVICE), scene))
        assert_right(results[-1], scene)
    packed, computed = results
    assert torch.equal(packed.out, computed.out)
    assert torch.equal(packed.lse, computed.lse)


def keep_busy() -> None:
    """Give the GPU some 50 ms of work, so that it is behind whatever the host does next."""
    a = torch.randn(8192, 8192, device=DEVICE, dtype=torch.bfloat16)
    for _ in range(40):
        a @ a


@EVERY_PASS
def test_planning_dropping_and_planning_again_behind_a_busy_gpu(
    name: KernelName, kind: PassKind, masking: Masking
) -> None:
    """Each plan stages through pinned memory that the next would overwrite while the GPU has not read it."""
    spec = spec_of(kind, masking)
    lengths = lengths_for(kind, masking)
    others = replace(
        lengths,
        q_lens=lengths.q_lens[::-1],
        kv_lens=lengths.kv_lens[::-1],
        rule=lengths.rule
        and replace(lengths.rule, new_lens=lengths.rule.new_lens[::-1], total_lens=lengths.rule.total_lens[::-1]),
    )
    scenes = [Scene.of(spec, lengths, 6), Scene.of(spec, others, 7), Scene.of(spec, lengths, 8)]
    rooms = [scene.room() for scene in scenes]
    kernel = FlashInfer(name)
    opened = kernel.open(spec, DEVICE)
    torch.cuda.synchronize()
    keep_busy()
    got = []
    for scene, room in zip(scenes, rooms, strict=True):
        opened.plan(scene.batch)
        got.append(opened.run(scene.q, scene.source, room))
    for scene in scenes:
        keep_busy()
        del opened
        opened = kernel.open(spec, DEVICE)
        opened.plan(scene.batch)
        got.append(opened.run(scene.q, scene.source, scene.room()))
    for scene, partial in zip([*scenes, *scenes], got, strict=True):
        assert_right(partial, scene)


@EVERY_REPLAYABLE_PASS
def test_host_and_device_index_tensors_give_the_same_plan(name: KernelName, kind: PassKind, masking: Masking) -> None:
    plans, results = [], []
    for index_device in IndexDevice:
        spec = replace(spec_of(kind, masking), index_device=index_device)
        scene = Scene.of(spec, lengths_for(kind, masking), seed=9)
        opened = FlashInfer(name).open(spec, DEVICE)
        results.append(run(opened, scene))
        plans.append([int(value) for value in opened._wrapper._plan_info])
    assert plans[0] == plans[1]
    assert torch.equal(results[0].out, results[1].out)
    assert torch.equal(results[0].lse, results[1].lse)


@EVERY_PASS
def test_a_run_allocates_nothing(name: KernelName, kind: PassKind, masking: Masking) -> None:
    scene = Scene.of(spec_of(kind, masking), lengths_for(kind, masking))
    opened = FlashInfer(name).open(scene.spec, DEVICE)
    opened.plan(scene.batch)
    room = scene.room()
    before = torch.cuda.memory_stats()["allocation.all.allocated"]
    opened.run(scene.q, scene.source, room)
    assert torch.cuda.memory_stats()["allocation.all.allocated"] == before


def capture(opened: FlashInferPass, scene: Scene, room: Partial) -> torch.cuda.CUDAGraph:
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        opened.run(scene.q, scene.source, room)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        opened.run(scene.q, scene.source, room)
    return graph


def shorter(lengths: Lengths, kind: PassKind) -> Lengths:
    """Return other lengths for as many requests and rows, with no more keys: what a captured graph must serve next."""
    if lengths.rule is not None:
        rule = lengths.rule
        totals = (999, 3, 60, 66, 1800)
        return Lengths.masked(rule.new_lens, totals, rule.dcp, rule.rank, rule.interleave)
    if kind is DECODE:
        return replace(lengths, kv_lens=(0, 700, 33, 1, 1200))
    return replace(lengths, kv_lens=(50, 0, 300, 64, 1500, 7))


@EVERY_REPLAYABLE_PASS
def test_a_replayable_pass_is_captured_once_and_planned_again(
    name: KernelName, kind: PassKind, masking: Masking
) -> None:
    spec = replace(spec_of(kind, masking), replayable=True)
    first_lengths = lengths_for(kind, masking)
    first, second = Scene.of(spec, first_lengths, 10), Scene.of(spec, shorter(first_lengths, kind), 11)
    opened = FlashInfer(name).open(spec, DEVICE)
    opened.plan(first.batch)
    room = first.room()
    graph = capture(opened, first, room)
    for scene in (first, second, first):
        opened.plan(scene.batch)
        captured = (first.source,) if isinstance(first.source, Tensor) else first.source
        inputs = (scene.source,) if isinstance(scene.source, Tensor) else scene.source
        contents = [tensor.clone() for tensor in captured]
        query = first.q.clone()
        for static, new in zip(captured, inputs, strict=True):
            static[: new.shape[0]].copy_(new)
        first.q[: scene.q.shape[0]].copy_(scene.q)
        room.out.fill_(math.nan)
        room.lse.fill_(math.nan)
        graph.replay()
        assert_right(Partial(room.out, room.lse, LseBase.TWO), replace(scene, q=first.q.clone()))
        for static, old in zip(captured, contents, strict=True):
            static.copy_(old)
        first.q.copy_(query)


@EVERY_REPLAYABLE_PASS
def test_a_replayable_pass_refuses_what_its_buffers_cannot_hold(
    name: KernelName, kind: PassKind, masking: Masking
) -> None:
    spec = replace(spec_of(kind, masking), replayable=True)
    opened = FlashInfer(name).open(spec, DEVICE)
    if masking.custom:
        small = Lengths.masked((2, 2), (64, 64), dcp=2, rank=0)
        more_keys = Lengths.masked((2, 2), (640, 64), dcp=2, rank=0)
        more_requests = Lengths.masked((2, 2, 2), (64, 64, 64), dcp=2, rank=0)
    else:
        small = Lengths((1, 1), (32, 32))
        more_keys = Lengths((1, 1), (320, 32))
        more_requests = Lengths((1, 1, 1), (32, 32, 32))
    opened.plan(Scene.of(spec, small).batch)
    with pytest.raises(ValueError, match="no room"):
        opened.plan(Scene.of(spec, more_keys).batch)
    with pytest.raises(ValueError, match="takes just as many, not 3"):
        opened.plan(Scene.of(spec, more_requests).batch)


@EVERY_PASS
def test_a_plan_that_is_not_replayable_can_be_captured_too(name: KernelName, kind: PassKind, masking: Masking) -> None:
    scene = Scene.of(spec_of(kind, masking), lengths_for(kind, masking), seed=12)
    opened = FlashInfer(name).open(scene.spec, DEVICE)
    opened.plan(scene.batch)
    room = scene.room()
    graph = capture(opened, scene, room)
    room.out.fill_(math.nan)
    room.lse.fill_(math.nan)
    graph.replay()
    assert_right(Partial(room.out, room.lse, LseBase.TWO), scene)


def test_auto_says_what_it_became() -> None:
    hopper = torch.cuda.get_device_capability() == (9, 0)
    for kind, masking, expected in (
        (PAGED, NONE, "fa3" if hopper else "fa2"),
        (PAGED, PACKED, "fa2"),
        (DECODE, NONE, "fa2"),
    ):
        assert FlashInfer(AUTO).open(spec_of(kind, masking), DEVICE).resolved == expected


def test_passes_share_their_scratch_by_kind_and_give_it_back() -> None:
    torch.cuda.synchronize()
    paged_pass, decode_pass, ragged_pass = (
        FlashInfer(FA2).open(spec_of(kind, NONE), DEVICE) for kind in (PAGED, DECODE, RAGGED)
    )
    assert paged_pass._workspace is decode_pass._workspace
    assert paged_pass._workspace is not ragged_pass._workspace
    held = torch.cuda.memory_allocated()
    size = paged_pass._workspace.buffer.numel()
    del paged_pass, decode_pass
    assert torch.cuda.memory_allocated() <= held - size


def test_passes_of_one_stream_may_be_run_by_several_threads() -> None:
    """The ranks of a simulated group are threads; their passes share scratch that split-KV kernels and merges go through."""
    spec = spec_of(PAGED, NONE)
    scenes = [Scene.of(spec, Lengths((4, 2), (4000 + rank, 1500)), seed=20 + rank) for rank in range(4)]
    passes = [FlashInfer(FA2).open(spec, DEVICE) for _ in scenes]
    for opened, scene in zip(passes, scenes, strict=True):
        opened.plan(scene.batch)
    rooms = [[scene.room() for _ in range(50)] for scene in scenes]
    torch.cuda.synchronize()

    def seat(rank: int) -> None:
        for room in rooms[rank]:
            passes[rank].run(scenes[rank].q, scenes[rank].source, room)

    with ThreadPoolExecutor(len(scenes)) as pool:
        list(pool.map(seat, range(len(scenes))))
    for scene, results in zip(scenes, rooms, strict=True):
        first = results[0]
        assert_right(Partial(first.out, first.lse, LseBase.TWO), scene)
        assert all(torch.equal(first.out, room.out) and torch.equal(first.lse, room.lse) for room in results)


def test_queries_with_gaps_between_rows_are_read_where_they_are() -> None:
    """An engine slices queries out of a wider projection."""
    scene = Scene.of(spec_of(PAGED, NONE), lengths_for(PAGED, NONE), seed=13)
    wide = torch.full(
        (scene.q.shape[0], 3 * scene.q.shape[1], scene.q.shape[2]), math.nan, dtype=scene.q.dtype, device=DEVICE
    )
    sliced = wide[:, : scene.q.shape[1]].copy_(scene.q)
    for name in (FA2, FA3):
        opened = FlashInfer(name).open(scene.spec, DEVICE)
        opened.plan(scene.batch)
        assert_right(opened.run(sliced, scene.source, scene.room()), scene)
