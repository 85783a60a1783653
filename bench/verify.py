"""What ``dcpbench verify`` runs: every path, kernel and exchange on batches chosen for the faults that DCP has had."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from dcp_core.layout import DcpLayout
from dcp_core.settings import (
    Batching,
    Case,
    DecodeWrapper,
    ExchangeName,
    IllegalSettings,
    IndexDevice,
    KernelName,
    KvLayout,
    MaskForm,
    PathName,
    Settings,
    canonical,
    is_legal,
)
from dcp_core.shapes import DType, ModelShape, Workload

BATCHES = {
    "fewer tokens than ranks": "q1s1_q1s2_q2s3",
    "no multiple of dcp": "3q1s37_2q1s401",
    "the published example": "q8s25",
    "no context": "q5_q64_q1",
    "context below a rank": "q7s9_q1s17_q4s6",
    "one long among many short": "q3s700_6q1s5_4q2s8",
    "decodes, extends and prefills": "q5s5_q1s3_q17s130_q1s64_q2s3",
    "speculative": "4q4s133",
}
"""Batches by what they try: each is a fault that a DCP implementation's tracker records."""
REAL_BATCHES = tuple(
    BATCHES[name]
    for name in ("fewer tokens than ranks", "no multiple of dcp", "no context", "decodes, extends and prefills")
)
"""Of these, what the exchanges between real ranks are tried with."""
DCPS = (1, 2, 3, 4, 8)
INTERLEAVES = (1, 2, 16)
FEW = tuple(BATCHES[name] for name in ("no multiple of dcp", "decodes, extends and prefills", "speculative"))
"""Every kind of request, decodes by themselves too: for head dims, and for kernels that are checked in full elsewhere."""
RANK_HEADS = ((4, 1), (1, 1), (4, 2))
"""(query heads, KV heads) of one rank: what a server holds, the least there can be, and a synthetic group with several KV
heads."""
HEAD_DIMS = (64, 128, 256)
PAGES_ONLY = (KernelName.CUDA_CORE, KernelName.PERSISTENT)
"""Kernels that read pages, and so not the new tokens of ``split``."""
PAGE_SIZES = (1, 16, 64)
"""Tokens per page, where the interleave divides them."""


@dataclass(frozen=True, slots=True)
class Selection:
    """What to verify.

    Every path and kernel meets every batch, dcp and interleave with the ranks simulated in one process; the exchanges
    between real ranks, which know nothing of batches or interleaves, meet every path. Settings that are not crossed
    (another kernel for new tokens, page sizes and layouts, index tensors, plans for CUDA graphs, fold's limit) are drawn for
    each case, always the same for the same selection.

    Args:
        kernels: those that run on this machine.
        ranks: real ranks; larger groups are simulated.
        exchanges: between real ranks, those that run on this machine.
        seldom: kernels among them that meet FEW batches only: those that are checked in full elsewhere.
        thorough: cross the exchanges between real ranks with everything too, not with REAL_BATCHES at interleave 1 alone.
        dtypes: of queries and cache.
    """

    kernels: tuple[KernelName, ...]
    ranks: int
    exchanges: tuple[ExchangeName, ...]
    seldom: tuple[KernelName, ...] = ()
    thorough: bool = False
    dtypes: tuple[DType, ...] = (DType.FLOAT32,)
    dcps: tuple[int, ...] = DCPS
    interleaves: tuple[int, ...] = INTERLEAVES
    paths: tuple[PathName, ...] = tuple(PathName)
    batches: tuple[str, ...] = tuple(BATCHES.values())
    head_dims: tuple[int, ...] = HEAD_DIMS


def verify_cases(selection: Selection) -> list[Case]:
    """Return the cases of a selection, those of one batch one after another, so that each path meets the one before.

    Head dims are crossed with FEW batches and interleave 1, all else with the smallest head dim.
    """
    smallest, *others = selection.head_dims
    simulated, real = replace(selection, ranks=1), replace(selection, dcps=_real_dcps(selection))
    if not selection.thorough:
        real = replace(real, interleaves=(1,), batches=tuple(b for b in selection.batches if b in REAL_BATCHES))
    few = replace(simulated, interleaves=(1,), batches=tuple(b for b in selection.batches if b in FEW))
    cases = [*_cross(simulated, smallest), *_cross(real, smallest)]
    for head_dim in others:
        cases += _cross(few, head_dim)
    draw = random.Random(0)
    return [_varied(case, selection, draw) for case in {case.key: case for case in cases}.values()]


def _real_dcps(selection: Selection) -> tuple[int, ...]:
    return tuple(dcp for dcp in selection.dcps if 1 < dcp <= selection.ranks)


def _cross(selection: Selection, head_dim: int) -> list[Case]:
    often = tuple(name for name in selection.kernels if name not in selection.seldom)
    return [
        case
        for dtype in selection.dtypes
        for dcp in selection.dcps
        for interleave in (selection.interleaves if dcp > 1 else (1,))
        for query, kv in RANK_HEADS
        for batch in selection.batches
        for case in _one_batch(
            ModelShape(query * dcp, kv, head_dim, dtype=dtype),
            DcpLayout(dcp, dcp, interleave),
            Workload.parse(batch),
            selection if batch in FEW else replace(selection, kernels=often),
        )
    ]


def _one_batch(shape: ModelShape, layout: DcpLayout, workload: Workload, selection: Selection) -> Iterator[Case]:
    for settings in _settings(layout, selection):
        try:
            yield Case(shape, layout, workload, _settled(settings, layout, workload))
        except IllegalSettings:
            continue


def _settled(settings: Settings, layout: DcpLayout, workload: Workload) -> Settings:
    """Return canonical settings; in a simulation too with all that it runs and does not time."""
    simulated = settings.exchange is ExchangeName.LOOPBACK
    wired = replace(settings, exchange=ExchangeName.AG_RS) if simulated else settings
    settled = canonical(wired, layout, workload)
    return replace(settled, exchange=ExchangeName.LOOPBACK) if simulated else settled


def _varied(case: Case, selection: Selection, draw: random.Random) -> Case:
    """Return a case with values drawn for the settings that are not crossed; those that its path cannot take stay."""
    settings, interleave = case.settings, case.layout.interleave
    drawn: dict[str, Any] = {
        "page_size": draw.choice([size for size in PAGE_SIZES if size % interleave == 0]),
        "kv_layout": draw.choice(list(KvLayout)),
        "index_device": draw.choice(list(IndexDevice)),
    }
    if settings.path is PathName.SPLIT:
        drawn["new_kernel"] = draw.choice([name for name in selection.kernels if name not in PAGES_ONLY])
    if settings.path is PathName.FOLD and settings.batching is not Batching.JOINED:
        drawn["fold_limit"] = draw.choice([3, settings.fold_limit])
    kernels = {settings.kernel, settings.kernel_for_decode, drawn.get("new_kernel", settings.kernel)}
    if KernelName.REFERENCE not in kernels:
        drawn["overlap"] = draw.choice([False, True])
        drawn["decode_wrapper"] = draw.choice(list(DecodeWrapper))
        drawn["disable_split_kv"] = draw.choice([False, True])
        if settings.path is not PathName.FOLD and KernelName.PERSISTENT not in kernels:
            drawn["replayable"] = draw.choice([False, True])
        if not (drawn["disable_split_kv"] or drawn.get("replayable")):
            drawn["fixed_split_size"] = draw.choice([None, 2])
    varied = replace(settings, **drawn)
    return replace(case, settings=varied) if is_legal(varied, case.layout, case.workload) else case


def _settings(layout: DcpLayout, selection: Selection) -> Iterator[Settings]:
    """Yield every combination; those that cannot go together, or with the layout and batch, raise when they meet."""
    for path in selection.paths:
        if (path is PathName.TP) != (layout.dcp == 1):
            continue
        for kernel in selection.kernels:
            for exchange in _exchanges(layout, selection):
                for batching in Batching:
                    # In one pass for all, a mask holds every request of the batch: enough to try each of its forms with.
                    every_form = path is PathName.MASK and batching is Batching.JOINED
                    for form in MaskForm if every_form else (MaskForm.PACKED,):
                        for skip in (True, False) if path is PathName.SPLIT else (True,):
                            yield from _legal(
                                path=path,
                                kernel=kernel,
                                exchange=exchange,
                                mask_form=form,
                                batching=batching,
                                skip_empty_context=skip,
                            )


def _legal(*, path: PathName, kernel: KernelName, **others: object) -> Iterator[Settings]:
    decode_only = kernel is KernelName.CUDA_CORE
    main = KernelName.FA2 if decode_only else kernel
    new = KernelName.FA2 if kernel is KernelName.PERSISTENT and path is PathName.SPLIT else None
    data = {"path": path, "kernel": main, "new_kernel": new, "decode_kernel": kernel if decode_only else None, **others}
    try:
        yield Settings.from_json(data)
    except IllegalSettings:
        return


def _exchanges(layout: DcpLayout, selection: Selection) -> Iterable[ExchangeName]:
    if layout.dcp == 1:
        return (ExchangeName.ALONE,)
    return selection.exchanges if layout.dcp <= selection.ranks else (ExchangeName.LOOPBACK,)
