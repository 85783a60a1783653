"""The command line. ``main`` is the one place that turns whatever happens into a sentence and an exit code."""

from bench.cli.program import main as main
