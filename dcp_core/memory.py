"""What the KV cache costs, and what fits into a budget. Floor 1: standard library only."""

from __future__ import annotations

import re
from dataclasses import dataclass

from dcp_core.layout import DcpLayout
from dcp_core.settings import Case
from dcp_core.shapes import MAX_TOKENS, ModelShape

PAGED_WORKSPACE_BYTES, RAGGED_WORKSPACE_BYTES = 394 << 20, 64 << 20
"""Float workspaces that the core gives FlashInfer's passes on a device: of paged ones (vLLM's default), and of ragged ones."""

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


@dataclass(frozen=True, slots=True)
class RankMemory:
    """What a rank has for attention, and what is left of it for KV pages.

    Args:
        budget: bytes that weights and activations leave.
        float_workspace: of FlashInfer, one for all passes.
        wrappers: bytes of FlashInfer's wrappers, each with an int workspace of its own.
        exchange: bytes of the buffers through which ranks exchange queries and partial results.

    Raises:
        SizeError: for a negative size.
    """

    kv: KvMemory
    budget: int
    float_workspace: int = 0
    wrappers: int = 0
    exchange: int = 0

    def __post_init__(self) -> None:
        for part in ("budget", "float_workspace", "wrappers", "exchange"):
            if getattr(self, part) < 0:
                raise SizeError(f"{part} of a rank's memory is 0 bytes or more, not {getattr(self, part)}")

    @property
    def beside(self) -> int:
        """Bytes that stand beside the KV cache."""
        return self.float_workspace + self.wrappers + self.exchange

    @property
    def room(self) -> int:
        """Bytes for KV pages: 0 where what stands beside leaves none."""
        return max(0, self.budget - self.beside)

    @property
    def tokens(self) -> int:
        """Tokens of sequences that fit, in whole pages."""
        return self.kv.tokens_in(self.room)

    def requests(self, length: int) -> int:
        """Return how many sequences of ``length`` tokens fit.

        Raises:
            SizeError: if a sequence has no token.
        """
        return self.kv.requests_in(self.room, length)


def cache_bytes(case: Case) -> int:
    """Return the bytes of the KV cache of one layer on rank 0, which holds the most tokens."""
    page, heads = case.settings.page_size, case.layout.heads(case.shape).kv
    pages = sum(-(-case.layout.local_len(total, 0) // page) for total in case.workload.total_lens)
    return pages * page * 2 * heads * case.shape.head_dim * case.shape.cache_dtype.itemsize


def mask_elements(case: Case) -> int:
    """Return the elements of the interleaved causal mask on rank 0: new tokens times local keys, over all requests."""
    return sum(request.new * case.layout.local_len(request.total, 0) for request in case.workload.requests)
