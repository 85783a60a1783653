"""What tuning found for one geometry on one device: which settings to run for which batch, and how that is known."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from bench.entry import MAX_ENTRIES, Entry, Geometry, default_settings
from bench.errors import UsageError
from bench.files import read_capped, write_whole
from bench.nearest import Region
from bench.record import Environment, Label
from dcp_core.layout import DcpLayout
from dcp_core.settings import KernelName, Settings
from dcp_core.shapes import Workload

MAX_PROFILE_BYTES = 32 << 20


class Source(StrEnum):
    """Where a choice comes from: this very batch, the nearest measured one, or nothing that was measured."""

    EXACT = "exact"
    NEIGHBOUR = "neighbour"
    DEFAULT = "default"


@dataclass(frozen=True, slots=True)
class Choice:
    """A profile's answer.

    Args:
        settings: to run; legal for the batch and layout that were asked.
        source: where they come from.
        distance: from the batch to the entry that answers for it, 1 per doubling of requests, new tokens or context;
            infinite if nothing was measured.
        expected_regret: relative to the best settings: measured of this very batch, of a neighbour's as leaving out
            measured batches showed; None where unknown.
        entry: the evidence; None for a default.
    """

    settings: Settings
    source: Source
    distance: float
    expected_regret: float | None
    entry: Entry | None = None


@dataclass(frozen=True, slots=True)
class Profile:
    """The entries of one geometry, all from machines whose hard fields agree.

    Raises:
        UsageError: for too many entries.
        ValueError: for an entry of a layout that does not have this geometry.
    """

    geometry: Geometry
    environment: Environment
    entries: tuple[Entry, ...]
    _exact: dict[tuple[int, int, Workload], Entry] = field(init=False, repr=False, compare=False)
    _regions: dict[tuple[int, int, bool, Label], Region] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if len(self.entries) > MAX_ENTRIES:
            raise UsageError(
                f"the profile of {self.geometry} would have {len(self.entries)} entries, and {MAX_ENTRIES} are the limit: "
                f"tune fewer batches, or some of them into another folder (--results); what was measured is kept"
            )
        for layout in {entry.layout for entry in self.entries}:
            self.geometry.check(layout)
        # Those measured on as many devices stand before simulated ones, and so answer first.
        ordered = sorted(self.entries, key=lambda entry: entry.label is not Label.MEASURED)
        exact: dict[tuple[int, int, Workload], Entry] = {}
        regions: dict[tuple[int, int, bool, Label], list[Entry]] = defaultdict(list)
        for entry in ordered:
            exact.setdefault((*_shared_out(entry.layout), entry.workload), entry)
            regions[_region(entry)].append(entry)
        object.__setattr__(self, "_exact", exact)
        object.__setattr__(self, "_regions", {key: Region(tuple(inside)) for key, inside in regions.items()})

    @property
    def file_name(self) -> str:
        """What the profile's file is called: geometry and device, as engines name such files."""
        device = re.sub(r"[^A-Za-z0-9.-]+", "_", self.environment.hard.get("device_name", "unknown")).strip("._")
        return f"{self.geometry},device_name={device[:80] or 'unknown'}.json"

    @classmethod
    def load(cls, path: str | Path) -> Profile:
        """Read a profile.

        Raises:
            FileError: if the file is absent, no profile, or of a newer version.
            StorageError: if it may not be read.
        """
        from bench.profile_file import parse

        path = Path(path)
        return cls(*parse(read_capped(path, MAX_PROFILE_BYTES, "a profile"), str(path)))

    def save(self, folder: str | Path) -> Path:
        """Write the profile to a folder, in place of an older one of the same geometry and device; return its path.

        Raises:
            StorageError: if the disk does not take it; an older one is kept then.
        """
        from bench.profile_file import render

        path = Path(folder) / self.file_name
        write_whole(path, render(self.geometry, self.environment, self.entries).encode())
        return path

    def lookup(self, workload: Workload, layout: DcpLayout) -> Choice:
        """Choose settings for a batch on a layout with this profile's geometry.

        The very batch if it was measured; else the nearest that was, if the batch lies among them; else what the engine
        does by default.

        Raises:
            IllegalSettings: for an interleave beyond any page size.
        """
        found = self._exact.get((*_shared_out(layout), workload))
        if found is not None:
            return Choice(found.settings, Source.EXACT, 0.0, found.regret(found.settings), found)
        shortest = math.inf
        for label in (Label.MEASURED, Label.SIMULATED):
            region = self._regions.get((*_shared_out(layout), workload.is_mixed, label))
            near = region.nearest(workload) if region else None
            if region is None or near is None:
                continue
            if region.covers(workload, near.distance):
                return Choice(near.settings, Source.NEIGHBOUR, near.distance, region.regret, near.entry)
            shortest = min(shortest, near.distance)
        return Choice(self._default(workload, layout), Source.DEFAULT, shortest, None)

    def _default(self, workload: Workload, layout: DcpLayout) -> Settings:
        kernels = {candidate.settings.kernel for entry in self.entries for candidate in entry.candidates}
        if kernels == {KernelName.REFERENCE}:
            return default_settings(layout, workload, kernel=KernelName.REFERENCE, decode_kernel=KernelName.REFERENCE)
        return default_settings(layout, workload)


def _region(entry: Entry) -> tuple[int, int, bool, Label]:
    return *_shared_out(entry.layout), entry.workload.is_mixed, entry.label


def _shared_out(layout: DcpLayout) -> tuple[int, int]:
    """Return all that matters of a layout within a geometry: dcp and interleave."""
    return layout.dcp, layout.canonical.interleave
