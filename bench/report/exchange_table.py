"""Tables of what exchanges cost: every message, who is fastest from how many tokens on, what is modelled and how well."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from bench.collective import OPERATIONS, CollectiveModel, Kind, Reading, Row, Way, fit_all, readings
from bench.grid import Column, Grid
from bench.lone import Lone
from bench.record import Trial
from bench.report.table import NOT_MEASURED, micros, spread
from dcp_core.memory import format_size
from dcp_core.settings import ExchangeName

BOTH = "both"
"""A gather and a combine: what choosing an exchange chooses."""


class Place(NamedTuple):
    """What exchanges are compared at: one operation, timed in one way, in groups of one size, for one kind of row."""

    operation: str
    way: Way
    dcp: int
    row: Row


def exchange_grids(trials: Iterable[Trial]) -> list[Grid]:
    """Return a table of every gather and combine that was measured between real ranks, the fastest from where on, and models."""
    found = readings(trials)
    if not found:
        return []
    grids = [_messages(place, group) for place, group in _places(found).items()]
    for way in dict.fromkeys(reading.kind.way for reading in found):
        mine = [reading for reading in found if reading.kind.way == way]
        grids.append(_fastest(mine, way))
        if models := fit_all(mine):
            grids.append(_models(models, way))
    return grids


def readings_json(trials: Iterable[Trial]) -> list[dict[str, object]]:
    """Return every gather and combine that was measured between real ranks, for machines."""
    return [
        {
            "operation": one.operation,
            "exchange": str(one.kind.exchange),
            "dcp": one.kind.dcp,
            "row": one.kind.row._asdict(),
            "timed": way_name(one.kind.way),
            "tokens": one.tokens,
            "wire_bytes": one.wire_bytes,
            "slowest_us": {"median": one.time_us.median, "low": one.time_us.low, "high": one.time_us.high},
            "pure_us": one.pure_us,
            "skew_us": one.skew_us,
            "bus_gb_per_s": one.bus_gb_per_s,
            "link_share": one.link_share,
            "variant": one.variant,
        }
        for one in readings(trials)
    ]


def way_name(way: Way) -> str:
    """Return where and how times were taken in words: ``NVIDIA H200, in CUDA graphs``."""
    device = dict(way.machine).get("device_name", "unknown")
    return ", ".join([device, *([how] if (how := manner_name(way)) else [])])


def manner_name(way: Way) -> str:
    """Return how times were taken in words, wherever that was; empty where there is one manner only."""
    unusual = {
        "in CUDA graphs": way.timer == "cuda_graph_events",
        "eager": not way.graphs,
        "warm": not way.cold,
        f"{way.calls} calls to a sample": way.calls > 1,
    }
    return ", ".join(word for word, holds in unusual.items() if holds and way.timer.startswith("cuda"))


def changes(found: Iterable[Reading], place: Place) -> list[tuple[int, ExchangeName | None]]:
    """Return which exchange is fastest from how many tokens on, over the sizes at which every exchange was measured.

    One leads once it is told to be faster than every other, and goes on leading until another is told to be faster than it.
    None where nobody leads.
    """
    leads: list[tuple[int, ExchangeName | None]] = []
    leader: ExchangeName | None = None
    for tokens, times in sorted(_times(found, place).items()):
        best, *others = sorted(times, key=lambda exchange: times[exchange].median)
        if all(times[best].is_faster(times[other]) for other in others):
            leader = best
        elif leader is not None and times[best].is_faster(times[leader]):
            leader = None
        if not leads or leads[-1][1] is not leader:
            leads.append((tokens, leader))
    return leads


def leader_name(exchange: ExchangeName | None) -> str:
    """Return the exchange that leads in words, or that none does."""
    return exchange or "level"


def break_even(found: Sequence[Reading], place: Place) -> str:
    """Say in words which exchange is fastest from how many tokens on, and where they are level: none is told to be."""
    leads = changes(found, place)
    if not leads:
        return "not measured for the same tokens"
    if len(leads) == 1:
        return f"{leader_name(leads[0][1])} at every size"
    return f"{', '.join(f'{leader_name(exchange)} from {tokens}' for tokens, exchange in leads)} tokens on"


def places_of(found: Iterable[Reading]) -> list[Place]:
    """Return every place of some readings, an operation's own before those of both."""
    places = dict.fromkeys(Place(one.operation, one.kind.way, one.kind.dcp, one.kind.row) for one in found)
    return [*places, *dict.fromkeys(place._replace(operation=BOTH) for place in places)]


def _times(found: Iterable[Reading], place: Place) -> dict[int, dict[ExchangeName, Lone]]:
    """Return the fastest time of each exchange by tokens, both operations added up if asked, where all of the place have one."""
    operations = OPERATIONS if place.operation == BOTH else (place.operation,)
    best: dict[tuple[int, ExchangeName], dict[str, Reading]] = defaultdict(dict)
    for reading in found:
        if (reading.kind.way, reading.kind.dcp, reading.kind.row) != place[1:] or reading.operation not in operations:
            continue
        known = best[reading.tokens, reading.kind.exchange]
        before = known.get(reading.operation)
        if before is None or reading.time_us.median < before.time_us.median:
            known[reading.operation] = reading
    whole = {key: parts for key, parts in best.items() if len(parts) == len(operations)}
    exchanges = {exchange for _, exchange in whole}
    times: dict[int, dict[ExchangeName, Lone]] = defaultdict(dict)
    for (tokens, exchange), parts in whole.items():
        lone = (Lone.of(part.time_us, part.trial, correlated=part.correlated) for part in parts.values())
        times[tokens][exchange] = Lone.together(lone)
    return {tokens: each for tokens, each in times.items() if each.keys() == exchanges}


def _places(found: Iterable[Reading]) -> Mapping[Place, list[Reading]]:
    groups: dict[Place, list[Reading]] = defaultdict(list)
    for one in found:
        groups[Place(one.operation, one.kind.way, one.kind.dcp, one.kind.row)].append(one)
    return groups


def _messages(place: Place, found: Sequence[Reading]) -> Grid:
    columns = (
        Column("tokens", right=True),
        Column("via"),
        Column("received", right=True),
        Column("slowest µs", right=True),
        Column("95%", right=True),
        Column("pure µs", right=True),
        Column("skew µs", right=True),
        Column("GB/s", right=True),
        Column("of link", right=True),
    )
    ordered = sorted(found, key=lambda one: (one.tokens, one.time_us.median))
    firsts = {one.tokens: index for index, one in reversed(list(enumerate(ordered)))}
    title = f"{place.operation}, dcp {place.dcp}, rows of {place.row}: {way_name(place.way)}"
    return Grid(title, columns, tuple(map(_message, ordered)), frozenset(firsts.values()), footnotes=_variants(ordered))


def _variants(found: Sequence[Reading]) -> tuple[str, ...]:
    """Say which way an exchange that has several took at which sizes."""
    sizes: dict[tuple[str, str], set[int]] = defaultdict(set)
    for one in found:
        if one.variant:
            sizes[str(one.kind.exchange), one.variant].add(one.tokens)
    return tuple(
        f"{exchange} in {variant} at {', '.join(map(str, sorted(tokens)))} tokens."
        for (exchange, variant), tokens in sizes.items()
    )


def _message(one: Reading) -> tuple[str, ...]:
    return (
        str(one.tokens),
        str(one.kind.exchange),
        format_size(one.wire_bytes),
        micros(one.time_us.median),
        spread(one.time_us),
        NOT_MEASURED if one.skew_us is None else micros(one.pure_us),
        NOT_MEASURED if one.skew_us is None else micros(one.skew_us),
        f"{one.bus_gb_per_s:.3g}",
        NOT_MEASURED if one.link_share is None else f"{one.link_share:.0%}",
    )


def _fastest(found: Sequence[Reading], way: Way) -> Grid:
    columns = (Column("operation"), Column("dcp"), Column("row", wrap=True), Column("fastest", wrap=True))
    rows = tuple(
        (place.operation, str(place.dcp), str(place.row), break_even(found, place)) for place in places_of(found)
    )
    note = "Over sizes that every exchange was measured at; a lead changes where two are told apart; level where none leads."
    return Grid(f"Fastest exchange by tokens: {way_name(way)}", columns, rows, footnotes=(note,))


def _models(models: Sequence[CollectiveModel], way: Way) -> Grid:
    columns = (
        Column("via"),
        Column("operation"),
        Column("dcp"),
        Column("row", wrap=True),
        Column("latency µs", right=True),
        Column("GB/s", right=True),
        Column("sizes", right=True),
        Column("between", right=True),
        Column("beyond", right=True),
        Column("mean", right=True),
    )
    rows = tuple(_model(model, model.kind) for model in models)
    notes = (
        "Between the sizes measured the line bends to go through them; no bandwidth (–): more bytes took no longer.",
        "Errors of sizes predicted from the others: worst between them, worst beyond them, mean of all.",
    )
    return Grid(f"Modelled as latency + bytes received / bandwidth: {way_name(way)}", columns, rows, footnotes=notes)


def _model(model: CollectiveModel, kind: Kind) -> tuple[str, ...]:
    return (
        str(kind.exchange),
        model.operation,
        str(kind.dcp),
        str(kind.row),
        micros(model.latency_us),
        NOT_MEASURED if math.isinf(model.bytes_per_us) else f"{model.bytes_per_us / 1e3:.3g}",
        str(len(model.curve.shares)),
        f"{model.between_error:.0%}",
        f"{model.beyond_error:.0%}",
        f"{model.mean_error:.0%}",
    )
