"""What exchanges keep: the bytes predicted without torch are those of the tensors that they hold."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from dcp_core import Case, DcpLayout, ModelShape, Settings, Workload
from dcp_core.build import open_exchange
from dcp_core.exchange import direct
from dcp_core.exchange.copies import CopyEngines
from dcp_core.exchange_bytes import exchange_bytes, mailbox_bytes
from dcp_core.fold import Fold
from dcp_core.lse import Partial
from dcp_core.mesh import Board, Mesh
from dcp_core.triton_ops.mailbox import Group
from tests.dcp_core.triton_ops.mailboxes import mailboxes, outboxes
from tests.ranks import on_ranks

RANKS = 2


def case(batch: str, exchange: str, *, dcp: int = RANKS, dtype: str = "bfloat16", **settings: object) -> Case:
    shape = ModelShape(8 * dcp, 2, 64, 1, dtype=dtype)
    chosen = {"path": "split", "kernel": "reference", "exchange": exchange, **settings}
    return Case(shape, DcpLayout(2 * dcp, dcp), Workload.parse(batch), Settings.from_json(chosen))


CASES = [
    case(batch, exchange, dtype=dtype)
    for exchange in ("ag_rs", "a2a")
    for dtype in ("bfloat16", "float32")
    for batch in ("q1s40", "3q7s40")
]


def held(thing: object, seen: set[int]) -> int:
    """Count the bytes of every tensor that an object holds, each storage once; not of what it talks through."""
    if isinstance(thing, Tensor):
        storage = thing.untyped_storage()
        known = storage.data_ptr() in seen
        seen.add(storage.data_ptr())
        return 0 if known else storage.nbytes()
    if isinstance(thing, Mesh | Board):
        return 0
    if isinstance(thing, Partial):
        return held(thing.out, seen) + held(thing.lse, seen)
    return sum(held(value, seen) for value in getattr(thing, "__dict__", {}).values())


def reserved(mesh: Mesh) -> list[int]:
    """Reserve room for each case on a rank, and return the bytes that its exchange then holds."""
    found = []
    for one in CASES:
        exchange = open_exchange(one, mesh)
        exchange.reserve(one.workload.new_tokens)
        found.append(held(exchange, set()))
    return found


def test_collectives_hold_what_is_predicted_on_every_rank() -> None:
    predicted = [exchange_bytes(one) for one in CASES]
    assert on_ranks(RANKS, reserved) == [predicted] * RANKS
    assert len(set(predicted)) == len(CASES)


def test_a_seat_of_a_simulated_group_holds_what_is_predicted() -> None:
    one, group = case("3q7s40", "loopback"), Mesh.simulated(RANKS)
    tokens, heads = one.workload.new_tokens, one.layout.heads(one.shape)

    def exchanged(rank: int) -> int:
        exchange = open_exchange(one, group.members()[rank])
        gathered = exchange.gather_heads(torch.zeros(tokens, heads.query, 64, dtype=torch.bfloat16))
        exchange.combine(Partial(gathered.clone(), torch.zeros(tokens, heads.gathered)))
        return held(exchange, set())

    assert group.each(exchanged) == [exchange_bytes(one)] * RANKS


@given(st.integers(1, 9000), st.integers(1, 9000), st.sampled_from([2, 4, 8]), st.sampled_from(["bfloat16", "float32"]))
def test_a_mailbox_is_as_large_as_the_one_that_is_made(tokens: int, places: int, dcp: int, dtype: str) -> None:
    one = case("q1s40", "direct", dcp=dcp, dtype=dtype)
    heads = one.layout.heads(one.shape)
    group = Group(dcp, heads.kv, heads.query // heads.kv, one.shape.head_dim, getattr(torch, dtype))
    made = group.mailbox_bytes(direct._doubled(tokens), direct._doubled(places))
    assert mailbox_bytes(one, tokens, places) == made


@pytest.mark.parametrize("dcp", [2, 4])
def test_what_is_fetched_has_rooms_of_its_own_beside_the_least_mailbox(dcp: int) -> None:
    small = case("q9s4000", "direct", dcp=dcp)
    heads = small.layout.heads(small.shape)
    least = direct.LEAST_FETCHED_ROWS // heads.query
    one = case(f"q{least}s9000", "direct", dcp=dcp, overlap=True)
    group = Group(dcp, heads.kv, heads.query // heads.kv, 64, torch.bfloat16)
    (box, *_), (outbox, *_) = (
        make(group, tokens=direct._doubled(least), device="cpu") for make in (mailboxes, outboxes)
    )
    assert exchange_bytes(one) == mailbox_bytes(one, 64, 64) + held(CopyEngines(box, outbox, least), set())
    fewer = case(f"q{least - 1}s9000", "direct", dcp=dcp, overlap=True)
    assert exchange_bytes(fewer) == exchange_bytes(replace(fewer, settings=replace(fewer.settings, overlap=False)))


@pytest.mark.parametrize("dcp", [2, 4])
@pytest.mark.parametrize("batch", ["q1000s4000", "q3s3", "300q5s70_q2s9"])
def test_a_mailbox_has_room_for_folded_queries_of_the_rank_with_most(batch: str, dcp: int) -> None:
    one = case(batch, "direct", dcp=dcp, path="fold", batching="joined")
    workload, heads = one.workload, one.layout.heads(one.shape)
    places = max(Fold.of(workload.new_lens, workload.total_lens, dcp, rank).places for rank in range(dcp))
    own = workload.new_tokens * heads.query * (64 * 2 + 4) + 4 * dcp * workload.new_tokens
    assert exchange_bytes(one) == mailbox_bytes(one, workload.new_tokens, places) + own


@pytest.mark.parametrize("exchange", ["ag_rs", "a2a", "loopback", "direct"])
def test_parts_that_run_apart_have_an_exchange_each_and_those_that_share_one_have_one(exchange: str) -> None:
    mixed = case("3q1s40_q7s40", exchange)
    apart = exchange_bytes(case("3q1s40", exchange)) + exchange_bytes(case("q7s40", exchange))
    assert exchange_bytes(mixed) == apart
    shared = replace(mixed, settings=replace(mixed.settings, batching="shared"))
    assert exchange_bytes(shared) == exchange_bytes(case("10q1s40", exchange))


def test_what_needs_no_other_rank_keeps_nothing() -> None:
    assert exchange_bytes(case("2q8", "ag_rs")) == 0
    assert exchange_bytes(case("2q8", "ag_rs", replayable=True)) > 0
    alone = Case(
        ModelShape(8, 2, 64, 1),
        DcpLayout(2, 1),
        Workload.parse("q8"),
        Settings.from_json({"path": "tp", "exchange": "alone"}),
    )
    assert exchange_bytes(alone) == 0
