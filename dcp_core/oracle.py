"""Float64 attention over the whole sequence, and how much a computation in the same precision may err. Floor 2.

The oracle knows nothing of ranks, shards, masks or pages: a query at position ``p`` sees every key at a position up to ``p``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from dcp_core.check import Check
from dcp_core.lse import Partial, combine
from dcp_core.shapes import Workload

FULL_SCORES = 1 << 26
"""Scores (rows × heads × keys) up to which every row of a batch is checked."""
KEYS_PER_SUM = 16
"""Keys that a tensor core adds up at once. A float32 sum that is truncated between them, and not rounded, loses up to one
unit in the last place per step. That fits what was seen in size and in proportion: on an H200, fa2's LSE over 131072 keys is
off by about 9e-4, and by half that over 65536."""
SAMPLED_REQUESTS = 512
"""Requests of a batch that are checked, whatever their number: each is a computation of its own."""
SAMPLED_ROWS = 64
"""Rows checked per batch beyond that, and never fewer than the first and the last of each request that is checked."""


@dataclass(frozen=True, slots=True, eq=False)
class Truth:
    """What attention should give, on some rows of a batch.

    Args:
        rows: int64 ``[n]``, rows of the query tensor, ascending.
        exact: float64 result on those rows.
        same_precision: the same computed as a kernel may: operands in the batch's dtype, products added up in float32,
            probabilities rounded to the dtype before they are added up or used, two halves of the keys each rounded and
            then combined.
        score_rounding: how far a score may be off that was added up in float32: its epsilon times the largest
            ``|q| |k| / sqrt(head_dim)``.
        weight_rounding: standard deviation of an LSE whose probabilities were rounded to the dtype, worst row: that of
            a uniform rounding error times ``sqrt(Σ p²)`` over all keys but the largest, which is exactly 1.
        truncation: of an LSE whose probabilities a tensor core added up, longest row; 0 for float32, which has none.
    """

    rows: Tensor
    exact: Partial
    same_precision: Partial
    score_rounding: float
    weight_rounding: float
    truncation: float


def choose_requests(workload: Workload, seed: int) -> Sequence[int]:
    """Return which requests of a batch to look at: all, or of very many the first, the last and random ones; ascending."""
    count = len(workload)
    if count <= SAMPLED_REQUESTS:
        return range(count)
    generator = torch.Generator().manual_seed(seed)
    return sorted({0, count - 1, *torch.randperm(count, generator=generator)[: SAMPLED_REQUESTS - 2].tolist()})


def choose_rows(workload: Workload, *, heads: int, borders: int, seed: int) -> Tensor:
    """Return which rows of a batch to check: all of a small one, else a sample of those where faults show.

    Args:
        borders: positions around multiples of this are sampled first: ``dcp * page_size`` covers pages, shards and runs.

    Returns:
        int64, ascending: of each of ``choose_requests`` the first and last row, then, as far as its part of SAMPLED_ROWS
        reaches, those around its first and last border, then random ones.
    """
    scores = sum(r.new * r.total for r in workload.requests) * heads
    if scores <= FULL_SCORES and len(workload) <= SAMPLED_REQUESTS:
        return torch.arange(workload.new_tokens)
    generator = torch.Generator().manual_seed(seed)
    starts = list(accumulate(workload.new_lens, initial=0))
    some = choose_requests(workload, seed)
    each = max(1, SAMPLED_ROWS // len(some))
    chosen: set[int] = set()
    for request, start in ((workload.requests[index], starts[index]) for index in some):
        wanted = [0, request.new - 1]
        first_border = -(-request.context // borders) * borders
        for border in (first_border, (request.total - 1) // borders * borders):
            wanted += [border - request.context - 1, border - request.context]
        wanted += torch.randint(request.new, (each,), generator=generator).tolist()
        inside = [row for row in dict.fromkeys(wanted) if 0 <= row < request.new]
        chosen.update(start + row for row in inside[: max(each, 2)])
    return torch.tensor(sorted(chosen))


def attend_rows(q: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor], workload: Workload, rows: Tensor) -> Truth:
    """Compute the truth on some rows.

    Args:
        q: ``[new tokens, heads, head_dim]``, heads ordered (KV head, head within the group).
        keys, values: per request ``[total, kv_heads, head_dim]``: the whole sequence.
    """
    starts = torch.tensor(list(accumulate(workload.new_lens, initial=0)))
    owner = torch.searchsorted(starts, rows, right=True) - 1
    exact, rounded, peak, spread = [], [], 0.0, 0.0
    for index in owner.unique().tolist():
        request = workload.requests[index]
        mine = rows[owner == index]
        position = (mine - starts[index] + request.context).to(q.device)
        own_q = q[mine.to(q.device)]
        truth, row_spread = _attend(own_q.double(), keys[index].double(), values[index].double(), position)
        exact.append(truth)
        spread = max(spread, row_spread)
        rounded.append(_attend_as_kernels_do(own_q, keys[index], values[index], position))
        peak = max(peak, float(own_q.float().norm(dim=-1).max() * keys[index].float().norm(dim=-1).max()))
    score_rounding = torch.finfo(torch.float32).eps * peak / math.sqrt(q.shape[-1])
    weight_rounding = torch.finfo(q.dtype).eps / 2 / math.sqrt(3) * spread
    longest = max(workload.total_lens)
    truncation = 0.0 if q.dtype == torch.float32 else longest / KEYS_PER_SUM * torch.finfo(torch.float32).eps
    return Truth(rows, _concatenate(exact), _concatenate(rounded), score_rounding, weight_rounding, truncation)


def judge(result: Partial, truth: Truth) -> Check:
    """Compare a natural result on all rows of a batch with the truth: errors of ``out`` relative to each row's norm."""
    rows = truth.rows.to(result.out.device)
    got = Partial(result.out[rows], result.natural().lse[rows])
    out_error, lse_error = _errors(got, truth.exact)
    out_rounding, lse_rounding = _errors(truth.same_precision, truth.exact)
    # On top: one rounding of the output; of the scores (each weight is off by as much, and so is their sum); of the LSE.
    out_band = torch.finfo(result.out.dtype).eps / 2 + 2 * truth.score_rounding
    lse_band = 4 * truth.score_rounding + 4 * torch.finfo(torch.float32).eps * max(1.0, _finite_peak(truth.exact.lse))
    # Of few rows, twice the one error seen may be little: four standard deviations are the least to allow.
    lse_scatter = max(2 * lse_rounding, 4 * truth.weight_rounding)
    return Check(
        rows.numel(), out_error, 2 * out_rounding + out_band, lse_error, lse_scatter + lse_band + truth.truncation
    )


def _attend(q: Tensor, k: Tensor, v: Tensor, position: Tensor) -> tuple[Partial, float]:
    """Return the exact result, and the largest ``sqrt(Σ p²)`` of a row over all keys but its largest."""
    scores = _scores(q, k, position)
    lse = torch.logsumexp(scores, -1)
    weights = torch.exp(scores - lse.unsqueeze(-1))
    squares = weights.square()
    spread = float((squares.sum(-1) - squares.amax(-1)).clamp(min=0).max().sqrt())
    return Partial(_weigh(weights, v), _by_row(lse)), spread


def _attend_as_kernels_do(q: Tensor, k: Tensor, v: Tensor, position: Tensor) -> Partial:
    scores = _scores(q.float(), k.float(), position)
    half = k.shape[0] // 2
    parts = []
    for keys in (slice(None, half), slice(half, None)):
        if k[keys].shape[0] == 0:
            continue
        part = scores[..., keys]
        top = part.amax(-1, keepdim=True)
        weights = torch.exp(part - torch.where(top == -math.inf, 0.0, top)).to(q.dtype).float()
        # FlashInfer's fa2 adds up the rounded probabilities, so its LSE carries their rounding too.
        total = weights.sum(-1, keepdim=True)
        lse = (top + torch.log(total)).squeeze(-1)
        out = _weigh(weights / torch.where(total == 0, 1.0, total), v[keys].float())
        parts.append(Partial(out.to(q.dtype), _by_row(lse)))
    return combine(torch.stack([part.out for part in parts]), torch.stack([part.lse for part in parts]))


def _scores(q: Tensor, k: Tensor, position: Tensor) -> Tensor:
    """Return masked scores ``[kv_heads, rows, group, keys]``."""
    rows, heads, head_dim = q.shape
    kv_heads = k.shape[1]
    grouped = q.view(rows, kv_heads, heads // kv_heads, head_dim).permute(1, 0, 2, 3)
    scores = torch.matmul(grouped.flatten(1, 2), k.permute(1, 2, 0)) / math.sqrt(head_dim)
    scores = scores.view(kv_heads, rows, heads // kv_heads, -1)
    unseen = torch.arange(k.shape[0], device=k.device) > position.unsqueeze(1)
    return scores.masked_fill_(unseen.unsqueeze(1), -math.inf)


def _weigh(weights: Tensor, v: Tensor) -> Tensor:
    kv_heads, rows, group, _ = weights.shape
    out = torch.matmul(weights.flatten(1, 2), v.transpose(0, 1)).view(kv_heads, rows, group, -1)
    return out.permute(1, 0, 2, 3).reshape(rows, kv_heads * group, -1)


def _by_row(lse: Tensor) -> Tensor:
    return lse.permute(1, 0, 2).reshape(lse.shape[1], -1)


def _concatenate(partials: Sequence[Partial]) -> Partial:
    return Partial(torch.cat([part.out for part in partials]), torch.cat([part.lse for part in partials]))


def _errors(got: Partial, exact: Partial) -> tuple[float, float]:
    size = exact.out.norm(dim=-1)
    out = (got.out.double() - exact.out).norm(dim=-1) / torch.where(size == 0, 1.0, size)
    lse = torch.where(got.lse.double() == exact.lse, 0.0, (got.lse.double() - exact.lse).abs())
    return _worst(out), _worst(lse)


def _worst(errors: Tensor) -> float:
    """Return the largest error; NaN if any is."""
    return float(errors.max()) if errors.numel() else 0.0


def _finite_peak(lse: Tensor) -> float:
    finite = lse[lse.isfinite()]
    return float(finite.abs().max()) if finite.numel() else 0.0
