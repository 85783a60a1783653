"""What the direct exchange's kernels are made of: where rows stand in mailboxes, how a turn is signalled and awaited. Floor 3."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def row_of(tile, tokens, kv_heads, group, HEIGHT: tl.constexpr):
    """Return a tile's rows and their tokens, both int64, their KV heads and heads within the group, and which exist."""
    row = tile * HEIGHT + tl.arange(0, HEIGHT)
    heads = kv_heads * group
    return row.to(tl.int64), (row // heads).to(tl.int64), row % heads // group, row % group, row < tokens * heads


@triton.jit
def place_of(places, rank, token, tokens, live, PLACED: tl.constexpr):
    """Return where tokens stand in a rank's room: in their own order unless they are placed."""
    if PLACED:
        return tl.load(places + rank.to(tl.int64) * tokens + token, live, -1).to(tl.int64)
    return token


@triton.jit
def gathered_row(place, kv_head, rank, head, kv_heads, group, fold, RANKS: tl.constexpr):
    """Return the row of a head in a gathered tensor: order (row of places, KV head, place in the row, rank, head)."""
    by_place = (place // fold * kv_heads + kv_head) * fold + place % fold
    return (by_place * RANKS + rank) * group + head


@triton.jit
def room_in(addresses, rank, offset):
    """Return the address of a room in a rank's mailbox. Rooms are aligned, so that 16 bytes can be stored at once."""
    return tl.multiple_of((tl.load(addresses + rank) + offset).to(tl.pointer_type(tl.int8)), 16)


@triton.jit
def at_rows(pointer, offset, column):
    """Return pointers to the elements of rows."""
    return pointer + offset[:, None] + column


@triton.jit
def _flags(addresses, of_rank, by_rank, FLAGS: tl.constexpr):
    """Return where, in one rank's mailbox, others set this program's flag."""
    base = tl.load(addresses + of_rank).to(tl.pointer_type(tl.int32))
    return base + by_rank * FLAGS + tl.program_id(0)


@triton.jit
def signal(addresses, rank, turn, PEERS: tl.constexpr, RANKS: tl.constexpr, FLAGS: tl.constexpr):
    """Set this program's flag on every peer, after all that its threads have stored."""
    peer = tl.arange(0, PEERS)
    others = (peer < RANKS) & (peer != rank)
    tl.debug_barrier()
    there = _flags(addresses, tl.where(peer < RANKS, peer, 0), rank, FLAGS)
    tl.atomic_xchg(there, turn, others, sem="release", scope="sys")


@triton.jit
def await_peers(addresses, state, rank, turn, polls, PEERS: tl.constexpr, RANKS: tl.constexpr, FLAGS: tl.constexpr):
    """Wait for this program's flag of every peer, and return whether all came; the first that did not is written down."""
    peer = tl.arange(0, PEERS)
    others = (peer < RANKS) & (peer != rank)
    here = _flags(addresses, rank, tl.where(peer < RANKS, peer, rank), FLAGS)
    # A difference, since numbers may wrap.
    late = others & (tl.atomic_add(here, 0, others, sem="acquire", scope="sys") - turn < 0)
    whole = tl.load(state + 2) == 0
    left = tl.where(whole, polls, 0)  # once a rank is lost, none is waited for
    while (tl.max(late.to(tl.int32)) > 0) & (left > 0):
        late = others & (tl.atomic_add(here, 0, others, sem="acquire", scope="sys") - turn < 0)
        left -= 1
    tl.debug_barrier()
    lost = tl.max(tl.where(late, peer + 1, 0))
    if lost > 0:
        tl.atomic_cas(state + 2, 0, lost)
        tl.atomic_cas(state + 3, 0, turn)
    return (lost == 0) & whole


@triton.jit
def finish(state, turn):
    """Let the last program to get here close the turn: what the next launch reads."""
    tl.debug_barrier()
    if tl.atomic_add(state + 1, 1) == tl.num_programs(0) - 1:
        tl.store(state + 1, 0)
        tl.store(state, turn)
