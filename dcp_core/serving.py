"""A server's rank with FlashInfer: what its scheduler may send, how its plans are made. Floor 1: standard library only.

The server is vLLM's FlashInfer backend: passes over the context with gathered heads, over the new tokens with a rank's own,
and decodes, eager or in one CUDA graph per captured batch size. They share one float workspace, one after another.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from dcp_core.layout import DcpLayout
from dcp_core.shapes import ModelShape
from dcp_core.spelling import nearest
from dcp_core.workspace import (
    NEWEST_READ,
    Planner,
    WorkspaceError,
)

VLLM_WORKSPACE_BYTES = 394 << 20
"""vLLM's float workspace unless ``VLLM_FLASHINFER_WORKSPACE_BUFFER_SIZE`` says otherwise."""
WRAPPER_BYTES = 8 << 20
"""Int workspace of each FlashInfer wrapper on the device, and as much pinned on the host (its ``prefill.py``, ``decode.py``)."""
EAGER_WRAPPERS = 3
"""Of a vLLM rank under DCP: over the context, over new tokens, and for decodes outside graphs."""
LARGEST_CAPTURE = 512
"""Decodes of the largest batch that vLLM captures unless told otherwise."""
MULTIPROCESSORS = {"a100": 108, "l40s": 142, "h20": 78, "h100": 132, "h200": 132, "b200": 148}
"""By GPU; of the H100, the SXM module (the PCIe card has 114)."""


def multiprocessors_of(gpu: str) -> int:
    """Return the multiprocessors of a GPU by its name, as ``h200``, or by their number itself, for one that is not listed.

    Raises:
        WorkspaceError: naming the nearest known GPU.
    """
    word = gpu.strip().lower().removeprefix("nvidia ")
    if re.fullmatch(r"[1-9][0-9]{0,3}", word, re.ASCII):
        return int(word)
    if word not in MULTIPROCESSORS:
        known = ", ".join(sorted(MULTIPROCESSORS))
        hint = nearest(word, MULTIPROCESSORS)
        raise WorkspaceError(f"unknown GPU {gpu[:40]!r}{hint}; known: {known}, or give its number of multiprocessors")
    return MULTIPROCESSORS[word]


@dataclass(frozen=True, slots=True)
class Limits:
    """What a scheduler may send: vLLM's ``max_num_batched_tokens``, ``max_num_seqs`` and ``max_model_len``.

    Args:
        captured: decodes of each batch size that is captured in a CUDA graph.

    Raises:
        WorkspaceError: for a limit below 1, or a captured size that no batch has.
    """

    max_batched_tokens: int = 8192
    max_sequences: int = 1024
    max_model_len: int = 131072
    captured: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for field in ("max_batched_tokens", "max_sequences", "max_model_len"):
            if getattr(self, field) < 1:
                raise WorkspaceError(f"{field} is a positive whole number, not {getattr(self, field)}")
        if wrong := [size for size in self.captured if not 1 <= size <= self.requests]:
            raise WorkspaceError(
                f"a captured batch has 1 to {self.requests} decodes under these limits, not {wrong[0]}"
            )

    @property
    def requests(self) -> int:
        """The most requests of one batch: each brings a token at least."""
        return min(self.max_sequences, self.max_batched_tokens)

    def captured_as_vllm_does(self) -> Limits:
        """Return these limits with the decode batches that vLLM captures by default: 1, 2, 4, by 8, and from 256 on by 16."""
        most = min(LARGEST_CAPTURE, self.requests)
        sizes = (1, 2, 4, *range(8, 256, 8), *range(256, LARGEST_CAPTURE + 1, 16))
        return replace(self, captured=tuple(size for size in sizes if size <= most))


@dataclass(frozen=True, slots=True)
class Server:
    """One rank of a server: what its plans depend on, and what may be sent to it.

    Raises:
        IllegalLayout: if the heads do not divide.
        WorkspaceError: as ``Planner``.
    """

    shape: ModelShape
    layout: DcpLayout
    limits: Limits
    multiprocessors: int
    page_size: int = 16
    version: str = NEWEST_READ

    def __post_init__(self) -> None:
        self.planner()

    def planner(self) -> Planner:
        """Return how passes over the rank's shard are planned outside graphs, with the heads after the gather."""
        heads, dim = self.layout.heads(self.shape), self.shape.head_dim
        return Planner(heads.gathered, heads.kv, dim, self.multiprocessors, self.page_size, self.version)

    def new_planner(self) -> Planner:
        """Return how passes over new tokens are planned, with the rank's own heads."""
        return replace(self.planner(), q_heads=self.layout.heads(self.shape).query, page_size=1)

    @property
    def wrappers(self) -> int:
        """FlashInfer wrappers of the rank: the eager ones, and one for each captured batch size."""
        return EAGER_WRAPPERS + len(self.limits.captured)

    def float_workspace(self, setting: int = VLLM_WORKSPACE_BYTES) -> int:
        """Return the bytes that vLLM allocates for a ``VLLM_FLASHINFER_WORKSPACE_BUFFER_SIZE``.

        However small the setting, 16 bytes per batched token, query head before the gather, and element of a head.
        """
        query_heads = self.layout.heads(self.shape).query
        return max(setting, 16 * self.limits.max_batched_tokens * query_heads * self.shape.head_dim)
