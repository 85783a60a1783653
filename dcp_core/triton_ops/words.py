"""Small turns of the direct exchange: every element travels in a word that carries the number of its turn. Floor 3.

A word is 8 bytes, written and read at once: 16 bits of an element, 48 of the turn's number. Whoever reads a word of this turn
has the element too, so that nothing is flagged and no store waits for another to arrive first, at four times the bytes.
Two words carry an LSE. The words of all peers are awaited together.

Numbers do not wrap: 2^47 turns of a microsecond take four years.
"""

from __future__ import annotations

import triton
import triton.language as tl

from dcp_core.triton_ops.combine import natural_lse, total_lse, weighed, weight
from dcp_core.triton_ops.mailbox import MOST_ROWS_OF_WORDS
from dcp_core.triton_ops.own_rows import rows_beside
from dcp_core.triton_ops.turns import (
    COMBINE_WORDS,
    GATHER_WORDS,
    GATHERED,
    at_rows,
    begin,
    end_push,
    gathered_row,
    is_whole,
    may_be_told,
    note_loss,
    number_of,
    place_of,
    room_in,
    row_of,
)

_ROWS = tl.constexpr(MOST_ROWS_OF_WORDS)
_TURN_AT = tl.constexpr(16)
"""Bits of a word below the turn's number."""
_PAYLOAD = tl.constexpr(0xFFFF)


@triton.jit(do_not_specialize=list(range(12)))
def gather_words(
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
    SEATS: tl.constexpr,
):
    """Push rows as words, and put what comes, and one's own, into one's own gather room."""
    push = begin(phase, EARLY)
    peer, column = tl.arange(0, SEATS)[:, None], tl.arange(0, COLUMNS)
    others, inside = (peer < RANKS) & (peer != rank), column < HEAD_DIM
    tiles = tl.cdiv(tokens * KV_HEADS * GROUP, HEIGHT)
    turn = number_of(turns, push)
    room = room_in(rooms, rank, GATHERED, RANKS, q.dtype.element_ty)
    if push:
        there = _words_of(rooms, peer, GATHER_WORDS, RANKS)
        for tile in range(tl.program_id(0), tiles, tl.num_programs(0)):
            row, token, kv_head, head, live = row_of(tile, tokens, KV_HEADS, GROUP, HEIGHT)
            here = live[:, None] & inside[None, :]
            queries = tl.load(at_rows(q, token, kv_head * GROUP + head, q_t, q_h, column[None, :], False), here)
            telling = others & may_be_told(turns, loss, row, live)[None, :]
            words = _at(there, _row(rank, row), HEAD_DIM, column)
            tl.store(words, _word(queries, turn)[None, :, :], telling[:, :, None] & inside[None, None, :])
            place = place_of(places, rank, token, tokens, live, PLACED)
            mine = gathered_row(place, kv_head, rank, head, RANKS, KV_HEADS, GROUP, FOLD)
            tl.store(at_rows(room, mine, 0, HEAD_DIM, 0, column[None, :], False), queries, here & (place >= 0)[:, None])
        tl.debug_barrier()  # all have read the last turn's number
        end_push(turns, turn, EARLY)
    if phase & 2:
        left = tl.where(is_whole(tl.load(loss), turn), polls, 0)
        own = _words_of(rooms, rank + peer * 0, GATHER_WORDS, RANKS)
        for tile in range(tl.program_id(0), tiles, tl.num_programs(0)):
            row, token, kv_head, head, live = row_of(tile, tokens, KV_HEADS, GROUP, HEIGHT)
            here = (others & live[None, :])[:, :, None] & inside[None, None, :]
            words, late = _await(_at(own, _row(peer, row), HEAD_DIM, column), here, turn, left)
            lost = _lowest(late, peer, RANKS)
            note_loss(rooms, rank, loss, told, turn, lost, RANKS)
            left = tl.where(lost < RANKS, 0, left)
            place = place_of(places, rank, token, tokens, live, PLACED)[None, :]
            came = gathered_row(place, kv_head[None, :], peer, head[None, :], RANKS, KV_HEADS, GROUP, FOLD)
            target = room + came[:, :, None] * HEAD_DIM + column[None, None, :]
            tl.store(target, _element(words, q.dtype.element_ty), here & (place >= 0)[:, :, None])


@triton.jit(do_not_specialize=list(range(34)))
def combine_words(
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
    SEATS: tl.constexpr,
):
    """Push every peer's rows as words, and add up what comes, one's own and what stands beside.

    PLACED: what stands beside are the queries' own rows, still to be attended to; else a partial.
    """
    push = begin(phase, EARLY)
    peer, column = tl.arange(0, SEATS)[:, None], tl.arange(0, COLUMNS)
    others, inside = (peer < RANKS) & (peer != rank), column < HEAD_DIM
    tiles = tl.cdiv(tokens * KV_HEADS * GROUP, HEIGHT)
    turn = number_of(turns, push)
    if push:
        there = _words_of(rooms, peer, COMBINE_WORDS, RANKS)
        for tile in range(tl.program_id(0), tiles, tl.num_programs(0)):
            row, token, kv_head, head, live = row_of(tile, tokens, KV_HEADS, GROUP, HEIGHT)
            telling = others & may_be_told(turns, loss, row, live)[None, :]
            place = place_of(places, rank, token, tokens, live, PLACED)[None, :]
            theirs = gathered_row(place, kv_head[None, :], peer, head[None, :], RANKS, KV_HEADS, GROUP, FOLD)
            seeing = others & live[None, :] & (place >= 0)
            wide = telling[:, :, None] & inside[None, None, :]
            shares = tl.load(
                out + theirs[:, :, None] * HEAD_DIM + column[None, None, :], seeing[:, :, None] & inside[None, None, :]
            )
            tl.store(_at(there, _row(rank, row), HEAD_DIM, column), _word(shares, turn), wide)
            lse = tl.load(lses + theirs, seeing, float("-inf"))
            _push_lses(_lse_words(there, RANKS, HEAD_DIM), _row(rank, row), lse, turn, telling)
        tl.debug_barrier()  # all have read the last turn's number
        end_push(turns, turn, EARLY)
    if phase & 2:
        whole = is_whole(tl.load(loss), turn)
        left = tl.where(whole, polls, 0)
        here = _words_of(rooms, rank + peer * 0, COMBINE_WORDS, RANKS)
        for tile in range(tl.program_id(0), tiles, tl.num_programs(0)):
            row, token, kv_head, head, live = row_of(tile, tokens, KV_HEADS, GROUP, HEIGHT)
            own_head = kv_head * GROUP + head
            place = place_of(places, rank, token, tokens, live, PLACED)
            at = gathered_row(place, kv_head, rank, head, RANKS, KV_HEADS, GROUP, FOLD)
            seeing, along = live & (place >= 0), live & (token < tokens_beside)
            mine = natural_lse(lses + at, seeing, base_to_natural)
            beside, other = rows_beside(
                own, own_t, own_h, k, k_t, k_h, v, v_t, v_h, earlier, scale,
                own_lses, own_lse_t, own_lse_h, own_to_natural,
                token, own_head, kv_head, along, column[None, :], HEAD_DIM, RANKS, PLACED, False,
            )  # fmt: skip

            coming = others & live[None, :]
            words, lse, lost = _await_partials(here, peer, row, column, coming, turn, left, RANKS, HEAD_DIM)
            note_loss(rooms, rank, loss, told, turn, lost, RANKS)
            left = tl.where(lost < RANKS, 0, left)
            lse = tl.where(coming, lse * base_to_natural, float("-inf"))
            top = tl.maximum(tl.maximum(mine, other), tl.max(lse, 0))
            share = weight(lse, top[None, :])
            total = weight(mine, top) + weight(other, top) + tl.sum(share, 0)
            shares = _element(words, out.dtype.element_ty).to(tl.float32) * share[:, :, None]
            added = tl.sum(tl.where((lse == float("-inf"))[:, :, None], 0.0, shares), 0)
            added += weighed(
                at_rows(out, at, 0, HEAD_DIM, 0, column[None, :], False),
                seeing[:, None] & inside[None, :],
                mine,
                weight(mine, top),
            )
            added += beside * weight(other, top)[:, None]
            added *= (1.0 / tl.where(total == 0.0, 1.0, total))[:, None]

            everybody, nothing = (lost == RANKS) & whole, float("nan")
            target = at_rows(result, token, own_head, result_t, result_h, column[None, :], False)
            made = tl.where(everybody, added, nothing).to(result.dtype.element_ty)
            tl.store(target, made, live[:, None] & inside[None, :])
            total_at = total_lses + token * total_t + own_head * total_h
            tl.store(total_at, tl.where(everybody, total_lse(top, total), nothing), live)


@triton.jit
def _words_of(rooms, rank, WHICH: tl.constexpr, RANKS: tl.constexpr):
    """Return where the words of a kind begin in the mailboxes of ranks, of which those beyond the last are not used."""
    return tl.load(rooms + WHICH * RANKS + tl.where(rank < RANKS, rank, 0)).to(tl.pointer_type(tl.int64))


@triton.jit
def _lse_words(words, RANKS: tl.constexpr, HEAD_DIM: tl.constexpr):
    """Return where the words of LSEs begin, after those of outputs."""
    return words + RANKS * _ROWS * HEAD_DIM


@triton.jit
def _row(rank, row):
    """Return the rows ``[..., rows]`` of words that a rank wrote."""
    return rank * _ROWS + row[None, :]


@triton.jit
def _at(words, row, WIDTH: tl.constexpr, column):
    """Return pointers ``[seats, rows, columns]`` to the words of rows."""
    return words[:, :, None] + (row[:, :, None] * WIDTH + column[None, None, :])


@triton.jit
def _word(elements, turn):
    return (turn << _TURN_AT) | (elements.to(tl.int16, bitcast=True).to(tl.int64) & _PAYLOAD)


@triton.jit
def _element(words, dtype: tl.constexpr):
    return words.to(tl.int16).to(dtype, bitcast=True)


@triton.jit
def _await(here, expected, turn, polls):
    """Read words until all that are expected are of this turn, or polls are used up; return them, and which are not."""
    words = tl.load(here, expected, 0, volatile=True)
    late = expected & ((words >> _TURN_AT) != turn)
    left = polls
    while (tl.max(late.to(tl.int32)) > 0) & (left > 0):
        words = tl.load(here, expected, 0, volatile=True)
        late = expected & ((words >> _TURN_AT) != turn)
        left -= 1
    return words, late


@triton.jit
def _push_lses(words, row, lse, turn, telling):
    bits = lse.to(tl.int32, bitcast=True)
    halves = _word(tl.join(bits, bits >> 16).to(tl.int16), turn)
    tl.store(_at(words, row, 2, tl.arange(0, 2)), halves, telling[:, :, None])


@triton.jit
def _await_partials(here, peer, row, column, coming, turn, polls, RANKS: tl.constexpr, HEAD_DIM: tl.constexpr):
    """Return the words of the outputs of all peers, their LSEs, and the lowest rank that did not come, RANKS if all did."""
    half = tl.arange(0, 2)
    written = _row(peer, row)
    halves, late_lses = _await(
        _at(_lse_words(here, RANKS, HEAD_DIM), written, 2, half),
        coming[:, :, None] & (half >= 0)[None, None, :],
        turn,
        polls,
    )
    words, late = _await(
        _at(here, written, HEAD_DIM, column), coming[:, :, None] & (column < HEAD_DIM)[None, None, :], turn, polls
    )
    low, high = tl.split((halves & _PAYLOAD).to(tl.int32))
    late = tl.minimum(_lowest(late, peer, RANKS), _lowest(late_lses, peer, RANKS))
    return words, (low | (high << 16)).to(tl.float32, bitcast=True), late


@triton.jit
def _lowest(late, peer, RANKS: tl.constexpr):
    return tl.min(tl.where(late, peer[:, :, None], RANKS))
