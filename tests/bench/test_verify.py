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
from bench.errors import UnfitError
from bench.verify import BATCHES, DCPS, FEW, HEAD_DIMS, INTERLEAVES, PAGE_SIZES, REAL_BATCHES, Selection, verify_cases
from dcp_core.arithmetic import TORCH
from dcp_core.cache import PageTable
from dcp_core.check import Check
from dcp_core.fold import Fold, OwnRows, attend_own_rows
from dcp_core.kernels import reference
from dcp_core.lse import LseBase, Partial, combine
from dcp_core.mask import Lengths, MaskRows
from dcp_core.mesh import Mesh
from dcp_core.settings import Batching, Case, ExchangeName, IndexDevice, KernelName, KvLayout, MaskForm, PathName
from dcp_core.shapes import Workload

SELECTION = Selection((KernelName.REFERENCE,), ranks=2, exchanges=(ExchangeName.AG_RS, ExchangeName.A2A))
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
    heads = {case.layout.heads(case.shape) for case in CASES if case.layout.dcp == 8}
    assert {(each.query, each.kv) for each in heads} == {(4, 1), (1, 1), (4, 2)}
    assert {case.shape.head_dim for case in CASES} == set(HEAD_DIMS)


def test_groups_within_reach_are_real_too_and_larger_ones_simulated_only() -> None:
    exchanges = {(case.layout.dcp, case.settings.exchange) for case in CASES}
    assert {(2, ExchangeName.AG_RS), (2, ExchangeName.A2A), (2, ExchangeName.LOOPBACK)} <= exchanges
    assert (3, ExchangeName.AG_RS) not in exchanges
    assert {dcp for dcp, exchange in exchanges if exchange is ExchangeName.LOOPBACK} == set(DCPS[1:])


def test_every_path_meets_every_exchange_between_real_ranks() -> None:
    met = {(case.settings.path, case.settings.exchange) for case in CASES if case.layout.dcp == 2}
    for exchange in (ExchangeName.AG_RS, ExchangeName.A2A, ExchangeName.LOOPBACK):
        assert {path for path, via in met if via is exchange} == set(PathName) - {PathName.TP}


def test_the_exchanges_between_real_ranks_are_those_that_run_here() -> None:
    from bench.cli.verify import _cases

    kernels = dict.fromkeys(KernelName, "needs a GPU") | {KernelName.REFERENCE: ""}
    exchanges = dict.fromkeys(ExchangeName, "") | {ExchangeName.A2A: "lacks a wire"}
    probe = {"kernels": kernels, "exchanges": exchanges}
    cases = _cases({"path": ["decode"]}, probe, ranks=2, on_gpu=False)
    assert {case.settings.exchange for case in cases if case.layout.dcp == 2} == {
        ExchangeName.LOOPBACK,
        ExchangeName.AG_RS,
        ExchangeName.DIRECT,
    }
    with pytest.raises(UnfitError, match="exchange a2a does not run here: lacks a wire"):
        _cases({"exchange": ["a2a"]}, probe, ranks=2, on_gpu=False)


def test_what_is_not_crossed_varies_all_the_same() -> None:
    kernels = (KernelName.REFERENCE, KernelName.FA2, KernelName.FA3, KernelName.CUDA_CORE)
    on_gpu = replace(SELECTION, kernels=kernels, dcps=(2,), head_dims=(64,))
    drawn = verify_cases(on_gpu)
    assert drawn == verify_cases(on_gpu)
    for via in (ExchangeName.LOOPBACK, ExchangeName.AG_RS):
        cases = [case for case in drawn if case.settings.exchange is via]
        for path in set(PathName) - {PathName.TP}:
            settings = [case.settings for case in cases if case.settings.path is path]
            assert {one.page_size for one in settings} == set(PAGE_SIZES)
            assert {one.kv_layout for one in settings} == set(KvLayout)
            assert {one.index_device for one in settings} == set(IndexDevice)
            assert {one.replayable for one in settings} == ({False} if path is PathName.FOLD else {False, True})
        split = [case.settings for case in cases if case.settings.path is PathName.SPLIT]
        assert {one.skip_empty_context for one in split} == {False, True}
        assert {(KernelName.FA2, KernelName.FA3), (KernelName.FA3, KernelName.FA2)} <= {
            (one.kernel, one.kernel_for_new) for one in split
        }
        mixed = [case.settings.batching for case in cases if case.workload.is_mixed]
        assert set(mixed) == set(Batching)
        assert len({case.settings.fold_limit for case in cases if case.settings.path is PathName.FOLD}) == 2


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
    return verify_cases(few)[::7]


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


def see_all_before(rows: OwnRows, into: Partial) -> Partial:
    """Take all tokens of a row's length before a query for its own row, those of other rows and requests among them."""
    longest = torch.arange(len(rows.q), dtype=rows.earlier.dtype).clamp(max=rows.dcp - 1)
    return attend_own_rows(replace(rows, earlier=longest), into)


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
    "own rows that do not end": ("dcp_core.build.TORCH", replace(TORCH, attend_own_rows=see_all_before)),
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


def test_a_kernel_checked_in_full_elsewhere_meets_every_kind_of_request_all_the_same() -> None:
    both = replace(SELECTION, kernels=(KernelName.REFERENCE, KernelName.FA2))
    seldom = [
        case
        for case in verify_cases(replace(both, seldom=(KernelName.REFERENCE,)))
        if case.settings.kernel is KernelName.REFERENCE
    ]
    assert {str(case.workload) for case in seldom} == {str(Workload.parse(batch)) for batch in FEW}
    assert {case.settings.path for case in seldom} == set(PathName)
    assert {case.layout.dcp for case in seldom} == set(SELECTION.dcps)
