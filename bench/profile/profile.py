"""What tuning found for one geometry on one device: which settings to run for which batch, and how that is known."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from bench.errors import UsageError
from bench.files import FileError, read_capped, write_whole
from bench.profile.entry import MAX_ENTRIES, MAX_READINGS, Entry, Geometry, Source, default_settings
from bench.profile.nearest import Neighbour, Region, RegionKey, leave_each_out, place, regions_of
from bench.profile.places import Point
from bench.record import Environment, Label
from dcp_core.layout import DcpLayout
from dcp_core.settings import KernelName, Settings
from dcp_core.shapes import Workload

__all__ = ["MAX_PROFILE_BYTES", "Choice", "Profile", "Source"]

MAX_PROFILE_BYTES = 32 << 20
_Asked = tuple[int, int, Workload]
"""dcp, interleave, batch."""


@dataclass(frozen=True, slots=True)
class Choice:
    """A profile's answer.

    Args:
        settings: to run; legal for the batch and layout that were asked.
        source: where they come from.
        distance: from the batch to the nearest entry that could answer for it, 1 per doubling of new tokens, of context on a
            rank or of dcp; infinite if there is none.
        expected_regret: relative to the best settings: measured of this very batch; of a neighbour's, a tree's or the
            default among measured batches, what it cost those left out, on average; None where unknown.
        entry: the evidence: of this batch, or of the nearest; None for a default.
        outside: the batch lies beyond what was measured, so that only the default can be answered.
    """

    settings: Settings
    source: Source
    distance: float
    expected_regret: float | None
    entry: Entry | None = None
    outside: bool = False


@dataclass(frozen=True, slots=True)
class Profile:
    """The entries of one geometry, all from machines whose hard fields agree.

    ``regions``: its entries by (dcp, interleave, longer than decodes or not, label), those that may answer for one another.

    Raises:
        UsageError: for too many entries.
        ValueError: for an entry of a layout that does not have this geometry, or a second one of a batch and label.
    """

    geometry: Geometry
    environment: Environment
    entries: tuple[Entry, ...]
    regions: dict[RegionKey, Region] = field(init=False, repr=False, compare=False)
    _around: dict[tuple[int, int, bool], tuple[Region, ...]] = field(init=False, repr=False, compare=False)
    _exact: dict[_Asked, Choice] = field(init=False, repr=False, compare=False)
    _reference_alone: bool = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if len(self.entries) > MAX_ENTRIES:
            raise UsageError(
                f"the profile of {self.geometry} would have {len(self.entries)} entries, and {MAX_ENTRIES} are the limit: "
                f"tune fewer batches, or some of them into another folder (--results); what was measured is kept"
            )
        if sum(len(entry.workload) * len(entry.candidates) for entry in self.entries) > MAX_READINGS:
            raise UsageError(
                f"the profile of {self.geometry} would have more requests, each times its candidates, than {MAX_READINGS}: "
                f"tune fewer or smaller batches, or some of them into another folder (--results)"
            )
        for layout in {entry.layout for entry in self.entries}:
            self.geometry.check(layout)
        kernels = {candidate.settings.kernel for entry in self.entries for candidate in entry.candidates}
        object.__setattr__(self, "_reference_alone", kernels == {KernelName.REFERENCE})
        object.__setattr__(self, "_exact", _exact_choices(self.entries))
        object.__setattr__(self, "regions", regions_of(self.entries))
        object.__setattr__(self, "_around", _by_kind(self.regions))

    @property
    def file_name(self) -> str:
        """What the profile's file is called: geometry and device, as engines name such files."""
        device = re.sub(r"[^A-Za-z0-9.-]+", "_", self.environment.hard.get("device_name", "unknown")).strip("._")
        return f"{self.geometry},device_name={device[:80] or 'unknown'}.json"

    def differences(self, other: Profile) -> list[str]:
        """Name every field in which two profiles' machines differ, with both values: between ranks too, if both have several."""
        ranks = (max((one.ranks for one in profile.entries), default=1) for profile in (self, other))
        return self.environment.differences(other.environment, ranks=min(ranks))

    @classmethod
    def load(cls, path: str | Path) -> Profile:
        """Read a profile.

        Raises:
            FileError: if the file is absent, no profile, or of a newer version.
            StorageError: if it may not be read.
        """
        return cls.parse(read_capped(Path(path), MAX_PROFILE_BYTES, "a profile"), str(path))

    @classmethod
    def parse(cls, text: str, where: str) -> Profile:
        """Read a profile's text.

        Args:
            where: it comes from, for messages.

        Raises:
            FileError: if it is no profile, or one of a newer version.
        """
        from bench.profile.file import parse

        found = parse(text, where)
        try:
            return cls(*found)
        except ValueError as error:
            raise FileError(f"{where}: {error}") from None

    def save(self, folder: str | Path) -> Path:
        """Write the profile to a folder, in place of an older one of the same geometry and device; return its path.

        Raises:
            StorageError: if the disk does not take it; an older one is kept then.
        """
        path = Path(folder) / self.file_name
        self.write(path)
        return path

    def write(self, path: Path) -> None:
        """Write the profile to a file of any name.

        Raises:
            StorageError: if the disk does not take it; an older one is kept then.
        """
        write_whole(path, self.to_text().encode("utf-8", "replace"))  # a variable may hold what is no text

    def to_text(self) -> str:
        """Return the profile as its file has it."""
        from bench.profile.text import render

        return render(self.geometry, self.environment, self.entries, self.regions)

    def lookup(self, workload: Workload, layout: DcpLayout) -> Choice:
        """Choose settings for a batch on a layout with this profile's geometry.

        Those of the very batch if it was measured; else, if it lies among measured ones, those of the nearest of them, of
        a tree grown on them or the default, whichever cost least when measured batches were left out; else the default,
        which is what the engine does.

        Raises:
            IllegalSettings: for an interleave beyond any page size.
            ValueError: for a batch or layout that is none, or a layout whose ranks cannot compute this geometry.

        Examples:
            >>> from bench.shipped import shipped_profiles
            >>> profile = Profile.load(shipped_profiles("q16,kv1,d128,dtype=bfloat16")[0])
            >>> choice = profile.lookup(Workload.parse("8q4s32772"), DcpLayout(tp=8, dcp=2))
            >>> str(choice.settings.path), str(choice.settings.kernel), str(choice.source)
            ('fold', 'fa2', 'exact')
            >>> round(choice.entry.chosen.median_us, 1), str(choice.entry.label)
            (43.6, 'simulated')
            >>> profile.lookup(Workload.parse("9q1s30000"), DcpLayout(tp=8, dcp=2)).source  # between measured ones
            <Source.NEIGHBOUR: 'neighbour'>
        """
        if not (isinstance(workload, Workload) and isinstance(layout, DcpLayout)):
            raise ValueError(
                f"a profile is asked with a Workload and a DcpLayout, not {workload!r:.60} and {layout!r:.60}"
            )
        dcp, interleave = _shared_out(layout)
        found = self._exact.get((dcp, interleave, workload))
        if found is not None:
            return found
        regions = self._around.get((dcp, interleave, workload.is_decode), ())
        if not regions:  # the dcp of others was checked with their entries
            self.geometry.check(layout)
        here, shortest, beyond = place(workload, dcp), math.inf, []
        for region in regions:
            if not region.surrounds(here):
                beyond.append(region)
            elif near := region.nearest(workload, here):
                if near.distance <= region.spacing:
                    return self._among(region, near, here, workload, layout)
                shortest = min(shortest, near.distance)
        for region in beyond:
            if near := region.nearest(workload, here):
                shortest = min(shortest, near.distance)
        return Choice(self._default(workload, layout), Source.DEFAULT, shortest, None, outside=True)

    def answering(self, layout: DcpLayout) -> list[Entry]:
        """Return the entries that answer for the batches of a layout: one a batch, measured before simulated."""
        shared = _shared_out(layout)
        found = (choice.entry for key, choice in self._exact.items() if key[:2] == shared)
        return sorted((entry for entry in found if entry), key=lambda entry: entry.order)

    def of_layout(self, layout: DcpLayout) -> list[Entry]:
        """Return all entries of a layout: of a batch that was both measured and simulated, both."""
        return [entry for entry in self.entries if _shared_out(entry.layout) == _shared_out(layout)]

    def _among(self, region: Region, near: Neighbour, here: Point, workload: Workload, layout: DcpLayout) -> Choice:
        """Answer for a batch that a region covers."""
        if region.way is Source.DEFAULT:
            return Choice(self._default(workload, layout), Source.DEFAULT, near.distance, region.regret(region.way))
        source, loan = region.answer(workload, here, near)
        if loan is None:
            return Choice(self._default(workload, layout), source, near.distance, region.regret(region.way))
        regret = region.regret(region.way if source is Source.TREE else Source.NEIGHBOUR)
        return Choice(loan.run_by(workload), source, near.distance, regret, near.entry)

    def _default(self, workload: Workload, layout: DcpLayout) -> Settings:
        if self._reference_alone:
            return default_settings(layout, workload, kernel=KernelName.REFERENCE, decode_kernel=KernelName.REFERENCE)
        return default_settings(layout, workload)


def merged(one: Profile, other: Profile) -> Profile:
    """Join two profiles of one geometry and machine. Of a batch that both have, the one measured last counts, or ``other``'s.

    How the result generalises is worked out anew.

    Raises:
        UsageError: if their geometries differ, or their machines, naming in what.
    """
    if one.geometry != other.geometry:
        raise UsageError(
            f"profiles of {one.geometry} and of {other.geometry} cannot be merged: each has its own file; "
            f"give two of one geometry"
        )
    if apart := one.differences(other):
        raise UsageError(f"these profiles are of two machines, and stay apart ({'; '.join(apart)}): merge those of one")
    by_batch: dict[tuple[object, ...], Entry] = {}
    for entry in (*one.entries, *other.entries):
        place = (*_shared_out(entry.layout), entry.workload, entry.label)
        if place not in by_batch or by_batch[place].measured_last <= entry.measured_last:
            by_batch[place] = entry
    latest = [max((entry.measured_last for entry in side.entries), default="") for side in (one, other)]
    environment = one.environment if latest[0] > latest[1] else other.environment
    return Profile(one.geometry, environment, leave_each_out(by_batch.values()))


def _exact_choices(entries: tuple[Entry, ...]) -> dict[_Asked, Choice]:
    """Return what is answered for each measured batch; measured on as many devices goes before simulated."""
    exact: dict[_Asked, Choice] = {}
    for entry in sorted(entries, key=lambda entry: entry.label is not Label.MEASURED):
        choice = Choice(entry.settings, Source.EXACT, 0.0, entry.regret(entry.settings), entry)
        exact.setdefault((*_shared_out(entry.layout), entry.workload), choice)
    return exact


def _by_kind(regions: Mapping[RegionKey, Region]) -> dict[tuple[int, int, bool], tuple[Region, ...]]:
    """Return regions by dcp, interleave and decodes or longer; measured before simulated."""
    found: dict[tuple[int, int, bool], tuple[Region, ...]] = defaultdict(tuple)
    for label in (Label.MEASURED, Label.SIMULATED):
        for (dcp, interleave, longer, one), region in regions.items():
            if one is label:
                found[dcp, interleave, not longer] += (region,)
    return found


def _shared_out(layout: DcpLayout) -> tuple[int, int]:
    """Return all that matters of a layout within a geometry: dcp and interleave."""
    return layout.dcp, layout.canonical.interleave
