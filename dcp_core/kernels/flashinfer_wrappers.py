"""FlashInfer's wrappers behind one shape: made for a spec, planned for a batch. Floor 3.

Arguments, private names included, are those of flashinfer-python 0.7.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dcp_core.kernels.base import Masking, PassBatch, PassKind, PassSpec
from dcp_core.kernels.flashinfer_batch import BatchSize, Indices
from dcp_core.kernels.flashinfer_persistent import Persistent
from dcp_core.kernels.flashinfer_variant import JIT_KWARGS, jit_args
from dcp_core.mask import InterleavedMask, PackedMask
from dcp_core.settings import KernelName


@dataclass(frozen=True, slots=True, eq=False)
class GraphBuffers:
    """The device tensors that a captured graph reads, refilled by each plan."""

    qo_indptr: Tensor
    kv_indptr: Tensor
    pages: Tensor
    last_page_lens: Tensor
    mask: Tensor
    mask_indptr: Tensor
    context_lens: Tensor

    @classmethod
    def sized(cls, size: BatchSize, device: torch.device) -> GraphBuffers:
        """Allocate room for batches up to a size."""

        def room(count: int, dtype: torch.dtype = torch.int32) -> Tensor:
            return torch.zeros(max(1, count), dtype=dtype, device=device)

        return cls(
            qo_indptr=room(size.requests + 1),
            kv_indptr=room(size.requests + 1),
            pages=room(size.keys),
            last_page_lens=room(size.requests),
            mask=room(size.mask_bytes, torch.uint8),
            mask_indptr=room(size.requests + 1),
            context_lens=room(size.requests),
        )


def make_wrapper(name: KernelName, spec: PassSpec, workspace: Tensor, buffers: GraphBuffers | None) -> Any:
    """Make the FlashInfer wrapper that runs a spec; ``buffers``: for a replayable one.

    Making one with a computed mask compiles its kernel; the others are compiled when first planned.
    """
    import flashinfer

    if name is KernelName.PERSISTENT:
        return Persistent(spec, workspace)
    backend = "auto" if name is KernelName.AUTO else "fa3" if name is KernelName.FA3 else "fa2"
    layout, graph = spec.kv_layout.value, buffers is not None
    match spec.kind:
        case PassKind.DECODE:
            decode = _decode_buffers(buffers) if buffers else {}
            tensor_cores = name is not KernelName.CUDA_CORE
            return flashinfer.BatchDecodeWithPagedKVCacheWrapper(
                workspace, layout, use_cuda_graph=graph, use_tensor_cores=tensor_cores, backend=backend, **decode
            )
        case PassKind.PAGED:
            paged = {**(_paged_buffers(buffers, spec.masking) if buffers else {}), **_variant(spec)}
            return flashinfer.BatchPrefillWithPagedKVCacheWrapper(
                workspace, layout, use_cuda_graph=graph, backend=backend, **paged
            )
        case PassKind.RAGGED:
            ragged = {**(_ragged_buffers(buffers, spec.masking) if buffers else {}), **_variant(spec)}
            return flashinfer.BatchPrefillWithRaggedKVCacheWrapper(
                workspace, "NHD", use_cuda_graph=graph, backend=backend, **ragged
            )


def plan_wrapper(wrapper: Any, spec: PassSpec, batch: PassBatch, device: torch.device) -> None:
    """Plan a wrapper for a batch, its mask included."""
    indices = Indices.of(spec, batch, device)
    if isinstance(wrapper, Persistent):
        wrapper.plan(spec, indices, softmax_scale(spec))
        return
    heads = (spec.q_heads, spec.kv_heads, spec.head_dim)
    options = {
        "q_data_type": spec.dtype,
        "kv_data_type": spec.kv_dtype,
        "o_data_type": spec.dtype,
        "sm_scale": softmax_scale(spec),
    }
    if spec.fixed_split_size is not None:
        options["fixed_split_size"] = spec.fixed_split_size
    if spec.disable_split_kv:
        options["disable_split_kv"] = True
    if spec.kind is PassKind.DECODE:
        wrapper.plan(indices.kv_indptr, indices.pages, indices.last_page_lens, *heads, spec.page_size, **options)
        return
    options |= {"causal": spec.masking is Masking.CAUSAL} | _mask_options(batch, device)
    if spec.kind is PassKind.RAGGED:
        wrapper.plan(indices.qo_indptr, indices.kv_indptr, *heads, **options)
    else:
        last_page_lens = indices.last_page_lens
        if spec.masking is Masking.BOOL:
            # FlashInfer counts a request's mask as (pages - 1) * page_size + last_page_len columns. A full last page where
            # there is none makes that 0; the true lengths are given apart, and its kernels never read past the page count.
            last_page_lens = last_page_lens.where(indices.kv_lens > 0, spec.page_size)
            options["seq_lens"] = indices.kv_lens
        wrapper.plan(
            indices.qo_indptr, indices.kv_indptr, indices.pages, last_page_lens, *heads, spec.page_size, **options
        )
    if isinstance(batch.mask, PackedMask):
        _set_byte_offsets(wrapper, batch.mask, device)


def run_arguments(
    spec: PassSpec, batch: PassBatch, buffers: GraphBuffers | None, device: torch.device
) -> tuple[Any, ...]:
    """Return what a run takes besides queries, keys and values: a computed mask's own arguments, or nothing."""
    rule = batch.mask
    if not isinstance(rule, InterleavedMask):
        return ()
    contexts = [total - new for new, total in zip(rule.new_lens, rule.total_lens, strict=True)]
    context_lens = torch.tensor(contexts, dtype=torch.int32).to(device)
    if buffers is not None:
        context_lens = buffers.context_lens.copy_(context_lens)
    return (context_lens, softmax_scale(spec), rule.dcp, rule.rank, rule.interleave)


def softmax_scale(spec: PassSpec) -> float:
    """Return 1/√head_dim."""
    return 1.0 / math.sqrt(spec.head_dim)


def resolved_backend(name: KernelName, spec: PassSpec, wrapper: Any) -> str:
    """Return the backend that a planned wrapper runs: what ``auto`` became, or the one asked for."""
    if name in (KernelName.CUDA_CORE, KernelName.PERSISTENT):
        return str(name)
    return str(wrapper.resolved_backend if spec.kind is PassKind.DECODE else wrapper._backend)


def _mask_options(batch: PassBatch, device: torch.device) -> dict[str, Any]:
    match batch.mask:
        case PackedMask(bits=bits):
            return {"packed_custom_mask": bits.to(device)}
        case Tensor() as mask:
            return {"custom_mask": mask.to(device)}
        case _:
            return {}


def _set_byte_offsets(wrapper: Any, mask: PackedMask, device: torch.device) -> None:
    """Correct a planned wrapper's mask offsets: it derives them in bits, and its kernel reads bytes."""
    offsets = mask.byte_indptr.to(device, torch.int32)
    if wrapper.is_cuda_graph_enabled:
        wrapper._mask_indptr_buf.copy_(offsets)
    else:
        wrapper._mask_indptr_buf = offsets


def _variant(spec: PassSpec) -> dict[str, Any]:
    if spec.masking is not Masking.COMPUTED:
        return {}
    return {"jit_args": jit_args(spec), "jit_kwargs": JIT_KWARGS, "variant_owns_mask": True}


def _decode_buffers(buffers: GraphBuffers) -> dict[str, Tensor]:
    return {
        "paged_kv_indptr_buffer": buffers.kv_indptr,
        "paged_kv_indices_buffer": buffers.pages,
        "paged_kv_last_page_len_buffer": buffers.last_page_lens,
    }


def _paged_buffers(buffers: GraphBuffers, masking: Masking) -> dict[str, Tensor]:
    return {
        "qo_indptr_buf": buffers.qo_indptr,
        "paged_kv_indptr_buf": buffers.kv_indptr,
        "paged_kv_indices_buf": buffers.pages,
        "paged_kv_last_page_len_buf": buffers.last_page_lens,
        **_mask_buffers(buffers, masking),
    }


def _ragged_buffers(buffers: GraphBuffers, masking: Masking) -> dict[str, Tensor]:
    return {
        "qo_indptr_buf": buffers.qo_indptr,
        "kv_indptr_buf": buffers.kv_indptr,
        **_mask_buffers(buffers, masking),
    }


def _mask_buffers(buffers: GraphBuffers, masking: Masking) -> dict[str, Tensor]:
    """Name the mask's buffers for a mask of ours; a wrapper that is given them masks whether asked to or not."""
    if masking not in (Masking.BOOL, Masking.PACKED):
        return {}
    return {"custom_mask_buf": buffers.mask, "mask_indptr_buf": buffers.mask_indptr}
