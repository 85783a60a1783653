"""What cases are measured on, as it is told without torch."""

from __future__ import annotations

import os
from dataclasses import dataclass

from bench.record import Environment


@dataclass(frozen=True, slots=True)
class Machine:
    """Processes to form groups of, each with a device of one kind.

    Args:
        ranks: so many processes.
        device_name: empty without a GPU.
        memory_bytes: of the smallest device, or of the host without any.
    """

    ranks: int
    environment: Environment
    device_name: str
    memory_bytes: int

    @classmethod
    def here(cls, ranks: int) -> Machine:
        """Describe the machine that this process runs on."""
        from bench.environment import devices, fingerprint

        found = devices()
        if not found:
            return cls(ranks, fingerprint(False), "", os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
        return cls(ranks, fingerprint(True), found[0].name, min(device.total_bytes for device in found))
