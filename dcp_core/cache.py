"""The paged KV cache of one rank, as a server leaves it: where each request's pages are, and what they hold. Floor 2."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Self

import torch
from torch import Tensor

from dcp_core.layout import DcpLayout
from dcp_core.settings import KvLayout
from dcp_core.shard import token_positions


@dataclass(frozen=True, slots=True, eq=False)
class PageTable:
    """Where the tokens that one rank holds of each request are. Host tensors, in the form that FlashInfer plans with.

    Args:
        lens: tokens held per request; 0 for a request without a token here.
        indptr: int32 ``[requests + 1]``, offsets into ``indices``.
        indices: int32, the pages of each request in order; every request has exactly ``ceil(len / page_size)``.
        page_size: tokens per page.

    Examples:
        >>> table = PageTable.over([20, 3], page_size=16, pages=torch.tensor([7, 2, 5], dtype=torch.int32))
        >>> table.indptr.tolist(), table.indices.tolist(), table.last_page_lens.tolist()
        ([0, 2, 3], [7, 2, 5], [4, 3])
    """

    lens: tuple[int, ...]
    indptr: Tensor
    indices: Tensor
    page_size: int

    @classmethod
    def over(cls, lens: Sequence[int], page_size: int, pages: Tensor | None = None) -> PageTable:
        """Lay requests out over ``pages`` (int32, at least as many as needed), or over pages 0, 1, 2, … in order."""
        needed = page_count(lens, page_size)
        if pages is None:
            pages = torch.arange(needed, dtype=torch.int32)
        if pages.numel() < needed:
            raise ValueError(f"{sum(lens)} tokens need {needed} pages of {page_size}, got {pages.numel()}")
        return cls(tuple(lens), _offsets(lens, page_size), pages[:needed], page_size)

    @classmethod
    def shuffled(cls, lens: Sequence[int], page_size: int, *, pages: int, seed: int) -> PageTable:
        """Lay requests out over some of ``pages`` pages in random order, as a server that has run for a while does."""
        order = torch.randperm(pages, generator=torch.Generator().manual_seed(seed)).to(torch.int32)
        return cls.over(lens, page_size, order)

    @property
    def last_page_lens(self) -> Tensor:
        """Tokens in each request's last page: int32 ``[requests]``, 1 … page_size, and 0 for a request without pages."""
        return torch.tensor(
            [(length - 1) % self.page_size + 1 if length else 0 for length in self.lens], dtype=torch.int32
        )

    def first(self, lens: Sequence[int]) -> PageTable:
        """Return the same pages cut down to each request's first ``lens`` tokens: a request's context, say."""
        if len(lens) != len(self.lens) or any(not 0 <= a <= b for a, b in zip(lens, self.lens, strict=True)):
            raise ValueError(f"a table of {self.lens} tokens holds no first {tuple(lens)}")
        counts = [-(-length // self.page_size) for length in lens]
        starts = self.indptr.tolist()
        kept = [self.indices[start : start + count] for start, count in zip(starts, counts, strict=False)]
        return PageTable(tuple(lens), _offsets(lens, self.page_size), _joined(kept), self.page_size)

    def select(self, requests: Sequence[int]) -> PageTable:
        """Return the table of some of the requests, in the given order."""
        starts = self.indptr.tolist()
        kept = [self.indices[starts[request] : starts[request + 1]] for request in requests]
        lens = tuple(self.lens[request] for request in requests)
        return PageTable(lens, _offsets(lens, self.page_size), _joined(kept), self.page_size)

    def slots(self, request: Tensor, local_index: Tensor) -> Tensor:
        """Return the slot, ``page * page_size + offset``, of each (request, local token): int64, shaped as the arguments."""
        indices, indptr = (tensor.to(request.device, torch.int64) for tensor in (self.indices, self.indptr))
        page = indices[indptr[request] + local_index // self.page_size]
        return page * self.page_size + local_index % self.page_size


def page_count(lens: Sequence[int], page_size: int) -> int:
    """Return how many pages requests of these local lengths take.

    Raises:
        ValueError: if a length is negative or the page size not positive.
    """
    if page_size < 1 or any(length < 0 for length in lens):
        raise ValueError(f"pages of {page_size} tokens cannot hold requests of {tuple(lens)[:8]} tokens")
    return sum(-(-length // page_size) for length in lens)


def slot_mapping(
    new_lens: Sequence[int],
    total_lens: Sequence[int],
    table: PageTable,
    layout: DcpLayout,
    rank: int,
    *,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Return the slot on ``rank`` of every new token of a batch.

    Args:
        table: the rank's pages, holding each request's local share of its total.
        device: of the result, and where it is worked out.

    Returns:
        int64 ``[Σ new_lens]``: the slot, or -1 for a token that lives on another rank and is not written.

    Raises:
        ValueError: for lengths that are no batch's, or if the table is too short for it.

    Examples:
        Four new tokens of nine, on rank 0 of 2, which holds the tokens 0, 2, 4, 6 and 8.

        >>> layout = DcpLayout(tp=2, dcp=2)
        >>> table = PageTable.over([layout.local_len(9, rank=0)], page_size=4)
        >>> slot_mapping([4], [9], table, layout, rank=0).tolist()
        [-1, 3, -1, 4]
    """
    local = tuple(layout.local_len(total, rank) for total in total_lens)
    if len(local) != len(table.lens):
        raise ValueError(f"a batch of {len(local)} requests needs a table of as many, not {len(table.lens)}")
    if any(held < needed for held, needed in zip(table.lens, local, strict=True)):
        raise ValueError(f"rank {rank} is to hold {local} tokens, the table has room for {table.lens}")
    new, total = (torch.tensor(lens, dtype=torch.int64, device=device) for lens in (new_lens, total_lens))
    request, position = token_positions(new, total)
    block, inside = position // (layout.dcp * layout.interleave), position % layout.interleave
    owned = position // layout.interleave % layout.dcp == rank
    slots = torch.full_like(position, -1)
    slots[owned] = table.slots(request[owned], (block * layout.interleave + inside)[owned])
    return slots


class PagedCache:
    """The KV cache of one rank and layer.

    Attributes:
        pages: ``[pages, 2, page_size, kv_heads, head_dim]`` (NHD) or ``[pages, 2, kv_heads, page_size, head_dim]`` (HND);
            keys at 0, values at 1, as in vLLM.
    """

    def __init__(self, pages: Tensor, kv_layout: KvLayout) -> None:
        self.pages = pages
        self.kv_layout = kv_layout

    @classmethod
    def allocate(
        cls,
        pages: int,
        *,
        page_size: int,
        kv_heads: int,
        head_dim: int,
        dtype: torch.dtype,
        kv_layout: KvLayout = KvLayout.NHD,
        device: torch.device | str = "cpu",
    ) -> Self:
        """Allocate ``pages`` pages full of NaN: whatever reads memory that nobody wrote will show."""
        kv_layout = KvLayout(kv_layout)
        inner = cls.page_shape(page_size, kv_heads, head_dim, kv_layout)
        return cls(torch.full((pages, *inner), float("nan"), dtype=dtype, device=device), kv_layout)

    @staticmethod
    def page_shape(page_size: int, kv_heads: int, head_dim: int, kv_layout: KvLayout) -> list[int]:
        """Return the shape of one page."""
        inner = [page_size, kv_heads] if kv_layout is KvLayout.NHD else [kv_heads, page_size]
        return [2, *inner, head_dim]

    @property
    def page_size(self) -> int:
        """Tokens per page."""
        return self.pages.shape[2 if self.kv_layout is KvLayout.NHD else 3]

    @property
    def bytes(self) -> int:
        """Bytes allocated."""
        return self.pages.numel() * self.pages.element_size()

    def append(self, keys: Tensor, values: Tensor, slots: Tensor) -> None:
        """Write tokens to their slots; those with slot -1 are left out.

        Args:
            keys, values: ``[tokens, kv_heads, head_dim]``, cast to the cache's dtype.
            slots: int64 ``[tokens]``, from ``slot_mapping``.

        Raises:
            ValueError: for keys and values that are not one per slot, or do not fit the pages; for a slot beyond them.
        """
        heads, head_dim = self.pages.shape[3 if self.kv_layout is KvLayout.NHD else 2], self.pages.shape[-1]
        for tensor in (keys, values):
            if tensor.shape != (wanted := (slots.numel(), heads, head_dim)):
                raise ValueError(f"this cache takes {list(wanted)} for {slots.numel()} slots, not {list(tensor.shape)}")
        slots = slots.to(self.pages.device)
        kept = (slots >= 0).nonzero().squeeze(1)
        room = self.pages.shape[0] * self.page_size
        if kept.numel() and (last := int(slots.max())) >= room:
            raise ValueError(f"this cache of {self.pages.shape[0]} pages has slots 0 to {room - 1}, not {last}")
        page, offset = slots[kept] // self.page_size, slots[kept] % self.page_size
        for which, tensor in enumerate((keys, values)):
            tokens = tensor[kept].to(self.pages.dtype)
            if self.kv_layout is KvLayout.NHD:
                self.pages[page, which, offset] = tokens
            else:
                self.pages[page, which, :, offset] = tokens

    def read(self, table: PageTable, request: int) -> tuple[Tensor, Tensor]:
        """Return one request's keys and values, each ``[len, kv_heads, head_dim]``, in order: for references and tests."""
        start, end = table.indptr[request : request + 2].tolist()
        pages = self.pages[table.indices[start:end].to(self.pages.device, torch.int64)]
        if self.kv_layout is KvLayout.HND:
            pages = pages.transpose(2, 3)
        keys, values = (pages[:, which].flatten(0, 1)[: table.lens[request]] for which in (0, 1))
        return keys, values


def _joined(pages: Sequence[Tensor]) -> Tensor:
    return torch.cat(tuple(pages)) if pages else torch.empty(0, dtype=torch.int32)


def _offsets(lens: Sequence[int], page_size: int) -> Tensor:
    return torch.tensor(list(accumulate((-(-length // page_size) for length in lens), initial=0)), dtype=torch.int32)
