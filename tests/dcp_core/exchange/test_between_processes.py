"""Exchanges between real processes, over gloo: the same as among the seats of one process."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from dcp_core.lse import LseBase
from dcp_core.mesh import Mesh
from dcp_core.settings import ExchangeName
from tests.dcp_core.exchange.made_partials import Exchanged, Traffic, agree, exchange, looped_back
from tests.ranks import on_ranks

RANKS = 3
TRAFFIC = {
    f"dcp {dcp}, {name}": traffic
    for dcp in (2, 3)
    for name, traffic in {
        "one KV head": Traffic(dcp=dcp, query=2, kv=1),
        "several KV heads": Traffic(dcp=dcp, query=6, kv=3),
        "one token": Traffic(dcp=dcp, tokens=1, empty=False),
        "no empty row": Traffic(dcp=dcp, empty=False),
        "base two": Traffic(dcp=dcp, base=LseBase.TWO),
        "bfloat16": Traffic(dcp=dcp, dtype="bfloat16"),
        "float16": Traffic(dcp=dcp, dtype="float16", query=3, kv=1, tokens=3),
    }.items()
}
EXCHANGES = (ExchangeName.AG_RS, ExchangeName.A2A)
COMPOSED = frozenset({"all_to_all", "reduce_scatter"})
Key = tuple[str, ExchangeName, bool]


@dataclass(frozen=True)
class Seen:
    """What one rank saw: its part in groups of each size, and what every exchange gave it."""

    parts: dict[int, tuple[int, int] | None]
    shared: list[object]
    problems: tuple[str, str]
    backend: str
    simulated: bool
    exchanged: dict[Key, Exchanged]


def everything(mesh: Mesh) -> Seen:
    """Run all of the traffic on one rank, with gloo's own collectives and with composed ones."""
    exchanged: dict[Key, Exchanged] = {}
    parts: dict[int, tuple[int, int] | None] = {}
    for size in (1, 2, 3):
        part = mesh.part(size)
        assert mesh.part(size) is part
        parts[size] = (part.rank, part.size) if part is not None else None
        if part is None or size == 1:
            continue
        own = part.composed
        for name, traffic in TRAFFIC.items():
            if traffic.dcp == size:
                for which in EXCHANGES:
                    for composed in (False, True):
                        part.composed = own | COMPOSED if composed else own
                        exchanged[name, which, composed] = exchange(part, traffic, which)
        part.composed = own
    mesh.align()
    return Seen(
        parts=parts,
        shared=mesh.share(mesh.rank * 10),
        problems=(mesh.first_problem("" if mesh.rank == 0 else f"rank {mesh.rank}"), mesh.first_problem("")),
        backend=mesh.backend,
        simulated=mesh.is_simulated,
        exchanged=exchanged,
    )


@pytest.fixture(scope="module")
def seen() -> list[Seen]:
    return on_ranks(RANKS, everything)


@pytest.mark.parametrize("composed", [False, True], ids=["own", "composed"])
@pytest.mark.parametrize("which", EXCHANGES)
@pytest.mark.parametrize("name", TRAFFIC)
def test_an_exchange_between_processes_gives_what_the_loopback_gives(
    seen: list[Seen], name: str, which: ExchangeName, composed: bool
) -> None:
    traffic = TRAFFIC[name]
    expected = looped_back(traffic)
    for rank in range(traffic.dcp):
        got = seen[rank].exchanged[name, which, composed]
        assert torch.equal(got.gathered, expected[rank].gathered)
        agree(got.combined, expected[rank].combined, traffic, which)
        agree(got.into, expected[rank].combined, traffic, which)


def test_empty_rows_stay_empty_and_garbage_stays_away(seen: list[Seen]) -> None:
    found = 0
    for one in seen:
        for (name, *_), exchanged in one.exchanged.items():
            if TRAFFIC[name].empty:
                found += 1
                assert (exchanged.combined.lse[-1] == -torch.inf).all()
                assert (exchanged.combined.out[-1] == 0).all()
                assert exchanged.combined.out.isfinite().all()
    assert found


def test_a_part_of_the_group_is_its_first_ranks(seen: list[Seen]) -> None:
    assert [one.parts[3] for one in seen] == [(0, 3), (1, 3), (2, 3)]
    assert [one.parts[2] for one in seen] == [(0, 2), (1, 2), None]
    assert [one.parts[1] for one in seen] == [(0, 1), None, None]


def test_every_rank_learns_what_every_rank_says(seen: list[Seen]) -> None:
    for one in seen:
        assert one.shared == [0, 10, 20]
        assert one.problems == ("rank 1", "")
        assert one.backend == "gloo"
        assert not one.simulated


def fails_on_one_rank(mesh: Mesh) -> None:
    if mesh.rank == 1:
        raise RuntimeError("rank 1 gives up")
    mesh.barrier()


def test_a_rank_that_fails_is_heard_while_the_others_wait() -> None:
    with pytest.raises(AssertionError, match="rank"):
        on_ranks(2, fails_on_one_rank)
