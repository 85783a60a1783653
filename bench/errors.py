"""What goes wrong that is nobody's bug: said in one sentence, without a traceback. Standard library only."""

from __future__ import annotations


class UsageError(ValueError):
    """A request that cannot be served as it was made: what is wrong, what would be right, which option. Exit code 2."""


class UnfitError(RuntimeError):
    """A machine that cannot do what was asked: what it lacks, and how to get it. Exit code 4."""
