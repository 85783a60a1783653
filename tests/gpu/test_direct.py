"""The direct exchange on one device: its ranks as concurrent launches, and as processes that share the device's memory."""

from __future__ import annotations

import ctypes
import os
import random
import re
import signal
from collections.abc import Callable, Sequence

import pytest
import torch
import torch.distributed as dist
import triton
import triton.language as tl
from torch import Tensor

from dcp_core.build import open_exchange
from dcp_core.exchange.base import interleave_ranks
from dcp_core.exchange.copies import CopyEngines
from dcp_core.exchange.direct import Direct
from dcp_core.lse import LseBase, Partial
from dcp_core.mesh import Mesh
from dcp_core.settings import ExchangeName
from dcp_core.triton_ops.carveout import ask_for_shared_memory
from dcp_core.triton_ops.direct import Phase, combine, gather_heads, meet
from dcp_core.triton_ops.mailbox import Group, Laid, Mailbox, PeerLost
from tests.dcp_core.exchange.made_partials import Exchanged, Traffic, agree, exchange, looped_back
from tests.dcp_core.exchange.test_copies import leave
from tests.dcp_core.triton_ops.mailboxes import mailboxes, outboxes
from tests.dcp_core.triton_ops.test_direct import assert_same, expected_of, partials, queries
from tests.ranks import on_ranks

pytestmark = pytest.mark.gpu

PLAIN = Laid()
PROGRAMS = 96
"""Of all ranks together: fewer than a device surely runs at once."""


class Ranks:
    """The ranks of a group, each on a stream of its own of one device."""

    def __init__(self, group: Group, tokens: int) -> None:
        self.boxes = mailboxes(group, tokens=tokens, device="cuda", programs=PROGRAMS // group.ranks)
        self.streams = [torch.cuda.Stream() for _ in self.boxes]

    def each(self, call: Callable[[int, Mailbox], object]) -> list[object]:
        """Launch one thing on every rank: nobody may be waited for before the last rank has launched it."""
        made = []
        for rank, (box, stream) in enumerate(zip(self.boxes, self.streams, strict=True)):
            with torch.cuda.stream(stream):
                made.append(call(rank, box))
        return made

    def assert_nobody_lost(self) -> None:
        torch.cuda.synchronize()
        assert [box.lost_rank() for box in self.boxes] == [None] * len(self.boxes)


def test_kernels_of_words_divide_a_multiprocessor_as_attention_does() -> None:
    carveouts = []
    for kernel in (doubled, doubled):
        element = torch.ones(1, device="cuda")
        compiled = kernel[(1,)](element)
        if carveouts:
            ask_for_shared_memory(compiled)
        carveout = ctypes.c_int()
        attribute, function = ctypes.c_int(9), ctypes.c_void_p(compiled.function)
        assert ctypes.CDLL("libcuda.so.1").cuFuncGetAttribute(ctypes.byref(carveout), attribute, function) == 0
        carveouts.append(carveout.value)
        assert float(element) == 2
    assert carveouts == [-1, 100]


@triton.jit
def doubled(element):
    """Double one element."""
    tl.store(element, 2 * tl.load(element))


@pytest.mark.parametrize(
    ("group", "tokens", "layers"),
    [
        *((Group(ranks, 1, 8, 128, torch.bfloat16), tokens, 12) for ranks in (2, 4, 8) for tokens in (1, 64, 256)),
        (Group(4, 1, 8, 256, torch.float16), 8192, 3),
        (Group(8, 1, 8, 128, torch.bfloat16), 8192, 3),
        (Group(4, 2, 2, 80, torch.float16), 8192, 3),
        (Group(8, 1, 4, 80, torch.bfloat16), 1024, 6),
        (Group(8, 1, 2, 256, torch.float16), 1024, 6),
    ],
    ids=str,
)
def test_layer_after_layer_is_right_on_concurrent_ranks(group: Group, tokens: int, layers: int) -> None:
    ranks, heads, shape = group.ranks, group.heads, (tokens, group.ranks * group.heads, group.head_dim)
    here = Ranks(group, tokens)
    q = [queries(group, tokens, layer, "cuda") for layer in range(layers)]
    given = [partials(group, tokens, ranks * heads, layer, "cuda") for layer in range(layers)]
    beside = [partials(group, tokens, heads, layer + 50, "cuda") for layer in range(layers)]
    room = [[torch.empty(shape, dtype=group.dtype, device="cuda") for _ in here.boxes] for _ in q]
    torch.cuda.synchronize()
    results: list[list[Partial]] = []
    for layer in range(layers):
        gathered = here.each(lambda rank, box, layer=layer: gather_heads(q[layer][rank], box, PLAIN))
        here.each(lambda rank, box, layer=layer, all_=gathered: room[layer][rank].copy_(all_[rank]))
        combined = here.each(
            lambda rank, box, layer=layer: combine(given[layer][rank], box, PLAIN, beside=beside[layer][rank])
        )
        results.append([partial for partial in combined if isinstance(partial, Partial)])
    here.assert_nobody_lost()
    for layer in range(layers):
        whole = interleave_ranks(torch.stack(q[layer]), group.kv_heads)
        for rank in range(ranks):
            assert room[layer][rank].equal(whole)
            assert_same(results[layer][rank], expected_of(given[layer], group, rank, beside[layer][rank]))


@pytest.mark.parametrize("ranks", [2, 4])
def test_work_may_stand_between_the_two_launches_of_a_combine(ranks: int) -> None:
    tokens = 64
    group = Group(ranks, 1, 8, 128, torch.bfloat16)
    here = Ranks(group, tokens)
    made = Partial.empty(tokens, 8, 128, dtype=torch.bfloat16, device=torch.device("cuda"))
    room = [Partial(made.out.clone(), made.lse.clone()) for _ in here.boxes]
    for layer in range(12):
        q = queries(group, tokens, layer, "cuda")
        given = partials(group, tokens, ranks * 8, layer, "cuda")
        beside = partials(group, tokens, 8, layer + 50, "cuda")
        torch.cuda.synchronize()
        here.each(lambda rank, box, q=q: gather_heads(q[rank], box, PLAIN))
        here.each(lambda rank, box, given=given: combine(given[rank], box, PLAIN, phase=Phase.PUSH))
        here.each(lambda rank, _, beside=beside: room[rank].out.copy_(beside[rank].out))
        here.each(lambda rank, _, beside=beside: room[rank].lse.copy_(beside[rank].lse))
        combined = here.each(
            lambda rank, box, given=given: combine(given[rank], box, PLAIN, beside=room[rank], phase=Phase.WAIT)
        )
        here.assert_nobody_lost()
        for rank in range(ranks):
            assert isinstance(combined[rank], Partial)
            assert_same(combined[rank], expected_of(given, group, rank, beside[rank]))


@pytest.mark.parametrize("kv_heads", [1, 3])
@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_steps_by_copy_engines_alternate_with_others(ranks: int, kv_heads: int) -> None:
    group = Group(ranks, kv_heads, 2, 128, torch.bfloat16)
    here, boxes_of_all = Ranks(group, 300), outboxes(group, tokens=300, device="cuda")
    tokens_of_layers = (300, 300, 129, 300, 1, 300)
    # Loaded now: loading a kernel waits for the device, and a rank there may wait for its peer.
    CopyEngines(here.boxes[0], boxes_of_all[0], 1).add_up(
        LseBase.NATURAL, partials(group, 1, group.heads, 0, "cuda")[0]
    )
    here.each(lambda _, box: meet(box))
    for layer, tokens in enumerate(tokens_of_layers):
        q = queries(group, tokens, layer, "cuda")
        given = partials(group, tokens, ranks * group.heads, layer, "cuda")
        beside = partials(group, tokens, group.heads, layer + 50, "cuda")
        if layer == 3:
            torch.cuda.synchronize()
            here.each(lambda rank, box, q=q: gather_heads(q[rank], box, PLAIN))
            here.each(lambda rank, box, given=given: combine(given[rank], box, PLAIN))
            continue
        fetching = [CopyEngines(box, outbox, tokens) for box, outbox in zip(here.boxes, boxes_of_all, strict=True)]
        into = [Partial(torch.empty_like(one.own.out), torch.empty_like(one.own.lse)) for one in fetching]
        torch.cuda.synchronize()
        here.each(lambda rank, _, q=q, fetching=fetching: fetching[rank].leave_queries(q[rank]))
        here.each(lambda rank, _, fetching=fetching: fetching[rank].fetch_queries())
        here.assert_nobody_lost()
        for rank, one in enumerate(fetching):
            leave(one, rank, given[rank], beside[rank], group)
        torch.cuda.synchronize()
        here.each(lambda rank, _, fetching=fetching: fetching[rank].fetch_partials())
        here.each(lambda rank, _, fetching=fetching, into=into: fetching[rank].add_up(LseBase.NATURAL, into[rank]))
        here.assert_nobody_lost()
        for rank in range(ranks):
            peers = [q[(rank + step) % ranks] for step in range(1, ranks)]
            assert torch.equal(fetching[rank].queries, interleave_ranks(torch.stack(peers), kv_heads))
            assert_same(into[rank], expected_of(given, group, rank, beside[rank]))


def test_tokens_that_change_from_call_to_call() -> None:
    group = Group(4, 2, 2, 64, torch.float16)
    here = Ranks(group, 200)
    for seed, tokens in enumerate((200, 1, 63, 200, 5, 128, 2, 199)):
        q = queries(group, tokens, seed, "cuda")
        given = partials(group, tokens, 16, seed, "cuda")
        gathered = here.each(lambda rank, box, q=q: gather_heads(q[rank], box, PLAIN).clone())
        combined = here.each(lambda rank, box, given=given: combine(given[rank], box, PLAIN))
        here.assert_nobody_lost()
        for rank in range(4):
            assert torch.equal(gathered[rank], interleave_ranks(torch.stack(q), 2))
            assert_same(combined[rank], expected_of(given, group, rank))


class Layer:
    """One rank's layer as a graph would hold it: inputs that change from replay to replay, and a count of what came out wrong.

    Every value is a small whole number, or a multiple of one over the partials that are added up, of which there are two or
    four, so that bfloat16 holds it exactly.

    Args:
        beside: it combines in two launches, and makes between them a partial that the second adds up too.
    """

    def __init__(self, group: Group, rank: int, tokens: int, *, beside: bool) -> None:
        self.rank, self.ranks, self.beside = rank, group.ranks, beside
        self.count = torch.zeros((), dtype=torch.int32, device="cuda")
        self.wrong = torch.zeros((), dtype=torch.int64, device="cuda")
        self._heads, self._dim = group.heads, group.head_dim
        self._row = torch.arange(tokens, device="cuda")[:, None, None]
        self._head = torch.arange(group.heads, device="cuda")[None, :, None]
        self._all = torch.arange(group.heads * group.ranks, device="cuda")[None, :, None]
        self._lse = torch.zeros(tokens, group.heads * group.ranks, device="cuda")

    def run(self, box: Mailbox) -> None:
        """Gather, look at every element, combine, look at every element."""
        self.count += 1
        gathered = gather_heads(self._spread(self._value(self._head, self.rank)), box, PLAIN)
        owner = self._all // self._heads
        self.wrong += (gathered != self._spread(self._value(self._all % self._heads, owner))).sum()
        given = Partial(self._spread(self._value(self._all, 3 * self.rank)), self._lse)
        mine = self._head + self.rank * self._heads
        total = sum(self._value(mine, 3 * rank) for rank in range(self.ranks))
        if self.beside:
            combine(given, box, PLAIN, phase=Phase.PUSH)
            own = self._value(mine, 3 * self.ranks)
            beside = Partial(self._spread(own), self._lse[:, : self._heads])
            made = combine(given, box, PLAIN, beside=beside, phase=Phase.WAIT).out
            total = total + own
        else:
            made = combine(given, box, PLAIN).out
        self.wrong += (made.float() != self._spread(total, torch.float32) / (self.ranks + self.beside)).sum()

    def _value(self, head: Tensor | int, rank: Tensor | int) -> Tensor:
        return (self.count + 5 * self._row + 3 * head + 7 * rank) % 16

    def _spread(self, values: Tensor, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        return values.to(dtype).expand(*values.shape[:2], self._dim).contiguous()


@pytest.mark.parametrize(("ranks", "tokens", "beside"), [(2, 8, False), (4, 33, False), (3, 33, True)])
def test_ten_thousand_replays_with_a_rank_that_comes_late(ranks: int, tokens: int, beside: bool) -> None:
    group = Group(ranks, 1, 4, 64, torch.bfloat16)
    here = Ranks(group, tokens)
    layers = [Layer(group, rank, tokens, beside=beside) for rank in range(ranks)]
    here.each(lambda rank, box: gather_heads(torch.zeros(0, 4, 64, dtype=torch.bfloat16, device="cuda"), box, PLAIN))
    none = Partial.empty(0, 4 * ranks, 64, dtype=torch.bfloat16, device=torch.device("cuda"))
    here.each(lambda rank, box: combine(none, box, PLAIN))
    here.assert_nobody_lost()
    graphs = []
    for layer, box in zip(layers, here.boxes, strict=True):
        graphs.append(torch.cuda.CUDAGraph())
        with torch.cuda.graph(graphs[-1]):
            layer.run(box)
    torch.cuda.synchronize()
    late = random.Random(0)
    torch.cuda._sleep(1)  # loaded now: loading a kernel waits for the device, and a rank there may wait for its peer
    for _ in range(10_000):
        for rank, stream in enumerate(here.streams):
            with torch.cuda.stream(stream):
                if rank == ranks - 1 and late.random() < 0.3:
                    torch.cuda._sleep(late.randrange(200_000))
                graphs[rank].replay()
    here.assert_nobody_lost()
    assert [int(layer.wrong) for layer in layers] == [0] * ranks
    assert [int(layer.count) for layer in layers] == [10_000] * ranks


def test_a_rank_that_never_comes_ends_the_wait_and_is_named() -> None:
    group = Group(2, 1, 8, 128, torch.bfloat16)
    boxes = mailboxes(group, tokens=64, device="cuda", programs=32, polls=10_000)
    box = boxes[0]
    gather_heads(queries(group, 64, 0, "cuda")[0], box, PLAIN)
    torch.cuda.synchronize()
    assert box.lost_rank() == (1, 1)
    got = combine(partials(group, 64, 16, 0, "cuda")[0], box, PLAIN)
    assert got.out.isnan().all()
    assert got.lse.isnan().all()


# --- Processes ------------------------------------------------------------------------------------------------------

TRAFFIC = {
    "one KV head": Traffic(dcp=2, query=8, kv=1, dtype="bfloat16", head_dim=128),
    "several KV heads": Traffic(dcp=2, query=6, kv=3, dtype="float16", head_dim=64, tokens=70),
    "one token": Traffic(dcp=2, tokens=1, empty=False, dtype="bfloat16", head_dim=256),
}


def one_device() -> Mesh:
    """Form a group of processes that share a device: its time is sliced, its memory reached through the same addresses."""
    os.environ["TORCH_SYMM_MEM_ALLOW_OVERLAPPING_DEVICES"] = "1"
    torch.cuda.set_device(0)
    dist.init_process_group("gloo")
    return Mesh(dist.get_rank(), 2, torch.device("cuda", 0), group=dist.group.WORLD, control=dist.group.WORLD)


def exchange_everything(mesh: Mesh) -> dict[str, Exchanged]:
    return {name: exchange(mesh, traffic, ExchangeName.DIRECT) for name, traffic in TRAFFIC.items()}


@pytest.fixture(scope="module")
def exchanged() -> Sequence[dict[str, Exchanged]]:
    return on_ranks(2, exchange_everything, cuda=True, join=one_device)


@pytest.mark.parametrize("name", TRAFFIC)
def test_processes_exchange_through_symmetric_memory_what_the_loopback_gives(
    exchanged: Sequence[dict[str, Exchanged]], name: str
) -> None:
    for got, expected in zip(exchanged, looped_back(TRAFFIC[name]), strict=True):
        assert torch.equal(got[name].gathered, expected.gathered)
        agree(got[name].combined, expected.combined, TRAFFIC[name], ExchangeName.DIRECT)
        agree(got[name].into, expected.combined, TRAFFIC[name], ExchangeName.DIRECT)


def allocate_in_steps(mesh: Mesh) -> list[int]:
    """Return how often torch's allocator was asked for memory in a gather and a combine of 64 tokens, layer after layer."""
    traffic = Traffic(dcp=2, query=8, kv=1, dtype="bfloat16", head_dim=128, tokens=64)
    opened = open_exchange(traffic.case(ExchangeName.DIRECT), mesh)
    opened.reserve(64)
    q, partial = traffic.queries()[mesh.rank].cuda(), traffic.partials()[mesh.rank]
    partial = Partial(partial.out.cuda(), partial.lse.cuda())
    asked = []
    for _ in range(5):
        before = torch.cuda.memory_stats()["allocation.all.allocated"]
        opened.gather_heads(q)
        opened.combine(partial)
        asked.append(torch.cuda.memory_stats()["allocation.all.allocated"] - before)
    torch.cuda.synchronize()
    return asked


def test_a_gather_and_a_combine_allocate_nothing() -> None:
    assert on_ranks(2, allocate_in_steps, cuda=True, join=one_device) == [[0] * 5] * 2


def outlive_a_peer(mesh: Mesh) -> str:
    """Exchange once; then one process is killed, and the other says what it is told of that."""
    traffic = Traffic(dcp=2, query=8, kv=1, dtype="bfloat16", head_dim=128, tokens=64)
    heads = traffic.case(ExchangeName.DIRECT).layout.heads(traffic.case(ExchangeName.DIRECT).shape)
    Direct(mesh, heads, 128, torch.bfloat16)  # compiles, for which one rank may take longer than another has patience
    opened = Direct(mesh, heads, 128, torch.bfloat16, polls=100_000)
    opened.reserve(64)
    q = traffic.queries()[mesh.rank].cuda()
    whole = opened.gather_heads(q)
    partial = Partial(whole, torch.zeros(whole.shape[:2], device="cuda"))
    opened.combine(partial)
    opened.check()
    mesh.barrier()
    if mesh.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    opened.gather_heads(q)
    with pytest.raises(PeerLost) as lost:
        opened.check()
    return str(lost.value)


def test_a_rank_whose_peer_is_killed_is_told_which() -> None:
    (told,) = on_ranks(2, outlive_a_peer, cuda=True, join=one_device, dies=1)
    assert re.match(r"rank 1 did not come to turn \d+ of exchange direct", told)
