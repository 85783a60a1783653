"""The memory that a rank's peers write into: what is in it, and who reaches it. Floor 3.

docs/exchanges.md draws it, and tells the protocol that keeps it right.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

MOST_RANKS = 8
"""Of a group."""
MOST_PROGRAMS = 512
"""Flags that a rank keeps for each of its peers."""
MOST_ROWS_OF_WORDS = 512
"""Of each rank in a turn, up to which they may travel as words. A row is one head of one token."""
WORD_BYTES, PAYLOAD_BYTES = 8, 2
"""Of a word, which carries one element of 16 bits beside the number of its turn."""
ALIGNMENT = 256
"""Of rooms within a mailbox, in bytes."""
SEATS = 256
"""A loss is one number, turn * SEATS + rank + 1: written at once, it is never half of one loss and half of another."""


class PeerLost(RuntimeError):
    """A rank of the group did not come to an exchange within its time: which, and in which turn."""


@dataclass(frozen=True, slots=True)
class Group:
    """Who exchanges what: ``ranks`` ranks of ``kv_heads`` KV heads, each with ``group`` query heads to a KV head."""

    ranks: int
    kv_heads: int
    group: int
    head_dim: int
    dtype: torch.dtype

    @property
    def heads(self) -> int:
        """Query heads of one rank."""
        return self.kv_heads * self.group

    @property
    def row_bytes(self) -> int:
        """Bytes of a row: one head of one token."""
        return self.head_dim * self.dtype.itemsize

    @property
    def flag_bytes(self) -> int:
        """Bytes at the beginning of a mailbox: int64 flags ``[ranks, MOST_PROGRAMS]``, then marks ``[ranks]``."""
        return _aligned(8 * self.ranks * (MOST_PROGRAMS + 1))

    @property
    def has_words(self) -> bool:
        """Whether an element fits a word."""
        return self.dtype.itemsize == PAYLOAD_BYTES

    @property
    def gather_words_bytes(self) -> int:
        """Bytes of the words of a small gather: int64 ``[ranks, MOST_ROWS_OF_WORDS, head_dim]``; 0 if there are none."""
        return _aligned(self._words * self.head_dim)

    @property
    def combine_words_bytes(self) -> int:
        """Bytes of the words of a small combine: as of a gather, then int64 ``[ranks, MOST_ROWS_OF_WORDS, 2]`` for LSEs."""
        return _aligned(self._words * (self.head_dim + 2))

    @property
    def marked_bytes(self) -> int:
        """Bytes at the beginning of a mailbox that tell of turns, and must be 0 before the first: flags and words."""
        return self.flag_bytes + self.gather_words_bytes + self.combine_words_bytes

    @property
    def _words(self) -> int:
        return WORD_BYTES * self.ranks * MOST_ROWS_OF_WORDS if self.has_words else 0

    def gather_bytes(self, places: int) -> int:
        """Bytes of a gather room of ``places`` tokens: queries ``[places, heads * ranks, head_dim]``."""
        return _aligned(places * self.ranks * self.heads * self.row_bytes)

    def combine_bytes(self, tokens: int) -> int:
        """Bytes of a combine room: outputs ``[ranks, tokens, heads, head_dim]``, then float32 LSEs ``[ranks, tokens, heads]``."""
        return self.lse_offset(tokens) + _aligned(4 * self.ranks * tokens * self.heads)

    def lse_offset(self, tokens: int) -> int:
        """Where LSEs begin in a combine room."""
        return _aligned(self.ranks * tokens * self.heads * self.row_bytes)

    def mailbox_bytes(self, tokens: int, places: int) -> int:
        """Bytes of a whole mailbox, the same on every rank."""
        return self.marked_bytes + self.gather_bytes(places) + self.combine_bytes(tokens)


@dataclass(frozen=True, slots=True, eq=False)
class Mailbox:
    """One rank's mailbox, and what it needs to reach those of its peers. ``Mailbox.at`` makes one.

    Args:
        memory: uint8, this rank's own; ``group.marked_bytes`` of it zero before the first turn of any rank.
        rooms: int64 ``[6, ranks]`` on the device: where the flags, the gather room, the outputs and the LSEs of the combine
            room, the words of a gather and those of a combine begin in each rank's mailbox.
        turns: int64 ``[MOST_PROGRAMS]`` on the device: the last turn, once for each program, so that none reads what another
            writes. int64 does not wrap; int32 would in three hours, and a flag that was not set since would look fresh.
        loss: int64 ``[1]`` on the device, zero until a rank is lost; see ``lost_rank``.
        told: the same, in memory of the host that the device writes: read without waiting for the device.
        tokens, places: rows that the rooms hold.
        programs: of a launch, at most: as many as surely run at once, the same on every rank.
        polls: of a flag, at most, before its rank is given up for lost; about a microsecond each.
        early: whether kernels that follow one another may be launched early (programmatic dependent launch): the device has
            it, and no other rank runs there, whose programs would find the place taken by some that wait for it.
    """

    group: Group
    rank: int
    memory: Tensor
    rooms: Tensor
    turns: Tensor
    loss: Tensor
    told: Tensor
    tokens: int
    places: int
    programs: int
    polls: int
    early: bool

    @classmethod
    def at(
        cls,
        addresses: Tensor,
        memory: Tensor,
        group: Group,
        *,
        rank: int,
        tokens: int,
        places: int,
        programs: int,
        polls: int,
        early: bool = False,
    ) -> Mailbox:
        """Make a rank's mailbox of ``memory``, those of all ranks beginning at ``addresses``: int64 ``[ranks]`` on its device.

        Raises:
            ValueError: for more ranks or programs than there are flags for.
        """
        if group.ranks > MOST_RANKS or not 1 <= programs <= MOST_PROGRAMS:
            raise ValueError(
                f"a mailbox has flags for {MOST_RANKS} ranks and {MOST_PROGRAMS} programs, not {group.ranks} and {programs}"
            )
        words, gather = group.flag_bytes, group.marked_bytes
        outs = gather + group.gather_bytes(places)
        starts = torch.tensor(
            [0, gather, outs, outs + group.lse_offset(tokens), words, words + group.gather_words_bytes],
            device=addresses.device,
        )
        return cls(
            group,
            rank,
            memory,
            starts[:, None] + addresses,
            torch.zeros(MOST_PROGRAMS, dtype=torch.int64, device=memory.device),
            torch.zeros(1, dtype=torch.int64, device=memory.device),
            torch.zeros(1, dtype=torch.int64, pin_memory=memory.is_cuda),
            tokens,
            places,
            programs,
            polls,
            early,
        )

    def gathered(self, rows: int, fold: int) -> Tensor:
        """Return the first rows of the gather room: ``[rows, fold * ranks * heads, head_dim]``, a view."""
        group, start = self.group, self.group.marked_bytes
        shape = (rows, fold * group.ranks * group.heads, group.head_dim)
        return self.memory[start : start + prod(shape) * group.dtype.itemsize].view(group.dtype).view(shape)

    @property
    def marks(self) -> Tensor:
        """For each rank, this one among them, whether it has given up on some peer: int64 ``[ranks]``, a view; 0 if not."""
        start = 8 * self.group.ranks * MOST_PROGRAMS
        return self.memory[start : start + 8 * self.group.ranks].view(torch.int64)

    def lost_rank(self) -> tuple[int, int] | None:
        """Return the rank that did not come and the turn in which it was waited for; None if none is known.

        The device is not waited for: a loss is known as soon as the device has written it, at the latest when the launch
        that gave up has ended.
        """
        loss = int(self.told)
        return (loss % SEATS - 1, loss // SEATS) if loss else None

    @property
    def problem(self) -> str:
        """Say in a sentence which rank is known not to have come, or nothing; the device is not waited for."""
        if (lost := self.lost_rank()) is None:
            return ""
        return f"rank {lost[0]} did not come to turn {lost[1]} of exchange direct; every result since is NaN"

    def check(self) -> None:
        """Raise PeerLost if a rank is known not to have come; the device is not waited for."""
        if problem := self.problem:
            raise PeerLost(problem)


@dataclass(frozen=True, slots=True, eq=False)
class Laid:
    """How gathered tokens are laid out: token by token, or where ``places`` says.

    Args:
        places: int32 ``[ranks, T]``, where each token stands in each rank's gather room; -1: nowhere, since it sees no key.
        fold: places that make up one row, whose heads stand side by side; see ``dcp_core.fold``.
        rows: of this rank's room.
    """

    places: Tensor | None = None
    fold: int = 1
    rows: int = 0


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
