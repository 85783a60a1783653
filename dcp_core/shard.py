"""Local lengths, slots and shards as tensors. Floor 2."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dcp_core.layout import DcpLayout


def local_seq_lens(seq_lens: Tensor | Sequence[int], dcp: int, rank: int | None = None, interleave: int = 1) -> Tensor:
    """Return how many tokens of each sequence live on a rank, or on every rank.

    Args:
        seq_lens: whole numbers of any shape ``[...]``.
        rank: which rank; all of them if None.

    Returns:
        int32 ``[...]`` for one rank, ``[..., dcp]`` for all, on the device of ``seq_lens``. The formula is vLLM's
        ``get_dcp_local_seq_lens``: each block of ``dcp * interleave`` tokens gives a rank ``interleave`` of them.

    Raises:
        ValueError: for lengths, a dcp, interleave or rank that cannot be.
    """
    layout = DcpLayout(1, dcp, interleave)
    if rank is not None:
        layout.local_len(0, rank)
    lens = whole_numbers(seq_lens)
    if bool(((lens < 0) | (lens > torch.iinfo(torch.int32).max)).any()):
        raise ValueError("a sequence has 0 to 2147483647 tokens: lengths travel as int32")
    ranks = torch.arange(dcp, device=lens.device) if rank is None else torch.tensor(rank, device=lens.device)
    if rank is None:
        lens = lens.unsqueeze(-1)
    block = dcp * interleave
    base = lens // block * interleave
    rest = (lens % block - ranks * interleave).clamp(0, interleave)
    return (base + rest).to(torch.int32)


def whole_numbers(lens: Tensor | Sequence[int], device: torch.device | None = None) -> Tensor:
    """Return lengths as int64, on ``device`` or where they are.

    Raises:
        ValueError: if they are no whole numbers, or there is no such device.
    """
    try:
        found = lens if isinstance(lens, Tensor) else torch.tensor(lens)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise ValueError(f"lengths should be a list or tensor of whole numbers, not {repr(lens)[:60]}") from None
    if found.numel() and (found.is_floating_point() or found.is_complex() or found.dtype is torch.bool):
        raise ValueError(f"lengths should be whole numbers, not {found.dtype}")
    try:
        return found.to(device, torch.int64)
    except (RuntimeError, TypeError, AssertionError) as error:  # torch's ways to say that there is no such device
        why = str(error).strip().partition("\n")[0]
        raise ValueError(f"lengths cannot be moved to {repr(device)[:60]}: {why[:200]}") from None


def token_positions(new_lens: Tensor | Sequence[int], total_lens: Tensor | Sequence[int]) -> tuple[Tensor, Tensor]:
    """Return, for every new token of a batch, its request and its position in that request's sequence.

    Returns:
        Two int64 tensors ``[Σ new_lens]``, request after request, on the device of the lengths.

    Raises:
        ValueError: for lengths that are no batch's.
    """
    new = whole_numbers(new_lens)
    total = whole_numbers(total_lens, new.device)
    if new.shape != total.shape or new.ndim != 1:
        raise ValueError(
            f"new and total lengths should be two equally long lists, not {list(new.shape)} and {list(total.shape)}"
        )
    if bool(((new < 0) | (total < new)).any()):
        raise ValueError("every request needs 0 <= new <= total")
    request = torch.repeat_interleave(torch.arange(new.numel(), device=new.device), new)
    first = new.cumsum(0) - new
    row = torch.arange(request.numel(), device=new.device)
    return request, row - first[request] + (total - new)[request]


def take_shard(tokens: Tensor, layout: DcpLayout, rank: int) -> Tensor:
    """Return the rows of one sequence that live on ``rank``: ``[total, ...] -> [local, ...]``, in order of position."""
    positions = torch.arange(tokens.shape[0], device=tokens.device)
    return tokens[positions // layout.interleave % layout.dcp == rank]
