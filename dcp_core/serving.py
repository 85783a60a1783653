"""What a server's scheduler may send, and the FlashInfer workspace that its worst batch needs. Floor 1: standard library only.

The server is vLLM's FlashInfer backend: passes over the context with gathered heads, over the new tokens with a rank's own,
and decodes, eager or in one CUDA graph per captured batch size. They share one float workspace, one after another.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import gcd

from dcp_core.layout import DcpLayout
from dcp_core.shapes import ModelShape, Request, Workload
from dcp_core.spelling import nearest
from dcp_core.workspace import (
    FA3_WORKS_PER_HEAD,
    NEWEST_READ,
    Planner,
    WorkspaceError,
    WorkspaceNeed,
    fa2_bytes,
    fa2_need,
    fa3_bytes,
    fa3_query_tile,
    graph_need,
    query_tile,
)

VLLM_WORKSPACE_BYTES = 394 << 20
"""vLLM's float workspace unless ``VLLM_FLASHINFER_WORKSPACE_BUFFER_SIZE`` says otherwise."""
WRAPPER_BYTES = 8 << 20
"""Int workspace of each FlashInfer wrapper on the device, and as much pinned on the host (its ``prefill.py``, ``decode.py``)."""
EAGER_WRAPPERS = 3
"""Of a vLLM rank under DCP: over the context, over new tokens, and for decodes outside graphs."""
LARGEST_CAPTURE = 512
"""Decodes of the largest batch that vLLM captures unless told otherwise."""
MULTIPROCESSORS = {"a100": 108, "l40s": 142, "h20": 78, "h100": 132, "h200": 132, "b200": 148}
"""By GPU; of the H100, the SXM module (the PCIe card has 114)."""


def multiprocessors_of(gpu: str) -> int:
    """Return the multiprocessors of a GPU by its name, as ``h200``, or by their number itself, for one that is not listed.

    Raises:
        WorkspaceError: naming the nearest known GPU.
    """
    word = gpu.strip().lower().removeprefix("nvidia ")
    if re.fullmatch(r"[1-9][0-9]{0,3}", word, re.ASCII):
        return int(word)
    if word not in MULTIPROCESSORS:
        known = ", ".join(sorted(MULTIPROCESSORS))
        hint = nearest(word, MULTIPROCESSORS)
        raise WorkspaceError(f"unknown GPU {gpu[:40]!r}{hint}; known: {known}, or give its number of multiprocessors")
    return MULTIPROCESSORS[word]


@dataclass(frozen=True, slots=True)
class Limits:
    """What a scheduler may send: vLLM's ``max_num_batched_tokens``, ``max_num_seqs`` and ``max_model_len``.

    Args:
        captured: decodes of each batch size that is captured in a CUDA graph.

    Raises:
        WorkspaceError: for a limit below 1, or a captured size that no batch has.
    """

    max_batched_tokens: int = 8192
    max_sequences: int = 1024
    max_model_len: int = 131072
    captured: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for field in ("max_batched_tokens", "max_sequences", "max_model_len"):
            if getattr(self, field) < 1:
                raise WorkspaceError(f"{field} is a positive whole number, not {getattr(self, field)}")
        if wrong := [size for size in self.captured if not 1 <= size <= self.requests]:
            raise WorkspaceError(
                f"a captured batch has 1 to {self.requests} decodes under these limits, not {wrong[0]}"
            )

    @property
    def requests(self) -> int:
        """The most requests of one batch: each brings a token at least."""
        return min(self.max_sequences, self.max_batched_tokens)

    def captured_as_vllm_does(self) -> Limits:
        """Return these limits with the decode batches that vLLM captures by default: 1, 2, 4, by 8, and from 256 on by 16."""
        most = min(LARGEST_CAPTURE, self.requests)
        sizes = (1, 2, 4, *range(8, 256, 8), *range(256, LARGEST_CAPTURE + 1, 16))
        return replace(self, captured=tuple(size for size in sizes if size <= most))


@dataclass(frozen=True, slots=True)
class WorstCase:
    """The most that a kind of plan needs, and the batch that needs it.

    Args:
        need: no legal batch needs more; int bytes are a bound, float bytes exact where ``exact``.
        batch: as the scheduler sends it, whole sequences; None where no batch needs any float workspace.
        graph: the plan is a replayable one, of a captured decode batch.
        exact: ``batch`` needs ``need.float_bytes`` and no less. Only limits so tight that blocks never fill a wave leave
            it False, and ``need`` a bound.
    """

    need: WorkspaceNeed
    batch: Workload | None
    graph: bool
    exact: bool


@dataclass(frozen=True, slots=True)
class Server:
    """One rank of a server: what its plans depend on, and what may be sent to it.

    Raises:
        IllegalLayout: if the heads do not divide.
        WorkspaceError: as ``Planner``.
    """

    shape: ModelShape
    layout: DcpLayout
    limits: Limits
    multiprocessors: int
    page_size: int = 16
    version: str = NEWEST_READ

    def __post_init__(self) -> None:
        self.planner()

    def planner(self) -> Planner:
        """Return how passes over the rank's shard are planned outside graphs, with the heads after the gather."""
        heads, dim = self.layout.heads(self.shape), self.shape.head_dim
        return Planner(heads.gathered, heads.kv, dim, self.multiprocessors, self.page_size, self.version)

    def new_planner(self) -> Planner:
        """Return how passes over new tokens are planned, with the rank's own heads."""
        return replace(self.planner(), q_heads=self.layout.heads(self.shape).query, page_size=1)

    @property
    def wrappers(self) -> int:
        """FlashInfer wrappers of the rank: the eager ones, and one for each captured batch size."""
        return EAGER_WRAPPERS + len(self.limits.captured)

    def float_workspace(self, setting: int = VLLM_WORKSPACE_BYTES) -> int:
        """Return the bytes that vLLM allocates for a ``VLLM_FLASHINFER_WORKSPACE_BUFFER_SIZE``.

        However small the setting, 16 bytes per batched token, query head before the gather, and element of a head.
        """
        query_heads = self.layout.heads(self.shape).query
        return max(setting, 16 * self.limits.max_batched_tokens * query_heads * self.shape.head_dim)

    def worst_case(self) -> WorstCase:
        """Return the plan that needs most float workspace, with the most int workspace of any plan, fa3's included."""
        eager, graph = self.worst_eager(), self.worst_graph()
        first = graph if graph is not None and graph.need.float_bytes > eager.need.float_bytes else eager
        plans = [eager.need, self._fa3_bound(), *([graph.need] if graph is not None else [])]
        return replace(first, need=replace(first.need, int_bytes=max(need.int_bytes for need in plans)))

    def worst_graph(self) -> WorstCase | None:
        """Return what the largest captured decode batch needs, however long its sequences are; None if none is captured."""
        if not self.limits.captured:
            return None
        requests = max(self.limits.captured)
        need = graph_need(self.planner(), rows=requests, requests=requests)
        return WorstCase(need, Workload((Request(1, 1),) * requests), graph=True, exact=True)

    def worst_eager(self) -> WorstCase:
        """Return the most that an eager fa2 plan of a legal batch needs.

        KV is split only where no more than a wave of blocks comes of it, a block being a query tile over a KV chunk: so the
        worst batch fills a wave with the largest tiles. A pass over new tokens fills no more, and rounds less.
        """
        limits = self.limits
        longest = self.layout.local_len(limits.max_model_len, 0)
        new = min(limits.max_batched_tokens, limits.max_model_len)
        waves = list(_waves(self.planner(), limits, longest))
        wave = max(waves, key=lambda one: one.need.float_bytes)
        needs = [one.need for one in (*waves, *_waves(self.new_planner(), limits, new))]
        need = WorkspaceNeed(max(one.float_bytes for one in needs), max(one.int_bytes for one in needs))
        if not need.float_bytes:
            return WorstCase(need, None, graph=False, exact=True)
        batch = self._filling(wave)
        return WorstCase(need, batch, graph=False, exact=self._float_bytes(batch) == need.float_bytes)

    def _float_bytes(self, batch: Workload) -> int:
        return fa2_need(self.planner(), batch.new_lens, [self._keys(one) for one in batch.requests]).float_bytes

    def _reads_new(self, new: int) -> bool:
        """Whether the pass over the shard reads the new tokens too: decodes do, and without DCP every request does."""
        return new == 1 or self.layout.dcp == 1

    def _keys(self, request: Request) -> int:
        return self.layout.local_len(request.total if self._reads_new(request.new) else request.context, 0)

    def _request(self, new: int, chunks: int) -> Request | None:
        """The shortest request of so many new tokens whose pass over rank 0's shard reads so many KV chunks, if there is one."""
        planner = self.planner()
        keys = (chunks - 1) * planner.least_chunk_pages * planner.page_size + 1
        seen = self.layout.position(keys - 1, 0) + 1
        total = max(seen, new) if self._reads_new(new) else seen + new
        return Request(new, total) if total <= self.limits.max_model_len else None

    def _filling(self, wave: _Wave) -> Workload:
        """The batch that makes a wave's blocks, or of those tried the one that comes nearest."""
        best, most = Workload((Request(1, 1),)), -1
        for parts in _ways(wave, self.planner(), self.limits):
            requests = [self._request(new, chunks) for new, chunks in parts]
            rows = sum(new for new, _ in parts)
            if (
                not requests
                or None in requests
                or len(requests) > self.limits.requests
                or rows > self.limits.max_batched_tokens
            ):
                continue
            batch = Workload(tuple(one for one in requests if one is not None))
            if batch.is_mixed:  # its decodes would run apart
                continue
            if (size := self._float_bytes(batch)) > most:
                best, most = batch, size
            if most == wave.need.float_bytes:
                break
        return best

    def _fa3_bound(self) -> WorkspaceNeed:
        planner, limits = self.planner(), self.limits
        tiles = -(-limits.max_batched_tokens // fa3_query_tile(planner.head_dim)) + limits.requests - 1
        return fa3_bytes(planner, works=max(tiles, min(tiles, FA3_WORKS_PER_HEAD) * planner.q_heads))


@dataclass(frozen=True, slots=True)
class _Wave:
    """A bound on the eager plans of one query tile.

    Args:
        least: (query, head) pairs of the mean request from which on FlashInfer chooses the tile.
        requests: the most of a batch whose mean request has so many.
        chunks: KV chunks of the longest request.
        blocks: query tiles over KV chunks, of all requests.
    """

    tile: int
    least: int
    requests: int
    chunks: int
    blocks: int
    need: WorkspaceNeed


def _waves(planner: Planner, limits: Limits, longest: int) -> Iterator[_Wave]:
    """Yield a bound per query tile that a legal batch can bring about; ``longest``: keys that a request may have."""
    pages = -(-longest // planner.page_size)
    chunks = -(-pages // planner.least_chunk_pages)
    for least, most in ((1, 16), (17, 64), (65, None)) if planner.head_dim < 256 else ((1, 16), (17, None)):
        tile, rows = query_tile(least, planner.head_dim), limits.max_batched_tokens
        requests = min(limits.requests, rows * planner.group // least)
        if not requests or (most is not None and planner.group > most):
            continue
        if most is not None:
            rows = min(rows, ((most + 1) * requests - 1) // planner.group)
        # A request of r rows has at most (r * group + tile - gcd) / tile tiles.
        tiles = (rows * planner.group + requests * (tile - gcd(planner.group, tile))) // tile
        blocks = min(planner.wave, chunks * tiles) if chunks > 1 else 0
        split = blocks > 1
        partial = fa2_bytes(planner, tile=tile, blocks=blocks, rows=rows, requests=requests, split=split)
        indices = fa2_bytes(planner, tile=tile, blocks=max(tiles, blocks), rows=rows, requests=requests, split=split)
        yield _Wave(tile, least, requests, chunks, blocks, replace(partial, int_bytes=indices.int_bytes))


def _ways(wave: _Wave, planner: Planner, limits: Limits) -> Iterator[list[tuple[int, int]]]:
    """Yield ways to make a wave's blocks, each as (new tokens, KV chunks) of every request."""
    group, tile = planner.group, wave.tile
    least = -(-wave.least // group)
    full, rest = divmod(wave.blocks // -(-least * group // tile), wave.chunks)
    yield [(least, wave.chunks)] * full + [(least, rest)] * (rest > 0)
    # One request of many tiles, and what is left over in one of few: any two sequences, or one of the right length.
    for chunks in range(min(wave.chunks, wave.blocks), 1, -1):
        count, rest = divmod(wave.blocks, chunks)
        rows = max(least, (count - 1) * tile // group + 1)
        yield [(rows, chunks)] + [(least, rest)] * (rest > 0)
        yield [(rows, chunks)]
    # As many requests as there may be, all but the first as short as one that is no decode.
    rows = limits.max_batched_tokens - 2 * (wave.requests - 1)
    if rows > 1:
        yield [(rows, wave.chunks)] + [(2, wave.chunks)] * (wave.requests - 1)
