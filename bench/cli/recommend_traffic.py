"""The traffic that ``dcpbench recommend`` is asked about: typed, or replayed from a trace; and a sweep of its batches."""

from __future__ import annotations

from pathlib import Path

from bench.cli.recommend_options import Asked
from bench.errors import UsageError
from bench.files import write_whole
from bench.recommend.batches import Tally
from bench.recommend.evidence import Evidence, step_times
from bench.recommend.recommend import Recommendation, Room, Traffic
from bench.recommend.trace_file import read_trace
from bench.recommend.traffic import Scheduler, Step, replay
from bench.report.table import counted
from dcp_core.layout import DcpLayout
from dcp_core.memory import parse_tokens
from dcp_core.shapes import ModelShape, Request, Workload


def served_by(
    asked: Asked, shape: ModelShape, tp: int, evidence: Evidence | None, room: Room
) -> tuple[Traffic, list[str]]:
    """Return the traffic that was asked about, and what to know of it.

    Args:
        evidence: of dcp 1, if there is any, whose times a trace is replayed with.
        room: of dcp 1; where weights were told, its KV cache bounds what is replayed at once.

    Raises:
        ValueError: in a sentence, for what cannot be read.
    """
    if asked.trace is not None:
        if evidence is None:
            raise UsageError(
                "a --trace is replayed with the times of dcp 1, and no profile here has them: give context and concurrency"
            )
        return _replayed(asked, asked.trace, shape, DcpLayout(tp), evidence, room)
    notes = ["The two batches count as much as each other; a --trace would weigh them."] if asked.chunk else []
    (context,), (requests,) = asked.contexts, asked.concurrencies
    return traffic_of(asked, context, requests), notes


def traffic_of(asked: Asked, context: int, requests: int) -> Traffic:
    """Return the traffic of so many requests with so much cached, each with the new tokens that were asked for.

    Raises:
        ValueError: in a sentence, for what no request has.
    """
    new = parse_tokens(asked.new)
    decodes = [Request(new, context + new)] * requests
    batches, longest = [(Workload(tuple(decodes)), 1.0)], new
    if asked.chunk is not None:
        chunk = parse_tokens(asked.chunk)
        batches.append((Workload((*decodes, Request(chunk, context + chunk))), 1.0))
        longest = max(new, chunk)
    return Traffic(tuple(batches), requests, context + longest)


def write_sweep(path: Path, found: Recommendation) -> str:
    """Write a sweep of the traffic's batches over every legal dcp size; return what to do with it.

    Raises:
        StorageError: if the disk does not take it.
    """
    import json

    batches = ",\n    ".join(json.dumps(str(batch)) for batch, _ in found.traffic.batches)
    often = [f"{json.dumps(str(batch))} = {steps:g}" for batch, steps in found.traffic.batches]
    lines = [
        "# The batches that carry the time of some traffic, as 'dcpbench recommend' found them: 'dcpbench tune' takes this file.",
        "",
        f'description = "{counted(len(found.traffic.batches), "batch", "batches")}, every legal dcp"',
        "",
        # As JSON, but that TOML has no pairs of surrogates, and wants DEL escaped.
        f"model = {json.dumps(found.model, ensure_ascii=False)}".replace("\x7f", "\\u007f"),
        f"tp = {found.tp}",
        f"dcp = {list(found.rooms)}",
        'exchange = ["ag_rs", "a2a", "direct"]',
        f"batch = [\n    {batches},\n]",
        "",
        "[often]  # steps of each: what carries most of the time is searched first",
        *often,
        "",
        "[gpu]",
        'kernel = ["fa2", "fa3"]',
        "",
    ]
    write_whole(path, "\n".join(lines).encode("utf-8", "replace"))
    return f"Wrote {path}: 'dcpbench tune {path}' measures these batches."


def _replayed(
    asked: Asked, path: Path, shape: ModelShape, layout: DcpLayout, evidence: Evidence, room: Room
) -> tuple[Traffic, list[str]]:
    arrivals = read_trace(path, unit=asked.trace_unit)
    kv_tokens = None if room.upper else room.memory.tokens
    scheduler = Scheduler(parse_tokens(asked.max_batched_tokens), asked.max_sequences, kv_tokens)
    times = step_times(evidence, layout, engine=True)
    unknown: list[Workload] = []

    def attention_us(workload: Workload) -> float:
        known = times.find(workload)
        if known is not None:
            return known.span.median_us
        unknown.append(workload)
        return times.least_us(workload)

    tally = Tally(attention_us)  # of the time that dcp changes

    def step_s(step: Step) -> float:
        return 1e-6 * (shape.layers * tally.add(step) + asked.rest_us)

    most = max(step.decodes + step.longer for step in replay(arrivals, scheduler, step_s))
    found = tally.carrying()
    mean = sum(one.computed for one in arrivals) // len(arrivals)
    shares = ", ".join(f"{one.share:.0%} {one.workload}" for one in found)
    makes = "makes" if len(arrivals) == 1 else "make"
    steps = f"{counted(len(arrivals), 'request')} {makes} {counted(tally.steps, 'step')} of up to {most:,} at once with dcp 1"
    cost = f"each its attention and {asked.rest_us / 1e3:g} ms (--rest-us)"
    notes = [f"{steps}, {cost}. Batches that stand for them, by their share of attention's time: {shares}."]
    if unknown:
        notes.append(
            f"{counted(len(unknown), 'kind')} of steps beyond what was measured: timed by what their work allows at best."
        )
    return Traffic(tuple((one.workload, float(one.steps)) for one in found), most, mean), notes
