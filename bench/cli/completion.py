"""What the Tab key offers. Each function is handed the word so far and returns what may stand there."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path


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


def runs(incomplete: str) -> list[str]:
    """Offer the runs in the default folder."""
    from bench.store import run_files

    return _matching(incomplete, ["last", *(path.stem for path in run_files("results"))])


def _matching(incomplete: str, words: Iterable[str]) -> list[str]:
    """Complete the last value of a comma-separated list, keeping those before it."""
    before, comma, last = incomplete.rpartition(",")
    return [f"{before}{comma}{word}" for word in map(str, words) if word.startswith(last)]
