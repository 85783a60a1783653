"""The interleaved causal mask as a FlashInfer attention variant: evaluated in the kernel, never stored. Floor 3."""

from __future__ import annotations

from typing import Any

import torch

from dcp_core.kernels.base import PassSpec

# The mask's rows are runs of ones (dcp_core.mask), so a key is seen iff its index is below the local share of the tokens up
# to the query. The share depends on the query alone, which lets the compiler keep its division out of the loop over keys.
# qo_idx and kv_idx count within the request, and qo_idx counts queries, not (query, head) pairs.
DECLARATION = r"""
struct InterleavedCausal : AttentionVariantBase {
  static constexpr bool use_softmax = true;

  uint32_t qo_len, kv_len, window_left;
  float sm_scale_log2;
  uint32_t context, block, run, first;

  template <typename Params>
  __device__ __host__ InterleavedCausal(const Params& params, uint32_t batch_idx, uint8_t* smem_ptr) {
    qo_len = params.get_qo_len(batch_idx);
    kv_len = params.get_kv_len(batch_idx);
    window_left = kv_len;
    sm_scale_log2 = params.sm_scale * math::log2e;
    context = params.context_lens[batch_idx];
    run = params.interleave;
    block = params.dcp * params.interleave;
    first = params.rank * params.interleave;
  }

  REGISTER_LOGITS_MASK(params, batch_idx, qo_idx, kv_idx, qo_head_idx, kv_head_idx, {
    const uint32_t tokens = context + qo_idx + 1;
    const uint32_t whole = tokens / block;
    const uint32_t rest = tokens - whole * block;
    const uint32_t part = rest > first ? min(rest - first, run) : 0;
    return kv_idx < whole * run + part;
  })
};
"""

JIT_KWARGS = {
    "pos_encoding_mode": 0,
    "use_sliding_window": False,
    "use_logits_soft_cap": False,
    "use_fp16_qk_reduction": False,
    "paged_kv_stride_mode": "equal",  # keys and values are halves of one tensor: half the kernels to compile
}


def jit_args(spec: PassSpec) -> list[Any]:
    """Return the positional ``jit_args`` of FlashInfer's prefill wrappers: what to build, and the arguments of its run.

    At run time the kernel takes, after the keys and values: context lengths (int32 ``[requests]``), softmax scale, dcp,
    rank, interleave.
    """
    query, cache = (str(dtype).removeprefix("torch.") for dtype in (spec.dtype, spec.kv_dtype))
    return [
        f"dcp_interleaved_causal_q_{query}_kv_{cache}_head_dim_{spec.head_dim}",
        spec.dtype,
        spec.kv_dtype,
        spec.dtype,
        torch.int32,
        spec.head_dim,
        spec.head_dim,
        ["context_lens"],
        ["int32_t"],
        ["sm_scale", "dcp", "rank", "interleave"],
        ["double", "int64_t", "int64_t", "int64_t"],
        "InterleavedCausal",
        DECLARATION,
    ]
