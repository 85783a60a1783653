"""A profile's file, checked on the way in: whatever is wrong with it is one sentence. See docs/format.md."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bench.files import FileError, read_json
from bench.profile.entry import MAX_ENTRIES, MAX_READINGS, Candidate, Entry, Geometry, LeftOut, Paired, Ratio
from bench.profile.nearest import leave_each_out
from bench.profile.text import SCHEMA, Regions, Value, derived, regions_json
from bench.record import Environment, Label
from dcp_core.layout import DcpLayout
from dcp_core.settings import Case, Settings
from dcp_core.shapes import MAX_SIZE, DType, ModelShape, Workload
from dcp_core.spelling import nearest

Name = TypeVar("Name", bound=StrEnum)
Microseconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, le=1e12, allow_inf_nan=False)]
Regret = Annotated[float, Field(ge=0, le=1e12, allow_inf_nan=False)]
Size = Annotated[int, Field(ge=1, le=MAX_SIZE)]
Text = Annotated[str, Field(max_length=4096)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class _Geometry(_Strict):
    q_heads: Size
    kv_heads: Size
    head_dim: Size
    dtype: Text
    kv_dtype: Text


class _Environment(_Strict):
    hard: dict[Text, Text]
    soft: dict[Text, Text] = {}


class _Layout(_Strict):
    tp: Size
    dcp: Size
    interleave: Size


class _Candidate(_Strict):
    settings: dict[str, Value]
    median_us: Microseconds
    low_us: Microseconds
    high_us: Microseconds
    case: Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
    time: Annotated[str, Field(max_length=40)] = ""


class _Paired(_Strict):
    settings: dict[str, Value]
    ratio: Positive
    low: Positive
    high: Positive


class _LeftOut(_Strict):
    neighbour: Regret | None
    tree: Regret | None


class _Entry(_Strict):
    workload: Annotated[str, Field(max_length=1 << 20)]
    layout: _Layout
    label: Text
    timer: Text
    cold: bool
    settings: dict[str, Value]
    default: dict[str, Value] | None
    left_out: _LeftOut
    paired: Annotated[list[_Paired], Field(max_length=2)] = []
    candidates: Annotated[list[_Candidate], Field(min_length=1, max_length=10_000)]
    # For the reader alone: derived from the candidates and pairs, and not read back.
    median_us: object = None
    low_us: object = None
    high_us: object = None
    ratio_to_default: object = None
    ratio_low: object = None
    ratio_high: object = None
    runner_up: object = None


class _Profile(_Strict):
    schema_version: Annotated[int, Field(alias="schema")]
    kind: Text
    geometry: _Geometry
    environment: _Environment
    unless_given: dict[str, Value]
    regions: object = None  # for the reader alone: derived from the entries
    entries: Annotated[list[_Entry], Field(max_length=MAX_ENTRIES)]


def parse(text: str, where: str) -> tuple[Geometry, Environment, tuple[Entry, ...]]:
    """Read a profile's text, of this version or an older one, of which what batches left out would have paid is worked out anew.

    Raises:
        FileError: saying where in the file what is wrong.
    """
    data = _read_json(text, where)
    schema = data.get("schema")
    if isinstance(schema, int) and schema > SCHEMA:
        raise FileError(
            f"{where}: a profile of version {str(schema)[:20]}, this dcpbench reads up to {SCHEMA}; use a newer dcpbench"
        )
    if schema == 1:
        _upgrade(data)
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
    entries: list[Entry] = []
    readings = 0
    for number, form in enumerate(profile.entries, start=1):
        try:
            workload = Workload.parse(form.workload)
            readings += len(workload) * len(form.candidates)
            if readings > MAX_READINGS:
                raise ValueError(f"requests, each times its candidates, exceed the {MAX_READINGS} of a profile")
            entries.append(_read_entry(form, workload, geometry, profile.unless_given))
        except ValueError as error:
            raise FileError(f"{where}, entry {number}: {error}") from None
    environment = Environment(profile.environment.hard, profile.environment.soft)
    try:
        return geometry, environment, leave_each_out(entries) if profile.schema_version < SCHEMA else tuple(entries)
    except ValueError as error:
        raise FileError(f"{where}: {error}") from None


def check_derived(text: str, where: str, entries: Sequence[Entry], regions: Regions) -> None:
    """Refuse a file that ``parse`` has read if what it says for the reader is not what its candidates tell.

    Raises:
        FileError: for the first number that is not.
    """
    data = _read_json(text, where)
    for number, (entry, said) in enumerate(zip(entries, data["entries"], strict=True), start=1):
        for name, told in derived(entry).items():
            if name in said and said[name] != told:
                raise FileError(f"{where}, entry {number}: {name} should be {told}, as its candidates tell")
    if data["schema"] == SCHEMA and data.get("regions") != json.loads(json.dumps(regions_json(regions))):
        raise FileError(
            f"{where}: regions are not what its entries tell; save it anew, as with 'dcpbench profile merge'"
        )


def _read_json(text: str, where: str) -> dict[str, Any]:
    try:
        data = read_json(text)
    except FileError as error:
        raise FileError(f"{where}: no profile, for it is not valid JSON: {error}") from None
    if not isinstance(data, dict) or data.get("kind") != "dcpbench profile":
        raise FileError(f"{where}: no profile: it should be an object whose kind is 'dcpbench profile'")
    return data


def _upgrade(data: dict[str, Any]) -> None:
    """Turn version 1 into version 2: what a batch left out would have paid was told of its neighbour alone."""
    entries = data.get("entries")
    for entry in entries if isinstance(entries, list) else ():
        if isinstance(entry, dict) and "left_out_regret" in entry:
            entry["left_out"] = {"neighbour": entry.pop("left_out_regret"), "tree": None}


def _read_geometry(form: _Geometry) -> Geometry:
    dtype, kv_dtype = (_member(DType, name, "dtype") for name in (form.dtype, form.kv_dtype))
    return Geometry(form.q_heads, form.kv_heads, form.head_dim, dtype, kv_dtype)


def _member(kind: type[Name], text: str, what: str) -> Name:
    try:
        return kind(text)
    except ValueError:
        raise ValueError(f"unknown {what} {text[:40]!r}{nearest(text[:40], kind)}; known: {', '.join(kind)}") from None


def _read_entry(form: _Entry, workload: Workload, geometry: Geometry, unless_given: Mapping[str, Value]) -> Entry:
    layout = DcpLayout(form.layout.tp, form.layout.dcp, form.layout.interleave)
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
            Candidate(read(one.settings), one.median_us, one.low_us, one.high_us, one.case, one.time)
            for one in form.candidates
        ),
        read(form.settings),
        None if form.default is None else read(form.default),
        LeftOut(form.left_out.neighbour, form.left_out.tree),
        tuple(Paired(read(one.settings), Ratio(one.ratio, one.low, one.high)) for one in form.paired),
    )


def _sentence(error: ValidationError) -> str:
    """Say the first of pydantic's complaints."""
    first = error.errors()[0]
    *outside, last = first["loc"] or ("the profile",)
    if first["type"] == "extra_forbidden":
        models = (_Profile, _Entry, _Candidate, _Layout, _Environment, _Geometry, _LeftOut, _Paired)
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
    "string_pattern_mismatch": "should be 16 hexadecimal digits",
    "too_short": "should not be empty",
    "string_type": "should be a text",
    "int_type": "should be a whole number",
    "float_type": "should be a number",
    "bool_type": "should be true or false",
}
"""What pydantic's complaints mean to somebody who writes JSON."""
_ONE_OF = {"entries": "entry", "candidates": "candidate", "paired": "pair"}


def _place(path: Sequence[str | int]) -> str:
    """Return where in the file something stands: ``entry 2, candidate 1, median_us``."""
    parts: list[str] = []
    for step in path:
        if isinstance(step, int) and parts:
            parts[-1] = f"{_ONE_OF.get(parts[-1], parts[-1])} {step + 1}"
        else:
            word = str(step)[:80]
            parts.append(word if word.isprintable() else repr(word))
    return ", ".join(parts)
