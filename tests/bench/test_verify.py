"""What ``dcpbench verify`` runs, and that it would find the faults that DCP implementations have had."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import groupby

import pytest
import torch
from torch import Tensor

from bench import measure
from bench.verify import BATCHES, DCPS, HEAD_DIMS, INTERLEAVES, REAL_BATCHES, Selection, verify_cases
from dcp_core.arithmetic import TORCH
from dcp_core.cache import PageTable
from dcp_core.check import Check
from dcp_core.fold import Fold
from dcp_core.kernels import reference
from dcp_core.lse import LseBase, Partial, combine
from dcp_core.mask import Lengths, MaskRows
from dcp_core.mesh import Mesh
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
    runs = [key for key, _ in groupby(asked)]
    assert max(Counter(runs).values()) == 1
    assert len(runs) < len(CASES) / 2


def test_a_selection_is_narrowed_to_what_was_asked_for() -> None:
    few = verify_cases(replace(SELECTION, paths=(PathName.FOLD,), dcps=(3,)))
    assert few
    assert {(case.settings.path, case.layout.dcp) for case in few} == {(PathName.FOLD, 3)}


# --- What it would find ---------------------------------------------------------------------------------------------


def some_cases() -> list[Case]:
    """Return a small part of the selection: two group sizes, one head dim, with and without interleave."""
    few = replace(SELECTION, ranks=1, dcps=(2, 4), interleaves=(1, 2), head_dims=(64,))
    return verify_cases(few)[::3]


def failures(cases: Iterable[Case]) -> Iterator[Case]:
    """Yield the cases that are over budget."""
    for case in cases:
        verified = measure.verify(case, Mesh.simulated(case.layout.dcp), seed=0)
        assert isinstance(verified, tuple)
        if not verified[1].passed:
            yield case


def heads_by_rank(stacked: Tensor, kv_heads: int, *, out: Tensor | None = None) -> Tensor:
    """Order gathered heads by rank first: right for one KV head only."""
    return stacked.transpose(0, 1).flatten(1, 2)


def take_natural_for_base_two(outs: Tensor, lses: Tensor, *, base: LseBase, into: Partial | None = None) -> Partial:
    return combine(outs, lses, base=LseBase.TWO, into=into)


RIGHT_ROWS = MaskRows.of


def rows_of_another(*, rank: int = 0, interleave: int | None = None) -> object:
    """Make rows of a mask that see what those of another rank or interleave would, in a mask of the right size."""

    def rows(
        new: Lengths, total: Lengths, dcp: int, own_rank: int, own_interleave: int, device: torch.device
    ) -> MaskRows:
        right = RIGHT_ROWS(new, total, dcp, own_rank, own_interleave, device)
        other = RIGHT_ROWS(new, total, dcp, (own_rank + rank) % dcp, interleave or own_interleave, device)
        return replace(right, visible=torch.minimum(other.visible, right.widths[right.request].int()))

    return staticmethod(rows)


def global_lengths(table: PageTable, lens: Sequence[int]) -> PageTable:
    """Take the shard of the total for that of the context: new tokens are seen twice."""
    return table


class FoldOffByOne:
    """A fold that takes every query for the one behind it."""

    @staticmethod
    def of(new: Sequence[int], total: Sequence[int], dcp: int, rank: int) -> Fold:
        right = Fold.of(new, total, dcp, rank)
        behind = (right.place + 1).clamp(max=right.places - 1)
        return replace(right, place=torch.where(right.place >= 0, behind, -1))


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

FAULTS: dict[str, tuple[str, object]] = {
    "heads gathered in the wrong order": ("dcp_core.exchange.loopback.interleave_ranks", heads_by_rank),
    "mask of the neighbouring rank": ("dcp_core.mask.MaskRows.of", rows_of_another(rank=1)),
    "mask that ignores the interleave": ("dcp_core.mask.MaskRows.of", rows_of_another(interleave=1)),
    "fold off by one query": ("dcp_core.paths.fold.Fold", FoldOffByOne),
    "total lengths where the context's belong": ("dcp_core.cache.PageTable.first", global_lengths),
    "the last key left out": ("dcp_core.kernels.reference.attend", attend_without_the_last_key),
    "garbage where a rank has no key": ("dcp_core.kernels.reference.attend", leave_empty_rows_unwritten),
    "a wrong base of the LSE": ("dcp_core.build.TORCH", replace(TORCH, combine=take_natural_for_base_two)),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_that_was_put_in_is_found(monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    monkeypatch.setattr(*FAULTS[fault])
    assert any(failures(some_cases()))


def test_without_a_fault_all_of_these_are_right() -> None:
    assert list(failures(some_cases())) == []
    assert len(some_cases()) > 50
    paths = {case.settings.path for case in some_cases()}
    assert paths == {PathName.DECODE, PathName.SPLIT, PathName.MASK, PathName.FOLD}


def test_a_verdict_of_several_ranks_counts_all_their_rows() -> None:
    case = next(case for case in some_cases() if case.layout.dcp == 4)
    verified = measure.verify(case, Mesh.simulated(4), seed=0)
    assert isinstance(verified, tuple)
    assert isinstance(verified[1], Check)
    assert verified[1].rows == 4 * case.workload.new_tokens
