"""What one rank's attention step has to compute, read and send, and the time it cannot beat. Floor 1: standard library only.

Counts are exact for what the kernels visit; times are a roofline over ceilings, good for planning a run and never shown as
a result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby

from dcp_core.settings import Batching, Case, ExchangeName, KernelName, MaskForm, PathName
from dcp_core.shapes import MAX_TOKENS, Request

TILE = 128
"""Rows of queries of one head that fa3 computes together, however few there are: FlashInfer 0.7."""


@dataclass(frozen=True, slots=True)
class Ceiling:
    """What a device can do at best in this kind of work.

    Args:
        flops_per_s: of attention in 16-bit elements (float32 on a CPU).
        bytes_per_s: read from its memory.
        wire_bytes_per_s: received from peers.
        launch_s: host time of launching one stage.
        wire_s: time of one exchange, however little it moves.
        masked_share: of ``flops_per_s`` that a pass with a custom mask reaches.
    """

    name: str
    flops_per_s: float
    bytes_per_s: float
    wire_bytes_per_s: float
    launch_s: float
    wire_s: float
    masked_share: float = 0.3


# H200: measured with FlashInfer 0.7.2 (fa2 and fa3 prefill 380 to 730 TFLOP/s, masked 125; copy 4.25 TB/s; NCCL 280 GB/s).
# The others: the H200's share of its datasheet's peak, applied to theirs.
_CEILINGS = (
    Ceiling("H200", 450e12, 3.7e12, 2.4e11, 10e-6, 10e-6),
    Ceiling("H100", 450e12, 2.6e12, 2.4e11, 10e-6, 10e-6),
    Ceiling("B200", 1000e12, 6.0e12, 4.8e11, 10e-6, 10e-6),
    Ceiling("A100", 140e12, 1.5e12, 1.6e11, 10e-6, 10e-6),
)
GPU = Ceiling("another GPU", 100e12, 0.8e12, 2e10, 10e-6, 10e-6)
"""A device that the table does not know: a guess on the slow side."""
CPU = Ceiling("CPU", 12e9, 2e9, 5e8, 100e-6, 3e-3, masked_share=1.0)
"""One core of a server running the torch kernel; its wire is gloo over loopback."""


def ceiling_of(device_name: str) -> Ceiling:
    """Return the ceiling of a GPU by its name as the driver tells it; the CPU's for an empty name."""
    if not device_name:
        return CPU
    return next((ceiling for ceiling in _CEILINGS if ceiling.name in device_name), GPU)


@dataclass(frozen=True, slots=True)
class Work:
    """One stage of a rank's step.

    Args:
        flops: of both matrix products over the (query, key) pairs that the kernel visits.
        bytes_moved: keys, values, queries, outputs and masks, each once.
        wire_bytes: received from peers.
        masked: it runs with a custom mask.
        kernel: that computes it; None of what is no attention.
        rows: of queries, one for each token and head; 0 of what is no attention.
        tiles: of TILE rows that hold them, where none holds rows of two heads or requests.
    """

    stage: str
    flops: int = 0
    bytes_moved: int = 0
    wire_bytes: int = 0
    masked: bool = False
    kernel: KernelName | None = None
    rows: int = 0
    tiles: int = 0

    def seconds(self, ceiling: Ceiling) -> float:
        """Return the time that the device cannot beat, its launch included."""
        flops_per_s = ceiling.flops_per_s * (ceiling.masked_share if self.masked else 1.0)
        device = max(self.flops / flops_per_s, self.bytes_moved / ceiling.bytes_per_s)
        wire = ceiling.wire_s + self.wire_bytes / ceiling.wire_bytes_per_s if self.wire_bytes else 0.0
        return ceiling.launch_s + device + wire


def step_work(case: Case, rank: int = 0) -> tuple[Work, ...]:
    """Return what one rank's step consists of, in order; rank 0 holds the most keys.

    Raises:
        IllegalLayout: for a rank outside the group.
    """
    parts = list(_parts(case))
    if case.settings.batching is Batching.SHARED and len(parts) > 1:
        once = _exchange(case, case.workload.requests, PathName.DECODE)
        return (*once, *(work for requests, path in parts for work in _attention(case, requests, path, rank)))
    return tuple(work for requests, path in parts for work in _step(case, requests, path, rank))


def exchanged(case: Case) -> Iterator[tuple[tuple[Request, ...], PathName]]:
    """Yield the requests of each gather and combine that a step has, and the path they take; none at dcp 1."""
    parts = list(_parts(case))
    if case.settings.batching is Batching.SHARED and len(parts) > 1:
        parts = [(case.workload.requests, PathName.DECODE)]
    for requests, path in parts:
        if case.layout.dcp > 1 and not _needs_nobody(case, requests, path):
            yield requests, path


def _needs_nobody(case: Case, requests: tuple[Request, ...], path: PathName) -> bool:
    """Tell whether no request has context, and ``split`` leaves gather and combine out then."""
    may_skip = case.settings.skip_empty_context and not case.settings.replayable
    return path is PathName.SPLIT and may_skip and not any(one.context for one in requests)


def _parts(case: Case) -> Iterator[tuple[tuple[Request, ...], PathName]]:
    """Yield the requests that run alike, with their path: all of them, or decodes apart from what fold takes and what not."""
    requests, settings = case.workload.requests, case.settings
    if settings.batching is Batching.JOINED or settings.path not in (PathName.SPLIT, PathName.MASK, PathName.FOLD):
        yield requests, settings.path
        return
    limit = settings.fold_limit if settings.path is PathName.FOLD else MAX_TOKENS
    decodes = settings.path if case.workload.is_decode else PathName.DECODE
    for path, low, high in ((decodes, 0, 1), (settings.path, 1, limit), (PathName.SPLIT, limit, MAX_TOKENS)):
        chosen = tuple(request for request in requests if low < request.new <= high)
        if chosen:
            yield chosen, path


def _step(case: Case, requests: tuple[Request, ...], path: PathName, rank: int) -> Iterator[Work]:
    yield from _exchange(case, requests, path)
    yield from _attention(case, requests, path, rank)


def _attention(case: Case, requests: tuple[Request, ...], path: PathName, rank: int) -> Iterator[Work]:
    layout, heads = case.layout, case.layout.heads(case.shape)
    runs = [(request, len(list(run))) for request, run in groupby(requests)]

    def total(of: Callable[[Request], int]) -> int:
        """Sum over the requests; those alike in a row, of which batches have many, are asked once."""
        return sum([of(request) * count for request, count in runs])

    def held(request: Request) -> int:
        return layout.local_len(request.total, rank)

    def cached(request: Request) -> int:
        return layout.local_len(request.context, rank)

    def causal(request: Request) -> int:
        return _triangle(request.new)

    def tiles(request: Request) -> int:
        return -(-request.new // TILE)

    settings, new = case.settings, total(lambda request: request.new)
    attend = partial(_pass, case, new, kernel=settings.kernel, tiles=total(tiles))
    match path:
        case PathName.TP:
            pairs = total(lambda request: request.new * request.context + causal(request))
            yield attend("attention", pairs=pairs, keys=total(held), heads=heads.query)
        case PathName.DECODE:
            keys, kernel = total(held), settings.kernel_for_decode
            yield attend("attention", kernel=kernel, pairs=keys, keys=keys, heads=heads.gathered)
        case PathName.SPLIT:
            pairs = total(lambda request: request.new * cached(request))
            yield attend("context", pairs=pairs, keys=total(cached), heads=heads.gathered)
            yield attend("new", kernel=settings.kernel_for_new, pairs=total(causal), keys=new, heads=heads.query)
            yield Work("merge", bytes_moved=3 * _row_bytes(case, new, heads.query))
        case PathName.MASK:
            pairs = total(lambda request: request.new * held(request))
            work = attend("attention", pairs=pairs, keys=total(held), heads=heads.gathered)
            mask_bytes = _mask_bytes(settings.mask_form, pairs)
            yield replace(work, bytes_moved=work.bytes_moved + mask_bytes, masked=True)
        case PathName.FOLD:

            def rows(request: Request) -> int:
                return -(-request.new // layout.dcp)

            pairs = total(lambda request: layout.dcp * _rows_pairs(rows(request), cached(request)))
            keys = total(lambda request: cached(request) + rows(request) - 1)
            folded = total(lambda request: layout.dcp * -(-rows(request) // TILE))
            yield attend("attention", pairs=pairs, keys=keys, heads=heads.gathered, tiles=folded)
            own = total(lambda request: _own_row_pairs(request.new, layout.dcp))
            yield attend("new", kernel=settings.kernel_for_new, pairs=own, keys=new, heads=heads.query)
            yield Work("merge", bytes_moved=3 * _row_bytes(case, new, heads.query))


def _pass(
    case: Case, new: int, stage: str, *, kernel: KernelName, tiles: int, pairs: int, keys: int, heads: int
) -> Work:
    """Two products of ``2 * head_dim`` flops for each (query, key) pair and head: scores, and weighted values."""
    shape, kv_heads = case.shape, case.layout.heads(case.shape).kv
    key_bytes = 2 * keys * kv_heads * shape.head_dim * shape.cache_dtype.itemsize
    return Work(
        stage,
        4 * shape.head_dim * heads * pairs,
        key_bytes + 2 * _row_bytes(case, new, heads),
        kernel=kernel,
        rows=heads * new,
        tiles=heads * tiles,
    )


def _exchange(case: Case, requests: tuple[Request, ...], path: PathName) -> Iterator[Work]:
    """Gathering every rank's queries, and combining every rank's results; nothing where ranks share a process."""
    layout, settings = case.layout, case.settings
    if _needs_nobody(case, requests, path) or settings.exchange in (ExchangeName.ALONE, ExchangeName.LOOPBACK):
        return
    heads, rows, peers = layout.heads(case.shape), sum(request.new for request in requests), layout.dcp - 1
    own, everything = _row_bytes(case, rows, heads.query), _row_bytes(case, rows, heads.gathered)
    yield Work("gather", bytes_moved=2 * everything, wire_bytes=peers * own)
    yield Work("combine", bytes_moved=3 * everything, wire_bytes=peers * own)


def _row_bytes(case: Case, rows: int, heads: int) -> int:
    return rows * heads * case.shape.head_dim * case.shape.dtype.itemsize


def _triangle(new: int) -> int:
    return new * (new + 1) // 2


def _rows_pairs(rows: int, held: int) -> int:
    """Pairs of fold's causal pass: row ``g`` sees the keys ``held`` of the context and ``g`` more."""
    return rows * held + _triangle(rows - 1)


def _own_row_pairs(new: int, dcp: int) -> int:
    """Pairs of queries and the new tokens of their own rows, of which all but the last hold ``dcp``."""
    return new // dcp * _triangle(dcp) + _triangle(new % dcp)


def _mask_bytes(form: MaskForm, elements: int) -> int:
    match form:
        case MaskForm.BOOL | MaskForm.PACKED:
            return elements // 8
        case MaskForm.COMPUTED:
            return 0


def plan_bytes(case: Case) -> int:
    """Return the bytes that planning a batch touches beyond index tensors: those of the mask that it builds or packs."""
    if case.settings.path is not PathName.MASK:
        return 0
    elements = sum(request.new * case.layout.local_len(request.total, 0) for request in case.workload.requests)
    slow = case.settings.kernel is KernelName.REFERENCE or case.settings.mask_form is MaskForm.BOOL
    return elements if slow else elements // 8
