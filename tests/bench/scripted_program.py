"""The program, all real but for its workers, which are scripted, and the deadline of a case.

It says when it has started. The first argument is the folder in which workers leave their files, the second the deadline in
seconds; the program's own follow.
"""

from __future__ import annotations

import functools
import os
import signal
import sys


def main() -> int:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # as the program does before it loads what takes its time
    os.write(1, b"started\n")
    import bench.supervisor
    from bench.cli import main as program

    folder, seconds, *words = sys.argv[1:]
    command = (sys.executable, "-m", "tests.bench.scripted_worker", folder)
    scripted = functools.partial(bench.supervisor.Supervisor, case_seconds=float(seconds), command=command)
    bench.supervisor.ESTIMATES = 0
    bench.supervisor.Supervisor = scripted  # type: ignore[misc, assignment]
    return program(words)


if __name__ == "__main__":
    sys.exit(main())
