"""Mailboxes and outboxes of a whole group on one device, for tests of the direct exchange."""

from __future__ import annotations

import torch

from dcp_core.exchange.copies import Outbox
from dcp_core.triton_ops.mailbox import Group, Mailbox


def mailboxes(
    group: Group, *, tokens: int, places: int | None = None, device: str, programs: int = 4, polls: int = 1_000_000
) -> list[Mailbox]:
    """Return every rank's mailbox, all on one device, their rooms poisoned."""
    places = tokens if places is None else places
    size = group.mailbox_bytes(tokens, places)
    memories = [torch.full((size,), 0xFF, dtype=torch.uint8, device=device) for _ in range(group.ranks)]
    for memory in memories:
        memory[: group.marked_bytes] = 0
    addresses = torch.tensor([memory.data_ptr() for memory in memories], device=device)
    return [
        Mailbox.at(addresses, memory, group, rank=rank, tokens=tokens, places=places, programs=programs, polls=polls)
        for rank, memory in enumerate(memories)
    ]


def outboxes(group: Group, *, tokens: int, device: str) -> list[Outbox]:
    """Return every rank's outbox, all on one device, poisoned."""
    size = Outbox.bytes_for(group, tokens)
    memories = [torch.full((size,), 0xFF, dtype=torch.uint8, device=device) for _ in range(group.ranks)]
    addresses = tuple(memory.data_ptr() for memory in memories)
    return [Outbox(group, memory, addresses, tokens=tokens) for memory in memories]
