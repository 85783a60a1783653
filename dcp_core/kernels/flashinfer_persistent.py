"""FlashInfer's persistent kernel behind the shape of its other wrappers: one launch for queries of any number. Floor 3."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from dcp_core.kernels.base import Masking, PassSpec
from dcp_core.kernels.flashinfer_batch import Indices


class Persistent:
    """A ``BatchAttention`` whose scratch is the one that a device's passes share, in place of 384 MiB of its own.

    Planning waits for the whole device. Nothing is planned for graphs; a captured one serves the planned batch alone.
    """

    def __init__(self, spec: PassSpec, workspace: Tensor) -> None:
        import flashinfer

        self._device = workspace.device
        self._wrapper = flashinfer.BatchAttention(kv_layout=spec.kv_layout.value, device=str(self._device))
        if workspace.numel() < self._wrapper.float_workspace_buffer.numel():
            raise ValueError(
                f"BatchAttention takes {self._wrapper.float_workspace_buffer.numel()} bytes of scratch, "
                f"and the shared workspace has {workspace.numel()}"
            )
        self._wrapper.float_workspace_buffer = workspace

    def plan(self, spec: PassSpec, indices: Indices, sm_scale: float) -> None:
        """Plan for a batch."""
        self._wrapper.plan(
            indices.qo_indptr,
            indices.kv_indptr,
            indices.pages.to(self._device),  # the kernel reads these themselves
            indices.kv_lens,
            spec.q_heads,
            spec.kv_heads,
            spec.head_dim,
            spec.head_dim,
            spec.page_size,
            causal=spec.masking is Masking.CAUSAL,
            sm_scale=sm_scale,
            q_data_type=spec.dtype,
            kv_data_type=spec.kv_dtype,
        )

    def run(self, q: Tensor, pages: Tensor, *, out: Tensor, lse: Tensor, return_lse: bool) -> Any:
        """Attend; the kernel always gives the LSE, in base 2 as FlashInfer's others do."""
        if not return_lse:
            raise ValueError("BatchAttention always returns the LSE")
        return self._wrapper.run(q, pages, out=out, lse=lse)
