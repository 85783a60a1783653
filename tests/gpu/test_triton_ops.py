"""Triton kernels as a GPU compiles and runs them: at the sizes that matter, in captured graphs, over poisoned memory."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from dcp_core import lse
from dcp_core.lse import LseBase, Partial
from dcp_core.mask import InterleavedMask
from dcp_core.triton_ops.combine import combine, rescale
from dcp_core.triton_ops.merge import merge
from dcp_core.triton_ops.pack_mask import pack_mask

pytestmark = pytest.mark.gpu

CUDA = torch.device("cuda")
BF16_ULP = 2.0**-7


# --- The packed mask ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("new", "total", "dcp", "rank", "interleave"),
    [
        ([32768], [32768], 2, 1, 1),
        ([8192], [32768], 2, 0, 1),
        ([8192], [32767], 3, 2, 16),
        ([2048, 1, 777, 64], [4096, 3, 30001, 64], 8, 7, 1),
        ([1] * 256, list(range(1, 257)), 4, 3, 1),
        ([8], [262144], 1, 0, 1),
    ],
    ids=["32k", "8k over 24k", "odd", "mixed", "decodes", "long row"],
)
def test_a_large_mask_has_the_bits_of_the_torch_twin(
    new: list[int], total: list[int], dcp: int, rank: int, interleave: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rule = InterleavedMask(tuple(new), tuple(total), dcp, rank, interleave)
    expected, empty = rule.packed(CUDA), torch.empty
    for poison in (0, -1):
        monkeypatch.setattr(
            torch, "empty", lambda *size, poison=poison, **options: empty(*size, **options).fill_(poison)
        )
        packed = pack_mask(rule, CUDA)
        assert packed.bits.equal(expected.bits)
        assert packed.byte_indptr.equal(expected.byte_indptr)


def test_bits_beyond_what_int32_counts_are_in_place() -> None:
    # Two requests of 32k × 32k at dcp 1 are 2^31 bits; a third lies wholly beyond them.
    new = total = (32768, 32768, 1000)
    packed = pack_mask(InterleavedMask(new, total, 1, 0), CUDA)
    large, small = (InterleavedMask((size,), (size,), 1, 0).packed(CUDA).bits for size in (32768, 1000))
    first, second, third = packed.bits.split([large.numel(), large.numel(), small.numel()])
    assert first.equal(large)
    assert second.equal(large)
    assert third.equal(small)


# --- Partial results ------------------------------------------------------------------------------------------------


def partials(ranks: int, tokens: int, heads: int, head_dim: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Make partials with some empty rows over NaN, and one faulty LSE."""
    generator = torch.Generator(CUDA).manual_seed(ranks * tokens)
    outs = torch.randn(ranks, tokens, heads, head_dim, generator=generator, device=CUDA).to(dtype)
    lses = 5 * torch.randn(ranks, tokens, heads, generator=generator, device=CUDA)
    empty = torch.rand(ranks, tokens, heads, generator=generator, device=CUDA) < 0.2
    lses[empty], outs[empty] = -math.inf, math.nan
    lses[-1, 0, 0] = math.nan
    return outs, lses


def assert_same(result: Partial, expected: Partial, ranks: int) -> None:
    """Hold a result to its twin's: half a unit in the last place each, and float32 sums that differ by a few ulps.

    The LSEs here stay below 32, and a weight is off by what the rounding of its LSE's distance from the top makes.
    """
    slack = 2.0**-23 * (4 * 32 + 2 * ranks + 16)
    rounding = BF16_ULP if result.out.dtype == torch.bfloat16 else 0.0
    torch.testing.assert_close(result.out, expected.out, rtol=rounding, atol=8 * slack, equal_nan=True)
    torch.testing.assert_close(result.lse, expected.lse, rtol=0, atol=slack, equal_nan=True)


SIZES = [(16, 16, 128), (64, 16, 256), (4096, 16, 128), (8191, 8, 64)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("ranks", [2, 4, 8])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_results_are_those_of_the_torch_twins(size: tuple[int, int, int], ranks: int, dtype: torch.dtype) -> None:
    outs, lses = partials(ranks, *size, dtype)
    first, second = Partial(outs[0], lses[0], LseBase.TWO), Partial(outs[1], lses[1])
    for result, expected in (
        (combine(outs, lses, base=LseBase.TWO), lse.combine(outs, lses, base=LseBase.TWO)),
        (merge(first, second), lse.merge(first, second)),
    ):
        assert_same(result, expected, ranks)


def test_more_elements_than_int32_counts() -> None:
    # 3 ranks × 2^30 elements: the last rank's and the last tokens' offsets are beyond 2^31.
    outs, lses = partials(3, 65536, 128, 128, torch.bfloat16)
    result = combine(outs, lses)
    last = slice(-64, None)
    assert_same(Partial(result.out[last], result.lse[last]), lse.combine(outs[:, last], lses[:, last]), 3)


@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_rescaled_partials_sum_to_the_combined_result(ranks: int) -> None:
    outs, lses = partials(ranks, 1024, 16, 128, torch.float32)
    scaled = [rescale(Partial(out, row), lses) for out, row in zip(outs, lses, strict=True)]
    total = torch.stack([part.out for part in scaled]).sum(0)
    assert_same(Partial(total, scaled[0].lse), lse.combine(outs, lses), ranks)


def calls(outs: Tensor, lses: Tensor, into: Partial) -> dict[str, Callable[[], Partial]]:
    first, second = Partial(outs[0], lses[0]), Partial(outs[1], lses[1])
    return {
        "combine": lambda: combine(outs, lses, into=into),
        "merge": lambda: merge(first, second, into=into),
        "rescale": lambda: rescale(first, lses, into=into),
    }


@pytest.mark.parametrize("name", ["combine", "merge", "rescale"])
def test_with_room_given_nothing_is_allocated_and_a_graph_replays_over_new_inputs(name: str) -> None:
    outs, lses = partials(2, 1024, 16, 128, torch.bfloat16)
    into = Partial.empty(1024, 16, 128, dtype=torch.bfloat16, device=CUDA)
    call = calls(outs, lses, into)[name]
    call()
    torch.cuda.synchronize()
    before = torch.cuda.memory_stats()["allocation.all.allocated"]
    call()
    assert torch.cuda.memory_stats()["allocation.all.allocated"] == before

    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    outs.copy_(outs.roll(1, dims=1))
    lses.copy_(lses.roll(1, dims=1))
    into.out.fill_(768.0)
    into.lse.fill_(768.0)
    graph.replay()
    replayed = into.out.clone(), into.lse.clone()
    expected = call()
    torch.testing.assert_close(replayed, (expected.out, expected.lse), rtol=0, atol=0, equal_nan=True)
    assert not (replayed[0] == 768.0).any()
    assert not (replayed[1] == 768.0).any()


@pytest.mark.parametrize("name", ["combine", "merge", "rescale"])
def test_in_place_is_bit_for_bit_what_it_is_apart_however_warps_are_scheduled(name: str) -> None:
    # A row in some ten thousand was wrong, one run in three, while no barrier stood between a tile's loads and its stores.
    outs, lses = partials(2, 16384, 8, 128, torch.bfloat16)
    kept = outs.clone(), lses.clone()
    apart = Partial.empty(16384, 8, 128, dtype=torch.bfloat16, device=CUDA)
    calls(outs, lses, apart)[name]()
    in_place = calls(outs, lses, Partial(outs[0], lses[0]))[name]
    busy = torch.empty(1 << 26, device=CUDA)
    other = torch.cuda.Stream()
    for _ in range(300):
        outs.copy_(kept[0])
        lses.copy_(kept[1])
        other.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(other):
            busy.add_(1.0)
        in_place()
        assert torch.equal(outs[0].nan_to_num(3.0), apart.out.nan_to_num(3.0))
        assert torch.equal(lses[0].nan_to_num(3.0), apart.lse.nan_to_num(3.0))
