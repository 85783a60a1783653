"""The oracle: what it checks, that it is right, and that its budget lets the right pass and catches the wrong."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate

import pytest
import torch
from torch import Tensor

from dcp_core.exchange.base import interleave_ranks
from dcp_core.kernels.reference import attend
from dcp_core.lse import LseBase, Partial, combine
from dcp_core.oracle import (
    SAMPLED_REQUESTS,
    SAMPLED_ROWS,
    Truth,
    attend_rows,
    choose_requests,
    choose_rows,
    judge,
)
from dcp_core.shapes import Workload

HEADS, KV_HEADS, HEAD_DIM = 8, 2, 64
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Batch:
    """Random inputs of a workload, drawn as a benchmark draws them."""

    workload: Workload
    q: Tensor
    keys: list[Tensor]
    values: list[Tensor]

    @classmethod
    def draw(cls, text: str, dtype: torch.dtype, seed: int = 0) -> Batch:
        workload, generator = Workload.parse(text), torch.Generator().manual_seed(seed)

        def normal(rows: int, heads: int) -> Tensor:
            return torch.randn(rows, heads, HEAD_DIM, generator=generator)

        q = 2 * normal(workload.new_tokens, HEADS)
        keys, values = ([normal(total, KV_HEADS).to(dtype) for total in workload.total_lens] for _ in range(2))
        return cls(workload, q.to(dtype), keys, values)

    def truth(self) -> Truth:
        return attend_rows(self.q, self.keys, self.values, self.workload, torch.arange(self.workload.new_tokens))

    def attend(self, see: Callable[[Tensor, Tensor], Tensor]) -> Partial:
        """Attend as a kernel does, where ``see`` says which key positions a query position sees."""
        result = Partial.empty(self.workload.new_tokens, HEADS, HEAD_DIM, dtype=self.q.dtype, device=CPU)
        start = 0
        for request, k, v in zip(self.workload.requests, self.keys, self.values, strict=True):
            here = slice(start, start + request.new)
            seen = see(torch.arange(request.context, request.total).unsqueeze(1), torch.arange(request.total))
            attend(self.q[here], k, v, seen=seen, into=Partial(result.out[here], result.lse[here]))
            start += request.new
        return result


def causal(query: Tensor, key: Tensor) -> Tensor:
    return key <= query


def on_rank(rank: int, dcp: int) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda query, key: (key <= query) & (key % dcp == rank)


# --- Which rows -----------------------------------------------------------------------------------------------------


def test_every_row_of_a_small_batch_is_checked() -> None:
    workload = Workload.parse("3q1s100_q64_q7s9")
    assert choose_rows(workload, heads=8, borders=32, seed=0).tolist() == list(range(74))


def test_of_a_large_batch_ends_borders_and_random_rows_are_checked() -> None:
    workload = Workload.parse("q8000s32700")
    rows = choose_rows(workload, heads=16, borders=64, seed=3).tolist()
    context = 32700 - 8000
    first_border, last_border = -(-context // 64) * 64 - context, 32699 // 64 * 64 - context
    expected = {0, 7999, first_border - 1, first_border, last_border - 1, last_border}
    assert expected <= set(rows)
    assert len(expected) < len(rows) <= SAMPLED_ROWS
    assert rows == sorted(set(rows))
    assert rows == choose_rows(workload, heads=16, borders=64, seed=3).tolist()
    assert rows != choose_rows(workload, heads=16, borders=64, seed=4).tolist()


@pytest.mark.parametrize("text", ["64q1s32k_q8ks32k", "100q2ks32k", "q1s32k_2q4ks16k_500q1s1k_q32k"])
def test_no_request_of_a_large_batch_goes_unchecked(text: str) -> None:
    workload = Workload.parse(text)
    rows = set(choose_rows(workload, heads=16, borders=32, seed=0).tolist())
    ends = list(accumulate(workload.new_lens))
    for end, new in zip(ends, workload.new_lens, strict=True):
        assert {end - new, end - 1} <= rows
    assert rows <= set(range(workload.new_tokens))


def test_of_thousands_of_requests_some_are_checked_first_and_last_among_them() -> None:
    workload = Workload.parse("8000q1s16_192q2s16")
    some = choose_requests(workload, seed=0)
    assert {0, 8191} <= set(some)
    assert SAMPLED_REQUESTS - 2 <= len(some) <= SAMPLED_REQUESTS
    rows = set(choose_rows(workload, heads=16, borders=32, seed=0).tolist())
    assert {0, 8382, 8383} <= rows
    assert len(rows) <= 2 * SAMPLED_REQUESTS


# --- What is true ---------------------------------------------------------------------------------------------------


def test_the_truth_is_softmax_attention_key_by_key() -> None:
    batch = Batch.draw("q3s5_q1s1_q4s4", torch.float32)
    exact = batch.truth().exact
    row = 0
    for request, keys, values in zip(batch.workload.requests, batch.keys, batch.values, strict=True):
        for position in range(request.context, request.total):
            for head in range(HEADS):
                kv_head = head // (HEADS // KV_HEADS)
                q = batch.q[row, head].double()
                scores = [float(q @ k[kv_head].double()) / math.sqrt(HEAD_DIM) for k in keys[: position + 1]]
                total = math.fsum(map(math.exp, scores))
                out = sum(math.exp(s) / total * v[kv_head].double() for s, v in zip(scores, values, strict=False))
                assert exact.lse[row, head].item() == pytest.approx(math.log(total), rel=1e-12)
                torch.testing.assert_close(exact.out[row, head], out, rtol=1e-12, atol=1e-12)
            row += 1


def test_sampled_rows_hold_the_same_truth_as_all_rows() -> None:
    batch = Batch.draw("q9s40_3q1s17_q5s5", torch.bfloat16)
    everything = batch.truth()
    rows = torch.tensor([0, 4, 8, 10, 12, 16])
    some = attend_rows(batch.q, batch.keys, batch.values, batch.workload, rows)
    torch.testing.assert_close(some.exact.out, everything.exact.out[rows], rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(some.exact.lse, everything.exact.lse[rows], rtol=1e-13, atol=1e-13)


# --- What passes ----------------------------------------------------------------------------------------------------

BATCHES = ["q33", "q100s101", "q8s25_q64s500", "4q1s333", "q500"]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("text", BATCHES)
def test_attention_in_the_same_precision_is_within_budget(text: str, dtype: torch.dtype) -> None:
    for seed in range(3):
        batch = Batch.draw(text, dtype, seed)
        check = judge(batch.attend(causal), batch.truth())
        assert check.passed, check
        assert check.rows == batch.workload.new_tokens


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dcp", [2, 8])
def test_partials_of_a_group_rounded_and_combined_are_within_budget(dcp: int, dtype: torch.dtype) -> None:
    batch = Batch.draw("q64s300_q5s6", dtype)
    parts = [batch.attend(on_rank(rank, dcp)) for rank in range(dcp)]
    combined = combine(torch.stack([part.out for part in parts]), torch.stack([part.lse for part in parts]))
    check = judge(combined, batch.truth())
    assert check.passed, check


def test_the_budget_is_a_few_roundings_not_a_guess() -> None:
    for dtype in DTYPES:
        batch = Batch.draw("q64s300", dtype)
        check = judge(batch.attend(causal), batch.truth())
        assert check.out_budget < 8 * torch.finfo(dtype).eps + 1e-4
        # Rounded probabilities scatter about the exact sum: an LSE is off by less than one of them.
        assert check.lse_budget < max(torch.finfo(dtype).eps / 2, 1e-4)


# --- What fails -----------------------------------------------------------------------------------------------------


def one_key_too_many(query: Tensor, key: Tensor) -> Tensor:
    return key <= query + 1


def own_key_missing(query: Tensor, key: Tensor) -> Tensor:
    return (key < query) | (key + query == 0)


def first_key_missing(query: Tensor, key: Tensor) -> Tensor:
    return (key <= query) & ((key > 0) | (query == 0))


def one_key_missing_in_the_last_row(query: Tensor, key: Tensor) -> Tensor:
    return (key <= query) & ((key != query) | (query < query.max()))


def one_key_of_the_context_missing(query: Tensor, key: Tensor) -> Tensor:
    return (key <= query) & (key != query.min() // 2)


MASK_FAULTS = [
    one_key_too_many,
    own_key_missing,
    first_key_missing,
    one_key_missing_in_the_last_row,
    one_key_of_the_context_missing,
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("text", ["q8s33", "q20s100", "q40s500", "8q1s300_q16s200"])
@pytest.mark.parametrize("fault", MASK_FAULTS)
def test_one_key_wrongly_seen_or_missed_is_over_budget(
    fault: Callable[[Tensor, Tensor], Tensor], text: str, dtype: torch.dtype
) -> None:
    for seed in range(3):
        batch = Batch.draw(text, dtype, seed)
        check = judge(batch.attend(fault), batch.truth())
        assert not check.passed, check


def wrong_base(right: Partial) -> Partial:
    return Partial(right.out, right.lse / math.log(2))


def shifted_lse_of_one_row(right: Partial) -> Partial:
    right.lse[3, 1] += 0.01
    return right


def swapped_heads(right: Partial) -> Partial:
    stacked = right.out.view(-1, 2, HEADS // 2, HEAD_DIM).transpose(0, 1)
    lse = right.lse.view(-1, 2, HEADS // 2).transpose(0, 1)
    return Partial(interleave_ranks(stacked.contiguous(), KV_HEADS), interleave_ranks(lse.contiguous(), KV_HEADS))


def row_of_garbage(right: Partial) -> Partial:
    right.out[5] = 1.0
    return right


def nan_in_one_element(right: Partial) -> Partial:
    right.out[5, 3, 17] = math.nan
    return right


def nan_in_one_lse(right: Partial) -> Partial:
    right.lse[5, 3] = math.nan
    return right


def emptied_row(right: Partial) -> Partial:
    right.out[5], right.lse[5] = 0.0, -math.inf
    return right


def rows_shifted_by_one(right: Partial) -> Partial:
    return Partial(right.out.roll(1, 0), right.lse.roll(1, 0))


def one_coarse_element(right: Partial) -> Partial:
    right.out[2, 0] *= 1.05
    return right


RESULT_FAULTS = [
    wrong_base,
    shifted_lse_of_one_row,
    swapped_heads,
    row_of_garbage,
    nan_in_one_element,
    nan_in_one_lse,
    emptied_row,
    rows_shifted_by_one,
    one_coarse_element,
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("fault", RESULT_FAULTS)
def test_a_result_that_is_wrong_in_one_place_is_over_budget(
    fault: Callable[[Partial], Partial], dtype: torch.dtype
) -> None:
    batch = Batch.draw("q16s200", dtype)
    check = judge(fault(batch.attend(causal)), batch.truth())
    assert not check.passed, check


def group_of(batch: Batch, dcp: int) -> tuple[Tensor, Tensor]:
    parts = [batch.attend(on_rank(rank, dcp)) for rank in range(dcp)]
    return torch.stack([part.out for part in parts]), torch.stack([part.lse for part in parts])


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_group_that_combines_wrongly_is_over_budget(dtype: torch.dtype) -> None:
    batch = Batch.draw("q16s200_q3s4", dtype)
    outs, lses = group_of(batch, 4)
    wrong = {
        "LSEs of swapped ranks": (outs, lses[[1, 0, 2, 3]]),
        "a rank left out": (outs[1:], lses[1:]),
        "a rank counted twice": (outs[[0, 1, 2, 2]], lses[[0, 1, 2, 2]]),
        "base 2 taken for natural": (outs, lses / math.log(2)),
        "equal weights": (outs, torch.where(lses.isinf(), lses, 0.0)),
    }
    for fault, (faulty_outs, faulty_lses) in wrong.items():
        check = judge(combine(faulty_outs, faulty_lses), batch.truth())
        assert not check.passed, f"{fault}: {check}"
    assert judge(combine(outs, lses), batch.truth()).passed


def test_a_result_in_base_two_is_judged_by_its_natural_lse() -> None:
    batch = Batch.draw("q16s200", torch.float32)
    right = batch.attend(causal)
    assert judge(Partial(right.out, right.lse / math.log(2), LseBase.TWO), batch.truth()).passed
