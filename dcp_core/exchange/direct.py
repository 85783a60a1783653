"""Stores into the peers' own memory, one kernel for each operation: no collective library, no copy on the way. Floor 4."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dcp_core.fold import Fold
from dcp_core.layout import RankHeads
from dcp_core.lse import Partial
from dcp_core.mesh import Mesh
from dcp_core.settings import ExchangeName, Unsupported
from dcp_core.triton_ops.direct import combine, gather_heads
from dcp_core.triton_ops.mailbox import STATE_WORDS, Group, Laid, Mailbox, lost_rank

HEAD_DIMS = (64, 256)
MOST_RANKS = 8
POLLS = 20_000_000
"""Looks at a flag before its rank is given up for lost: some twenty seconds."""
LEAST_TOKENS = 64
"""A mailbox is made for at least so many, and grows by doubling: making one takes milliseconds and every rank's help."""


class PeerLost(RuntimeError):
    """A rank of the group did not come to an exchange within its time: which, and in which turn."""


class Direct:
    """Mailboxes in symmetric memory. Gathers and combines alternate; every rank of the group calls them in the same order."""

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
        self._programs = min(mesh.share(sms))
        self._seen, self._copied = torch.zeros(STATE_WORDS, dtype=torch.int32, pin_memory=True), torch.cuda.Event()
        self._laid, self._combined = Laid(), self._own(0)
        self._mailbox = self._make(LEAST_TOKENS, LEAST_TOKENS)
        self._load()

    def reserve(self, tokens: int) -> None:
        """Make room for ``tokens`` rows.

        Raises:
            PeerLost: if a rank is known not to have come to an exchange; the device is not waited for.
        """
        self._room(tokens, places=tokens)
        self._laid = Laid()

    def reserve_folded(self, tokens: int, folds: Sequence[Fold]) -> None:
        """Make room for ``tokens`` rows that fold, ``folds`` being those of every rank. Errors as ``reserve``."""
        self._room(tokens, places=max(fold.places for fold in folds))
        places = torch.stack([fold.place for fold in folds]).to(self._mesh.device, torch.int32)
        rows = sum(folds[self._mesh.rank].rows)
        self._laid = Laid(places, fold=self._mesh.size, rows=rows)

    def gather_heads(self, q: Tensor) -> Tensor:
        """Return every rank's query heads, in this rank's mailbox."""
        return gather_heads(q, self._mailbox, self._laid)

    def combine(self, partial: Partial, *, into: Partial | None = None) -> Partial:
        """Add up every rank's partial for this rank's heads."""
        return combine(partial, self._mailbox, self._laid, into=into or self._combined)

    def combine_beside(self, partial: Partial, beside: Partial, *, into: Partial) -> Partial:
        """Add up every rank's partial for this rank's heads, and ``beside``."""
        return combine(partial, self._mailbox, self._laid, beside=beside, into=into)

    def check(self) -> None:
        """Raise PeerLost if a rank did not come to an exchange; waits for the device."""
        _complain(self._mailbox.state)

    def _look(self) -> None:
        """Check what the device had written when last asked, and ask again: without waiting."""
        if self._copied.query():
            _complain(self._seen)
            self._seen.copy_(self._mailbox.state, non_blocking=True)
            self._copied.record()

    def _room(self, tokens: int, *, places: int) -> None:
        self._look()
        if tokens > self._mailbox.tokens or places > self._mailbox.places:
            known = self._mailbox
            self._mailbox = self._make(max(_doubled(tokens), known.tokens), max(_doubled(places), known.places))
        if self._combined.out.shape[0] != tokens:
            self._combined = self._own(tokens)

    def _own(self, tokens: int) -> Partial:
        group = self._group
        return Partial.empty(tokens, group.heads, group.head_dim, dtype=group.dtype, device=self._mesh.device)

    def _make(self, tokens: int, places: int) -> Mailbox:
        """Make mailboxes on every rank together. Nobody writes into one before all are there, nor into an old one after."""
        device = self._mesh.device
        torch.cuda.synchronize(device)
        memory, addresses = self._mesh.symmetric(self._group.mailbox_bytes(tokens, places))
        state = torch.zeros(STATE_WORDS, dtype=torch.int32, device=device)
        torch.cuda.synchronize(device)
        self._mesh.barrier()
        return Mailbox(
            self._group,
            self._mesh.rank,
            memory,
            addresses,
            state,
            tokens=tokens,
            places=places,
            programs=self._programs,
            polls=self._polls,
        )

    def _load(self) -> None:
        """Take turns without a token, so that every kernel is compiled and loaded before the first that counts.

        A kernel loaded later would wait for the device, on which one may already be waiting for a peer.
        """
        group, device = self._group, self._mesh.device
        q = torch.empty(0, group.heads, group.head_dim, dtype=group.dtype, device=device)
        nowhere = Laid(torch.empty(group.ranks, 0, dtype=torch.int32, device=device), fold=group.ranks)
        for laid in (Laid(), nowhere):
            for beside in (None, self._own(0)):
                gathered = gather_heads(q, self._mailbox, laid)
                nothing = Partial(gathered, torch.empty(gathered.shape[:2], device=device))
                combine(nothing, self._mailbox, laid, beside=beside, into=self._combined)
                torch.cuda.synchronize(device)


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


def _complain(state: Tensor) -> None:
    if lost := lost_rank(state):
        rank, turn = lost
        raise PeerLost(f"rank {rank} did not come to turn {turn} of exchange direct; every result since is NaN")


def _doubled(tokens: int) -> int:
    return 1 << max(tokens - 1, LEAST_TOKENS - 1).bit_length()
