"""FlashInfer 0.7's fa2 planner, statement by statement: what the closed forms of dcp_core.workspace are checked against.

Follows ``PrefillPlanImpl``, ``PrefillSplitQOKVIndptr``, ``PrefillBinarySearchKVChunkSize`` (scheduler.cuh) and
``AlignedAllocator`` (allocator.h), lists and all.
"""

from __future__ import annotations

from dcp_core.workspace import Planner

MAX_INT64 = (1 << 63) - 1


class Overflow(Exception):
    """The planner refuses the batch."""


class Allocator:
    """Counts what is allocated, padding between allocations included."""

    def __init__(self) -> None:
        self.allocated = 0

    def allocate(self, size: int, alignment: int) -> None:
        padding = 0
        if alignment > 1:
            padding = (alignment - self.allocated % alignment) % alignment
        self.allocated += padding + size


def ceil_div(x: int, y: int) -> int:
    return (x + y - 1) // y


def chunk_size(
    graph: bool, most: int, packed_qo_lens: list[int], kv_lens: list[int], qo_chunk: int, least: int
) -> tuple[bool, int]:
    longest = 1
    for kv_len in kv_lens:
        longest = max(longest, kv_len)
    low, high = least, longest
    while low < high:
        middle = (low + high) // 2
        batch = 0
        for qo_len, kv_len in zip(packed_qo_lens, kv_lens, strict=True):
            batch += ceil_div(qo_len, qo_chunk) * ceil_div(max(kv_len, 1), middle)
        if batch > most:
            low = middle + 1
        else:
            high = middle
    return graph or low < longest, low


def cta_tile_q(packed_qo_len: int, head_dim: int) -> int:
    if packed_qo_len > 64 and head_dim < 256:
        return 128
    if packed_qo_len > 16:
        return 64
    return 16


def tile_and_room(planner: Planner, packed: list[int], total_num_rows: int) -> tuple[int, int]:
    """The query tile, and the tiles that a graph has room for."""
    requests, group, head_dim = len(packed), planner.group, planner.head_dim
    if not planner.replayable:
        return cta_tile_q(sum(packed) // requests, head_dim), 0
    if planner.uniform_new > 0:
        tile = cta_tile_q(planner.uniform_new * group, head_dim)
        total_tiles = requests * ceil_div(planner.uniform_new * group, tile)
    else:
        max_seq_len = (total_num_rows - requests + 1) & 0xFFFFFFFF
        tile = cta_tile_q(max_seq_len * group, head_dim)
        total_tiles = ceil_div(total_num_rows * group, tile) + requests - 1
    return tile, max(2 * planner.multiprocessors // planner.kv_heads, total_tiles)


def partition(planner: Planner, packed: list[int], kv_pages: list[int], tile: int) -> tuple[bool, int, int]:
    """Whether KV is split, the blocks that come of it, and their partial rows."""
    split, chunk = False, MAX_INT64
    if planner.split_kv and planner.fixed_split_pages > 0:
        chunk = planner.fixed_split_pages
    elif planner.split_kv:
        most, least = 2 * planner.multiprocessors // planner.kv_heads, max(128 // planner.page_size, 1)
        split, chunk = chunk_size(planner.replayable, most, packed, kv_pages, tile, least)
    blocks = partial_rows = 0
    for length, kv_len in zip(packed, kv_pages, strict=True):
        chunks = ceil_div(max(kv_len, 1), chunk) if planner.split_kv else 1
        if planner.fixed_split_pages > 0 and planner.split_kv:
            split = split or chunks > 1
        for _ in range(ceil_div(length, tile)):
            for _ in range(chunks):
                blocks += 1
        partial_rows += length // planner.group * chunks
    return split, blocks, partial_rows


def plan(planner: Planner, q_lens: list[int], kv_lens: list[int], max_rows: int) -> tuple[int, int]:
    """Return the float and int bytes that the planner allocates; raises Overflow where it refuses."""
    packed = [queries * planner.group for queries in q_lens]
    kv_pages = [ceil_div(keys, planner.page_size) for keys in kv_lens]
    graph, total_num_rows = planner.replayable, max_rows if planner.replayable else sum(q_lens)
    tile, room = tile_and_room(planner, packed, total_num_rows)
    split, blocks, partial_rows = partition(planner, packed, kv_pages, tile)
    padded = room if graph else blocks
    if blocks > padded:
        raise Overflow
    integers, floats = Allocator(), Allocator()
    for _ in range(3):
        integers.allocate(4 * padded, 16)
    integers.allocate(4 * (len(q_lens) + 1), 16)
    integers.allocate(4, 1)
    if graph:
        integers.allocate(4, 16)
    if split:
        rows = padded * tile
        if planner.per_row:
            rows = ceil_div(rows, planner.group)
            assert partial_rows <= rows
        floats.allocate(planner.q_heads * rows * planner.head_dim * 4, 16)
        floats.allocate(planner.q_heads * rows * 4, 16)
        integers.allocate(4 * (total_num_rows + 1), 16)
        if not planner.per_row:
            integers.allocate(padded, 16)
    if graph and planner.per_row:
        integers.allocate(padded, 16)
    return floats.allocated, integers.allocated
