"""Attention of folded queries to the new tokens of their own row, as ``dcp_core.fold`` defines it. Floor 3."""

from __future__ import annotations

import math

import triton
import triton.language as tl
from torch import Tensor

from dcp_core.fold import check_own_row
from dcp_core.lse import Partial
from dcp_core.triton_ops.combine import check_rows, tile, weight, where_row


def attend_own_row(q: Tensor, k: Tensor, v: Tensor, earlier: Tensor, *, dcp: int, into: Partial) -> Partial:
    """Attend to the keys of each query's own row up to itself, as ``dcp_core.fold.attend_own_row`` does.

    Args:
        q: ``[T, h, D]``, any strides but for contiguous D.
        k, v: ``[T, kv_heads, D]``, strides as free.
        earlier: int32 ``[T]``, contiguous.
        into: where to write, strides as free.

    Raises:
        ValueError: for shapes or strides that do not fit.
    """
    check_own_row(q, k, v, earlier, into)
    check_rows(q, k, v, into.out)
    tokens, heads, head_dim = q.shape
    if tokens == 0:
        return into
    height, columns = tile(head_dim)
    _attend_own_row[(triton.cdiv(tokens * heads, height),)](
        q,
        *q.stride()[:2],
        k,
        *k.stride()[:2],
        v,
        *v.stride()[:2],
        earlier,
        into.out,
        *into.out.stride()[:2],
        into.lse,
        *into.lse.stride(),
        tokens * heads,
        heads,
        heads // k.shape[1],
        1 / math.sqrt(head_dim),
        HEAD_DIM=head_dim,
        DCP=dcp,
        HEIGHT=height,
        COLUMNS=columns,
    )
    return into


@triton.jit(do_not_specialize=["total_t", "total_h", "rows", "heads", "group"])
def _attend_own_row(
    q,
    q_t,
    q_h,
    k,
    k_t,
    k_h,
    v,
    v_t,
    v_h,
    earlier,
    result,
    result_t,
    result_h,
    total_lses,
    total_t,
    total_h,
    rows,
    heads,
    group,
    scale,
    HEAD_DIM: tl.constexpr,
    DCP: tl.constexpr,
    HEIGHT: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    token, head, live = where_row(rows, heads, HEIGHT)
    column = tl.arange(0, COLUMNS)[None, :]
    inside = live[:, None] & (column < HEAD_DIM)
    before = tl.load(earlier + token, live, 0)
    queries = tl.load(q + (token * q_t + head * q_h)[:, None] + column, inside, 0.0).to(tl.float32) * scale
    key = token * k_t + (head // group) * k_h
    value = token * v_t + (head // group) * v_h

    # The query's own key first: it is always seen, so that the largest score is finite from the start.
    keys = tl.load(k + key[:, None] + column, inside, 0.0).to(tl.float32)
    top = tl.sum(queries * keys, 1)
    total = tl.full((HEIGHT,), 1.0, tl.float32)
    added = tl.load(v + value[:, None] + column, inside, 0.0).to(tl.float32)
    for back in tl.static_range(1, DCP):
        seen = live & (before >= back)
        there = seen[:, None] & (column < HEAD_DIM)
        keys = tl.load(k + (key - back * k_t)[:, None] + column, there, 0.0).to(tl.float32)
        score = tl.where(seen, tl.sum(queries * keys, 1), float("-inf"))
        larger = tl.maximum(top, score)
        share, kept = weight(score, larger), weight(top, larger)
        values = tl.load(v + (value - back * v_t)[:, None] + column, there, 0.0).to(tl.float32)
        added = added * kept[:, None] + values * share[:, None]
        total = total * kept + share
        top = larger

    added /= total[:, None]
    target = result + (token * result_t + head * result_h)[:, None] + column
    tl.store(target, added.to(result.dtype.element_ty), inside)
    tl.store(total_lses + token * total_t + head * total_h, top + tl.log(total), live)
