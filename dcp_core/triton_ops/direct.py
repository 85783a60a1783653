"""Gather and combine in one kernel each, by stores into the peers' own memory; docs/exchanges.md draws the protocol. Floor 3.

Every rank owns a *mailbox*: flags, a gather room and a combine room. A call of either kind is a *turn*. In a turn, each
program of the kernel writes its rows into every peer's room, then sets its flag there to the turn's number, and only then
waits for its peers' flags in its own mailbox. A program waits for the same program of its peers and for nobody else.

Why nothing is lost or overwritten: a rank that has finished turn k has seen a flag of every peer for turn k, so every peer
had by then finished whatever it did before turn k, reading what turn k - 1 brought it included. So turn k + 1 may write
where turn k - 1 wrote: gathers and combines alternate, and one room of each kind is enough.

The number of the turn lives on the device, so that a captured graph may be replayed. Flags only grow; numbers may wrap.
"""

from __future__ import annotations

from enum import IntFlag

import triton
import triton.language as tl
from torch import Tensor

from dcp_core.lse import LseBase, Partial
from dcp_core.triton_ops.combine import check_lses, check_rows, natural_lse, total_lse, weighed, weight
from dcp_core.triton_ops.mailbox import MOST_PROGRAMS, Group, Laid, Mailbox
from dcp_core.triton_ops.turns import at_rows, await_peers, finish, gathered_row, place_of, room_in, row_of, signal

ROWS = 16
"""Rows of a tile, a row being one head of one token: 4 KiB of head_dim 128 in bfloat16."""
WARPS = 4


class Phase(IntFlag):
    """What a launch does of a turn. One launch does both; apart, ranks may take a turn one after another on one device."""

    PUSH = 1
    WAIT = 2
    BOTH = 3


def gather_heads(q: Tensor, mailbox: Mailbox, laid: Laid, *, phase: Phase = Phase.BOTH) -> Tensor:
    """Push this rank's query heads into every rank's gather room, and wait for those of the peers.

    Args:
        q: ``[T, h, D]``, any strides but for contiguous D.

    Returns:
        The room: ``[rows, fold * ranks * h, D]``, heads in the order (KV head, place in the row, rank, head), valid until
        the next turn. Places where no token stands hold anything.

    Raises:
        ValueError: for queries that do not fit the mailbox.
    """
    group, tokens = mailbox.group, q.shape[0]
    if q.shape[1:] != (group.heads, group.head_dim) or q.dtype != group.dtype:
        raise ValueError(f"queries should be [T, {group.heads}, {group.head_dim}] of {group.dtype}, not {_named(q)}")
    check_rows(q)
    _check_room(tokens, mailbox)
    rows = tokens * group.heads
    _gather[_grid(rows, mailbox)](
        q,
        *q.stride()[:2],
        mailbox.state if laid.places is None else laid.places,
        mailbox.addresses,
        mailbox.state,
        mailbox.rank,
        tokens,
        group.kv_heads,
        group.group,
        laid.fold,
        group.flag_bytes,
        mailbox.polls,
        RANKS=group.ranks,
        PEERS=triton.next_power_of_2(group.ranks),
        PLACED=laid.places is not None,
        **_constants(group, phase),
    )
    return mailbox.gathered(tokens if laid.places is None else laid.rows, laid.fold)


def combine(
    partial: Partial,
    mailbox: Mailbox,
    laid: Laid,
    *,
    beside: Partial | None = None,
    into: Partial | None = None,
    phase: Phase = Phase.BOTH,
) -> Partial:
    """Push every peer's heads of this rank's partial to it, wait for the peers', and add up what they say of one's own.

    Args:
        partial: contiguous, of the shape and order that ``gather_heads`` returned.
        beside: one more partial ``[T, h, D]`` of one's own heads, over keys that nobody else saw.
        into: where to write; allocated if None.

    Returns:
        A natural Partial of ``[T, h, D]``, as ``dcp_core.lse.combine`` adds up; NaN if a rank did not come.

    Raises:
        ValueError: for partials that do not fit the mailbox.
    """
    group = mailbox.group
    tokens = partial.out.shape[0] if laid.places is None else laid.places.shape[1]
    if not (partial.out.is_contiguous() and partial.lse.is_contiguous()) or partial.out.dtype != group.dtype:
        raise ValueError(f"a partial to combine should be contiguous and of {group.dtype}, not {_named(partial.out)}")
    if partial.out.shape[1:] != (width := laid.fold * group.ranks * group.heads, group.head_dim):
        raise ValueError(f"a partial to combine should be [rows, {width}, {group.head_dim}], not {_named(partial.out)}")
    _check_room(tokens, mailbox)
    shape = (tokens, group.heads, group.head_dim)
    into = into or Partial.empty(*shape, dtype=group.dtype, device=partial.out.device)
    own = beside or into  # where there is none beside, a pointer that is not read
    for name, other in (("room for the result", into), ("partial beside", own)):
        if other.out.shape != shape or other.out.dtype != group.dtype:
            raise ValueError(f"the {name} should be {list(shape)} of {group.dtype}, not {_named(other.out)}")
    if into.base is not LseBase.NATURAL:
        raise ValueError(f"the result's LSE is natural, and the room for it is labelled {into.base}")
    check_rows(own.out, into.out)
    check_lses(partial.lse, own.lse, into.lse)
    _combine[_grid(tokens * group.heads, mailbox)](
        partial.out,
        partial.lse,
        partial.base.to_natural,
        own.out,
        *own.out.stride()[:2],
        own.lse,
        *own.lse.stride(),
        own.base.to_natural,
        into.out,
        *into.out.stride()[:2],
        into.lse,
        *into.lse.stride(),
        mailbox.state if laid.places is None else laid.places,
        mailbox.addresses,
        mailbox.state,
        mailbox.rank,
        tokens,
        group.kv_heads,
        group.group,
        laid.fold,
        group.flag_bytes + group.gather_bytes(mailbox.places),
        group.lse_offset(mailbox.tokens),
        mailbox.polls,
        RANKS=group.ranks,
        PEERS=triton.next_power_of_2(group.ranks),
        PLACED=laid.places is not None,
        BESIDE=beside is not None,
        **_constants(group, phase),
    )
    return into


def _grid(rows: int, mailbox: Mailbox) -> tuple[int]:
    """Return the programs of a launch: one even for no row, since a turn is taken by every rank whatever it holds."""
    return (max(1, min(triton.cdiv(rows, ROWS), mailbox.programs, MOST_PROGRAMS)),)


def _constants(group: Group, phase: Phase) -> dict[str, int]:
    return {
        "HEAD_DIM": group.head_dim,
        "COLUMNS": triton.next_power_of_2(group.head_dim),
        "HEIGHT": ROWS,
        "FLAGS": MOST_PROGRAMS,
        "PUSH": bool(phase & Phase.PUSH),
        "WAIT": bool(phase & Phase.WAIT),
        "num_warps": WARPS,
    }


def _check_room(tokens: int, mailbox: Mailbox) -> None:
    if tokens > mailbox.tokens:
        raise ValueError(f"a mailbox with room for {mailbox.tokens} tokens cannot take {tokens}; reserve more first")


def _named(tensor: Tensor) -> str:
    return f"{list(tensor.shape)} of {tensor.dtype}"


# Whole numbers that may be 1, or a multiple of 16 on one rank and not on another, are not specialised on: a variant of the
# kernel that is compiled or loaded while a peer already waits would hang, since loading waits for the device.
_PLAIN = ["rank", "tokens", "kv_heads", "group", "fold", "polls"]


@triton.jit(do_not_specialize=[*_PLAIN, "q_t", "q_h", "room"])
def _gather(
    q,
    q_t,
    q_h,
    places,
    addresses,
    state,
    rank,
    tokens,
    kv_heads,
    group,
    fold,
    room,
    polls,
    RANKS: tl.constexpr,
    PEERS: tl.constexpr,
    PLACED: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    COLUMNS: tl.constexpr,
    HEIGHT: tl.constexpr,
    FLAGS: tl.constexpr,
    PUSH: tl.constexpr,
    WAIT: tl.constexpr,
):
    turn = tl.load(state) + 1
    # Once a rank is lost, nothing more is told to anybody: what came late would be taken for what is missing.
    whole = tl.load(state + 2) == 0
    column = tl.arange(0, COLUMNS)[None, :]
    if PUSH & whole:
        for tile in range(tl.program_id(0), tl.cdiv(tokens * kv_heads * group, HEIGHT), tl.num_programs(0)):
            _, token, kv_head, head, live = row_of(tile, tokens, kv_heads, group, HEIGHT)
            inside = live[:, None] & (column < HEAD_DIM)
            queries = tl.load(at_rows(q, token * q_t + (kv_head * group + head) * q_h, column), inside)
            # Peers first, and not all the same one: the link is the slowest part of the way.
            for step in tl.static_range(1, RANKS + 1):
                peer = (rank + step) % RANKS
                place = place_of(places, peer, token, tokens, live, PLACED)
                target = room_in(addresses, peer, room).to(tl.pointer_type(q.dtype.element_ty), bitcast=True)
                row_there = gathered_row(place, kv_head, rank, head, kv_heads, group, fold, RANKS)
                tl.store(at_rows(target, row_there * HEAD_DIM, column), queries, inside & (place >= 0)[:, None])
        signal(addresses, rank, turn, PEERS, RANKS, FLAGS)
    if WAIT:
        await_peers(addresses, state, rank, turn, polls, PEERS, RANKS, FLAGS)
        finish(state, turn)


@triton.jit(
    do_not_specialize=[
        *_PLAIN,
        "own_t",
        "own_h",
        "own_lse_t",
        "own_lse_h",
        "result_t",
        "result_h",
        "total_t",
        "total_h",
        "room",
        "lse_offset",
    ]
)
def _combine(
    out,
    lses,
    base_to_natural,
    own,
    own_t,
    own_h,
    own_lses,
    own_lse_t,
    own_lse_h,
    own_to_natural,
    result,
    result_t,
    result_h,
    total_lses,
    total_t,
    total_h,
    places,
    addresses,
    state,
    rank,
    tokens,
    kv_heads,
    group,
    fold,
    room,
    lse_offset,
    polls,
    RANKS: tl.constexpr,
    PEERS: tl.constexpr,
    PLACED: tl.constexpr,
    BESIDE: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    COLUMNS: tl.constexpr,
    HEIGHT: tl.constexpr,
    FLAGS: tl.constexpr,
    PUSH: tl.constexpr,
    WAIT: tl.constexpr,
):
    turn = tl.load(state) + 1
    # Once a rank is lost, nothing more is told to anybody: what came late would be taken for what is missing.
    whole = tl.load(state + 2) == 0
    column = tl.arange(0, COLUMNS)[None, :]
    rows = tokens * kv_heads * group
    if PUSH & whole:
        _push_partial(
            out,
            lses,
            places,
            addresses,
            rank,
            tokens,
            kv_heads,
            group,
            fold,
            room,
            lse_offset,
            RANKS,
            PLACED,
            HEAD_DIM,
            COLUMNS,
            HEIGHT,
        )
        signal(addresses, rank, turn, PEERS, RANKS, FLAGS)
    if WAIT:
        everybody = await_peers(addresses, state, rank, turn, polls, PEERS, RANKS, FLAGS)
        base = room_in(addresses, rank, room)
        outs = base.to(tl.pointer_type(out.dtype.element_ty), bitcast=True)
        there_lses = (base + lse_offset).to(tl.pointer_type(tl.float32), bitcast=True)
        for tile in range(tl.program_id(0), tl.cdiv(rows, HEIGHT), tl.num_programs(0)):
            row, token, kv_head, head, live = row_of(tile, tokens, kv_heads, group, HEIGHT)
            inside = live[:, None] & (column < HEAD_DIM)
            place = place_of(places, rank, token, tokens, live, PLACED)
            here = gathered_row(place, kv_head, rank, head, kv_heads, group, fold, RANKS)
            seeing = live & (place >= 0)
            mine = natural_lse(lses + here, seeing, base_to_natural)
            top = mine
            for step in tl.static_range(1, RANKS):
                there = ((rank + step) % RANKS).to(tl.int64) * rows + row
                top = tl.maximum(top, natural_lse(there_lses + there, live, base_to_natural))
            if BESIDE:
                other_head = kv_head * group + head
                other = natural_lse(own_lses + token * own_lse_t + other_head * own_lse_h, live, own_to_natural)
                top = tl.maximum(top, other)

            total = weight(mine, top)
            added = weighed(at_rows(out, here * HEAD_DIM, column), seeing[:, None] & (column < HEAD_DIM), mine, total)
            for step in tl.static_range(1, RANKS):
                there = ((rank + step) % RANKS).to(tl.int64) * rows + row
                lse = natural_lse(there_lses + there, live, base_to_natural)
                total += weight(lse, top)
                added += weighed(at_rows(outs, there * HEAD_DIM, column), inside, lse, weight(lse, top))
            if BESIDE:
                other_head = kv_head * group + head
                other = natural_lse(own_lses + token * own_lse_t + other_head * own_lse_h, live, own_to_natural)
                total += weight(other, top)
                added += weighed(
                    at_rows(own, token * own_t + other_head * own_h, column), inside, other, weight(other, top)
                )
            added /= tl.where(total == 0.0, 1.0, total)[:, None]

            own_head = kv_head * group + head
            nothing = float("nan")
            added = tl.where(everybody, added, nothing)
            target = at_rows(result, token * result_t + own_head * result_h, column)
            tl.store(target, added.to(result.dtype.element_ty), inside)
            lse = tl.where(everybody, total_lse(top, total), nothing)
            tl.store(total_lses + token * total_t + own_head * total_h, lse, live)
        finish(state, turn)


@triton.jit
def _push_partial(
    out,
    lses,
    places,
    addresses,
    rank,
    tokens,
    kv_heads,
    group,
    fold,
    room,
    lse_offset,
    RANKS: tl.constexpr,
    PLACED: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    COLUMNS: tl.constexpr,
    HEIGHT: tl.constexpr,
):
    """Write each peer's heads of a partial, and their LSEs, into that peer's combine room."""
    column = tl.arange(0, COLUMNS)[None, :]
    rows = tokens * kv_heads * group
    for tile in range(tl.program_id(0), tl.cdiv(rows, HEIGHT), tl.num_programs(0)):
        row, token, kv_head, head, live = row_of(tile, tokens, kv_heads, group, HEIGHT)
        place = place_of(places, rank, token, tokens, live, PLACED)
        seeing = live & (place >= 0)
        for step in tl.static_range(1, RANKS):
            peer = (rank + step) % RANKS
            here = gathered_row(place, kv_head, peer, head, kv_heads, group, fold, RANKS)
            there = rank.to(tl.int64) * rows + row
            base = room_in(addresses, peer, room)
            inside = seeing[:, None] & (column < HEAD_DIM)
            target = base.to(tl.pointer_type(out.dtype.element_ty), bitcast=True)
            tl.store(
                at_rows(target, there * HEAD_DIM, column),
                tl.load(at_rows(out, here * HEAD_DIM, column), inside),
                inside,
            )
            lse = tl.load(lses + here, seeing, float("-inf"))
            tl.store((base + lse_offset).to(tl.pointer_type(tl.float32), bitcast=True) + there, lse, live)
