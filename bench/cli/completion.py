"""What the Tab key offers: each function is handed the word so far, and returns what may stand there. For none, files are."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import fields
from io import StringIO
from pathlib import Path

import typer


@contextmanager
def whole_words() -> Iterator[None]:
    """Join the words that bash takes apart at each ``=``, and offer it only what stands behind the last one, as it wants."""
    if os.environ.get("_DCPBENCH_COMPLETE") != "complete_bash":
        yield
        return
    words, position = _joined(os.environ.get("COMP_WORDS", "").split("\n"), int(os.environ.get("COMP_CWORD") or 0))
    os.environ |= {"COMP_WORDS": "\n".join(words), "COMP_CWORD": str(position)}
    name, equals, _ = words[position].rpartition("=") if position < len(words) else ("", "", "")
    offered = StringIO()
    try:
        with redirect_stdout(offered):
            yield
    finally:
        sys.stdout.writelines(line.removeprefix(name + equals) for line in offered.getvalue().splitlines(keepends=True))


def _joined(words: list[str], position: int) -> tuple[list[str], int]:
    """Return words with those around each ``=`` in one, and where the one at ``position`` is now."""
    joined: list[str] = []
    places = []
    for index, word in enumerate(words):
        if joined and "=" in (word, words[index - 1]):
            joined[-1] += word
        else:
            joined.append(word)
        places.append(len(joined) - 1)
    return joined, places[position] if position < len(places) else position


def models(incomplete: str) -> list[str]:
    """Offer known models, whatever the case of what was typed."""
    from dcp_core.shapes import PRESETS

    before, comma, last = incomplete.rpartition(",")
    return _matching(f"{before}{comma}{last.lower()}", PRESETS)


def sweeps(incomplete: str) -> list[str]:
    """Offer shipped sweeps, and TOML files here."""
    from bench.sweep import shipped_sweeps

    return _matching(incomplete, [*shipped_sweeps(), *(path.name for path in Path().glob("*.toml"))])


def paths(incomplete: str) -> list[str]:
    """Offer paths."""
    from dcp_core.settings import PathName

    return _matching(incomplete, PathName)


def kernels(incomplete: str) -> list[str]:
    """Offer kernels."""
    from dcp_core.settings import KernelName

    return _matching(incomplete, KernelName)


def exchanges(incomplete: str) -> list[str]:
    """Offer exchanges."""
    from dcp_core.settings import ExchangeName

    return _matching(incomplete, ExchangeName)


def settings(incomplete: str) -> list[str]:
    """Offer the settings that are no axis of their own, up to their ``=``; behind it, the words that a setting may have."""
    from dcp_core.settings import Settings, words_for

    name, equals, values = incomplete.partition("=")
    if equals:
        return [f"{name}={value}" for value in _matching(values, words_for(name))]
    own = ("path", "kernel", "exchange")
    return _matching(incomplete, [f"{field.name}=" for field in fields(Settings) if field.name not in own])


def precisions(incomplete: str) -> list[str]:
    """Offer the words for a precision."""
    return _matching(incomplete, ("quick", "standard", "strict"))


def searches(incomplete: str) -> list[str]:
    """Offer the ways to search."""
    return _matching(incomplete, ("race", "exhaustive"))


def spaces(incomplete: str) -> list[str]:
    """Offer what may be searched."""
    return _matching(incomplete, ("sweep", "all"))


def figures(incomplete: str) -> list[str]:
    """Offer pictures by name."""
    from bench.report.plot import FIGURES

    return _matching(incomplete, FIGURES)


def gpus(incomplete: str) -> list[str]:
    """Offer GPUs that are known."""
    from dcp_core.serving import MULTIPROCESSORS

    return _beginning(incomplete, sorted(MULTIPROCESSORS))


def shipped_gpus(incomplete: str) -> list[str]:
    """Offer the GPUs that profiles ship for."""
    from bench.shipped import shipped_gpus as gpus_shipped

    return _beginning(incomplete, gpus_shipped())


def runs(context: typer.Context, incomplete: str) -> list[str]:
    """Offer the runs in the results folder by name, the newest first."""
    from bench.files import FileError, StorageError
    from bench.store import run_files

    try:
        names = [path.stem for path in reversed(run_files(_results(context)))]
    except (FileError, StorageError):  # it is said when the command is run
        return []
    return _beginning(incomplete, ["last", *names] if names else [])


def profiles(context: typer.Context, incomplete: str) -> list[str]:
    """Offer the profiles in the results folder."""
    return _beginning(incomplete, sorted(map(str, (_results(context) / "profiles").glob("*.json"))))


def _results(context: typer.Context) -> Path:
    """Return the results folder that was typed before, or the default one."""
    return Path(context.params.get("results") or "results")


def _beginning(incomplete: str, words: Iterable[str]) -> list[str]:
    """Complete a single value: a comma in it is its own."""
    return [word for word in words if word.startswith(incomplete) and word.isprintable()]


def _matching(incomplete: str, words: Iterable[str]) -> list[str]:
    """Complete the last value of a comma-separated list, keeping those before it."""
    before, comma, last = incomplete.rpartition(",")
    return [f"{before}{comma}{word}" for word in map(str, words) if word.startswith(last)]
