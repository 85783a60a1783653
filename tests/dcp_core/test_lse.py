"""Partial results: parts of a softmax add up to the whole, whatever the parts and whatever an empty one holds."""

from __future__ import annotations

import math
import subprocess
import sys
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from dcp_core.lse import LseBase, Partial, combine, merge, rescale

HALF_ULP = 2.0**-24
"""Of float32, relative."""
SEEDS = st.integers(0, 2**31)


def attend(scores: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Attend in float64: scores ``[T, H, keys]``, values ``[keys, D]``; no key gives (0, -inf)."""
    lse = scores.logsumexp(-1)
    weights = torch.where(lse.isinf().unsqueeze(-1), 0.0, torch.exp(scores - lse.unsqueeze(-1)))
    return weights @ values, lse


def parts_of(seed: int, keys: int, cuts: list[int], spread: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Attend to all keys, and to each part of them; parts are rounded to float32 as a kernel would hand them over."""
    generator = torch.Generator().manual_seed(seed)
    scores = spread * torch.randn(3, 2, keys, generator=generator, dtype=torch.float64)
    values = torch.randn(keys, 16, generator=generator, dtype=torch.float64)
    borders = [0, *sorted(min(cut, keys) for cut in cuts), keys]
    parts = [attend(scores[..., low:high], values[low:high]) for low, high in pairwise(borders)]
    outs, lses = (torch.stack(tensors).float() for tensors in zip(*parts, strict=True))
    return outs, lses, *attend(scores, values)


def budget(outs: Tensor, lses: Tensor) -> float:
    """Bound the error of a combination, relative to the largest out that goes in.

    Each LSE arrives rounded, is multiplied to change its base and subtracted from the top: three roundings of at most
    the largest LSE, which are relative errors of its weight; exp, the products, sums and the quotient add a few each.
    """
    largest = lses[lses.isfinite()].abs().max().item() if lses.isfinite().any() else 0.0
    return HALF_ULP * (4 * largest + 2 * outs.shape[0] + 16)


@given(
    SEEDS, st.integers(0, 40), st.lists(st.integers(0, 40), max_size=7), st.floats(0.1, 20), st.sampled_from(LseBase)
)
def test_the_parts_of_a_softmax_add_up_to_the_whole(
    seed: int, keys: int, cuts: list[int], spread: float, base: LseBase
) -> None:
    outs, lses, out, lse = parts_of(seed, keys, cuts, spread)
    result = combine(outs, lses / base.to_natural, base=base)
    bound = budget(outs, lses)
    assert result.base is LseBase.NATURAL
    assert (result.out - out).abs().max() <= 2 * bound * outs.abs().max()
    torch.testing.assert_close(result.lse.double(), lse, rtol=0, atol=2 * bound)


@given(SEEDS, st.permutations(range(5)))
def test_the_order_of_the_parts_does_not_matter(seed: int, order: list[int]) -> None:
    outs, lses, *_ = parts_of(seed, 20, [3, 3, 9, 15], 3.0)
    bound = 2 * budget(outs, lses)
    one, other = combine(outs, lses), combine(outs[order], lses[order])
    torch.testing.assert_close(one.out, other.out, rtol=0, atol=bound * outs.abs().max().item())
    torch.testing.assert_close(one.lse, other.lse, rtol=0, atol=bound)


@given(SEEDS, st.lists(st.integers(0, 20), min_size=2, max_size=2))
def test_merging_is_associative_and_agrees_with_combining(seed: int, cuts: list[int]) -> None:
    outs, lses, *_ = parts_of(seed, 20, cuts, 3.0)
    first, second, third = (Partial(out, lse) for out, lse in zip(outs, lses, strict=True))
    bound = 4 * budget(outs, lses)
    whole = combine(outs, lses)
    for result in (merge(merge(first, second), third), merge(first, merge(second, third))):
        torch.testing.assert_close(result.out, whole.out, rtol=0, atol=bound * outs.abs().max().item())
        torch.testing.assert_close(result.lse, whole.lse, rtol=0, atol=bound)


GARBAGE = [math.nan, math.inf, -math.inf, 3e38]


@given(SEEDS, st.integers(1, 4), st.sampled_from(GARBAGE))
def test_garbage_under_an_empty_row_never_leaks(seed: int, ranks: int, garbage: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    outs, lses = torch.randn(ranks, 5, 3, 16, generator=generator), torch.randn(ranks, 5, 3, generator=generator)
    empty = torch.rand(ranks, 5, 3, generator=generator) < 0.5
    lses[empty] = -math.inf
    clean = combine(outs, lses)
    outs[empty] = garbage
    result = combine(outs, lses)
    assert result.out.equal(clean.out)
    assert result.lse.equal(clean.lse)
    nowhere = empty.all(0)
    assert (result.out[nowhere] == 0).all()
    assert (result.lse[nowhere] == -math.inf).all()
    assert result.out[~nowhere].isfinite().all()
    assert result.lse[~nowhere].isfinite().all()


@given(SEEDS, st.integers(2, 4), st.sampled_from([math.nan, math.inf]), st.booleans())
def test_a_faulty_lse_comes_out_as_nan_in_its_row_alone(
    seed: int, ranks: int, fault: float, others_empty: bool
) -> None:
    generator = torch.Generator().manual_seed(seed)
    outs, lses = torch.randn(ranks, 4, 2, 16, generator=generator), torch.randn(ranks, 4, 2, generator=generator)
    if others_empty:
        lses[:, 1, 1] = -math.inf
    lses[seed % ranks, 1, 1] = fault
    result = combine(outs, lses)
    faulty = torch.zeros(4, 2, dtype=torch.bool)
    faulty[1, 1] = True
    assert result.out.isnan().equal(faulty.unsqueeze(-1).expand(4, 2, 16))
    assert result.lse.isnan().equal(faulty)


def test_a_nan_in_a_row_that_saw_keys_is_not_hidden() -> None:
    outs, lses = torch.zeros(2, 1, 1, 16), torch.zeros(2, 1, 1)
    outs[1, 0, 0, 3] = math.nan
    assert combine(outs, lses).out.isnan().nonzero().tolist() == [[0, 0, 3]]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_one_full_part_and_empty_ones_give_that_part_to_the_last_bit(dtype: torch.dtype) -> None:
    outs, lses = torch.randn(3, 7, 2, 64).to(dtype), torch.full((3, 7, 2), -math.inf)
    lses[1] = 30 * torch.randn(7, 2)
    outs[0], outs[2] = math.nan, math.inf
    result = combine(outs, lses)
    assert result.out.equal(outs[1])
    assert result.lse.equal(lses[1])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sums_are_rounded_once(dtype: torch.dtype) -> None:
    outs, lses = torch.randn(8, 7, 2, 64).to(dtype), torch.randn(8, 7, 2)
    assert combine(outs, lses).out.equal(combine(outs.float(), lses).out.to(dtype))


def test_far_apart_parts_neither_overflow_nor_lose_the_larger() -> None:
    outs, lses = torch.randn(2, 1, 1, 16), torch.tensor([3e38, -3e38]).view(2, 1, 1)
    result = combine(outs, lses)
    assert result.out.equal(outs[0])
    assert result.lse.equal(lses[0])


@given(SEEDS, st.sampled_from(LseBase), st.sampled_from(LseBase))
def test_each_of_two_partials_is_read_in_its_own_base(seed: int, one: LseBase, other: LseBase) -> None:
    outs, lses, out, lse = parts_of(seed, 20, [8], 3.0)
    first, second = (
        Partial(part, row / base.to_natural, base) for part, row, base in zip(outs, lses, (one, other), strict=True)
    )
    result, bound = merge(first, second), 2 * budget(outs, lses)
    assert (result.out - out).abs().max() <= bound * outs.abs().max()
    assert (result.lse - lse).abs().max() <= bound
    assert first.natural().base is LseBase.NATURAL
    torch.testing.assert_close(first.natural().lse, lses[0], rtol=4 * HALF_ULP, atol=0)


def test_a_result_may_be_written_where_there_is_room_even_over_a_source() -> None:
    outs, lses = torch.randn(2, 5, 2, 16), torch.randn(2, 5, 2)
    expected = combine(outs, lses)
    room = torch.full((5, 3, 24), math.nan)
    into = Partial(room[:, :2, :16], room[:, :2, 20])
    assert combine(outs, lses, into=into) is into
    assert into.out.equal(expected.out)
    assert into.lse.equal(expected.lse)
    assert room[:, 2].isnan().all()
    first, second = (Partial(out, lse) for out, lse in zip(outs, lses, strict=True))
    assert merge(first, second, into=first) is first
    assert first.out.equal(expected.out)
    assert first.lse.equal(expected.lse)


def test_tensors_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"out \[5, 2, 16\] needs an lse of \[5, 2\], not \[5, 3\]"):
        Partial(torch.zeros(5, 2, 16), torch.zeros(5, 3))
    with pytest.raises(ValueError, match=r"lse should be float32.*, not torch\.float16"):
        Partial(torch.zeros(5, 2, 16), torch.zeros(5, 2, dtype=torch.float16))
    one = Partial(torch.zeros(5, 2, 16), torch.zeros(5, 2))
    for other in (Partial(torch.zeros(4, 2, 16), torch.zeros(4, 2)), Partial(one.out.half(), one.lse)):
        with pytest.raises(ValueError, match="cannot merge"):
            merge(one, other)
    outs, lses = torch.ones(2, 1, 1, 4), torch.zeros(2, 1, 1)
    for wrong in ((outs, lses[:1]), (outs[:0], lses[:0]), (outs[0], lses[0])):
        with pytest.raises(ValueError, match=r"combine needs outs \[N, T, H, D\] and lses \[N, T, H\]"):
            combine(*wrong)
    with pytest.raises(ValueError, match="and the room for it"):
        combine(outs, lses, into=Partial(torch.ones(5, 1, 4), torch.zeros(5, 1)))
    with pytest.raises(ValueError, match="the room for it is labelled two"):
        combine(outs, lses, into=Partial(torch.ones(1, 1, 4), torch.zeros(1, 1), LseBase.TWO))
    with pytest.raises(ValueError, match=r"lses should be \[N, T, H\]"):
        rescale(Partial(outs[0], lses[0]), lses[0])


def test_dtypes_in_which_a_result_would_be_wrong_are_refused() -> None:
    outs, lses = torch.ones(2, 1, 1, 4), torch.zeros(2, 1, 1)
    for wrong in ((outs, lses.half()), (outs, lses.int()), (outs.int(), lses)):
        with pytest.raises(ValueError, match="out should be of a floating-point dtype and lse float32, not"):
            combine(*wrong)
    with pytest.raises(ValueError, match=r"lse float32, not torch.float32 and torch.bfloat16"):
        rescale(Partial(outs[0], lses[0]), lses.bfloat16())


def test_what_is_no_tensor_no_partial_or_no_base_is_refused() -> None:
    outs, lses = torch.ones(2, 1, 1, 4), torch.zeros(2, 1, 1)
    wrong: Any
    for wrong in (([1.0], [0.0]), (outs[0], None), (outs[0], lses[0], "two")):
        with pytest.raises(ValueError, match="a partial is an out and an lse, both tensors, and an LseBase, not"):
            Partial(*wrong)
    with pytest.raises(ValueError, match="merge needs two partials, not Partial and tuple"):
        merge(Partial(outs[0], lses[0]), (outs[1], lses[1]))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="combine needs two tensors, not list and Tensor"):
        combine([outs[0]], lses)  # type: ignore[arg-type]


FRESH = """
import os, sys
import numpy, torch
from dcp_core import lse

torch.set_num_threads(2)

numbers = torch.from_numpy(numpy.linspace(1, 40, 200_000, dtype=numpy.float32))  # so many that both threads take some
for _ in range(int(sys.argv[1])):
    if not (child := os.fork()):
        first = numbers.log()
        os._exit(not torch.equal(first, numbers.log()))
    if os.waitpid(child, 0)[1]:
        sys.exit("the first logarithms of a process are others than the next")
"""


@pytest.mark.parametrize("processes", [50, pytest.param(2000, marks=[pytest.mark.endurance, pytest.mark.timeout(600)])])
def test_the_first_logarithms_of_a_process_are_as_precise_as_the_next(processes: int) -> None:
    subprocess.run([sys.executable, "-c", FRESH, str(processes)], check=True)
