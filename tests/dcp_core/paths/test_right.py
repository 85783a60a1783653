"""Every path is right on every row of every rank, whatever the group, the interleave and the batch."""

from __future__ import annotations

import pytest
import torch

from dcp_core.settings import IllegalSettings
from tests.dcp_core.paths.group import Group, case

DECODES = ["q1s1_q1s2_q1s7", "3q1s37_q1s401"]
LONGER = ["q8s25", "q5_q64", "q7s9_q17s130_q2s3", "4q4s67"]
MIXED = ["q5s5_q1s3_q17s130_q1s64_q2s3", "2q1s17_q7s9"]
DCPS = [2, 3, 4, 8]
INTERLEAVES = [1, 2, 16]
VARIANTS = {
    "decode": {"path": "decode"},
    "split": {"path": "split"},
    "split, HND": {"path": "split", "kv_layout": "HND"},
    "mask as bool": {"path": "mask", "mask_form": "bool"},
    "mask as bits": {"path": "mask", "mask_form": "packed", "kv_layout": "HND"},
    "mask computed": {"path": "mask", "mask_form": "computed"},
    "fold": {"path": "fold"},
}


def legal(variant: str, interleave: int) -> bool:
    return variant != "fold" or interleave == 1


CROSS = [
    (variant, dcp, interleave)
    for variant in VARIANTS
    for dcp in DCPS
    for interleave in INTERLEAVES
    if legal(variant, interleave)
]


@pytest.mark.parametrize(("variant", "dcp", "interleave"), CROSS)
def test_a_path_is_right(variant: str, dcp: int, interleave: int) -> None:
    settings = VARIANTS[variant]
    batches = DECODES if variant == "decode" else LONGER + DECODES[:1]
    for batch in batches:
        check = Group(case(batch, dcp=dcp, interleave=interleave, **settings)).check()
        assert check.passed, f"{batch}: {check}"


@pytest.mark.parametrize("batching", ["separate", "joined"])
@pytest.mark.parametrize(
    ("variant", "dcp", "interleave"), [one for one in CROSS if one[0] != "decode" and one[1] in (2, 3, 8)]
)
def test_a_mixed_batch_is_right_joined_and_apart(variant: str, dcp: int, interleave: int, batching: str) -> None:
    for batch in MIXED:
        group = Group(case(batch, dcp=dcp, interleave=interleave, batching=batching, **VARIANTS[variant]))
        check = group.check()
        assert check.passed, f"{batch}: {check}"
        assert check.rows == dcp * group.case.workload.new_tokens


IN_ORDER = ["2q1s17_q7s9_q30s44_2q2s3", "q5s5_q17s130_q1s64_2q1s3", "q64_q1s2", "3q1s37", "q8s25"]


@pytest.mark.parametrize(
    ("variant", "dcp", "interleave"), [one for one in CROSS if one[0] != "decode" and one[1] in (2, 3)]
)
def test_kinds_that_share_a_gather_and_a_combine_are_right(variant: str, dcp: int, interleave: int) -> None:
    for batch in IN_ORDER:
        group = Group(case(batch, dcp=dcp, interleave=interleave, batching="shared", **VARIANTS[variant]))
        check = group.check()
        assert check.passed, f"{batch}: {check}"
        assert check.rows == dcp * group.case.workload.new_tokens


@pytest.mark.parametrize("batching", ["separate", "shared"])
@pytest.mark.parametrize("limit", [1, 2, 8, 100])
def test_fold_may_leave_longer_requests_to_split(limit: int, batching: str) -> None:
    for batch in ("2q1s17_2q2s3_q7s9_q30s44", "q2s3_q30s44_q200", "q30s44"):
        group = Group(case(batch, dcp=3, path="fold", batching=batching, fold_limit=limit))
        assert group.check().passed, batch


@pytest.mark.parametrize("batch", [*DECODES, *LONGER, *MIXED])
@pytest.mark.parametrize("path", ["tp", "split", "mask", "fold"])
def test_a_group_of_one_runs_every_path(path: str, batch: str) -> None:
    assert Group(case(batch, dcp=1, path=path)).check().passed


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("variant", [name for name in VARIANTS if name != "decode"])
def test_half_precision_stays_within_its_budget(variant: str, dtype: str) -> None:
    for batch in ("q8s25", MIXED[0], "q64s300"):
        check = Group(case(batch, dcp=4, dtype=dtype, **VARIANTS[variant])).check()
        assert check.passed, f"{batch}: {check}"


@pytest.mark.parametrize("heads", [(1, 1), (2, 1), (3, 3), (6, 2)])
@pytest.mark.parametrize("path", ["split", "mask", "fold"])
def test_any_number_of_query_and_kv_heads_per_rank(path: str, heads: tuple[int, int]) -> None:
    assert Group(case("q7s9_q17s130_q2s3", dcp=3, path=path, heads=heads)).check().passed


@pytest.mark.parametrize(("page_size", "interleave"), [(1, 1), (2, 2), (3, 3), (64, 1), (64, 16)])
def test_any_page_size(page_size: int, interleave: int) -> None:
    for path in ("split", "mask"):
        group = Group(case("q7s9_q17s130_q2s3", dcp=2, interleave=interleave, path=path, page_size=page_size))
        assert group.check().passed


@pytest.mark.parametrize("batch", ["q8s25", "q64", "q7s9_q17s130_q2s3", "q33s700"])
def test_the_paths_agree_with_one_another_on_every_row(batch: str) -> None:
    results = {
        name: Group(case(batch, dcp=4, **settings)).plan().run()
        for name, settings in VARIANTS.items()
        if name != "decode"
    }
    first = results.pop("split")
    for name, others in results.items():
        for one, other in zip(first, others, strict=True):
            torch.testing.assert_close(other.out, one.out, rtol=0, atol=2e-5, msg=lambda text, n=name: f"{n}: {text}")
            torch.testing.assert_close(other.lse, one.lse, rtol=0, atol=2e-5)


def test_the_published_example() -> None:
    for variant in ("split", "mask as bits", "fold"):
        assert Group(case("q8s25", dcp=4, **VARIANTS[variant])).check().passed


def test_fold_refuses_an_interleave() -> None:
    with pytest.raises(IllegalSettings, match="interleave 1, not 2"):
        case("q8s25", dcp=4, interleave=2, path="fold")
