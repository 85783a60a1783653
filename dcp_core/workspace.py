"""What a plan of FlashInfer takes of its float and int workspaces, to the byte, by version. Floor 1: standard library only.

Formulas from FlashInfer's ``include/flashinfer/attention/scheduler.cuh`` and ``utils.cuh`` (``FA2DetermineCtaTileQ``), read
for 0.2.9 to 0.7.2 on devices of compute capability 8.0 and above, and from how ``prefill.py`` and ``decode.py`` call them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

NEWEST_READ = "0.7.2"
"""The newest FlashInfer whose planner these formulas were read from."""
OLDEST_READ, PER_ROW_SINCE = (0, 2, 9), (0, 7, 1)
FIXED_SPLIT_SINCE, UNIFORM_SINCE = (0, 4, 0), (0, 6, 15)
ALIGNMENT = 16
"""Of every allocation but one, in bytes: one step of a workspace's size."""
FA3_WORKS_PER_HEAD = 4096
"""Above so many tiles, padding included, fa3 lists its work once for all heads."""
MAX_HEAD_DIM = 256
"""Wider heads have query tiles of their own, other ones in every few versions."""
_FLOAT = _INT = 4
_KV_CHUNK_TOKENS = 128


class WorkspaceError(ValueError):
    """A plan that FlashInfer does not make, or a version whose planner was not read."""


@dataclass(frozen=True, slots=True)
class WorkspaceNeed:
    """Bytes that a plan takes of a wrapper's float and int workspace; of the pinned host memory, as many as of the latter."""

    float_bytes: int
    int_bytes: int


@dataclass(frozen=True, slots=True)
class Planner:
    """All that a plan's workspace depends on besides its batch.

    Args:
        q_heads, kv_heads: that the pass sees, so after the gather (and after folding).
        page_size: tokens per page; 1 for a ragged pass.
        multiprocessors: of the device (its SM count).
        version: of FlashInfer.
        replayable: planned for CUDA graphs.
        uniform_new: tokens that every request of a replayable batch has, promised to FlashInfer (0.6.15 and later); 0: no
            promise. The decode wrapper promises nothing where each request has one token.
        fixed_split_pages: pages of a KV chunk, instead of FlashInfer's choice (0.4.0 and later); 0: its choice.
        split_kv: False for ``disable_split_kv``.

    Raises:
        WorkspaceError: for a version or a head that was not read, sizes that are no sizes, or options that the version lacks.
    """

    q_heads: int
    kv_heads: int
    head_dim: int
    multiprocessors: int
    page_size: int = 16
    version: str = NEWEST_READ
    replayable: bool = False
    uniform_new: int = 0
    fixed_split_pages: int = 0
    split_kv: bool = True

    def __post_init__(self) -> None:
        release = release_of(self.version)
        for field in ("q_heads", "kv_heads", "head_dim", "multiprocessors", "page_size"):
            if getattr(self, field) < 1:
                raise WorkspaceError(f"{field} of a plan is a positive whole number, not {getattr(self, field)}")
        if self.q_heads % self.kv_heads:
            raise WorkspaceError(f"{self.q_heads} query heads cannot share {self.kv_heads} KV heads equally")
        if self.head_dim > MAX_HEAD_DIM:
            raise WorkspaceError(
                f"workspaces are known for heads of up to {MAX_HEAD_DIM} elements, not {self.head_dim}"
            )
        for field, since in (("fixed_split_pages", FIXED_SPLIT_SINCE), ("uniform_new", UNIFORM_SINCE)):
            value = getattr(self, field)
            if value < 0 or (value and release < since):
                known = ".".join(map(str, since))
                raise WorkspaceError(f"{field} is 0 or more, and 0 before FlashInfer {known}, not {value}")

    @property
    def group(self) -> int:
        """Query heads that share one KV head."""
        return self.q_heads // self.kv_heads

    @property
    def per_row(self) -> bool:
        """True if partial results are reserved per query row; before 0.7.1 as many rows as (row, head) pairs were."""
        return release_of(self.version) >= PER_ROW_SINCE

    @property
    def wave(self) -> int:
        """Tiles that a KV head may have if KV is split: two blocks per multiprocessor (``PrefillPlanImpl``)."""
        return 2 * self.multiprocessors // self.kv_heads

    @property
    def least_chunk_pages(self) -> int:
        """Pages of the smallest KV chunk that FlashInfer chooses itself."""
        return max(_KV_CHUNK_TOKENS // self.page_size, 1)


def release_of(version: str) -> tuple[int, int, int]:
    """Return a FlashInfer version's three numbers.

    Raises:
        WorkspaceError: for what is no version, or one outside those that were read.
    """
    match = re.fullmatch(r"(\d{1,4})\.(\d{1,4})(?:\.(\d{1,4}))?(?:[.+-]?[a-z0-9.+]{1,40})?", version, re.ASCII)
    release = (int(match[1]), int(match[2]), int(match[3] or 0)) if match else (0, 0, 0)
    if not OLDEST_READ <= release < (0, 8, 0):
        oldest = ".".join(map(str, OLDEST_READ))
        raise WorkspaceError(
            f"workspaces are known for FlashInfer {oldest} to 0.7, not {version[:40]!r}; write it as {NEWEST_READ}"
        )
    return release


def query_tile(packed_len: int, head_dim: int) -> int:
    """Return fa2's query tile in (query, head) pairs, for requests of ``packed_len`` of them (``FA2DetermineCtaTileQ``)."""
    if packed_len > 64 and head_dim < 256:
        return 128
    return 64 if packed_len > 16 else 16


def fa2_need(planner: Planner, q_lens: Sequence[int], kv_lens: Sequence[int], *, room_rows: int = 0) -> WorkspaceNeed:
    """Return what an fa2 plan takes: a paged or ragged prefill, or a decode with tensor cores (``PrefillPlanImpl``).

    Args:
        q_lens, kv_lens: queries and keys of each request.
        room_rows: rows of the first batch that a replayable wrapper planned, if more than this batch's.

    Raises:
        WorkspaceError: for a batch that FlashInfer does not plan.
    """
    _check_batch(q_lens, kv_lens)
    rows, requests, room = sum(q_lens), len(q_lens), 0
    if planner.replayable:
        rows = max(rows, room_rows)
        _check_promise(planner, q_lens)
        tile, room = _graph_tiles(planner, rows, requests)
    else:
        tile = query_tile(rows * planner.group // requests, planner.head_dim)
    tiles = [-(-queries * planner.group // tile) for queries in q_lens]
    split, blocks = _blocks(planner, tiles, [-(-keys // planner.page_size) for keys in kv_lens])
    if planner.replayable and blocks > room:
        raise WorkspaceError(
            f"KV chunks of {planner.fixed_split_pages} pages make {blocks} tiles of a replayable batch that has room for "
            f"{room}, and FlashInfer refuses it; use longer chunks or an eager plan"
        )
    return fa2_bytes(planner, tile=tile, blocks=max(blocks, room), rows=rows, requests=requests, split=split)


def graph_need(planner: Planner, *, rows: int, requests: int) -> WorkspaceNeed:
    """Return what a replayable fa2 plan takes, whatever its batch: it splits KV whether that helps or not.

    Args:
        rows, requests: of the first batch that the wrapper planned, or will plan.

    Raises:
        WorkspaceError: if there is no request.
    """
    if requests < 1 or rows < 0:
        raise WorkspaceError(f"a graph is of one request or more, not of {requests} with {rows} rows")
    planner = replace(planner, replayable=True)
    tile, room = _graph_tiles(planner, rows, requests)
    return fa2_bytes(planner, tile=tile, blocks=room, rows=rows, requests=requests, split=planner.split_kv)


def fa2_bytes(planner: Planner, *, tile: int, blocks: int, rows: int, requests: int, split: bool) -> WorkspaceNeed:
    """Return the sum of ``PrefillPlanImpl``'s allocations for a plan of ``blocks`` tiles, padding included.

    Float, if KV is split: ``batch_prefill_tmp_v`` and ``tmp_s``, a float32 row and LSE per head and partial row. Int:
    ``request_indices``, ``qo_tile_indices``, ``kv_tile_indices``, ``o_indptr`` with ``kv_chunk_size_ptr`` right behind it,
    ``total_num_rows`` of graphs, ``merge_indptr`` if split, and ``block_valid_mask``: of graphs, before 0.7.1 if split.
    """
    partials = blocks * tile
    if planner.per_row:
        partials = -(-partials // planner.group)
    scalars = _FLOAT * planner.q_heads * partials
    integers = [_INT * blocks] * 3 + [_INT * (requests + 2)]
    if planner.replayable:
        integers.append(_INT)
    if split:
        integers.append(_INT * (rows + 1))
    if planner.replayable if planner.per_row else split:
        integers.append(blocks)
    return WorkspaceNeed(_allocated(scalars * planner.head_dim, scalars) if split else 0, _allocated(*integers))


def fa3_need(planner: Planner, q_lens: Sequence[int], kv_lens: Sequence[int], *, room_rows: int = 0) -> WorkspaceNeed:
    """Return what an fa3 plan takes, which never splits KV: lists of work in the int workspace (``PrefillSM90Plan``).

    Raises:
        WorkspaceError: for a batch that FlashInfer does not plan.
    """
    _check_batch(q_lens, kv_lens)
    tile = fa3_query_tile(planner.head_dim)
    rows = max(sum(q_lens), room_rows if planner.replayable else 0)
    most = -(-rows // tile) + len(q_lens) - 1
    tiles = most if planner.replayable else sum(-(-queries // tile) for queries in q_lens)
    return fa3_bytes(planner, works=tiles * (1 if most > FA3_WORKS_PER_HEAD else planner.q_heads))


def fa3_query_tile(head_dim: int) -> int:
    """Return fa3's query tile in rows: it does not pack the heads of a group (``PrefillSM90Plan``)."""
    return 192 if head_dim == 64 else 128


def fa3_bytes(planner: Planner, *, works: int) -> WorkspaceNeed:
    """Return the sum of ``PrefillSM90Plan``'s allocations: seven lists of work, and where each multiprocessor's begins."""
    return WorkspaceNeed(0, _allocated(*[_INT * works] * 6, _INT * (planner.multiprocessors + 1), _INT * works))


def cuda_core_need(planner: Planner, kv_lens: Sequence[int], *, grid: int) -> WorkspaceNeed:
    """Return what a decode plan without tensor cores takes (``DecodePlanImpl``).

    Args:
        kv_lens: keys of each request.
        grid: thread blocks that the device holds at once, the planner's ``max_grid_size``: multiprocessors times the blocks
            per multiprocessor that the CUDA runtime's occupancy query tells for the compiled kernel. Only a device knows;
            ``cuda_core_grid`` bounds it, and a larger grid never needs less.

    Raises:
        WorkspaceError: for an empty batch or lengths below 0.
    """
    _check_batch([1] * len(kv_lens), kv_lens)
    requests = len(kv_lens)
    pages = [-(-keys // planner.page_size) for keys in kv_lens]
    split, blocks = False, requests
    if requests * planner.kv_heads < grid:
        chunk = _smallest_chunk(
            [1] * requests, pages, grid // planner.kv_heads, planner.least_chunk_pages, least_page=0
        )
        blocks = sum(-(-max(count, 1) // chunk) for count in pages)
        split = planner.replayable or blocks > requests
    if planner.replayable and split:
        blocks = grid // planner.kv_heads
    scalars = _FLOAT * planner.q_heads * blocks
    integers = [_INT * blocks, _INT * blocks, _INT * (blocks + 2), *([blocks] if split else [])]
    return WorkspaceNeed(_allocated(scalars * planner.head_dim, scalars) if split else 0, _allocated(*integers))


def cuda_core_grid(planner: Planner, *, kv_itemsize: int) -> int:
    """Return a bound on ``cuda_core_need``'s grid: what 2,048 threads a multiprocessor allow; registers may allow less.

    The kernel's threads are those of ``BatchDecodeWithPagedKVCacheWorkEstimationDispatched``.
    """
    vector = max(16 // kv_itemsize, planner.head_dim // 32)
    threads = max(128, planner.head_dim // vector * planner.group)
    return planner.multiprocessors * (2048 // threads)


def _check_batch(q_lens: Sequence[int], kv_lens: Sequence[int]) -> None:
    if not q_lens or len(q_lens) != len(kv_lens) or min(*q_lens, *kv_lens) < 0:
        raise WorkspaceError(
            "a plan takes a batch of one request or more, each with a number of queries and of keys from 0"
        )


def _check_promise(planner: Planner, q_lens: Sequence[int]) -> None:
    if planner.uniform_new and set(q_lens) != {planner.uniform_new}:
        raise WorkspaceError(f"a batch of {planner.uniform_new} new tokens each was promised, not {tuple(q_lens)[:8]}")


def _graph_tiles(planner: Planner, rows: int, requests: int) -> tuple[int, int]:
    """The query tile of a graph, for the longest request that may come, and how many of them it has room for."""
    if planner.uniform_new:
        packed_len = planner.uniform_new * planner.group
        tile = query_tile(packed_len, planner.head_dim)
        return tile, max(planner.wave, requests * -(-packed_len // tile))
    # Of more requests than rows the difference wraps round, being unsigned.
    tile = query_tile((rows - requests + 1) % (1 << 32) * planner.group, planner.head_dim)
    return tile, max(planner.wave, -(-rows * planner.group // tile) + requests - 1)


def _blocks(planner: Planner, tiles: Sequence[int], pages: Sequence[int]) -> tuple[bool, int]:
    """Whether KV is split, and into how many blocks of one query tile and one KV chunk (``PrefillSplitQOKVIndptr``)."""
    if not planner.split_kv:
        return False, sum(tiles)
    longest = max(1, *pages)
    least = planner.least_chunk_pages
    chunk = planner.fixed_split_pages or _smallest_chunk(tiles, pages, planner.wave, least, least_page=1)
    blocks = sum(count * -(-max(length, 1) // chunk) for count, length in zip(tiles, pages, strict=True))
    if planner.fixed_split_pages:
        return longest > chunk, blocks
    return planner.replayable or chunk < longest, blocks


def _smallest_chunk(tiles: Sequence[int], pages: Sequence[int], most: int, least: int, *, least_page: int) -> int:
    """The fewest pages of a chunk, from ``least``, with which no more than ``most`` blocks come out, if any does."""
    low, high = least, max(least_page, *pages)
    while low < high:
        middle = (low + high) // 2
        if (
            sum(count * -(-max(length, least_page) // middle) for count, length in zip(tiles, pages, strict=True))
            > most
        ):
            low = middle + 1
        else:
            high = middle
    return low


def _allocated(*sizes: int) -> int:
    """Bytes up to the end of the last of the allocations, each aligned (``AlignedAllocator`` of allocator.h)."""
    end = 0
    for size in sizes:
        end = -(-end // ALIGNMENT) * ALIGNMENT + size
    return end
