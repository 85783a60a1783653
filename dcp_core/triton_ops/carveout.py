"""Which part of a multiprocessor's memory a kernel leaves to shared memory, and which to its L1 cache. Floor 3."""

from __future__ import annotations

from ctypes import CDLL, c_int, c_void_p
from functools import cache
from typing import Any

_PREFERRED_SHARED_MEMORY_CARVEOUT = 9  # CUfunction_attribute of the driver's API
_ALL = 100  # percent


@cache  # which keeps the kernel: another one, in its place in memory, is asked for as well
def ask_for_shared_memory(compiled: Any) -> None:
    """Ask that whenever this kernel runs, multiprocessors are divided as for a kernel that takes all the shared memory there is.

    An attention kernel takes much of it, and a multiprocessor is divided anew only once it is idle: between two kernels that
    want it divided alike, the second can begin where the first still runs. It pays for short kernels on every multiprocessor
    (words of 64 requests: a decode step of 13.8 instead of 14.4 µs between H200s), and not for those that use L1 (rows of 1024:
    52.3 instead of 51.5).

    Args:
        compiled: what launching a Triton kernel returns; nothing in the interpreter.

    Raises:
        RuntimeError: if the driver refuses.
    """
    if compiled is None:
        return
    function = c_void_p(compiled.function)
    if error := _driver().cuFuncSetAttribute(function, c_int(_PREFERRED_SHARED_MEMORY_CARVEOUT), c_int(_ALL)):
        raise RuntimeError(f"the CUDA driver refused to set how a kernel divides shared memory and L1: error {error}")


@cache
def _driver() -> CDLL:
    return CDLL("libcuda.so.1")
