"""What takes the time of a call: the seam between measuring and the device."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

import torch

from bench.environment import pace

FLUSH_FACTOR = 2
"""Bytes written to cool the L2 cache, as a multiple of its size."""
REPETITIONS = 10
"""Captured in one graph, each with the rendezvous and the cooling before it: the host has no part in what is between them."""

Sampler = Callable[[int], list[float]]
"""Repeats a call so many times, and returns each repetition's time in microseconds."""


class Clock(Protocol):
    """Takes the device time of a call.

    Attributes:
        name: of the timer, as the trial records it.
        flushed_bytes: written before each repetition to cool the L2 cache; 0 if it stays warm.
    """

    name: str
    flushed_bytes: int

    def prepare(self, call: Callable[[], None], align: Callable[[], None] | None = None) -> Sampler:
        """Return what samples a call; capturing it in a graph, say, is done once, here.

        Args:
            call: was made before, so that nothing is compiled or loaded by it now.
            align: made before each repetition, outside the timed region: the ranks' rendezvous.
        """
        ...

    def state(self) -> dict[str, str]:
        """Return what the device tells of its clocks now, as ``bench.environment.pace`` does; asked between samples alone."""
        ...


class HostClock:
    """The host's monotonic clock, for devices that work synchronously. Caches are left as they are."""

    name = "host"
    flushed_bytes = 0

    def prepare(self, call: Callable[[], None], align: Callable[[], None] | None = None) -> Sampler:
        """Return what times each repetition on the host."""

        def sample(count: int) -> list[float]:
            times = []
            for _ in range(count):
                if align is not None:
                    align()
                start = time.perf_counter_ns()
                call()
                times.append((time.perf_counter_ns() - start) / 1e3)
            return times

        return sample

    def state(self) -> dict[str, str]:
        """Return nothing: a CPU's clocks are not asked."""
        return {}


class CudaClock:
    """CUDA events around each repetition, behind a write that empties the L2 cache if asked to be cold.

    With ``graphs`` repetitions are captured, with their rendezvous and their events, and replayed: no launch is in the time,
    and ranks start together. What cannot be captured (a kernel that allocates or synchronises) is timed as it is launched,
    under another timer's name.

    Attributes:
        graphs: True if it replays graphs.
        repetitions: in one graph. Who samples fewer at a time waits for the others in vain.
    """

    def __init__(self, device: torch.device, *, graphs: bool, cold: bool, repetitions: int = REPETITIONS) -> None:
        self.name = "cuda_graph_events" if graphs else "cuda_events"
        self.graphs, self.repetitions, self._device = graphs, repetitions, device
        size = FLUSH_FACTOR * torch.cuda.get_device_properties(device).L2_cache_size if cold else 0
        self._flush = torch.zeros(size, dtype=torch.uint8, device=device)
        self.flushed_bytes = size

    def prepare(self, call: Callable[[], None], align: Callable[[], None] | None = None) -> Sampler:
        """Return what replays a graph of so many repetitions, or launches each."""
        return self._replayed(call, align) if self.graphs else partial(self._launched, call, align)

    def state(self) -> dict[str, str]:
        """Return what NVML tells of the device's clocks."""
        return pace(self._device.index or 0)

    def _replayed(self, call: Callable[[], None], align: Callable[[], None] | None) -> Sampler:
        # External events are recorded by the graph itself, and can be read after each replay.
        pairs = [_events(external=True) for _ in range(self.repetitions)]
        graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize(self._device)
        # thread_local: another thread, as the watchdog of NCCL, may query its events meanwhile.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            for pair in pairs:
                self._repeat(call, align, pair)

        def sample(count: int) -> list[float]:
            times: list[float] = []
            while len(times) < count:
                graph.replay()
                times += self._read(pairs)
            return times[:count]

        return sample

    def _launched(self, call: Callable[[], None], align: Callable[[], None] | None, count: int) -> list[float]:
        """Launch every repetition, then wait once, so that the host stays ahead of the device where it can."""
        pairs = [_events(external=False) for _ in range(count)]
        for pair in pairs:
            self._repeat(call, align, pair)
        return self._read(pairs)

    def _repeat(self, call: Callable[[], None], align: Callable[[], None] | None, pair: _Pair) -> None:
        start, end = pair
        if self.flushed_bytes:
            self._flush.zero_()
        if align is not None:
            align()
        start.record()
        call()
        end.record()

    def _read(self, pairs: Sequence[_Pair]) -> list[float]:
        torch.cuda.synchronize(self._device)
        return [start.elapsed_time(end) * 1e3 for start, end in pairs]


_Pair = tuple[torch.cuda.Event, torch.cuda.Event]


def _events(*, external: bool) -> _Pair:
    start, end = (torch.cuda.Event(enable_timing=True, external=external) for _ in range(2))
    return start, end


class Scripted:
    """A device that exists on paper: calls are made, and take as long as a model of latency says. Needs no GPU.

    Args:
        latency_us: from the number of a repetition, counted over the clock's life, and a generator for its noise.
        seed: of that generator: the same script gives the same samples.
        told: from the number of the repetition to come to what the device tells of its clocks.
    """

    name = "scripted"
    flushed_bytes = 0

    def __init__(
        self,
        latency_us: Callable[[int, random.Random], float],
        *,
        seed: int = 0,
        told: Callable[[int], dict[str, str]] = lambda count: {},
    ) -> None:
        self._latency_us, self._noise, self._count, self._told = latency_us, random.Random(seed), 0, told

    def prepare(self, call: Callable[[], None], align: Callable[[], None] | None = None) -> Sampler:
        """Return what makes every call and returns what the script says each took."""

        def sample(count: int) -> list[float]:
            times = []
            for _ in range(count):
                if align is not None:
                    align()
                call()
                times.append(self._latency_us(self._count, self._noise))
                self._count += 1
            return times

        return sample

    def state(self) -> dict[str, str]:
        """Return what the script says that the device tells now."""
        return self._told(self._count)


def floor_us(clock: Clock, device: torch.device) -> float:
    """Return the median of what a clock reads for the smallest work there is: one element written."""
    element = torch.zeros(1, device=device)

    def smallest() -> None:
        element.zero_()

    smallest()
    return _median_us(clock, smallest)


def empty_us(clock: Clock) -> float:
    """Return the median of what a clock reads where nothing at all is between its beginning and its end."""
    return _median_us(clock, lambda: None)


def _median_us(clock: Clock, call: Callable[[], None]) -> float:
    times = sorted(clock.prepare(call)(31))
    return times[len(times) // 2]
