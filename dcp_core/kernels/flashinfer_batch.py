"""A batch as FlashInfer plans it: index tensors, sizes, and what makes a batch wrong. Floor 3."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from itertools import accumulate

import torch
from torch import Tensor

from dcp_core.kernels.base import Masking, PassBatch, PassKind, PassSpec
from dcp_core.mask import InterleavedMask, PackedMask
from dcp_core.settings import IndexDevice
from dcp_core.shard import local_seq_lens

MAX_BOOL_ENTRIES = (1 << 31) - 1
"""FlashInfer packs a bool mask by int32 bit offsets."""


@dataclass(frozen=True, slots=True, eq=False)
class Indices:
    """The int32 tensors that planning reads, on the device that the spec names.

    Args:
        qo_indptr: ``[requests + 1]``, where each request's queries begin.
        kv_indptr: ``[requests + 1]``, where each request's pages begin, or its keys in a ragged pass.
        pages: the pages of all requests; empty in a ragged pass.
        last_page_lens: ``[requests]``, 0 for a request without pages.
        kv_lens: ``[requests]``.
    """

    qo_indptr: Tensor
    kv_indptr: Tensor
    pages: Tensor
    last_page_lens: Tensor
    kv_lens: Tensor

    @classmethod
    def of(cls, spec: PassSpec, batch: PassBatch, device: torch.device) -> Indices:
        """Lay out a batch's indices."""
        qo_indptr, kv_lens = _int32(accumulate(batch.q_lens, initial=0)), _int32(batch.kv_lens)
        if batch.table is None:
            nothing = _int32(())
            host = (qo_indptr, _int32(accumulate(batch.kv_lens, initial=0)), nothing, nothing, kv_lens)
        else:
            host = (qo_indptr, batch.table.indptr, batch.table.indices, batch.table.last_page_lens, kv_lens)
        if spec.index_device is IndexDevice.HOST:
            return cls(*host)
        return cls(*(tensor.to(device) for tensor in host))


@dataclass(frozen=True, slots=True)
class BatchSize:
    """What a captured graph's buffers are sized by. ``keys`` counts pages, or keys of a ragged pass."""

    requests: int
    rows: int
    keys: int
    mask_bytes: int

    @classmethod
    def of(cls, batch: PassBatch) -> BatchSize:
        """Measure a batch."""
        keys = sum(batch.kv_lens) if batch.table is None else batch.table.indices.numel()
        match batch.mask:
            case PackedMask(bits=bits):
                mask_bytes = bits.numel()
            case Tensor():
                mask_bytes = sum((new * keys + 7) // 8 for new, keys in zip(batch.q_lens, batch.kv_lens, strict=True))
            case _:
                mask_bytes = 0
        return cls(len(batch.q_lens), sum(batch.q_lens), keys, mask_bytes)

    def check_within(self, first: BatchSize) -> None:
        """Refuse a batch that does not fit into a replayable pass sized by its first one.

        Raises:
            ValueError: naming what grew. The number of requests may not shrink either, FlashInfer's own rule.
        """
        if self.requests != first.requests:
            raise ValueError(
                f"a replayable pass first planned for {first.requests} requests takes just as many, not {self.requests}; "
                f"open another pass"
            )
        for field in fields(self):
            size, room = getattr(self, field.name), getattr(first, field.name)
            if size > room:
                raise ValueError(
                    f"a replayable pass first planned for {room} {field.name} (keys: pages, if paged) has no room for {size}: "
                    f"buffers that a graph has captured do not grow; plan the largest batch first, or open another pass"
                )


def check_batch(spec: PassSpec, batch: PassBatch) -> None:
    """Refuse a batch that the pass cannot compute, or that does not fit together.

    Raises:
        ValueError: saying what is wrong.
    """
    if len(batch.q_lens) != len(batch.kv_lens):
        raise ValueError(
            f"a batch of {len(batch.q_lens)} query lengths needs as many key lengths, not {len(batch.kv_lens)}"
        )
    if (batch.table is None) != (spec.kind is PassKind.RAGGED):
        raise ValueError(
            f"a {spec.kind} pass {'needs a' if batch.table is None else 'takes no'} page table in its batch"
        )
    if batch.table is not None and batch.table.lens != batch.kv_lens:
        raise ValueError(f"the page table holds {batch.table.lens} tokens where the batch has keys {batch.kv_lens}")
    if spec.kind is PassKind.DECODE and any(length != 1 for length in batch.q_lens):
        raise ValueError(f"a decode pass takes exactly one query per request, not {batch.q_lens}")
    if spec.masking is Masking.CAUSAL and spec.kind is not PassKind.DECODE:
        _check_causal(batch)
    _check_mask(spec.masking, batch)


def _check_causal(batch: PassBatch) -> None:
    for queries, keys in zip(batch.q_lens, batch.kv_lens, strict=True):
        if queries > keys > 0:
            # fa2's causal bound is unsigned: it wraps round, and the rows come out wrong without a word.
            raise ValueError(
                f"a causal pass needs a key per query, not {queries} queries over {keys} keys in one request"
            )


def _check_mask(masking: Masking, batch: PassBatch) -> None:
    match masking, batch.mask:
        case ((Masking.NONE | Masking.CAUSAL), None):
            return
        case Masking.BOOL, Tensor() as mask:
            entries = sum(queries * keys for queries, keys in zip(batch.q_lens, batch.kv_lens, strict=True))
            if mask.dtype != torch.bool or mask.shape != (entries,):
                raise ValueError(
                    f"this batch needs {entries} bools as its mask, not {list(mask.shape)} of {mask.dtype}"
                )
            if entries > MAX_BOOL_ENTRIES:
                raise ValueError(f"a bool mask of {entries} entries is more than FlashInfer can address; pack it")
        case Masking.PACKED, PackedMask(byte_indptr=byte_indptr):
            if byte_indptr.shape != (len(batch.q_lens) + 1,):
                raise ValueError(
                    f"{len(batch.q_lens)} requests need one more byte offset, not {list(byte_indptr.shape)}"
                )
        case Masking.COMPUTED, InterleavedMask() as rule:
            local = tuple(local_seq_lens(rule.total_lens, rule.dcp, rule.rank, rule.interleave).tolist())
            if rule.new_lens != batch.q_lens or local != batch.kv_lens:
                raise ValueError(
                    f"the mask's rule has {rule.new_lens} queries over {local} keys, "
                    f"the batch {batch.q_lens} over {batch.kv_lens}"
                )
        case _:
            raise ValueError(f"a pass with {masking} masking cannot take a mask of type {type(batch.mask).__name__}")


def _int32(values: Iterable[int]) -> Tensor:
    return torch.tensor(list(values), dtype=torch.int32)
