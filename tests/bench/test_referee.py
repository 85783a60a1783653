"""What the second timer sees is believed once it saw as much twice, and never before; a device on paper shows it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from statistics import median
from types import SimpleNamespace
from typing import Any

import pytest

from bench import referee, timeline
from bench.audit import NULL, Audited
from bench.clock import REPETITIONS, Sampler
from bench.measure import Ready
from bench.policy import Policy
from bench.record import Skipped
from bench.referee import CAPTURES, UNSEEN, Referee
from bench.timeline import ATTEMPTS
from dcp_core.mesh import Mesh
from tests.bench.cases import tiny

COOLING_US, MEETING_US, NULL_US = 40.0, 9.0, 2.0
LATE_US = (1.0, 14.0, 3.0)
"""After the end of the kernel by which ranks meet what follows it begins."""
HERE = threading.local()
"""Of the thread that is a rank: its device."""


@dataclass
class Device:
    """A device on paper: pieces of work take as long as they say, and CUPTI sees all but what it misses.

    Args:
        own_us: what events read beyond the work between them, in one repetition of a graph after another.
        missed: pieces that CUPTI does not see, at each time that it watches.
    """

    own_us: Sequence[float] = (2.5,)
    missed: Sequence[int] = ()
    now: float = 0.0
    captures: int = 0
    watched: int = 0
    repetitions: int = 0
    seen: list[Any] = field(default_factory=list)

    flushed_bytes, name = 1, "paper"

    def run(self, us: float, pieces: int = 1) -> None:
        for _ in range(pieces):
            self.seen.append(SimpleNamespace(start=self.now, end=self.now + us / pieces))
            self.now += us / pieces

    def prepare(self, call: Callable[[], None], align: Callable[[], None] | None = None) -> Sampler:
        self.captures += 1

        def sample(count: int) -> list[float]:
            times = []
            for place in range(count):
                self.run(COOLING_US)
                if align is not None:
                    align()
                start = self.now
                call()
                times.append(self.now - start + self.own_us[place % len(self.own_us)])
                self.repetitions += 1
                self.now += 1.0
            return times

        return sample

    def state(self) -> dict[str, str]:
        return {}


class OnPaper(Referee):
    def nothing(self) -> None:
        HERE.device.run(NULL_US)


@contextmanager
def profile(**_: object) -> Iterator[Any]:
    device, kind = HERE.device, SimpleNamespace(name="CUDA")
    device.seen.clear()
    missed = device.missed[device.watched] if device.watched < len(device.missed) else 0
    yield SimpleNamespace(
        events=lambda: [
            SimpleNamespace(device_type=kind, time_range=one, name="kernel") for one in device.seen[missed:]
        ]
    )
    device.watched += 1


Call = Callable[[Device], None]


def audited(monkeypatch: pytest.MonkeyPatch, device: Device, call: Call) -> Audited | None:
    """Time a call on one rank."""
    monkeypatch.setattr(timeline, "profile", profile)
    HERE.device = device
    return OnPaper(device, Mesh.alone()).audited("attention", lambda: call(device))


def between(monkeypatch: pytest.MonkeyPatch, devices: Sequence[Device], calls: Sequence[Call]) -> list[Any]:
    """Time a call between ranks that wait wherever they meet: what each found, or the error that it ended with."""
    monkeypatch.setattr(timeline, "profile", profile)
    group = Mesh.simulated(len(devices))
    assert group.board is not None
    members = group.members()
    for member, device in zip(members, devices, strict=True):
        member.board, member.share = None, partial(group.board.swap, member.rank)  # type: ignore[method-assign]

        def align(device: Device = device, member: Mesh = member) -> None:
            member.share(None)
            device.run(MEETING_US)
            device.now += LATE_US[device.repetitions % len(LATE_US)]

        member.align = align  # type: ignore[method-assign]

    def seat(rank: int) -> Any:
        HERE.device = devices[rank]
        try:
            return OnPaper(devices[rank], members[rank]).audited("gather", lambda: calls[rank](devices[rank]))
        except RuntimeError as error:
            return str(error)

    return group.each(seat)


def attend(device: Device) -> None:
    device.run(50.0, pieces=2)


def test_a_stage_is_timed_in_turn_with_the_smallest_kernel_in_several_captures(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device()
    assert audited(monkeypatch, device, attend) == Audited("attention", 52.5, 50.0, 2, 0.0)
    counted, first, each = 2, 1, 2 * CAPTURES
    assert device.captures == counted + each
    assert device.repetitions == REPETITIONS * (2 * counted + first + each)


def test_what_events_read_by_themselves_is_taken_off_though_it_differs_by_repetition(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lengths_us = iter((10.0, 30.0) * 1000)
    device = Device(own_us=(2.0, 3.0, 2.5, 4.5, 2.5))
    found = audited(monkeypatch, device, lambda device: device.run(next(lengths_us)))
    assert found is not None
    assert found.apart_us == pytest.approx(0.0)
    assert found.events_us - found.cupti_us - median(device.own_us) != pytest.approx(0.0), "medians would be apart"


def test_what_events_miss_of_a_stage_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def ends_later(device: Device) -> None:
        device.run(50.0)
        device.seen[-1].end += 1.5

    found = audited(monkeypatch, Device(), ends_later)
    assert found is not None
    assert (found.apart_us, found.error, found.agrees) == pytest.approx((-1.5, -1.5 / 51.5, True))


def test_what_was_seen_in_as_many_pieces_twice_is_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    counting, device = [0, 0, 0, 0], Device(missed=())
    first, null, again, null_again, last = [7, 0, 3, 0, 0], [2, 0, 0], [0], [1, 0, 0], [0, 0]
    device.missed = [*counting, *first, *null, *again, *null_again, *last]
    assert audited(monkeypatch, device, attend) == Audited("attention", 52.5, 50.0, 2, 0.0)
    assert device.watched == len(device.missed)


def test_what_never_was_is_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device(missed=[0, 0, 0, 0, *range(1, 1 + ATTEMPTS)])
    with pytest.raises(RuntimeError, match="attention in another number of pieces each time, 6 times"):
        audited(monkeypatch, device, attend)


def test_repetitions_that_are_not_equal_are_not_believed_though_they_were_seen_twice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    device = Device(missed=[0, 0, 0, 0, 1, 1, 1, 0, 0])
    assert audited(monkeypatch, device, attend) == Audited("attention", 52.5, 50.0, 2, 0.0)
    less_than_what_is_ahead = Device(missed=[0, 0, 0, 0, *[20] * ATTEMPTS])
    with pytest.raises(RuntimeError, match="attention in another number of pieces"):
        audited(monkeypatch, less_than_what_is_ahead, lambda device: None)


def test_a_stage_that_runs_nothing_is_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    assert audited(monkeypatch, Device(), lambda device: None) is None


# --- Between ranks ------------------------------------------------------------------------------------------------------


def test_what_is_ahead_between_ranks_is_counted_with_their_rendezvous(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = between(monkeypatch, [Device(), Device(own_us=(3.0,))], [attend, lambda device: device.run(60.0)])
    assert first == Audited("gather", 52.5, 50.0, 2, 0.0, rank=0)
    assert second == Audited("gather", 63.0, 60.0, 1, 0.0, rank=1)


def test_where_one_rank_missed_something_all_repeat_together(monkeypatch: pytest.MonkeyPatch) -> None:
    devices = [Device(missed=[0] * 4 + [0, 0, 5, 0, 0]), Device(missed=[2, 0, 0, 0, 0, 0, 0, 1, 0, 0])]
    found = between(monkeypatch, devices, [attend, attend])
    assert [one.apart_us for one in found] == pytest.approx([0.0, 0.0])
    assert len({(device.captures, device.watched, device.repetitions) for device in devices}) == 1
    clean = Device()
    between(monkeypatch, [clean, Device()], [attend, attend])
    assert devices[0].watched > clean.watched


@pytest.mark.parametrize("rank", [0, 1])
def test_where_one_rank_never_sees_as_much_twice_all_end_alike(rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    devices = [Device(), Device()]
    devices[rank].missed = [0] * 4 + [1, 2] * ATTEMPTS
    found = between(monkeypatch, devices, [attend, attend])
    assert found == [f"CUPTI saw gather in another number of pieces each time, {ATTEMPTS} times"] * 2


def test_a_rank_with_nothing_to_do_keeps_the_others_company(monkeypatch: pytest.MonkeyPatch) -> None:
    assert between(monkeypatch, [Device(), Device()], [attend, lambda device: None]) == [
        Audited("gather", 52.5, 50.0, 2, 0.0),
        None,
    ]


# --- A case -------------------------------------------------------------------------------------------------------------


class Graphs(Device):
    """A device that replays graphs."""

    graphs = True


def of_a_case(monkeypatch: pytest.MonkeyPatch, device: Graphs, *, simulated: bool, problem: str = "") -> Any:
    """Audit a case of a step and three stages, of which two communicate and one runs nothing."""
    monkeypatch.setattr(timeline, "profile", profile)
    HERE.device = device
    names = (("gather", True, 10.0), ("context", False, 30.0), ("fold", False, 0.0), ("combine", True, 20.0))
    runs = {name: partial(lambda us, _: device.run(us) if us else None, us) for name, _, us in names}
    stages = [SimpleNamespace(name=name, run=runs[name], communicates=communicates) for name, communicates, _ in names]
    seat = SimpleNamespace(
        launch=lambda: device.run(60.0, pieces=3), path=SimpleNamespace(stages=lambda: stages), step=None
    )
    mesh: Any = SimpleNamespace(
        device=SimpleNamespace(type="cuda"),
        size=2,
        rank=0,
        is_simulated=simulated,
        align=lambda: device.run(MEETING_US),
        share=lambda value: [value],
        first_problem=lambda problem: problem,
        solo=profile,
    )
    stand = SimpleNamespace(fullest=seat, mesh=mesh, launch=lambda: None)
    ready = object.__new__(Ready)
    for name, value in (("stand", stand), ("clock", device)):
        object.__setattr__(ready, name, value)
    monkeypatch.setattr(referee, "prepare", lambda *_, **__: ready)
    monkeypatch.setattr(referee, "CudaClock", Graphs)
    monkeypatch.setattr(referee, "Referee", OnPaper)
    monkeypatch.setattr(referee, "refusal", lambda: problem)
    monkeypatch.setattr(referee.torch, "zeros", lambda *_, **__: None)
    return referee.audit(tiny(), mesh, Policy())


@pytest.mark.parametrize(
    ("simulated", "stages"), [(False, ["step", "gather", "context", "combine"]), (True, ["step", "context"])]
)
def test_what_communicates_is_audited_between_real_ranks_and_of_a_simulated_group_is_not(
    simulated: bool, stages: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = of_a_case(monkeypatch, Graphs(), simulated=simulated)
    assert [one.stage for one in found] == [NULL, *stages]
    assert [one.kernels for one in found[:2]] == [1, 3]
    assert [one.apart_us for one in found] == pytest.approx([0.0] * len(found))


def test_a_profiler_that_does_not_start_or_sees_nothing_is_no_audit(monkeypatch: pytest.MonkeyPatch) -> None:
    refused = "CUPTI cannot be had: no permission"
    assert of_a_case(monkeypatch, Graphs(), simulated=False, problem=refused) == Skipped(refused)
    assert of_a_case(monkeypatch, Graphs(missed=[1000] * 4), simulated=False) == Skipped(UNSEEN)
