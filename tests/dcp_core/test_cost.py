"""The work of a step: exact where it can be counted, and near what an H200 was seen to take."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dcp_core import Case, DcpLayout, ModelShape, Settings, Workload
from dcp_core.cost import CPU, GPU, ceiling_of, plan_bytes, step_work
from dcp_core.settings import ExchangeName
from dcp_core.shapes import Request

QWEN = ModelShape.preset("qwen3-235b-a22b")
REQUESTS = st.lists(st.tuples(st.integers(2, 40), st.integers(0, 200)), min_size=1, max_size=5)


def case(batch: str | Workload, *, dcp: int = 2, **settings: object) -> Case:
    workload = Workload.parse(batch) if isinstance(batch, str) else batch
    defaults = {"path": "split", "kernel": "fa2", "exchange": "loopback" if dcp > 1 else "alone"}
    return Case(QWEN, DcpLayout(8, dcp), workload, Settings.from_json(defaults | settings))


def flops(one: Case) -> int:
    return sum(work.flops for rank in range(one.layout.dcp) for work in step_work(one, rank))


@given(REQUESTS, st.sampled_from(["split", "mask", "fold"]), st.randoms())
def test_the_order_of_requests_does_not_matter(lengths: list[tuple[int, int]], path: str, chance: Random) -> None:
    """Whether those alike stand together or not."""
    batch = [Request(new, new + context) for new, context in [*lengths, *lengths]]
    shuffled = chance.sample(batch, len(batch))
    one, other = (step_work(case(Workload(tuple(order)), path=path)) for order in (sorted(batch, key=str), shuffled))
    assert one == other


def test_requests_alike_are_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    local_len = DcpLayout.local_len
    monkeypatch.setattr(
        DcpLayout, "local_len", lambda self, total, rank: asked.append(total) or local_len(self, total, rank)
    )
    (work,) = step_work(case("256q1s8k_256q1s1k", path="decode"))
    assert asked == [8192, 1024]
    assert work.flops == 4 * 128 * 16 * 256 * (8192 + 1024) // 2


@given(REQUESTS, st.sampled_from([2, 4, 8]))
def test_a_group_that_splits_does_the_work_of_as_many_lone_ranks(lengths: list[tuple[int, int]], dcp: int) -> None:
    batch = Workload.of([new for new, _ in lengths], [new + context for new, context in lengths])
    assert flops(case(batch, dcp=dcp)) == dcp * flops(case(batch, dcp=1, path="tp"))


@given(st.lists(st.integers(1, 300), min_size=1, max_size=5), st.sampled_from([2, 4, 8]))
def test_a_group_that_decodes_does_the_work_of_as_many_lone_ranks(totals: list[int], dcp: int) -> None:
    batch = Workload.of([1] * len(totals), totals)
    assert flops(case(batch, dcp=dcp, path="decode")) == dcp * flops(case(batch, dcp=1, path="tp"))


@given(REQUESTS, st.sampled_from([2, 4]))
def test_a_group_that_folds_does_the_work_of_as_many_lone_ranks_and_a_little_padding(
    lengths: list[tuple[int, int]], dcp: int
) -> None:
    batch = Workload.of([new for new, _ in lengths], [new + context for new, context in lengths])
    folded, lone = case(batch, dcp=dcp, path="fold"), case(batch, dcp=1, path="tp")
    heads = folded.layout.heads(QWEN).gathered
    padding = 4 * QWEN.head_dim * heads * sum(-one.new % dcp * (one.total - 1) for one in batch.requests)
    assert dcp * flops(lone) <= flops(folded) <= dcp * flops(lone) + padding


def test_a_masked_pass_visits_every_local_key() -> None:
    masked = case("q512s1k", path="mask")
    (work,) = step_work(masked)
    assert work.flops == 4 * 128 * 16 * 512 * 512
    assert work.masked
    assert plan_bytes(masked) == 512 * 512 // 8
    assert plan_bytes(case("q512s1k", path="mask", mask_form="bool")) == 512 * 512


def test_ranks_send_to_each_other_only_where_there_is_something_to_send() -> None:
    def sent(one: Case) -> int:
        return sum(work.wire_bytes for work in step_work(one))

    assert sent(case("8q1s1k", path="decode", exchange="ag_rs")) == 2 * 8 * 8 * 128 * 2
    assert sent(case("8q1s1k", path="decode")) == 0
    assert sent(case("q512", exchange="a2a")) == 0
    assert sent(case("q512", exchange="a2a", skip_empty_context=False)) > 0


def test_a_mixed_batch_run_apart_decodes_and_splits() -> None:
    apart = [work.stage for work in step_work(case("4q1s1k_q64s1k", exchange="ag_rs"))]
    assert apart == ["gather", "combine", "attention", "gather", "combine", "context", "new", "merge"]
    joined = [work.stage for work in step_work(case("4q1s1k_q64s1k", exchange="ag_rs", batching="joined"))]
    assert joined == ["gather", "combine", "context", "new", "merge"]


# Medians on an H200 with FlashInfer 0.7.2, the faster of fa2 and fa3, without exchanges.
@pytest.mark.parametrize(
    ("one", "seen_us"),
    [
        (case("q32k", dcp=1, path="tp"), 3893),
        (case("q8ks32k", dcp=1, path="tp"), 1627),
        (case("16q1s32k", dcp=1, path="tp"), 73),
        (case("16q1s32k", path="decode"), 44),
        (case("q8ks32k"), 1632),
        (case("q2ks32k"), 471),
        (case("q8ks32k", path="mask"), 8846),
        (case("q2ks32k", path="mask"), 2235),
        (case("q2ks32k", path="fold"), 462),
    ],
)
def test_the_roofline_is_within_a_factor_of_two_of_what_was_seen(one: Case, seen_us: float) -> None:
    h200 = ceiling_of("NVIDIA H200")
    assert seen_us / 2 < 1e6 * sum(work.seconds(h200) for work in step_work(one)) < 2 * seen_us


@pytest.mark.parametrize(
    ("one", "rows", "tiles"),
    [
        (case("16q1s32k", dcp=1, path="tp"), 16 * 8, 16 * 8),
        (case("16q1s32k", path="decode"), 16 * 16, 16 * 16),
        (case("q129s32k", path="split"), 129 * 16, 2 * 16),
        (case("q129s32k", path="fold"), 129 * 16, 2 * 16),  # 65 rows of each of two tokens in turn
    ],
)
def test_a_tile_holds_rows_of_one_head_and_request(one: Case, rows: int, tiles: int) -> None:
    work = next(work for work in step_work(one) if work.kernel)
    assert (work.rows, work.tiles) == (rows, tiles)


def test_each_pass_has_its_kernel_and_what_is_no_attention_none() -> None:
    one = case("4q1s1k_q64s1k", exchange="ag_rs", kernel="fa3", new_kernel="fa2", decode_kernel="cuda_core")
    found = {work.kernel for work in step_work(one) if work.stage in ("gather", "combine", "merge")}
    assert found == {None}
    kernels = [(work.stage, work.kernel) for work in step_work(one) if work.kernel]
    assert kernels == [("attention", "cuda_core"), ("context", "fa3"), ("new", "fa2")]


def test_a_device_is_known_by_its_name() -> None:
    assert ceiling_of("NVIDIA H200 NVL").name == "H200"
    assert ceiling_of("A card of tomorrow") is GPU
    assert ceiling_of("") is CPU


def test_exchange_names_that_stay_in_one_process_cost_no_wire() -> None:
    for name in (ExchangeName.LOOPBACK, ExchangeName.ALONE):
        one = case(
            "q64s1k", dcp=1 if name is ExchangeName.ALONE else 2, path="tp" if name is ExchangeName.ALONE else "split"
        )
        assert all(work.stage not in ("gather", "combine") for work in step_work(one))


def test_kinds_that_share_exchange_once_and_attend_apart() -> None:
    shape, layout, workload = ModelShape(64, 4, 128), DcpLayout(8, 2), Workload.parse("8q1s32k_2q8s32k_q2ks34k")
    stages = {}
    for batching in ("separate", "shared", "joined"):
        settings = Settings(path="fold", exchange="a2a", batching=batching)
        stages[batching] = [work.stage for work in step_work(Case(shape, layout, workload, settings))]
    folded = ["attention", "new", "merge"]
    assert stages["separate"] == ["gather", "combine", "attention", "gather", "combine", *folded]
    assert stages["shared"] == ["gather", "combine", "attention", *folded]
    assert stages["joined"] == ["gather", "combine", *folded]
    limited = Settings(path="fold", exchange="a2a", batching="shared", fold_limit=8)
    found = [work.stage for work in step_work(Case(shape, layout, workload, limited))]
    assert found == ["gather", "combine", "attention", *folded, "context", "new", "merge"]
