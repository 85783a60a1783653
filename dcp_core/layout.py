"""Who holds what: tensor parallelism, decode context parallelism and the interleaving of tokens. Floor 0."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from dcp_core.shapes import ModelShape


class IllegalLayout(ValueError):
    """A parallel layout that a server would not start with: which bound, the value, and the nearest legal choice."""


@dataclass(frozen=True, slots=True)
class RankHeads:
    """Heads of one rank: ``query`` of its own, ``kv`` shared by its DCP group, ``gathered`` query heads after the gather."""

    query: int
    kv: int
    gathered: int


@dataclass(frozen=True, slots=True)
class DcpLayout:
    """How a model's heads and a sequence's tokens are spread over ranks.

    Token ``i`` of a sequence lives on rank ``(i // interleave) % dcp`` of its DCP group. Formulas: vLLM's
    ``get_dcp_local_seq_lens``, for which every block of ``dcp * interleave`` tokens gives each rank ``interleave`` of them.

    Raises:
        IllegalLayout: if tp, dcp or interleave is not a positive whole number.

    Examples:
        >>> layout = DcpLayout(tp=8, dcp=2)
        >>> layout.check(ModelShape.preset("qwen3-235b-a22b"))  # would a server start with it? it would
        >>> layout.heads(ModelShape.preset("qwen3-235b-a22b"))
        RankHeads(query=8, kv=1, gathered=16)
        >>> layout.owner(5), layout.local_len(9, rank=0), layout.positions(9, rank=1)
        (1, 5, [1, 3, 5, 7])
    """

    tp: int
    dcp: int = 1
    interleave: int = 1

    def __post_init__(self) -> None:
        for field in ("tp", "dcp", "interleave"):
            value = getattr(self, field)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise IllegalLayout(f"{field} should be a positive whole number, not {value!r}")

    def __str__(self) -> str:
        spread = f", interleave {self.interleave}" if self.interleave > 1 else ""
        return f"tp {self.tp}, dcp {self.dcp}{spread}"

    @property
    def canonical(self) -> DcpLayout:
        """This layout with interleave 1 where it means nothing, at dcp 1: equal for layouts that hold everything alike."""
        return replace(self, interleave=1) if self.dcp == 1 < self.interleave else self

    def owner(self, position: int) -> int:
        """Return the rank that holds the token at ``position``."""
        _check_count("a position", position)
        return position // self.interleave % self.dcp

    def local_len(self, total: int, rank: int) -> int:
        """Return how many of a sequence's first ``total`` tokens live on ``rank``."""
        self._check_rank(rank)
        _check_count("a sequence's length", total)
        whole, rest = divmod(total, self.dcp * self.interleave)
        return whole * self.interleave + min(max(rest - rank * self.interleave, 0), self.interleave)

    def local_index(self, position: int) -> int:
        """Return where the owner of ``position`` keeps that token among its own."""
        _check_count("a position", position)
        block, inside = divmod(position, self.dcp * self.interleave)
        return block * self.interleave + inside % self.interleave

    def position(self, local_index: int, rank: int) -> int:
        """Return the position in the sequence of a rank's local token: the inverse of ``local_index``."""
        self._check_rank(rank)
        _check_count("a local index", local_index)
        block, inside = divmod(local_index, self.interleave)
        return block * self.dcp * self.interleave + rank * self.interleave + inside

    def positions(self, total: int, rank: int) -> list[int]:
        """Return the positions, ascending, of the tokens among the first ``total`` that live on ``rank``."""
        return [self.position(index, rank) for index in range(self.local_len(total, rank))]

    def heads(self, shape: ModelShape) -> RankHeads:
        """Return the heads of one rank.

        The KV heads are spread over the ``tp / dcp`` DCP groups, and kept whole by every rank of a group. Where DCP is
        legal in a server that is one head; a synthetic group may hold several, and then each rank's query heads attend
        to all of them equally.

        Raises:
            IllegalLayout: if the heads do not divide.
        """
        if problem := self._indivisible(shape):
            divided = [tp for tp in _divisors(shape.q_heads) if not DcpLayout(tp, self.dcp)._indivisible(shape)]
            near = f"the nearest tp that does is {_nearest(self.tp, divided)}" if divided else "no tp would do"
            raise IllegalLayout(f"{shape.name} with {self}: {problem}; for dcp {self.dcp} {near}")
        query, groups = shape.q_heads // self.tp, self.tp // self.dcp
        return RankHeads(query, max(1, shape.kv_heads // groups), query * self.dcp)

    def _indivisible(self, shape: ModelShape) -> str | None:
        """Say why the heads cannot be spread over the ranks, each holding whole heads and as many as any other."""
        tp, dcp, kv_heads = self.tp, self.dcp, shape.kv_heads
        if shape.q_heads % tp:
            return f"tp must divide the {shape.q_heads} query heads"
        if tp % dcp:
            return "dcp must divide tp, so that ranks form whole groups"
        groups, query = tp // dcp, shape.q_heads // tp
        if groups % kv_heads and kv_heads % groups:
            return f"tp / dcp = {groups} and the {kv_heads} KV heads must divide one another"
        if groups < kv_heads and query % (kv_heads // groups):
            return f"{query} query heads per rank cannot share {kv_heads // groups} KV heads"
        return None

    def check(self, shape: ModelShape) -> None:
        """Refuse a layout with which no server would run this model.

        The bounds are vLLM's for GQA, and ours: each DCP group must lie within the ranks that share one KV head.

        Raises:
            IllegalLayout: naming the bound, the value and the nearest legal choice.
        """
        if not isinstance(shape, ModelShape):
            raise IllegalLayout(f"a layout is checked against a ModelShape, not {shape!r}")
        if problem := self._problem(shape):
            raise IllegalLayout(f"{shape.name} with {self}: {problem}; {self._advice(shape)}")

    def _problem(self, shape: ModelShape) -> str | None:
        tp, dcp, kv_heads = self.tp, self.dcp, shape.kv_heads
        if shape.q_heads % tp:
            return f"tp must divide the {shape.q_heads} query heads"
        if tp % kv_heads and kv_heads % tp:
            return f"tp {tp} and the {kv_heads} KV heads must divide one another"
        if dcp == 1:
            return None
        if tp <= kv_heads:
            return f"dcp > 1 needs tp above the {kv_heads} KV heads, so that ranks hold copies of one head"
        if dcp > tp // kv_heads:
            return f"dcp can be at most tp / kv_heads = {tp // kv_heads}, the ranks that share a KV head"
        if (tp // kv_heads) % dcp:
            return f"dcp must divide tp / kv_heads = {tp // kv_heads}, the ranks that share a KV head"
        if shape.group % dcp:
            return f"dcp must divide the {shape.group} query heads of each KV head"
        return None

    def _advice(self, shape: ModelShape) -> str:
        """Name the nearest legal dcp at this tp, or else the nearest legal tp for this dcp."""
        dcps = legal_dcps(shape, self.tp)
        if dcps and (self.dcp == 1 or dcps != [1]):
            return f"the nearest legal choice at tp {self.tp} is dcp {_nearest(self.dcp, dcps[::-1])}"
        only = f"at tp {self.tp} only dcp 1 is legal; " if dcps else ""
        tps = [tp for tp in _divisors(shape.q_heads) if DcpLayout(tp, self.dcp)._problem(shape) is None]
        if not tps:
            best = _nearest(self.dcp, _divisors(shape.group))
            return f"{only}no tp would do for dcp {self.dcp}, which must divide {shape.group}, as {best} does"
        which = "smallest" if self.tp < tps[0] else "nearest legal"
        return f"{only}the {which} tp for dcp {self.dcp} is {_nearest(self.tp, tps)}"

    def _check_rank(self, rank: int) -> None:
        if not isinstance(rank, int) or not 0 <= rank < self.dcp:
            raise IllegalLayout(f"rank {rank} is outside a DCP group of {self.dcp} (ranks 0 to {self.dcp - 1})")


def _check_count(what: str, value: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise IllegalLayout(f"{what} is a whole number from 0, not {value!r}")


def legal_dcps(shape: ModelShape, tp: int) -> list[int]:
    """Return every dcp size with which a server would run this model at ``tp``, ascending; empty if tp itself is illegal."""
    return [dcp for dcp in _divisors(shape.group) if DcpLayout(tp, dcp)._problem(shape) is None]


def _divisors(number: int) -> list[int]:
    return [divisor for divisor in range(1, number + 1) if number % divisor == 0]


def _nearest(wanted: int, choices: Sequence[int]) -> int:
    """Return the choice nearest to what was wanted; of two as near, the one that stands first."""
    return min(choices, key=lambda choice: abs(choice - wanted))
