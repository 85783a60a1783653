"""The batch that needs most of FlashInfer's workspace, of all that a scheduler may send. Floor 1: standard library only."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import gcd

from dcp_core.serving import Limits, Server
from dcp_core.shapes import Request, Workload
from dcp_core.workspace import (
    FA3_WORKS_PER_HEAD,
    Planner,
    WorkspaceNeed,
    fa2_bytes,
    fa2_need,
    fa3_bytes,
    fa3_query_tile,
    graph_need,
    query_tile,
)


@dataclass(frozen=True, slots=True)
class WorstCase:
    """The most that a kind of plan needs, and the batch that needs it.

    Args:
        need: no legal batch needs more. Int bytes are a bound; so are float bytes, if not ``exact``.
        batch: the one that needs most, whole sequences as the scheduler sends them; None if none needs any float workspace.
        batch_bytes: float bytes that it needs.
        graph: the plan is a replayable one, of a captured decode batch.
    """

    need: WorkspaceNeed
    batch: Workload | None
    batch_bytes: int
    graph: bool

    @property
    def exact(self) -> bool:
        """True if the batch needs all of ``need.float_bytes``: always but under limits that hardly let a wave of blocks fill."""
        return self.batch_bytes == self.need.float_bytes


def worst_case(server: Server) -> WorstCase:
    """Return the plan that needs most float workspace, with the most int workspace of any plan, fa3's included."""
    eager, graph = worst_eager(server), worst_graph(server)
    first = graph if graph is not None and graph.need.float_bytes > eager.need.float_bytes else eager
    plans = [eager.need, _fa3_bound(server), *([graph.need] if graph is not None else [])]
    return replace(first, need=replace(first.need, int_bytes=max(need.int_bytes for need in plans)))


def worst_graph(server: Server) -> WorstCase | None:
    """Return what the largest captured decode batch needs, however long its sequences are; None if none is captured."""
    if not server.limits.captured:
        return None
    requests = max(server.limits.captured)
    need = graph_need(server.planner(), rows=requests, requests=requests)
    return WorstCase(need, Workload((Request(1, 1),) * requests), need.float_bytes, graph=True)


def worst_eager(server: Server) -> WorstCase:
    """Return the most that an eager fa2 plan of a legal batch needs.

    KV is split only where no more than a wave of blocks comes of it, a block being a query tile over a KV chunk: so the
    worst batch fills a wave with the largest tiles. A pass over new tokens fills no more, and rounds less.
    """
    limits = server.limits
    longest = server.layout.local_len(limits.max_model_len, 0)
    new = min(limits.max_batched_tokens, limits.max_model_len)
    waves = list(_waves(server.planner(), limits, longest))
    wave = max(waves, key=lambda one: one.need.float_bytes)
    needs = [one.need for one in (*waves, *_waves(server.new_planner(), limits, new))]
    need = WorkspaceNeed(max(one.float_bytes for one in needs), max(one.int_bytes for one in needs))
    batch, size = _filling(server, wave)
    return WorstCase(need, batch, size, graph=False)


def _float_bytes(server: Server, batch: Workload) -> int:
    return fa2_need(server.planner(), batch.new_lens, [_keys(server, one) for one in batch.requests]).float_bytes


def _reads_new(server: Server, new: int) -> bool:
    """Whether the pass over the shard reads the new tokens too: decodes do, and without DCP every request does."""
    return new == 1 or server.layout.dcp == 1


def _keys(server: Server, request: Request) -> int:
    return server.layout.local_len(request.total if _reads_new(server, request.new) else request.context, 0)


def _seen(server: Server, chunks: int) -> int:
    """Tokens of the shortest sequence of which rank 0 holds so many KV chunks."""
    return server.layout.position((chunks - 1) * _chunk(server), 0) + 1


def _chunk(server: Server) -> int:
    return server.planner().least_chunk_pages * server.page_size


def _request(server: Server, new: int, chunks: int) -> Request:
    """The shortest request of so many new tokens whose pass over rank 0's shard reads so many KV chunks."""
    seen = _seen(server, chunks)
    return Request(new, max(seen, new) if _reads_new(server, new) else seen + new)


def _most_new(server: Server, chunks: int) -> int:
    """The most new tokens of a request that is no decode and reads so many KV chunks."""
    longest = server.limits.max_model_len
    room = min(longest, chunks * _chunk(server)) if _reads_new(server, 2) else longest - _seen(server, chunks)
    return min(room, server.limits.max_batched_tokens)


def _filling(server: Server, wave: _Wave) -> tuple[Workload | None, int]:
    """The batch that makes a wave's blocks, or of those tried the one that comes nearest, and what it needs."""
    best, most, limits = None, 0, server.limits
    for parts in _ways(server, wave):
        new, requests = [new for new, _ in parts], [_request(server, new, chunks) for new, chunks in parts]
        longest = max((request.total for request in requests), default=limits.max_model_len + 1)
        if len(new) > limits.requests or sum(new) > limits.max_batched_tokens or longest > limits.max_model_len:
            continue
        batch = Workload(tuple(requests))
        size = 0 if batch.is_mixed else _float_bytes(server, batch)  # decodes would run apart
        if size > most:
            best, most = batch, size
        if most == wave.need.float_bytes:
            break
    return best, most


def _ways(server: Server, wave: _Wave) -> Iterator[list[tuple[int, int]]]:
    """Yield ways to make a wave's blocks, each as (new tokens, KV chunks) of every request."""
    group, tile, blocks = server.planner().group, wave.tile, wave.blocks
    least = -(-wave.least // group)
    # Of each number of chunks, as many tiles as a request has room for beside them.
    room = {chunks: _most_new(server, chunks) for chunks in range(min(wave.chunks, blocks), 0, -1)}
    tiles = {chunks: (most - 1) * group // tile + 1 for chunks, most in room.items() if most >= least}

    def part(count: int, chunks: int) -> list[tuple[int, int]]:
        return [(max(least, (count - 1) * tile // group + 1), chunks)] if count else []

    # As few new tokens in each request as choose the tile.
    full, rest = divmod(blocks // -(-least * group // tile), max(1, wave.chunks))
    yield [(least, wave.chunks)] * full + part(rest > 0, rest)
    for chunks, most in tiles.items():
        full, rest = divmod(blocks, most * chunks)
        # What is left over in one request more, or in two.
        whole = next((one for one in tiles if rest % one == 0 and rest // one <= tiles[one]), 1)
        yield part(most, chunks) * full + part(rest // whole, whole)
        yield part(most, chunks) * full + part(rest // chunks, chunks) + part(rest % chunks > 0, rest % chunks)
        yield part(min(most, blocks // chunks), chunks)
        yield part(most, chunks) * min(full, server.limits.requests, server.limits.max_batched_tokens // room[chunks])
    # As many requests as there may be, all but the first as short as one that is no decode.
    rows = server.limits.max_batched_tokens - 2 * (wave.requests - 1)
    if rows > 1 and wave.chunks:
        yield [(rows, wave.chunks)] + [(2, wave.chunks)] * (wave.requests - 1)


def _fa3_bound(server: Server) -> WorkspaceNeed:
    planner, limits = server.planner(), server.limits
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
