"""What a search is about: the candidates for one batch on one layout, and which are near which. Standard library only."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from dcp_core.settings import Case, IllegalSettings, KernelName, PathName, Settings, canonical, is_legal
from dcp_core.shapes import Workload


@dataclass(frozen=True, slots=True)
class Batch:
    """The candidates for one batch on one layout.

    Args:
        candidates: legal, each a step of its own; the default among them.
        default: what the engine runs; None if that cannot run here.
        least_us: the time that a candidate cannot beat, where that is known.

    Attributes:
        places: of the candidates in their order.
    """

    candidates: tuple[Case, ...]
    default: Case | None
    least_us: Mapping[Case, float] = field(default_factory=dict)
    places: dict[Case, int] = field(init=False, repr=False, compare=False)
    _values: dict[str, list[object]] = field(init=False, repr=False, compare=False)
    _near: dict[Case, list[Case]] = field(init=False, repr=False, compare=False, default_factory=dict)

    def __post_init__(self) -> None:
        if not self.candidates or (self.default and self.default not in self.candidates):
            raise ValueError("a batch is searched among candidates, its default one of them")
        values = {
            setting.name: list(dict.fromkeys(getattr(case.settings, setting.name) for case in self.candidates))
            for setting in fields(Settings)
        }
        object.__setattr__(self, "places", {case: place for place, case in enumerate(self.candidates)})
        object.__setattr__(self, "_values", values)

    @property
    def workload(self) -> Workload:
        """The batch itself."""
        return self.candidates[0].workload

    def neighbours(self, case: Case) -> list[Case]:
        """Return the candidates that one change of settings leads to, in the order of the candidates.

        Where a pass runs the main one's kernel, changing the main one alone is one change too. A search asks after every race:
        they are looked for once.
        """
        if case not in self._near:
            self._near[case] = self._neighbours(case)
        return self._near[case]

    def _neighbours(self, case: Case) -> list[Case]:
        found = set()
        for base in (case.settings, _spelt_out(case.settings)):
            for name, values in self._values.items():
                for value in values:
                    settings = changed(base, name, value)
                    settings = settings and canonical(settings, case.layout, case.workload)
                    if settings and is_legal(settings, case.layout, case.workload):
                        found.add(replace(case, settings=settings))
        return sorted(found & self.places.keys() - {case}, key=self.places.__getitem__)

    def is_about(self, case: Case) -> bool:
        """Tell whether a case is a way to run this very batch on this layout."""
        first = self.candidates[0]
        return (case.workload, case.layout, case.shape) == (first.workload, first.layout, first.shape)

    @property
    def likeliest(self) -> list[Case]:
        """The default, then of each path with each kernel the candidate most like it."""
        first = (self.default or self.candidates[0]).settings
        ways: dict[tuple[PathName, KernelName], list[Case]] = defaultdict(list)
        for case in self.candidates:
            ways[case.settings.path, case.settings.kernel].append(case)
        near = [min(cases, key=lambda case: distance(case.settings, first)) for cases in ways.values()]
        return list(dict.fromkeys([*([self.default] if self.default else []), *near]))


def _spelt_out(settings: Settings) -> Settings:
    """Name the kernel of every pass, where settings may."""
    spelt = changed(settings, "decode_kernel", settings.kernel_for_decode) or settings
    return changed(spelt, "new_kernel", settings.kernel_for_new) or spelt


def changed(settings: Settings, name: str, value: object) -> Settings | None:
    """Return settings with one changed; None if they cannot go together."""
    new: dict[str, Any] = {name: value}
    try:
        return replace(settings, **new)
    except IllegalSettings:
        return None


def distance(one: Settings, other: Settings) -> int:
    """Return in how many settings two differ."""
    return sum(1 for _ in one.differences(other))


def cache_of(case: Case) -> tuple[int, str]:
    """Return what the layout of the KV cache depends on: cases alike in it, opened one after another, share one cache."""
    return case.settings.page_size, case.settings.kv_layout
