"""What the paths of a DCP group share: gathered queries in, a partial of all heads out, combined into the result. Floor 5."""

from __future__ import annotations

from torch import Tensor

from dcp_core.lse import Partial
from dcp_core.paths.base import Site, Stage, Step


class GatheredStep:
    """The buffers of a step between gather and combine.

    Attributes:
        q: gathered queries ``[T, H, D]``, after the gather.
        room: a partial ``[T, H, D]`` to write to.
        partial: what attention made of it, with the kernel's base; often ``room`` itself.
    """

    def __init__(self, site: Site) -> None:
        self._site = site
        self._tokens = -1
        self.reserve(0)

    def reserve(self, tokens: int) -> None:
        """Make room for ``tokens`` rows: the same room as long as the number is, so that a captured graph stays right."""
        self._site.exchange.reserve(tokens)
        if self._tokens == tokens:
            return
        self._tokens = tokens
        self.room = self.partial = self._site.partial(tokens, self._site.heads.gathered)
        self.q = self.room.out
        self.lse = self._site.own_lse(tokens)

    def around(self, *attention: Stage) -> tuple[Stage, ...]:
        """Return gather, the given stages, and the combine that ends in ``step.out``."""
        return (self.gather_stage(), *attention, Stage("combine", self._combine_to_out, communicates=True))

    def gather_stage(self) -> Stage:
        """Return the stage that gathers ``step.q`` into ``q``."""
        return Stage("gather", self._gather, communicates=True)

    def result(self, out: Tensor) -> Partial:
        """Return ``out`` with the natural LSE that combining left."""
        return Partial(out, self.lse)

    def _gather(self, step: Step) -> None:
        self.q = self._site.exchange.gather_heads(step.q)

    def _combine_to_out(self, step: Step) -> None:
        self._site.exchange.combine(self.partial, into=Partial(step.out, self.lse))
