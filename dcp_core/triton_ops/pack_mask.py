"""The interleaved causal mask as bits, written straight to the device's memory. Floor 3.

A row of the mask is a run of ones and then zeros, so its words of 64 bits are full ones, one border, and zeros. A row owns
the bytes whose first bit is its own: words that lie wholly inside it are stored as words, the bytes at its two ends one
by one. Only its last byte may reach into the rows that follow.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dcp_core.mask import MaskRows

ROWS = 32
"""Rows of a program: what a row costs but once is shared by many words."""
MOST_WORDS = 256
"""Words of 64 bits that a program writes of each row: 32768 × 16384 bits make 1024 programs of 64 KiB, one wave of 132 SMs."""


def pack_rows(rows: MaskRows) -> Tensor:
    """Return the bits of a mask's rows: uint8, bit for bit what ``dcp_core.mask.pack_rows`` returns.

    Waits for the device once, to learn how many bytes to allocate.
    """
    count = rows.visible.numel()
    if not count:
        return rows.visible.new_empty(0, dtype=torch.uint8)
    byte_indptr = rows.byte_indptr()
    size, widest = torch.stack((byte_indptr[-1], rows.widths.max())).tolist()
    words = torch.empty(triton.cdiv(size, 8), dtype=torch.int64, device=rows.visible.device)
    packed = words.view(torch.uint8)[:size]
    if size:
        whole_words = max(widest // 64, 1)
        columns = min(max(triton.next_power_of_2(whole_words), 32), MOST_WORDS)
        _pack_rows[(triton.cdiv(count, ROWS), triton.cdiv(whole_words, columns))](
            words,
            packed,
            rows.visible,
            rows.request,
            rows.new_lens.cumsum(0),
            rows.new_lens,
            rows.widths,
            byte_indptr,
            count,
            HEIGHT=ROWS,
            COLUMNS=columns,
        )
    return packed


@triton.jit(do_not_specialize=["rows"])
def _pack_rows(
    words,
    packed,
    visible,
    request,
    row_ends,
    new_lens,
    widths,
    byte_indptr,
    rows,
    HEIGHT: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    row = tl.program_id(0) * HEIGHT + tl.arange(0, HEIGHT)
    live = row < rows
    owner = tl.load(request + row, live, 0)
    width = tl.load(widths + owner, live, 0)
    row_end = tl.load(row_ends + owner, live, 0)
    row_in_request = row - row_end + tl.load(new_lens + owner, live, 0)
    seen = tl.load(visible + row, live, 0)
    # int64: a batch has more bits than int32 counts. Within a row, and from here on, int32 does.
    first_bit = tl.load(byte_indptr + owner, live, 0) * 8 + row_in_request * width
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
            low = tl.minimum(low + width[:, None].to(tl.int32), 8)
            reached = ends & (low < 8) & (row + step < row_end)[:, None]
            bits |= _ones_between(low, low + tl.load(visible + row[:, None] + step, reached, 0))
        tl.store(packed + byte, bits.to(tl.uint8), ends)


@triton.jit
def _ones_between(low, high):
    """Return a byte with the bits from ``low`` up to ``high`` set, as far as they lie in it."""
    return (1 << tl.minimum(tl.maximum(high, 0), 8)) - (1 << tl.minimum(tl.maximum(low, 0), 8))
