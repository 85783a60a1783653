"""The options of ``dcpbench recommend``: the traffic, the memory of a GPU, and what the answer may rest on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from bench.cli import completion
from bench.cli.options import Results, values_of, whole_number
from bench.errors import UsageError
from dcp_core.memory import parse_size, parse_tokens
from dcp_core.spelling import nearest

_TRAFFIC = "The traffic: context and concurrency, or a trace"
_MEMORY = "Memory of a GPU"
_KNOWN = "What is known"
GPU_MEMORY = {"a100": "80GiB", "l40s": "44GiB", "h20": "95GiB", "h100": "79GiB", "h200": "140GiB", "b200": "179GiB"}
"""Of each GPU, what its driver shows; of the A100 and H100, the larger ones."""


@dataclass(frozen=True, slots=True)
class Asked:
    """The traffic, as typed."""

    context: Annotated[
        str | None,
        typer.Option(help="Cached tokens per request; several with --map.", metavar="TOKENS", rich_help_panel=_TRAFFIC),
    ] = None
    concurrency: Annotated[
        str | None, typer.Option(help="Requests at once; several with --map.", metavar="N", rich_help_panel=_TRAFFIC)
    ] = None
    map: Annotated[
        bool,
        typer.Option(
            "--map",
            help="Answer each of many contexts with each concurrency: those given, as 8k,32k, or those that were measured.",
            rich_help_panel=_TRAFFIC,
        ),
    ] = False
    new: Annotated[
        str,
        typer.Option(
            help="New tokens per request and step: more than 1 if drafted.", metavar="TOKENS", rich_help_panel=_TRAFFIC
        ),
    ] = "1"
    chunk: Annotated[
        str | None,
        typer.Option(
            help="Also a step with a chunk of a prompt beside them.", metavar="TOKENS", rich_help_panel=_TRAFFIC
        ),
    ] = None
    trace: Annotated[
        Path | None,
        typer.Option(
            help="CSV or JSON lines: arrival, prompt and output tokens.", metavar="FILE", rich_help_panel=_TRAFFIC
        ),
    ] = None
    trace_unit: Annotated[str, typer.Option(help="Of arrivals: s, ms or us.", rich_help_panel=_TRAFFIC)] = "s"
    rest_us: Annotated[
        int,
        typer.Option(min=0, help="A step's time beside attention, for replaying a trace.", rich_help_panel=_TRAFFIC),
    ] = 10_000
    sweep: Annotated[
        Path | None,
        typer.Option(
            help="Write a sweep of these batches, for 'dcpbench tune'.", metavar="TOML", rich_help_panel=_TRAFFIC
        ),
    ] = None
    max_batched_tokens: Annotated[
        str, typer.Option(help="New tokens of a step, at most.", metavar="TOKENS", rich_help_panel=_TRAFFIC)
    ] = "8k"
    max_sequences: Annotated[
        int, typer.Option(min=1, max=65536, help="Requests of a step, at most.", rich_help_panel=_TRAFFIC)
    ] = 1024
    max_model_len: Annotated[
        str, typer.Option(help="Tokens of a request, at most.", metavar="TOKENS", rich_help_panel=_TRAFFIC)
    ] = "128k"

    def __post_init__(self) -> None:
        if self.map:
            if self.trace is not None or self.sweep is not None:
                raise UsageError(
                    f"--map is of context by concurrency: leave out {'--trace' if self.trace is not None else '--sweep'}"
                )
        elif self.trace is not None:
            if self.context is not None or self.concurrency is not None or self.chunk is not None:
                raise UsageError("--trace tells context, concurrency and chunks by itself: leave those out")
        elif self.context is None or self.concurrency is None:
            raise UsageError(
                "give --context and --concurrency, as --context 32k --concurrency 64, or a --trace, or ask for a --map of many"
            )
        elif lists := [f"--{name} {text}" for name, text in self._lists.items() if text and "," in text]:
            raise UsageError(f"{lists[0][:40]} is a list, and an answer is for one: give one value, or --map for all")
        if self.trace_unit not in ("s", "ms", "us"):
            raise UsageError(f"--trace-unit is s, ms or us, not {self.trace_unit[:40]!r}")

    @property
    def _lists(self) -> dict[str, str | None]:
        return {"context": self.context, "concurrency": self.concurrency}

    @property
    def contexts(self) -> list[int]:
        """The contexts that were typed, ascending, in tokens: none, if that was left out.

        Raises:
            UsageError, SizeError: for what is none.
        """
        return sorted({parse_tokens(text) for text in self._values("context")})

    @property
    def concurrencies(self) -> list[int]:
        """The numbers of requests that were typed, ascending: none, if that was left out.

        Raises:
            UsageError: for what is none.
        """
        return sorted({whole_number("--concurrency", text) for text in self._values("concurrency")})

    def _values(self, name: str) -> list[str]:
        text = self._lists[name]
        return [] if text is None else values_of(name, [text])


@dataclass(frozen=True, slots=True)
class Memory:
    """What a GPU has for the KV cache, as typed."""

    gpu_memory: Annotated[
        str | None,
        typer.Option(
            help="All of a GPU's; 'memory' asks for what weights and activations leave of it. Else that GPU's.",
            metavar="SIZE",
            rich_help_panel=_MEMORY,
        ),
    ] = None
    weights: Annotated[
        str | None, typer.Option(help="That weights take on each GPU.", metavar="SIZE", rich_help_panel=_MEMORY)
    ] = None
    gpu_memory_utilization: Annotated[
        float, typer.Option(min=0.01, max=1.0, help="vLLM's share of it.", rich_help_panel=_MEMORY)
    ] = 0.9

    def budget(self, gpu: str) -> int:
        """Return the bytes that weights leave of vLLM's share.

        Raises:
            UsageError: if they leave none.
        """
        if self.gpu_memory is None and gpu not in GPU_MEMORY:
            known = ", ".join(sorted(GPU_MEMORY))
            raise UsageError(
                f"the memory of {gpu[:40]!r} is not known{nearest(gpu, GPU_MEMORY)}; known: {known}, or give --gpu-memory"
            )
        whole = parse_size(self.gpu_memory or GPU_MEMORY[gpu])
        left = int(whole * self.gpu_memory_utilization) - (parse_size(self.weights) if self.weights else 0)
        if left <= 0:
            raise UsageError(
                f"weights of {self.weights} leave nothing of {self.gpu_memory_utilization:g} of "
                f"{self.gpu_memory or GPU_MEMORY[gpu]}: use a larger tp, or a GPU with more memory"
            )
        return left


@dataclass(frozen=True, slots=True)
class Given:
    """What the answer may rest on, as typed."""

    gpu: Annotated[
        str | None,
        typer.Option(
            help="The GPU; else this machine's, or the h200.",
            metavar="NAME",
            autocompletion=completion.gpus,
            rich_help_panel=_KNOWN,
        ),
    ] = None
    profile: Annotated[
        list[Path] | None,
        typer.Option(
            help="Profiles to ask; else the results folder's, then the shipped ones.",
            metavar="FILE",
            autocompletion=completion.profiles,
            rich_help_panel=_KNOWN,
        ),
    ] = None
    anyway: Annotated[
        bool,
        typer.Option(
            "--anyway", help="Take a profile of another GPU, FlashInfer or torch all the same.", rich_help_panel=_KNOWN
        ),
    ] = False
    exchange_us: Annotated[
        str | None,
        typer.Option(
            help="What a gather and combine cost per layer, or a bracket, as 0,40.",
            metavar="MICROSECONDS",
            rich_help_panel=_KNOWN,
        ),
    ] = None
    slo_us: Annotated[
        float | None, typer.Option(min=1, help="Attention of a token, all layers, at most.", rich_help_panel=_KNOWN)
    ] = None
    results: Results = Path("results")

    def bracket(self) -> tuple[float, float] | None:
        """Return what an exchange is given to lie between.

        Raises:
            UsageError: for what is no time, or no bracket.
        """
        if self.exchange_us is None:
            return None
        try:
            *least, most = (float(text) for text in self.exchange_us.split(","))
        except ValueError:
            least, most = [], -1.0
        low = least[0] if least else most
        if len(least) > 1 or not 0 <= low <= most < float("inf"):
            raise UsageError(
                f"--exchange-us is a time in µs, as 40, or a bracket, as 0,40, not {self.exchange_us[:40]!r}"
            )
        return low, most
