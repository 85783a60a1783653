"""Tells when kernels are compiled: FlashInfer's as they are loaded, Triton's at their first launch."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from bench.orders import Compiling

AFTER_S = 1.0
"""A kernel is told of once this has passed: what a cache on disk answers is not worth a word."""


class Compiles:
    """Watches one kernel after another, and tells of those that take their time: that they began, and that they ended."""

    def __init__(self, tell: Callable[[Compiling], None]) -> None:
        self._tell = tell
        self._kernel, self._began, self._is_told = "", 0.0, False

    @contextmanager
    def of(self, kernel: str) -> Iterator[None]:
        """Watch a kernel for as long as the context lasts."""
        self._kernel, self._began, self._is_told = kernel, time.monotonic(), False
        timer = threading.Timer(AFTER_S, self._late)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
            timer.join()  # lest it tells in the middle of what is told next
            if self._is_told:
                self._tell(Compiling(self._kernel, self._seconds, ended=True))

    @property
    def _seconds(self) -> float:
        return round(time.monotonic() - self._began, 3)

    def _late(self) -> None:
        self._is_told = True
        self._tell(Compiling(self._kernel, self._seconds, ended=False))


def watch(compiles: Compiles) -> None:
    """Have FlashInfer and Triton report to ``compiles``, as far as they are here and let themselves be watched."""
    for library in (_watch_flashinfer, _watch_triton):
        # Of an import, or a version that is unlike those known: the case that needs it will say so.
        with suppress(Exception):
            library(compiles)


def _watch_flashinfer(compiles: Compiles) -> None:
    from flashinfer.jit.core import JitSpec

    build_and_load = JitSpec.build_and_load

    def watched(self: Any, *arguments: Any, **options: Any) -> Any:
        # Its names go on with every type and size that it is compiled for. Another rank may be at it: that is waited for.
        with compiles.of(str(self.name).partition("_dtype_")[0]):
            return build_and_load(self, *arguments, **options)

    JitSpec.build_and_load = watched


def _watch_triton(compiles: Compiles) -> None:
    from triton.runtime.jit import JITFunction

    # Its own hooks would have it write every constant of every kernel as JSON, which may fail.
    do_compile = JITFunction._do_compile

    def watched(self: Any, *arguments: Any, **options: Any) -> Any:
        with compiles.of(str(self.fn.__name__)):
            return do_compile(self, *arguments, **options)

    JITFunction._do_compile = watched
