"""The program: its commands, its global options, and the one place that turns a mistake into a sentence and an exit code."""

from __future__ import annotations

import os
import shlex
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Annotated

import typer

from bench.cli import completion, profile
from bench.cli.audit import audit
from bench.cli.compare import compare
from bench.cli.doctor import doctor
from bench.cli.exits import Exit
from bench.cli.memory import memory
from bench.cli.mistake import described
from bench.cli.options import Session, add, paragraphs
from bench.cli.plot import plot
from bench.cli.recommend import recommend
from bench.cli.report import report
from bench.cli.screen import say, warn
from bench.cli.show import show
from bench.cli.streams import streams
from bench.cli.sweep import sweep
from bench.cli.tune import tune
from bench.cli.verify import verify
from bench.errors import UnfitError, UsageError
from bench.files import FileError, StorageError, shortened
from bench.launched import run
from dcp_core.grammar import WorkloadError
from dcp_core.hf_config import ShapeError
from dcp_core.layout import IllegalLayout
from dcp_core.memory import SizeError
from dcp_core.settings import IllegalSettings
from dcp_core.workspace import WorkspaceError

PROGRAM = "dcpbench"
MISTAKES = (UsageError, FileError, ShapeError, WorkloadError, IllegalLayout, IllegalSettings, SizeError, WorkspaceError)
"""What a user can get wrong: a sentence, never a traceback."""
# A mistake in options as typer reports it: which click it brings along differs between versions, this holds for all.
_TyperMistake: type[Exception] = typer.BadParameter.__bases__[0]

app = typer.Typer(
    name=PROGRAM,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


ABOUT = """Which dcp size, attention path, kernel and exchange to run for grouped-query attention, and how that is known.

Measures a real decode-context-parallel attention core on this machine, checks every result against a float64 oracle
before it is timed, picks the fastest settings for each batch, and draws what it found.

Examples:
  dcpbench doctor
  dcpbench tune quick"""


def _print_version(asked: bool) -> None:
    if asked:
        from dcp_core import __version__

        say(f"{PROGRAM} {__version__}")
        raise typer.Exit


@app.callback(
    help=paragraphs(ABOUT), epilog="Start here: [bold]dcpbench doctor[/bold], then [bold]dcpbench tune quick[/bold]."
)
def options(
    invocation: typer.Context,
    ranks: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=1024,
            metavar="N",
            help="Processes to form DCP groups of, one per GPU. Larger groups are simulated on one. "
            "Default: one per visible GPU, 2 without any.",
        ),
    ] = None,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    """Take the options that come before the command."""
    del version  # its callback has printed it
    invocation.obj = Session(ranks, _command_line(invocation.obj))


MEASURE, READ, HERE = "Measure", "Read what was measured", "This machine and its models"
add(app, tune, panel=MEASURE)
add(app, sweep, panel=MEASURE)
add(app, verify, panel=MEASURE)
add(app, recommend, panel=READ)
add(app, show, panel=READ)
add(app, compare, panel=READ)
add(app, plot, panel=READ)
add(app, report, panel=READ)
app.add_typer(profile.app, name="profile", rich_help_panel=READ)
add(app, memory, panel=HERE)
add(app, doctor, panel=HERE)
add(app, audit, panel=HERE)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program, and return its exit code.

    Args:
        arguments: without the program's name; those of the process if None.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    with streams() as output:
        code = _run(words)
        output.flush()
        if output.problem is None or isinstance(output.problem, BrokenPipeError):  # whose reader has seen enough
            return code
        why = (output.problem.strerror or str(output.problem)).lower()
        return _complain(f"cannot print: {why}; send the output somewhere else", code or Exit.STORAGE)


def _run(words: list[str]) -> int:
    try:
        with _signals_stop():
            return run(lambda: _command(words))
    except _TyperMistake as mistake:
        return _complain(described(mistake, words, app), Exit.USAGE)
    except MISTAKES as mistake:
        return _complain(str(mistake), Exit.USAGE)
    except UnfitError as unfit:
        return _complain(str(unfit), Exit.UNFIT)
    except StorageError as error:
        return _complain(str(error), Exit.STORAGE)
    except (KeyboardInterrupt, typer.Abort):
        return Exit.INTERRUPTED
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else Exit.DONE
    except RuntimeError as error:
        from bench.store import LockedError

        if isinstance(error, LockedError):
            return _complain(str(error), Exit.LOCKED)
        raise


def _command(words: list[str]) -> int:
    try:
        with completion.whole_words():
            return int(app(words or ["--help"], prog_name=PROGRAM, standalone_mode=False, obj=words) or Exit.DONE)
    except OSError as error:
        if "--install-completion" not in words:
            raise
        why = f"{error.filename}: {(error.strerror or str(error)).lower()}"
        fix = "let HOME be a folder that may be written, or put what --show-completion prints where your shell reads it"
        raise StorageError(f"cannot install completion: {why}; {fix}") from None


def _complain(sentence: str, code: int) -> int:
    warn(f"{PROGRAM}: {shortened(sentence)}")
    return code


def _command_line(words: object) -> str:
    return shlex.join([PROGRAM, *(words if isinstance(words, list) else [])])


def _drops_exceptions(frame: FrameType | None) -> bool:
    """Tell whether a library stands on the stack that goes on after what a signal raises, seen once in 300 signals."""
    while frame is not None:
        # Callbacks of importlib's locks, and those by which pydantic's core asks for names, only print what is raised in them.
        if frame.f_globals.get("__name__", "").partition(".")[0] in ("importlib", "pydantic"):
            return True
        frame = frame.f_back
    return False


@contextmanager
def _signals_stop() -> Iterator[None]:
    """Turn the first signal that stops into an exception, so that what holds workers, locks or a terminal lets go of them.

    The second one ends the process at once, and so does the first where an exception might be dropped: workers see it go, and
    end; the lock ends with it.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)
        if _drops_exceptions(frame):
            os.kill(os.getpid(), number)
        raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(Exit.TERMINATED)

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:  # as nohup has it: not to end with the terminal is what its user wants
            signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
