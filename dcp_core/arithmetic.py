"""The element-wise arithmetic of a step, in torch or in Triton: same names, same meaning. Floor 3."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from dcp_core import lse
from dcp_core.fold import OwnRows, attend_own_rows
from dcp_core.lse import LseBase, Partial
from dcp_core.mask import InterleavedMask, PackedMask


class Combine(Protocol):
    """``dcp_core.lse.combine``, whoever computes it."""

    def __call__(self, outs: Tensor, lses: Tensor, *, base: LseBase = ..., into: Partial | None = None) -> Partial: ...


class Merge(Protocol):
    """``dcp_core.lse.merge``, whoever computes it."""

    def __call__(self, first: Partial, second: Partial, *, into: Partial | None = None) -> Partial: ...


class Rescale(Protocol):
    """``dcp_core.lse.rescale``, whoever computes it."""

    def __call__(self, partial: Partial, lses: Tensor, *, into: Partial | None = None) -> Partial: ...


class PackMask(Protocol):
    """``dcp_core.mask.InterleavedMask.packed``, whoever computes it."""

    def __call__(self, rule: InterleavedMask, device: torch.device, /) -> PackedMask: ...


class AttendOwnRows(Protocol):
    """``dcp_core.fold.attend_own_rows``, whoever computes it."""

    def __call__(self, rows: OwnRows, into: Partial) -> Partial: ...


@dataclass(frozen=True, slots=True)
class Arithmetic:
    """The operations of a step that are no kernel library's attention and no communication."""

    combine: Combine
    merge: Merge
    rescale: Rescale
    pack_mask: PackMask
    attend_own_rows: AttendOwnRows


TORCH = Arithmetic(lse.combine, lse.merge, lse.rescale, InterleavedMask.packed, attend_own_rows)
"""Plain torch: the specification, and what runs without a GPU."""
