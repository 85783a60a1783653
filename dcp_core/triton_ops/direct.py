"""Gather and combine in one kernel each, by stores into the peers' own memory; docs/exchanges.md draws the protocol. Floor 3.

Every rank owns a *mailbox*: flags, a gather room and a combine room. A call of either kind is a *turn*. In a turn, each
program of the kernel writes its rows into every peer's room, then sets its flag there to the turn's number, and only then
waits for its peers' flags in its own mailbox. A program waits for the same program of its peers and for nobody else. Small
turns flag every element instead: see ``dcp_core.triton_ops.words``.

What is large may also be left where peers fetch it, which copy engines can do: ``meet`` is a turn after which they may.

Why nothing is lost or overwritten: a rank that has finished turn k has seen a flag of every peer for turn k, so every peer
had by then finished whatever it did before turn k, reading what turn k - 1 brought it included. So turn k + 1 may write
where turn k - 1 wrote: gathers and combines alternate, and one room of each kind is enough.

The number of the turn lives on the device, so that a captured graph may be replayed. Flags only grow.
"""

from __future__ import annotations

from enum import IntFlag
from typing import NamedTuple

import triton
from torch import Tensor

from dcp_core.fold import OwnRows
from dcp_core.lse import LseBase, Partial
from dcp_core.triton_ops.carveout import ask_for_shared_memory
from dcp_core.triton_ops.combine import check_lses, check_rows
from dcp_core.triton_ops.mailbox import MOST_ROWS_OF_WORDS, Group, Laid, Mailbox
from dcp_core.triton_ops.own_rows import arguments
from dcp_core.triton_ops.rows import combine_rows, gather_rows
from dcp_core.triton_ops.turns import meet_once
from dcp_core.triton_ops.words import combine_words, gather_words


class Tile(NamedTuple):
    """What a program moves at a time, with how many warps, and whether as words. A row is one head of one token."""

    rows: int
    warps: int
    as_words: bool


SMALL, LARGE = Tile(2, 4, as_words=True), Tile(32, 8, as_words=False)
"""Tiles of 16 rows for some 2000 make a combine by itself faster, 6.9 instead of 7.1 µs, and a decode step slower, 20.7 instead
of 19.9 (256 requests between H200s).
"""
PROGRAMS_PER_SM = 2
"""Of a launch, at most: so many surely run at once, of 128 threads with any number of registers, or of 256 with REGISTERS."""
REGISTERS = 128
"""Of a thread of a kernel that moves rows, at most."""
REGISTERS_BESIDE = 32
"""Of a thread of one that only waits: fa3 leaves a multiprocessor 1024, its 384 threads having 168 of 65536 each."""
VECTOR_BYTES = 16
"""The widest load and store there is."""


class Phase(IntFlag):
    """What a launch does of a turn. One launch does both; two leave room between them, for work or for the other ranks."""

    PUSH = 1
    WAIT = 2
    BOTH = 3


def gather_heads(
    q: Tensor, mailbox: Mailbox, laid: Laid, *, phase: Phase = Phase.BOTH, tile: Tile | None = None
) -> Tensor:
    """Push this rank's query heads into every rank's gather room, and wait for those of the peers.

    Args:
        q: ``[T, h, D]``, any strides but for contiguous D; fastest where heads begin at multiples of 16 bytes.
        tile: the same on every rank; by the number of rows if None.

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
    tile = _checked(tile, tokens, group)
    grid, turn = _grid(tokens, mailbox, tile), _turn(mailbox, tokens, phase, tile) | _placing(mailbox, laid)
    if tile.as_words:
        ask_for_shared_memory(gather_words[grid](q, *q.stride()[:2], **turn, SEATS=_seats(group)))
    else:
        gather_rows[grid](q, *q.stride()[:2], **turn, ALIGNED=_aligned(q))
    return mailbox.gathered(tokens if laid.places is None else laid.rows, laid.fold)


def meet(mailbox: Mailbox, *, phase: Phase = Phase.BOTH) -> None:
    """Take a turn that moves nothing: what each rank's stream did before, in memory that its peers reach, they may then fetch.

    Nobody may write there anew before all have begun the next turn. One warp of few registers waits, for which there is room on
    a multiprocessor even beside attention.
    """
    meet_once[(1,)](
        mailbox.rooms,
        mailbox.turns,
        mailbox.loss,
        mailbox.told,
        mailbox.rank,
        int(phase),
        mailbox.polls,
        RANKS=mailbox.group.ranks,
        EARLY=mailbox.early,
        num_warps=1,
        maxnreg=REGISTERS_BESIDE,
        launch_pdl=mailbox.early,
    )


def combine(
    partial: Partial,
    mailbox: Mailbox,
    laid: Laid,
    *,
    beside: Partial | OwnRows | None = None,
    into: Partial | None = None,
    phase: Phase = Phase.BOTH,
    tile: Tile | None = None,
) -> Partial:
    """Push every peer's heads of this rank's partial to it, wait for the peers', and add up what they say of one's own.

    Args:
        partial: contiguous, of the shape and order that ``gather_heads`` returned.
        beside: one more partial ``[T, h, D]`` of one's own heads, over keys that nobody else saw; of tokens that are placed, the
            rows that they are to attend to for it. Not read by a push alone.
        into: where to write; allocated if None. Not written by a push alone.
        tile: the same on every rank; by the number of rows if None.

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
    if beside is not None and isinstance(beside, OwnRows) != (laid.places is not None):
        raise ValueError("beside tokens that are placed stand their own rows, beside others a partial")
    # Where something is not beside, pointers that are not read.
    own = beside if isinstance(beside, Partial) else into
    counts = own.lse[:, 0] if laid.places is None else laid.places[0]
    rows = beside if isinstance(beside, OwnRows) else OwnRows(own.out, own.out, own.out, counts, group.ranks)
    for name, other in (("room for the result", into.out), ("partial beside", own.out), ("queries beside", rows.q)):
        if other.shape != shape or other.dtype != group.dtype:
            raise ValueError(f"the {name} should be {list(shape)} of {group.dtype}, not {_named(other)}")
    if into.base is not LseBase.NATURAL:
        raise ValueError(f"the result's LSE is natural, and the room for it is labelled {into.base}")
    check_rows(own.out, rows.q, rows.k, rows.v, into.out)
    check_lses(partial.lse, own.lse, into.lse)
    tile = _checked(tile, tokens, group)
    grid, turn = _grid(tokens, mailbox, tile), _turn(mailbox, tokens, phase, tile) | _placing(mailbox, laid)
    tensors = (
        partial.out,
        partial.lse,
        partial.base.to_natural,
        *arguments(rows),
        own.lse,
        *own.lse.stride(),
        own.base.to_natural,
        into.out,
        *into.out.stride()[:2],
        into.lse,
        *into.lse.stride(),
        0 if beside is None else tokens,
    )
    if tile.as_words:
        ask_for_shared_memory(combine_words[grid](*tensors, **turn, SEATS=_seats(group)))
    else:
        aligned = _aligned(partial.out, rows.q, rows.k, rows.v, into.out)
        combine_rows[grid](*tensors, mailbox.tokens * group.heads, **turn, ALIGNED=aligned)
    return into


def tile_for(tokens: int, group: Group) -> Tile:
    """Return the tile that a call takes, by its number of rows, unless told."""
    return SMALL if group.has_words and 0 < tokens * group.heads <= MOST_ROWS_OF_WORDS else LARGE


def _checked(tile: Tile | None, tokens: int, group: Group) -> Tile:
    """Return the tile to take. A turn of words awaits rows, and so needs some: else its ranks would not meet."""
    if tile is not None and tile.as_words and not tile_for(tokens, group).as_words:
        raise ValueError(
            f"1 to {MOST_ROWS_OF_WORDS} rows of 16-bit elements travel as words, not {tokens * group.heads} of {group.dtype}"
        )
    return tile or tile_for(tokens, group)


def _seats(group: Group) -> int:
    return 1 << (group.ranks - 1).bit_length()


def _grid(tokens: int, mailbox: Mailbox, tile: Tile) -> tuple[int]:
    """Return the programs of a launch: one even for no row, since a turn is taken by every rank whatever it holds."""
    return (max(1, min(triton.cdiv(tokens * mailbox.group.heads, tile.rows), mailbox.programs)),)


def _placing(mailbox: Mailbox, laid: Laid) -> dict[str, object]:
    """Return by name where tokens stand; where none is placed, a pointer that is not read."""
    placed = laid.places is not None
    return {"places": laid.places if placed else mailbox.turns, "PLACED": placed, "FOLD": laid.fold}


def _turn(mailbox: Mailbox, tokens: int, phase: Phase, tile: Tile) -> dict[str, object]:
    """Return what every kernel here takes, by name."""
    group = mailbox.group
    return {
        "rooms": mailbox.rooms,
        "turns": mailbox.turns,
        "loss": mailbox.loss,
        "told": mailbox.told,
        "rank": mailbox.rank,
        "tokens": tokens,
        "phase": int(phase),
        "polls": mailbox.polls,
        "RANKS": group.ranks,
        "KV_HEADS": group.kv_heads,
        "GROUP": group.group,
        "HEAD_DIM": group.head_dim,
        "COLUMNS": triton.next_power_of_2(group.head_dim),
        "HEIGHT": tile.rows,
        "EARLY": mailbox.early,
        "num_warps": tile.warps,
        "maxnreg": None if tile.as_words else REGISTERS,
        "launch_pdl": mailbox.early,
    }


def _aligned(*rows: Tensor) -> bool:
    """Tell whether every head of every token begins at a multiple of 16 bytes."""
    return all(
        at % VECTOR_BYTES == 0
        for tensor in rows
        for at in (tensor.data_ptr(), *(stride * tensor.element_size() for stride in tensor.stride()[:2]))
    )


def _check_room(tokens: int, mailbox: Mailbox) -> None:
    if tokens > mailbox.tokens:
        raise ValueError(f"a mailbox with room for {mailbox.tokens} tokens cannot take {tokens}; reserve more first")


def _named(tensor: Tensor) -> str:
    return f"{list(tensor.shape)} of {tensor.dtype}"
