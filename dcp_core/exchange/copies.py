"""A gather by copy engines: every rank leaves its heads in its own mailbox, and fetches those of its peers. Floor 4.

Copy engines need no multiprocessor, so that what computes meanwhile loses none. They copy whatever happens, and cannot be told
that a rank is lost: hence each fetches into its own room, where a wrong row harms nobody else, and sends nothing.
"""

from __future__ import annotations

from ctypes import CDLL, Structure, byref, c_int, c_size_t, c_uint64, c_void_p
from functools import cache

import torch
from torch import Tensor

from dcp_core.triton_ops.direct import stage_heads
from dcp_core.triton_ops.mailbox import Mailbox

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


def gather_by_copies(q: Tensor, mailbox: Mailbox) -> Tensor:
    """Gather as ``dcp_core.triton_ops.direct.gather_heads`` does, token by token, with copy engines for the payload.

    Args:
        q: ``[T, h, D]``, on a GPU.

    Returns:
        The room: ``[T, ranks * h, D]``, valid until the next turn.

    Raises:
        ValueError: for queries that do not fit the mailbox.
        RuntimeError: if the driver refuses a copy.
    """
    stage_heads(q, mailbox)
    group, tokens = mailbox.group, q.shape[0]
    width = group.group * group.row_bytes  # what one rank has of one KV head of one token
    stream = torch.cuda.current_stream(q.device).cuda_stream
    for step in range(1, group.ranks + 1):
        rank = (mailbox.rank + step) % group.ranks  # not all fetch from the same one
        copy = _Copy(
            source_type=_DEVICE,
            source=mailbox.staged_address(rank),
            source_pitch=width,
            target_type=_DEVICE,
            target=mailbox.gathered_address(rank),
            target_pitch=group.ranks * width,
            width=width,
            height=tokens * group.kv_heads,
        )
        if error := _driver().cuMemcpy2DAsync_v2(byref(copy), c_void_p(stream)):
            raise RuntimeError(f"the CUDA driver refused to copy {tokens} tokens from rank {rank}: error {error}")
    return mailbox.gathered(tokens, 1)


@cache
def _driver() -> CDLL:
    return CDLL("libcuda.so.1")
