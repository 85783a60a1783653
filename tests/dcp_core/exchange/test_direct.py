"""The direct exchange on the host's side: it refuses where it cannot run, loads all it may need, and tells of a loss at once.

Without a GPU one rank of a group stands alone here, its peers' mailboxes beside its own: what they would signal is set by hand.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from dcp_core.build import open_exchange
from dcp_core.exchange import direct as exchange
from dcp_core.exchange.base import FusedExchange
from dcp_core.exchange.copies import CopyEngines
from dcp_core.exchange.direct import Direct, refusal
from dcp_core.fold import Fold, OwnRows
from dcp_core.layout import RankHeads
from dcp_core.lse import LseBase, Partial
from dcp_core.mesh import Mesh, MeshError
from dcp_core.settings import ExchangeName, Unsupported
from dcp_core.triton_ops import direct as kernels
from dcp_core.triton_ops.mailbox import MOST_PROGRAMS, PeerLost
from tests.dcp_core.exchange.made_partials import Traffic
from tests.ranks import on_ranks

DIRECT = Traffic(dcp=2, head_dim=128).case(ExchangeName.DIRECT)


class Pretended:
    """A mesh that says of itself what a test wants."""

    rank = 0

    def __init__(self, *, device: str = "cpu", size: int = 2, nodes: int = 1) -> None:
        self.device, self.size, self._nodes = torch.device(device), size, nodes
        self.mailboxes: list[Tensor] = []

    def nodes(self) -> list[str]:
        return [f"node {number}" for number in range(self._nodes)]

    def share(self, value: object) -> list[object]:
        return [value] * self.size

    def first_problem(self, problem: str) -> str:
        return problem

    def barrier(self) -> None:
        pass

    def symmetric(self, size: int) -> tuple[Tensor, Tensor]:
        self.mailboxes = [torch.zeros(size, dtype=torch.uint8, device=self.device) for _ in range(self.size)]
        addresses = [memory.data_ptr() for memory in self.mailboxes]
        return self.mailboxes[0], torch.tensor(addresses, device=self.device)

    def set_flags(self, count: int) -> None:
        """Let every peer have come to so many turns."""
        flags = self.mailboxes[0].view(torch.int64)[: self.size * MOST_PROGRAMS]
        flags.fill_(count)


def reason_on(mesh: Mesh) -> str:
    try:
        open_exchange(DIRECT, mesh)
    except Unsupported as error:
        return str(error)
    return ""


def test_ranks_without_a_gpu_are_refused_alike() -> None:
    first, second = on_ranks(2, reason_on)
    assert first == second == "exchange direct writes into the memory of peers' GPUs, and this group runs on cpu"


def test_a_simulated_group_has_the_loopback() -> None:
    assert "needs 2 real ranks; in a simulated group the exchange is loopback" in reason_on(Mesh.simulated(2))


@pytest.mark.parametrize(
    ("mesh", "head_dim", "reason"),
    [
        (Pretended(nodes=2), 128, "this group spans 2 nodes"),
        (Pretended(device="cuda:0", size=9), 128, "built for groups of 2 to 8, not 9"),
        (Pretended(device="cuda:0"), 512, "built for head dims from 64 to 256, not 512"),
        (Pretended(device="cuda:0"), 128, ""),
    ],
)
def test_each_bound_has_its_sentence(mesh: Pretended, head_dim: int, reason: str) -> None:
    found = refusal(mesh, head_dim)  # type: ignore[arg-type]
    assert reason in found
    assert bool(found) == bool(reason)


def test_a_group_without_real_ranks_shares_no_memory() -> None:
    assert len(Mesh.alone().nodes()) == 1
    with pytest.raises(MeshError, match="memory is shared among the real ranks of a group"):
        Mesh.alone().symmetric(1024)


# --- One rank, opened without a GPU -----------------------------------------------------------------------------------

HEADS, HEAD_DIM, BFLOAT16 = RankHeads(query=2, kv=1, gathered=4), 64, torch.bfloat16


@pytest.fixture
def mesh(monkeypatch: pytest.MonkeyPatch, triton_device: str) -> Pretended:
    monkeypatch.setattr(exchange, "refusal", lambda *_: "")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(multi_processor_count=2))
    if triton_device == "cpu":
        monkeypatch.setattr(torch.cuda, "synchronize", lambda _: None)
    return Pretended(device=triton_device)


MOST_REGISTERS = 255
"""That a thread can have."""


class Recorded:
    """In a kernel's place: which of its variants were launched, how many registers each launch takes, and nothing is run."""

    def __init__(self) -> None:
        self.variants: set[tuple[object, ...]] = set()
        self.registers: set[int] = set()
        self._programs = 0

    def __getitem__(self, grid: tuple[int]) -> Recorded:
        self._programs = grid[0]
        return self

    def __call__(self, *_: object, num_warps: int, maxnreg: int | None, **named: object) -> None:
        self.variants.add(tuple(sorted((name, value) for name, value in named.items() if name.isupper())))
        self.registers.add(self._programs * num_warps * 32 * (maxnreg or MOST_REGISTERS))


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> dict[str, Recorded]:
    every = {name: Recorded() for name in ("gather_rows", "combine_rows", "meet_once", "gather_words", "combine_words")}
    for name, kernel in every.items():
        monkeypatch.setattr(kernels, name, kernel)
    # In the place of copies between GPUs, which nothing but those can make.
    monkeypatch.setattr(CopyEngines, "_copy", lambda *_: None)
    return every


def rows(tokens: int, heads: int, device: torch.device, *, gap: int = 0) -> Partial:
    out = torch.zeros(tokens, heads, HEAD_DIM + gap, dtype=BFLOAT16, device=device)[..., :HEAD_DIM]
    return Partial(out, torch.zeros(tokens, heads, device=device))


def test_whatever_is_exchanged_no_kernel_is_needed_that_was_not_loaded_on_opening(
    mesh: Pretended, recorded: dict[str, Recorded]
) -> None:
    opened = Direct(mesh, HEADS, HEAD_DIM, BFLOAT16)  # type: ignore[arg-type]
    loaded = {name: set(kernel.variants) for name, kernel in recorded.items()}
    counts = {"gather_rows": 4, "combine_rows": 4, "meet_once": 0, "gather_words": 2, "combine_words": 2}
    assert {name: len(variants) for name, variants in loaded.items()} == counts
    for kernel in recorded.values():
        kernel.variants.clear()
    for tokens in (8, 300):  # as words, and in large tiles
        folds = [Fold.of([3, tokens - 3], [9, tokens - 3], 2, rank) for rank in range(2)]
        for folded in (False, True):
            opened.reserve_folded(tokens, folds) if folded else opened.reserve(tokens)
            for gap in (0, 1):
                gathered = opened.gather_heads(rows(tokens, 2, mesh.device, gap=gap).out)
                made = Partial(gathered, torch.zeros(gathered.shape[:2], device=mesh.device))
                beside, keys = rows(tokens, 2, mesh.device, gap=gap), rows(tokens, 1, mesh.device, gap=gap).out
                own = OwnRows(beside.out, keys, keys, folds[0].earlier.to(mesh.device), 2)
                opened.combine(made)
                opened.combine_beside(made, own if folded else beside, into=rows(tokens, 2, mesh.device))
    assert {name: kernel.variants for name, kernel in recorded.items()} == loaded


def test_what_is_fetched_meets_in_the_kernel_that_was_loaded_when_room_was_made(
    mesh: Pretended, recorded: dict[str, Recorded], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = Direct(mesh, HEADS, HEAD_DIM, BFLOAT16)  # type: ignore[arg-type]
    monkeypatch.setattr(exchange, "LEAST_FETCHED_ROWS", 2)
    fetching = opened.reserve_fetching(8)
    assert fetching is not None
    meet = recorded["meet_once"]
    loaded, meet.variants = set(meet.variants), set()
    for gap in (0, 1):
        fetching.leave_queries(rows(8, 2, mesh.device, gap=gap).out)
        fetching.fetch_queries()
        fetching.fetch_partials()
        fetching.add_up(LseBase.NATURAL, rows(8, 2, mesh.device))
    assert meet.variants == loaded
    assert len(loaded) == 1


def test_rooms_to_fetch_from_stay_as_long_as_the_tokens_do_and_grow_with_them(
    mesh: Pretended, recorded: dict[str, Recorded]
) -> None:
    opened = Direct(mesh, HEADS, HEAD_DIM, BFLOAT16)  # type: ignore[arg-type]
    least = exchange.LEAST_FETCHED_ROWS // HEADS.query
    assert opened.reserve_fetching(least - 1) is None
    first = opened.reserve_fetching(least)
    assert isinstance(first, CopyEngines)
    assert opened.reserve_fetching(least) is first
    larger = opened.reserve_fetching(least + 1)  # in an outbox of twice the tokens
    assert larger is not first
    assert larger.tokens == larger.own.out.shape[0] == least + 1
    assert larger.for_peers.out.data_ptr() != first.for_peers.out.data_ptr()
    assert opened.reserve_fetching(2 * least).for_peers.out.data_ptr() == larger.for_peers.out.data_ptr()
    opened.reserve(300)  # a new mailbox, by whose turns ranks meet from now on
    again = opened.reserve_fetching(least + 1)
    assert again is not larger
    assert again.own.out.data_ptr() != larger.own.out.data_ptr()
    assert again.for_peers.out.data_ptr() == larger.for_peers.out.data_ptr()


def test_all_programs_of_a_launch_run_at_once(mesh: Pretended, recorded: dict[str, Recorded]) -> None:
    opened = Direct(mesh, HEADS, HEAD_DIM, BFLOAT16)  # type: ignore[arg-type]
    for tokens in (256, 1024, 8192):
        opened.reserve(tokens)
        gathered = opened.gather_heads(rows(tokens, 2, mesh.device).out)
        if fetching := opened.reserve_fetching(tokens):
            fetching.fetch_queries()
        opened.combine(Partial(gathered, torch.zeros(gathered.shape[:2], device=mesh.device)))
    each = 1 << 16  # registers of a multiprocessor, of which this device has two
    assert max(max(kernel.registers) for kernel in recorded.values()) <= 2 * each


@pytest.fixture
def opened(mesh: Pretended, monkeypatch: pytest.MonkeyPatch) -> Iterator[Direct]:
    with monkeypatch.context() as quiet:
        quiet.setattr(Direct, "_load", lambda _: None)
        yield Direct(mesh, HEADS, HEAD_DIM, BFLOAT16, polls=3)  # type: ignore[arg-type]


def test_it_offers_what_fused_paths_ask_for(opened: Direct) -> None:
    assert isinstance(opened, FusedExchange)


def test_it_says_in_which_tiles_a_call_moves(opened: Direct) -> None:
    few = kernels.MOST_ROWS_OF_WORDS // HEADS.query
    assert opened.variant(1) == opened.variant(few) == "words in tiles of 2 rows, 4 warps"
    assert opened.variant(few + 1) == opened.variant(8192) == "tiles of 32 rows, 8 warps"


@pytest.mark.parametrize("call", ["reserve", "grow", "fetch", "gather", "combine", "check"])
def test_a_loss_is_told_by_the_very_next_call(opened: Direct, mesh: Pretended, call: str) -> None:
    opened.reserve(5)
    opened.gather_heads(rows(5, 2, mesh.device).out)  # nobody comes
    torch.cuda.synchronize(mesh.device)
    given, own = rows(5, 4, mesh.device), rows(5, 2, mesh.device)
    calls = {
        "reserve": lambda: opened.reserve(5),
        "grow": lambda: opened.reserve(5000),
        "fetch": lambda: opened.reserve_fetching(exchange.LEAST_FETCHED_ROWS),
        "gather": lambda: opened.gather_heads(own.out),
        "combine": lambda: opened.combine(given),
        "check": opened.check,
    }
    with pytest.raises(PeerLost, match="rank 1 did not come to turn 1 of exchange direct; every result since is NaN"):
        calls[call]()
