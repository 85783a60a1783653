"""What takes the time of a call: the seam between measuring and the device."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Protocol

import torch

FLUSH_FACTOR = 2
"""Bytes written to cool the L2 cache, as a multiple of its size."""


class Clock(Protocol):
    """Takes the device time of a call.

    Attributes:
        name: of the timer, as the trial records it.
        flushed_bytes: written before each repetition to cool the L2 cache; 0 if it stays warm.
    """

    name: str
    flushed_bytes: int

    def prepare(self, call: Callable[[], None]) -> Callable[[], None]:
        """Return what to repeat instead of ``call``: the same work, captured in a graph, say."""
        ...

    def sample(self, call: Callable[[], None], count: int, align: Callable[[], None] | None = None) -> list[float]:
        """Repeat a prepared call, and return each repetition's time in microseconds.

        ``align`` is run before each repetition, outside the timed region: the ranks' rendezvous.
        """
        ...


class HostClock:
    """The host's monotonic clock, for devices that work synchronously. Caches are left as they are."""

    name = "host"
    flushed_bytes = 0

    def prepare(self, call: Callable[[], None]) -> Callable[[], None]:
        """Return the call itself."""
        return call

    def sample(self, call: Callable[[], None], count: int, align: Callable[[], None] | None = None) -> list[float]:
        """Time each repetition on the host."""
        times = []
        for _ in range(count):
            if align is not None:
                align()
            start = time.perf_counter_ns()
            call()
            times.append((time.perf_counter_ns() - start) / 1e3)
        return times


class CudaClock:
    """CUDA events around each repetition, behind a write that empties the L2 cache if asked to be cold.

    With ``graphs`` the call is captured once and replayed, so that its launches cost the device nothing; what cannot be
    captured (a kernel that allocates or synchronises) is timed as it is launched, under another timer's name.
    """

    def __init__(self, device: torch.device, *, graphs: bool, cold: bool) -> None:
        self.name = "cuda_graph_events" if graphs else "cuda_events"
        self._graphs, self._device = graphs, device
        size = FLUSH_FACTOR * torch.cuda.get_device_properties(device).L2_cache_size if cold else 0
        self._flush = torch.zeros(size, dtype=torch.uint8, device=device)
        self.flushed_bytes = size

    def prepare(self, call: Callable[[], None]) -> Callable[[], None]:
        """Capture the call in a graph if asked to; the call has run before, so nothing is compiled or loaded inside."""
        if not self._graphs:
            return call
        graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize(self._device)
        # thread_local: another thread, as the watchdog of NCCL, may query its events meanwhile.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            call()
        return graph.replay

    def sample(self, call: Callable[[], None], count: int, align: Callable[[], None] | None = None) -> list[float]:
        """Launch every repetition, then wait once, so that the host stays ahead of the device."""
        starts, ends = ([torch.cuda.Event(enable_timing=True) for _ in range(count)] for _ in range(2))
        for start, end in zip(starts, ends, strict=True):
            if self.flushed_bytes:
                self._flush.zero_()
            if align is not None:
                align()
            start.record()
            call()
            end.record()
        torch.cuda.synchronize(self._device)
        return [start.elapsed_time(end) * 1e3 for start, end in zip(starts, ends, strict=True)]


class Scripted:
    """A device that exists on paper: calls are made, and take as long as a model of latency says. Needs no GPU.

    Args:
        latency_us: from the number of a repetition, counted over the clock's life, and a generator for its noise.
        seed: of that generator: the same script gives the same samples.
    """

    name = "scripted"
    flushed_bytes = 0

    def __init__(self, latency_us: Callable[[int, random.Random], float], *, seed: int = 0) -> None:
        self._latency_us, self._noise, self._count = latency_us, random.Random(seed), 0

    def prepare(self, call: Callable[[], None]) -> Callable[[], None]:
        """Return the call itself."""
        return call

    def sample(self, call: Callable[[], None], count: int, align: Callable[[], None] | None = None) -> list[float]:
        """Make every call and return what the script says each took."""
        times = []
        for _ in range(count):
            if align is not None:
                align()
            call()
            times.append(self._latency_us(self._count, self._noise))
            self._count += 1
        return times


def floor_us(clock: Clock, device: torch.device) -> float:
    """Return the median of what a clock reads for the smallest work there is: one element written."""
    element = torch.zeros(1, device=device)

    def smallest() -> None:
        element.zero_()

    smallest()
    times = sorted(clock.sample(clock.prepare(smallest), 31))
    return times[len(times) // 2]
