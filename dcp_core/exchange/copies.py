"""A large step whose payload copy engines carry: each rank leaves its own where its peers reach it, and fetches theirs. Floor 4.

Copy engines need no multiprocessor, so that what computes meanwhile loses none. They copy whatever happens, and cannot be told
that a rank is lost: hence each rank fetches into its own rooms, and sends nothing. What it makes of wrong rows others may fetch
in their turn: whoever gives up on a rank marks every mailbox first, and with a mark there nobody adds anything up.
"""

from __future__ import annotations

from ctypes import CDLL, Structure, byref, c_int, c_size_t, c_uint64, c_void_p
from functools import cache
from math import prod

import torch
from torch import Tensor

from dcp_core.lse import LseBase, Partial
from dcp_core.mesh import Mesh
from dcp_core.triton_ops.combine import combine
from dcp_core.triton_ops.direct import meet
from dcp_core.triton_ops.mailbox import ALIGNMENT, Group, Mailbox

_DEVICE = 2  # CU_MEMORYTYPE_DEVICE


class _Copy(Structure):
    """CUDA_MEMCPY2D of the driver's API."""

    _fields_ = (
        ("source_x", c_size_t),
        ("source_y", c_size_t),
        ("source_type", c_int),
        ("source_host", c_void_p),
        ("source", c_uint64),
        ("source_array", c_void_p),
        ("source_pitch", c_size_t),
        ("target_x", c_size_t),
        ("target_y", c_size_t),
        ("target_type", c_int),
        ("target_host", c_void_p),
        ("target", c_uint64),
        ("target_array", c_void_p),
        ("target_pitch", c_size_t),
        ("width", c_size_t),
        ("height", c_size_t),
    )


class CopyEngines:
    """What one rank exchanges by copy engines in steps of a number of tokens, ``T``; every rank calls the same in the same order.

    A step begins with ``leave_queries``, attends to its own heads while ``fetch_queries`` runs, to those of its peers after it,
    leaving its partials in ``for_peers``, and to whatever needs no peer while ``fetch_partials`` runs; ``add_up`` ends it. All
    memory stays as it is from step to step.

    Args:
        mailbox: by whose turns the ranks meet.
        outbox: where this rank leaves what is fetched, and where every rank's begins.

    Attributes:
        tokens: of a step.
        own: room for this rank's partial of its own heads, ``[T, h, D]``.
        beside: room for one more of them, over keys that nobody else saw.
        queries: the peers' heads, once they are fetched, ``[T, (ranks - 1) * h, D]``, ordered (KV head, peer, head) from the next
            rank on.
        for_peers: room for this rank's partials of them, in the same order.
    """

    def __init__(self, mailbox: Mailbox, outbox: Outbox, tokens: int) -> None:
        group = mailbox.group
        self.tokens = tokens
        self._mailbox, self._outbox = mailbox, outbox
        self._left, outs, lses = outbox.parts(tokens)
        self.for_peers = Partial(outs, lses)
        self.queries = torch.empty_like(outs)
        shape = (group.ranks + 1, tokens, group.heads)
        self._outs = torch.empty(*shape, group.head_dim, dtype=group.dtype, device=outs.device)
        self._lses = torch.empty(shape, device=outs.device)
        self.own, self.beside = (Partial(self._outs[place], self._lses[place]) for place in (0, group.ranks))

    def leave_queries(self, q: Tensor) -> None:
        """Leave this rank's query heads ``[T, h, D]`` for its peers. A kernel copies them, and would wait for attention to end.

        Raises:
            PeerLost: if a rank is known not to have come to an exchange.
            ValueError: for queries of another shape or dtype.
        """
        self._mailbox.check()
        if q.shape != self._left.shape or q.dtype != self._left.dtype:
            wanted = f"{list(self._left.shape)} of {self._left.dtype}"
            raise ValueError(f"queries should be {wanted}, not {list(q.shape)} of {q.dtype}")
        self._left.copy_(q)

    def fetch_queries(self) -> None:
        """Fetch the peers' ``queries``, once all have left theirs.

        Raises:
            PeerLost: as ``leave_queries``.
            RuntimeError: if the driver refuses a copy.
        """
        self._mailbox.check()
        meet(self._mailbox)
        group, peers = self._mailbox.group, self._mailbox.group.ranks - 1
        width = group.group * group.row_bytes  # what one rank has of one KV head of one token
        for place in range(peers):
            source = self._outbox.addresses[self._peer(place)]
            self._copy(source, width, self.queries.data_ptr() + place * width, peers * width, width)

    def fetch_partials(self) -> None:
        """Fetch what the peers have left in their ``for_peers``, once all have; errors as of ``fetch_queries``."""
        self._mailbox.check()
        meet(self._mailbox)
        group, peers = self._mailbox.group, self._mailbox.group.ranks - 1
        _, outs, lses = self._outbox.starts
        for start, width, rooms in (
            (outs, group.group * group.row_bytes, self._outs),
            (lses, group.group * self._lses.itemsize, self._lses),
        ):
            for place in range(peers):
                # This rank's heads stand there at the place that it has in the peer's order.
                source = self._outbox.addresses[self._peer(place)] + start + (peers - 1 - place) * width
                self._copy(source, peers * width, rooms[place + 1].data_ptr(), width, width)

    def add_up(self, base: LseBase, into: Partial) -> None:
        """Add up ``own``, ``beside`` and what was fetched, all in ``base``; NaN once some rank has given up on another."""
        combine(self._outs, self._lses, base=base, into=into, marks=self._mailbox.marks)

    def _peer(self, place: int) -> int:
        """Return the rank at a place: not all fetch from the same one at a time."""
        return (self._mailbox.rank + 1 + place) % self._mailbox.group.ranks

    def _copy(self, source: int, source_pitch: int, target: int, target_pitch: int, width: int) -> None:
        """Copy so many bytes of each KV head of each token."""
        height = self.tokens * self._mailbox.group.kv_heads
        if not height:
            return
        copy = _Copy(
            source_type=_DEVICE,
            source=source,
            source_pitch=source_pitch,
            target_type=_DEVICE,
            target=target,
            target_pitch=target_pitch,
            width=width,
            height=height,
        )
        stream = torch.cuda.current_stream(self.queries.device).cuda_stream
        if error := _driver().cuMemcpy2DAsync_v2(byref(copy), c_void_p(stream)):
            raise RuntimeError(f"the CUDA driver refused to copy {self.tokens} tokens from a peer: error {error}")


class Outbox:
    """Memory of one rank that its peers reach, and what lies in it: queries, then partials of the peers' heads.

    Each of the three lies where it does whatever the tokens of a step: queries of the next step may be left while a peer still
    fetches partials of the last, and must not lie on them.

    Args:
        memory: uint8, this rank's own.
        addresses: where each rank's begins, for this rank.
        tokens: that there is room for.

    Attributes:
        starts: where queries, outputs and LSEs begin, in bytes.
    """

    def __init__(self, group: Group, memory: Tensor, addresses: tuple[int, ...], *, tokens: int) -> None:
        self.addresses, self.tokens = addresses, tokens
        self._group, self._memory = group, memory
        queries, outs, _ = _part_bytes(group, tokens)
        self.starts = (0, queries, queries + outs)

    @classmethod
    def on(cls, mesh: Mesh, group: Group, tokens: int) -> Outbox:
        """Make one; every rank of the group must."""
        memory, addresses = mesh.symmetric(cls.bytes_for(group, tokens))
        return cls(group, memory, tuple(addresses.tolist()), tokens=tokens)

    @staticmethod
    def bytes_for(group: Group, tokens: int) -> int:
        """Return the bytes of one with room for ``tokens``."""
        return sum(_part_bytes(group, tokens))

    def parts(self, tokens: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return this rank's queries ``[T, h, D]``, outputs ``[T, (ranks - 1) * h, D]`` and LSEs of those, float32; views."""
        group = self._group
        theirs = (group.ranks - 1) * group.heads
        shapes = ((tokens, group.heads, group.head_dim), (tokens, theirs, group.head_dim), (tokens, theirs))
        dtypes = (group.dtype, group.dtype, torch.float32)
        queries, outs, lses = (
            self._memory[start : start + prod(shape) * dtype.itemsize].view(dtype).view(shape)
            for start, shape, dtype in zip(self.starts, shapes, dtypes, strict=True)
        )
        return queries, outs, lses


def _part_bytes(group: Group, tokens: int) -> tuple[int, int, int]:
    """Return the bytes of the queries, the outputs and the LSEs in an outbox."""
    rows = tokens * group.heads
    theirs = (group.ranks - 1) * rows
    queries, outs, lses = (
        -(-size // ALIGNMENT) * ALIGNMENT for size in (rows * group.row_bytes, theirs * group.row_bytes, 4 * theirs)
    )
    return queries, outs, lses


@cache
def _driver() -> CDLL:
    return CDLL("libcuda.so.1")
