"""A profile as text: JSON for people and diffs, in an order that stays. ``profile_file`` reads it; see docs/format.md."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

from bench.profile.entry import Candidate, Entry, Geometry, Paired
from bench.profile.nearest import Region, RegionKey
from bench.profile.tree import Leaf, Tree
from bench.record import Environment
from dcp_core.settings import Settings

SCHEMA = 3
"""Version of the file. History: 1, the first; 2, a candidate says when it was measured, an entry what it would have paid
for being left out whichever way it is answered, regions say how they answer, and `paired` what races said (none if absent);
3, regions part decodes from longer batches, no longer mixed ones from others, and those left out are answered by where a
rank computes."""
LINE_WIDTH = 220
"""Wide enough for a candidate on one line."""
FOR_THE_READER = ("median_us", "low_us", "high_us", "ratio_to_default", "ratio_low", "ratio_high")
"""Numbers of an entry that its candidates tell; they are not read back."""

Value = str | int | bool | None
Regions = Mapping[RegionKey, Region]


def render(geometry: Geometry, environment: Environment, entries: Iterable[Entry], regions: Regions) -> str:
    """Return the text of a profile."""
    unless_given = Settings()
    content = {
        "schema": SCHEMA,
        "kind": "dcpbench profile",
        "geometry": {
            "q_heads": geometry.q_heads,
            "kv_heads": geometry.kv_heads,
            "head_dim": geometry.head_dim,
            "dtype": str(geometry.dtype),
            "kv_dtype": str(geometry.kv_dtype),
        },
        "environment": {
            "hard": dict(sorted(environment.hard.items())),
            "soft": dict(sorted(environment.soft.items())),
        },
        "unless_given": unless_given.to_json(),
        "regions": regions_json(regions),
        "entries": [_entry(entry) for entry in entries],
    }
    return _pretty(content) + "\n"


def regions_json(regions: Regions) -> list[dict[str, Any]]:
    """Return how each region answers for what was not measured, and what each way cost batches left out."""
    found = []
    for (dcp, interleave, longer, label), region in sorted(regions.items()):
        about = {"dcp": dcp, "interleave": interleave, "longer": longer, "label": str(label)}
        left_out = {
            str(way): {"mean": round(one.mean, 6), "worst": one.worst, "unknown": one.unknown}
            for way, one in region.regrets.items()
        }
        tree = {"tree": _tree(region.tree)} if region.tree else {}
        found.append({**about, "entries": len(region.entries), "way": str(region.way), "left_out": left_out, **tree})
    return found


def derived(entry: Entry) -> dict[str, Any]:
    """Return what an entry's candidates tell, as numbers ``FOR_THE_READER``."""
    chosen, ratio = entry.chosen, entry.to_default
    ratios = (None, None, None) if ratio is None else (ratio.value, ratio.low, ratio.high)
    rounded = (None if one is None else round(one, 4) for one in ratios)
    return dict(zip(FOR_THE_READER, (chosen.median_us, chosen.low_us, chosen.high_us, *rounded), strict=True))


def _entry(entry: Entry) -> dict[str, Any]:
    runner_up, numbers = entry.runner_up, derived(entry)
    times, ratios = FOR_THE_READER[:3], FOR_THE_READER[3:]
    return {
        "workload": str(entry.workload),
        "layout": {"tp": entry.layout.tp, "dcp": entry.layout.dcp, "interleave": entry.layout.interleave},
        "label": str(entry.label),
        "timer": entry.timer,
        "cold": entry.cold,
        "settings": _given(entry.settings),
        **{name: numbers[name] for name in times},
        "default": _given(entry.default) if entry.default else None,
        **{name: numbers[name] for name in ratios},
        "runner_up": _given(runner_up.settings) if runner_up else None,
        **({"paired": [_paired(one) for one in entry.paired]} if entry.paired else {}),
        "left_out": asdict(entry.left_out),
        "candidates": [_candidate(candidate) for candidate in entry.candidates],
    }


def _candidate(candidate: Candidate) -> dict[str, Any]:
    times = {"median_us": candidate.median_us, "low_us": candidate.low_us, "high_us": candidate.high_us}
    when = {"time": candidate.time} if candidate.time else {}
    return {"settings": _given(candidate.settings), **times, "case": candidate.case, **when}


def _paired(one: Paired) -> dict[str, Any]:
    return {"settings": _given(one.settings), "ratio": one.ratio.value, "low": one.ratio.low, "high": one.ratio.high}


def _given(settings: Settings) -> dict[str, Value]:
    """Return the settings that ``unless_given`` does not say."""
    plain = settings.to_json()
    return {name: plain[name] for name, _, _ in settings.differences(Settings())}


def _tree(tree: Tree) -> dict[str, Any]:
    if isinstance(tree, Leaf):
        return {"settings": _given(tree.settings)}
    return {"if": f"{tree.size} <= {tree.limit:.6g}", "then": _tree(tree.below), "else": _tree(tree.above)}


def _pretty(value: object, indent: int = 0) -> str:
    """Write JSON with whatever fits on one line there, so that a candidate is a line of a diff."""
    line = json.dumps(value, ensure_ascii=False, allow_nan=False)
    pad = " " * (indent + 2)
    if indent + len(line) <= LINE_WIDTH or not isinstance(value, (dict, list)) or not value:
        return line
    if isinstance(value, dict):
        inside = [
            f"{pad}{json.dumps(name, ensure_ascii=False)}: {_pretty(part, indent + 2)}" for name, part in value.items()
        ]
        return "{\n" + ",\n".join(inside) + f"\n{' ' * indent}}}"
    return "[\n" + ",\n".join(pad + _pretty(part, indent + 2) for part in value) + f"\n{' ' * indent}]"
