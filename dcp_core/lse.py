"""Partial attention results and how they add up: the only place that knows the formula. Floor 2.

Attention over a set of keys is ``out = Σ softmax(s)_j v_j`` with ``lse = log Σ exp(s_j)``. Over disjoint sets of keys,
``lse = logsumexp(lse_i)`` and ``out = Σ exp(lse_i - lse) out_i`` (Milakov and Gimelshein, 2018).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor

# The first exponential or logarithm of a process has MKL choose its functions. Of several threads that are the first at once,
# torch's own among them, some get results that are off by 2e-5: in one process of a hundred.
torch.zeros(1).exp_()


class LseBase(StrEnum):
    """The base of a log-sum-exp. Natural at every public boundary; FlashInfer's kernels return base 2."""

    NATURAL = "natural"
    TWO = "two"

    @property
    def to_natural(self) -> float:
        """The factor that turns a log of this base into a natural one."""
        return 1.0 if self is LseBase.NATURAL else math.log(2.0)


@dataclass(frozen=True, slots=True)
class Partial:
    """Attention over one set of keys.

    Args:
        out: ``[tokens, heads, head_dim]`` in the query's dtype.
        lse: ``[tokens, heads]`` float32 (float64 in the oracle); -inf where a row saw no key, and then ``out`` may hold anything.
        base: of ``lse``.

    Raises:
        ValueError: for shapes or dtypes that do not fit.
    """

    out: Tensor
    lse: Tensor
    base: LseBase = LseBase.NATURAL

    def __post_init__(self) -> None:
        if not (isinstance(self.out, Tensor) and isinstance(self.lse, Tensor) and isinstance(self.base, LseBase)):
            raise ValueError(
                f"a partial is an out and an lse, both tensors, and an LseBase, "
                f"not {type(self.out).__name__}, {type(self.lse).__name__} and {self.base!r}"
            )
        if self.out.shape[:-1] != self.lse.shape:
            raise ValueError(
                f"out {list(self.out.shape)} needs an lse of {list(self.out.shape[:-1])}, not {list(self.lse.shape)}"
            )
        if self.lse.dtype not in (torch.float32, torch.float64):
            raise ValueError(f"lse should be float32 (float64 in the oracle), not {self.lse.dtype}")

    @classmethod
    def empty(cls, tokens: int, heads: int, head_dim: int, *, dtype: torch.dtype, device: torch.device) -> Partial:
        """Allocate room for a result, its contents undefined."""
        out = torch.empty(tokens, heads, head_dim, dtype=dtype, device=device)
        return cls(out, torch.empty(tokens, heads, dtype=torch.float32, device=device))

    def natural(self) -> Partial:
        """Return the same result with a natural LSE; itself if it has one."""
        if self.base is LseBase.NATURAL:
            return self
        return Partial(self.out, self.lse * self.base.to_natural)

    def relabelled(self, base: LseBase) -> Partial:
        """Return the same tensors read as a log of another base: for a kernel that wrote them so."""
        return Partial(self.out, self.lse, base)


def combine(outs: Tensor, lses: Tensor, *, base: LseBase = LseBase.NATURAL, into: Partial | None = None) -> Partial:
    """Add up partial results over disjoint sets of keys.

    Only -inf means empty: such a row's ``out`` is ignored whatever it holds. A NaN or +inf LSE is a fault of whoever
    made it, and comes out as NaN. Rows empty everywhere give out 0 and lse -inf.

    Args:
        outs: ``[N, T, H, D]``.
        lses: ``[N, T, H]`` float32, in ``base``.
        into: where to write; new tensors otherwise.

    Returns:
        A natural Partial of ``[T, H, D]``, accumulated in float32 (float64 of float64) and rounded once to the dtype of ``outs``.

    Raises:
        ValueError: for shapes or dtypes that do not fit.
    """
    check_sources(outs, lses)
    into = room_for(outs[0], into)
    lses = lses * base.to_natural
    empty = lses == -math.inf
    top = lses.amax(0)
    weights = torch.where(empty, 0.0, torch.exp(lses - top))
    total = weights.sum(0)
    wide = torch.promote_types(outs.dtype, torch.float32)
    contributions = torch.where(empty.unsqueeze(-1), 0.0, outs.to(wide)) * weights.unsqueeze(-1)
    out = contributions.sum(0) / torch.where(total == 0, 1.0, total).unsqueeze(-1)
    lse = torch.where(total == 0, -math.inf, top + torch.log(total))
    into.out.copy_(out)
    into.lse.copy_(lse)
    return into


def merge(first: Partial, second: Partial, *, into: Partial | None = None) -> Partial:
    """Add up two partial results over disjoint sets of keys; see ``combine``.

    Raises:
        ValueError: if their shapes or dtypes differ.

    Examples:
        One token and head: two keys of equal weight on one rank, with values 1 and 3; a third, of value 8, on another.

        >>> first = Partial(torch.tensor([[[2.0]]]), torch.tensor([[math.log(2)]]))
        >>> second = Partial(torch.tensor([[[8.0]]]), torch.tensor([[0.0]]))
        >>> whole = merge(first, second)
        >>> whole.out.item(), torch.exp(whole.lse).item()
        (4.0, 3.0)
        >>> nothing = Partial(torch.tensor([[[math.nan]]]), torch.tensor([[-math.inf]]))  # a rank without a key
        >>> merge(first, nothing).out.item()
        2.0
    """
    check_pair(first, second)
    first, second = first.natural(), second.natural()
    return combine(torch.stack((first.out, second.out)), torch.stack((first.lse, second.lse)), into=into)


def rescale(partial: Partial, lses: Tensor, *, into: Partial | None = None) -> Partial:
    """Weigh one rank's partial so that the sum over ranks is the combined result.

    Args:
        partial: this rank's, ``[T, H, D]``.
        lses: every rank's ``[N, T, H]``, in the base of ``partial``.
        into: where to write; new tensors otherwise.

    Returns:
        ``exp(lse - total) * out``, 0 where this rank is empty, in the dtype of ``out``; and the total natural LSE.

    Raises:
        ValueError: for shapes or dtypes that do not fit.
    """
    check_shares(partial, lses)
    into = room_for(partial.out, into)
    lses, own = lses * partial.base.to_natural, partial.lse * partial.base.to_natural
    top = lses.amax(0)
    total = torch.where(lses == -math.inf, 0.0, torch.exp(lses - top)).sum(0)
    empty = own == -math.inf
    share = torch.where(empty, 0.0, torch.exp(own - top) / torch.where(total == 0, 1.0, total))
    out = torch.where(empty.unsqueeze(-1), 0.0, partial.out.float()) * share.unsqueeze(-1)
    lse = torch.where(total == 0, -math.inf, top + torch.log(total))
    into.out.copy_(out)
    into.lse.copy_(lse)
    return into


def room_for(out: Tensor, into: Partial | None) -> Partial:
    """Return ``into`` after a look at its shape, or a new natural Partial like ``out`` ``[T, H, D]``."""
    if into is None:
        wide = torch.float64 if out.dtype == torch.float64 else torch.float32
        return Partial(torch.empty_like(out), torch.empty(out.shape[:-1], dtype=wide, device=out.device))
    if into.out.shape != out.shape:
        raise ValueError(f"the result is {list(out.shape)}, and the room for it {list(into.out.shape)}")
    if into.base is not LseBase.NATURAL:
        raise ValueError(f"the result's LSE is natural, and the room for it is labelled {into.base}")
    return into


def check_sources(outs: Tensor, lses: Tensor) -> None:
    """Refuse what ``combine`` cannot add up."""
    if not (isinstance(outs, Tensor) and isinstance(lses, Tensor)):
        raise ValueError(f"combine needs two tensors, not {type(outs).__name__} and {type(lses).__name__}")
    if outs.ndim != 4 or outs.shape[0] < 1 or lses.shape != outs.shape[:-1]:
        raise ValueError(
            f"combine needs outs [N, T, H, D] and lses [N, T, H], not {list(outs.shape)}, {list(lses.shape)}"
        )
    _check_dtypes(outs, lses)


def check_pair(first: Partial, second: Partial) -> None:
    """Refuse two partials that ``merge`` cannot add up."""
    if not (isinstance(first, Partial) and isinstance(second, Partial)):
        raise ValueError(f"merge needs two partials, not {type(first).__name__} and {type(second).__name__}")
    if first.out.shape != second.out.shape or first.out.dtype != second.out.dtype:
        raise ValueError(
            f"cannot merge {list(first.out.shape)} {first.out.dtype} with {list(second.out.shape)} {second.out.dtype}"
        )


def check_shares(partial: Partial, lses: Tensor) -> None:
    """Refuse LSEs by which ``rescale`` cannot weigh a partial."""
    if lses.ndim != 3 or lses.shape[0] < 1 or lses.shape[1:] != partial.lse.shape:
        raise ValueError(f"lses should be [N, T, H] with [T, H] = {list(partial.lse.shape)}, not {list(lses.shape)}")
    _check_dtypes(partial.out, lses)


def _check_dtypes(out: Tensor, lse: Tensor) -> None:
    """Refuse element types in which a result would come out wrong without a word."""
    if not out.is_floating_point() or lse.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"out should be of a floating-point dtype and lse float32, not {out.dtype} and {lse.dtype}")
