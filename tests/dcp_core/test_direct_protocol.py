"""The protocol of the direct exchange, walked through every interleaving of its ranks and programs.

A model in plain Python of what ``dcp_core.triton_ops.direct`` does: rows are written to peers, flags are set and awaited, rows
are read, and every order in which the programs of all ranks may take these steps is tried.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import pytest


@dataclass(frozen=True)
class Turn:
    """One call: a gather, whose rows are read by a later step of the stream, or a combine, which reads them itself."""

    kind: str
    rows: int
    programs: int

    def of_program(self, program: int) -> range:
        return range(program, self.rows, self.programs)


@dataclass(frozen=True)
class Rules:
    """The protocol, and ways to get it wrong."""

    awaits: bool = True
    flags_after_rows: bool = True


@dataclass(frozen=True)
class World:
    """Where every program of every rank stands, and what the mailboxes hold.

    Args:
        turn: per rank, the turn that it is in.
        at: per rank and program, its next step.
        rooms: per (rank, kind, source, row), the turn that wrote it.
        flags: per (rank, source, program).
    """

    turn: tuple[int, ...]
    at: tuple[tuple[int, ...], ...]
    rooms: frozenset[tuple[tuple[int, str, int, int], int]] = frozenset()
    flags: frozenset[tuple[tuple[int, int, int], int]] = frozenset()


class Broken(AssertionError):
    """A row that was read is not of the turn that was awaited."""


@dataclass(frozen=True)
class Walk:
    turns: Sequence[Turn]
    ranks: int
    rules: Rules = Rules()

    def explore(self) -> int:
        """Try every interleaving; return how many worlds there are, and raise if one is broken or stuck."""
        start = World((0,) * self.ranks, tuple((0,) * self.turns[0].programs for _ in range(self.ranks)))
        seen, waiting = {start}, [start]
        while waiting:
            world = waiting.pop()
            following = list(self._next(world))
            assert following or all(turn == len(self.turns) for turn in world.turn), "nobody can take a step"
            fresh = set(following) - seen
            seen |= fresh
            waiting += fresh
        return len(seen)

    def _next(self, world: World) -> Iterator[World]:
        for rank in range(self.ranks):
            if world.turn[rank] == len(self.turns):
                continue
            ended = self._steps(rank)
            if all(step == len(ended) for step in world.at[rank]):
                yield self._leave(world, rank)
                continue
            for program, step in enumerate(world.at[rank]):
                if step < len(ended) and (moved := self._take(world, rank, program, step)) is not None:
                    places = list(world.at[rank])
                    places[program] += 1
                    yield replace(moved, at=(*world.at[:rank], tuple(places), *world.at[rank + 1 :]))

    def _steps(self, rank: int) -> list[tuple[str, int]]:
        peers = [(rank + step) % self.ranks for step in range(1, self.ranks)]
        rows, flags = [("push", peer) for peer in peers], [("flag", peer) for peer in peers]
        pushed = rows + flags if self.rules.flags_after_rows else flags + rows
        return [*pushed, *([("wait", peer) for peer in peers] if self.rules.awaits else []), ("read", 0)]

    def _take(self, world: World, rank: int, program: int, step: int) -> World | None:
        turn = world.turn[rank]
        now = self.turns[turn]
        what, peer = self._steps(rank)[step]
        match what:
            case "push":
                rooms = dict(world.rooms)
                rooms |= {(peer, now.kind, rank, row): turn for row in now.of_program(program)}
                return replace(world, rooms=frozenset(rooms.items()))
            case "flag":
                flags = dict(world.flags) | {(peer, rank, program): turn + 1}
                return replace(world, flags=frozenset(flags.items()))
            case "wait":
                return world if dict(world.flags).get((rank, peer, program), 0) > turn else None
            case _:
                if now.kind == "combine":
                    self._read(world, rank, now.of_program(program))
                return world

    def _leave(self, world: World, rank: int) -> World:
        """End a rank's turn: what its stream does next reads all that a gather brought."""
        turn = world.turn[rank]
        if self.turns[turn].kind == "gather":
            self._read(world, rank, range(self.turns[turn].rows))
        places = (0,) * (self.turns[turn + 1].programs if turn + 1 < len(self.turns) else 0)
        return replace(
            world,
            turn=(*world.turn[:rank], turn + 1, *world.turn[rank + 1 :]),
            at=(*world.at[:rank], places, *world.at[rank + 1 :]),
        )

    def _read(self, world: World, rank: int, rows: Sequence[int]) -> None:
        rooms, turn = dict(world.rooms), world.turn[rank]
        for source in set(range(self.ranks)) - {rank}:
            for row in rows:
                found = rooms.get((rank, self.turns[turn].kind, source, row))
                if found != turn:
                    raise Broken(f"rank {rank} reads row {row} of rank {source} in turn {turn} and finds turn {found}")


def steps(*tokens: tuple[int, int]) -> list[Turn]:
    """Make the turns of attention steps of (rows, programs)."""
    return [Turn(kind, rows, programs) for rows, programs in tokens for kind in ("gather", "combine")]


WALKS = {
    "two ranks, two programs": Walk(steps((2, 2), (2, 2)), 2),
    "two ranks, layer after layer": Walk(steps((1, 1), (1, 1), (1, 1), (1, 1)), 2),
    "two ranks, tokens that change": Walk(steps((2, 2), (1, 1), (3, 2)), 2),
    "three ranks": Walk(steps((1, 1), (1, 1), (1, 1)), 3),
    "three ranks, tokens that change": Walk(steps((2, 2), (1, 1)), 3),
}


@pytest.mark.parametrize("walk", WALKS.values(), ids=WALKS)
def test_no_row_is_lost_stale_or_overwritten_in_any_interleaving(walk: Walk) -> None:
    assert walk.explore() > 100


FAULTS = {
    "nobody waits": (Rules(awaits=False), steps((1, 1))),
    "flags before rows": (Rules(flags_after_rows=False), steps((1, 1))),
    "two gathers in a row, in one room": (Rules(), [Turn("gather", 1, 1), Turn("gather", 1, 1)]),
    "two combines in a row, in one room": (Rules(), [Turn("combine", 2, 2), Turn("combine", 2, 2)]),
}


@pytest.mark.parametrize(("rules", "turns"), FAULTS.values(), ids=FAULTS)
def test_the_walk_finds_what_breaks_the_protocol(rules: Rules, turns: list[Turn]) -> None:
    with pytest.raises(Broken):
        Walk(turns, 2, rules).explore()
