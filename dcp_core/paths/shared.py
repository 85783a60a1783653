"""A batch of several kinds of request that attend apart, between one gather and one combine for all of them. Floor 5."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate

from torch import Tensor

from dcp_core.cache import PageTable
from dcp_core.lse import LseBase, Partial
from dcp_core.paths.base import PlanStage, Site, Stage, Step
from dcp_core.paths.gathered import GatheredRows, Local, rows_for
from dcp_core.shapes import Request, Workload


@dataclass(frozen=True, slots=True)
class Kind:
    """Some requests of a batch, and how they attend. Every request is of exactly one kind."""

    name: str
    takes: Callable[[Request], bool]
    local: Local


class SharedRecipe:
    """Each kind attends to its own rows of what was gathered, and leaves its partial in its rows of what is combined."""

    def __init__(self, site: Site, kinds: Sequence[Kind]) -> None:
        self._site, self._kinds = site, tuple(kinds)
        self._rows = rows_for(site, 0)
        self._parts: tuple[Part, ...] = ()

    def prepare(self, workload: Workload, table: PageTable) -> tuple[PlanStage, ...]:
        """Take a batch whose requests of each kind are neighbours, as engines order them.

        Raises:
            ValueError: for another order.
        """
        tokens = workload.new_tokens
        if self._rows.lse.shape[0] != tokens:
            self._rows = rows_for(self._site, tokens)
        self._site.exchange.reserve(tokens)
        parts, planning = [], []
        for kind in self._kinds:
            chosen = [index for index, request in enumerate(workload.requests) if kind.takes(request)]
            if not chosen:
                continue
            part = Part(kind, self._rows, neighbours(workload, chosen))
            own = Workload(tuple(workload.requests[index] for index in chosen))
            planned = kind.local.prepare(own, table.select(chosen), part.rows)
            planning += [PlanStage(f"{kind.name}: {stage.name}", stage.run) for stage in planned]
            parts.append(part)
        self._parts = tuple(parts)
        return tuple(planning)

    def stages(self) -> tuple[Stage, ...]:
        """Return gather, what each kind does, combine, and what each kind has left to do."""
        variant = self._site.exchange.variant(self._rows.lse.shape[0])
        return (
            Stage("gather", self._gather, communicates=True, variant=variant),
            *(stage for part in self._parts for stage in part.attend()),
            Stage("combine", self._combine, communicates=True, variant=variant),
            *(stage for part in self._parts for stage in part.finish()),
        )

    def result(self, out: Tensor) -> Partial:
        """Return ``out`` with the natural LSE that the last step left."""
        return Partial(out, self._rows.lse)

    def _gather(self, step: Step) -> None:
        self._rows.q = self._site.exchange.gather_heads(step.q)

    def _combine(self, step: Step) -> None:
        base = self._parts[0].rows.partial.base
        for part in self._parts:
            part.settle(base)
        self._site.exchange.combine(self._rows.room.relabelled(base), into=Partial(step.out, self._rows.lse))


class Part:
    """The rows of one kind in a batch, and its stages on them."""

    def __init__(self, kind: Kind, whole: GatheredRows, where: slice) -> None:
        self._kind, self._whole, self._where = kind, whole, where
        self.rows = whole.part(where)

    def attend(self) -> tuple[Stage, ...]:
        """Return the kind's stages between gather and combine."""
        return self._on_part((*self._kind.local.attend(), *self._kind.local.apart()))

    def finish(self) -> tuple[Stage, ...]:
        """Return the kind's stages after the combine."""
        return self._on_part(self._kind.local.finish())

    def settle(self, base: LseBase) -> None:
        """See that the kind's partial is in its rows of the whole, its LSE in ``base``."""
        made, room = self.rows.partial, self.rows.room
        if made.out.data_ptr() != room.out.data_ptr():
            room.out.copy_(made.out)
            room.lse.copy_(made.lse)
        if made.base is not base:
            room.lse.mul_(made.base.to_natural / base.to_natural)

    def _on_part(self, stages: Sequence[Stage]) -> tuple[Stage, ...]:
        def on_part(run: Callable[[Step], None]) -> Callable[[Step], None]:
            return lambda step: run(self._step(step))

        return tuple(Stage(f"{self._kind.name}: {stage.name}", on_part(stage.run)) for stage in stages)

    def _step(self, step: Step) -> Step:
        where = self._where
        self.rows.q = self._whole.q[where]
        return Step(step.q[where], step.k_new[where], step.v_new[where], step.cache, step.out[where])


def neighbours(workload: Workload, chosen: Sequence[int]) -> slice:
    """Return the rows of some requests that stand one after another.

    Raises:
        ValueError: if others stand between them.
    """
    if chosen[-1] - chosen[0] + 1 != len(chosen):
        raise ValueError(
            f"batching shared takes a batch whose decodes stand together, and so its longer requests, not {workload}"
        )
    starts = list(accumulate(workload.new_lens, initial=0))
    return slice(starts[chosen[0]], starts[chosen[-1] + 1])
