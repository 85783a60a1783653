"""What FlashInfer's kernels refuse, and why: decided from the spec alone, on a machine without a GPU."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from dcp_core.cache import PageTable
from dcp_core.kernels.base import Masking, PassBatch, PassKind, PassSpec
from dcp_core.kernels.flashinfer import FlashInfer
from dcp_core.kernels.flashinfer_batch import BatchSize, Indices, check_batch
from dcp_core.kernels.flashinfer_workspace import PAGED_BYTES, float_workspace, plan_bytes
from dcp_core.mask import InterleavedMask, PackedMask
from dcp_core.settings import KernelName, KvLayout, Unsupported

FA2, FA3, AUTO, CUDA_CORE = KernelName.FA2, KernelName.FA3, KernelName.AUTO, KernelName.CUDA_CORE
PERSISTENT = KernelName.PERSISTENT
CPU, CUDA = torch.device("cpu"), torch.device("cuda")
SPEC = PassSpec(PassKind.PAGED, Masking.NONE, 16, 1, 128, torch.bfloat16, torch.bfloat16, 16, KvLayout.NHD)
DECODE = replace(SPEC, kind=PassKind.DECODE)
RAGGED = replace(SPEC, kind=PassKind.RAGGED)
FLOAT8 = torch.float8_e4m3fn


@pytest.fixture
def hopper(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: (9, 0))


@pytest.mark.parametrize(
    ("name", "spec", "reason"),
    [
        (CUDA_CORE, SPEC, "cuda_core decodes one query per request over pages; a paged pass needs fa2 or fa3"),
        (CUDA_CORE, RAGGED, "cuda_core decodes one query per request over pages; a ragged pass needs fa2 or fa3"),
        (
            CUDA_CORE,
            replace(DECODE, q_heads=32),
            "cuda_core takes head groups of 1, 2, 3, 4, 6, 8 and 16 after the gather, not 32; fa2 takes any",
        ),
        (FA2, replace(SPEC, head_dim=80), "fa2 is built for head dims 64, 128 and 256, not 80"),
        (FA3, replace(SPEC, head_dim=512), "fa3 is built for head dims 64, 128 and 256, not 512"),
        (
            FA2,
            replace(SPEC, q_heads=3, kv_heads=2),
            "3 query heads cannot share 2 KV heads: the one must divide the other",
        ),
        (FA3, replace(SPEC, masking=Masking.BOOL), "fa3 takes no custom mask, and bool is one; fa2 does"),
        (FA3, replace(RAGGED, masking=Masking.PACKED), "fa3 takes no custom mask, and packed is one; fa2 does"),
        (FA3, replace(SPEC, masking=Masking.COMPUTED), "fa3 takes no custom mask, and computed is one; fa2 does"),
        (
            AUTO,
            replace(SPEC, masking=Masking.COMPUTED),
            "a computed mask is a variant of fa2's kernel, and must be asked for by that name, not auto",
        ),
        (
            FA2,
            replace(DECODE, masking=Masking.PACKED),
            "the decode kernels take no custom mask; a packed mask needs a paged pass",
        ),
        (
            FA2,
            replace(SPEC, dtype=torch.float32, kv_dtype=torch.float32),
            "fa2 takes queries of bfloat16 or float16, not float32",
        ),
        (
            FA2,
            replace(SPEC, kv_dtype=torch.float16),
            "fa2 takes a cache of the queries' dtype or float8_e4m3fn, not float16 under bfloat16 queries",
        ),
        (
            FA3,
            replace(SPEC, kv_dtype=FLOAT8),
            "fa3 reads a float8_e4m3fn cache only with float8 queries, not bfloat16 ones; fa2 takes these",
        ),
        (
            CUDA_CORE,
            replace(DECODE, fixed_split_size=2),
            "cuda_core chooses how it splits KV itself; a fixed split size needs fa2",
        ),
        (PERSISTENT, RAGGED, "persistent reads pages of the cache; a ragged pass over new tokens needs fa2 or fa3"),
        (
            PERSISTENT,
            replace(SPEC, replayable=True),
            "persistent plans for one batch, and a graph of it serves no other; fa2 and fa3 can be replayable",
        ),
        (
            PERSISTENT,
            replace(SPEC, masking=Masking.PACKED),
            "persistent takes no custom mask, and packed is one; fa2 does",
        ),
        (
            PERSISTENT,
            replace(SPEC, kv_dtype=FLOAT8),
            "persistent was not tried with a float8_e4m3fn cache under bfloat16 queries; fa2 takes these",
        ),
    ],
)
def test_what_no_machine_could_run_is_said_in_a_sentence(
    name: KernelName, spec: PassSpec, reason: str, hopper: None
) -> None:
    assert FlashInfer(name).refusal(spec, CUDA) == reason
    assert FlashInfer(name).refusal(spec, CPU) == reason


@pytest.mark.parametrize(
    ("name", "spec"),
    [
        *((name, spec) for name in (FA2, FA3, AUTO) for spec in (SPEC, DECODE, RAGGED)),
        *((name, replace(SPEC, masking=Masking.CAUSAL)) for name in (FA2, FA3, AUTO)),
        *((PERSISTENT, spec) for spec in (SPEC, DECODE, replace(SPEC, masking=Masking.CAUSAL))),
        *((FA2, replace(SPEC, masking=masking)) for masking in Masking),
        *((AUTO, replace(SPEC, masking=masking)) for masking in (Masking.BOOL, Masking.PACKED)),
        *((CUDA_CORE, replace(DECODE, q_heads=2 * group, kv_heads=2)) for group in (1, 2, 3, 4, 6, 8, 16)),
        *((FA2, replace(SPEC, q_heads=q_heads)) for q_heads in (5, 32, 128)),
        *((FA2, replace(SPEC, head_dim=head_dim)) for head_dim in (64, 128, 256)),
        (FA2, replace(SPEC, dtype=torch.float16, kv_dtype=torch.float16)),
        (FA2, replace(SPEC, kv_dtype=FLOAT8)),
    ],
)
def test_what_hopper_can_run_is_not_refused(name: KernelName, spec: PassSpec, hopper: None) -> None:
    assert FlashInfer(name).refusal(spec, CUDA) is None
    assert FlashInfer(name).refusal(spec, CPU) == f"{name} needs a CUDA device, not cpu"


def test_a_machine_is_refused_for_what_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert FlashInfer(FA2).refusal(SPEC, CUDA) == "fa2 needs a CUDA device, not a machine that shows none"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: (8, 0))
    assert FlashInfer(FA2).refusal(SPEC, CUDA) is None
    assert FlashInfer(FA3).refusal(SPEC, CUDA) == (
        "fa3 is built for compute capability 9.0 (Hopper); this device has 8.0"
    )
    monkeypatch.setattr("dcp_core.kernels.flashinfer_refusals.find_spec", lambda _name: None)
    assert FlashInfer(FA2).refusal(SPEC, CUDA) == (
        "fa2 is FlashInfer's, which is not installed here: pip install flashinfer-python"
    )


def test_opening_what_is_refused_raises_the_refusal() -> None:
    with pytest.raises(Unsupported, match="fa2 needs a CUDA device, not cpu"):
        FlashInfer(FA2).open(SPEC, CPU)


def test_the_reference_kernel_is_not_flashinfers() -> None:
    with pytest.raises(ValueError, match="torch's, not FlashInfer's"):
        FlashInfer(KernelName.REFERENCE)


def test_a_request_without_keys_has_no_last_page() -> None:
    batch = PassBatch((3, 2, 1), (17, 0, 32), PageTable.over((17, 0, 32), 16))
    indices = Indices.of(SPEC, batch, CPU)
    assert indices.qo_indptr.tolist() == [0, 3, 5, 6]
    assert indices.kv_indptr.tolist() == [0, 2, 2, 4]
    assert indices.last_page_lens.tolist() == [1, 0, 16]
    assert {tensor.dtype for tensor in (indices.qo_indptr, indices.kv_indptr, indices.pages)} == {torch.int32}


def test_a_ragged_batch_counts_keys_where_a_paged_one_counts_pages() -> None:
    batch = PassBatch((3, 2), (17, 0))
    assert Indices.of(RAGGED, batch, CPU).kv_indptr.tolist() == [0, 17, 17]
    assert BatchSize.of(batch) == BatchSize(requests=2, rows=5, keys=17, mask_bytes=0)


def table(*lens: int) -> PageTable:
    return PageTable.over(lens, 16)


RULE = InterleavedMask((3,), (40,), dcp=2, rank=1)


@pytest.mark.parametrize(
    ("spec", "batch", "problem"),
    [
        (SPEC, PassBatch((1,), (1, 1), table(1, 1)), "1 query lengths needs as many key lengths, not 2"),
        (SPEC, PassBatch((1,), (1,)), "a paged pass needs a page table"),
        (RAGGED, PassBatch((1,), (1,), table(1)), "a ragged pass takes no page table"),
        (SPEC, PassBatch((1,), (2,), table(1)), r"holds \(1,\) tokens where the batch has keys \(2,\)"),
        (DECODE, PassBatch((2,), (2,), table(2)), r"exactly one query per request, not \(2,\)"),
        (
            replace(SPEC, masking=Masking.CAUSAL),
            PassBatch((5,), (4,), table(4)),
            "a key per query, not 5 queries over 4 keys",
        ),
        (SPEC, PassBatch((3,), (20,), table(20), RULE), "none masking cannot take a mask of type InterleavedMask"),
        (replace(SPEC, masking=Masking.BOOL), PassBatch((3,), (20,), table(20)), "bool masking cannot take"),
        (
            replace(SPEC, masking=Masking.BOOL),
            PassBatch((3,), (20,), table(20), torch.ones(59, dtype=torch.bool)),
            r"needs 60 bools as its mask, not \[59\] of torch.bool",
        ),
        (
            replace(SPEC, masking=Masking.PACKED),
            PassBatch((3,), (20,), table(20), PackedMask(torch.ones(8), torch.tensor([0, 4, 8]))),
            "1 requests need one more byte offset",
        ),
        (replace(SPEC, masking=Masking.COMPUTED), PassBatch((2,), (20,), table(20), RULE), r"has \(3,\) queries over"),
        (replace(SPEC, masking=Masking.COMPUTED), PassBatch((3,), (21,), table(21), RULE), r"over \(20,\) keys"),
    ],
)
def test_a_batch_that_does_not_fit_together_is_refused(spec: PassSpec, batch: PassBatch, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        check_batch(spec, batch)


def test_causal_requests_without_keys_or_without_queries_are_fine() -> None:
    check_batch(replace(SPEC, masking=Masking.CAUSAL), PassBatch((5, 0, 3), (0, 7, 3), table(0, 7, 3)))


def test_a_replayable_pass_takes_batches_up_to_its_first() -> None:
    first = BatchSize(requests=4, rows=40, keys=100, mask_bytes=50)
    replace(first, rows=4, keys=0, mask_bytes=0).check_within(first)
    for grown in (replace(first, rows=41), replace(first, keys=101), replace(first, mask_bytes=51)):
        with pytest.raises(ValueError, match="has no room for"):
            grown.check_within(first)
    for other in (3, 5):
        with pytest.raises(ValueError, match=f"takes just as many, not {other}"):
            replace(first, requests=other).check_within(first)


def test_paged_passes_share_scratch_and_ragged_ones_have_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dcp_core.kernels.flashinfer_workspace.PAGED_BYTES", 64)
    monkeypatch.setattr("dcp_core.kernels.flashinfer_workspace.RAGGED_BYTES", 32)
    paged, decode, ragged = (float_workspace(CPU, kind) for kind in (PassKind.PAGED, PassKind.DECODE, PassKind.RAGGED))
    assert paged is decode
    assert (paged.buffer.numel(), ragged.buffer.numel()) == (64, 32)
    grown = float_workspace(CPU, PassKind.PAGED, 128)
    assert grown.buffer.numel() == 128
    assert float_workspace(CPU, PassKind.DECODE, 100) is grown


def test_scratch_for_graphs_holds_a_partial_result_per_row_and_head() -> None:
    graph = replace(SPEC, replayable=True)
    batch = PassBatch((8,), (8,), table(8))
    small, large = (BatchSize(requests=1, rows=rows, keys=1, mask_bytes=0) for rows in (8, 1 << 17))
    assert plan_bytes(graph, batch, small) < PAGED_BYTES
    assert plan_bytes(graph, batch, large) == 4 * 16 * 129 * (1 << 17) > PAGED_BYTES
    assert plan_bytes(replace(graph, disable_split_kv=True), batch, large) == 0
    assert plan_bytes(SPEC, batch, large) == 0
