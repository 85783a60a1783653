"""What a mistyped word may have meant. Floor 0: standard library only."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def nearest(word: str, known: Iterable[str]) -> str:
    """Return ``; did you mean 'x'?`` for the known word closest to ``word``, or nothing if none is close."""
    names = [str(name) for name in known]
    close = [name for name in names if len(word) > 2 and name.startswith(word)] or get_close_matches(word, names, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""
