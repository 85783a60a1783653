"""The direct exchange's kernels, rank by rank in phases: what they gather and add up is what the definitions say."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dcp_core.exchange.base import interleave_ranks, split_ranks
from dcp_core.fold import Fold, Folder, OwnRows, attend_own_rows
from dcp_core.lse import LseBase, Partial, combine
from dcp_core.triton_ops import direct
from dcp_core.triton_ops.direct import LARGE, SMALL, Phase, Tile
from dcp_core.triton_ops.mailbox import MOST_ROWS_OF_WORDS, Group, Laid, Mailbox
from tests.dcp_core.triton_ops.mailboxes import mailboxes

# The interpreter computes exp and log of -inf and NaN with numpy, which says so.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

TOKENS, FEW = 19, 5
"""More rows than fit one tile, and than all programs' tiles; of words few do, whose tiles hold two rows."""
COMPILED = Path(__file__).with_name("compiled_direct.py")
GROUPS = [
    Group(2, 1, 8, 128, torch.bfloat16),
    Group(3, 2, 3, 64, torch.float16),
    Group(4, 1, 2, 80, torch.bfloat16),
    Group(8, 1, 1, 256, torch.bfloat16),
    Group(5, 3, 1, 64, torch.float32),
]


def queries(group: Group, tokens: int, seed: int, device: str) -> list[Tensor]:
    """Make every rank's queries, each a slice of a wider projection."""
    generator = torch.Generator().manual_seed(seed)
    wide = torch.randn(group.ranks, tokens, group.heads + 2, group.head_dim, generator=generator).to(group.dtype)
    return [whole[:, 1:-1].to(device) for whole in wide]


def partials(
    group: Group, rows: int, heads: int, seed: int, device: str, base: LseBase = LseBase.NATURAL
) -> list[Partial]:
    """Make a partial for every rank, some rows empty over garbage."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for _ in range(group.ranks):
        out = torch.randn(rows, heads, group.head_dim, generator=generator).to(group.dtype)
        lse = 3 * torch.randn(rows, heads, generator=generator)
        empty = torch.rand(rows, heads, generator=generator) < 0.3
        lse[empty], out[empty] = -math.inf, math.nan
        made.append(Partial(out.to(device), lse.to(device), base))
    return made


def gather(
    boxes: Sequence[Mailbox], q: Sequence[Tensor], laid: Sequence[Laid], tile: Tile | None = None
) -> list[Tensor]:
    """Take one turn with every rank: all push, then all wait."""
    for rank, box in enumerate(boxes):
        direct.gather_heads(q[rank], box, laid[rank], phase=Phase.PUSH, tile=tile)
    return [
        direct.gather_heads(q[rank], box, laid[rank], phase=Phase.WAIT, tile=tile) for rank, box in enumerate(boxes)
    ]


def add_up(
    boxes: Sequence[Mailbox],
    given: Sequence[Partial],
    laid: Sequence[Laid],
    beside: Sequence[Partial | OwnRows | None] | None = None,
    tile: Tile | None = None,
) -> list[Partial]:
    """Take one turn with every rank: all push, then all wait. What stands beside need not be there before the wait."""
    other = beside or [None] * len(boxes)
    for rank, box in enumerate(boxes):
        direct.combine(given[rank], box, laid[rank], phase=Phase.PUSH, tile=tile)
    return [
        direct.combine(given[rank], box, laid[rank], beside=other[rank], phase=Phase.WAIT, tile=tile)
        for rank, box in enumerate(boxes)
    ]


def expected_of(given: Sequence[Partial], group: Group, rank: int, beside: Partial | None = None) -> Partial:
    """Add up one rank's heads by definition."""
    natural = [partial.natural() for partial in given]
    outs = [split_ranks(partial.out, group.kv_heads, group.ranks)[rank].flatten(1, 2) for partial in natural]
    lses = [split_ranks(partial.lse, group.kv_heads, group.ranks)[rank].flatten(1, 2) for partial in natural]
    if beside is not None:
        outs.append(beside.natural().out)
        lses.append(beside.natural().lse)
    return combine(torch.stack(outs), torch.stack(lses))


def assert_same(got: Partial, expected: Partial) -> None:
    """Hold two results to one rounding of ``out``, and to what float32 exp and log leave of an LSE."""
    rounding = torch.finfo(got.out.dtype).eps
    torch.testing.assert_close(got.out, expected.out, rtol=rounding, atol=rounding + 1e-5)
    torch.testing.assert_close(got.lse, expected.lse, rtol=0, atol=1e-5)
    assert got.base is LseBase.NATURAL


WAYS = pytest.mark.parametrize(
    ("tile", "tokens"), [(None, FEW), (LARGE, TOKENS)], ids=["as words where they may", "as rows"]
)


@WAYS
@pytest.mark.parametrize("group", GROUPS, ids=str)
def test_turn_after_turn_of_changing_tokens_is_right(
    group: Group, tile: Tile | None, tokens: int, triton_device: str
) -> None:
    boxes = mailboxes(group, tokens=tokens, device=triton_device, programs=3)
    plain = [Laid()] * group.ranks
    for turn, count in enumerate((tokens, 1, tokens // 2, 0, tokens, 2)):
        q = queries(group, count, turn, triton_device)
        for gathered in gather(boxes, q, plain, tile):
            assert gathered.equal(interleave_ranks(torch.stack(q), group.kv_heads))
        given = partials(group, count, group.ranks * group.heads, turn, triton_device, LseBase.TWO)
        beside = partials(group, count, group.heads, turn + 100, triton_device) if turn % 2 else None
        for rank, got in enumerate(add_up(boxes, given, plain, beside, tile)):
            assert_same(got, expected_of(given, group, rank, beside[rank] if beside else None))
    assert [box.lost_rank() for box in boxes] == [None] * group.ranks


@WAYS
def test_rows_that_begin_anywhere_are_read_and_written_right(
    tile: Tile | None, tokens: int, triton_device: str
) -> None:
    group, plain = GROUPS[0], [Laid()] * 2
    boxes = mailboxes(group, tokens=tokens, device=triton_device)
    q = [shifted(one) for one in queries(group, tokens, 0, triton_device)]
    for gathered in gather(boxes, q, plain, tile):
        assert gathered.equal(interleave_ranks(torch.stack(q), 1))
    given = partials(group, tokens, 16, 1, triton_device)
    beside = partials(group, tokens, 8, 2, triton_device)
    for rank, box in enumerate(boxes):
        direct.combine(given[rank], box, plain[rank], phase=Phase.PUSH, tile=tile)
    for rank, box in enumerate(boxes):
        other = Partial(shifted(beside[rank].out), beside[rank].lse.T.contiguous().T)
        into = Partial(torch.full_like(other.out, -7.0), torch.empty_like(other.lse))
        into = Partial(shifted(into.out), into.lse)
        direct.combine(given[rank], box, plain[rank], beside=other, into=into, phase=Phase.WAIT, tile=tile)
        assert_same(into, expected_of(given, group, rank, beside[rank]))


def shifted(rows: Tensor) -> Tensor:
    """Return the same rows in memory where none begins at a multiple of 16 bytes."""
    *shape, columns = rows.shape
    wide = rows.new_empty(*shape, columns + 1)
    wide[..., 1:] = rows
    return wide[..., 1:]


BATCHES = st.lists(st.tuples(st.integers(1, 9), st.integers(0, 12)), min_size=1, max_size=3)


@settings(max_examples=16)
@given(
    batch=BATCHES,
    which=st.sampled_from([GROUPS[0], GROUPS[1], GROUPS[4]]),
    tile=st.sampled_from([None, LARGE]),
    seed=st.integers(0, 1000),
)
def test_folded_rows_stand_where_folding_puts_them(
    batch: list[tuple[int, int]], which: Group, tile: Tile | None, seed: int, triton_device: str
) -> None:
    new, total = [new for new, _ in batch], [new + context for new, context in batch]
    folds = [Fold.of(new, total, which.ranks, rank) for rank in range(which.ranks)]
    places = torch.stack([fold.place for fold in folds]).to(triton_device, torch.int32)
    laid = [Laid(places, fold=which.ranks, rows=sum(fold.rows)) for fold in folds]
    tokens = sum(new)
    boxes = mailboxes(which, tokens=tokens, places=max(fold.places for fold in folds), device=triton_device, programs=3)
    folders = [
        Folder(
            fold,
            heads=which.ranks * which.heads,
            kv_heads=which.kv_heads,
            head_dim=which.head_dim,
            dtype=which.dtype,
            device=torch.device(triton_device),
        )
        for fold in folds
    ]
    q = queries(which, tokens, seed, triton_device)
    plain = interleave_ranks(torch.stack(q), which.kv_heads)
    given = []
    for rank, gathered in enumerate(gather(boxes, q, laid, tile)):
        whole = Partial(gathered.clone(), torch.zeros(gathered.shape[:2], device=triton_device))
        back = folders[rank].unfold(whole)
        seen = folds[rank].place >= 0
        assert back.out[seen].equal(plain[seen])
        given.append(partials(which, *gathered.shape[:2], seed + rank, triton_device, LseBase.TWO)[0])
    unfolded = [folder.unfold(partial) for folder, partial in zip(folders, given, strict=True)]
    unfolded = [Partial(partial.out.float(), partial.lse.clone(), partial.base) for partial in unfolded]
    new_keys, new_values = (queries(replace(which, group=1), tokens, seed + more, triton_device)[0] for more in (1, 2))
    own = [
        OwnRows(q[rank], new_keys, new_values, fold.earlier.to(triton_device), which.ranks)
        for rank, fold in enumerate(folds)
    ]
    for rank, got in enumerate(add_up(boxes, given, laid, own, tile=tile)):
        room = Partial(torch.empty_like(q[rank], dtype=torch.float32), got.lse.clone())
        expected = expected_of(unfolded, which, rank, attend_own_rows(own[rank], room))
        assert_same(got, Partial(expected.out.to(which.dtype), expected.lse))


def test_a_program_that_rested_for_any_number_of_turns_still_waits(triton_device: str) -> None:
    group, plain = GROUPS[0], Laid()
    boxes = mailboxes(group, tokens=TOKENS, device=triton_device, programs=8, polls=5)
    flags = [box.memory[: group.flag_bytes].view(torch.int64).view(group.ranks, -1) for box in boxes]
    gather(boxes, queries(group, TOKENS, 0, triton_device), [plain] * 2, LARGE)
    for box, set_by in zip(boxes, flags, strict=True):  # more turns of one program than int32 counts: three hours
        box.turns[:] = set_by[:, 0] = 2**31 + 7
    q = queries(group, TOKENS, 1, triton_device)
    for gathered in gather(boxes, q, [plain] * 2, LARGE):
        assert gathered.equal(interleave_ranks(torch.stack(q), 1))
    flags[1][0, 0] += 1  # of rank 0's four programs only the first comes
    got = direct.combine(partials(group, TOKENS, 16, 0, triton_device)[1], boxes[1], plain, tile=LARGE)
    assert got.lse.view(-1)[LARGE.rows : 4 * LARGE.rows].isnan().all()
    assert boxes[1].lost_rank() == (0, 2**31 + 9)


def test_a_word_of_any_earlier_turn_is_late(triton_device: str) -> None:
    group, plain = GROUPS[0], [Laid()] * 2
    boxes = mailboxes(group, tokens=FEW, device=triton_device, polls=5)
    gather(boxes, queries(group, FEW, 0, triton_device), plain)
    for box in boxes:  # of a turn that differs from the first in nothing that 32 bits hold
        box.turns[:] = 2**32
    direct.gather_heads(queries(group, FEW, 1, triton_device)[0], boxes[0], plain[0])
    assert boxes[0].lost_rank() == (1, 2**32 + 1)


def test_of_a_rank_that_sent_half_of_its_rows_the_others_are_nothing(triton_device: str) -> None:
    group, plain = GROUPS[0], [Laid()] * 2
    boxes = mailboxes(group, tokens=FEW, device=triton_device, polls=5)
    gather(boxes, queries(group, FEW, 0, triton_device), plain)
    given = partials(group, FEW, 16, 0, triton_device)
    for rank, box in enumerate(boxes):
        direct.combine(given[rank], box, plain[rank], phase=Phase.PUSH)
    words = boxes[0].memory[group.flag_bytes + group.gather_words_bytes : group.marked_bytes].view(torch.int64)
    late = words[: 2 * MOST_ROWS_OF_WORDS * group.head_dim].view(2, MOST_ROWS_OF_WORDS, group.head_dim)[1, 20:]
    late -= 1 << 16  # as of the turn before
    got, expected = direct.combine(given[0], boxes[0], plain[0], phase=Phase.WAIT), expected_of(given, group, 0)
    rows, lses = got.out.view(-1, group.head_dim), got.lse.view(-1)
    assert rows[20:].isnan().all()
    assert lses[20:].isnan().all()
    assert_same(
        Partial(rows[:20], lses[:20]), Partial(expected.out.view(-1, group.head_dim)[:20], expected.lse.view(-1)[:20])
    )
    assert boxes[0].lost_rank() == (1, 2)


@WAYS
def test_a_program_that_rests_knows_the_turn_when_it_is_needed_again(
    tile: Tile | None, tokens: int, triton_device: str
) -> None:
    group = GROUPS[0]
    boxes = mailboxes(group, tokens=tokens, device=triton_device, programs=4)
    for turn, count in enumerate((1, 1, tokens, 1, tokens)):
        q = queries(group, count, turn, triton_device)
        for gathered in gather(boxes, q, [Laid()] * 2, tile):
            assert gathered.equal(interleave_ranks(torch.stack(q), 1))
        for box in boxes:
            assert (box.turns == turn + 1).all()


@WAYS
def test_a_rank_that_never_comes_is_named_and_nothing_is_made_of_what_it_did_not_send(
    tile: Tile | None, tokens: int, triton_device: str
) -> None:
    group = GROUPS[1]
    boxes = mailboxes(group, tokens=tokens, device=triton_device, polls=5)
    plain = [Laid()] * group.ranks
    gather(boxes, queries(group, tokens, 0, triton_device), plain, tile)
    given = partials(group, tokens, group.ranks * group.heads, 0, triton_device)
    for rank in (0, 2):  # rank 1 does not push
        direct.combine(given[rank], boxes[rank], plain[rank], phase=Phase.PUSH, tile=tile)
    for rank in (0, 2):
        got = direct.combine(given[rank], boxes[rank], plain[rank], phase=Phase.WAIT, tile=tile)
        assert got.out.isnan().all()
        assert got.lse.isnan().all()
        assert boxes[rank].lost_rank() == (1, 2)
        direct.gather_heads(queries(group, tokens, 0, triton_device)[rank], boxes[rank], plain[rank], tile=tile)
        assert boxes[rank].lost_rank() == (1, 2), "the first loss is the one that is told"


@WAYS
def test_of_several_that_never_come_the_lowest_is_named(tile: Tile | None, tokens: int, triton_device: str) -> None:
    group = GROUPS[2]
    boxes = mailboxes(group, tokens=tokens, device=triton_device, polls=5)
    direct.gather_heads(queries(group, tokens, 0, triton_device)[1], boxes[1], Laid(), tile=tile)
    assert boxes[1].lost_rank() == (0, 1)


@WAYS
def test_a_loss_silences_nobody_in_the_turn_in_which_it_is_found(
    tile: Tile | None, tokens: int, triton_device: str
) -> None:
    group = GROUPS[0]
    boxes = mailboxes(group, tokens=tokens, device=triton_device, programs=8, polls=5)
    q = queries(group, tokens, 0, triton_device)
    direct.gather_heads(q[0], boxes[0], Laid(), tile=tile)
    assert boxes[0].lost_rank() == (1, 1)
    if tile is LARGE:
        flags = boxes[1].memory[: group.flag_bytes].view(torch.int64).view(group.ranks, -1)
        assert (flags[0, :4] == 1).all(), "whoever sees half of a loss would tell of rows that were not pushed"
    assert direct.gather_heads(q[1], boxes[1], Laid(), tile=tile).equal(interleave_ranks(torch.stack(q), 1))


@WAYS
def test_once_a_rank_is_lost_nothing_more_is_pushed_or_signalled(
    tile: Tile | None, tokens: int, triton_device: str
) -> None:
    group = GROUPS[1]
    boxes = mailboxes(group, tokens=tokens, device=triton_device, polls=5)
    q = queries(group, tokens, 0, triton_device)
    direct.gather_heads(q[0], boxes[0], Laid(), tile=tile)
    assert boxes[0].lost_rank() == (1, 1)
    before = [box.memory.clone() for box in boxes[1:]]
    direct.gather_heads(-q[0], boxes[0], Laid(), tile=tile)
    direct.combine(partials(group, tokens, 18, 0, triton_device)[0], boxes[0], Laid(), tile=tile)
    for box, memory in zip(boxes[1:], before, strict=True):
        assert box.memory.equal(memory)


def test_compiled_for_a_gpu_rows_move_16_bytes_at_once_and_no_argument_is_specialised_on() -> None:
    compiling = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    ran = subprocess.run([sys.executable, COMPILED], env=compiling, capture_output=True, text=True, check=True)
    seen = json.loads(ran.stdout)
    # A thread's part of a row's source or target is twice 16 bytes.
    for kernel, loads, stores in (("gather_rows", 2, 4), ("combine_rows", 8, 4)):
        assert seen[kernel]["specialised"] == []
        aligned = seen[kernel]["aligned"]
        assert aligned.get("ld.global.v4.b32") == loads
        assert aligned.get("st.global.v4.b32") == stores
        assert not {"ld.global.b16", "st.global.b16"} & aligned.keys()
        assert "ld.global.b16" in seen[kernel]["not aligned"]
    for kernel in ("gather_words", "combine_words"):
        assert seen[kernel]["specialised"] == []
        # A word must be read and written at once: whole, alone or beside another.
        words = {name for name in seen[kernel]["words"] if "volatile" in name}
        assert words <= {"ld.volatile.global.b64", "ld.volatile.global.v2.b64"}
        assert words


@pytest.mark.parametrize("launch", ["one", "many"])
def test_programs_share_rows_however_many_they_are(launch: str, triton_device: str) -> None:
    group, plain = GROUPS[0], [Laid()] * 2
    boxes = mailboxes(group, tokens=FEW, device=triton_device, programs=1 if launch == "one" else 400)
    q = queries(group, FEW, 3, triton_device)
    for gathered in gather(boxes, q, plain):
        assert gathered.equal(interleave_ranks(torch.stack(q), 1))


def test_what_does_not_fit_is_refused(triton_device: str) -> None:
    group = GROUPS[0]
    boxes = mailboxes(group, tokens=4, device=triton_device)
    box = boxes[0]
    with pytest.raises(ValueError, match="1 to 512 rows of 16-bit elements travel as words, not 0 of"):
        direct.gather_heads(queries(group, 0, 0, triton_device)[0], box, Laid(), tile=SMALL)
    q = queries(group, 5, 0, triton_device)[0]
    with pytest.raises(ValueError, match="room for 4 tokens cannot take 5"):
        direct.gather_heads(q, box, Laid())
    with pytest.raises(ValueError, match=r"queries should be \[T, 8, 128\] of torch.bfloat16, not"):
        direct.gather_heads(q[:, :7], box, Laid())
    partial = partials(group, 4, 16, 0, triton_device)[0]
    with pytest.raises(ValueError, match=r"should be \[rows, 32, 128\], not"):
        direct.combine(partial, box, Laid(torch.zeros(2, 4, dtype=torch.int32), fold=2, rows=2))
    with pytest.raises(ValueError, match="should be contiguous"):
        direct.combine(Partial(partial.out[::2], partial.lse[::2]), box, Laid())
    own = OwnRows(q[:4], q[:4, :1], q[:4, :1], torch.zeros(4, dtype=torch.int32, device=triton_device), 2)
    with pytest.raises(ValueError, match="beside others a partial"):
        direct.combine(partial, box, Laid(), beside=own)
    with pytest.raises(ValueError, match=r"the partial beside should be \[4, 8, 128\]"):
        direct.combine(partial, box, Laid(), beside=Partial(q, torch.zeros(5, 8, device=triton_device)))
