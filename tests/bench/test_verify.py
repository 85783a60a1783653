"""What ``dcpbench verify`` runs, and that it would find the faults that DCP implementations have had."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any

import pytest
import torch
from torch import Tensor

from bench import measure
from bench.verify import BATCHES, DCPS, HEAD_DIMS, INTERLEAVES, REAL_BATCHES, Selection, verify_cases
from dcp_core.cache import PageTable
from dcp_core.check import Check
from dcp_core.exchange import loopback
from dcp_core.kernels import reference
from dcp_core.lse import LseBase, Partial, combine
from dcp_core.mask import MaskRows
from dcp_core.mesh import Mesh
from dcp_core.paths import fold, mask, split
from dcp_core.settings import Case, ExchangeName, KernelName, MaskForm, PathName
from dcp_core.shapes import Workload

SELECTION = Selection(kernels=(KernelName.REFERENCE,), ranks=2)
CASES = verify_cases(SELECTION)


# --- What is selected -----------------------------------------------------------------------------------------------


def test_no_case_is_run_twice() -> None:
    assert max(Counter(case.key for case in CASES).values()) == 1


def test_every_path_meets_every_batch_dcp_and_interleave() -> None:
    met = {(c.settings.path, str(c.workload), c.layout.dcp, c.layout.interleave) for c in CASES}
    batches = [str(Workload.parse(text)) for text in BATCHES.values()]
    for dcp in DCPS[1:]:
        for interleave in INTERLEAVES:
            for batch in batches:
                assert {(path, batch, dcp, interleave) for path in (PathName.SPLIT, PathName.MASK)} <= met
    assert all((PathName.FOLD, batch, dcp, 1) in met for batch in batches for dcp in DCPS[1:])
    assert all((PathName.TP, batch, 1, 1) in met for batch in batches)
    assert {path for path, *_ in met} == set(PathName)


def test_every_mask_form_head_count_and_head_dim_is_met() -> None:
    masks = [case for case in CASES if case.settings.path is PathName.MASK]
    assert {case.settings.mask_form for case in masks} == set(MaskForm)
    assert {case.layout.heads(case.shape).kv for case in CASES} == {1, 2}
    assert {case.shape.head_dim for case in CASES} == set(HEAD_DIMS)


def test_groups_within_reach_are_real_too_and_larger_ones_simulated_only() -> None:
    exchanges = {(case.layout.dcp, case.settings.exchange) for case in CASES}
    assert {(2, ExchangeName.AG_RS), (2, ExchangeName.A2A), (2, ExchangeName.LOOPBACK)} <= exchanges
    assert (3, ExchangeName.AG_RS) not in exchanges
    assert {dcp for dcp, exchange in exchanges if exchange is ExchangeName.LOOPBACK} == set(DCPS[1:])


def test_a_thorough_selection_crosses_real_exchanges_with_every_batch() -> None:
    def real(cases: Sequence[Case]) -> set[str]:
        return {str(c.workload) for c in cases if c.settings.exchange is ExchangeName.A2A}

    assert real(CASES) == {str(Workload.parse(text)) for text in REAL_BATCHES}
    thorough = verify_cases(replace(SELECTION, thorough=True, dcps=(2,)))
    assert real(thorough) == {str(Workload.parse(text)) for text in BATCHES.values()}


def test_paths_of_one_batch_follow_each_other_so_that_they_are_compared() -> None:
    asked = [(c.shape, c.layout, str(c.workload), c.settings.exchange is ExchangeName.LOOPBACK) for c in CASES]
    compared = Counter(len(list(run)) > 1 for _, run in groupby(asked) if asked)
    assert compared[True] > 10 * compared[False] or compared[False] < 30


def test_a_selection_is_narrowed_to_what_was_asked_for() -> None:
    few = verify_cases(replace(SELECTION, paths=(PathName.FOLD,), dcps=(3,)))
    assert few
    assert {(case.settings.path, case.layout.dcp) for case in few} == {(PathName.FOLD, 3)}


# --- What it would find ---------------------------------------------------------------------------------------------


def some_cases() -> list[Case]:
    """Return a small part of the selection: two group sizes, one head dim, with and without interleave."""
    few = replace(SELECTION, ranks=1, dcps=(2, 4), interleaves=(1, 2), head_dims=(64,))
    return verify_cases(few)[::3]


def failures(cases: Sequence[Case]) -> list[Case]:
    """Return which cases are over budget."""
    found = []
    for case in cases:
        verified = measure.verify(case, Mesh.simulated(case.layout.dcp), seed=0)
        assert isinstance(verified, tuple)
        if not verified[1].passed:
            found.append(case)
    return found


def heads_by_rank(stacked: Tensor, kv_heads: int, *, out: Tensor | None = None) -> Tensor:
    """Order gathered heads by rank first: right for one KV head only."""
    return stacked.transpose(0, 1).flatten(1, 2)


def take_natural_for_base_two(outs: Tensor, lses: Tensor, *, base: LseBase, into: Partial | None = None) -> Partial:
    return combine(outs, lses, base=LseBase.TWO, into=into)


def mask_of_the_next_rank(*arguments: Any) -> MaskRows:
    new, total, dcp, rank, interleave, device = arguments
    return MaskRows.of(new, total, dcp, (rank + 1) % dcp, interleave, device)


def mask_without_interleave(*arguments: Any) -> MaskRows:
    new, total, dcp, rank, _, device = arguments
    return MaskRows.of(new, total, dcp, rank, 1, device)


def global_lengths(table: PageTable, lens: Sequence[int]) -> PageTable:
    """Take the shard of the total for that of the context: new tokens are seen twice."""
    return table


class MaskRowsWith:
    def __init__(self, of: Callable[..., MaskRows]) -> None:
        self.of = of


def fold_of_another_rank(new: Sequence[int], total: Sequence[int], dcp: int, rank: int) -> fold.Fold:
    right = RIGHT_FOLD(new, total, dcp, rank)
    place = torch.where(right.place >= 0, (right.place + 1).clamp(max=right.places - 1), right.place)
    return replace(right, place=place)


RIGHT_FOLD = fold.Fold.of


class FoldWith:
    of = staticmethod(fold_of_another_rank)


def attend_without_the_last_key(q: Tensor, k: Tensor, v: Tensor, *, seen: Tensor | None, into: Partial) -> None:
    shorter = seen[:, :-1] if seen is not None else None
    ATTEND(q, k[:-1], v[:-1], seen=shorter, into=into)


def leave_empty_rows_unwritten(q: Tensor, k: Tensor, v: Tensor, *, seen: Tensor | None, into: Partial) -> None:
    if len(k):
        ATTEND(q, k, v, seen=seen, into=into)
    else:
        into.lse.zero_()
        into.out.fill_(1e-3)


ATTEND = reference.attend

FAULTS: dict[str, tuple[object, str, object]] = {
    "heads gathered in the wrong order": (loopback, "interleave_ranks", heads_by_rank),
    "mask of the neighbouring rank": (mask, "MaskRows", MaskRowsWith(mask_of_the_next_rank)),
    "mask that ignores the interleave": (mask, "MaskRows", MaskRowsWith(mask_without_interleave)),
    "fold off by one query": (fold, "Fold", FoldWith),
    "total lengths where the context's belong": (PageTable, "first", global_lengths),
    "the last key left out": (reference, "attend", attend_without_the_last_key),
    "garbage where a rank has no key": (reference, "attend", leave_empty_rows_unwritten),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_that_was_put_in_is_found(monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    home, name, faulty = FAULTS[fault]
    monkeypatch.setattr(home, name, faulty)
    assert failures(some_cases())


def test_a_wrong_base_of_the_lse_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def opened(self: loopback.Loopback, board: Any, rank: int, kv_heads: int, arithmetic: Any) -> None:
        RIGHT_LOOPBACK(self, board, rank, kv_heads, arithmetic)
        self._combine = take_natural_for_base_two

    monkeypatch.setattr(loopback.Loopback, "__init__", opened)
    assert failures(some_cases())


RIGHT_LOOPBACK = loopback.Loopback.__init__


def test_without_a_fault_all_of_these_are_right() -> None:
    assert failures(some_cases()) == []
    assert len(some_cases()) > 50
    paths = {case.settings.path for case in some_cases()}
    assert paths == {PathName.DECODE, PathName.SPLIT, PathName.MASK, PathName.FOLD}


def test_a_verdict_of_several_ranks_counts_all_their_rows() -> None:
    case = next(case for case in some_cases() if case.layout.dcp == 4)
    verified = measure.verify(case, Mesh.simulated(4), seed=0)
    assert isinstance(verified, tuple)
    assert isinstance(verified[1], Check)
    assert verified[1].rows == 4 * case.workload.new_tokens
    assert split.SplitRecipe
