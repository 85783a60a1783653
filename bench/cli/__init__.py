"""The command line. ``main`` is the one place that turns whatever happens into a sentence and an exit code."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program, and return its exit code.

    Args:
        arguments: without the program's name; those of the process if None, which Ctrl-C then ends at once while it loads.
    """
    if arguments is None and signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # until there is something to save
    if os.environ.get("NO_COLOR"):
        os.environ["_TYPER_FORCE_DISABLE_TERMINAL"] = "1"  # typer would print its help in bold all the same
    from bench.cli.program import main as program

    return program(arguments)
