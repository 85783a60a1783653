"""FlashInfer's kernels: fa2, fa3, auto, cuda_core and persistent. Floor 3; importing this module does not import FlashInfer."""

from __future__ import annotations

import math
import weakref
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from dcp_core.cache import PageTable
from dcp_core.kernels.base import Masking, PassBatch, PassKind, PassSpec
from dcp_core.kernels.flashinfer_batch import BatchSize, check_batch
from dcp_core.kernels.flashinfer_refusals import refusal
from dcp_core.kernels.flashinfer_workspace import float_workspace, plan_bytes
from dcp_core.kernels.flashinfer_wrappers import (
    GraphBuffers,
    make_wrapper,
    plan_wrapper,
    resolved_backend,
    run_arguments,
)
from dcp_core.lse import LseBase, Partial
from dcp_core.mask import InterleavedMask, PackedMask
from dcp_core.settings import KernelName, Unsupported


class FlashInfer:
    """One of FlashInfer's kernels, by name.

    ``fa2`` and ``fa3`` run every kind of pass, decodes through the decode wrapper with tensor cores; ``auto`` leaves the
    choice to FlashInfer, as vLLM does; ``cuda_core`` is its decode kernel without tensor cores, ``persistent`` its
    ``BatchAttention``, which shares blocks out over queries of any number at once.
    """

    def __init__(self, name: KernelName) -> None:
        if name is KernelName.REFERENCE:
            raise ValueError(
                "the reference kernel is torch's, not FlashInfer's; ask for fa2, fa3, auto, cuda_core or persistent"
            )
        self.name = name

    def refusal(self, spec: PassSpec, device: torch.device) -> str | None:
        """Say in a sentence why this kernel cannot run the pass here, or None if it can; runs and compiles nothing."""
        return refusal(self.name, spec, device)

    def open(self, spec: PassSpec, device: torch.device) -> FlashInferPass:
        """Open the pass, compiling its kernel first if this machine never did (ten seconds to a minute): no later call compiles.

        Raises:
            Unsupported: with the refusal.
        """
        if reason := self.refusal(spec, device):
            raise Unsupported(reason)
        device = torch.empty(0, device=device).device  # "cuda" with its index, as tensors name it
        eager = FlashInferPass(self.name, replace(spec, replayable=False), device)
        eager.plan(_one_token(spec, device))
        if not spec.replayable:
            return eager
        opened = FlashInferPass(self.name, spec, device)
        opened.resolved = eager.resolved
        return opened


class FlashInferPass:
    """One attention pass of a FlashInfer kernel.

    Plan and run on the same stream: the scratch of split-KV passes is shared (flashinfer_workspace), and safe in stream
    order only. A pass that is not ``replayable`` may be captured in a graph too, as long as it is kept and not planned again.

    Attributes:
        resolved: the backend that runs, ``auto`` resolved: "fa2", "fa3", "cuda_core" or "persistent".
    """

    def __init__(self, name: KernelName, spec: PassSpec, device: torch.device) -> None:
        from flashinfer.utils import _get_cache_alibi_slopes_buf

        self.resolved = str(name)
        self._name, self._spec, self._device = name, spec, device
        self._workspace = float_workspace(device, spec.kind)
        self._wrapper: Any = None
        self._buffers: GraphBuffers | None = None
        self._first: BatchSize | None = None
        self._batch = PassBatch((), ())
        self._arguments: tuple[Any, ...] = ()
        self._idle = True
        # A plan's copy out of the wrapper's pinned memory runs behind the host. Were that memory written by the next plan, or
        # freed and handed to the next wrapper, while the GPU is behind, rows would come out wrong without a word.
        self._staged = torch.cuda.Event()
        weakref.finalize(self, self._staged.synchronize).atexit = False
        # FlashInfer fetches ALiBi slopes on every run, used or not, and makes them on the first: that would allocate.
        _get_cache_alibi_slopes_buf(spec.q_heads, device)

    def plan(self, batch: PassBatch) -> None:
        """Prepare for a batch; waits until the GPU has read what the last plan staged.

        Raises:
            ValueError: for a batch that does not fit together, that FlashInfer computes wrongly (more causal queries than
                keys), or that has outgrown a replayable pass.
        """
        check_batch(self._spec, batch)
        size = BatchSize.of(batch)
        if self._spec.replayable and self._first is not None:
            size.check_within(self._first)
            self._check_same_rule(batch)
        with torch.cuda.device(self._device):
            self._staged.synchronize()
            try:
                self._plan(batch, size)
            finally:
                self._staged.record()

    def run(self, q: Tensor, keys_values: Tensor | tuple[Tensor, Tensor], into: Partial) -> Partial:
        """Attend, without allocating; tensors as ``Pass.run`` says, ``into`` contiguous.

        Returns:
            ``into``'s tensors with a base-2 LSE.

        Raises:
            ValueError: for tensors that do not match the planned batch.
        """
        if not (into.out.is_contiguous() and into.lse.is_contiguous()):
            raise ValueError("FlashInfer writes contiguous results only; give it room that is contiguous")
        if self._idle:
            into.out.zero_()
            into.lse.fill_(-math.inf)
        else:
            source = keys_values if isinstance(keys_values, tuple) else (keys_values,)
            with self._workspace.launching:
                self._wrapper.run(q, *source, *self._arguments, out=into.out, lse=into.lse, return_lse=True)
        return into.relabelled(LseBase.TWO)

    def _plan(self, batch: PassBatch, size: BatchSize) -> None:
        spec = self._spec
        # A captured graph must not be one of a pass with nothing to do, unless no batch it has room for has any.
        room = self._first if self._first is not None and spec.replayable else size
        self._idle = size.rows == 0 or room.keys == 0
        if not self._idle:
            self._make_room(batch, size)
        self._first = room
        self._batch = batch
        if self._idle:
            return
        plan_wrapper(self._wrapper, spec, batch, self._device)
        self._arguments = run_arguments(spec, batch, self._buffers, self._device)
        self.resolved = resolved_backend(self._name, spec, self._wrapper)

    def _make_room(self, batch: PassBatch, size: BatchSize) -> None:
        """Make the wrapper, and make it anew for a batch that takes more scratch than it has; a graph's first takes most."""
        spec = self._spec
        if self._wrapper is not None and (spec.replayable or not spec.fixed_split_size):
            return
        needed = plan_bytes(spec, batch, size)
        if self._wrapper is not None and needed <= self._workspace.buffer.numel():
            return
        if needed > self._workspace.buffer.numel():
            self._workspace = float_workspace(self._device, spec.kind, needed)
        if spec.replayable:
            self._buffers = GraphBuffers.sized(size, self._device)
        self._wrapper = make_wrapper(self._name, spec, self._workspace.buffer, self._buffers)

    def _check_same_rule(self, batch: PassBatch) -> None:
        """A graph holds a computed mask's dcp, rank and interleave by value."""
        match self._batch.mask, batch.mask:
            case InterleavedMask() as old, InterleavedMask() as new:
                if (old.dcp, old.rank, old.interleave) != (new.dcp, new.rank, new.interleave):
                    raise ValueError(
                        "a replayable pass keeps the dcp, rank and interleave of its mask; open another pass"
                    )


def _one_token(spec: PassSpec, device: torch.device) -> PassBatch:
    """Return the smallest batch of a spec: planning it compiles all that the spec needs."""
    table = None if spec.kind is PassKind.RAGGED else PageTable.over((1,), spec.page_size)
    mask: Tensor | PackedMask | InterleavedMask | None
    match spec.masking:
        case Masking.BOOL:
            mask = torch.ones(1, dtype=torch.bool, device=device)
        case Masking.PACKED:
            mask = PackedMask(torch.ones(1, dtype=torch.uint8), torch.tensor((0, 1), dtype=torch.int32))
        case Masking.COMPUTED:
            mask = InterleavedMask((1,), (1,), dcp=1, rank=0)
        case Masking.NONE | Masking.CAUSAL:
            mask = None
    return PassBatch((1,), (1,), table, mask)
