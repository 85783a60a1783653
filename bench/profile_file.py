"""A profile as text: JSON for people and diffs, checked on the way in. See docs/format.md."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bench.entry import MAX_ENTRIES, Candidate, Entry, Geometry
from bench.files import FileError
from bench.record import Environment, Label
from dcp_core.layout import DcpLayout
from dcp_core.settings import Case, Settings
from dcp_core.shapes import DType, ModelShape, Workload
from dcp_core.spelling import nearest

SCHEMA = 1
"""Version of the file. History: 1, the first."""
LINE_WIDTH = 220
"""Wide enough for a candidate on one line."""

Name = TypeVar("Name", bound=StrEnum)
Value = str | int | bool | None
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Text = Annotated[str, Field(max_length=4096)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class _Geometry(_Strict):
    q_heads: int
    kv_heads: int
    head_dim: int
    dtype: Text
    kv_dtype: Text


class _Environment(_Strict):
    hard: dict[Text, Text]
    soft: dict[Text, Text] = {}


class _Layout(_Strict):
    tp: int
    dcp: int
    interleave: int


class _Candidate(_Strict):
    settings: dict[str, Value]
    median_us: Positive
    low_us: Positive
    high_us: Positive
    case: Text


class _Entry(_Strict):
    workload: Annotated[str, Field(max_length=1 << 20)]
    layout: _Layout
    label: Text
    timer: Text
    cold: bool
    settings: dict[str, Value]
    default: dict[str, Value] | None
    left_out_regret: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None
    candidates: Annotated[list[_Candidate], Field(min_length=1, max_length=10_000)]
    # For the reader alone: derived from the candidates, and not read back.
    median_us: object = None
    low_us: object = None
    high_us: object = None
    ratio_to_default: object = None
    runner_up: object = None


class _Profile(_Strict):
    schema_version: Annotated[int, Field(alias="schema")]
    kind: Text
    geometry: _Geometry
    environment: _Environment
    unless_given: dict[str, Value]
    entries: Annotated[list[_Entry], Field(max_length=MAX_ENTRIES)]


def render(geometry: Geometry, environment: Environment, entries: Iterable[Entry]) -> str:
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
        "environment": {"hard": environment.hard, "soft": environment.soft},
        "unless_given": unless_given.to_json(),
        "entries": [_entry(entry, unless_given) for entry in entries],
    }
    return _pretty(content) + "\n"


def parse(text: str, where: str) -> tuple[Geometry, Environment, tuple[Entry, ...]]:
    """Read what ``render`` wrote.

    Raises:
        FileError: saying where in the file what is wrong.
    """
    try:
        data = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise FileError(f"{where}: not valid JSON: {error}") from None
    if not isinstance(data, dict) or data.get("kind") != "dcpbench profile":
        raise FileError(f"{where}: no profile: it should be an object whose kind is 'dcpbench profile'")
    schema = data.get("schema")
    if isinstance(schema, int) and schema > SCHEMA:
        raise FileError(
            f"{where}: a profile of version {schema}, this dcpbench reads up to {SCHEMA}; use a newer dcpbench"
        )
    try:
        profile = _Profile.model_validate(data)
    except ValidationError as error:
        raise FileError(f"{where}: {_sentence(error)}") from None
    try:
        if profile.schema_version < 1:
            raise ValueError(f"there is no version {profile.schema_version}")
        geometry = _read_geometry(profile.geometry)
    except ValueError as error:
        raise FileError(f"{where}: {error}") from None
    entries = []
    for number, form in enumerate(profile.entries, start=1):
        try:
            entries.append(_read_entry(form, geometry, profile.unless_given))
        except ValueError as error:
            raise FileError(f"{where}, entry {number}: {error}") from None
    return geometry, Environment(profile.environment.hard, profile.environment.soft), tuple(entries)


def _entry(entry: Entry, unless_given: Settings) -> dict[str, Any]:
    def given(settings: Settings | None) -> dict[str, Value] | None:
        if settings is None:
            return None
        plain = settings.to_json()
        return {name: plain[name] for name, _, _ in settings.differences(unless_given)}

    chosen, runner_up, ratio = entry.chosen, entry.runner_up, entry.ratio_to_default
    return {
        "workload": str(entry.workload),
        "layout": {"tp": entry.layout.tp, "dcp": entry.layout.dcp, "interleave": entry.layout.interleave},
        "label": str(entry.label),
        "timer": entry.timer,
        "cold": entry.cold,
        "settings": given(entry.settings),
        "median_us": chosen.median_us,
        "low_us": chosen.low_us,
        "high_us": chosen.high_us,
        "default": given(entry.default),
        "ratio_to_default": None if ratio is None else round(ratio, 4),
        "runner_up": given(runner_up.settings) if runner_up else None,
        "left_out_regret": entry.left_out_regret,
        "candidates": [
            {
                "settings": given(candidate.settings),
                "median_us": candidate.median_us,
                "low_us": candidate.low_us,
                "high_us": candidate.high_us,
                "case": candidate.case,
            }
            for candidate in entry.candidates
        ],
    }


def _read_geometry(form: _Geometry) -> Geometry:
    dtype, kv_dtype = (_member(DType, name, "dtype") for name in (form.dtype, form.kv_dtype))
    return Geometry(form.q_heads, form.kv_heads, form.head_dim, dtype, kv_dtype)


def _member(kind: type[Name], text: str, what: str) -> Name:
    try:
        return kind(text)
    except ValueError:
        raise ValueError(f"unknown {what} {text[:40]!r}{nearest(text[:40], kind)}; known: {', '.join(kind)}") from None


def _read_entry(form: _Entry, geometry: Geometry, unless_given: Mapping[str, Value]) -> Entry:
    layout = DcpLayout(form.layout.tp, form.layout.dcp, form.layout.interleave)
    workload = Workload.parse(form.workload)
    geometry.check(layout)
    # The legality of settings does not depend on the model: any shape that the layout can split will do.
    shape = ModelShape(layout.tp, 1, geometry.head_dim)

    def read(given: Mapping[str, Value]) -> Settings:
        settings = Settings.from_json({**unless_given, **given})
        return Case(shape, layout, workload, settings).settings

    return Entry(
        layout,
        workload,
        _member(Label, form.label, "label"),
        form.timer,
        form.cold,
        tuple(
            Candidate(read(one.settings), one.median_us, one.low_us, one.high_us, one.case) for one in form.candidates
        ),
        read(form.settings),
        None if form.default is None else read(form.default),
        form.left_out_regret,
    )


def _sentence(error: ValidationError) -> str:
    """Say the first of pydantic's complaints."""
    first = error.errors()[0]
    *outside, last = first["loc"] or ("the profile",)
    if first["type"] == "extra_forbidden":
        models = (_Profile, _Entry, _Candidate, _Layout, _Environment, _Geometry)
        known = ["schema", *(name for model in models for name in model.model_fields)]
        key = str(last)[:40]
        return f"{_place(outside)}: unknown key {key!r}{nearest(key, known)}".removeprefix(": ")
    if outside and last in _VALUE_KINDS:  # of a setting, which may be any of them
        return f"{_place(outside)} should be a text, a whole number, true or false"
    return f"{_place(first['loc'])} {_SAID.get(first['type']) or first['msg'].lower().removeprefix('input ')}"


_VALUE_KINDS = ("str", "int", "bool")
_SAID = {
    "missing": "is missing",
    "model_type": "should be an object",
    "dict_type": "should be an object",
    "list_type": "should be a list",
    "too_short": "should not be empty",
    "string_type": "should be a text",
    "int_type": "should be a whole number",
    "float_type": "should be a number",
    "bool_type": "should be true or false",
}
"""What pydantic's complaints mean to somebody who writes JSON."""
_ONE_OF = {"entries": "entry", "candidates": "candidate"}


def _place(path: Sequence[str | int]) -> str:
    """Return where in the file something stands: ``entry 2, candidate 1, median_us``."""
    parts: list[str] = []
    for step in path:
        if isinstance(step, int) and parts:
            parts[-1] = f"{_ONE_OF.get(parts[-1], parts[-1])} {step + 1}"
        else:
            parts.append(str(step)[:80])
    return ", ".join(parts)


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


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is no number")
