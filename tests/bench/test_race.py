"""Races: cases of one batch are right before they are timed, share what they can, and are visited alike."""

from __future__ import annotations

import gc
import weakref
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

from bench import race as racing
from bench.clock import HostClock, Scripted
from bench.line import decode, encode
from bench.race import Course, Runner, _run
from bench.record import Failed, Heat, Label, Measured, Outcome, Race, Skipped
from bench.stand import Stand
from bench.times import StopReason
from dcp_core import Case
from dcp_core.mesh import Mesh
from tests.bench.cases import QUICK, tiny
from tests.bench.made_up import trial

NAME = Race("one", Heat.SCREENED, "here", 9, 3)
BATCH = "4q8s64"


@pytest.fixture(autouse=True)
def _thawed() -> Iterator[None]:
    """Let objects be collected again that a race froze."""
    yield
    gc.unfreeze()


def cases(*paths: str, dcp: int = 2, **settings: object) -> list[Case]:
    return [tiny(BATCH, dcp=dcp, path=path, **settings) for path in paths]


def race(course: Course, some: list[Case], mesh: Mesh, *, rounds: int = 2, whole: bool = False) -> list[Outcome]:
    return course.race(some, mesh, QUICK, NAME, rounds=rounds, whole=whole)


def test_each_case_is_checked_and_timed_in_whole_rounds() -> None:
    found = race(Course(), cases("split", "fold", "mask"), Mesh.simulated(2))
    for outcome in found:
        assert isinstance(outcome, Measured)
        assert outcome.check.passed
        assert outcome.label is Label.SIMULATED
        assert outcome.race == replace(NAME, cases=3)
        assert outcome.step_us.count == 2 * 2 * 3
        assert len(outcome.rank_samples_us) == 1
        assert (outcome.stages, outcome.is_whole) == ((), False)
        assert outcome.stop in (StopReason.ROUNDS, StopReason.PRECISE)
        assert outcome.plan


def test_a_whole_race_times_every_stage_too() -> None:
    (outcome,) = race(Course(), cases("split"), Mesh.simulated(2), whole=True)
    assert isinstance(outcome, Measured)
    assert outcome.is_whole
    assert [stage.name for stage in outcome.stages] == ["context", "new", "merge"]


def test_every_round_goes_through_all_cases_and_back(monkeypatch: pytest.MonkeyPatch) -> None:
    visited: list[str] = []

    class Watched(HostClock):
        def __init__(self, case: Case) -> None:
            self._case = case

        def prepare(self, call: object, align: object = None) -> object:  # type: ignore[override]
            def sample(count: int) -> list[float]:
                visited.append(self._case.settings.path)
                return [1.0] * count

            return sample

    monkeypatch.setattr("bench.measure._open_clock", lambda case, *_: Watched(case))
    some = cases("split", "fold", "mask")
    course, mesh = Course(), Mesh.simulated(2)
    race(course, some, mesh, rounds=1)
    visited.clear()
    race(course, some, mesh, rounds=8)
    rounds = [visited[start : start + 6] for start in range(0, 48, 6)]
    assert len(visited) == 48
    for one in rounds:
        assert set(one) == {"split", "fold", "mask"}
        assert one == one[::-1]
    assert len({tuple(one) for one in rounds}) > 1, "the order changes"
    order = list(visited)
    visited.clear()
    race(course, some, mesh, rounds=8)
    assert visited == order, "it follows from the seed and the race's name alone, on every rank"


def test_a_round_in_which_the_device_was_slowed_down_is_dropped_of_every_case() -> None:
    hot = Scripted(
        lambda count, _: 130.0 if 12 <= count < 24 else 100.0,
        told=lambda count: {"event_reasons": "hardware slowdown" if 12 < count <= 24 else "none"},
    )
    ready = cast("Any", SimpleNamespace(clock=hot))
    runners = [Runner(ready, hot.prepare(lambda: None), warmup=0) for _ in range(2)]
    found = _run(runners, Mesh.alone(), QUICK, 4, 3, "seed")
    for timed in found:
        assert timed.ranks_us == ((100.0,) * 18,), "three rounds of two visits, three samples each"
        assert timed.dropped == 6


def test_cases_stay_open_until_they_are_not_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: Counter[str] = Counter()
    prepare = racing.prepare

    def counted(case: Case, *about: object, **more: object) -> object:
        opened[case.settings.path] += 1
        return prepare(case, *about, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(racing, "prepare", counted)
    course, mesh = Course(), Mesh.simulated(2)
    split, fold, mask = cases("split", "fold", "mask")
    race(course, [split, fold, mask], mesh)
    race(course, [split, fold], mesh)
    assert opened == {"split": 1, "fold": 1, "mask": 1}
    race(course, [split, mask], mesh)
    assert opened == {"split": 1, "fold": 1, "mask": 2}
    other = tiny("2q8s32", dcp=2)
    race(course, [other], mesh)
    race(course, [split], mesh)
    assert opened == {"split": 3, "fold": 1, "mask": 2}, "another batch takes the place of the one before"


def stands(course: Course) -> list[Stand]:
    return [runner.ready.stand for runner in course._open.values()]


def test_inputs_are_shared_and_caches_where_pages_are_alike() -> None:
    course = Course()
    some = [*cases("split", "fold"), *cases("split", page_size=32), *cases("split", kv_layout="HND")]
    assert all(isinstance(outcome, Measured) for outcome in race(course, some, Mesh.simulated(2)))
    first, alike, wide, turned = stands(course)
    assert all(stand.sequences is first.sequences for stand in (alike, wide, turned))
    for rank in range(2):
        caches = [stand.seats[rank].step.cache for stand in (first, alike, wide, turned)]
        assert caches[0] is caches[1]
        assert len({id(cache) for cache in caches}) == 3
        outs = {stand.seats[rank].step.out.data_ptr() for stand in (first, alike, wide, turned)}
        assert len(outs) == 4, "each writes to its own"
    assert first.kv_bytes == alike.kv_bytes > 0


def test_what_is_wrong_or_cannot_run_takes_no_part(monkeypatch: pytest.MonkeyPatch) -> None:
    judge = Stand.check

    def wrong(stand: Stand) -> object:
        check = judge(stand)
        return replace(check, out_error=10.0) if stand.case.settings.path == "fold" else check

    monkeypatch.setattr(Stand, "check", wrong)
    some = [*cases("split", "fold"), *cases("split", kernel="fa3"), *cases("mask")]
    found = race(Course(), some, Mesh.simulated(2))
    assert [outcome.kind for outcome in found] == ["measured", "failed", "skipped", "measured"]
    assert isinstance(found[1], Failed)
    assert found[1].fault == "incorrect"
    assert isinstance(found[2], Skipped)
    for outcome in (found[0], found[3]):
        assert isinstance(outcome, Measured)
        assert outcome.race is not None
        assert outcome.race.cases == 2


def test_where_nobody_can_run_there_is_no_race() -> None:
    (outcome,) = race(Course(), cases("split", kernel="fa3"), Mesh.simulated(2))
    assert isinstance(outcome, Skipped)


def test_results_that_stop_being_numbers_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(racing, "spoilt", lambda stand: "lost" if stand.case.settings.path == "fold" else "")
    found = race(Course(), cases("split", "fold"), Mesh.simulated(2))
    assert [outcome.kind for outcome in found] == ["measured", "failed"]


def test_a_closed_course_holds_nothing() -> None:
    course = Course()
    race(course, cases("split", "fold"), Mesh.simulated(2))
    held = [weakref.ref(stand) for stand in stands(course)]
    assert len(held) == 2
    assert all(stand() is not None for stand in held)
    course.close()
    assert all(stand() is None for stand in held)


def test_a_race_keeps_every_sample_in_whole_rounds() -> None:
    (outcome,) = race(Course(), cases("split"), Mesh.simulated(2))
    assert isinstance(outcome, Measured)
    assert outcome.race is not None
    with pytest.raises(ValueError, match="a race keeps all samples of every rank, 12"):
        replace(outcome, rank_samples_us=((1.0,) * 11,))
    for absurd in (0.0, 1e-300, 1e300):
        with pytest.raises(ValueError, match="a race's samples lie between a nanosecond and a day"):
            replace(outcome, rank_samples_us=((1.0,) * 11 + (absurd,),))
    with pytest.raises(ValueError, match="12 samples are no whole rounds of 2 visits, 5 each"):
        replace(outcome, race=replace(outcome.race, repeats=5))
    with pytest.raises(ValueError, match="a race times one case or more"):
        replace(outcome.race, cases=0)


def test_what_a_race_measured_comes_back_from_its_line() -> None:
    (outcome,) = race(Course(), cases("split"), Mesh.simulated(2))
    kept = trial(cases("split")[0], outcome)
    assert decode(encode(kept)) == kept
