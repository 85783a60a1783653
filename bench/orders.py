"""What a supervisor and its workers say to each other: one JSON object a line. Standard library only.

An order is ``{"do": Order, "case": …, "policy": …}``; every rank answers each with one line. Rank 0's holds ``outcome`` (or
``probe``); a rank that has no part in the case says ``idle``; ``poisoned`` means that the worker is of no further use. A race
has ``cases`` instead of one, ``race``, ``rounds`` and ``whole``, and is answered with ``outcomes``, one a case, or with the
``outcome`` that ended it for all. An audit is answered with ``audited``, or an ``outcome`` too. Before the first order a
worker says ``ready``, or why it is ``unfit``. Before an answer rank 0 may say what it is ``compiling``, as often as it likes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

REPLY_VARIABLE = "DCPBENCH_REPLY_FD"
"""Names the file descriptor on which a worker answers: its standard output belongs to the libraries it loads."""


SUPERVISOR_VARIABLE = "DCPBENCH_SUPERVISOR_PID"
"""Names the process that started a worker: the worker ends when that one does, however it does."""


class Order(StrEnum):
    """What a worker is asked to do with a case; ``probe`` asks only what runs here."""

    MEASURE = "measure"
    VERIFY = "verify"
    RACE = "race"
    AUDIT = "audit"
    PROBE = "probe"


@dataclass(frozen=True, slots=True)
class Compiling:
    """A kernel that a worker has been compiling for ``seconds``, or has compiled in them."""

    kernel: str
    seconds: float
    ended: bool

    @classmethod
    def read(cls, said: Mapping[str, object]) -> Compiling:
        """Read what a worker says.

        Raises:
            ValueError: for what is none of this.
        """
        match said:
            case {"kernel": str(kernel), "seconds": int() | float() as seconds, "ended": bool(ended)} if seconds >= 0:
                return cls(kernel, float(seconds), ended)
        raise ValueError("a worker says what it compiles, for how long, and whether that has ended")


def unheard(_: Compiling) -> None:
    """Hear what a worker compiles, and tell nobody."""
