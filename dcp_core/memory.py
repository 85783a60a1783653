"""What the KV cache costs, what fits into a budget, and what measuring one case takes. Floor 1: standard library only."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from dcp_core.layout import DcpLayout
from dcp_core.settings import Case, KernelName, MaskForm, PathName
from dcp_core.shapes import MAX_TOKENS, ModelShape

PAGED_WORKSPACE_BYTES, RAGGED_WORKSPACE_BYTES = 394 << 20, 64 << 20
"""FlashInfer's float workspaces, shared by the passes of a device: of paged passes (vLLM's default), and of ragged ones."""
WORKSPACE_BYTES = PAGED_WORKSPACE_BYTES + RAGGED_WORKSPACE_BYTES
"""Both, whatever the layout."""
INT_WORKSPACE_BYTES = 16 << 20
"""FlashInfer's int workspace of one pass: 8 MiB on the device, and room for its index tensors."""
QUERY_TILE = 128
"""(query, head) pairs of FlashInfer's largest tile."""
FLUSH_BYTES = 128 << 20
"""Written between repetitions to cool the L2 cache: twice that of the largest device in use."""
PACKING_BYTES_PER_ELEMENT = 10
"""The torch version of packing a mask holds about ten int64 per byte of eight elements."""
SPARE_PAGES = 0.25
"""Pages of a measured cache beyond those in use, as a share."""
ORACLE_SCORES, ORACLE_ROWS = 1 << 26, 64
"""The oracle checks every row of a batch of up to so many scores, and so many rows of a larger one."""
ORACLE_BYTES_PER_SCORE = 24
"""Float64 scores, their exponentials, and a copy while one turns into the other."""
REFERENCE_SCORES = 1 << 22
"""Scores per head that the torch kernel holds at once: its ``SCORE_ELEMENTS``."""

_UNITS = {"": 1, "b": 1} | {
    f"{prefix}{binary}b": (1024 if binary else 1000) ** power
    for power, prefix in enumerate("kmgt", start=1)
    for binary in ("", "i")
}


class SizeError(ValueError):
    """A size that cannot be read, or that no device has."""


def parse_size(text: str) -> int:
    """Return the bytes that ``80GiB``, ``512 MiB``, ``1.5GB`` or ``4096`` stand for.

    Raises:
        SizeError: saying what a size looks like.
    """
    match = re.fullmatch(r"([0-9]{1,15}(?:\.[0-9]{1,6})?)\s*([a-z]*)", text.strip().lower(), re.ASCII)
    if match is None or match[2] not in _UNITS:
        raise SizeError(f"{text[:40]!r} is no size; write it as 80GiB, 512MiB or a number of bytes")
    if not (size := int(float(match[1]) * _UNITS[match[2]])):
        raise SizeError(f"a size of {text[:40]!r} holds nothing; write it as 80GiB, 512MiB or a number of bytes")
    return size


def parse_tokens(text: str) -> int:
    """Return the tokens that ``32k`` (times 1024) or ``1000`` stand for.

    Raises:
        SizeError: saying what a number of tokens looks like.
    """
    match = re.fullmatch(r"([0-9]{1,9})(k?)", text.strip().lower(), re.ASCII)
    tokens = int(match[1]) * (1024 if match[2] else 1) if match else 0
    if not 1 <= tokens <= MAX_TOKENS:
        raise SizeError(f"{text[:40]!r} is no number of tokens; write it as 32k or 1000")
    return tokens


def format_size(size: float) -> str:
    """Return a size in bytes as people read it: ``94.0 KiB``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


@dataclass(frozen=True, slots=True)
class KvMemory:
    """The KV cache of one rank, all layers of a model.

    A page of a DCP group holds ``page_size`` tokens on each rank, so a sequence takes pages in units of
    ``page_size * dcp`` tokens, as in vLLM.

    Args:
        page_size: tokens per page and rank.

    Raises:
        IllegalLayout: if the heads do not divide.
    """

    shape: ModelShape
    layout: DcpLayout
    page_size: int = 16

    def __post_init__(self) -> None:
        self.layout.heads(self.shape)
        if self.page_size < 1:
            raise SizeError(f"a page holds at least one token, not {self.page_size}")

    @property
    def bytes_per_held_token(self) -> int:
        """Bytes of one token on a rank that holds it: keys and values of every KV head of the rank, in every layer."""
        heads = self.layout.heads(self.shape).kv
        return 2 * heads * self.shape.head_dim * self.shape.cache_dtype.itemsize * self.shape.layers

    @property
    def bytes_per_token(self) -> float:
        """Bytes on each rank per token of a sequence, of which a rank holds every ``dcp``-th."""
        return self.bytes_per_held_token / self.layout.dcp

    @property
    def copies(self) -> float:
        """How many ranks of the tensor-parallel group hold each token of each KV head."""
        return self.layout.tp * self.layout.heads(self.shape).kv / (self.shape.kv_heads * self.layout.dcp)

    @property
    def page_bytes(self) -> int:
        """Bytes of one page on a rank, all layers."""
        return self.page_size * self.bytes_per_held_token

    def pages(self, length: int) -> int:
        """Return the pages that a sequence of ``length`` tokens takes on each rank."""
        return -(-length // (self.page_size * self.layout.dcp))

    def tokens_in(self, budget: int) -> int:
        """Return the tokens of sequences that ``budget`` bytes on each rank hold, in whole pages."""
        return budget // self.page_bytes * self.page_size * self.layout.dcp

    def requests_in(self, budget: int, length: int) -> int:
        """Return how many sequences of ``length`` tokens fit into ``budget`` bytes on each rank.

        Raises:
            SizeError: if a sequence has no token.
        """
        if length < 1:
            raise SizeError(f"a request has at least one token, not {length}")
        return budget // self.page_bytes // self.pages(length)

    def saved_against(self, other: KvMemory) -> float:
        """Return the share of ``other``'s bytes per token that this layout saves: 0.5 for half."""
        return 1 - self.bytes_per_token / other.bytes_per_token


def case_bytes(case: Case, local_ranks: int) -> int:
    """Return the bytes that measuring a case is predicted to take on one device, one layer of the model.

    Args:
        local_ranks: ranks of the group on this device: ``dcp`` if simulated, else 1.
    """
    return sum(size for _, size in case_parts(case, local_ranks))


def case_parts(case: Case, local_ranks: int) -> Iterator[tuple[str, int]]:
    """Yield what measuring a case needs memory for, as (what, bytes): the terms of ``case_bytes``."""
    shape, workload = case.shape, case.workload
    heads, element, dim = case.layout.heads(shape), shape.dtype.itemsize, shape.head_dim
    rows, totals = workload.new_tokens, workload.total_lens
    own_row, kv_token = heads.query * dim * element, 2 * heads.kv * dim * element
    yield "keys and values of whole sequences", sum(totals) * kv_token
    yield "the oracle", _oracle_bytes(case)
    yield "KV caches", local_ranks * int((1 + SPARE_PAGES) * cache_bytes(case))
    yield "queries of every rank", case.layout.dcp * rows * own_row
    yield "new keys and values, and outputs", local_ranks * rows * (kv_token + own_row + 4 * heads.query)
    # Gathered queries, the rank's partial, and the partials of its peers.
    yield "gathered queries and partials", local_ranks * 3 * rows * heads.gathered * (dim * element + 4)
    yield from _path_parts(case, local_ranks)
    if case.settings.kernel is KernelName.REFERENCE:
        # The ranks of a simulated group run in threads, all at once.
        yield "the reference kernel's scores", local_ranks * _reference_bytes(case)
    else:
        yield "FlashInfer's workspaces", _workspace_bytes(case) + local_ranks * _passes(case) * INT_WORKSPACE_BYTES
        yield "cooling the L2 cache", FLUSH_BYTES


def cache_bytes(case: Case) -> int:
    """Return the bytes of the KV cache of one layer on rank 0, which holds the most tokens."""
    page, heads = case.settings.page_size, case.layout.heads(case.shape).kv
    pages = sum(-(-case.layout.local_len(total, 0) // page) for total in case.workload.total_lens)
    return pages * page * 2 * heads * case.shape.head_dim * case.shape.cache_dtype.itemsize


def mask_elements(case: Case) -> int:
    """Return the elements of the interleaved causal mask on rank 0: new tokens times local keys, over all requests."""
    return sum(request.new * case.layout.local_len(request.total, 0) for request in case.workload.requests)


def _path_parts(case: Case, local_ranks: int) -> Iterator[tuple[str, int]]:
    shape, workload, settings = case.shape, case.workload, case.settings
    heads, row_bytes = case.layout.heads(shape), shape.head_dim * shape.dtype.itemsize + 4
    match settings.path:
        case PathName.SPLIT:
            yield "the pass over new tokens", local_ranks * workload.new_tokens * heads.query * row_bytes
        case PathName.FOLD:
            padded = workload.new_tokens + 2 * (case.layout.dcp - 1) * len(workload)
            yield "folded queries and outputs", local_ranks * 2 * padded * heads.gathered * row_bytes
        case PathName.MASK:
            yield "masks", local_ranks * _mask_bytes(case)
        case PathName.TP | PathName.DECODE:
            return


def _mask_bytes(case: Case) -> int:
    elements, reference = mask_elements(case), case.settings.kernel is KernelName.REFERENCE
    match case.settings.mask_form:
        case MaskForm.BOOL:
            widths = {case.layout.local_len(total, 0) for total in case.workload.total_lens}
            # Requests of different widths are cut out of one mask as wide as the widest.
            padding = 2 * case.workload.new_tokens * max(widths) if len(widths) > 1 else 0
            return elements + elements // 8 + padding
        case MaskForm.PACKED:
            return elements // 8 + (PACKING_BYTES_PER_ELEMENT * elements if reference else 0)
        case MaskForm.COMPUTED:
            return elements if reference else 0


def _workspace_bytes(case: Case) -> int:
    """Float workspaces; a plan for CUDA graphs splits KV whether that helps or not, and needs room for every row."""
    heads, rows = case.layout.heads(case.shape), case.workload.new_tokens
    paged = PAGED_WORKSPACE_BYTES
    if case.settings.replayable:
        padding = -(-len(case.workload) * QUERY_TILE * heads.kv // heads.gathered)
        paged = max(paged, 4 * heads.gathered * (case.shape.head_dim + 1) * (rows + padding + 1))
    return paged + (RAGGED_WORKSPACE_BYTES if case.settings.path is PathName.SPLIT else 0)


def _passes(case: Case) -> int:
    apart = case.workload.is_mixed and case.settings.path is not PathName.DECODE
    return (2 if case.settings.path is PathName.SPLIT else 1) + (1 if apart else 0)


def _oracle_bytes(case: Case) -> int:
    """One request at a time: its keys and values in float64, and scores of the rows that are checked."""
    heads, workload = case.layout.heads(case.shape), case.workload
    everything = sum(request.new * request.total for request in workload.requests) * heads.query <= ORACLE_SCORES
    rows = max(workload.new_lens) if everything else min(max(workload.new_lens), ORACLE_ROWS)
    longest = max(workload.total_lens)
    keys_values = 2 * longest * heads.kv * case.shape.head_dim * 8
    return keys_values + rows * heads.query * longest * ORACLE_BYTES_PER_SCORE


def _reference_bytes(case: Case) -> int:
    """One request at a time: float32 keys and values, a chunk of scores with its exponentials, and what each query sees.

    Chunks are bounded per head, and ``fold`` makes ``dcp`` queries of a head into as many heads of one row.
    """
    heads, dim = case.layout.heads(case.shape), case.shape.head_dim
    keys = case.layout.local_len(max(case.workload.total_lens), 0)
    folded = case.layout.dcp if case.settings.path is PathName.FOLD else 1
    rows = -(-max(case.workload.new_lens) // folded)
    scores = min(rows * keys, max(REFERENCE_SCORES, keys))
    return 2 * keys * heads.kv * dim * 4 + 3 * scores * heads.gathered * folded * 4 + rows * keys
