"""The worst batch that a scheduler may send: no legal one needs more, and the one that is named needs just that."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dcp_core import DcpLayout, ModelShape, Workload
from dcp_core.serving import Limits, Server
from dcp_core.shapes import Request
from dcp_core.workspace import WorkspaceNeed, fa2_need, fa3_need, graph_need
from dcp_core.worst_case import worst_case, worst_eager, worst_graph

QWEN = ModelShape.preset("qwen3-235b-a22b")
VLLM = Limits().captured_as_vllm_does()
SERVER = Server(QWEN, DcpLayout(8, 2), VLLM, 132)


def passes(server: Server, batch: Workload) -> list[WorkspaceNeed]:
    """What each pass of a batch needs on rank 0, decodes joined with the rest or apart: paged by fa2 or fa3, and ragged."""
    planner, new_planner, layout = server.planner(), server.new_planner(), server.layout
    context = [layout.local_len(request.context, 0) for request in batch.requests]
    total = [layout.local_len(request.total, 0) for request in batch.requests]
    return [
        *(fa2_need(planner, batch.new_lens, keys) for keys in (context, total)),
        fa3_need(planner, batch.new_lens, total),
        fa2_need(new_planner, batch.new_lens, batch.new_lens),
    ]


def random_batch(chance: random.Random, limits: Limits) -> Workload:
    """A legal batch: few long or many short requests, of which some come close to what fills a wave."""
    requests: list[Request] = []
    left = limits.max_batched_tokens
    most = chance.choice((1, 2, 5, 9, 40, 300, left))
    keys = chance.choice((200, 3000, limits.max_model_len))
    for _ in range(chance.randint(1, chance.choice((1, 3, 20, limits.max_sequences)))):
        if left == 0:
            break
        new = chance.randint(1, min(most, left, limits.max_model_len))
        total = chance.randint(new, max(new, min(keys, limits.max_model_len)))
        requests.append(Request(new, total))
        left -= new
    return Workload(tuple(requests[: limits.max_sequences]))


def check_no_batch_needs_more(server: Server, chance: random.Random, batches: int) -> None:
    worst = worst_case(server).need
    for _ in range(batches):
        batch = random_batch(chance, server.limits)
        for need in passes(server, batch):
            assert need.float_bytes <= worst.float_bytes, batch
            assert need.int_bytes <= worst.int_bytes, batch


SHAPES = [
    (QWEN, DcpLayout(8, 2)),
    (QWEN, DcpLayout(8, 1)),
    (QWEN, DcpLayout(32, 8, 16)),
    (QWEN, DcpLayout(4, 1)),
    (ModelShape(96, 8, 128), DcpLayout(24, 3)),
    (ModelShape(32, 2, 256), DcpLayout(8, 4)),
    (ModelShape(56, 8, 64), DcpLayout(8, 1)),
]


@pytest.mark.parametrize("version", ["0.7.2", "0.6.14"])
@pytest.mark.parametrize(("shape", "layout"), SHAPES, ids=[f"{shape.name}-{layout}" for shape, layout in SHAPES])
def test_the_named_batch_is_legal_and_needs_exactly_what_is_told(
    shape: ModelShape, layout: DcpLayout, version: str
) -> None:
    for limits in (Limits(), Limits(2048, 64, 8192), Limits(8192, 1, 32768), Limits(8192, 256, 2048)):
        for multiprocessors in (108, 132, 142, 148):
            server = Server(shape, layout, limits, multiprocessors, version=version)
            worst = worst_eager(server)
            assert worst.exact
            batch = worst.batch
            assert batch is not None
            assert len(batch) <= limits.max_sequences
            assert batch.new_tokens <= limits.max_batched_tokens
            assert max(batch.total_lens) <= limits.max_model_len
            assert worst.need.float_bytes in [need.float_bytes for need in passes(server, batch)]


@pytest.mark.parametrize("version", ["0.7.2", "0.6.14"])
@pytest.mark.parametrize(("shape", "layout"), SHAPES, ids=[f"{shape.name}-{layout}" for shape, layout in SHAPES])
def test_no_random_batch_needs_more(shape: ModelShape, layout: DcpLayout, version: str) -> None:
    chance = random.Random(f"{shape.name} {layout} {version}")
    check_no_batch_needs_more(Server(shape, layout, Limits(2048, 128, 40000), 132, 16, version), chance, 150)


@given(
    limits=st.builds(Limits, st.integers(1, 300), st.integers(1, 40), st.integers(1, 20000)),
    multiprocessors=st.integers(1, 40),
    which=st.sampled_from(SHAPES),
    page_size=st.sampled_from([16, 64, 256]),
    seed=st.integers(0, 1 << 20),
)
@example(limits=Limits(40, 20, 4000), multiprocessors=132, which=SHAPES[0], page_size=16, seed=1)
def test_however_tight_the_limits_no_batch_needs_more(
    limits: Limits, multiprocessors: int, which: tuple[ModelShape, DcpLayout], page_size: int, seed: int
) -> None:
    check_no_batch_needs_more(Server(*which, limits, multiprocessors, page_size), random.Random(seed), 25)


def test_where_limits_hardly_let_a_wave_fill_what_is_told_is_a_bound_and_says_so() -> None:
    # One sequence of 1,024 tokens cannot have both the new tokens and the context for 264 blocks.
    server = Server(QWEN, DcpLayout(8, 2), Limits(8192, 1, 1024), 132)
    worst = worst_eager(server)
    assert worst.batch is not None
    assert not worst.exact
    assert str(worst.batch) == "q505s1018"
    assert worst.need.float_bytes * 192 // 264 == worst.batch_bytes
    assert worst.batch_bytes in [need.float_bytes for need in passes(server, worst.batch)]


def test_on_a_tiny_device_every_batch_was_tried() -> None:
    # Of up to 12 new tokens in up to two requests, of every length that makes another number of chunks.
    server = Server(ModelShape(8, 1, 128), DcpLayout(1), Limits(12, 2, 1300), 4)
    lengths = range(1, 1301, 64)
    singles = [Request(new, max(new, total)) for new in range(1, 13) for total in lengths]
    batches = [(one,) for one in singles] + [
        (one, two) for one in singles for two in singles if one.new + two.new <= 12
    ]
    planner = server.planner()
    most = max(
        fa2_need(planner, [one.new for one in batch], [one.total for one in batch]).float_bytes for batch in batches
    )
    assert worst_eager(server).need.float_bytes == most


def test_a_wave_of_the_largest_tiles_is_the_worst_whatever_the_heads() -> None:
    # 8 * SM * tile * (head_dim + 1) bytes.
    worst = worst_eager(SERVER)
    assert worst.need.float_bytes == 8 * 132 * 128 * 129 == 17_436_672
    assert str(worst.batch) == "q5s67334"


def test_before_0_7_1_it_takes_the_head_group_times_as_much() -> None:
    old = replace(SERVER, version="0.6.14")
    assert worst_eager(old).need.float_bytes == 16 * worst_eager(SERVER).need.float_bytes


def test_the_largest_captured_batch_is_what_a_graph_needs() -> None:
    worst = worst_graph(SERVER)
    assert worst is not None
    assert (worst.graph, str(worst.batch)) == (True, "512q1")
    planner = replace(SERVER.planner(), replayable=True)
    assert worst.need == graph_need(planner, rows=512, requests=512)
    for size in VLLM.captured:
        need = fa2_need(planner, [1] * size, [7] * size)
        assert need.float_bytes <= worst.need.float_bytes
        assert need.int_bytes <= worst_case(SERVER).need.int_bytes
    assert worst_graph(replace(SERVER, limits=Limits())) is None


def test_a_server_fails_at_the_default_where_vllm_did() -> None:
    # vllm-project/vllm issue 40381: Qwen3.5-122B at tp 1, with FlashInfer 0.6.
    server = Server(ModelShape(32, 2, 256), DcpLayout(1), VLLM, 132, version="0.6.14")
    worst = worst_case(server)
    assert worst.graph
    assert worst.need.float_bytes == 536_346_624 // 256 * 257 > 394 << 20
    # Since vLLM sizes its workspace by the batched tokens too, 8,192 of them are room enough.
    assert server.float_workspace() == 8192 * 32 * 256 * 16 > worst.need.float_bytes
    assert replace(server, limits=replace(VLLM, max_batched_tokens=2048)).float_workspace() == 394 << 20


def test_where_nothing_can_be_split_nothing_is_needed() -> None:
    server = Server(QWEN, DcpLayout(8, 2), Limits(64, 8, 128), 132)
    worst = worst_case(server)
    assert (worst.need.float_bytes, worst.batch, worst.exact) == (0, None, True)
    assert worst.need.int_bytes > 0
