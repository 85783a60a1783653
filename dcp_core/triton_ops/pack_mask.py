"""The interleaved causal mask as bits, written straight to the device's memory. Floor 3.

A row of the mask is a run of ones and then zeros, so its words of 64 bits are full ones, one border, and zeros. A row owns
the bytes whose first bit is its own: words that lie wholly inside it are stored as words, the bytes at its two ends one
by one. Only its last byte may reach into the rows that follow.

The host knows a few numbers per request, which travel in one small copy; a program works out its rows from them.
"""

from __future__ import annotations

from itertools import accumulate

import torch
import triton
import triton.language as tl

from dcp_core.layout import DcpLayout
from dcp_core.mask import InterleavedMask, PackedMask, byte_offsets

ROWS = 32
"""Rows of a program: what a row costs but once is shared by many words."""
MOST_WORDS = 256
"""Words of 64 bits that a program writes of each row: 32768 × 16384 bits make 1024 programs of 64 KiB, one wave of 132 SMs."""


def pack_mask(rule: InterleavedMask, device: torch.device) -> PackedMask:
    """Return the mask of a batch as bits, bit for bit what ``rule.packed(device)`` returns.

    Never waits for the device: sizes and offsets are worked out on the host.

    Raises:
        ValueError: if the mask has more bytes than int32 counts.
    """
    # Plain numbers: a tensor's operation costs the host as much as a request here, and planning waits for all of it.
    layout, new = DcpLayout(1, rule.dcp, rule.interleave), rule.new_lens
    shares = {total: layout.local_len(total, rule.rank) for total in set(rule.total_lens)}
    widths = [shares[total] for total in rule.total_lens]
    contexts = [total - own for own, total in zip(new, rule.total_lens, strict=True)]
    offsets = byte_offsets(new, widths)
    requests, rows, size = len(new), sum(new), offsets[-1]
    # int32: a batch of more rows than that counts has more bytes, too.
    table = torch.tensor([*offsets, *accumulate(new), *new, *contexts, *widths], dtype=torch.int32).to(device)
    if not size:
        return PackedMask(torch.empty(0, dtype=torch.uint8, device=device), table[: requests + 1])
    on_device, row_ends, new_lens, contexts_there, widths_there = table.split((requests + 1, *[requests] * 4))
    words = torch.empty(triton.cdiv(size, 8), dtype=torch.int64, device=device)
    packed = words.view(torch.uint8)[:size]
    whole_words = max(max(widths) // 64, 1)
    columns = min(max(triton.next_power_of_2(whole_words), 32), MOST_WORDS)
    _pack_rows[(triton.cdiv(rows, ROWS), triton.cdiv(whole_words, columns))](
        words,
        packed,
        row_ends,
        new_lens,
        contexts_there,
        widths_there,
        on_device,
        rows,
        requests,
        requests.bit_length(),
        rule.dcp,
        rule.rank,
        rule.interleave,
        HEIGHT=ROWS,
        COLUMNS=columns,
    )
    return PackedMask(packed, on_device)


@triton.jit(do_not_specialize=["rows", "requests", "request_bits", "dcp", "rank", "interleave"])
def _pack_rows(
    words,
    packed,
    row_ends,
    new_lens,
    contexts,
    widths,
    byte_indptr,
    rows,
    requests,
    request_bits,
    dcp,
    rank,
    interleave,
    HEIGHT: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    row = tl.program_id(0) * HEIGHT + tl.arange(0, HEIGHT)
    live = row < rows
    owner = _request_of(row, row_ends, requests, request_bits, HEIGHT)
    width = tl.load(widths + owner, live, 0)
    row_end = tl.load(row_ends + owner, live, 0)
    row_in_request = row - row_end + tl.load(new_lens + owner, live, 0)
    position = row_in_request + tl.load(contexts + owner, live, 0)
    seen = tl.where(live, _visible(position, dcp, rank, interleave), 0)
    # int64: a batch has more bits than int32 counts. Within a row, and from here on, int32 does.
    first_bit = tl.load(byte_indptr + owner, live, 0).to(tl.int64) * 8 + row_in_request.to(tl.int64) * width
    first_byte, end_byte = (first_bit + 7) // 8, (first_bit + width + 7) // 8
    first_word = (first_byte + 7) // 8
    end_word = tl.maximum(first_word, (end_byte - 1) // 8)

    ones = tl.maximum(seen - (first_word * 64 - first_bit).to(tl.int32), 0)
    full = (ones // 64)[:, None]
    border = ((tl.full((HEIGHT,), 1, tl.int64) << (ones % 64).to(tl.int64)) - 1)[:, None]
    inside = tl.where(live, end_word - first_word, 0).to(tl.int32)[:, None]
    column = tl.program_id(1) * COLUMNS + tl.arange(0, 32)[None, :]
    target = words + first_word[:, None] + column
    for start in tl.static_range(0, COLUMNS, 32):
        at = column + start
        word = tl.where(at < full, -1, tl.where(at == full, border, 0))
        tl.store(target + start, word, at < inside)

    if tl.program_id(1) == 0:
        lane = tl.arange(0, 16)[None, :]
        byte = tl.where(lane < 8, first_word[:, None], end_word[:, None]) * 8 - 8 + lane
        ends = live[:, None] & (byte >= first_byte[:, None]) & (byte < end_byte[:, None])
        low = (first_bit[:, None] - byte * 8).to(tl.int32)
        bits = _ones_between(low, low + seen[:, None])
        for step in tl.static_range(1, 8):
            low = tl.minimum(low + width[:, None], 8)
            reached = ends & (low < 8) & (row + step < row_end)[:, None]
            more = _visible(position + step, dcp, rank, interleave)[:, None]
            bits |= _ones_between(low, low + tl.where(reached, more, 0))
        tl.store(packed + byte, bits.to(tl.uint8), ends)


@triton.jit
def _request_of(row, row_ends, requests, request_bits, HEIGHT: tl.constexpr):
    """Return the request of each row: how many requests end at or before it, found bit by bit from the highest."""
    owner = tl.zeros((HEIGHT,), tl.int32)
    for bit in range(request_bits):
        more = owner + (1 << (request_bits - 1 - bit))
        inside = more < requests
        owner = tl.where(inside & (tl.load(row_ends + more - 1, inside, 0) <= row), more, owner)
    return owner


@triton.jit
def _visible(position, dcp, rank, interleave):
    """Return how many local keys the query at a position sees: ``dcp_core.shard.local_seq_lens`` of the tokens up to it."""
    block = dcp * interleave
    whole = (position + 1) // block
    rest = position + 1 - whole * block - rank * interleave
    return whole * interleave + tl.minimum(tl.maximum(rest, 0), interleave)


@triton.jit
def _ones_between(low, high):
    """Return a byte with the bits from ``low`` up to ``high`` set, as far as they lie in it."""
    return (1 << tl.minimum(tl.maximum(high, 0), 8)) - (1 << tl.minimum(tl.maximum(low, 0), 8))
