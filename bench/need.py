"""What measuring one case takes of a device's memory, predicted from what the core allocates and the stand adds to it.

Standard library only: constants that other modules own beside torch are repeated here, and a test holds them equal.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from dcp_core.cost import exchanged
from dcp_core.exchange_bytes import exchange_bytes, is_fetched
from dcp_core.memory import PAGED_WORKSPACE_BYTES, RAGGED_WORKSPACE_BYTES, cache_bytes, mask_elements
from dcp_core.settings import Case, ExchangeName, KernelName, MaskForm, PathName

INT_WORKSPACE_BYTES = 16 << 20
"""FlashInfer's int workspace of one pass: 8 MiB on the device, and room for its index tensors."""
QUERY_TILE = 128
"""(query, head) pairs of FlashInfer's largest tile."""
FLUSH_BYTES = 128 << 20
"""Written between repetitions to cool the L2 cache: twice that of the largest device in use."""
PACKING_BYTES_PER_ELEMENT = 10
"""The torch version of packing a mask holds about ten int64 per byte of eight elements."""
SPARE_PAGES = 0.25
"""Pages of a measured cache beyond those in use, as a share."""
ORACLE_SCORES, ORACLE_ROWS, ORACLE_REQUESTS = 1 << 26, 64, 512
"""The oracle checks every row of a batch of up to so many scores, and so many rows of a larger one, of so many requests."""
ORACLE_BYTES_PER_SCORE = 24
"""Float64 scores, their exponentials, and a copy while one turns into the other."""
SHARED_IN_A_RACE = ("keys and values of whole sequences", "the oracle", "KV caches", "queries of every rank")
"""What cases of one batch that are open together have in common."""
REFERENCE_SCORES = 1 << 22
"""Scores per head that the torch kernel holds at once: its ``SCORE_ELEMENTS``."""


def case_bytes(case: Case, local_ranks: int) -> int:
    """Return the bytes that measuring a case is predicted to take on one device, one layer of the model.

    Args:
        local_ranks: ranks of the group on this device: ``dcp`` if simulated, else 1.
    """
    return sum(size for _, size in case_parts(case, local_ranks))


def race_bytes(cases: Sequence[Case], local_ranks: int) -> int:
    """Return the bytes that cases of one batch are predicted to take on one device while all are open.

    They share their inputs, the oracle's answers, and their caches where pages are alike.
    """
    shared: dict[tuple[object, ...], int] = {}
    own = 0
    for case in cases:
        for what, size in case_parts(case, local_ranks):
            if what in SHARED_IN_A_RACE:
                pages = (case.settings.page_size, case.settings.kv_layout) if what == "KV caches" else ()
                shared[what, *pages] = max(size, shared.get((what, *pages), 0))
            else:
                own += size
    return own + sum(shared.values())


def case_parts(case: Case, local_ranks: int) -> Iterator[tuple[str, int]]:
    """Yield what measuring a case needs memory for, as (what, bytes): the terms of ``case_bytes``."""
    shape, workload = case.shape, case.workload
    heads, element, dim = case.layout.heads(shape), shape.dtype.itemsize, shape.head_dim
    rows, totals = workload.new_tokens, workload.total_lens
    own_row, kv_token = heads.query * dim * element, 2 * heads.kv * dim * element
    yield "keys and values of whole sequences", sum(totals) * kv_token
    yield "the oracle", _oracle_bytes(case)
    yield "KV caches", local_ranks * int((1 + SPARE_PAGES) * cache_bytes(case))
    yield "queries of every rank", case.layout.dcp * rows * own_row
    yield "new keys and values, and outputs", local_ranks * rows * (kv_token + own_row + 4 * heads.query)
    partial_bytes = (rows - _fetched(case)) * heads.gathered * (dim * element + 4)
    yield "partials of gathered heads", local_ranks * partial_bytes
    yield "the exchange's buffers", local_ranks * exchange_bytes(case)
    if case.settings.exchange is ExchangeName.LOOPBACK:
        yield "what simulated ranks stack", local_ranks * partial_bytes
    yield from _path_parts(case, local_ranks)
    if case.settings.kernel is KernelName.REFERENCE:
        # The ranks of a simulated group run in threads, all at once.
        yield "the reference kernel's scores", local_ranks * _reference_bytes(case)
    else:
        yield "FlashInfer's workspaces", _workspace_bytes(case) + local_ranks * _passes(case) * INT_WORKSPACE_BYTES
        yield "cooling the L2 cache", FLUSH_BYTES


def _path_parts(case: Case, local_ranks: int) -> Iterator[tuple[str, int]]:
    shape, workload, settings = case.shape, case.workload, case.settings
    heads, row_bytes = case.layout.heads(shape), shape.head_dim * shape.dtype.itemsize + 4
    match settings.path:
        case PathName.SPLIT:
            tokens = workload.new_tokens - _fetched(case)
            yield "the pass over new tokens", local_ranks * tokens * heads.query * row_bytes
        case PathName.FOLD:
            padded = workload.new_tokens + (case.layout.dcp - 1) * len(workload)
            yield "folded queries and outputs", local_ranks * 2 * padded * heads.gathered * row_bytes
            yield "partials of own rows", local_ranks * workload.new_tokens * heads.query * row_bytes
        case PathName.MASK:
            yield "masks", local_ranks * _mask_bytes(case)
        case PathName.TP | PathName.DECODE:
            return


def _fetched(case: Case) -> int:
    """Return the new tokens whose partials the exchange keeps."""
    return sum(
        sum(one.new for one in requests) for requests, path in exchanged(case) if is_fetched(case, requests, path)
    )


def _mask_bytes(case: Case) -> int:
    elements, reference = mask_elements(case), case.settings.kernel is KernelName.REFERENCE
    match case.settings.mask_form:
        case MaskForm.BOOL:
            widths = {case.layout.local_len(total, 0) for total in case.workload.total_lens}
            # Requests of different widths are cut out of one mask as wide as the widest.
            padding = 2 * case.workload.new_tokens * max(widths) if len(widths) > 1 else 0
            return elements + elements // 8 + padding
        case MaskForm.PACKED:
            return elements // 8 + (PACKING_BYTES_PER_ELEMENT * elements if reference else 0)
        case MaskForm.COMPUTED:
            return elements if reference else 0


def _workspace_bytes(case: Case) -> int:
    """Float workspaces; a plan for CUDA graphs splits KV whether that helps or not, and needs room for every row."""
    heads, rows = case.layout.heads(case.shape), case.workload.new_tokens
    paged = PAGED_WORKSPACE_BYTES
    if case.settings.replayable:
        padding = -(-len(case.workload) * QUERY_TILE * heads.kv // heads.gathered)
        paged = max(paged, 4 * heads.gathered * (case.shape.head_dim + 1) * (rows + padding + 1))
    return paged + (RAGGED_WORKSPACE_BYTES if case.settings.path is PathName.SPLIT else 0)


def _passes(case: Case) -> int:
    apart = case.workload.is_mixed and case.settings.path is not PathName.DECODE
    split = 2 if case.settings.exchange is not ExchangeName.DIRECT or not case.settings.overlap else 5
    return (split if case.settings.path is PathName.SPLIT else 1) + (1 if apart else 0)


def _oracle_bytes(case: Case) -> int:
    """One request at a time: its keys and values in float64, and scores of the rows that are checked."""
    heads, workload = case.layout.heads(case.shape), case.workload
    some = min(len(workload), ORACLE_REQUESTS)
    scores = sum(request.new * request.total for request in workload.requests) * heads.query
    everything = scores <= ORACLE_SCORES and some == len(workload)
    rows = max(workload.new_lens) if everything else max(2, ORACLE_ROWS // some)
    key_bytes = 2 * heads.kv * case.shape.head_dim * 8
    return max(
        request.total * (key_bytes + min(request.new, rows) * heads.query * ORACLE_BYTES_PER_SCORE)
        for request in workload.requests
    )


def _reference_bytes(case: Case) -> int:
    """One request at a time: float32 keys and values, a chunk of scores with its exponentials, and what each query sees.

    Chunks are bounded per head, and ``fold`` makes ``dcp`` queries of a head into as many heads of one row.
    """
    heads, dim = case.layout.heads(case.shape), case.shape.head_dim
    keys = case.layout.local_len(max(case.workload.total_lens), 0)
    folded = case.layout.dcp if case.settings.path is PathName.FOLD else 1
    rows = -(-max(case.workload.new_lens) // folded)
    scores = min(rows * keys, max(REFERENCE_SCORES, keys))
    return 2 * keys * heads.kv * dim * 4 + 3 * scores * heads.gathered * folded * 4 + rows * keys
