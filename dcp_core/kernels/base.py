"""The seam to whoever computes attention. Floor 3."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

import torch
from torch import Tensor

from dcp_core.cache import PageTable
from dcp_core.lse import Partial
from dcp_core.mask import InterleavedMask, PackedMask
from dcp_core.settings import DecodeWrapper, IndexDevice, KernelName, KvLayout


class PassKind(StrEnum):
    """What a pass reads: pages of the cache, with any number of queries or with one per request, or contiguous tensors."""

    PAGED = "paged"
    DECODE = "decode"
    RAGGED = "ragged"


def decode_kind(wrapper: DecodeWrapper) -> PassKind:
    """Return the kind of pass that runs decodes through a wrapper."""
    return PassKind.DECODE if wrapper is DecodeWrapper.DECODE else PassKind.PAGED


class Masking(StrEnum):
    """What a query may see: every key; keys up to its own, the last query aligned with the last key; or by a custom mask."""

    NONE = "none"
    CAUSAL = "causal"
    BOOL = "bool"
    PACKED = "packed"
    COMPUTED = "computed"

    @property
    def custom(self) -> bool:
        """True if the mask is more than a kernel's own causal rule."""
        return self in (Masking.BOOL, Masking.PACKED, Masking.COMPUTED)


@dataclass(frozen=True, slots=True)
class PassSpec:
    """One attention pass, whatever its batch: what a kernel is asked whether it can do.

    ``q_heads`` and ``kv_heads`` are those that the pass sees: after the gather, and after folding. How KV is split is as
    ``Settings`` says, and None and False for a pass that reads no pages.
    """

    kind: PassKind
    masking: Masking
    q_heads: int
    kv_heads: int
    head_dim: int
    dtype: torch.dtype
    kv_dtype: torch.dtype
    page_size: int
    kv_layout: KvLayout
    index_device: IndexDevice = IndexDevice.HOST
    replayable: bool = False
    fixed_split_size: int | None = None
    disable_split_kv: bool = False

    @property
    def group(self) -> int:
        """Query heads that share one KV head in this pass."""
        return self.q_heads // self.kv_heads


@dataclass(frozen=True, slots=True)
class PassBatch:
    """One batch for a pass: per request, its queries and the keys that this rank holds.

    Args:
        q_lens, kv_lens: per request. A request may have queries but no key, or neither.
        table: where the keys' pages are; None for a ragged pass.
        mask: for a custom masking: flat bool, packed, or the rule itself to compute.
    """

    q_lens: tuple[int, ...]
    kv_lens: tuple[int, ...]
    table: PageTable | None = None
    mask: Tensor | PackedMask | InterleavedMask | None = None


class Pass(Protocol):
    """One attention pass, open on a device: planned once per batch, run once per layer."""

    def plan(self, batch: PassBatch) -> None:
        """Prepare for a batch: host work, shared by all layers.

        A kernel may still be reading what the last plan staged: planning waits for it, never overwrites it.
        """
        ...

    def run(self, q: Tensor, keys_values: Tensor | tuple[Tensor, Tensor], into: Partial) -> Partial:
        """Attend, without allocating.

        Args:
            q: ``[Σ q_lens, q_heads, head_dim]``.
            keys_values: pages ``[pages, 2, ...]`` as ``PagedCache.pages``, or ragged keys and values, each
                ``[Σ kv_lens, kv_heads, head_dim]``.
            into: where to write.

        Returns:
            ``into``'s tensors, with the base that the kernel writes. Rows without a key hold (0, -inf).
        """
        ...


class Kernel(Protocol):
    """Who computes attention; opens passes."""

    @property
    def name(self) -> KernelName:
        """Which kernel it is."""
        ...

    def refusal(self, spec: PassSpec, device: torch.device) -> str | None:
        """Say in a sentence why this kernel cannot run the pass here, or None if it can."""
        ...

    def open(self, spec: PassSpec, device: torch.device) -> Pass:
        """Open the pass.

        Raises:
            Unsupported: with the refusal.
        """
        ...
