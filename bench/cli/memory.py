"""``dcpbench memory``: what dcp does to the KV cache, and what FlashInfer needs beside it; computed, never measured."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated

import typer

from bench.cli import completion
from bench.cli.exits import Exit
from bench.cli.options import Json, values_of, whole_number
from bench.cli.screen import draw, emit, say
from bench.errors import UsageError
from dcp_core.exchange_bytes import exchange_bytes
from dcp_core.layout import DcpLayout, legal_dcps
from dcp_core.memory import parse_size, parse_tokens
from dcp_core.serving import Limits, Server, multiprocessors_of
from dcp_core.settings import Case, ExchangeName, PathName, Settings
from dcp_core.shapes import ModelShape, Request, Workload
from dcp_core.workspace import NEWEST_READ
from dcp_core.worst_case import worst_case

_SERVER = "The server: what its scheduler may send"
_MEMORY = "Memory of a rank"
DEFAULT_MEMORY = "40GiB"


@dataclass(frozen=True, slots=True)
class Serving:
    """The server whose workspace is computed."""

    max_batched_tokens: Annotated[
        str, typer.Option(help="New tokens of a batch, at most.", metavar="TOKENS", rich_help_panel=_SERVER)
    ] = "8k"
    max_sequences: Annotated[
        int, typer.Option(help="Requests of a batch, at most.", min=1, max=65536, rich_help_panel=_SERVER)
    ] = 1024
    max_model_len: Annotated[
        str, typer.Option(help="Tokens of a request, at most.", metavar="TOKENS", rich_help_panel=_SERVER)
    ] = "128k"
    captured: Annotated[
        str | None,
        typer.Option(
            help="Decode batches captured in CUDA graphs, or none; else vLLM's.",
            metavar="1,2,4",
            rich_help_panel=_SERVER,
        ),
    ] = None
    gpu: Annotated[
        str,
        typer.Option(
            help="A GPU, or its number of multiprocessors.",
            metavar="NAME",
            autocompletion=completion.gpus,
            rich_help_panel=_SERVER,
        ),
    ] = "h200"
    flashinfer: Annotated[
        str, typer.Option(help="FlashInfer's version.", metavar="VERSION", rich_help_panel=_SERVER)
    ] = NEWEST_READ

    def limits(self) -> Limits:
        """Return what the scheduler may send.

        Raises:
            ValueError: in a sentence, for a limit that is none.
        """
        limits = Limits(parse_tokens(self.max_batched_tokens), self.max_sequences, parse_tokens(self.max_model_len))
        if self.captured is None:
            return limits.captured_as_vllm_does()
        if self.captured.strip() == "none":
            return limits
        sizes = {whole_number("--captured", text) for text in values_of("captured", [self.captured])}
        return replace(limits, captured=tuple(sorted(sizes)))


@dataclass(frozen=True, slots=True)
class Room:
    """The memory that is shared out."""

    gpu_memory: Annotated[
        str | None,
        typer.Option(
            help=f"What weights and activations leave of a GPU's; 'recommend' asks for all of it. Else {DEFAULT_MEMORY}.",
            metavar="SIZE",
            rich_help_panel=_MEMORY,
        ),
    ] = None
    budget: Annotated[
        str | None,
        typer.Option(help="Memory for the KV cache alone, nothing taken off.", metavar="SIZE", rich_help_panel=_MEMORY),
    ] = None
    exchange_buffers: Annotated[
        str | None,
        typer.Option(help="What exchanges keep; else ag_rs's need.", metavar="SIZE", rich_help_panel=_MEMORY),
    ] = None
    length: Annotated[str, typer.Option(help="Tokens of a request.", metavar="TOKENS", rich_help_panel=_MEMORY)] = "32k"
    page_size: Annotated[int, typer.Option(min=1, max=65536, help="Tokens per page.", rich_help_panel=_MEMORY)] = 16

    def __post_init__(self) -> None:
        if self.budget is not None and self.gpu_memory is not None:
            raise UsageError(
                "--budget is memory for the KV cache alone, and --gpu-memory for workspaces and buffers too: give one of them"
            )


def memory(
    model: Annotated[
        str,
        typer.Option(
            "--model", help="Preset, config.json, or q64,kv4,d128.", metavar="NAME", autocompletion=completion.models
        ),
    ],
    tp: Annotated[int, typer.Option("--tp", min=1, help="Tensor-parallel size.")],
    room: Room,
    serving: Serving,
    dcp: Annotated[
        str | None, typer.Option("--dcp", help="Sizes to compare; else every legal one.", metavar="1,2")
    ] = None,
    json: Json = False,
) -> int:
    """Compute KV bytes per token and rank, the tokens and requests that fit, and FlashInfer's workspace, per dcp size.

    Tensor parallelism beyond the KV heads copies them to several ranks; dcp shares out what was copied. The workspace is
    what the worst batch needs that a scheduler may send to vLLM's FlashInfer backend. Nothing is measured, and no GPU is
    needed.

    Examples:
      dcpbench memory --model qwen3-235b-a22b --tp 8
      dcpbench memory --model llama-3.1-70b --tp 16 --dcp 1,2 --gpu-memory 60GiB
      dcpbench memory --model qwen3-30b-a3b --tp 8 --gpu l40s --flashinfer 0.6.14
    """
    shape, length, limits = ModelShape.parse(model), parse_tokens(room.length), serving.limits()
    size = parse_size(room.budget or room.gpu_memory or DEFAULT_MEMORY)
    given = None if room.exchange_buffers is None else parse_size(room.exchange_buffers)
    multiprocessors = multiprocessors_of(serving.gpu)
    DcpLayout(tp).check(shape)
    sizes = legal_dcps(shape, tp)
    if dcp is not None:
        sizes = [whole_number("--dcp", text) for text in values_of("dcp", [dcp])]
    layouts = [DcpLayout(tp, one) for one in sizes]
    for layout in layouts:
        layout.check(shape)
    from bench.report.memory_table import Rank, kv_grid, sentences, workspace_grid

    servers = [Server(shape, layout, limits, multiprocessors, room.page_size, serving.flashinfer) for layout in layouts]
    buffers = [_buffers(shape, layout, limits) if given is None else given for layout in layouts]
    ranks = [
        Rank(one, worst_case(one), size, exchange, kv_alone=room.budget is not None)
        for one, exchange in zip(servers, buffers, strict=True)
    ]
    if json:
        emit([rank.to_json(length) for rank in ranks])
        return Exit.DONE
    draw(kv_grid(ranks, length))
    say()
    draw(workspace_grid(ranks, serving.gpu))
    say()
    for sentence in sentences(ranks):
        say(sentence)
    return Exit.DONE


def _buffers(shape: ModelShape, layout: DcpLayout, limits: Limits) -> int:
    """Return the bytes that vLLM's exchange, ``ag_rs``, keeps for the largest batch."""
    most = limits.max_batched_tokens
    exchange = ExchangeName.ALONE if layout.dcp == 1 else ExchangeName.AG_RS
    settings = Settings(
        exchange=exchange, skip_empty_context=False, path=PathName.TP if layout.dcp == 1 else PathName.SPLIT
    )
    return exchange_bytes(Case(shape, layout, Workload((Request(most, most),)), settings))
