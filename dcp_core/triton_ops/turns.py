"""What the direct exchange's kernels are made of: where rows stand in mailboxes, how a turn is signalled and awaited. Floor 3."""

from __future__ import annotations

import triton
import triton.language as tl

from dcp_core.triton_ops.mailbox import MOST_PROGRAMS, MOST_RANKS, SEATS

# Rows of ``Mailbox.rooms``.
FLAGS = tl.constexpr(0)
GATHERED = tl.constexpr(1)
OUTS = tl.constexpr(2)
LSES = tl.constexpr(3)
GATHER_WORDS = tl.constexpr(4)
COMBINE_WORDS = tl.constexpr(5)

_PROGRAMS = tl.constexpr(MOST_PROGRAMS)
_RANKS = tl.constexpr(MOST_RANKS)
_SEATS = tl.constexpr(SEATS)


@triton.jit(do_not_specialize=list(range(7)))
def meet_once(rooms, turns, loss, told, rank, phase, polls, RANKS: tl.constexpr, EARLY: tl.constexpr):
    """Take a turn that moves nothing, as one program."""
    push = begin(phase, EARLY)
    turn = number_of(turns, push)
    if push:
        signal(rooms, turns, loss, rank, turn, RANKS, EARLY)
    if phase & 2:
        await_peers(rooms, loss, told, rank, turn, polls, RANKS)


@triton.jit
def begin(phase, EARLY: tl.constexpr):
    """Wait until what ran before has ended, if this launch may have begun earlier, and return whether it is to push."""
    if EARLY:
        tl.extra.cuda.gdc_wait()
    return (phase & 1) != 0


@triton.jit
def row_of(tile, tokens, KV_HEADS: tl.constexpr, GROUP: tl.constexpr, HEIGHT: tl.constexpr):
    """Return a tile's rows, their tokens, KV heads and heads within the group, and which rows exist; int32, as all rows are."""
    row = tile * HEIGHT + tl.arange(0, HEIGHT)
    heads: tl.constexpr = KV_HEADS * GROUP
    return row, row // heads, row % heads // GROUP, row % GROUP, row < tokens * heads


@triton.jit
def place_of(places, rank, token, tokens, live, PLACED: tl.constexpr):
    """Return where tokens stand in a rank's room: in their own order unless they are placed."""
    if PLACED:
        return tl.load(places + rank * tokens + token, live, -1)
    return token


@triton.jit
def gathered_row(
    place, kv_head, rank, head, RANKS: tl.constexpr, KV_HEADS: tl.constexpr, GROUP: tl.constexpr, FOLD: tl.constexpr
):
    """Return the row of a head in a gathered tensor: order (row of places, KV head, place in the row, rank, head)."""
    by_place = (place // FOLD * KV_HEADS + kv_head) * FOLD + place % FOLD
    return (by_place * RANKS + rank) * GROUP + head


@triton.jit
def room_in(rooms, rank, WHICH: tl.constexpr, RANKS: tl.constexpr, dtype: tl.constexpr):
    """Return where a room begins in a rank's mailbox. Rooms are aligned, so that 16 bytes can be stored at once."""
    address = tl.load(rooms + WHICH * RANKS + rank)
    return tl.multiple_of(address.to(tl.pointer_type(dtype)), 16)


@triton.jit
def at_rows(pointer, token, head, t, h, column, ALIGNED: tl.constexpr):
    """Return pointers to the elements of rows whose tokens are ``t`` and whose heads ``h`` elements apart.

    ALIGNED: all rows begin at multiples of 16 bytes, so that elements may be moved 16 bytes at once.
    """
    rows = pointer + (token.to(tl.int64) * t + head * h)
    if ALIGNED:
        rows = tl.multiple_of(rows, 16)
    return rows[:, None] + column


@triton.jit
def number_of(turns, push):
    """Return the number of the turn: the launch that pushes begins a new one."""
    return tl.load(turns + tl.program_id(0)) + push.to(tl.int64)


@triton.jit
def is_whole(lost, turn):
    """Tell from what a rank's ``loss`` says whether none was lost before this turn.

    A loss of this very turn does not count: whenever the threads of a launch look, they all see the same.
    """
    return (lost == 0) | (lost >= turn * _SEATS)


@triton.jit
def may_be_told(turns, loss, row, live):
    """Return which rows may be pushed: none once a rank is lost, since what came late would be taken for what is missing.

    Asked row by row, and so not waited for before the rows themselves are asked for: a uniform answer would be.
    """
    nowhere = tl.zeros_like(row)
    turn = tl.load(turns + tl.program_id(0) + nowhere) + 1
    return live & is_whole(tl.load(loss + nowhere), turn)


@triton.jit
def _flags(rooms, of_rank, by_rank, RANKS: tl.constexpr):
    """Return where, in one rank's mailbox, others set this program's flag."""
    base = tl.load(rooms + FLAGS * RANKS + of_rank).to(tl.pointer_type(tl.int64))
    return base + by_rank * _PROGRAMS + tl.program_id(0)


@triton.jit
def signal(rooms, turns, loss, rank, turn, RANKS: tl.constexpr, EARLY: tl.constexpr):
    """Set this program's flag on every peer, after all that its threads have stored, and write the turn's number down."""
    peer = tl.arange(0, _RANKS)
    others = (peer < tl.where(is_whole(tl.load(loss), turn), RANKS, 0)) & (peer != rank)
    tl.debug_barrier()  # all have stored their rows, and all have read the number
    there = _flags(rooms, tl.where(peer < RANKS, peer, 0), rank, RANKS)
    tl.atomic_xchg(there, turn, others, sem="release", scope="sys")
    end_push(turns, turn, EARLY)


@triton.jit
def end_push(turns, turn, EARLY: tl.constexpr):
    """Keep the number of the turn for the next, which all threads must have read, and let the next kernel be launched.

    It waits by itself for the end of this one, so that its launch costs no time; and since every program has pushed by then, it
    takes no place that a program still needs in order to be awaited.
    """
    tl.store(turns + tl.program_id(0), turn)
    if tl.program_id(0) == 0:  # for those that rest
        program = tl.arange(0, _PROGRAMS)
        tl.store(turns + program, turn, program >= tl.num_programs(0))
    if EARLY:
        tl.extra.cuda.gdc_launch_dependents()


@triton.jit
def await_peers(rooms, loss, told, rank, turn, polls, RANKS: tl.constexpr):
    """Wait for this program's flag of every peer, and return whether all came; the first that did not is written down.

    Once a rank is lost none is waited for. Of several that are late, the first is that of the lowest number.
    """
    peer = tl.arange(0, _RANKS)
    others = (peer < RANKS) & (peer != rank)
    here = _flags(rooms, rank, tl.where(peer < RANKS, peer, rank), RANKS)
    whole = is_whole(tl.load(loss), turn)
    late = others & (tl.atomic_add(here, 0, others, sem="acquire", scope="sys") < turn)
    left = tl.where(whole, polls, 0)
    while (tl.max(late.to(tl.int32)) > 0) & (left > 0):
        late = others & (tl.atomic_add(here, 0, others, sem="acquire", scope="sys") < turn)
        left -= 1
    tl.debug_barrier()
    lost = tl.min(tl.where(late, peer, RANKS))
    note_loss(rooms, rank, loss, told, turn, lost, RANKS)
    return (lost == RANKS) & whole


@triton.jit
def note_loss(rooms, rank, loss, told, turn, lost, RANKS: tl.constexpr):
    """Write down that a rank did not come in this turn, unless a loss is known already; ``lost == RANKS``: all came.

    Every rank's mailbox is marked too: once this launch has ended, the rank waits for nobody, and may overwrite what peers fetch.
    """
    if lost < RANKS:
        loss_now = turn * _SEATS + lost + 1
        if tl.atomic_cas(loss, tl.cast(0, tl.int64), loss_now) == 0:
            tl.store(told, loss_now)
            peer = tl.arange(0, _RANKS)
            there = tl.load(rooms + FLAGS * RANKS + tl.where(peer < RANKS, peer, rank)).to(tl.pointer_type(tl.int64))
            tl.atomic_xchg(there + (RANKS * _PROGRAMS + rank), loss_now, peer < RANKS, sem="release", scope="sys")
