"""How long profiles take to answer, on the machine at hand.

    python -m bench.tune.lookup_cost results/reference/h200/profiles

Asks every profile of a folder for batches that it measured, for ones between them and for ones beyond, on each of its
layouts, and prints the median time by source and number of requests. Standard library only.
"""

from __future__ import annotations

import sys
import time
from argparse import ArgumentParser
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median

from bench.grid import Column, Grid
from bench.profile.profile import Profile
from dcp_core.layout import DcpLayout
from dcp_core.shapes import Workload

ASKED = ("q1s3", "8q1s32k", "13q1s50k", "64q1s30k", "200q1s20k", "256q1s500k", "3q5s17k", "q700s9k", "30q1s20k_q700s9k")
"""Beside what was measured: few requests and many, decodes and longer ones."""
REPEATS = 100


def times_us(profile: Profile) -> Iterator[tuple[str, int, float]]:
    """Yield the source, the requests and the median microseconds of each question."""
    for layout in sorted({entry.layout for entry in profile.entries}, key=str):
        measured = [entry.workload for entry in profile.entries if entry.layout == layout]
        for workload in (*measured, *map(Workload.parse, ASKED)):
            yield str(profile.lookup(workload, layout).source), len(workload), _median_us(profile, workload, layout)


def costs_grid(profiles: Sequence[Profile]) -> Grid:
    """Return a table of how long answers take, by where they come from and how many requests the batch has."""
    found: dict[tuple[str, str], list[float]] = defaultdict(list)
    for profile in profiles:
        for source, requests, us in times_us(profile):
            found[source, "up to 32" if requests <= 32 else "33 to 256" if requests <= 256 else "more"].append(us)
    columns = (
        Column("source"),
        Column("requests"),
        Column("asked", right=True),
        Column("median µs", right=True),
        Column("slowest µs", right=True),
    )
    rows = tuple(
        (source, requests, str(len(times)), f"{median(times):.1f}", f"{max(times):.1f}")
        for (source, requests), times in sorted(found.items())
    )
    return Grid("What a lookup takes", columns, rows)


def _median_us(profile: Profile, workload: Workload, layout: DcpLayout) -> float:
    times = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        profile.lookup(workload, layout)
        times.append(1e6 * (time.perf_counter() - started))
    return median(times)


def main(words: Sequence[str]) -> int:
    """Ask the profiles of some folders, and print how long that takes."""
    asked = ArgumentParser(prog="python -m bench.tune.lookup_cost", description=(__doc__ or "").partition("\n")[0])
    asked.add_argument("folder", nargs="+", type=Path, help="of profiles")
    folders = asked.parse_args(words).folder
    profiles = [Profile.load(path) for folder in folders for path in sorted(folder.glob("*.json"))]
    if not profiles:
        asked.error(f"no profile, a file ending in .json, in {', '.join(map(str, folders))}")
    sys.stdout.write(f"{costs_grid(profiles).to_text()}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
