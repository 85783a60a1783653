"""The exchange of a rank that has nobody to talk to: dcp 1. Floor 4."""

from __future__ import annotations

from torch import Tensor

from dcp_core.lse import Partial
from dcp_core.settings import ExchangeName


class Alone:
    """A group of one: queries are gathered already, and a partial is the whole."""

    name = ExchangeName.ALONE

    def reserve(self, tokens: int) -> None:
        """Need no room."""

    def variant(self, tokens: int) -> str:
        """Know one way only."""
        return ""

    def gather_heads(self, q: Tensor) -> Tensor:
        """Return ``q``."""
        return q

    def combine(self, partial: Partial, *, into: Partial | None = None) -> Partial:
        """Return the partial with a natural LSE, copied to ``into`` if given."""
        natural = partial.natural()
        if into is None:
            return natural
        into.out.copy_(natural.out)
        into.lse.copy_(natural.lse)
        return into
