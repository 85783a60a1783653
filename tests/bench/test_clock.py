"""Clocks: what takes the time of a call, on the host or on paper."""

from __future__ import annotations

import random

import pytest
import torch

from bench.clock import Clock, HostClock, Scripted, floor_us

CLOCKS = [HostClock(), Scripted(lambda count, noise: 5.0)]


@pytest.mark.parametrize("clock", CLOCKS, ids=lambda clock: clock.name)
def test_every_repetition_is_aligned_called_and_timed(clock: Clock) -> None:
    events: list[str] = []
    times = clock.prepare(lambda: events.append("call"), lambda: events.append("align"))(4)
    assert events == ["align", "call"] * 4
    assert len(times) == 4
    assert all(time >= 0 for time in times)
    assert clock.flushed_bytes == 0


def test_the_host_clock_reads_microseconds(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter([1_000, 4_500, 10_000, 17_000])
    monkeypatch.setattr("bench.clock.time.perf_counter_ns", lambda: next(ticks))
    assert HostClock().prepare(lambda: None)(2) == [3.5, 7.0]


def test_the_host_clock_leaves_aligning_out_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0]

    def wait() -> None:
        now[0] += 1_000_000

    def work() -> None:
        now[0] += 2_000

    monkeypatch.setattr("bench.clock.time.perf_counter_ns", lambda: now[0])
    assert HostClock().prepare(work, wait)(3) == [2.0, 2.0, 2.0]


def test_the_same_script_gives_the_same_samples() -> None:
    def drifting(count: int, noise: random.Random) -> float:
        return 100 + count + noise.gauss(0, 1)

    one, other = (Scripted(drifting, seed=3) for _ in range(2))
    sample = one.prepare(lambda: None)
    first = sample(10) + sample(10)
    assert first == other.prepare(lambda: None)(20)
    assert first != Scripted(drifting, seed=4).prepare(lambda: None)(20)
    assert first[-1] > first[0] + 10


def test_the_floor_is_the_median_for_the_smallest_work() -> None:
    assert floor_us(Scripted(lambda count, noise: float(count)), torch.device("cpu")) == 15.0
    assert 0 < floor_us(HostClock(), torch.device("cpu")) < 10_000
