"""A map of answers in words, as tables and as plain data. Standard library only."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from typing import Any

from bench.grid import Column, Grid
from bench.recommend.answer_map import NUMBERS, AnswerMap, Cell
from bench.recommend.recommend import Answer, Why
from bench.record import Label
from bench.report.advice import exchange_notes, room_note
from bench.report.advice_json import answer_json
from bench.report.style import tokens as short
from bench.report.table import NOT_MEASURED, all_layers, counted

_WHY = {Why.FITS: "+", Why.MAY_KEEP: "<", Why.OPEN: "?", Why.LEVEL: "~"}
_OVERFULL, _LATE = "*", "!"
_LABEL = {Label.SIMULATED: "s", Label.MODELLED: "m"}
_PAYS = ("pays_at_best_from", "pays_surely_from")
_BRACKETED, _EXTRAPOLATED, _TUNED, _LEFT_OUT = "b", "x", "t", "u"
_MEANING = {
    "+": "of the sizes that hold all requests",
    "<": "the one that may keep the time asked for",
    "?": "not told apart from those behind it until more than a bracket is known of exchanges",
    "~": "as it seems, not told apart from those behind it within what was measured or modelled",
    _OVERFULL: "no size holds all requests: of those that hold the most",
    _LATE: "not known to keep the time asked for",
    "s": "a step is simulated, one rank by itself without its exchange",
    "m": "a step is modelled from batches near it, or an exchange from messages between real ranks",
    _BRACKETED: "an exchange is a bracket, given or assumed",
    _EXTRAPOLATED: "a step is extrapolated beyond what was measured: how uncertain it is is not known",
    _TUNED: "with the settings that the profile chose, which vLLM cannot all run, the answer would be another",
    _LEFT_OUT: "a legal size has no times near enough and is left out",
}


def headline(found: AnswerMap) -> str:
    """Return in a sentence how many questions have which answer."""
    answers = [cell.found.answer for cell in found.cells.values()]
    sure = Counter(answer.dcp for answer in answers if answer.is_firm)
    parts = [f"{'leave DCP off' if dcp == 1 else f'run dcp {dcp}'} in {number}" for dcp, number in sorted(sure.items())]
    unknown = sum(answer.why is Why.UNKNOWN for answer in answers)
    apart = len(answers) - sum(sure.values()) - unknown
    parts += [f"{apart} not told apart"] if apart else []
    parts += [f"{unknown} not measured near enough"] if unknown else []
    sentence = f"Of {counted(len(answers), 'question')}: {', '.join(parts)}."
    return f"{sentence} Each is what this command answers with that --context and --concurrency."


def cells_grid(found: AnswerMap) -> Grid:
    """Return the answers, a row for each context and a column for each number of requests, each mark explained below."""
    columns = [Column("context", right=True), *(Column(str(requests), wrap=True) for requests in found.concurrencies)]
    rows = [
        (short(context), *(cell_text(found.cells[context, requests]) for requests in found.concurrencies))
        for context in found.contexts
    ]
    marks = {mark for cell in found.cells.values() for mark in (*_standing(cell.found.answer), *_sources(cell))}
    cell = "In a cell: the dcp to run, and what it takes of dcp 1's time in percent, or if it is dcp 1, what the best larger one"
    notes = [
        f"{cell} takes; from … to where that is not sure.",
        *(f"{mark} {meaning}." for mark, meaning in _MEANING.items() if mark in marks),
    ]
    if not marks & {*_LABEL.values(), _BRACKETED}:
        notes.append("All was measured.")
    elif not all(_sources(cell) for cell in found.cells.values()):
        notes.append("Without a letter all was measured.")
    if any(cell.found.answer.why is Why.UNKNOWN for cell in found.cells.values()):
        notes.append(f"{NOT_MEASURED} no times near enough.")
    decisions = [one for cell in found.cells.values() for one in (cell.found.engine, cell.found.tuned) if one]
    title = f"{found.grounds.shape.name}, tp {found.grounds.tp}: which dcp, {_batches(found)}, by context and requests at once"
    return Grid(title, tuple(columns), tuple(rows), footnotes=(*notes, *exchange_notes(decisions)))


def contexts_grid(found: AnswerMap) -> Grid:
    """Return for each context from how many requests on a larger size pays, and how many fit with each."""
    sizes, layers = list(found.grounds.rooms), all_layers(found.grounds.shape.layers)
    columns = ["context", "pays from", *(f"fit with dcp {dcp}" for dcp in sizes)]
    rows = []
    for context in found.contexts:
        fits = found.fits(context)
        even = _pays(*found.pays[context]) if context in found.pays else NOT_MEASURED
        rows.append((short(context), even, *(f"{fits[dcp]:,}" for dcp in sizes)))
    asked = f"of 1, 2, 4 … {NUMBERS[-1]} as far as measured"
    pays = f"Pays: from how many requests on, {asked}, a larger dcp is surely faster than dcp 1 (at best)."
    unknown = [f"A lone {NOT_MEASURED}: none of them was."] if len(found.pays) < len(found.contexts) else []
    return Grid(
        "What pays, and what fits",
        tuple(Column(heading, right=True) for heading in columns),
        tuple(rows),
        footnotes=(pays, *unknown, f"{room_note(found.grounds.rooms)} Fit: the KV cache of {layers}."),
    )


def cell_text(cell: Cell) -> str:
    """Return an answer: ``2 68``, or ``1~2 93…107m``."""
    answer, ratio = cell.found.answer, cell.ratio
    if answer.why is Why.UNKNOWN:
        return "".join([NOT_MEASURED, *_sources(cell)])
    others = ",".join(str(dcp) for dcp in answer.between if dcp != answer.dcp)
    size = f"{answer.dcp}{''.join(_standing(answer))}{others}"
    if ratio is None:
        return "".join([size, *_sources(cell)])
    ends = (ratio.low, ratio.high) if cell.is_between else (ratio.median, ratio.median)
    low, high = (_percent(end) for end in ends)
    return "".join([size, " ", low if low == high else f"{low}…{high}", *_sources(cell)])


def to_json(found: AnswerMap) -> dict[str, Any]:
    """Return everything as plain data."""
    return {
        "model": found.grounds.shape.name,
        "tp": found.grounds.tp,
        "layers": found.grounds.shape.layers,
        "slo_us": found.grounds.slo_us,
        "text": headline(found),
        "cells": [
            {"context": context, "concurrency": requests, **_cell_json(cell)}
            for (context, requests), cell in found.cells.items()
        ],
        "contexts": [
            {
                "context": context,
                **(dict(zip(_PAYS, found.pays[context], strict=True)) if context in found.pays else {}),
                "fits": {str(dcp): number for dcp, number in found.fits(context).items()},
            }
            for context in found.contexts
        ],
        "weights_taken_off": not found.grounds.rooms[1].upper,
    }


def _cell_json(cell: Cell) -> dict[str, Any]:
    ratio = cell.ratio
    return {
        "batches": [str(batch) for batch, _ in cell.found.traffic.batches],
        "answer": answer_json(cell.found.answer),
        "tuned_answer": answer_json(cell.found.tuned_answer),
        "of_dcp_1": {"dcp": ratio.dcp, "median": ratio.median, "low": ratio.low, "high": ratio.high} if ratio else None,
        "labels": [str(label) for label in cell.labels],
        "exchange_bracketed": cell.is_bracketed,
        "extrapolated": cell.is_extrapolated,
        "unmeasured": list(cell.found.unmeasured),
    }


def _standing(answer: Answer) -> Iterator[str]:
    """Yield the marks of how an answer stands."""
    if answer.why in _WHY:
        yield _WHY[answer.why]
    if answer.overfull:
        yield _OVERFULL
    if answer.late:
        yield _LATE


def _sources(cell: Cell) -> Iterator[str]:
    """Yield the marks of what an answer rests on: none where all was measured."""
    for label in cell.labels:
        if label in _LABEL:
            yield _LABEL[label]
    if cell.is_bracketed:
        yield _BRACKETED
    if cell.is_extrapolated:
        yield _EXTRAPOLATED
    if cell.is_otherwise_tuned:
        yield _TUNED
    if cell.found.unmeasured:
        yield _LEFT_OUT


def _percent(value: float) -> str:
    return "∞" if value == math.inf else f"{100 * value:.0f}"


def _pays(at_best: int | None, surely: int | None) -> str:
    return "not seen" if at_best is None else f"{surely or NOT_MEASURED} ({at_best})"


def _batches(found: AnswerMap) -> str:
    """Return what a cell's batches do, as of one request."""
    batches = next(iter(found.cells.values())).found.traffic.batches
    new = batches[0][0].requests[0].new
    decodes = "decode" if new == 1 else f"{new} new tokens of each"
    return decodes if len(batches) == 1 else f"{decodes}, and with a chunk of {batches[1][0].requests[-1].new} beside"
