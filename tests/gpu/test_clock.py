"""The clock of a CUDA device: what it reads for work whose length is known, cold and warm, in graphs and launched."""

from __future__ import annotations

from statistics import median

import pytest
import torch

from bench.clock import REPETITIONS, CudaClock, empty_us, floor_us

pytestmark = pytest.mark.gpu

DEVICE = torch.device("cuda", 0)


def copy_of(size: int) -> tuple[torch.Tensor, torch.Tensor]:
    source = torch.zeros(size, dtype=torch.uint8, device=DEVICE)
    return source, torch.empty_like(source)


@pytest.mark.parametrize("graphs", [True, False])
def test_as_many_samples_as_asked_each_of_one_call(graphs: bool) -> None:
    calls = torch.zeros(1, device=DEVICE)
    sample = CudaClock(DEVICE, graphs=graphs, cold=True).prepare(lambda: calls.add_(1))
    calls.zero_()
    times = sample(25)
    assert len(times) == 25
    assert all(time > 0 for time in times)
    assert int(calls) == (3 * REPETITIONS if graphs else 25)


def test_what_is_done_before_a_repetition_is_not_in_its_time() -> None:
    source, target = copy_of(1 << 30)
    element = torch.zeros(1, device=DEVICE)
    clock = CudaClock(DEVICE, graphs=True, cold=False)
    with_rendezvous = median(clock.prepare(element.zero_, lambda: target.copy_(source))(30))
    copying = median(clock.prepare(lambda: target.copy_(source))(30))
    assert with_rendezvous < copying / 10


def test_twice_the_work_takes_twice_the_time() -> None:
    source, target = copy_of(1 << 29)

    def copy() -> None:
        target.copy_(source)

    def twice() -> None:
        copy()
        copy()

    clock = CudaClock(DEVICE, graphs=True, cold=False)
    once, both = (median(clock.prepare(work)(30)) for work in (copy, twice))
    assert 1.9 < both / once < 2.1


def times_cold_and_warm(size: int) -> dict[bool, float]:
    source, target = copy_of(size)
    times = {}
    for cold in (False, True):
        clock = CudaClock(DEVICE, graphs=True, cold=cold)
        assert clock.flushed_bytes == (2 * torch.cuda.get_device_properties(DEVICE).L2_cache_size if cold else 0)
        times[cold] = median(clock.prepare(lambda: target.copy_(source))(50))
    return times


def test_reading_again_what_fits_the_cache_is_slower_when_it_was_cooled() -> None:
    times = times_cold_and_warm(1 << 23)
    assert times[True] > 1.2 * times[False]


def test_what_is_far_larger_than_the_cache_takes_as_long_cold_as_warm() -> None:
    times = times_cold_and_warm(1 << 30)
    assert times[True] == pytest.approx(times[False], rel=0.02)


def test_inside_a_graph_the_floor_is_lower_than_launched() -> None:
    floors = [floor_us(CudaClock(DEVICE, graphs=graphs, cold=False), DEVICE) for graphs in (True, False)]
    assert 0 < floors[0] < floors[1]


@pytest.mark.parametrize("graphs", [True, False])
def test_nothing_at_all_reads_less_than_the_smallest_kernel(graphs: bool) -> None:
    clock = CudaClock(DEVICE, graphs=graphs, cold=True)
    assert 0 <= empty_us(clock) < floor_us(clock, DEVICE)


def test_the_clock_tells_at_what_pace_the_device_runs() -> None:
    state = CudaClock(DEVICE, graphs=True, cold=False).state()
    assert int(state["sm_mhz"]) > 0
    assert state["event_reasons"]
    assert int(state["temperature_c"]) > 0
    assert int(state["power_w"]) > 0
