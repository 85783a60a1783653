"""The reference of all commands, docs/commands.md, made from the program: ``python -m bench.cli.reference > docs/commands.md``.

What is read of typer is what was declared with it, which stays from version to version, and not the parser that it builds.
"""

from __future__ import annotations

import inspect
import re
import sys
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

from typer.models import ArgumentInfo, CommandInfo, ParameterInfo, TyperInfo

from bench.cli.exits import Exit

HEAD = """
# Commands

<!-- Made by `python -m bench.cli.reference`: change the help of a command instead. -->
"""
GRAMMAR = """
What no option says is as the sweep says it, or as the option's default. Lists are written with commas, tokens as `32k`
(32768), batches as `8q1s32k_q2ks32k`, sweeps in [TOML](format.md#sweeps). `dcpbench --install-completion` teaches your shell to
complete commands, models, sweeps, runs and settings. The program's own options stand before the command:

```text
dcpbench [OPTIONS] COMMAND …
```
"""
EXIT_CODES = """
## Exit codes

| code | what happened |
|--:|---|
"""
ERRORS = """
A mistake is one sentence on standard error: what is wrong, where, and what would be right. Tables and `--json` go to standard
output, progress and notices to standard error.
"""
ENVIRONMENT = """
## Environment variables

| variable | meaning |
|---|---|
"""
FILES = """
## Files

Runs are `results/*.jsonl`, profiles `results/profiles/*.json`, pictures in `results/plots/`; `--results` names another folder.
What stands in each is told in [format.md](format.md).
"""
MEANINGS: Mapping[Exit, str] = {
    Exit.DONE: "done",
    Exit.DIFFERENT: "`compare` found a case slower, or failing now; `profile diff` found that two profiles do not choose "
    "alike; `audit` found that two timers do not agree",
    Exit.USAGE: "a mistake in an option, or in a file that was given",
    Exit.FAILED_CASES: "finished, and some cases failed, or `verify` found a wrong result",
    Exit.UNFIT: "this machine cannot do what was asked; `dcpbench doctor` says what it can",
    Exit.STORAGE: "the disk does not take or give what it should, or the output cannot be printed; nothing measured is lost",
    Exit.LOCKED: "another run writes to the same results folder, or to the same shard of it",
    Exit.INTERRUPTED: "stopped by Ctrl-C; the command that goes on is printed",
    Exit.TERMINATED: "stopped by SIGTERM or SIGHUP",
}
VARIABLES: Mapping[str, str] = {
    "`CUDA_VISIBLE_DEVICES`": "which GPUs there are, by number or UUID",
    "`RANK`, `WORLD_SIZE`, `LOCAL_RANK`, `MASTER_ADDR`, `MASTER_PORT`": "of torchrun: this process is a rank of a job, and "
    "`--ranks` is left to the launcher",
    "`OMPI_COMM_WORLD_RANK`, `OMPI_COMM_WORLD_SIZE`, `OMPI_COMM_WORLD_LOCAL_RANK`": "the same, of mpirun; `MASTER_ADDR` and "
    "`MASTER_PORT` are yours to set",
    "`SLURM_PROCID`, `SLURM_STEP_NUM_TASKS`, `SLURM_LOCALID`": "the same, of srun",
    "`NO_COLOR`, `TERM`": "as elsewhere: with `NO_COLOR` no colours, with it or `TERM=dumb` plain lines and no moving cursor",
    "`NCCL_*`, `TORCH_*`, `FLASHINFER_*`, `OMP_NUM_THREADS`, `TRITON_INTERPRET`, `CUDA_DEVICE_ORDER`, "
    "`CUDA_DEVICE_MAX_CONNECTIONS`, `VLLM_FLASHINFER_WORKSPACE_BUFFER_SIZE`": "read by the libraries, and kept in every trial: "
    "they may change a time",
}
_TYPES = {int: "N", float: "NUMBER", str: "TEXT", Path: "PATH"}


@dataclass(frozen=True, slots=True)
class Parameter:
    """One argument or option as it is written, with what it takes and what it means."""

    info: ParameterInfo
    name: str
    kind: type
    default: Any
    repeatable: bool

    @classmethod
    def of(cls, name: str, annotation: Any, default: Any) -> Parameter | None:
        """Read a parameter of a command; None for one that the user does not give."""
        infos = [extra for extra in get_args(annotation)[1:] if isinstance(extra, ParameterInfo)]
        if not infos:
            return None
        bare, repeatable = _bare(get_args(annotation)[0])
        return cls(infos[0], name, bare, default, repeatable)

    @property
    def is_argument(self) -> bool:
        """True for what is given by its place."""
        return isinstance(self.info, ArgumentInfo)

    @property
    def required(self) -> bool:
        """True if there is no default."""
        return self.default is inspect.Parameter.empty

    @property
    def takes(self) -> str:
        """What stands for the value; nothing for a switch."""
        if self.kind is bool:
            return ""
        named = self.name.upper() if self.is_argument else _TYPES.get(self.kind, self.name.upper())
        return (self.info.metavar or named).strip("[].").replace("|", " or ")

    @property
    def written(self) -> str:
        """The parameter as a user writes it."""
        if self.is_argument:
            return self.takes
        # Inside Annotated typer takes the first flag for its parameter `default`, and puts that right later.
        given = (self.info.default, *(self.info.param_decls or ()))
        flags = [flag for flag in given if isinstance(flag, str) and flag.startswith("-")]
        return ", ".join(f"{flag} {self.takes}".strip() for flag in flags or [f"--{self.name.replace('_', '-')}"])

    @property
    def synopsis(self) -> str:
        """The parameter in the line that shows how a command is called."""
        bare = f"{self.takes}…" if self.repeatable else self.takes
        return bare if self.required else f"[{bare}]"

    @property
    def meaning(self) -> str:
        """What it means, what it may be, and what it is if not given."""
        told = _markdown(self.info.help or "").rstrip()
        notes = [self._range(), "Repeatable" if self.repeatable and not self.is_argument else "", self._default()]
        return " ".join(filter(None, [told, *(f"*{note}.*" for note in notes if note)]))

    def _range(self) -> str:
        least, most = self.info.min, self.info.max
        if least is None and most is None:
            return ""
        return f"From {least} up" if most is None else f"At most {most}" if least is None else f"{least} to {most}"

    def _default(self) -> str:
        if self.required:
            return "Required"
        if self.default is None or self.default is False or self.default == ():
            return ""
        value = self.default.value if isinstance(self.default, Enum) else self.default
        return f"Default: {value}"


@dataclass(frozen=True, slots=True)
class Command:
    """One command: its words after the program's name, what it does, what it takes, examples of it."""

    words: str
    panel: str
    text: tuple[str, ...]
    examples: tuple[str, ...]
    parameters: tuple[Parameter, ...]

    @classmethod
    def of(cls, info: CommandInfo, *, group: str = "", panel: str = "") -> Command:
        """Read a command as it was registered."""
        callback = info.callback
        if callback is None:
            raise ValueError(f"command {info.name} has no function")
        name = info.name or callback.__name__.replace("_", "-")
        paragraphs = f"{info.help or inspect.getdoc(callback) or ''}\n\n{info.epilog or ''}".split("\n\n")
        told = tuple(part for part in paragraphs if part.strip() and "Examples:" not in part)
        lines = "\n".join(part for part in paragraphs if "Examples:" in part).splitlines()
        examples = tuple(line for line in _examples(lines) if line not in ("", "\b", "Examples:"))
        panel = info.rich_help_panel if isinstance(info.rich_help_panel, str) else panel
        return cls(f"{group} {name}".strip(), panel, told, examples, tuple(parameters(callback)))


def _examples(lines: Sequence[str]) -> Iterator[str]:
    """Yield each example whole, one continued behind a backslash too."""
    whole = ""
    for line in map(str.strip, lines):
        whole = f"{whole}{line}"
        if whole.endswith("\\"):
            whole = f"{whole}\n      "
        else:
            yield whole
            whole = ""


def parameters(callback: Any) -> Iterator[Parameter]:
    """Yield what a command takes, in the order of its help."""
    hints = get_type_hints(callback, include_extras=True)
    for name, parameter in inspect.signature(callback).parameters.items():
        if found := Parameter.of(name, hints.get(name, parameter.annotation), parameter.default):
            yield found


def commands() -> list[Command]:
    """Return the commands of the program in the order of its help."""
    from bench.cli.program import app

    found = [Command.of(info) for info in app.registered_commands]
    for group in app.registered_groups:
        found += _of_group(group)
    panels = list(dict.fromkeys(command.panel for command in found))
    return sorted(found, key=lambda command: panels.index(command.panel))


def _of_group(group: TyperInfo) -> list[Command]:
    inner, panel = group.typer_instance, group.rich_help_panel
    if inner is None:
        raise ValueError(f"group {group.name} has no commands")
    shown = panel if isinstance(panel, str) else ""
    return [Command.of(info, group=str(group.name), panel=shown) for info in inner.registered_commands]


def page() -> str:
    """Return docs/commands.md."""
    from bench.cli.program import ABOUT, app

    callback = app.registered_callback
    if callback is None:
        raise ValueError("the program has no options of its own")
    every = commands()
    *about, examples = ABOUT.split("\n\n")
    panels = dict.fromkeys(command.panel for command in every)
    parts = [
        HEAD,
        *(" ".join(part.split()) for part in about),
        _console(line.strip() for line in examples.splitlines()[1:]),
        "\n".join(f"- **{panel}**: {', '.join(_link(one) for one in every if one.panel == panel)}" for panel in panels),
        GRAMMAR,
        "\n".join(_table(tuple(parameters(callback.callback)))),
        *map(_section, every),
        "\n".join([EXIT_CODES.rstrip(), *(f"| {int(code)} | {meaning} |" for code, meaning in MEANINGS.items())]),
        ERRORS,
        "\n".join([ENVIRONMENT.rstrip(), *(f"| {names} | {meaning} |" for names, meaning in VARIABLES.items())]),
        FILES,
    ]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _section(command: Command) -> str:
    arguments = [one for one in command.parameters if one.is_argument]
    options = any(not one.is_argument for one in command.parameters)
    words = ["dcpbench", command.words, *(["[OPTIONS]"] if options else []), *(one.synopsis for one in arguments)]
    parts = [
        f"## dcpbench {command.words}",
        f"```text\n{' '.join(words)}\n```",
        *map(_markdown, command.text),
        "\n".join(_table(command.parameters)),
        _console(command.examples),
    ]
    return "\n\n".join(parts)


def _console(examples: Iterable[str]) -> str:
    return "\n".join(["```console", *(f"$ {example}" for example in examples), "```"])


def _table(every: Sequence[Parameter]) -> list[str]:
    by_panel: dict[str, list[str]] = {}
    for one in sorted(every, key=lambda one: not one.is_argument):
        panel = "Arguments" if one.is_argument else one.info.rich_help_panel or "Options"
        by_panel.setdefault(panel, []).append(f"| `{one.written}` | {one.meaning} |")
    rows = [row for panel, rows in by_panel.items() for row in (f"| **{panel}** | |", *rows)]
    return ["| option | meaning |", "|---|---|", *(rows if len(by_panel) > 1 else rows[1:])] if rows else []


def _link(command: Command) -> str:
    return f"[`{command.words}`](#dcpbench-{command.words.replace(' ', '-')})"


def _markdown(text: str) -> str:
    """Bring rich's markup to Markdown's, and what both would take for something else to what it is."""
    text = re.sub(r"\[bold\](.*?)\[/bold\]", r"`\1`", " ".join(text.replace("\b", "").split()))
    outside = re.split(r"(`[^`]*`)", text)
    return "".join(part if part.startswith("`") else re.sub(r"([|*_<])", r"\\\1", part) for part in outside)


def _bare(annotation: Any) -> tuple[type, bool]:
    """Return the type of one value, and whether there may be several."""
    if get_origin(annotation) in (Union, types.UnionType):
        (annotation,) = (kind for kind in get_args(annotation) if kind is not types.NoneType)
    if get_origin(annotation) is list:
        return get_args(annotation)[0], True
    return annotation, False


if __name__ == "__main__":
    sys.stdout.write(page())
