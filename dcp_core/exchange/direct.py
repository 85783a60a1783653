"""Stores into the peers' own memory, one kernel for each operation: no collective library, no copy on the way. Floor 4."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import torch
from torch import Tensor

from dcp_core.exchange.copies import CopyEngines, Outbox
from dcp_core.fold import Fold, OwnRows
from dcp_core.layout import RankHeads
from dcp_core.lse import LseBase, Partial
from dcp_core.mesh import Mesh
from dcp_core.settings import ExchangeName, Unsupported
from dcp_core.triton_ops.direct import (
    LARGE,
    PROGRAMS_PER_SM,
    SMALL,
    combine,
    gather_heads,
    tile_for,
)
from dcp_core.triton_ops.mailbox import MOST_PROGRAMS, MOST_RANKS, Group, Laid, Mailbox, PeerLost

HEAD_DIMS = (64, 256)
POLLS = 20_000_000
"""Looks at a flag before its rank is given up for lost: some twenty seconds."""
EARLY_CAPABILITY = (9, 0)
"""Of a device, from which a kernel can be launched before the one that it follows has ended."""
LEAST_FETCHED_ROWS = 1 << 14
"""Of a rank, from which copy engines carry a step: as many tiles of 128 rows as a device has multiprocessors, so that a pass over
its own heads and one over those of its peers take no longer than one over all.
"""
LEAST_TOKENS = 64
"""A mailbox is made for at least so many, and grows by doubling, as outboxes do: making one takes milliseconds and all ranks."""


class Direct:
    """Mailboxes in symmetric memory. Gathers and combines alternate; every rank of the group calls them in the same order.

    Every call raises PeerLost once a rank is known not to have come to an exchange; the device is not waited for.
    """

    name = ExchangeName.DIRECT

    def __init__(self, mesh: Mesh, heads: RankHeads, head_dim: int, dtype: torch.dtype, *, polls: int = POLLS) -> None:
        """Open the exchange; every rank of the group must.

        Raises:
            Unsupported: if some rank cannot reach another's memory, with the reason; on every rank alike.
        """
        if problem := mesh.first_problem(refusal(mesh, head_dim)):
            raise Unsupported(problem)
        self._mesh, self._polls = mesh, polls
        self._group = Group(mesh.size, heads.kv, heads.query // heads.kv, head_dim, dtype)
        sms = torch.cuda.get_device_properties(mesh.device).multi_processor_count
        self._programs = min(PROGRAMS_PER_SM * min(mesh.share(sms)), MOST_PROGRAMS)
        alone = len(set(mesh.share(mesh.device.index))) == mesh.size
        self._early = alone and torch.cuda.get_device_capability(mesh.device) >= EARLY_CAPABILITY
        self._laid, self._combined = Laid(), self._own(0)
        # Kept as long as the next batch folds alike: a captured graph reads them.
        self._places = torch.empty(0, 0, dtype=torch.int64)
        self._places_here = self._places.to(mesh.device, torch.int32)
        self._mailbox = self._make(LEAST_TOKENS, LEAST_TOKENS)
        self._outbox: Outbox | None = None
        self._fetching: CopyEngines | None = None
        self._load()

    def reserve(self, tokens: int) -> None:
        """Make room for ``tokens`` rows."""
        self._room(tokens, places=tokens)
        self._laid = Laid()

    def reserve_folded(self, tokens: int, folds: Sequence[Fold]) -> None:
        """Make room for ``tokens`` rows that fold, ``folds`` being those of every rank."""
        self._room(tokens, places=max(fold.places for fold in folds))
        places = torch.stack([fold.place for fold in folds])
        if not torch.equal(places, self._places):
            self._places, self._places_here = places, places.to(self._mesh.device, torch.int32)
        rows = sum(folds[self._mesh.rank].rows)
        self._laid = Laid(self._places_here, fold=self._mesh.size, rows=rows)

    def variant(self, tokens: int) -> str:
        """Say what a program moves at a time."""
        tile = tile_for(tokens, self._group)
        return f"{'words in ' if tile.as_words else ''}tiles of {tile.rows} rows, {tile.warps} warps"

    def gather_heads(self, q: Tensor) -> Tensor:
        """Return every rank's query heads, in this rank's mailbox."""
        self._mailbox.check()
        return gather_heads(q, self._mailbox, self._laid)

    def reserve_fetching(self, tokens: int) -> CopyEngines | None:
        """Make room for a step whose payload copy engines carry; None for one so small that attention would suffer."""
        if tokens * self._group.heads < LEAST_FETCHED_ROWS:
            return None
        if self._outbox is None or tokens > self._outbox.tokens:
            self._agree_that_none_is_lost()
            self._outbox, self._fetching = Outbox.on(self._mesh, self._group, _doubled(tokens)), None
            self._load_fetching(self._outbox)
        self._mailbox.check()
        if self._fetching is None or self._fetching.tokens != tokens:
            self._fetching = CopyEngines(self._mailbox, self._outbox, tokens)
        return self._fetching

    def combine(self, partial: Partial, *, into: Partial | None = None) -> Partial:
        """Add up every rank's partial for this rank's heads."""
        return self._combine(partial, None, into or self._combined)

    def combine_beside(self, partial: Partial, beside: Partial | OwnRows, *, into: Partial) -> Partial:
        """Add up every rank's partial for this rank's heads, and ``beside``."""
        return self._combine(partial, beside, into)

    def check(self) -> None:
        """Raise PeerLost if a rank did not come to an exchange; waits for the device."""
        torch.cuda.synchronize(self._mesh.device)
        self._mailbox.check()

    def _combine(self, partial: Partial, beside: Partial | OwnRows | None, into: Partial) -> Partial:
        self._mailbox.check()
        return combine(partial, self._mailbox, self._laid, beside=beside, into=into)

    def _room(self, tokens: int, *, places: int) -> None:
        known = self._mailbox
        if tokens > known.tokens or places > known.places:
            self._agree_that_none_is_lost()
            self._mailbox = self._make(max(_doubled(tokens), known.tokens), max(_doubled(places), known.places))
            self._fetching = None
        known.check()
        if self._combined.out.shape[0] != tokens:
            self._combined = self._own(tokens)

    def _agree_that_none_is_lost(self) -> None:
        """Before new memory is made, which knows of no loss and takes every rank: all are told, or none."""
        torch.cuda.synchronize(self._mesh.device)
        if problem := self._mesh.first_problem(self._mailbox.problem):
            raise PeerLost(problem)

    def _own(self, tokens: int) -> Partial:
        group = self._group
        return Partial.empty(tokens, group.heads, group.head_dim, dtype=group.dtype, device=self._mesh.device)

    def _make(self, tokens: int, places: int) -> Mailbox:
        """Make mailboxes on every rank together. Nobody writes into one before all are there, nor into an old one after."""
        device = self._mesh.device
        torch.cuda.synchronize(device)
        memory, addresses = self._mesh.symmetric(self._group.mailbox_bytes(tokens, places))
        mailbox = Mailbox.at(
            addresses,
            memory,
            self._group,
            rank=self._mesh.rank,
            tokens=tokens,
            places=places,
            programs=self._programs,
            polls=self._polls,
            early=self._early,
        )
        torch.cuda.synchronize(device)
        self._mesh.barrier()
        return mailbox

    def _load(self) -> None:
        """Take turns of one token that stands nowhere, so that every kernel is loaded before the first that counts.

        A kernel loaded later would wait for the device, on which one may already be waiting for a peer.
        """
        group, device = self._group, self._mesh.device
        nowhere = Laid(torch.full((group.ranks, 1), -1, dtype=torch.int32, device=device), fold=group.ranks)
        first = torch.zeros(1, dtype=torch.int32, device=device)
        tiles = (SMALL, LARGE) if group.has_words else (LARGE,)
        room = self._own(1)
        # Rows that begin at multiples of 16 bytes, and others.
        for laid, apart, tile in product((Laid(), nowhere), (16, 1), tiles):
            shape, strides = (1, group.heads, group.head_dim), (apart, apart, 1)
            rows = torch.empty_strided(shape, strides, dtype=group.dtype, device=device).zero_()
            keys = torch.empty_strided(
                (1, group.kv_heads, group.head_dim), strides, dtype=group.dtype, device=device
            ).zero_()
            gathered = gather_heads(rows, self._mailbox, laid, tile=tile)
            partial = Partial(gathered, torch.zeros(gathered.shape[:2], device=device))
            beside = None if laid.places is None else OwnRows(rows, keys, keys, first, group.ranks)
            combine(partial, self._mailbox, laid, beside=beside, into=Partial(rows, room.lse), tile=tile)
            torch.cuda.synchronize(device)

    def _load_fetching(self, outbox: Outbox) -> None:
        """Take a step of one token by copy engines, for the same reason."""
        fetching, room = CopyEngines(self._mailbox, outbox, 1), self._own(1)
        fetching.leave_queries(room.out)
        fetching.fetch_queries()
        fetching.fetch_partials()
        fetching.add_up(LseBase.NATURAL, room)
        torch.cuda.synchronize(self._mesh.device)
        self._mesh.barrier()


def refusal(mesh: Mesh, head_dim: int) -> str:
    """Say in a sentence why this rank cannot take part, or nothing; the same work on every rank, which must all ask."""
    nodes, devices = mesh.nodes(), mesh.share(mesh.device.index)
    if len(nodes) > 1:
        return f"exchange direct writes into peers' memory over NVLink, and this group spans {len(nodes)} nodes"
    if mesh.device.type != "cuda":
        return f"exchange direct writes into the memory of peers' GPUs, and this group runs on {mesh.device.type}"
    if not 2 <= mesh.size <= MOST_RANKS:
        return f"exchange direct is built for groups of 2 to {MOST_RANKS}, not {mesh.size}"
    if not HEAD_DIMS[0] <= head_dim <= HEAD_DIMS[1]:
        return f"exchange direct is built for head dims from {HEAD_DIMS[0]} to {HEAD_DIMS[1]}, not {head_dim}"
    return _unreached(mesh.device.index, devices)


def _unreached(mine: int, others: Sequence[int | None]) -> str:
    """Name a peer's device that this rank's does not reach, as far as this process sees both."""
    for other in others:
        visible = other is not None and other != mine and other < torch.cuda.device_count()
        if visible and not torch.cuda.can_device_access_peer(mine, other):
            return (
                f"exchange direct needs GPUs that reach each other's memory, and device {mine} does not reach {other}"
            )
    return ""


def _doubled(tokens: int) -> int:
    return 1 << max(tokens - 1, LEAST_TOKENS - 1).bit_length()
