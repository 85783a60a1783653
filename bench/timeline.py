"""What runs when in a step: each piece of work on the device, as CUPTI sees it through torch's profiler."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from torch.profiler import ProfilerActivity, profile

from bench.audit import repetitions_of
from bench.clock import Sampler
from bench.record import MAX_PIECES
from bench.times import Piece
from dcp_core.mesh import Mesh

ATTEMPTS = 6
"""At profiling a call: some work is missed at times, always the first time. What is seen in as many pieces twice is believed."""
RENDEZVOUS = "AllReduce"
"""Is in the name of the kernel by which ranks meet before each repetition, and of nothing in a step."""
COPY = "copy"
"""Stands for torch's kernel that copies elements, whose own name is that of any element-wise one."""
OF_THE_EXCHANGE = (
    "nccl",
    *("gather_words", "gather_rows", "meet_once", "combine_words", "combine_rows"),
    *("_rescale", "_combine", COPY),
    *("Memcpy DtoD", "Memcpy PtoP", "memcpy"),
)
"""How names begin: NCCL's kernels, those of ``direct``, the arithmetic of ``ag_rs`` and ``a2a`` with the copies that put rows in
order for them, and copies of the driver's, by copy engines or a kernel of its own."""


class Seen(NamedTuple):
    """A piece of work that a device did: when it began and ended, in µs of the profiler's clock, and its name in full."""

    start_us: float
    end_us: float
    name: str


def watch(sample: Sampler, count: int) -> tuple[list[float], list[Seen]]:
    """Sample so many repetitions, and return their times with every piece of work that CUPTI saw meanwhile."""
    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        times = sample(count)
    seen = [
        Seen(event.time_range.start, event.time_range.end, event.name)
        for event in profiled.events()
        if event.device_type.name == "CUDA"
    ]
    return times, seen


def refusal() -> str:
    """Say why this rank's profiler does not start, or nothing."""
    try:
        with profile(activities=[ProfilerActivity.CUDA]):
            return ""
    except RuntimeError as error:
        return f"CUPTI cannot be had: {error}"


def timeline_of(sample: Sampler, repetitions: int, mesh: Mesh) -> tuple[Piece, ...]:
    """Repeat a step until CUPTI saw what it consists of; every rank of the group must call this, and all return the same.

    Args:
        sample: of the step, behind the ranks' rendezvous.
        repetitions: at a time.

    Returns:
        What ran on rank 0, which has most keys; nothing if a rank's profiler does not start, or never saw as much twice.
    """
    if mesh.first_problem(refusal()):
        return ()
    before = -1
    for _ in range(ATTEMPTS):
        _, seen = watch(sample, repetitions)
        found = _believed(seen, repetitions) if len(seen) == before else ()
        before = len(seen)
        # Rank 0 decides for all: a rank that stopped by itself would leave the others waiting for it.
        if first := mesh.share(found)[0]:
            return first
    return ()


def median_repetition(seen: Sequence[Seen], repetitions: int) -> tuple[Piece, ...]:
    """Return the pieces of the repetition whose length is the median, of an even number the shorter of two.

    A repetition begins after the ranks' rendezvous: neither that nor the cooling of the cache before it is of the step.

    Raises:
        ValueError: where repetitions cannot be told apart, are not all of the same pieces, or of more than a trial keeps.
    """
    each = [_after_rendezvous(own) for own in repetitions_of(seen, repetitions, 0)]
    if len({tuple(sorted(piece.name for piece in own)) for own in each}) > 1:
        raise ValueError(f"{repetitions} repetitions are not of the same pieces of work")
    if not 0 < len(each[0]) <= MAX_PIECES:
        raise ValueError(f"a repetition of {len(each[0])} pieces of work, not 1 to {MAX_PIECES}")
    own = sorted(each, key=_length_us)[(repetitions - 1) // 2]
    start_us = own[0].start_us
    return tuple(_piece(piece, start_us) for piece in own)


def short_name(name: str) -> str:
    """Return a kernel's name without its type, namespaces, template and other arguments; of a copy what kind it is.

    Examples:
        >>> short_name("void flashinfer::BatchPrefillWithPagedKVCacheKernel<(flashinfer::MaskMode)0, Params<float>>(Params)")
        'BatchPrefillWithPagedKVCacheKernel'
        >>> short_name("Memcpy DtoD (Device -> Device)")
        'Memcpy DtoD'
    """
    if "direct_copy_kernel" in name:
        return COPY
    if name.startswith(("Memcpy", "Memset")):
        return name.partition(" (")[0]
    bare, templates = name.replace("(anonymous namespace)", ""), 1
    while templates:
        bare, templates = re.subn(r"<[^<>]*>", "", bare)
    words = bare.partition("(")[0].split()
    return words[-1].rpartition("::")[2] if words else name


def communicates(name: str) -> bool:
    """Tell from its short name whether a piece of work is of the exchange."""
    return name.startswith(OF_THE_EXCHANGE)


def _believed(seen: Sequence[Seen], repetitions: int) -> tuple[Piece, ...]:
    try:
        return median_repetition(seen, repetitions)
    except ValueError:
        return ()


def _after_rendezvous(own: Sequence[Seen]) -> Sequence[Seen]:
    places = [place for place, piece in enumerate(own) if RENDEZVOUS in piece.name]
    if len(places) != 1:
        raise ValueError(f"a repetition begins with one rendezvous, and this one has {len(places)}")
    return own[places[0] + 1 :]


def _length_us(own: Sequence[Seen]) -> float:
    return max(piece.end_us for piece in own) - own[0].start_us


def _piece(seen: Seen, start_us: float) -> Piece:
    name = short_name(seen.name)
    start, end = (round(time_us - start_us, 3) for time_us in (seen.start_us, seen.end_us))  # CUPTI tells nanoseconds
    return Piece(name, start, end, communicates(name))
