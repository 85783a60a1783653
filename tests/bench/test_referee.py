"""What the second timer sees is believed once it saw as much twice, and never before; a profiler on paper shows it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from bench import referee
from bench.clock import REPETITIONS, Scripted


def profiler(counts: list[int]) -> Any:
    """Return a profiler that sees so many pieces of work, each of 2 µs, one time after another."""
    left = iter(counts)

    @contextmanager
    def profile(**_: object) -> Iterator[Any]:
        spans = [SimpleNamespace(start=10.0 * place, end=10.0 * place + 2) for place in range(next(left))]
        device = SimpleNamespace(name="CUDA")
        yield SimpleNamespace(events=lambda: [SimpleNamespace(device_type=device, time_range=one) for one in spans])

    return profile


def audited(monkeypatch: pytest.MonkeyPatch, counts: list[int]) -> Any:
    monkeypatch.setattr(referee, "profile", profiler(counts))
    clock: Any = Scripted(lambda *_: 2.5)
    return referee._audited("attention", lambda: None, clock)


def test_what_was_seen_in_as_many_pieces_twice_is_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    found = audited(monkeypatch, [1, REPETITIONS, 3, REPETITIONS, REPETITIONS])
    assert (found.events_us, found.cupti_us, found.kernels) == (2.5, 2.0, 1)


def test_what_never_was_is_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RuntimeError, match="attention in another number of pieces each time, 6 times"):
        audited(monkeypatch, [1, REPETITIONS, 3, 2 * REPETITIONS, 4, REPETITIONS])
