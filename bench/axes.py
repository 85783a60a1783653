"""The axes of a sweep: what each may hold, and one cross of them. Standard library only."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import product
from typing import Any

from bench.errors import UsageError
from dcp_core.layout import DcpLayout
from dcp_core.settings import ExchangeName, IllegalSettings, KernelName, PathName, check_name, coerce
from dcp_core.shapes import MAX_TOKENS, ModelShape, Workload
from dcp_core.spelling import nearest

MAX_VALUES = 1000
"""Values of one axis."""
MAX_RANKS = 1 << 16
"""A larger tp, dcp or interleave is a typing error."""
CROSS = ("context", "new", "concurrency")
"""The axes that are crossed into batches of equal requests, where no batch is given."""


@dataclass(frozen=True, slots=True)
class Part:
    """One cross of axes. ``set``: other settings to vary, by name. ``synthetic``: admit layouts no server starts with."""

    model: tuple[ModelShape, ...] = ()
    tp: tuple[int, ...] = ()
    dcp: tuple[int, ...] = (1,)
    interleave: tuple[int, ...] = (1,)
    batch: tuple[Workload, ...] = ()
    context: tuple[int, ...] = ()
    new: tuple[int, ...] = ()
    concurrency: tuple[int, ...] = ()
    path: tuple[PathName, ...] = (PathName.DECODE, PathName.SPLIT, PathName.MASK, PathName.FOLD)
    kernel: tuple[KernelName, ...] = (KernelName.REFERENCE,)
    exchange: tuple[ExchangeName, ...] = (ExchangeName.AG_RS,)
    set: tuple[tuple[str, tuple[Any, ...]], ...] = ()
    synthetic: bool = False

    def changed(self, axes: Mapping[str, object], settings: Mapping[str, object], where: str) -> Part:
        """Return this part with some axes and settings replaced. Batches replace context, new and concurrency, and back.

        Args:
            where: they stand in a file; empty for options.

        Raises:
            UsageError: starting with ``where``, for an unknown axis or setting, or a value it cannot have.
        """
        values: dict[str, Any] = {axis: _read_axis(axis, given, where) for axis, given in axes.items()}
        if "batch" in values:
            if crossed := [axis for axis in CROSS if axis in values]:
                others = " and ".join(crossed)
                raise UsageError(f"{_place(where, 'batch')}: give batches, or {others} to build them from, not both")
            values |= dict.fromkeys(CROSS, ())
        elif any(axis in values for axis in CROSS):
            values["batch"] = ()
        varied = dict(self.set) | {name: _read_setting(name, given, where) for name, given in settings.items()}
        return replace(self, **values, set=tuple(varied.items()))

    def layouts(self) -> Iterator[DcpLayout]:
        """Yield every layout once; at dcp 1, where an interleave means nothing, all interleaves are one."""
        crossed = (DcpLayout(*sizes).canonical for sizes in product(self.tp, self.dcp, self.interleave))
        yield from dict.fromkeys(crossed)

    def workloads(self) -> Iterator[Workload]:
        """Yield every batch: those given, or concurrency × (new over context)."""
        if self.batch:
            yield from self.batch
            return
        for context, new, concurrency in product(self.context or (0,), self.new or (1,), self.concurrency or (1,)):
            yield Workload.of([new] * concurrency, [context + new] * concurrency)

    def check(self, where: str) -> None:
        """Refuse a part that lacks an axis no default can stand for.

        Raises:
            UsageError: naming the axis.
        """
        for axis in ("model", "tp"):
            if not getattr(self, axis):
                raise UsageError(f"{where}: give {axis} (--{axis})")
        if not (self.batch or any(getattr(self, axis) for axis in CROSS)):
            raise UsageError(
                f"{where}: give batch, or context, new and concurrency to build batches from (--batch, --context …)"
            )

    @property
    def crossed(self) -> int:
        """How many combinations this part has."""
        workloads = len(self.batch) or math.prod(max(1, len(getattr(self, axis))) for axis in CROSS)
        axes = (self.model, self.tp, self.dcp, self.interleave, self.path, self.kernel, self.exchange)
        return math.prod(map(len, axes)) * workloads * math.prod(len(values) for _, values in self.set)


AXES = tuple(axis.name for axis in fields(Part) if axis.name not in ("set", "synthetic"))
"""Every axis, in the order in which it is crossed; each is an option of the command line as well."""


def _read_axis(axis: str, given: object, where: str) -> tuple[Any, ...]:
    if axis not in AXES:
        raise UsageError(f"{where}: unknown axis {axis[:40]!r}{nearest(axis, AXES)}; known: {', '.join(AXES)}")
    return tuple(dict.fromkeys(_read_value(axis, text, where) for text in _texts(axis, given, where)))


def _read_value(axis: str, text: str, where: str) -> Any:
    try:
        match axis:
            case "model":
                return ModelShape.parse(text)
            case "batch":
                return Workload.parse(text)
            case "path" | "kernel" | "exchange":
                return coerce(axis, text)
            case _:
                return _whole(
                    text, least=0 if axis == "context" else 1, most=MAX_TOKENS if axis in CROSS else MAX_RANKS
                )
    except ValueError as error:
        raise UsageError(f"{_place(where, axis)}: {str(error).removeprefix(f'{axis} ')}") from None


def _read_setting(name: str, given: object, where: str) -> tuple[Any, ...]:
    try:
        check_name(name)
        if name in AXES:
            raise IllegalSettings(f"{name} is an axis of its own: write {name} = … there, or --{name}")
        return tuple(dict.fromkeys(coerce(name, text) for text in _texts(name, given, where)))
    except IllegalSettings as error:
        raise UsageError(f"{_place(where, 'set')}: {error}") from None


def _place(where: str, name: str) -> str:
    """Return how to find a value: in a file, or behind an option."""
    return f"{where}: {name}" if where else f"--{name}"


def _texts(name: str, given: object, where: str) -> list[str]:
    """Return the values of an axis as texts; a single one may stand without brackets."""
    values: Sequence[object] = given if isinstance(given, (list, tuple)) else [given]
    if not 1 <= len(values) <= MAX_VALUES:
        raise UsageError(f"{_place(where, name)} needs 1 to {MAX_VALUES} values, not {len(values)}")
    for value in values:
        if not isinstance(value, (str, int)):
            wrong = f"{str(value)[:40]!r} is neither"
            raise UsageError(f"{_place(where, name)} is a list of texts or whole numbers, and {wrong}")
    return [str(value) for value in values]


def _whole(text: str, least: int, most: int) -> int:
    found = re.fullmatch(r"([0-9]{1,10})(k?)", text)
    number = int(found[1]) * (1024 if found[2] else 1) if found else -1
    if not least <= number <= most:
        raise ValueError(f"a whole number from {least} to {most}, as 8 or 32k, not {text[:40]!r}")
    return number
