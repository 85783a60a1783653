"""Declared experiments: axes that are crossed into cases. A sweep is a TOML file, options, or a file changed by options.

See docs/format.md for what a file may say. Standard library only.
"""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

from bench.axes import AXES, Part
from bench.errors import UsageError
from bench.files import FileError, check_keys, read_capped
from bench.policy import Policy
from bench.shipped import sweeps_folder
from dcp_core.layout import DcpLayout, IllegalLayout
from dcp_core.settings import (
    Case,
    ExchangeName,
    IllegalSettings,
    KernelName,
    PathName,
    Settings,
    canonical,
)
from dcp_core.shapes import ModelShape, Workload
from dcp_core.spelling import nearest

SCHEMA = 1
"""Version of a sweep file, its ``schema`` where it gives one. History: 1, the first."""
MAX_SWEEP_BYTES = 1 << 20
MAX_CROSSED = 200_000
"""Combinations of a sweep before those that mean the same collapse; more is a typing error."""
PRECISIONS: Mapping[str, float] = {"quick": 0.03, "standard": 0.01, "strict": 0.005}
"""What the words for a precision mean: Policy.precision."""


@dataclass(frozen=True, slots=True)
class Illegal:
    """A combination that was asked for and cannot be measured anywhere: what, and why."""

    text: str
    reason: str


@dataclass(frozen=True, slots=True)
class Expansion:
    """What a sweep asks for, in a fixed order, each step once."""

    cases: tuple[Case, ...]
    illegal: tuple[Illegal, ...]


@dataclass(frozen=True, slots=True)
class Sweep:
    """A union of crosses, and how carefully to measure them.

    Args:
        often: how many steps of a batch come, for a search within a time budget; a batch that is not named comes once.
    """

    name: str
    parts: tuple[Part, ...]
    description: str = ""
    policy: Policy = field(default_factory=Policy)
    often: Mapping[Workload, float] = field(default_factory=dict)

    @classmethod
    def load(cls, name: str | Path, *, on_gpu: bool = False) -> Sweep:
        """Read a sweep: one that ships with dcpbench, by its name, or a TOML file, by its path.

        Args:
            on_gpu: apply the file's ``[gpu]`` tables.

        Raises:
            FileError: if there is none of that name, or the file is no sweep.
            UsageError: if an axis has a value it cannot have.
        """
        path = _find(str(name))
        text = read_capped(path, MAX_SWEEP_BYTES, "a sweep")
        try:
            data = tomllib.loads(text)
        except (ValueError, RecursionError) as error:  # of TOML, or of a number too long
            raise FileError(f"{path}: not valid TOML: {error}") from None
        return _read_sweep(data, path, on_gpu=on_gpu)

    @classmethod
    def from_options(
        cls, axes: Mapping[str, object], settings: Mapping[str, object] | None = None, *, on_gpu: bool = False
    ) -> Sweep:
        """Build a sweep from options alone; see ``override``."""
        sweep = cls("typed", (_default_part(on_gpu),)).override(axes, settings)
        sweep.parts[0].check("a sweep without a file")
        return sweep

    def override(self, axes: Mapping[str, object], settings: Mapping[str, object] | None = None) -> Sweep:
        """Return this sweep with some axes replaced in every part.

        Args:
            axes: by name, a list of texts each, as typed: ``{"dcp": ["1", "2"], "context": ["8k", "32k"]}``.
            settings: further settings to vary, by name.

        Raises:
            UsageError: for an unknown name, or a value it cannot have.
        """
        return replace(self, parts=tuple(part.changed(axes, settings or {}, "") for part in self.parts))

    def expand(self, ranks: int) -> Expansion:
        """Cross the axes into cases.

        At dcp 1 there is one path, ``tp``, one interleave, and nobody to exchange with, whatever the axes say. A group
        of more than ``ranks`` is simulated in one process, its exchange ``loopback``. Combinations that run the same
        step are one case.

        Args:
            ranks: processes there are to form groups of.

        Raises:
            UsageError: for more combinations than anyone means.
        """
        crossed = sum(part.crossed for part in self.parts)
        if crossed > MAX_CROSSED:
            raise UsageError(
                f"sweep {self.name} crosses its axes into {crossed} combinations; {MAX_CROSSED} are the limit: "
                f"give fewer values, or parts that cross fewer axes"
            )
        cases: dict[str, Case] = {}
        illegal: dict[Illegal, None] = {}
        for part in self.parts:
            for result in _cross(part, ranks):
                if isinstance(result, Illegal):
                    illegal[result] = None
                else:
                    cases.setdefault(result.key, result)
        return Expansion(tuple(cases.values()), tuple(illegal))


def shipped_sweeps() -> list[str]:
    """Return the names of the sweeps that ship with dcpbench."""
    return sorted(path.stem for path in sweeps_folder().glob("*.toml"))


def parse_precision(value: object) -> float:
    """Read a precision: a word of PRECISIONS, or the relative half width of the median's interval.

    Raises:
        UsageError: for anything else.
    """
    text = str(value)
    if text in PRECISIONS:
        return PRECISIONS[text]
    number = float(text) if re.fullmatch(r"[0-9]*\.?[0-9]+(e-?[0-9]+)?", text) else math.nan
    if not 0 < number < 1:
        words = ", ".join(PRECISIONS)
        raise UsageError(
            f"precision is {words} or a number between 0 and 1, not {text[:40]!r}{nearest(text, PRECISIONS)}"
        )
    return number


def _cross(part: Part, ranks: int) -> Iterator[Case | Illegal]:
    for shape, layout in product(part.model, part.layouts()):
        try:
            layout.heads(shape)
            if not part.synthetic:
                layout.check(shape)
        except IllegalLayout as error:
            yield Illegal(f"{shape.name}, {layout}", str(error))
            continue
        for workload, choice in product(part.workloads(), _choices(part, layout, ranks)):
            yield _case(shape, layout, workload, choice)


def _choices(part: Part, layout: DcpLayout, ranks: int) -> list[dict[str, Any]]:
    """Return every combination of settings that makes sense for a layout."""
    paths: Iterable[PathName] = [path for path in part.path if path is not PathName.TP] or part.path
    exchanges: Iterable[ExchangeName] = [
        name for name in part.exchange if name is not ExchangeName.ALONE
    ] or part.exchange
    if layout.dcp == 1:
        paths, exchanges = [PathName.TP], [ExchangeName.ALONE]
    elif layout.dcp > ranks:
        exchanges = [ExchangeName.LOOPBACK]
    names = ["path", "kernel", "exchange", *(name for name, _ in part.set)]
    values = product(paths, part.kernel, exchanges, *(varied for _, varied in part.set))
    return [dict(zip(names, combination, strict=True)) for combination in values]


def _case(shape: ModelShape, layout: DcpLayout, workload: Workload, choice: dict[str, Any]) -> Case | Illegal:
    if choice["path"] is PathName.TP:
        choice = {
            **choice,
            "exchange": ExchangeName.ALONE,
        }  # whatever the axis says, that path has nobody to exchange with
    try:
        settings = Settings(**choice)
    except IllegalSettings as error:
        return Illegal(f"path {choice['path']}, kernel {choice['kernel']}", str(error))
    try:
        return Case(shape, layout, workload, canonical(settings, layout, workload))
    except (IllegalSettings, IllegalLayout) as error:
        return Illegal(f"{shape.name}, {layout}, {workload}, path {settings.path}", str(error))


def _find(name: str) -> Path:
    if name.endswith(".toml") or "/" in name:
        return Path(name)
    known = shipped_sweeps()
    if name not in known:
        raise FileError(
            f"unknown sweep {name[:80]!r}{nearest(name, known)}; known: {', '.join(known)}, or the path of a .toml file"
        )
    return sweeps_folder() / f"{name}.toml"


def _read_sweep(data: dict[str, Any], path: Path, *, on_gpu: bool) -> Sweep:
    _check_schema(data.get("schema", SCHEMA), path)
    check_keys(data, ("schema", "description", "policy", "often", "part", *_PART_KEYS), str(path))
    common = _read_part(data, _default_part(on_gpu), str(path), on_gpu=on_gpu)
    tables = data.get("part", [])
    if not (isinstance(tables, list) and all(isinstance(table, dict) for table in tables)):
        raise FileError(f"{path}: a part begins with [[part]], in double brackets")
    parts = []
    for number, table in enumerate(tables, start=1):
        check_keys(table, ("description", *_PART_KEYS), f"{path}, part {number}")
        parts.append(_read_part(table, common, f"{path}, part {number}", on_gpu=on_gpu))
    for number, part in enumerate(parts, start=1):
        part.check(f"{path}, part {number}")
    if not parts:
        common.check(str(path))
    policy = _read_policy(_table(data, "policy", str(path)), f"{path}, policy")
    description = str(data.get("description", "")).strip()
    return Sweep(path.stem, tuple(parts) or (common,), description, policy, _read_often(data, path))


def _read_often(data: Mapping[str, Any], path: Path) -> dict[Workload, float]:
    """Read how many steps of each batch come."""
    where = f"{path}, often"
    often: dict[Workload, float] = {}
    for text, steps in _table(data, "often", str(path)).items():
        if type(steps) not in (int, float) or not 0 < steps < math.inf:
            raise FileError(f"{where}: a batch comes a positive number of times, not {str(steps)[:40]!r}")
        batch = _located(where, Workload.parse, text)
        if batch in often:
            raise FileError(f"{where}: {text[:40]!r} is {batch}, which is there already")
        often[batch] = float(steps)
    return often


def _check_schema(schema: object, path: Path) -> None:
    if not isinstance(schema, int) or isinstance(schema, bool) or schema < 1:
        raise FileError(f"{path}: schema is a whole number, {SCHEMA} or none, not {str(schema)[:40]!r}")
    if schema > SCHEMA:
        raise FileError(
            f"{path}: a sweep of version {schema}, this dcpbench reads up to {SCHEMA}; use a newer dcpbench"
        )


_PART_KEYS = ("synthetic", *AXES, "set", "gpu")


def _default_part(on_gpu: bool) -> Part:
    return Part(kernel=(KernelName.FA2, KernelName.FA3)) if on_gpu else Part()


def _read_part(table: Mapping[str, Any], base: Part, where: str, *, on_gpu: bool) -> Part:
    """Apply a table of axes, then its ``gpu`` table where there is one to use."""
    synthetic = table.get("synthetic", base.synthetic)
    if not isinstance(synthetic, bool):
        raise FileError(f"{where}: synthetic is true or false, not {synthetic!r}")
    axes = {name: value for name, value in table.items() if name in AXES}
    part = replace(base.changed(axes, _table(table, "set", where), where), synthetic=synthetic)
    gpu = _table(table, "gpu", where)
    check_keys(gpu, (*AXES, "set"), f"{where}, gpu")
    axes = {name: value for name, value in gpu.items() if name in AXES}
    on_device = part.changed(axes, _table(gpu, "set", f"{where}, gpu"), f"{where}, gpu")
    return on_device if on_gpu else part


def _table(data: Mapping[str, Any], name: str, where: str) -> dict[str, Any]:
    table = data.get(name, {})
    if not isinstance(table, dict):
        raise FileError(f"{where}: {name} is a table: [{name}] on a line of its own, then its keys")
    return table


def _read_policy(table: dict[str, Any], where: str) -> Policy:
    defaults = asdict(Policy())
    check_keys(table, defaults, where)
    values: dict[str, Any] = {}
    for name, value in table.items():
        kind = type(defaults[name])
        if name == "precision":
            values[name] = _located(where, parse_precision, value)
        elif type(value) is kind or (kind is float and type(value) is int):
            values[name] = kind(value)
        else:
            raise FileError(f"{where}: {name} is {_KINDS[kind]}, not {str(value)[:40]!r}")
    policy: Policy = _located(where, lambda: Policy(**values))
    return policy


def _located(where: str, read: Callable[..., Any], *given: object) -> Any:
    """Call ``read``, and say where the value stands that it refuses."""
    try:
        return read(*given)
    except ValueError as error:
        raise FileError(f"{where}: {error}") from None


_KINDS = {bool: "true or false", int: "a whole number", float: "a positive number"}
