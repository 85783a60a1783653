"""The exchange within one process: right by the definition of gathering and combining, rank by rank."""

from __future__ import annotations

import math

import pytest
import torch

from dcp_core.build import open_exchange
from dcp_core.exchange.base import interleave_ranks, split_ranks
from dcp_core.lse import LseBase, combine
from dcp_core.mesh import Mesh
from dcp_core.settings import ExchangeName
from tests.dcp_core.exchange.made_partials import Traffic, looped_back

TRAFFIC = [
    Traffic(dcp=2),
    Traffic(dcp=3, query=3, kv=1),
    Traffic(dcp=4, query=6, kv=3, dtype="bfloat16"),
    Traffic(dcp=2, base=LseBase.TWO),
]


@pytest.mark.parametrize("traffic", TRAFFIC)
def test_gathered_heads_are_ordered_by_kv_head_then_rank_then_head_within_the_group(traffic: Traffic) -> None:
    queries, group = traffic.queries(), traffic.query // traffic.kv
    for exchanged in looped_back(traffic):
        head = 0
        for kv_head in range(traffic.kv):
            for rank in range(traffic.dcp):
                for within in range(group):
                    expected = queries[rank][:, kv_head * group + within]
                    assert torch.equal(exchanged.gathered[:, head], expected)
                    head += 1
        assert head == exchanged.gathered.shape[1]


@pytest.mark.parametrize("traffic", TRAFFIC)
def test_a_rank_gets_the_sum_over_ranks_of_its_own_heads(traffic: Traffic) -> None:
    partials, group = traffic.partials(), traffic.query // traffic.kv
    for rank, exchanged in enumerate(looped_back(traffic)):
        heads = [
            kv_head * traffic.dcp * group + rank * group + within
            for kv_head in range(traffic.kv)
            for within in range(group)
        ]
        outs = torch.stack([partial.out[:, heads] for partial in partials])
        lses = torch.stack([partial.lse[:, heads] for partial in partials])
        expected = combine(outs, lses, base=traffic.base)
        for got in (exchanged.combined, exchanged.into):
            assert got.base is LseBase.NATURAL
            assert torch.equal(got.out, expected.out)
            assert torch.equal(got.lse, expected.lse)


def test_rows_that_no_rank_has_keys_for_are_empty_and_others_are_clean() -> None:
    for exchanged in looped_back(Traffic(dcp=3)):
        assert (exchanged.combined.lse[-1] == -math.inf).all()
        assert (exchanged.combined.out[-1] == 0).all()
        assert exchanged.combined.lse[:-1].isfinite().all()
        assert exchanged.combined.out.isfinite().all()


def test_splitting_by_rank_undoes_the_order_of_a_gather_as_a_view() -> None:
    stacked = torch.randn(3, 5, 6, 8)
    gathered = interleave_ranks(stacked, 2)
    split = split_ranks(gathered, 2, 3)
    assert torch.equal(split.flatten(2, 3), stacked)
    assert split.data_ptr() == gathered.data_ptr()
    out = torch.empty_like(gathered)
    assert interleave_ranks(stacked, 2, out=out) is out
    assert torch.equal(out, gathered)


def test_a_seat_by_itself_gets_what_it_last_got() -> None:
    traffic, mesh = Traffic(dcp=3), Mesh.simulated(3)
    members = mesh.members()
    opened = [open_exchange(traffic.case(ExchangeName.LOOPBACK), member) for member in members]
    queries, partials = traffic.queries(), traffic.partials()
    together = mesh.each(lambda i: (opened[i].gather_heads(queries[i]).clone(), opened[i].combine(partials[i])))
    with mesh.solo():
        assert torch.equal(opened[1].gather_heads(queries[1]), together[1][0])
        assert torch.equal(opened[1].combine(partials[1]).out, together[1][1].out)


def test_a_later_step_gathers_into_the_memory_that_a_graph_captured_of_an_earlier_one_reads() -> None:
    traffic, mesh = Traffic(dcp=2), Mesh.simulated(2)
    opened = [open_exchange(traffic.case(ExchangeName.LOOPBACK), member) for member in mesh.members()]
    queries = traffic.queries()
    first = mesh.each(lambda i: opened[i].gather_heads(queries[i]))
    expected = [-gathered for gathered in first]
    second = mesh.each(lambda i: opened[i].gather_heads(-queries[i]))
    with mesh.solo():
        alone = opened[1].gather_heads(queries[1])
    assert [gathered.data_ptr() for gathered in (*second, alone)] == [
        gathered.data_ptr() for gathered in (*first, first[1])
    ]
    assert all(torch.equal(gathered, other) for gathered, other in zip(first, expected, strict=True))


def test_alone_there_is_nothing_to_exchange() -> None:
    traffic = Traffic(dcp=1, base=LseBase.TWO)
    opened = open_exchange(traffic.case(ExchangeName.ALONE), Mesh.alone())
    (q,), (partial,) = traffic.queries(), traffic.partials()
    assert opened.gather_heads(q) is q
    result = opened.combine(partial)
    assert result.out is partial.out
    assert torch.equal(result.lse, partial.lse * math.log(2))
    into = Traffic(dcp=1).partials()[0]
    assert opened.combine(partial, into=into) is into
    assert torch.equal(into.lse, result.lse)
