"""A part of a sweep, for one of several machines: whole batches, chosen by what they are alone. Standard library only."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from typing import Self

from bench.errors import UsageError
from dcp_core.settings import Case

MOST = 9999
"""Parts of a sweep."""


@dataclass(frozen=True, slots=True)
class Shard:
    """Part ``number`` of ``count``, counted from 1.

    A batch of one shape on one layout lies whole in one part, whatever settings it is measured with and whatever else the sweep
    asks for: what competes meets on one device.

    Raises:
        ValueError: for a part that there is not.
    """

    number: int
    count: int

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.count <= MOST:
            raise ValueError(f"parts are numbered from 1 to their count, at most {MOST}, not {self}")

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``2/8``.

        Raises:
            UsageError: for anything else, or a part that there is not.
        """
        match = re.fullmatch(r"([0-9]{1,5})/([0-9]{1,5})", text.strip())
        try:
            return cls(*map(int, match.groups())) if match else cls(0, 0)
        except ValueError:
            raise UsageError(
                f"--shard is a part and their count, 1/8 to 8/8 and {MOST} at most, not {text[:40]!r}"
            ) from None

    def holds(self, case: Case) -> bool:
        """Tell whether a case belongs to this part."""
        data = case.to_json()
        del data["settings"], data["shape"]["name"]
        digest = hashlib.sha256(json.dumps(data, sort_keys=True, separators=(",", ":")).encode()).digest()
        return int.from_bytes(digest[:8], "big") % self.count == self.number - 1

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"
