"""The float workspace that FlashInfer's passes share. Floor 3."""

from __future__ import annotations

import threading
from weakref import WeakValueDictionary

import torch

from dcp_core.kernels.base import PassBatch, PassKind, PassSpec
from dcp_core.kernels.flashinfer_batch import BatchSize
from dcp_core.workspace import Planner, fa2_need, graph_need

PAGED_BYTES = 394 << 20
"""vLLM's default for its FlashInfer backend."""
RAGGED_BYTES = 64 << 20
"""Room for a wave of the largest tiles: an eager plan takes 17.4 MB at most on 132 SMs, whatever the batch."""


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


def plan_bytes(spec: PassSpec, batch: PassBatch, size: BatchSize) -> int:
    """Return the float bytes of a plan that may take more than a wave of tiles; 0 for one that never does.

    Those are plans for graphs, which split KV whether that helps or not, and plans whose KV chunks are of a fixed size.
    """
    planner = Planner(
        spec.q_heads,
        spec.kv_heads,
        spec.head_dim,
        multiprocessors=1,  # any device's wave of tiles has room in a shared workspace
        page_size=spec.page_size,
        fixed_split_pages=spec.fixed_split_size or 0,
        split_kv=not spec.disable_split_kv,
    )
    if spec.replayable:
        return graph_need(planner, rows=size.rows, requests=size.requests).float_bytes
    return fa2_need(planner, batch.q_lens, batch.kv_lens).float_bytes if spec.fixed_split_size else 0
