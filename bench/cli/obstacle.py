"""What is known to stand in a case's way here before any worker starts: no GPU, or too little memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench.estimate import local_ranks
from bench.need import case_bytes
from dcp_core.memory import format_size
from dcp_core.settings import KernelName

if TYPE_CHECKING:
    from dcp_core.settings import Case


def obstacle(case: Case, *, on_gpu: bool, memory_bytes: int) -> str:
    """Say why a case will not run here; an empty text if nothing is known to stand in its way.

    Args:
        memory_bytes: of one device.
    """
    settings = case.settings
    for kernel in (settings.kernel, settings.kernel_for_new, settings.kernel_for_decode):
        if kernel is not KernelName.REFERENCE and not on_gpu:
            return f"kernel {kernel} needs a GPU"
    if case_bytes(case, local_ranks(case)) > memory_bytes:
        return f"needs more memory than the {format_size(memory_bytes)} that there are"
    return ""
