"""Attention in plain torch, on any device: what every other kernel is compared with. Floor 3."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dcp_core.cache import PagedCache
from dcp_core.kernels.base import Masking, PassBatch, PassKind, PassSpec
from dcp_core.lse import Partial
from dcp_core.mask import InterleavedMask, PackedMask
from dcp_core.settings import KernelName, Unsupported

SCORE_ELEMENTS = 1 << 22
"""Scores held at once per head, so that a 32k × 32k pass fits in memory: 16 MiB of float32."""


class Reference:
    """The torch kernel: float32 accumulation, one rounding of the output, natural LSE."""

    name = KernelName.REFERENCE

    def refusal(self, spec: PassSpec, device: torch.device) -> str | None:
        """Refuse what is to be replayed, since this kernel allocates while it runs, and queries that torch cannot multiply."""
        if spec.dtype.itemsize < 2:
            dtype = str(spec.dtype).removeprefix("torch.")
            return f"the reference kernel takes queries of bfloat16, float16 or float32, not {dtype}"
        return "the reference kernel allocates while it runs, so it cannot be replayed" if spec.replayable else None

    def open(self, spec: PassSpec, device: torch.device) -> ReferencePass:
        """Open the pass.

        Raises:
            Unsupported: with the refusal.
        """
        if reason := self.refusal(spec, device):
            raise Unsupported(reason)
        return ReferencePass(spec, device)


class ReferencePass:
    """One pass of the torch kernel. It allocates while it runs, so it is never captured in a graph."""

    def __init__(self, spec: PassSpec, device: torch.device) -> None:
        self._spec = spec
        self._device = device
        self._batch = PassBatch((), ())

    def plan(self, batch: PassBatch) -> None:
        """Keep the batch."""
        if self._spec.kind is PassKind.DECODE and any(length != 1 for length in batch.q_lens):
            raise ValueError(f"a decode pass takes one query per request, not {max(batch.q_lens)}")
        self._batch = batch

    def run(self, q: Tensor, keys_values: Tensor | tuple[Tensor, Tensor], into: Partial) -> Partial:
        """Attend, request by request."""
        batch, row, key, bit = self._batch, 0, 0, 0
        for request, (rows, keys) in enumerate(zip(batch.q_lens, batch.kv_lens, strict=True)):
            k, v = self._keys_values(keys_values, request, key, keys)
            seen = self._seen(request, rows, keys, bit)
            here = slice(row, row + rows)
            attend(q[here], k, v, seen=seen, into=Partial(into.out[here], into.lse[here]))
            row, key, bit = row + rows, key + keys, bit + rows * keys
        return into

    def _keys_values(
        self, source: Tensor | tuple[Tensor, Tensor], request: int, start: int, length: int
    ) -> tuple[Tensor, Tensor]:
        if isinstance(source, tuple):
            return source[0][start : start + length], source[1][start : start + length]
        if self._batch.table is None:
            raise ValueError("a paged pass needs a page table in its batch")
        return PagedCache(source, self._spec.kv_layout).read(self._batch.table, request)

    def _seen(self, request: int, rows: int, keys: int, bit: int) -> Tensor | None:
        """Return bool ``[rows, keys]``, what each query sees, or None for all."""
        match self._spec.masking, self._batch.mask:
            case Masking.NONE, _:
                return None
            case Masking.CAUSAL, _:
                last = torch.arange(rows, device=self._device).unsqueeze(1) + (keys - rows)
                return torch.arange(keys, device=self._device) <= last
            case Masking.BOOL, Tensor() as mask:
                return mask[bit : bit + rows * keys].view(rows, keys)
            case Masking.PACKED, PackedMask() as mask:
                start = int(mask.byte_indptr[request])
                count = rows * keys
                packed = mask.bits[start : start + (count + 7) // 8]
                shifts = torch.arange(8, dtype=torch.uint8, device=packed.device)
                return ((packed.unsqueeze(1) >> shifts) & 1).flatten()[:count].bool().view(rows, keys)
            case Masking.COMPUTED, InterleavedMask() as rule:
                one = InterleavedMask(
                    (rule.new_lens[request],), (rule.total_lens[request],), rule.dcp, rule.rank, rule.interleave
                )
                return one.bools(self._device).view(rows, keys)
            case masking, mask:
                raise ValueError(f"a pass with {masking} masking cannot take a mask of type {type(mask).__name__}")


def attend(q: Tensor, k: Tensor, v: Tensor, *, seen: Tensor | None, into: Partial) -> None:
    """Attend over one request's keys in float32 (float64 for float64 inputs), a chunk of queries at a time.

    Args:
        q: ``[rows, heads, head_dim]``.
        k, v: ``[keys, kv_heads, head_dim]``.
        seen: bool ``[rows, keys]``; None: every query sees every key.
        into: ``[rows, heads, …]``; rows that see no key get (0, -inf).
    """
    rows, heads, head_dim = q.shape
    keys, kv_heads, _ = k.shape
    wide = torch.float64 if into.out.dtype == torch.float64 else torch.float32
    if keys == 0:
        into.out.zero_()
        into.lse.fill_(-math.inf)
        return
    k_wide, v_wide = k.to(wide).permute(1, 2, 0), v.to(wide).transpose(0, 1)
    chunk = max(1, SCORE_ELEMENTS // keys)
    for start in range(0, rows, chunk):
        part = slice(start, min(start + chunk, rows))
        grouped = q[part].to(wide).view(-1, kv_heads, heads // kv_heads, head_dim).permute(1, 0, 2, 3)
        scores = torch.matmul(grouped.flatten(1, 2), k_wide) / math.sqrt(head_dim)
        scores = scores.view(kv_heads, -1, heads // kv_heads, keys)
        if seen is not None:
            scores.masked_fill_(~seen[part].unsqueeze(1), -math.inf)
        lse = torch.logsumexp(scores, -1)
        weights = torch.exp(scores - torch.where(lse == -math.inf, 0.0, lse).unsqueeze(-1))
        out = torch.matmul(weights.flatten(1, 2), v_wide).view(kv_heads, -1, heads // kv_heads, head_dim)
        into.out[part].copy_(out.permute(1, 0, 2, 3).reshape(-1, heads, head_dim))
        into.lse[part].copy_(lse.permute(1, 0, 2).reshape(-1, heads))
