"""The float workspace that FlashInfer's passes share. Floor 3."""

from __future__ import annotations

from weakref import WeakValueDictionary

import torch

from dcp_core.kernels.base import PassKind, PassSpec
from dcp_core.kernels.flashinfer_batch import BatchSize

FLOAT_WORKSPACE_BYTES = 394 << 20
"""vLLM's default for its FlashInfer backend; an eager plan takes some tens of MB at most, whatever the batch."""
LARGEST_QUERY_TILE = 128
"""Of fa2, in (query, head) pairs."""


def graph_bytes(spec: PassSpec, size: BatchSize) -> int:
    """Return a bound on what planning a batch for CUDA graphs takes: FlashInfer then splits KV whether it helps or not.

    A float32 partial result and LSE per query head, for every row and the padding of each request's last query tile
    (``PrefillPlanImpl`` of FlashInfer 0.7's scheduler.cuh); never less than the default, which covers a wave of tiles.
    """
    padding = -(-size.requests * LARGEST_QUERY_TILE // spec.group)
    need = 4 * spec.q_heads * (spec.head_dim + 1) * (size.rows + padding + 1)
    return max(FLOAT_WORKSPACE_BYTES, need)


class FloatWorkspace:
    """Scratch for the partial results of a split-KV pass: it holds nothing between two runs."""

    def __init__(self, device: torch.device, size: int) -> None:
        self.buffer = torch.zeros(size, dtype=torch.uint8, device=device)


_shared: WeakValueDictionary[tuple[torch.device, bool], FloatWorkspace] = WeakValueDictionary()


def float_workspace(device: torch.device, kind: PassKind, size: int) -> FloatWorkspace:
    """Return the workspace of a device for a kind of pass, of ``size`` bytes or more; it lives as long as a pass holds it.

    Passes share it, since those of one stream run one after another and each is done with it when it ends. The pass over
    new tokens (ragged) is the one that a path may run on a second stream beside a paged one, so it has its own. Two paged
    passes on two streams at once would corrupt each other.
    """
    key = (device, kind is PassKind.RAGGED)
    workspace = _shared.get(key)
    if workspace is None or workspace.buffer.numel() < size:
        workspace = _shared[key] = FloatWorkspace(device, size)
    return workspace
