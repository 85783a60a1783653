"""Adding up partial results of several ranks in one kernel, as ``dcp_core.lse`` defines it. Floor 3."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dcp_core.lse import LseBase, Partial, check_shares, check_sources, room_for

TILE = 1024
"""Elements of one source that a program adds up: 16 bytes of bfloat16 a thread, the widest load there is."""


def combine(
    outs: Tensor,
    lses: Tensor,
    *,
    base: LseBase = LseBase.NATURAL,
    into: Partial | None = None,
    marks: Tensor | None = None,
) -> Partial:
    """Add up partial results over disjoint sets of keys, as ``dcp_core.lse.combine`` does.

    Args:
        outs: ``[N, T, H, D]``, any strides but for contiguous D: a receive buffer that holds the LSE too, say.
        lses: ``[N, T, H]`` float32, in ``base``, any strides.
        into: where to write, with strides as free; allocated if None. It may be one of the sources.
        marks: int64 ``[ranks]``: where any is not 0, the sources are not what they should be.

    Returns:
        A natural Partial of ``[T, H, D]``; NaN where the sources are marked.

    Raises:
        ValueError: for shapes, strides or dtypes that do not fit.
    """
    check_sources(outs, lses)
    into = room_for(outs[0], into)
    check_rows(outs, into.out)
    check_lses(lses, into.lse)
    sources, tokens, heads, head_dim = outs.shape
    if tokens * heads == 0:
        return into
    height, columns = tile(head_dim)
    _combine[(triton.cdiv(tokens * heads, height),)](
        outs,
        *outs.stride()[:3],
        lses,
        *lses.stride(),
        into.out,
        *into.out.stride()[:2],
        into.lse,
        *into.lse.stride(),
        tokens * heads,
        heads,
        base.to_natural,
        lses if marks is None else marks,
        HEAD_DIM=head_dim,
        SOURCES=sources,
        MARKS=0 if marks is None else marks.numel(),
        HEIGHT=height,
        COLUMNS=columns,
    )
    return into


def rescale(partial: Partial, lses: Tensor, *, into: Partial | None = None) -> Partial:
    """Weigh one rank's partial by its share of the total, so that the sum over the ranks is the combined result.

    Args:
        partial: ``[T, H, D]`` of this rank; its rows may have any stride.
        lses: ``[N, T, H]`` float32 of all ranks, this one among them, in the base of ``partial``.
        into: where to write, in a dtype of its own; allocated if None. It may be ``partial``.

    Returns:
        ``out * exp(lse - total)``, which is 0 where this rank saw no key, and the total natural LSE. Where any rank has
        a NaN or +inf LSE, the total is NaN, and so is every out that is not empty.

    Raises:
        ValueError: for shapes, strides or dtypes that do not fit.
    """
    check_shares(partial, lses)
    into = room_for(partial.out, into)
    check_rows(partial.out, into.out)
    check_lses(partial.lse, lses, into.lse)
    tokens, heads, head_dim = partial.out.shape
    if tokens * heads == 0:
        return into
    height, columns = tile(head_dim)
    _rescale[(triton.cdiv(tokens * heads, height),)](
        partial.out,
        *partial.out.stride()[:2],
        partial.lse,
        *partial.lse.stride(),
        lses,
        *lses.stride(),
        into.out,
        *into.out.stride()[:2],
        into.lse,
        *into.lse.stride(),
        tokens * heads,
        heads,
        partial.base.to_natural,
        HEAD_DIM=head_dim,
        SOURCES=lses.shape[0],
        HEIGHT=height,
        COLUMNS=columns,
    )
    return into


def check_rows(*outs: Tensor) -> None:
    """Refuse tensors whose last dimension, the elements of a head, is not contiguous."""
    for out in outs:
        if out.stride(-1) != 1 and out.shape[-1] > 1:
            raise ValueError(f"the elements of a head should be contiguous, not {out.stride(-1)} apart")


def check_lses(*lses: Tensor) -> None:
    """Refuse log-sum-exps other than float32."""
    for lse in lses:
        if lse.dtype != torch.float32:
            raise ValueError(f"an lse should be float32, not {lse.dtype}")


def tile(head_dim: int) -> tuple[int, int]:
    """Return the rows and columns of a program's tile; a row is one head of one token."""
    columns = triton.next_power_of_2(head_dim)
    return max(TILE // columns, 1), columns


@triton.jit
def natural_lse(pointers, live, base_to_natural):
    """Load log-sum-exps; rows beyond the last count as empty."""
    return tl.load(pointers, live, float("-inf")) * base_to_natural


@triton.jit
def weight(lse, top):
    """Return exp(lse - top), and 0 for an empty row even if all are; NaN where either is NaN."""
    return tl.where(lse == float("-inf"), 0.0, tl.exp(lse - top))


@triton.jit
def weighed(pointers, inside, lse, share):
    """Load rows of an out and multiply each by its share; an empty row's memory may hold anything, and 0 * NaN is NaN."""
    rows = tl.load(pointers, inside, 0.0).to(tl.float32)
    return tl.where(lse[:, None] == float("-inf"), 0.0, rows * share[:, None])


@triton.jit
def total_lse(top, total):
    """Return the LSE whose weights relative to ``top`` add up to ``total``."""
    return tl.where(total == 0.0, float("-inf"), top + tl.log(total))


@triton.jit
def where_row(rows, heads, HEIGHT: tl.constexpr):
    """Return a program's tokens (int64: a batch has more elements than int32 counts) and heads, and which exist."""
    row = tl.program_id(0) * HEIGHT + tl.arange(0, HEIGHT)
    return (row // heads).to(tl.int64), row % heads, row < rows


@triton.jit
def largest_lse(lses, stride, live, base_to_natural, SOURCES: tl.constexpr, HEIGHT: tl.constexpr):
    """Return the largest LSE of each row over the sources. A NaN may get lost here: its weight is NaN all the same."""
    top = tl.full((HEIGHT,), float("-inf"), tl.float32)
    for _ in tl.static_range(SOURCES):
        top = tl.maximum(top, natural_lse(lses, live, base_to_natural))
        lses += stride
    return top


# Lengths and strides that may be 1 are not specialised on: a kernel for them alone would be compiled in mid-run. The
# strides of outs are, because loads of 16 bytes need to know that they are multiples of 16.
_PLAIN = ["lse_n", "lse_t", "lse_h", "total_t", "total_h", "rows", "heads"]


@triton.jit(do_not_specialize=_PLAIN)
def _combine(
    outs,
    out_n,
    out_t,
    out_h,
    lses,
    lse_n,
    lse_t,
    lse_h,
    result,
    result_t,
    result_h,
    total_lses,
    total_t,
    total_h,
    rows,
    heads,
    base_to_natural,
    marks,
    HEAD_DIM: tl.constexpr,
    SOURCES: tl.constexpr,
    MARKS: tl.constexpr,
    HEIGHT: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    token, head, live = where_row(rows, heads, HEIGHT)
    column = tl.arange(0, COLUMNS)[None, :]
    inside = live[:, None] & (column < HEAD_DIM)
    lses += token * lse_t + head * lse_h
    outs += (token * out_t + head * out_h)[:, None] + column

    top = largest_lse(lses, lse_n, live, base_to_natural, SOURCES, HEIGHT)
    total = tl.zeros((HEIGHT,), tl.float32)
    added = tl.zeros((HEIGHT, COLUMNS), tl.float32)
    for _ in tl.static_range(SOURCES):
        lse = natural_lse(lses, live, base_to_natural)
        total += weight(lse, top)
        added += weighed(outs, inside, lse, weight(lse, top))
        lses += lse_n
        outs += out_n
    added /= tl.where(total == 0.0, 1.0, total)[:, None]
    for mark in tl.static_range(MARKS):
        total += tl.where(tl.load(marks + mark) == 0, 0.0, float("nan"))
        added += tl.where(tl.load(marks + mark) == 0, 0.0, float("nan"))

    target = result + (token * result_t + head * result_h)[:, None] + column
    # In place, a warp that is done would overwrite LSEs that another has yet to read.
    tl.debug_barrier()
    tl.store(target, added.to(result.dtype.element_ty), inside)
    tl.store(total_lses + token * total_t + head * total_h, total_lse(top, total), live)


@triton.jit(do_not_specialize=["own_t", "own_h", *_PLAIN])
def _rescale(
    out,
    out_t,
    out_h,
    own_lse,
    own_t,
    own_h,
    lses,
    lse_n,
    lse_t,
    lse_h,
    result,
    result_t,
    result_h,
    total_lses,
    total_t,
    total_h,
    rows,
    heads,
    base_to_natural,
    HEAD_DIM: tl.constexpr,
    SOURCES: tl.constexpr,
    HEIGHT: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    token, head, live = where_row(rows, heads, HEIGHT)
    column = tl.arange(0, COLUMNS)[None, :]
    inside = live[:, None] & (column < HEAD_DIM)
    lses += token * lse_t + head * lse_h

    top = largest_lse(lses, lse_n, live, base_to_natural, SOURCES, HEIGHT)
    total = tl.zeros((HEIGHT,), tl.float32)
    for _ in tl.static_range(SOURCES):
        total += weight(natural_lse(lses, live, base_to_natural), top)
        lses += lse_n
    own = natural_lse(own_lse + token * own_t + head * own_h, live, base_to_natural)
    share = weight(own, top) / tl.where(total == 0.0, 1.0, total)
    scaled = weighed(out + (token * out_t + head * out_h)[:, None] + column, inside, own, share)

    target = result + (token * result_t + head * result_h)[:, None] + column
    # In place, a warp that is done would overwrite LSEs that another has yet to read.
    tl.debug_barrier()
    tl.store(target, scaled.to(result.dtype.element_ty), inside)
    tl.store(total_lses + token * total_t + head * total_h, total_lse(top, total), live)
