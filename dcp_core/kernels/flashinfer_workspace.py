"""The float workspace that FlashInfer's passes share. Floor 3."""

from __future__ import annotations

import threading
from weakref import WeakValueDictionary

import torch

from dcp_core.kernels.base import PassKind, PassSpec
from dcp_core.kernels.flashinfer_batch import BatchSize

PAGED_BYTES = 394 << 20
"""vLLM's default for its FlashInfer backend."""
RAGGED_BYTES = 64 << 20
"""Room for a wave of the largest tiles: an eager plan takes 17.4 MB at most on 132 SMs, whatever the batch."""
LARGEST_QUERY_TILE = 128
"""Of fa2, in (query, head) pairs."""


class FloatWorkspace:
    """Scratch for the partial results of a split-KV pass: it holds nothing between two runs.

    Attributes:
        launching: held while a run launches its kernels. The ranks of a simulated group run in threads, FlashInfer lets go
            of the interpreter while it launches, and another rank's kernel between a run's attention and its merge would
            overwrite what the merge is about to read.
    """

    def __init__(self, device: torch.device, size: int) -> None:
        self.buffer = torch.zeros(size, dtype=torch.uint8, device=device)
        self.launching = threading.Lock()


_shared: WeakValueDictionary[tuple[torch.device, bool], FloatWorkspace] = WeakValueDictionary()


def float_workspace(device: torch.device, kind: PassKind, size: int = 0) -> FloatWorkspace:
    """Return a device's workspace for a kind of pass, of ``size`` bytes or more; it lives as long as a pass holds it.

    Passes share it, since those of one stream run one after another and each is done with it when it ends. The pass over
    new tokens (ragged) is the one that a path may run on a second stream beside a paged one, so it has its own. Two paged
    passes on two streams at once would corrupt each other.
    """
    ragged = kind is PassKind.RAGGED
    size = max(size, RAGGED_BYTES if ragged else PAGED_BYTES)
    workspace = _shared.get((device, ragged))
    if workspace is None or workspace.buffer.numel() < size:
        workspace = _shared[device, ragged] = FloatWorkspace(device, size)
    return workspace


def graph_bytes(spec: PassSpec, size: BatchSize) -> int:
    """Return a bound on what a plan for CUDA graphs takes beyond a wave of tiles: it splits KV whether that helps or not.

    A float32 partial result and LSE per query head, for every row and for the padding of each request's last query tile
    (``PrefillPlanImpl`` of FlashInfer 0.7's scheduler.cuh).
    """
    padding = -(-size.requests * LARGEST_QUERY_TILE // spec.group)
    return 4 * spec.q_heads * (spec.head_dim + 1) * (size.rows + padding + 1)
