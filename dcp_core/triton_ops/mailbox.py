"""The memory that a rank's peers write into: what is in it, and who reaches it. Floor 3.

docs/exchanges.md draws it, and tells the protocol that keeps it right.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

MOST_PROGRAMS = 512
"""Flags that a rank keeps for each of its peers."""
ALIGNMENT = 256
"""Of rooms within a mailbox, in bytes."""
STATE_WORDS = 4
"""int32 words that a rank keeps for itself: the last turn finished, programs done with this one, who is lost, when."""


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
    def flag_bytes(self) -> int:
        """Bytes at the beginning of a mailbox: int32 flags ``[ranks, MOST_PROGRAMS]``."""
        return _aligned(4 * self.ranks * MOST_PROGRAMS)

    def gather_bytes(self, places: int) -> int:
        """Bytes of a gather room of ``places`` tokens: queries ``[places, heads * ranks, head_dim]``."""
        return _aligned(places * self.ranks * self.heads * self.head_dim * self.dtype.itemsize)

    def combine_bytes(self, tokens: int) -> int:
        """Bytes of a combine room: outputs ``[ranks, tokens, heads, head_dim]``, then float32 LSEs ``[ranks, tokens, heads]``."""
        return self.lse_offset(tokens) + _aligned(4 * self.ranks * tokens * self.heads)

    def lse_offset(self, tokens: int) -> int:
        """Where LSEs begin in a combine room."""
        return _aligned(self.ranks * tokens * self.heads * self.head_dim * self.dtype.itemsize)

    def mailbox_bytes(self, tokens: int, places: int) -> int:
        """Bytes of a whole mailbox, the same on every rank."""
        return self.flag_bytes + self.gather_bytes(places) + self.combine_bytes(tokens)


@dataclass(frozen=True, slots=True, eq=False)
class Mailbox:
    """One rank's mailbox, and what it needs to reach those of its peers.

    Args:
        memory: uint8, this rank's own; zero before the first turn of any rank.
        addresses: int64 ``[ranks]`` on the device, where each rank's mailbox begins for this one.
        state: int32 ``[STATE_WORDS]`` on the device, zero before the first turn.
        tokens, places: rows that the rooms hold.
        programs: of a launch, at most: as many as surely run at once, the same on every rank.
        polls: of a flag, at most, before its rank is given up for lost; about a microsecond each.
    """

    group: Group
    rank: int
    memory: Tensor
    addresses: Tensor
    state: Tensor
    tokens: int
    places: int
    programs: int
    polls: int

    def gathered(self, rows: int, fold: int) -> Tensor:
        """Return the first rows of the gather room: ``[rows, fold * ranks * heads, head_dim]``, a view."""
        group, start = self.group, self.group.flag_bytes
        shape = (rows, fold * group.ranks * group.heads, group.head_dim)
        return self.memory[start : start + prod(shape) * group.dtype.itemsize].view(group.dtype).view(shape)


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


def lost_rank(state: Tensor) -> tuple[int, int] | None:
    """Return the rank that did not come and the turn in which it was waited for; None if all came so far.

    Args:
        state: of a mailbox, or a copy of it; on a device it is waited for.
    """
    _, _, rank, turn = state.tolist()
    return (rank - 1, turn) if rank else None


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
