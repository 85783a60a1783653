"""The protocol of the direct exchange, walked through every interleaving of its ranks and programs.

A model in plain Python of what ``dcp_core.triton_ops.direct`` does: rows are written to peers, flags are set and awaited, rows
are read, and every order in which the programs of all ranks may take these steps is tried. In some walks a program that
waits may also give up, whenever it likes. Rows that travel as words (``dcp_core.triton_ops.words``) are flags themselves;
those that are fetched (``dcp_core.exchange.copies``) are left by their own rank, lost or not, and copied by each of the others.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import cycle
from typing import Any, Literal

import pytest


@dataclass(frozen=True)
class Turn:
    """One call: a gather, whose rows are read by a later step of the stream, or a combine, which reads them itself.

    In truth a gather reads words at once; here as late as it reads rows, which is harder to get right. And rows are in truth
    fetched when all programs have ended; here each program's when it has.
    """

    kind: str
    rows: int
    programs: int
    way: Literal["rows", "words", "fetched"] = "rows"

    @property
    def room(self) -> str:
        return f"{self.kind} words" if self.way == "words" else self.kind

    @property
    def outbox(self) -> str:
        return f"left by a {self.kind}"

    def of_program(self, program: int) -> range:
        return range(program, self.rows, self.programs)


@dataclass(frozen=True)
class Rules:
    """The protocol, and ways to get it wrong."""

    awaits: bool = True
    flags_after_rows: bool = True
    gives_up: bool = False
    silent_once_lost: bool = True
    nan_once_lost: bool = True
    marks_once_lost: bool = True


@dataclass(frozen=True)
class Row:
    """What stands in a room: the turn that wrote it, and whether it was made of rows that a gather truly brought."""

    turn: int
    true: bool


@dataclass(frozen=True)
class World:
    """Where every program of every rank stands, and what the mailboxes hold.

    Args:
        turn: per rank, the turn that it is in.
        at: per rank and program, its next step.
        whole: per rank and program, whether it may make a finite result: it did not give up in this turn.
        lost: (rank, turn): who gave up on some peer, and when first.
        misled: ranks that read rows of a gather that were not all there: what they send from now on is made of garbage.
        rooms: per (rank, kind, source, row), what was written there.
        flags: per (rank, source, program), the turn that was told.
    """

    turn: tuple[int, ...]
    at: tuple[tuple[int, ...], ...]
    whole: tuple[tuple[bool, ...], ...]
    lost: frozenset[tuple[int, int]] = frozenset()
    misled: frozenset[int] = frozenset()
    rooms: frozenset[tuple[tuple[int, str, int, int], Row]] = frozenset()
    flags: frozenset[tuple[tuple[int, int, int], int]] = frozenset()


class Broken(AssertionError):
    """A row that was read, and of which a finite result was made, is not of the turn that was awaited."""


@dataclass(frozen=True)
class Walk:
    turns: Sequence[Turn]
    ranks: int
    rules: Rules = Rules()

    def explore(self) -> tuple[int, int]:
        """Try every interleaving; return how many worlds there are and how many of their ends know a loss.

        Raises:
            Broken: if somebody returns a finite wrong row.
            AssertionError: if nobody does, but somewhere nobody can take a step.
        """
        start = World(
            turn=(0,) * self.ranks,
            at=((0,) * self.turns[0].programs,) * self.ranks,
            whole=((True,) * self.turns[0].programs,) * self.ranks,
        )
        seen, waiting, ended_lost, is_stuck = {start}, [start], 0, False
        while waiting:
            world = waiting.pop()
            following = list(self._next(world))
            is_stuck |= not following and any(turn < len(self.turns) for turn in world.turn)
            ended_lost += not following and bool(world.lost)
            fresh = set(following) - seen
            seen |= fresh
            waiting += fresh
        assert not is_stuck, (
            "somewhere nobody can take a step"
        )  # only now: in which order worlds are visited differs from run to run
        return len(seen), ended_lost

    def _next(self, world: World) -> Iterator[World]:
        for rank in range(self.ranks):
            if world.turn[rank] == len(self.turns):
                continue
            programs = [
                self._steps(rank, program, self.turns[world.turn[rank]]) for program in range(len(world.at[rank]))
            ]
            if all(step == len(steps) for step, steps in zip(world.at[rank], programs, strict=True)):
                yield self._leave(world, rank)
                continue
            for program, (step, steps) in enumerate(zip(world.at[rank], programs, strict=True)):
                if step < len(steps):
                    for moved in self._take(world, rank, program, steps[step]):
                        yield replace(moved, at=_changed(world.at, rank, program, step + 1))

    def _steps(self, rank: int, program: int, now: Turn) -> list[tuple[str, int, Sequence[int]]]:
        """Return what a program does in a turn: the step, the peer, and the rows that it is about."""
        peers, rows = [(rank + step) % self.ranks for step in range(1, self.ranks)], now.of_program(program)
        awaited = [("wait", peer, rows) for peer in peers] if self.rules.awaits else []
        flags, fetched = [("flag", peer, rows) for peer in peers], []
        match now.way:
            case "words":  # each arrives for itself
                pushed = [("push", peer, [row]) for peer in peers for row in rows]
            case "fetched":
                pushed, fetched = [("leave", rank, rows), *flags], [("fetch", peer, rows) for peer in peers]
            case _:
                pushes = [("push", peer, rows) for peer in peers]
                pushed = pushes + flags if self.rules.flags_after_rows else flags + pushes
        moved = [step for step in (*pushed, *awaited, *fetched) if rows or step[0] in ("flag", "wait")]
        return [*moved, ("read", rank, rows)] if now.kind == "combine" else moved

    def _take(self, world: World, rank: int, program: int, step: tuple[str, int, Sequence[int]]) -> Iterator[World]:
        turn = world.turn[rank]
        now = self.turns[turn]
        before = any(
            turn > since for who, since in world.lost if who == rank
        )  # a loss of this very turn does not count
        whole = world.whole[rank][program] and not before
        tells = not before or not self.rules.silent_once_lost
        match step:
            case ("push", peer, rows):
                row = Row(turn, rank not in world.misled)
                written = {(peer, now.room, rank, number): row for number in rows if tells}
                yield replace(world, rooms=frozenset((dict(world.rooms) | written).items()))
            case ("leave", _, rows):
                row = Row(turn, rank not in world.misled)
                written = {(rank, now.outbox, rank, number): row for number in rows}
                yield replace(world, rooms=frozenset((dict(world.rooms) | written).items()))
            case ("fetch", peer, rows):  # whatever is there
                found = dict(world.rooms)
                staged = {number: found.get((peer, now.outbox, peer, number)) for number in rows}
                copied = {(rank, now.room, peer, number): row for number, row in staged.items() if row is not None}
                yield replace(world, rooms=frozenset((found | copied).items()))
            case ("flag", peer, _):
                flags = {(peer, rank, program): turn + 1} if tells else {}
                yield replace(world, flags=frozenset((dict(world.flags) | flags).items()))
            case ("wait", peer, rows):
                if not whole or self._came(world, rank, program, peer, rows):
                    yield world  # once a rank is lost, none is waited for
                elif self.rules.gives_up:
                    known = world if rank in dict(world.lost) else replace(world, lost=world.lost | {(rank, turn)})
                    yield replace(known, whole=_changed(world.whole, rank, program, False))
            case (_, _, rows):
                finite = whole or not self.rules.nan_once_lost
                if now.way == "fetched" and self.rules.marks_once_lost:
                    finite &= not world.lost  # whoever gave up has marked every mailbox
                if now.kind == "combine" and finite and (wrong := self._wrong(world, rank, rows)):
                    raise Broken(wrong)
                yield world

    def _came(self, world: World, rank: int, program: int, peer: int, rows: Sequence[int]) -> bool:
        """Tell whether what a program waits for of a peer is there."""
        turn, now = world.turn[rank], self.turns[world.turn[rank]]
        if now.way != "words":
            return dict(world.flags).get((rank, peer, program), 0) > turn
        found = [dict(world.rooms).get((rank, now.room, peer, row)) for row in rows]
        return all(row is not None and row.turn == turn for row in found)

    def _leave(self, world: World, rank: int) -> World:
        """End a rank's turn: what its stream does next reads all that a gather brought, lost or not."""
        turn = world.turn[rank]
        if self.turns[turn].kind == "gather" and (wrong := self._wrong(world, rank, range(self.turns[turn].rows))):
            if not world.lost or (self.turns[turn].way != "fetched" and rank not in dict(world.lost)):
                raise Broken(wrong)
            world = replace(world, misled=world.misled | {rank})
        programs = self.turns[turn + 1].programs if turn + 1 < len(self.turns) else 0
        return replace(
            world,
            turn=(*world.turn[:rank], turn + 1, *world.turn[rank + 1 :]),
            at=(*world.at[:rank], (0,) * programs, *world.at[rank + 1 :]),
            whole=(*world.whole[:rank], (True,) * programs, *world.whole[rank + 1 :]),
        )

    def _wrong(self, world: World, rank: int, rows: Sequence[int]) -> str:
        """Say which row that a rank reads is not what it should be, or nothing."""
        rooms, turn = dict(world.rooms), world.turn[rank]
        if rows and rank in world.misled:
            return f"rank {rank} adds up in turn {turn} what it made of garbage"
        for source in set(range(self.ranks)) - {rank}:
            for row in rows:
                found = rooms.get((rank, self.turns[turn].room, source, row))
                if found != Row(turn, true=True):
                    return f"rank {rank} reads row {row} of rank {source} in turn {turn} and finds {found}"
        return ""


def _changed(table: tuple[tuple[Any, ...], ...], rank: int, program: int, value: object) -> tuple[tuple[Any, ...], ...]:
    row = table[rank]
    return (*table[:rank], (*row[:program], value, *row[program + 1 :]), *table[rank + 1 :])


def steps(*tokens: tuple[int, int], ways: Sequence[Literal["rows", "words", "fetched"]] = ("rows",)) -> list[Turn]:
    """Make the turns of attention steps of (rows, programs), in these ways over and over."""
    turns = []
    for (rows, programs), way in zip(tokens, cycle(ways), strict=False):
        turns += [Turn("gather", rows, programs, way), Turn("combine", rows, programs, way)]
    return turns


WALKS = {
    "two ranks, two programs": Walk(steps((2, 2), (2, 2)), 2),
    "two ranks, layer after layer": Walk(steps((1, 1), (1, 1), (1, 1), (1, 1)), 2),
    "two ranks, tokens that change": Walk(steps((2, 2), (1, 1), (3, 2)), 2),
    "three ranks": Walk(steps((1, 1), (1, 1), (1, 1)), 3),
    "three ranks, tokens that change": Walk(steps((2, 2), (1, 1)), 3),
    "words, layer after layer": Walk(steps((1, 1), (1, 1), (1, 1), (1, 1), ways=["words"]), 2),
    "words, two to a program": Walk(steps((2, 1), (2, 1), ways=["words"]), 2),
    "words, tokens that change": Walk(steps((2, 2), (1, 1), (3, 2), ways=["words"]), 2),
    "words and rows by turns": Walk(steps((1, 1), (2, 2), (1, 1), ways=["words", "rows"]), 2),
    "words between three ranks": Walk(steps((1, 1), (1, 1), (1, 1), ways=["words"]), 3),
    "fetched, layer after layer": Walk(steps((1, 1), (1, 1), (1, 1), ways=["fetched"]), 2),
    "fetched, tokens that change": Walk(steps((2, 2), (1, 1), ways=["fetched"]), 2),
    "fetched, pushed and fetched": Walk(steps((1, 1), (2, 2), (1, 1), ways=["fetched", "rows"]), 2),
    "fetched between three ranks": Walk(steps((1, 1), (1, 1), ways=["fetched"]), 3),
}


@pytest.mark.parametrize("walk", WALKS.values(), ids=WALKS)
def test_no_row_is_lost_stale_or_overwritten_in_any_interleaving(walk: Walk) -> None:
    worlds, ended_lost = walk.explore()
    assert worlds > 100
    assert not ended_lost


GIVES_UP = Rules(gives_up=True)
LOSSES = {
    "two ranks, layer after layer": Walk(steps((1, 1), (1, 1), (1, 1)), 2, GIVES_UP),
    "two ranks, tokens that change": Walk(steps((2, 2), (1, 1)), 2, GIVES_UP),
    "three ranks": Walk(steps((1, 1), (1, 1))[1:], 3, GIVES_UP),
    "words": Walk(steps((1, 1), (1, 1), (1, 1), ways=["words"]), 2, GIVES_UP),
    "words, two to a program": Walk(steps((2, 1), (2, 1), ways=["words"]), 2, GIVES_UP),
    "words and rows by turns": Walk(steps((1, 1), (2, 2), ways=["words", "rows"]), 2, GIVES_UP),
    "words between three ranks": Walk(steps((1, 1), (1, 1), ways=["words"])[1:], 3, GIVES_UP),
    "fetched": Walk(steps((1, 1), (1, 1), (1, 1), ways=["fetched"]), 2, GIVES_UP),
    "fetched, pushed and fetched": Walk(steps((1, 1), (1, 1), (1, 1), ways=["fetched", "rows"]), 2, GIVES_UP),
}


BETWEEN_THREE = [Turn("combine", 1, 1, "fetched"), Turn("gather", 0, 1), Turn("combine", 1, 1, "fetched")]


@pytest.mark.parametrize(
    "walk",
    [
        *(pytest.param(walk, id=name) for name, walk in LOSSES.items()),
        pytest.param(
            Walk(BETWEEN_THREE, 3, GIVES_UP), id="fetched between three ranks", marks=pytest.mark.endurance
        ),  # a minute
    ],
)
def test_whoever_gives_up_whenever_nobody_returns_a_finite_wrong_row(walk: Walk) -> None:
    _, ended_lost = walk.explore()
    assert ended_lost > 10


FAULTS = {
    "nobody waits": (Rules(awaits=False), steps((1, 1))),
    "flags before rows": (Rules(flags_after_rows=False), steps((1, 1))),
    "two gathers in a row, in one room": (Rules(), [Turn("gather", 1, 1), Turn("gather", 1, 1)]),
    "two combines in a row, in one room": (Rules(), [Turn("combine", 2, 2), Turn("combine", 2, 2)]),
    "nobody waits for words": (Rules(awaits=False), steps((1, 1), ways=["words"])),
    "two gathers in a row, fetched": (Rules(), [Turn("gather", 1, 1, "fetched")] * 2),
    "whoever gave up overwrites what it left, unmarked": (
        replace(GIVES_UP, marks_once_lost=False),
        steps((1, 1), (1, 1), ways=["fetched"]),
    ),
    "two combines in a row, fetched": (Rules(), [Turn("combine", 1, 1, "fetched")] * 2),
    "nobody waits for what it fetches": (Rules(awaits=False), steps((1, 1), ways=["fetched"])),
    "two gathers in a row, in words": (Rules(), [Turn("gather", 1, 1, "words")] * 2),
    "whoever gave up goes on sending words": (
        replace(GIVES_UP, silent_once_lost=False),
        steps((1, 1), ways=["words"]),
    ),
    "whoever gave up goes on telling": (replace(GIVES_UP, silent_once_lost=False), steps((1, 1))),
    "whoever gave up goes on adding up": (replace(GIVES_UP, nan_once_lost=False), steps((1, 1))),
}


@pytest.mark.parametrize(("rules", "turns"), FAULTS.values(), ids=FAULTS)
def test_the_walk_finds_what_breaks_the_protocol(rules: Rules, turns: list[Turn]) -> None:
    with pytest.raises(Broken):
        Walk(turns, 2, rules).explore()
