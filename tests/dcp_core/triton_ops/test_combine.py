"""The kernels that add up partial results say what their torch twins say, over any strides."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from dcp_core import lse
from dcp_core.lse import LseBase, Partial
from dcp_core.triton_ops import combine as kernels
from dcp_core.triton_ops.merge import merge

# The interpreter computes exp and log of -inf and NaN with numpy, which says so.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
ULP = {torch.float32: 2.0**-23, torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10}
SIZES = [(1, 1, 16), (5, 3, 64), (3, 16, 128), (2, 1, 256), (4, 2, 80), (17, 5, 64)]
SEEDS = st.integers(0, 2**31)


def partials(
    seed: int, ranks: int, size: tuple[int, int, int], dtype: torch.dtype, device: str, *, faults: bool = True
) -> tuple[Tensor, Tensor]:
    """Make partials of ``ranks`` ranks, some rows empty over garbage and, if asked for, some with a faulty LSE."""
    generator = torch.Generator().manual_seed(seed)
    outs = torch.randn(ranks, *size, generator=generator).to(dtype)
    lses = 5 * torch.randn(ranks, *size[:2], generator=generator)
    kind = torch.rand(ranks, *size[:2], generator=generator)
    lses[kind < 0.3] = -math.inf
    outs[kind < 0.2] = math.nan
    if faults:
        lses[kind > 0.97] = math.nan
        lses[(kind > 0.94) & (kind <= 0.97)] = math.inf
    return outs.to(device), lses.to(device)


def assert_same(result: Partial, expected: Partial, lses: Tensor) -> None:
    """Hold a result to its twin's.

    Both round an LSE's change of base and its distance from the top, at most the largest LSE each time, which are
    relative errors of the weights. A result in half precision may differ by a unit in the last place: the interpreter
    truncates where a GPU rounds.
    """
    finite = lses[lses.isfinite()].abs()
    slack = ULP[torch.float32] * (4 * (finite.max().item() if finite.numel() else 0) + 2 * lses.shape[0] + 16)
    rounding = ULP[result.out.dtype] if result.out.dtype != torch.float32 else 0.0
    largest = expected.out.nan_to_num().abs().max().item()
    torch.testing.assert_close(
        result.out, expected.out, rtol=rounding, atol=slack * max(largest, 4.0), equal_nan=True, check_dtype=True
    )
    torch.testing.assert_close(result.lse, expected.lse, rtol=0, atol=slack, equal_nan=True)
    assert result.base is LseBase.NATURAL


@settings(max_examples=20)
@given(
    seed=SEEDS,
    ranks=st.sampled_from([1, 2, 3, 4, 8]),
    size=st.sampled_from(SIZES),
    dtype=st.sampled_from(DTYPES),
    base=st.sampled_from(LseBase),
)
@example(seed=1, ranks=16, size=(5, 3, 64), dtype=torch.bfloat16, base=LseBase.TWO)
def test_combine_is_its_torch_twin(
    seed: int, ranks: int, size: tuple[int, int, int], dtype: torch.dtype, base: LseBase, triton_device: str
) -> None:
    outs, lses = partials(seed, ranks, size, dtype, triton_device)
    assert_same(kernels.combine(outs, lses, base=base), lse.combine(outs, lses, base=base), lses)


@given(
    seed=SEEDS,
    size=st.sampled_from(SIZES),
    dtype=st.sampled_from(DTYPES),
    bases=st.tuples(*[st.sampled_from(LseBase)] * 2),
)
def test_merge_is_its_torch_twin(
    seed: int, size: tuple[int, int, int], dtype: torch.dtype, bases: tuple[LseBase, LseBase], triton_device: str
) -> None:
    outs, lses = partials(seed, 2, size, dtype, triton_device)
    first, second = (Partial(out, row, base) for out, row, base in zip(outs, lses, bases, strict=True))
    assert_same(merge(first, second), lse.merge(first, second), lses)


@settings(max_examples=10)
@given(seed=SEEDS, ranks=st.sampled_from([1, 2, 3, 8]), size=st.sampled_from(SIZES), base=st.sampled_from(LseBase))
def test_rescaled_partials_sum_to_the_combined_result(
    seed: int, ranks: int, size: tuple[int, int, int], base: LseBase, triton_device: str
) -> None:
    outs, lses = partials(seed, ranks, size, torch.float32, triton_device)
    scaled = [kernels.rescale(Partial(out, row, base), lses) for out, row in zip(outs, lses, strict=True)]
    expected = lse.combine(outs, lses, base=base)
    assert_same(Partial(torch.stack([part.out for part in scaled]).sum(0), scaled[0].lse), expected, lses)
    for part, row in zip(scaled, lses, strict=True):
        assert (part.out[row == -math.inf] == 0).all()
        torch.testing.assert_close(part.lse, scaled[0].lse, rtol=0, atol=0, equal_nan=True)


def test_rescale_may_widen_and_may_write_over_its_source(triton_device: str) -> None:
    outs, lses = partials(3, 2, (5, 3, 64), torch.bfloat16, triton_device, faults=False)
    one = Partial(outs[0], lses[0])
    wide = Partial(torch.empty(5, 3, 64, device=triton_device), torch.empty(5, 3, device=triton_device))
    assert kernels.rescale(one, lses, into=wide) is wide
    narrow = Partial(outs[0].clone(), lses[0].clone())
    kernels.rescale(narrow, lses, into=narrow)
    torch.testing.assert_close(narrow.out.float(), wide.out, rtol=ULP[torch.bfloat16], atol=0)
    torch.testing.assert_close(narrow.lse, wide.lse, rtol=0, atol=0)


# --- Where things lie -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_an_exchange_buffer_is_read_where_it_lies(ranks: int, triton_device: str) -> None:
    # One row a token and head: the out's 64 elements, the LSE in the next two of bfloat16, and padding.
    outs, lses = partials(5, ranks, (6, 3, 64), torch.bfloat16, triton_device)
    buffer = torch.full((6, ranks, 3, 80), math.nan, dtype=torch.bfloat16, device=triton_device)
    buffer[..., :64] = outs.transpose(0, 1)
    buffer[..., 64:66] = lses.transpose(0, 1).contiguous().view(torch.bfloat16).view(6, ranks, 3, 2)
    received = buffer.transpose(0, 1)
    received_lses = buffer.view(torch.float32)[..., 32].transpose(0, 1)
    expected = kernels.combine(outs, lses)
    result = kernels.combine(received[..., :64], received_lses)
    torch.testing.assert_close(result.out, expected.out, rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(result.lse, expected.lse, rtol=0, atol=0, equal_nan=True)


def room(size: tuple[int, int, int], dtype: torch.dtype, device: str) -> tuple[Tensor, Tensor, Partial]:
    """Make poisoned room for a result in the middle of larger tensors."""
    tokens, heads, head_dim = size
    outer = torch.full((tokens + 2, heads + 1, head_dim + 16), 768.0, dtype=dtype, device=device)
    outer_lse = torch.full((heads + 3, tokens + 1), 768.0, device=device)
    return outer, outer_lse, Partial(outer[1:-1, :heads, 8:-8], outer_lse[1:-2, :tokens].T)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_results_are_written_whole_and_nothing_beside_them(size: tuple[int, int, int], triton_device: str) -> None:
    outs, lses = partials(7, 3, size, torch.bfloat16, triton_device, faults=False)
    pair = [Partial(out, row) for out, row in zip(outs, lses, strict=True)][:2]
    elements = torch.Size(size).numel()
    for compute, expected in (
        (lambda into: kernels.combine(outs, lses, into=into), kernels.combine(outs, lses)),
        (lambda into: merge(*pair, into=into), merge(*pair)),
        (lambda into: kernels.rescale(pair[0], lses, into=into), kernels.rescale(pair[0], lses)),
    ):
        outer, outer_lse, into = room(size, torch.bfloat16, triton_device)
        assert compute(into) is into
        assert into.out.equal(expected.out)
        assert into.lse.equal(expected.lse)
        assert (outer == 768.0).sum() == outer.numel() - elements
        assert (outer_lse == 768.0).sum() == outer_lse.numel() - size[0] * size[1]


def test_merge_may_write_over_either_source(triton_device: str) -> None:
    outs, lses = partials(9, 2, (5, 3, 64), torch.float32, triton_device)
    expected = merge(*(Partial(out, row) for out, row in zip(outs, lses, strict=True)))
    for target in (0, 1):
        pair = [Partial(out.clone(), row.clone()) for out, row in zip(outs, lses, strict=True)]
        assert merge(*pair, into=pair[target]) is pair[target]
        torch.testing.assert_close(pair[target].out, expected.out, rtol=0, atol=0, equal_nan=True)
        torch.testing.assert_close(pair[target].lse, expected.lse, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_one_full_part_and_empty_ones_give_that_part_to_the_last_bit(dtype: torch.dtype, triton_device: str) -> None:
    outs, lses = partials(11, 3, (7, 2, 64), dtype, triton_device, faults=False)
    outs[1] = torch.randn(7, 2, 64)
    lses[0], lses[1], lses[2] = -math.inf, torch.linspace(-30, 30, 14).view(7, 2), -math.inf
    result = kernels.combine(outs, lses)
    assert result.out.equal(outs[1])
    assert result.lse.equal(lses[1])


@pytest.mark.parametrize("size", [(0, 3, 64), (3, 0, 64)], ids=str)
def test_no_rows_give_no_rows(size: tuple[int, int, int], triton_device: str) -> None:
    outs, lses = partials(0, 2, size, torch.bfloat16, triton_device)
    assert kernels.combine(outs, lses).out.shape == size
    assert merge(Partial(outs[0], lses[0]), Partial(outs[1], lses[1])).out.shape == size
    assert kernels.rescale(Partial(outs[0], lses[0]), lses).out.shape == size


def test_what_does_not_fit_is_refused() -> None:
    outs, lses = torch.zeros(2, 3, 4, 16), torch.zeros(2, 3, 4)
    one, smaller = Partial(outs[0], lses[0]), Partial(outs[0, :2], lses[0, :2])
    with pytest.raises(ValueError, match=r"combine needs outs \[N, T, H, D\] and lses \[N, T, H\]"):
        kernels.combine(outs, lses[0])
    with pytest.raises(ValueError, match=r"combine needs outs"):
        kernels.combine(outs[:0], lses[:0])
    with pytest.raises(ValueError, match=r"an lse should be float32, not torch\.float64"):
        kernels.combine(outs, lses.double())
    with pytest.raises(ValueError, match=r"an lse should be float32, not torch\.float64"):
        merge(one, Partial(outs[1], lses[1].double()))
    with pytest.raises(ValueError, match=r"elements of a head should be contiguous, not 3 apart"):
        kernels.combine(torch.zeros(2, 4, 16, 3).permute(0, 3, 1, 2), lses)
    for compute in (lambda into: kernels.combine(outs, lses, into=into), lambda into: merge(one, one, into=into)):
        with pytest.raises(ValueError, match=r"the result is \[3, 4, 16\], and the room for it \[2, 4, 16\]"):
            compute(smaller)
        with pytest.raises(ValueError, match="the room for it is labelled two"):
            compute(one.relabelled(LseBase.TWO))
    with pytest.raises(ValueError, match="cannot merge"):
        merge(one, smaller)
    with pytest.raises(ValueError, match=r"with \[T, H\] = \[3, 4\], not \[2, 2, 4\]"):
        kernels.rescale(one, lses[:, :2])
