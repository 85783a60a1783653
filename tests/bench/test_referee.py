"""What the second timer sees is believed once it saw as much twice, and never before; a profiler on paper shows it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from bench import referee, timeline
from bench.audit import NULL, Audited
from bench.clock import REPETITIONS, Scripted
from bench.record import Skipped


def profiler(counts: list[int]) -> Any:
    """Return a profiler that sees so many pieces of work, each of 2 µs, one time after another."""
    left = iter(counts)

    @contextmanager
    def profile(**_: object) -> Iterator[Any]:
        spans = [SimpleNamespace(start=10.0 * place, end=10.0 * place + 2) for place in range(next(left))]
        device = SimpleNamespace(name="CUDA")
        yield SimpleNamespace(
            events=lambda: [SimpleNamespace(device_type=device, time_range=one, name="kernel") for one in spans]
        )

    return profile


def audited(monkeypatch: pytest.MonkeyPatch, counts: list[int]) -> Any:
    monkeypatch.setattr(timeline, "profile", profiler(counts))
    clock: Any = Scripted(lambda *_: 2.5)
    return referee._audited("attention", lambda: None, clock)


def test_what_was_seen_in_as_many_pieces_twice_is_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    found = audited(monkeypatch, [1, REPETITIONS, 3, REPETITIONS, REPETITIONS])
    assert (found.events_us, found.cupti_us, found.kernels) == (2.5, 2.0, 1)


def test_what_never_was_is_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RuntimeError, match="attention in another number of pieces each time, 6 times"):
        audited(monkeypatch, [1, REPETITIONS, 3, 2 * REPETITIONS, 4, REPETITIONS])


def test_a_stage_that_runs_nothing_is_left_out_and_a_step_that_seems_to_is_no_audit() -> None:
    null, step, merge = (Audited(name, 4.0, 1.5, 1) for name in (NULL, "step", "merge"))
    nothing = Audited("fold", 2.5, 0.0, 0)
    assert referee._seen([null, step, nothing, merge]) == [null, step, merge]
    assert isinstance(referee._seen([null, replace(step, kernels=0), merge]), Skipped)
    assert isinstance(referee._seen([replace(null, kernels=0), step, merge]), Skipped)
