"""NVML, asked by name: what a device, its driver or this machine cannot tell is None, never an exception."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from typing import Any


@cache
def library() -> Any:
    """Return NVML, initialised for the rest of the process; None without the package, the library or a driver."""
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    return pynvml


def ask(call: str, *arguments: object) -> Any:
    """Call NVML by name; None where this device, driver or version has no answer."""
    nvml = library()
    function: Callable[..., Any] | None = getattr(nvml, call, None)
    if function is None:
        return None
    try:
        return function(*arguments)
    except nvml.NVMLError:
        return None


def visible_handles() -> list[Any]:
    """Return NVML's handles of the devices that CUDA would show this process, in its order.

    CUDA_VISIBLE_DEVICES lists indices or unique beginnings of UUIDs; CUDA stops at the first that it does not know.
    """
    all_handles = [ask("nvmlDeviceGetHandleByIndex", index) for index in range(ask("nvmlDeviceGetCount") or 0)]
    wanted = os.environ.get("CUDA_VISIBLE_DEVICES")
    if wanted is None:
        return [handle for handle in all_handles if handle is not None]
    handles: list[Any] = []
    for word in map(str.strip, wanted.split(",")):
        if word.isascii() and word.isdigit():
            matches = all_handles[int(word) : int(word) + 1]
        else:
            matches = [
                handle for handle in all_handles if word and str(ask("nvmlDeviceGetUUID", handle)).startswith(word)
            ]
        if len(matches) != 1:
            break
        handles += matches
    return handles
