"""One trial as one line of text: ``{"checksum": ..., "trial": {...}}``. See docs/format.md.

The checksum is 16 hex digits of sha256 over the trial's canonical JSON, so that white space and the order of keys are
no content.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from bench.files import FileError, read_json
from bench.policy import Policy
from bench.record import SCHEMA, Environment, Failed, Measured, Outcome, Skipped, Trial
from dcp_core.settings import Case

_PLAIN = {"ranks": int, "seconds": float, "time": str, "protocol": int, "is_sentinel": bool, "retakes": int}
_LATER = ("is_sentinel", "retakes")
"""Fields that lines of schema 1 and 2 lack."""
MAX_TRACEBACK = 64 << 10
"""Characters of a failure's traceback that are kept: the last ones, where the error stands."""


class NewerSchema(FileError):
    """A line of a version that this dcpbench does not know yet."""


def encode(trial: Trial) -> bytes:
    """Return a trial's line, its newline included.

    Raises:
        ValueError: if a number of it is NaN or infinite.
    """
    data = _to_json(trial)
    try:
        text = _canonical(data)
    except ValueError:
        raise ValueError(f"the trial of case {trial.case.key} holds NaN or infinity, which no file may") from None
    return f'{{"checksum":"{_checksum(text)}","trial":{text}}}\n'.encode("ascii")


def decode(line: bytes) -> Trial:
    """Read what ``encode`` wrote.

    Raises:
        ValueError: (a subclass) saying what is wrong with the line.
    """
    try:
        data = read_json(line)
    except FileError:
        raise FileError("no JSON") from None  # without what and where, so that many such lines are one notice
    if not isinstance(data, dict) or data.keys() != {"checksum", "trial"} or not isinstance(data["trial"], dict):
        raise FileError("no trial: it should hold a checksum and a trial")
    trial = data["trial"]
    if data["checksum"] != _checksum(_canonical(trial)):
        raise FileError("its checksum does not match: it was changed or damaged after it was written")
    schema = trial.get("schema")
    if not isinstance(schema, int) or schema < 1:
        raise FileError(f"its schema should be a whole number, not {schema!r}")
    if schema > SCHEMA:
        raise NewerSchema(f"written with schema {schema}, this dcpbench reads up to {SCHEMA}; use a newer dcpbench")
    return _from_json(trial)


def _to_json(trial: Trial) -> dict[str, Any]:
    data = {name: getattr(trial, name) for name in (*_PLAIN, "clocks", "schema")}
    outcome = asdict(trial.outcome)
    if isinstance(trial.outcome, Failed):
        outcome["traceback"] = trial.outcome.traceback[-MAX_TRACEBACK:]
    return {
        **data,
        "case": trial.case.to_json(),
        "outcome": outcome,
        "policy": asdict(trial.policy),
        "environment": asdict(trial.environment),
    }


def _from_json(data: dict[str, Any]) -> Trial:
    fields = {**data, "case": Case.from_json(data.get("case", {}))}
    try:
        fields["outcome"] = read_outcome(data.get("outcome"))
        fields["policy"] = _read(Policy, data.get("policy"))
        fields["environment"] = _read(Environment, data.get("environment"))
        fields["clocks"] = _read(tuple[dict[str, str], ...], data.get("clocks", ()))
        for name, kind in _PLAIN.items():
            if name in data or name not in _LATER:
                fields[name] = _read(kind, data.get(name))
        return Trial(**fields)
    except (FileError, TypeError) as error:
        raise FileError(f"not a whole trial: {error}") from None


def read_outcome(data: object) -> Outcome:
    """Read an outcome of JSON data: its ``kind`` says which of the three.

    Raises:
        ValueError: (a subclass) saying what is wrong with it.
    """
    fields = dict(data) if isinstance(data, dict) else {}
    match fields.pop("kind", None):
        case "measured":
            if (warm_us := fields.pop("warm_us", None)) is not None:  # all that was once kept of it
                fields["warm"] = {"name": "step", "device_us": warm_us}
            outcome: Outcome = _read(Measured, fields)
        case "skipped":
            outcome = _read(Skipped, fields)
        case "failed":
            outcome = _read(Failed, fields)
        case kind:
            raise FileError(f"an outcome is measured, skipped or failed, not {kind!r}")
    return outcome


_ADAPTERS: dict[Any, Callable[[Any], Any]] = {}


def _read(kind: Any, data: object) -> Any:
    """Make a value of untrusted data, by a validator built once per type: building costs far more than a trial.

    Raises:
        FileError: saying in which field what is wrong.
    """
    from pydantic import TypeAdapter, ValidationError

    if kind not in _ADAPTERS:
        _ADAPTERS[kind] = TypeAdapter(kind).validate_python
    try:
        return _ADAPTERS[kind](data)
    except ValidationError as error:
        first = error.errors()[0]
        place = " ".join([error.title, ".".join(map(str, first["loc"]))]).strip()
        raise FileError(f"{place}: {first['msg'].removeprefix('Value error, ')}") from None


def _canonical(data: object) -> str:
    return json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _checksum(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
