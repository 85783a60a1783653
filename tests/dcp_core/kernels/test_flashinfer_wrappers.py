"""Our passes drive FlashInfer's own Python wrappers here; in place of its kernels stands torch code that reads what they read.

So a wrong argument, offset or length shows on a machine without a GPU.
"""

from __future__ import annotations

import contextlib
import math
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import flashinfer
import flashinfer.decode
import flashinfer.prefill
import pytest
import torch
from torch import Tensor

from dcp_core.cache import PagedCache, PageTable, page_count
from dcp_core.kernels.base import Masking, PassBatch, PassKind, PassSpec
from dcp_core.kernels.flashinfer import FlashInferPass
from dcp_core.kernels.flashinfer_workspace import FloatWorkspace
from dcp_core.kernels.reference import Reference, attend
from dcp_core.lse import LseBase, Partial
from dcp_core.mask import InterleavedMask, PackedMask
from dcp_core.settings import IndexDevice, KernelName, KvLayout
from dcp_core.shard import local_seq_lens

CPU = torch.device("cpu")
FA2, FA3, AUTO, CUDA_CORE = KernelName.FA2, KernelName.FA3, KernelName.AUTO, KernelName.CUDA_CORE
PAGED, DECODE, RAGGED = PassKind.PAGED, PassKind.DECODE, PassKind.RAGGED
NO_MASK, CAUSAL, CUSTOM = 0, 1, 2

PASSES = [
    *((FA2, kind, masking) for kind in (PAGED, RAGGED) for masking in Masking),
    *((AUTO, kind, masking) for kind in (PAGED, RAGGED) for masking in Masking if masking is not Masking.COMPUTED),
    *((FA3, kind, masking) for kind in (PAGED, RAGGED) for masking in (Masking.NONE, Masking.CAUSAL)),
    *((name, DECODE, Masking.NONE) for name in (FA2, FA3, AUTO, CUDA_CORE)),
]
EVERY_PASS = pytest.mark.parametrize(("name", "kind", "masking"), PASSES)


def as_kernels_do(
    q: Tensor, keys: list[tuple[Tensor, Tensor]], qo_indptr: Tensor, seen: list[Tensor | None], into: Partial
) -> None:
    """Attend request by request, base 2, to the rows that the query offsets name, and to no other."""
    for request, (k, v) in enumerate(keys):
        rows = slice(int(qo_indptr[request]), int(qo_indptr[request + 1]))
        part = Partial(into.out[rows], into.lse[rows])
        attend(q[rows], k, v, seen=seen[request], into=part)
        part.lse.div_(math.log(2.0))


def pages_of(
    k: Tensor, v: Tensor, indptr: Tensor, pages: Tensor, last: Tensor, layout: int
) -> list[tuple[Tensor, Tensor]]:
    """Read each request's keys and values as ``paged_kv_t`` does: no page, no key, whatever the last page's length."""
    found = []
    for request in range(len(indptr) - 1):
        mine = pages[int(indptr[request]) : int(indptr[request + 1])].long()
        page_size = k.shape[1 if layout == 0 else 2]
        length = (len(mine) - 1) * page_size + int(last[request]) if len(mine) else 0
        both = [(tensor[mine] if layout == 0 else tensor[mine].transpose(1, 2)).flatten(0, 1) for tensor in (k, v)]
        found.append((both[0][:length], both[1][:length]))
    return found


def custom(mode: int, rows: int, keys: int, request: int, extra: tuple[Any, ...]) -> Tensor | None:
    """Return what each query of a request sees: by the bytes of a packed mask, or by the rule's arguments."""
    if mode == NO_MASK:
        return None
    if mode == CAUSAL:
        return torch.arange(keys) <= torch.arange(rows).unsqueeze(1) + (keys - rows)
    if len(extra) == 5:
        context_lens, _, dcp, rank, interleave = extra
        local = torch.arange(keys)
        position = local // interleave * dcp * interleave + rank * interleave + local % interleave
        seen: Tensor = position <= (int(context_lens[request]) + torch.arange(rows)).unsqueeze(1)
        return seen
    mask, mask_indptr = extra[:2]
    bits: Tensor = mask[int(mask_indptr[request]) :][: (rows * keys + 7) // 8]
    return (
        ((bits.unsqueeze(1) >> torch.arange(8, dtype=torch.uint8)) & 1).flatten()[: rows * keys].bool().view(rows, keys)
    )


def prefill_kernel(asked: list[str]) -> Any:
    def plan(*args: Any) -> list[int]:
        _, _, _, qo_indptr, kv_indptr, kv_lens, rows, requests = args[:8]
        assert len(qo_indptr) == len(kv_indptr) == len(kv_lens) + 1 == requests + 1
        assert all(tensor.device == CPU for tensor in (qo_indptr, kv_indptr, kv_lens))
        assert int(qo_indptr[-1]) <= rows
        asked.append(f"kv_lens {kv_lens.tolist()}")
        return [1, 2, 3]

    def paged_run(*args: Any) -> None:
        _, _, _, q, k, v, qo_indptr, kv_indptr, pages, last, out, lse, mode, layout, window, _, *extra = args
        assert window == -1
        run(q, pages_of(k, v, kv_indptr, pages, last, layout), qo_indptr, out, lse, mode, tuple(extra))

    def ragged_run(*args: Any) -> None:
        _, _, _, q, k, v, qo_indptr, kv_indptr, out, lse, mode, layout, window, _, *extra = args
        assert (layout, window) == (0, -1)
        ends = kv_indptr.tolist()
        keys = [(k[start:end], v[start:end]) for start, end in pairwise(ends)]
        run(q, keys, qo_indptr, out, lse, mode, tuple(extra))

    def run(
        q: Tensor,
        keys: list[tuple[Tensor, Tensor]],
        qo_indptr: Tensor,
        out: Tensor,
        lse: Tensor,
        mode: int,
        extra: tuple[Any, ...],
    ) -> None:
        asked.append(f"mask mode {mode}")
        rows = qo_indptr.diff().tolist()
        seen = [custom(mode, rows[request], len(k), request, extra) for request, (k, _) in enumerate(keys)]
        as_kernels_do(q, keys, qo_indptr, seen, Partial(out, lse))

    return SimpleNamespace(plan=plan, paged_run=paged_run, ragged_run=ragged_run)


def decode_kernel(asked: list[str]) -> Any:
    def plan(*args: Any) -> list[int]:
        return [1, 2, 3]

    def run(*args: Any) -> None:
        _, _, _, q, k, v, kv_indptr, pages, last, out, lse, layout, window, *_ = args
        assert window == -1
        keys = pages_of(k, v, kv_indptr, pages, last, layout)
        as_kernels_do(q, keys, torch.arange(len(keys) + 1), [None] * len(keys), Partial(out, lse))

    return SimpleNamespace(plan=plan, run=run)


def pack_segments(mask: Tensor, indptr: Tensor, bitorder: str) -> tuple[Tensor, Tensor]:
    assert bitorder == "little"
    packed, offsets = [], [0]
    for start, end in pairwise(indptr.tolist()):
        bits = torch.nn.functional.pad(mask[start:end].to(torch.uint8), (0, -(end - start) % 8))
        packed.append((bits.view(-1, 8) << torch.arange(8, dtype=torch.uint8)).sum(1, dtype=torch.uint8))
        offsets.append(offsets[-1] + len(packed[-1]))
    return torch.cat(packed), torch.tensor(offsets, dtype=torch.int32)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Put torch in the place of the kernels and of the CUDA calls around them; return what was asked of them, in order."""
    asked: list[str] = []

    def module(backend: str, *_: Any, **__: Any) -> Any:
        asked.append(f"module {backend}")
        return prefill_kernel(asked)

    def scratch(device: torch.device, _kind: PassKind, size: int = 0) -> FloatWorkspace:
        return FloatWorkspace(device, max(size, 64))

    monkeypatch.setattr("dcp_core.kernels.flashinfer.float_workspace", scratch)
    empty = torch.empty

    def unpinned(*args: Any, pin_memory: bool = False, **options: Any) -> Tensor:
        return empty(*args, **options)

    monkeypatch.setattr(torch, "empty", unpinned)
    event = SimpleNamespace(record=lambda: asked.append("record"), synchronize=lambda: asked.append("wait"))
    monkeypatch.setattr(torch.cuda, "Event", lambda: event)
    monkeypatch.setattr(torch.cuda, "device", lambda _device: contextlib.nullcontext())
    for wrappers in (flashinfer.prefill, flashinfer.decode):
        monkeypatch.setattr(wrappers, "get_batch_prefill_module", module)
        monkeypatch.setattr(wrappers, "determine_attention_backend", lambda *args, **_: "fa2" if args[3] else "fa3")
    monkeypatch.setattr(flashinfer.prefill, "get_customize_batch_prefill_module", module)
    monkeypatch.setattr(flashinfer.prefill, "get_batch_prefill_jit_module", lambda _name, module: module)
    monkeypatch.setattr(flashinfer.prefill, "_blackwell_ragged_auto_upgrade", lambda *_, **__: None)
    monkeypatch.setattr(flashinfer.prefill, "segment_packbits", pack_segments)
    monkeypatch.setattr(flashinfer.decode, "get_batch_decode_module", lambda *_: decode_kernel(asked))
    monkeypatch.setattr(
        flashinfer.decode.BatchDecodeWithPagedKVCacheWrapper, "_auto_prefers_cudnn", lambda *_, **__: False
    )
    return asked


def scene(
    spec: PassSpec, q_lens: tuple[int, ...], kv_lens: tuple[int, ...], rule: InterleavedMask | None, seed: int = 0
) -> tuple[PassBatch, Tensor, Tensor | tuple[Tensor, Tensor]]:
    torch.manual_seed(seed)
    keys, values = (torch.randn(sum(kv_lens), spec.kv_heads, spec.head_dim, dtype=spec.dtype) for _ in range(2))
    q = torch.randn(sum(q_lens), spec.q_heads, spec.head_dim, dtype=spec.dtype)
    forms: dict[Masking, Tensor | PackedMask | InterleavedMask] = {}
    if rule is not None:
        forms = {Masking.BOOL: rule.bools(), Masking.PACKED: rule.packed(), Masking.COMPUTED: rule}
    if spec.kind is RAGGED:
        return PassBatch(q_lens, kv_lens, None, forms.get(spec.masking)), q, (keys, values)
    pages = page_count(kv_lens, spec.page_size) + 3
    table = PageTable.shuffled(kv_lens, spec.page_size, pages=pages, seed=seed)
    cache = PagedCache.allocate(
        pages,
        page_size=spec.page_size,
        kv_heads=spec.kv_heads,
        head_dim=spec.head_dim,
        dtype=spec.dtype,
        kv_layout=spec.kv_layout,
    )
    request = torch.repeat_interleave(torch.arange(len(kv_lens)), torch.tensor(kv_lens))
    index = torch.cat([torch.arange(length) for length in kv_lens])
    cache.append(keys, values, table.slots(request, index))
    return PassBatch(q_lens, kv_lens, table, forms.get(spec.masking)), q, cache.pages


def inputs_of(spec: PassSpec, seed: int = 0) -> tuple[PassBatch, Tensor, Tensor | tuple[Tensor, Tensor]]:
    if spec.kind is DECODE:
        return scene(spec, (1, 1, 1, 1), (9, 0, 1, 8) if seed else (33, 0, 1, 8), None, seed)
    if not spec.masking.custom:
        return scene(spec, (5, 0, 1, 3), (10, 9, 1, 0) if seed else (33, 7, 1, 0), None, seed)
    new, total = (5, 2, 8, 3), (21, 2, 8, 40) if seed else (33, 2, 8, 61)
    local = tuple(local_seq_lens(total, 4, 3, 1).tolist())
    return scene(spec, new, local, InterleavedMask(new, total, dcp=4, rank=3), seed)


def check(opened: FlashInferPass, spec: PassSpec, seed: int = 0) -> None:
    batch, q, source = inputs_of(spec, seed)
    expected = Partial.empty(*q.shape, dtype=q.dtype, device=CPU)
    reference = Reference().open(replace(spec, replayable=False), CPU)
    reference.plan(batch)
    reference.run(q, source, expected)
    got = Partial.empty(*q.shape, dtype=q.dtype, device=CPU)
    got.out.fill_(math.nan)
    got.lse.fill_(math.nan)
    opened.plan(batch)
    returned = opened.run(q, source, got)
    assert returned.base is LseBase.TWO
    assert returned.out is got.out
    assert returned.lse is got.lse
    torch.testing.assert_close(returned.natural().lse, expected.lse)
    torch.testing.assert_close(returned.out, expected.out)


def spec_of(kind: PassKind, masking: Masking) -> PassSpec:
    return PassSpec(kind, masking, 4, 2, 64, torch.bfloat16, torch.bfloat16, 8, KvLayout.NHD)


@pytest.mark.parametrize("index_device", IndexDevice)
@pytest.mark.parametrize("kv_layout", KvLayout)
@EVERY_PASS
def test_kernels_are_told_where_each_requests_queries_keys_and_mask_are(
    name: KernelName, kind: PassKind, masking: Masking, kv_layout: KvLayout, index_device: IndexDevice, asked: list[str]
) -> None:
    spec = replace(spec_of(kind, masking), kv_layout=kv_layout, index_device=index_device)
    opened = FlashInferPass(name, spec, CPU)
    check(opened, spec)
    check(opened, spec, seed=1)
    mode = CUSTOM if masking.custom else CAUSAL if masking is Masking.CAUSAL else NO_MASK
    expected = "cuda_core" if name is CUDA_CORE else "fa3" if name is FA3 else "fa2"
    if name is AUTO and kind is not DECODE and not masking.custom:
        expected = "fa3"
    assert opened.resolved == expected
    if name is not CUDA_CORE:
        assert f"module {expected}" in asked
        assert f"mask mode {mode}" in asked


@EVERY_PASS
def test_a_replayable_pass_keeps_its_buffers_from_plan_to_plan(
    name: KernelName, kind: PassKind, masking: Masking, asked: list[str]
) -> None:
    spec = replace(spec_of(kind, masking), replayable=True)
    opened = FlashInferPass(name, spec, CPU)
    addresses = []
    for seed in (0, 1, 0):
        check(opened, spec, seed)
        tensors = {key: value for key, value in vars(opened._wrapper).items() if isinstance(value, Tensor)}
        read_by_kernels = [tensor for key, tensor in tensors.items() if key.endswith("_buf")]
        addresses.append([tensor.data_ptr() for tensor in read_by_kernels + list(opened._arguments[:1])])
    assert addresses[0] == addresses[1] == addresses[2]


def test_the_lengths_that_planning_sees_are_true_though_an_empty_shards_last_page_is_called_full(
    asked: list[str],
) -> None:
    check(FlashInferPass(FA2, spec_of(PAGED, Masking.BOOL), CPU), spec_of(PAGED, Masking.BOOL))
    assert "kv_lens [8, 0, 2, 15]" in asked


def test_planning_waits_for_what_the_last_plan_staged_and_so_does_dropping_the_pass(asked: list[str]) -> None:
    spec = spec_of(PAGED, Masking.NONE)
    opened = FlashInferPass(FA2, spec, CPU)
    check(opened, spec)
    del asked[:]
    opened.plan(inputs_of(spec)[0])
    assert (asked[0], asked[-1]) == ("wait", "record")
    del asked[:]
    del opened
    assert asked == ["wait"]


def test_a_pass_with_nothing_to_do_asks_no_kernel(asked: list[str]) -> None:
    spec = spec_of(PAGED, Masking.NONE)
    opened = FlashInferPass(FA2, spec, CPU)
    opened.plan(PassBatch((2, 1), (0, 0), PageTable.over((0, 0), 8)))
    room = Partial.empty(3, 4, 64, dtype=spec.dtype, device=CPU)
    got = opened.run(torch.randn(3, 4, 64, dtype=spec.dtype), torch.empty(0, 2, 8, 2, 64, dtype=spec.dtype), room)
    assert not got.out.any()
    assert bool((got.lse == -math.inf).all())
    assert asked == ["wait", "record"]


def test_a_run_launches_alone_on_its_scratch(asked: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    spec = spec_of(PAGED, Masking.NONE)
    opened = FlashInferPass(FA2, spec, CPU)
    batch, q, source = inputs_of(spec)
    opened.plan(batch)
    held = []
    monkeypatch.setattr(opened._wrapper, "run", lambda *_, **__: held.append(opened._workspace.launching.locked()))
    opened.run(q, source, Partial.empty(*q.shape, dtype=q.dtype, device=CPU))
    assert held == [True]
    assert not opened._workspace.launching.locked()


def test_results_that_are_not_contiguous_are_refused(asked: list[str]) -> None:
    spec = spec_of(PAGED, Masking.NONE)
    opened = FlashInferPass(FA2, spec, CPU)
    batch, q, source = inputs_of(spec)
    opened.plan(batch)
    wide = torch.empty(q.shape[0], 8, 64, dtype=q.dtype)
    with pytest.raises(ValueError, match="contiguous"):
        opened.run(q, source, Partial(wide[:, :4], torch.empty(q.shape[0], 4)))


def test_a_replayable_passs_rule_may_not_change_hands(asked: list[str]) -> None:
    spec = replace(spec_of(PAGED, Masking.COMPUTED), replayable=True)
    opened = FlashInferPass(FA2, spec, CPU)
    for rank, problem in ((0, None), (1, "keeps the dcp, rank and interleave")):
        batch = PassBatch((2,), (8,), PageTable.over((8,), 8), InterleavedMask((2,), (16,), dcp=2, rank=rank))
        context = contextlib.nullcontext() if problem is None else pytest.raises(ValueError, match=problem)
        with context:
            opened.plan(batch)


@pytest.mark.parametrize("kv_layout", KvLayout)
@pytest.mark.parametrize("masking", [Masking.NONE, Masking.CAUSAL])
def test_the_persistent_kernel_is_told_the_same_and_shares_the_scratch(
    masking: Masking, kv_layout: KvLayout, asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class BatchAttention:
        """Has the arguments of FlashInfer's, and torch for a kernel."""

        def __init__(self, kv_layout: str, device: str) -> None:
            self.layout, self.float_workspace_buffer = kv_layout, torch.empty(64, dtype=torch.uint8)

        def plan(
            self, qo_indptr: Tensor, kv_indptr: Tensor, pages: Tensor, kv_lens: Tensor, *shape: int, **how: Any
        ) -> None:
            assert shape == (4, 2, 64, 64, 8)
            self.batch, self.causal = (qo_indptr, kv_indptr, pages, kv_lens), how["causal"]
            assert how["sm_scale"] == 0.125

        def run(self, q: Tensor, cache: Tensor, *, out: Tensor, lse: Tensor) -> None:
            qo_indptr, kv_indptr, pages, kv_lens = self.batch
            k, v = cache.unbind(1)
            last = kv_lens - (kv_indptr.diff() - 1).clamp(min=0) * 8
            keys = pages_of(k, v, kv_indptr, pages, last, 0 if self.layout == "NHD" else 1)
            seen = [
                custom(CAUSAL if self.causal else NO_MASK, int(rows), len(key), request, ())
                for request, ((key, _), rows) in enumerate(zip(keys, qo_indptr.diff(), strict=True))
            ]
            as_kernels_do(q, keys, qo_indptr, seen, Partial(out, lse))

    monkeypatch.setattr(flashinfer, "BatchAttention", BatchAttention)
    spec = replace(spec_of(PAGED, masking), kv_layout=kv_layout)
    opened = FlashInferPass(KernelName.PERSISTENT, spec, CPU)
    check(opened, spec)
    check(opened, spec, seed=1)
    assert opened.resolved == "persistent"
    assert opened._wrapper._wrapper.float_workspace_buffer is opened._workspace.buffer


def test_how_kv_is_split_is_told_to_the_planner(asked: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in (PAGED, DECODE):
        for split in ({"fixed_split_size": 3}, {"disable_split_kv": True}):
            spec = replace(spec_of(kind, Masking.NONE), **split)  # type: ignore[arg-type]  # one of each type
            opened = FlashInferPass(FA2, spec, CPU)
            check(opened, spec)
            wrapper, told = opened._wrapper, {}
            monkeypatch.setattr(wrapper, "plan", lambda *_, told=told, **options: told.update(options))
            opened.plan(inputs_of(spec)[0])
            assert split.items() <= told.items()


def test_chunks_of_a_fixed_size_get_the_scratch_that_they_take(asked: list[str]) -> None:
    spec = replace(spec_of(PAGED, Masking.NONE), fixed_split_size=1)
    opened = FlashInferPass(FA2, spec, CPU)
    sizes = []
    for keys in (8, 800, 80, 1600):
        opened.plan(PassBatch((3,), (keys,), PageTable.over((keys,), 8)))
        sizes.append(opened._workspace.buffer.numel())
        assert opened._wrapper._float_workspace_buffer is opened._workspace.buffer
    # Pages of 8 tokens: of 100 and 200 chunks come as many tiles of 16, which hold 8 rows of a group of 2.
    assert sizes == [64, 4 * 4 * 100 * 8 * 65, 4 * 4 * 100 * 8 * 65, 4 * 4 * 200 * 8 * 65]
