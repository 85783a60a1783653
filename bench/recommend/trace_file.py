"""Traces of requests as people have them: CSV or JSON lines, under the usual names of columns. Standard library only."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from io import StringIO
from pathlib import Path

from bench.files import FileError, read_capped, read_json
from bench.recommend.traffic import MAX_REQUESTS, Arrival

MAX_TRACE_BYTES = 64 << 20
COLUMNS: Mapping[str, tuple[str, ...]] = {
    "arrival": ("arrival", "arrival_time", "arrival_s", "arrived_at", "timestamp", "time", "start_time"),
    "prompt": (
        "prompt",
        "prompt_tokens",
        "prompt_len",
        "input",
        "input_tokens",
        "input_length",
        "input_len",
        "context_tokens",
        "contexttokens",
        "request_tokens",
    ),
    "output": (
        "output",
        "output_tokens",
        "output_length",
        "output_len",
        "completion_tokens",
        "generated_tokens",
        "generatedtokens",
        "response_tokens",
    ),
}
"""What a trace must have, by the names that each goes by; capitals, spaces and hyphens do not matter."""
AS_CSV = "below its headings, as arrival,prompt,output, each line is a request"
UNITS = {"s": 1.0, "ms": 1e-3, "us": 1e-6}


def read_trace(path: Path, *, unit: str = "s") -> tuple[Arrival, ...]:
    """Read a trace: a CSV with a line of column names, or a JSON object a line. The first arrival is at 0 s.

    Args:
        unit: of arrival times that are numbers, of ``UNITS``; dates and times tell by themselves.

    Raises:
        FileError: naming the line, what is wrong with it and what would be right.
    """
    text = read_capped(path, MAX_TRACE_BYTES, "a trace")
    if not text.strip():
        raise FileError(f"{path}: an empty file, where a trace should be: {AS_CSV}")
    rows = _json_rows(text, path) if text.lstrip().startswith("{") else _csv_rows(text, path)
    found: list[tuple[float, int, int]] = []
    for where, row in rows:
        if len(found) == MAX_REQUESTS:
            raise FileError(f"{where}: more than {MAX_REQUESTS:,} requests; give a shorter stretch of the trace")
        found.append(_request(row, where, UNITS[unit]))
    if not found:
        raise FileError(f"{path}: a trace without a request: {AS_CSV}")
    first = min(at_s for at_s, _, _ in found)
    return tuple(Arrival(at_s - first, prompt, output) for at_s, prompt, output in found)


def _csv_rows(text: str, path: Path) -> Iterator[tuple[str, Mapping[str, object]]]:
    reader = csv.reader(StringIO(text, newline=""), strict=True)
    try:
        names = _columns(next(reader, []), f"{path}, line 1")
        for cells in reader:
            where = f"{path}, line {reader.line_num}"
            if cells and len(cells) <= max(names.values()):
                raise FileError(f"{where}: {len(cells)} cells, where line 1 names more columns; give each a cell")
            if cells:
                yield where, {name: cells[place] for name, place in names.items()}
    except csv.Error as error:
        raise FileError(f"{path}, line {reader.line_num}: no CSV: {error}") from None


def _json_rows(text: str, path: Path) -> Iterator[tuple[str, Mapping[str, object]]]:
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            row = read_json(line)
        except FileError as error:
            what = re.sub(r": line 1 (column \d+) .*", r", \1", str(error))  # of this line, not of the file
            raise FileError(f"{where}: no JSON: {what[:80]}") from None
        if not isinstance(row, dict):
            raise FileError(
                f"{where}: a JSON object should stand here, as {{'arrival': 0, 'prompt': 512, 'output': 64}}"
            )
        keys = list(row)
        yield where, {name: row[keys[place]] for name, place in _columns(keys, where).items()}


def _columns(headings: Sequence[str], where: str) -> dict[str, int]:
    """Return where each of ``COLUMNS`` stands."""
    plain = [heading.strip().lower().replace(" ", "_").replace("-", "_") for heading in headings]
    found = {}
    for name, spellings in COLUMNS.items():
        places = [plain.index(spelling) for spelling in spellings if spelling in plain]
        if not places:
            raise FileError(f"{where}: no column for {name}; it may be called {', '.join(spellings)}")
        found[name] = places[0]
    return found


def _request(row: Mapping[str, object], where: str, scale: float) -> tuple[float, int, int]:
    at_s = _seconds(row["arrival"], where, scale)
    prompt, output = _tokens(row, "prompt", where), _tokens(row, "output", where)
    try:
        Arrival(0.0, prompt, output)
    except ValueError as error:
        raise FileError(f"{where}: {error}") from None
    return at_s, prompt, output


def _seconds(value: object, where: str, scale: float) -> float:
    text = str(value).strip()
    try:
        number = float(text) * scale
    except ValueError:
        try:
            # A time without a zone is taken for UTC: only differences count.
            moment = datetime.fromisoformat(text)
            number = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
        except (ValueError, OverflowError):
            raise FileError(
                f"{where}: arrival is a number or a date and time, as 12.5 or 2026-01-31 12:00:00, not {text[:40]!r}"
            ) from None
    if not math.isfinite(number) or isinstance(value, bool):
        raise FileError(f"{where}: arrival is a number or a date and time, not {text[:40]!r}")
    return number


def _tokens(row: Mapping[str, object], name: str, where: str) -> int:
    text = str(row[name]).strip()
    if not (text.isascii() and text.isdigit() and len(text) <= 10):
        raise FileError(f"{where}: {name} is a whole number of tokens, not {text[:40]!r}")
    return int(text)
