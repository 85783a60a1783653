"""What may be chosen for a batch on this machine: the candidates, each a step of its own, and the engine's default among them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from bench.profile.entry import engine_defaults
from bench.record import Environment
from bench.tune.batch import Batch, changed
from dcp_core.cost import step_work
from dcp_core.layout import DcpLayout
from dcp_core.settings import (
    Batching,
    Case,
    DecodeWrapper,
    ExchangeName,
    KernelName,
    KvLayout,
    MaskForm,
    PathName,
    Settings,
    canonical,
    is_legal,
)
from dcp_core.shapes import Workload

CUDA_CORE_GROUPS = (1, 2, 3, 4, 6, 8, 16)
"""Query heads per KV head, after the gather, that FlashInfer 0.7 builds its CUDA-core decode kernel for."""
PAGE_SIZES = (16, 32, 64)
"""Tokens a page, as engines allow them."""
SPLIT_PAGES = (128,)
"""Pages that a block of fa2 may be told to read: in tables of every candidate 2 to 84 % slower than what FlashInfer chooses."""
# Dense 16-bit FLOP/s, memory bytes/s and NVLink bytes/s one way, from NVIDIA's datasheets; the fastest model of a name.
_PEAKS: Mapping[str, tuple[float, float, float]] = {
    "H200": (989e12, 4.8e12, 4.5e11),
    "H100": (989e12, 3.9e12, 4.5e11),
    "B200": (2.25e15, 8.0e12, 9.0e11),
    "A100": (312e12, 2.04e12, 3.0e11),
}


@dataclass(frozen=True, slots=True)
class Available:
    """What runs on a machine: kernels, but no alias of another, and exchanges between real ranks."""

    kernels: tuple[KernelName, ...]
    exchanges: tuple[ExchangeName, ...]

    @classmethod
    def probed(cls, probe: Mapping[str, Any]) -> Available:
        """Read what the workers said of themselves: for each kernel and exchange why it does not run, or nothing."""
        kernels, exchanges = probe["kernels"], probe["exchanges"]
        return cls(
            _fast([name for name in KernelName if not kernels.get(name, "unknown")]),
            tuple(name for name in _BETWEEN_RANKS if not exchanges.get(name, "unknown")),
        )

    @classmethod
    def assumed(cls, environment: Environment, ranks: int) -> Available:
        """Guess from the fingerprint, for a plan that starts no worker."""
        capability = environment.soft.get("compute_capability", "")
        kernels = [
            KernelName.FA2,
            KernelName.CUDA_CORE,
            KernelName.PERSISTENT,
            *([KernelName.FA3] if capability.startswith("9.") else []),
        ]
        return cls(
            _fast(kernels if capability else [KernelName.REFERENCE]),
            tuple(name for name in _BETWEEN_RANKS if ranks > 1 and (capability or name is not ExchangeName.DIRECT)),
        )


_BETWEEN_RANKS = (ExchangeName.AG_RS, ExchangeName.A2A, ExchangeName.DIRECT)


def _fast(names: Iterable[KernelName]) -> tuple[KernelName, ...]:
    """Leave out ``auto``, which is fa2 or fa3 by another name, and the torch kernel where there is another."""
    real = [name for name in names if name is not KernelName.AUTO]
    return tuple(name for name in real if name is not KernelName.REFERENCE) or tuple(real)


def batches_of(cases: Iterable[Case], environment: Environment, *, cold: bool) -> list[Batch]:
    """Return a search for each batch and layout of some cases, layout by layout, with the engine's default added.

    Args:
        cold: the L2 cache is emptied before each repetition, so that keys come from memory.
    """
    places: dict[tuple[object, ...], list[Case]] = defaultdict(list)
    for case in cases:
        layout = case.layout
        places[layout.dcp, layout.interleave, layout.tp, _silent(case), case.shape, case.workload].append(case)
    return [_batch(listed, environment, cold) for _, listed in sorted(places.items(), key=lambda item: item[0][:4])]


def everything(cases: Iterable[Case], available: Available) -> list[Case]:
    """Return every legal candidate for the batches and layouts of some cases."""
    # Cases that differ in other settings have one space, which takes seconds to write out.
    places = {(case.shape, case.layout, case.workload, case.settings.exchange): case for case in cases}
    found: dict[Case, None] = {}
    for case in places.values():
        for settings in space(case, available):
            found[replace(case, settings=settings)] = None
    return list(found)


def space(case: Case, available: Available) -> tuple[Settings, ...]:
    """Return every legal settings for a case's batch and layout that runs a step of its own, likelier ones first.

    How a plan reads its index tensors, or how a mask is packed, changes no step: such settings are left as they are.
    """
    layout, workload = case.layout, case.workload
    found: dict[Settings, None] = dict.fromkeys(
        Settings(path=path, kernel=_kernels(case, path, available)[0], exchange=_exchanges(case, available)[0])
        for path in _paths(layout, workload)
    )
    # One setting after another, what means the same collapsing at once: the whole product is too long to write out.
    for name, values in _VALUES.items():
        varied = (
            changed(settings, name, value) for settings in found for value in values(case, settings.path, available)
        )
        found = dict.fromkeys(canonical(one, layout, workload) for one in varied if one is not None)
    return tuple(one for one in found if is_legal(one, layout, workload) and _is_built(one))


def order_of(settings: Settings) -> tuple[int, ...]:
    """Return a key that sorts settings as ``space`` lists them, likelier ones first."""
    return tuple(_rank(getattr(settings, name)) for name in ("path", *_VALUES))


def _rank(value: object) -> int:
    if isinstance(value, StrEnum):
        return list(type(value)).index(value)
    return value if isinstance(value, int) else -1  # unset ones first


def least_us(case: Case, device_name: str, *, cold: bool) -> float:
    """Return a time that a step cannot beat, however good the kernels: products, keys from memory, links. 0 if unknown."""
    peaks = next((peaks for name, peaks in _PEAKS.items() if name in device_name), None)
    if peaks is None or case.shape.dtype.itemsize != 2:
        return 0.0
    flops_per_s, bytes_per_s, wire_bytes_per_s = peaks
    work, shape = step_work(case), case.shape
    keys = sum(case.layout.local_len(total, 0) for total in case.workload.total_lens) if cold else 0
    key_bytes = 2 * keys * case.layout.heads(shape).kv * shape.head_dim * shape.cache_dtype.itemsize
    return 1e6 * max(
        sum(stage.flops for stage in work) / flops_per_s,
        key_bytes / bytes_per_s,
        sum(stage.wire_bytes for stage in work) / wire_bytes_per_s,
    )


def _batch(listed: Sequence[Case], environment: Environment, cold: bool) -> Batch:
    first = listed[0]
    reference = {case.settings.kernel for case in listed} == {KernelName.REFERENCE}
    names = engine_defaults(first.layout, first.workload, environment, reference=reference)
    # The last name says which kernel it is, so that candidates of that kernel are told to be the same.
    options = [_at_home(first, settings) for settings in reversed(names)]
    default = next((case for case in options if case in listed), options[0])
    candidates = tuple(dict.fromkeys([default, *listed]))
    device_name = environment.hard.get("device_name", "")
    return Batch(candidates, default, {case: least_us(case, device_name, cold=cold) for case in candidates})


def _at_home(beside: Case, settings: Settings) -> Case:
    """Return the case of some settings for another's batch; without an exchange where the group is simulated."""
    if _silent(beside) and beside.layout.dcp > 1:
        settings = replace(settings, exchange=ExchangeName.LOOPBACK)
    return replace(beside, settings=canonical(settings, beside.layout, beside.workload))


def _silent(case: Case) -> bool:
    return case.settings.exchange in (ExchangeName.LOOPBACK, ExchangeName.ALONE)


def _is_built(settings: Settings) -> bool:
    """Tell whether FlashInfer has what settings combine, as far as that can be said of them alone."""
    kernels = (settings.kernel, settings.kernel_for_decode)
    if settings.replayable and KernelName.PERSISTENT in kernels:
        return False
    return settings.decode_wrapper is DecodeWrapper.DECODE or settings.kernel_for_decode is not KernelName.CUDA_CORE


def _paths(layout: DcpLayout, workload: Workload) -> Iterator[PathName]:
    if layout.dcp == 1:
        yield PathName.TP
        return
    if workload.is_decode:
        yield PathName.DECODE
    yield from (PathName.SPLIT, PathName.FOLD, PathName.MASK)


def _kernels(case: Case, path: PathName, available: Available) -> list[KernelName]:
    decoding = path is PathName.DECODE or (path is PathName.TP and case.workload.is_decode)
    masks = (KernelName.FA2, KernelName.REFERENCE)
    tensor = [name for name in available.kernels if name is not KernelName.CUDA_CORE]
    fit = [name for name in tensor if name in masks] if path is PathName.MASK else tensor
    return [*fit, *(_cuda_core(case, available) if decoding else [])] or [KernelName.REFERENCE]


def _cuda_core(case: Case, available: Available) -> list[KernelName]:
    heads = case.layout.heads(case.shape)
    fits = heads.gathered // heads.kv in CUDA_CORE_GROUPS
    return [name for name in available.kernels if name is KernelName.CUDA_CORE and fits]


def _exchanges(case: Case, available: Available) -> tuple[ExchangeName, ...]:
    if _silent(case):
        return (case.settings.exchange,)
    return available.exchanges or (case.settings.exchange,)


def _fold_limits(case: Case, path: PathName) -> list[int]:
    """Where longer requests may go through split instead: above each length that there is, but the longest."""
    lengths = sorted({new for new in case.workload.new_lens if new > 1})
    return [Settings().fold_limit, *lengths[:-1]] if path is PathName.FOLD else [Settings().fold_limit]


_Values = Callable[[Case, PathName, Available], Sequence[object]]
_VALUES: Mapping[str, _Values] = {
    "batching": lambda case, path, available: list(Batching),
    "fold_limit": lambda case, path, available: _fold_limits(case, path),
    "replayable": lambda case, path, available: [False, True],
    "exchange": lambda case, path, available: _exchanges(case, available),
    "kernel": _kernels,
    "new_kernel": lambda case, path, available: [
        None,
        *(name for name in available.kernels if name not in (KernelName.CUDA_CORE, KernelName.PERSISTENT)),
    ],
    "decode_kernel": lambda case, path, available: [None, *_kernels(case, PathName.DECODE, available)],
    "decode_wrapper": lambda case, path, available: list(DecodeWrapper),
    "disable_split_kv": lambda case, path, available: [False, True],
    "fixed_split_size": lambda case, path, available: [None, *SPLIT_PAGES],
    "mask_form": lambda case, path, available: [MaskForm.PACKED, MaskForm.COMPUTED],
    "overlap": lambda case, path, available: [False, True],
    "skip_empty_context": lambda case, path, available: [True, False],
    # Dear ones last: the cache is laid out anew for each.
    "page_size": lambda case, path, available: [
        size for size in PAGE_SIZES if size % case.layout.canonical.interleave == 0
    ],
    "kv_layout": lambda case, path, available: list(KvLayout),
}
"""What each setting may be, in the order in which they decide whether the next plays a part. A new one is a line."""
