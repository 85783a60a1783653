"""Which dcp to run: what trials say of each model at the same number of GPUs, in words and as a table. Standard library only."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from bench.grid import Column, Grid
from bench.profile.entry import Ratio
from bench.recommend.decision import Decision, Option, Origin
from bench.recommend.decision_map import Deployment, Map, Phase, Row, batches_of, is_served, maps_of, unlike_of
from bench.record import Measured, Trial, timed_alike
from bench.report.choices import shown_ratio
from bench.report.decision_map import exchange_notes
from bench.report.style import tokens
from bench.report.table import counted
from dcp_core.layout import DcpLayout, legal_dcps
from dcp_core.memory import KvMemory

MIXED = "mixed batches"
"""Those of unlike requests, which have no context of their own."""
OPEN = "not told apart"
_NOT_TIMED = {
    Origin.ASSUMED: "assumed",
    Origin.GIVEN: "given",
    Origin.UNKNOWN: "unknown",
}


@dataclass(frozen=True, slots=True)
class DcpChoice:
    """What trials say of which dcp to run.

    Args:
        subject: the model, its GPUs and their kind.
        says: a sentence or two for each kind of batch, and what a larger size holds.
        grid: by kind of batch and context; None where no batch was measured with two sizes.
    """

    subject: str
    says: tuple[str, ...]
    grid: Grid | None


@dataclass(frozen=True, slots=True)
class _Cell:
    """One batch: what was decided of it, and its place unless its requests are unlike."""

    decision: Decision
    row: Row | None = None
    context: int | None = None

    @property
    def fastest(self) -> str:
        """The sizes that no other is surely faster than: ``dcp 2``, ``dcp 2 or 4``, or that it may be any."""
        left = self.decision.unbeaten()
        return OPEN if left == self.decision.options else _sizes([one.layout.dcp for one in left], "or")

    @property
    def pays(self) -> bool:
        """Whether some larger size is surely faster than dcp 1."""
        return self.decision.base not in self.decision.unbeaten()

    @property
    def rival(self) -> Option:
        """The best of the larger sizes."""
        larger = [one for one in self.decision.unbeaten() if one.layout.dcp > 1] or self.decision.options[1:]
        return min(larger, key=lambda one: one.span.median_us)

    @property
    def bounds(self) -> tuple[float, float]:
        """The rival's time over dcp 1's at least and at most: below 1 as a whole where the decision says that it is faster."""
        mine, base = self.rival.span, self.decision.base.span
        return _over(mine.low_us, base.high_us), _over(mine.high_us, base.low_us)

    @property
    def ratio(self) -> str:
        """The rival's time over dcp 1's with its interval, or the bracket that it lies in."""
        low, high = self.bounds
        if self.rival.is_bracketed or not low or high == math.inf:
            return _bracket(low, high)
        return shown_ratio(Ratio(self.rival.span.median_us / self.decision.base.span.median_us, low, high))

    @property
    def times(self) -> tuple[float, float]:
        """How many times as long as dcp 1 the rival takes: what was measured, twice, or the bracket that it lies in."""
        if self.rival.is_bracketed:
            return self.bounds
        ratio = _over(self.rival.span.median_us, self.decision.base.span.median_us)
        return ratio, ratio

    @property
    def label(self) -> str:
        """Where the larger sizes' times come from, size by size where that differs."""
        words = {one.layout.dcp: _labels([one]) for one in self.decision.options[1:]}
        if len(set(words.values())) == 1:
            return _labels([self.rival])
        return ", ".join(f"dcp {dcp} {word}" for dcp, word in words.items())


def dcp_choices(trials: Iterable[Trial]) -> list[DcpChoice]:
    """Return what trials say of each model, number of GPUs and machine, see ``maps_of``: that of most batches first."""
    everything = list(trials)
    maps, unlike = maps_of(everything), unlike_of(everything)
    known = [trial for trial in timed_alike(everything) if isinstance(trial.outcome, Measured)]
    sizes: dict[Deployment, set[int]] = {}
    for trial in known:
        sizes.setdefault(Deployment.of(trial), set()).update({trial.case.layout.dcp} if is_served(trial.case) else ())
    batches = batches_of(maps, unlike)
    found = []
    for where in sorted(sizes, key=lambda one: (-batches[one], one.shape.name, one.tp, one.machine)):
        kinds = {one.subject.phase: one for one in maps if one.subject.deployment == where}
        cells = {str(phase): _cells(one) for phase, one in kinds.items()}
        if where in unlike:
            cells[MIXED] = [_Cell(decision) for decision in unlike[where].values()]
        says = _says(where, cells, kinds.get(Phase.DECODE)) if cells else [_why_not(where, sizes[where])]
        grid = _grid(cells) if cells else None
        found.append(DcpChoice(_subject(where), tuple(says), grid))
    return found


def _cells(one: Map) -> list[_Cell]:
    """Return a map's batches by context, then by new tokens and requests."""
    cells = [_Cell(decision, row, context) for (row, context), decision in one.cells.items()]
    return sorted(cells, key=lambda cell: (cell.context or 0, cell.row))


def _says(where: Deployment, kinds: Mapping[str, Sequence[_Cell]], decodes: Map | None) -> Iterator[str]:
    larger = sorted({one.layout.dcp for cells in kinds.values() for cell in cells for one in cell.decision.options[1:]})
    best = _sizes(larger, "and") if len(larger) == 1 else "the best larger dcp"
    for kind, cells in kinds.items():
        pays = _from_requests(decodes) if decodes and kind == Phase.DECODE else _throughout(cells)
        labels = _labels(cell.rival for cell in cells)
        yield f"{kind.capitalize()}: {_winners(cells)}; {best} takes {_times(cells)} ({labels}){pays}."
    memories = [KvMemory(where.shape, DcpLayout(where.tp, dcp)) for dcp in (1, *larger)]
    times = [f"{memories[0].bytes_per_token / memory.bytes_per_token:g}" for memory in memories[1:]]
    hold = "holds" if len(larger) == 1 else "hold"
    yield f"{_sizes(larger, 'and')} {hold} {_listed(times, 'and')} times the KV tokens of dcp 1."


def _winners(cells: Sequence[_Cell]) -> str:
    """Say in how many batches which size is fastest: ``dcp 2 is fastest in 15 of 24 batches, dcp 1 in 9``."""
    counts = Counter(cell.fastest for cell in cells)
    (first, count), *others = sorted(counts.items(), key=lambda item: (item[0] == OPEN, -item[1]))
    verb = f"sizes are {OPEN}" if first == OPEN else f"{first} is fastest"
    if not others:
        return f"{verb} in {'the one batch' if count == 1 else f'all {count} batches'} measured"
    return f"{verb} in {count} of {len(cells)} batches, {', '.join(f'{name} in {number}' for name, number in others)}"


def _from_requests(decodes: Map) -> str:
    """Say from how many requests on some larger size is faster, by context; nothing where it is always, or never."""
    found = {context: decodes.break_even(context) for context in decodes.contexts}
    paying = [(surely, tokens(context)) for context, (_, surely) in found.items() if surely]
    if not paying or all(cell.pays for cell in _cells(decodes)):
        return ""
    (requests, first), *others = paying
    more = "".join(f", {requests} at {context}" for requests, context in others)
    perhaps = [tokens(context) for context, (at_best, surely) in found.items() if at_best and not surely]
    never = [tokens(context) for context, (at_best, _) in found.items() if not at_best]
    more += f", perhaps at {_listed(perhaps, 'and')}" if perhaps else ""
    more += f", not at {_listed(never, 'or')}" if never else ""
    return f" and pays from {counted(requests, 'request')} on at a context of {first}{more}"


def _throughout(cells: Sequence[_Cell]) -> str:
    """Say at which contexts some larger size is faster in every batch; nothing where that is so at all of them, or none."""
    contexts = dict.fromkeys(cell.context for cell in cells if cell.context is not None)
    paying = [one for one in contexts if all(cell.pays for cell in cells if cell.context == one)]
    if not paying or len(paying) == len(contexts):
        return ""
    return f" and pays in every batch at a context of {_listed(list(map(tokens, paying)), 'or')}"


def _ends(cells: Sequence[_Cell]) -> tuple[_Cell, _Cell]:
    """Return where the best larger size takes least of dcp 1's time at most, and where it takes most."""
    ordered = sorted(cells, key=lambda cell: cell.bounds[::-1])
    return ordered[0], ordered[-1]


def _why_not(where: Deployment, sizes: Collection[int]) -> str:
    """Say why nothing can be told, and what to measure."""
    legal = legal_dcps(where.shape, where.tp)
    if not legal or not sizes:
        return "No server starts with a layout that was measured here, so there is no dcp to choose."
    if legal == [1]:
        return "No server runs a larger dcp than 1 here."
    ask = f"measure the same batches with --dcp {','.join(map(str, legal))} to learn which is fastest"
    if len(sizes) == 1:
        return f"Only {_sizes(sizes, 'and')} was measured: {ask}."
    return f"No batch was measured with dcp 1 and with a larger one: {ask}."


def _grid(kinds: Mapping[str, Sequence[_Cell]]) -> Grid:
    """Return a line for each kind of batch, context and label: what is fastest, and the best larger size over dcp 1."""
    columns = (
        Column("batches, context", wrap=True),
        Column("fastest, by requests", wrap=True),
        Column("best larger / dcp 1", wrap=True),
        Column("label", wrap=True),
    )
    rows: list[tuple[str, ...]] = []
    gains = set[int]()
    for kind, cells in kinds.items():
        groups: dict[tuple[int | None, str], list[_Cell]] = defaultdict(list)
        for cell in cells:
            groups[cell.context, cell.label].append(cell)
        for (context, label), group in groups.items():
            place = kind if context is None else f"{kind}, {tokens(context)}"
            if all(cell.pays for cell in group):
                gains.add(len(rows))
            rows.append((place, _by_requests(kind, group), _range(group), label))
    origins = {
        part.exchange.origin
        for cells in kinds.values()
        for cell in cells
        for one in cell.decision.options
        for part in one.parts
    }
    return Grid(
        "Which dcp, by kind of batch and context",
        columns,
        tuple(rows),
        frozenset(gains),
        tuple(exchange_notes(origins)),
    )


def _by_requests(kind: str, cells: Sequence[_Cell]) -> str:
    """Say which size is fastest from which batch to which: ``dcp 1: 1 to 8; dcp 2: 16 to 64``; of unlike ones, how often."""
    counts = Counter(cell.fastest for cell in cells)
    if len(counts) == 1:
        return cells[0].fastest
    if kind == MIXED:
        return "; ".join(f"{name}: {counted(count, 'batch', 'batches')}" for name, count in counts.items())
    runs = [(name, [_row(cell.row) for cell in run]) for name, run in groupby(cells, key=lambda cell: cell.fastest)]
    return "; ".join(f"{name}: {' to '.join(dict.fromkeys((rows[0], rows[-1])))}" for name, rows in runs)


def _row(row: Row | None) -> str:
    if row is None:
        raise ValueError("a batch of unlike requests has no row")
    return str(row.requests) if row.new == 1 else f"{row.requests}×{tokens(row.new)}"


def _range(cells: Sequence[_Cell]) -> str:
    best, worst = _ends(cells)
    if best is not worst and any(cell.rival.is_bracketed for cell in cells):
        return _bracket(min(cell.bounds[0] for cell in cells), worst.bounds[1])
    return best.ratio if best is worst else f"{best.ratio} to {worst.ratio}"


def _times(cells: Sequence[_Cell]) -> str:
    """Say how many times as long as dcp 1 the best larger size takes, least to most: intervals are left to the table."""
    low, high = min(cell.times[0] for cell in cells), max(cell.times[1] for cell in cells)
    if high == math.inf:
        return f"{low:.2f} times dcp 1's time or more"
    return f"{' to '.join(dict.fromkeys((f'{low:.2f}', f'{high:.2f}')))} times dcp 1's time"


def _bracket(low: float, high: float) -> str:
    return f"{low:.2f} or more" if high == math.inf else f"{low:.2f} … {high:.2f}"


def _labels(options: Iterable[Option]) -> str:
    """Say where times come from, each label once: ``simulated, exchange assumed`` also where some steps exchange nothing."""
    found: dict[str, dict[str, None]] = {}
    for one in options:
        part = one.parts[0]
        not_timed = found.setdefault(part.step.label, {})
        if part.exchange.origin in _NOT_TIMED:
            not_timed[_NOT_TIMED[part.exchange.origin]] = None
    return " or ".join(f"{label}, exchange {' or '.join(words)}" if words else label for label, words in found.items())


def _subject(where: Deployment) -> str:
    return f"{where.shape.name}, tp {where.tp}, on {where.device}"


def _sizes(sizes: Iterable[int], last: str) -> str:
    return f"dcp {_listed(list(map(str, sorted(sizes))), last)}"


def _listed(words: Sequence[str], last: str) -> str:
    *some, end = words
    return f"{', '.join(some)} {last} {end}" if some else end


def _over(time_us: float, other_us: float) -> float:
    return time_us / other_us if other_us else math.inf
