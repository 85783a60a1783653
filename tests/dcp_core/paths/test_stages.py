"""What a step and its planning consist of, by name: the breakdown that a benchmark times."""

from __future__ import annotations

import pytest
import torch

from dcp_core.exchange.loopback import Loopback
from tests.dcp_core.paths.group import Group, case, stages_of

GATHERED = ["gather", "attention", "combine"]
SPLIT = ["gather", "context", "new", "combine", "merge"]
FOLD = ["gather", "fold", "attention", "unfold", "new", "combine", "merge"]


@pytest.mark.parametrize(
    ("settings", "batch", "planning", "step"),
    [
        ({"path": "decode"}, "3q1s37", ["plan"], GATHERED),
        ({"path": "split"}, "q8s25", ["plan context", "plan new"], SPLIT),
        ({"path": "mask", "mask_form": "bool"}, "q8s25", ["mask", "plan"], GATHERED),
        ({"path": "mask", "mask_form": "packed"}, "q8s25", ["mask", "plan"], GATHERED),
        ({"path": "mask", "mask_form": "computed"}, "q8s25", ["plan"], GATHERED),
        ({"path": "fold"}, "q8s25", ["fold", "plan"], FOLD),
    ],
)
def test_a_step_consists_of_gather_attention_and_combine(
    settings: dict[str, str], batch: str, planning: list[str], step: list[str]
) -> None:
    group = Group(case(batch, dcp=4, **settings))
    assert stages_of(group) == planning
    assert group.plan().stage_names() == step


def test_without_dcp_there_is_one_stage() -> None:
    for batch in ("q8s25", "3q1s37"):
        group = Group(case(batch, dcp=1, path="tp"))
        assert stages_of(group) == ["plan"]
        assert group.plan().stage_names() == ["attention"]


@pytest.mark.parametrize("path", ["decode", "split", "mask", "fold"])
def test_gather_and_combine_say_that_they_communicate_and_nothing_else_does(path: str) -> None:
    group = Group(case("3q1s37", dcp=4, path=path)).plan()
    for rank in group.ranks():
        talking = {stage.name for stage in rank.stages() if stage.communicates}
        assert talking == {"gather", "combine"}


def test_split_without_context_anywhere_is_one_pass_of_its_own_heads() -> None:
    group = Group(case("q5_q64", dcp=4, path="split"))
    assert stages_of(group) == ["plan new"]
    assert group.plan().stage_names() == ["new"]


def test_split_without_context_gathers_all_the_same_if_asked_to_and_gives_the_same() -> None:
    whole = Group(case("q5_q64", dcp=4, path="split", skip_empty_context=False)).plan()
    short = Group(case("q5_q64", dcp=4, path="split", skip_empty_context=True)).plan()
    assert whole.stage_names() == SPLIT
    for one, other in zip(whole.run(), short.run(), strict=True):
        # Merging with an empty context multiplies and divides by 1: no bit changes but in the LSE's last.
        torch.testing.assert_close(one.out, other.out, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(one.lse, other.lse, rtol=1e-6, atol=1e-6)


def test_one_request_with_context_is_enough_for_the_whole_batch_to_gather() -> None:
    # The context of one token lives on rank 0 alone; every other rank must take part in the collectives all the same.
    group = Group(case("q5_q64s65", dcp=4, path="split")).plan()
    assert group.stage_names() == SPLIT
    assert group.judge(group.run()).passed


def test_a_mixed_batch_apart_runs_decodes_through_decode_and_the_rest_through_the_path() -> None:
    group = Group(case("2q1s17_q7s9_q20s40", dcp=2, path="split")).plan()
    assert group.stage_names() == [f"decode: {name}" for name in GATHERED] + [f"rest: {name}" for name in SPLIT]
    assert stages_of(group) == ["decode: plan", "rest: plan context", "rest: plan new"]


def test_a_mixed_batch_joined_is_one_pass() -> None:
    group = Group(case("2q1s17_q7s9_q20s40", dcp=2, path="split", batching="joined")).plan()
    assert group.stage_names() == SPLIT


def test_kinds_that_share_gather_and_combine_once() -> None:
    group = Group(case("2q1s17_q7s9_q20s40", dcp=2, path="split", batching="shared")).plan()
    assert group.stage_names() == [
        "gather",
        "decode: attention",
        "rest: context",
        "rest: new",
        "combine",
        "rest: merge",
    ]
    for rank in group.ranks():
        assert {stage.name for stage in rank.stages() if stage.communicates} == {"gather", "combine"}


def test_what_fold_does_not_take_goes_through_split() -> None:
    group = Group(case("2q1s17_2q4s9_q20s40", dcp=2, path="fold", batching="shared", fold_limit=4)).plan()
    assert group.stage_names() == [
        "gather",
        "decode: attention",
        "fold: fold",
        "fold: attention",
        "fold: unfold",
        "fold: new",
        "split: context",
        "split: new",
        "combine",
        "fold: merge",
        "split: merge",
    ]
    only_long = Group(case("q20s40", dcp=2, path="fold", fold_limit=4)).plan()
    assert only_long.stage_names() == SPLIT


def test_scattered_requests_are_copied_together_and_back() -> None:
    group = Group(case("q1s17_q7s9_q1s40", dcp=2, path="fold")).plan()
    names = group.stage_names()
    assert [name for name in names if name.endswith((": select", ": place"))] == ["decode: select", "decode: place"]
    assert group.judge(group.run()).passed


def test_the_last_stage_has_written_every_row_of_the_output() -> None:
    for path in ("split", "mask", "fold"):
        for result in Group(case("q1s1_q7s9_q1s40_q3s3", dcp=8, path=path)).plan().run():
            assert result.out.isfinite().all()
            assert result.lse.isfinite().all()


@pytest.mark.parametrize("batching", ["separate", "shared", "joined"])
def test_what_communicates_says_which_way_the_exchange_takes(batching: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Loopback, "variant", lambda self, tokens: f"a way for {tokens}")
    group = Group(case("2q1s17_q7s9", dcp=2, path="split", batching=batching)).plan()
    told = [(stage.name, stage.variant) for stage in group.path.stages() if stage.communicates]
    each = ("gather", "combine")
    assert told == (
        [(f"{kind}: {name}", f"a way for {tokens}") for kind, tokens in (("decode", 2), ("rest", 7)) for name in each]
        if batching == "separate"
        else [(name, "a way for 9") for name in each]
    )
    assert not any(stage.variant for stage in group.path.stages() if not stage.communicates)
