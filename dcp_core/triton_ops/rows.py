"""Large turns of the direct exchange: rows first, then a flag for each program that tells of them. Floor 3."""

from __future__ import annotations

import triton
import triton.language as tl

from dcp_core.triton_ops.combine import natural_lse, total_lse, weighed, weight
from dcp_core.triton_ops.own_rows import rows_beside
from dcp_core.triton_ops.turns import (
    GATHERED,
    LSES,
    OUTS,
    at_rows,
    await_peers,
    begin,
    gathered_row,
    may_be_told,
    number_of,
    place_of,
    room_in,
    row_of,
    signal,
)


# No argument is specialised on: a variant of the kernel that is compiled or loaded while a peer already waits would hang,
# since loading waits for the device. What a kernel may rely on it is told by constants, whose every combination
# ``Direct`` loads beforehand. Strides are int64 whatever they are, for the same reason.
@triton.jit(do_not_specialize=list(range(12)))
def gather_rows(
    q,
    q_t: tl.int64,
    q_h: tl.int64,
    places,
    rooms,
    turns,
    loss,
    told,
    rank,
    tokens,
    phase,
    polls,
    RANKS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    FOLD: tl.constexpr,
    PLACED: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    COLUMNS: tl.constexpr,
    HEIGHT: tl.constexpr,
    EARLY: tl.constexpr,
    ALIGNED: tl.constexpr,
):
    """Push rows into every rank's gather room, and wait until those of the peers are in one's own."""
    push = begin(phase, EARLY)
    column = tl.arange(0, COLUMNS)[None, :]
    rows = tokens * KV_HEADS * GROUP
    if push:
        for tile in range(tl.program_id(0), tl.cdiv(rows, HEIGHT), tl.num_programs(0)):
            row, token, kv_head, head, live = row_of(tile, tokens, KV_HEADS, GROUP, HEIGHT)
            inside = live[:, None] & (column < HEAD_DIM)
            queries = tl.load(at_rows(q, token, kv_head * GROUP + head, q_t, q_h, column, ALIGNED), inside)
            telling = may_be_told(turns, loss, row, live)
            # Peers first, and not all the same one: the link is the slowest part of the way.
            for step in tl.static_range(1, RANKS + 1):
                peer = (rank + step) % RANKS
                place = place_of(places, peer, token, tokens, live, PLACED)
                there = gathered_row(place, kv_head, rank, head, RANKS, KV_HEADS, GROUP, FOLD)
                room = room_in(rooms, peer, GATHERED, RANKS, q.dtype.element_ty)
                standing = (telling & (place >= 0))[:, None] & inside
                tl.store(at_rows(room, there, 0, HEAD_DIM, 0, column, False), queries, standing)
    turn = number_of(turns, push)
    if push:
        signal(rooms, turns, loss, rank, turn, RANKS, EARLY)
    if phase & 2:
        await_peers(rooms, loss, told, rank, turn, polls, RANKS)


@triton.jit(do_not_specialize=list(range(35)))
def combine_rows(
    out,
    lses,
    base_to_natural,
    own,
    own_t: tl.int64,
    own_h: tl.int64,
    k,
    k_t: tl.int64,
    k_h: tl.int64,
    v,
    v_t: tl.int64,
    v_h: tl.int64,
    earlier,
    scale,
    own_lses,
    own_lse_t: tl.int64,
    own_lse_h: tl.int64,
    own_to_natural,
    result,
    result_t: tl.int64,
    result_h: tl.int64,
    total_lses,
    total_t: tl.int64,
    total_h: tl.int64,
    tokens_beside,
    room_rows,
    places,
    rooms,
    turns,
    loss,
    told,
    rank,
    tokens,
    phase,
    polls,
    RANKS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    FOLD: tl.constexpr,
    PLACED: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    COLUMNS: tl.constexpr,
    HEIGHT: tl.constexpr,
    EARLY: tl.constexpr,
    ALIGNED: tl.constexpr,
):
    """Push every peer's rows into its combine room, and add up what comes, one's own and what stands beside.

    PLACED: what stands beside are the queries' own rows, still to be attended to; else a partial.
    """
    push = begin(phase, EARLY)
    column = tl.arange(0, COLUMNS)[None, :]
    rows = tokens * KV_HEADS * GROUP
    if push:
        for tile in range(tl.program_id(0), tl.cdiv(rows, HEIGHT), tl.num_programs(0)):
            row, token, kv_head, head, live = row_of(tile, tokens, KV_HEADS, GROUP, HEIGHT)
            telling = may_be_told(turns, loss, row, live)
            place = place_of(places, rank, token, tokens, live, PLACED)
            seeing = live & (place >= 0)
            inside = seeing[:, None] & (column < HEAD_DIM)
            there = rank * room_rows + row
            for step in tl.static_range(1, RANKS):
                peer = (rank + step) % RANKS
                here = gathered_row(place, kv_head, peer, head, RANKS, KV_HEADS, GROUP, FOLD)
                # All is loaded before anything is stored: what comes after a store waits twice for memory.
                shares = tl.load(at_rows(out, here, 0, HEAD_DIM, 0, column, ALIGNED), inside)
                lse = tl.load(lses + here, seeing, float("-inf"))
                outs = room_in(rooms, peer, OUTS, RANKS, out.dtype.element_ty)
                there_lses = room_in(rooms, peer, LSES, RANKS, tl.float32)
                tl.store(at_rows(outs, there, 0, HEAD_DIM, 0, column, False), shares, inside & telling[:, None])
                tl.store(there_lses + there, lse, telling)
    turn = number_of(turns, push)
    if push:
        signal(rooms, turns, loss, rank, turn, RANKS, EARLY)
    if phase & 2:
        everybody = await_peers(rooms, loss, told, rank, turn, polls, RANKS)
        outs = room_in(rooms, rank, OUTS, RANKS, out.dtype.element_ty)
        there_lses = room_in(rooms, rank, LSES, RANKS, tl.float32)
        for tile in range(tl.program_id(0), tl.cdiv(rows, HEIGHT), tl.num_programs(0)):
            row, token, kv_head, head, live = row_of(tile, tokens, KV_HEADS, GROUP, HEIGHT)
            inside = live[:, None] & (column < HEAD_DIM)
            own_head = kv_head * GROUP + head
            place = place_of(places, rank, token, tokens, live, PLACED)
            here = gathered_row(place, kv_head, rank, head, RANKS, KV_HEADS, GROUP, FOLD)
            seeing = live & (place >= 0)
            along = live & (token < tokens_beside)
            mine = natural_lse(lses + here, seeing, base_to_natural)
            beside, other = rows_beside(
                own, own_t, own_h, k, k_t, k_h, v, v_t, v_h, earlier, scale,
                own_lses, own_lse_t, own_lse_h, own_to_natural,
                token, own_head, kv_head, along, column, HEAD_DIM, RANKS, PLACED, ALIGNED,
            )  # fmt: skip
            top = tl.maximum(mine, other)
            for step in tl.static_range(1, RANKS):
                there = (rank + step) % RANKS * room_rows + row
                top = tl.maximum(top, natural_lse(there_lses + there, live, base_to_natural))

            total = weight(mine, top) + weight(other, top)
            added = weighed(
                at_rows(out, here, 0, HEAD_DIM, 0, column, ALIGNED),
                seeing[:, None] & (column < HEAD_DIM),
                mine,
                weight(mine, top),
            )
            added += beside * weight(other, top)[:, None]
            for step in tl.static_range(1, RANKS):
                there = (rank + step) % RANKS * room_rows + row
                lse = natural_lse(there_lses + there, live, base_to_natural)
                total += weight(lse, top)
                added += weighed(at_rows(outs, there, 0, HEAD_DIM, 0, column, False), inside, lse, weight(lse, top))
            added *= (1.0 / tl.where(total == 0.0, 1.0, total))[:, None]

            target = at_rows(result, token, own_head, result_t, result_h, column, ALIGNED)
            tl.store(target, tl.where(everybody, added, float("nan")).to(result.dtype.element_ty), inside)
            total_at = total_lses + token * total_t + own_head * total_h
            tl.store(total_at, tl.where(everybody, total_lse(top, total), float("nan")), live)
