"""A recommendation in words and as tables: the answer first, then what it rests on. Standard library only."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

from bench.grid import Column, Grid
from bench.recommend.decision import Decision, Option, Origin, Part, Standing
from bench.recommend.recommend import Answer, Recommendation, Room, Why
from bench.recommend.steptime import Span
from bench.record import Label
from bench.report.style import duration
from bench.report.style import tokens as short
from bench.report.table import NOT_MEASURED, all_layers, counted, exchange_of, kernels_of, micros
from dcp_core.layout import DcpLayout, IllegalLayout
from dcp_core.memory import format_size
from dcp_core.shapes import ModelShape, Workload

LONGEST = 44
"""Characters of a batch in a sentence."""


def paragraph(found: Recommendation) -> str:
    """Return the answer, and what makes it one, in a few sentences."""
    answer = found.answer
    return " ".join([_headline(found, answer), *_times(found), *_capacity(found, answer), *_kept(found, answer)])


def options_grid(found: Recommendation) -> Grid:
    """Return what each option takes, batch by batch: as vLLM runs it, and as the profile chose where that differs."""
    headings = ("batch", "dcp", "run by", "path", "kernel", "via", "step µs", "exchange µs", "all layers", "label")
    columns = tuple(
        Column(
            heading,
            right=heading in ("step µs", "exchange µs", "all layers"),
            wrap=heading in ("batch", "kernel", "label"),
        )
        for heading in headings
    )
    rows = [row for index, _ in enumerate(found.traffic.batches) for row in _rows(found, index)]
    notes = [
        f"Step: one layer's attention. {all_layers(found.shape.layers).capitalize()}: exchange included.",
        *exchange_notes([decision for decision in (found.engine, found.tuned) if decision]),
        *_server_notes(found),
        *_model_notes(found),
    ]
    title = f"{found.shape.name}, tp {found.tp}: attention of one rank"
    return Grid(title, columns, tuple(rows), footnotes=tuple(notes))


def room_grid(found: Recommendation) -> Grid:
    """Return the KV capacity of each legal dcp size."""
    columns = tuple(
        Column(heading, right=True)
        for heading in ("dcp", "KV tokens", f"requests of {short(found.traffic.length)}", "beside the cache")
    )
    rows = [
        (
            str(dcp),
            f"{room.memory.tokens:,}",
            f"{room.requests(found.traffic):,}",
            format_size(room.memory.beside),
        )
        for dcp, room in found.rooms.items()
    ]
    note = f"{room_note(found.rooms)} Beside the cache: FlashInfer's workspace and wrappers, exchange buffers."
    return Grid("What fits", columns, tuple(rows), footnotes=(note,))


def room_note(rooms: Mapping[int, Room]) -> str:
    """Say in how much memory so much fits."""
    left = "before weights, which were not told (--weights)" if rooms[1].upper else "that weights leave"
    return f"In {format_size(rooms[1].memory.budget)} of each GPU, {left}."


def changes(found: Recommendation) -> list[str]:
    """Return what could change the answer, a sentence each."""
    sentences = [*_break_evens(found), *_crossing(found), *_disagreement(found), *_tuned(found), *_unmeasured(found)]
    if far := _beyond(found):
        sentences.append(f"Times extrapolated {far} settle nothing: measure them with {tune_command(found)}.")
    if _is_wide(found):
        effect = "may settle it" if found.answer.why is Why.OPEN else "would narrow the bracket"
        sentences.append(f"The exchange, measured between real ranks, {effect}: {tune_command(found, ranks=True)}.")
    return sentences


def tune_command(found: Recommendation, *, ranks: bool = False) -> str:
    """Return the command that measures what is not known here."""
    dcps = [dcp for dcp in found.rooms if dcp > 1]
    batches = " ".join(f"--batch {batch}" for batch, _ in found.traffic.batches if len(str(batch)) <= LONGEST)
    before = f"--ranks {max(dcps)} " if ranks and dcps else ""
    if not batches:  # too long to type
        return f"'dcpbench {before}tune mine.toml', which --sweep mine.toml writes here"
    sizes = ",".join(map(str, found.rooms))
    exchange = " --exchange ag_rs,a2a,direct" if ranks else ""
    return f"'dcpbench {before}tune --model {found.model} --tp {found.tp} --dcp {sizes}{exchange} {batches}'"


def _headline(found: Recommendation, answer: Answer) -> str:
    what = _traffic(found)
    sizes = _sizes(answer.between)
    advice = "Leave DCP off" if answer.dcp == 1 else f"Run dcp {answer.dcp}"
    timed = "timed size" if found.unmeasured else "size"
    match answer.why:
        case Why.ONLY:
            return leave_off(found.shape, found.tp)
        case Why.FASTEST:
            reason = (
                "whatever the exchange costs within its bracket" if _is_wide(found) else "by more than is uncertain"
            )
            fastest = f"fastest of the {timed}s" if found.unmeasured else "fastest"
            return f"{advice}: it is the {fastest} for {what}, {reason}."
        case Why.FITS | Why.MOST:
            holds = "may hold" if found.rooms[1].upper else "holds"
            holds = f"{holds} {_load(found)}" if answer.why is Why.FITS else f"holds the most of {_load(found)}"
            which = "what" if len(found.fitting) == 1 else f"the fastest {timed} that"
            return f"{advice}: it is {which} {holds}{_beside(found, answer)}."
        case Why.MAY_KEEP:
            those = "" if len(found.fitting) == len(found.rooms) else " of those that hold as many requests"
            return f"{advice}: it is the one {timed}{those} that may keep {_limit(found)} with {what}."
        case Why.OPEN:
            return (
                f"It depends on exchanges of which no more than a bracket is known here: {sizes} are not told apart for {what}. "
                f"{advice} until they are."
            )
        case Why.LEVEL if far := _beyond(found):
            return (
                f"{advice}, as it seems: {sizes} are not told apart for {what}, of which times are extrapolated {far}."
            )
        case Why.LEVEL:
            return f"{advice}, as it seems: {sizes} are not told apart for {what} within what was measured or modelled."
        case Why.UNKNOWN:
            near = what if len(found.traffic.batches) == 1 else f"all of {what}"
            missing = [1] if found.decision is None else [dcp for dcp in answer.between if dcp in found.unmeasured]
            were = "was" if len(missing) == 1 else "were"
            return f"{advice} until more is known: {_sizes(missing)} {were} not measured near {near}, and nothing is compared."


def _sizes(dcps: Collection[int], conjunction: str = "and") -> str:
    *others, last = (f"dcp {dcp}" for dcp in dcps)
    return f"{', '.join(others)} {conjunction} {last}" if others else last


def _beside(found: Recommendation, answer: Answer) -> str:
    """Say of the one size that holds as many requests as any what its speed is, unless that is not told apart."""
    if len(found.fitting) > 1:
        return ""
    if answer.dcp in found.unmeasured:
        return ", and nothing is known of its speed"
    beaten = found.decision and answer.dcp not in {one.layout.dcp for one in found.decision.unbeaten()}
    return ", not what is fastest" if beaten else ""


def _beyond(found: Recommendation) -> str:
    """Say how far beyond what was measured the batches lie; nothing where they do not."""
    far = found.decision.beyond if found.decision else 0.0
    return f"{far:.1f} doublings beyond what was measured" if far else ""


def _is_wide(found: Recommendation) -> bool:
    """Tell whether an exchange is a bracket with two ends."""
    options = found.decision.options if found.decision else ()
    spans = (part.exchange.span for one in options if one.is_bracketed for part in one.parts)
    return any(span.low_us < span.high_us for span in spans)


def leave_off(shape: ModelShape, tp: int) -> str:
    """Say of a model for which only dcp 1 is legal why that is."""
    try:
        DcpLayout(tp, 2).check(shape)
    except IllegalLayout as error:
        return f"Leave DCP off: {str(error).partition(': ')[2]}."
    return f"Leave DCP off: {shape.name} takes no other size at tp {tp}."


def _traffic(found: Recommendation) -> str:
    batches = found.traffic.batches
    if len(batches) == 1:
        return clipped(batches[0][0])
    return f"these {len(batches)} batches"


def _load(found: Recommendation) -> str:
    """Return what is to be held at once."""
    batches, traffic = found.traffic.batches, found.traffic
    return clipped(batches[0][0]) if len(batches) == 1 else f"{traffic.requests:,} requests of {short(traffic.length)}"


def _unit(found: Recommendation) -> str:
    return "token" if all(batch.is_decode for batch, _ in found.traffic.batches) else "step"


def _mean(found: Recommendation) -> str:
    return "" if len(found.traffic.batches) == 1 else " on average"


def _limit(found: Recommendation) -> str:
    """Return the time asked for, in words."""
    return f"{duration(found.slo_us or 0)} of attention per {_unit(found)}{_mean(found)}"


def _times(found: Recommendation) -> Iterator[str]:
    """Say what a step takes with dcp 1, and what each larger size gains or loses."""
    decision = found.decision
    if decision is None:
        return
    weight = sum(part.weight for part in decision.base.parts)
    layers = found.shape.layers
    base = decision.base.span.times(1 / weight)
    unit = _unit(found)
    yield f"A step takes {_us(base)}{_mean(found)} per layer with dcp 1 ({labels(decision.base)})."
    for one in decision.options[1:]:
        span, local = one.span.times(1 / weight), one.local.times(1 / weight)
        low, high = base.low_us - span.high_us, base.high_us - span.low_us
        where = ", and where it is not in them" if _is_partly_timed(one) else " and"
        exchange = f"{where} an exchange of {_exchanges(one, weight)}" if one.exchanges else ""
        yield (f"dcp {one.layout.dcp} takes {_us(local)} ({labels(one)}){exchange}: {_gain(low, high, layers, unit)}.")


def _gain(low: float, high: float, layers: int, unit: str) -> str:
    """Say what is gained per layer and per step, or token, between two ends, either of which may be a loss."""
    if low == -math.inf:
        if high <= 0:
            return f"a loss of {micros(0.0 - high)} µs a layer at least"
        return f"a gain of {micros(high)} µs a layer at most"
    if low >= 0:
        return f"{_between(low, high)} µs a layer gained, {_tokens(low, high, layers)} per {unit}"
    if high <= 0:
        return f"{_between(0.0 - high, -low)} µs a layer lost, {_tokens(0.0 - high, -low, layers)} per {unit}"
    return (
        f"between {micros(-low)} µs a layer lost and {micros(high)} gained, {duration(-low * layers)} lost and "
        f"{duration(high * layers)} gained per {unit}"
    )


def _between(low: float, high: float) -> str:
    return micros(low) if micros(low) == micros(high) else f"{micros(low)} to {micros(high)}"


def _tokens(low: float, high: float, layers: int) -> str:
    if high == math.inf:
        return f"{duration(low * layers)} or more"
    one, other = duration(low * layers), duration(high * layers)
    return one if one == other else f"{one} to {other}"


def _capacity(found: Recommendation, answer: Answer) -> Iterator[str]:
    """Say how many requests each size holds: its reason to be where it is not faster."""
    rooms, wanted, size = found.rooms, found.traffic.requests, short(found.traffic.length)
    bound = "at most " if rooms[1].upper else ""
    held = ", ".join(f"{room.requests(found.traffic):,} with dcp {dcp}" for dcp, room in rooms.items())
    most = max(rooms)
    if answer.overfull:
        some = (
            f"A request of {size} does not fit" if wanted == 1 else f"{wanted:,} requests of {size} do not fit at once"
        )
        yield f"{some} with any size: {bound}{held}."
    elif most > 1:
        ratio = rooms[most].memory.tokens / max(1, rooms[1].memory.tokens)
        yield f"dcp {most} holds {ratio:.1f} times the KV tokens; of requests of {size}, {bound}{held}."


def _kept(found: Recommendation, answer: Answer) -> Iterator[str]:
    """Say whether the time asked for is kept, and by which of the sizes that were not told apart."""
    if found.slo_us is None:
        return
    options = found.decision.options if found.decision else ()
    timed = {one.layout.dcp: one for one in options if one.layout.dcp in found.fitting}
    if answer.late:
        those = "" if len(found.fitting) == len(found.rooms) else " that holds as many requests"
        surely = len(timed) == len(found.fitting) and all(one.misses(found.limit_us) for one in timed.values())
        yield f"No size{those} {'keeps' if surely else 'is known to keep'} {_limit(found)}."
        return
    kept = [dcp for dcp in answer.between if dcp in timed and timed[dcp].keeps(found.limit_us)]
    if len(kept) == len(answer.between):
        yield f"{_sizes(kept)} {'keeps' if len(kept) == 1 else 'keep'} {_limit(found)}."
    else:
        are = "is" if len(kept) == 1 else "are"
        yield f"Of {_sizes(answer.between)}, only {_sizes(kept)} {are} known to keep {_limit(found)}."


def _rows(found: Recommendation, index: int) -> Iterator[tuple[str, ...]]:
    batch = clipped(found.traffic.batches[index][0], 24)
    for dcp in found.rooms:
        seen: Part | None = None
        for name, decision in (("vLLM", found.engine), ("tuned", found.tuned)):
            part = _part(decision, dcp, index)
            if part and not (seen and seen.settings == part.settings):
                yield (batch, *_cells(found, dcp, name, part))
                seen = part


def _part(decision: Decision | None, dcp: int, index: int) -> Part | None:
    if decision is None:
        return None
    return next((one.parts[index] for one in decision.options if one.layout.dcp == dcp), None)


def _cells(found: Recommendation, dcp: int, name: str, part: Part) -> tuple[str, ...]:
    step, layers = part.step, found.shape.layers
    # What is bracketed is told by its ends, what is not by its median.
    ends = (part.span.low_us, part.span.high_us) if part.exchange.count else (step.span.median_us,) * 2
    return (
        str(dcp),
        name,
        str(step.settings.path),
        kernels_of(step.settings),
        NOT_MEASURED if part.via is None else exchange_of(part.settings),
        micros(step.span.median_us),
        _bracket(part),
        _tokens(*ends, layers),
        str(step.label),
    )


def _bracket(part: Part) -> str:
    if not part.exchange.count:
        return "in it" if part.exchange.origin is Origin.MEASURED else NOT_MEASURED
    return f"{_range(part.exchange.span)} {part.exchange.origin}"


def _range(span: Span) -> str:
    if span.high_us == math.inf:
        return f"{span.low_us:.0f} or more"
    low, high = f"{span.low_us:.0f}", f"{span.high_us:.0f}"
    return low if low == high else f"{low} to {high}"


def _exchanges(one: Option, weight: float) -> str:
    total = Span(0.0, 0.0, 0.0)
    for part in one.parts:
        total = total + part.exchange.span.times(part.weight / weight)
    lacking = [part.exchange for part in one.parts if part.exchange.count]
    words = sorted({str(each.by) for each in lacking if each.by}) + sorted({str(each.origin) for each in lacking})
    return f"{_range(total)} µs ({', '.join(words)})"


def exchange_notes(decisions: Iterable[Decision]) -> list[str]:
    """Say where exchanges come from that were not timed with their steps."""
    origins = {part.exchange.origin for decision in decisions for one in decision.options for part in one.parts}
    notes = {
        Origin.ASSUMED: "Exchange assumed where it was not measured on this machine: from nothing, all of it hidden, to "
        "40 µs and 27 GB/s a peer, more than any step between two H200s or H100s on NVLink took (results/reference).",
        Origin.GIVEN: "Exchange as given by --exchange-us.",
        Origin.UNKNOWN: "Nobody measured an exchange on this GPU, and nothing is assumed: give --exchange-us, or measure it.",
        Origin.MODELLED: "Exchange modelled from messages measured between real ranks of this machine: bracketed by the model's "
        "worst error on sizes left out, and in a larger group than was measured by all peers at once and one after another.",
    }
    return [text for origin, text in notes.items() if origin in origins]


def _server_notes(found: Recommendation) -> list[str]:
    options = found.engine.options if found.engine else ()
    if any(len({part.via for part in one.parts if part.via}) > 1 for one in options):
        return [
            "vLLM's times are each with the quicker exchange of its two, of which a server has one for all batches."
        ]
    return []


def _model_notes(found: Recommendation) -> list[str]:
    steps = [
        part.step
        for decision in (found.engine, found.tuned)
        if decision
        for one in decision.options
        for part in one.parts
        if part.step.label is Label.MODELLED
    ]
    if not steps:
        return []
    errors = sorted(step.error for step in steps)
    within = f"{errors[-1]:.0%}" if errors[0] == errors[-1] else f"{errors[0]:.0%} to {errors[-1]:.0%}"
    basis = sorted({clipped(batch, 24) for step in steps for batch in step.basis})
    others = f" and {len(basis) - 8} more" if len(basis) > 8 else ""
    far = max(step.beyond for step in steps)
    out = f" Up to {far:.1f} doublings beyond what was measured nothing is known of the error." if far else ""
    return [f"Modelled from {', '.join(basis[:8])}{others}: left out, these were met within {within}.{out}"]


def _break_evens(found: Recommendation) -> Iterator[str]:
    """Say what an exchange may cost, by the medians of the steps: how far these are certain is not in it."""
    decision = found.decision
    if decision is None:
        return
    batches = len(found.traffic.batches)
    over = "" if batches == 1 else f" over these {batches} batches"
    for one in decision.options[1:]:
        even = one.break_even_us(decision.base)
        if even is None:
            continue
        untimed = " that was not timed with its step" if _is_partly_timed(one) else ""
        if even <= 0:
            yield f"By the medians dcp {one.layout.dcp} loses to dcp 1{over} even where an exchange{untimed} costs nothing."
        else:
            yield (
                f"By the medians dcp {one.layout.dcp} is faster than dcp 1{over} where an exchange (gather and combine)"
                f"{untimed} costs less than {micros(even)} µs per layer."
            )


def _is_partly_timed(one: Option) -> bool:
    """Tell whether some of an option's steps were timed with their exchange, and others lack theirs."""
    return bool(one.exchanges) and any(part.step.exchange_timed for part in one.parts)


def _crossing(found: Recommendation) -> Iterator[str]:
    """Say with how many requests each size pays, other things equal."""
    for dcp in list(found.rooms)[1:]:
        standings = {
            requests: one.against(decision.base)
            for requests, decision in found.crossing
            for one in decision.options
            if one.layout.dcp == dcp
        }
        if not standings:
            continue
        surely = [requests for requests, standing in standings.items() if standing is Standing.FASTER]
        perhaps = [requests for requests, standing in standings.items() if standing is not Standing.SLOWER]
        asked, last = list(standings), counted(max(standings), "request")
        if not perhaps:
            yield f"With this context dcp {dcp} is not faster than dcp 1 up to {last}."
        elif perhaps == surely:
            yield f"With this context dcp {dcp} is faster than dcp 1 {_at(surely, asked, 'request')}."
        else:
            told = f"surely is {_at(surely, asked)}" if surely else f"not surely up to {last}"
            yield f"With this context dcp {dcp} may be faster than dcp 1 {_at(perhaps, asked, 'request')}, and {told}."


def _at(some: Sequence[int], asked: Sequence[int], noun: str = "") -> str:
    """Return in words which of the ascending numbers that were asked about are meant: ``at 1, 2 and from 16 requests on``."""
    others = [index for index, number in enumerate(asked) if number not in some]
    first = others[-1] + 1 if others else 0
    onwards = asked[first:] if len(asked) - first > 1 else ()
    single = [number for number in some if number not in onwards]
    parts = [f"at {', '.join(map(str, single))}"] if single else []
    if onwards:
        return " and ".join([*parts, f"from {counted(onwards[0], noun) if noun else onwards[0]} on"])
    return f"{parts[0]} {noun if single == [1] else f'{noun}s'}" if noun else parts[0]


def _disagreement(found: Recommendation) -> Iterator[str]:
    """Say which batches speak for another size than the whole does."""
    decision = found.decision
    if decision is None or len(found.traffic.batches) < 2:
        return
    for one in decision.options[1:]:
        standings = [
            Option(one.layout, (part,)).against(Option(decision.base.layout, (base,)))
            for part, base in zip(one.parts, decision.base.parts, strict=True)
        ]
        for standing in (Standing.FASTER, Standing.SLOWER):
            batches = [
                clipped(found.traffic.batches[index][0]) for index, each in enumerate(standings) if each is standing
            ]
            if batches and len(batches) < len(standings):
                yield f"dcp {one.layout.dcp} is {standing} than dcp 1 for {', '.join(batches)}."


def _tuned(found: Recommendation) -> Iterator[str]:
    answer, tuned = found.answer, found.tuned_answer
    if found.engine and found.tuned and answer.between != tuned.between:
        sizes = _sizes(tuned.between, "or")
        yield f"With the settings that the profile chose, which vLLM cannot all run, it would be {sizes}."


def _unmeasured(found: Recommendation) -> Iterator[str]:
    """Say which legal sizes have no part in the answer."""
    if found.decision is None:
        yield f"dcp 1 has no times near enough, so that nothing is compared. Measure them with {tune_command(found)}."
    elif found.unmeasured:
        one = len(found.unmeasured) == 1
        seen = " as vLLM runs it" if found.engine else ""
        yield (
            f"{_sizes(found.unmeasured)} {'is' if one else 'are'} legal here, and {'has' if one else 'have'} no times near "
            f"enough{seen}: left out. Measure {'it' if one else 'them'} with {tune_command(found)}."
        )


def labels(one: Option) -> str:
    """Return the labels of an option's steps, and whether one was extrapolated."""
    return ", ".join([*sorted({str(part.step.label) for part in one.parts}), *(["extrapolated"] if one.beyond else [])])


def clipped(batch: Workload, longest: int = LONGEST) -> str:
    """Return a batch as text, cut where it is long."""
    text = str(batch)
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


def _us(span: Span) -> str:
    return f"{micros(span.median_us)} µs"
