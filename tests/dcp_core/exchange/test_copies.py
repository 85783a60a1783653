"""Steps whose payload is fetched: rank by rank in phases, and by memmove where there are no copy engines."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from dcp_core.exchange import copies
from dcp_core.exchange.base import interleave_ranks, split_ranks
from dcp_core.exchange.copies import CopyEngines, Outbox
from dcp_core.lse import LseBase, Partial
from dcp_core.triton_ops import direct
from dcp_core.triton_ops.direct import Phase
from dcp_core.triton_ops.mailbox import Group, Mailbox, PeerLost
from tests.dcp_core.triton_ops.mailboxes import mailboxes, outboxes
from tests.dcp_core.triton_ops.test_direct import assert_same, expected_of, partials, queries

# The interpreter computes exp and log of -inf and NaN with numpy, which says so.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

MOST = 19
GROUPS = [
    Group(2, 1, 8, 128, torch.bfloat16),
    Group(3, 2, 3, 64, torch.float16),
    Group(4, 1, 2, 80, torch.bfloat16),
    Group(5, 3, 1, 64, torch.float32),
]


def by_hand(reference: Any, stream: object) -> int:
    """Copy rows at once, as the driver's call does later."""
    copy = reference._obj
    for row in range(copy.height):
        source, target = copy.source + row * copy.source_pitch, copy.target + row * copy.target_pitch
        ctypes.memmove(target, source, copy.width)
    return 0


def driver_of(copying: Callable[[Any, object], int]) -> SimpleNamespace:
    return SimpleNamespace(cuMemcpy2DAsync_v2=copying)


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch, triton_device: str) -> None:
    """Without a GPU there is neither driver nor stream."""
    if triton_device == "cpu":
        monkeypatch.setattr(copies, "_driver", lambda: driver_of(by_hand))
        monkeypatch.setattr(torch.cuda, "current_stream", lambda _: SimpleNamespace(cuda_stream=0))


@pytest.fixture
def after_a_push(monkeypatch: pytest.MonkeyPatch, driver: None) -> None:
    """Let a rank by itself wait only: all have pushed before the first waits."""
    monkeypatch.setattr(copies, "meet", lambda box: direct.meet(box, phase=Phase.WAIT))


def leave(one: CopyEngines, rank: int, given: Partial, beside: Partial, group: Group) -> None:
    """Do what attention does: leave the peers' heads for them, and keep one's own."""
    for tensor, own, peers in (
        (given.out, one.own.out, one.for_peers.out),
        (given.lse, one.own.lse, one.for_peers.lse),
    ):
        share = split_ranks(tensor, group.kv_heads, group.ranks)
        own.copy_(share[rank].flatten(1, 2))
        others = [share[(rank + step) % group.ranks].flatten(1, 2) for step in range(1, group.ranks)]
        interleave_ranks(torch.stack(others), group.kv_heads, out=peers)
    one.beside.out.copy_(beside.out)
    one.beside.lse.copy_(beside.lse)


class Ranks:
    """A whole group's rooms on one device."""

    def __init__(self, group: Group, device: str, *, polls: int = 1_000_000) -> None:
        self.group, self.device = group, device
        self.boxes = mailboxes(group, tokens=4, device=device, programs=3, polls=polls)
        self.outboxes = outboxes(group, tokens=MOST, device=device)

    def fetching(self, tokens: int) -> list[CopyEngines]:
        return [CopyEngines(box, outbox, tokens) for box, outbox in zip(self.boxes, self.outboxes, strict=True)]

    def fetch_queries(self, all_: Sequence[CopyEngines], q: Sequence[Tensor]) -> list[Tensor]:
        for rank, one in enumerate(all_):
            one.leave_queries(q[rank])
            direct.meet(self.boxes[rank], phase=Phase.PUSH)
        for one in all_:
            one.fetch_queries()
        return [one.queries for one in all_]

    def leave(self, all_: Sequence[CopyEngines], given: Sequence[Partial], beside: Sequence[Partial]) -> None:
        for rank, one in enumerate(all_):
            leave(one, rank, given[rank], beside[rank], self.group)

    def combine(self, all_: Sequence[CopyEngines], base: LseBase) -> list[Partial]:
        for box in self.boxes:
            direct.meet(box, phase=Phase.PUSH)
        return [self.finish(one, base) for one in all_]

    def finish(self, one: CopyEngines, base: LseBase) -> Partial:
        one.fetch_partials()
        into = Partial(torch.full_like(one.own.out, -7.0), torch.empty_like(one.own.lse))
        one.add_up(base, into)
        return into


@pytest.mark.parametrize("base", LseBase)
@pytest.mark.parametrize("group", GROUPS, ids=str)
def test_step_after_step_of_changing_tokens_is_right(
    group: Group, base: LseBase, after_a_push: None, triton_device: str
) -> None:
    ranks = Ranks(group, triton_device)
    for seed, tokens in enumerate((MOST, 3, 0, MOST)):
        all_, q = ranks.fetching(tokens), queries(group, tokens, seed, triton_device)
        for rank, fetched in enumerate(ranks.fetch_queries(all_, q)):
            peers = [q[(rank + step) % group.ranks] for step in range(1, group.ranks)]
            assert fetched.equal(interleave_ranks(torch.stack(peers), group.kv_heads))
        given = partials(group, tokens, group.ranks * group.heads, seed, triton_device, base)
        beside = partials(group, tokens, group.heads, seed + 50, triton_device, base)
        ranks.leave(all_, given, beside)
        for rank, got in enumerate(ranks.combine(all_, base)):
            assert_same(got, expected_of(given, group, rank, beside[rank]))


def test_once_a_rank_gave_up_nobody_makes_anything_of_what_it_may_overwrite(
    after_a_push: None, triton_device: str
) -> None:
    group = GROUPS[1]
    ranks = Ranks(group, triton_device, polls=5)
    all_, q = ranks.fetching(4), queries(group, 4, 0, triton_device)
    ranks.fetch_queries(all_, q)
    given, beside = (partials(group, 4, heads, 0, triton_device) for heads in (18, 6))
    ranks.leave(all_, given, beside)
    for box in ranks.boxes:
        direct.meet(box, phase=Phase.PUSH)
    ranks.finish(all_[0], LseBase.NATURAL)
    assert not any(int(box.marks.any()) for box in ranks.boxes)
    direct.meet(ranks.boxes[0])  # the next turn, to which the others do not come
    assert ranks.boxes[0].lost_rank() == (1, 3)
    assert [box.marks.ne(0).tolist() for box in ranks.boxes] == [[True, False, False]] * 3
    all_[0].for_peers.out.fill_(5.0)
    for late in all_[1:]:
        got = ranks.finish(late, LseBase.NATURAL)
        assert got.out.isnan().all()
        assert got.lse.isnan().all()
    with pytest.raises(PeerLost, match="rank 1 did not come to turn 3"):
        all_[0].fetch_partials()
    with pytest.raises(PeerLost, match="rank 1 did not come to turn 3"):
        all_[0].fetch_queries()
    with pytest.raises(PeerLost, match="rank 1 did not come to turn 3"):
        all_[0].leave_queries(q[0])


def test_a_copy_that_the_driver_refuses_is_an_error(
    monkeypatch: pytest.MonkeyPatch, after_a_push: None, triton_device: str
) -> None:
    monkeypatch.setattr(copies, "_driver", lambda: driver_of(lambda *_: 700))
    ranks = Ranks(GROUPS[0], triton_device)
    with pytest.raises(RuntimeError, match="the CUDA driver refused to copy 4 tokens from a peer: error 700"):
        ranks.fetch_queries(ranks.fetching(4), queries(GROUPS[0], 4, 0, triton_device))


def test_more_queries_of_the_next_step_do_not_lie_on_partials_that_a_peer_still_fetches(
    after_a_push: None, triton_device: str
) -> None:
    group, few = GROUPS[1], 8
    ranks = Ranks(group, triton_device)
    all_ = ranks.fetching(few)
    ranks.fetch_queries(all_, queries(group, few, 0, triton_device))
    given, beside = (partials(group, few, heads, 0, triton_device) for heads in (18, 6))
    ranks.leave(all_, given, beside)
    for box in ranks.boxes:
        direct.meet(box, phase=Phase.PUSH)
    ranks.finish(all_[0], LseBase.NATURAL)
    ranks.fetching(MOST)[0].leave_queries(queries(group, MOST, 1, triton_device)[0])
    for rank in (1, 2):
        assert_same(ranks.finish(all_[rank], LseBase.NATURAL), expected_of(given, group, rank, beside[rank]))


@pytest.mark.parametrize(
    "wrong", [lambda q: q[:3], lambda q: q[:1], lambda q: q.float()], ids=["fewer", "one", "float32"]
)
def test_queries_that_do_not_fit_are_refused(wrong: Callable[[Tensor], Tensor], triton_device: str) -> None:
    (one, _), q = Ranks(GROUPS[0], triton_device).fetching(4), queries(GROUPS[0], 4, 0, triton_device)[0]
    with pytest.raises(ValueError, match=r"queries should be \[4, 8, 128\] of torch.bfloat16, not"):
        one.leave_queries(wrong(q))


def test_an_outbox_says_what_it_holds(triton_device: str) -> None:
    outbox: Outbox = outboxes(GROUPS[0], tokens=8, device=triton_device)[0]
    assert [tuple(part.shape) for part in outbox.parts(8)] == [(8, 8, 128), (8, 8, 128), (8, 8)]


def test_a_mailbox_keeps_its_marks_apart_from_its_flags(triton_device: str) -> None:
    box: Mailbox = mailboxes(GROUPS[1], tokens=4, device=triton_device)[0]
    box.marks.fill_(1)
    assert int(box.memory[: GROUPS[1].flag_bytes].view(torch.int64).sum()) == GROUPS[1].ranks
    assert not box.memory[: 8 * GROUPS[1].ranks * 512].any()
