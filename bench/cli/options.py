"""The options that commands share, and how a command takes them: as frozen dataclasses, one field an option."""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from bench.cli import completion
from bench.errors import UsageError
from bench.launched import launched_ranks

_AXES = "Axes: each overrides the sweep's, in comma-separated lists"
_RUN = "How to measure"
RANKS_PER_CORE = 4
"""Processes that may share a core where there is no GPU: each takes seconds of it to start."""
_OUTPUT = "Output"

Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout, for machines.", rich_help_panel=_OUTPUT)]
Markdown = Annotated[
    bool, typer.Option("--markdown", help="Print Markdown, for a pull request.", rich_help_panel=_OUTPUT)
]
Results = Annotated[
    Path, typer.Option(help="Folder of runs, profiles and plots.", file_okay=False, rich_help_panel=_OUTPUT)
]


@dataclass(frozen=True, slots=True)
class Form:
    """How a table is printed: for people unless one of these is given."""

    markdown: Markdown = False
    csv: Annotated[
        bool, typer.Option("--csv", help="Print CSV, for a spreadsheet: a line for each case.", rich_help_panel=_OUTPUT)
    ] = False
    json: Json = False

    def __post_init__(self) -> None:
        given = [f"--{field.name}" for field in fields(self) if getattr(self, field.name)]
        if len(given) > 1:
            raise UsageError(f"{' and '.join(given)} are two forms of one output: give one of them")


@dataclass(frozen=True, slots=True)
class Session:
    """What the whole program was started with: ``ranks``, if given, and the command line that would start it again."""

    ranks: int | None
    command: str


def session_of(invocation: typer.Context) -> Session:
    """Return the session that the program's own options made."""
    session = invocation.find_object(Session)
    if session is None:
        raise RuntimeError("a command runs inside the program, whose options come first")
    return session


def _axis(flag: str, help_text: str, metavar: str, complete: Callable[[str], list[str]] | None = None) -> Any:
    # The flag is spelled out: some versions of typer take a metavar that is the parameter's name for the flag itself.
    return typer.Option(flag, help=help_text, metavar=metavar, autocompletion=complete, rich_help_panel=_AXES)


@dataclass(frozen=True, slots=True)
class Asked:
    """What to measure: a sweep by name or file, axes that override it, or axes alone."""

    sweep: Annotated[
        str | None,
        typer.Argument(
            help="A shipped sweep's name or a TOML file; none: axes alone.", autocompletion=completion.sweeps
        ),
    ] = None
    model: Annotated[
        list[str] | None, _axis("--model", "Preset, config.json, or q64,kv4,d128.", "NAME", completion.models)
    ] = None
    tp: Annotated[list[str] | None, _axis("--tp", "Tensor-parallel sizes.", "8,16")] = None
    dcp: Annotated[list[str] | None, _axis("--dcp", "Decode-context-parallel sizes.", "1,2")] = None
    interleave: Annotated[list[str] | None, _axis("--interleave", "Tokens kept on a rank in a row.", "1,16")] = None
    batch: Annotated[list[str] | None, _axis("--batch", "Batches: COUNT q NEW s TOTAL.", "8q1s32k")] = None
    context: Annotated[list[str] | None, _axis("--context", "Cached tokens per request.", "8k,32k")] = None
    new: Annotated[list[str] | None, _axis("--new", "New tokens per request.", "1,512,8k")] = None
    concurrency: Annotated[list[str] | None, _axis("--concurrency", "Requests per batch.", "1,16,64")] = None
    path: Annotated[
        list[str] | None, _axis("--path", "decode, split, mask, fold; dcp 1 runs tp.", "PATH", completion.paths)
    ] = None
    kernel: Annotated[list[str] | None, _axis("--kernel", "reference, fa2, fa3, …", "KERNEL", completion.kernels)] = (
        None
    )
    exchange: Annotated[list[str] | None, _axis("--exchange", "ag_rs, a2a, …", "EXCHANGE", completion.exchanges)] = None
    set: Annotated[
        list[str] | None,
        _axis("--set", "Any other setting, repeatable: page_size=16,64.", "KEY=A,B", completion.settings),
    ] = None
    synthetic: Annotated[
        bool, typer.Option("--synthetic", help="Admit layouts that no server starts with.", rich_help_panel=_AXES)
    ] = False

    def axes(self) -> dict[str, list[str]]:
        """Return the axes that were given, each a list of values."""
        names = [field.name for field in fields(self) if field.name not in ("sweep", "set", "synthetic")]
        given = {name: getattr(self, name) for name in names}
        return {name: values_of(name, texts) for name, texts in given.items() if texts is not None}

    def settings(self) -> dict[str, list[str]]:
        """Return the other settings that were given.

        Raises:
            UsageError: for one without ``=``.
        """
        found: dict[str, list[str]] = {}
        for text in self.set or []:
            name, equals, values = text.partition("=")
            if not equals:
                raise UsageError(f"--set {text[:40]!r} has no value; write it as key=value, or key=one,other")
            if not values.strip(" ,"):
                raise UsageError(f"--set {text[:40]!r} has no value; write it as key=value, or key=one,other")
            found.setdefault(name.strip(), []).extend(values_of(name, [values]))
        return found


@dataclass(frozen=True, slots=True)
class Running:
    """How to measure, and where to."""

    precision: Annotated[
        str | None,
        typer.Option(
            help="quick (±3 %), standard (1 %), strict (0.5 %), or a number; else the sweep's.",
            autocompletion=completion.precisions,
            rich_help_panel=_RUN,
        ),
    ] = None
    eager: Annotated[
        bool,
        typer.Option(
            "--eager",
            help="Time steps on a GPU as they are launched, not as replays of a CUDA graph.",
            rich_help_panel=_RUN,
        ),
    ] = False
    trace: Annotated[
        bool,
        typer.Option(
            "--trace",
            help="Keep what runs when in steps that overlap, as CUPTI sees it; launches take longer from then on.",
            rich_help_panel=_RUN,
        ),
    ] = False
    fresh: Annotated[
        bool,
        typer.Option(
            "--fresh",
            help="Measure again what failed twice, and what another device, driver or version measured.",
            rich_help_panel=_RUN,
        ),
    ] = False
    anyway: Annotated[
        bool,
        typer.Option(
            "--anyway",
            help="Measure though another process is on a GPU; trials are flagged.",
            rich_help_panel=_RUN,
        ),
    ] = False
    shard: Annotated[
        str | None,
        typer.Option(
            metavar="I/N",
            help="Only part I of N, whole batches, for one of several machines; a folder may be shared.",
            rich_help_panel=_RUN,
        ),
    ] = None
    cluster: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="Measure on the nodes of a Ray cluster: auto, HOST:PORT or ray://HOST:PORT.",
            rich_help_panel=_RUN,
        ),
    ] = None
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="List cases, memory and time; measure nothing.", rich_help_panel=_RUN),
    ] = False
    results: Results = Path("results")
    json: Json = False


def ranks_here(asked: int | None, gpus: int) -> int:
    """Return how many processes to start: as many as asked for, else one per visible GPU, or two without any.

    Raises:
        UsageError: for more than there are GPUs, each process needing one of its own, or than cores can bear.
    """
    if launched := launched_ranks():
        if asked not in (None, launched):
            raise UsageError(f"--ranks {asked}, but the launcher started {launched}: leave --ranks to it")
        return launched
    if asked and 0 < gpus < asked:
        shown = f"{gpus} GPU" if gpus == 1 else f"{gpus} GPUs"
        raise UsageError(
            f"--ranks {asked}, but this machine shows {shown}: each rank needs one of its own, so ask for {gpus} or "
            f"fewer; larger groups are simulated"
        )
    most = RANKS_PER_CORE * len(os.sched_getaffinity(0))
    if asked and not gpus and asked > most:
        raise UsageError(
            f"--ranks {asked}, but without a GPU {most} are the most that {most // RANKS_PER_CORE} cores can bear; "
            f"larger groups are simulated"
        )
    return asked or gpus or 2


def values_of(axis: str, texts: list[str]) -> list[str]:
    """Split comma-separated values; commas inside a synthetic model or a ``vllm bench forward`` batch are its own.

    Raises:
        UsageError: if there is none.
    """
    pattern = {"model": r"q\d+(?:,(?:kv|d|l)\d+)*|[^,]+", "batch": r".*[*@=].*|[^,]+"}.get(axis, r"[^,]+")
    values = [found.strip() for text in texts for found in re.findall(pattern, text) if found.strip()]
    if not values:
        raise UsageError(
            f"--{axis.replace('_', '-')} has no value in {','.join(texts)[:40]!r}; see --help for examples"
        )
    return values


def whole_number(option: str, text: str) -> int:
    """Read one value of a list of sizes.

    Raises:
        UsageError: naming the option.
    """
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= 1 << 16):
        raise UsageError(f"{option} takes whole numbers from 1 up, as 1,2, not {text[:40]!r}")
    return int(text)


def add(app: typer.Typer, command: Callable[..., int], *, name: str | None = None, panel: str | None = None) -> None:
    """Register a command; its docstring is its help."""
    app.command(name, help=paragraphs(command.__doc__ or ""), rich_help_panel=panel)(takes_groups(command))


def paragraphs(text: str) -> str:
    """Join the lines of each paragraph, for help that fits any terminal; examples keep their lines."""
    parts = [part.strip() for part in inspect.cleandoc(text).split("\n\n")]
    # A paragraph that begins with a backspace is left as it is by every click.
    return "\n\n".join(f"\b\n{part}" if part.startswith("Examples:") else " ".join(part.split()) for part in parts)


def takes_groups(command: Callable[..., int]) -> Callable[..., int]:
    """Let a command take dataclasses of options: typer sees one parameter per field, the command whole values."""
    hints = get_type_hints(command, include_extras=True)
    groups: dict[str, Any] = {name: kind for name, kind in hints.items() if is_dataclass(kind)}
    plain = [
        parameter.replace(annotation=hints[name], kind=inspect.Parameter.KEYWORD_ONLY)
        for name, parameter in inspect.signature(command).parameters.items()
        if name not in groups
    ]
    flat = [parameter for kind in groups.values() for parameter in _parameters(kind)]

    def run(**values: Any) -> int:
        built = {name: kind(**_taken(kind, values)) for name, kind in groups.items()}
        return command(**{parameter.name: values[parameter.name] for parameter in plain}, **built)

    run.__name__, run.__doc__ = command.__name__, command.__doc__
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in (*plain, *flat)}
    run.__signature__ = inspect.Signature([*plain, *flat])  # type: ignore[attr-defined]  # what inspect.signature reads
    return run


def _parameters(group: Any) -> list[inspect.Parameter]:
    hints = get_type_hints(group, include_extras=True)
    return [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if field.default is MISSING else field.default,
            annotation=hints[field.name],
        )
        for field in fields(group)
    ]


def _taken(group: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    return {field.name: values[field.name] for field in fields(group)}
