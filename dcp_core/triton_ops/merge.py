"""Adding up two partial results in one kernel, as ``dcp_core.lse`` defines it. Floor 3."""

from __future__ import annotations

import triton
import triton.language as tl

from dcp_core.lse import Partial, check_pair, room_for
from dcp_core.triton_ops.combine import (
    check_lses,
    check_rows,
    natural_lse,
    tile,
    total_lse,
    weighed,
    weight,
    where_row,
)


def merge(first: Partial, second: Partial, *, into: Partial | None = None) -> Partial:
    """Add up two partial results over disjoint sets of keys, as ``dcp_core.lse.merge`` does.

    Args:
        first, second: ``[T, H, D]``, any strides but for contiguous D, each with a base of its own.
        into: where to write; allocated if None. ``first`` or ``second`` itself, relabelled natural, may be overwritten.

    Returns:
        A natural Partial of ``[T, H, D]``.

    Raises:
        ValueError: for shapes, strides or dtypes that do not fit.
    """
    check_pair(first, second)
    into = room_for(first.out, into)
    check_rows(first.out, second.out, into.out)
    check_lses(first.lse, second.lse, into.lse)
    tokens, heads, head_dim = first.out.shape
    if tokens * heads == 0:
        return into
    height, columns = tile(head_dim)
    _merge[(triton.cdiv(tokens * heads, height),)](
        first.out,
        *first.out.stride()[:2],
        first.lse,
        *first.lse.stride(),
        first.base.to_natural,
        second.out,
        *second.out.stride()[:2],
        second.lse,
        *second.lse.stride(),
        second.base.to_natural,
        into.out,
        *into.out.stride()[:2],
        into.lse,
        *into.lse.stride(),
        tokens * heads,
        heads,
        HEAD_DIM=head_dim,
        HEIGHT=height,
        COLUMNS=columns,
    )
    return into


@triton.jit(do_not_specialize=["lse_t", "lse_h", "other_lse_t", "other_lse_h", "total_t", "total_h", "rows", "heads"])
def _merge(
    out,
    out_t,
    out_h,
    lses,
    lse_t,
    lse_h,
    base_to_natural,
    other,
    other_t,
    other_h,
    other_lses,
    other_lse_t,
    other_lse_h,
    other_to_natural,
    result,
    result_t,
    result_h,
    total_lses,
    total_t,
    total_h,
    rows,
    heads,
    HEAD_DIM: tl.constexpr,
    HEIGHT: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    token, head, live = where_row(rows, heads, HEIGHT)
    column = tl.arange(0, COLUMNS)[None, :]
    inside = live[:, None] & (column < HEAD_DIM)

    lse = natural_lse(lses + token * lse_t + head * lse_h, live, base_to_natural)
    other_lse = natural_lse(other_lses + token * other_lse_t + head * other_lse_h, live, other_to_natural)
    top = tl.maximum(lse, other_lse)
    share, other_share = weight(lse, top), weight(other_lse, top)
    total = share + other_share
    added = weighed(out + (token * out_t + head * out_h)[:, None] + column, inside, lse, share)
    added += weighed(other + (token * other_t + head * other_h)[:, None] + column, inside, other_lse, other_share)
    added /= tl.where(total == 0.0, 1.0, total)[:, None]

    target = result + (token * result_t + head * result_h)[:, None] + column
    # In place, a warp that is done would overwrite LSEs that another has yet to read.
    tl.debug_barrier()
    tl.store(target, added.to(result.dtype.element_ty), inside)
    tl.store(total_lses + token * total_t + head * total_h, total_lse(top, total), live)
