"""Attention of folded queries to the new tokens of their own rows, as ``dcp_core.fold`` defines it. Floor 3."""

from __future__ import annotations

import triton
import triton.language as tl

from dcp_core.fold import OwnRows
from dcp_core.lse import Partial, room_for
from dcp_core.triton_ops.combine import check_lses, check_rows, natural_lse, tile, weight, where_row
from dcp_core.triton_ops.turns import at_rows


def attend_own_rows(rows: OwnRows, into: Partial) -> Partial:
    """Attend to own rows, as ``dcp_core.fold.attend_own_rows`` does; any strides but for contiguous D.

    Raises:
        ValueError: for shapes, strides or dtypes that do not fit.
    """
    into = room_for(rows.q, into)
    check_rows(rows.q, rows.k, rows.v, into.out)
    check_lses(into.lse)
    tokens, heads, head_dim = rows.q.shape
    if tokens == 0:
        return into
    height, columns = tile(head_dim)
    _attend_own_rows[(triton.cdiv(tokens * heads, height),)](
        *arguments(rows),
        into.out,
        *into.out.stride()[:2],
        into.lse,
        *into.lse.stride(),
        tokens * heads,
        heads,
        heads // rows.kv_heads,
        HEAD_DIM=head_dim,
        DCP=rows.dcp,
        HEIGHT=height,
        COLUMNS=columns,
    )
    return into


def arguments(rows: OwnRows) -> tuple[object, ...]:
    """Return what ``of_own_rows`` takes before the rows that a program attends to."""
    return (
        rows.q,
        *rows.q.stride()[:2],
        rows.k,
        *rows.k.stride()[:2],
        rows.v,
        *rows.v.stride()[:2],
        rows.earlier,
        rows.q.shape[-1] ** -0.5,
    )


@triton.jit
def of_own_rows(
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
    scale,
    token,
    head,
    kv_head,
    live,
    column,
    HEAD_DIM: tl.constexpr,
    DCP: tl.constexpr,
    ALIGNED: tl.constexpr,
):
    """Attend with some rows, each a head of a token; return outs ``[rows, columns]`` and natural LSEs, -inf if not live."""
    inside = live[:, None] & (column < HEAD_DIM)
    before = tl.load(earlier + token, live, 0)
    queries = tl.load(at_rows(q, token, head, q_t, q_h, column, ALIGNED), inside, 0.0).to(tl.float32) * scale
    # The query's own key first: it is always seen, so that the largest score is finite from the start.
    keys = tl.load(at_rows(k, token, kv_head, k_t, k_h, column, ALIGNED), inside, 0.0).to(tl.float32)
    top = tl.sum(queries * keys, 1)
    total = tl.full(top.shape, 1.0, tl.float32)
    added = tl.load(at_rows(v, token, kv_head, v_t, v_h, column, ALIGNED), inside, 0.0).to(tl.float32)
    for back in tl.static_range(1, DCP):
        seen = live & (before >= back)
        there = seen[:, None] & (column < HEAD_DIM)
        keys = tl.load(at_rows(k, token - back, kv_head, k_t, k_h, column, ALIGNED), there, 0.0).to(tl.float32)
        score = tl.where(seen, tl.sum(queries * keys, 1), float("-inf"))
        larger = tl.maximum(top, score)
        share, kept = weight(score, larger), weight(top, larger)
        values = tl.load(at_rows(v, token - back, kv_head, v_t, v_h, column, ALIGNED), there, 0.0).to(tl.float32)
        added = added * kept[:, None] + values * share[:, None]
        total = total * kept + share
        top = larger
    return added / total[:, None], tl.where(live, top + tl.log(total), float("-inf"))


@triton.jit
def rows_beside(
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
    scale,
    lses,
    lse_t,
    lse_h,
    base_to_natural,
    token,
    head,
    kv_head,
    live,
    column,
    HEAD_DIM: tl.constexpr,
    DCP: tl.constexpr,
    OWN_ROWS: tl.constexpr,
    ALIGNED: tl.constexpr,
):
    """Return outs and natural LSEs of what stands beside: of own rows, or where there are none of the partial ``q, lses``."""
    if OWN_ROWS:
        rows, lse = of_own_rows(
            q, q_t, q_h, k, k_t, k_h, v, v_t, v_h, earlier, scale,
            token, head, kv_head, live, column, HEAD_DIM, DCP, ALIGNED,
        )  # fmt: skip
    else:
        lse = natural_lse(lses + token * lse_t + head * lse_h, live, base_to_natural)
        rows = tl.load(at_rows(q, token, head, q_t, q_h, column, ALIGNED), live[:, None] & (column < HEAD_DIM), 0.0)
        rows = rows.to(tl.float32)
    # An empty row's memory may hold anything, and 0 * NaN is NaN.
    return tl.where((lse == float("-inf"))[:, None], 0.0, rows), lse


@triton.jit(do_not_specialize=["total_t", "total_h", "rows", "heads", "group"])
def _attend_own_rows(
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
    scale,
    result,
    result_t,
    result_h,
    total_lses,
    total_t,
    total_h,
    rows,
    heads,
    group,
    HEAD_DIM: tl.constexpr,
    DCP: tl.constexpr,
    HEIGHT: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    token, head, live = where_row(rows, heads, HEIGHT)
    column = tl.arange(0, COLUMNS)[None, :]
    made, lse = of_own_rows(
        q, q_t, q_h, k, k_t, k_h, v, v_t, v_h, earlier, scale,
        token, head, head // group, live, column, HEAD_DIM, DCP, False,
    )  # fmt: skip
    target = result + (token * result_t + head * result_h)[:, None] + column
    tl.store(target, made.to(result.dtype.element_ty), live[:, None] & (column < HEAD_DIM))
    tl.store(total_lses + token * total_t + head * total_h, lse, live)
