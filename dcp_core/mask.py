"""The interleaved causal mask: what a query may see of the keys that one rank holds. Floor 2.

A query at position ``p`` sees the local key ``j`` iff ``position(j) <= p``. Local keys are in order of position, so each
row of the mask is a run of ones, as long as the local share of the first ``p + 1`` tokens, and then zeros.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from dcp_core.shard import local_seq_lens, token_positions, whole_numbers

Lengths = Tensor | Sequence[int]


@dataclass(frozen=True, slots=True, eq=False)
class PackedMask:
    """A mask as bits, little end first, in the form that FlashInfer's kernels read.

    Args:
        bits: uint8. Each request's bits, row-major over (new, local key), padded to a whole byte.
        byte_indptr: int32 ``[requests + 1]``, where each request's bytes begin.
    """

    bits: Tensor
    byte_indptr: Tensor


@dataclass(frozen=True, slots=True)
class InterleavedMask:
    """The rule itself, for a batch on one rank."""

    new_lens: tuple[int, ...]
    total_lens: tuple[int, ...]
    dcp: int
    rank: int
    interleave: int = 1

    def bools(self, device: torch.device | None = None) -> Tensor:
        """Return the mask as ``interleaved_causal_mask`` does."""
        return interleaved_causal_mask(self.new_lens, self.total_lens, self.dcp, self.rank, self.interleave, device)

    def packed(self, device: torch.device | None = None) -> PackedMask:
        """Return the mask as ``packed_interleaved_causal_mask`` does."""
        return PackedMask(
            *packed_interleaved_causal_mask(
                self.new_lens, self.total_lens, self.dcp, self.rank, self.interleave, device
            )
        )


@dataclass(frozen=True, slots=True, eq=False)
class MaskRows:
    """The rows of a batch's mask, one per new token.

    Args:
        visible: int32 ``[rows]``, the ones that a row begins with.
        request: int64 ``[rows]``, whose row it is.
        new_lens, widths: int64 ``[requests]``, rows and local keys of each request.
    """

    visible: Tensor
    request: Tensor
    new_lens: Tensor
    widths: Tensor

    @classmethod
    def of(
        cls, new_lens: Lengths, total_lens: Lengths, dcp: int, rank: int, interleave: int, device: torch.device | None
    ) -> MaskRows:
        """Work out the rows; raises ValueError for lengths, dcp, rank or interleave that cannot be."""
        new, total = whole_numbers(new_lens, device), whole_numbers(total_lens, device)
        if new.shape != total.shape or bool(((new < 0) | (total < new)).any()):
            raise ValueError("a mask needs two equally long lists of lengths with 0 <= new <= total")
        request, position = token_positions(new, total)
        visible = local_seq_lens(position + 1, dcp, rank, interleave)
        return cls(visible, request, new, local_seq_lens(total, dcp, rank, interleave).to(torch.int64))

    def byte_indptr(self) -> Tensor:
        """Return ``PackedMask.byte_indptr`` of these rows' requests."""
        offsets = byte_offsets(self.new_lens.tolist(), self.widths.tolist())
        return torch.tensor(offsets, dtype=torch.int32, device=self.widths.device)


def byte_offsets(new_lens: Sequence[int], widths: Sequence[int]) -> list[int]:
    """Return where each request's bytes begin in a packed mask, and where the last one's end, as FlashInfer reads them.

    Args:
        new_lens, widths: rows and local keys of each request.

    Raises:
        ValueError: if the whole mask has more bytes than int32 counts.
    """
    offsets = list(accumulate(((new * width + 7) // 8 for new, width in zip(new_lens, widths, strict=True)), initial=0))
    if offsets[-1] > torch.iinfo(torch.int32).max:
        raise ValueError(f"a packed mask of {offsets[-1]} bytes is more than int32 offsets reach; split the batch")
    return offsets


def interleaved_causal_mask(
    new_lens: Lengths,
    total_lens: Lengths,
    dcp: int,
    rank: int,
    interleave: int = 1,
    device: torch.device | None = None,
) -> Tensor:
    """Return the mask of a batch as flat bool, request after request, row-major over (new, local key).

    Args:
        new_lens, total_lens: per request, as lists or tensors.
        device: of the result; that of the lengths if None.

    Raises:
        ValueError: for lengths, dcp, rank or interleave that cannot be.
    """
    rows = MaskRows.of(new_lens, total_lens, dcp, rank, interleave, device)
    widest = int(rows.widths.max()) if rows.widths.numel() else 0
    columns = torch.arange(widest, dtype=torch.int32, device=rows.visible.device)
    seen = columns < rows.visible.unsqueeze(1)
    if bool((rows.widths == widest).all()):
        return seen.flatten()
    return seen[columns < rows.widths[rows.request].unsqueeze(1)]


def packed_interleaved_causal_mask(
    new_lens: Lengths,
    total_lens: Lengths,
    dcp: int,
    rank: int,
    interleave: int = 1,
    device: torch.device | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the mask of a batch as bits, without building the bool one.

    Returns:
        uint8 bits and int32 byte offsets ``[requests + 1]``, as ``PackedMask`` says; the same bits that the Triton
        kernel of ``dcp_core.triton_ops.pack_mask`` writes.

    Raises:
        ValueError: as ``interleaved_causal_mask``.
    """
    rows = MaskRows.of(new_lens, total_lens, dcp, rank, interleave, device)
    return pack_rows(rows), rows.byte_indptr()


def pack_rows(rows: MaskRows) -> Tensor:
    """Return the bits of a mask's rows: uint8. Walks eight bits of every byte at once; no loop over requests."""
    indptr = rows.byte_indptr().to(torch.int64)
    request = torch.repeat_interleave(torch.arange(rows.widths.numel(), device=indptr.device), indptr.diff())
    byte = torch.arange(request.numel(), device=indptr.device) - indptr[request]
    first_row = (rows.new_lens.cumsum(0) - rows.new_lens)[request]
    width, height = rows.widths[request], rows.new_lens[request]
    row, column = byte * 8 // width, byte * 8 % width
    bits = torch.zeros_like(byte, dtype=torch.uint8)
    last = rows.visible.numel() - 1
    for bit in range(8):
        visible = rows.visible[(first_row + row).clamp(max=last)]
        one = (row < height) & (column < visible)
        bits |= one.to(torch.uint8) << bit
        column = column + 1
        wrapped = column == width
        row, column = row + wrapped, torch.where(wrapped, 0, column)
    return bits
