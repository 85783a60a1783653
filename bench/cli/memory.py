"""``dcpbench memory``: what dcp does to the KV cache, computed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from bench.cli import completion
from bench.cli.exits import Exit
from bench.cli.options import Json, values_of, whole_number
from bench.cli.screen import draw, emit, say

if TYPE_CHECKING:
    from bench.report.grid import Grid
    from dcp_core.memory import KvMemory


def memory(
    model: Annotated[
        str,
        typer.Option(
            "--model", help="Preset, config.json, or q64,kv4,d128.", metavar="NAME", autocompletion=completion.models
        ),
    ],
    tp: Annotated[int, typer.Option("--tp", min=1, help="Tensor-parallel size.")],
    dcp: Annotated[
        str | None, typer.Option("--dcp", help="Sizes to compare; else every legal one.", metavar="1,2")
    ] = None,
    budget: Annotated[
        str, typer.Option("--budget", help="Memory for the KV cache on each rank.", metavar="SIZE")
    ] = "40GiB",
    length: Annotated[str, typer.Option("--length", help="Tokens of a request.", metavar="TOKENS")] = "32k",
    page_size: Annotated[int, typer.Option("--page-size", min=1, max=65536, help="Tokens per page.")] = 16,
    json: Json = False,
) -> int:
    """Compute KV bytes per token and rank, the tokens and requests that fit, and workspace bytes, per dcp size.

    Tensor parallelism beyond the KV heads copies them to several ranks; dcp shares out what was copied. Nothing is
    measured, and no GPU is needed.

    Examples:
      dcpbench memory --model qwen3-235b-a22b --tp 8
      dcpbench memory --model llama-3.1-70b --tp 16 --dcp 1,2 --budget 60GiB --length 128k
    """
    from dcp_core.layout import DcpLayout, legal_dcps
    from dcp_core.memory import (
        PAGED_WORKSPACE_BYTES,
        RAGGED_WORKSPACE_BYTES,
        KvMemory,
        format_size,
        parse_size,
        parse_tokens,
    )
    from dcp_core.shapes import ModelShape

    shape, room, tokens = ModelShape.parse(model), parse_size(budget), parse_tokens(length)
    base = KvMemory(shape, DcpLayout(tp), page_size)
    base.layout.check(shape)
    sizes = (
        [whole_number("--dcp", text) for text in values_of("dcp", [dcp])] if dcp is not None else legal_dcps(shape, tp)
    )
    rows = []
    for size in sizes:
        layout = DcpLayout(tp, size)
        layout.check(shape)
        rows.append(KvMemory(shape, layout, page_size))
    if json:
        emit([_json(row, base, room, tokens) for row in rows])
        return Exit.DONE
    draw(_grid(rows, base, room, tokens))
    say()
    say(f"In {format_size(room)} of KV cache on each of {tp} ranks; pages of {page_size} tokens; {shape.cache_dtype}.")
    paged, ragged = format_size(PAGED_WORKSPACE_BYTES), format_size(RAGGED_WORKSPACE_BYTES)
    say(
        f"Workspace: what dcpbench gives FlashInfer beside the cache, {paged} for paged passes (vLLM's default), "
        f"{ragged} for ragged."
    )
    return Exit.DONE


def _grid(rows: Sequence[KvMemory], base: KvMemory, room: int, tokens: int) -> Grid:
    from bench.report.grid import Column, Grid
    from bench.report.style import tokens as short
    from dcp_core.memory import WORKSPACE_BYTES, format_size

    columns = (
        Column("dcp", right=True),
        Column("KV bytes per token", right=True),
        Column("copies", right=True),
        Column("tokens that fit", right=True),
        Column(f"requests of {short(tokens)}", right=True),
        Column("saved", right=True),
        Column("workspace", right=True),
    )
    cells = tuple(
        (
            str(row.layout.dcp),
            f"{row.bytes_per_token:,.0f}",
            f"{row.copies:g}",
            f"{row.tokens_in(room):,}",
            f"{row.requests_in(room, tokens):,}",
            f"{row.saved_against(base):.0%}",
            format_size(WORKSPACE_BYTES),
        )
        for row in rows
    )
    layers = "one layer" if base.shape.layers == 1 else f"all {base.shape.layers} layers"
    return Grid(f"{base.shape.name}, tp {base.layout.tp}: one rank, {layers}", columns, cells)


def _json(row: KvMemory, base: KvMemory, room: int, tokens: int) -> dict[str, object]:
    from dcp_core.memory import WORKSPACE_BYTES

    return {
        "model": row.shape.name,
        "tp": row.layout.tp,
        "dcp": row.layout.dcp,
        "bytes_per_token": row.bytes_per_token,
        "copies": row.copies,
        "budget_bytes": room,
        "tokens": row.tokens_in(room),
        "request_tokens": tokens,
        "requests": row.requests_in(room, tokens),
        "saved": row.saved_against(base),
        "workspace_bytes": WORKSPACE_BYTES,
    }
