"""The program, all real but for its workers, which are scripted, and the deadline of a case.

It says that it has started. The first argument is the folder in which workers leave their files, the second the deadline in seconds; then the program's own.
"""

from __future__ import annotations

import signal
import sys

signal.signal(signal.SIGINT, signal.SIG_DFL)  # as the program does, before it imports anything that takes its time
print("started", flush=True)

import functools

import bench.supervisor


def main() -> int:
    folder, seconds, *words = sys.argv[1:]
    command = (sys.executable, "-m", "tests.bench.scripted_worker", folder)
    scripted = functools.partial(bench.supervisor.Supervisor, case_seconds=float(seconds), command=command)
    bench.supervisor.ESTIMATES = 0
    bench.supervisor.Supervisor = scripted  # type: ignore[misc, assignment]
    from bench.cli import main as program

    return program(words)


if __name__ == "__main__":
    sys.exit(main())
