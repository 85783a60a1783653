"""What ships of the runs that lie beside profiles: the lines that tell of exchanges, which ``recommend`` reads.

    python -m bench.recommend.exchanges results/reference/h200

Copies them from the runs of a folder to its ``exchanges/``, byte for byte, each to a file of its run's name, in place of what was
there: to be done whenever runs or profiles are new. A wheel carries the copies and not the runs.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

from bench.errors import UsageError
from bench.files import FileError, write_whole
from bench.profile.profile import Profile
from bench.recommend.evidence import Telling
from bench.record import Trial
from bench.shipped import EXCHANGES
from bench.store import Reader, read_run, run_files


def telling_lines(folder: Path, profiles: Iterable[Profile]) -> dict[str, bytes]:
    """Return the lines of a folder's runs that tell of exchanges beside any of some profiles, by the name of the run.

    Raises:
        FileError: for a run of which a line cannot be read.
    """
    # A reader each: what was told of one profile once is left out, though another's question may need to hear it.
    readers = [_telling(profile) for profile in profiles]
    found = {}
    for run in run_files(folder):
        lines: list[bytes] = []
        _, notices = read_run(run, reader=partial(_taken, readers=readers, lines=lines))
        if notices:
            raise FileError("; ".join(notices))
        if lines:
            found[run.name] = b"".join(lines)
    return found


def _telling(profile: Profile) -> Telling:
    """Return a reader for whatever may be asked of a profile: a group of any size may gather its heads."""
    heads = profile.geometry.q_heads
    return Telling({dcp: profile for dcp in range(1, heads + 1) if heads % dcp == 0})


def _taken(line: bytes, readers: Sequence[Reader], lines: list[bytes]) -> Trial | None:
    """Add a line to others if a reader takes it."""
    trials = [trial for reader in readers if (trial := reader(line))]
    if not trials:
        return None
    lines.append(line)
    return trials[0]


def shipped_lines(folder: Path) -> dict[str, bytes]:
    """Return what a folder's ``exchanges/`` should hold for its runs and profiles: lines by the name of the file.

    Raises:
        UsageError: if it has no runs, or no profiles.
        FileError: for a run or a profile that cannot be read.
    """
    profiles = [Profile.load(path) for path in sorted((folder / "profiles").glob("*.json"))]
    if not (profiles and run_files(folder)):
        raise UsageError(f"{folder}: no runs with profiles beside them, as results/reference/h200 of a checkout has")
    return telling_lines(folder, profiles)


def main(folders: Sequence[str]) -> int:
    """Write what ships of the runs of some folders, and print what that is."""
    for folder in map(Path, folders):
        files, target = shipped_lines(folder), folder / EXCHANGES
        for old in run_files(target):
            old.unlink()
        for name, lines in files.items():
            write_whole(target / name, lines)
        size = sum(map(len, files.values()))
        count = sum(lines.count(b"\n") for lines in files.values())
        sys.stdout.write(f"{target}: {count} lines of {len(files)} runs, {size / 1e6:.1f} MB\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
