"""What the exchanges keep on each rank's device, whatever the batch. Floor 1: standard library only.

The sizes of what other modules own beside torch are repeated here, and tests hold them equal to what is allocated.
"""

from __future__ import annotations

from collections.abc import Sequence

from dcp_core.cost import exchanged
from dcp_core.settings import Case, ExchangeName, PathName
from dcp_core.shapes import Request

LSE_BYTES = 4
"""Of a float32 LSE, one per row and head."""
FLAG_BYTES, MOST_PROGRAMS = 8, 512
"""Of a mailbox: an int64 flag for each program of each rank, and a mark; ``dcp_core.triton_ops.mailbox`` says more."""
WORD_BYTES, MOST_ROWS_OF_WORDS = 8, 512
"""Of a mailbox: an int64 word for each element of 16 bits in the rows that a small call may have."""
ALIGNMENT = 256
"""Of rooms within a mailbox."""
LEAST_TOKENS = 64
"""A mailbox has room for a power of two of tokens, this at least."""
LEAST_FETCHED_ROWS = 1 << 14
"""Of a rank, from which copy engines carry a step of ``overlap``."""


def exchange_bytes(case: Case) -> int:
    """Return the bytes that a case's exchange keeps on one rank, for batches of as many tokens; all layers share them.

    Not what a library keeps for itself: NCCL's channels, or the rest of a page of symmetric memory (2 MiB), which the driver
    gives out whole.
    """
    if case.settings.exchange is ExchangeName.ALONE:
        return 0
    return sum(_one(case, requests, path) for requests, path in exchanged(case))


def _one(case: Case, requests: Sequence[Request], path: PathName) -> int:
    shape, heads, ranks = case.shape, case.layout.heads(case.shape), case.layout.dcp
    tokens, head_bytes = sum(request.new for request in requests), shape.head_dim * shape.dtype.itemsize
    partial_bytes = head_bytes + LSE_BYTES
    own, everything = tokens * heads.query, tokens * heads.gathered
    combined = own * partial_bytes
    match case.settings.exchange:
        case ExchangeName.AG_RS:
            # Queries by rank and in order; every rank's LSEs; the partial corrected, and its outputs by rank.
            return everything * (2 * head_bytes + ranks * LSE_BYTES + partial_bytes + head_bytes) + combined
        case ExchangeName.A2A:
            # Queries by rank and in order; partials to send and received.
            return everything * (2 * head_bytes + 2 * partial_bytes) + combined
        case ExchangeName.DIRECT if is_fetched(case, requests, path):
            # The least mailbox; queries and partials to be fetched; queries fetched; own, new and fetched partials.
            theirs, room = everything - own, _doubled(tokens)
            outbox = (
                heads.query * head_bytes,
                (ranks - 1) * heads.query * head_bytes,
                (ranks - 1) * heads.query * LSE_BYTES,
            )
            fetched = theirs * head_bytes + (ranks + 1) * own * partial_bytes
            return (
                mailbox_bytes(case, LEAST_TOKENS, LEAST_TOKENS) + sum(_aligned(room * row) for row in outbox) + fetched
            )
        case ExchangeName.DIRECT:
            places = _fold_places(case, requests) if path is PathName.FOLD else tokens
            index = 4 * ranks * tokens if path is PathName.FOLD else 0
            return mailbox_bytes(case, tokens, places) + combined + index
        case _:
            # Loopback: the queries of every seat, and the result.
            return everything * head_bytes + combined


def is_fetched(case: Case, requests: Sequence[Request], path: PathName) -> bool:
    """Tell whether copy engines carry what a case exchanges for some of its requests, in rooms of the exchange's own."""
    rows = sum(request.new for request in requests) * case.layout.heads(case.shape).query
    beside = case.settings.overlap and case.settings.exchange is ExchangeName.DIRECT
    return beside and path is PathName.SPLIT and rows >= LEAST_FETCHED_ROWS


def mailbox_bytes(case: Case, tokens: int, places: int) -> int:
    """Return the bytes of a mailbox of exchange ``direct``: flags, words, a room for gathered queries and one for partials.

    Args:
        tokens: of a batch.
        places: of gathered queries: as many, or more where rows fold.
    """
    heads, ranks = case.layout.heads(case.shape), case.layout.dcp
    head_bytes = case.shape.head_dim * case.shape.dtype.itemsize
    tokens, places = _doubled(tokens), _doubled(places)
    words = WORD_BYTES * ranks * MOST_ROWS_OF_WORDS if case.shape.dtype.itemsize == 2 else 0
    parts = (
        FLAG_BYTES * ranks * (MOST_PROGRAMS + 1),
        words * case.shape.head_dim,
        words * (case.shape.head_dim + 2),
        places * heads.gathered * head_bytes,
        tokens * heads.gathered * head_bytes,
        tokens * heads.gathered * LSE_BYTES,
    )
    return sum(map(_aligned, parts))


def _fold_places(case: Case, requests: Sequence[Request]) -> int:
    """Return the places of rank 0, which has most of them: ``dcp`` to a row that sees a key; see ``dcp_core.fold``."""
    dcp = case.layout.dcp
    return sum(dcp * (-(-one.new // dcp) - (one.context == 0)) for one in requests)


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _doubled(tokens: int) -> int:
    return 1 << max(tokens - 1, LEAST_TOKENS - 1).bit_length()
