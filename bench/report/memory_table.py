"""What a rank holds per dcp size, as tables, sentences and JSON: KV cache, FlashInfer's workspace, and what is given back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bench.grid import Column, Grid
from bench.report.style import tokens as short
from bench.report.table import all_layers
from dcp_core.layout import DcpLayout
from dcp_core.memory import KvMemory, RankMemory, format_size
from dcp_core.serving import WRAPPER_BYTES, Server
from dcp_core.worst_case import WorstCase


@dataclass(frozen=True, slots=True)
class Rank:
    """One rank of a server, and the memory that it has.

    Args:
        worst: of ``server``.
        memory: bytes that weights and activations leave; of the KV cache alone where ``kv_alone``.
        exchange: bytes of exchange buffers.
    """

    server: Server
    worst: WorstCase
    memory: int
    exchange: int = 0
    kv_alone: bool = False

    @property
    def dcp(self) -> int:
        """The size of the DCP group."""
        return self.server.layout.dcp

    @property
    def kv(self) -> KvMemory:
        """The KV cache."""
        return KvMemory(self.server.shape, self.server.layout, self.server.page_size)

    @property
    def setting(self) -> int:
        """Bytes to set vLLM's float workspace to: what the worst batch needs."""
        return self.worst.need.float_bytes

    @property
    def default(self) -> int:
        """Bytes that vLLM allocates if its workspace is not set."""
        return self.server.float_workspace()

    @property
    def allocated(self) -> int:
        """Bytes that vLLM allocates if its workspace is set."""
        return self.server.float_workspace(self.setting)

    @property
    def fails(self) -> bool:
        """True if the worst batch does not fit vLLM's default."""
        return self.setting > self.default

    @property
    def given_back(self) -> int:
        """Bytes that the setting frees: none where the default is too small, or where vLLM allocates as much anyway."""
        return max(0, self.default - self.allocated)

    @property
    def given_back_tokens(self) -> int:
        """Tokens whose KV fits into what is given back."""
        return self.kv.tokens_in(self.given_back)

    @property
    def held(self) -> RankMemory:
        """What the rank has with the workspace set."""
        wrappers = self.server.wrappers * WRAPPER_BYTES
        beside = self.allocated + wrappers + self.exchange
        budget = self.memory + beside if self.kv_alone else self.memory
        return RankMemory(self.kv, budget, self.allocated, wrappers, self.exchange)

    def to_json(self, length: int) -> dict[str, object]:
        """Return everything as plain values; ``length``: tokens of a request."""
        held, worst = self.held, self.worst
        return {
            "model": self.server.shape.name,
            "tp": self.server.layout.tp,
            "dcp": self.dcp,
            "bytes_per_token": self.kv.bytes_per_token,
            "copies": self.kv.copies,
            "saved": self._saved,
            "memory_bytes": held.budget,
            "budget_bytes": held.room,
            "tokens": held.tokens,
            "request_tokens": length,
            "requests": held.requests(length),
            "beside_bytes": held.beside,
            "wrapper_bytes": held.wrappers,
            "exchange_bytes": held.exchange,
            "flashinfer": self.server.version,
            "multiprocessors": self.server.multiprocessors,
            "gathered_heads": self.server.planner().q_heads,
            "workspace_bytes": self.setting,
            "int_workspace_bytes": worst.need.int_bytes,
            "worst_batch": None if worst.batch is None else str(worst.batch),
            "worst_batch_is_captured": worst.graph,
            "worst_batch_bytes": worst.batch_bytes,
            "default_bytes": self.default,
            "fails_at_default": self.fails,
            "allocated_bytes": self.allocated,
            "given_back_bytes": self.given_back,
            "given_back_tokens": self.given_back_tokens,
        }

    def kv_cells(self, length: int) -> tuple[str, ...]:
        """Return the rank's row of ``kv_grid``."""
        held = self.held
        return (
            str(self.dcp),
            f"{self.kv.bytes_per_token:,.0f}",
            f"{self.kv.copies:g}",
            f"{held.tokens:,}",
            f"{held.requests(length):,}",
            f"{self._saved:.0%}",
            format_size(held.beside),
        )

    def workspace_cells(self) -> tuple[str, ...]:
        """Return the rank's row of ``workspace_grid``."""
        return (
            str(self.dcp),
            str(self.server.planner().q_heads),
            str(self.setting),
            _batch(self.worst),
            format_size(self.default) + (", fails" if self.fails else ""),
            format_size(self.given_back),
            f"{self.given_back_tokens:,}",
        )

    @property
    def _saved(self) -> float:
        return self.kv.saved_against(
            KvMemory(self.server.shape, DcpLayout(self.server.layout.tp), self.server.page_size)
        )


def kv_grid(ranks: Sequence[Rank], length: int) -> Grid:
    """Return what fits, per dcp size; ``length``: tokens of a request."""
    shape, tp = ranks[0].server.shape, ranks[0].server.layout.tp
    headings = (
        "dcp",
        "KV bytes per token",
        "copies",
        "tokens that fit",
        f"requests of {short(length)}",
        "saved",
        "beside",
    )
    columns = tuple(Column(heading, right=True) for heading in headings)
    return Grid(
        f"{shape.name}, tp {tp}: one rank, {all_layers(shape.layers)}",
        columns,
        tuple(rank.kv_cells(length) for rank in ranks),
    )


def workspace_grid(ranks: Sequence[Rank], gpu: str) -> Grid:
    """Return FlashInfer's float workspace per dcp size."""
    headings = ("dcp", "heads", "bytes to set", "worst batch", "vLLM's default", "given back", "in KV tokens")
    columns = tuple(
        Column(heading, right=heading != "worst batch", wrap=heading == "worst batch") for heading in headings
    )
    title = f"FlashInfer {ranks[0].server.version} on {gpu}: float workspace of one rank"
    return Grid(title, columns, tuple(rank.workspace_cells() for rank in ranks))


def sentences(ranks: Sequence[Rank]) -> list[str]:
    """Return what the tables mean, and what to set."""
    return [_memory(ranks[0]), _beside(ranks[0]), _worst(ranks), *map(_outcome, ranks), *_int_overflow(ranks)]


def _memory(rank: Rank) -> str:
    what = "of KV cache" if rank.kv_alone else "that weights and activations leave"
    server = rank.server
    where = "on one rank" if server.layout.tp == 1 else f"on each of {server.layout.tp} ranks"
    return (
        f"In {format_size(rank.memory)} {what} {where}; pages of {server.page_size} tokens; {server.shape.cache_dtype}."
    )


def _beside(rank: Rank) -> str:
    buffers = f", {format_size(rank.exchange)} of exchange buffers" if rank.exchange else ""
    return (
        f"Beside the cache: the float workspace as set{buffers}, and {format_size(WRAPPER_BYTES)} for each of "
        f"{rank.server.wrappers} FlashInfer wrappers, {len(rank.server.limits.captured)} of them for captured batches; as much "
        f"is pinned on the host."
    )


def _worst(ranks: Sequence[Rank]) -> str:
    limits = ranks[0].server.limits
    exact = (
        "the one named needs just that"
        if all(rank.worst.exact for rank in ranks)
        else "it may be that none needs as much"
    )
    return (
        f"No batch of up to {limits.max_batched_tokens:,} new tokens in {limits.max_sequences:,} requests of up to "
        f"{limits.max_model_len:,} tokens needs more float workspace in fa2 or fa3; {exact}."
    )


def _outcome(rank: Rank) -> str:
    setting = f"VLLM_FLASHINFER_WORKSPACE_BUFFER_SIZE={rank.setting}"
    if rank.fails:
        default = format_size(rank.default)
        verb = "fails" if rank.worst.batch_bytes > rank.default else "may fail"
        return f"dcp {rank.dcp}: {_batch(rank.worst)} {verb} at vLLM's default, {default} here; set {setting}."
    if not rank.given_back:
        return (
            f"dcp {rank.dcp}: nothing fails at vLLM's default, and less gives nothing back: vLLM allocates "
            f"{format_size(rank.allocated)} whatever is set."
        )
    return (
        f"dcp {rank.dcp}: nothing fails at vLLM's default; {setting} gives {format_size(rank.given_back)} back, since vLLM "
        f"then allocates {format_size(rank.allocated)}."
    )


def _int_overflow(ranks: Sequence[Rank]) -> list[str]:
    most, given = max(rank.worst.need.int_bytes for rank in ranks), format_size(WRAPPER_BYTES)
    if most <= WRAPPER_BYTES:
        return []
    sentence = f"A plan may need {format_size(most)} of int workspace, and a wrapper has {given}: such a batch fails. "
    return [f"{sentence}Let the scheduler send fewer tokens or requests at once."]


def _batch(worst: WorstCase) -> str:
    if worst.batch is None:
        return "none"
    return f"{worst.batch} in a graph" if worst.graph else str(worst.batch)
